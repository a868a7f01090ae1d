"""Limbeck's own student: GLNN that hears what is known of a node's neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.graphs.info import TaskName
from limbeck.graphs.positions import Encoding, PositionOptions, positions_of
from limbeck.graphs.view import View
from limbeck.methods.base import (
    Distilled,
    Method,
    PositiveInt,
    Probability,
    Share,
    validation_accuracy,
)
from limbeck.methods.glnn import GLNN
from limbeck.methods.mlp import PlainMLP
from limbeck.students.inputs import inputs_of
from limbeck.students.mlp import MLP
from limbeck.students.neighbor_mlp import NeighborMLP
from limbeck.students.sa_mlp import AdjNorm
from limbeck.students.structure_tables import FullTable, StructureTable, TiedTable
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint
from limbeck.training.options import Options
from limbeck.training.tasks import task_of

Told = Literal["answers", "positions", "features", "rows"]
When = Literal["validated", "always"]


class Plain(Options):
    """How the MLP that a teacher has to beat is trained; see the options of that name there."""

    dropout: Probability = 0.0
    input_dropout: Probability = 0.0
    lr: float = Field(default=0.01, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)


class Alone(Plain):
    """How the GLNN of nodes without neighbours is trained; see the options of that name there."""

    label_weight: Share = 0.0
    temperature: float = Field(default=1.0, gt=0)


class Limbeck(GLNN):
    r"""GLNN whose first layer also reads what is known of a node's neighbours.

    A neighbour tells the teacher's answer for it,

    .. math::
        \mathbf{h}_i = \mathbf{W}_X \mathbf{x}_i + \mathbf{b}
        + \frac{1}{\deg_i} \sum_j A_{ij} \mathbf{V} \sigma(\mathbf{t}_j).

    Nobody tells of himself, so what is learnt of a known node holds for a new one. The loss is
    GLNN's. Nodes without neighbours are answered by GLNN itself, trained first. The bundle holds
    the finished rows :math:`\mathbf{V} \sigma(\mathbf{t}_j)`.

    A teacher that knows less of the validation nodes than a plain MLP teaches nothing: then both
    learn from labels alone.

    Where validation nodes can tell, neighbours are heard only if that is better on them; else the
    student is the MLP of nodes alone. They can where labels alone are learnt, and where no node is
    unseen: all nodes are like them then, their soft labels learnt. Of unseen nodes they say nothing
    once their own soft labels are learnt; there neighbours are always heard.

    No paper has it; what of it earned its place is in ``docs/methods/limbeck.md``. Options beside
    those of :class:`~limbeck.methods.glnn.GLNN`:

    Args:
        num_layers: Number of linear maps of either MLP, at least 2.
        told: What a neighbour tells, at least one of: the teacher's ``"answers"``, standardised
            ``"positions"``, ``"features"``, and ``"rows"``, learnt for each node.
        encoding: Which positions: ``"deepwalk"`` (needs the extra ``positions``) or ``"spectral"``.
        dim: Width of a position.
        adj_norm: Whether the sum over neighbours is divided by their number (``"row"``), its root
            (``"sqrt-degree"``), or not (``"none"``).
        alone: How the GLNN of nodes without neighbours is trained. By default with the options that
            the method is made with, but without hard labels; :meth:`replace` leaves it as it is.
        plain: How the plain MLP is trained; by default with the options that the method is made
            with, too.
        trust: Whether the teacher is heard only where it is ``"validated"``, or ``"always"``.
        hear: Whether neighbours are heard, where validation nodes can tell, only if it is
            ``"validated"``, or ``"always"``.
    """

    name: ClassVar[str] = "limbeck"
    title: ClassVar[str] = "ours: GLNN that hears the teacher's answers for its neighbours"
    paper: ClassVar[str] = "ours: docs/methods/limbeck.md"
    tasks: ClassVar[tuple[TaskName, ...]] = ("classes",)

    num_layers: Annotated[int, Field(ge=2)] = 2
    told: Annotated[tuple[Told, ...], Field(min_length=1)] = ("answers",)
    encoding: Encoding = "deepwalk"
    dim: PositiveInt = 64
    adj_norm: AdjNorm = "row"
    alone: Alone = Alone()
    plain: Plain = Plain()
    trust: When = "validated"
    hear: When = "validated"

    @model_validator(mode="before")
    @classmethod
    def _parts_as_made(cls, given: dict[str, Any]) -> dict[str, Any]:
        made = {
            "alone": set(given) & set(Alone.model_fields) - {"label_weight"},
            "plain": set(given) & set(Plain.model_fields),
        }
        parts = {part: {name: given[name] for name in names} for part, names in made.items()}
        for part in parts:
            named = given.get(part, {})
            if isinstance(named, Options):
                named = named.model_dump(exclude_unset=True)
            if not isinstance(named, Mapping):
                return given  # whatever it is, it is told what would be right
            parts[part] |= named
        return {**given, **parts}

    @field_validator("told")
    @classmethod
    def _told_once(cls, told: tuple[Told, ...]) -> tuple[Told, ...]:
        if len(set(told)) < len(told):
            raise PydanticCustomError("told_twice", "each part may be named once")
        return told

    def parts(self) -> dict[str, Method]:
        """GLNN of nodes alone and, where the teacher is validated, the MLP that it has to beat."""
        shared = {name: getattr(self, name) for name in Method.model_fields}
        parts: dict[str, Method] = {"alone": GLNN(**{**shared, **self.alone.model_dump()})}
        if self.trust == "validated":
            parts["plain"] = PlainMLP(**{**shared, **self.plain.model_dump()})
        return parts

    def distill(
        self,
        view: View,
        knowledge: Knowledge | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Train GLNN for nodes without neighbours, then the MLP of those that have some.

        Before both a plain MLP, to see whether the teacher is worth hearing. A run that is resumed
        trains again what was finished before the stage that it was stopped in, and goes on there.

        Raises:
            TeacherError: There is no teacher to learn from.
        """
        if knowledge is None:
            raise TeacherError("method 'limbeck' learns from a teacher: give one.")

        def stage(name: str) -> dict[str, Any]:
            return {
                "checkpoint": checkpoint and checkpoint.of_part(name),
                "progress": f"{progress}, {name}" if progress else None,
            }

        parts, plain = self.parts(), None
        if "plain" in parts:
            with torch.random.fork_rng(devices=[]):  # GLNN starts from the seed, to the bit
                plain = parts["plain"].distill(view, None, **stage("labels alone"))
        if plain is None or plain.history.best_score <= _teachers_score(view, knowledge):
            learner, alone = self, parts["alone"].distill(view, knowledge, **stage("alone"))
        else:
            learner, alone = self.replace(label_weight=1.0), plain
        inputs = inputs_of(view, neighbors=True)
        known = inputs.observed
        table = self.build_table(view, known.x, knowledge)
        student = NeighborMLP(self.build_mlp(view), cast(MLP, alone.student), table, self.adj_norm)
        student.alone.requires_grad_(False)
        among = self.fit(
            student,
            learner.losses(student, known, view, knowledge),
            validation_accuracy(student, known, view),
            **stage("among neighbours"),
        )
        student.alone.requires_grad_(True)
        asked = self.hear == "validated" and (alone is plain or not view.has_unseen)
        if asked and alone.history.best_score >= among.best_score:
            followed = alone.history.followed_by(among)
            found = Distilled(alone.student.eval(), followed, alone.inputs)
        else:
            found = Distilled(student.eval(), among.preceded_by(alone.history), inputs)
        if plain is None or plain is alone:
            return found
        return replace(found, history=found.history.preceded_by(plain.history))

    def build_table(self, view: View, x: Tensor, knowledge: Knowledge) -> StructureTable:
        """What each observed node tells, as a table.

        Args:
            view: What may be seen.
            x: Features of the observed nodes, ``[N, F]``, dense or CSR.
            knowledge: What the teacher says of them.
        """
        parts: list[Tensor] = []
        if "answers" in self.told:
            parts.append(knowledge.logits.softmax(1))
        if "positions" in self.told:
            options = PositionOptions(encoding=self.encoding, dim=self.dim)
            positions = positions_of(view, options).observed
            centred = positions - positions.mean(0)
            parts.append(centred / centred.std(0).clamp_min(1e-6))
        if "features" in self.told:
            parts.append(x.to_dense())
        if not parts:
            return FullTable(view.num_observed, self.hidden_channels)
        told = torch.cat(parts, dim=1)
        return TiedTable(told, self.hidden_channels, corrected="rows" in self.told)


def _teachers_score(view: View, knowledge: Knowledge) -> float:
    """What the teacher itself has of the validation nodes."""
    y_val = view.observed.y[view.val]
    return task_of(y_val).score(knowledge.logits[view.val], y_val)
