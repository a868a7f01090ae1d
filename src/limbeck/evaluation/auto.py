"""The choice made for the user: which method, how large, with which hyper-parameters.

Successive halving (Jamieson and Talwalkar, AISTATS 2016) over methods, widths and the options that
tuning tries. Everything is judged on validation nodes; no test label is read before the choice is
made. The rounds:

1. Candidates of a round: in the first one every method's preset in every width, in later ones what
   Optuna's sampler (TPE, Bergstra et al., NeurIPS 2011) proposes after the rounds before.
2. Each is trained for a ninth of its epochs, the better third of *each width* for a third of them,
   and the better third of those for all, under several seeds. Halving goes by width so that there
   is a small student to choose in the end.
3. All finalists of all rounds are compared, see :func:`limbeck.evaluation.choice.choose`.

Candidates that exceed a limit stand behind all that do not, the nearer one first (the rules of Deb,
Computer Methods in Applied Mechanics and Engineering 2000): time and bytes are those of the
exported bundle, measured once per shape and kind of student; where seeds differ in kind, the worst.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import optuna
import torch
from optuna.storages.journal import JournalFileBackend, JournalStorage
from pydantic import Field, field_validator

import limbeck
from limbeck.errors import DivergedError, OptionError, OutputError, TeacherError, unknown_name
from limbeck.evaluation.cascade import DeferGoal
from limbeck.evaluation.choice import (
    BoolArray,
    Candidate,
    Choice,
    Limits,
    choose,
    no_candidate,
    percent,
)
from limbeck.evaluation.metrics import agreement
from limbeck.evaluation.protocol import Run, predict_logits, run_method
from limbeck.export.int8 import Quantization
from limbeck.files import appearing_whole
from limbeck.graphs.view import View
from limbeck.methods import Method, make_method
from limbeck.methods.base import PositiveInt
from limbeck.registry import names
from limbeck.runtime.latency import measure_latency
from limbeck.runtime.loading import load_bundle
from limbeck.runtime.predictor import BundledStudent
from limbeck.teachers.knowledge import FittedTeacher
from limbeck.training.options import Options

logger = logging.getLogger(__name__)

LATENCY_SECONDS = 1.0
"""Time spent on measuring one shape of student; half of it on nodes that arrive as rows."""

METHODS = ("glnn", "limbeck", "mlp", "rbm", "sa-mlp")
"""What is searched by default: an MLP with a teacher, one that also hears what
the teacher answers for its neighbours, one without a teacher, which some graphs mislead, experts,
and one that reads its neighbours' ids."""

UNTEACHED = ("mlp",)
"""What is searched by default without a teacher."""

SLACK_BYTES = 1024
"""What is added to the size of a measured bundle: the final one tells latencies of more batches."""

OWN_OPTIONS: dict[str, dict[str, Any]] = {"nosmog": {"encoding": "spectral"}}
"""Options that differ from the presets: spectral positions need no further library."""

GENERATION = "2"
"""Of what a journal holds; trainings of another one are made anew."""

JOURNAL = "search.journal"
CHOICE = "choice.json"


class Auto(Options):
    """What is searched, and for what.

    Args:
        budget_us: Most microseconds that the answer for one new node may take.
        min_agreement: Least agreement with the teacher on validation nodes.
        max_bytes: Most bytes of the bundle.
        methods: Names of methods; ``glnn``, ``limbeck``, ``mlp``, ``rbm`` and ``sa-mlp`` by
            default, ``mlp`` without a teacher.
        widths: Widths of the students' hidden layers.
        trials: Candidates of all rounds together; they are shared out evenly. The first round
            holds at least one of each method and width if it is large enough.
        rounds: Rounds; every one after the first learns from those before.
        reduction: What share of a width's candidates goes on: one of so many, rounded up.
        seeds: Paired seeds that the finalists are trained with, from the seed of the run on.
        method_options: Options per method that differ from its presets and are not searched.
            Positions of NOSMOG are spectral unless they say otherwise.
        defer: For what the student is to defer, as :meth:`~limbeck.evaluation.protocol.Run.save`
            takes it; time and bytes are those of such a bundle.
        quantize: ``"int8"`` if the bundle is to answer in eight bits. Students without such a form
            are left out.
        folder: Where finished trainings are kept, so that a search goes on where it stopped;
            ``None`` keeps nothing.
    """

    name: ClassVar[str] = "auto"
    title: ClassVar[str] = "successive halving over methods, widths and hyper-parameters"

    budget_us: float | None = Field(default=None, gt=0)
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    max_bytes: PositiveInt | None = None
    methods: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    widths: tuple[PositiveInt, ...] = Field(default=(32, 128, 512), min_length=1)
    trials: PositiveInt = 30
    rounds: PositiveInt = 2
    reduction: Annotated[int, Field(ge=2)] = 3
    seeds: PositiveInt = 3
    method_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    defer: DeferGoal | None = None
    quantize: Quantization | None = None
    folder: Path | None = None

    @field_validator("widths")
    @classmethod
    def _ascending(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(widths)))

    @property
    def limits(self) -> Limits:
        """The limits."""
        return Limits(self.budget_us, self.min_agreement, self.max_bytes)

    @property
    def rungs(self) -> tuple[float, ...]:
        """Shares of the epochs that candidates are trained for, the last one 1."""
        return (1 / self.reduction**2, 1 / self.reduction, 1.0)

    def options_of(self, name: str) -> dict[str, Any]:
        """What is set for a method, by name, instead of being searched."""
        base = name.partition(":")[0]
        return {**OWN_OPTIONS.get(base, {}), **self.method_options.get(base, {})}

    def searched(self, taught: bool) -> tuple[str, ...]:
        """The methods that are searched.

        Args:
            taught: Whether there is a teacher.

        Raises:
            OptionError: There is no such method.
            TeacherError: A method needs a teacher, and there is none.
        """
        chosen = self.methods or (METHODS if taught else UNTEACHED)
        for name in (*chosen, *self.method_options):
            if name.partition(":")[0] not in names("method"):
                raise unknown_name("method", name, names("method"))
        for name in chosen:
            if not taught and make_method(name).needs_teacher:
                raise TeacherError(f"method {name!r} learns from a teacher: give one.")
        return chosen


@dataclass
class _Trained:
    """One training: what it says of validation nodes, and the seconds of a core that it took.

    ``student`` is the kind of student that came of it, ``left_out`` why it cannot be judged.
    """

    correct: BoolArray
    agreement: float | None
    seconds: float
    student: str
    left_out: str = ""

    def to_record(self) -> dict[str, Any]:
        packed = np.packbits(self.correct).tobytes()
        return {
            "correct": base64.b64encode(packed).decode(),
            "num_nodes": len(self.correct),
            "agreement": self.agreement,
            "seconds": self.seconds,
            "student": self.student,
            "left_out": self.left_out,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> _Trained:
        packed = np.frombuffer(base64.b64decode(record["correct"]), dtype=np.uint8)
        correct = np.unpackbits(packed, count=record["num_nodes"]).astype(bool)
        return cls(
            correct,
            record["agreement"],
            record["seconds"],
            record["student"],
            record["left_out"],
        )


class _Export(NamedTuple):
    """Time and size of an exported student."""

    latency_us: float
    num_bytes: int


@dataclass(eq=False)
class _Entry:
    """A candidate on its way: the trial that it belongs to, and what is known of it so far."""

    trial: optuna.Trial
    method: Method
    trained: list[_Trained] = field(default_factory=list)
    exports: list[_Export] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        return float(np.mean([each.correct.mean() for each in self.trained]))

    @property
    def latency_us(self) -> float | None:
        """That of the slowest student; ``None`` if none has been measured."""
        return max((each.latency_us for each in self.exports), default=None)

    @property
    def num_bytes(self) -> int | None:
        """That of the largest student; ``None`` if none has been measured."""
        return max((each.num_bytes for each in self.exports), default=None)

    @property
    def left_out(self) -> str:
        """Why it cannot be judged, empty if it can."""
        return next((each.left_out for each in self.trained if each.left_out), "")

    @property
    def agreement(self) -> float | None:
        shares = [each.agreement for each in self.trained if each.agreement is not None]
        return min(shares) if shares else None

    def violation(self, limits: Limits) -> float:
        return limits.violation(self.latency_us, self.agreement, self.num_bytes)

    def rank(self, limits: Limits) -> tuple[float, float, int]:
        """Smaller is better: what meets the limits by accuracy, the rest by how far it is off."""
        return (self.violation(limits), -self.accuracy, self.trial.number)

    def __str__(self) -> str:
        return f"{self.method.name} with {self.method.hidden_channels} hidden channels"


def promoted(entries: Sequence[_Entry], limits: Limits, reduction: int) -> list[_Entry]:
    """The better part of each width, in the order given.

    Args:
        entries: Candidates that were trained alike.
        limits: The limits.
        reduction: One of so many goes on, rounded up.
    """
    kept: list[_Entry] = []
    for width in {entry.method.hidden_channels for entry in entries}:
        alike = [entry for entry in entries if entry.method.hidden_channels == width]
        alike.sort(key=lambda entry: entry.rank(limits))
        kept += alike[: ceil(len(alike) / reduction)]
    return sorted(kept, key=lambda entry: entry.trial.number)


def search(
    view: View,
    teachers: Sequence[FittedTeacher],
    auto: Auto,
    seed: int = 0,
    *,
    progress: bool = False,
) -> Choice:
    """Search a student for a view.

    The answer depends on the view, the teachers, the options, the seed and the measured latencies,
    which are kept with the trainings: a search that was interrupted and started again in the same
    folder ends as one that was not.

    Args:
        view: What may be seen.
        teachers: What the student learns from; none for methods that need none.
        auto: What is searched, and for what.
        seed: Draws the candidates; the first of the paired seeds.
        progress: Say on stderr what is going on.

    Raises:
        OptionError: No candidate meets the limits, an option is wrong, or nodes have several
            labels.
        TeacherError: A method, or the limit on agreement, needs a teacher, and there is none.
        OutputError: The folder cannot be written.
    """
    return _Search(view, teachers, auto, seed, progress).run()


def exhaustive(
    view: View,
    teachers: Sequence[FittedTeacher],
    auto: Auto,
    seed: int = 0,
    *,
    progress: bool = False,
) -> Choice:
    """Train every candidate of the first round in full, and choose by the same rule.

    What halving is measured against: with ``rounds=1`` the candidates are those of :func:`search`.

    Args:
        view: What may be seen.
        teachers: What the student learns from.
        auto: What is searched, and for what.
        seed: Draws the candidates; the first of the paired seeds.
        progress: Say on stderr what is going on.

    Raises:
        OptionError: As :func:`search`.
        TeacherError: As :func:`search`.
        OutputError: As :func:`search`.
    """
    return _Search(view, teachers, auto.replace(rounds=1), seed, progress, rungs=(1.0,)).run()


class _Search:
    def __init__(
        self,
        view: View,
        teachers: Sequence[FittedTeacher],
        auto: Auto,
        seed: int,
        progress: bool,
        rungs: tuple[float, ...] = (),
    ) -> None:
        if view.info.task == "labels":
            raise OptionError(
                f"method 'auto' compares answers of one class per node, and nodes of "
                f"{view.info.name!r} have several labels: choose a method, such as 'glnn'."
            )
        if auto.min_agreement is not None and not teachers:
            raise TeacherError("option 'min_agreement' is about a teacher: give one.")
        self.view, self.teachers, self.auto, self.seed = view, teachers, auto, seed
        self.methods = auto.searched(taught=bool(teachers))
        for name in self.methods:  # an option may be wrong, which is better found now
            make_method(name, view.info.dataset, view.setting, **auto.options_of(name))
        self.limits, self.rungs = auto.limits, rungs or auto.rungs
        self.say = _say if progress else _be_silent
        self.key = self._digest()
        self.storage = _storage(auto.folder)
        self.known = self._records()
        self.trainings: dict[str, float] = {}
        self.left_out: dict[str, str] = {}

    def run(self) -> Choice:
        started = time.monotonic()
        study = self._study()
        finalists: dict[str, Candidate] = {}
        shares = _shared_out(self.auto.trials, self.auto.rounds)
        for number, size in enumerate(shares):
            self.say(f"round {number + 1} of {len(shares)}: {size} candidates")
            entries = self._ask(study, number, size)
            for entry in self._halve(study, entries):
                candidate = self._candidate(entry)
                finalists.setdefault(self._name(entry.method), candidate)
        if not finalists:
            reasons = "; ".join(f"{name} {reason}" for name, reason in self.left_out.items())
            raise OptionError(
                f"no candidate on {self.view.info.name!r} can be judged: {reasons}; search others, "
                "such as 'glnn'."
            )
        choice = choose(list(finalists.values()), self.limits, repr(self.view.info.name))
        seconds = sum(self.trainings.values())
        made = replace(choice, trainings=len(self.trainings), train_seconds=seconds)
        self.say(f"searched for {time.monotonic() - started:.1f} s: {made.reason}")
        if self.auto.folder is not None:
            text = json.dumps(made.to_dict(), indent=2, ensure_ascii=False)
            with appearing_whole(self.auto.folder / CHOICE) as aside:
                aside.write_text(text, encoding="utf-8")
        return made

    # --- candidates ---------------------------------------------------------------------------

    def _ask(self, study: optuna.Study, number: int, size: int) -> list[_Entry]:
        """The candidates of a round, one distinct method each."""
        presets = [(name, width) for width in self.auto.widths for name in self.methods]
        # every method and every width comes early, also where not all pairs find a place
        presets.sort(key=lambda pair: self._diagonal(*pair))
        entries: dict[str, _Entry] = {}
        for place in range(size):
            width = self.auto.widths[place % self._num_widths]
            fixed: dict[str, Any] = {"hidden_channels": width, "options": "drawn"}
            if number == 0 and place < len(presets):
                name, width = presets[place]
                fixed = {"method": name, "hidden_channels": width, "options": "preset"}
            # a sampler of its own for each draw: one that was restarted would draw anew
            study.sampler = _sampler(number, [self.seed, number, place])
            study.enqueue_trial(fixed)
            trial = study.ask()
            method = self._method_of(trial)
            if self._name(method) in entries:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            entries[self._name(method)] = _Entry(trial, method)
        return list(entries.values())

    @property
    def _num_widths(self) -> int:
        return len(self.auto.widths)

    def _diagonal(self, name: str, width: int) -> tuple[int, int]:
        row, column = self.methods.index(name), self.auto.widths.index(width)
        return ((column - row) % self._num_widths, row)

    def _method_of(self, trial: optuna.Trial) -> Method:
        name = trial.suggest_categorical("method", self.methods)
        width = trial.suggest_categorical("hidden_channels", self.auto.widths)
        options = trial.suggest_categorical("options", ("preset", "drawn"))
        taken = {**self.auto.options_of(name), "hidden_channels": width}
        method = make_method(name, self.view.info.dataset, self.view.setting, **taken)
        if options == "preset":
            return method
        space = {key: of for key, of in method.search_space().items() if key not in taken}
        drawn = {key: suggest(trial, f"{name}: {key}", of) for key, of in space.items()}
        return method.replace(**drawn)

    # --- halving ------------------------------------------------------------------------------

    def _halve(self, study: optuna.Study, entries: list[_Entry]) -> list[_Entry]:
        """Train a round's candidates for longer and longer, and the last ones with all seeds."""
        pruned = optuna.trial.TrialState.PRUNED
        for step, share in enumerate(self.rungs):
            last = step == len(self.rungs) - 1
            started = time.monotonic()
            for entry in entries:
                self._train_entry(entry, share, range(self.auto.seeds) if last else range(1))
            for entry in entries:
                if entry.left_out:
                    self.say(f"  left out: {entry}, {entry.left_out}")
                    study.tell(entry.trial, state=optuna.trial.TrialState.FAIL)
                    self.left_out[entry.method.name] = entry.left_out
            entries = [entry for entry in entries if not entry.left_out]
            if step == 0:
                self._check_export(entries)
            for entry in entries:
                entry.trial.report(entry.accuracy, step)
            going_on = entries if last else promoted(entries, self.limits, self.auto.reduction)
            for entry in entries:
                if last or entry not in going_on:
                    entry.trial.set_constraint("limits", entry.violation(self.limits))
                if entry not in going_on:
                    study.tell(entry.trial, state=pruned)
                elif last:
                    study.tell(entry.trial, entry.accuracy)
            seconds = time.monotonic() - started
            leader = min(entries, key=lambda entry: entry.rank(self.limits), default=None)
            if leader is not None:
                self.say(
                    f"  {share:.0%} of the epochs: {len(entries)} trained in {seconds:.1f} s, "
                    f"first is {leader} ({percent(leader.accuracy)})"
                )
            entries = going_on
        return entries

    def _check_export(self, entries: list[_Entry]) -> None:
        """Refuse early if every student is too slow or too large, whatever it learns."""
        if not entries or not self.limits.of_export:
            return
        export = Limits(self.limits.budget_us, None, self.limits.max_bytes)
        nearest = min(entries, key=lambda entry: entry.violation(export))
        if nearest.violation(export) > 0 and len(entries) >= len(self.methods) * self._num_widths:
            raise no_candidate(
                self.limits,
                repr(self.view.info.name),
                str(nearest),
                nearest.latency_us,
                None,
                nearest.num_bytes,
            )

    def _candidate(self, entry: _Entry) -> Candidate:
        assert entry.latency_us is not None  # the last rung measures
        assert entry.num_bytes is not None
        return Candidate(
            entry.method,
            np.stack([each.correct for each in entry.trained]),
            entry.agreement,
            entry.latency_us,
            entry.num_bytes,
        )

    # --- trainings, each made once ------------------------------------------------------------

    def _train_entry(self, entry: _Entry, share: float, seeds: range) -> None:
        method = entry.method
        shortened = method.replace(max_epochs=ceil(share * method.max_epochs))
        entry.trained, entry.exports = [], []
        for offset in seeds:
            seed = self.seed + offset
            key = f"trained {self._name(shortened)} {seed}"
            run = None
            if key not in self.known:
                started = time.process_time()  # a busy machine must not count against a method
                try:
                    run = self._distill(shortened, seed)
                except DivergedError as error:
                    judged = _Trained(np.zeros(0, dtype=bool), None, 0.0, "", f"diverges: {error}")
                else:
                    judged = self._judge(run)
                judged.seconds = time.process_time() - started
                self._keep(entry, key, judged.to_record())
            self.trainings[key] = self.known[key]["seconds"]
            trained = _Trained.from_record(self.known[key])
            entry.trained.append(trained)
            if (self.limits.of_export or share == 1) and not trained.left_out:
                found = self._measure(entry, shortened, seed, trained.student, run)
                if isinstance(found, str):
                    trained.left_out = found
                else:
                    entry.exports.append(found)

    def _distill(self, method: Method, seed: int) -> Run:
        return run_method(self.view, self.teachers, method, seed)

    def _judge(self, run: Run) -> _Trained:
        """What a student says of the validation nodes; no other label is looked at.

        In cold-start they are judged without their edges, as new nodes there have none.
        """
        val, student = self.view.val, type(run.student).__name__
        if self.view.setting == "cold-start":
            inputs = run.inputs.without_edges(val)
            if inputs is None:
                reason = "reads the graph around a node, which new ones in 'cold-start' do not have"
                return _Trained(np.zeros(0, dtype=bool), None, 0.0, student, reason)
            answers = predict_logits(run.student, inputs)
        else:
            answers = run.answers.observed[val]
        if not bool(torch.isfinite(answers).all()):
            reason = "diverges: its answers are no numbers"
            return _Trained(np.zeros(0, dtype=bool), None, 0.0, student, reason)
        return _Trained(
            (answers.argmax(1) == self.view.observed.y[val]).numpy(),
            None if run.teacher is None else agreement(answers, run.teacher.answers.observed[val]),
            0.0,
            student,
        )

    def _measure(
        self, entry: _Entry, method: Method, seed: int, student: str, run: Run | None
    ) -> _Export | str:
        """Time and size of the exported student, or why it cannot be exported so.

        Measured once for each shape and kind; the kind is not told by the options, as some methods
        choose it on validation nodes.
        """
        defer, quantize = self.auto.defer, self.auto.quantize
        key = f"measured {self._shape(method)} {student} {_hash([defer, quantize])}"
        if key not in self.known:
            run = run or self._distill(method, seed)
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    path = run.save(
                        Path(scratch) / "bundle",
                        latency=_measured,
                        defer=defer,
                        quantize=quantize,
                    )
                except OptionError as error:
                    self._keep(entry, key, {"left_out": f"cannot be saved so: {error}"})
                else:
                    self._keep(entry, key, _export_of(path)._asdict())
        found: dict[str, Any] = self.known[key]
        return _Export(**found) if "num_bytes" in found else str(found["left_out"])

    def _shape(self, method: Method) -> str:
        """Name of a method's size: options that are numbers with a point never are a part of it."""
        training = {"max_epochs", "patience", "batch_size"}
        options = method.model_dump(mode="json").items()
        size = {k: v for k, v in options if not isinstance(v, float) and k not in training}
        return _hash([self.key, method.name, size])

    def _name(self, method: Method) -> str:
        return _hash([self.key, method.name, method.model_dump(mode="json")])

    def _digest(self) -> str:
        """What all trainings of this view and these teachers have in common."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (GENERATION, limbeck.__version__, torch.__version__, self.view.fingerprint):
            digest.update(part.encode())
        digest.update(self.view.evaluation_fingerprint.encode())
        digest.update(b"without edges" if self.view.setting == "cold-start" else b"")
        for teacher in self.teachers:
            digest.update(teacher.knowledge.logits.numpy().data)
        return digest.hexdigest()

    # --- what is kept -------------------------------------------------------------------------

    def _study(self) -> optuna.Study:
        """A study for this search; what others in the folder have trained is taken from them."""
        try:
            return optuna.create_study(storage=self.storage, direction="maximize")
        except OSError as error:
            raise _unwritable(self.auto.folder, error) from None

    def _keep(self, entry: _Entry, key: str, record: dict[str, Any]) -> None:
        self.known[key] = record
        entry.trial.set_user_attr(key, record)

    def _records(self) -> dict[str, dict[str, Any]]:
        return {
            key: record
            for name in optuna.get_all_study_names(self.storage)
            for trial in optuna.load_study(study_name=name, storage=self.storage).trials
            for key, record in trial.user_attrs.items()
        }


def _measured(student: BundledStudent) -> dict[str, Any]:
    """Latency of an answer for one node, as the bundle is saved with it."""
    return measure_latency(student, (1,), seconds=LATENCY_SECONDS)


def _export_of(path: Path) -> _Export:
    """What a bundle says of its latency, and its size on disk."""
    latency = load_bundle(path).manifest.latency
    assert latency is not None  # it was measured
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return _Export(latency["x"]["1"]["p50_us"], size + SLACK_BYTES)


def _storage(folder: Path | None) -> optuna.storages.BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if folder is None:
        return optuna.storages.InMemoryStorage()
    journal = folder / JOURNAL
    if folder.exists() and not journal.is_file() and any(folder.iterdir()):
        raise OutputError(
            f"{folder} exists and holds no search of Limbeck: choose another folder for it."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if journal.is_file():
            _cut_torn_line(journal)
        return JournalStorage(JournalFileBackend(str(journal)))
    except OSError as error:
        raise _unwritable(folder, error) from None


def _cut_torn_line(journal: Path) -> None:
    """Drop what a process that was killed left of a last line; Optuna would append to it."""
    text = journal.read_bytes()
    if text and not text.endswith(b"\n"):
        os.truncate(journal, text.rfind(b"\n") + 1)


def _unwritable(folder: Path | None, error: OSError) -> OutputError:
    return OutputError(f"{folder} cannot be written ({error.strerror or error}).")


def suggest(trial: optuna.Trial, name: str, values: tuple[Any, ...]) -> Any:
    """A value of an option; by its place where the journal cannot hold the value itself."""
    if all(value is None or isinstance(value, bool | int | float | str) for value in values):
        return trial.suggest_categorical(name, values)
    return values[trial.suggest_categorical(f"{name}, place", tuple(range(len(values))))]


def _sampler(number: int, parts: list[int]) -> optuna.samplers.BaseSampler:
    """Draws at random in the first round, and from what was learnt in later ones."""
    seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    if number == 0:
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=0)


def _shared_out(total: int, parts: int) -> list[int]:
    """``total`` in at most ``parts`` parts as even as can be, the larger ones first."""
    parts = min(parts, total)
    return [total // parts + (place < total % parts) for place in range(parts)]


def _hash(parts: list[Any]) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _be_silent(text: str) -> None:
    logger.info(text)
