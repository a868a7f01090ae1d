"""What a student of experts is compared with: an average of MLPs, and students of equal size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.students.experts import ExpertLayer, ExpertStudent
from limbeck.students.inputs import InputSpec, NodeInputs
from limbeck.students.mlp import MLP
from limbeck.students.moe import MoELayer

LARGEST_WIDTH = 2**20
"""Widths that :func:`hidden_channels_for` looks at."""


class EnsembleOfMLPs(torch.nn.Module):
    r"""Multilayer perceptrons whose probabilities are averaged.

    .. math::
        \mathbf{s} = \log \frac{1}{E} \sum_{e=1}^{E} \sigma(\mathrm{MLP}_e(\mathbf{x}))

    with the softmax :math:`\sigma`, computed from log-probabilities so that none underflows.

    Args:
        members: The MLPs, which read the same inputs and answer for the same classes.

    Shapes:
        - **inputs:** those of a member
        - **output:** log-probabilities ``[B, C]``, which are logits, too

    Raises:
        OptionError: There is no member, or they differ in inputs or classes.
    """

    def __init__(self, members: Sequence[MLP]) -> None:
        super().__init__()
        shapes = {(member.inputs, member.out_channels) for member in members}
        if len(shapes) != 1:
            raise OptionError(
                "an ensemble needs members that read the same inputs and answer for the same "
                f"classes: there are {len(members)} members of {len(shapes)} kinds."
            )
        self.members = torch.nn.ModuleList(members)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The node inputs that this student reads."""
        return cast(MLP, self.members[0]).inputs

    def reset_parameters(self) -> None:
        """Put every member back to a fresh start."""
        for member in self.members:
            cast(MLP, member).reset_parameters()

    def forward(self, inputs: NodeInputs) -> Tensor:
        """Log-probabilities ``[B, C]`` of the nodes."""
        answers = torch.stack([member(inputs).log_softmax(1) for member in self.members])
        return answers.logsumexp(0) - math.log(len(self.members))  # [E, B, C] -> [B, C]

    def extra_repr(self) -> str:
        """What ``print`` shows beside the members."""
        return f"num_members={len(self.members)}"


def num_parameters(student: torch.nn.Module) -> int:
    """Number of a student's parameters: all that is trained, and memories that only follow."""
    return sum(parameter.numel() for parameter in student.parameters())


def flops_per_node(student: torch.nn.Module, num_features: float | None = None) -> float:
    r"""Floating-point operations of one answer, two for a multiplication with its addition.

    For an MLP with the widths :math:`d_0, \dots, d_L`, and for experts of which a row uses ``k`` of
    ``E``,

    .. math::
        2 \sum_l d_{l-1} d_l \qquad \text{and} \qquad
        2 k \sum_l d_{l-1} d_l + 2 E \sum_l d_{l-1} + k \sum_l d_l

    with the experts, the comparison with the memories, and the mixture. A trained gate compares in
    a width ``g`` of its own: :math:`2 g (d_{l-1} + E)` in place of :math:`2 E d_{l-1}`. Experts
    that share a map and have corrections of rank ``r`` cost :math:`2 d_{l-1} d_l + 2 E r (d_{l-1} +
    d_l)` in place of the first term. Biases, norms, ReLU and softmax are not counted.

    Args:
        student: An MLP, an ensemble of them, or a student of experts.
        num_features: Entries of a row that the first layer multiplies, for sparse features their
            mean number per node (and those of a position); all of them by default.

    Raises:
        OptionError: The student is of another kind.
    """
    if isinstance(student, EnsembleOfMLPs):
        return sum(flops_per_node(member, num_features) for member in student.members)
    if isinstance(student, MLP):
        maps = [cast(torch.nn.Linear, lin) for lin in student.lins]
        return sum(
            2 * width * lin.out_features
            for width, lin in zip(_widths(maps, num_features), maps, strict=True)
        )
    if isinstance(student, ExpertStudent):
        layers = [cast(ExpertLayer, layer) for layer in student.layers]
        maps = [cast(torch.nn.Linear, layer.experts[0]) for layer in layers]
        return sum(map(_flops_of_layer, layers, _widths(maps, num_features)))
    raise OptionError(
        f"the operations of {type(student).__name__} are not known: those of an MLP, an ensemble "
        "of MLPs and a student of experts are."
    )


def hidden_channels_for(target: float, size: Callable[[int], float]) -> int:
    """The hidden width at which a student is as large as another.

    ``hidden_channels_for(num_parameters(rbm), lambda width: num_parameters(MLP(300, width, 7)))``
    widens an MLP to an RbM's parameters. A student that is only measured may be built under
    ``torch.device("meta")``, where it takes no memory.

    Args:
        target: Size to meet: parameters, operations per node.
        size: The student's size at a width; larger for a larger width.

    Returns:
        The width from 1 to :data:`LARGEST_WIDTH` whose size is nearest to ``target``, within 1 %.

    Raises:
        OptionError: No width comes within 1 %.
    """
    below, above = 1, LARGEST_WIDTH
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if size(middle) <= target else (below, middle)
    width = min((below, above), key=lambda candidate: abs(size(candidate) - target))
    if abs(size(width) - target) > 0.01 * target:
        raise OptionError(
            f"no hidden width gives the size {target:g} within 1 %: the nearest is {width}, "
            f"which gives {size(width):g}."
        )
    return width


def _widths(maps: list[torch.nn.Linear], num_features: float | None) -> list[float]:
    """Number of entries of a row that each map multiplies."""
    widths: list[float] = [lin.in_features for lin in maps]
    return widths if num_features is None else [num_features, *widths[1:]]


def _flops_of_layer(layer: ExpertLayer, width: float) -> float:
    num, k = layer.num_experts, layer.top_k
    out = cast(torch.nn.Linear, layer.experts[0]).out_features
    if layer.corrections is None:
        experts = 2 * k * width * out
    else:
        rank = layer.corrections.lower.shape[1]
        experts = 2 * width * out + 2 * num * rank * (width + out)
    if isinstance(layer, MoELayer):
        gate_width = layer.project.out_features
        routing = 2 * gate_width * (width + num)
    else:
        routing = 2 * num * width
    return experts + routing + k * out
