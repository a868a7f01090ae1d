"""GraphSAGE with the "gcn" aggregator: the main teacher of the GLNN family."""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.graphs.adjacency import mean_adjacency
from limbeck.graphs.view import View
from limbeck.students.mlp import Norm, make_norm
from limbeck.teachers.base import GNN, PositiveInt, Probability, TeacherOptions


class SAGE(GNN):
    r"""GraphSAGE whose centre node is averaged with its neighbours.

    .. math::
        \mathbf{h}_v^{l+1} = \mathbf{W}^l \,
        \frac{\mathbf{h}_v^l + \sum_{u \in \mathcal{N}(v)} \mathbf{h}_u^l}{|\mathcal{N}(v)| + 1}
        + \mathbf{b}^l

    then norm, ReLU and dropout, none after the last layer (`"Inductive Representation Learning
    on Large Graphs" <https://arxiv.org/abs/1706.02216>`_, as in DGL's ``SAGEConv`` with
    ``aggregator_type="gcn"``). A self-loop in the graph makes the centre count twice. PyG's
    ``SAGEConv`` is another layer: mean of the neighbours plus a separate root weight.

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width of the hidden layers.
        out_channels: Number of classes ``C``.
        num_layers: Number of layers.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, before each ReLU.
        dropout: Probability of dropping a hidden unit.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        norm: Norm = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.lins = torch.nn.ModuleList(
            torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)
        )
        self.norms = torch.nn.ModuleList(make_norm(norm, width) for width in widths[1:-1])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights with the gain of ReLU and zero biases, as DGL starts it."""
        for lin in self.lins:
            assert isinstance(lin, torch.nn.Linear)
            torch.nn.init.xavier_uniform_(lin.weight, gain=torch.nn.init.calculate_gain("relu"))
            torch.nn.init.zeros_(lin.bias)

    def normalize(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """The mean over neighbours and centre."""
        return mean_adjacency(edge_index, num_nodes)

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """Outputs of all layers; hidden ones after ReLU, before dropout."""
        outputs: dict[str, Tensor] = {}
        h = x
        for i, lin in enumerate(self.lins):
            # the weights of a mean sum to one, so the linear map with its bias may come first,
            # where the features are still sparse or the result is narrower
            h = torch.sparse.mm(adj, lin(h))
            if i == len(self.lins) - 1:
                outputs["logits"] = h
            else:
                outputs[f"hidden{i + 1}"] = h = F.relu(self.norms[i](h))
                h = F.dropout(h, self.dropout, self.training)
        return outputs


class SAGEOptions(TeacherOptions):
    """Hyper-parameters of :class:`SAGE`; defaults are GLNN's for the CPF graphs.

    Args:
        norm: ``"none"``, ``"batch"`` or ``"layer"``.
    """

    name: ClassVar[str] = "sage"
    title: ClassVar[str] = 'GraphSAGE with the "gcn" aggregator, GLNN\'s teacher'
    paper: ClassVar[str] = "https://arxiv.org/abs/1706.02216"
    hidden_channels: PositiveInt = 128
    dropout: Probability = 0.0
    norm: Norm = "none"
    fan_out: tuple[PositiveInt, ...] = (5, 5)

    def build(self, view: View) -> SAGE:
        """A fresh network for the view."""
        return SAGE(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            self.num_layers,
            self.norm,
            self.dropout,
        )
