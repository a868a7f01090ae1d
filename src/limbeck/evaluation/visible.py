"""What a run lets a reader see, in numbers few enough to keep beside its scores.

A table of runs holds one row per run; the figures of a report need a little more: how training
went, how far probabilities can be trusted, and what a method makes visible of its student.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from limbeck.evaluation.calibration import reliability
from limbeck.evaluation.protocol import Run
from limbeck.evaluation.slices import DEGREES, degree_bins
from limbeck.graphs.curvature import balanced_forman
from limbeck.graphs.profile import num_neighbors
from limbeck.students.fmlp import FMLP
from limbeck.students.sa_mlp import SAMLP
from limbeck.teachers.framelet import OriginalFramelet, SimplifiedFramelet
from limbeck.training.loop import History

CURVE_POINTS = 40
"""Most epochs that a training curve keeps."""

SHARE_BINS = 10
"""Bins of a histogram over [0, 1]."""

CURVATURE_EDGES = 50_000
"""Edges up to which curvature is looked at; it costs the sum of the neighbours' degrees."""

Report = dict[str, Any]
"""What JSON can hold: numbers, ``None``, lists, and dictionaries of them."""


def training_curve(history: History, points: int = CURVE_POINTS) -> Report:
    """A training in a few points.

    Args:
        history: The training; with several stages the epochs follow each other.
        points: Most epochs to keep: the first, the last, the best and others evenly between.

    Returns:
        ``epoch``, counted from 0, ``loss`` and ``val_score`` at these, and ``best_epoch``.
    """
    num_epochs = len(history.val_score)
    last_stage = history.best_epoch if 0 <= history.best_epoch < num_epochs else None
    epochs = torch.linspace(0, max(num_epochs - 1, 0), min(points, num_epochs)).round().long()
    kept = sorted({*epochs.tolist(), *([] if last_stage is None else [last_stage])})
    return {
        "epoch": kept,
        "loss": [_rounded(history.loss[i]) for i in kept],
        "val_score": [_rounded(history.val_score[i]) for i in kept],
        "best_epoch": last_stage,
    }


def reliabilities(run: Run) -> Report:
    """How sure the setting's test nodes are answered, and how often that is right.

    Args:
        run: A finished run.

    Returns:
        :func:`~limbeck.evaluation.calibration.reliability` of the ``student``, of the student
        ``calibrated`` by its temperature, and of the ``teacher``, ``None`` where it has no answer
        for some test node.
    """
    labels = torch.cat([run.view.everything.y[part.nodes] for part in run.parts])
    ours = torch.cat([part.student for part in run.parts])
    theirs = [part.teacher for part in run.parts if part.teacher is not None]
    complete = len(theirs) == len(run.parts)
    return {
        "student": reliability(ours, labels),
        "calibrated": reliability(ours / run.temperature, labels),
        "teacher": reliability(torch.cat(theirs), labels) if complete else None,
    }


def diagnostics(run: Run) -> Report:
    """What the run's method makes visible, beside the routing of experts and framelet bands.

    Args:
        run: A finished run.

    Returns:
        ``gates``
            Of a student with two streams (SA-MLP): :func:`gates_by_degree`.
        ``curvature``
            Of the observed graph, where student or teacher reads framelet bands and is therefore
            concerned with bottlenecks: :func:`curvature_histogram`.
        ``layer_maps``
            Where attention over pairs of layers was written down in training: :func:`layer_maps`.

        A key is left out where there is nothing to see.
    """
    report: Report = {}
    teacher = None if run.teacher is None else run.teacher.module
    if isinstance(run.student, SAMLP):
        report["gates"] = gates_by_degree(run)
    if isinstance(run.student, FMLP) or isinstance(teacher, OriginalFramelet | SimplifiedFramelet):
        report["curvature"] = curvature_histogram(run)
    if (maps := layer_maps(run.history)) is not None:
        report["layer_maps"] = maps
    return report


@torch.no_grad()
def gates_by_degree(run: Run) -> Report:
    """How much the structure counts in the answers for observed nodes, by their degree.

    Args:
        run: A run whose student is an SA-MLP.

    Returns:
        Per degree of :data:`~limbeck.evaluation.slices.DEGREES` the ``num_nodes``, and the means of
        the ``gate`` and of the structure's ``share`` of the answer, ``None`` where there is no
        node; and ``histogram``, nodes by share in :data:`SHARE_BINS` equal bins over [0, 1].
    """
    student = run.student.eval()
    assert isinstance(student, SAMLP)
    streams = student.streams(run.inputs.observed)
    gate, share = streams.gate.squeeze(1), streams.share
    which = degree_bins(num_neighbors(run.view.observed))
    by_degree: Report = {}
    for i, name in enumerate(DEGREES):
        here = which == i
        by_degree[name] = {
            "num_nodes": int(here.sum()),
            "gate": _mean(gate[here]),
            "share": _mean(share[here]),
        }
    return {
        "by_degree": by_degree,
        "histogram": torch.histc(share, SHARE_BINS, 0, 1).int().tolist(),
    }


def curvature_histogram(run: Run, bins: int = 24) -> Report | None:
    """Balanced Forman curvature of the observed edges; very negative ones are bottlenecks.

    Args:
        run: A finished run.
        bins: Equal bins from the least to the largest curvature.

    Returns:
        ``edges`` of the bins, one more than there are bins, and how many of the graph's edges are
        in each (``count``); ``None`` for a graph without edges or with more than
        :data:`CURVATURE_EDGES`.
    """
    view = run.view
    if not 0 < view.observed.edge_index.shape[1] <= 2 * CURVATURE_EDGES:
        return None
    values = balanced_forman(view.observed.edge_index, view.num_observed).values
    if len(values) == 0:
        return None
    count, edges = torch.histogram(values.double(), bins)
    return {"edges": [_rounded(e) for e in edges.tolist()], "count": count.int().tolist()}


def layer_maps(history: History) -> Report | None:
    """Attention over pairs of layers before and after training.

    Args:
        history: Its notes may hold ``attention`` ``[T, S]``, see
            :class:`~limbeck.methods.layers.ScopedMethod`.

    Returns:
        ``before`` and ``after``: the ``epoch``, the ``attention`` of each teacher layer over the
        student's layers and the ``distances`` of the pairs; after training that is the last note
        up to the epoch that was kept. ``entropy``: at each note, its epoch and value. ``None``
        where nothing was noted.
    """
    noted = [note for note in history.notes if "attention" in note]
    if not noted:
        return None
    kept = [note for note in noted if note["epoch"] <= history.best_epoch] or noted
    return {
        "before": _map(noted[0]),
        "after": _map(kept[-1]),
        "entropy": [[note["epoch"], _rounded(note["entropy"])] for note in noted],
    }


def _map(note: Report) -> Report:
    return {name: note[name] for name in ("epoch", "attention", "distances")}


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _rounded(value: float) -> float | None:
    """Four digits, all that a figure shows; ``None`` for a loss that went out of range."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
