"""How far a teacher's word on a node can be trusted: the sampler of KRD, which RbM uses too."""

from __future__ import annotations

import math
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.graphs.sparse import with_values
from limbeck.teachers.knowledge import Knowledge

BINS = 50
"""Bins of the histogram over [0, 1] from which the power is fitted."""

BIN_POSITION = 0.05
"""Where a bin stands in the fit, right of its left edge, as in the released code."""

POWER_RANGE = (0.01, 100.0)
"""Powers outside this range differ from no sampling, or from no choice, by rounding only."""


class Reliability(torch.nn.Module):
    r"""Draws the neighbours that are worth learning from.

    A node is reliable where noise on all features changes the entropy :math:`H` of the teacher's
    prediction little, and is drawn with a probability that falls with the change:

    .. math::
        \delta_v = \frac{|H(\sigma(\mathbf{t}'_v)) - H(\sigma(\mathbf{t}_v))|}
        {\max_u |H(\sigma(\mathbf{t}'_u)) - H(\sigma(\mathbf{t}_u))|}, \qquad
        p_v = 1 - \delta_v^{\alpha}

    with :math:`\mathbf{t}'` the logits under noise and :math:`\alpha = 1` at first. :meth:`refit`
    moves :math:`\alpha` to where student and teacher are seen to agree (`"Quantifying the
    Knowledge in GNNs for Reliable Distillation into MLPs"
    <https://arxiv.org/abs/2306.05628>`_, as coded by its authors).

    It is a module without parameters, so that :math:`\alpha` is kept where the weights of a
    training run are kept.

    Args:
        clean: Teacher's logits ``[N, C]``.
        noisy: Its logits ``[N, C]`` under standard normal noise on the features.
        momentum: Share of the old :math:`\alpha` that a refit keeps.
    """

    delta: Tensor
    power: Tensor

    def __init__(self, clean: Tensor, noisy: Tensor, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        change = (entropy(noisy) - entropy(clean)).abs()
        # a teacher that no noise moves is reliable everywhere
        delta = change / change.max() if change.max() > 0 else change
        self.register_buffer("delta", delta, persistent=False)  # [N]
        self.register_buffer("power", torch.ones(()))

    @classmethod
    def of(cls, knowledge: Knowledge, method: str, momentum: float = 0.99) -> Self:
        """The reliability of a teacher's word on the observed nodes.

        Args:
            knowledge: What the teacher says.
            method: Who asks, for the message.
            momentum: Share of the old power that a refit keeps.

        Raises:
            TeacherError: The teacher is only logits: there is no network to ask under noise.
        """
        if knowledge.noisy_logits is None:
            raise TeacherError(
                f"method {method!r} asks the teacher again with noise on the features, but "
                f"{knowledge.name!r} is only logits: give the network itself."
            )
        return cls(knowledge.logits, knowledge.noisy_logits, momentum)

    def probabilities(self) -> Tensor:
        """Probability ``[N]`` with which each node's word is drawn."""
        return 1 - self.delta**self.power

    def draw(self, pairs: Tensor) -> Tensor:
        """Draw pairs, each with the probability of the neighbour in it.

        Args:
            pairs: CSR ``[N, N]``, row of the node that learns, column of the one it learns from.
                A node's pair with itself is always kept.

        Returns:
            The same matrix with zeros for the pairs not drawn.
        """
        learner = torch.repeat_interleave(torch.arange(pairs.shape[0]), pairs.crow_indices().diff())
        source = pairs.col_indices()
        probability = self.probabilities()[source].masked_fill(learner == source, 1.0)
        return with_values(pairs, pairs.values() * torch.bernoulli(probability))

    def refit(self, agrees: Tensor) -> None:
        r"""Move :math:`\alpha` towards where the student agrees with its teacher.

        The share of agreeing nodes per bin of :math:`\delta`, scaled to [0, 1], is fitted by
        :math:`1 - x^{\alpha}` in least squares; the old power keeps the share ``momentum``. Bins
        without nodes count as without agreement, as in the released code. Nothing changes where
        all bins agree alike.

        Args:
            agrees: Whether student and teacher predict the same class, bool ``[N]``.
        """
        place = (self.delta * BINS).long().clamp(max=BINS - 1)
        nodes = torch.bincount(place, minlength=BINS)
        agreeing = torch.bincount(place, agrees.to(torch.float64), minlength=BINS)
        share = agreeing / (nodes + 1e-6)
        spread = share.max() - share.min()
        if spread == 0:
            return
        power = fit_power(((share - share.min()) / spread).numpy())
        self.power.mul_(self.momentum).add_((1 - self.momentum) * power)


def entropy(logits: Tensor) -> Tensor:
    """Entropy ``[N]`` of the predictions of logits ``[N, C]``, in nats."""
    log_probs = F.log_softmax(logits, dim=1)
    return -(log_probs.exp() * log_probs).sum(1)


def fit_power(shares: NDArray[np.float64]) -> float:
    r"""The :math:`\alpha` within :data:`POWER_RANGE` of the curve :math:`1 - x^{\alpha}`.

    Args:
        shares: Height of the curve at each of :data:`BINS` bins of [0, 1], float64.
    """
    x = np.arange(BINS) / BINS + BIN_POSITION

    def squares(log_power: float) -> float:
        return float(np.square(1 - x ** math.exp(log_power) - shares).sum())

    bounds = (math.log(POWER_RANGE[0]), math.log(POWER_RANGE[1]))
    return math.exp(minimize_scalar(squares, bounds=bounds, method="bounded").x)
