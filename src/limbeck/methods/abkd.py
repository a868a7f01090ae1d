"""ABKD and STRIDE: every layer of a GNN teaches every layer of a smaller one, under attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.methods.layers import LayerMethod, recorded
from limbeck.methods.pair_losses import PAIR_PRESETS, PairLoss, PairOptions


class ABKD(LayerMethod, PairOptions):
    r"""Attention-based distillation over layer pairs (Ahluwalia et al., 2023 and 2025).

    Of each teacher layer :math:`\mathbf{H}^T_i` and student layer :math:`\mathbf{H}^S_j`, with
    their means over nodes :math:`\mathbf{t}_i` and :math:`\mathbf{s}_j`,

    .. math::
        A = \mathrm{softmax}_j \frac{(\mathbf{W}^Q_i \mathbf{t}_i) \cdot
        (\mathbf{W}^K_j \mathbf{s}_j)}{\sqrt{d}}, \quad
        D^{emb}_{ij} = \frac{1}{n} \sum_v \left\lVert \mathbf{P} \mathbf{W}^T_i \mathbf{H}^T_i[v] -
        \mathbf{P} \mathbf{W}^S_j \mathbf{H}^S_j[v] \right\rVert^2

    .. math::
        \mathcal{L}_{aux} = \frac{1}{T} \sum_{ij} A_{ij}
        (\lambda_e D^{emb}_{ij} + \lambda_s D^{str}_{ij})

    where :math:`D^{str}` is G-CRD's contrast of the two layers. Version 1 (``preset="abkd-v1"``)
    compares the means alone, version 2 (``"stride"``) nodes. ``abkd:stride`` as the name of a
    method is this one with that preset. Options beside those of
    :class:`~limbeck.methods.layers.LayerMethod` and
    :class:`~limbeck.methods.pair_losses.PairOptions`; nearly all are our reading, see
    ``docs/methods/abkd.md``.
    """

    name: ClassVar[str] = "abkd"
    title: ClassVar[str] = "ABKD and STRIDE: attention over pairs of layers, GNN into smaller GNN"
    paper: ClassVar[str] = "https://arxiv.org/abs/2310.15938"
    compares_types: ClassVar[bool] = True
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "beta": (0.1, 1.0, 10.0, 100.0),
        "auxiliary_lr_scale": (0.1, 1.0),
    }

    @model_validator(mode="after")
    def _types_have_layers(self) -> ABKD:
        alone = self.pairs == "last-layer" or self.num_layers == 1
        if self.scope == "all" and self.types == "separate" and alone:
            raise ValueError(
                "types 'separate' compares hidden layers, for only the labelled type has a last "
                "one: take types 'merged', other pairs, or more layers"
            )
        return self

    def replace(self, **changes: Any) -> Self:
        """A copy with some options changed; another ``preset`` brings its own options along."""
        kept = self.model_dump()
        if changes.get("preset", self.preset) != self.preset:
            mine = PAIR_PRESETS[self.preset]
            kept = {name: value for name, value in kept.items() if mine.get(name, ...) != value}
        return type(self)(**{**kept, **changes})

    def compared(self, outputs: Mapping[str, Tensor], depth: int | None) -> list[Tensor]:
        """All layers of a network, or all hidden ones.

        Raises:
            OptionError: There is none.
        """
        layers = recorded(outputs, depth, self.layers)
        if not layers:
            raise OptionError(
                "option 'layers' of ABKD is 'hidden', but one of the two networks has no hidden "
                "layer: take 'all', or give it one more layer with 'num_layers'."
            )
        return layers

    def build_auxiliary(self, teacher: Sequence[int], student: Sequence[int]) -> PairLoss:
        """Fresh maps, heads and subspace."""
        return PairLoss(teacher, student, self)


# --- initialisation from attention (section 3.2.3 of both versions) ---------------------------


def layer_sources(
    num_student: int, attention: Tensor | None, num_teacher: int, rule: Literal["attention", "last"]
) -> list[int]:
    r"""Which teacher layer each student layer takes its weights from.

    Args:
        num_student: Number of student layers.
        attention: A trained map ``[T, S]``; read by the rule ``"attention"``.
        num_teacher: Number of teacher layers.
        rule: ``"attention"``: :math:`\arg\max_i A_{ij}`; ``"last"``: the last ones, in order.
    """
    if rule == "last":
        return [max(num_teacher - num_student + j, 0) for j in range(num_student)]
    assert attention is not None
    return [int(i) for i in attention.argmax(0)]


@torch.no_grad()
def start_from_teacher(
    student: torch.nn.Module, teacher: torch.nn.Module, sources: Sequence[int]
) -> None:
    """Give a GCNII student the weights of some layers of a GCNII teacher, in place.

    Its first and last linear maps become the teacher's, too.

    Args:
        student: A GCNII, such as ``GNNStudent.gnn``.
        teacher: A GCNII of the same width.
        sources: For each student layer the teacher layer that it takes after; see
            :func:`layer_sources`.

    Raises:
        OptionError: The two are not GCNIIs of the same width.
    """
    mine, theirs = student.state_dict(), teacher.state_dict()
    taken = {}
    for name in mine:
        stem, _, rest = name.partition(".")
        other = name
        if stem == "convs":
            layer, _, rest = rest.partition(".")
            other = f"convs.{sources[int(layer)]}.{rest}"
        if other not in theirs or theirs[other].shape != mine[name].shape:
            raise OptionError(
                "a student starts from its teacher's layers only where both are GCNIIs of the "
                f"same width, and {name!r} of the student has no counterpart."
            )
        taken[name] = theirs[other]
    student.load_state_dict(taken)
