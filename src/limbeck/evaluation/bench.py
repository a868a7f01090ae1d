"""Tables: graphs × methods × settings × teachers × seeds, each cell computed once.

A *cell* is one training of one method (or of the teacher itself) and gives one row per setting
that shares its cut, so inductive, production and cold-start come from the same student. Each
finished cell is a small Parquet file; a table that is asked for again computes only what is
missing, and ``runs.parquet`` is all rows together. Speed and size are those of a shape, so they are
measured once per graph, cut, method and kind of student, when nothing else of the table runs any
more.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from torch_geometric.data import Data

import limbeck
from limbeck.errors import OptionError, OutputError
from limbeck.evaluation.cells import (
    COSTS,
    MARKER,
    SCHEMA,
    cell_path,
    collect,
    costs_file,
    is_probed,
    kind_in,
    read_cell,
    tuned_file,
)
from limbeck.evaluation.compare import TEACHER
from limbeck.evaluation.distill import distill
from limbeck.evaluation.framelets import framelet_diagnostics
from limbeck.evaluation.latency import measure_teacher_latency
from limbeck.evaluation.memory import keep_freed_memory, peak_memory_mb, reset_peak_memory
from limbeck.evaluation.plan import Bench, Group, groups
from limbeck.evaluation.probe import probe
from limbeck.evaluation.protocol import Run
from limbeck.evaluation.routing import routes, routing_diagnostics
from limbeck.evaluation.teachers_by_degree import teachers_by_degree
from limbeck.evaluation.tune import Case, best_candidate, drawn_best
from limbeck.evaluation.visible import diagnostics, reliabilities, training_curve
from limbeck.files import appearing_whole
from limbeck.graphs.load import content_of, load_graph
from limbeck.graphs.view import View, make_view
from limbeck.methods import Method
from limbeck.methods.layers import LayerMethod, ScopedMethod
from limbeck.runtime.latency import measure_latency
from limbeck.runtime.loading import load_bundle
from limbeck.students.fmlp import FMLP
from limbeck.teachers.cache import TeacherCache
from limbeck.teachers.fit import fit_teacher, teacher_options
from limbeck.teachers.knowledge import FittedTeacher

logger = logging.getLogger(__name__)

LATENCY_SECONDS = 1.0

NOTE_EVERY = 30.0
"""Seconds from one note of the time spent to the next."""

LOG_EVERY = 10
"""Epochs from one entry of a diagnosed method's notes to the next, where it has no other."""


def run_bench(
    bench: Bench,
    out: str | os.PathLike[str],
    *,
    workers: int = 1,
    on_group: Callable[[Group, int, int], None] | None = None,
) -> pa.Table:
    """Compute what is missing of a table and return all its rows.

    Args:
        bench: What the table holds.
        out: Folder of the results: ``cells/``, ``bench.json`` and ``runs.parquet``.
        workers: Processes that compute groups side by side; each uses its share of the cores.
        on_group: Called after each group with it, the number done and their total.

    Returns:
        The rows of this table, also those computed earlier.

    Raises:
        OptionError: A name or option is wrong; found before anything is trained.
        GraphError: A folder of tables cannot be read.
        OutputError: ``out`` holds something else, cannot be written, or has a file that cannot be
            read.
    """
    if workers < 1:
        raise OptionError(f"workers is {workers}: it must be at least 1.")
    bench.check_names()
    for graph in bench.graphs:
        if content_of(graph):  # tables may have mistakes, which are better found now
            _load(bench, graph)
    folder = _prepare(bench, Path(out))
    plan = list(groups(bench))
    with _Spent(folder, workers, bench.graphs):
        for done, group in enumerate(_compute(bench, folder, plan, workers), start=1):
            if on_group is not None:
                on_group(group, done, len(plan))
        if bench.latency:
            measure_costs(bench, folder)
    table = collect(bench, folder)
    _write_parquet(table, folder / "runs.parquet")
    _note(folder, finished=True)
    return table


def _compute(bench: Bench, folder: Path, plan: list[Group], workers: int) -> Iterator[Group]:
    todo = [group for group in plan if _missing(bench, folder, group)]
    yield from (group for group in plan if group not in todo)
    if workers == 1 or len(todo) <= 1:
        for group in todo:
            run_group(bench, folder, group)
            yield group
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=_start_worker,
        initargs=(threads,),
    ) as pool:
        pending: dict[Future[None], Group] = {
            pool.submit(run_group, bench, folder, group): group for group in todo
        }
        try:
            while pending:
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    group = pending.pop(future)
                    future.result()
                    yield group
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()


def run_group(bench: Bench, folder: Path, group: Group) -> None:
    """Compute the missing cells of a group and write each as soon as it is done."""
    view = _view_of(bench, group)
    reset_peak_memory()
    teachers = _fit_teachers(bench, group, view, group.seed)
    teacher_peak = peak_memory_mb()
    for name in _missing(bench, folder, group):
        if name == TEACHER:
            continue
        method = _tuned(bench, folder, group, name)
        reset_peak_memory()
        run = distill(view, teachers, _noted(method) if bench.diagnostics else method, group.seed)
        peak = peak_memory_mb()
        if bench.latency:
            _keep_for_costs(bench, folder, group, name, run)
        described = bench.diagnostics and routes(run.student)
        framelets = _framelets(run) if bench.diagnostics else None
        visible = json.dumps(diagnostics(run), allow_nan=False) if bench.diagnostics else None
        ratio = _probe_ratio(run) if is_probed(bench, group) else None
        curve = json.dumps(training_curve(run.history))
        teachers_path = cell_path(bench, folder, group, TEACHER)
        teachers_wanted = not teachers_path.is_file()
        rows = []
        teacher_rows = []
        for setting in group.settings:
            there = run.in_setting(setting)
            trusted = reliabilities(there)
            rows.append(
                {
                    **_row(group, setting, name, there.scores["student"]),
                    "parameters": sum(p.numel() for p in run.student.parameters()),
                    "table_parameters": _in_tables(run.student),
                    "train_seconds": run.history.seconds,
                    "epochs": len(run.history.val_score),
                    "peak_mb": peak,
                    "options": json.dumps(method.model_dump(mode="json"), sort_keys=True),
                    "routing": json.dumps(routing_diagnostics(there)) if described else None,
                    "attention": _attention(there) if bench.diagnostics else None,
                    "probe_ratio": ratio,
                    "framelets": framelets,
                    "curve": curve,
                    "reliability": json.dumps({k: trusted[k] for k in ("student", "calibrated")}),
                    "diagnostics": visible,
                    "student": _kind_of(run),
                }
            )
            if teachers_wanted:
                theirs = _teacher_rows(group, setting, there, teacher_peak)
                theirs[0]["reliability"] = json.dumps({"teacher": trusted["teacher"]})
                teacher_rows += theirs
        if teachers_wanted:
            _write_cell(teachers_path, teacher_rows)
        _write_cell(cell_path(bench, folder, group, name), rows)


def _view_of(bench: Bench, group: Group) -> View:
    graph = _load(bench, group.graph)
    return make_view(graph, group.settings[0], group.seed, unseen=bench.unseen)


def _load(bench: Bench, graph: str) -> Data:
    return load_graph(graph, data_root=bench.data_root, **bench.tables.get(graph, {}))


def _noted(method: Method) -> Method:
    """The method, writing notes of its training if it can; its student is the same."""
    if isinstance(method, ScopedMethod) and method.log_every == 0:
        return method.replace(log_every=LOG_EVERY)
    return method


def _framelets(run: Run) -> str | None:
    """Gates and energies of a framelet student on the observed nodes, as JSON."""
    if not isinstance(run.student, FMLP):
        return None
    return json.dumps(framelet_diagnostics(run), allow_nan=False)


def _in_tables(network: torch.nn.Module | None) -> int:
    """Parameters of a network in tables with a row per node, which grow with the graph."""
    parts = () if network is None else network.modules()
    return sum(int(getattr(part, "num_table_parameters", 0)) for part in parts)


def _attention(run: Run) -> str | None:
    """Whom nodes attend to, as JSON; ``None`` where all of them attend alike."""
    attention = run.record.get("attention")
    if attention is None or not run.committee or bool((attention == attention[:1]).all()):
        return None
    if run.view.info.task == "labels" or len(run.view.test_observed) == 0:
        return None
    return json.dumps(teachers_by_degree(run, seed=run.seed))


def _probe_ratio(run: Run) -> float | None:
    """What the frozen-student probe leaves of the loss; ``None`` where no layers are compared."""
    if not isinstance(run.method, LayerMethod) or run.teacher is None:
        return None
    found = probe(run.view, run.teacher.knowledge, run.method, run.seed, states=("untrained",))
    return found[0].ratio


def _fit_teachers(bench: Bench, group: Group, view: View, seed: int) -> list[FittedTeacher]:
    """The group's teacher, or its committee, each trained or taken from the cache."""
    return [
        replace(
            fit_teacher(
                view,
                member.teacher,
                seed,
                cache=TeacherCache(half_layers=bench.half_layers),
                **member.options,
            ),
            name=member.name,
        )
        for member in bench.members(group.teacher)
    ]


def _teacher_rows(group: Group, setting: str, run: Run, peak: float) -> list[dict[str, Any]]:
    """A row for the teacher, and one for each of a committee."""
    assert run.teacher is not None
    scored = {TEACHER: (run.teacher, run.scores["teacher"])}
    for teacher, scores in zip(run.committee, run.committee_scores, strict=True):
        # a committee may hold a teacher twice, as a control
        scored[f"{TEACHER}:{teacher.name}"] = (teacher, scores)
    return [
        {
            **_row(group, setting, name, scores),
            "parameters": teacher.num_parameters,
            "table_parameters": _in_tables(teacher.module),
            "train_seconds": teacher.train_seconds,
            "peak_mb": peak,
            "options": json.dumps(teacher.options, sort_keys=True),
        }
        for name, (teacher, scores) in scored.items()
    ]


def _tuned(bench: Bench, folder: Path, group: Group, name: str) -> Method:
    """The method with the options that tuning keeps for the group's graph and cut."""
    method = bench.method(name, group.graph, group.settings[0])
    named = bench.candidates(name)
    if bench.trials == 1 and not named:
        return method
    file = tuned_file(bench, folder, group, name)
    file.parent.mkdir(exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        if not file.is_file():
            cases = []
            graph = _load(bench, group.graph)
            for seed in range(bench.tuning_seed, bench.tuning_seed + bench.tuning_seeds):
                view = make_view(graph, group.settings[0], seed, unseen=bench.unseen)
                cases.append(Case(view, tuple(_fit_teachers(bench, group, view, seed)), seed))
            kept = (
                best_candidate(method, named, cases)
                if named
                else drawn_best(method, bench.trials, bench.tuning_seed, cases)
            )
            _write_text(file, json.dumps(kept.model_dump(mode="json"), sort_keys=True))
    return type(method)(**json.loads(file.read_text()))


def _row(group: Group, setting: str, method: str, scores: dict[str, Any]) -> dict[str, Any]:
    columns = set(SCHEMA.names) - {"slices"}
    return {
        "graph": group.graph,
        "setting": setting,
        "seed": group.seed,
        "teacher": group.teacher,
        "method": method,
        **{name: value for name, value in scores.items() if name in columns},
        "slices": json.dumps(scores["slices"], sort_keys=True),
    }


def measure_costs(bench: Bench, folder: Path) -> None:
    """Measure speed and size of what the table holds, once per kind of student.

    A method may give one kind of student under one seed and another under the next. Students that
    :func:`run_group` left for it are taken; where there is none, one is trained.

    Args:
        bench: The table.
        folder: Its folder.
    """
    for group in groups(bench):
        for name in (TEACHER, *bench.methods_of(group.teacher)):
            cell = read_cell(cell_path(bench, folder, group, name))
            assert cell is not None  # the table has been computed
            file = costs_file(bench, folder, group, name, kind_in(cell))
            if file is None or file.is_file():
                continue
            if not any(cell[column].null_count for column in COSTS):
                continue
            file.parent.mkdir(exist_ok=True)
            if name == TEACHER:
                _write_text(file, json.dumps(_teacher_costs(bench, group)))
                continue
            bundle = file.with_suffix(".bundle")
            if not bundle.is_dir():
                view = _view_of(bench, group)
                teachers = _fit_teachers(bench, group, view, group.seed)
                distill(view, teachers, _tuned(bench, folder, group, name), group.seed).save(bundle)
            _write_text(file, json.dumps(_student_costs(bundle)))
            shutil.rmtree(bundle)


def _student_costs(bundle: Path) -> dict[str, float]:
    """Latency and size of a bundle; ``model_bytes`` leaves out what is stored of known nodes."""
    figures = measure_latency(load_bundle(bundle), (1, 256), seconds=LATENCY_SECONDS)
    sizes = {path: path.stat().st_size for path in bundle.rglob("*") if path.is_file()}
    stored = sum(size for path, size in sizes.items() if bundle / "store" in path.parents)
    total = sum(sizes.values())
    return {
        **{f"latency_us_b{size}": figures["x"][str(size)]["p50_us"] for size in (1, 256)},
        "bundle_bytes": total,
        "model_bytes": total - stored,
    }


def _teacher_costs(bench: Bench, group: Group) -> dict[str, float]:
    """Latency of a teacher's exact answer, whichever way is quicker."""
    (member,) = bench.members(group.teacher)
    graph = _load(bench, group.graph)
    options = teacher_options(member.teacher, group.graph, **member.options).model_dump()
    figures = measure_teacher_latency(
        member.teacher, options, graph, (1, 256), seconds=LATENCY_SECONDS
    )
    exact = [figures[way] for way in figures if way != "teacher, drawn neighbours"]
    return {
        f"latency_us_b{size}": min(way[str(size)]["p50_us"] for way in exact) for size in (1, 256)
    }


def _keep_for_costs(bench: Bench, folder: Path, group: Group, name: str, run: Run) -> None:
    """Leave the student for :func:`measure_costs`, if it is the first one of its kind."""
    file = costs_file(bench, folder, group, name, _kind_of(run))
    if file is None or file.is_file():
        return
    file.parent.mkdir(exist_ok=True)
    bundle = file.with_suffix(".bundle")
    with FileLock(file.with_suffix(".lock")):
        if not bundle.is_dir():
            run.save(bundle)


def _kind_of(run: Run) -> str:
    """The kind of student, as bundles call it."""
    return type(run.student).__name__.lower()


def _missing(bench: Bench, folder: Path, group: Group) -> list[str]:
    methods = bench.methods_of(group.teacher)
    cells = [TEACHER, *methods]
    missing = [name for name in cells if not cell_path(bench, folder, group, name).is_file()]
    # the teacher's row is scored beside a student, so one of them must be there
    return [*methods[:1], *missing] if missing == [TEACHER] else missing


class _Spent:
    """Keeps in ``bench.json`` how long each call took that computed cells, costs included.

    A folder may be filled graph by graph, so each call names its graphs. Written every
    ``NOTE_EVERY`` seconds and on leaving, so that a call that was killed counts, too, unless it
    had finished no cell: what it searched by then is not counted.
    """

    def __init__(self, folder: Path, workers: int, graphs: Sequence[str]) -> None:
        self.folder = folder
        self.workers = workers
        self.graphs = list(graphs)
        self.started = time.monotonic()
        self.before = _about(folder).get("spent", [])
        self.there = self._cells()
        self.left = threading.Event()
        self.watch = threading.Thread(target=self._keep_noting, daemon=True)

    def __enter__(self) -> None:
        self.watch.start()

    def __exit__(self, *_: object) -> None:
        self.left.set()
        self.watch.join()
        self.note()

    def _keep_noting(self) -> None:
        while not self.left.wait(NOTE_EVERY):
            # a disk that is full is reported where the next cell is written, or on leaving
            with suppress(OSError, OutputError):
                self.note()

    def note(self) -> None:
        """Write down the time up to now, unless nothing has been computed."""
        cells = self._cells() - self.there
        if cells == 0:
            return
        seconds = round(time.monotonic() - self.started, 1)
        this = {
            "seconds": seconds,
            "workers": self.workers,
            "cells": cells,
            "graphs": self.graphs,
        }
        _note(self.folder, spent=[*self.before, this])

    def _cells(self) -> int:
        return sum(1 for _ in (self.folder / "cells").glob("*.parquet"))


def _note(folder: Path, **about: Any) -> None:
    """Write something down in ``bench.json``."""
    _write_text(folder / MARKER, json.dumps({**_about(folder), **about}))


def _about(folder: Path) -> dict[str, Any]:
    """What ``bench.json`` says."""
    try:
        about: dict[str, Any] = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except ValueError as error:
        raise OutputError(
            f"{folder / MARKER} cannot be read ({error}): choose another folder for 'out'."
        ) from None
    return about


def _prepare(bench: Bench, folder: Path) -> Path:
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: 'out' is a folder, choose another name for it.")
    if folder.exists() and not marker.is_file() and any(folder.iterdir()):
        raise OutputError(
            f"{folder} exists and holds no table of Limbeck: choose another folder for 'out'."
        )
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        spent = _about(folder).get("spent", []) if marker.is_file() else []
        about = {
            "limbeck": limbeck.__version__,
            "bench": bench.model_dump(mode="json"),
            "versions": _versions(),
            "spent": spent,
            "finished": False,
        }
        _write_text(marker, json.dumps(about))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}).") from None
    return folder


def _versions() -> dict[str, str]:
    """What the figures depend on, beside our own code."""
    packages = ("torch", "torch-geometric", "numpy", "scipy", "scikit-learn", "onnxruntime")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _write_cell(path: Path, rows: list[dict[str, Any]]) -> None:
    if not path.is_file():
        _write_parquet(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def _write_parquet(table: pa.Table, path: Path) -> None:
    with appearing_whole(path) as aside:
        pq.write_table(table, aside)


def _write_text(path: Path, text: str) -> None:
    with appearing_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")
