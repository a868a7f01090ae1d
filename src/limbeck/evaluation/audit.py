"""Whether a student still fits the graph: how far nodes have moved, and how well it still answers.

The nodes of a new graph are compared with what the bundle keeps of those that training observed
(:mod:`limbeck.evaluation.statistics`), and its student answers them as new nodes, from their
features and, where it reads them, their edges to known nodes. The thresholds are our own, written
out below; 0.1 and 0.25 are the usual ones for the stability index.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data

from limbeck.errors import BundleError, GraphError
from limbeck.evaluation.metrics import accuracy, agreement, expected_calibration_error
from limbeck.evaluation.slices import slices
from limbeck.evaluation.statistics import (
    EDGES,
    RANGE,
    SHARES,
    bin_shares,
    column_blocks,
    degree_shares,
    shift,
)
from limbeck.features import ColumnEncoding, FeatureEncoder
from limbeck.graphs.profile import distinct_edges, num_neighbors
from limbeck.graphs.sparse import csr_tensor, is_csr, take_rows
from limbeck.runtime.bundle import Bundle, StatisticsEntry, open_bundle
from limbeck.runtime.loading import load_bundle
from limbeck.runtime.predictor import BundledStudent
from limbeck.teachers.own import LogitsTeacher

Verdict = Literal["keep", "watch", "distil again"]

WATCH, AGAIN = 0.1, 0.25
"""Stability index from which a shift is worth watching, and from which it is a drift."""

FEATURES_WATCH, FEATURES_AGAIN = 0.02, 0.1
"""Share of the features that have drifted."""

OUTSIDE_WATCH, OUTSIDE_AGAIN = 0.01, 0.1
"""Share of the values beyond the least and the largest that training observed."""

LOSS_WATCH, LOSS_AGAIN = 0.02, 0.05
"""Loss of accuracy or agreement, or rise of the calibration error, since the bundle was made."""

ANSWER_BLOCK = 4096
NAMED_FEATURES = 5


@dataclass(frozen=True)
class FeatureShift:
    """How far one feature has moved.

    Args:
        feature: Its name, or its number where it has none.
        shift: Its stability index, less what chance gives.
        outside: Share of the nodes whose value is beyond what training observed.
    """

    feature: str
    shift: float
    outside: float


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        verdict: ``"keep"``, ``"watch"`` or ``"distil again"``.
        reasons: Why, a sentence each, the gravest first; empty for ``"keep"``.
        nodes: Nodes of the new graph.
        known: How many of their ids the bundle knows.
        features_moved: Share of the features whose index is 0.25 or more.
        values_outside: Share of all values beyond what training observed.
        most_moved: The features that have moved most.
        unseen_values: Categories, words or ids that training had not seen, by column.
        degree_shift: Stability index of the degrees, less what chance gives.
        degrees: Share of the nodes in each range of degrees, in training and now.
        answer_shift: Stability index of the classes that the student answers, likewise.
        accuracy: On the labelled nodes; ``None`` if there are none.
        accuracy_before: On test nodes when the bundle was made, if that is known.
        agreement: With the teacher; ``None`` if its logits were not given.
        agreement_before: On test nodes when the bundle was made, likewise.
        ece: Expected calibration error of the uncalibrated answers, as scores have it, on labelled
            nodes or, if there are none, against the teacher's classes; ``None`` without either.
        ece_before: On test nodes when the bundle was made; ``None`` where labels are missing.
        ece_calibrated: As ``ece``, of the probabilities that the bundle answers with.
        new_classes: Classes of the graph that the bundle does not have.
        slices: Number of nodes, accuracy and agreement by degree, local homophily and class.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    nodes: int
    known: int
    features_moved: float
    values_outside: float
    most_moved: tuple[FeatureShift, ...]
    unseen_values: dict[str, int]
    degree_shift: float
    degrees: dict[str, tuple[float, float]]
    answer_shift: float
    accuracy: float | None
    accuracy_before: float | None
    agreement: float | None
    agreement_before: float | None
    ece: float | None
    ece_before: float | None
    ece_calibrated: float | None
    new_classes: tuple[str, ...]
    slices: dict[str, dict[str, float | None]]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def audit(
    bundle: str | os.PathLike[str], graph: Data, teacher: LogitsTeacher | None = None
) -> Audit:
    """Compare a new graph with what a student was distilled from.

    Args:
        bundle: The bundle's folder.
        graph: The new graph, from :func:`limbeck.load_graph`. Labels are used where there are any.
        teacher: Logits of a teacher on it, from :func:`limbeck.knowledge_from`, to measure
            agreement with.

    Raises:
        BundleError: The bundle keeps no statistics: it was made before Limbeck kept them; or its
            student gives nodes several labels.
        GraphError: The graph's features are not those that the student reads.
        TeacherError: The teacher's logits do not fit the graph.
    """
    opened = open_bundle(bundle)
    student = load_bundle(bundle, verify=False)
    opened.manifest.require_one_class("the audit")
    before = opened.manifest.statistics
    if before is None:
        raise BundleError(
            f"{opened.path} keeps nothing of what its nodes were like: write it again with this "
            "version of Limbeck to audit it."
        )
    x, unseen_values = _features_for(student, graph)
    logits = torch.from_numpy(answers_for(student, graph, x))
    labels, new_classes = _labels_for(student, graph)
    theirs = None if teacher is None else _teacher_for(student, graph, teacher)
    features_moved, values_outside, most_moved = _feature_shift(opened, before, student, x)
    degree = num_neighbors(graph)
    scores = opened.manifest.scores.get("student") or {}
    has_label = labels >= 0
    degrees = degree_shares(degree)
    counts = torch.bincount(logits.argmax(1), minlength=len(student.classes))
    found: dict[str, Any] = {
        "nodes": len(degree),
        "known": _num_known(student, graph),
        "features_moved": features_moved,
        "values_outside": values_outside,
        "most_moved": most_moved,
        "unseen_values": unseen_values,
        "degree_shift": _shift_of(list(before.degree.values()), degrees, before, len(degree)),
        "degrees": {
            name: (share, float(now))
            for (name, share), now in zip(before.degree.items(), degrees, strict=True)
        },
        "answer_shift": _shift_of(
            before.classes, (counts.double() / len(degree)).numpy(), before, len(degree)
        ),
        "accuracy": accuracy(logits[has_label], labels[has_label]) if has_label.any() else None,
        "accuracy_before": scores.get("test_accuracy"),
        "agreement": None if theirs is None else agreement(logits, theirs),
        "agreement_before": scores.get("agreement"),
        "ece": _calibration(logits, labels, theirs),
        "ece_before": scores.get("ece") if has_label.any() else None,
        "ece_calibrated": _calibration(logits / student.manifest.temperature, labels, theirs),
        "new_classes": new_classes,
        "slices": _slices(graph, logits, labels, theirs),
    }
    verdict, reasons = judge(found)
    return Audit(verdict=verdict, reasons=reasons, **found)


def judge(found: Mapping[str, Any]) -> tuple[Verdict, tuple[str, ...]]:
    """What the figures of an :class:`Audit` mean, and why.

    Args:
        found: Its fields by name.
    """
    graded = [(grade, reason) for grade, reason in _grades(found) if grade > 0]
    graded.sort(key=lambda pair: -pair[0])
    worst = max((grade for grade, _ in graded), default=0)
    verdicts: tuple[Verdict, ...] = ("keep", "watch", "distil again")
    return verdicts[worst], tuple(reason for _, reason in graded)


def _grades(found: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Each figure's grade, 0 (keep) to 2 (distil again), and the sentence that goes with it."""
    if found["new_classes"]:
        yield 2, f"The graph has classes that the student cannot answer: {found['new_classes']}."
    moved = found["features_moved"]
    yield (
        _grade(moved, FEATURES_WATCH, FEATURES_AGAIN),
        f"{100 * moved:.1f} % of the features have drifted.",
    )
    outside = found["values_outside"]
    yield (
        _grade(outside, OUTSIDE_WATCH, OUTSIDE_AGAIN),
        f"{100 * outside:.1f} % of the values are beyond those that training observed.",
    )
    for name, what in (("degree_shift", "degrees"), ("answer_shift", "classes answered")):
        yield (
            _grade(found[name], WATCH, AGAIN),
            f"The {what} have moved by a stability index of {found[name]:.2f}.",
        )
    for name in ("accuracy", "agreement"):
        now, before = found[name], found[f"{name}_before"]
        if now is not None and before is not None:
            yield (
                _grade(before - now, LOSS_WATCH, LOSS_AGAIN),
                f"The {name} is {100 * now:.1f} %, and was {100 * before:.1f} % on test nodes.",
            )
    now, before = found["ece"], found["ece_before"]
    if now is not None and before is not None:
        yield (
            _grade(now - before, LOSS_WATCH, LOSS_AGAIN),
            f"The calibration error is {now:.3f}, and was {before:.3f} on test nodes.",
        )


def _grade(value: float, watch: float, again: float) -> int:
    return 2 if value >= again else 1 if value >= watch else 0


# --- answers ---------------------------------------------------------------------------------


def answers_for(student: BundledStudent, graph: Data, x: Tensor) -> npt.NDArray[np.float32]:
    """A student's logits ``[N, C]`` for all nodes of a graph, asked as new ones.

    Args:
        student: The student.
        graph: The graph; its edges count where the student reads neighbours.
        x: Features as the student reads them, float32 ``[N, F]``, dense or CSR.
    """
    reads_edges = student.structure is not None or student.neighborhood is not None
    neighbors = None
    if reads_edges or student.manifest.position_width > 0:
        source, target = distinct_edges(graph)
        order = target.argsort(stable=True)
        ids = graph.info.node_ids[source[order].numpy()].tolist()
        ends = np.searchsorted(target[order].numpy(), np.arange(graph.num_nodes + 1))
        neighbors = [ids[a:b] for a, b in itertools.pairwise(ends)]
    blocks = []
    for rows in torch.split(torch.arange(graph.num_nodes), ANSWER_BLOCK):
        part = take_rows(x, rows)
        if is_csr(part):
            given: Any = (
                part.crow_indices().numpy(),
                part.col_indices().numpy(),
                part.values().numpy(),
            )
        else:
            given = part.numpy()
        request: dict[str, Any] = {"x": given}
        if neighbors is not None:
            request["neighbors"] = neighbors[int(rows[0]) : int(rows[-1]) + 1]
        blocks.append(student.predict_logits(**request))
    return np.concatenate(blocks)


def _num_known(student: BundledStudent, graph: Data) -> int:
    ids = graph.info.node_ids
    if (ids.dtype.kind == "i") != (student.store.ids.dtype.kind == "i"):
        return 0
    return int((student.store.find(ids.tolist()) >= 0).sum())


def _labels_for(student: BundledStudent, graph: Data) -> tuple[Tensor, tuple[str, ...]]:
    """Labels as numbers of the bundle's classes, −1 without one, and the classes it has not."""
    place = {name: i for i, name in enumerate(student.classes)}
    names = graph.info.class_names
    used = set(graph.y[graph.y >= 0].tolist())
    # the last entry is where a label of −1 points
    numbers = torch.tensor([*(place.get(name, -1) for name in names), -1])
    new = tuple(name for i, name in enumerate(names) if name not in place and i in used)
    return numbers[graph.y], new


def _teacher_for(student: BundledStudent, graph: Data, teacher: LogitsTeacher) -> Tensor:
    return teacher.in_order(graph.info.node_ids, student.classes).float()


def _calibration(logits: Tensor, labels: Tensor, theirs: Tensor | None) -> float | None:
    has_label = labels >= 0
    if bool(has_label.any()):
        return expected_calibration_error(logits[has_label], labels[has_label])
    return None if theirs is None else expected_calibration_error(logits, theirs.argmax(1))


def _slices(
    graph: Data, logits: Tensor, labels: Tensor, theirs: Tensor | None
) -> dict[str, dict[str, float | None]]:
    """Accuracy and agreement on the slices that hold any node."""
    found: dict[str, dict[str, float | None]] = {}
    for name, part in slices(graph, torch.arange(graph.num_nodes)).items():
        if len(part) == 0:
            continue
        labelled = part[labels[part] >= 0]
        found[name] = {
            "num_nodes": len(part),
            "accuracy": accuracy(logits[labelled], labels[labelled]) if len(labelled) else None,
            "agreement": None if theirs is None else agreement(logits[part], theirs[part]),
        }
    return found


# --- shifts ----------------------------------------------------------------------------------


def _feature_shift(
    bundle: Bundle, before: StatisticsEntry, student: BundledStudent, x: Tensor
) -> tuple[float, float, tuple[FeatureShift, ...]]:
    """Share of the features that drifted, of values outside, and those that moved most."""
    ranges, edges, shares = (bundle.array(name) for name in (RANGE, EDGES, SHARES))
    moved, outside, first = [], [], 0
    for block in column_blocks(x):
        last = first + block.shape[1]
        now = bin_shares(block, edges[first:last])
        moved.append(shift(shares[first:last], now, before.nodes, len(block)))
        least, largest = ranges[first:last].T
        outside.append(((block < least) | (block > largest)).mean(axis=0))
        first = last
    shifts, beyond = np.concatenate(moved), np.concatenate(outside)
    names = _feature_names(student)
    order = np.lexsort((-beyond, -shifts))[:NAMED_FEATURES]
    order = order[(shifts[order] > 0) | (beyond[order] > 0)]
    most = tuple(FeatureShift(names[i], float(shifts[i]), float(beyond[i])) for i in order)
    return float((shifts >= AGAIN).mean()), float(beyond.mean()), most


def _shift_of(
    before: Any, after: npt.NDArray[np.float64], entry: StatisticsEntry, count: int
) -> float:
    return float(shift(np.asarray(before), after, entry.nodes, count))


def _feature_names(student: BundledStudent) -> list[str]:
    """A name for each feature: its column and, if that has a vocabulary, its word."""
    stored = student.manifest.preprocessing
    if stored is None:
        return [str(i) for i in range(student.width)]
    names = []
    for column in FeatureEncoder.from_json(dict(stored)).columns:
        if column.vocabulary:
            names += [f"{column.name}={word}" for word in column.vocabulary]
        else:
            own = [f"{column.name}[{i}]" for i in range(column.width)]
            names += own if column.width > 1 else [column.name]
    return names


# --- features --------------------------------------------------------------------------------


def _features_for(student: BundledStudent, graph: Data) -> tuple[Tensor, dict[str, int]]:
    """Features in the columns that the student reads, and values that training had not seen.

    A graph of tables was encoded with a vocabulary of its own; its columns are put where the
    bundle's vocabulary has them.
    """
    stored, ours = student.manifest.preprocessing, graph.info.encoder
    if stored is None or ours is None:
        if graph.x.shape[1] != student.width:
            raise GraphError(
                f"the graph has {graph.x.shape[1]} features, and the student reads "
                f"{student.width}: give a graph with the same features."
            )
        return graph.x, {}
    encoder = FeatureEncoder.from_json(dict(stored))
    place, dropped = _column_places(encoder, ours)
    x = _moved_columns(graph.x, place, encoder.width)
    counts = _column_counts(graph.x)
    unseen = {name: int(counts[columns].sum()) for name, columns in dropped.items()}
    return x, {name: count for name, count in unseen.items() if count}


def _column_places(
    wanted: FeatureEncoder, given: FeatureEncoder
) -> tuple[npt.NDArray[np.int64], dict[str, list[int]]]:
    """Where each encoded column of the new graph goes, −1 for nowhere, and those by name."""
    firsts, first = {}, 0
    for column in wanted.columns:
        firsts[column.name] = (first, column)
        first += column.width
    place = np.full(given.width, -1, dtype=np.int64)
    dropped: dict[str, list[int]] = {}
    missing, first = set(firsts), 0
    for column in given.columns:
        if column.name in firsts:
            missing.discard(column.name)
            start, theirs = firsts[column.name]
            _check_same_kind(theirs, column)
            if column.vocabulary:
                known = {word: i for i, word in enumerate(theirs.vocabulary)}
                for i, word in enumerate(column.vocabulary):
                    place[first + i] = start + known[word] if word in known else -1
                absent = [first + i for i, w in enumerate(column.vocabulary) if w not in known]
                dropped[column.name] = absent
            else:
                place[first : first + column.width] = np.arange(start, start + column.width)
        first += column.width
    if missing:
        raise GraphError(
            f"the graph has no feature column {sorted(missing)[0]!r}, which the student reads."
        )
    return place, dropped


def _check_same_kind(wanted: ColumnEncoding, given: ColumnEncoding) -> None:
    same_width = bool(wanted.vocabulary) or wanted.width == given.width
    if wanted.kind != given.kind or not same_width:
        raise GraphError(
            f"feature column {given.name!r} of the graph is {given.kind} of width {given.width}, "
            f"and the student reads {wanted.kind} of width {wanted.width}."
        )


def _moved_columns(x: Tensor, place: npt.NDArray[np.int64], width: int) -> Tensor:
    target = torch.from_numpy(place)
    if not is_csr(x):
        moved = torch.zeros(len(x), width)
        moved[:, target[target >= 0]] = x[:, target >= 0]
        return moved
    column = target[x.col_indices()]
    keep = column >= 0
    row = torch.repeat_interleave(torch.arange(len(x)), x.crow_indices().diff())[keep]
    column, values = column[keep], x.values()[keep]
    order = (row * width + column).argsort()
    start = torch.zeros(len(x) + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row, minlength=len(x)), 0, out=start[1:])
    return csr_tensor(start, column[order], values[order], (len(x), width))


def _column_counts(x: Tensor) -> npt.NDArray[np.int64]:
    """How many nodes have a value other than 0 in each column."""
    if is_csr(x):
        stored = x.col_indices()[x.values() != 0]
        return torch.bincount(stored, minlength=x.shape[1]).numpy()
    counts: npt.NDArray[np.int64] = (x != 0).sum(0).numpy()
    return counts
