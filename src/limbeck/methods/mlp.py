"""The plain MLP: the floor that every student must clear."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from limbeck.graphs.info import TaskName
from limbeck.graphs.view import View
from limbeck.methods.base import Distilled, Method, validation_accuracy
from limbeck.students.inputs import inputs_of
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint, batches
from limbeck.training.tasks import task_of


class PlainMLP(Method):
    r"""An MLP trained on labels alone, without a teacher.

    .. math::
        \mathcal{L} = \frac{1}{|L|} \sum_{v \in L} \mathrm{CE}(y_v, \sigma(\mathbf{s}_v))

    The difference between it and a teacher says how much the graph matters; every student must
    beat it. Where nodes have several labels, the loss is the binary cross-entropy. Options are
    those of :class:`~limbeck.methods.base.Method`.
    """

    name: ClassVar[str] = "mlp"
    title: ClassVar[str] = "MLP on labels alone, no teacher"
    paper: ClassVar[str] = "baseline of https://arxiv.org/abs/2110.08727"
    needs_teacher: ClassVar[bool] = False
    tasks: ClassVar[tuple[TaskName, ...]] = ("classes", "labels")

    def distill(
        self,
        view: View,
        knowledge: Knowledge | None = None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Train on the labels of the training nodes; ``knowledge`` is not used."""
        student = self.build_mlp(view)
        inputs, y = inputs_of(view), view.observed.y
        known, task = inputs.observed, task_of(y)

        def losses(epoch: int) -> Iterator[Tensor]:
            for nodes in batches(view.train, self.batch_size):
                yield task.label_loss(student(known.take(nodes)), y[nodes])

        history = self.fit(
            student,
            losses,
            validation_accuracy(student, known, view),
            checkpoint=checkpoint,
            progress=progress,
        )
        return Distilled(student, history, inputs)
