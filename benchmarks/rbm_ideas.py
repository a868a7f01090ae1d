"""What ideas beyond the paper do for Routing-by-Memory, on the same teachers and seeds.

    python benchmarks/rbm_ideas.py --out runs/rbm_ideas

trains what is missing of ``runs/rbm_ideas`` and writes ``benchmarks/results/rbm_ideas.md``. It can
be stopped and started again; ``--report-only`` writes the page from what is there. The committed
page holds three ideas more, which did not help and left the code after it was made.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from write_results import PACKAGES, costs

import limbeck
from limbeck.evaluation.bench import run_bench
from limbeck.evaluation.cells import collect
from limbeck.evaluation.compare import TEACHER, compare, paired_differences
from limbeck.evaluation.plan import Bench, Variant
from limbeck.reports.tables import to_markdown

Row = dict[str, Any]

GRAPHS = ("cpf-cora", "cpf-citeseer", "cora", "citeseer", "a-photo")
SETTINGS = ("transductive", "inductive")
NUM_SEEDS = 3

RESAMPLES = 10_000

SMALL = {"num_layers": 2, "hidden_channels": 128}
IDEAS: dict[str, dict[str, Any]] = {
    "rank-8": {"expert_rank": 8},
}


def bench_of(graph: str, setting: str, seed: int) -> Bench:
    """The table of one cell and seed: RbM, and RbM with each idea."""
    return Bench(
        graphs=(graph,),
        settings=(setting,),
        seeds=(seed,),
        methods=("rbm", *IDEAS),
        method_options={"rbm": SMALL},
        variants={name: Variant(method="rbm", options=idea) for name, idea in IDEAS.items()},
        latency=False,
    )


def seed_by_seed(graphs: Sequence[str], settings: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Graph, setting and seed of each table, so ordered that an early stop leaves pairs."""
    for seed in range(NUM_SEEDS):
        for graph in graphs:
            for setting in settings:
                yield graph, setting, seed


def run_all(benches: Sequence[Bench], folder: Path, *, train: bool) -> list[Row]:
    """Rows of all tables.

    Args:
        benches: The tables.
        folder: Where finished runs are kept, each once.
        train: Compute what is missing; else leave out the tables in which something is.
    """
    rows: list[Row] = []
    for number, bench in enumerate(benches, start=1):
        found = (run_bench(bench, folder) if train else collect(bench, folder)).to_pylist()
        if len(found) == len(bench.methods) + 1:  # and the teacher
            rows += found
        if train:
            cell = f"{bench.graphs[0]} {bench.settings[0]} seed {bench.seeds[0]}"
            print(f"{number} of {len(benches)}: {cell}", flush=True)
    if not rows:
        raise SystemExit(f"{folder} holds no finished table yet: leave --report-only out.")
    return rows


def overall(rows: list[Row], method: str, reference: str) -> tuple[float, float, float, int]:
    """Mean difference over cells, the ends of its 95 % interval, and the number of cells.

    The mean over cells of the mean over seeds; a bootstrap draws seeds anew within each cell. A
    cell with one seed so far is left out.
    """
    accuracy = {
        (row["graph"], row["setting"], row["seed"], row["method"]): row["test_accuracy"]
        for row in rows
    }
    differences: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (graph, setting, seed, name), value in accuracy.items():
        if name == method:
            base = accuracy[graph, setting, seed, reference]
            differences[graph, setting].append(value - base)
    several = [found for found in differences.values() if len(found) > 1]
    if not several:
        raise SystemExit("no cell has two seeds yet: there is nothing to average.")
    rng = np.random.default_rng(0)
    drawn = [rng.choice(found, (RESAMPLES, len(found))).mean(axis=1) for found in several]
    low, high = np.quantile(np.mean(drawn, axis=0), (0.025, 0.975))
    return statistics.mean(map(statistics.mean, several)), float(low), float(high), len(several)


def overall_table(rows: list[Row], reference: str) -> str:
    """The differences over all cells as Markdown, and in how many of them a variant is ahead."""
    lines = [
        "## Over all cells",
        "",
        f"| minus {reference} | cells | mean (points) | 95 % interval | cells ahead "
        "| cells whose interval is above 0 | below 0 |",
        "|---|---|---|---|---|---|---|",
    ]
    in_cells = paired_differences(rows, reference)
    methods = dict.fromkeys(found.method for found in in_cells if found.method != TEACHER)
    for method in methods:
        mine = [d for d in in_cells if d.method == method and d.num_seeds > 1]
        ahead = sum(found.mean > 0 for found in mine)
        above = sum(found.low is not None and found.low > 0 for found in mine)
        below = sum(found.high is not None and found.high < 0 for found in mine)
        mean, low, high, num_cells = overall(rows, method, reference)
        lines.append(
            f"| {method} | {num_cells} | {100 * mean:+.2f} "
            f"| [{100 * low:+.2f}, {100 * high:+.2f}] | {ahead} | {above} | {below} |"
        )
    lines += [
        "",
        "*The mean over cells of the mean over seeds, each cell counting the same; the "
        "interval is a bootstrap's that draws seeds anew within each cell, so it speaks of these "
        "graphs and not of others.*",
    ]
    return "\n".join(lines)


def page(title: str, script: str, note: str, rows: list[Row]) -> Iterator[str]:
    """Parts of a page of results: how it was made, the comparison, costs."""
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    yield f"# {title}"
    yield f"`python benchmarks/{script}.py --out runs/{script}`. {note}"
    yield (
        f"Python {platform.python_version()}, limbeck {limbeck.__version__}, {versions}; CPU "
        f"({platform.machine()}), one thread, beside other jobs: seconds compare within this page."
    )
    yield overall_table(rows, "rbm")
    yield to_markdown(compare(rows, references=("rbm",))).rstrip()
    yield costs([row for row in rows if row["method"] != TEACHER])


def write_page(script: str, parts: Iterator[str]) -> None:
    """Write the page of a script whole, or not at all."""
    target = Path(__file__).with_name("results") / f"{script}.md"
    aside = target.with_suffix(".part")
    aside.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    aside.replace(target)
    print(target)


def arguments_of(description: str | None, script: str) -> argparse.Namespace:
    """What both scripts are told."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs") / script)
    parser.add_argument("--report-only", action="store_true")
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of(__doc__, "rbm_ideas")
    benches = [bench_of(*cell) for cell in seed_by_seed(GRAPHS, SETTINGS)]
    rows = run_all(benches, arguments.out, train=not arguments.report_only)
    note = (
        "Students of two layers with 128 hidden units, all else from the presets of `rbm`; one "
        "SAGE teacher per graph, setting and seed for all of them. *rank-8*: `expert_rank=8`."
    )
    title = "Routing-by-Memory with ideas beyond the paper"
    write_page("rbm_ideas", page(title, "rbm_ideas", note, rows))


if __name__ == "__main__":
    main()
