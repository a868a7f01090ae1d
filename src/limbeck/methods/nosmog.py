"""NOSMOG: positions as inputs, the teacher's similarities, and adversarial features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from limbeck.errors import OptionError, TeacherError
from limbeck.graphs.positions import Encoding, PositionOptions, Rule
from limbeck.graphs.sparse import is_csr
from limbeck.graphs.view import View
from limbeck.methods.base import Distilled, Method, PositiveInt, Share, validation_accuracy
from limbeck.methods.losses import similarity_loss, soft_target_loss
from limbeck.students.inputs import NodeInputs, inputs_of
from limbeck.students.mlp import MLP
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint, batches, fit


class NOSMOG(Method):
    r"""Noise-robust and structure-aware MLP (Tian et al., ICLR 2023).

    The student reads :math:`[\mathbf{x}_v ; \mathbf{p}_v]`, features and a positional encoding of
    the observed graph. On batches of observed nodes

    .. math::
        \mathcal{L} = \mathrm{KL}(\sigma(\mathbf{t}) \,\|\, \sigma(\mathbf{s}))
        + \mu \, \mathrm{mean} (\mathbf{Z}\mathbf{Z}^\top - \mathbf{G}\mathbf{G}^\top)^2
        + \omega \, \mathrm{KL}(\sigma(\mathbf{t}) \,\|\, \sigma(\mathbf{s}(\mathbf{x} + \delta)))

    with :math:`\mathbf{Z}` the teacher's last hidden layer, :math:`\mathbf{G}` a linear map, ReLU
    and dropout of the student's last hidden pre-activation, and :math:`\delta` found by projected
    gradient ascent on the same divergence. A new node takes the mean position of its observed
    neighbours, zeros if it has none. Options beside those of
    :class:`~limbeck.methods.base.Method`:

    Args:
        similarity_weight: :math:`\mu`; 0 leaves the similarity loss out.
        adversarial_weight: :math:`\omega`; 0 leaves the adversarial loss out.
        epsilon: Largest change of one input value by :math:`\delta`.
        adversarial_steps: Steps of gradient ascent, each of size ``epsilon / 4``.
        label_weight: Weight of the hard labels, the rest is the loss above; 0 as released.
        encoding: ``"deepwalk"`` (the paper's, needs the extra ``positions``) or ``"spectral"``.
        dim: Width of a position.
        rule: How a new node gets its position: ``"mean-observed"``, or ``"official"``, which
            divides by all its neighbours as the released code does. Bundles use the former.
        walk_length: Nodes in a walk of DeepWalk.
        walks_per_node: Walks that start at each node.
        window: Largest distance within a walk at which one node predicts another.
        position_epochs: Passes over all walks.
    """

    name: ClassVar[str] = "nosmog"
    title: ClassVar[str] = "positions as inputs, similarity loss, adversarial features"
    paper: ClassVar[str] = "https://arxiv.org/abs/2208.10010"

    similarity_weight: float = Field(default=0.1, ge=0)
    adversarial_weight: float = Field(default=0.1, ge=0)
    epsilon: float = Field(default=0.05, gt=0)
    adversarial_steps: PositiveInt = 5
    label_weight: Share = 0.0
    encoding: Encoding = "deepwalk"
    dim: PositiveInt = 64
    rule: Rule = "mean-observed"
    walk_length: PositiveInt = 50
    walks_per_node: PositiveInt = 5
    window: PositiveInt = 5
    position_epochs: PositiveInt = 1

    def positions(self) -> PositionOptions:
        """Which positional encoding the student reads."""
        return PositionOptions(
            encoding=self.encoding,
            dim=self.dim,
            rule=self.rule,
            walk_length=self.walk_length,
            walks_per_node=self.walks_per_node,
            window=self.window,
            epochs=self.position_epochs,
        )

    def distill(
        self,
        view: View,
        knowledge: Knowledge | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Train on the soft labels of all observed nodes.

        Raises:
            TeacherError: There is no teacher, or it has no hidden layer to compare with.
            OptionError: The student has no hidden layer to compare.
            MissingExtraError: The encoding is DeepWalk's and its library is not installed.
        """
        if knowledge is None:
            raise TeacherError("method 'nosmog' learns from a teacher: give one.")
        z = self._teacher_hidden(knowledge)
        inputs, y, soft = inputs_of(view, self.positions()), view.observed.y, knowledge.logits
        known = inputs.observed
        student = self.build_mlp(view, position_channels=self.dim)
        width = self.hidden_channels
        # the map to the compared space is trained beside the student and left behind
        both = torch.nn.ModuleDict({"student": student, "map": torch.nn.Linear(width, width)})
        observed = torch.arange(view.num_observed)

        def similarity(hidden: Tensor, nodes: Tensor) -> Tensor:
            g = F.dropout(F.relu(both["map"](hidden)), self.dropout, student.training)
            return similarity_loss(g, cast(Tensor, z)[nodes])

        def losses(epoch: int) -> Iterator[Tensor]:
            if self.label_weight > 0:
                for nodes in batches(view.train, self.batch_size):
                    loss = F.cross_entropy(student(known.take(nodes)), y[nodes])
                    yield self.label_weight * loss
            for nodes in batches(observed, self.batch_size):
                batch, target = known.take(nodes), soft[nodes]
                if self.similarity_weight > 0:
                    hidden = student.hidden(batch)
                    loss = soft_target_loss(student.classify(hidden), target)
                    loss = loss + self.similarity_weight * similarity(hidden, nodes)
                else:
                    loss = soft_target_loss(student(batch), target)
                if self.adversarial_weight > 0:
                    worst = adversarial_inputs(
                        student, batch, target, self.epsilon, self.adversarial_steps
                    )
                    adversarial = soft_target_loss(student(worst), target)
                    loss = loss + self.adversarial_weight * adversarial
                yield (1 - self.label_weight) * loss

        history = fit(
            both,
            losses,
            validation_accuracy(student, known, view),
            lr=self.lr,
            weight_decay=self.weight_decay,
            max_epochs=self.max_epochs,
            patience=self.patience,
            checkpoint=checkpoint,
            progress=progress,
        )
        return Distilled(student, history, inputs)

    def _teacher_hidden(self, knowledge: Knowledge) -> Tensor | None:
        """The teacher's last hidden layer ``[observed, H]``, if it is compared with."""
        if self.similarity_weight == 0:
            return None
        if not knowledge.hidden:
            raise TeacherError(
                f"teacher {knowledge.name!r} has no hidden layer that the similarity loss of "
                "'nosmog' could compare: set similarity_weight to 0 or take a teacher of ours."
            )
        if self.num_layers == 1:
            raise OptionError(
                "option 'num_layers' of NOSMOG is 1: the similarity loss needs a hidden layer, so "
                "at least 2, or similarity_weight 0."
            )
        return list(knowledge.hidden.values())[-1]


def adversarial_inputs(
    student: MLP, inputs: NodeInputs, target: Tensor, epsilon: float, steps: int
) -> NodeInputs:
    r"""Inputs nearby at which the student errs most, by projected gradient ascent.

    .. math::
        \delta_0 \sim U(-\epsilon, \epsilon), \quad \delta \leftarrow \mathrm{clip}_\epsilon(
        \delta + \tfrac{\epsilon}{4} \, \mathrm{sign} \nabla_\delta
        \mathrm{KL}(\sigma(\mathbf{t}) \,\|\, \sigma(\mathbf{s}(\mathbf{x} + \delta))))

    over features and position alike, the student left in its mode (dropout active in training).

    Args:
        student: The student.
        inputs: Inputs of ``B`` nodes; sparse features become dense.
        target: The teacher's logits ``[B, C]``.
        epsilon: Largest change of one value.
        steps: Number of steps.
    """
    clean = [inputs.x.to_dense() if is_csr(inputs.x) else inputs.x]
    if inputs.position is not None:
        clean.append(inputs.position)
    delta = [torch.empty_like(part).uniform_(-epsilon, epsilon) for part in clean]
    for _ in range(steps):
        for part in delta:
            part.requires_grad_()
        moved = NodeInputs(*(a + b for a, b in zip(clean, delta, strict=True)))
        gradients = torch.autograd.grad(soft_target_loss(student(moved), target), delta)
        delta = [
            (part.detach() + epsilon / 4 * gradient.sign()).clamp_(-epsilon, epsilon)
            for part, gradient in zip(delta, gradients, strict=True)
        ]
    return NodeInputs(*(a + b for a, b in zip(clean, delta, strict=True)))
