"""G-CRD: a student's node shall find its own teacher's node among all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from limbeck.methods.base import PositiveInt
from limbeck.methods.layers import Auxiliary, Head, LayerMethod, Layers, draw_nodes


def contrasts(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    r"""Cross-entropy of finding a node's own row of the teacher by the student's, layer by layer.

    .. math::
        D_{ij} = -\frac{1}{m} \sum_v \log \frac{\exp(\mathbf{c}^j_v \cdot \mathbf{b}^i_v / \tau)}{
        \sum_w \exp(\mathbf{c}^j_v \cdot \mathbf{b}^i_w / \tau)}

    Only the matrices of one teacher layer are held at a time; they are computed again for the
    gradient.

    Args:
        teacher: Unit rows :math:`\mathbf{b}` of ``T`` layers, the candidates, ``[T, m, d]``.
        student: Unit rows :math:`\mathbf{c}` of ``S`` layers, the anchors, ``[S, m, d]``.
        temperature: :math:`\tau`, what cosines are divided by.

    Returns:
        ``[T, S]``.
    """
    values: Tensor = _Contrasts.apply(teacher, student, temperature)  # type: ignore[no-untyped-call]
    return values


class _Contrasts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
        values = teacher.new_empty(len(teacher), len(student))
        totals = teacher.new_empty(len(teacher), *student.shape[:2])  # [T, S, m]
        for i, candidates in enumerate(teacher):
            logits = _logits(candidates, student, temperature)
            totals[i] = logits.logsumexp(2)
            values[i] = (totals[i] - logits.diagonal(dim1=1, dim2=2)).mean(1)
        ctx.save_for_backward(teacher, student, totals)
        ctx.temperature = temperature
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        teacher, student, totals = ctx.saved_tensors
        scale = gradient / (ctx.temperature * student.shape[1])
        to_teacher, to_student = torch.empty_like(teacher), torch.zeros_like(student)
        for i, candidates in enumerate(teacher):
            share = _logits(candidates, student, ctx.temperature)
            share.sub_(totals[i][:, :, None]).exp_()  # softmax, [S, m, m]
            share.diagonal(dim1=1, dim2=2).sub_(1)
            share.mul_(scale[i][:, None, None])
            to_student += share @ candidates
            to_teacher[i] = share.flatten(0, 1).t() @ student.flatten(0, 1)
        return to_teacher, to_student, None


def _logits(candidates: Tensor, student: Tensor, temperature: float) -> Tensor:
    flat = student.flatten(0, 1) @ candidates.t()
    return flat.div_(temperature).view(*student.shape[:2], len(candidates))


class ContrastiveLoss(Auxiliary):
    """Projected last hidden features, contrasted; see :func:`contrasts`.

    Args:
        teacher_channels: Width of the teacher's features.
        student_channels: Width of the student's.
        out_channels: Width of the projections.
        temperature: What cosines are divided by.
        max_samples: Most nodes that are contrasted, drawn anew in each step.
    """

    def __init__(
        self,
        teacher_channels: int,
        student_channels: int,
        out_channels: int = 128,
        temperature: float = 0.075,
        max_samples: int = 2048,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.max_samples = max_samples
        self.teacher_head = Head(teacher_channels, out_channels)
        self.student_head = Head(student_channels, out_channels)

    def forward(
        self, student: Layers, teacher: Layers, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss of the last layers given."""
        ours, theirs = student[-1], teacher[-1]
        chosen = draw_nodes(len(ours), self.max_samples, generator)
        if chosen is not None:
            ours, theirs = ours[chosen], theirs[chosen]
        ours = F.normalize(self.student_head(ours), dim=1)
        theirs = F.normalize(self.teacher_head(theirs), dim=1)
        return contrasts(theirs[None], ours[None], self.temperature).squeeze()


class GCRD(LayerMethod):
    r"""Graph contrastive representation distillation (Joshi et al., TNNLS 2022).

    .. math::
        \mathcal{L}_{aux} = -\frac{1}{m} \sum_v \log \frac{
        \exp(\mathbf{a}_v^\top \mathbf{b}_v / \tau)}{
        \sum_w \exp(\mathbf{a}_v^\top \mathbf{b}_w / \tau)}

    where :math:`\mathbf{a}` and :math:`\mathbf{b}` are last hidden features of student and teacher
    behind their heads (linear map, batch norm, ReLU), of length one. Options beside those of
    :class:`~limbeck.methods.layers.LayerMethod`:

    Args:
        contrast_temperature: :math:`\tau`, what cosines are divided by.
        projection_channels: Width of the heads.
        max_samples: Most nodes that are contrasted in a step; a matrix of pairs takes four bytes
            times its square.
    """

    name: ClassVar[str] = "g-crd"
    title: ClassVar[str] = "contrastive: a node of the student finds its own among the teacher's"
    paper: ClassVar[str] = "https://arxiv.org/abs/2111.04964"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "beta": (0.01, 0.05, 0.1, 0.5),
        "contrast_temperature": (0.05, 0.075, 0.1),
    }

    beta: float = Field(default=0.1, ge=0)
    contrast_temperature: float = Field(default=0.075, gt=0)
    projection_channels: PositiveInt = 128
    max_samples: PositiveInt = 2048

    def build_auxiliary(self, teacher: Sequence[int], student: Sequence[int]) -> ContrastiveLoss:
        """Fresh heads."""
        return ContrastiveLoss(
            teacher[-1],
            student[-1],
            self.projection_channels,
            self.contrast_temperature,
            self.max_samples,
        )
