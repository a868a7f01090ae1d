"""MSKD: the local structure that several teachers see, each node choosing whom it follows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from limbeck.errors import OptionError, TeacherError
from limbeck.graphs.info import TaskName
from limbeck.graphs.view import View
from limbeck.methods.base import Distilled, PositiveInt, Share, validation_accuracy
from limbeck.methods.edges import label_loss, training_labels
from limbeck.methods.structure_options import StructureOptions
from limbeck.students.inputs import NodeInputs
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint
from limbeck.training.tasks import task_of

NAMED = ("node", "node_learned", "equal", "released")
_SINGLE = re.compile(r"single:([1-9][0-9]*)")


class MSKD(StructureOptions):
    r"""Multi-scale distillation from several teachers (Zhang et al., AAAI 2022).

    .. math::
        \mathcal{L} = \mathrm{CE} + \frac{\lambda}{|D|} \sum_{i \in D} \sum_k a_i^k D_i^k
        + \lambda_{kd} \frac{\tau^2}{|D|} \sum_{i \in D} \sum_k a_i^k \, \mathrm{KL}(
        \sigma(\mathbf{t}_i^k / \tau) \,\|\, \sigma(\mathbf{s}_i / \tau))

    with all observed nodes as ``D``, and :math:`D_i^k` the divergence of the student's local
    distribution from that of teacher ``k``, see :mod:`~limbeck.methods.local_structure`. Attention
    :math:`a_i` sums to one over the teachers and gets no gradient from these losses:

    ``"node"``
        :math:`\mathrm{softmax}_k(\cos(\mathbf{s}_i, \mathbf{t}_i^k) / \tau_a)` of the logits; in
        the first epochs all teachers count the same.
    ``"node_learned"``
        The same behind a perceptron :math:`\psi` of student and teachers alike, which learns from
        labels alone: :math:`\mathrm{CE}(y_i, \sum_k a_i^k \sigma(\mathbf{t}_i^k))`.
    ``"equal"``, ``"single:2"``
        All teachers count the same; the second one alone, which is LSP.
    ``"released"``
        One number per teacher, from the logits of the first step; see :func:`released_weights`.

    The ``"released"`` schedule asks one teacher after the other, and each for the first epochs of
    its phase only. What of this is the paper's, what its code's and what ours is written in
    ``docs/methods/mskd.md``. Where nodes have several labels, all losses of answers are binary
    cross-entropies. Options beside those of
    :class:`~limbeck.methods.structure_options.StructureOptions`:

    Args:
        attention: One of those above.
        attention_temperature: :math:`\tau_a` of ``"node"`` and ``"node_learned"``.
        uniform_share: Share of ``max_epochs`` in which ``"node"`` and ``"node_learned"`` count all
            teachers the same: an untrained student resembles no one.
        gate_channels: Width of :math:`\psi`.
        shuffled: Control: deal each step's attention anew among the nodes.
        schedule: ``"joint"``: all teachers in every epoch; ``"released"``: one after the other.
        phase_epochs: Epochs per teacher in the schedule ``"released"``; the last teacher keeps the
            epochs beyond.
        window: First epochs of a phase in which its teacher is asked; in the very first phase one
            more, as in the released code.
    """

    name: ClassVar[str] = "mskd"
    title: ClassVar[str] = "multi-scale distillation: teachers of several depths into a small GNN"
    paper: ClassVar[str] = "https://doi.org/10.1609/aaai.v36i4.20354"
    several_teachers: ClassVar[bool] = True
    tasks: ClassVar[tuple[TaskName, ...]] = ("classes", "labels")
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "attention_temperature": (0.05, 0.1, 0.2, 0.5, 1.0),
    }

    attention: str = "node"
    attention_temperature: float = Field(default=0.2, gt=0)
    uniform_share: Share = 0.1
    gate_channels: PositiveInt = 64
    shuffled: bool = False
    schedule: Literal["joint", "released"] = "joint"
    phase_epochs: PositiveInt = 500
    window: PositiveInt = 80

    @field_validator("attention")
    @classmethod
    def _known_attention(cls, attention: str) -> str:
        if attention not in NAMED and _SINGLE.fullmatch(attention) is None:
            raise PydanticCustomError(
                "unknown_attention",
                "choose from node, node_learned, equal, released, and single:1, single:2, ...",
            )
        return attention

    def distill(
        self,
        view: View,
        knowledge: Knowledge | Sequence[Knowledge] | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Train on labels and on the local structure that the teachers see.

        Args:
            view: What may be seen.
            knowledge: What each teacher says of the observed nodes.
            checkpoint: Where to keep the state of an unfinished run.
            progress: Label of the progress bar on stderr; ``None`` shows none.

        Returns:
            The student. Its record holds ``attention`` and ``divergence`` of the observed nodes,
            ``[observed, K]``, under the weights that were kept.

        Raises:
            TeacherError: There is no teacher to learn from, or one is only logits.
            OptionError: There is no such teacher as ``attention`` names, or the student has no
                hidden layer to compare.
        """
        teachers = (knowledge,) if isinstance(knowledge, Knowledge) else tuple(knowledge or ())
        if not teachers:
            raise TeacherError("method 'mskd' learns from teachers: give one or more.")
        student, inputs = self.build(view)
        known, y = inputs.observed, training_labels(view)
        neighborhoods = self.neighborhoods(view)
        log_probs = self.teacher_log_probs(teachers, neighborhoods)
        answers = torch.stack([teacher.logits for teacher in teachers], dim=1)  # [N, K, C]
        attend = self.build_attention(len(teachers), view.num_classes)
        learns = self.structure_weight > 0 or self.kd_weight > 0

        def losses(epoch: int) -> Iterator[Tensor]:
            active = self.active_teachers(epoch, len(teachers))
            warming = epoch < self.uniform_share * self.max_epochs
            for nodes, logits, divergence in self.steps(student, known, neighborhoods, log_probs):
                loss = label_loss(logits, nodes, y, len(view.train))
                if not learns:
                    yield loss
                    continue
                theirs = answers[nodes]
                a = attend(logits.detach(), theirs)  # [B, K]
                if isinstance(attend, LearnedAttention):
                    loss = loss + gate_loss(a, theirs, nodes, y, len(view.train))
                a = self._dealt(a.detach(), warming) * active
                if self.structure_weight > 0:
                    loss = loss + self.structure_weight * (a * divergence).sum(1).mean()
                if self.kd_weight > 0:
                    soft = task_of(y).mixed_soft_loss(logits, theirs, a, self.temperature)
                    loss = loss + self.kd_weight * soft
                yield loss

        history = self.fit(
            # the attention is part of the state that a resumed run needs
            torch.nn.ModuleDict({"student": student, "attention": attend}),
            losses,
            validation_accuracy(student, known, view),
            checkpoint=checkpoint,
            progress=progress,
        )
        record = self._record(student, attend, known, answers, log_probs, view) if learns else {}
        return Distilled(student, history, inputs, record)

    def build_attention(self, num_teachers: int, num_classes: int) -> Attention:
        """Who attends to the teachers, fresh; random numbers are left as they were.

        Raises:
            OptionError: There is no such teacher as ``attention`` names.
        """
        if self.attention == "node":
            return Attention(self.attention_temperature)
        if self.attention == "node_learned":
            with torch.random.fork_rng():
                return LearnedAttention(num_classes, self.gate_channels, self.attention_temperature)
        if self.attention == "released":
            return ReleasedAttention(num_teachers, self.structure_weight)
        if self.attention == "equal":
            return FixedAttention(torch.full((num_teachers,), 1 / num_teachers))
        chosen = int(self.attention.removeprefix("single:"))
        if chosen > num_teachers:
            raise OptionError(
                f"option 'attention' is {self.attention!r}, but there are {num_teachers} teachers: "
                "they are counted from 1."
            )
        return FixedAttention(F.one_hot(torch.tensor(chosen - 1), num_teachers).float())

    def active_teachers(self, epoch: int, num_teachers: int) -> Tensor:
        """Which teachers are asked in an epoch, counted from 0: ones and zeros, ``[K]``."""
        if self.schedule == "joint":
            return torch.ones(num_teachers)
        active = torch.zeros(num_teachers)
        phase, within = divmod(epoch, self.phase_epochs)
        if phase < num_teachers and (within < self.window or epoch == self.window):
            active[phase] = 1.0
        return active

    def _dealt(self, attention: Tensor, warming: bool) -> Tensor:
        """The attention ``[B, K]`` that counts: even while warming up, shuffled as a control."""
        if warming and self.attention in ("node", "node_learned"):
            return torch.full_like(attention, 1 / attention.shape[1])
        return attention[torch.randperm(len(attention))] if self.shuffled else attention

    @torch.no_grad()
    def _record(
        self,
        student: torch.nn.Module,
        attend: Attention,
        known: NodeInputs,
        answers: Tensor,
        log_probs: Tensor,
        view: View,
    ) -> dict[str, Tensor]:
        whole = self.replace(batch_size=None)
        (step,) = whole.steps(student, known, self.neighborhoods(view), log_probs)
        attention = attend(step.logits, answers)
        return {"attention": attention, "divergence": step.divergence}


# -- who attends to whom -------------------------------------------------------------------


def cosine_attention(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    r"""Attention :math:`\mathrm{softmax}_k(\cos(\mathbf{q}_i, \mathbf{k}_i^k) / \tau)`, ``[B, K]``.

    Scaling a teacher's logits changes nothing, so one that is merely confident gains nothing.

    Args:
        queries: Of the student, ``[B, m]``.
        keys: Of the teachers, ``[B, K, m]``.
        temperature: :math:`\tau`.
    """
    lengths = queries.norm(dim=1, keepdim=True) * keys.norm(dim=2)  # [B, K]
    cosine = (queries.unsqueeze(1) * keys).sum(2) / (lengths + 1e-8)
    attention: Tensor = (cosine / temperature).softmax(1)
    return attention


def released_weights(student: Tensor, teachers: Tensor, weight: float) -> Tensor:
    r"""The weights of the released code, one per teacher, ``[K]``.

    .. math::
        A_k = \frac{1}{C^2} \sum_i \Big( \sum_c s_{ic} \Big) \Big( \sum_c t^k_{ic} \Big), \qquad
        r_k = \frac{A_k}{\sum_m A_m}, \qquad
        w_k = \mathrm{round}_2 \big( \lambda \, \mathrm{softmax}_k(r) \big)

    Args:
        student: Logits of the untrained student ``[B, C]``.
        teachers: Logits ``[B, K, C]``.
        weight: :math:`\lambda`.

    Raises:
        OptionError: The :math:`A_k` cancel, so that nothing is defined.
    """
    products = torch.einsum("b,bk->k", student.sum(1), teachers.sum(2)) / student.shape[1] ** 2
    weights = weight * (products / products.sum()).softmax(0)
    if not bool(torch.isfinite(weights).all()):
        raise OptionError(
            "attention 'released' is not defined here, as the teachers' similarities to the "
            "student cancel: choose another attention."
        )
    return (100 * weights).round() / 100


class Attention(torch.nn.Module):
    """How much each teacher counts for each node: by the cosine of logits.

    Args:
        temperature: Of the softmax over teachers.

    Shapes:
        - **input:** student's logits ``[B, C]``, without gradient; teachers' ``[B, K, C]``
        - **output:** ``[B, K]``, rows sum to one
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Tensor, teachers: Tensor) -> Tensor:
        """The attention of some nodes."""
        return cosine_attention(student, teachers, self.temperature)


class LearnedAttention(Attention):
    r"""The same behind a perceptron that student and teachers share.

    .. math::
        \psi(\mathbf{z}) = \mathbf{W}_2 \, \mathrm{ReLU}(\mathbf{W}_1 \mathbf{z} + \mathbf{b}_1)
        + \mathbf{b}_2

    Args:
        num_classes: ``C``.
        channels: Width of both layers.
        temperature: Of the softmax over teachers.
    """

    def __init__(self, num_classes: int, channels: int, temperature: float) -> None:
        super().__init__(temperature)
        self.psi = torch.nn.Sequential(
            torch.nn.Linear(num_classes, channels),
            torch.nn.ReLU(),
            torch.nn.Linear(channels, channels),
        )

    def forward(self, student: Tensor, teachers: Tensor) -> Tensor:
        """The attention of some nodes, with gradient for the perceptron."""
        return cosine_attention(self.psi(student), self.psi(teachers), self.temperature)


class FixedAttention(Attention):
    """The same weights for all nodes.

    Args:
        weights: One per teacher, ``[K]``.
    """

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, student: Tensor, teachers: Tensor) -> Tensor:
        """The weights, a row per node."""
        return self.weights.expand(len(student), -1)


class ReleasedAttention(FixedAttention):
    r"""The released code's weights: computed on the first nodes seen, and never again.

    Rows sum to one up to the rounding of :math:`w_k`: multiplied with :math:`\lambda` they are
    :func:`released_weights`.

    Args:
        num_teachers: ``K``.
        structure_weight: :math:`\lambda`.
    """

    def __init__(self, num_teachers: int, structure_weight: float) -> None:
        super().__init__(torch.full((num_teachers,), torch.nan))
        # weights that are rounded need a size; without a structure loss it is the paper's own
        self.scale = structure_weight or 7.0

    def forward(self, student: Tensor, teachers: Tensor) -> Tensor:
        """The weights, a row per node."""
        if bool(self.weights.isnan().any()):
            self.weights = released_weights(student, teachers, self.scale) / self.scale
        return super().forward(student, teachers)


# -- losses ---------------------------------------------------------------------------------


def gate_loss(
    attention: Tensor, teachers: Tensor, nodes: Tensor, y: Tensor, num_train: int
) -> Tensor:
    r"""Cross-entropy of the training nodes under the mixture :math:`\sum_k a_i^k \sigma(t_i^k)`.

    Args:
        attention: ``[B, K]``, with gradient.
        teachers: Logits ``[B, K, C]``.
        nodes: Which observed nodes they are, int64 ``[B]``.
        y: From :func:`~limbeck.methods.edges.training_labels`.
        num_train: Number of training nodes.
    """
    return label_loss(task_of(y).mixture(teachers, attention), nodes, y, num_train)
