r"""Students that add what neighbours contribute to the first layer: LINKX and Limbeck's own.

Both come to the same form, once all that is constant is folded into it:

.. math::
    \mathbf{s} = \mathrm{MLP}_f \Bigl( \mathrm{ReLU} \Bigl( \mathrm{norm} \Bigl( \deg_i^{-p}
    \sum_j A_{ij} \mathbf{T}[j] + \mathbf{E} \mathbf{x}_i + \mathbf{b} \Bigr) \Bigr) \Bigr)

and perhaps another MLP, on features, for nodes without known neighbours.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from limbeck.export.folded import Block, feed_forward_blocks, fold, linear_of
from limbeck.export.linkx import fold_linkx, last_mlp, map_rows
from limbeck.students.linkx import LINKX
from limbeck.students.mlp import MLP
from limbeck.students.neighbor_mlp import NeighborMLP
from limbeck.students.sa_mlp import DEGREE_POWER


@dataclass(frozen=True)
class Summed:
    """A student of this form, but for its table.

    Args:
        encoder: The map of features; what stands behind it is done to the sum with the
            neighbours' part.
        rest: The layers that read it.
        lone: All layers for nodes without known neighbours, on features; ``None`` where such a
            node is an empty sum.
        power: Power of the degree that the neighbours' sum is divided by.
    """

    encoder: Block
    rest: list[Block]
    lone: list[Block] | None
    power: float


def fold_sum(student: LINKX | NeighborMLP) -> LINKX | NeighborMLP:
    """A copy that answers the same and has nothing linear between table and first ReLU.

    Layer norm is not linear and stays.

    Args:
        student: The student, on the CPU and in eval mode, whose table stores its rows or the
            entries that they are sums of.
    """
    return fold_linkx(student) if isinstance(student, LINKX) else _fold_batch_norm(student)


@torch.no_grad()
def summed(student: LINKX | NeighborMLP) -> Summed:
    """The form of a student that :func:`fold_sum` gave."""
    if isinstance(student, LINKX):
        encoder = Block(linear_of(student.feature_encoder), relu=True)
        return Summed(encoder, feed_forward_blocks(last_mlp(student)), None, 0.0)
    among, lone = fold(student.among), fold(student.alone)
    assert among is not None
    return Summed(among[0], among[1:], lone, DEGREE_POWER[student.adj_norm])


@torch.no_grad()
def _fold_batch_norm(student: NeighborMLP) -> NeighborMLP:
    """Batch norm of the first hidden layer, a scale and a shift, into rows and features' map."""
    folded = copy.deepcopy(student)
    among: MLP = folded.among
    norm = among.norms[0]
    if not isinstance(norm, torch.nn.BatchNorm1d):
        return folded
    variance, mean = (cast(Tensor, v).double() for v in (norm.running_var, norm.running_mean))
    scale = norm.weight.double() / (variance + norm.eps).sqrt()
    first = cast(torch.nn.Linear, among.lins[0])
    first.bias.copy_((first.bias.double() - mean) * scale + norm.bias.double())
    first.weight.copy_(first.weight.double() * scale.unsqueeze(1))
    map_rows(folded.table, scale.diag())
    among.norms[0] = torch.nn.Identity()
    return folded
