"""``limbeck score``: a bundle's answers for every row of Parquet files, without torch."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.cli.output import say, show_json, show_table
from limbeck.errors import OptionError

if TYPE_CHECKING:
    from limbeck.scoring import Progress, ScoreReport

SECONDS_BETWEEN_LINES = 1.0


def score(
    bundle: Path,
    /,
    *tables: Path,
    id: tuple[str, ...] = (),
    nodes: str | None = None,
    features: str | None = None,
    neighbors: str | None = None,
    probabilities: bool = False,
    logits: bool = False,
    cascade: bool = False,
    max_bad: int | None = None,
    workers: int = 1,
    dask: str | None = None,
    part_rows: int = 262_144,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Answer for every row of Parquet files: BUNDLE IN.parquet ... OUT.parquet.

    Memory does not grow with the files. OUT appears when it is whole; until then what is done is
    kept in OUT.parts, and the same command goes on there. Rows that cannot be answered go to
    OUT.bad.parquet, with their reasons.

    Args:
        bundle: Folder of the bundle.
        tables: The input, Parquet files or folders of them; and last the file to make.
        id: Column to pass through to the output; may be repeated.
        nodes: Column with the ids of known nodes, which are then looked up in the bundle.
        features: Column that holds a node's features as one list; by default the columns that
            training had, or the only fixed-size list of their number.
        neighbors: Column with a list of the ids of a node's neighbours.
        probabilities: Write the probability of each class.
        logits: Write the logits.
        cascade: Mark rows that the student should not be trusted on; known nodes among them are
            answered by the teacher.
        max_bad: Give up when more rows than this cannot be answered.
        workers: Number of processes.
        dask: Address of a Dask scheduler, or local for a cluster of --workers processes.
        part_rows: Rows after which what is done is kept.
        json: Print JSON.
        quiet: Show no progress.
    """
    from limbeck.scoring import Columns, score_tables

    if len(tables) < 2:
        raise OptionError("give the input and, last, the file to make: IN.parquet OUT.parquet.")
    *inputs, output = tables
    report = score_tables(
        bundle,
        inputs,
        output,
        Columns(tuple(id), nodes, features, neighbors, probabilities, logits, cascade),
        max_bad=max_bad,
        workers=workers,
        dask=dask,
        part_rows=part_rows,
        progress=None if quiet else _Lines(),
    )
    if json:
        show_json(asdict(report))
    else:
        _show(report)


class _Lines:
    """Prints how far a job is, on stderr, no more than a line a second."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES and progress.rows < progress.total:
            return
        self._last = now
        share = 100 * progress.rows / max(progress.total, 1)
        say(
            f"{progress.rows:,} of {progress.total:,} rows ({share:.0f} %), "
            f"{progress.rows_per_second:,.0f} rows/s"
        )


def _show(report: ScoreReport) -> None:
    rows = [
        ("rows", f"{report.rows:,}"),
        ("answered", f"{report.answered:,}"),
        ("bad", f"{report.bad:,}" + (f" (in {report.bad_output})" if report.bad else "")),
        *([] if report.deferred is None else [("deferred", f"{report.deferred:,}")]),
        *((f"not seen in training: {name}", f"{n:,}") for name, n in report.unknown.items()),
        ("parts", f"{report.parts}, {report.resumed_parts} of them finished before"),
        ("seconds", f"{report.seconds:.1f}"),
        ("rows a second", f"{report.rows_per_second:,.0f}"),
    ]
    show_table(report.output, ("", "value"), rows)
