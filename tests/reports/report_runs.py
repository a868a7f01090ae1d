"""Runs that a report can be made of, without training anything."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

METHODS = ("teacher", "mlp", "glnn", "rbm")


def row(method, seed, accuracy, graph="cpf-cora", setting="transductive", **more):
    part = {"num_nodes": 9, "accuracy": accuracy, "teacher_accuracy": 0.8, "agreement": 0.9}
    names = ("degree=1-2", "degree=11+", "homophily=[0, 0.25)", "homophily=[0.75, 1]", "class=a")
    bins = {"count": [0, 4], "confidence": [None, 0.9], "accuracy": [None, accuracy]}
    key = "teacher" if method == "teacher" else "student"
    return {
        "graph": graph,
        "options": None,
        "setting": setting,
        "seed": seed,
        "teacher": "sage",
        "method": method,
        "val_accuracy": accuracy,
        "test_accuracy": accuracy,
        "agreement": 0.9,
        "ece": 0.05,
        "parameters": 1000 + 10 * METHODS.index(method.partition(" ")[0]),
        "train_seconds": 1.5,
        "peak_mb": 600.0,
        "latency_us_b1": 20.0 if method == "rbm" else 10.0,
        "slices": json.dumps({**dict.fromkeys(names, part), "class=b": part}),
        "curve": json.dumps(
            {"epoch": [0, 9], "loss": [2.0, 0.5], "val_score": [0.4, accuracy], "best_epoch": 9}
        ),
        "reliability": json.dumps({key: bins, "calibrated": bins}),
        "routing": None,
        "diagnostics": None,
        **more,
    }


def table_of(folder, rows, about=None):
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "runs.parquet")
    (folder / "bench.json").write_text(json.dumps(about or {"limbeck": "0.1.0"}))
    return folder


def some_rows(**more):
    accuracies = {"teacher": 0.80, "mlp": 0.60, "glnn": 0.81, "rbm": 0.79}
    return [
        row(method, seed, accuracy + 0.01 * seed, graph, **more)
        for graph in ("cpf-cora", "cpf-citeseer")
        for method, accuracy in accuracies.items()
        for seed in (0, 1)
    ]
