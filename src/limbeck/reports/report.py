"""``limbeck report``: tables of runs as one HTML file that opens without a network."""

from __future__ import annotations

import base64
import gzip
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import limbeck
from limbeck.errors import InputError, OutputError, missing_extra
from limbeck.evaluation.compare import (
    TEACHER,
    Cell,
    Comparison,
    CriticalDifference,
    Difference,
    Standing,
    Summary,
    compare,
    critical_difference,
    is_teacher,
    micro_f1_graphs,
    standings,
)
from limbeck.evaluation.published import beside
from limbeck.files import appearing_whole
from limbeck.reports.ranks import ranks_svg
from limbeck.reports.runs import Row, Runs, read_runs
from limbeck.reports.tables import SELECTION_RULE, critical_note, micro_f1_notes

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    from plotly.offline import get_plotlyjs

    from limbeck.reports import cell_figures, method_figures
    from limbeck.reports.drawing import Colors, Figure
    from limbeck.reports.pareto import COST_AXES, Point, pareto
except ModuleNotFoundError as error:
    if error.name not in {"jinja2", "plotly"}:
        raise
    raise missing_extra(error.name, "report") from None

MAX_BYTES = 8_000_000
"""Largest size of a report; over it, figures are left out, and the page says which."""

SPARED = ("training", "agreement-", "calibration", "accuracy-class", "pareto")
"""Kinds of figures that are left out for a page that is too large, in this order."""

COST_COLUMNS = {
    "latency_us_b1": ("µs, 1 node", 1.0, 1),
    "latency_us_b256": ("µs, 256 nodes", 1.0, 1),
    "parameters": ("parameters", 1.0, 0),
    "model_bytes": ("model (kB)", 1000.0, 1),
    "bundle_bytes": ("bundle (kB)", 1000.0, 1),
    "train_seconds": ("training (s)", 1.0, 1),
    "peak_mb": ("peak memory (MB)", 1.0, 0),
}
"""Costs in the table: the heading, what the figure is divided by, and its digits."""

MAX_BLOCKS = 4
"""Most blocks of cells that are ranked."""

ByMethod = dict[str, list[Row]]


@dataclass(frozen=True)
class Block:
    """Cells that hold the same methods, so that ranks and means over them compare.

    Args:
        cells: The cells.
        methods: Their methods, without the members of committees.
        standings: Mean ranks and gaps of the students.
        critical: What the ranks tell apart, if enough students and cells are there.
    """

    cells: tuple[Cell, ...]
    methods: tuple[str, ...]
    standings: tuple[Standing, ...]
    critical: CriticalDifference | None

    def __str__(self) -> str:
        """How many cells, and of which graphs."""
        graphs = list(dict.fromkeys(cell.graph for cell in self.cells))
        named = ", ".join(graphs[:4]) + (f" and {len(graphs) - 4} more" if graphs[4:] else "")
        return f"{_counted(len(self.cells), 'cell')} of {named}"


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    title: str = "Limbeck: a comparison",
) -> Path:
    """Write a report of some tables of runs.

    The file needs nothing from outside. It is written aside and renamed, so that a reader finds the
    old one or the new one.

    Args:
        runs: Folders that ``limbeck bench`` wrote.
        out: The file; one that is already there is replaced.
        title: Title of the page.

    Returns:
        The file.

    Raises:
        InputError: A folder holds no table that can be read.
        OutputError: The file cannot be written.
        MissingExtraError: The extra ``report`` is not installed.
    """
    target = Path(out)
    if target.is_dir():
        raise OutputError(f"{target} is a folder: name a file for the report, such as report.html.")
    page = render_report(read_runs([Path(path) for path in runs]), title)
    with appearing_whole(target) as aside:
        aside.write_text(page, encoding="utf-8")
    return target


def render_report(runs: Runs, title: str) -> str:
    """The page of some runs.

    Args:
        runs: From :func:`~limbeck.reports.runs.read_runs`.
        title: Title of the page.

    Raises:
        InputError: No run has a test accuracy.
    """
    if not any(row["test_accuracy"] is not None for row in runs.rows):
        raise InputError("no run has a test accuracy: there is nothing to report.")
    comparison = compare(runs.rows)
    cells = list(dict.fromkeys(summary.cell for summary in comparison.summaries))
    by_cell = {cell: _by_method(runs.rows, cell, comparison.methods) for cell in cells}
    colors = Colors(comparison.methods)
    drawn = {" / ".join(cell): _of_cell(cell, by_cell[cell], comparison, colors) for cell in cells}
    blocks = _blocks(by_cell)
    overall = _overall(blocks[:MAX_BLOCKS], by_cell, colors)
    left_out: list[str] = []
    while True:
        page = _page(runs, comparison, by_cell, blocks, overall, drawn, left_out, title)
        spared = [kind for kind in SPARED if kind not in left_out]
        if len(page.encode()) <= MAX_BYTES or not spared:
            return page
        left_out.append(spared[0])
        for found in drawn.values():
            found["figures"] = [f for f in found["figures"] if not f["kind"].startswith(spared[0])]


# -- what the page holds -------------------------------------------------------------------


def _page(
    runs: Runs,
    comparison: Comparison,
    by_cell: Mapping[Cell, ByMethod],
    blocks: Sequence[Block],
    overall: list[dict[str, Any]],
    drawn: Mapping[str, Any],
    left_out: Sequence[str],
    title: str,
) -> str:
    environment = Environment(
        loader=PackageLoader("limbeck.reports", "page"),
        autoescape=select_autoescape(["html.j2", "html"], default_for_string=True, default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = environment.loader
    assert source is not None
    cells = list(by_cell)
    table = _table(comparison, by_cell)
    figures = {"overall": overall, "cells": drawn}
    return environment.get_template("report.html.j2").render(
        title=title,
        version=limbeck.__version__,
        folders=runs.folders,
        notes=(*micro_f1_notes(micro_f1_graphs(runs.rows)), *runs.notes),
        num_runs=len(runs.rows),
        seeds=_ranges({row["seed"] for row in runs.rows}),
        graphs=list(dict.fromkeys(cell.graph for cell in cells)),
        settings=list(dict.fromkeys(cell.setting for cell in cells)),
        teachers=list(dict.fromkeys(cell.teacher for cell in cells)),
        methods=comparison.methods,
        cells=[" / ".join(cell) for cell in cells],
        findings=_findings(comparison),
        blocks=[_shown_block(block) for block in blocks[:MAX_BLOCKS]],
        num_unranked=len(cells) - sum(len(block.cells) for block in blocks[:MAX_BLOCKS]),
        no_latency=not _has(runs.rows, "latency_us_b1"),
        no_curves=not _has(runs.rows, "curve"),
        no_reliability=not _has(runs.rows, "reliability"),
        no_inside=not any(_has(runs.rows, c) for c in ("diagnostics", "routing", "framelets")),
        table=table,
        costs={
            column: about
            for column, about in COST_COLUMNS.items()
            if any(line[column] is not None for line in table)
        },
        published=[_published(b) for b in beside(comparison)],
        selection=SELECTION_RULE,
        left_out=[_SPARED_NAMES[kind] for kind in left_out],
        plotly=_plotly(),
        style=source.get_source(environment, "report.css")[0],
        script=source.get_source(environment, "report.js")[0],
        data=packed(json.dumps(figures, separators=(",", ":"), allow_nan=False)),
    )


def packed(text: str) -> str:
    """A text as the page holds it: gzipped, base64. Figures and scripts repeat themselves a lot."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@cache
def _plotly() -> str:
    """The script that draws the figures, packed."""
    return packed(get_plotlyjs())


_SPARED_NAMES = {
    "training": "training curves",
    "agreement-": "agreement by slice",
    "calibration": "calibration curves",
    "accuracy-class": "accuracy by class",
    "pareto": "accuracy against cost of single cells",
}


def _of_cell(
    cell: Cell, by_method: ByMethod, comparison: Comparison, colors: Colors
) -> dict[str, Any]:
    """All figures of a cell, and sentences on what it lacks."""
    where = f"{cell.graph}, {cell.setting}"
    found: list[Figure | None] = [
        *(pareto(_points(by_method, axis), axis, colors, where) for axis in COST_AXES),
        *(
            cell_figures.differences(comparison, cell, ref, colors)
            for ref in comparison.differences
        ),
        *(
            cell_figures.slices(by_method, kind, colors)
            for kind in ("degree", "homophily", "class")
        ),
        cell_figures.calibration(by_method, colors, "calibrated"),
        cell_figures.calibration(by_method, colors, "student"),
        cell_figures.calibration_error(by_method, colors),
        cell_figures.agreement(by_method, colors),
        cell_figures.slices(by_method, "degree", colors, "agreement"),
        cell_figures.training(by_method, colors, "val_score"),
        cell_figures.training(by_method, colors, "loss"),
    ]
    inside = [
        {**figure.to_dict(), "kind": f"inside-{figure.kind}", "group": method}
        for method, rows in by_method.items()
        for figure in method_figures.inside(method, rows)
    ]
    return {
        "figures": [f.to_dict() for f in found if f is not None] + inside,
        "missing": _missing(found, inside),
    }


def _missing(found: Iterable[Figure | None], inside: Sequence[Any]) -> list[str]:
    kinds = {figure.kind for figure in found if figure is not None}
    said = {
        "pareto-latency_us_b1": "Latency was not measured here; 'limbeck bench --latency' on the "
        "same folder does it without computing the cells again.",
        "accuracy-homophily": "There are no slices by homophily and class: nodes have several "
        "labels, or too few kinds of nodes are there.",
        "calibration-student": "There are no calibration curves: an older version computed these "
        "cells.",
        "training-val_score": "There are no training curves: an older version computed these "
        "cells.",
    }
    sentences = [text for kind, text in said.items() if kind not in kinds]
    if not inside:
        sentences.append(
            "Nothing is shown of what goes on inside the methods: these cells were computed "
            "without 'diagnostics: true', or no method here has something to show."
        )
    return sentences


def _blocks(by_cell: Mapping[Cell, ByMethod]) -> list[Block]:
    """Cells by the methods they hold, the block of most cells first, then of most methods."""
    together: dict[tuple[str, ...], list[Cell]] = {}
    for cell, by_method in by_cell.items():
        methods = tuple(m for m in by_method if m == TEACHER or not is_teacher(m))
        together.setdefault(methods, []).append(cell)
    blocks = []
    for methods, cells in together.items():
        rows = [row for cell in cells for method in methods for row in by_cell[cell][method]]
        found = tuple(standings(rows))
        if len(found) > 1:
            blocks.append(Block(tuple(cells), methods, found, critical_difference(rows)))
    return sorted(blocks, key=lambda block: (-len(block.cells), -len(block.methods)))


def _overall(
    blocks: Sequence[Block], by_cell: Mapping[Cell, ByMethod], colors: Colors
) -> list[dict[str, Any]]:
    """Accuracy against each cost, as means over the cells of each block."""
    drawn = []
    for axis in COST_AXES:
        for block in blocks:
            points = []
            for method in block.methods:
                each = [_points({method: by_cell[cell][method]}, axis) for cell in block.cells]
                if all(each):
                    costs = [of_cell[0].cost for of_cell in each]
                    score = statistics.fmean(of_cell[0].score for of_cell in each)
                    points.append(Point(method, statistics.geometric_mean(costs), score))
            where = str(block) if len(block.cells) == 1 else f"mean of {block}"
            figure = pareto(points, axis, colors, where)
            if figure is not None:
                drawn.append(figure.to_dict())
    return drawn


def _points(by_method: Mapping[str, Sequence[Row]], axis: str) -> list[Point]:
    """The methods that have a cost, at its median."""
    points = []
    for method, rows in by_method.items():
        costs = [row[axis] for row in rows if row.get(axis)]
        scores = [row["test_accuracy"] for row in rows if row["test_accuracy"] is not None]
        if costs and scores:
            spread = statistics.pstdev(scores)
            cost = float(statistics.median(costs))
            points.append(Point(method, cost, statistics.fmean(scores), spread))
    return points


def _findings(comparison: Comparison) -> list[str]:
    """What stands out, in sentences that are right for any table."""
    found = []
    cells = {summary.cell for summary in comparison.summaries}
    means = {(s.cell, s.method): s.mean for s in comparison.summaries}
    taught = [cell for cell in cells if (cell, TEACHER) in means]
    ahead = [
        cell
        for cell in taught
        if any(
            mean >= means[cell, TEACHER]
            for (other, method), mean in means.items()
            if other == cell and not is_teacher(method)
        )
    ]
    if taught:
        found.append(
            f"In {len(ahead)} of {_counted(len(taught), 'cell')} some student is at least as "
            "accurate as its teacher."
        )
    if comparison.degenerate:
        names = sorted({method for _, method in comparison.degenerate})
        found.append(
            f"The loss of {', '.join(names)} is degenerate in some cells (†): what is trained "
            "beside the student satisfies it without the student."
        )
    return found


def _shown_block(block: Block) -> dict[str, Any]:
    """A block as the page shows it."""
    first = block.standings[0]
    behind = (
        f"where it is furthest behind the best student it lacks {100 * first.gap_to_best:.1f} "
        f"points ({', '.join(first.gap_to_best_cell)})"
        if first.gap_to_best
        else "no student is ahead of it anywhere"
    )
    found = [
        f"{first.method} has the best mean rank, {first.mean_rank:.2f} over "
        f"{_counted(first.num_cells, 'cell')}; {behind}."
    ]
    safest = min(block.standings, key=lambda s: s.gap_to_best)
    if safest.gap_to_best < first.gap_to_best:
        found.append(
            f"{safest.method} has the smallest worst gap, {100 * safest.gap_to_best:.1f} points "
            f"({', '.join(safest.gap_to_best_cell)})."
        )
    return {
        "name": f"{len(block.standings)} students in {block}",
        "findings": found,
        "standings": [_standing(standing) for standing in block.standings],
        "ranks": None if block.critical is None else ranks_svg(block.critical),
        "note": None if block.critical is None else critical_note(block.critical),
    }


def _standing(standing: Standing) -> dict[str, Any]:
    teacher_cell = standing.gap_to_teacher_cell
    return {
        **asdict(standing),
        "gap_to_best_cell": ", ".join(standing.gap_to_best_cell),
        "gap_to_teacher_cell": "" if teacher_cell is None else ", ".join(teacher_cell),
    }


def _table(comparison: Comparison, by_cell: Mapping[Cell, ByMethod]) -> list[dict[str, Any]]:
    """A line of the table per cell and method."""
    best = {
        cell: max((s.mean for s in comparison.summaries if _student_of(s, cell)), default=None)
        for cell in by_cell
    }
    differences = {
        reference: {(d.cell, d.method): d for d in found}
        for reference, found in comparison.differences.items()
    }
    lines = []
    for summary in comparison.summaries:
        cell, method = summary.cell, summary.method
        rows = by_cell[cell][method]
        lines.append(
            {
                "graph": cell.graph,
                "setting": cell.setting,
                "teacher": cell.teacher,
                "method": method,
                "seeds": summary.num_seeds,
                "accuracy": 100 * summary.mean,
                "std": 100 * summary.std,
                "best": not is_teacher(method) and summary.mean == best[cell],
                "degenerate": (cell, method) in comparison.degenerate,
                "differences": {
                    reference: _difference(found.get((cell, method)))
                    for reference, found in differences.items()
                },
                "agreement": None if is_teacher(method) else _mean(rows, "agreement", 100),
                "ece": _mean(rows, "ece", 100),
                **{column: _median(rows, column) for column in COST_COLUMNS},
            }
        )
    return lines


def _student_of(summary: Summary, cell: Cell) -> bool:
    return summary.cell == cell and not is_teacher(summary.method)


def _difference(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    low, high = found.low, found.high
    interval = None if low is None or high is None else (100 * low, 100 * high)
    return {"mean": 100 * found.mean, "interval": interval}


def _published(pair: Any) -> dict[str, Any]:
    number = pair.published._asdict()
    gap = None if pair.mean is None else pair.mean - number["mean"]
    return {**number, "ours": pair.mean, "ours_std": pair.std, "gap": gap}


def _by_method(rows: Sequence[Row], cell: Cell, methods: Sequence[str]) -> ByMethod:
    here = [row for row in rows if (row["graph"], row["setting"], row["teacher"]) == cell]
    found = {method: [row for row in here if row["method"] == method] for method in methods}
    return {method: rows for method, rows in found.items() if rows}


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in words: 0, 2, 3 and 4 as ``0, 2 to 4``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = (f"{r[0]} to {r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs)
    return ", ".join(words)


def _has(rows: Iterable[Row], column: str) -> bool:
    return any(row.get(column) is not None for row in rows)


def _mean(rows: Sequence[Row], column: str, scale: float) -> float | None:
    values = [row[column] for row in rows if row.get(column) is not None]
    return scale * statistics.fmean(values) if values else None


def _median(rows: Sequence[Row], column: str) -> float | None:
    values = [row[column] for row in rows if row.get(column) is not None]
    return float(statistics.median(values)) if values else None
