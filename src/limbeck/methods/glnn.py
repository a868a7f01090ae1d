"""GLNN: the teacher's soft labels, and nothing else, into an MLP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.graphs.info import TaskName
from limbeck.graphs.view import View
from limbeck.methods.base import Distilled, Method, Share, validation_accuracy
from limbeck.methods.losses import soft_target_loss
from limbeck.students.inputs import NodeInputs, inputs_of
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint, batches
from limbeck.training.tasks import task_of


class GLNN(Method):
    r"""Graph-less neural network (Zhang et al., ICLR 2022).

    .. math::
        \mathcal{L} = \frac{\lambda}{|L|} \sum_{v \in L} \mathrm{CE}(y_v, \sigma(\mathbf{s}_v))
        + \frac{1 - \lambda}{|D|} \sum_{v \in D} \tau^2 \, \mathrm{KL}(
        \sigma(\mathbf{t}_v / \tau) \,\|\, \sigma(\mathbf{s}_v / \tau))

    with all observed nodes as ``D``. An epoch is a pass over the labelled batches and then one
    over the distillation batches, each batch a step of its own. All published numbers have
    :math:`\lambda = 0` and :math:`\tau = 1`. Where nodes have several labels, both losses are
    binary cross-entropies. Options beside those of
    :class:`~limbeck.methods.base.Method`:

    Args:
        label_weight: :math:`\lambda`, the weight of the hard labels, 0 to 1.
        temperature: :math:`\tau`, at which both distributions are compared.
    """

    name: ClassVar[str] = "glnn"
    title: ClassVar[str] = "graph-less neural network: soft labels into an MLP"
    paper: ClassVar[str] = "https://arxiv.org/abs/2110.08727"
    tasks: ClassVar[tuple[TaskName, ...]] = ("classes", "labels")
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "label_weight": (0.0, 0.1, 0.2, 0.4),
        "temperature": (0.6, 0.8, 1.0, 1.2),
    }

    label_weight: Share = 0.0
    temperature: float = Field(default=1.0, gt=0)

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
            TeacherError: There is no teacher to learn from.
        """
        if knowledge is None:
            raise TeacherError("method 'glnn' learns from a teacher: give one.")
        student, inputs = self.build_mlp(view), inputs_of(view)
        history = self.fit(
            student,
            self.losses(student, inputs.observed, view, knowledge),
            validation_accuracy(student, inputs.observed, view),
            checkpoint=checkpoint,
            progress=progress,
        )
        return Distilled(student, history, inputs)

    def losses(
        self, student: torch.nn.Module, known: NodeInputs, view: View, knowledge: Knowledge
    ) -> Callable[[int], Iterator[Tensor]]:
        """What yields the losses of an epoch.

        Args:
            student: Answers nodes from their inputs.
            known: Inputs of the observed nodes.
            view: What may be seen.
            knowledge: What the teacher says of the observed nodes.
        """
        y, soft = view.observed.y, knowledge.logits
        task, observed = task_of(y), torch.arange(view.num_observed)

        def losses(epoch: int) -> Iterator[Tensor]:
            # a pass whose weight is zero would still move Adam's momentum and its weight decay,
            # so it is left out, unlike in the released loop
            if self.label_weight > 0:
                for nodes in batches(view.train, self.batch_size):
                    loss = task.label_loss(student(known.take(nodes)), y[nodes])
                    yield self.label_weight * loss
            if self.label_weight < 1:
                for nodes in batches(observed, self.batch_size):
                    logits = student(known.take(nodes))
                    loss = soft_target_loss(logits, soft[nodes], self.temperature, task)
                    yield (1 - self.label_weight) * loss

        return losses
