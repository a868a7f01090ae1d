r"""LINKX with all that is linear before its first ReLU in one row per neighbour and one map.

Between the two encoders and the ReLU stand only sums and linear maps, so with
:math:`\mathbf{W} = [\mathbf{M}_A, \mathbf{M}_X]` and its two biases :math:`\mathbf{c}`

.. math::
    \mathbf{s} = \mathrm{MLP}_f \Bigl( \mathrm{ReLU} \Bigl( \sum_j A_{ij} \mathbf{T}'[j]
    + \mathbf{E}' \mathbf{x}_i + \mathbf{b} \Bigr) \Bigr), \qquad
    \mathbf{T}' = \mathbf{W}_A (\mathbf{I} + \mathbf{M}_A)^\top, \quad
    \mathbf{E}' = (\mathbf{I} + \mathbf{M}_X) \mathbf{W}_X

    \mathbf{b} = (\mathbf{I} + \mathbf{M}_A) \mathbf{b}_A + \mathbf{c}_A
    + (\mathbf{I} + \mathbf{M}_X) \mathbf{b}_X + \mathbf{c}_X
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor

from limbeck.students.linkx import LINKX
from limbeck.students.sa_mlp import FeedForward
from limbeck.students.structure_tables import (
    FullTable,
    HashedTable,
    LandmarkTable,
    StructureTable,
)

BLOCK_ROWS = 2**16
"""Rows of the table that are mapped together in float64."""


@torch.no_grad()
def fold_linkx(student: LINKX) -> LINKX:
    """A copy that answers the same, whose two maps behind the encoders are zero.

    Args:
        student: The student, on the CPU and in eval mode, whose table stores its rows or the
            entries that they are sums of.
    """
    folded = copy.deepcopy(student)
    from_structure = _with_residual(student.structure_map)
    from_features = _with_residual(student.feature_map)
    map_rows(folded.table, from_structure)
    encoder = folded.feature_encoder
    encoder.bias.copy_(
        from_structure @ student.structure_bias.double()
        + student.structure_map.bias.double()
        + from_features @ student.feature_encoder.bias.double()
        + student.feature_map.bias.double()
    )
    encoder.weight.copy_(from_features @ student.feature_encoder.weight.double())
    parts = (folded.structure_bias, folded.structure_map, folded.feature_map)
    for part in (parts[0], *parts[1].parameters(), *parts[2].parameters()):
        part.zero_()
    return folded


@torch.no_grad()
def map_rows(table: StructureTable, matrix: Tensor) -> None:
    """Replace each row of a table by what a linear map makes of it.

    Args:
        table: A table that stores its rows or the entries that they are sums of.
        matrix: float64 ``[h, h]``, multiplied from the left.
    """
    stored = cast(FullTable | LandmarkTable | HashedTable, table)
    for rows in torch.split(stored.weight, BLOCK_ROWS):
        rows.copy_(rows.double() @ matrix.t())


def last_mlp(student: LINKX) -> FeedForward:
    """The last MLP as one of SA-MLP's: in eval mode both are map, ReLU, batch norm, map, ...

    It shares the student's weights.
    """
    final = student.final
    width, num_classes = final.channel_list[0], final.channel_list[-1]
    network = FeedForward(width, width, num_classes, len(final.lins), order="sa-mlp")
    network.lins = final.lins
    network.norms = torch.nn.ModuleList(norm.module for norm in final.norms)
    return network.eval()


def _with_residual(lin: torch.nn.Linear) -> Tensor:
    """What a map and the sum around it multiply with, float64 ``[h, h]``."""
    return torch.eye(len(lin.weight), dtype=torch.float64) + lin.weight.double()
