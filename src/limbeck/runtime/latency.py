"""How long an answer takes, as a caller sees it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.errors import OptionError
from limbeck.runtime.predictor import BundledStudent
from limbeck.runtime.rows import CsrRows

MIN_REPEATS = 5
MAX_REPEATS = 20_000
WARM_UP_SHARE = 0.1


def measure_latency(
    student: BundledStudent,
    batch_sizes: Sequence[int] = (1, 10, 256, 4096),
    seconds: float = 4.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Latency of ``predict_proba``, for new nodes and for known ones.

    Each batch size is called again and again with the same nodes, drawn from the known ones,
    after a warm-up: once as ``x`` (the student runs; sparse features go as CSR arrays, and with the
    ids of their neighbours, or their bands, where the student reads them), once as ``nodes`` (a
    lookup). One thread answers.

    Args:
        student: The student, loaded from its bundle.
        batch_sizes: Numbers of nodes per call.
        seconds: Time to spend in total; at least :data:`MIN_REPEATS` calls are made of each kind.
        seed: Draws the nodes.

    Returns:
        ``{"threads": 1, "x": {"1": {"p50_us", "p99_us", "repeats"}, ...}, "nodes": {...}}``,
        times in microseconds per call, not per node; batch sizes as strings, as JSON has them.

    Raises:
        OptionError: A batch size is below 1, ``seconds`` is not above 0, or the student knows no
            node to ask for.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise OptionError(f"batch sizes must be at least 1, and are {list(batch_sizes)}.")
    if not seconds > 0:
        raise OptionError(f"the seconds to measure must be above 0, and are {seconds}.")
    if student.store.num_nodes == 0:
        raise OptionError("latency cannot be measured: the bundle knows no node to ask for.")
    generator = np.random.default_rng(seed)
    share = seconds / (2 * len(batch_sizes))
    ids = student.store.ids
    figures: dict[str, Any] = {"threads": 1, "x": {}, "nodes": {}}
    for size in batch_sizes:
        rows = generator.integers(student.store.num_nodes, size=size)
        request, nodes = _request(student, rows), ids[rows].tolist()
        figures["x"][str(size)] = _time(partial(student.predict_proba, **request), share)
        figures["nodes"][str(size)] = _time(partial(student.predict_proba, nodes), share)
    return figures


def _request(student: BundledStudent, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """What is stored of some nodes, in the form in which a caller gives it."""
    features = student.store.features(rows)
    x: Any = features
    if isinstance(features, CsrRows):
        x = (features.indptr, features.indices, features.values)
    if student.manifest.bands is not None:
        return {"x": x, "bands": student.store.bands(rows)}
    if student.neighborhood is not None:
        found = [student.neighborhood.neighbors_of_known(row) for row in rows.tolist()]
        return {"x": x, "neighbors": [student.store.ids_of(own) for own in found]}
    if student.structure is None:
        return {"x": x}
    edges = student.structure.edges_of_known(rows)
    ends = np.searchsorted(edges.node, np.arange(len(rows) + 1)).tolist()
    ids = student.store.ids_of(edges.neighbor)
    return {"x": x, "neighbors": [ids[a:b] for a, b in itertools.pairwise(ends)]}


def _time(call: Callable[[], object], seconds: float) -> dict[str, Any]:
    """Percentiles of the duration of ``call``, in microseconds."""
    _durations_ns(call, seconds * WARM_UP_SHARE)
    durations_us = np.array(_durations_ns(call, seconds)) / 1000
    p50, p99 = np.percentile(durations_us, [50, 99])
    return {
        "p50_us": round(float(p50), 2),
        "p99_us": round(float(p99), 2),
        "repeats": len(durations_us),
    }


def _durations_ns(call: Callable[[], object], seconds: float) -> list[int]:
    durations: list[int] = []
    now = time.perf_counter_ns()
    end = now + int(seconds * 1e9)
    while len(durations) < MIN_REPEATS or (now < end and len(durations) < MAX_REPEATS):
        call()
        before, now = now, time.perf_counter_ns()
        durations.append(now - before)
    return durations
