"""What the methods whose student is made of experts share: options and the distillation loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from limbeck.graphs.view import View
from limbeck.methods.base import Method, PositiveInt, Share
from limbeck.methods.losses import soft_target_loss
from limbeck.students.experts import ExpertStudent, Routing
from limbeck.students.inputs import NodeInputs
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import batches

Weight = Annotated[float, Field(ge=0)]


class ExpertOptions(Method):
    """Options of the methods whose student is made of experts.

    Args:
        batch_size: Nodes per forward pass; ``None`` takes all at once.
        max_epochs: Largest number of epochs, not counting those of pretraining.
        num_experts: Experts per layer, at least 2.
        top_k: Experts per node and layer, fewer than ``num_experts``.
        init_scale: Number that each layer's output is multiplied with at first; it is trained.
        pretrain_epochs: Epochs before the student routes. Their validation scores count neither as
            the best nor against ``patience``.
        steps: ``"epoch"`` makes one step of Adam per epoch, on the sum over all batches, as the
            released code does; ``"batch"`` makes one per shuffled batch.
        label_weight: Weight of the hard labels, 0 to 1; the soft ones have the rest.
        temperature: At which teacher and student are compared.
        kd_mode: ``"official"`` for :func:`sharpened_target_loss`, which the released code uses and
            its temperatures were chosen with; ``"tempered"`` for
            :func:`~limbeck.methods.losses.soft_target_loss`.
    """

    batch_size: PositiveInt | None = 4096
    max_epochs: PositiveInt = 500
    num_experts: Annotated[int, Field(ge=2)] = 4
    top_k: Annotated[int, Field(ge=1, validate_default=True)] = 3
    init_scale: float = Field(default=2.0, gt=0, le=100)
    pretrain_epochs: Annotated[int, Field(ge=0)] = 10
    steps: Literal["epoch", "batch"] = "epoch"
    label_weight: Share = 0.0
    temperature: float = Field(default=1.0, gt=0)
    kd_mode: Literal["official", "tempered"] = "official"

    @field_validator("top_k")
    @classmethod
    def _leaves_an_expert_out(cls, top_k: int, info: ValidationInfo) -> int:
        num_experts = info.data.get("num_experts")
        if num_experts is not None and top_k >= num_experts:
            raise PydanticCustomError(
                "top_k", "it must be below num_experts, {n}", {"n": num_experts}
            )
        return top_k

    def epoch_losses(
        self,
        student: ExpertStudent,
        inputs: NodeInputs,
        view: View,
        knowledge: Knowledge,
        auxiliary_loss: Callable[[list[Routing]], Tensor],
    ) -> Iterator[Tensor]:
        r"""The losses of one epoch: a pass over the labelled nodes, then one over all observed.

        .. math::
            \lambda \, \mathrm{CE} + \mathcal{L}_{aux} \qquad \text{and} \qquad
            (1 - \lambda) \, \mathcal{L}_{kd} + \mathcal{L}_{aux}

        with the auxiliary loss once per batch of either kind, not scaled by :math:`\lambda`.

        Args:
            student: The student, in training.
            inputs: Inputs of the observed nodes.
            view: What may be seen.
            knowledge: What the teacher says of the observed nodes.
            auxiliary_loss: Loss of the routing of one batch.
        """
        y, log_teacher = view.observed.y, F.log_softmax(knowledge.logits, dim=1)
        cut = batches if self.steps == "batch" else whole_batches

        def terms() -> Iterator[Tensor]:
            for nodes in cut(view.train, self.batch_size):
                logits, routings = student.trace(inputs.take(nodes))
                hard = F.cross_entropy(logits, y[nodes])
                yield self.label_weight * hard + auxiliary_loss(routings)
            for nodes in cut(torch.arange(view.num_observed), self.batch_size):
                logits, routings = student.trace(inputs.take(nodes))
                soft = self.distillation_loss(logits, log_teacher[nodes])
                yield (1 - self.label_weight) * soft + auxiliary_loss(routings)

        if self.steps == "batch":
            yield from terms()
        else:
            yield torch.stack(list(terms())).sum()

    def distillation_loss(self, logits: Tensor, log_teacher: Tensor) -> Tensor:
        """The soft labels' loss of the chosen ``kd_mode``.

        Args:
            logits: The student's ``[B, C]``.
            log_teacher: The teacher's log-probabilities ``[B, C]``.
        """
        if self.kd_mode == "official":
            return sharpened_target_loss(logits, log_teacher, self.temperature)
        return soft_target_loss(logits, log_teacher, self.temperature)


def sharpened_target_loss(logits: Tensor, log_teacher: Tensor, temperature: float) -> Tensor:
    r"""The distillation loss of RbM's released code.

    .. math::
        \frac{1}{B} \sum_v \sum_c p_{vc}^{1/\tau} \, \frac{\log p_{vc} - \log q_{vc}}{\tau}

    Neither side is normalised again: the teacher :math:`p` is sharpened or softened, the student
    :math:`q` is not, and a node weighs :math:`\frac{1}{\tau} \sum_c p_c^{1/\tau}`, which for
    :math:`\tau > 1` is more where the teacher is unsure. The value can be negative. With
    :math:`\tau = 1` it is the plain divergence.

    Args:
        logits: The student's ``[B, C]``.
        log_teacher: :math:`\log p`, the teacher's log-probabilities ``[B, C]``, without gradient.
        temperature: :math:`\tau > 0`.
    """
    target = (log_teacher / temperature).exp()
    divergence = target * (log_teacher - F.log_softmax(logits, dim=1)) / temperature
    return divergence.sum(1).mean()


def whole_batches(nodes: Tensor, batch_size: int | None) -> Iterator[Tensor]:
    """Cut ``nodes`` into batches in their order; a last batch of one node is left out.

    ``None`` gives all nodes in one batch.
    """
    for batch in torch.split(nodes, batch_size or max(len(nodes), 1)):
        if len(batch) > 1 or len(nodes) == 1:
            yield batch
