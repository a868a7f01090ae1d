"""What a table holds: its options, and the groups of cells that they make."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field

from limbeck.errors import OptionError, unknown_name
from limbeck.evaluation.compare import is_teacher
from limbeck.graphs.load import check_source
from limbeck.graphs.view import SETTINGS
from limbeck.methods import Method, make_method
from limbeck.registry import names
from limbeck.teachers.fit import teacher_options
from limbeck.training.options import Options


class Variant(Options):
    """A method under another name, with options of its own.

    Args:
        method: Name of the method.
        options: Options that differ from its presets.
        candidates: Changes of these options, of which those are kept that do best on validation
            nodes, per graph and cut, as with ``trials``; empty takes the options as they are.
    """

    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    candidates: tuple[dict[str, Any], ...] = ()


class TeacherVariant(Options):
    """A teacher under another name, with options of its own.

    Args:
        teacher: Name of the teacher.
        options: Options that differ from its presets.
    """

    teacher: str
    options: dict[str, Any] = Field(default_factory=dict)


def _count_or_list(seeds: Any) -> Any:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if seeds < 1:
            raise ValueError("at least one seed is needed")
        return tuple(range(seeds))
    return seeds


Seeds = Annotated[tuple[int, ...], Field(min_length=1), BeforeValidator(_count_or_list)]


class Bench(Options):
    """What a table holds.

    Where nodes have several labels, the columns ``val_accuracy`` and ``test_accuracy`` hold
    micro-F1; the column ``metric`` says which it is. ``curve`` and ``reliability`` hold, as JSON,
    the training and how far probabilities can be trusted, see :mod:`limbeck.evaluation.visible`.

    Args:
        graphs: Names of data sets or folders of tables.
        methods: Names of methods or of ``variants``; a name may carry options in
            ``method_options``.
        settings: Names of settings.
        teachers: Names of teachers, of ``teacher_variants`` or of ``committees``.
        seeds: Number of seeds, counted from 0, or the seeds themselves.
        graph_seeds: The same for single graphs, in place of ``seeds``.
        method_options: Options per method that differ from its presets; they hold for its
            variants, too.
        variants: Methods under other names with options of their own, to compare a method with
            itself.
        learn_from: The teachers that a method or variant learns from, where it should not be all of
            them; names of ``teachers``.
        teacher_options: Options per teacher that differ from its presets; they hold for its
            variants, too.
        teacher_variants: Teachers under other names with options of their own, such as several
            depths of one kind.
        committees: Several teachers or variants under one name. Methods for several teachers learn
            from all of them, others from the one that does best on validation nodes; its figures
            are those of the row ``teacher``, and each member has a row ``teacher:NAME``, too.
        unseen: Share of test nodes cut away in all settings but the transductive one.
        trials: Candidates that each method trains per graph and cut, of which the best on
            validation nodes is what the table holds, see :func:`~limbeck.evaluation.tune.tune`;
            a method whose parts are trained by themselves has as many for each of them. 1 takes
            the options as they are.
        tuning_seed: Seed of the split, the teacher and the students that candidates are compared
            on; best one that the table does not hold.
        tuning_seeds: Number of such seeds, counted from ``tuning_seed``; candidates are compared by
            their mean.
        diagnostics: Describe where students of experts send nodes, as JSON in the column
            ``routing``, see :func:`~limbeck.evaluation.routing.routing_diagnostics`; what framelet
            students make of their bands, in the column ``framelets``, see
            :func:`~limbeck.evaluation.framelets.framelet_diagnostics`; which of several teachers
            nodes attend to, where nodes differ in that, in the column ``attention``, see
            :func:`~limbeck.evaluation.teachers_by_degree.teachers_by_degree`; and what else methods
            make visible, in the column ``diagnostics``, see
            :func:`~limbeck.evaluation.visible.diagnostics`.
        probe: Run the frozen-student probe of each method that compares layers, on an untrained
            student, once per cell, see :func:`~limbeck.evaluation.probe.probe`; the column
            ``probe_ratio`` holds what it leaves of the loss, and tables mark methods that it finds
            degenerate.
        probe_seeds: How many of a graph's seeds are probed, the first ones; ``None`` for all.
        half_layers: Keep the teachers' hidden layers as float16 in the cache, see
            :class:`~limbeck.teachers.cache.TeacherCache`.
        latency: Measure once per graph and method, after all training, how long the exported
            student takes for 1 and for 256 nodes (median, one thread), and how large it is:
            ``bundle_bytes`` with everything stored of known nodes, ``model_bytes`` without. A
            method whose cells were computed without it is trained once more for that. Of a teacher
            the quicker of its answers that are exact: from the whole neighbourhood of the nodes,
            or from the whole graph.
        tables: How folders of tables among ``graphs`` are read, by their names there, such as
            ``{shop: {categorical: [land]}}``; see :func:`~limbeck.graphs.tables.read_tables`.
        data_root: Folder of the named data sets; ``LIMBECK_DATA`` by default.
    """

    graphs: tuple[str, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(default=("mlp", "glnn"), min_length=1)
    settings: tuple[str, ...] = Field(default=("transductive",), min_length=1)
    teachers: tuple[str, ...] = Field(default=("sage",), min_length=1)
    seeds: Seeds = tuple(range(10))
    graph_seeds: dict[str, Seeds] = Field(default_factory=dict)
    method_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    variants: dict[str, Variant] = Field(default_factory=dict)
    learn_from: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    teacher_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    teacher_variants: dict[str, TeacherVariant] = Field(default_factory=dict)
    committees: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    unseen: float = Field(default=0.2, gt=0, lt=1)
    trials: int = Field(default=1, ge=1)
    tuning_seed: int = Field(default=1000, ge=0)
    tuning_seeds: int = Field(default=1, ge=1)
    diagnostics: bool = False
    probe: bool = False
    probe_seeds: int | None = Field(default=None, ge=1)
    half_layers: bool = False
    latency: bool = True
    data_root: str | None = None
    tables: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **changes: Any) -> Bench:
        """Read a YAML file; options given beside it win.

        Raises:
            OptionError: The file cannot be read, or an option in it is wrong.
        """
        try:
            with open(path, encoding="utf-8") as stream:
                document = yaml.safe_load(stream)
        except OSError as error:
            raise OptionError(f"{path}: the file cannot be read ({error.strerror}).") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise OptionError(f"{path}: not a YAML file that can be read ({reason}).") from None
        if not isinstance(document, dict):
            raise OptionError(f"{path}: expected options with names, such as 'graphs: [cora]'.")
        try:
            return cls(**{**document, **changes})
        except OptionError as error:
            raise OptionError(f"{path}: {error}") from None

    def check_names(self) -> None:
        """Look every name and option up before anything is trained.

        Raises:
            OptionError: A name or option is unknown, or a value out of range.
        GraphError: A folder of tables is not there.
        """
        for setting in self.settings:
            if setting not in SETTINGS:
                raise unknown_name("setting", setting, SETTINGS)
        methods = [self._base(name) for name in self.methods]
        members = [member for name in self.teachers for member in self.members(name)]
        for kind, chosen, options in (
            ("method", methods, self.method_options),
            ("teacher", [member.teacher for member in members], self.teacher_options),
        ):
            for name in [*chosen, *options]:
                if name not in names(kind):
                    raise unknown_name(kind, name, names(kind))
        for method, teachers in self.learn_from.items():
            if method not in self.methods:
                raise unknown_name("method in 'learn_from'", method, self.methods)
            for name in teachers:
                if name not in self.teachers:
                    raise unknown_name("teacher in 'learn_from'", name, self.teachers)
        for name in self.teachers:
            if not self.methods_of(name):
                raise OptionError(
                    f"no method learns from teacher {name!r}: leave it out, or name it in "
                    "'learn_from'."
                )
        for kind, given in (
            ("method", self.methods),
            ("teacher", self.teachers),
            ("setting", self.settings),
            ("graph", self.graphs),
        ):
            for name in given:
                if given.count(name) > 1:
                    raise OptionError(f"{kind} {name!r} is named twice: name it once.")
        for name in self.variants:
            if is_teacher(name):
                raise OptionError(
                    f"variant {name!r} has a name of teachers' rows: choose another name for it."
                )
            if name in names("method"):
                raise OptionError(
                    f"variant {name!r} has the name of a method: choose another name for it."
                )
        for name in (*self.teacher_variants, *self.committees):
            if name in names("teacher"):
                raise OptionError(f"{name!r} is the name of a teacher: choose another name for it.")
        for graph in (*self.graphs, *self.graph_seeds, *self.tables):
            check_source(graph)
        for graph in self.graphs:
            for name in self.methods:
                plain = self.method(name, graph)
                for changes in self.candidates(name):
                    plain.replace(**changes)
            for member in members:
                teacher_options(member.teacher, graph, **member.options)

    def seeds_of(self, graph: str) -> tuple[int, ...]:
        """The seeds of a graph."""
        return self.graph_seeds.get(graph, self.seeds)

    def candidates(self, name: str) -> tuple[dict[str, Any], ...]:
        """The candidates that a variant names; empty for those that do not."""
        return self.variants[name].candidates if name in self.variants else ()

    def _base(self, name: str) -> str:
        """The method that a name or variant is of, without the preset behind a colon."""
        variant = self.variants.get(name, Variant(method=name))
        return variant.method.partition(":")[0]

    def methods_of(self, teacher: str) -> tuple[str, ...]:
        """The methods that learn from a teacher, in their order."""
        return tuple(
            name for name in self.methods if teacher in self.learn_from.get(name, (teacher,))
        )

    def members(self, name: str) -> tuple[Member, ...]:
        """The teachers that a name in ``teachers`` stands for: one, or those of a committee."""
        return tuple(self._member(each) for each in self.committees.get(name, (name,)))

    def _member(self, name: str) -> Member:
        variant = self.teacher_variants.get(name, TeacherVariant(teacher=name))
        options = {**self.teacher_options.get(variant.teacher, {}), **variant.options}
        return Member(name, variant.teacher, options)

    def method(self, name: str, graph: str, setting: str = "transductive") -> Method:
        """The method or variant ``name`` with the options it has before tuning.

        Raises:
            OptionError: The name or an option is unknown, or a value out of range.
        """
        variant = self.variants.get(name, Variant(method=name))
        options = {**self.method_options.get(self._base(name), {}), **variant.options}
        return make_method(variant.method, graph, setting, **options)


@dataclass(frozen=True)
class Member:
    """A teacher to be trained.

    Args:
        name: What the table calls it.
        teacher: Name of the teacher.
        options: Options that differ from its presets.
    """

    name: str
    teacher: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Cells that share a graph, a cut, a seed and a teacher, or several: each trained once."""

    graph: str
    settings: tuple[str, ...]
    seed: int
    teacher: str

    def __str__(self) -> str:
        return f"{self.graph} {self.settings[0]} {self.teacher} seed {self.seed}"


def groups(bench: Bench) -> Iterator[Group]:
    """All groups of a table, seed by seed, so that an early stop leaves whole seeds."""
    whole = tuple(s for s in bench.settings if s == "transductive")
    cut = tuple(s for s in bench.settings if s != "transductive")
    every = sorted({seed for graph in bench.graphs for seed in bench.seeds_of(graph)})
    listed = dict.fromkeys([*bench.seeds, *every])  # in the order given
    for seed in listed:
        for graph in bench.graphs:
            for teacher in bench.teachers if seed in bench.seeds_of(graph) else ():
                for settings in (whole, cut):
                    if settings:
                        yield Group(graph, settings, seed, teacher)
