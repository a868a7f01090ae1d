"""Students with random weights as their bundles answer, for benchmarks whose figure is time.

Time depends on shapes, not on what is answered.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from limbeck.export import export_bundle
from limbeck.graphs.info import GraphInfo
from limbeck.runtime import BundledStudent
from limbeck.runtime.rows import CsrRows
from limbeck.students import NodeInputs

TURNS = 12
TURN_SECONDS = 0.03
MIN_CALLS = 5


def untrained_bundle(
    path: Path, student: torch.nn.Module, inputs: NodeInputs, num_classes: int, **options: Any
) -> Path:
    """Export a student that nobody taught.

    Args:
        path: Folder of the bundle.
        student: The student.
        inputs: What it reads of the nodes that the bundle knows, whose ids are 0, 1, 2, ...
        num_classes: Number of classes ``C``.
        options: Further ones of :func:`limbeck.export.export_bundle`.
    """
    names = tuple(f"class {c}" for c in range(num_classes))
    return export_bundle(
        path,
        student=student.eval(),
        inputs=inputs,
        graph_info=GraphInfo("random", "random", "random", names, np.arange(inputs.x.shape[0])),
        method="none",
        student_name=type(student).__name__.lower(),
        hyper_parameters={},
        teacher={},
        setting="none",
        scores={},
        fingerprint="",
        counts={},
        **options,
    )


def stored_request(student: BundledStudent, nodes: npt.NDArray[np.int64]) -> Any:
    """Features of nodes that a bundle knows, as a caller gives them: an array, or three of CSR."""
    rows = student.store.features(nodes)
    return (rows.indptr, rows.indices, rows.values) if isinstance(rows, CsrRows) else rows


def times_us(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """CPU time of each call in microseconds: the median of its quickest turn.

    Each is made again and again for a turn, so that caches hold what it needs, then the next.
    """
    quickest = dict.fromkeys(calls, math.inf)
    for _ in range(TURNS):
        for name, call in calls.items():
            call()
            spent: list[int] = []
            end = time.perf_counter() + TURN_SECONDS
            while len(spent) < MIN_CALLS or time.perf_counter() < end:
                start = time.thread_time_ns()
                call()
                spent.append(time.thread_time_ns() - start)
            quickest[name] = min(quickest[name], statistics.median(spent) / 1000)
    return quickest
