"""SA-MLP on a graph of a million nodes and twenty million edges: memory, time, size of the bundle.

    python benchmarks/sa_mlp_scale.py

The graph is drawn: classes of equal size, an edge within a class with the probability
``--homophily`` and anywhere otherwise, one of its ends by a power law within its class, so that few
nodes are named often; features are noise around the mean of a class, which alone do not tell it;
10 % of the nodes have a label, and the teacher is the true class with noise on its logits. Each
table is trained and exported in a process of its own, whose peak of resident memory is printed
beside the table's own sizes. The accuracy says that something was learnt; it compares nothing with
anything.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

import limbeck
from limbeck.evaluation.distill import distill
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.view import make_view
from limbeck.methods.sa_mlp import StructureAwareMLP
from limbeck.teachers import knowledge_from

CLASSES = 10
FEATURES = 32
POWER = 3.0
"""A node of rank r within its class is named with a density of about r^(1/POWER − 1)."""

TABLES: dict[str, dict[str, Any]] = {
    "full": {"table_lr": 0.1},
    "landmark": {"table": "landmark", "table_rows": 50_000},
    "hashed": {"table": "hashed", "table_rows": 50_000, "num_hashes": 2},
}


def make_graph(num_nodes: int, num_edges: int, homophily: float) -> tuple[Data, Tensor]:
    """A random graph, undirected, and the logits of its teacher, ``[N, CLASSES]``."""
    torch.manual_seed(0)
    size = num_nodes // CLASSES
    num_nodes = size * CLASSES
    y = torch.arange(num_nodes) // size

    def ends(of_class: Tensor) -> Tensor:
        rank = (torch.rand(num_edges) ** POWER * size).long().clamp_max(size - 1)
        return of_class * size + rank

    one = torch.randint(CLASSES, (num_edges,))
    other = torch.where(
        torch.rand(num_edges) < homophily, one, torch.randint(CLASSES, (num_edges,))
    )
    # the other end is drawn evenly: a node is named often or seldom, and names some at any rate
    half = torch.stack([ends(one), other * size + torch.randint(size, (num_edges,))])
    graph = Data(
        x=torch.randn(CLASSES, FEATURES)[y] * 0.3 + torch.randn(num_nodes, FEATURES),
        edge_index=torch.cat([half, half.flip(0)], dim=1),
        y=y,
    )
    graph.info = GraphInfo(
        name="drawn",
        source="drawn",
        split="random",
        class_names=tuple(map(str, range(CLASSES))),
        node_ids=np.arange(num_nodes),
        notes={"fractions": {"train": 0.1, "val": 0.01}},
    )
    logits = torch.randn(num_nodes, CLASSES)
    logits[torch.arange(num_nodes), y] += 2.5
    return graph, logits


def peak_gb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train one table and export it."""
    torch.set_num_threads(options.threads)
    graph, logits = make_graph(options.nodes, options.edges, options.homophily)
    view = make_view(graph, "transductive", 0)
    figures: dict[str, Any] = {
        "table": options.table,
        "nodes": graph.num_nodes,
        "edges": graph.num_edges,
        "gb_before": peak_gb(),
    }
    method = StructureAwareMLP(
        hidden_channels=options.hidden,
        batch_size=options.batch,
        max_epochs=options.epochs,
        row_cap=64,
        stages="two",
        init="scaled",
        weight_decay=0.0,
        lr=0.003,
        **TABLES[options.table],
    )
    before = time.process_time(), time.perf_counter()
    run = distill(view, knowledge_from(logits), method, 0)
    figures["cpu_seconds"] = time.process_time() - before[0]
    figures["seconds"] = time.perf_counter() - before[1]
    figures["gb_training"] = peak_gb()
    figures["test_accuracy"] = run.scores["student"]["test_accuracy"]
    figures["table_mb"] = run.student.table.weight.nbytes / 2**20
    with tempfile.TemporaryDirectory() as folder:
        before = time.process_time(), time.perf_counter()
        bundle = run.save(Path(folder) / "bundle")
        figures["export_cpu_seconds"] = time.process_time() - before[0]
        figures["gb_export"] = peak_gb()
        figures["stored_table_mb"] = (bundle / "store" / "table.npy").stat().st_size / 2**20
        figures["bundle_mb"] = sum(f.stat().st_size for f in bundle.rglob("*")) / 2**20
        student = limbeck.load(bundle, verify=False)
        ids = [[1, 2, 3, 40, 500]]
        request = {"x": graph.x[:1].numpy(), "neighbors": ids}
        student.predict(**request)
        times = []
        for _ in range(200):
            start = time.thread_time_ns()
            student.predict(**request)
            times.append(time.thread_time_ns() - start)
        figures["request_us"] = sorted(times)[len(times) // 2] / 1000
    return figures


COLUMNS = {
    "table": "table",
    "table_mb": "its weights (MB)",
    "gb_before": "graph and view (GB)",
    "gb_training": "peak, training (GB)",
    "gb_export": "peak, export (GB)",
    "cpu_seconds": "training (CPU s)",
    "export_cpu_seconds": "export (CPU s)",
    "stored_table_mb": "table in the bundle (MB)",
    "bundle_mb": "bundle (MB)",
    "request_us": "a request of five neighbours (µs)",
    "test_accuracy": "test accuracy",
}


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The measured table, as Markdown."""
    lines = [" | ".join(COLUMNS.values()), " | ".join(["---"] * len(COLUMNS))]
    for row in rows:
        lines.append(
            " | ".join(f"{row[key]:.2f}" if key != "table" else row[key] for key in COLUMNS)
        )
    body = "\n".join(f"| {line} |" for line in lines)
    return (
        "# SA-MLP on a drawn graph\n\n"
        f"{rows[0]['nodes']:,} nodes, {rows[0]['edges']:,} directed entries; width "
        f"{options.hidden}, batches of {options.batch:,}, {options.epochs} epochs a stage, at most "
        f"64 neighbours of a node in training, {options.threads} thread.\n\n{body}\n\n"
        f"Python {platform.python_version()}, torch {torch.__version__}, Limbeck "
        f"{limbeck.__version__}.\n\n    {' '.join(['python', *sys.argv])}\n"
    )


def main() -> None:
    """Measure each table in a process of its own, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--edges", type=int, default=20_000_000, help="undirected")
    parser.add_argument("--homophily", type=float, default=0.7)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--out", type=Path, help="file to write instead of printing")
    parser.add_argument("--table", choices=list(TABLES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(json.dumps(measure(options)))
        return
    rows = []
    for table in options.tables:
        command = [sys.executable, *sys.argv, "--table", table]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    text = report(rows, options)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
