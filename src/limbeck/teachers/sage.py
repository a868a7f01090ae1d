"""GraphSAGE, by default with the "gcn" aggregator: the main teacher of the GLNN family."""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch_geometric.utils import degree

from limbeck.graphs.adjacency import mean_adjacency, plain_adjacency
from limbeck.graphs.sparse import product
from limbeck.graphs.view import View
from limbeck.students.mlp import Exposed, Norm, input_dropout, make_norm
from limbeck.teachers.base import (
    GNN,
    ExposedState,
    PositiveInt,
    Probability,
    TeacherOptions,
    exposed_state,
    reset,
)


class SAGE(GNN):
    r"""GraphSAGE whose centre node is averaged with its neighbours, or has a map of its own.

    .. math::
        \mathbf{h}_v^{l+1} = \mathbf{W}^l \,
        \frac{\mathbf{h}_v^l + \sum_{u \in \mathcal{N}(v)} \mathbf{h}_u^l}{|\mathcal{N}(v)| + 1}
        + \mathbf{b}^l

    then norm, ReLU and dropout, none after the last layer (`"Inductive Representation Learning
    on Large Graphs" <https://arxiv.org/abs/1706.02216>`_, as in DGL's ``SAGEConv`` with
    ``aggregator_type="gcn"``). A self-loop in the graph makes the centre count twice. With
    ``root_weight`` each layer is PyG's ``SAGEConv`` instead, that of a node without neighbours its
    root part and bias alone:

    .. math::
        \mathbf{h}_v^{l+1} = \mathbf{W}^l \,
        \frac{\sum_{u \in \mathcal{N}(v)} \mathbf{h}_u^l}{|\mathcal{N}(v)|}
        + \mathbf{R}^l \mathbf{h}_v^l + \mathbf{b}^l

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width of the hidden layers.
        out_channels: Number of classes ``C``.
        num_layers: Number of layers.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, before each ReLU.
        dropout: Probability of dropping a hidden unit.
        input_dropout: Probability of dropping a feature.
        root_weight: Give the centre node the map :math:`\mathbf{R}^l`.
        exposed: Whether :meth:`layers` gives hidden states behind their ReLU (``"activation"``)
            or in front of it (``"pre-activation"``).
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        norm: Norm = "none",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        *,
        root_weight: bool = False,
        exposed: Exposed = "activation",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.input_dropout = input_dropout
        self.exposed: Exposed = exposed
        self.dropout = dropout
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.lins = torch.nn.ModuleList(
            torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)
        )
        self.roots = torch.nn.ModuleList(
            torch.nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths) if root_weight
        )
        self.norms = torch.nn.ModuleList(make_norm(norm, width) for width in widths[1:-1])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights with the gain of ReLU and zero biases, as DGL starts it."""
        for lin in self.lins:
            assert isinstance(lin, torch.nn.Linear)
            torch.nn.init.xavier_uniform_(lin.weight, gain=torch.nn.init.calculate_gain("relu"))
            torch.nn.init.zeros_(lin.bias)
        for root in self.roots:
            assert isinstance(root, torch.nn.Linear)
            torch.nn.init.xavier_uniform_(root.weight, gain=torch.nn.init.calculate_gain("relu"))
        reset(self.norms)

    def normalize(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """The mean over neighbours and centre, or over neighbours alone."""
        if len(self.roots) == 0:
            return mean_adjacency(edge_index, num_nodes)
        weight = 1.0 / degree(edge_index[1], num_nodes)[edge_index[1]]
        return plain_adjacency(edge_index, num_nodes, weight)

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """Outputs of all layers; hidden ones before dropout, and after ReLU unless told else."""
        outputs: dict[str, Tensor] = {}
        h = input_dropout(x, self.input_dropout, self.training)
        for i in range(len(self.lins)):
            h = self._convolve(i, h, adj)
            if i == len(self.lins) - 1:
                outputs["logits"] = h
            else:
                before = self.norms[i](h)
                h = F.relu(before)
                outputs[f"hidden{i + 1}"] = exposed_state(before, h, self.exposed)
                h = F.dropout(h, self.dropout, self.training)
        return outputs

    def _convolve(self, layer: int, h: Tensor, adj: Tensor) -> Tensor:
        """One layer's linear maps and mean, ``[N, .]``.

        The map comes first, where the features are still sparse or the result is narrower.
        """
        lin = self.lins[layer]
        assert isinstance(lin, torch.nn.Linear)
        if len(self.roots) == 0:
            # the weights of the mean sum to one, so the bias may come first, too
            return product(adj, lin(h))
        mean = product(adj, F.linear(h, lin.weight))
        own: Tensor = self.roots[layer](h)
        return mean + own + lin.bias


class SAGEOptions(TeacherOptions):
    """Hyper-parameters of :class:`SAGE`; defaults are GLNN's for the CPF graphs.

    Args:
        norm: ``"none"``, ``"batch"`` or ``"layer"``.
        root_weight: Give the centre node a map of its own instead of averaging it, too.
        exposed: Which hidden states methods may learn from: those behind an ``"activation"``, or
            those in front of it (``"pre-activation"``).
    """

    name: ClassVar[str] = "sage"
    title: ClassVar[str] = 'GraphSAGE with the "gcn" aggregator, GLNN\'s teacher'
    paper: ClassVar[str] = "https://arxiv.org/abs/1706.02216"
    hidden_channels: PositiveInt = 128
    dropout: Probability = 0.0
    norm: Norm = "none"
    fan_out: tuple[PositiveInt, ...] = (5, 5)
    root_weight: bool = Field(default=False, exclude_if=lambda own: not own)
    exposed: ExposedState = "activation"

    def build(self, view: View) -> SAGE:
        """A fresh network for the view."""
        return SAGE(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            self.num_layers,
            self.norm,
            self.dropout,
            root_weight=self.root_weight,
            exposed=self.exposed,
        )
