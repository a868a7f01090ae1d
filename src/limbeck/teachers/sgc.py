"""The simple graph convolution: one linear map and a few hops."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from limbeck.graphs.adjacency import symmetric_adjacency
from limbeck.graphs.sparse import product
from limbeck.graphs.view import View
from limbeck.teachers.base import GNN, TeacherOptions


class SGC(GNN):
    r"""The simple graph convolution :math:`\hat{\mathbf{A}}^K \mathbf{X} \mathbf{W} + \mathbf{b}`.

    `"Simplifying Graph Convolutional Networks" <https://arxiv.org/abs/1902.07153>`_. The same
    function as PyG's ``SGConv``, which multiplies ``A`` with the features first; all of it is
    linear, so here the map to ``C`` classes comes first and the products are ``C`` wide, which
    sparse features of many columns need.

    Args:
        in_channels: Number of features ``F``.
        out_channels: Number of classes ``C``.
        num_hops: Number of hops ``K``.
    """

    def __init__(self, in_channels: int, out_channels: int, num_hops: int = 2) -> None:
        super().__init__()
        self.num_hops = num_hops
        self.lin = torch.nn.Linear(in_channels, out_channels, bias=False)
        self.bias = torch.nn.Parameter(torch.zeros(out_channels))

    def normalize(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """The symmetric normalisation with self-loops."""
        return symmetric_adjacency(edge_index, num_nodes)

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """The logits; there is no hidden layer."""
        h = self.lin(x)
        for _ in range(self.num_hops):
            h = product(adj, h)
        return {"logits": h + self.bias}


class SGCOptions(TeacherOptions):
    """Hyper-parameters of :class:`SGC`; ``num_layers`` is the number of hops.

    ``hidden_channels`` and ``dropout`` have no meaning here and stay at their defaults.
    """

    name: ClassVar[str] = "sgc"
    title: ClassVar[str] = "simple graph convolution: one linear map and a few hops"
    paper: ClassVar[str] = "https://arxiv.org/abs/1902.07153"
    lr: float = Field(default=0.2, gt=0)
    weight_decay: float = Field(default=5e-5, ge=0)

    def build(self, view: View) -> SGC:
        """A fresh network for the view."""
        return SGC(view.num_features, view.num_classes, self.num_layers)
