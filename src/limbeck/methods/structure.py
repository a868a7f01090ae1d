"""What NOSMOG adds to soft labels, for it and for the methods that take parts of it.

Positions as inputs, the teacher's similarities, and adversarial features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.graphs.positions import Encoding, PositionOptions, Rule
from limbeck.graphs.sparse import is_csr
from limbeck.graphs.view import View
from limbeck.methods.base import Method, PositiveInt
from limbeck.methods.losses import similarity_loss
from limbeck.students.inputs import NodeInputs, ViewInputs, inputs_of
from limbeck.teachers.knowledge import Knowledge


class StructureOptions(Method):
    r"""Options of the methods that may tell an MLP about the graph, as NOSMOG does.

    Args:
        encoding: ``"deepwalk"`` (needs the extra ``positions``) or ``"spectral"``, read by the
            student beside the features; ``None`` for no positions.
        dim: Width of a position.
        rule: How a new node gets its position: ``"mean-observed"``, or ``"official"``, which
            divides by all its neighbours as the released code does. Bundles use the former.
        walk_length: Nodes in a walk of DeepWalk.
        walks_per_node: Walks that start at each node.
        window: Largest distance within a walk at which one node predicts another.
        position_epochs: Passes over all walks.
        label_inputs: Whether the student reads propagated training labels, too; see
            :func:`~limbeck.graphs.label_propagation.propagated_labels`. They stand behind the
            position, and a new node gets them by the same rule.
        similarity_weight: :math:`\mu`, the weight of the teacher's similarities; 0 leaves them out.
        adversarial_weight: :math:`\omega`, the weight of the loss on adversarial inputs; 0 leaves
            it out.
        epsilon: Largest change of one input value by an adversarial input.
        adversarial_steps: Steps of gradient ascent, each of size ``epsilon / 4``.
        ascent_dtype: Type in which the ascent multiplies matrices: ``"float32"``, or
            ``"bfloat16"``, which is faster where the processor multiplies it. What is learnt from
            the inputs found is computed in float32 either way.
    """

    encoding: Encoding | None = None
    dim: PositiveInt = 64
    rule: Rule = "mean-observed"
    walk_length: PositiveInt = 50
    walks_per_node: PositiveInt = 5
    window: PositiveInt = 5
    position_epochs: PositiveInt = 1
    label_inputs: bool = False
    similarity_weight: float = Field(default=0.0, ge=0)
    adversarial_weight: float = Field(default=0.0, ge=0)
    epsilon: float = Field(default=0.05, gt=0)
    adversarial_steps: PositiveInt = 5
    ascent_dtype: Literal["float32", "bfloat16"] = "float32"

    def inputs_of(self, view: View) -> ViewInputs:
        """What the student reads of the nodes of a view.

        Raises:
            MissingExtraError: The encoding is DeepWalk's and its library is not installed.
        """
        positions = None
        if self.encoding is not None:
            positions = PositionOptions(
                encoding=self.encoding,
                dim=self.dim,
                rule=self.rule,
                walk_length=self.walk_length,
                walks_per_node=self.walks_per_node,
                window=self.window,
                epochs=self.position_epochs,
            )
        return inputs_of(view, positions, labels=self.label_inputs, rule=self.rule)

    def adversarial_inputs(
        self, loss: Callable[[NodeInputs], Tensor], inputs: NodeInputs
    ) -> NodeInputs:
        """:func:`adversarial_inputs` with these options."""
        dtype = torch.bfloat16 if self.ascent_dtype == "bfloat16" else torch.float32
        return adversarial_inputs(loss, inputs, self.epsilon, self.adversarial_steps, dtype)


class TeacherSimilarity(torch.nn.Module):
    r"""The similarity loss, with the map to the space in which nodes are compared.

    .. math::
        \mathrm{mean} (\mathbf{Z}\mathbf{Z}^\top - \mathbf{G}\mathbf{G}^\top)^2, \qquad
        \mathbf{G} = \mathrm{dropout}(\mathrm{ReLU}(\mathbf{P} \mathbf{h} + \mathbf{p}))

    with the teacher's last hidden layer :math:`\mathbf{Z}` and a hidden layer :math:`\mathbf{h}`
    of the student. The map is trained beside the student and is no part of it.

    Args:
        knowledge: What the teacher says; its last hidden layer ``[observed, H']`` is taken.
        channels: Width ``H`` of the student's hidden layer.
        dropout: Probability of dropping an entry of ``G``.
        method: Name of the method, for messages.

    Raises:
        TeacherError: The teacher shows no hidden layer.
    """

    def __init__(self, knowledge: Knowledge, channels: int, dropout: float, method: str) -> None:
        super().__init__()
        if not knowledge.hidden:
            raise TeacherError(
                f"teacher {knowledge.name!r} has no hidden layer that the similarity loss of "
                f"{method!r} could compare: set similarity_weight to 0 or take a teacher of ours."
            )
        self._teacher = list(knowledge.hidden.values())[-1]
        self.dropout = dropout
        self.map = torch.nn.Linear(channels, channels)

    def forward(self, hidden: Tensor, nodes: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            hidden: The student's hidden layer ``[B, H]``.
            nodes: Which observed nodes they are, int64 ``[B]``.
        """
        mapped = F.dropout(F.relu(self.map(hidden)), self.dropout, self.training)
        return similarity_loss(mapped, self._teacher[nodes])


def adversarial_inputs(
    loss: Callable[[NodeInputs], Tensor],
    inputs: NodeInputs,
    epsilon: float,
    steps: int,
    dtype: torch.dtype = torch.float32,
) -> NodeInputs:
    r"""Inputs nearby at which a loss is larger, by projected gradient ascent.

    .. math::
        \delta_0 \sim U(-\epsilon, \epsilon), \quad \delta \leftarrow \mathrm{clip}_\epsilon(
        \delta + \tfrac{\epsilon}{4} \, \mathrm{sign} \nabla_\delta \ell(\mathbf{x} + \delta))

    over features and position alike, the student left in its mode (dropout active in training),
    as NOSMOG does (Tian et al., ICLR 2023).

    Args:
        loss: :math:`\ell`, what the student loses on some inputs.
        inputs: Inputs of ``B`` nodes; sparse features become dense.
        epsilon: Largest change of one value.
        steps: Number of steps.
        dtype: Type in which matrices are multiplied during the ascent, of whose gradient only the
            signs are kept.
    """
    clean = [inputs.x.to_dense() if is_csr(inputs.x) else inputs.x]
    if inputs.position is not None:
        clean.append(inputs.position)
    bounds = [(part - epsilon, part + epsilon) for part in clean]
    moved = [
        torch.empty_like(part).uniform_(-epsilon, epsilon).add_(part).requires_grad_()
        for part in clean
    ]
    precision: AbstractContextManager[object] = nullcontext()
    if dtype != torch.float32:
        precision = torch.autocast(clean[0].device.type, dtype)
    for _ in range(steps):
        with precision:
            value = loss(_inputs_of_parts(moved))
        gradients = torch.autograd.grad(value, moved)
        with torch.no_grad():
            # in place: these matrices are the largest of a step, and passes over them its cost
            for part, (low, high), gradient in zip(moved, bounds, gradients, strict=True):
                part.add_(gradient.sign_(), alpha=epsilon / 4)
                torch.clamp(part, min=low, max=high, out=part)
    return _inputs_of_parts([part.detach() for part in moved])


def _inputs_of_parts(parts: Sequence[Tensor]) -> NodeInputs:
    """Features and, where there are two parts, positions behind them."""
    return NodeInputs(parts[0], parts[1] if len(parts) > 1 else None)
