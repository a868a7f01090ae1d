"""The graph attention network."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor
from torch_geometric.nn import GATConv

from limbeck.graphs.sparse import is_csr
from limbeck.graphs.view import View
from limbeck.students.mlp import input_dropout
from limbeck.teachers.base import GNN, PositiveInt, Probability, TeacherOptions


class GAT(GNN):
    r"""A stack of PyG's ``GATConv``: hidden layers concatenate their heads, the last has one head.

    ELU and dropout follow each hidden layer (`"Graph Attention Networks"
    <https://arxiv.org/abs/1710.10903>`_).

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width of a hidden layer, all heads together.
        out_channels: Number of classes ``C``.
        num_layers: Number of layers.
        heads: Number of heads of a hidden layer; divides ``hidden_channels``.
        dropout: Probability of dropping a feature or a hidden unit.
        attention_dropout: Probability of dropping an attention weight.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        heads: int = 8,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        convs = []
        for i in range(num_layers):
            last = i == num_layers - 1
            convs.append(
                GATConv(
                    in_channels if i == 0 else hidden_channels,
                    out_channels if last else hidden_channels // heads,
                    heads=1 if last else heads,
                    dropout=attention_dropout,
                )
            )
        self.convs = torch.nn.ModuleList(convs)

    def normalize(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """The edges as they are; attention normalises them."""
        return edge_index

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """Outputs of all layers; hidden ones after ELU, before dropout."""
        outputs: dict[str, Tensor] = {}
        h = input_dropout(x, self.dropout, self.training)
        for i, conv in enumerate(self.convs):
            # attention looks every node up by row, which a CSR matrix cannot do
            h = conv(h.to_dense() if is_csr(h) else h, adj)
            if i == len(self.convs) - 1:
                outputs["logits"] = h
            else:
                outputs[f"hidden{i + 1}"] = h = F.elu(h)
                h = F.dropout(h, self.dropout, self.training)
        return outputs


class GATOptions(TeacherOptions):
    """Hyper-parameters of :class:`GAT`.

    Args:
        heads: Number of heads of a hidden layer.
        attention_dropout: Probability of dropping an attention weight in training.
    """

    name: ClassVar[str] = "gat"
    title: ClassVar[str] = "graph attention network"
    paper: ClassVar[str] = "https://arxiv.org/abs/1710.10903"
    dropout: Probability = 0.6
    heads: PositiveInt = 8
    attention_dropout: Probability = 0.6

    @model_validator(mode="after")
    def _heads_divide_width(self) -> GATOptions:
        if self.hidden_channels % self.heads:
            raise ValueError(
                f"hidden_channels {self.hidden_channels} is not a multiple of heads {self.heads}"
            )
        return self

    def build(self, view: View) -> GAT:
        """A fresh network for the view."""
        return GAT(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            self.num_layers,
            self.heads,
            self.dropout,
            self.attention_dropout,
        )
