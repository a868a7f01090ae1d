"""The graph convolutional network."""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import GCNConv

from limbeck.graphs.adjacency import symmetric_adjacency
from limbeck.graphs.sparse import product
from limbeck.graphs.view import View
from limbeck.students.mlp import Exposed, Norm, input_dropout, make_norm
from limbeck.teachers.base import (
    GNN,
    ExposedState,
    Probability,
    TeacherOptions,
    exposed_state,
    reset,
)


class SparseGCNConv(GCNConv):  # type: ignore[misc]
    """PyG's, with a gradient that does not transpose the adjacency in every step."""

    def message_and_aggregate(self, adj_t: Tensor, x: Tensor) -> Tensor:
        """The sums of all nodes' messages."""
        return product(adj_t, x)


class GCN(GNN):
    r"""A stack of PyG's ``GCNConv``.

    .. math::
        \mathbf{H}^{l+1} = \hat{\mathbf{D}}^{-1/2} \hat{\mathbf{A}} \hat{\mathbf{D}}^{-1/2}
        \mathbf{H}^l \mathbf{W}^l + \mathbf{b}^l

    then norm, ReLU and dropout, none after the last layer (`"Semi-supervised Classification with
    Graph Convolutional Networks" <https://arxiv.org/abs/1609.02907>`_).

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width of the hidden layers.
        out_channels: Number of classes ``C``.
        num_layers: Number of layers.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, before each ReLU.
        dropout: Probability of dropping a hidden unit.
        input_dropout: Probability of dropping a feature.
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
        exposed: Exposed = "activation",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.exposed: Exposed = exposed
        self.dropout = dropout
        self.input_dropout = input_dropout
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.convs = torch.nn.ModuleList(
            SparseGCNConv(a, b, normalize=False) for a, b in itertools.pairwise(widths)
        )
        self.norms = torch.nn.ModuleList(make_norm(norm, width) for width in widths[1:-1])

    def reset_parameters(self) -> None:
        """Put every layer back to a fresh start."""
        reset(self.convs, self.norms)

    def normalize(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """The symmetric normalisation with self-loops."""
        return symmetric_adjacency(edge_index, num_nodes)

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """Outputs of all layers; hidden ones before dropout, and after ReLU unless told else."""
        outputs: dict[str, Tensor] = {}
        h = input_dropout(x, self.input_dropout, self.training)
        for i, conv in enumerate(self.convs):
            h = conv(h, adj)
            if i == len(self.convs) - 1:
                outputs["logits"] = h
            else:
                before = self.norms[i](h)
                h = F.relu(before)
                outputs[f"hidden{i + 1}"] = exposed_state(before, h, self.exposed)
                h = F.dropout(h, self.dropout, self.training)
        return outputs


class GCNOptions(TeacherOptions):
    """Hyper-parameters of :class:`GCN`.

    Args:
        norm: ``"none"``, ``"batch"`` or ``"layer"``.
        input_dropout: Probability of dropping a feature in training.
        exposed: Which hidden states methods may learn from: those behind an ``"activation"``, or
            those in front of it (``"pre-activation"``).
    """

    name: ClassVar[str] = "gcn"
    title: ClassVar[str] = "graph convolutional network"
    paper: ClassVar[str] = "https://arxiv.org/abs/1609.02907"
    norm: Norm = "none"
    input_dropout: Probability = 0.0
    exposed: ExposedState = "activation"

    def build(self, view: View) -> GCN:
        """A fresh network for the view."""
        return GCN(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            self.num_layers,
            self.norm,
            self.dropout,
            self.input_dropout,
            exposed=self.exposed,
        )
