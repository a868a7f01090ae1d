"""Bad input ends in one sentence on stderr, exit code 2, and nothing half-written."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.cli import run

NODES = {
    "id": [f"n{i}" for i in range(60)],
    "label": ["a", "b", "c"] * 20,
    "split": (["train"] * 3 + ["val"] * 3 + ["test"] * 6) * 5,
    "size": np.linspace(-1, 1, 60).tolist(),
    "age": np.linspace(5, 1, 60).tolist(),
}
EDGES = {
    "source": [f"n{i}" for i in range(60)],
    "target": [f"n{(i + 3) % 60}" for i in range(60)],
}


def change(column: str, row: int, value: object) -> dict[str, list[object]]:
    values = list(NODES[column])
    values[row] = value
    return {**NODES, column: values}


def drop(name: str) -> dict[str, list[object]]:
    return {**NODES, "split": [None if s == name else s for s in NODES["split"]]}


BAD_TABLES = {
    "edge to an unknown node": (
        NODES,
        {**EDGES, "target": ["n1000", *EDGES["target"][1:]]},
        ["n1000", "edges.parquet"],
    ),
    "duplicate node id": (change("id", 4, "n3"), EDGES, ["n3", "nodes.parquet"]),
    "NaN feature": (change("size", 7, float("nan")), EDGES, ["size", "n7"]),
    "infinite feature": (change("age", 8, float("inf")), EDGES, ["age", "n8"]),
    "non-numeric feature": ({**NODES, "maker": ["x"] * 60}, EDGES, ["maker", "categorical"]),
    "label missing for a split": (change("label", 0, None), EDGES, ["n0", "label"]),
    "class without a training node": (
        {
            **NODES,
            "label": [
                "c" if s == "test" else "a" if i % 2 else "b" for i, s in enumerate(NODES["split"])
            ],
        },
        EDGES,
        ["'c'", "training"],
    ),
    "empty training split": (drop("train"), EDGES, ["train"]),
    "empty validation split": (drop("val"), EDGES, ["val"]),
    "empty test split": (drop("test"), EDGES, ["test"]),
    "no edges": (
        NODES,
        {"source": pa.array([], pa.string()), "target": pa.array([], pa.string())},
        ["edges.parquet"],
    ),
    "one class": ({**NODES, "label": ["a"] * 60}, EDGES, ["class"]),
}


def write(folder: Path, nodes: dict, edges: dict) -> list[str]:
    pq.write_table(pa.table(nodes), folder / "nodes.parquet")
    pq.write_table(pa.table(edges), folder / "edges.parquet")
    return ["--graph", str(folder)]


def refuse(capsys, arguments: list[str], *words: str) -> str:
    """Run a command that must fail; return its sentence."""
    code = run(arguments)
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("limbeck: ")
    assert "Traceback" not in captured.err
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


def distill(out: Path, *arguments: str) -> list[str]:
    quick = ["--set", "max_epochs=1", "--teacher-set", "max_epochs=1", "--no-latency", "--quiet"]
    return ["distill", *arguments, "--out", str(out / "bundle"), *quick]


@pytest.mark.parametrize("case", BAD_TABLES)
def test_tables(tmp_path, capsys, case):
    nodes, edges, words = BAD_TABLES[case]
    source = write(tmp_path, nodes, edges)
    refuse(capsys, distill(tmp_path, *source), *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edges.parquet", "nodes.parquet"]


@pytest.fixture
def good(tmp_path):
    folder = tmp_path / "graph"
    folder.mkdir()
    return write(folder, NODES, EDGES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "gllnn"], ["unknown method 'gllnn'", "'glnn'"]),
        (["--teacher", "sagee"], ["unknown teacher 'sagee'", "'sage'"]),
        (["--setting", "inductve"], ["unknown setting 'inductve'", "'inductive'"]),
        (["--set", "dropuot=0.1"], ["unknown option 'dropuot'", "'dropout'"]),
        (["--set", "dropout=1.5"], ["option 'dropout'", "1.5", "less than 1"]),
        (["--set", "dropout"], ["NAME=VALUE"]),
        (["--teacher-set", "lr=-1"], ["option 'lr'", "greater than 0"]),
        (["--unseen", "2", "--setting", "inductive"], ["'unseen'", "between 0 and 1"]),
        (["--seed", "x"], ["--seed"]),
        (["--no-such-option"], ["--no-such-option"]),
        (["--teacher", "gcn", "--logits", "x.npy"], ["two teachers"]),
        (["--logits", "missing.npy"], ["missing.npy"]),
        (["--teacher-file", "missing.pt"], ["missing.pt"]),
        (["--label", "lable"], ["'lable'", "'label'"]),
        (["--set", "dropout=[32"], ["--set 'dropout=[32'", "no value of YAML"]),
        (["--edges", "missing.parquet"], ["--edges belongs to --nodes"]),
    ],
)
def test_options(tmp_path, capsys, good, arguments, words):
    refuse(capsys, distill(tmp_path, *good, *arguments), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_options_of_methods_that_are_searched(tmp_path, capsys, good):
    out = ["--out", str(tmp_path / "bundle"), "--teacher-set", "max_epochs=1", "--quiet"]
    options = "method_options={glnn: {max_epochs: 1}, mlp: {max_epoch: 1}}"
    refuse(capsys, ["distill", *good, *out, "--method", "auto", "--set", options], "'max_epoch'")
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_unknown_data_set(tmp_path, capsys):
    refuse(capsys, distill(tmp_path, "--graph", "coraa"), "unknown data set 'coraa'", "'cora'")
    refuse(capsys, distill(tmp_path), "no graph was given")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["shape", "nan"])
def test_teacher_logits(tmp_path, capsys, good, kind):
    logits = np.zeros((60, 3 if kind == "nan" else 4))
    logits[5, 0] = np.nan if kind == "nan" else 0.0
    file = tmp_path / "logits.npy"
    np.save(file, logits)
    words = ["NaN"] if kind == "nan" else ["(60, 4)", "(60, 3)"]
    refuse(capsys, distill(tmp_path, *good, "--logits", str(file)), "logits.npy", *words)
    assert not (tmp_path / "bundle").exists()


def test_an_output_folder_that_is_not_ours(tmp_path, capsys, good):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "precious.txt").write_text("keep")
    refuse(capsys, distill(tmp_path, *good), str(tmp_path / "bundle"))
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["precious.txt"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    source = write(folder, NODES, EDGES)
    assert run(distill(folder, *source)) == 0
    return folder / "bundle"


@pytest.mark.parametrize("harm", ["missing", "truncated", "tampered", "unreadable", "format"])
@pytest.mark.parametrize("command", ["inspect", "predict"])
def test_bundles(tmp_path, capsys, bundle, harm, command):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    file, manifest = copy / "model.onnx", copy / "limbeck.json"
    words = ["model.onnx"]
    if harm == "missing":
        file.unlink()
    elif harm == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif harm == "tampered":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif harm == "unreadable":
        manifest.write_bytes(b"{")
        words = ["limbeck.json"]
    else:
        document = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**document, "format": 99}))
        words = ["format", "99"]
    extra = ["--nodes", "n1"] if command == "predict" else []
    refuse(capsys, [command, str(copy), *extra], *words)


def test_requests(tmp_path, capsys, bundle):
    refuse(capsys, ["predict", str(bundle), "--nodes", "n99"], "unknown node 'n99'")
    refuse(capsys, ["predict", str(bundle)], "--nodes", "--input")
    refuse(capsys, ["predict", str(bundle), "--nodes", "n1", "--top", "0"], "--top is 0")
    refuse(capsys, ["predict", str(tmp_path / "nothing"), "--nodes", "n1"], "nothing")
    np.save(tmp_path / "wide.npy", np.zeros((2, 9)))
    refuse(capsys, ["predict", str(bundle), "--input", str(tmp_path / "wide.npy")], "9", "2")
    pq.write_table(pa.table({"size": [1.0]}), tmp_path / "narrow.parquet")
    narrow = ["predict", str(bundle), "--input", str(tmp_path / "narrow.parquet")]
    refuse(capsys, narrow, "no column 'age'", "narrow.parquet")
    refuse(capsys, [*narrow, "--neighbors", "friends"], "no column 'friends'", "narrow.parquet")
    pq.write_table(pa.table({"height": [1.0]}), tmp_path / "other.parquet")
    other = ["predict", str(bundle), "--input", str(tmp_path / "other.parquet")]
    refuse(capsys, other, "no column 'size'", "other.parquet")


def test_an_address_that_is_taken(capsys, bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        serve = ["serve", str(bundle), "--port", port]
        refuse(capsys, serve, f"127.0.0.1:{port}", "in use", "--port")
    elsewhere = ["serve", str(bundle), "--host", "no.such.host.invalid"]
    refuse(capsys, elsewhere, "no.such.host.invalid:", "--host")


def bench(out: Path, *arguments: str) -> list[str]:
    plan = ["--seeds", "1", "--no-latency", "--quiet", "--out", str(out)]
    methods = [] if "--methods" in arguments else ["--methods", "mlp"]
    return ["bench", *plan, *methods, *arguments]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--graphs", "texas,./nosuch"], ["./nosuch", "no such folder"]),
        (["--graphs", "texas,coraa"], ["unknown data set 'coraa'", "'cora'"]),
        (["--graphs", "texas+sdfr"], ["sdfr"]),
        (["--graphs", "texas,texas"], ["graph 'texas' is named twice"]),
        (["--graphs", "texas", "--methods", "mlp,mlp"], ["method 'mlp' is named twice"]),
        (["--graphs", "texas", "--workers", "0"], ["workers is 0"]),
    ],
)
def test_tables_that_are_not_begun(tmp_path, capsys, arguments, words):
    refuse(capsys, bench(tmp_path / "out", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_a_table_that_cannot_be_used(tmp_path, capsys):
    plan = tmp_path / "plan.yaml"
    command = ["bench", "--config", str(plan), "--out", str(tmp_path / "out")]
    for text, words in (
        (b"\xff\xfe", ["plan.yaml", "not a YAML file"]),
        (b"{graphs: [texas], graph_seeds: {texaz: 2}}", ["unknown data set 'texaz'", "'texas'"]),
        (b"{graphs: [texas], methods: [t], variants: {'teacher:x': {method: mlp}}}", ["unknown"]),
        (b"{graphs: [texas], variants: {teacher: {method: mlp}}}", ["variant 'teacher'"]),
    ):
        plan.write_bytes(text)
        refuse(capsys, command, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_a_folder_of_a_table_that_is_broken(tmp_path, capsys, good):
    out = tmp_path / "out"
    out.write_text("a file")
    refuse(capsys, bench(out, "--graphs", good[1]), "out is a file")
    out.unlink()
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "teacher_options: {sage: {max_epochs: 1}}\nmethod_options: {mlp: {max_epochs: 1}}"
    )
    command = bench(out, "--graphs", good[1], "--config", str(plan))
    assert run(command) == 0
    capsys.readouterr()
    cell = next((out / "cells").glob("*.mlp.*"))
    cell.write_bytes(cell.read_bytes()[:100])
    refuse(capsys, command, cell.name, "remove it")
    cell.unlink()
    assert run(command) == 0
    capsys.readouterr()
    (out / "bench.json").write_text('{"limbeck"')
    refuse(capsys, command, "bench.json cannot be read", "another folder")
    report = tmp_path / "plan.yaml" / "report.html"
    refuse(capsys, ["report", str(out), "--out", str(report)], "out cannot be read")
    (out / "bench.json").unlink()
    refuse(capsys, ["report", str(out), "--out", str(report)], "report.html cannot be written")


def test_tables_with_text_are_read_as_the_plan_says(tmp_path, capsys):
    folder = tmp_path / "shop"
    folder.mkdir()
    write(folder, {**NODES, "maker": ["x", "y"] * 30}, EDGES)
    out = tmp_path / "out"
    refuse(capsys, bench(out, "--graphs", str(folder)), "'maker'", "--categorical maker")
    assert not out.exists()
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "teacher_options: {sage: {max_epochs: 1}}\nmethod_options: {mlp: {max_epochs: 1}}\n"
        f"tables: {{{folder}: {{categorical: [maker]}}}}"
    )
    assert run(bench(out, "--graphs", str(folder), "--config", str(plan))) == 0


def test_an_option_takes_several_values(tmp_path, capsys):
    write(tmp_path, {**NODES, "maker": ["x", "y"] * 30}, EDGES)
    for named in (["size", "age"], ["size", "--features", "age"]):
        command = ["profile", str(tmp_path), "--json", "--features", *named]
        assert run(command) == 0
        assert json.loads(capsys.readouterr().out)


def test_a_disk_that_fills_up(tmp_path, capsys, good, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    refuse(capsys, distill(tmp_path, *good), "bundle", "No space left on device")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph"]


def test_an_interrupted_command_says_so(tmp_path, capsys, good, monkeypatch):
    import limbeck.training.loop as loop

    def interrupt(*arguments: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_train_epoch", interrupt)
    assert run(distill(tmp_path, *good, "--seed", "5")) == 130
    assert "goes on where this one stopped" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_a_fault_of_ours_keeps_its_traceback_in_a_file(tmp_path, capsys, monkeypatch):
    import limbeck.cli as cli

    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("our mistake")

    monkeypatch.setattr(cli, "app", broken)
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    assert run([]) == 1
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    (log,) = tmp_path.glob("limbeck-*.log")
    assert log.name in sentence
    assert "Traceback" in log.read_text()
