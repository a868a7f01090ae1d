"""The usual mixture of experts, with a trained gate: the control of Routing-by-Memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.graphs.view import View
from limbeck.methods.base import Distilled, PositiveInt, validation_accuracy
from limbeck.methods.experts import ExpertLessons, ExpertOptions, Weight
from limbeck.students.experts import Routing
from limbeck.students.moe import MoE
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint


class MixtureOfExperts(ExpertOptions):
    r"""Soft labels into a mixture of experts with a trained gate, the control of RbM's code.

    The loss is RbM's with another auxiliary part,

    .. math::
        \mathcal{L}_{aux} = \gamma \sum_l \mathrm{CV}^2\Bigl(\sum_b a_{be}\Bigr)
        + \mathrm{CV}^2(\text{rows of expert } e),

    once per batch. In pretraining each expert gets a contiguous piece of the batch. Options beside
    those of :class:`~limbeck.methods.base.Method` and
    :class:`~limbeck.methods.experts.ExpertOptions`:

    Args:
        dropout: Probability of dropping an entry of a layer's input before an expert reads it,
            features included.
        load_balance_weight: :math:`\gamma`, evens the experts' loads.
    """

    name: ClassVar[str] = "moe"
    title: ClassVar[str] = "soft labels into a mixture of experts with a trained gate"
    paper: ClassVar[str] = "control of https://arxiv.org/abs/2406.11919"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "load_balance_weight": (0.01, 0.025, 0.05),
    }

    max_epochs: PositiveInt = 1000
    num_experts: Annotated[int, Field(ge=2)] = 8
    top_k: Annotated[int, Field(ge=1, validate_default=True)] = 4
    pretrain_epochs: Annotated[int, Field(ge=0)] = 50
    load_balance_weight: Weight = 0.01

    def distill(
        self,
        view: View,
        knowledge: Knowledge | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Pretrain the experts on their pieces, then train experts and gates.

        Raises:
            TeacherError: There is no teacher to learn from.
        """
        if knowledge is None:
            raise TeacherError("method 'moe' learns from a teacher: give one.")
        inputs = self.inputs_of(view)
        known = inputs.observed
        student = MoE(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            self.num_layers,
            self.num_experts,
            self.top_k,
            self.norm,
            self.dropout,
            self.input_dropout,
            known.position_width,
            self.init_scale,
        )

        def auxiliary_loss(routings: list[Routing]) -> Tensor:
            return self.load_balance_weight * student.balance_loss(routings)

        lessons = ExpertLessons(self, student, known, view, knowledge, auxiliary_loss)

        def losses(epoch: int) -> Iterator[Tensor]:
            if epoch == self.pretrain_epochs:
                student.begin_routing()
            yield from lessons.epoch(epoch)

        history = self.fit(
            lessons,
            losses,
            validation_accuracy(student, known, view),
            warm_up=self.pretrain_epochs,
            checkpoint=checkpoint,
            progress=progress,
        )
        return Distilled(student, history, inputs)
