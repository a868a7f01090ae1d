"""Tables of runs from several folders, read into one without mixing what differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.errors import InputError
from limbeck.evaluation.cells import MARKER, SCHEMA, collect
from limbeck.evaluation.compare import TEACHER, is_teacher
from limbeck.evaluation.plan import Bench

Row = dict[str, Any]
"""A run: the columns that ``limbeck bench`` writes."""

_KEYS = ("graph", "setting", "seed", "teacher", "method")
_JSON = (
    "slices",
    "options",
    "routing",
    "framelets",
    "attention",
    "curve",
    "reliability",
    "diagnostics",
)
_FIGURES = ("test_accuracy", "val_accuracy", "ece", "brier", "agreement", "parameters")
"""What tells runs of one name apart."""
_SAME = 1e-12
"""Figures closer than this are of one run that two folders hold."""


@dataclass(frozen=True)
class Folder:
    """A folder of runs.

    Args:
        name: Its name, without what leads to it.
        num_runs: Number of its rows.
        version: Version of Limbeck that it was made with, empty if not known.
        finished: Whether the table was completed; else its finished cells were read.
        seconds: Wall-clock time of all calls that computed it, 0 if not known.
    """

    name: str
    num_runs: int
    version: str
    finished: bool
    seconds: float = 0.0

    @property
    def took(self) -> str:
        """The time in words, empty if not known."""
        for unit, length in (("h", 3600), ("min", 60), ("s", 1)):
            if self.seconds >= 2 * length:
                return f"{self.seconds / length:.{1 if unit == 'h' else 0}f} {unit}"
        return ""


@dataclass(frozen=True)
class Runs:
    """All runs of a report.

    Args:
        folders: Where they are from.
        rows: The runs, JSON columns parsed; what an older version did not write is ``None``.
        notes: Sentences on what was renamed to keep apart what differs.
    """

    folders: tuple[Folder, ...]
    rows: list[Row]
    notes: tuple[str, ...]


def read_runs(paths: Sequence[Path]) -> Runs:
    """Read the folders of several tables.

    A run that two folders hold alike is taken once. Where they hold different runs of one name, or
    runs of one name that were made with different options, the later folder's method, or its
    teacher, is called ``NAME @FOLDER``, so that nothing is averaged that was made with other
    options. Of a table that is not finished, its finished cells are read.

    Args:
        paths: Folders that ``limbeck bench`` wrote, at least one.

    Raises:
        InputError: A folder is missing, holds no table, or one that cannot be read.
    """
    if not paths:
        raise InputError("no folder of runs was given: name one that 'limbeck bench' wrote.")
    folders, rows, notes = [], list[Row](), list[str]()
    taken = _Taken()
    names = _short_names(paths)
    for path, name in zip(paths, names, strict=True):
        folder, found = _read(path, name)
        folders.append(folder)
        fresh, renamed = _apart(found, taken, name)
        notes += renamed
        rows += fresh
        taken.add(fresh)
    return Runs(tuple(folders), rows, tuple(notes))


def _read(path: Path, name: str) -> tuple[Folder, list[Row]]:
    if not path.is_dir():
        raise InputError(f"{path} is no folder: name one that 'limbeck bench' wrote.")
    whole = path / "runs.parquet"
    try:
        marker = path / MARKER
        about = json.loads(marker.read_text()) if marker.is_file() else {}
        finished = whole.is_file() and about.get("finished", True)
        rows = [] if finished else _so_far(path, about)
        if not rows and whole.is_file():
            rows = pq.read_table(whole).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read ({reason}).") from None
    if not rows and not whole.is_file():
        raise InputError(
            f"{path} holds no table of runs: name a folder that 'limbeck bench' wrote."
        )
    missing = [key for key in (*_KEYS, "test_accuracy") if rows and key not in rows[0]]
    if not rows or missing:
        what = f"has no column {missing[0]!r}" if missing else "is empty"
        raise InputError(f"{path}: its table {what}, so it is none of 'limbeck bench'.")
    for row in rows:
        row |= {column: None for column in SCHEMA.names if column not in row}
        for column in _JSON:
            row[column] = json.loads(row[column]) if row[column] else None
    seconds = sum(call["seconds"] for call in about.get("spent", []))
    return Folder(name, len(rows), about.get("limbeck", ""), finished, seconds), rows


def _so_far(path: Path, about: dict[str, Any]) -> list[Row]:
    """The rows of the cells that the folder's table asks for; of an older version's, all cells."""
    if "bench" in about:
        try:
            table = collect(Bench(**about["bench"]), path)
        except InputError:  # options, or tables of a graph, that are no longer there
            table = SCHEMA.empty_table()
        if table.num_rows:
            rows: list[Row] = table.to_pylist()
            return rows
    cells = sorted((path / "cells").glob("*.parquet"))
    return [row for cell in cells for row in pq.read_table(cell).to_pylist()]


class _Taken:
    """What has been read from earlier folders."""

    def __init__(self) -> None:
        self._runs: dict[tuple[Any, ...], Row] = {}
        self._options: dict[tuple[Any, ...], list[Any]] = {}

    def add(self, rows: list[Row]) -> None:
        for row in rows:
            self._runs[_key(row)] = row
            made = self._options.setdefault((_cell(row), row["method"]), [])
            if row["options"] and row["options"] not in made:
                made.append(row["options"])

    def __contains__(self, row: Row) -> bool:
        return _key(row) in self._runs

    def differs(self, row: Row) -> bool:
        """Whether a run of its name is another one, or was made with other options."""
        made = self._options.get((_cell(row), row["method"]), [])
        if not self._varies(row) and row["options"] and made and row["options"] not in made:
            return True
        there = self._runs.get(_key(row), {})
        pairs = [(there[name], row[name]) for name in _FIGURES if name in there]
        return any(a is not None and b is not None and abs(a - b) > _SAME for a, b in pairs)

    def _varies(self, row: Row) -> bool:
        """Whether it is that of a committee's best member, who may be another one for each seed."""
        cells = ((cell, method) for cell, method in self._options if method != TEACHER)
        best = row["method"] == TEACHER
        return best and any(is_teacher(name) and cell == _cell(row) for cell, name in cells)


def _apart(rows: list[Row], taken: _Taken, folder: str) -> tuple[list[Row], list[str]]:
    """The rows that are new, renamed where another folder has different ones of their name."""
    other_teachers = {
        _teaching(row) for row in rows if is_teacher(row["method"]) and taken.differs(row)
    }
    notes = dict[str, None]()
    for row in rows:
        if _teaching(row) in other_teachers:
            notes[
                f"The teacher {row['teacher']} of {folder} is not that of an earlier folder: its "
                f"cells are called {row['teacher']} @{folder}."
            ] = None
            row["teacher"] = f"{row['teacher']} @{folder}"
    others = {(_cell(row), row["method"]) for row in rows if taken.differs(row)}
    fresh = []
    for row in rows:
        if (_cell(row), row["method"]) in others and not is_teacher(row["method"]):
            notes[
                f"{row['method']} of {folder} has other figures or options than in an earlier "
                f"folder: it is called {row['method']} @{folder}."
            ] = None
            row["method"] = f"{row['method']} @{folder}"
        if row not in taken:
            fresh.append(row)
    return fresh, list(notes)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in _KEYS)


def _cell(row: Row) -> tuple[str, str, str]:
    return row["graph"], row["setting"], row["teacher"]


def _teaching(row: Row) -> tuple[str, bool, str]:
    """What shares a teacher: all settings with unseen nodes do."""
    return row["graph"], row["setting"] == "transductive", row["teacher"]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Last parts of paths, with a number where two are alike."""
    names: list[str] = []
    for path in paths:
        name = path.resolve().name
        alike = sum(other.partition(" (")[0] == name for other in names)
        names.append(f"{name} ({alike + 1})" if alike else name)
    return names
