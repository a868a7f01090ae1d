"""What the methods whose student is made of experts share: options, losses, the epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from limbeck.graphs.sparse import take_rows
from limbeck.graphs.view import View
from limbeck.methods.base import PositiveInt, Share
from limbeck.methods.edges import PairTargets, neighbor_pairs
from limbeck.methods.losses import soft_target_loss
from limbeck.methods.reliability import Reliability
from limbeck.methods.structure import StructureOptions, TeacherSimilarity
from limbeck.students.experts import ExpertStudent, Routing
from limbeck.students.inputs import NodeInputs
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import batches

Weight = Annotated[float, Field(ge=0)]


class ExpertOptions(StructureOptions):
    """Options of the methods whose student is made of experts.

    Those of :class:`~limbeck.methods.structure.StructureOptions` are off unless asked for.

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
        reliable_sampling: Learn from the teacher at neighbours, too, drawn anew in each epoch by
            :class:`~limbeck.methods.reliability.Reliability`, as KRD does.
        reliability_epochs: Epochs before the sampler is first refitted.
        reliability_momentum: Share of its old power that a refit keeps.
    """

    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "label_weight": (0.0, 0.1, 0.2, 0.4),
        "temperature": (0.6, 0.8, 1.0, 1.2),
    }

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
    reliable_sampling: bool = False
    reliability_epochs: Annotated[int, Field(ge=0)] = 50
    reliability_momentum: Share = 0.99

    @field_validator("top_k")
    @classmethod
    def _leaves_an_expert_out(cls, top_k: int, info: ValidationInfo) -> int:
        num_experts = info.data.get("num_experts")
        if num_experts is not None and top_k >= num_experts:
            raise PydanticCustomError(
                "top_k", "it must be below num_experts, {n}", {"n": num_experts}
            )
        return top_k

    def soft_loss(
        self, logits: Tensor, nodes: Tensor, log_teacher: Tensor, pairs: Tensor | None
    ) -> Tensor:
        r"""The soft labels' loss of a batch, in the chosen ``kd_mode``.

        With pairs it is the mean over all pairs :math:`(i, j)` of the batch's nodes :math:`i` of
        what the student at ``i`` loses on the teacher at ``j``; without, each node is its own
        teacher.

        Args:
            logits: The student's ``[B, C]``.
            nodes: Which observed nodes they are, int64 ``[B]``.
            log_teacher: The teacher's log-probabilities ``[observed, C]``.
            pairs: CSR ``[observed, observed]``, how often each pair counts; or ``None``.
        """
        tau = self.temperature
        if self.kd_mode == "official":
            if pairs is None:
                return sharpened_target_loss(logits, log_teacher[nodes], tau)
            targets = PairTargets.along(take_rows(pairs, nodes), log_teacher / tau)
            return targets.divergence(F.log_softmax(logits, dim=1) / tau)
        if pairs is None:
            return soft_target_loss(logits, log_teacher[nodes], tau)
        tempered = F.log_softmax(log_teacher / tau, dim=1)
        targets = PairTargets.along(take_rows(pairs, nodes), tempered)
        return targets.divergence(F.log_softmax(logits / tau, dim=1)) * tau**2


class ExpertLessons(torch.nn.Module):
    r"""The losses of an epoch, for a student made of experts.

    A pass over the labelled nodes and one over all observed nodes,

    .. math::
        \lambda \, \mathrm{CE} + \mathcal{L}_{aux} + \mu \, \mathcal{L}_{sim}
        \qquad \text{and} \qquad
        (1 - \lambda) \, \mathcal{L}_{kd} + \mathcal{L}_{aux},

    and both again, times :math:`\omega`, on adversarial inputs, where no similarities are
    compared. The auxiliary loss comes once per batch of either kind, not scaled by
    :math:`\lambda`. The ascent looks for inputs at which the plain cross-entropy, or the
    divergence at temperature one from the node's own teacher, is large together with the
    auxiliary loss; the student stays in training mode, so that its memories move in every step of
    it, as in the released code.

    It is a module of all that is trained or remembered: the student, the map of the similarity
    loss, the power of the sampler.

    Args:
        options: The method's options.
        student: The student.
        inputs: Inputs of the observed nodes.
        view: What may be seen.
        knowledge: What the teacher says of the observed nodes.
        auxiliary_loss: Loss of the routing of one batch.

    Raises:
        TeacherError: The teacher has no hidden layer to compare, or is only logits and cannot be
            asked under noise.
    """

    def __init__(
        self,
        options: ExpertOptions,
        student: ExpertStudent,
        inputs: NodeInputs,
        view: View,
        knowledge: Knowledge,
        auxiliary_loss: Callable[[list[Routing]], Tensor],
    ) -> None:
        super().__init__()
        self.options = options
        self.student = student
        self.similarity: TeacherSimilarity | None = None
        if options.similarity_weight > 0:
            width = options.hidden_channels if options.num_layers > 1 else view.num_classes
            self.similarity = TeacherSimilarity(knowledge, width, options.dropout, options.name)
        self.reliability: Reliability | None = None
        self._pairs: Tensor | None = None
        if options.reliable_sampling:
            momentum = options.reliability_momentum
            self.reliability = Reliability.of(knowledge, options.name, momentum)
            self._pairs = neighbor_pairs(view, self_loops=True)
        self._inputs = inputs
        self._train, self._y = view.train, view.observed.y
        self._log_teacher = F.log_softmax(knowledge.logits, dim=1)
        self._auxiliary_loss = auxiliary_loss

    def epoch(self, epoch: int) -> Iterator[Tensor]:
        """The losses of an epoch, one per step."""
        pairs = self._draw(epoch)
        if self.options.steps == "batch":
            yield from self._terms(pairs)
        else:
            yield torch.stack(list(self._terms(pairs))).sum()

    def _draw(self, epoch: int) -> Tensor | None:
        """The pairs of this epoch; ``None`` where no neighbours are asked.

        The sampler is first moved to where student and teacher agree by now.
        """
        if self.reliability is None or self._pairs is None:
            return None
        if epoch >= self.options.reliability_epochs:
            self.student.eval()
            with torch.no_grad():
                predicted = self.student(self._inputs).argmax(1)
            self.student.train()
            self.reliability.refit(predicted == self._log_teacher.argmax(1))
        return self.reliability.draw(self._pairs)

    def _terms(self, pairs: Tensor | None) -> Iterator[Tensor]:
        options = self.options
        cut = batches if options.steps == "batch" else whole_batches
        observed = torch.arange(len(self._inputs))
        for adversarial in [False, True] if options.adversarial_weight > 0 else [False]:
            for nodes in cut(self._train, options.batch_size):
                yield self._on_labels(nodes, adversarial)
            for nodes in cut(observed, options.batch_size):
                yield self._on_teacher(nodes, pairs, adversarial)

    def _on_labels(self, nodes: Tensor, adversarial: bool) -> Tensor:
        options, y = self.options, self._y[nodes]

        def hard(inputs: NodeInputs, weight: float = 1.0) -> Tensor:
            logits, routings, _ = self.student.trace(inputs)
            return weight * F.cross_entropy(logits, y) + self._auxiliary_loss(routings)

        batch = self._inputs.take(nodes)
        if adversarial:
            worst = options.adversarial_inputs(hard, batch)
            return options.adversarial_weight * hard(worst, options.label_weight)
        logits, routings, embedding = self.student.trace(batch)
        loss = options.label_weight * F.cross_entropy(logits, y) + self._auxiliary_loss(routings)
        if self.similarity is not None:
            loss = loss + options.similarity_weight * self.similarity(embedding, nodes)
        return loss

    def _on_teacher(self, nodes: Tensor, pairs: Tensor | None, adversarial: bool) -> Tensor:
        options = self.options

        def divergence(inputs: NodeInputs) -> Tensor:
            logits, routings, _ = self.student.trace(inputs)
            own = soft_target_loss(logits, self._log_teacher[nodes])
            return own + self._auxiliary_loss(routings)

        batch = self._inputs.take(nodes)
        if adversarial:
            batch = options.adversarial_inputs(divergence, batch)
        logits, routings, _ = self.student.trace(batch)
        soft = options.soft_loss(logits, nodes, self._log_teacher, pairs)
        loss = (1 - options.label_weight) * soft + self._auxiliary_loss(routings)
        return options.adversarial_weight * loss if adversarial else loss


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
