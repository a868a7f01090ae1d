"""One distillation under the protocol: train, select on validation, score the test nodes once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.errors import OptionError, TeacherError
from limbeck.evaluation.calibration import fit_temperature
from limbeck.evaluation.cascade import DeferGoal, fit_cascade, stored_teacher
from limbeck.evaluation.metrics import (
    accuracy,
    cut_consistency,
    expected_calibration_error,
    main_score,
    score,
)
from limbeck.evaluation.slices import score_slices
from limbeck.evaluation.statistics import node_statistics
from limbeck.export.bundle import export_bundle
from limbeck.export.int8 import Quantization
from limbeck.graphs.cache import cache_folder
from limbeck.graphs.hetero import edges_for
from limbeck.graphs.profile import num_neighbors
from limbeck.graphs.sparse import take_rows
from limbeck.graphs.view import View
from limbeck.methods import Method
from limbeck.runtime.cascade import TEACHER_LOGITS
from limbeck.runtime.predictor import BundledStudent
from limbeck.students.gnn import GNNStudent, full_batch
from limbeck.students.inputs import NodeInputs, Surroundings, ViewInputs, stack_rows
from limbeck.teachers.knowledge import Answers, FittedTeacher
from limbeck.teachers.own import Teacher, TeacherSource, knowledge_from
from limbeck.training.loop import Checkpoint, History, seeded
from limbeck.training.tasks import task_of

if TYPE_CHECKING:
    from limbeck.evaluation.choice import Choice

EVAL_BLOCK = 16_384
"""Nodes per forward pass in evaluation."""

Scores = dict[str, Any]
Condition = Literal["observed", "unseen", "isolated"]
OneTeacher: TypeAlias = FittedTeacher | TeacherSource | torch.nn.Module | Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """Some test nodes and everyone's answers for them.

    Args:
        share: Weight of this part in the setting's score; the parts' shares sum to one.
        nodes: Nodes of ``view.everything``, int64 ``[T]``.
        student: The student's logits ``[T, C]``.
        teacher: The teacher's logits ``[T, C]``, or ``None`` where it has no answer.
    """

    share: float
    nodes: Tensor
    student: Tensor
    teacher: Tensor | None


@dataclass(frozen=True, eq=False)
class Run:
    """A student with what it was distilled from and how well it does.

    Args:
        view: What was observed.
        method: The method with its hyper-parameters.
        teacher: The teacher, ``None`` for a method without one; of several the one with the best
            accuracy on validation nodes.
        student: The trained student, in eval mode.
        history: How its training went.
        inputs: What the student is given of the view's nodes, in each condition.
        seed: Seed of its weights, dropout and batches.
        committee: All teachers, in the order given, where there were several.
        record: What the method shows of its training, by name.
        choice: Out of what the method was chosen, for ``method="auto"``.
    """

    view: View
    method: Method
    teacher: FittedTeacher | None
    student: torch.nn.Module
    history: History
    inputs: ViewInputs
    seed: int
    committee: tuple[FittedTeacher, ...] = ()
    record: dict[str, Tensor] = field(default_factory=dict)
    choice: Choice | None = None

    @cached_property
    def answers(self) -> Answers:
        """The student's logits for observed nodes, and for unseen ones with and without edges."""
        observed = predict_logits(self.student, self.inputs.observed)
        unseen = predict_logits(self.student, self.inputs.unseen)
        if self.inputs.isolated is self.inputs.unseen:
            return Answers(observed, unseen, unseen)
        return Answers(observed, unseen, predict_logits(self.student, self.inputs.isolated))

    @cached_property
    def temperature(self) -> float:
        """Temperature that calibrates the student on validation nodes."""
        val = self.view.val
        return fit_temperature(self.answers.observed[val], self.view.observed.y[val])

    @cached_property
    def scores(self) -> Scores:
        """Scores of ``"teacher"`` and ``"student"``, for the view's setting.

        Each has ``metric``, what is called accuracy here (micro-F1 where nodes have several
        labels), ``val_accuracy`` and, over the setting's test nodes, ``test_accuracy``,
        ``test_macro_f1``, ``test_roc_auc``, ``ece``, ``brier``, ``agreement`` and
        ``cut_consistency``; ``slices`` holds accuracy by degree, local homophily and class.
        """
        student = self._scores_of(self.answers, [part.student for part in self.parts])
        student["temperature"] = self.temperature
        theirs = [part.teacher for part in self.parts if part.teacher is not None]
        if self.teacher is None or len(theirs) < len(self.parts):
            return {"teacher": None, "student": student}
        return {"teacher": self._scores_of(self.teacher.answers, theirs), "student": student}

    @cached_property
    def parts(self) -> list[Part]:
        """The test nodes of the view's setting."""
        view, setting = self.view, self.view.setting
        seen = self._part(view.test_observed, "observed")
        if setting == "transductive":
            return [_with_share(seen, 1.0)]
        if setting == "inductive":
            return [_with_share(self._part(view.test_unseen, "unseen"), 1.0)]
        if setting == "cold-start":
            return [_with_share(self._part(view.test_unseen, "isolated"), 1.0)]
        unseen = self._part(view.test_unseen, "unseen")
        return [_with_share(seen, 1 - view.unseen_share), _with_share(unseen, view.unseen_share)]

    @cached_property
    def committee_scores(self) -> list[Scores]:
        """Scores of each teacher where there were several, in the order given.

        Each is what ``scores["teacher"]`` would hold for it, with its ``name`` and ``depth``; one
        that has no answer for some test node is left out.
        """
        found = []
        for teacher in self.committee:
            there = replace(self, teacher=teacher).scores["teacher"]
            if there is not None:
                found.append({"name": teacher.name, "depth": teacher.knowledge.depth, **there})
        return found

    def in_setting(self, setting: str) -> Run:
        """The same run scored in another setting that shares its cut."""
        return replace(self, view=self.view.with_setting(setting))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        latency: Callable[[BundledStudent], Mapping[str, Any]] | None = None,
        defer: DeferGoal | None = None,
        quantize: Quantization | None = None,
    ) -> Path:
        """Write the bundle, whole or not at all.

        It keeps what the observed nodes are like, for :func:`limbeck.evaluation.audit.audit`.

        Args:
            path: The folder to make; a bundle that is already there is replaced.
            latency: What measures the finished student, such as
                :func:`limbeck.runtime.measure_latency`; ``None`` leaves latency out.
            defer: For which accuracy or coverage on the validation nodes the student defers what it
                is not sure of; the teacher's answers are stored for that. ``None`` for never.
            quantize: ``"int8"`` makes answers with weights and activations in eight bits, for
                students that are MLPs. The card says what that changes on test nodes.

        Raises:
            OptionError: The student has no form in int8.
            OutputError: The folder cannot be written, or holds something else.
            OptionError: ``defer`` is given, and nodes have several labels.
        """
        view, info = self.view, self.view.info
        scaling = view.scaling
        known = view.nodes[: view.num_observed]
        observed = torch.zeros(len(view.nodes), dtype=torch.bool).index_fill_(0, known, True)
        fields, arrays = self._statistics()
        if defer is not None:
            cascade, teacher_logits = self._cascade(defer)
            fields, arrays = fields | cascade, arrays | teacher_logits
        without_bands = self.inputs.observed.bands is not None and self.inputs.unseen.bands is None
        return export_bundle(
            path,
            student=self.student,
            inputs=self._known_inputs(),
            observed=observed,
            columns=known,
            banded=observed if without_bands else None,
            graph_info=info,
            method=self.method.name,
            student_name=type(self.student).__name__.lower(),
            hyper_parameters=self.method.model_dump(mode="json"),
            teacher=_taught_by(self.teacher, self.committee),
            setting=view.setting,
            scores=self.scores,
            temperature=self.temperature,
            scaling=None if scaling is None else (scaling.mean, scaling.deviation),
            fingerprint=view.evaluation_fingerprint,
            counts={"edges": int(view.graph.edge_index.shape[1]), "observed": view.num_observed},
            latency=latency,
            more_fields=fields,
            more_arrays=arrays,
            quantize=quantize,
            judge=self._judge,
        )

    def _judge(self, logits: npt.NDArray[np.float32]) -> dict[str, float]:
        """How good answers ``[N, C]`` for all nodes, in the graph's order, are on test nodes."""
        test = torch.unique(torch.cat([part.nodes for part in self.parts]))
        answers = torch.from_numpy(logits)[self.view.nodes[test]] / self.temperature
        labels = self.view.everything.y[test]
        return {
            "test_accuracy": accuracy(answers, labels),
            "ece": expected_calibration_error(answers, labels),
        }

    def _cascade(self, goal: DeferGoal) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """When the student defers, and the teacher's answers for the known nodes."""
        view, val = self.view, self.view.val
        if view.info.task == "labels":
            raise OptionError(
                f"a student defers what it is not sure of, and nodes of {view.info.name!r} have "
                "several labels, each with a probability of its own: leave 'defer' out."
            )
        labels = view.observed.y[val]
        theirs: Tensor | None = None
        arrays: dict[str, npt.NDArray[Any]] = {}
        if self.teacher is not None:
            answers = self.teacher.answers
            theirs, unseen = answers.observed[val], answers.unseen
            if unseen is None:  # it cannot say, or there are none
                rest = len(view.nodes) - view.num_observed
                unseen = answers.observed.new_full((rest, view.num_classes), torch.nan)
            stored = stored_teacher(torch.cat([answers.observed, unseen]), val, labels)
            arrays[TEACHER_LOGITS] = stored[view.nodes.argsort().numpy()]
        ours = self.answers.observed[val]
        entry = fit_cascade(goal, ours, labels, self.temperature, theirs)
        return {"cascade": asdict(entry)}, arrays

    def _statistics(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """What the observed nodes are like; not kept of nodes with several labels."""
        view = self.view
        if view.info.task == "labels":
            return {}, {}
        x = take_rows(view.graph.x, view.nodes[: view.num_observed])
        answer = self.answers.observed.argmax(1)
        entry, arrays = node_statistics(x, num_neighbors(view.observed), answer, view.num_classes)
        return {"statistics": asdict(entry)}, dict(arrays)

    def _known_inputs(self) -> NodeInputs:
        """Raw inputs of all nodes in the graph's own order, unseen ones as they arrive.

        Columns of ``neighbors`` are the observed nodes in the view's order, as the student has
        them. ``bands`` are there only if unseen nodes have some. ``graph`` is the graph as it was
        given, its edges not prepared.
        """
        known, new, order = self.inputs.observed, self.inputs.unseen, self.view.nodes.argsort()
        x = self.view.graph.x
        position = neighbors = bands = graph = None
        if known.position is not None and new.position is not None:
            position = torch.cat([known.position, new.position])[order]
        if known.neighbors is not None and new.neighbors is not None:
            neighbors = take_rows(stack_rows(known.neighbors, new.neighbors), order)
        if known.bands is not None:
            width = known.bands.shape[1]
            theirs = known.bands.new_zeros(len(new), width) if new.bands is None else new.bands
            bands = torch.cat([known.bands, theirs])[order]
        if known.graph is not None:
            network = cast(GNNStudent, self.student).gnn
            graph = Surroundings(x, edges_for(network, self.view.graph), torch.arange(len(order)))
        return NodeInputs(x, position, neighbors, bands, graph)

    def _part(self, nodes: Tensor, condition: Condition) -> Part:
        student = _answers_for(self.answers, nodes, condition)
        assert student is not None
        theirs = None
        if self.teacher is not None:
            theirs = _answers_for(self.teacher.answers, nodes, condition)
        return Part(1.0, nodes, student, theirs)

    def _scores_of(self, answers: Answers, logits: list[Tensor]) -> Scores:
        view, labels = self.view, self.view.everything.y
        task, val = task_of(labels), view.val
        scores: Scores = {
            "metric": task.metric,
            "val_accuracy": main_score(answers.observed[val], labels[val]),
        }
        figures = [
            (part.share, score(ours, labels[part.nodes], part.teacher))
            for part, ours in zip(self.parts, logits, strict=True)
        ]
        for name in ("accuracy", "macro_f1", "roc_auc"):
            scores[f"test_{name}"] = _weighted(figures, name)
        for name in ("ece", "brier", "agreement"):
            scores[name] = _weighted(figures, name)
        scores["num_test_nodes"] = sum(len(part.nodes) for part in self.parts)
        probabilities = task.probabilities(answers.observed)
        scores["cut_consistency"] = cut_consistency(probabilities, view.observed.edge_index)
        scores["slices"] = self._slices(logits)
        return scores

    def _slices(self, answers: list[Tensor]) -> Scores:
        nodes = torch.cat([part.nodes for part in self.parts])
        known = all(part.teacher is not None for part in self.parts)
        theirs = torch.cat([cast(Tensor, part.teacher) for part in self.parts]) if known else None
        cold = self.view.setting == "cold-start"
        graph = self.view.without_new_edges if cold else self.view.everything
        graph = graph.clone()
        graph.info = self.view.info
        return score_slices(graph, nodes, torch.cat(answers), theirs)


def run_method(
    view: View,
    teachers: Sequence[FittedTeacher],
    method: Method,
    seed: int,
    *,
    resume: bool = False,
    progress: bool = False,
) -> Run:
    """Distil by a method whose options are settled.

    Args:
        view: What may be seen.
        teachers: Those that answered for this view, none for a method that needs none.
        method: The method.
        seed: Seed of the student's weights, dropout and batches.
        resume: As in :func:`limbeck.distill`.
        progress: Show a progress bar on stderr.

    Raises:
        OptionError: The method has no losses for the view's task.
        TeacherError: The method needs a teacher.
    """
    if not teachers and method.needs_teacher:
        raise TeacherError(f"method {method.name!r} learns from a teacher: give one.")
    with seeded(seed):
        distilled = method.distill(
            view,
            knowledge_for(view, method, teachers),
            checkpoint=_checkpoint(view, teachers, method, seed) if resume else None,
            progress=method.name if progress else None,
        )
    return Run(
        view,
        method,
        best_validated(view, teachers),
        distilled.student,
        distilled.history,
        distilled.inputs,
        seed,
        committee=tuple(teachers) if len(teachers) > 1 else (),
        record=distilled.record,
    )


def all_fitted(
    view: View, teacher: OneTeacher | Sequence[OneTeacher] | None
) -> list[FittedTeacher]:
    """The teachers given, one, several or none, each asked about the view."""
    given = tuple(teacher) if isinstance(teacher, list | tuple) else (teacher,)
    return [t for t in (as_fitted(view, one) for one in given) if t is not None]


def knowledge_for(view: View, method: Method, teachers: Sequence[FittedTeacher]) -> Any:
    """What a method's ``distill`` is handed of some teachers.

    A tuple of what each of them knows for a method for several; else what the one knows that does
    best on validation nodes, ``None`` for a method that needs no teacher.

    Raises:
        OptionError: The method has no losses for the view's task.
    """
    method.check_task(view)
    if method.several_teachers:
        return tuple(teacher.knowledge for teacher in teachers)
    best = best_validated(view, teachers)
    return None if best is None or not method.needs_teacher else best.knowledge


def best_validated(view: View, teachers: Sequence[FittedTeacher]) -> FittedTeacher | None:
    """The teacher with the best accuracy on validation nodes, the first of those alike."""
    val, y = view.val, view.observed.y[view.val]
    return max(teachers, key=lambda t: main_score(t.knowledge.logits[val], y), default=None)


def _taught_by(teacher: FittedTeacher | None, committee: Sequence[FittedTeacher]) -> dict[str, Any]:
    """What a bundle says of the student's teachers."""
    if teacher is None:
        return {}
    if committee:
        members = {str(i): _taught_by(each, ()) for i, each in enumerate(committee, start=1)}
        return {"name": " + ".join(each.name for each in committee), "members": members}
    return {
        "name": teacher.name,
        "options": teacher.options,
        "parameters": teacher.num_parameters,
    }


def as_fitted(view: View, teacher: OneTeacher | None) -> FittedTeacher | None:
    """Whatever was given as a teacher, asked about the view.

    Raises:
        TeacherError: It does not fit the graph.
    """
    if teacher is None or isinstance(teacher, FittedTeacher):
        if teacher is not None and len(teacher.knowledge.logits) != view.num_observed:
            raise OptionError(
                f"teacher {teacher.name!r} knows {len(teacher.knowledge.logits)} nodes, but the "
                f"view shows {view.num_observed}: fit the teacher on this very view."
            )
        if teacher is not None and teacher.view not in ("", view.cut_fingerprint):
            raise OptionError(
                f"teacher {teacher.name!r} was fitted on another view, whose nodes have another "
                "order or other parts in training and test: fit the teacher on this very view."
            )
        return teacher
    if isinstance(teacher, torch.nn.Module):
        teacher = Teacher(teacher)
    elif not isinstance(teacher, TeacherSource):
        teacher = knowledge_from(teacher)
    return teacher.fitted(view)


def _checkpoint(
    view: View, teachers: Sequence[FittedTeacher], method: Method, seed: int
) -> Checkpoint:
    """Where the state of this very run is kept: named by all that it depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (view.fingerprint, method.name, method.model_dump_json(), str(seed)):
        digest.update(part.encode())
    for teacher in teachers:
        digest.update(teacher.knowledge.logits.numpy().data)
    key = digest.hexdigest()
    return Checkpoint(cache_folder() / "students" / f"{key}.checkpoint", key)


@torch.no_grad()
def predict_logits(student: torch.nn.Module, inputs: NodeInputs) -> Tensor:
    """A student's logits ``[B, C]`` in eval mode.

    In blocks of nodes, but for a student that reads a graph: each of its passes goes over all of
    the graph, so there is only one.
    """
    student.eval()
    if full_batch(inputs):
        answers: Tensor = student(inputs)
        return answers
    blocks = torch.split(torch.arange(len(inputs)), EVAL_BLOCK)
    return torch.cat([student(inputs.take(block)) for block in blocks])


def _answers_for(answers: Answers, nodes: Tensor, condition: Condition) -> Tensor | None:
    """Logits of some test nodes: rows of the observed ones, or of those behind them."""
    first = 0 if condition == "observed" else len(answers.observed)
    logits: Tensor | None = getattr(answers, condition)
    return None if logits is None else logits[nodes - first]


def _with_share(part: Part, share: float) -> Part:
    return Part(share, part.nodes, part.student, part.teacher)


def _weighted(figures: list[tuple[float, dict[str, float | None]]], name: str) -> float | None:
    values = [(share, figure[name]) for share, figure in figures]
    if any(value is None for _, value in values):
        return None
    return sum(share * cast(float, value) for share, value in values)
