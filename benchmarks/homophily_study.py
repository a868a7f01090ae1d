"""Do gates and energies follow homophily? A family of graphs in which nothing else changes.

    python benchmarks/homophily_study.py --out runs/homophily \
        --page benchmarks/results/homophily_study.md

Contextual stochastic block models: Gaussian features around a mean per class, and edges of which
a share ``h`` joins two nodes of one class, ``h`` = 0, 0.1, ..., 1, at one mean degree. For each
level and seed a framelet teacher is trained and distilled; every finished cell is one JSON file
in the folder and is not computed again. At the end the page is written from all of them:
means per level, and the rank correlation (Spearman) of each figure with ``h`` over all cells,
with a bootstrap interval (BCa, 95 %) that resamples cells.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import bootstrap, spearmanr
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.utils import stochastic_blockmodel_graph

import limbeck
from limbeck.evaluation.framelets import framelet_diagnostics
from limbeck.graphs.load import from_data
from limbeck.training.loop import seeded

LEVELS = tuple(round(0.1 * level, 1) for level in range(11))
METHODS = ("fmlp-s", "fmlp-o", "fmlp-x")
RESAMPLES = 2_000


def contextual_sbm(
    homophily: float,
    seed: int,
    *,
    num_nodes: int = 600,
    classes: int = 2,
    mean_degree: float = 10.0,
    num_features: int = 32,
    distance: float = 1.5,
) -> Data:
    """A graph of the family.

    Args:
        homophily: Expected share of the edges that join two nodes of one class.
        seed: Draws means, features and edges.
        num_nodes: Number of nodes.
        classes: Number of classes, of one size.
        mean_degree: Expected number of neighbours.
        num_features: Number of features, standard normal around the mean of the class.
        distance: Length of each class's mean.
    """
    size = num_nodes // classes
    inside = homophily * mean_degree / size
    outside = (1 - homophily) * mean_degree / (size * (classes - 1))
    with seeded(seed):
        probabilities = torch.full((classes, classes), outside).fill_diagonal_(inside)
        edge_index = stochastic_blockmodel_graph([size] * classes, probabilities)
        y = torch.arange(classes).repeat_interleave(size)
        means = distance * F.normalize(torch.randn(classes, num_features), dim=1)
        x = means[y] + torch.randn(len(y), num_features)
    return Data(x=x, edge_index=edge_index, y=y)


def cell(homophily: float, seed: int, teacher: str, method: str, classes: int) -> dict[str, float]:
    """Train, distil and describe one graph; names of figures say whose they are."""
    graph = from_data(contextual_sbm(homophily, seed, classes=classes), f"csbm-{homophily}")
    view = limbeck.view(graph, seed=seed)
    fitted = limbeck.fit_teacher(view, teacher, seed)
    # nothing is new here, so that no predictor is needed
    run = limbeck.distill(view, fitted, method, seed, predictor_channels=0)
    report = framelet_diagnostics(run)
    figures = {
        "teacher accuracy": run.scores["teacher"]["test_accuracy"],
        "student accuracy": run.scores["student"]["test_accuracy"],
    }
    for who in ("teacher", "student"):
        for layer, energies in report[who].items():
            if energies["rayleigh"] is not None:
                figures[f"{who} {layer}: Rayleigh quotient"] = energies["rayleigh"]
                high = 1 - energies["band_shares"]["low"]
                figures[f"{who} {layer}: share of the high bands"] = high
    for number, layer in enumerate(report["gates"], start=1):
        for band, gate in layer.items():
            figures[f"student layer {number}: gate of {band}"] = gate["mean"]
    for band, share in report["shares"].items():
        figures[f"student: share of the answer, {band}"] = share
    for number, weights in enumerate(report.get("weights", []), start=1):
        for band, norm in weights.items():
            figures[f"teacher layer {number}: weight of {band}"] = norm
    if "gain" in report:
        figures["teacher: eigenvalue of largest gain"] = report["gain"]["peak"]
    return figures


def compute(arguments: argparse.Namespace) -> None:
    folder = arguments.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    grid = itertools.product(arguments.methods, range(arguments.seeds), arguments.levels)
    for method, seed, level in grid:
        name = f"{arguments.teacher}.{method}.{arguments.classes}.{level}.{seed}"
        path = folder / f"{name}.json"
        if path.is_file():
            continue
        figures = cell(level, seed, arguments.teacher, method, arguments.classes)
        head = {"teacher": arguments.teacher, "method": method, "classes": arguments.classes}
        document = {**head, "homophily": level, "seed": seed, "figures": figures}
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
        aside.replace(path)
        print(name, flush=True)


# -- the tables -----------------------------------------------------------------------------


def rank_correlation(
    level: npt.NDArray[np.float64], figure: npt.NDArray[np.float64]
) -> tuple[float, float, float]:
    """Spearman's coefficient and its bootstrap interval; NaN where a figure never changes."""
    if np.ptp(figure) == 0:
        return np.nan, np.nan, np.nan

    def coefficient(a: Any, b: Any) -> float:
        return float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else 0.0

    drawn = bootstrap(
        (level, figure),
        coefficient,
        paired=True,
        vectorized=False,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    interval = drawn.confidence_interval
    return coefficient(level, figure), float(interval.low), float(interval.high)


def report(folder: Path) -> str:
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))]
    made = (
        "`python benchmarks/homophily_study.py --out runs/homophily --page "
        "benchmarks/results/homophily_study.md`; Python "
        f"{platform.python_version()}, torch {torch.__version__}, Limbeck {limbeck.__version__}."
    )
    lines = ["# Gates and energies over homophily", "", made, ""]
    keys = dict.fromkeys((c["teacher"], c["method"], c["classes"]) for c in found)
    for key in keys:
        chosen = [c for c in found if (c["teacher"], c["method"], c["classes"]) == key]
        lines += [*_table(chosen, f"{key[1]} from {key[0]}, {key[2]} classes"), ""]
    return "\n".join(lines)


def _table(found: list[dict[str, Any]], title: str) -> list[str]:
    levels = sorted({cell["homophily"] for cell in found})
    seeds = {cell["seed"] for cell in found}
    lines = [f"## {title}, {len(seeds)} seeds", ""]
    lines.append(_row("figure", *(f"h = {level}" for level in levels), "Spearman", "interval"))
    lines.append(_row(*["---"] * (len(levels) + 3)))
    for name in found[0]["figures"]:
        by_level = {
            level: [
                cell["figures"][name]
                for cell in found
                if cell["homophily"] == level and name in cell["figures"]
            ]
            for level in levels
        }
        means = [f"{statistics.fmean(v):.3f}" if v else "–" for v in by_level.values()]
        pairs = [(level, value) for level, values in by_level.items() for value in values]
        level, figure = np.array(pairs).T
        if len(levels) < 3:
            lines.append(_row(name, *means, "–", "–"))
            continue
        rho, low, high = rank_correlation(level, figure)
        lines.append(_row(name, *means, f"{rho:+.2f}", f"[{low:+.2f}, {high:+.2f}]"))
    return lines


def _row(*values: str) -> str:
    return f"| {' | '.join(values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--page", type=Path, help="the page; beside the cells by default")
    parser.add_argument("--teacher", default="framelet-original")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS[:2]))
    parser.add_argument("--levels", nargs="+", type=float, default=list(LEVELS))
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    compute(arguments)
    text = report(arguments.out / "cells")
    page = arguments.page or arguments.out / "homophily_study.md"
    page.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
