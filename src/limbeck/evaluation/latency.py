"""How long a teacher takes to answer, for comparison with the student."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

from limbeck.graphs.sparse import take_rows
from limbeck.graphs.view import make_view
from limbeck.registry import resolve
from limbeck.teachers.base import TeacherOptions
from limbeck.training.loop import seeded
from limbeck.training.sampler import NeighborSampler

MIN_CALLS = 5
DEFAULT_FAN_OUT = 15


@torch.no_grad()
def measure_teacher_latency(
    name: str,
    options: dict[str, Any],
    graph: Data,
    batch_sizes: Sequence[int] = (1, 10, 256, 4096),
    seconds: float = 4.0,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Latency of a teacher with its options, on one thread.

    Weights are fresh: time depends on shapes alone. The adjacency is normalised beforehand
    where the whole graph is used, so only what must happen per request is counted.

    Args:
        name: Name of a teacher.
        options: Its hyper-parameters.
        graph: The graph that it answers on.
        batch_sizes: Numbers of nodes per call.
        seconds: Time to spend per kind of answer.
        seed: Draws the nodes.

    Returns:
        For ``"teacher, whole graph"``, ``"teacher, all neighbours"`` and ``"teacher, drawn
        neighbours"``: per batch size ``p50_us`` and ``p99_us`` in microseconds per call.
    """
    chosen: type[TeacherOptions] = resolve("teacher", name)
    teacher = chosen(**options)
    view = make_view(graph, "transductive", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with seeded(seed):
            return _measure(
                teacher, view.everything, teacher.build(view).eval(), batch_sizes, seconds
            )
    finally:
        torch.set_num_threads(threads)


def _measure(
    teacher: TeacherOptions,
    graph: Data,
    module: Any,
    batch_sizes: Sequence[int],
    seconds: float,
) -> dict[str, dict[str, dict[str, float]]]:
    num_nodes = int(graph.num_nodes or 0)
    adj = module.prepare(graph.edge_index, num_nodes)
    hops = teacher.hops
    drawn = teacher.fan_out or (DEFAULT_FAN_OUT,) * hops
    samplers = {
        "teacher, all neighbours": NeighborSampler(graph.edge_index, num_nodes, (-1,) * hops),
        "teacher, drawn neighbours": NeighborSampler(graph.edge_index, num_nodes, drawn),
    }
    share = seconds / len(batch_sizes)
    figures: dict[str, dict[str, dict[str, float]]] = {"teacher, whole graph": {}}
    whole = _time(lambda: module(graph.x, adj), share)
    for size in batch_sizes:
        # a transductive network answers for all nodes at once, however many are asked for
        figures["teacher, whole graph"][str(size)] = whole
    if teacher.name == "linkx":
        return figures  # one column per known node: it has no neighbourhood form
    for label, sampler in samplers.items():
        figures[label] = {}
        for size in batch_sizes:
            nodes = torch.randperm(num_nodes)[:size]

            def answer(sampler: NeighborSampler = sampler, nodes: torch.Tensor = nodes) -> None:
                sample = sampler.sample(nodes)
                module(take_rows(graph.x, sample.n_id), sample.edge_index)

            figures[label][str(size)] = _time(answer, share)
    return figures


def _time(call: Callable[[], object], seconds: float) -> dict[str, float]:
    call()  # warm-up: compiles and fills caches
    spent: list[int] = []
    end = time.perf_counter() + seconds
    while len(spent) < MIN_CALLS or time.perf_counter() < end:
        start = time.perf_counter_ns()
        call()
        spent.append(time.perf_counter_ns() - start)
    return {
        "p50_us": statistics.median(spent) / 1000,
        "p99_us": float(np.percentile(spent, 99)) / 1000,
    }
