"""Turn a finished table into the page and the rows that are committed beside its configuration.

limbeck bench --config benchmarks/cpf.yaml --workers 2 --out runs/cpf
python benchmarks/write_results.py benchmarks/cpf.yaml runs/cpf

A large table is collected graph by graph: rows of graphs that the folder does not hold are taken
from those that are committed, and the page says what was made when with what.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from limbeck.evaluation.cells import MARKER
from limbeck.evaluation.compare import Comparison, compare
from limbeck.evaluation.published import beside
from limbeck.reports.ranks import ranks_svg
from limbeck.reports.tables import to_markdown

LARGE = ("slices", "routing", "framelets", "attention", "curve", "reliability", "diagnostics")
"""Columns that only a report reads; the rows that are committed are without them."""
MADE = b"made"
"""Key of the committed rows' metadata that says what made them."""


def costs(rows: list[dict]) -> str:
    """A table of sizes, times and latency per graph and method; medians over settings and seeds."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["graph"], row["method"]].append(row)
    columns = (
        "parameters",
        "train_seconds",
        "peak_mb",
        "latency_us_b1",
        "latency_us_b256",
        "bundle_bytes",
        "model_bytes",
    )
    lines = [
        "## Costs (medians)",
        "",
        "| graph | method | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for (graph, method), members in groups.items():
        cells = []
        for column in columns:
            values = [row[column] for row in members if row.get(column) is not None]
            median = statistics.median(values) if values else None
            cells.append(
                "–" if median is None else f"{median:,.0f}" if median > 99 else f"{median:.1f}"
            )
        lines.append(f"| {graph} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def calibration(rows: list[dict]) -> str:
    """Means of calibration and agreement per graph, setting and method."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["graph"], row["setting"], row["method"]].append(row)
    columns = ("test_macro_f1", "ece", "brier", "agreement", "cut_consistency")
    lines = [
        "## Further figures (means)",
        "",
        "| graph | setting | method | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for key, members in groups.items():
        cells = []
        for column in columns:
            values = [row[column] for row in members if row[column] is not None]
            cells.append(f"{statistics.mean(values):.3f}" if values else "–")
        lines.append("| " + " | ".join([*key, *cells]) + " |")
    return "\n".join(lines)


def collected(runs: Path, committed: Path) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The rows of a folder, with those committed of other graphs, and what made each of them."""
    table = pq.read_table(runs / "runs.parquet")
    table = table.drop_columns([column for column in LARGE if column in table.column_names])
    graphs = list(dict.fromkeys(table["graph"].to_pylist()))
    about = json.loads((runs / MARKER).read_text())
    spent = [call for call in about["spent"] if set(call.get("graphs", graphs)) & set(graphs)]
    made = [
        {
            "limbeck": about["limbeck"],
            "versions": about["versions"],
            "spent": spent,
            "graphs": graphs,
        }
    ]
    if committed.is_file():
        before = pq.read_table(committed)
        others = before.filter(pc.invert(pc.is_in(before["graph"], pa.array(graphs))))
        if others.num_rows:
            # rows of older versions may lack a column
            pieces = [others.replace_schema_metadata(None), table]
            table = pa.concat_tables(pieces, promote_options="default")
            kept = json.loads((before.schema.metadata or {})[MADE])
            left = [
                {**one, "graphs": [g for g in one["graphs"] if g not in graphs]} for one in kept
            ]
            made = [*(one for one in left if one["graphs"]), *made]
    return table.replace_schema_metadata({MADE: json.dumps(made)}), made


def provenance(made: list[dict[str, Any]], seeds: list[int]) -> str:
    """What each piece of the table was made with, and in what time."""
    lines = []
    for one in made:
        versions = ", ".join(f"{name} {number}" for name, number in one["versions"].items())
        of = "" if len(made) == 1 else f" ({', '.join(one['graphs'])})"
        lines.append(
            f"limbeck {one['limbeck']}, {versions}; CPU, 2 cores ({platform.machine()}){of}. "
            f"{took(one['spent'], one['graphs'])}"
        )
    return "\n\n".join([f"Seeds {seeds}.", *lines])


def took(spent: list[dict], graphs: list[str]) -> str:
    """A sentence on the wall-clock time of all calls; cells that were made anew count each time.

    A call may have made cells of other graphs, too, which are named.
    """
    if not spent:
        return ""
    minutes = sum(call["seconds"] for call in spent) / 60
    workers = max(call["workers"] for call in spent)
    cells = sum(call["cells"] for call in spent)
    calls = f" in {len(spent)} calls" if len(spent) > 1 else ""
    named = dict.fromkeys(graph for call in spent for graph in call.get("graphs", ()))
    others = ", ".join(graph for graph in named if graph not in graphs)
    shared = f", cells of {others} among them" if others else ""
    return (
        f"{cells} cells, with their searches and latencies, took {minutes:.0f} minutes of "
        f"{workers} processes{calls}{shared}."
    )


def printed(comparison: Comparison) -> str:
    """What papers print under the same names, apart from ours."""
    lines = [
        "## Published numbers, apart",
        "",
        "Names agree and little else needs to: code, seeds, often tuning and splits differ.",
        "",
        "| graph | setting | method | published | ours | source | quoted from |",
        "|---" * 7 + "|",
    ]
    for number, mean, std, _ in beside(comparison):
        theirs = f"{number.mean:.2f}" + ("" if number.std is None else f" ± {number.std:.2f}")
        ours = "–" if mean is None else f"{mean:.2f} ± {std:.2f}"
        cells = (number.graph, number.setting, number.method, theirs, ours)
        lines.append("| " + " | ".join([*cells, number.source, number.line]) + " |")
    return "\n".join(lines) if len(lines) > 6 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("runs", type=Path)
    arguments = parser.parse_args()
    name = arguments.config.stem
    results = Path(__file__).with_name("results")
    table, made = collected(arguments.runs, results / f"{name}.parquet")
    rows = table.to_pylist()
    seeds = sorted({row["seed"] for row in rows})
    comparison = compare(table)
    diagram = ""
    if comparison.critical is not None:
        (results / f"{name}.ranks.svg").write_text(
            ranks_svg(comparison.critical, color="#6b7280"), encoding="utf-8"
        )
        diagram = f"![Mean ranks and what they do not tell apart]({name}.ranks.svg)"
    parts = [
        f"# {name}",
        f"`limbeck bench --config benchmarks/{arguments.config.name} --out runs/{name}`, then "
        f"`python benchmarks/write_results.py benchmarks/{arguments.config.name} runs/{name}`; "
        f"all {len(rows)} rows: [{name}.parquet]({name}.parquet).",
        provenance(made, seeds),
        to_markdown(comparison).rstrip(),
        diagram,
        calibration(rows),
        costs(rows),
        printed(comparison),
    ]
    pq.write_table(table, results / f"{name}.parquet", compression="zstd")
    target = results / f"{name}.md"
    target.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
