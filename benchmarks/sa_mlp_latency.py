"""What neighbours in a request cost: SA-MLP beside an MLP of the same width.

    python benchmarks/sa_mlp_latency.py

Both are exported with features as sparse as cpf-cora's (1,433 words, some 18 of them in a node, 4
neighbours on average) and as dense as a-photo's (745 words, 35 % of them in a node, 31 neighbours),
and asked through ``predict_proba`` on one thread: the MLP with features, SA-MLP with features and
the ids of the nodes' neighbours, with features alone (the latent predictor answers), and with a
blend of both. The check of the request, the lookup of ids and the sum over rows of the table are
part of it. Weights are random: time depends on shapes, not on what is answered.

All that stands in one row of the table is asked in turns, in one process. Printed is that thread's
time on the CPU, the median of the quickest turn: close to the latency of a process that has a core
and its caches for itself, also where the machine is shared with others.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from untrained import TURNS, stored_request, times_us, untrained_bundle

import limbeck
from limbeck.export.structure import TableDtype
from limbeck.graphs.sparse import to_csr
from limbeck.runtime import BundledStudent
from limbeck.students import MLP, NodeInputs
from limbeck.students.inputs import neighbor_rows
from limbeck.students.sa_mlp import SAMLP
from limbeck.students.structure_tables import FullTable

BATCHES = (1, 10, 256)
WIDTHS = (128,)


@dataclass(frozen=True)
class Shape:
    """What a graph looks like."""

    name: str
    nodes: int
    degree: float
    features: int
    share: float
    sparse: bool
    classes: int


SHAPES = (
    Shape("cpf-cora", 2485, 4.1, 1433, 18 / 1433, True, 7),
    Shape("a-photo", 7487, 31.8, 745, 0.35, False, 8),
)


@dataclass(frozen=True)
class Graph:
    """A random graph of a shape."""

    shape: Shape
    x: torch.Tensor
    neighbors: torch.Tensor

    def neighbor_ids(self, batch: int) -> list[list[int]]:
        """Ids of the neighbours of the first nodes."""
        starts = self.neighbors.crow_indices()[: batch + 1].tolist()
        ids = self.neighbors.col_indices().tolist()
        return [ids[starts[i] : starts[i + 1]] for i in range(batch)]


def make_graph(shape: Shape) -> Graph:
    """A random graph of that shape; the first node has as many neighbours as the mean."""
    torch.manual_seed(0)
    x = (torch.rand(shape.nodes, shape.features) < shape.share).float()
    edges = torch.randint(shape.nodes, (2, round(shape.nodes * shape.degree)))
    own = torch.randperm(shape.nodes - 1)[: round(shape.degree)] + 1
    first = torch.stack([own, torch.zeros_like(own)])
    edges = torch.cat([edges[:, edges[1] != 0], first], dim=1)
    return Graph(shape, x, neighbor_rows(edges, shape.nodes, shape.nodes))


def bundled(
    graph: Graph,
    student: torch.nn.Module,
    path: Path,
    table_dtype: TableDtype = "float32",
) -> BundledStudent:
    """The student, read again from its bundle."""
    x = to_csr(graph.x) if graph.shape.sparse else graph.x
    reads_neighbors = isinstance(student, SAMLP)
    inputs = NodeInputs(x, neighbors=graph.neighbors if reads_neighbors else None)
    columns = torch.arange(graph.shape.nodes) if reads_neighbors else None
    untrained_bundle(
        path, student, inputs, graph.shape.classes, columns=columns, table_dtype=table_dtype
    )
    return limbeck.load(path)


def sa_mlp(graph: Graph, width: int, blend: float = 0.0) -> SAMLP:
    """A student of that width whose nodes without neighbours go to the predictor."""
    shape = graph.shape
    table = FullTable(shape.nodes, width, init_std=0.3)
    student = SAMLP(shape.features, width, shape.classes, table, blend=blend)
    student.routed = True
    return student.eval()


def students_of(graph: Graph, width: int, folder: Path) -> dict[str, BundledStudent]:
    """The students that stand beside each other, from bundles in ``folder``."""
    shape = graph.shape
    plain = MLP(shape.features, width, shape.classes).eval()
    return {
        "mlp": bundled(graph, plain, folder / "mlp"),
        "float32": bundled(graph, sa_mlp(graph, width), folder / "float32"),
        "int8": bundled(graph, sa_mlp(graph, width), folder / "int8", "int8"),
        "blend": bundled(graph, sa_mlp(graph, width, blend=2.0), folder / "blend"),
    }


def calls_of(
    graph: Graph, students: dict[str, BundledStudent], batch: int
) -> dict[str, Callable[[], object]]:
    """What is asked, by the name of its column."""
    x, ids = stored_request(students["mlp"], np.arange(batch)), graph.neighbor_ids(batch)
    asked = {name: partial(student.predict_proba, x=x) for name, student in students.items()}
    return {
        "MLP": asked["mlp"],
        "SA-MLP": partial(asked["float32"], neighbors=ids),
        "int8 table": partial(asked["int8"], neighbors=ids),
        "with a blend": partial(asked["blend"], neighbors=ids),
        "without neighbours": asked["float32"],
    }


def report(widths: tuple[int, ...]) -> str:
    """The measured table, as Markdown."""
    lines: list[str] = []
    for shape in SHAPES:
        graph = make_graph(shape)
        for width in widths:
            with tempfile.TemporaryDirectory() as folder:
                students = students_of(graph, width, Path(folder))
                for batch in BATCHES:
                    times = times_us(calls_of(graph, students, batch))
                    if not lines:
                        names = ["shape", "width", "nodes", *times, "SA-MLP / MLP"]
                        lines = [_row(names), _row(["---"] * len(names))]
                    ratio = times["SA-MLP"] / times["MLP"]
                    cells = [f"{value:.1f}" for value in times.values()]
                    lines.append(_row([shape.name, width, batch, *cells, f"{ratio:.2f}"]))
    return "\n".join(lines)


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--out", type=Path, help="file to write instead of printing")
    options = parser.parse_args()
    text = (
        "# SA-MLP with neighbour ids beside an MLP of the same width\n\n"
        "Microseconds of `predict_proba`, time of its one thread on the CPU, median of the "
        f"quickest of {TURNS} turns.\n\n"
        f"{report(tuple(options.widths))}\n\n"
        f"Python {platform.python_version()}, NumPy {np.__version__}, ONNX Runtime "
        f"{onnxruntime.__version__}, Limbeck {limbeck.__version__}.\n\n"
        "    python benchmarks/sa_mlp_latency.py --out benchmarks/results/sa_mlp_latency.md\n"
    )
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
