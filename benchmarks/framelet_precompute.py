"""What writing down the bands of a graph costs, beside as many bare sparse products.

    LIMBECK_DATA=... python benchmarks/framelet_precompute.py

The bands ``P_b^k Z`` of all powers up to ``--power``, on pubmed and on a random graph of a million
nodes and ten million edges, from ``--columns`` random columns. Haar, one level, degree 8; once with
the two normalisations of the paper, once fused. Bare is what one product of the normalised
adjacency with the same columns costs, times the number of products that the bands take; it is
measured for PyTorch's ``torch.sparse.mm``, for its ``@``, and for our own kernel, before and after
each round of bands in the same process. The ratio is to the quickest of the three.

Seconds are the process's time on the CPU, the best of ``--rounds``, so that others on the machine
do not count; "wall" is the clock of that round. Peak memory is the process's largest resident
memory while the bands are computed, the graph and the columns included.
"""

from __future__ import annotations

import argparse
import gc
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numba
import torch
from torch import Tensor

import limbeck
from limbeck.evaluation.memory import peak_memory_mb, reset_peak_memory
from limbeck.graphs.adjacency import symmetric_adjacency
from limbeck.graphs.framelets import FrameletOptions, Framelets, clean_adjacency

TRANSFORMS = {
    "Haar": FrameletOptions(),
    "Haar, fused": FrameletOptions(fused=True),
    "Linear, fused": FrameletOptions(bank="linear", fused=True),
}


@dataclass(frozen=True)
class Seconds:
    """Time of one call: on the CPU, and by the clock."""

    cpu: float
    wall: float


def timed(call: Callable[[], object]) -> Seconds:
    """Time one call."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def synthetic(num_nodes: int, num_edges: int) -> Tensor:
    """Edges between nodes drawn uniformly, int64 ``[2, num_edges]``."""
    torch.manual_seed(0)
    return torch.randint(num_nodes, (2, num_edges))


def measure(
    name: str, edge_index: Tensor, num_nodes: int, columns: int, power: int, rounds: int
) -> list[str]:
    """Rows of the table for one graph."""
    start = time.perf_counter()
    adjacency = clean_adjacency(edge_index, num_nodes)
    cleaning = time.perf_counter() - start
    transforms = {key: Framelets(adjacency, num_nodes, o) for key, o in TRANSFORMS.items()}
    normalised = symmetric_adjacency(adjacency.to_sparse_coo().indices(), num_nodes)
    z = torch.randn(num_nodes, columns)
    ours = next(iter(transforms.values()))
    products: dict[str, Callable[[], object]] = {
        "torch.sparse.mm": lambda: torch.sparse.mm(normalised, z),
        "@": lambda: normalised @ z,
        "ours": lambda: ours.adjacency(z),
    }
    bare = {key: timed(product).cpu for key, product in products.items()}
    best: dict[str, Seconds] = {}
    peaks = dict.fromkeys(transforms, 0.0)
    for _ in range(rounds):
        for key, framelets in transforms.items():
            reset_peak_memory()
            seconds = timed(lambda framelets=framelets: framelets.powers(z, power))  # type: ignore[misc]
            peaks[key] = max(peaks[key], peak_memory_mb())
            if key not in best or seconds.cpu < best[key].cpu:
                best[key] = seconds
            for way, product in products.items():
                bare[way] = min(bare[way], timed(product).cpu)
    quickest = min(bare, key=bare.__getitem__)
    print(f"{name}: cleaned in {cleaning:.1f} s; one bare product, in ms: ", end="")
    print(", ".join(f"{way} {1000 * seconds:.1f}" for way, seconds in bare.items()))
    rows = []
    for key, framelets in transforms.items():
        count = framelets.num_products(*range(1, power + 1))
        ratio = best[key].cpu / (count * bare[quickest])
        to_sparse = best[key].cpu / (count * bare["torch.sparse.mm"])
        rows.append(
            f"| {name} | {num_nodes:,} | {framelets.num_edges:,} | {key} | {count} "
            f"| {best[key].cpu:.2f} | {best[key].wall:.2f} | {peaks[key]:,.0f} "
            f"| **{ratio:.2f}** ({quickest}) | {to_sparse:.2f} |"
        )
    return rows


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", nargs="+", default=["pubmed", "synthetic"])
    parser.add_argument("--nodes", type=int, default=1_000_000, help="of the synthetic graph")
    parser.add_argument("--edges", type=int, default=10_000_000, help="of the synthetic graph")
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--power", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file to write instead of printing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[str] = []
    for name in arguments.graphs:
        if name == "synthetic":
            num_nodes = arguments.nodes
            edge_index = synthetic(num_nodes, arguments.edges)
        else:
            graph = limbeck.load_graph(name)
            edge_index, num_nodes = graph.edge_index, int(graph.num_nodes or 0)
        shape = (arguments.columns, arguments.power, arguments.rounds)
        rows += measure(name, edge_index, num_nodes, *shape)
    text = "\n".join(
        [
            "# Precomputing the bands of a framelet transform",
            "",
            f"Powers 1 to {arguments.power} of all bands, {arguments.columns} columns, float32, "
            f"{arguments.threads} thread(s).",
            "",
            "| graph | nodes | entries | transform | products | s, CPU | s, wall | peak MB "
            "| to the quickest bare product | to `torch.sparse.mm` |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"`python benchmarks/framelet_precompute.py --columns {arguments.columns} --power "
            f"{arguments.power} --rounds {arguments.rounds} --threads {arguments.threads}`; Python "
            f"{platform.python_version()}, torch {torch.__version__}, numba {numba.__version__}, "
            f"{platform.machine()}.",
            "",
        ]
    )
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
