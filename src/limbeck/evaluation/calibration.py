"""How far probabilities mean what they say, and the one number that makes them do so."""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from limbeck.evaluation.metrics import ECE_BINS, questions, require_scorable

#: Temperatures that :func:`fit_temperature` can return, lowest and highest.
TEMPERATURES = (0.05, 20.0)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    r"""Fit the temperature of "On Calibration of Modern Neural Networks" (Guo et al., ICML 2017,
    https://arxiv.org/abs/1706.04599).

    .. math:: T = \arg\min_T \; -\frac{1}{N} \sum_v \log \mathrm{softmax}(z_v / T)_{y_v}

    The loss is convex in :math:`1/T`, hence has one minimum in :math:`\log T`, where it is
    searched. Divide logits by ``T`` before the softmax: ``T`` above 1 says that the model was too
    sure of itself. Accuracy does not change.

    Args:
        logits: Logits of validation nodes, float ``[N, C]``.
        labels: Their labels, int64 ``[N]``; or ones and zeros ``[N, C]`` for several labels, each
            a question of two classes with a logit of 0 for no.

    Returns:
        The temperature, between 0.05 and 20. It is 1 if every node is classified correctly: the
        loss then falls without end as ``T`` shrinks, and a few lucky validation nodes would make
        the student claim certainty everywhere. It is 20 if the logits are worse than no answer.

    Raises:
        InputError: If there is no node, a label is outside ``0 .. C-1``, a logit is not finite
            or the lengths differ.
    """  # noqa: D205
    if labels.dim() == 2:
        logits, labels = questions(logits, labels)
    logits, labels = require_scorable(logits, labels)
    if bool((logits.argmax(dim=1) == labels).all()):
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(cross_entropy(logits / math.exp(log_temperature), labels))

    low, high = (math.log(temperature) for temperature in TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    # the search never tries the ends themselves; 1 comes first, for logits that no T can help
    return math.exp(min((0.0, float(found.x), low, high), key=loss))


def reliability(
    logits: Tensor, labels: Tensor, *, bins: int = ECE_BINS
) -> dict[str, list[int] | list[float | None]]:
    """A reliability diagram: how sure nodes are answered, and how often that is right.

    The bins are those of :func:`~limbeck.evaluation.metrics.expected_calibration_error`, which is
    the mean distance of the two, weighted by the number of nodes.

    Args:
        logits: Float ``[N, C]``.
        labels: int64 ``[N]``; or ones and zeros ``[N, C]`` for several labels, each a question of
            two classes.
        bins: Number ``M`` of bins of equal width over [0, 1].

    Returns:
        ``count``, nodes per bin; ``confidence`` and ``accuracy``, their means, ``None`` for an
        empty bin.

    Raises:
        InputError: As for :func:`fit_temperature`.
    """
    if labels.dim() == 2:
        logits, labels = questions(logits, labels)
    logits, labels = require_scorable(logits, labels)
    sure, answer = logits.softmax(dim=1).max(dim=1)  # [N], [N]
    inner_edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    which = torch.bucketize(sure, inner_edges)  # [N], a value on an edge goes to the left
    count = torch.bincount(which, minlength=bins)

    def means(values: Tensor) -> list[float | None]:
        total = torch.bincount(which, values.double(), minlength=bins)
        pairs = zip(total.tolist(), count.tolist(), strict=True)
        return [round(of / nodes, 4) if nodes else None for of, nodes in pairs]

    return {"count": count.tolist(), "confidence": means(sure), "accuracy": means(answer == labels)}
