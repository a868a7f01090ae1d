"""The README's picture, from the runs of ``benchmarks/cpf.yaml``.

limbeck bench --config benchmarks/cpf.yaml --workers 2 --out runs/cpf
pip install matplotlib && python benchmarks/picture.py runs/cpf docs/images/cpf.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq

GRAPHS = {
    "cpf-cora": "Cora",
    "cpf-citeseer": "Citeseer",
    "cpf-pubmed": "Pubmed",
    "a-computer": "A-computer",
    "a-photo": "A-photo",
}
METHODS = {
    "teacher": ("GraphSAGE teacher", "#888888"),
    "mlp": ("MLP, no teacher", "#d98032"),
    "glnn": ("GLNN student", "#2a6fb0"),
}
SETTINGS = {"inductive": "new nodes with their edges", "cold-start": "new nodes without edges"}


def main() -> None:
    runs, target = Path(sys.argv[1]), Path(sys.argv[2])
    rows = pq.read_table(runs / "runs.parquet").to_pylist()
    mpl.rcParams.update({"svg.hashsalt": "limbeck", "font.family": "sans-serif", "font.size": 10})
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, (setting, title) in zip(axes, SETTINGS.items(), strict=True):
        for offset, (method, (label, color)) in enumerate(METHODS.items()):
            figures = [
                [
                    100 * r["test_accuracy"]
                    for r in rows
                    if (r["graph"], r["setting"], r["method"]) == (graph, setting, method)
                ]
                for graph in GRAPHS
            ]
            place = np.arange(len(GRAPHS)) + 0.22 * (offset - 1)
            axis.errorbar(
                place,
                [np.mean(f) for f in figures],
                [np.std(f) for f in figures],
                fmt="o",
                color=color,
                label=label,
                capsize=2,
                markersize=5,
            )
        axis.set_title(title, fontsize=11)
        axis.set_xticks(range(len(GRAPHS)), GRAPHS.values())
        axis.grid(axis="y", color="#dddddd")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy (%)")
    axes[1].legend(frameon=False, loc="upper left", fontsize=9)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
