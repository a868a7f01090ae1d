"""What ten nodes cost a GNN, and what they cost its students.

    python benchmarks/gnn_against_student.py [--nodes 200000] [--edges 4000000] [--only NAMES]

A random graph: one end of each edge is drawn evenly, the other by the square of an even draw, so
that few nodes have many edges. The teacher is GraphSAGE of two layers, 100-256-47, asked in torch
on one thread in three ways:

* *whole graph*: a pass over all nodes; its adjacency is ready.
* *full neighbourhoods*: of the nodes that are asked about and of those around them, all edges. The
  same answers to 1e-4, which is checked.
* *sampled neighbourhoods*: of each node at most ``--fanouts`` neighbours, drawn with replacement.

Gathering the neighbours is part of it, reading the graph is not: it is in memory, in CSR. The
students are 100-256-47, too, and read from their bundles: new nodes as their features and, where a
student reads them, positions, bands or the ids of neighbours. Weights are random: time depends on
shapes, not on what is answered.

Printed is the time of the one thread on the CPU for ten nodes, the quickest of some turns: close to
the latency of a process that has a core for itself, also where the machine is shared with others.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from untrained import untrained_bundle

import limbeck
from limbeck.graphs.adjacency import mean_adjacency
from limbeck.students import MLP, NodeInputs
from limbeck.students.ensemble import EnsembleOfMLPs
from limbeck.students.fmlp import FMLPO, FMLPS, BandEncoders, GivenBands
from limbeck.students.gnn import GNNStudent
from limbeck.students.inputs import Surroundings, neighbor_rows
from limbeck.students.linkx import LINKX
from limbeck.students.moe import MoE
from limbeck.students.rbm import RbM
from limbeck.students.sa_mlp import SAMLP
from limbeck.students.structure_tables import FullTable
from limbeck.teachers.sage import SAGE

WIDTH, HIDDEN, CLASSES = 100, 256, 47
ASKED = 10
STORED = 2000
"""Nodes in the bundle of a student that reads no edges: new nodes do not depend on them."""

TURNS = 10
TURN_SECONDS = 0.05


class Graph:
    """The graph, and the teacher on it."""

    def __init__(self, num_nodes: int, num_edges: int) -> None:
        torch.manual_seed(0)
        half = num_edges // 2
        one = torch.randint(num_nodes, (half,))
        other = (torch.rand(half).square() * num_nodes).long()
        self.edge_index = torch.stack([torch.cat([one, other]), torch.cat([other, one])])
        self.x = torch.randn(num_nodes, WIDTH)
        self.teacher = SAGE(WIDTH, HIDDEN, CLASSES).eval()
        self.asked = torch.randperm(num_nodes)[:ASKED]
        self.adjacency = mean_adjacency(self.edge_index, num_nodes)
        starts, neighbors, weights = (
            part.numpy()
            for part in (
                self.adjacency.crow_indices(),
                self.adjacency.col_indices(),
                self.adjacency.values(),
            )
        )
        self.csr = sp.csr_array((weights, neighbors, starts), shape=(num_nodes, num_nodes))

    def on_whole_graph(self) -> torch.Tensor:
        return self.teacher.layers(self.x, self.adjacency)["logits"][self.asked]

    def on_full_neighborhoods(self) -> torch.Tensor:
        """Two layers, each over the edges that the next one needs."""
        blocks, nodes = [], self.asked.numpy()
        for _ in self.teacher.lins:
            rows = self.csr[nodes]
            nodes, places = np.unique(rows.indices, return_inverse=True)
            shape = (rows.shape[0], len(nodes))
            blocks.append(sp.csr_array((rows.data, places, rows.indptr), shape=shape))
        h = self.x[torch.from_numpy(nodes)]
        for layer, block in zip(self.teacher.lins, reversed(blocks), strict=True):
            h = layer(torch.from_numpy(block @ h.numpy()))
            if layer is not self.teacher.lins[-1]:
                h = h.relu()
        return h

    def on_sampled_neighborhoods(
        self, fanouts: tuple[int, ...], draw: np.random.Generator
    ) -> torch.Tensor:
        """Each node is averaged with a sample of its row, itself beside it."""
        levels = [self.asked.numpy()]
        for fanout in fanouts:
            nodes = levels[-1]
            starts = self.csr.indptr[nodes]
            degrees = self.csr.indptr[nodes + 1] - starts  # at least 1: itself
            places = starts[:, None] + draw.integers(0, degrees[:, None], (len(nodes), fanout))
            sampled = self.csr.indices[places]
            levels.append(np.concatenate([nodes[:, None], sampled], axis=1).reshape(-1))
        h = self.x[torch.from_numpy(levels[-1])]
        for layer, fanout in zip(self.teacher.lins, reversed(fanouts), strict=True):
            h = layer(h.reshape(-1, fanout + 1, h.shape[1]).mean(1))
            if layer is not self.teacher.lins[-1]:
                h = h.relu()
        return h

    def neighbor_ids(self) -> list[list[int]]:
        """Ids of the neighbours of the nodes that are asked about."""
        return [self.csr[[node]].indices.tolist() for node in self.asked.tolist()]


def rbm() -> RbM:
    student = RbM(WIDTH, HIDDEN, CLASSES)
    student.convert(NodeInputs(torch.randn(STORED, WIDTH)))
    return student


def moe() -> MoE:
    student = MoE(WIDTH, HIDDEN, CLASSES)
    student.begin_routing()
    return student


STUDENTS: dict[str, Callable[[], torch.nn.Module]] = {
    "mlp": lambda: MLP(WIDTH, HIDDEN, CLASSES),
    "mlp, 64 positions (nosmog)": lambda: MLP(WIDTH, HIDDEN, CLASSES, position_channels=64),
    "ensemble of 3": lambda: EnsembleOfMLPs([MLP(WIDTH, HIDDEN, CLASSES) for _ in range(3)]),
    "rbm, 4 of 8 experts": rbm,
    "moe, 4 of 8 experts": moe,
    "fmlp-o": lambda: FMLPO(WIDTH, CLASSES, GivenBands(2, 4, 64)),
    "fmlp-s": lambda: FMLPS(WIDTH, CLASSES, GivenBands(1, 4, 64)),
    "fmlp-x": lambda: FMLPO(WIDTH, CLASSES, BandEncoders(2, 4, 64, WIDTH)),
}
"""Students that read nothing of the graph when they answer."""


def sa_mlp(num_nodes: int) -> SAMLP:
    student = SAMLP(WIDTH, HIDDEN, CLASSES, FullTable(num_nodes, HIDDEN, init_std=0.3))
    student.routed = True
    return student


def linkx(num_nodes: int) -> LINKX:
    return LINKX(WIDTH, HIDDEN, CLASSES, FullTable(num_nodes, HIDDEN, init_std=0.3), num_layers=1)


NEIGHBORLY: dict[str, Callable[[int], torch.nn.Module]] = {"sa-mlp": sa_mlp, "linkx": linkx}
"""Students that sum over rows that the neighbours' ids name."""


def microseconds(call: Callable[[], object], calls: int | None = None) -> float:
    """Time of a call on the CPU, in microseconds: the mean over a turn, the quickest of them."""
    call()
    best = float("inf")
    for _ in range(TURNS if calls is None else calls):
        done, before = 0, time.thread_time()
        end = time.perf_counter() + (TURN_SECONDS if calls is None else 0)
        while not done or time.perf_counter() < end:
            call()
            done += 1
        best = min(best, (time.thread_time() - before) / done)
    return 1e6 * best


def time_of_student(name: str, graph: Graph) -> tuple[float, float]:
    """Microseconds for new nodes, and for known ones."""
    torch.manual_seed(0)
    asked = {"x": graph.x[graph.asked].numpy()}
    options: dict[str, Any] = {}
    num_nodes = len(graph.x)
    if name in STUDENTS:
        student = STUDENTS[name]()
        rows = {
            spec.name: torch.randn(STORED, spec.width)
            for spec in student.inputs  # type: ignore[union-attr]
        }
        asked |= {spec: row[:ASKED].numpy() for spec, row in rows.items()}
        inputs = NodeInputs(**rows)
    elif name in NEIGHBORLY:
        student = NEIGHBORLY[name](num_nodes)
        neighbors = neighbor_rows(graph.edge_index, num_nodes, num_nodes)
        inputs = NodeInputs(graph.x, neighbors=neighbors)
        options["columns"] = torch.arange(num_nodes)
        asked["neighbors"] = graph.neighbor_ids()
    else:
        student = GNNStudent(SAGE(WIDTH, HIDDEN, CLASSES), num_nodes)
        surroundings = Surroundings(graph.x, graph.edge_index, torch.arange(num_nodes))
        inputs = NodeInputs(graph.x, graph=surroundings)
        asked["neighbors"] = graph.neighbor_ids()
    with tempfile.TemporaryDirectory() as folder:
        path = untrained_bundle(Path(folder) / "student", student, inputs, CLASSES, **options)
        loaded = limbeck.load(path)
        nodes = list(range(ASKED))
        return (
            microseconds(partial(loaded.predict_proba, **asked)),
            microseconds(partial(loaded.predict_proba, nodes)),
        )


def main() -> None:
    names = [*STUDENTS, *NEIGHBORLY, "sage"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=200_000)
    parser.add_argument("--edges", type=int, default=4_000_000)
    parser.add_argument("--fanouts", type=int, nargs=2, default=[15, 10])
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    torch.set_num_threads(1)
    graph = Graph(options.nodes, options.edges)
    fanouts = tuple(options.fanouts)
    draw = np.random.default_rng(0)
    with torch.inference_mode():
        whole = graph.on_whole_graph()
        torch.testing.assert_close(graph.on_full_neighborhoods(), whole, rtol=1e-4, atol=1e-4)
        teacher = {
            "whole graph": microseconds(graph.on_whole_graph, 3),
            "full neighbourhoods": microseconds(graph.on_full_neighborhoods),
            f"sampled neighbourhoods, {fanouts[0]} and {fanouts[1]}": microseconds(
                partial(graph.on_sampled_neighborhoods, fanouts, draw)
            ),
        }
    print(f"{options.nodes:,} nodes, {options.edges:,} edges; {ASKED} nodes; ", end="")
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| SAGE 100-256-47 | CPU µs |\n|---|---|")
    for name, took in teacher.items():
        print(f"| {name} | {took:,.0f} |")
    ratios = " | ".join(f"{name} ÷ new" for name in teacher)
    print(f"\n| student | new nodes, CPU µs | known, CPU µs | {ratios} |")
    print("|---|---|---|" + "---|" * len(teacher))
    for name in options.only:
        new, known = time_of_student(name, graph)
        times = " | ".join(f"{took / new:,.0f}" for took in teacher.values())
        print(f"| {name} | {new:,.1f} | {known:,.1f} | {times} |", flush=True)


if __name__ == "__main__":
    main()
