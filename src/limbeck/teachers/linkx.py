"""LINKX: an MLP on adjacency rows beside one on features."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch_geometric.nn.models import LINKX as PyGLINKX

from limbeck.graphs.adjacency import plain_adjacency
from limbeck.graphs.sparse import csr_tensor, take_rows
from limbeck.graphs.view import View
from limbeck.teachers.base import GNN, PositiveInt, TeacherOptions


class LINKX(GNN):
    r"""PyG's ``LINKX`` for graphs that may grow.

    .. math::
        \mathbf{Y} = \mathrm{MLP}_f(\sigma(\mathbf{W}[\mathrm{MLP}_A(\mathbf{A});
        \mathrm{MLP}_X(\mathbf{X})] + \mathrm{MLP}_A(\mathbf{A}) + \mathrm{MLP}_X(\mathbf{X})))

    (`"Large Scale Learning on Non-Homophilous Graphs" <https://arxiv.org/abs/2110.14446>`_). A
    node's row of ``A`` has one column per node known in training; edges to nodes that came later
    have no column and are left out.

    Args:
        num_nodes: Number of nodes known in training; they come first in every graph given.
        in_channels: Number of features ``F``.
        hidden_channels: Width of the hidden layers.
        out_channels: Number of classes ``C``.
        num_layers: Number of layers of the last MLP.
        dropout: Probability of dropping a hidden unit of the last MLP.
    """

    def __init__(
        self,
        num_nodes: int,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_nodes = num_nodes
        self.model = PyGLINKX(
            num_nodes, in_channels, hidden_channels, out_channels, num_layers, dropout=dropout
        )

    def normalize(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """Adjacency rows ``[N, known nodes]`` with entries of one."""
        known = edge_index[:, edge_index[0] < self.num_nodes]
        square = plain_adjacency(known, max(num_nodes, self.num_nodes))
        rows = take_rows(square, torch.arange(num_nodes))
        size = (num_nodes, self.num_nodes)
        ones = torch.ones_like(rows.values())
        return csr_tensor(rows.crow_indices(), rows.col_indices(), ones, size)

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """The logits; PyG's model keeps its hidden layers to itself."""
        return {"logits": self.model(x, adj)}


class LINKXOptions(TeacherOptions):
    """Hyper-parameters of :class:`LINKX`; it needs the whole graph and draws no neighbours."""

    name: ClassVar[str] = "linkx"
    title: ClassVar[str] = "MLP on adjacency rows beside an MLP on features"
    paper: ClassVar[str] = "https://arxiv.org/abs/2110.14446"
    max_epochs: PositiveInt = 500
    patience: PositiveInt = 100

    def build(self, view: View) -> LINKX:
        """A fresh network for the view's observed nodes."""
        return LINKX(
            view.num_observed,
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            self.num_layers,
            self.dropout,
        )
