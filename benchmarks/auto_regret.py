"""What successive halving costs in accuracy, and saves in time, against training everything.

    python benchmarks/auto_regret.py --out runs/auto_regret

searches a student with ``method="auto"`` on three graphs, then trains *every* candidate of the same
space for all its epochs with all seeds and chooses by the same rule, and writes
``benchmarks/results/auto_regret.md``. The space is small enough for that: the methods that ``auto``
takes by itself in three widths, each with its preset and with what the search's first round would
draw beside it. It is done for several seeds, each with a split, a teacher and candidates of its
own. All trainings are kept, so the command can be stopped and started again; a training that both
need is made once and its time counts for both. ``--graphs`` takes other graphs, ``--report-only``
writes the page from what is there.

Regret is what the choice loses against the exhaustive one: on validation, by which both choose, and
on test nodes, which are scored once for each of the two students that are chosen.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.evaluation.auto import METHODS, Auto, exhaustive, search
from limbeck.evaluation.choice import Choice, gap_to
from limbeck.evaluation.distill import distill
from limbeck.graphs.load import load_graph
from limbeck.graphs.view import make_view
from limbeck.teachers.fit import fit_teacher

GRAPHS = ("cpf-cora", "cpf-citeseer", "wisconsin")
RESULTS = Path(__file__).parent / "results" / "auto_regret.md"
SPACE: dict[str, Any] = {
    "widths": (16, 64, 256),
    "trials": 30,
    "rounds": 1,
    "seeds": 2,
    "method_options": {name: {"max_epochs": 100, "patience": 30} for name in METHODS},
}


def main() -> None:
    """Search, train everything, compare, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--graphs", default=",".join(GRAPHS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for graph, seed in product(arguments.graphs.split(","), range(arguments.seeds)):
        file = arguments.out / f"{graph}.{seed}.json"
        if not file.is_file() and not arguments.report_only:
            figures = compare(graph, seed, arguments.out / f"{graph}.{seed}-search")
            file.write_text(json.dumps(figures, indent=2), encoding="utf-8")
        if file.is_file():
            rows.append(json.loads(file.read_text(encoding="utf-8")))
    arguments.results.write_text("\n".join(page(rows)) + "\n", encoding="utf-8")
    print(arguments.results.read_text(encoding="utf-8"))


def compare(graph: str, seed: int, folder: Path) -> dict[str, Any]:
    """Both choices on one graph, for one seed."""
    view = make_view(load_graph(graph), "transductive", seed)
    teacher = fit_teacher(view, "sage", seed)
    auto = Auto(**SPACE, folder=folder)
    halved = search(view, [teacher], auto, seed, progress=True)
    everything = exhaustive(view, [teacher], auto, seed, progress=True)

    def described(choice: Choice) -> dict[str, Any]:
        run = distill(view, teacher, choice.chosen.method, seed)
        return {
            "chosen": str(choice.chosen),
            "val": choice.chosen.accuracy,
            "test": run.scores["student"]["test_accuracy"],
            "bytes": choice.chosen.num_bytes,
            "trainings": choice.trainings,
            "core_seconds": choice.train_seconds,
        }

    gap = gap_to(everything.best, halved.best)
    return {
        "graph": graph,
        "seed": seed,
        "candidates": len(everything.candidates),
        "test_nodes": len(view.test_observed),
        "halved": described(halved),
        "everything": described(everything),
        "best_behind": gap.behind,
        "best_error": gap.error,
    }


def page(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The page, line by line."""
    yield "# `--method auto` against training every candidate\n"
    yield "Written by `benchmarks/auto_regret.py`: transductive, a SAGE teacher,"
    yield f"{SPACE['trials']} draws of candidates, {SPACE['seeds']} paired seeds, one thread of"
    yield f"{platform.machine()}, torch {torch.__version__}.\n"
    yield (
        "| graph | seeds | regret of the best on validation | of the chosen on validation "
        "| of the chosen on test | core seconds | of everything | share |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for graph, group in groupby(rows, key=lambda row: str(row["graph"])):
        here = list(group)
        ours, theirs = ([row[which] for row in here] for which in ("halved", "everything"))
        best = [row["best_behind"] for row in here]
        val, test = (
            [b[name] - a[name] for a, b in zip(ours, theirs, strict=True)]
            for name in ("val", "test")
        )
        spent, all_spent = (sum(one["core_seconds"] for one in who) for who in (ours, theirs))
        yield (
            f"| {graph} | {len(here)} | {points(best)} | {points(val)} | {points(test)} "
            f"| {spent:.0f} | {all_spent:.0f} | {spent / all_spent:.0%} |"
        )
    yield (
        "\nRegret in points of accuracy, mean over the seeds (least to largest): positive where "
        "training everything did better. The best is the most accurate finalist, the chosen one "
        "the smallest within one standard error of it, so its regret can be negative.\n"
    )
    yield (
        "| graph | seed | test nodes | chosen by halving | val % | test % | bytes "
        "| chosen of all | val % | test % | bytes | best behind (± error) |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        chosen = " | ".join(
            f"{one['chosen']} | {100 * one['val']:.2f} | {100 * one['test']:.2f} | {one['bytes']}"
            for one in (row["halved"], row["everything"])
        )
        behind, error = 100 * row["best_behind"], 100 * row["best_error"]
        yield (
            f"| {row['graph']} | {row['seed']} | {row['test_nodes']} | {chosen} "
            f"| {behind:.2f} (± {error:.2f}) |"
        )


def points(values: list[float]) -> str:
    """A mean in points, and the range."""
    return f"{100 * np.mean(values):+.2f} ({100 * min(values):+.2f} to {100 * max(values):+.2f})"


if __name__ == "__main__":
    main()
