"""Where a job stands: its parts, those that are finished, and the table that they become.

A job on ``OUT.parquet`` keeps its state in the folder ``OUT.parquet.parts``::

    plan.json              what is scored by what: another job cannot go on here
    part-00000.parquet     answers of a part, in the input's order
    part-00000.bad.parquet its rows that could not be answered, if there are any
    part-00000.json        how many: written last, so a part that has one is whole

Every file is written under another name, forced to the disk and renamed. What a killed process
leaves half written has a name that nobody reads. The folder itself is renamed before it is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.errors import InputError, OutputError

PLAN = "plan.json"
ROW_GROUP_ROWS = 131_072
"""Rows of a row group of the output."""


@dataclass(frozen=True)
class InputFile:
    """A Parquet file to score.

    Args:
        path: Where it is.
        bytes: Its size.
        changed_ns: When it was changed last, nanoseconds since 1970.
        footer: Digest of its footer, which says where each value stands.
        row_groups: Number of rows in each of its row groups.
    """

    path: str
    bytes: int
    changed_ns: int
    footer: str
    row_groups: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Some row groups of one file, scored as a whole.

    Args:
        number: Its place among the parts.
        file: Number of the file.
        first_group: Its first row group.
        num_groups: How many of them.
        first_row: Number of its first row in the file.
        rows: Number of rows.
    """

    number: int
    file: int
    first_group: int
    num_groups: int
    first_row: int
    rows: int


@dataclass(frozen=True)
class PartResult:
    """What became of a part.

    Args:
        number: Its place among the parts.
        rows: Rows read.
        bad: Rows that could not be answered.
        deferred: Rows that the student should not be trusted on; 0 where it was not asked.
        first_bad: The first of the bad rows: file, row and reason; ``None`` if there is none.
        unknown: Values that training had not seen, by column.
    """

    number: int
    rows: int
    bad: int
    deferred: int = 0
    first_bad: str | None = None
    unknown: Mapping[str, int] = field(default_factory=dict)


def open_input(path: Path) -> tuple[InputFile, pa.Schema]:
    """Read what a Parquet file says of itself.

    Raises:
        InputError: It is none, or cannot be read.
    """
    try:
        status = path.stat()
        with pq.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
            groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
            with path.open("rb") as raw:
                raw.seek(-min(status.st_size, metadata.serialized_size + 8), os.SEEK_END)
                footer = hashlib.sha256(raw.read()).hexdigest()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"{path} cannot be read as Parquet: {reason}.") from error
    return InputFile(str(path), status.st_size, status.st_mtime_ns, footer, groups), schema


def plan_parts(files: Sequence[InputFile], part_rows: int) -> list[Part]:
    """Divide files into parts of at least ``part_rows`` rows, the last of a file may have fewer.

    A row group is never divided.
    """
    parts: list[Part] = []
    for number, file in enumerate(files):
        first_group = first_row = rows = 0
        for group, count in enumerate(file.row_groups):
            rows += count
            if rows >= part_rows or group == len(file.row_groups) - 1:
                count_of_groups = group + 1 - first_group
                parts.append(
                    Part(len(parts), number, first_group, count_of_groups, first_row, rows)
                )
                first_group, first_row, rows = group + 1, first_row + rows, 0
    return parts


class PartsFolder:
    """The state of a job.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._done = path.with_name(f"{path.name}.done")

    def claim(self, plan: Mapping[str, Any]) -> None:
        """Make the folder for a job, or go on in one that the same job left.

        Raises:
            OutputError: It belongs to another job, or cannot be made.
        """
        plan = json.loads(json.dumps(plan))
        with writing(self.path):
            if self._done.exists():  # of a job that was killed when its output was there
                shutil.rmtree(self._done)
            self.path.mkdir(exist_ok=True)
            try:
                found = json.loads((self.path / PLAN).read_text(encoding="utf-8"))
            except FileNotFoundError:
                _write_text(self.path / PLAN, json.dumps(plan, indent=1))
                return
            except (ValueError, RecursionError):
                found = {}
        if found != plan:
            differs = next((key for key in plan if found.get(key) != plan[key]), "files")
            raise OutputError(
                f"{self.path} holds what another job has done ({differs} differ): give that "
                "command again to finish it, or remove the folder to begin anew."
            )

    def finished(self) -> dict[int, PartResult]:
        """Results of the parts that are whole, by number."""
        results = {}
        for path in sorted(self.path.glob("part-*.json")):
            try:
                result = PartResult(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                raise OutputError(
                    f"{path} was altered: remove it to score the part again."
                ) from error
            results[result.number] = result
        return results

    def answers(self, number: int) -> Path:
        """The file of a part's answers."""
        return self.path / f"part-{number:05d}.parquet"

    def bad(self, number: int) -> Path:
        """The file of a part's bad rows."""
        return self.path / f"part-{number:05d}.bad.parquet"

    def finish(self, result: PartResult) -> None:
        """Say that a part is whole; its files are."""
        text = json.dumps(asdict(result), ensure_ascii=False)
        _write_text(self.path / f"part-{result.number:05d}.json", text)

    def join(
        self, results: Sequence[PartResult], out: Path, bad_out: Path, schemas: Sequence[pa.Schema]
    ) -> None:
        """Make the output of all parts, the side file first, and remove the folder.

        Raises:
            OutputError: The place cannot be written.
        """
        answers, bad = schemas
        with writing(out):
            parts = [self.bad(result.number) for result in results if result.bad]
            if parts:
                self._join(parts, bad_out, bad)
            else:
                bad_out.unlink(missing_ok=True)  # of an earlier job
            self._join([self.answers(result.number) for result in results], out, answers)
            sync_folder(out.parent)
            # renamed first: a folder that a kill left half removed would pass for a job's state
            os.replace(self.path, self._done)
            shutil.rmtree(self._done)

    def _join(self, parts: Sequence[Path], target: Path, schema: pa.Schema) -> None:
        with whole_table(target, schema, folder=self.path) as write:
            for part in parts:
                with pq.ParquetFile(part, pre_buffer=False) as file:
                    for group in range(file.num_row_groups):
                        write.write_table(file.read_row_group(group).cast(schema))


@contextlib.contextmanager
def whole_table(target: Path, schema: pa.Schema, folder: Path) -> Iterator[pq.ParquetWriter]:
    """Write a Parquet file that appears when it is whole.

    Text is stored as a dictionary, numbers as they are: answers hardly compress.

    Args:
        target: The file.
        schema: Its columns.
        folder: Where it is written until then, on the same file system.
    """
    text = [
        f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)
    ]
    with draft(folder) as path:
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=text) as writer:
            yield writer
        put(path, target)


@contextlib.contextmanager
def draft(folder: Path) -> Iterator[Path]:
    """Name of a new file in a folder, which is gone afterwards unless it was renamed."""
    path = folder / f".draft-{uuid.uuid4().hex}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def put(path: Path, target: Path) -> None:
    """Force a file to the disk and give it its name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(path, target)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says of a place that cannot be written into a sentence.

    Raises:
        OutputError: Names the place.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path}: {reason}; choose a place that can be written and has room."
        ) from error


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, where the system has a way to say so."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_text(target: Path, text: str) -> None:
    with draft(target.parent) as path:
        path.write_text(text, encoding="utf-8")
        put(path, target)
