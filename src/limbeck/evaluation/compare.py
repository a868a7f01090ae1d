"""Methods compared over seeds: means, paired differences, ranks.

The input is a table of runs, one row per graph, setting, seed, teacher and method, as ``limbeck
bench`` writes it. A *cell* is a graph in a setting with a teacher; in a cell all methods share
splits and teacher seed by seed, so differences are taken within a seed. The teacher itself is the
method ``"teacher"``, and a method that needs no teacher, such as ``"mlp"``, has a row in each cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.stats import bootstrap, friedmanchisquare, rankdata, studentized_range

from limbeck.errors import InputError, OptionError, unknown_name

TEACHER = "teacher"
"""The teacher's own rows; each of a committee has rows ``teacher:NAME``, too."""
DEGENERATE_BELOW = 0.01
"""Share of its start below which a loss that trains only its own parameters is degenerate."""
#: What can be compared: shares of nodes or areas from 0 to 1, higher is better.
METRICS = {
    "test_accuracy": "test accuracy",
    "val_accuracy": "validation accuracy",
    "test_macro_f1": "test macro F1",
    "test_roc_auc": "test ROC AUC",
    "agreement": "agreement with the teacher",
}
_KEYS = ("graph", "setting", "seed", "teacher", "method")

#: A table of runs: an Arrow table or its rows.
Runs: TypeAlias = pa.Table | Sequence[Mapping[str, Any]]


class Cell(NamedTuple):
    """A graph in a setting with a teacher."""

    graph: str
    setting: str
    teacher: str


@dataclass(frozen=True)
class Summary:
    """A method in a cell, over its seeds.

    Args:
        cell: The cell.
        method: The method.
        mean: Mean over the seeds.
        std: Population standard deviation over the seeds.
        num_seeds: Number of seeds.
    """

    cell: Cell
    method: str
    mean: float
    std: float
    num_seeds: int


@dataclass(frozen=True)
class Difference:
    """A method minus a reference method in a cell, paired by seed.

    Args:
        cell: The cell.
        method: The method.
        reference: The method that is subtracted.
        mean: Mean difference over the common seeds.
        low: Lower end of the bootstrap interval of the mean; ``None`` with one seed.
        high: Upper end of it.
        num_seeds: Number of seeds that both have.
    """

    cell: Cell
    method: str
    reference: str
    mean: float
    low: float | None
    high: float | None
    num_seeds: int


@dataclass(frozen=True)
class Standing:
    """A student method over all complete cells, those that have every student and the teacher.

    Means are over the seeds that all of them have.

    Args:
        method: The method.
        mean_rank: Mean over the cells of its rank by mean figure among the students; 1 is best,
            ties share the mean of their ranks.
        num_cells: Number of complete cells.
        mean_gap_to_best: How far its mean lies below that of the best student, over the cells.
        gap_to_best: How far its mean lies below that of the best student, in the cell where this
            is largest; 0 if it is the best everywhere.
        gap_to_best_cell: That cell.
        gap_to_teacher: How far its mean lies below the teacher's, in the cell where this is
            largest, negative if it beats the teacher everywhere; ``None`` if there is no teacher.
        gap_to_teacher_cell: That cell.
    """

    method: str
    mean_rank: float
    num_cells: int
    mean_gap_to_best: float
    gap_to_best: float
    gap_to_best_cell: Cell
    gap_to_teacher: float | None
    gap_to_teacher_cell: Cell | None


@dataclass(frozen=True)
class CriticalDifference:
    r"""Whether mean ranks tell students apart, by Friedman's test and Nemenyi's.

    Over ``N`` cells and ``k`` students, mean ranks that are closer than

    .. math:: \mathrm{CD} = q_\alpha \sqrt{\frac{k (k + 1)}{6 N}}

    are not told apart ("Statistical Comparisons of Classifiers over Multiple Data Sets", Demšar,
    JMLR 2006, https://jmlr.org/papers/v7/demsar06a.html). Cells count as independent, and settings
    of one graph hardly are: read it as a picture of the ranks rather than as a proof.

    Args:
        methods: The students, best mean rank first.
        ranks: Their mean ranks.
        num_cells: Number of complete cells ``N``.
        distance: The critical difference.
        alpha: Level of both tests.
        p_value: Of Friedman's test that all students are alike.
        groups: Longest runs of students that are not told apart, each two or more.
    """

    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    num_cells: int
    distance: float
    alpha: float
    p_value: float
    groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Comparison:
    """All that a report says of a table of runs; made by :func:`compare`.

    Args:
        metric: Column that was compared.
        methods: The methods: the teacher, ``mlp``, ``glnn`` where they occur, then the others in
            order of appearance.
        summaries: One per cell and method.
        differences: One per cell and method to each reference, by the reference's name.
        standings: One per student, best mean rank first; empty if no cell has every student and
            the teacher.
        confidence: Level of the intervals.
        degenerate: Cells and methods whose loss the frozen-student probe brought to nothing, in the
            median over the seeds; see :mod:`limbeck.evaluation.probe`.
        critical: Whether mean ranks tell the students apart; ``None`` where there are fewer than
            three of them, or fewer than two complete cells.
        micro_f1: Graphs whose nodes have several labels: what is called accuracy there is micro-F1.
    """

    metric: str
    methods: tuple[str, ...]
    summaries: tuple[Summary, ...]
    differences: dict[str, tuple[Difference, ...]]
    standings: tuple[Standing, ...]
    confidence: float
    degenerate: frozenset[tuple[Cell, str]] = frozenset()
    critical: CriticalDifference | None = None
    micro_f1: tuple[str, ...] = ()


def compare(
    runs: Runs,
    metric: str = "test_accuracy",
    *,
    references: Sequence[str] = (TEACHER, "glnn"),
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare all methods of a table of runs.

    Args:
        runs: The runs.
        metric: One of :data:`METRICS`.
        references: Methods to take differences to; one that no cell has is left out.
        resamples: Resamples of a bootstrap, at least 100.
        confidence: Level of the intervals, between 0 and 1.
        seed: Seed of the bootstraps.

    Raises:
        OptionError: If the metric is unknown or an option is out of range.
        InputError: If a column is missing, a value is not usable, a run is there twice, or no run
            has the metric.
    """
    figures = _figures(runs, metric)
    present = _methods(figures)
    return Comparison(
        metric=metric,
        methods=present,
        summaries=tuple(summarise(runs, metric)),
        differences={
            reference: tuple(
                paired_differences(
                    runs,
                    reference,
                    metric,
                    resamples=resamples,
                    confidence=confidence,
                    seed=seed,
                )
            )
            for reference in references
            if reference in present
        },
        standings=tuple(standings(runs, metric)),
        confidence=confidence,
        degenerate=frozenset(_degenerate(runs)),
        critical=critical_difference(runs, metric),
        micro_f1=micro_f1_graphs(runs),
    )


def summarise(runs: Runs, metric: str = "test_accuracy") -> list[Summary]:
    """Mean and population standard deviation of every method in every cell.

    Args:
        runs: The runs; those whose metric is null are left out.
        metric: One of :data:`METRICS`.

    Returns:
        Cells and methods in order of appearance.

    Raises:
        OptionError: If the metric is unknown.
        InputError: As for :func:`compare`.
    """
    return [
        Summary(
            cell,
            method,
            mean=float(np.mean(list(by_seed.values()))),
            std=float(np.std(list(by_seed.values()))),
            num_seeds=len(by_seed),
        )
        for cell, by_method in _figures(runs, metric).items()
        for method, by_seed in by_method.items()
    ]


def paired_differences(
    runs: Runs,
    reference: str,
    metric: str = "test_accuracy",
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Difference]:
    """Differences to a reference method, with bootstrap intervals (BCa) over the seeds.

    Args:
        runs: The runs; those whose metric is null are left out.
        reference: The method to subtract.
        metric: One of :data:`METRICS`.
        resamples: Resamples of a bootstrap, at least 100.
        confidence: Level of the interval, between 0 and 1.
        seed: Seed of the bootstrap; every interval starts from it, so that one does not depend on
            which others are asked for.

    Returns:
        One per cell and method that has a seed in common with the reference.

    Raises:
        OptionError: If no cell has the reference, the metric is unknown or an option is out of
            range.
        InputError: As for :func:`compare`.
    """
    if resamples < 100 or not 0 < confidence < 1:
        raise OptionError(
            f"resamples is {resamples} and confidence {confidence}: give at least 100 resamples "
            "and a confidence between 0 and 1."
        )
    figures = _figures(runs, metric)
    if reference not in (present := _methods(figures)):
        raise unknown_name("reference method", reference, present)
    found = []
    for cell, by_method in figures.items():
        base = by_method.get(reference, {})
        for method, by_seed in by_method.items():
            common = sorted(base.keys() & by_seed.keys())
            if method == reference or not common:
                continue
            differences = np.array([by_seed[s] - base[s] for s in common])
            low, high = _interval(differences, resamples, confidence, seed)
            mean = float(differences.mean())
            found.append(Difference(cell, method, reference, mean, low, high, len(common)))
    return found


def standings(runs: Runs, metric: str = "test_accuracy") -> list[Standing]:
    """Mean rank and gaps of every student over the cells that have every student and the teacher.

    In a cell means are over the seeds that all of them have: one seed may be easier than another.

    Args:
        runs: The runs; those whose metric is null are left out.
        metric: One of :data:`METRICS`.

    Returns:
        One per student, best mean rank first; none if no cell has every student and the teacher,
        as ranks from different sets of methods do not compare.

    Raises:
        OptionError: If the metric is unknown.
        InputError: As for :func:`compare`.
    """
    figures = _figures(runs, metric)
    methods = _methods(figures)
    students = [method for method in methods if not is_teacher(method)]
    figures = _complete(figures, methods)
    cells = list(figures)
    if not cells or not students:
        return []
    means = _means(figures, cells, students)  # [cells, students]
    ranks = rankdata(-means, axis=1)
    to_best = means.max(axis=1, keepdims=True) - means
    to_teacher = _means(figures, cells, [TEACHER]) - means if TEACHER in methods else None
    found = []
    for i, method in enumerate(students):
        worst = int(to_best[:, i].argmax())
        worst_to_teacher = None if to_teacher is None else int(to_teacher[:, i].argmax())
        found.append(
            Standing(
                method,
                mean_rank=float(ranks[:, i].mean()),
                num_cells=len(cells),
                mean_gap_to_best=float(to_best[:, i].mean()),
                gap_to_best=float(to_best[worst, i]),
                gap_to_best_cell=cells[worst],
                gap_to_teacher=(
                    None if to_teacher is None else float(to_teacher[worst_to_teacher, i])
                ),
                gap_to_teacher_cell=None if worst_to_teacher is None else cells[worst_to_teacher],
            )
        )
    return sorted(found, key=lambda standing: standing.mean_rank)


def critical_difference(
    runs: Runs, metric: str = "test_accuracy", *, alpha: float = 0.05
) -> CriticalDifference | None:
    """Test the students' mean ranks over the cells that have every student and the teacher.

    As for :func:`standings`, means are over the seeds that all of them have.

    Args:
        runs: The runs; those whose metric is null are left out.
        metric: One of :data:`METRICS`.
        alpha: Level of the tests, between 0 and 1.

    Returns:
        What was found; ``None`` for fewer than three students or two complete cells.

    Raises:
        OptionError: If the metric is unknown or ``alpha`` is out of range.
        InputError: As for :func:`compare`.
    """
    if not 0 < alpha < 1:
        raise OptionError(f"alpha is {alpha}: give a level between 0 and 1.")
    figures = _figures(runs, metric)
    methods = _methods(figures)
    students = [method for method in methods if not is_teacher(method)]
    figures = _complete(figures, methods)
    cells = list(figures)
    k, n = len(students), len(cells)
    if k < 3 or n < 2:
        return None
    means = _means(figures, cells, students)  # [cells, students]
    ranks = rankdata(-means, axis=1).mean(axis=0)
    # all alike in every cell: there is nothing to rank, and the test is not defined
    alike = bool((np.ptp(means, axis=1) == 0).all())
    p_value = 1.0 if alike else float(friedmanchisquare(*means.T).pvalue)
    q = float(studentized_range.ppf(1 - alpha, k, np.inf)) / math.sqrt(2)
    distance = q * math.sqrt(k * (k + 1) / (6 * n))
    order = np.argsort(ranks, kind="stable")
    names, values = tuple(students[i] for i in order), tuple(float(ranks[i]) for i in order)
    return CriticalDifference(
        names, values, n, distance, alpha, p_value, _cliques(names, values, distance)
    )


def _complete(figures: _Figures, methods: Sequence[str]) -> _Figures:
    """Cells that have every student and the teacher, and in each the seeds that all of them have.

    Which members a committee has is its own matter.
    """
    ranked = [method for method in methods if method == TEACHER or not is_teacher(method)]
    found: _Figures = {}
    for cell, by_method in figures.items():
        seeds = set[int].intersection(*(set(by_method.get(method, ())) for method in ranked))
        if seeds:
            found[cell] = {
                method: {
                    seed: figure for seed, figure in by_method[method].items() if seed in seeds
                }
                for method in ranked
            }
    return found


def _cliques(
    methods: Sequence[str], ranks: Sequence[float], distance: float
) -> tuple[tuple[str, ...], ...]:
    """Longest runs of methods in order whose ends are less than ``distance`` apart."""
    found: list[tuple[str, ...]] = []
    reached = 0
    for first, rank in enumerate(ranks):
        end = sum(other - rank < distance for other in ranks[first:]) + first
        if end - first > 1 and end > reached:
            found.append(tuple(methods[first:end]))
            reached = end
    return tuple(found)


#: Per cell and method, the figure of each seed.
_Figures = dict[Cell, dict[str, dict[int, float]]]


def _figures(runs: Runs, metric: str) -> _Figures:
    if metric not in METRICS:
        raise unknown_name("metric to compare", metric, METRICS)
    figures: _Figures = {}
    for number, row in enumerate(_rows(runs)):
        missing = [column for column in (*_KEYS, metric) if column not in row]
        if missing:
            raise InputError(
                f"run {number} has no column {missing[0]!r}: "
                f"a table of runs has {', '.join(_KEYS)} and the figures."
            )
        empty = [column for column in _KEYS if row[column] is None]
        if empty:
            raise InputError(f"run {number} has no value in column {empty[0]!r}: it needs one.")
        if row[metric] is None:
            continue
        if not math.isfinite(row[metric]):
            raise InputError(
                f"run {number} has {row[metric]} in column {metric!r}: it must be a number, or "
                "null where the figure is not defined."
            )
        cell = Cell(row["graph"], row["setting"], row["teacher"])
        by_seed = figures.setdefault(cell, {}).setdefault(row["method"], {})
        if row["seed"] in by_seed:
            raise InputError(
                f"seed {row['seed']} of method {row['method']!r} on {' / '.join(cell)} is there "
                "twice: a table of runs has one row per graph, setting, seed, teacher and method."
            )
        by_seed[row["seed"]] = float(row[metric])
    if not figures:
        raise InputError(f"no run has a value in column {metric!r}: there is nothing to compare.")
    return figures


def _rows(runs: Runs) -> Iterable[Mapping[str, Any]]:
    if not isinstance(runs, pa.Table):
        return runs
    rows: list[dict[str, Any]] = runs.to_pylist()
    return rows


def _degenerate(runs: Runs) -> Iterable[tuple[Cell, str]]:
    """Cells and methods whose median ratio of the frozen-student probe is too small."""
    ratios: dict[tuple[Cell, str], list[float]] = {}
    for row in _rows(runs):
        if row.get("probe_ratio") is not None:
            cell = Cell(row["graph"], row["setting"], row["teacher"])
            ratios.setdefault((cell, row["method"]), []).append(row["probe_ratio"])
    return (key for key, found in ratios.items() if np.median(found) < DEGENERATE_BELOW)


def micro_f1_graphs(runs: Runs) -> tuple[str, ...]:
    """Graphs whose nodes have several labels, in order of appearance."""
    return tuple(
        dict.fromkeys(row["graph"] for row in _rows(runs) if row.get("metric") == "micro-F1")
    )


def is_teacher(method: str) -> bool:
    """Whether rows of that name are a teacher's and not a student's."""
    return method.partition(":")[0] == TEACHER


def _methods(figures: _Figures) -> tuple[str, ...]:
    """Teacher, MLP and GLNN first, the others in order of appearance."""
    seen = dict.fromkeys(method for by_method in figures.values() for method in by_method)
    members = [method for method in seen if is_teacher(method) and method != TEACHER]
    first = [method for method in (TEACHER, *members, "mlp", "glnn") if method in seen]
    return (*first, *(method for method in seen if method not in first))


def _means(
    figures: _Figures, cells: Sequence[Cell], methods: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Means over seeds, ``[cells, methods]``; what differs by rounding alone is a tie."""
    rows = [[fmean(figures[cell][method].values()) for method in methods] for cell in cells]
    means: npt.NDArray[np.float64] = np.array(rows, dtype=np.float64).round(12)
    return means


def _interval(
    differences: npt.NDArray[np.float64], resamples: int, confidence: float, seed: int
) -> tuple[float | None, float | None]:
    if len(differences) == 1:
        return None, None
    if np.ptp(differences) < 1e-12:  # all equal: BCa is not defined, and the mean is certain
        return float(differences.mean()), float(differences.mean())
    found = bootstrap(
        (differences,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
