"""Turn a finished table into the Markdown page that is committed beside its configuration.

limbeck bench --config benchmarks/cpf.yaml --workers 2 --out runs/cpf
python benchmarks/write_results.py benchmarks/cpf.yaml runs/cpf
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq

import limbeck
from limbeck.evaluation.compare import compare
from limbeck.reports.tables import to_markdown

PACKAGES = ("torch", "torch-geometric", "numpy", "scipy", "scikit-learn", "onnxruntime")


def costs(rows: list[dict]) -> str:
    """A table of sizes, times and latency per graph and method; medians over settings and seeds."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["graph"], row["method"]].append(row)
    columns = ("parameters", "train_seconds", "peak_mb", "latency_us_b1", "latency_us_b256")
    lines = [
        "## Costs (medians)",
        "",
        "| graph | method | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for (graph, method), members in groups.items():
        cells = []
        for column in columns:
            values = [row[column] for row in members if row[column] is not None]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("runs", type=Path)
    arguments = parser.parse_args()
    table = pq.read_table(arguments.runs / "runs.parquet")
    rows = table.to_pylist()
    seeds = sorted({row["seed"] for row in rows})
    name = arguments.config.stem
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    parts = [
        f"# {name}",
        f"`limbeck bench --config benchmarks/{arguments.config.name} --out runs/{name}`, then "
        f"`python benchmarks/write_results.py benchmarks/{arguments.config.name} runs/{name}`.",
        f"Seeds {seeds}; Python {platform.python_version()}, limbeck {limbeck.__version__}, "
        f"{versions}; CPU, 2 cores ({platform.machine()}).",
        to_markdown(compare(table)).rstrip(),
        calibration(rows),
        costs(rows),
    ]
    target = Path(__file__).with_name("results") / f"{name}.md"
    target.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
