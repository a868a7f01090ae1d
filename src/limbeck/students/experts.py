"""What students made of experts share: the maps, how some of them are mixed, and the network."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.sparse import is_csr, take_rows, with_values
from limbeck.students.inputs import InputSpec, NodeInputs
from limbeck.students.mlp import Norm, input_dropout, make_norm

SMALLEST_NORM = 1e-12
"""Rows shorter than this are divided by it, so that a row of zeros stays one."""

LARGEST_LOG_SCALE = math.log(100)
"""A trained scale or gain is held at 100."""


class Routing(NamedTuple):
    """Where a layer sent the rows of a batch.

    Args:
        similarity: What was compared, ``[B, E]``: cosines, or a gate's logits.
        gates: Weight of each expert, ``[B, E]``, zero for those not chosen.
    """

    similarity: Tensor
    gates: Tensor


def student_features(inputs: NodeInputs) -> Tensor:
    """What the first layer reads of a node: its features ``[B, F]``, dense or CSR."""
    return inputs.x


def unit(rows: Tensor) -> Tensor:
    r"""Each row divided by :math:`\max(\lVert\cdot\rVert_2, 10^{-12})`.

    Args:
        rows: ``[B, d]``, dense or CSR; a CSR matrix stays one.

    Returns:
        The same shape and layout, float32 also for half precision, whose smallest number is
        larger than the floor.
    """
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    if not is_csr(rows):
        return F.normalize(rows, dim=1, eps=SMALLEST_NORM)
    row = torch.repeat_interleave(
        torch.arange(len(rows), device=rows.device), rows.crow_indices().diff()
    )
    squares = rows.new_zeros(len(rows), layout=torch.strided)
    norm = squares.index_add(0, row, rows.values().square()).sqrt().clamp_min(SMALLEST_NORM)
    return with_values(rows, rows.values() / norm[row])


def largest(scores: Tensor, k: int) -> Tensor:
    """Mark the ``k`` largest values of each row; of equal ones those that stand first.

    Sorting would leave the order of ties to the device, and a node without features ties with
    every expert.

    Args:
        scores: ``[B, E]``.
        k: How many, at most ``E``.

    Returns:
        bool ``[B, E]``.
    """
    mine, theirs = scores.unsqueeze(2), scores.unsqueeze(1)  # [B, E, 1], [B, 1, E]
    num = scores.shape[1]
    stands_first = torch.ones(num, num, dtype=torch.bool, device=scores.device).tril(-1)
    ahead = (theirs > mine) | ((theirs == mine) & stands_first)  # [B, E, E]
    return ahead.sum(2) < k


def squared_variation(load: Tensor) -> Tensor:
    r"""Squared coefficient of variation of the experts' loads ``[E]``.

    .. math::
        \frac{\mathrm{Var}(\mathbf{l})}{\mathrm{mean}(\mathbf{l})^2 + 10^{-10}},

    with the divisor :math:`E - 1` in the variance. Zero if all experts carry the same.
    """
    return load.var() / (load.mean().square() + 1e-10)


def bounded_exp(log_scale: Tensor) -> Tensor:
    r""":math:`\exp(\min(t, \ln 100))`; beyond the bound there is no gradient."""
    return log_scale.clamp(max=LARGEST_LOG_SCALE).exp()


class ExpertLayer(torch.nn.Module, ABC):
    """A set of linear maps of which each row uses some; what chooses them is a subclass.

    The layer starts in pretraining, where there is no choice yet. Whether it still is there
    belongs to its state: a state dict of the one is refused by a layer that is past it.

    Args:
        in_channels: Width of a row.
        out_channels: Width of the result.
        num_experts: Number of linear maps ``E``.
        top_k: Number of them that a row uses, fewer than ``E``.
        dropout: Probability of dropping an entry of a row before an expert reads it, drawn for
            each expert on its own.
        init_scale: Number that the result is multiplied with, at the start of training.

    Raises:
        OptionError: ``top_k`` is not between 1 and ``num_experts - 1``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_experts: int,
        top_k: int,
        dropout: float = 0.0,
        init_scale: float = 2.0,
    ) -> None:
        super().__init__()
        if not 1 <= top_k < num_experts:
            raise OptionError(
                f"a row uses at least one of the experts and not all of them, but top_k is "
                f"{top_k} and num_experts is {num_experts}."
            )
        self.top_k = top_k
        self.dropout = dropout
        self.init_scale = init_scale
        self.routed = False
        self.experts = torch.nn.ModuleList(
            torch.nn.Linear(in_channels, out_channels) for _ in range(num_experts)
        )
        self.log_scale = torch.nn.Parameter(torch.tensor(math.log(init_scale)))

    def reset_parameters(self) -> None:
        """Put the layer back to a fresh start, in pretraining."""
        self.routed = False
        for expert in self.experts:
            cast(torch.nn.Linear, expert).reset_parameters()
        torch.nn.init.constant_(self.log_scale, math.log(self.init_scale))

    @abstractmethod
    def forward(self, h: Tensor) -> tuple[Tensor, Routing | None]:
        """The result ``[B, out]`` for rows ``[B, in]``, and where they went if that was chosen."""

    def ask(self, expert: int, h: Tensor, gain: Tensor | None = None) -> Tensor:
        """One expert's answer ``[B, out]`` to rows ``[B, in]``, dense or CSR.

        Args:
            expert: Which one.
            h: The rows.
            gain: What each entry of a row is multiplied with, ``[in]``.
        """
        lin = cast(torch.nn.Linear, self.experts[expert])
        # W (g * h) = (W g) h: the product with the weights leaves sparse rows sparse
        weight = lin.weight if gain is None else lin.weight * gain
        return F.linear(input_dropout(h, self.dropout, self.training), weight, lin.bias)

    def mix(self, h: Tensor, gates: Tensor, gain: Tensor | None = None) -> Tensor:
        """The experts' answers ``[B, out]``, each weighted with its gate.

        Args:
            h: Rows ``[B, in]``, dense or CSR.
            gates: ``[B, E]``, zero where an expert is not chosen.
            gain: Each expert's input gain ``[E, in]``, or ``None``.
        """
        gains: list[Tensor | None] = [None] * len(self.experts) if gain is None else [*gain]
        if torch.compiler.is_exporting():
            # an exported model must not have shapes that depend on values
            mixed = gates[:, 0:1] * self.ask(0, h, gains[0])
            for e in range(1, len(self.experts)):
                mixed = mixed + gates[:, e : e + 1] * self.ask(e, h, gains[e])
            return mixed
        width = cast(torch.nn.Linear, self.experts[0]).out_features
        mixed = gates.new_zeros(h.shape[0], width)
        for e in range(len(self.experts)):
            rows = gates[:, e].nonzero().squeeze(1)
            answer = self.ask(e, take_rows(h, rows), gains[e])
            mixed = mixed.index_add(0, rows, gates[rows, e].unsqueeze(1) * answer)
        return mixed

    def get_extra_state(self) -> Tensor:
        """Whether the layer is past pretraining, a bool scalar."""
        return torch.tensor(self.routed)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over whether the layer is past pretraining.

        Raises:
            OptionError: The state is one of pretraining, and the layer is past it.
        """
        if self.routed and not bool(state):
            raise OptionError(
                "the state dict is one of pretraining, but this student already routes: load it "
                "into a fresh student."
            )
        self.routed = bool(state)

    def extra_repr(self) -> str:
        """What ``print`` shows beside the experts."""
        return f"top_k={self.top_k}, routed={self.routed}"


class ExpertStudent(torch.nn.Module):
    r"""A multilayer perceptron whose linear maps are layers of experts.

    .. math::
        \mathbf{h}^{l+1} = \mathrm{ReLU}(\mathrm{norm}(\mathrm{layer}^l(\mathbf{h}^l)))

    and a bare layer last.

    Args:
        layers: The layers, the first as wide as the features.
        hidden_channels: Width of each hidden layer.
        in_channels: Number of features ``F``.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, after the mixture and before each ReLU.
        input_dropout: Probability of dropping a feature before it is routed.

    Shapes:
        - **inputs:** ``x`` ``[B, F]``, dense or ``torch.sparse_csr``
        - **output:** logits ``[B, C]``
    """

    def __init__(
        self,
        layers: list[ExpertLayer],
        in_channels: int,
        hidden_channels: int,
        norm: Norm = "none",
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.input_dropout = input_dropout
        self.layers = torch.nn.ModuleList(layers)
        self.norms = torch.nn.ModuleList(make_norm(norm, hidden_channels) for _ in layers[:-1])

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The node inputs that this student reads."""
        return (InputSpec("x", self.in_channels),)

    def reset_parameters(self) -> None:
        """Put every layer back to a fresh start."""
        for module in [*self.layers, *self.norms]:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def forward(self, inputs: NodeInputs) -> Tensor:
        """Logits ``[B, C]`` of the nodes."""
        return self.trace(inputs)[0]

    def trace(self, inputs: NodeInputs) -> tuple[Tensor, list[Routing]]:
        """Logits ``[B, C]``, and where each layer sent the nodes (nothing in pretraining)."""
        h = self.read(inputs)
        routings = []
        for i, layer in enumerate(self.layers):
            h, routing = layer(h)
            if routing is not None:
                routings.append(routing)
            h = self.activate(h, i)
        return h, routings

    def read(self, inputs: NodeInputs) -> Tensor:
        """What the first layer reads, ``[B, F]``."""
        return input_dropout(student_features(inputs), self.input_dropout, self.training)

    def activate(self, h: Tensor, layer: int) -> Tensor:
        """Norm and ReLU behind a hidden layer; nothing behind the last."""
        if layer == len(self.norms):
            return h
        norm = self.norms[layer]
        if isinstance(norm, torch.nn.BatchNorm1d) and norm.training and h.shape[0] == 1:
            # one row has no variance: the running statistics stand in
            normed = F.batch_norm(
                h, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
            return F.relu(normed)
        return F.relu(norm(h))

    def __repr__(self) -> str:
        layers = [cast(ExpertLayer, layer) for layer in self.layers]
        out_channels = cast(torch.nn.Linear, layers[-1].experts[0]).out_features
        return (
            f"{type(self).__name__}({self.in_channels}, {out_channels}, num_layers={len(layers)}, "
            f"num_experts={len(layers[0].experts)}, top_k={layers[0].top_k})"
        )


def widths(
    in_channels: int, hidden_channels: int, out_channels: int, num_layers: int
) -> list[tuple[int, int]]:
    """Width of each layer's rows and of its result, first to last."""
    return list(
        itertools.pairwise([in_channels, *[hidden_channels] * (num_layers - 1), out_channels])
    )
