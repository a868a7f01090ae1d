r"""What is asked of a node, one class or several labels, and all that follows from it.

================  ================================  ==========================================
\                 one of ``C`` classes              any of ``C`` labels
================  ================================  ==========================================
``y``             int64 ``[N]``                     float32 ``[N, C]``, ones and zeros
probabilities     softmax over the classes          a sigmoid per label
labels' loss      cross-entropy                     binary cross-entropy, mean over the labels
teacher's loss    divergence from its probabilities binary cross-entropy with its probabilities
chosen by         accuracy                          micro-F1
================  ================================  ==========================================

Loops and methods ask the :class:`Task` that :func:`task_of` finds and are the same for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.graphs.info import TaskName

Reduction = Literal["mean", "sum"]


class Task(ABC):
    """What is asked of each node.

    ``logits`` are float32 ``[B, C]`` below, ``y`` are labels as a graph holds them, without hidden
    ones.
    """

    name: ClassVar[TaskName]
    metric: ClassVar[str]
    """What :meth:`score` is called in tables."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class or label, ``[B, C]``."""

    @abstractmethod
    def label_loss(self, logits: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
        """The loss of labels: its mean or its sum over the nodes."""

    @abstractmethod
    def soft_loss(self, logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """The loss of a teacher's answers, their mean over the nodes.

        Args:
            logits: The student's.
            teacher: The teacher's logits ``[B, C]``, without gradient.
            temperature: At which both are compared, above 0.
        """

    @abstractmethod
    def mixed_soft_loss(
        self, logits: Tensor, teachers: Tensor, attention: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """The loss of several teachers' answers, each counting as much as it is attended to.

        Args:
            logits: The student's.
            teachers: Logits ``[B, K, C]``, without gradient.
            attention: ``[B, K]``, without gradient.
            temperature: At which all are compared, above 0.
        """

    @abstractmethod
    def mixture(self, teachers: Tensor, attention: Tensor) -> Tensor:
        """Logits ``[B, C]`` of teachers' probabilities, averaged with the weights of an attention.

        Args:
            teachers: Logits ``[B, K, C]``.
            attention: ``[B, K]``, rows sum to one; it gets a gradient.
        """

    @abstractmethod
    def score(self, logits: Tensor, y: Tensor) -> float:
        """What checkpoints are chosen by, from 0 to 1."""


class OneClass(Task):
    """Each node is of one class."""

    name: ClassVar[TaskName] = "classes"
    metric: ClassVar[str] = "accuracy"

    def probabilities(self, logits: Tensor) -> Tensor:
        """The softmax of each row."""
        return logits.softmax(1)

    def label_loss(self, logits: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(logits, y, reduction=reduction)

    def soft_loss(self, logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        r"""Mean over nodes of :math:`\tau^2 \, \mathrm{KL}(\sigma(t/\tau) \,\|\, \sigma(s/\tau))`.

        The factor :math:`\tau^2` keeps the gradient's size when the temperature changes (Hinton et
        al., 2015); with :math:`\tau = 1`, GLNN's choice, it is the plain divergence.
        """
        log_student = F.log_softmax(logits / temperature, dim=1)
        log_teacher = F.log_softmax(teacher / temperature, dim=1)
        divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
        return divergence * temperature**2

    def mixed_soft_loss(
        self, logits: Tensor, teachers: Tensor, attention: Tensor, temperature: float = 1.0
    ) -> Tensor:
        r""":math:`\frac{\tau^2}{B} \sum_i \sum_k a_i^k \, \mathrm{KL}(\sigma(\mathbf{t}_i^k / \tau)
        \,\|\, \sigma(\mathbf{s}_i / \tau))`.
        """  # noqa: D205
        log_student = F.log_softmax(logits / temperature, dim=1).unsqueeze(1)
        log_teachers = F.log_softmax(teachers / temperature, dim=2)
        divergence = (log_teachers.exp() * (log_teachers - log_student)).sum(2)  # [B, K]
        return (attention * divergence).sum(1).mean() * temperature**2

    def mixture(self, teachers: Tensor, attention: Tensor) -> Tensor:
        """Log-probabilities are logits, too: their log-softmax is what they are."""
        return (attention.log().unsqueeze(2) + F.log_softmax(teachers, dim=2)).logsumexp(1)

    def score(self, logits: Tensor, y: Tensor) -> float:
        """Share of nodes whose largest logit is that of their class."""
        return float((logits.argmax(1) == y).float().mean())


class SeveralLabels(Task):
    """Each node has any number of labels, which do not exclude each other."""

    name: ClassVar[TaskName] = "labels"
    metric: ClassVar[str] = "micro-F1"

    def probabilities(self, logits: Tensor) -> Tensor:
        """The sigmoid of each logit."""
        return logits.sigmoid()

    def label_loss(self, logits: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Binary cross-entropy, its mean over a node's labels."""
        loss = F.binary_cross_entropy_with_logits(logits, y, reduction=reduction)
        return loss / logits.shape[1] if reduction == "sum" else loss

    def soft_loss(self, logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        r"""Mean over nodes and labels of :math:`\tau^2 \, \mathrm{BCE}(\sigma(t/\tau), s/\tau)`."""
        target = (teacher / temperature).sigmoid()
        loss = F.binary_cross_entropy_with_logits(logits / temperature, target)
        return loss * temperature**2

    def mixed_soft_loss(
        self, logits: Tensor, teachers: Tensor, attention: Tensor, temperature: float = 1.0
    ) -> Tensor:
        r"""Mean over nodes and labels of
        :math:`\tau^2 \sum_k a^k \, \mathrm{BCE}(\sigma(t^k / \tau), s / \tau)`: the loss of the
        mixed probabilities, as it is linear in its target.
        """  # noqa: D205
        student = (logits / temperature).unsqueeze(1).expand_as(teachers)
        targets = (teachers / temperature).sigmoid()
        loss = F.binary_cross_entropy_with_logits(student, targets, reduction="none")  # [B, K, C]
        return (attention * loss.mean(2)).sum(1).mean() * temperature**2

    def mixture(self, teachers: Tensor, attention: Tensor) -> Tensor:
        """The log-odds of each label under the mixture, without a probability that rounds to 0."""
        log_attention = attention.log().unsqueeze(2)
        log_yes = (log_attention + F.logsigmoid(teachers)).logsumexp(1)
        log_no = (log_attention + F.logsigmoid(-teachers)).logsumexp(1)
        return log_yes - log_no

    def score(self, logits: Tensor, y: Tensor) -> float:
        r"""Micro-F1 of the labels above one half, :math:`2\mathrm{TP} / (2\mathrm{TP} + \mathrm{FP}
        + \mathrm{FN})` over all nodes and labels; 0 where no node has a label or is given one.
        """  # noqa: D205
        answered, has = logits > 0, y > 0
        found = int((answered & has).sum())
        return 2 * found / max(int(answered.sum()) + int(has.sum()), 1)


ONE_CLASS = OneClass()
SEVERAL_LABELS = SeveralLabels()


def task_of(y: Tensor) -> Task:
    """The task that labels belong to.

    Args:
        y: int64 ``[N]`` for one class per node, float32 ``[N, C]`` for several labels. Some may be
            hidden (−1).
    """
    return SEVERAL_LABELS if y.dim() == 2 else ONE_CLASS


def labelled_rows(y: Tensor) -> Tensor:
    """Which nodes have labels that are not hidden, bool ``[N]``.

    Args:
        y: As for :func:`task_of`; a hidden row of several labels is −1 throughout.
    """
    return (y if y.dim() == 1 else y[:, 0]) >= 0


def hidden_like(y: Tensor, num_nodes: int) -> Tensor:
    """Labels of that many nodes, all hidden, in the form of ``y``."""
    return torch.full((num_nodes, *y.shape[1:]), -1, dtype=y.dtype)
