"""Where a table keeps its cells, tuned options and costs, and how they are read together.

The name of a file holds everything that its content depends on, so what is there need not be
computed again.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.errors import OutputError
from limbeck.evaluation.compare import TEACHER
from limbeck.evaluation.plan import Bench, Group, Member, groups
from limbeck.graphs.load import content_of
from limbeck.teachers.fit import teacher_options

MARKER = "bench.json"
"""File of a table's folder that says what it holds, with which versions and in what time."""

TIMED_TEACHERS = ("sage", "gcn", "gat", "appnp", "sgc", "gcnii", "gpr-gnn", "linkx")
"""Teachers whose answer for a node is timed; the others need a transform of the whole graph."""

COSTS = ("latency_us_b1", "latency_us_b256", "bundle_bytes", "model_bytes")
"""Columns that are measured once per graph, cut, method and kind of student."""

SCHEMA = pa.schema(
    [
        ("graph", pa.string()),
        ("setting", pa.string()),
        ("seed", pa.int64()),
        ("teacher", pa.string()),
        ("method", pa.string()),
        ("metric", pa.string()),
        ("val_accuracy", pa.float64()),
        ("test_accuracy", pa.float64()),
        ("test_macro_f1", pa.float64()),
        ("test_roc_auc", pa.float64()),
        ("agreement", pa.float64()),
        ("ece", pa.float64()),
        ("brier", pa.float64()),
        ("cut_consistency", pa.float64()),
        ("parameters", pa.int64()),
        ("train_seconds", pa.float64()),
        ("epochs", pa.int64()),
        ("peak_mb", pa.float64()),
        ("latency_us_b1", pa.float64()),
        ("latency_us_b256", pa.float64()),
        ("bundle_bytes", pa.int64()),
        ("model_bytes", pa.int64()),
        ("num_test_nodes", pa.int64()),
        ("slices", pa.string()),
        ("options", pa.string()),
        ("routing", pa.string()),
        ("probe_ratio", pa.float64()),
        ("framelets", pa.string()),
        ("table_parameters", pa.int64()),
        ("attention", pa.string()),
        ("curve", pa.string()),
        ("reliability", pa.string()),
        ("diagnostics", pa.string()),
        ("student", pa.string()),
    ]
)


def collect(bench: Bench, folder: Path) -> pa.Table:
    """The rows of a table that have been computed so far."""
    cells = [
        _with_costs(cell, costs_file(bench, folder, group, method, kind_in(cell)))
        for group in groups(bench)
        for method in (TEACHER, *bench.methods_of(group.teacher))
        if (cell := read_cell(cell_path(bench, folder, group, method))) is not None
    ]
    if not cells:
        return SCHEMA.empty_table()
    wanted = set(bench.settings)
    table = pa.concat_tables(cells)
    keep = [setting in wanted for setting in table["setting"].to_pylist()]
    return table.filter(pa.array(keep))


def read_cell(path: Path) -> pa.Table | None:
    """A cell's rows, if it is there."""
    try:
        return pq.read_table(path, schema=SCHEMA) if path.is_file() else None
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise OutputError(
            f"{path} cannot be read ({reason}): remove it, and what it held is computed again."
        ) from None


def kind_in(cell: pa.Table) -> str | None:
    """The kind of student in a cell; ``None`` for teachers, and in cells of older versions."""
    kind: str | None = cell["student"][0].as_py()
    return kind


def costs_file(
    bench: Bench, folder: Path, group: Group, name: str, student: str | None
) -> Path | None:
    """Where speed and size are kept; ``None`` for what is not measured or not known yet.

    Its name holds what they depend on: the graph, the options, the cut, which says how many nodes
    are known, and the kind of student; not the seed.
    """
    if name == TEACHER:
        (member, *others) = bench.members(group.teacher)
        if others or member.teacher not in TIMED_TEACHERS:
            return None
        kind = f"{TEACHER}-{member.teacher}"
        options = teacher_options(member.teacher, group.graph, **member.options).model_dump()
    else:
        method = bench.method(name, group.graph, group.settings[0])
        if bench.trials > 1 or bench.candidates(name):
            tuned = tuned_file(bench, folder, group, name)
            if not tuned.is_file():
                return None
            method = type(method)(**json.loads(tuned.read_text()))
        kind, options = method.name, method.model_dump(mode="json")
    parts = [*_graph_of(bench, group), kind, options]
    if student is not None:  # else as before cells said it, so that theirs are still found
        parts += [_cut_of(group), student]
    return folder / "costs" / f"{kind}.{_digest(parts)}.json"


def _with_costs(cell: pa.Table, file: Path | None) -> pa.Table:
    """A cell's rows with speed and size, where they are known and not there yet.

    Rows of the members of a committee have none.
    """
    if file is None or not file.is_file():
        return cell
    for column, value in json.loads(file.read_text()).items():
        place = SCHEMA.get_field_index(column)
        values = [value if there is None else there for there in cell[column].to_pylist()]
        field = SCHEMA.field(place)
        cell = cell.set_column(place, field, pa.array(values, type=field.type))
    return cell


def cell_path(bench: Bench, folder: Path, group: Group, name: str) -> Path:
    """File of a cell; its name holds everything that the result depends on."""
    method = {}
    if name != TEACHER:
        method = bench.method(name, group.graph, group.settings[0]).model_dump()
        if bench.trials > 1 or bench.candidates(name):
            tuning = [bench.trials, bench.tuning_seed, *_tuning_beyond(bench, name)]
            method["tuning"] = tuning
        if bench.diagnostics:
            method["diagnostics"] = True
        if is_probed(bench, group):
            method["probe"] = True
    teachers = _teachers_of(bench, group, complete=True)
    if bench.half_layers:
        teachers = {"half layers": teachers}
    digest = _digest(
        [*_graph_of(bench, group), group.settings, group.seed, name, method, teachers, bench.unseen]
    )
    parts = (group.graph, _cut_of(group), group.teacher, str(group.seed), name, digest)
    stem = ".".join(re.sub(r"[/\\:]", "-", part) for part in parts)
    return folder / "cells" / f"{stem}.parquet"


def _graph_of(bench: Bench, group: Group) -> list[Any]:
    """What a digest says of a graph: its name, and what is in it where that may change."""
    content, read = content_of(group.graph), bench.tables.get(group.graph)
    return [group.graph, *([content] if content else []), *([read] if read else [])]


def _cut_of(group: Group) -> str:
    """What is told apart of the settings: whether nodes are cut away before training."""
    return "whole" if group.settings[0] == "transductive" else "cut"


def _teachers_of(bench: Bench, group: Group, *, complete: bool = False) -> Any:
    """What a digest says of a group's teachers.

    Args:
        bench: The table.
        group: The group.
        complete: With the options of the graph's presets, too.
    """

    def options(member: Member) -> dict[str, Any]:
        if not complete:
            return member.options
        return teacher_options(member.teacher, group.graph, **member.options).model_dump()

    members = bench.members(group.teacher)
    # as before there were variants and committees, so that cells computed then are still found
    if [member.teacher for member in members] == [group.teacher]:
        return options(members[0])
    return [[member.name, member.teacher, options(member)] for member in members]


def tuned_file(bench: Bench, folder: Path, group: Group, name: str) -> Path:
    """Where the options are kept that tuning found for a group's graph and cut."""
    method = bench.method(name, group.graph, group.settings[0])
    digest = _digest(
        [
            *_graph_of(bench, group),
            _cut_of(group),
            group.teacher,
            _teachers_of(bench, group),
            method.name,
            method.model_dump(),
            bench.trials,
            bench.tuning_seed,
            bench.unseen,
            *_tuning_beyond(bench, name),
        ]
    )
    return folder / "tuned" / f"{method.name}.{digest}.json"


def _tuning_beyond(bench: Bench, name: str) -> list[Any]:
    """What a digest says of tuning beyond ``trials`` on one seed."""
    named, seeds = bench.candidates(name), bench.tuning_seeds
    return [*([named] if named else []), *([{"seeds": seeds}] if seeds > 1 else [])]


def is_probed(bench: Bench, group: Group) -> bool:
    """Whether the frozen-student probe is run in the cells of a group."""
    return bench.probe and group.seed in bench.seeds_of(group.graph)[: bench.probe_seeds]


def _digest(parts: list[Any]) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
