"""KRD: learn from the teacher at one's neighbours, more often where it can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

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
from limbeck.methods.edges import PairTargets, label_loss, neighbor_pairs, training_labels
from limbeck.methods.reliability import Reliability
from limbeck.students.inputs import inputs_of
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint, batches


class KRD(Method):
    r"""Knowledge-inspired reliable distillation (Wu et al., ICML 2023).

    .. math::
        \mathcal{L} = \frac{\lambda}{|L|} \sum_{v \in L} \mathrm{CE}(y_v, \sigma(\mathbf{s}_v))
        + \frac{1 - \lambda}{|P|} \sum_{(i,j) \in P} \mathrm{KL}(
        \sigma(\mathbf{t}_j / \tau) \,\|\, \sigma(\mathbf{s}_i / \tau))

    where :math:`P` holds every node with itself and each edge from a neighbour ``j`` to a node
    ``i`` with the probability :math:`p_j = 1 - \delta_j^{\alpha}`, drawn anew in each epoch; see
    :class:`~limbeck.methods.reliability.Reliability`. In the first epochs all edges are in it.
    An epoch is one step over all observed nodes. Options beside those of
    :class:`~limbeck.methods.base.Method`:

    Args:
        label_weight: :math:`\lambda`, the weight of the hard labels, 0 to 1.
        temperature: :math:`\tau`, at which both distributions are compared.
        warmup_epochs: Epochs that distil along all edges before any is drawn.
        momentum: Share of the old power :math:`\alpha` that a refit keeps, 0 to 1.
        refit_every: Epochs from one refit of :math:`\alpha` to the next.
        batch_size: Nodes per step, each with all of its pairs; ``None`` takes all at once, as the
            paper does.
    """

    name: ClassVar[str] = "krd"
    title: ClassVar[str] = "reliable distillation: soft labels of neighbours that can be trusted"
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.05628"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "label_weight": (0.0, 0.1, 0.2, 0.4),
        "temperature": (0.6, 0.8, 1.0, 1.2),
    }

    batch_size: PositiveInt | None = None
    max_epochs: PositiveInt = 500
    label_weight: Share = 0.0
    temperature: float = Field(default=1.0, gt=0)
    warmup_epochs: Annotated[int, Field(ge=0)] = 49
    momentum: Share = 0.99
    refit_every: PositiveInt = 1

    def distill(
        self,
        view: View,
        knowledge: Knowledge | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Train on the soft labels of all observed nodes and of reliable neighbours.

        Raises:
            TeacherError: There is no teacher to learn from, or it is only logits.
        """
        if knowledge is None:
            raise TeacherError("method 'krd' learns from a teacher: give one.")
        reliability = Reliability.of(knowledge, self.name, self.momentum)
        student = self.build_mlp(view)
        inputs, y = inputs_of(view), training_labels(view)
        known = inputs.observed
        log_teacher = F.log_softmax(knowledge.logits / self.temperature, dim=1)
        predicted = knowledge.logits.argmax(1)
        pairs = neighbor_pairs(view, self_loops=True)
        observed = torch.arange(view.num_observed)

        def refit() -> None:
            student.eval()
            with torch.no_grad():
                reliability.refit(student(known).argmax(1) == predicted)
            student.train()

        def losses(epoch: int) -> Iterator[Tensor]:
            drawn = pairs
            if epoch >= self.warmup_epochs:
                if (epoch - self.warmup_epochs) % self.refit_every == 0:
                    refit()
                drawn = reliability.draw(pairs)
            for nodes in batches(observed, self.batch_size):
                logits = student(known.take(nodes))
                targets = PairTargets.along(take_rows(drawn, nodes), log_teacher)
                soft = targets.divergence(F.log_softmax(logits / self.temperature, dim=1))
                hard = label_loss(logits, nodes, y, len(view.train))
                yield self.label_weight * hard + (1 - self.label_weight) * soft

        history = self.fit(
            # the sampler's power is part of the state that a resumed run needs
            torch.nn.ModuleDict({"student": student, "reliability": reliability}),
            losses,
            validation_accuracy(student, known, view),
            checkpoint=checkpoint,
            progress=progress,
        )
        return Distilled(student, history, inputs)
