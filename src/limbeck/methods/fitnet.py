"""FitNet: projected hidden features of teacher and student shall point the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from limbeck.methods.base import PositiveInt
from limbeck.methods.layers import Auxiliary, Head, LayerMethod, Layers


class FitNetLoss(Auxiliary):
    r"""Mean of :math:`(\mathbf{A} - \mathbf{B})^2` over nodes and columns.

    :math:`\mathbf{A}` and :math:`\mathbf{B}` are the projected last hidden features of student and
    teacher, rows scaled to length one, so that the loss is at most 4 over the width. Both heads
    are trained, and two that map everything to one direction bring it to zero.

    Args:
        teacher_channels: Width of the teacher's features.
        student_channels: Width of the student's.
        out_channels: Width of the projections.
    """

    def __init__(self, teacher_channels: int, student_channels: int, out_channels: int) -> None:
        super().__init__()
        self.teacher_head: torch.nn.Module = Head(teacher_channels, out_channels)
        self.student_head: torch.nn.Module = Head(student_channels, out_channels)

    def forward(
        self, student: Layers, teacher: Layers, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss of the last layers given."""
        ours = F.normalize(self.student_head(student[-1]), dim=1)
        theirs = F.normalize(self.teacher_head(teacher[-1]), dim=1)
        return F.mse_loss(ours, theirs)


class FitNet(LayerMethod):
    r"""FitNet (Romero et al., ICLR 2015) on last hidden features.

    .. math::
        \mathcal{L}_{aux} = \frac{1}{m d} \sum_v \left\lVert
        \frac{g_S(\mathbf{f}^S_v)}{\lVert g_S(\mathbf{f}^S_v) \rVert} -
        \frac{g_T(\mathbf{f}^T_v)}{\lVert g_T(\mathbf{f}^T_v) \rVert} \right\rVert^2

    with a linear map, batch norm and ReLU as each head :math:`g`. Options beside those of
    :class:`~limbeck.methods.layers.LayerMethod`:

    Args:
        projection_channels: Width :math:`d` of the heads.
    """

    name: ClassVar[str] = "fitnet"
    title: ClassVar[str] = "last hidden features of a GNN, projected, into a smaller GNN"
    paper: ClassVar[str] = "https://arxiv.org/abs/1412.6550"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"beta": (1.0, 10.0, 100.0, 1000.0)}

    beta: float = Field(default=100.0, ge=0)
    projection_channels: PositiveInt = 128

    def build_auxiliary(self, teacher: Sequence[int], student: Sequence[int]) -> FitNetLoss:
        """Fresh heads."""
        return FitNetLoss(teacher[-1], student[-1], self.projection_channels)
