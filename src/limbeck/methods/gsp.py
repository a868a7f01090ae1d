"""GSP: any two nodes shall be as similar to the student as they are to the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from limbeck.methods.base import PositiveInt
from limbeck.methods.layers import Auxiliary, Head, LayerMethod, Layers, draw_nodes

Kernel = Literal["cosine", "poly", "l2", "rbf"]

SMALLEST_SQUARE = 1e-12
"""Squared distances below count as this, where the root has no gradient."""


def similarities(features: Tensor, kernel: Kernel) -> Tensor:
    r"""Similarities of all pairs of nodes, ``[n, n]``.

    Args:
        features: ``[n, d]``.
        kernel: ``"cosine"``; ``"poly"``, its square; ``"l2"``, the distance, which is larger for
            nodes farther apart; ``"rbf"``, :math:`\exp(-\lVert a - b \rVert^2 / 2)`.
    """
    if kernel in ("cosine", "poly"):
        unit = F.normalize(features, dim=1)
        cosine = unit @ unit.t()
        return cosine if kernel == "cosine" else cosine.square()
    squares = features.square().sum(1)
    # |a|² + |b|² − 2ab needs no [n, n, d]; it cancels for near nodes, hence the clamp
    distances = (squares[:, None] + squares - 2 * features @ features.t()).clamp_min(0)
    return (
        (-distances / 2).exp() if kernel == "rbf" else distances.clamp_min(SMALLEST_SQUARE).sqrt()
    )


class GlobalStructureLoss(Auxiliary):
    r"""Mean of :math:`(\mathbf{K}^S - \mathbf{K}^T)^2` over pairs of nodes.

    Args:
        teacher_channels: Width of the teacher's features.
        student_channels: Width of the student's.
        kernel: See :func:`similarities`.
        max_samples: Most nodes that are compared, drawn anew in each step, the same on both sides.
        out_channels: Width of a trained head on either side; ``None`` compares the features as
            they are.
    """

    def __init__(
        self,
        teacher_channels: int,
        student_channels: int,
        kernel: Kernel = "cosine",
        max_samples: int = 2048,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel: Kernel = kernel
        self.max_samples = max_samples
        widths = (teacher_channels, student_channels)
        self.teacher_head, self.student_head = (
            torch.nn.Identity() if out_channels is None else Head(width, out_channels)
            for width in widths
        )

    def forward(
        self, student: Layers, teacher: Layers, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss of the last layers given."""
        ours, theirs = student[-1], teacher[-1]
        chosen = draw_nodes(len(ours), self.max_samples, generator)
        if chosen is not None:
            ours, theirs = ours[chosen], theirs[chosen]
        return F.mse_loss(
            similarities(self.student_head(ours), self.kernel),
            similarities(self.teacher_head(theirs), self.kernel),
        )


class GSP(LayerMethod):
    r"""Global structure preservation (Joshi et al., TNNLS 2022) on last hidden features.

    .. math::
        \mathcal{L}_{aux} = \frac{1}{m^2} \sum_{u,v} \left(K(\mathbf{f}^S_u, \mathbf{f}^S_v) -
        K(\mathbf{f}^T_u, \mathbf{f}^T_v)\right)^2

    Options beside those of :class:`~limbeck.methods.layers.LayerMethod`:

    Args:
        kernel: ``"cosine"``, ``"poly"``, ``"l2"`` (a distance) or ``"rbf"``.
        max_samples: Most nodes that are compared in a step; a matrix of pairs takes four bytes
            times its square.
        projection_channels: Width of a trained head on either side; ``None`` for no heads.
    """

    name: ClassVar[str] = "gsp"
    title: ClassVar[str] = "global structure preservation: similarities of all pairs of nodes"
    paper: ClassVar[str] = "https://arxiv.org/abs/2111.04964"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "beta": (1.0, 10.0, 100.0, 1000.0),
        "kernel": ("cosine", "poly", "rbf"),
    }

    beta: float = Field(default=100.0, ge=0)
    kernel: Kernel = "cosine"
    max_samples: PositiveInt = 2048
    projection_channels: PositiveInt | None = None

    def build_auxiliary(
        self, teacher: Sequence[int], student: Sequence[int]
    ) -> GlobalStructureLoss:
        """The loss, with fresh heads if there are any."""
        return GlobalStructureLoss(
            teacher[-1], student[-1], self.kernel, self.max_samples, self.projection_channels
        )
