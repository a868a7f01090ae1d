"""Framelet students: new nodes under each policy, and nodes whose soft labels were withheld.

    python benchmarks/framelet_students.py policies --out runs/framelet_policies.jsonl
    python benchmarks/framelet_students.py held --out runs/framelet_held.jsonl
    python benchmarks/framelet_students.py report runs/framelet_policies.jsonl \
        --out benchmarks/results/framelet_policies.md
    python benchmarks/framelet_students.py report runs/framelet_held.jsonl \
        --out benchmarks/results/framelet_held.md

A cell that is there already is not computed again. ``policies`` trains once per seed and scores
that student three times. ``held`` leaves out the soft labels of half of the nodes that are neither
for training nor for validation, and scores both halves; GLNN is trained without the same nodes, and
``bands shuffled`` is the student with the bands of other nodes. Teachers come from the cache where
another table has trained them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import subgraph

import limbeck
from limbeck.evaluation.distill import distill
from limbeck.graphs.sparse import take_rows
from limbeck.graphs.view import View, make_view
from limbeck.methods import make_method
from limbeck.methods.fmlp import POLICIES, under_policy, withheld_nodes
from limbeck.teachers.knowledge import Answers, FittedTeacher, Knowledge
from limbeck.training.loop import seeded

Row = dict[str, Any]
STUDENTS = ("fmlp-o", "fmlp-s", "fmlp-x")
HELD_SHARE = 0.5
load_graph = cache(limbeck.load_graph)


def policies(name: str, teacher: str, seed: int) -> Iterator[Row]:
    """Accuracy on unseen nodes, with their edges and without, under each policy."""
    view = make_view(load_graph(name), "inductive", seed)
    fitted = limbeck.fit_teacher(view, teacher, seed)
    for method in ("glnn", *STUDENTS):
        run = distill(view, fitted, method, seed)
        for policy in POLICIES if method in STUDENTS else ("features-only",):
            scored = run
            if method in STUDENTS:
                student, inputs = under_policy(run.student, run.inputs, policy)
                scored = replace(run, student=student, inputs=inputs)
            yield {
                "method": method,
                "policy": policy,
                "unseen": scored.scores["student"]["test_accuracy"],
                "alone": scored.in_setting("cold-start").scores["student"]["test_accuracy"],
                "teacher": scored.scores["teacher"]["test_accuracy"],
            }


def without(view: View, nodes: Tensor) -> tuple[View, Tensor]:
    """The view in which some observed nodes are not there, and which nodes are."""
    kept = torch.ones(view.num_observed, dtype=torch.bool)
    kept[nodes] = False
    kept_nodes = kept.nonzero().flatten()
    order = torch.cat([kept_nodes, nodes])
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    edges = view.observed.edge_index

    def part(chosen: Tensor, edge_index: Tensor, y: Tensor) -> Data:
        x = take_rows(view.observed.x, chosen)
        return Data(x=x, edge_index=edge_index, y=y[chosen], num_nodes=len(chosen))

    inner, _ = subgraph(torch.arange(len(kept_nodes)), place[edges], num_nodes=len(order))
    smaller = replace(
        view,
        setting="inductive",
        observed=part(kept_nodes, inner, view.observed.y),
        everything=part(order, place[edges], view.everything.y),
        nodes=view.nodes[order],
        train=place[view.train],
        val=place[view.val],
        test_observed=place[view.test_observed[~torch.isin(view.test_observed, nodes)]],
        test_unseen=place[nodes],
    )
    return smaller, order


def held(name: str, teacher: str, seed: int) -> Iterator[Row]:
    """Accuracy on test nodes whose soft labels were read, and on those where they were not."""
    view = make_view(load_graph(name), "transductive", seed)
    fitted = limbeck.fit_teacher(view, teacher, seed)
    hidden = withheld_nodes(view, HELD_SHARE)
    read = view.test_observed[~torch.isin(view.test_observed, hidden)]
    hidden = hidden[torch.isin(hidden, view.test_observed)]
    y = view.everything.y

    def row(method: str, logits: Tensor) -> Row:
        right = logits.argmax(1) == y
        return {
            "method": method,
            "read": float(right[read].float().mean()),
            "withheld": float(right[hidden].float().mean()),
        }

    soft = fitted.knowledge.logits
    yield row("teacher", soft)
    smaller, order = without(view, withheld_nodes(view, HELD_SHARE))
    known = Knowledge(soft[order[: smaller.num_observed]])
    of_known = FittedTeacher(fitted.name, known, Answers(known.logits))
    glnn = distill(smaller, of_known, "glnn", seed).answers
    assert glnn.unseen is not None
    logits = torch.empty_like(soft)
    logits[order] = torch.cat([glnn.observed, glnn.unseen])
    yield row("glnn", logits)
    for method in STUDENTS:
        options = make_method(method, view.info.dataset, withhold=HELD_SHARE, predictor_channels=0)
        run = distill(view, fitted, options, seed)
        yield row(method, run.answers.observed)
        observed = run.inputs.observed
        assert observed.bands is not None
        with seeded(seed), torch.no_grad():
            others = observed.bands[torch.randperm(len(observed))]
            yield row(f"{method}, bands shuffled", run.student(replace(observed, bands=others)))


TABLES = {"policies": policies, "held": held}
GRAPHS = {
    "policies": ["cora", "citeseer", "chameleon-filtered", "texas", "wisconsin", "cornell"],
    "held": ["cora:20-20-60", "chameleon-filtered", "texas", "wisconsin", "cornell"],
}


def compute(table: str, graphs: list[str], teachers: list[str], seeds: int, out: Path) -> None:
    """Write what is missing, cell by cell."""
    out.parent.mkdir(parents=True, exist_ok=True)
    cell = ("table", "graph", "of", "seed")
    there = {tuple(row[key] for key in cell) for row in read_rows(out)}
    for seed in range(seeds):
        for name in graphs:
            for teacher in teachers:
                key = (table, name, teacher, seed)
                if key in there:
                    continue
                rows = [
                    dict(zip(cell, key, strict=True)) | row
                    for row in TABLES[table](name, teacher, seed)
                ]
                with out.open("a", encoding="utf-8") as stream:
                    stream.writelines(json.dumps(row) + "\n" for row in rows)
                print(*key, flush=True)


def read_rows(path: Path) -> list[Row]:
    """The lines of a file, none if there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


TITLES = {
    "policies": "New nodes under each policy, with their edges (unseen) and without (alone)",
    "held": "Test nodes whose soft labels were read, and those whose were withheld",
}


def page(rows: list[Row], source: str) -> str:
    """The page of a file of rows."""
    table = rows[0]["table"]
    command = f"`python benchmarks/framelet_students.py {table} --out {source}`"
    how = f"Accuracy in %, mean ± standard deviation. {command}."
    return f"# {TITLES[table]}\n\n{how}\n\n{report(rows)}\n"


def report(rows: list[Row]) -> str:
    """Mean and standard deviation over seeds, in per cent, as a Markdown table."""
    figures = [key for key, value in rows[0].items() if isinstance(value, float)]
    named = [key for key in ("graph", "of", "method", "policy") if key in rows[0]]
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in named)].append(row)
    lines = ["| " + " | ".join([*named, *figures, "seeds"]) + " |"]
    lines.append("|" + "---|" * (len(named) + len(figures) + 1))
    for key, group in groups.items():
        cells = []
        for figure in figures:
            values = [100 * row[figure] for row in group]
            cells.append(f"{statistics.mean(values):.2f} ± {statistics.pstdev(values):.2f}")
        lines.append("| " + " | ".join([*key, *cells, str(len(group))]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=[*TABLES, "report"])
    parser.add_argument("names", nargs="*", help="graphs, or the file to report")
    parser.add_argument("--teachers", nargs="+", default=["framelet-original"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True, help="rows, or the page")
    chosen = parser.parse_args()
    if chosen.table == "report":
        text = page(read_rows(Path(chosen.names[0])), chosen.names[0])
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text, encoding="utf-8")
        print(text)
    else:
        names = chosen.names or GRAPHS[chosen.table]
        compute(chosen.table, names, chosen.teachers, chosen.seeds, chosen.out)


if __name__ == "__main__":
    main()
