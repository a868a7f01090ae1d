"""AT: the same nodes shall be the active ones in teacher and student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from limbeck.methods.layers import Auxiliary, LayerMethod, Layers


def energies(features: Tensor) -> Tensor:
    """Squared length of each node's features, scaled to length one over the nodes, ``[n]``."""
    return F.normalize(features.square().sum(1), dim=0)


class AttentionTransferLoss(Auxiliary):
    r"""Squared difference of the nodes' scaled energies.

    Energies are not negative, so the sum over nodes is at most 2, and the mean at most
    :math:`2 / m`. Nothing is trained beside the student, and widths may differ.

    Args:
        reduction: ``"mean"`` over the nodes, or their ``"sum"``, which does not depend on their
            number.
    """

    def __init__(self, reduction: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(
        self, student: Layers, teacher: Layers, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss of the last layers given."""
        ours, theirs = energies(student[-1]), energies(teacher[-1])
        return F.mse_loss(ours, theirs, reduction=self.reduction)


class AttentionTransfer(LayerMethod):
    r"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017) on last hidden features.

    .. math::
        \mathcal{L}_{aux} = \frac{1}{m} \left\lVert
        \frac{\mathbf{e}^S}{\lVert \mathbf{e}^S \rVert} -
        \frac{\mathbf{e}^T}{\lVert \mathbf{e}^T \rVert} \right\rVert^2, \quad
        e_v = \lVert \mathbf{f}_v \rVert^2

    Options beside those of :class:`~limbeck.methods.layers.LayerMethod`:

    Args:
        reduction: ``"mean"`` over the nodes, or their ``"sum"``.
    """

    name: ClassVar[str] = "at"
    title: ClassVar[str] = "attention transfer: which nodes are active, into a smaller GNN"
    paper: ClassVar[str] = "https://arxiv.org/abs/1612.03928"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"beta": (100.0, 1000.0, 10_000.0, 100_000.0)}

    beta: float = Field(default=10_000.0, ge=0)
    reduction: Literal["mean", "sum"] = "mean"

    def build_auxiliary(
        self, teacher: Sequence[int], student: Sequence[int]
    ) -> AttentionTransferLoss:
        """The loss; it has no parameters."""
        return AttentionTransferLoss(self.reduction)
