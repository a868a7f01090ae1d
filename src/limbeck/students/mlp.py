"""The multilayer perceptron: the plain student."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.graphs.sparse import is_csr, linear, with_values
from limbeck.students.inputs import InputSpec, NodeInputs

Norm = Literal["none", "batch", "layer"]
Exposed = Literal["activation", "pre-activation"]
"""Which hidden states ``layers`` names: those behind an activation, or those in front of it."""


def make_norm(norm: Norm, channels: int) -> torch.nn.Module:
    """The normalisation layer of that name over ``channels`` features."""
    if norm == "batch":
        return torch.nn.BatchNorm1d(channels)
    if norm == "layer":
        return torch.nn.LayerNorm(channels)
    return torch.nn.Identity()


def dropout(x: Tensor, p: float) -> Tensor:
    """Drop entries of ``x`` with the probability ``p`` and scale up the others to match.

    What :func:`torch.nn.functional.dropout` does, at a quarter of its time on a CPU for wide
    inputs, where drawing one random number per entry costs more than the layer behind it: here an
    entry takes 16 random bits, so ``p`` is rounded to a multiple of 1/65536, and the scale with it.

    Args:
        x: Dense, of any shape.
        p: 0 to 1, 1 excluded.
    """
    dropped = min(round(p * 2**16), 2**16 - 1)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    bits = words.random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)
    keep = bits >= dropped - 2**15
    return x * (keep.to(x.dtype) * (2**16 / (2**16 - dropped)))


def input_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout on node features; of a CSR matrix only the stored entries can drop."""
    if p == 0 or not training:
        return x
    if is_csr(x):
        return with_values(x, dropout(x.values(), p))
    return dropout(x, p)


def linear_of_inputs(lin: torch.nn.Linear, x: Tensor, position: Tensor | None) -> Tensor:
    """The linear map of ``[x ; position]`` ``[B, F + d]``, without writing that matrix down.

    Args:
        lin: A map from ``F + d`` (or ``F``) to ``H`` values.
        x: Features ``[B, F]``, dense or CSR.
        position: Positional encodings ``[B, d]``, or ``None``.
    """
    if position is None:
        return linear(x, lin.weight, lin.bias)
    width = x.shape[1]
    of_x = linear(x, lin.weight[:, :width])
    return of_x + F.linear(position, lin.weight[:, width:], lin.bias)


class MLP(torch.nn.Module):
    r"""A multilayer perceptron on one node's features.

    .. math::
        \mathbf{h}^{l+1} = \mathrm{dropout}(\mathrm{ReLU}(\mathrm{norm}(
        \mathbf{W}^l \mathbf{h}^l + \mathbf{b}^l)))

    and a bare linear map last, as in `"Graph-less Neural Networks"
    <https://arxiv.org/abs/2110.08727>`_.

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width of each hidden layer.
        out_channels: Number of classes ``C``.
        num_layers: Number of linear maps, at least 1.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, before each ReLU.
        dropout: Probability of dropping a hidden unit, after each ReLU.
        input_dropout: Probability of dropping an input feature.
        position_channels: Width ``d`` of the positional encoding that stands behind the features,
            0 for none.
        exposed: Whether :meth:`layers` gives hidden states behind their ReLU (``"activation"``) or
            in front of it, behind the norm (``"pre-activation"``).

    Shapes:
        - **inputs:** ``x`` ``[B, F]``, dense or ``torch.sparse_csr``; ``position`` ``[B, d]``
        - **output:** logits ``[B, C]``
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
        position_channels: int = 0,
        exposed: Exposed = "activation",
    ) -> None:
        super().__init__()
        self.exposed: Exposed = exposed
        self.in_channels = in_channels
        self.position_channels = position_channels
        self.out_channels = out_channels
        self.dropout = dropout
        self.input_dropout = input_dropout
        widths = [
            in_channels + position_channels,
            *[hidden_channels] * (num_layers - 1),
            out_channels,
        ]
        self.lins = torch.nn.ModuleList(
            torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)
        )
        self.norms = torch.nn.ModuleList(make_norm(norm, width) for width in widths[1:-1])

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The node inputs that this student reads."""
        x = InputSpec("x", self.in_channels)
        if self.position_channels == 0:
            return (x,)
        return (x, InputSpec("position", self.position_channels))

    def reset_parameters(self) -> None:
        """Put every layer back to a fresh start."""
        for module in [*self.lins, *self.norms]:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def first(self, inputs: NodeInputs) -> Tensor:
        """Output ``[B, .]`` of the first linear map, which reads features and position."""
        x = input_dropout(inputs.x, self.input_dropout, self.training)
        lin = self.lins[0]
        assert isinstance(lin, torch.nn.Linear)
        return linear_of_inputs(lin, x, inputs.position if self.position_channels else None)

    def rest(self, h: Tensor) -> Tensor:
        """Logits ``[B, C]`` from the first hidden layer ``[B, H]`` before its norm and ReLU."""
        for i, lin in enumerate(self.lins[1:]):
            h = lin(self.activate(h, i))
        return h

    def hidden(self, inputs: NodeInputs) -> Tensor:
        """Last hidden layer ``[B, H]`` before its norm and ReLU; there must be one."""
        h = self.first(inputs)
        for i, lin in enumerate(self.lins[1:-1]):
            h = lin(self.activate(h, i))
        return h

    def activate(self, h: Tensor, layer: int) -> Tensor:
        """Norm, ReLU and dropout behind hidden layer ``layer``."""
        return self._drop(F.relu(self.norms[layer](h)))

    def _drop(self, h: Tensor) -> Tensor:
        return dropout(h, self.dropout) if self.training and self.dropout > 0 else h

    def forward(self, inputs: NodeInputs) -> Tensor:
        """Logits ``[B, C]`` of the nodes."""
        if len(self.lins) == 1:
            return self.first(inputs)
        return self.classify(self.hidden(inputs))

    def classify(self, hidden: Tensor) -> Tensor:
        """Logits ``[B, C]`` from the last hidden layer ``[B, H]`` before its norm and ReLU."""
        logits: Tensor = self.lins[-1](self.activate(hidden, len(self.lins) - 2))
        return logits

    def layers(self, inputs: NodeInputs) -> dict[str, Tensor]:
        """Outputs of all layers for the nodes, each ``[B, .]``, from one pass.

        ``"hidden1"``, ``"hidden2"``, ..., before dropout, then ``"logits"``.
        """
        return self.layers_behind(self.first(inputs))

    def layers_behind(self, h: Tensor) -> dict[str, Tensor]:
        """The same from what the first linear map gave, ``[B, .]``."""
        outputs: dict[str, Tensor] = {}
        for i, lin in enumerate(self.lins[1:]):
            before = self.norms[i](h)
            after = F.relu(before)
            outputs[f"hidden{i + 1}"] = after if self.exposed == "activation" else before
            h = lin(self._drop(after))
        outputs["logits"] = h
        return outputs

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.in_channels}, {self.out_channels}, "
            f"num_layers={len(self.lins)})"
        )
