"""GCNII: deep graph convolutions with initial residual and identity mapping."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch_geometric.nn import GCN2Conv

from limbeck.graphs.adjacency import symmetric_adjacency
from limbeck.graphs.sparse import product
from limbeck.graphs.view import View
from limbeck.students.mlp import Exposed, dropout, input_dropout, linear_of_inputs
from limbeck.teachers.base import (
    GNN,
    ExposedState,
    PositiveInt,
    Probability,
    TeacherOptions,
    exposed_state,
    reset,
)


class SparseGCN2Conv(GCN2Conv):  # type: ignore[misc]
    """PyG's, with a gradient that does not transpose the adjacency in every step."""

    def message_and_aggregate(self, adj_t: Tensor, x: Tensor) -> Tensor:
        """The sums of all nodes' messages."""
        return product(adj_t, x)


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
        dropout: Probability of dropping a hidden unit.
        input_dropout: Probability of dropping a feature; ``None`` for the same.
        exposed: Whether :meth:`layers` gives hidden states behind their ReLU (``"activation"``)
            or in front of it (``"pre-activation"``).
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
        *,
        input_dropout: float | None = None,
        exposed: Exposed = "activation",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.dropout = dropout
        self.input_dropout = dropout if input_dropout is None else input_dropout
        self.exposed: Exposed = exposed
        self.first = torch.nn.Linear(in_channels, hidden_channels)
        self.convs = torch.nn.ModuleList(
            SparseGCN2Conv(hidden_channels, alpha, theta, layer=i + 1, normalize=False)
            for i in range(num_layers)
        )
        self.last = torch.nn.Linear(hidden_channels, out_channels)

    def reset_parameters(self) -> None:
        """Put every layer back to a fresh start."""
        reset(self.first, self.convs, self.last)

    def normalize(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """The symmetric normalisation with self-loops."""
        return symmetric_adjacency(edge_index, num_nodes)

    def squared_weights(self) -> Tensor:
        """Sum of the squares of the graph layers' weights, a scalar."""
        weights = [cast(GCN2Conv, conv).weight1 for conv in self.convs]
        return torch.stack([weight.square().sum() for weight in weights]).sum()

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """Outputs of all layers; hidden ones before dropout, and after ReLU unless told else.

        Hidden are those of the graph layers, not the linear map in front of them.
        """
        outputs: dict[str, Tensor] = {}
        x = input_dropout(x, self.input_dropout, self.training)
        h = h0 = F.relu(linear_of_inputs(self.first, x, None))
        for i, conv in enumerate(self.convs):
            h = self._dropped(h)
            before = conv(h, h0, adj)
            h = F.relu(before)
            outputs[f"hidden{i + 1}"] = exposed_state(before, h, self.exposed)
        outputs["logits"] = self.last(self._dropped(h))
        return outputs

    def _dropped(self, h: Tensor) -> Tensor:
        # at 64 layers PyTorch's own dropout takes a fifth of the training
        return dropout(h, self.dropout) if self.training and self.dropout > 0 else h


class GCNIIOptions(TeacherOptions):
    """Hyper-parameters of :class:`GCNII`.

    Args:
        alpha: Weight of the initial residual.
        theta: Strength of the layers' own weights.
        conv_weight_decay: L2 penalty of the graph layers' weights in place of ``weight_decay``,
            which then is that of the two linear maps; ``None`` for the same. The authors' scripts
            have 0.01 there on Cora with 64 layers, and 5e-4 in the linear maps.
        exposed: Which hidden states methods may learn from: those behind an ``"activation"``, or
            those in front of it (``"pre-activation"``).
    """

    name: ClassVar[str] = "gcnii"
    title: ClassVar[str] = "deep graph convolutions, initial residual and identity mapping"
    paper: ClassVar[str] = "https://arxiv.org/abs/2007.02133"
    num_layers: PositiveInt = 16
    dropout: Probability = 0.6
    alpha: float = Field(default=0.1, ge=0, le=1)
    theta: float = Field(default=0.5, gt=0)
    conv_weight_decay: float | None = Field(
        default=None, ge=0, exclude_if=lambda decay: decay is None
    )
    exposed: ExposedState = "activation"
    max_epochs: PositiveInt = 500
    patience: PositiveInt = 100

    def penalty(self, module: GNN) -> Tensor:
        """What the graph layers' weights decay more, or less, than the optimiser lets them.

        Its gradient is that of an L2 penalty inside Adam.
        """
        if self.conv_weight_decay is None:
            return torch.zeros(())
        assert isinstance(module, GCNII)
        return (self.conv_weight_decay - self.weight_decay) / 2 * module.squared_weights()

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
            exposed=self.exposed,
        )
