r"""When a student should defer: risk and coverage on validation nodes, and the threshold they give.

A selective classifier (El-Yaniv and Wiener, "On the Foundations of Noise-free Selective
Classification", JMLR 2010; Geifman and El-Yaniv, "Selective Classification for Deep Neural
Networks", NeurIPS 2017, https://arxiv.org/abs/1705.08500) answers the nodes whose confidence
:math:`\kappa(v)` is at least a threshold :math:`\theta`:

.. math::
    \mathrm{coverage}(\theta) = \frac{|\{v : \kappa(v) \ge \theta\}|}{N}, \qquad
    \mathrm{risk}(\theta) = 1 - \mathrm{accuracy\ on\ those\ nodes}

Here the confidence is the largest calibrated probability, computed by the runtime's own function,
so that a node on the threshold falls on the same side in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import beta
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.evaluation.calibration import fit_temperature
from limbeck.evaluation.metrics import require_scorable
from limbeck.runtime.bundle import CascadeEntry
from limbeck.runtime.kernel import softmax

CURVE_POINTS = 101
"""Points of the curve that a bundle keeps, at most."""

DEFERS_ALL = 2.0
"""A threshold that no confidence reaches."""

BOUND = 0.95
"""Confidence of the lower bound on accuracy."""


@dataclass(frozen=True)
class DeferGoal:
    """What a threshold is fitted for.

    Args:
        kind: ``"accuracy"``: keep as many nodes as possible at this accuracy; ``"coverage"``: keep
            this share of the nodes.
        wanted: Of either, above 0 and at most 1.

    Raises:
        OptionError: ``wanted`` is out of range.
    """

    kind: Literal["accuracy", "coverage"]
    wanted: float

    def __post_init__(self) -> None:
        if not 0 < self.wanted <= 1:
            raise OptionError(
                f"the {self.kind} to defer by is {self.wanted}: it must be above 0 and at most 1."
            )


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Coverage and risk at every threshold that tells nodes apart, from the surest nodes to all.

    Args:
        threshold: Confidences that occur, each once, float32 ``[T]``, falling.
        kept: How many nodes are at least so sure, int64 ``[T]``.
        right: How many of them are answered rightly, int64 ``[T]``.
    """

    threshold: npt.NDArray[np.float32]
    kept: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]

    @property
    def coverage(self) -> npt.NDArray[np.float64]:
        """Share of the nodes that is kept, rising to 1, ``[T]``."""
        share: npt.NDArray[np.float64] = self.kept / self.kept[-1]
        return share

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """Accuracy on the nodes that are kept, ``[T]``; the risk is one less this."""
        share: npt.NDArray[np.float64] = self.right / self.kept
        return share


def risk_coverage(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> RiskCoverage:
    """The curve of a student on labelled nodes.

    Args:
        logits: Float ``[N, C]``.
        labels: int64 ``[N]``.
        temperature: Number that logits are divided by before the softmax.

    Raises:
        InputError: There is no node, or a logit or a label is none.
    """
    require_scorable(logits, labels)
    probabilities = softmax(logits.detach().cpu().float().numpy(), temperature)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels.cpu().numpy()
    order = np.argsort(-confidence, kind="stable")
    sure = confidence[order]
    # nodes of the same confidence are kept together: only where it falls next is a threshold
    last = np.append(np.flatnonzero(sure[1:] != sure[:-1]), len(sure) - 1)
    return RiskCoverage(sure[last], last + 1, np.cumsum(right[order])[last])


def fit_cascade(
    goal: DeferGoal,
    logits: Tensor,
    labels: Tensor,
    temperature: float,
    teacher_logits: Tensor | None = None,
) -> CascadeEntry:
    """Find the threshold that keeps the most nodes at an accuracy, or a share of them.

    Args:
        goal: What is wanted.
        logits: The student's logits of the validation nodes, float ``[N, C]``.
        labels: Their labels, int64 ``[N]``.
        temperature: The student's, fitted on the same nodes.
        teacher_logits: The teacher's logits of them, float ``[N, C]``, to say how well both do
            together; ``None`` without a teacher.

    Returns:
        The threshold and what it gives on these nodes. Where no threshold reaches the accuracy
        that is wanted, it is above 1 and every node is deferred.

    Raises:
        InputError: There is no node, or a logit or a label is none.
    """
    curve = risk_coverage(logits, labels, temperature)
    enough = np.flatnonzero(
        curve.accuracy >= goal.wanted if goal.kind == "accuracy" else curve.coverage >= goal.wanted
    )
    total, kept, right, threshold = len(labels), 0, 0, DEFERS_ALL
    if len(enough):
        # the most nodes at that accuracy; the fewest at that coverage, which are the surest
        at = int(enough[-1] if goal.kind == "accuracy" else enough[0])
        kept, right = int(curve.kept[at]), int(curve.right[at])
        threshold = float(curve.threshold[at])
    together = None
    if teacher_logits is not None:
        probabilities = softmax(logits.detach().cpu().float().numpy(), temperature)
        deferred = torch.from_numpy(probabilities.max(axis=1) < np.float32(threshold))
        theirs = teacher_logits.argmax(1)[deferred] == labels[deferred]
        together = (right + int(theirs.sum())) / total
    points = np.unique(np.linspace(0, len(curve.kept) - 1, CURVE_POINTS).round().astype(int))
    return CascadeEntry(
        threshold=threshold,
        goal=goal.kind,
        wanted=goal.wanted,
        nodes=total,
        coverage=kept / total,
        accuracy=right / kept if kept else None,
        accuracy_lower=accuracy_lower_bound(right, kept) if kept else None,
        together=together,
        curve={
            "coverage": tuple(curve.coverage[points].tolist()),
            "accuracy": tuple(curve.accuracy[points].tolist()),
            "threshold": tuple(curve.threshold[points].tolist()),
        },
    )


def accuracy_lower_bound(right: int, count: int) -> float:
    """One-sided lower bound on an accuracy, Clopper and Pearson's (Biometrika 1934), at 95 %.

    It holds for a threshold that was fixed beforehand; one that was fitted on the same nodes does
    somewhat worse on others.

    Args:
        right: Nodes answered rightly.
        count: Nodes answered, at least 1.
    """
    return float(beta.ppf(1 - BOUND, right, count - right + 1)) if right else 0.0


def stored_teacher(logits: Tensor, val: Tensor, labels: Tensor) -> npt.NDArray[np.float16]:
    """A teacher's logits as a bundle keeps them, calibrated.

    They are divided by the temperature that validation nodes give, and the largest of each row is
    0: there half precision is finest, and nothing overflows.

    Args:
        logits: Float ``[N, C]``, in the view's order, NaN where it has no answer.
        val: Validation nodes, int64 ``[V]``, all answered.
        labels: Their labels, int64 ``[V]``.

    Returns:
        float16 ``[N, C]``; their softmax are calibrated probabilities.
    """
    temperature = fit_temperature(logits[val], labels)
    scaled = logits.float() / temperature
    scaled = (scaled - scaled.amax(1, keepdim=True)).clamp_min(-6e4)
    half: npt.NDArray[np.float16] = scaled.numpy().astype(np.float16)
    return half
