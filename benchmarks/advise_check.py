"""Does the advice of ``limbeck profile --advise`` agree with what tables measured?

    python benchmarks/advise_check.py runs/cpf runs/sa_mlp runs/planetoid-gcn

reads ``runs.parquet`` of finished tables with the methods ``mlp`` and ``glnn``, asks for the advice
on each of their graphs and writes ``benchmarks/results/advise_check.md``: measured and expected
figures side by side, and Spearman's rank correlation between them. Its interval comes from a
bootstrap over graphs, as the settings of one graph are no independent cases. Advice is kept in
``--advice`` and asked for once, so the command can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy.stats import spearmanr

from limbeck.evaluation.advise import advise
from limbeck.graphs.load import load_graph

RESULTS = Path(__file__).parent / "results" / "advise_check.md"
DRAWS = 10_000

PAYS = {"transductive": "pays", "inductive": "pays on new nodes", "cold-start": "pays on new nodes"}


@dataclass(frozen=True)
class Cell:
    """One graph and setting: means over the seeds, in points."""

    graph: str
    setting: str
    gap: float
    gain: float
    expected_gap: float
    expected_gain: float | None


def main() -> None:
    """Read the tables, ask, compare, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--graphs", help="only these, separated by commas")
    parser.add_argument("--advice", type=Path, default=Path("runs/advice.json"))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    only = set(arguments.graphs.split(",")) if arguments.graphs else None
    measured = {
        key: figures
        for key, figures in read(arguments.runs).items()
        if only is None or key[0] in only
    }
    advice = ask(sorted({graph for graph, _ in measured}), arguments.advice, arguments.repeats)
    cells = list(cells_of(measured, advice))
    arguments.out.write_text("\n".join(page(cells, advice, arguments)) + "\n", encoding="utf-8")
    print(arguments.out.read_text(encoding="utf-8"))


def read(folders: list[Path]) -> dict[tuple[str, str], dict[str, float]]:
    """Mean test accuracy of teacher, mlp and glnn by graph and setting; the first table wins."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for folder in folders:
        here: dict[tuple[str, str], dict[str, list[float]]] = {}
        for row in pq.read_table(folder / "runs.parquet").to_pylist():
            scores = here.setdefault((row["graph"], row["setting"]), {})
            scores.setdefault(row["method"], []).append(row["test_accuracy"])
        for key, scores in here.items():
            if {"teacher", "mlp", "glnn"} <= set(scores):
                means = {name: float(np.mean(values)) for name, values in scores.items()}
                found.setdefault(key, means)
    return found


def ask(graphs: list[str], known: Path, repeats: int) -> dict[str, dict[str, Any]]:
    """The advice for each graph, and the seconds that it took."""
    stored = json.loads(known.read_text()) if known.is_file() else {}
    for graph in graphs:
        if stored.get(graph, {}).get("repeats") == repeats:
            continue
        loaded, started = load_graph(graph), time.process_time()
        found = advise(loaded, repeats=repeats)
        stored[graph] = {
            "repeats": repeats,
            "cpu_seconds": time.process_time() - started,
            **{f.name: f.estimate.value for f in found.findings},
        }
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps(stored, indent=2))
        print(f"{graph}: {stored[graph]['cpu_seconds']:.1f} s of a core", flush=True)
    return {graph: stored[graph] for graph in graphs}


def cells_of(
    measured: dict[tuple[str, str], dict[str, float]], advice: dict[str, dict[str, Any]]
) -> Iterator[Cell]:
    """Measured beside expected."""
    for (graph, setting), means in sorted(measured.items()):
        said, pays = advice[graph], PAYS.get(setting)
        yield Cell(
            graph,
            setting,
            100 * (means["teacher"] - means["glnn"]),
            100 * (means["glnn"] - means["mlp"]),
            100 * said[f"gap: {setting}"],
            None if pays is None else 100 * said[pays],
        )


def rank_correlation(
    cells: list[Cell], pair: Callable[[Cell], tuple[float, float | None]]
) -> tuple[float, float, float, int]:
    """Spearman's rho, its 95 % interval over graphs, and the number of cells."""
    of: dict[str, list[tuple[float, float]]] = {}
    for cell in cells:
        measured, expected = pair(cell)
        if expected is not None:
            of.setdefault(cell.graph, []).append((measured, expected))
    groups = [np.array(rows) for rows in of.values()]

    def rho(chosen: list[Any]) -> float:
        rows = np.concatenate(chosen)
        if len(np.unique(rows[:, 0])) < 2 or len(np.unique(rows[:, 1])) < 2:
            return float("nan")
        return float(spearmanr(rows[:, 0], rows[:, 1]).statistic)

    draw = np.random.default_rng(0)
    drawn = [
        rho([groups[i] for i in draw.integers(len(groups), size=len(groups))]) for _ in range(DRAWS)
    ]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return rho(groups), float(low), float(high), sum(len(rows) for rows in groups)


def page(
    cells: list[Cell], advice: dict[str, dict[str, Any]], arguments: argparse.Namespace
) -> Iterator[str]:
    """The page, line by line."""
    yield "# The advice of `limbeck profile --advise` beside measured tables\n"
    names = " ".join(folder.name for folder in arguments.runs)
    yield f"Written by `benchmarks/advise_check.py` from the tables {names};"
    yield f"{arguments.repeats} divisions, seed 0, one core of {platform.machine()}.\n"
    yield "| Spearman's rank correlation, expected and measured | rho | 95 % over graphs | cells |"
    yield "|---|---|---|---|"
    graphs = len({cell.graph for cell in cells})
    for label, pair in (
        ("gap: teacher − glnn", lambda cell: (cell.gap, cell.expected_gap)),
        ("gain: glnn − mlp", lambda cell: (cell.gain, cell.expected_gain)),
    ):
        rho, low, high, count = rank_correlation(cells, pair)
        yield f"| {label} | {rho:.2f} | {low:.2f} to {high:.2f} | {count} of {graphs} graphs |"
    for setting in sorted({cell.setting for cell in cells}):
        here = [cell for cell in cells if cell.setting == setting]
        if len(here) >= 4:
            rho, low, high, count = rank_correlation(here, lambda c: (c.gap, c.expected_gap))
            yield f"| gap, {setting} alone | {rho:.2f} | {low:.2f} to {high:.2f} | {count} |"
    agree = [
        cell
        for cell in cells
        if cell.expected_gain is not None and cell.expected_gain * cell.gain > 0
    ]
    asked = [cell for cell in cells if cell.expected_gain is not None]
    yield f"\nThe sign of the gain is right in {len(agree)} of {len(asked)} cells.\n"
    yield "| graph | setting | gap | expected | gain | expected | core seconds |"
    yield "|---|---|---|---|---|---|---|"
    for cell in cells:
        gain = "–" if cell.expected_gain is None else f"{cell.expected_gain:+.1f}"
        yield (
            f"| {cell.graph} | {cell.setting} | {cell.gap:+.1f} | {cell.expected_gap:+.1f} "
            f"| {cell.gain:+.1f} | {gain} | {advice[cell.graph]['cpu_seconds']:.0f} |"
        )
    yield "\nAll in points of accuracy; measured figures are means over the tables' seeds."


if __name__ == "__main__":
    main()
