"""GPR-GNN: generalised PageRank with learnt weights per hop."""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from limbeck.graphs.adjacency import symmetric_adjacency
from limbeck.graphs.sparse import product
from limbeck.graphs.view import View
from limbeck.students.mlp import input_dropout
from limbeck.teachers.base import GNN, PositiveInt, Probability, TeacherOptions


class GPRGNN(GNN):
    r"""An MLP whose outputs are mixed over hops with learnt, possibly negative, weights.

    .. math::
        \mathbf{Z} = \sum_{k=0}^{K} \gamma_k \hat{\mathbf{A}}^k \mathbf{H}, \quad
        \gamma_k = \alpha(1-\alpha)^k \text{ at the start}, \ \gamma_K = (1-\alpha)^K

    (`"Adaptive Universal Generalized PageRank Graph Neural Network"
    <https://arxiv.org/abs/2006.07988>`_). PyG has no such layer.

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width of the MLP.
        out_channels: Number of classes ``C``.
        num_layers: Number of layers of the MLP.
        steps: Number of hops ``K``.
        alpha: Restart probability that the weights start from.
        dropout: Probability of dropping a feature or a hidden unit.
        propagation_dropout: Probability of dropping an entry of ``H`` before the hops.
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
        propagation_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.propagation_dropout = propagation_dropout
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.lins = torch.nn.ModuleList(
            torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)
        )
        weights = alpha * (1 - alpha) ** torch.arange(steps + 1, dtype=torch.float32)
        weights[-1] = (1 - alpha) ** steps
        self.hop_weights = torch.nn.Parameter(weights)

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
        h = F.dropout(h, self.propagation_dropout, self.training)
        logits = self.hop_weights[0] * h
        for weight in self.hop_weights[1:]:
            h = product(adj, h)
            logits = logits + weight * h
        outputs["logits"] = logits
        return outputs


class GPRGNNOptions(TeacherOptions):
    """Hyper-parameters of :class:`GPRGNN`.

    Args:
        steps: Number of hops ``K``.
        alpha: Restart probability that the hop weights start from.
        propagation_dropout: Probability of dropping an entry before the hops.
    """

    name: ClassVar[str] = "gpr-gnn"
    title: ClassVar[str] = "generalised PageRank with learnt weights per hop"
    paper: ClassVar[str] = "https://arxiv.org/abs/2006.07988"
    steps: PositiveInt = 10
    alpha: float = Field(default=0.1, ge=0, le=1)
    propagation_dropout: Probability = 0.5
    max_epochs: PositiveInt = 1000
    patience: PositiveInt = 200

    @property
    def hops(self) -> int:
        """Its steps; its layers are those of the MLP before them."""
        return self.steps

    def build(self, view: View) -> GPRGNN:
        """A fresh network for the view."""
        return GPRGNN(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            self.num_layers,
            self.steps,
            self.alpha,
            self.dropout,
            self.propagation_dropout,
        )
