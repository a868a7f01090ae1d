"""A comparison as tables: Markdown for files, rich for a terminal.

Figures are in percent, ``mean ± population standard deviation``; differences are in percentage
points. The number of seeds and the rule that selected the checkpoints are always printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from limbeck.evaluation.compare import (
    METRICS,
    Cell,
    Comparison,
    CriticalDifference,
    Difference,
    Summary,
    is_teacher,
)

SELECTION_RULE = (
    "checkpoint of best validation accuracy on the observed graph, ties to the later epoch; "
    "test nodes scored once"
)
MOST_COLUMNS = 12
"""Methods that stand side by side in Markdown; more of them stand below one another."""

_NOTHING = "–"
_MARK = " †"
_DEGENERATE = (
    "† degenerate: what is trained beside the student brings this loss below 1 % of its start "
    "while the student stays as it is (limbeck probe)."
)


def to_markdown(comparison: Comparison) -> str:
    """Write a comparison as Markdown.

    Args:
        comparison: What :func:`limbeck.evaluation.compare.compare` found.

    Returns:
        A heading and a table of means with the best student of each cell in bold, a table of
        paired differences for each reference, and one of mean ranks and worst gaps; ends with a
        newline. Up to :data:`MOST_COLUMNS` methods are columns, more of them rows.
    """
    header, rows = _means(comparison)
    best = _best(comparison)
    first = len(header) - len(comparison.methods)
    for cell, row in zip(_cells(comparison), rows, strict=True):
        for method in best[cell]:
            column = first + comparison.methods.index(method)
            row[column] = f"**{row[column]}**"
    named = len(_name_header(_cells(comparison)))

    def drawn(header: list[str], rows: list[list[str]]) -> str:
        many = len(comparison.methods) > MOST_COLUMNS
        return _markdown_table(*(_turned(header, rows, named) if many else (header, rows)))

    parts = [
        f"## {METRICS[comparison.metric].capitalize()} (%)",
        drawn(header, rows),
        *(f"*{line}*" for line in _notes(comparison)),
    ]
    for reference, differences in comparison.differences.items():
        parts += [
            f"### Difference to {reference} (percentage points)",
            drawn(*_differences(comparison, differences)),
            f"*{_interval_note(comparison)}*",
        ]
    parts += ["### Mean rank and worst gaps", standings_to_markdown(comparison)]
    return "\n\n".join(parts) + "\n"


def standings_to_markdown(comparison: Comparison) -> str:
    """Write the mean ranks and worst gaps of a comparison as Markdown.

    Args:
        comparison: What :func:`limbeck.evaluation.compare.compare` found.

    Returns:
        A table with a row for each student, and what to know of it; or that there is none.
    """
    parts = [_NO_STANDINGS]
    if comparison.standings:
        parts = [_markdown_table(*_standings(comparison)), f"*{_standing_note(comparison)}*"]
    if comparison.critical is not None:
        parts.append(critical_note(comparison.critical))
    return "\n\n".join(parts)


def to_terminal(comparison: Comparison) -> Table:
    """The table of means for a terminal, with the best student of each row in bold.

    Args:
        comparison: What :func:`limbeck.evaluation.compare.compare` found.
    """
    header, rows = _means(comparison)
    best = _best(comparison)
    first = len(header) - len(comparison.methods)
    cells = []
    for cell, row in zip(_cells(comparison), rows, strict=True):
        bold = {first + comparison.methods.index(method) for method in best[cell]}
        cells.append([Text(t, style="bold" if i in bold else "") for i, t in enumerate(row)])
    title = f"{METRICS[comparison.metric].capitalize()} (%)"
    return _terminal_table(title, header, cells, "\n".join(_notes(comparison)))


def differences_to_terminal(comparison: Comparison, reference: str) -> Table:
    """The table of paired differences to a reference for a terminal.

    Args:
        comparison: What :func:`limbeck.evaluation.compare.compare` found.
        reference: A key of ``comparison.differences``.
    """
    header, rows = _differences(comparison, comparison.differences[reference])
    title = f"Difference to {reference} (percentage points)"
    cells = [[Text(text) for text in row] for row in rows]
    return _terminal_table(title, header, cells, _interval_note(comparison))


def standings_to_terminal(comparison: Comparison) -> Table:
    """The table of mean ranks and worst gaps for a terminal.

    Args:
        comparison: What :func:`limbeck.evaluation.compare.compare` found.
    """
    header, rows = _standings(comparison)
    note = _standing_note(comparison) if rows else _NO_STANDINGS
    cells = [[Text(text) for text in row] for row in rows]
    return _terminal_table("Mean rank and worst gaps", header, cells, note)


_NO_STANDINGS = "No cell has every student and the teacher: there are no mean ranks."


def _means(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    found = {(summary.cell, summary.method): summary for summary in comparison.summaries}
    cells = _cells(comparison)
    rows = []
    for cell in cells:
        here = [found.get((cell, method)) for method in comparison.methods]
        counts = {summary.num_seeds for summary in here if summary is not None}
        alike = len(counts) == 1
        seeds = str(max(counts)) if alike else f"{min(counts)} to {max(counts)}"
        rows.append(
            [
                *_names(cell, cells),
                seeds,
                *(
                    _mean(summary, alike=alike, marked=(cell, method) in comparison.degenerate)
                    for method, summary in zip(comparison.methods, here, strict=True)
                ),
            ]
        )
    return [*_name_header(cells), "seeds", *comparison.methods], rows


def _mean(summary: Summary | None, *, alike: bool, marked: bool) -> str:
    if summary is None:
        return _NOTHING
    text = f"{100 * summary.mean:.2f} ± {100 * summary.std:.2f}{_MARK if marked else ''}"
    return text if alike else f"{text} (n={summary.num_seeds})"


def _differences(
    comparison: Comparison, differences: Sequence[Difference]
) -> tuple[list[str], list[list[str]]]:
    found = {(difference.cell, difference.method): difference for difference in differences}
    cells = [cell for cell in _cells(comparison) if any(cell == d.cell for d in differences)]
    compared = {difference.method for difference in differences}
    methods = [method for method in comparison.methods if method in compared]
    rows = []
    for cell in cells:
        here = [found.get((cell, method)) for method in methods]
        rows.append([*_names(cell, cells), *map(_difference, here)])
    return [*_name_header(cells), *methods], rows


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return _NOTHING
    seeds = f"n={difference.num_seeds}"
    if difference.low is None or difference.high is None:
        return f"{100 * difference.mean:+.2f} ({seeds})"
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.mean:+.2f} [{low:+.2f}, {high:+.2f}] ({seeds})"


def _standings(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            standing.method,
            f"{standing.mean_rank:.2f}",
            str(standing.num_cells),
            f"{100 * standing.mean_gap_to_best:.2f}",
            _gap(standing.gap_to_best, standing.gap_to_best_cell),
            _gap(standing.gap_to_teacher, standing.gap_to_teacher_cell),
        ]
        for standing in comparison.standings
    ]
    header = ["method", "mean rank", "cells", "mean gap to best"]
    return [*header, "worst gap to best", "worst gap to teacher"], rows


def _gap(gap: float | None, cell: Cell | None) -> str:
    if gap is None or cell is None:
        return _NOTHING
    return f"{100 * gap:.2f} ({', '.join(cell)})" if gap else "0.00"


def _best(comparison: Comparison) -> dict[Cell, list[str]]:
    """The students whose mean no other student of the cell exceeds."""
    best: dict[Cell, list[str]] = {}
    for cell in _cells(comparison):
        means = {
            summary.method: summary.mean
            for summary in comparison.summaries
            if summary.cell == cell and not is_teacher(summary.method)
        }
        best[cell] = [method for method, mean in means.items() if mean == max(means.values())]
    return best


def _notes(comparison: Comparison) -> list[str]:
    counts = sorted({summary.num_seeds for summary in comparison.summaries})
    if counts == [1]:
        seeds = "one seed"
    elif len(counts) == 1:
        seeds = f"{counts[0]} seeds"
    else:
        seeds = f"{counts[0]} to {counts[-1]} seeds"
    return [
        f"Mean ± population standard deviation over {seeds}; bold: best student.",
        f"Selection: {SELECTION_RULE}.",
        *micro_f1_notes(comparison.micro_f1),
        *([_DEGENERATE] if comparison.degenerate else []),
    ]


def micro_f1_notes(graphs: Sequence[str]) -> list[str]:
    """What accuracy is of graphs whose nodes have several labels; none if there are none."""
    if not graphs:
        return []
    return [f"Nodes of {', '.join(graphs)} have several labels: accuracy there is micro-F1."]


def _interval_note(comparison: Comparison) -> str:
    return (
        f"Mean of the differences seed by seed, with its {100 * comparison.confidence:g} % "
        "bootstrap interval (BCa) over n seeds; none for one seed."
    )


def _standing_note(comparison: Comparison) -> str:
    return (
        "Rank by mean among the students, 1 is best, ties share their mean rank; over the "
        f"{comparison.standings[0].num_cells} cells that have every student and the teacher, on "
        "their common seeds. Gaps in percentage points, in the cell where they are largest; "
        "negative: above the teacher."
    )


def critical_note(critical: CriticalDifference) -> str:
    """What the tests of the mean ranks say, in sentences."""
    level = f"{100 * critical.alpha:g} %"
    p_value = "p < 0.001" if critical.p_value < 0.001 else f"p = {critical.p_value:.3f}"
    alike = "; ".join(" – ".join((group[0], group[-1])) for group in critical.groups)
    told = f"Not told apart, each from first to last in rank: {alike}." if alike else ""
    if critical.p_value >= critical.alpha:
        told = "So no difference between the students is shown."
    return (
        f"Friedman's test over {critical.num_cells} cells: {p_value}; critical difference of mean "
        f"ranks (Nemenyi, {level}): {critical.distance:.2f}. {told}"
    ).rstrip()


def _cells(comparison: Comparison) -> list[Cell]:
    return list(dict.fromkeys(summary.cell for summary in comparison.summaries))


def _name_header(cells: Sequence[Cell]) -> list[str]:
    return ["graph", "setting", *(["teacher model"] if _many_teachers(cells) else [])]


def _names(cell: Cell, cells: Sequence[Cell]) -> list[str]:
    return [cell.graph, cell.setting, *([cell.teacher] if _many_teachers(cells) else [])]


def _many_teachers(cells: Sequence[Cell]) -> bool:
    return len({cell.teacher for cell in cells}) > 1


def _turned(
    header: list[str], rows: list[list[str]], named: int
) -> tuple[list[str], list[list[str]]]:
    """A table whose first ``named`` columns name its rows, with rows and columns swapped."""
    turned = [[header[i], *(row[i] for row in rows)] for i in range(named, len(header))]
    return ["method", *(", ".join(row[:named]) for row in rows)], turned


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_escaped(line))} |" for line in lines)


def _escaped(texts: Iterable[str]) -> Iterable[str]:
    return (text.replace("|", "\\|") for text in texts)


def _terminal_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[Text]], caption: str
) -> Table:
    # Text, not str: a name with brackets is not markup
    table = Table(title=Text(title), caption=Text(caption), caption_justify="left")
    for name in header:
        table.add_column(Text(name))
    for row in rows:
        table.add_row(*row)
    return table
