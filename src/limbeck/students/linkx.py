"""LINKX: what neighbours say and what features say, summed, into one MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.models import MLP as FinalMLP

from limbeck.errors import OptionError
from limbeck.graphs.sparse import linear
from limbeck.students.inputs import InputSpec, NodeInputs
from limbeck.students.mlp import input_dropout
from limbeck.students.structure_tables import StructureTable, neighbors_of


class LINKX(torch.nn.Module):
    r"""LINKX for one node at a time: its features and the ids of its known neighbours.

    .. math::
        \mathbf{h}_A = \sum_j A_{ij} \mathbf{W}_A[j] + \mathbf{b}_A, \qquad
        \mathbf{h}_X = \mathbf{W}_X \mathbf{x}_i + \mathbf{b}_X, \qquad
        \mathbf{s} = \mathrm{MLP}_f(\mathrm{ReLU}(\mathbf{W} [\mathbf{h}_A ; \mathbf{h}_X]
        + \mathbf{h}_A + \mathbf{h}_X))

    (`"Large Scale Learning on Non-Homophilous Graphs: New Benchmarks and Strong Simple Methods"
    <https://arxiv.org/abs/2110.14446>`_). It computes what PyG's ``LINKX`` does for a whole graph.
    A node without known neighbours is an empty row, :math:`\mathbf{b}_A`.

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width ``h`` of all hidden layers.
        out_channels: Number of classes ``C``.
        table: The rows :math:`\mathbf{W}_A`, ``h`` wide.
        num_layers: Linear maps of the last MLP, at least 1.
        dropout: Probability of dropping a hidden unit of the last MLP.
        input_dropout: Probability of dropping a feature; 0 in the paper.

    Shapes:
        - **inputs:** ``x`` ``[B, F]``, dense or ``torch.sparse_csr``; ``neighbors`` ``[B, N]``,
          ``torch.sparse_csr``
        - **output:** logits ``[B, C]``

    Raises:
        OptionError: The table is not as wide as the hidden layers.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        table: StructureTable,
        num_layers: int = 2,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if table.channels != hidden_channels:
            raise OptionError(
                f"the structure table has rows of {table.channels} values, but the hidden layers "
                f"are {hidden_channels} wide: both must be the same."
            )
        h = hidden_channels
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.input_dropout = input_dropout
        self.table = table
        self.structure_bias = torch.nn.Parameter(torch.empty(h))
        self.feature_encoder = torch.nn.Linear(in_channels, h)
        # the two halves of W, the bias of each counted, as in PyG
        self.structure_map = torch.nn.Linear(h, h)
        self.feature_map = torch.nn.Linear(h, h)
        self.final = FinalMLP([h] * num_layers + [out_channels], dropout=dropout, act_first=True)
        self._reset_bias()

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The node inputs that this student reads."""
        neighbors = InputSpec("neighbors", self.table.num_columns, "int64")
        return (InputSpec("x", self.in_channels), neighbors)

    def reset_parameters(self) -> None:
        """Put every part back to a fresh start."""
        self.table.reset_parameters()
        self._reset_bias()
        for part in (self.feature_encoder, self.structure_map, self.feature_map, self.final):
            part.reset_parameters()

    def _reset_bias(self) -> None:
        # as torch.nn.Linear(N, h) starts its bias
        torch.nn.init.uniform_(self.structure_bias, -self.table.bound, self.table.bound)

    def forward(self, inputs: NodeInputs) -> Tensor:
        """Logits ``[B, C]`` of the nodes.

        Raises:
            OptionError: The inputs have no ``neighbors``.
        """
        logits: Tensor = self.final(self.embed(inputs))
        return logits

    def embed(self, inputs: NodeInputs) -> Tensor:
        """What the last MLP reads, behind ReLU, ``[B, h]``.

        Raises:
            OptionError: The inputs have no ``neighbors``.
        """
        neighbors = neighbors_of(inputs, "LINKX")
        h_a = self.table.bag(neighbors) + self.structure_bias
        x = input_dropout(inputs.x, self.input_dropout, self.training)
        h_x = linear(x, self.feature_encoder.weight, self.feature_encoder.bias)
        return F.relu(h_a + h_x + self.structure_map(h_a) + self.feature_map(h_x))

    def layers(self, inputs: NodeInputs) -> dict[str, Tensor]:
        """Outputs by name: ``"hidden1"`` ``[B, h]`` behind ReLU, and ``"logits"`` ``[B, C]``.

        Hidden layers of the last MLP are its own affair, as in the teacher of the same name.
        """
        hidden = self.embed(inputs)
        return {"hidden1": hidden, "logits": self.final(hidden)}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.in_channels}, {self.out_channels}, "
            f"table={type(self.table).__name__}({self.table.num_columns}))"
        )
