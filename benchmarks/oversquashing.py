"""What graph surgery does to bottlenecks, to how far a node is heard, and to accuracy.

    python benchmarks/oversquashing.py --out runs/oversquashing \
        --page benchmarks/results/oversquashing.md

Four parts: two cliques and a bridge; a task that needs news from the other side of a bridge; real
graphs before and after; a teacher's accuracy with and without surgery, paired. ``--parts``,
``--graphs``, ``--teachers`` and ``--seeds`` take less of it. Every finished cell is one JSON file
in the folder and is not computed again; at the end the page is written from all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

import limbeck
from limbeck.evaluation.compare import paired_differences
from limbeck.evaluation.framelets import jacobian, reach
from limbeck.evaluation.metrics import accuracy
from limbeck.graphs.connectivity import before_and_after, far_pairs, figures_of
from limbeck.graphs.load import from_data
from limbeck.graphs.rewire import Surgery, SurgeryOptions, rewire, rewire_at_random
from limbeck.graphs.view import View, with_observed_edges
from limbeck.teachers.knowledge import FittedTeacher

PARTS = ("cliques", "transfer", "graphs", "accuracy")
GRAPHS = ("texas", "wisconsin", "cornell", "chameleon-filtered")
TEACHERS = ("gcn", "framelet-original", "framelet-simplified")

NONE, RANDOM = "none", "random edits"
SURGERIES: dict[str, SurgeryOptions] = {
    "sdrf": SurgeryOptions(),
    "sdrf, best edge": SurgeryOptions(tau=math.inf),
    "additions only": SurgeryOptions(tau=math.inf, removal_bound=None),
}
"""Surgery by name; ``random edits`` makes as many as ``sdrf, best edge``, anywhere."""

OF_INTEREST = {
    "transfer": (NONE, "additions only", RANDOM),
    "accuracy": (NONE, "sdrf", RANDOM),
}
"""Surgeries that teachers are trained after; all are described in the part ``graphs``."""

LAYERS = 4
"""Layers of the teachers whose Jacobian is taken: the farthest that a node can be heard."""

HEARERS = 16
"""Nodes whose Jacobian is taken, drawn by the seed."""


def operated(view: View, surgery: str) -> View:
    """The view after a surgery of :data:`SURGERIES`, none, or the random control."""
    if surgery == NONE:
        return view
    edges, size, seed = view.observed.edge_index, view.num_observed, view.seed
    if surgery == RANDOM:
        model = rewired(view, "sdrf, best edge")
        counts = model.added.shape[1], model.removed.shape[1]
        return with_observed_edges(view, rewire_at_random(edges, size, *counts, seed).edge_index)
    return with_observed_edges(view, rewired(view, surgery).edge_index)


DONE: dict[tuple[str, str, int], Surgery] = {}
"""Surgeries by the observed graph's fingerprint, name and seed: all teachers share one."""


def rewired(view: View, surgery: str) -> Surgery:
    options = SURGERIES[surgery]
    seed = 0 if math.isinf(options.tau) else view.seed  # the best edge is not drawn
    edges = view.observed.edge_index
    key = (hashlib.blake2b(edges.numpy().tobytes()).hexdigest(), surgery, seed)
    if key not in DONE:
        DONE[key] = rewire(edges, view.num_observed, options, seed)
    return DONE[key]


# -- two cliques ----------------------------------------------------------------------------


def two_cliques(size: int = 8) -> Tensor:
    sides = (range(size), range(size, 2 * size))
    pairs = [pair for side in sides for pair in itertools.combinations(side, 2)]
    return torch.tensor([*pairs, (size - 1, size)]).t()


def cliques(seed: int) -> dict[str, Any]:
    """Four additions with tau = 20 and no removal, as in the worked example."""
    edges = two_cliques()
    pairs = far_pairs(edges, 16)
    done = rewire(edges, 16, SurgeryOptions(loops=4, tau=20.0, removal_bound=None), seed)
    return {
        "before": figures_of(edges, 16, pairs=pairs).to_dict(),
        "after": figures_of(done.edge_index, 16, pairs=pairs).to_dict(),
        "added": done.added.t().tolist(),
    }


# -- news from the other side ---------------------------------------------------------------


def transfer_graph(seed: int, copies: int = 100, size: int = 8, classes: int = 5) -> Data:
    """Copies of two cliques with a bridge: a node left must name the class of one node right.

    The class is a feature of the one right node, three hops away; a last feature marks the node
    that must answer, a third of which are for training, validation and test each.
    """
    generator = torch.Generator().manual_seed(seed)
    first = 2 * size * torch.arange(copies)
    edges = torch.cat([two_cliques(size) + start for start in first.tolist()], dim=1)
    asked = first + torch.randint(size - 1, (copies,), generator=generator)
    told = first + size + 1 + torch.randint(size - 1, (copies,), generator=generator)
    label = torch.randint(classes, (copies,), generator=generator)
    num_nodes = 2 * size * copies
    x, y = torch.zeros(num_nodes, classes + 1), torch.full((num_nodes,), -1)
    x[told, label] = 1.0
    x[asked, classes] = 1.0
    y[asked] = label
    masks = torch.zeros(3, num_nodes, dtype=torch.bool)
    for mask, nodes in zip(masks, asked.tensor_split(3), strict=True):
        mask[nodes] = True
    return Data(
        x=x,
        edge_index=torch.cat([edges, edges.flip(0)], dim=1),
        y=y,
        **dict(zip(("train_mask", "val_mask", "test_mask"), masks, strict=True)),
    )


def transfer(teacher: str, surgery: str, seed: int) -> dict[str, Any]:
    view = limbeck.view(from_data(transfer_graph(seed), "two cliques"), seed=seed)
    options = {"num_layers": 3, "max_epochs": 300, "patience": 300, "weight_decay": 0.0}
    fitted = limbeck.fit_teacher(operated(view, surgery), teacher, seed, **options)
    return {"test_accuracy": test_accuracy(fitted, view)}


# -- real graphs ----------------------------------------------------------------------------


def graphs(graph: str, surgery: str) -> dict[str, Any]:
    view = limbeck.view(limbeck.load_graph(graph))
    other = operated(view, surgery)
    before, after = before_and_after(view, other)
    fitted = limbeck.fit_teacher(other, "gcn", num_layers=LAYERS)
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randperm(view.num_observed, generator=generator)[:HEARERS]
    module, edges = fitted.module, other.observed.edge_index
    assert module is not None
    influence = jacobian(lambda x: module(x, edges), view.observed.x, nodes)
    heard = reach(influence, view.observed.edge_index, nodes)
    return {
        "before": before.to_dict(),
        "after": after.to_dict(),
        "share": heard.share.tolist(),
        "norm": heard.norm.tolist(),
    }


def with_and_without(graph: str, teacher: str, surgery: str, seed: int) -> dict[str, Any]:
    view = limbeck.view(limbeck.load_graph(graph), seed=seed)
    fitted = limbeck.fit_teacher(operated(view, surgery), teacher, seed)
    return {"test_accuracy": test_accuracy(fitted, view)}


def test_accuracy(fitted: FittedTeacher, view: View) -> float:
    nodes = view.test_observed
    return accuracy(fitted.answers.observed[nodes], view.everything.y[nodes])


# -- the cells ------------------------------------------------------------------------------

Cell = dict[str, Any]


def cells(arguments: argparse.Namespace) -> Iterator[tuple[Cell, Callable[[], dict[str, Any]]]]:
    seeds = range(arguments.seeds)
    surgeries = (NONE, *SURGERIES, RANDOM)
    for part in arguments.parts:
        if part == "cliques":
            for seed in range(20):
                yield {"part": part, "seed": seed}, lambda seed=seed: cliques(seed)
        elif part == "graphs":
            for cell in itertools.product(arguments.graphs, surgeries):
                named = dict(zip(("graph", "surgery"), cell, strict=True))
                yield {"part": part, **named}, lambda cell=cell: graphs(*cell)
        elif part == "transfer":
            chosen = itertools.product(arguments.teachers, OF_INTEREST[part], seeds)
            for cell in chosen:
                named = dict(zip(("teacher", "surgery", "seed"), cell, strict=True))
                yield {"part": part, **named}, lambda cell=cell: transfer(*cell)
        else:
            axes = (arguments.graphs, arguments.teachers, OF_INTEREST[part], seeds)
            for cell in itertools.product(*axes):
                named = dict(zip(("graph", "teacher", "surgery", "seed"), cell, strict=True))
                yield {"part": part, **named}, lambda cell=cell: with_and_without(*cell)


def compute(arguments: argparse.Namespace) -> None:
    folder = arguments.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    for cell, work in cells(arguments):
        name = ".".join(str(value).replace(", ", "-").replace(" ", "-") for value in cell.values())
        path = folder / f"{name}.json"
        if path.is_file():
            continue
        document = json.dumps({**cell, **work()}, allow_nan=False)
        aside = path.with_suffix(".part")
        aside.write_text(document, encoding="utf-8")
        aside.replace(path)
        print(name, flush=True)


# -- the tables -----------------------------------------------------------------------------


def report(folder: Path) -> str:
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))]
    by_part = {part: [cell for cell in found if cell["part"] == part] for part in PARTS}
    tables = [
        table
        for part, write in (
            ("cliques", _cliques),
            ("transfer", _accuracies),
            ("graphs", _graphs),
            ("graphs", _reach),
            ("accuracy", _accuracies),
        )
        if by_part[part]
        for table in write(by_part[part])
    ]
    made = (
        "`python benchmarks/oversquashing.py --out runs/oversquashing --page "
        "benchmarks/results/oversquashing.md`; Python "
        f"{platform.python_version()}, torch {torch.__version__}, Limbeck {limbeck.__version__}."
    )
    return "\n".join(["# Over-squashing, with and without surgery", "", made, "", *tables])


def _cliques(found: list[Cell]) -> Iterator[str]:
    yield "## Two cliques of eight and a bridge, four additions, τ = 20\n"
    names = ("algebraic_connectivity", "kirchhoff_index", "normalised_gap", "far_resistance")
    yield _row("seed", *(name.replace("_", " ") for name in names), "min curvature")
    yield _row(*["---"] * 6)
    first = next(cell for cell in found if cell["seed"] == 0)
    lines = [("before", first["before"]), ("0", first["after"])]
    for label, figures in lines:
        values = [*(figures[name] for name in names), figures["curvature"]["min"]]
        yield _row(label, *(f"{value:.4g}" for value in values))
    columns = [[cell["after"][name] for cell in found] for name in names]
    columns.append([cell["after"]["curvature"]["min"] for cell in found])
    yield _row(f"mean of {len(found)}", *(f"{statistics.fmean(c):.4g}" for c in columns))
    yield ""


def _graphs(found: list[Cell]) -> Iterator[str]:
    yield "## Graphs before and after, whole graph, seed 0\n"
    yield _row(
        *("graph", "surgery", "edges", "curvature min", "5 %", "mean", "λ₂", "gap"),
        *("Kirchhoff", "far resistance", "edge homophily"),
    )
    yield _row(*["---"] * 11)
    for cell in found:
        f, curvature = cell["after"], cell["after"]["curvature"]
        values = [curvature["min"], curvature["p5"], curvature["mean"]]
        values += [f["algebraic_connectivity"], f["normalised_gap"], f["kirchhoff_index"]]
        values += [f["far_resistance"], f["edge_homophily"]]
        digits = ["–" if value is None else f"{value:.4g}" for value in values]
        yield _row(cell["graph"], cell["surgery"], str(f["num_edges"]), *digits)
    yield ""


def _reach(found: list[Cell]) -> Iterator[str]:
    yield f"## Share of a {LAYERS}-layer GCN's Jacobian by hops in the original graph, in %\n"
    hops = max(len(cell["share"]) for cell in found)
    yield _row("graph", "surgery", *map(str, range(hops)))
    yield _row(*["---"] * (hops + 2))
    for cell in found:
        shares = [f"{100 * share:.3g}" for share in cell["share"]]
        yield _row(cell["graph"], cell["surgery"], *shares, *[""] * (hops - len(shares)))
    yield ""


def _accuracies(found: list[Cell]) -> Iterator[str]:
    title = "Teachers" if "graph" in found[0] else "Naming a class across the bridge"
    yield f"## {title}: test accuracy in %, difference to no surgery, and its 95 % interval\n"
    yield _row("graph", "teacher", "surgery", "accuracy", "difference", "interval", "seeds")
    yield _row(*["---"] * 7)
    runs = [
        {
            "graph": cell.get("graph", "two cliques"),
            "setting": "transductive",
            "teacher": cell["teacher"],
            "method": cell["surgery"],
            "seed": cell["seed"],
            "test_accuracy": 100 * cell["test_accuracy"],
        }
        for cell in found
    ]
    differences = {
        (d.cell.graph, d.cell.teacher, d.method): d for d in paired_differences(runs, NONE)
    }
    keys = dict.fromkeys((run["graph"], run["teacher"], run["method"]) for run in runs)
    for key in keys:
        graph, teacher, surgery = key
        values = [run["test_accuracy"] for run in runs if _key(run) == key]
        line = f"{statistics.fmean(values):.2f} ± {statistics.pstdev(values):.2f}"
        d = differences.get(key)
        beside = ("", "") if d is None else (f"{d.mean:+.2f}", _interval(d.low, d.high))
        yield _row(graph, teacher, surgery, line, *beside, str(len(values)))
    yield ""


def _key(run: dict[str, Any]) -> tuple[str, str, str]:
    return run["graph"], run["teacher"], run["method"]


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:+.2f}, {high:+.2f}]"


def _row(*values: str) -> str:
    return f"| {' | '.join(values)} |"


def _names(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        given = text.split(",")
        if unknown := set(given) - set(allowed):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
        return given

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--page", type=Path, help="the page; beside the cells by default")
    parser.add_argument("--parts", type=_names(PARTS), default=list(PARTS))
    parser.add_argument("--graphs", type=_names(GRAPHS), default=list(GRAPHS))
    parser.add_argument("--teachers", type=_names(TEACHERS), default=list(TEACHERS))
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    compute(arguments)
    text = report(arguments.out / "cells")
    page = arguments.page or arguments.out / "oversquashing.md"
    page.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
