"""Gates and energies of framelet students, from tables with ``diagnostics: true``.

limbeck bench --config benchmarks/framelet_public.yaml --workers 2 --out runs/framelet_public
limbeck bench --config benchmarks/framelet_geom.yaml --workers 2 --out runs/framelet_geom
python benchmarks/homophily_study.py --out runs/homophily
pip install matplotlib && python benchmarks/framelet_pictures.py docs/images \
    --tables runs/framelet_public runs/framelet_geom --study runs/homophily

``framelet_graphs.svg``: what share of a student's answer each band has, and how much of the energy
of teacher and student lies in the high bands, on real graphs in the order of their homophily.
``framelet_homophily.svg``: the same over the synthetic family. Means over seeds, bars and bands are
standard deviations.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {"low": "#2a6fb0", "high": "#d98032", "features": "#888888"}
STUDENT = "fmlp-s"
Series = dict[str, list[float]]


def of_tables(folders: list[Path]) -> dict[str, Series]:
    """Figures of the student by graph, the most heterophilous first."""
    found: dict[str, Series] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        for row in pq.read_table(folder / "runs.parquet").to_pylist():
            if row["method"] != STUDENT or not row["framelets"]:
                continue
            report = json.loads(row["framelets"])
            series = found[row["graph"]]
            series["homophily"].append(report["edge_homophily"])
            for band, share in report["shares"].items():
                series[f"share {band}"].append(share)
            for who in ("teacher", "student"):
                high = 1 - report[who]["logits"]["band_shares"]["low"]
                series[f"energy {who}"].append(high)
    return dict(sorted(found.items(), key=lambda item: np.mean(item[1]["homophily"])))


def of_study(folder: Path) -> dict[str, Series]:
    """The same by the homophily of the synthetic graphs."""
    found: dict[str, Series] = defaultdict(lambda: defaultdict(list))
    cells = [json.loads(path.read_text()) for path in (folder / "cells").glob("*.json")]
    for cell in sorted(cells, key=lambda cell: (cell["homophily"], cell["seed"])):
        if cell["method"] != STUDENT:
            continue
        series, figures = found[str(cell["homophily"])], cell["figures"]
        for band in COLORS:
            series[f"share {band}"].append(figures[f"student: share of the answer, {band}"])
        for who in ("teacher", "student"):
            name = f"{who} logits: share of the high bands"
            if name in figures:
                series[f"energy {who}"].append(figures[name])
    return found


def draw(found: dict[str, Series], label: str) -> Figure:
    """Shares of the answer on the left, of the energy on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for band, color in COLORS.items():
        _series(left, found, f"share {band}", band, color)
    for who, color in {"teacher": "#888888", "student": COLORS["high"]}.items():
        _series(right, found, f"energy {who}", who, color)
    for axis, title in ((left, "share of the answer"), (right, "energy in the high bands")):
        axis.set_title(title, fontsize=11, loc="left")
        axis.set_xticks(range(len(found)), list(found), fontsize=8)
        axis.set_ylim(0, 1)
        axis.grid(axis="y", color="#dddddd")
        axis.set_xlabel(label)
        axis.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.08), ncols=3)
        axis.spines[["top", "right"]].set_visible(False)
        if max(map(len, found)) > 3:
            plt.setp(axis.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    return figure


def _series(axis: Axes, found: dict[str, Series], name: str, label: str, color: str) -> None:
    places = [place for place, series in enumerate(found.values()) if series.get(name)]
    values = [series[name] for series in found.values() if series.get(name)]
    means, spread = [np.mean(v) for v in values], [np.std(v) for v in values]
    axis.errorbar(places, means, spread, fmt="o-", color=color, label=label, capsize=2, lw=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of the pictures")
    parser.add_argument("--tables", nargs="*", type=Path, default=[])
    parser.add_argument("--study", type=Path)
    arguments = parser.parse_args()
    mpl.rcParams.update({"svg.hashsalt": "limbeck", "font.family": "sans-serif", "font.size": 10})
    drawn = {}
    if arguments.tables:
        graphs = of_tables(arguments.tables)
        drawn["framelet_graphs"] = draw(graphs, "by edge homophily")
    if arguments.study:
        drawn["framelet_homophily"] = draw(of_study(arguments.study), "edge homophily")
    arguments.images.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        path = arguments.images / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
