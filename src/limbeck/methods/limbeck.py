"""Limbeck's own student: GLNN that hears what is known of a node's neighbours."""

from __future__ import annotations

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
    PositiveInt,
    Probability,
    Share,
    validation_accuracy,
)
from limbeck.methods.glnn import GLNN
from limbeck.students.inputs import inputs_of
from limbeck.students.mlp import MLP
from limbeck.students.neighbor_mlp import NeighborMLP
from limbeck.students.sa_mlp import AdjNorm
from limbeck.students.structure_tables import FullTable, StructureTable, TiedTable
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint
from limbeck.training.options import Options

Told = Literal["answers", "positions", "features", "rows"]


class Alone(Options):
    """How the GLNN of nodes without neighbours is trained; see the options of that name there."""

    dropout: Probability = 0.0
    input_dropout: Probability = 0.0
    lr: float = Field(default=0.01, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    label_weight: Share = 0.0
    temperature: float = Field(default=1.0, gt=0)


class Limbeck(GLNN):
    r"""GLNN whose first layer also reads what is known of a node's neighbours.

    A neighbour tells the teacher's answer for it and where it stands in the graph,

    .. math::
        \mathbf{h}_i = \mathbf{W}_X \mathbf{x}_i + \mathbf{b}
        + \frac{1}{\deg_i} \sum_j A_{ij} \mathbf{V} [\sigma(\mathbf{t}_j) ; \tilde{\mathbf{p}}_j],

    with standardised positions :math:`\tilde{\mathbf{p}}`. Nobody tells of himself, so what is
    learnt of a known node holds for a new one. The loss is GLNN's. Nodes without neighbours are
    answered by GLNN itself, trained first. The bundle holds the finished rows
    :math:`\mathbf{V}[\cdot]`. No paper has it; what of it earned its place is in
    ``docs/methods/limbeck.md``. Options beside those of :class:`~limbeck.methods.glnn.GLNN`:

    Args:
        num_layers: Number of linear maps of either MLP, at least 2.
        told: What a neighbour tells, at least one of: the teacher's ``"answers"``,
            ``"positions"``, ``"features"``, and ``"rows"``, learnt for each node.
        encoding: Which positions: ``"deepwalk"`` (needs the extra ``positions``) or ``"spectral"``.
        dim: Width of a position.
        adj_norm: Whether the sum over neighbours is divided by their number (``"row"``), its root
            (``"sqrt-degree"``), or not (``"none"``).
        alone: How the GLNN of nodes without neighbours is trained. By default with the options that
            the method is made with, but without hard labels; :meth:`replace`, and with it a search,
            which judges nodes among neighbours, leaves it as it is.
    """

    name: ClassVar[str] = "limbeck"
    title: ClassVar[str] = "ours: GLNN that hears its neighbours' positions and teacher's answers"
    paper: ClassVar[str] = "ours: docs/methods/limbeck.md"
    tasks: ClassVar[tuple[TaskName, ...]] = ("classes",)
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "told": (("answers", "positions"), ("answers", "positions", "rows")),
        "label_weight": (0.0, 0.1, 0.5),
    }

    num_layers: Annotated[int, Field(ge=2)] = 2
    told: Annotated[tuple[Told, ...], Field(min_length=1)] = ("answers", "positions")
    encoding: Encoding = "deepwalk"
    dim: PositiveInt = 64
    adj_norm: AdjNorm = "row"
    alone: Alone = Alone()

    @model_validator(mode="before")
    @classmethod
    def _alone_as_made(cls, given: dict[str, Any]) -> dict[str, Any]:
        if "alone" in given:
            return given
        taken = set(given) & set(Alone.model_fields) - {"label_weight"}
        return {**given, "alone": {name: given[name] for name in taken}}

    @field_validator("told")
    @classmethod
    def _told_once(cls, told: tuple[Told, ...]) -> tuple[Told, ...]:
        if len(set(told)) < len(told):
            raise PydanticCustomError("told_twice", "each part may be named once")
        return told

    def distill(
        self,
        view: View,
        knowledge: Knowledge | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Train GLNN for nodes without neighbours, then the MLP of those that have some.

        A run that is resumed trains GLNN again where that was finished, and goes on in the second.

        Raises:
            TeacherError: There is no teacher to learn from.
        """
        if knowledge is None:
            raise TeacherError("method 'limbeck' learns from a teacher: give one.")
        by_itself = {name: getattr(self, name) for name in GLNN.model_fields}
        alone = GLNN(**{**by_itself, **self.alone.model_dump()}).distill(
            view,
            knowledge,
            checkpoint=checkpoint and checkpoint.of_part("alone"),
            progress=f"{progress}, alone" if progress else None,
        )
        inputs = inputs_of(view, neighbors=True)
        known = inputs.observed
        table = self.build_table(view, known.x, knowledge)
        student = NeighborMLP(self.build_mlp(view), cast(MLP, alone.student), table, self.adj_norm)
        student.alone.requires_grad_(False)
        among = self.fit(
            student,
            self.losses(student, known, view, knowledge),
            validation_accuracy(student, known, view),
            checkpoint=checkpoint and checkpoint.of_part("among neighbours"),
            progress=progress,
        )
        student.alone.requires_grad_(True)
        return Distilled(student.eval(), alone.history.followed_by(among), inputs)

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
