"""Several GLNNs whose answers are averaged: a control of the students of experts."""

from __future__ import annotations

from typing import ClassVar

from limbeck.errors import TeacherError
from limbeck.graphs.info import TaskName
from limbeck.graphs.view import View
from limbeck.methods.base import Distilled, PositiveInt
from limbeck.methods.glnn import GLNN
from limbeck.students.ensemble import EnsembleOfMLPs
from limbeck.students.mlp import MLP
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint, History


class EnsembleOfGLNNs(GLNN):
    r"""Several GLNNs, each trained from its own start, with the mean of their probabilities.

    .. math::
        \mathbf{p}_v = \frac{1}{E} \sum_{e=1}^{E} \sigma(\mathrm{MLP}_e(\mathbf{x}_v))

    It is the control of `"Graph Knowledge Distillation to Mixture of Experts"
    <https://arxiv.org/abs/2406.11919>`_ that has as many MLPs as a layer of it has experts. The
    members have nothing in common but the teacher: each has its weights, dropout and batches, and
    stops for itself. Options beside those of :class:`~limbeck.methods.glnn.GLNN`:

    Args:
        num_members: :math:`E`, the number of MLPs.
    """

    name: ClassVar[str] = "ensemble"
    title: ClassVar[str] = "soft labels into several MLPs whose probabilities are averaged"
    tasks: ClassVar[tuple[TaskName, ...]] = ("classes",)  # probabilities are averaged as one class
    paper: ClassVar[str] = "control of https://arxiv.org/abs/2406.11919"

    num_members: PositiveInt = 4

    def distill(
        self,
        view: View,
        knowledge: Knowledge | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Train one GLNN after the other.

        A run that is resumed trains the members again that were finished, and goes on within the
        one that was not.

        Raises:
            TeacherError: There is no teacher to learn from.
        """
        if knowledge is None:
            raise TeacherError("method 'ensemble' learns from a teacher: give one.")
        trained: list[Distilled] = []
        for member in range(self.num_members):
            of_member = f"{member + 1} of {self.num_members}"
            trained.append(
                super().distill(
                    view,
                    knowledge,
                    checkpoint=checkpoint and checkpoint.of_part(f"member {member}"),
                    progress=f"{progress} {of_member}" if progress else None,
                )
            )
        members = [one.student for one in trained if isinstance(one.student, MLP)]
        history = _one_after_another([one.history for one in trained])
        return Distilled(EnsembleOfMLPs(members).eval(), history, trained[0].inputs)


def _one_after_another(histories: list[History]) -> History:
    """The epochs of all members in a row; the best epoch is that of the best member."""
    best = max(range(len(histories)), key=lambda member: histories[member].best_score)
    before = sum(len(history.loss) for history in histories[:best])
    return History(
        loss=[loss for history in histories for loss in history.loss],
        val_score=[score for history in histories for score in history.val_score],
        best_epoch=before + histories[best].best_epoch,
        best_score=histories[best].best_score,
        seconds=sum(history.seconds for history in histories),
    )
