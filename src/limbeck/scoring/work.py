"""What one process does: score a part of a file, whole or not at all."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from limbeck.errors import BundleError, InputError
from limbeck.runtime.bundle import MANIFEST
from limbeck.runtime.loading import load_bundle
from limbeck.runtime.predictor import BundledStudent
from limbeck.scoring.parts import (
    ROW_GROUP_ROWS,
    InputFile,
    Part,
    PartResult,
    PartsFolder,
    draft,
    open_input,
    put,
    whole_table,
    writing,
)
from limbeck.scoring.rows import Columns, RowScorer, Scored

READ_BUFFER = 2**20
"""Bytes of each column that are read ahead, in the place of whole row groups."""


@dataclass(frozen=True)
class Work:
    """A part, and all that a process needs to know to score it.

    Args:
        bundle: The bundle's folder.
        seal: Digest of its manifest.
        columns: What is read and written.
        file: The file that the part is in.
        part: The part.
        folder: Where its answers go.
    """

    bundle: str
    seal: str
    columns: Columns
    file: InputFile
    part: Part
    folder: str


def seal_of(bundle: Path) -> str:
    """Digest of a bundle's manifest, which holds those of all its files.

    Raises:
        BundleError: There is none.
    """
    try:
        return hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(f"{bundle / MANIFEST} cannot be read: {error.strerror}.") from error


@lru_cache(maxsize=2)
def student_of(bundle: str, seal: str) -> BundledStudent:
    """The student, loaded once by each process; its files were verified when the job began.

    Raises:
        BundleError: The bundle is not the one that the job began with.
    """
    if seal_of(Path(bundle)) != seal:
        raise BundleError(f"{bundle} was replaced while it was scoring: give the command again.")
    return load_bundle(bundle, verify=False)


def score_part(work: Work) -> PartResult:
    """Score a part and write its files.

    Raises:
        InputError: The file or the bundle changed since the job began, or cannot be read.
        OutputError: The folder cannot be written.
    """
    path = Path(work.file.path)
    found, schema = open_input(path)
    if found != work.file:
        raise InputError(
            f"{path} changed while it was scored: remove {work.folder} and begin anew."
        )
    scorer = RowScorer(student_of(work.bundle, work.seal), work.columns, schema, str(path))
    folder, part = PartsFolder(Path(work.folder)), work.part
    num_bad = deferred = 0
    first_bad: str | None = None
    unknown: Counter[str] = Counter()
    target = folder.answers(part.number)
    with writing(target), draft(folder.path) as bad_draft:
        with (
            whole_table(target, scorer.answer_schema, folder.path) as answers,
            pq.ParquetWriter(bad_draft, scorer.bad_schema) as bad,
        ):
            for scored in _together(_batches(work, scorer)):
                answers.write_table(scored.answers)
                if scored.bad.num_rows:
                    bad.write_table(scored.bad)
                    first_bad = first_bad or _sentence(scored.bad)
                num_bad += scored.bad.num_rows
                unknown.update(scored.unknown)
                if work.columns.cascade:
                    deferred += pc.sum(scored.answers.column("deferred"), min_count=0).as_py()
        if num_bad:
            put(bad_draft, folder.bad(part.number))
        result = PartResult(part.number, part.rows, num_bad, deferred, first_bad, dict(unknown))
        folder.finish(result)
    return result


def _batches(work: Work, scorer: RowScorer) -> Iterator[Scored]:
    """The part's rows, scored batch by batch."""
    path, part = Path(work.file.path), work.part
    groups = list(range(part.first_group, part.first_group + part.num_groups))
    row = part.first_row
    try:
        # not `pre_buffer`, which reads whole row groups: they may be as large as the file
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=READ_BUFFER) as file:
            for batch in file.iter_batches(scorer.batch_rows, groups, scorer.read):
                yield scorer.score(batch, path.name, row)
                row += batch.num_rows
    except pa.ArrowException as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"{path} cannot be read as Parquet: {reason}.") from error


def _together(batches: Iterator[Scored]) -> Iterator[Scored]:
    """Batches put together to as many rows as a row group of the output has."""
    waiting: list[Scored] = []
    for scored in batches:
        waiting.append(scored)
        if sum(each.answers.num_rows for each in waiting) >= ROW_GROUP_ROWS:
            yield _concatenated(waiting)
            waiting = []
    if waiting:
        yield _concatenated(waiting)


def _concatenated(parts: list[Scored]) -> Scored:
    unknown: Counter[str] = Counter()
    for part in parts:
        unknown.update(part.unknown)
    return Scored(
        pa.concat_tables([part.answers for part in parts]),
        pa.concat_tables([part.bad for part in parts]),
        dict(unknown),
    )


def _sentence(bad: pa.Table) -> str:
    """The first bad row, for a message."""
    first = bad.slice(0, 1).to_pylist()[0]
    return f"row {first['row']} of {first['file']}: {first['reason']}"
