"""One student out of many: limits, the front, and the rule of one standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.errors import OptionError
from limbeck.methods import Method

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Limits:
    """What a student may cost and how far it may stray; ``None`` for no limit.

    Args:
        budget_us: Most time that the answer for one new node may take, in microseconds: the median
            of the exported student, in one thread.
        min_agreement: Least share of the validation nodes for which student and teacher answer the
            same class; each of the paired seeds must reach it.
        max_bytes: Most bytes that the bundle may take on disk.
    """

    budget_us: float | None = None
    min_agreement: float | None = None
    max_bytes: int | None = None

    @property
    def of_export(self) -> bool:
        """Whether one of them is about the exported student."""
        return self.budget_us is not None or self.max_bytes is not None

    def excess(
        self, latency_us: float | None, agreement: float | None, num_bytes: int | None
    ) -> dict[str, float]:
        """How far figures lie beyond each limit, as a share of it; at most 0 where it is met."""
        beyond: dict[str, float] = {}
        if self.budget_us is not None and latency_us is not None:
            beyond["budget_us"] = latency_us / self.budget_us - 1
        if self.min_agreement and agreement is not None:
            beyond["min_agreement"] = 1 - agreement / self.min_agreement
        if self.max_bytes is not None and num_bytes is not None:
            beyond["max_bytes"] = num_bytes / self.max_bytes - 1
        return beyond

    def violation(
        self, latency_us: float | None, agreement: float | None, num_bytes: int | None
    ) -> float:
        """Sum of what lies beyond the limits; 0 where all are met."""
        return sum(max(0.0, x) for x in self.excess(latency_us, agreement, num_bytes).values())

    def __str__(self) -> str:
        named = [f"{name} {value:.9g}" for name, value in asdict(self).items() if value is not None]
        return " and ".join(named) or "no limit"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A method with its hyper-parameters, trained with all paired seeds and measured.

    Args:
        method: The method.
        correct: Which validation nodes the student of each seed answers rightly, bool ``[S, V]``.
        agreement: Share of the validation nodes on which it agrees with the teacher, the least of
            the seeds; ``None`` without a teacher.
        latency_us: Median time of an answer for one new node, microseconds.
        num_bytes: Size of the bundle.
    """

    method: Method
    correct: BoolArray
    agreement: float | None
    latency_us: float
    num_bytes: int

    @property
    def accuracy(self) -> float:
        """Accuracy on validation nodes, mean over the seeds."""
        return float(self.correct.mean())

    def violation(self, limits: Limits) -> float:
        """How far it is beyond some limits."""
        return limits.violation(self.latency_us, self.agreement, self.num_bytes)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            "method": self.method.name,
            "hidden_channels": self.method.hidden_channels,
            "accuracy": self.accuracy,
            "accuracy_by_seed": self.correct.mean(1).tolist(),
            "agreement": self.agreement,
            "latency_us": self.latency_us,
            "bytes": self.num_bytes,
            "options": self.method.model_dump(mode="json"),
        }

    def __str__(self) -> str:
        return f"{self.method.name} with {self.method.hidden_channels} hidden channels"


def standard_error(values: npt.NDArray[np.float64]) -> float:
    r"""Standard error of the mean of paired values, over nodes and over seeds.

    .. math:: \mathrm{SE}^2 = \frac{s_V^2}{V} + \frac{s_S^2}{S}

    where :math:`s_V^2` is the variance of the nodes' means over the seeds and :math:`s_S^2` that of
    the seeds' means over the nodes, both with :math:`n - 1`. What one node does under one seed
    counts in both, so the figure errs on the large side. A part with a single member adds nothing.

    Args:
        values: One value per seed and node, float64 ``[S, V]``.
    """
    seeds, nodes = values.shape
    of_nodes = values.mean(0).var(ddof=1) / nodes if nodes > 1 else 0.0
    of_seeds = values.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0
    return math.sqrt(of_nodes + of_seeds)


@dataclass(frozen=True)
class Gap:
    """How far a candidate lies behind the best one, in accuracy.

    Args:
        behind: Difference of the means.
        error: Its standard error, from the same nodes and seeds of both.
    """

    behind: float
    error: float

    @property
    def within_one_error(self) -> bool:
        """Whether the difference is at most its standard error."""
        return self.behind <= self.error + 1e-12  # 1 ulp of a mean must not decide


def gap_to(best: Candidate, other: Candidate) -> Gap:
    """The paired difference between two candidates."""
    difference = best.correct.astype(np.float64) - other.correct
    return Gap(float(difference.mean()), standard_error(difference))


def on_front(candidate: Candidate, others: Sequence[Candidate]) -> bool:
    """Whether no other candidate is at least as good in everything and better in something.

    Compared are accuracy and agreement, the more the better, and microseconds and bytes, the less
    the better.
    """

    def figures(of: Candidate) -> npt.NDArray[np.float64]:
        agreement = 0.0 if of.agreement is None else of.agreement
        return np.array([of.accuracy, agreement, -of.latency_us, -of.num_bytes])

    own = figures(candidate)
    return not any(
        bool((figures(other) >= own).all() and (figures(other) > own).any()) for other in others
    )


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen, out of what, and why.

    Args:
        limits: The limits.
        candidates: The finalists, best accuracy first.
        best: The most accurate of those that meet the limits.
        chosen: The smallest of those that meet the limits and lie within one standard error of it.
        reason: Why, in words.
        trainings: How many students were trained for it, those taken from an earlier search
            included.
        train_seconds: Seconds of a core that their trainings took.
    """

    limits: Limits
    candidates: tuple[Candidate, ...]
    best: Candidate
    chosen: Candidate
    reason: str
    trainings: int = 0
    train_seconds: float = 0.0

    def rows(self) -> list[dict[str, Any]]:
        """One row per finalist, best accuracy first: its figures and how it stands."""
        rows = []
        for candidate in self.candidates:
            gap = gap_to(self.best, candidate)
            rows.append(
                {
                    **candidate.to_dict(),
                    "behind": gap.behind,
                    "standard_error": gap.error,
                    "meets_limits": candidate.violation(self.limits) == 0,
                    "within_one_error": gap.within_one_error,
                    "front": on_front(candidate, self.candidates),
                    "best": candidate is self.best,
                    "chosen": candidate is self.chosen,
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The choice as plain values."""
        return {
            "limits": asdict(self.limits),
            "reason": self.reason,
            "trainings": self.trainings,
            "train_seconds": self.train_seconds,
            "candidates": self.rows(),
        }


def choose(candidates: Sequence[Candidate], limits: Limits, where: str = "this graph") -> Choice:
    """Take the smallest student that is within one standard error of the best.

    Only candidates that meet the limits are looked at. The best is the most accurate one on
    validation nodes; of those whose paired difference to it is at most the difference's standard
    error (the rule of Breiman et al., "Classification and Regression Trees", 1984, §3.4.3, with the
    error of the difference in place of that of one score) the one with the smallest bundle is
    taken, of equals the quickest, then the most accurate.

    Args:
        candidates: The finalists, at least one.
        limits: The limits.
        where: What an error calls the graph.

    Raises:
        OptionError: None meets the limits; the nearest is named.
    """
    ranked = sorted(candidates, key=lambda c: (-c.accuracy, c.num_bytes, c.latency_us))
    meeting = [candidate for candidate in ranked if candidate.violation(limits) == 0]
    if not meeting:
        nearest = min(ranked, key=lambda c: c.violation(limits))
        raise no_candidate(
            limits,
            where,
            str(nearest),
            nearest.latency_us,
            nearest.agreement,
            nearest.num_bytes,
        )
    best = meeting[0]
    near = [candidate for candidate in meeting if gap_to(best, candidate).within_one_error]
    chosen = min(near, key=lambda c: (c.num_bytes, c.latency_us, -c.accuracy))
    return Choice(limits, tuple(ranked), best, chosen, _reason(best, chosen, near, meeting, limits))


def no_candidate(
    limits: Limits,
    where: str,
    nearest: str,
    latency_us: float | None,
    agreement: float | None,
    num_bytes: int | None,
) -> OptionError:
    """The error for limits that no candidate meets."""
    excess = limits.excess(latency_us, agreement, num_bytes)
    said = {
        "budget_us": f"takes {latency_us} µs",
        "min_agreement": f"agrees with the teacher on {percent(agreement)}",
        "max_bytes": f"has {num_bytes} bytes",
    }
    figures = " and ".join(said[name] for name, value in excess.items() if value > 0)
    return OptionError(
        f"no student on {where} meets {limits}: the nearest, {nearest}, {figures}; loosen the "
        "limit or search other methods or widths."
    )


def percent(share: float | None) -> str:
    """A share in percent with two digits."""
    return "–" if share is None else f"{100 * share:.2f} %"


def _reason(
    best: Candidate,
    chosen: Candidate,
    near: Sequence[Candidate],
    meeting: Sequence[Candidate],
    limits: Limits,
) -> str:
    of = f"of {len(meeting)} finalists" + ("" if str(limits) == "no limit" else f" within {limits}")
    first = f"{best} has the best validation accuracy, {percent(best.accuracy)}, {of}"
    if chosen is best:
        rest = "no other lies within one standard error of it"
        if len(near) > 1:
            others = len(near) - 1
            rest = (
                f"{others} others lie within one standard error of it, and none of them is smaller"
                if others > 1
                else "one other lies within one standard error of it, and it is not smaller"
            )
        return f"{first}; {rest}."
    gap = gap_to(best, chosen)
    return (
        f"{first}; {chosen} is {100 * gap.behind:.2f} points behind, within one standard error "
        f"of that difference ({100 * gap.error:.2f}), and the smallest such student: "
        f"{chosen.num_bytes} bytes instead of {best.num_bytes}, {chosen.latency_us:g} µs instead "
        f"of {best.latency_us:g}."
    )
