"""Should SA-MLP's first stage leave validation nodes out? Asked of validation nodes alone.

    python benchmarks/sa_mlp_hold_out.py --out benchmarks/results/sa_mlp_hold_out.md

Validation cannot choose `hold_out` as it chooses other options: without it the validation nodes'
answers are learnt by heart, and their accuracy says nothing of new nodes. So the observed graph of
an inductive split plays the whole graph here, half of its validation nodes play the new nodes, and
the other half selects. Teacher and student are trained anew on what is left. No label of the
split's test nodes is read: the observed graph does not hold them.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ttest_1samp
from torch_geometric.data import Data

import limbeck
from limbeck.evaluation.distill import distill
from limbeck.graphs.load import load_graph
from limbeck.graphs.view import View, make_view
from limbeck.methods import make_method
from limbeck.teachers.fit import fit_teacher

GRAPHS = ("cpf-cora", "cpf-citeseer", "a-photo")
# One node short of all the nodes that play test nodes, which a view does not cut away as a whole.
UNSEEN = 0.99


def inner_view(view: View, seed: int) -> View:
    """The observed graph as a graph of its own, whose test nodes are half the validation nodes."""
    val = view.val[torch.randperm(len(view.val), generator=torch.Generator().manual_seed(seed))]
    parts = {"train": view.train, "val": val[len(val) // 2 :], "test": val[: len(val) // 2]}
    masks = {
        f"{part}_mask": torch.zeros(view.num_observed, dtype=torch.bool).index_fill_(0, nodes, True)
        for part, nodes in parts.items()
    }
    info = dataclasses.replace(
        view.info,
        split="fixed",
        node_ids=view.info.node_ids[view.nodes[: view.num_observed].numpy()],
        scaled_columns=None,  # the observed features are scaled already
    )
    observed = view.observed
    graph = Data(x=observed.x, edge_index=observed.edge_index, y=observed.y, info=info, **masks)
    return make_view(graph, "inductive", seed, unseen=UNSEEN)


def accuracies(name: str, seed: int) -> dict[bool, float]:
    """Accuracy (%) on the nodes that play new ones, with their edges, with and without."""
    view = inner_view(make_view(load_graph(name), "inductive", seed), seed)
    teacher = fit_teacher(view, "sage", seed)
    found = {}
    for hold_out in (True, False):
        method = make_method("sa-mlp", name, "inductive", hold_out=hold_out)
        run = distill(view, teacher, method, seed)
        with torch.no_grad():
            answer = run.student(run.inputs.unseen).argmax(1)
        right = answer == view.everything.y[view.test_unseen]
        found[hold_out] = 100 * float(right.float().mean())
    return found


def report(graphs: list[str], seeds: int) -> str:
    """Means, deviations and the paired difference, a row per graph."""
    lines = ["| | hold_out | not | difference, 95 % (Student) |", "|---|---|---|---|"]
    for name in graphs:
        runs = [accuracies(name, seed) for seed in range(seeds)]
        held, all_ = (np.array([run[key] for run in runs]) for key in (True, False))
        low, high = ttest_1samp(held - all_, 0.0).confidence_interval()
        lines.append(
            f"| {name} | {held.mean():.2f} ± {held.std():.2f} | {all_.mean():.2f} ± "
            f"{all_.std():.2f} | {(held - all_).mean():+.2f} [{low:+.2f}, {high:+.2f}] |"
        )
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Train, ask, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--graphs", nargs="+", default=list(GRAPHS))
    parser.add_argument("--out", type=Path, help="file to write beside printing")
    options = parser.parse_args()
    text = (
        "# Leaving validation nodes out of SA-MLP's first stage\n\n"
        "Half of the validation nodes of an inductive split play new nodes (with their edges),\n"
        "the other half selects; SAGE teacher, presets, no test node is read. Accuracy in % on\n"
        f"those that play, seeds 0 to {options.seeds - 1}, mean ± population standard deviation."
        "\n\n"
        f"{report(options.graphs, options.seeds)}\n\n"
        f"Python {platform.python_version()}, torch {torch.__version__}, Limbeck "
        f"{limbeck.__version__}.\n\n"
        f"    python benchmarks/sa_mlp_hold_out.py --seeds {options.seeds}\n"
    )
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
