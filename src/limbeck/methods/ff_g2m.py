"""FF-G2M: the low and the high frequencies of what a teacher says, along edges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.graphs.sparse import take_rows
from limbeck.graphs.view import View
from limbeck.methods.base import (
    Distilled,
    Method,
    PositiveInt,
    Share,
    validation_accuracy,
)
from limbeck.methods.edges import (
    PairTargets,
    edges_into,
    label_loss,
    neighbor_pairs,
    training_labels,
)
from limbeck.students.inputs import inputs_of
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint, batches


class FFG2M(Method):
    r"""Full-frequency GNN-to-MLP distillation (Wu et al., AAAI 2023).

    .. math::
        \mathcal{L} = \frac{\lambda}{|L|} \sum_{v \in L} \mathrm{CE}(y_v, \sigma(\mathbf{s}_v))
        + (1 - \lambda) (\mathcal{L}_{\mathrm{low}} + \mathcal{L}_{\mathrm{high}})

    Low frequencies are what neighbours share: with every node as its own neighbour,

    .. math::
        \mathcal{L}_{\mathrm{low}} = \frac{1}{|E \cup I|} \sum_{(i,j) \in E \cup I}
        \mathrm{KL}(\sigma(\mathbf{t}_j) \,\|\, \sigma(\mathbf{s}_i))

    High frequencies are how they differ, as a distribution over the classes:

    .. math::
        \mathcal{L}_{\mathrm{high}} = \frac{1}{|E|} \sum_{(i,j) \in E} \mathrm{KL}(
        \sigma(|\mathbf{t}_i - \mathbf{t}_j| / \tau) \,\|\,
        \sigma(|\mathbf{s}_i - \mathbf{s}_j| / \tau))

    An epoch is one step over all observed nodes. Options beside those of
    :class:`~limbeck.methods.base.Method`:

    Args:
        label_weight: :math:`\lambda`, the weight of the hard labels, 0 to 1.
        temperature: :math:`\tau`, of the high frequencies only.
        batch_size: Nodes per step, each with all of the edges that end in it; ``None`` takes all
            at once, as the paper does.
    """

    name: ClassVar[str] = "ff-g2m"
    title: ClassVar[str] = "full-frequency distillation: what neighbours share and how they differ"
    paper: ClassVar[str] = "https://arxiv.org/abs/2305.10758"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "label_weight": (0.0, 0.1, 0.2, 0.4),
        "temperature": (0.6, 0.8, 1.0, 1.2),
    }

    batch_size: PositiveInt | None = None
    max_epochs: PositiveInt = 500
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
        """Train on both frequencies of the teacher's logits on the observed graph.

        Raises:
            TeacherError: There is no teacher to learn from.
        """
        if knowledge is None:
            raise TeacherError("method 'ff-g2m' learns from a teacher: give one.")
        student = self.build_mlp(view)
        inputs, y, teacher = inputs_of(view), training_labels(view), knowledge.logits
        known = inputs.observed
        log_teacher = F.log_softmax(teacher, dim=1)
        pairs = neighbor_pairs(view, self_loops=True)
        adj = neighbor_pairs(view, self_loops=False)
        observed = torch.arange(view.num_observed)

        def losses(epoch: int) -> Iterator[Tensor]:
            for nodes in batches(observed, self.batch_size):
                around, edge_index = edges_into(adj, nodes)  # [M], [2, E]
                logits = student(known.take(around))  # [M, C]
                own = logits[: len(nodes)]
                targets = PairTargets.along(take_rows(pairs, nodes), log_teacher)
                low = targets.divergence(F.log_softmax(own, dim=1))
                high = high_frequency_loss(logits, teacher[around], edge_index, self.temperature)
                hard = label_loss(own, nodes, y, len(view.train))
                yield self.label_weight * hard + (1 - self.label_weight) * (low + high)

        history = self.fit(
            student,
            losses,
            validation_accuracy(student, known, view),
            checkpoint=checkpoint,
            progress=progress,
        )
        return Distilled(student, history, inputs)


def high_frequency_loss(
    student: Tensor, teacher: Tensor, edge_index: Tensor, temperature: float
) -> Tensor:
    r"""Mean over edges of the divergence between differences across them, zero without edges.

    .. math::
        \mathrm{KL}(\sigma(|\mathbf{t}_i - \mathbf{t}_j| / \tau) \,\|\,
        \sigma(|\mathbf{s}_i - \mathbf{s}_j| / \tau))

    Args:
        student: Logits ``[N, C]``.
        teacher: Logits ``[N, C]``, without gradient.
        edge_index: int64 ``[2, E]``, without self-loops.
        temperature: :math:`\tau > 0`.
    """
    if edge_index.shape[1] == 0:
        return student.sum() * 0
    log_student = log_difference(student, edge_index, temperature)  # [E, C]
    log_teacher = log_difference(teacher, edge_index, temperature)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def log_difference(logits: Tensor, edge_index: Tensor, temperature: float) -> Tensor:
    r"""Log-probabilities ``[E, C]`` of :math:`\sigma(|\mathbf{z}_i - \mathbf{z}_j| / \tau)`."""
    source, target = edge_index
    difference = logits.index_select(0, target) - logits.index_select(0, source)
    return F.log_softmax(difference.abs() / temperature, dim=1)
