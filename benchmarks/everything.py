"""Ranks and gaps over all committed tables that hold every student, on one page.

limbeck bench --config benchmarks/core.yaml --workers 2 --out runs/core
python benchmarks/write_results.py benchmarks/core.yaml runs/core
python benchmarks/everything.py core full full_imdb large --once once

Each table that is named has been written the way the first two lines write core.yaml's; that of
``--once`` holds the own student with as many trainings in all as others had.

The means of each graph are in the tables that are named; this page ranks, tells graphs apart on
which a teacher is worth hearing, and sets the own student beside GLNN, beside what papers print,
and beside what a simpler rule or a smaller search would have got.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.evaluation.compare import Cell, Comparison, compare, is_teacher
from limbeck.evaluation.plan import Bench
from limbeck.evaluation.published import published
from limbeck.reports.ranks import ranks_svg
from limbeck.reports.tables import standings_to_markdown

RESULTS = Path(__file__).with_name("results")
OWN = "limbeck"
ONCE = "limbeck-once"
RULE = "rule"
Row = dict[str, Any]
Means = dict[Cell, dict[str, tuple[float, float]]]


def read(tables: list[str]) -> tuple[pa.Table, list[str]]:
    """The rows of the tables and, of each, its graphs and how much was searched."""
    pieces, lines = [], []
    for name in tables:
        piece = pq.read_table(RESULTS / f"{name}.parquet")
        pairs = dict.fromkeys((row["graph"], row["seed"]) for row in piece.to_pylist())
        seeds = Counter(graph for graph, _ in pairs)
        graphs = ", ".join(f"{graph} ({count})" for graph, count in seeds.items())
        trials = Bench.from_file(RESULTS.with_name(f"{name}.yaml")).trials
        lines.append(f"| [{name}]({name}.md) | {graphs} | {trials} |")
        pieces.append(piece.replace_schema_metadata(None))
    return pa.concat_tables(pieces, promote_options="default"), lines


def in_percent(comparison: Comparison) -> Means:
    """Mean and deviation of every method in every cell."""
    means: Means = {}
    for summary in comparison.summaries:
        figures = (100 * summary.mean, 100 * summary.std)
        means.setdefault(summary.cell, {})[summary.method] = figures
    return means


def ranks(title: str, comparison: Comparison) -> str:
    """Mean ranks and gaps of one group of cells."""
    return f"## {title}\n\n{standings_to_markdown(comparison)}"


def own(comparison: Comparison, means: Means) -> str:
    """The own student beside GLNN, the teacher and the best number that a card quotes."""
    apart = {d.cell: d for d in comparison.differences["glnn"] if d.method == OWN}
    lines = [
        f"## `{OWN}`, cell by cell",
        "",
        "Published: the highest number of a student that a method card quotes for that graph and "
        "setting; other code, splits and tuning.",
        "",
        f"| graph | setting | {OWN} | rank | best of ours | glnn | minus glnn | mlp | teacher | "
        "published |",
        "|" + "---|" * 10,
    ]
    for cell, by_method in means.items():
        students = {m: v for m, (v, _) in by_method.items() if not is_teacher(m)}
        order = sorted(students, key=lambda method: -students[method])
        rank = 1 + sum(value > students[OWN] for value in students.values())
        there = [
            number
            for number in published()
            if (number.graph, number.setting) == cell[:2] and not is_teacher(number.method)
        ]
        theirs = max(there, key=lambda number: number.mean, default=None)
        d = apart[cell]
        interval = (
            "" if d.low is None or d.high is None else f" [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        )
        lines.append(
            f"| {cell.graph} | {cell.setting} | {by_method[OWN][0]:.1f} ± {by_method[OWN][1]:.1f} "
            f"| {rank} | {order[0]} {students[order[0]]:.1f} | {students['glnn']:.1f} | "
            f"{100 * d.mean:+.1f}{interval} | {students['mlp']:.1f} | "
            f"{by_method['teacher'][0]:.1f} | "
            + (f"{theirs.method} {theirs.mean:.1f} |" if theirs else "– |")
        )
    return "\n".join(lines)


def rule_rows(rows: list[Row]) -> list[Row]:
    """The plain MLP where it knows more of the validation nodes than the teacher, else GLNN."""
    runs = {(*run_of(row), row["method"]): row for row in rows}
    chosen = []
    for run in dict.fromkeys(map(run_of, rows)):
        teacher, mlp = runs[*run, "teacher"], runs[*run, "mlp"]
        ahead = mlp["val_accuracy"] > teacher["val_accuracy"]
        chosen.append((mlp if ahead else runs[*run, "glnn"]) | {"method": RULE})
    return chosen


def run_of(row: Row) -> tuple[str, str, int]:
    """What the rows of one split and teacher share."""
    return row["graph"], row["setting"], row["seed"]


def controls(rows: list[Row], once: list[Row]) -> str:
    """The own student against a simpler rule, and with a smaller search."""
    lines = [
        "## Is it the search? Would a rule of one line do?",
        "",
        f"`{ONCE}` takes the place of `{OWN}`: nothing is searched, so it is trained three times "
        f"per seed; `{OWN}` chooses each of its three trainings among as many candidates as "
        f"others choose their one. `{RULE}` joins the students: the plain MLP where it knows more "
        "of the validation nodes than the teacher, else GLNN, both as searched.",
        "",
        "| students | cells | method | mean rank | mean gap to best | worst gap to best |",
        "|" + "---|" * 6,
    ]
    tables = {"all, and the rule": rows + rule_rows(rows)}
    if once:
        there = {run_of(row): row | {"method": ONCE} for row in once if row["method"] == ONCE}
        shared = [row for row in rows if run_of(row) in there]
        others = [row for row in shared if row["method"] != OWN]
        tables |= {
            f"all where {ONCE} was trained": shared,
            f"the same with {ONCE}": [*others, *there.values()],
            f"the same with {ONCE}, and the rule": [
                *others,
                *there.values(),
                *rule_rows(shared),
            ],
        }
    for title, table in tables.items():
        for standing in compare(table).standings[:3]:
            lines.append(
                f"| {title} | {standing.num_cells} | {standing.method} | "
                f"{standing.mean_rank:.2f} | {100 * standing.mean_gap_to_best:.2f} | "
                f"{100 * standing.gap_to_best:.2f} ({', '.join(standing.gap_to_best_cell[:2])}) |"
            )
    return "\n".join(lines)


def kinds(means: Means, misled: set[str]) -> str:
    """Which graphs mislead their teacher."""
    lines = [
        "## Is the teacher ahead of a plain MLP?",
        "",
        "Validation accuracy, mean over seeds, transductive.",
        "",
        "| graph | teacher | mlp | kind |",
        "|---|---|---|---|",
    ]
    for graph, (teacher, mlp) in {
        cell.graph: (by["teacher"][0], by["mlp"][0])
        for cell, by in means.items()
        if cell.setting == "transductive"
    }.items():
        kind = "misleads the teacher" if graph in misled else "teaches"
        lines.append(f"| {graph} | {teacher:.1f} | {mlp:.1f} | {kind} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="+", help="tables that are written, such as core full")
    parser.add_argument("--once", help="table of the own student without a search")
    arguments = parser.parse_args()
    table, sources = read(arguments.tables)
    whole = compare(table)
    on_validation = in_percent(compare(table, "val_accuracy"))
    misled = {
        cell.graph
        for cell, by in on_validation.items()
        if cell.setting == "transductive" and by["mlp"][0] > by["teacher"][0]
    }
    rows = table.to_pylist()
    once = read([arguments.once])[0].to_pylist() if arguments.once else []
    teaches = compare([row for row in rows if row["graph"] not in misled])
    misleads = compare([row for row in rows if row["graph"] in misled])
    assert whole.critical is not None
    (RESULTS / "everything.ranks.svg").write_text(
        ranks_svg(whole.critical, color="#6b7280"), encoding="utf-8"
    )
    graphs = list(dict.fromkeys(table["graph"].to_pylist()))
    settings = list(dict.fromkeys(table["setting"].to_pylist()))
    by_setting = [
        ranks(f"Setting {setting}", compare([r for r in rows if r["setting"] == setting]))
        for setting in settings
    ]
    errors = statistics.mean(std for by in in_percent(whole).values() for _, std in by.values())
    command = " ".join(arguments.tables) + (f" --once {arguments.once}" if once else "")
    parts = [
        "# everything",
        f"`python benchmarks/everything.py {command}`: every student on "
        f"{len(graphs)} graphs in four settings; the mean deviation over seeds is {errors:.1f} "
        "points. A graph with two splits (CPF's and the public one) or with and without its "
        "duplicates (chameleon) counts twice; such pairs are not independent.",
        "| table | graphs (seeds) | candidates searched per graph and cut |\n|---|---|---|\n"
        + "\n".join(sources),
        "![Mean ranks and what they do not tell apart](everything.ranks.svg)",
        ranks("All graphs", whole),
        ranks("Graphs whose teacher is ahead of a plain MLP on validation nodes", teaches),
        ranks("Graphs that mislead their teacher", misleads),
        kinds(on_validation, misled),
        own(whole, in_percent(whole)),
        controls(rows, once),
        *by_setting,
    ]
    target = RESULTS / "everything.md"
    target.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
