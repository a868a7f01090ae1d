"""Routing-by-Memory: a student of experts in place of the MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.graphs.view import View
from limbeck.methods.base import Distilled, PositiveInt, Share, validation_accuracy
from limbeck.methods.experts import ExpertLessons, ExpertOptions, Weight
from limbeck.students.experts import Routing
from limbeck.students.rbm import RbM
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint


class RoutingByMemory(ExpertOptions):
    r"""Routing-by-Memory, RbM (Rumiantsev and Coates, TMLR 2024).

    .. math::
        \mathcal{L} = \frac{\lambda}{|L|} \sum_{v \in L} \mathrm{CE}(y_v, \sigma(\mathbf{s}_v))
        + \frac{1 - \lambda}{|D|} \sum_{v \in D} \sum_c p_{vc}^{1/\tau} \,
        \frac{\log p_{vc} - \log \sigma(\mathbf{s}_v)_c}{\tau} + \mathcal{L}_{aux}

    with the teacher's probabilities :math:`p`, all observed nodes as ``D``, and the three losses
    of :class:`~limbeck.students.rbm.RbM`'s routing,

    .. math::
        \mathcal{L}_{aux} = \sum_l \alpha L_c^l + \beta L_s^l + \gamma L_b^l,

    once per batch. The student is a plain MLP for some epochs. Then each layer's memories are
    placed by spherical k-means on what the layer reads, its map is cloned into the experts, and
    the student routes. Options beside those of :class:`~limbeck.methods.base.Method` and
    :class:`~limbeck.methods.experts.ExpertOptions`:

    Args:
        dropout: Probability of dropping an entry of a layer's input before an expert reads it,
            features included.
        commitment_weight: :math:`\alpha`, pulls hidden layers towards the memories they go to.
        self_similarity_weight: :math:`\beta`, pushes memories apart.
        load_balance_weight: :math:`\gamma`, evens the experts' loads.
        memory_momentum: :math:`\mu`, the share of a memory that a forward pass leaves.
        input_gain: Train a gain per expert and input.
        train_memory: Whether Adam, with its weight decay, moves the memories beside the moving
            average; without it ``self_similarity_weight`` has no effect.
        expert_rank: Let the experts of a layer share one map and differ by this rank; ``None``
            gives each its own. Ours, not the paper's.
    """

    name: ClassVar[str] = "rbm"
    title: ClassVar[str] = "routing by memory: soft labels into a mixture of experts"
    paper: ClassVar[str] = "https://arxiv.org/abs/2406.11919"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "commitment_weight": (0.0, 0.01, 0.05, 0.1),
        "self_similarity_weight": (1e-7, 0.01, 0.05),
        "load_balance_weight": (1e-7, 0.01, 0.05),
        "input_gain": (False, True),
    }

    commitment_weight: Weight = 0.05
    self_similarity_weight: Weight = 0.01
    load_balance_weight: Weight = 0.01
    memory_momentum: Share = 0.9
    input_gain: bool = False
    train_memory: bool = True
    expert_rank: PositiveInt | None = None

    def distill(
        self,
        view: View,
        knowledge: Knowledge | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Pretrain on soft labels, convert, train on.

        Raises:
            TeacherError: There is no teacher to learn from, or it cannot give what is asked of it.
            OptionError: There are fewer observed nodes than experts.
            MissingExtraError: The encoding is DeepWalk's and its library is not installed.
        """
        if knowledge is None:
            raise TeacherError("method 'rbm' learns from a teacher: give one.")
        inputs = self.inputs_of(view)
        known = inputs.observed
        student = RbM(
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
            input_gain=self.input_gain,
            momentum=self.memory_momentum,
            init_scale=self.init_scale,
            train_memory=self.train_memory,
            expert_rank=self.expert_rank,
        )

        def auxiliary_loss(routings: list[Routing]) -> Tensor:
            return student.auxiliary_loss(
                routings,
                self.commitment_weight,
                self.self_similarity_weight,
                self.load_balance_weight,
            )

        lessons = ExpertLessons(self, student, known, view, knowledge, auxiliary_loss)

        def losses(epoch: int) -> Iterator[Tensor]:
            if epoch == self.pretrain_epochs:
                student.convert(known)
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
