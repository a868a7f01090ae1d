"""The graph attention network."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from torch_geometric.nn import GATConv

from limbeck.graphs.sparse import is_csr
from limbeck.graphs.view import View
from limbeck.students.mlp import Exposed, input_dropout
from limbeck.teachers.base import (
    GNN,
    ExposedState,
    PositiveInt,
    Probability,
    TeacherOptions,
    exposed_state,
    reset,
)


class GAT(GNN):
    r"""A stack of PyG's ``GATConv``: hidden layers concatenate their heads, the last averages them.

    .. math::
        \mathbf{u}^{l} = \big\Vert_m \sum_{u \in \mathcal{N}(v) \cup \{v\}} \alpha^{l,m}_{vu}
        \mathbf{W}^{l,m} \mathbf{h}^{l-1}_u \; [+ \mathbf{R}^l \mathbf{h}^{l-1}_v] + \mathbf{b}^l,
        \qquad \mathbf{h}^l = \mathrm{dropout}(\mathrm{ELU}(\mathbf{u}^l))

    (`"Graph Attention Networks" <https://arxiv.org/abs/1710.10903>`_).

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width of a hidden layer, all heads together.
        out_channels: Number of classes ``C``.
        num_layers: Number of layers.
        heads: Number of heads of a hidden layer; divides ``hidden_channels``.
        dropout: Probability of dropping a hidden unit.
        attention_dropout: Probability of dropping an attention weight.
        out_heads: Number of heads of the last layer.
        residual: Add the learnt map :math:`\mathbf{R}^l` of its input to each layer but the first.
        input_dropout: Probability of dropping a feature; ``None`` for that of a hidden unit.
        exposed: Whether :meth:`layers` gives hidden states behind their ELU (``"activation"``)
            or in front of it (``"pre-activation"``).
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
        *,
        out_heads: int = 1,
        residual: bool = False,
        input_dropout: float | None = None,
        exposed: Exposed = "activation",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.dropout = dropout
        self.input_dropout = dropout if input_dropout is None else input_dropout
        self.exposed: Exposed = exposed
        convs = []
        for i in range(num_layers):
            last = i == num_layers - 1
            convs.append(
                GATConv(
                    in_channels if i == 0 else hidden_channels,
                    out_channels if last else hidden_channels // heads,
                    heads=out_heads if last else heads,
                    concat=not last,
                    dropout=attention_dropout,
                    residual=residual and i > 0,
                )
            )
        self.convs = torch.nn.ModuleList(convs)

    def reset_parameters(self) -> None:
        """Put every layer back to a fresh start."""
        reset(self.convs)

    def normalize(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """The edges as they are; attention normalises them."""
        return edge_index

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """Outputs of all layers; hidden ones before dropout, and after ELU unless told else."""
        outputs: dict[str, Tensor] = {}
        h = input_dropout(x, self.input_dropout, self.training)
        for i, conv in enumerate(self.convs):
            # attention looks every node up by row, which a CSR matrix cannot do
            h = conv(h.to_dense() if is_csr(h) else h, adj)
            if i == len(self.convs) - 1:
                outputs["logits"] = h
            else:
                before, h = h, F.elu(h)
                outputs[f"hidden{i + 1}"] = exposed_state(before, h, self.exposed)
                h = F.dropout(h, self.dropout, self.training)
        return outputs


class GATOptions(TeacherOptions):
    """Hyper-parameters of :class:`GAT`.

    Args:
        heads: Number of heads of a hidden layer.
        attention_dropout: Probability of dropping an attention weight in training.
        out_heads: Number of heads of the last layer, whose mean are the logits.
        residual: Add to each layer but the first a linear map of its input.
        exposed: Which hidden states methods may learn from: those behind an ``"activation"``, or
            those in front of it (``"pre-activation"``).
    """

    name: ClassVar[str] = "gat"
    title: ClassVar[str] = "graph attention network"
    paper: ClassVar[str] = "https://arxiv.org/abs/1710.10903"
    dropout: Probability = 0.6
    heads: PositiveInt = 8
    attention_dropout: Probability = 0.6
    out_heads: PositiveInt = Field(default=1, exclude_if=lambda heads: heads == 1)
    residual: bool = Field(default=False, exclude_if=lambda residual: not residual)
    exposed: ExposedState = "activation"

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
            out_heads=self.out_heads,
            residual=self.residual,
            exposed=self.exposed,
        )
