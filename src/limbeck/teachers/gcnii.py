"""GCNII: deep graph convolutions with initial residual and identity mapping."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch_geometric.nn import GCN2Conv

from limbeck.graphs.adjacency import symmetric_adjacency
from limbeck.graphs.view import View
from limbeck.students.mlp import input_dropout
from limbeck.teachers.base import GNN, PositiveInt, Probability, TeacherOptions


class GCNII(GNN):
    r"""A linear map, a stack of PyG's ``GCN2Conv``, a linear map.

    .. math::
        \mathbf{H}^{l+1} = \mathrm{ReLU}\left(
        ((1-\alpha)\hat{\mathbf{A}}\mathbf{H}^l + \alpha \mathbf{H}^0)
        ((1-\beta_l)\mathbf{I} + \beta_l \mathbf{W}^l)\right), \quad
        \beta_l = \ln(\theta / l + 1)

    (`"Simple and Deep Graph Convolutional Networks" <https://arxiv.org/abs/2007.02133>`_).

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width of all hidden layers.
        out_channels: Number of classes ``C``.
        num_layers: Number of graph layers ``L``.
        alpha: Weight of the initial residual.
        theta: Strength of the layers' own weights.
        dropout: Probability of dropping a feature or a hidden unit.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 16,
        alpha: float = 0.1,
        theta: float = 0.5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.first = torch.nn.Linear(in_channels, hidden_channels)
        self.convs = torch.nn.ModuleList(
            GCN2Conv(hidden_channels, alpha, theta, layer=i + 1, normalize=False)
            for i in range(num_layers)
        )
        self.last = torch.nn.Linear(hidden_channels, out_channels)

    def normalize(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """The symmetric normalisation with self-loops."""
        return symmetric_adjacency(edge_index, num_nodes)

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """Outputs of all layers; hidden ones after ReLU, before dropout."""
        outputs: dict[str, Tensor] = {}
        h = h0 = F.relu(self.first(input_dropout(x, self.dropout, self.training)))
        for i, conv in enumerate(self.convs):
            h = F.dropout(h, self.dropout, self.training)
            outputs[f"hidden{i + 1}"] = h = F.relu(conv(h, h0, adj))
        outputs["logits"] = self.last(F.dropout(h, self.dropout, self.training))
        return outputs


class GCNIIOptions(TeacherOptions):
    """Hyper-parameters of :class:`GCNII`.

    Args:
        alpha: Weight of the initial residual.
        theta: Strength of the layers' own weights.
    """

    name: ClassVar[str] = "gcnii"
    title: ClassVar[str] = "deep graph convolutions, initial residual and identity mapping"
    paper: ClassVar[str] = "https://arxiv.org/abs/2007.02133"
    num_layers: PositiveInt = 16
    dropout: Probability = 0.6
    alpha: float = Field(default=0.1, ge=0, le=1)
    theta: float = Field(default=0.5, gt=0)
    max_epochs: PositiveInt = 500
    patience: PositiveInt = 100

    def build(self, view: View) -> GCNII:
        """A fresh network for the view."""
        return GCNII(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            self.num_layers,
            self.alpha,
            self.theta,
            self.dropout,
        )
