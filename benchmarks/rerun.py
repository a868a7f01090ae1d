"""Draw cells of a finished table at random, compute them again from nothing, and compare.

    python benchmarks/rerun.py runs/core [--cells 3] [--draw 0]

The teacher is trained again (the cache of teachers is an empty folder), the options are searched
again and the student is trained again; times, memory and latency aside, every figure has to be the
same to the last digit, the training curve among them. Which cells are drawn depends on ``--draw``
alone. The page is written to benchmarks/results/rerun_NAME.md; the exit code is 1 if a figure
differs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from limbeck.evaluation.bench import run_bench
from limbeck.evaluation.compare import TEACHER
from limbeck.evaluation.plan import Bench, groups

RESULTS = Path(__file__).parent / "results"
TIMES = {"train_seconds", "peak_mb"}
ADDED = {"student"}  # the kind of student: rows made before it was noted lack it
COSTS = {"latency_us_b1", "latency_us_b256", "bundle_bytes", "model_bytes"}
SHOWN = ("val_accuracy", "test_accuracy", "brier", "epochs")


def main() -> None:
    """Draw, compute, compare, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path)
    parser.add_argument("--cells", type=int, default=3)
    parser.add_argument("--draw", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(**json.loads((arguments.runs / "bench.json").read_text())["bench"])
    rows = [
        row
        for row in pq.read_table(arguments.runs / "runs.parquet").to_pylist()
        if row["method"].split(":")[0] != TEACHER
    ]
    drawn = np.random.default_rng(arguments.draw).choice(len(rows), arguments.cells, replace=False)
    lines = [
        f"# Cells of {arguments.runs.name}, computed again\n",
        f"`python benchmarks/rerun.py runs/{arguments.runs.name} --cells {arguments.cells} "
        f"--draw {arguments.draw}`, torch {torch.__version__}, {platform.machine()}:",
        "teacher, search and student from nothing.\n",
        f"| graph | setting | seed | method | {' | '.join(SHOWN)} | compared | differ | s |",
        "|---" * (len(SHOWN) + 7) + "|",
    ]
    differ = 0
    for row in (rows[place] for place in drawn):
        started = time.perf_counter()
        again = computed(bench, row)
        wrong = different(row, again)
        differ += bool(wrong)
        what = [row["graph"], row["setting"], str(row["seed"]), row["method"]]
        figures = [f"{row[name]!r} / {again[name]!r}" for name in SHOWN]
        compared = len(held(row))
        seconds = f"{time.perf_counter() - started:.0f}"
        lines.append(
            f"| {' | '.join([*what, *figures, str(compared), ', '.join(wrong) or '–', seconds])} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    page = RESULTS / f"rerun_{arguments.runs.name}.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(page.read_text(encoding="utf-8"))
    sys.exit(1 if differ else 0)


def computed(bench: Bench, row: dict[str, Any]) -> dict[str, Any]:
    """The row again, in an empty folder with an empty cache."""
    settings = next(
        group.settings
        for group in groups(bench)
        if group.graph == row["graph"] and row["setting"] in group.settings
    )
    alone = bench.model_copy(
        update={
            "graphs": (row["graph"],),
            "settings": settings,
            "seeds": (row["seed"],),
            "teachers": (row["teacher"],),
            "methods": (row["method"],),
            "latency": False,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIMBECK_CACHE"] = f"{folder}/cache"
        found = run_bench(alone, f"{folder}/runs").to_pylist()
    (again,) = (
        one for one in found if all(one[k] == row[k] for k in ("setting", "seed", "method"))
    )
    return again


def held(row: dict[str, Any]) -> set[str]:
    """Names of the columns that can be compared: what was measured, and was noted at the time."""
    return set(row) - TIMES - COSTS - {name for name in ADDED if row.get(name) is None}


def different(row: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """Names of the columns that are not the same."""
    return sorted(name for name in held(row) if row[name] != again[name])


if __name__ == "__main__":
    main()
