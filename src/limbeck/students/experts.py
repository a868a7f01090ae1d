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
from limbeck.graphs.sparse import append_columns, is_csr, linear, take_rows, with_values
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


class Trace(NamedTuple):
    """What a pass through a student of experts leaves behind.

    Args:
        logits: ``[B, C]``.
        routings: Where each layer sent the rows; none in pretraining.
        embedding: What the first layer answered, before norm and ReLU, ``[B, H]``.
    """

    logits: Tensor
    routings: list[Routing]
    embedding: Tensor


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


class Corrections(torch.nn.Module):
    r"""What each expert adds to a linear map that all of them share, of low rank.

    .. math::
        \mathbf{W}_e = \mathbf{W} + \mathbf{A}_e \mathbf{B}_e, \qquad
        \mathbf{b}_e = \mathbf{b} + \mathbf{c}_e

    with :math:`\mathbf{A}_e` and :math:`\mathbf{c}_e` zero at the start, so that all experts are
    the shared map, and :math:`\mathbf{B}_e` as in a fresh linear map, so that they part (`Hu et
    al., "LoRA" <https://arxiv.org/abs/2106.09685>`_, who write the two factors the other way
    round). All experts together cost :math:`2 E r (d_{in} + d_{out})` operations per row.

    Args:
        in_channels: Width of a row.
        out_channels: Width of the result.
        num_experts: Number of experts ``E``.
        rank: Rank ``r`` of a correction.

    Shapes:
        - **input:** rows ``[B, in]``, dense or ``torch.sparse_csr``, and gates ``[B, E]``
        - **output:** ``[B, out]``, the corrections weighted with the gates
    """

    def __init__(self, in_channels: int, out_channels: int, num_experts: int, rank: int) -> None:
        super().__init__()
        self.lower = torch.nn.Parameter(torch.empty(num_experts, rank, in_channels))
        self.lift = torch.nn.Parameter(torch.empty(num_experts, out_channels, rank))
        self.bias = torch.nn.Parameter(torch.empty(num_experts, out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make all corrections zero again, and draw what they read anew."""
        bound = self.lower.shape[2] ** -0.5  # that of torch.nn.Linear
        torch.nn.init.uniform_(self.lower, -bound, bound)
        torch.nn.init.zeros_(self.lift)
        torch.nn.init.zeros_(self.bias)

    def forward(self, h: Tensor, gates: Tensor, gain: Tensor | None = None) -> Tensor:
        """The sum over experts of gate and correction, ``[B, out]``.

        Args:
            h: Rows ``[B, in]``, dense or CSR.
            gates: ``[B, E]``, zero where an expert is not chosen.
            gain: What each entry of a row is multiplied with, ``[in]``.
        """
        rank = self.lower.shape[1]
        lower = self.lower if gain is None else self.lower * gain
        # one product for all experts: with r far below the width it costs less than choosing rows
        lowered = linear(h, lower.flatten(0, 1))  # [B, E * r]
        weighted = lowered * gates.repeat_interleave(rank, dim=1)
        lift = self.lift.transpose(1, 2).flatten(0, 1)  # [E * r, out]
        return weighted @ lift + gates @ self.bias

    def written_out(self) -> Tensor:
        r"""The corrections of the weights, :math:`\mathbf{A}_e \mathbf{B}_e`, ``[E, out, in]``."""
        return self.lift @ self.lower

    def extra_repr(self) -> str:
        """What ``print`` shows: number and rank."""
        return f"num_experts={self.lower.shape[0]}, rank={self.lower.shape[1]}"


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
        expert_rank: Let the experts share one map and differ by :class:`Corrections` of this rank,
            at most that of the map, with one dropout for the shared map and all corrections;
            ``None`` gives each a map of its own.

    Raises:
        OptionError: ``top_k`` is not between 1 and ``num_experts - 1``, or ``expert_rank`` is below
            1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_experts: int,
        top_k: int,
        dropout: float = 0.0,
        init_scale: float = 2.0,
        expert_rank: int | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= top_k < num_experts:
            raise OptionError(
                f"a row uses at least one of the experts and not all of them, but top_k is "
                f"{top_k} and num_experts is {num_experts}."
            )
        if expert_rank is not None and expert_rank < 1:
            raise OptionError(f"expert_rank is {expert_rank}: it must be 1 at least, or None.")
        self.num_experts = num_experts
        self.top_k = top_k
        self.dropout = dropout
        self.init_scale = init_scale
        self.routed = False
        num_maps = num_experts if expert_rank is None else 1
        self.experts = torch.nn.ModuleList(
            torch.nn.Linear(in_channels, out_channels) for _ in range(num_maps)
        )
        self.corrections: Corrections | None = None
        if expert_rank is not None:
            rank = min(expert_rank, in_channels, out_channels)
            self.corrections = Corrections(in_channels, out_channels, num_experts, rank)
        self.log_scale = torch.nn.Parameter(torch.tensor(math.log(init_scale)))

    def reset_parameters(self) -> None:
        """Put the layer back to a fresh start, in pretraining."""
        self.routed = False
        for expert in self.experts:
            cast(torch.nn.Linear, expert).reset_parameters()
        if self.corrections is not None:
            self.corrections.reset_parameters()
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
        return linear(input_dropout(h, self.dropout, self.training), weight, lin.bias)

    def mix(self, h: Tensor, gates: Tensor, gain: Tensor | None = None) -> Tensor:
        """The experts' answers ``[B, out]``, each weighted with its gate.

        Args:
            h: Rows ``[B, in]``, dense or CSR.
            gates: ``[B, E]``, zero where an expert is not chosen.
            gain: Each expert's input gain ``[E, in]``, or ``None``; with corrections all experts
                have the same, ``[1, in]``, or the shared map would be ``E`` maps again.
        """
        if self.corrections is not None:
            return self._mix_corrected(self.corrections, h, gates, gain)
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

    def _mix_corrected(
        self, corrections: Corrections, h: Tensor, gates: Tensor, gain: Tensor | None
    ) -> Tensor:
        base = cast(torch.nn.Linear, self.experts[0])
        shared_gain = None if gain is None else gain[0]
        weight = base.weight if shared_gain is None else base.weight * shared_gain
        h = input_dropout(h, self.dropout, self.training)
        shared = linear(h, weight, base.bias)
        own: Tensor = corrections(h, gates, shared_gain)
        return gates.sum(1, keepdim=True) * shared + own

    def written_out(self) -> tuple[Tensor, Tensor]:
        """All experts' weights ``[E, out, in]`` and biases ``[E, out]``, without gain and scale."""
        maps = [cast(torch.nn.Linear, expert) for expert in self.experts]
        weights = torch.stack([lin.weight for lin in maps])
        biases = torch.stack([lin.bias for lin in maps])
        if self.corrections is None:
            return weights, biases
        return weights + self.corrections.written_out(), biases + self.corrections.bias

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
        layers: The layers, the first as wide as features and position together.
        hidden_channels: Width of each hidden layer.
        in_channels: Number of features ``F``.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, after the mixture and before each ReLU.
        input_dropout: Probability of dropping a feature before it is routed.
        position_channels: Width ``d`` of the positional encoding that stands behind the features,
            0 for none.

    Shapes:
        - **inputs:** ``x`` ``[B, F]``, dense or ``torch.sparse_csr``; ``position`` ``[B, d]``
        - **output:** logits ``[B, C]``
    """

    def __init__(
        self,
        layers: list[ExpertLayer],
        in_channels: int,
        hidden_channels: int,
        norm: Norm = "none",
        input_dropout: float = 0.0,
        position_channels: int = 0,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.position_channels = position_channels
        self.input_dropout = input_dropout
        self.layers = torch.nn.ModuleList(layers)
        self.norms = torch.nn.ModuleList(make_norm(norm, hidden_channels) for _ in layers[:-1])

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The node inputs that this student reads."""
        x = InputSpec("x", self.in_channels)
        if self.position_channels == 0:
            return (x,)
        return (x, InputSpec("position", self.position_channels))

    def reset_parameters(self) -> None:
        """Put every layer back to a fresh start."""
        for module in [*self.layers, *self.norms]:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def forward(self, inputs: NodeInputs) -> Tensor:
        """Logits ``[B, C]`` of the nodes."""
        return self.trace(inputs).logits

    def trace(self, inputs: NodeInputs) -> Trace:
        """Logits, routing and first embedding of the nodes."""
        h = self.read(inputs)
        routings, outputs = [], []
        for i, layer in enumerate(self.layers):
            y, routing = layer(h)
            if routing is not None:
                routings.append(routing)
            outputs.append(y)
            h = self.activate(y, i)
        return Trace(h, routings, outputs[0])

    def read(self, inputs: NodeInputs) -> Tensor:
        """What the first layer reads, ``[B, F + d]``, in the layout of the features."""
        x = input_dropout(inputs.x, self.input_dropout, self.training)
        if self.position_channels == 0 or inputs.position is None:
            return x
        return append_columns(x, inputs.position)

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
            f"num_experts={layers[0].num_experts}, top_k={layers[0].top_k})"
        )


def widths(
    in_channels: int, hidden_channels: int, out_channels: int, num_layers: int
) -> list[tuple[int, int]]:
    """Width of each layer's rows and of its result, first to last."""
    return list(
        itertools.pairwise([in_channels, *[hidden_channels] * (num_layers - 1), out_channels])
    )
