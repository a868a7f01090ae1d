"""The usual mixture of experts, whose gate is trained: the control that RbM is compared with."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.graphs.sparse import linear
from limbeck.students.experts import (
    ExpertLayer,
    ExpertStudent,
    Routing,
    bounded_exp,
    largest,
    squared_variation,
    unit,
    widths,
)
from limbeck.students.mlp import Norm

INIT_SHARPNESS = 2.0
"""What the gate's cosines are multiplied with at the start."""


class MoELayer(ExpertLayer):
    r"""A layer whose rows go to the experts that a trained gate ranks first.

    .. math::
        s_e &= e^{r} \, \langle \mathrm{unit}(\mathbf{P} \mathbf{h} + \mathbf{p}),
        \mathrm{unit}(\mathbf{c}_e) \rangle + \epsilon_e / E \\
        a_e &= \mathrm{softmax}_e(s_e) \text{ for the } k \text{ largest, else } 0 \\
        \mathbf{y} &= e^{t} \sum_e a_e \, (\mathbf{W}_e \, \mathrm{dropout}(\mathbf{h})
        + \mathbf{b}_e)

    with noise :math:`\epsilon \sim \mathcal{N}(0, 1)` in training only. It is the control in the
    code of `"Graph Knowledge Distillation to Mixture of Experts"
    <https://arxiv.org/abs/2406.11919>`_. Unlike in :class:`~limbeck.students.rbm.RbMLayer` the
    gates are trained by every loss, and those of the chosen experts do not sum to one.

    In pretraining a batch is cut into ``E`` contiguous pieces, one for each expert, without scale;
    in eval mode the gate is asked then, too, so that an answer does not depend on the batch.

    Args:
        in_channels: Width of a row.
        out_channels: Width of the result.
        gate_channels: Width in which rows are compared with the experts' columns.
        num_experts: Number of experts ``E``.
        top_k: Experts per row ``k``, fewer than ``E``.
        dropout: Probability of dropping an entry of a row before an expert reads it.
        init_scale: The scale :math:`e^t` at first; it is trained, and at most 100.

    Shapes:
        - **input:** ``[B, in]``, dense or ``torch.sparse_csr``
        - **output:** ``[B, out]``, and the routing: logits of the gate ``[B, E]``, gates ``[B, E]``
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        gate_channels: int,
        num_experts: int = 8,
        top_k: int = 4,
        dropout: float = 0.0,
        init_scale: float = 2.0,
    ) -> None:
        super().__init__(in_channels, out_channels, num_experts, top_k, dropout, init_scale)
        self.project = torch.nn.Linear(in_channels, gate_channels)
        self.columns = torch.nn.Parameter(torch.empty(num_experts, gate_channels))
        self.log_sharpness = torch.nn.Parameter(torch.empty(()))
        self._reset_gate()

    def reset_parameters(self) -> None:
        """Put the layer back to a fresh start, in pretraining."""
        super().reset_parameters()
        self.project.reset_parameters()
        self._reset_gate()

    def _reset_gate(self) -> None:
        torch.nn.init.normal_(self.columns)
        torch.nn.init.constant_(self.log_sharpness, math.log(INIT_SHARPNESS))

    def forward(self, h: Tensor) -> tuple[Tensor, Routing | None]:
        """The result ``[B, out]`` for rows ``[B, in]``, and where they went if that was chosen."""
        num = len(self.experts)
        if self.training and not self.routed:
            piece = torch.arange(h.shape[0], device=h.device) * num // max(h.shape[0], 1)
            return self.mix(h, F.one_hot(piece, num).float()), None
        cosine = (
            unit(linear(h, self.project.weight, self.project.bias)) @ unit(self.columns).t()
        )  # [B, E]
        logits = bounded_exp(self.log_sharpness) * cosine
        if self.training:
            logits = logits + torch.randn_like(logits) / num
        gates = logits.softmax(1) * largest(logits, self.top_k)  # over all, then the chosen
        return bounded_exp(self.log_scale) * self.mix(h, gates), Routing(logits, gates)


class MoE(ExpertStudent):
    r"""A multilayer perceptron whose every linear map is a :class:`MoELayer`.

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width of each hidden layer, and of the gates.
        out_channels: Number of classes ``C``.
        num_layers: Number of layers, at least 1.
        num_experts: Experts per layer ``E``.
        top_k: Experts per node and layer ``k``, fewer than ``E``.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, after the mixture and before each ReLU.
        dropout: Probability of dropping an entry of a layer's input, features included, before
            an expert reads it; the gate sees all of it.
        input_dropout: Probability of dropping a feature before it is routed.
        position_channels: Width ``d`` of the positional encoding that stands behind the features,
            0 for none.
        init_scale: Scale of each layer's output at first.

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
        num_experts: int = 8,
        top_k: int = 4,
        norm: Norm = "none",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        position_channels: int = 0,
        init_scale: float = 2.0,
    ) -> None:
        layers: list[ExpertLayer] = [
            MoELayer(into, out, hidden_channels, num_experts, top_k, dropout, init_scale)
            for into, out in widths(
                in_channels + position_channels, hidden_channels, out_channels, num_layers
            )
        ]
        super().__init__(
            layers, in_channels, hidden_channels, norm, input_dropout, position_channels
        )

    def begin_routing(self) -> None:
        """End pretraining: from now on the gates choose."""
        for layer in self.layers:
            cast(ExpertLayer, layer).routed = True

    def balance_loss(self, routings: list[Routing]) -> Tensor:
        r"""Even the experts' loads, summed over the layers.

        .. math::
            \mathrm{CV}^2\Bigl(\sum_b a_{be}\Bigr)
            + \mathrm{CV}^2\Bigl(\sum_b [a_{be} > 0]\Bigr)

        The second term counts rows and has no gradient.

        Args:
            routings: From :meth:`trace`; none in pretraining, where the loss is zero.
        """
        total = torch.zeros(())
        for routing in routings:
            counts = (routing.gates > 0).float().sum(0)
            total = total + squared_variation(routing.gates.sum(0)) + squared_variation(counts)
        return total
