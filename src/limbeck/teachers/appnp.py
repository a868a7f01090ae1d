"""Predict then propagate: personalised PageRank behind an MLP."""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch_geometric.nn import APPNP as Propagation

from limbeck.graphs.adjacency import symmetric_adjacency
from limbeck.graphs.sparse import is_csr, with_values
from limbeck.graphs.view import View
from limbeck.students.mlp import input_dropout
from limbeck.teachers.base import GNN, PositiveInt, Probability, TeacherOptions


class APPNP(GNN):
    r"""An MLP whose outputs are spread by PyG's ``APPNP``.

    .. math::
        \mathbf{Z}^{k+1} = (1 - \alpha) \hat{\mathbf{A}} \mathbf{Z}^{k} + \alpha \mathbf{H}

    (`"Predict then Propagate" <https://arxiv.org/abs/1810.05997>`_).

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width of the MLP.
        out_channels: Number of classes ``C``.
        num_layers: Number of layers of the MLP.
        steps: Number of propagation steps ``K``.
        alpha: Probability of going back to the node's own prediction.
        dropout: Probability of dropping a feature or a hidden unit.
        edge_dropout: Probability of dropping an edge in training.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        steps: int = 10,
        alpha: float = 0.1,
        dropout: float = 0.0,
        edge_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.edge_dropout = edge_dropout
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.lins = torch.nn.ModuleList(
            torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)
        )
        self.propagation = Propagation(steps, alpha, normalize=False)

    def normalize(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """The symmetric normalisation with self-loops."""
        return symmetric_adjacency(edge_index, num_nodes)

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """Outputs of all layers; hidden ones after ReLU, before dropout."""
        outputs: dict[str, Tensor] = {}
        h = input_dropout(x, self.dropout, self.training)
        for i, lin in enumerate(self.lins):
            h = lin(h)
            if i < len(self.lins) - 1:
                outputs[f"hidden{i + 1}"] = h = F.relu(h)
                h = F.dropout(h, self.dropout, self.training)
        if self.training and self.edge_dropout > 0 and is_csr(adj):
            adj = with_values(adj, F.dropout(adj.values(), self.edge_dropout))
        outputs["logits"] = self.propagation(h, adj)
        return outputs


class APPNPOptions(TeacherOptions):
    """Hyper-parameters of :class:`APPNP`; defaults are GLNN's for the CPF graphs.

    Args:
        steps: Number of propagation steps ``K``.
        alpha: Probability of going back to the node's own prediction.
        edge_dropout: Probability of dropping an edge in training.
    """

    name: ClassVar[str] = "appnp"
    title: ClassVar[str] = "predict then propagate: personalised PageRank behind an MLP"
    paper: ClassVar[str] = "https://arxiv.org/abs/1810.05997"
    hidden_channels: PositiveInt = 128
    weight_decay: float = Field(default=0.01, ge=0)
    steps: PositiveInt = 10
    alpha: float = Field(default=0.1, gt=0, le=1)
    edge_dropout: Probability = 0.5

    @property
    def hops(self) -> int:
        """Its steps; its layers are those of the MLP before them."""
        return self.steps

    def build(self, view: View) -> APPNP:
        """A fresh network for the view."""
        return APPNP(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            self.num_layers,
            self.steps,
            self.alpha,
            self.dropout,
            self.edge_dropout,
        )
