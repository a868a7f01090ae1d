"""An MLP whose first layer also hears a node's neighbours, and another where there are none."""

from __future__ import annotations

from typing import NamedTuple, Self, cast

import torch
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.sparse import take_rows
from limbeck.students.inputs import InputSpec, NodeInputs
from limbeck.students.mlp import MLP
from limbeck.students.sa_mlp import DEGREE_POWER, AdjNorm
from limbeck.students.structure_tables import (
    StructureTable,
    divided_by_degree,
    effects_of_neighbors,
    neighbors_of,
)


class NeighborExplanation(NamedTuple):
    """Which neighbours moved the answers of a student without a gate.

    Args:
        logits: ``[B, C]``.
        neighbors: CSR ``[B, N]`` with the entries of the input. A value is how much more probable
            the class answered is than it would be without that neighbour, −1 to 1.
    """

    logits: Tensor
    neighbors: Tensor


class NeighborMLP(torch.nn.Module):
    r"""Two MLPs: one for nodes with known neighbours, one for nodes without.

    .. math::
        \mathbf{h}_i = \mathbf{W}_X \mathbf{x}_i + \mathbf{b}
        + \deg_i^{-p} \sum_j A_{ij} \mathbf{W}_A[j], \qquad
        \mathbf{s}_i = \mathrm{MLP}(\mathrm{ReLU}(\mathrm{norm}(\mathbf{h}_i)))

    for a node that has known neighbours, :math:`p` being the power of ``adj_norm``. One that has
    none is answered by :attr:`alone`, from features. While the weights of :attr:`alone` are held
    (``requires_grad_(False)``), it stays in eval mode, so that training the rest cannot move what
    it knows of batches.

    Args:
        among: The MLP whose first layer the neighbours' rows are added to.
        alone: The MLP of nodes without known neighbours, of the same shape.
        table: The rows :math:`\mathbf{W}_A`, as wide as the hidden layers.
        adj_norm: Whether the sum over neighbours is divided by their number (``"row"``), by its
            root (``"sqrt-degree"``), or not (``"none"``).

    Shapes:
        - **inputs:** ``x`` ``[B, F]``, dense or ``torch.sparse_csr``; ``neighbors`` ``[B, N]``,
          ``torch.sparse_csr``
        - **output:** logits ``[B, C]``

    Raises:
        OptionError: The MLPs differ in shape or have no hidden layer, or the table is not as wide
            as it is.
    """

    def __init__(
        self, among: MLP, alone: MLP, table: StructureTable, adj_norm: AdjNorm = "row"
    ) -> None:
        super().__init__()
        if _widths(among) != _widths(alone):
            raise OptionError(
                f"the MLP among neighbours has layers of {_widths(among)} values, that of nodes "
                f"alone {_widths(alone)}: both must be the same."
            )
        width = _widths(among)[1]
        if len(among.lins) < 2 or table.channels != width:
            raise OptionError(
                f"the structure table has rows of {table.channels} values, but the first layer "
                f"answers {width}: both must be the same, and num_layers at least 2."
            )
        self.among = among
        self.alone = alone
        self.table = table
        self.adj_norm: AdjNorm = adj_norm

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The node inputs that this student reads."""
        neighbors = InputSpec("neighbors", self.table.num_columns, "int64")
        return (InputSpec("x", self.in_channels), neighbors)

    @property
    def in_channels(self) -> int:
        """Number of features ``F``."""
        return self.among.in_channels

    @property
    def out_channels(self) -> int:
        """Number of classes ``C``."""
        return self.among.out_channels

    def reset_parameters(self) -> None:
        """Put every part back to a fresh start."""
        for part in (self.table, self.among, self.alone):
            part.reset_parameters()

    def train(self, mode: bool = True) -> Self:
        """Set training mode, of :attr:`alone` only while its weights are trained."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.alone.parameters()):
            self.alone.eval()
        return self

    def forward(self, inputs: NodeInputs) -> Tensor:
        """Logits ``[B, C]`` of the nodes.

        Raises:
            OptionError: The inputs have no ``neighbors``.
        """
        neighbors = neighbors_of(inputs, "this student")
        return self._answer(inputs.x, self.table.bag(neighbors), self.table.degree(neighbors))

    def layers(self, inputs: NodeInputs) -> dict[str, Tensor]:
        """Outputs by name as :meth:`MLP.layers` has them, of each node in the MLP that answers it.

        Raises:
            OptionError: The inputs have no ``neighbors``.
        """
        neighbors = neighbors_of(inputs, "this student")
        total, degree = self.table.bag(neighbors), self.table.degree(neighbors)
        outputs = self.among.layers_behind(self._first(inputs.x, total, degree))
        lone = (degree == 0).nonzero().flatten()
        theirs = self.alone.layers(NodeInputs(take_rows(inputs.x, lone)))
        return {name: rows.index_copy(0, lone, theirs[name]) for name, rows in outputs.items()}

    @torch.no_grad()
    def explain(self, inputs: NodeInputs) -> NeighborExplanation:
        """Say which neighbours moved the answer.

        Each neighbour is taken away by itself; the last one of a node leaves it to :attr:`alone`.
        The student must be in eval mode.

        Raises:
            OptionError: The inputs have no ``neighbors``.
        """
        neighbors = neighbors_of(inputs, "this student")
        logits = self(inputs)

        def without(row: Tensor, total: Tensor, degree: Tensor) -> Tensor:
            return self._answer(take_rows(inputs.x, row), total, degree)

        return NeighborExplanation(
            logits, effects_of_neighbors(self.table, neighbors, logits, without)
        )

    def _first(self, x: Tensor, total: Tensor, degree: Tensor) -> Tensor:
        """The first layer before its norm, ``[B, h]``, from sums over neighbours ``[B, h]``."""
        divided = divided_by_degree(total, degree, DEGREE_POWER[self.adj_norm])
        return self.among.first(NodeInputs(x)) + divided

    def _answer(self, x: Tensor, total: Tensor, degree: Tensor) -> Tensor:
        """Logits ``[B, C]``, each node's from the MLP that answers it."""
        logits = self.among.rest(self._first(x, total, degree))
        lone = (degree == 0).nonzero().flatten()
        if len(lone) == 0:
            return logits
        return logits.index_copy(0, lone, self.alone(NodeInputs(take_rows(x, lone))))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.in_channels}, {self.out_channels}, "
            f"num_layers={len(self.among.lins)}, "
            f"table={type(self.table).__name__}({self.table.num_columns}))"
        )


def _widths(mlp: MLP) -> list[int]:
    """Values between the layers of an MLP, features and classes at the ends."""
    lins = [cast(torch.nn.Linear, lin) for lin in mlp.lins]
    return [lins[0].in_features, *(lin.out_features for lin in lins)]
