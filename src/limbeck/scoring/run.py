"""A job of bulk scoring, from its files to its output."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from limbeck.errors import InputError, OptionError, OutputError, RequestError
from limbeck.runtime.bundle import open_bundle
from limbeck.scoring.engines import in_processes, in_this_process, under_dask
from limbeck.scoring.parts import InputFile, PartResult, PartsFolder, open_input, plan_parts
from limbeck.scoring.rows import Columns, RowScorer
from limbeck.scoring.work import Work, seal_of, student_of

PART_ROWS = 262_144
"""Rows of a part by default: about a second's work, and what a killed process has to do again."""

SUFFIX = ".parquet"


class Progress(NamedTuple):
    """How far a job is.

    Args:
        rows: Rows that are done, also by earlier calls.
        total: Rows of the input.
        seconds: Time since this call began.
        rows_per_second: Of this call; 0 before its first part.
    """

    rows: int
    total: int
    seconds: float
    rows_per_second: float


@dataclass(frozen=True)
class ScoreReport:
    """What a job did.

    Args:
        output: The table of answers.
        bad_output: The table of rows that could not be answered; ``None`` if there are none.
        rows: Rows of the input.
        answered: Rows answered.
        bad: Rows that could not be answered.
        deferred: Rows that the student should not be trusted on; ``None`` where it was not asked.
        unknown: Values that training had not seen, by column; they count as zeros.
        parts: Number of parts.
        resumed_parts: How many of them an earlier call had finished.
        seconds: Time that this call took.
        rows_per_second: Rows that this call scored, by that time.
    """

    output: str
    bad_output: str | None
    rows: int
    answered: int
    bad: int
    deferred: int | None
    unknown: dict[str, int] = field(default_factory=dict)
    parts: int = 0
    resumed_parts: int = 0
    seconds: float = 0.0
    rows_per_second: float = 0.0


def score_tables(
    bundle: str | os.PathLike[str],
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    columns: Columns | None = None,
    *,
    max_bad: int | None = None,
    workers: int = 1,
    dask: str | None = None,
    part_rows: int = PART_ROWS,
    progress: Callable[[Progress], None] | None = None,
) -> ScoreReport:
    """Answer for every row of some Parquet files.

    Rows are read, answered and written batch by batch, so memory does not grow with the files. The
    output appears when it is whole. Until then what is finished is kept in ``OUTPUT.parts``: the
    same call goes on there, whatever ended the one before, and makes the same output, whichever
    processes work on it.

    Args:
        bundle: The bundle's folder.
        inputs: Parquet files, or folders of them, which are read in the order of their names. All
            have the same columns.
        output: The file to make, ``*.parquet``; one that is there is replaced. Rows that cannot be
            answered go to ``*.bad.parquet`` beside it, with their numbers and reasons.
        columns: What is read and written.
        max_bad: How many rows may not be answered; ``None`` for any number. Beyond it the job ends
            without output when a part is finished.
        workers: Number of processes. Several are spawned: call this under
            ``if __name__ == "__main__"``.
        dask: Address of a Dask scheduler whose workers see the same files, or ``"local"`` for a
            cluster of ``workers`` processes here; ``None`` for no Dask.
        part_rows: Rows after which what is done is kept, where a row group ends.
        progress: Called when a part is finished.

    Raises:
        BundleError: The folder is no bundle, or is not whole.
        InputError: A file or a column is missing, or of the wrong type: before the first row.
        OptionError: A number is out of range, or columns do not fit the student.
        OutputError: The place cannot be written, or ``OUTPUT.parts`` belongs to another job.
        RequestError: More than ``max_bad`` rows cannot be answered.
        MissingExtraError: Dask is asked for, and not installed.
    """
    started = time.monotonic()
    columns = columns or Columns()
    _check_numbers(max_bad, workers, part_rows)
    job = _prepared(Path(bundle), inputs, Path(output), columns, part_rows)
    job.folder.claim(job.plan)
    results = job.folder.finished()
    resumed = len(results)
    left = [work for work in job.works if work.part.number not in results]
    total = sum(work.part.rows for work in job.works)
    done = before = sum(result.rows for result in results.values())
    _check_bad(list(results.values()), max_bad)
    for result in _scored(left, workers, dask):
        results[result.number] = result
        done += result.rows
        if progress is not None:
            seconds = time.monotonic() - started
            progress(Progress(done, total, seconds, (done - before) / seconds))
        _check_bad(list(results.values()), max_bad)
    ordered = [results[work.part.number] for work in job.works]
    job.folder.join(ordered, job.output, job.bad_output, job.schemas)
    return _report(job, columns, ordered, resumed, done - before, time.monotonic() - started)


@dataclass(frozen=True)
class _Job:
    """A job whose options are checked: its parts, and where they go."""

    works: tuple[Work, ...]
    plan: dict[str, Any]
    folder: PartsFolder
    output: Path
    bad_output: Path
    schemas: tuple[pa.Schema, pa.Schema]


def _prepared(
    bundle: Path,
    inputs: Sequence[str | os.PathLike[str]],
    output: Path,
    columns: Columns,
    part_rows: int,
) -> _Job:
    """Check everything that can be checked before the first row."""
    target = Path(os.path.realpath(output))
    bad_output = target.with_name(target.name.removesuffix(SUFFIX) + ".bad" + SUFFIX)
    paths = _input_files(inputs)
    _check_output(target, bad_output, paths)
    where = Path(os.path.realpath(bundle))
    open_bundle(where).manifest.require_one_class("scoring")
    seal = seal_of(where)
    files, schemas = [], []
    for path in paths:
        file, schema = open_input(path)
        files.append(file)
        schemas.append(schema)
    scorer = RowScorer(student_of(str(where), seal), columns, schemas[0], str(paths[0]))
    _check_same(scorer.read, files, schemas)
    folder = PartsFolder(target.with_name(f"{target.name}.parts"))
    parts = plan_parts(files, part_rows)
    works = tuple(
        Work(str(where), seal, columns, files[part.file], part, str(folder.path)) for part in parts
    )
    plan = {
        "bundle": seal,
        "columns": asdict(columns),
        "part_rows": part_rows,
        "files": [asdict(file) for file in files],
    }
    return _Job(works, plan, folder, target, bad_output, (scorer.answer_schema, scorer.bad_schema))


def _input_files(inputs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Parquet files of the input, in order."""
    if not inputs:
        raise OptionError("no input was given: give Parquet files, or a folder of them.")
    found: list[Path] = []
    for given in inputs:
        path = Path(os.path.realpath(given))
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() == SUFFIX and p.is_file())
            if not inside:
                raise InputError(f"the folder {given} holds no {SUFFIX} file.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"there is no file or folder {given}.")
    twice = next((path for path in found if found.count(path) > 1), None)
    if twice is not None:
        raise OptionError(f"{twice} is given twice: its rows would be scored twice.")
    return found


def _check_output(target: Path, bad_output: Path, inputs: Sequence[Path]) -> None:
    if target.suffix != SUFFIX:
        raise OptionError(f"the output {target.name} must be called *{SUFFIX}.")
    if not target.parent.is_dir():
        raise OutputError(
            f"cannot write {target}: the folder {target.parent} does not exist; make it first."
        )
    if target.is_dir():
        raise OutputError(f"cannot write {target}: a folder of that name is there.")
    for path in (target, bad_output):
        if path in inputs:
            raise OptionError(f"{path} is both input and output: choose another place.")


def _check_same(
    names: Sequence[str], files: Sequence[InputFile], schemas: Sequence[pa.Schema]
) -> None:
    """Refuse files whose columns differ from those of the first."""
    for file, schema in zip(files, schemas, strict=True):
        for name in names:
            wanted = schemas[0].field(name).type
            given = schema.field(name).type if schema.names.count(name) == 1 else None
            if given != wanted:
                found = "missing" if given is None else given
                raise InputError(
                    f"column {name!r} is {wanted} in {files[0].path} and {found} in {file.path}: "
                    "all files must have the same columns."
                )


def _check_numbers(max_bad: int | None, workers: int, part_rows: int) -> None:
    if max_bad is not None and max_bad < 0:
        raise OptionError(f"max_bad is {max_bad}: it must be at least 0.")
    for name, value in (("workers", workers), ("part_rows", part_rows)):
        if value < 1:
            raise OptionError(f"{name} is {value}: it must be at least 1.")


def _check_bad(results: Sequence[PartResult], max_bad: int | None) -> None:
    bad = sum(result.bad for result in results)
    if max_bad is not None and bad > max_bad:
        first = next(result.first_bad for result in results if result.bad)
        raise RequestError(
            f"{bad:,} rows so far cannot be answered, and --max-bad allows {max_bad:,}; the first "
            f"found is {first}."
        )


def _scored(works: Sequence[Work], workers: int, dask: str | None) -> Iterator[PartResult]:
    if not works:
        return iter(())
    if dask is not None:
        return under_dask(works, dask, workers)
    if workers == 1:
        return in_this_process(works)
    return in_processes(works, min(workers, len(works)))


def _report(
    job: _Job,
    columns: Columns,
    results: Sequence[PartResult],
    resumed: int,
    rows_now: int,
    seconds: float,
) -> ScoreReport:
    unknown: Counter[str] = Counter()
    for result in results:
        unknown.update(result.unknown)
    rows, bad = sum(result.rows for result in results), sum(result.bad for result in results)
    deferred = sum(result.deferred for result in results) if columns.cascade else None
    return ScoreReport(
        str(job.output),
        str(job.bad_output) if bad else None,
        rows,
        rows - bad,
        bad,
        deferred,
        dict(unknown),
        len(results),
        resumed,
        seconds,
        rows_now / seconds,
    )
