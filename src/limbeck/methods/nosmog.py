"""NOSMOG: positions as inputs, the teacher's similarities, and adversarial features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from limbeck.errors import OptionError, TeacherError
from limbeck.graphs.info import TaskName
from limbeck.graphs.positions import Encoding
from limbeck.graphs.view import View
from limbeck.methods.base import Distilled, Share, validation_accuracy
from limbeck.methods.losses import soft_target_loss
from limbeck.methods.structure import StructureOptions, TeacherSimilarity
from limbeck.students.inputs import NodeInputs
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint, batches
from limbeck.training.tasks import task_of


class NOSMOG(StructureOptions):
    r"""Noise-robust and structure-aware MLP (Tian et al., ICLR 2023).

    The student reads :math:`[\mathbf{x}_v ; \mathbf{p}_v]`, features and a positional encoding of
    the observed graph. On batches of observed nodes

    .. math::
        \mathcal{L} = \mathrm{KL}(\sigma(\mathbf{t}) \,\|\, \sigma(\mathbf{s}))
        + \mu \, \mathrm{mean} (\mathbf{Z}\mathbf{Z}^\top - \mathbf{G}\mathbf{G}^\top)^2
        + \omega \, \mathrm{KL}(\sigma(\mathbf{t}) \,\|\, \sigma(\mathbf{s}(\mathbf{x} + \delta)))

    with :math:`\mathbf{Z}` the teacher's last hidden layer, :math:`\mathbf{G}` a linear map, ReLU
    and dropout of the student's last hidden pre-activation, and :math:`\delta` found by projected
    gradient ascent on the same divergence. Where nodes have several labels, binary cross-entropies
    take the place of the divergences. A new node takes the mean position of its observed
    neighbours, zeros if it has none. Options beside those of
    :class:`~limbeck.methods.base.Method` and
    :class:`~limbeck.methods.structure.StructureOptions`:

    Args:
        label_weight: Weight of the hard labels, the rest is the loss above; 0 as released.
    """

    name: ClassVar[str] = "nosmog"
    title: ClassVar[str] = "positions as inputs, similarity loss, adversarial features"
    tasks: ClassVar[tuple[TaskName, ...]] = ("classes", "labels")
    paper: ClassVar[str] = "https://arxiv.org/abs/2208.10010"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "similarity_weight": (1e-9, 1e-6, 1e-3, 0.1),
        "adversarial_weight": (0.05, 0.1, 0.3),
        "epsilon": (0.005, 0.02, 0.05, 0.1),
    }

    encoding: Encoding | None = "deepwalk"
    similarity_weight: float = Field(default=0.1, ge=0)
    adversarial_weight: float = Field(default=0.1, ge=0)
    label_weight: Share = 0.0

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
        if self.similarity_weight > 0 and self.num_layers == 1:
            raise OptionError(
                "option 'num_layers' of NOSMOG is 1: the similarity loss needs a hidden layer, so "
                "at least 2, or similarity_weight 0."
            )
        inputs, y, soft = self.inputs_of(view), view.observed.y, knowledge.logits
        known, task = inputs.observed, task_of(y)
        student = self.build_mlp(view, known.position_width)
        trained = torch.nn.ModuleDict({"student": student})
        if self.similarity_weight > 0:
            similarity = TeacherSimilarity(knowledge, self.hidden_channels, self.dropout, self.name)
            trained["similarity"] = similarity
        observed = torch.arange(view.num_observed)

        def losses(epoch: int) -> Iterator[Tensor]:
            if self.label_weight > 0:
                for nodes in batches(view.train, self.batch_size):
                    loss = task.label_loss(student(known.take(nodes)), y[nodes])
                    yield self.label_weight * loss
            for nodes in batches(observed, self.batch_size):
                batch, target = known.take(nodes), soft[nodes]

                def divergence(inputs: NodeInputs, target: Tensor = target) -> Tensor:
                    return soft_target_loss(student(inputs), target, task=task)

                if self.similarity_weight > 0:
                    hidden = student.hidden(batch)
                    loss = soft_target_loss(student.classify(hidden), target, task=task)
                    loss = loss + self.similarity_weight * similarity(hidden, nodes)
                else:
                    loss = divergence(batch)
                if self.adversarial_weight > 0:
                    worst = self.adversarial_inputs(divergence, batch)
                    loss = loss + self.adversarial_weight * divergence(worst)
                yield (1 - self.label_weight) * loss

        history = self.fit(
            trained,
            losses,
            validation_accuracy(student, known, view),
            checkpoint=checkpoint,
            progress=progress,
        )
        return Distilled(student, history, inputs)
