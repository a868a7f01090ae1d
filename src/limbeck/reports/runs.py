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
from limbeck.evaluation.compare import TEACHER, is_teacher

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
_SAME = 1e-12
"""Accuracies closer than this are of one run that two folders hold."""


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

    A run that two folders hold alike is taken once. Where they hold different runs of one name, the
    later folder's method, or its teacher, is called ``NAME @FOLDER``, so that nothing is averaged
    that was made with other options.

    Args:
        paths: Folders that ``limbeck bench`` wrote, at least one.

    Raises:
        InputError: A folder is missing, holds no table, or one that cannot be read.
    """
    if not paths:
        raise InputError("no folder of runs was given: name one that 'limbeck bench' wrote.")
    folders, rows, notes = [], list[Row](), list[str]()
    taken: dict[tuple[Any, ...], float] = {}
    names = _short_names(paths)
    for path, name in zip(paths, names, strict=True):
        folder, found = _read(path, name)
        folders.append(folder)
        fresh, renamed = _apart(found, taken, name)
        notes += renamed
        rows += fresh
        taken |= {_key(row): row["test_accuracy"] for row in fresh}
    return Runs(tuple(folders), rows, tuple(notes))


def _read(path: Path, name: str) -> tuple[Folder, list[Row]]:
    if not path.is_dir():
        raise InputError(f"{path} is no folder: name one that 'limbeck bench' wrote.")
    whole = path / "runs.parquet"
    files = [whole] if whole.is_file() else sorted((path / "cells").glob("*.parquet"))
    if not files:
        raise InputError(
            f"{path} holds no table of runs: name a folder that 'limbeck bench' wrote."
        )
    try:
        tables = [pq.read_table(file) for file in files]
        marker = path / "bench.json"
        about = json.loads(marker.read_text()) if marker.is_file() else {}
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read ({reason}).") from None
    rows = [row for table in tables for row in table.to_pylist()]
    missing = [key for key in (*_KEYS, "test_accuracy") if rows and key not in rows[0]]
    if not rows or missing:
        what = f"has no column {missing[0]!r}" if missing else "is empty"
        raise InputError(f"{path}: its table {what}, so it is none of 'limbeck bench'.")
    for row in rows:
        for column in _JSON:
            row[column] = json.loads(row[column]) if row.get(column) else None
    seconds = sum(call["seconds"] for call in about.get("spent", []))
    return Folder(name, len(rows), about.get("limbeck", ""), whole.is_file(), seconds), rows


def _apart(
    rows: list[Row], taken: dict[tuple[Any, ...], float], folder: str
) -> tuple[list[Row], list[str]]:
    """The rows that are new, renamed where another folder has different ones of their name."""

    def differ(row: Row) -> bool:
        there = taken.get(_key(row))
        return there is not None and abs(there - row["test_accuracy"]) > _SAME

    other_teachers = {_cell(row) for row in rows if row["method"] == TEACHER and differ(row)}
    notes = dict[str, None]()
    for row in rows:
        if _cell(row) in other_teachers:
            notes[
                f"The teacher {row['teacher']} of {folder} is not that of an earlier folder: its "
                f"cells are called {row['teacher']} @{folder}."
            ] = None
            row["teacher"] = f"{row['teacher']} @{folder}"
    others = {(_cell(row), row["method"]) for row in rows if differ(row)}
    fresh = []
    for row in rows:
        if (_cell(row), row["method"]) in others and not is_teacher(row["method"]):
            notes[
                f"{row['method']} of {folder} has other figures than in an earlier folder: it is "
                f"called {row['method']} @{folder}."
            ] = None
            row["method"] = f"{row['method']} @{folder}"
        if _key(row) not in taken:
            fresh.append(row)
    return fresh, list(notes)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in _KEYS)


def _cell(row: Row) -> tuple[str, str, str]:
    return row["graph"], row["setting"], row["teacher"]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Last parts of paths, with a number where two are alike."""
    names: list[str] = []
    for path in paths:
        name = path.resolve().name
        alike = sum(other.partition(" (")[0] == name for other in names)
        names.append(f"{name} ({alike + 1})" if alike else name)
    return names
