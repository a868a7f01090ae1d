"""What SA-MLP is said to do, asked of trained students: gate, share, neighbours, eight bits.

    python benchmarks/sa_mlp_claims.py --out benchmarks/results/sa_mlp_claims.md

For each graph and seed one student is trained, and asked

* how well each stream answers alone, and how much the structure counts: mean gate α and share ρ;
* the swap test: rows are dealt anew among the test nodes; a node whose answer rests on structure
  should lose more of the probability of its answer. Printed is Spearman's correlation of ρ with
  that loss, and those of ρ with local homophily and with degree;
* what a new node without edges gets from the latent predictor, from an empty row and from its
  features' stream alone;
* what is left of it with a table in eight bits: test accuracy, and the share of test nodes that
  keep their class.

The claims of accuracy are tables of ``limbeck bench``: ``sa_mlp*.yaml``.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor

import limbeck
from limbeck.evaluation.distill import distill
from limbeck.evaluation.protocol import Run
from limbeck.export.structure import to_int8
from limbeck.graphs.load import load_graph
from limbeck.graphs.view import View, make_view
from limbeck.methods import make_method
from limbeck.students.inputs import NodeInputs
from limbeck.students.sa_mlp import SAMLP, Head
from limbeck.students.structure_tables import FullTable
from limbeck.teachers.cache import TeacherCache
from limbeck.teachers.fit import fit_teacher


class Case(NamedTuple):
    """Where a student is trained."""

    graph: str
    setting: str
    teacher: str


CASES = (
    Case("cpf-cora", "inductive", "sage"),
    Case("cpf-citeseer", "inductive", "sage"),
    Case("cora:geom-gcn", "transductive", "gcn"),
    Case("chameleon", "transductive", "gcn"),
    Case("texas", "transductive", "gcn"),
)


def train(case: Case, seed: int) -> Run:
    """The student of a case, with the presets of method and teacher."""
    view = make_view(load_graph(case.graph), case.setting, seed)
    teacher = fit_teacher(view, case.teacher, seed, cache=TeacherCache())
    return distill(view, teacher, make_method("sa-mlp", case.graph, case.setting), seed)


def local_homophily(view: View) -> Tensor:
    """Share of each observed node's neighbours that have its class, ``[observed]``."""
    source, target = view.everything.edge_index
    y = view.everything.y
    own = (source != target) & (source < view.num_observed) & (target < view.num_observed)
    same = (y[source] == y[target]).float()[own]
    total = torch.zeros(view.num_observed).index_add(0, target[own], torch.ones_like(same))
    return torch.zeros(view.num_observed).index_add(0, target[own], same) / total


def with_int8_table(student: SAMLP) -> SAMLP:
    """The student with the rows that its bundle would hold in eight bits."""
    small = copy.deepcopy(student)
    assert isinstance(small.table, FullTable)
    rows, scale = to_int8(small.table.weight.detach())
    small.table.weight.data.copy_(rows * scale)
    return small


def feature_stream(student: SAMLP, x: Tensor) -> Tensor:
    """Logits of the features' stream alone, ``[B, C]``."""
    head: Head = student.head
    z_x = head.encode(student.read(x))
    return head.decode(torch.zeros_like(z_x), z_x).feature


@torch.no_grad()
def ask(run: Run) -> dict[str, float]:
    """The figures of one student."""
    view, student = run.view, run.student
    assert isinstance(student, SAMLP)
    nodes, y = view.test_observed, view.everything.y
    inputs = run.inputs.observed.take(nodes)
    assert inputs.neighbors is not None

    def accuracy(logits: Tensor, of: Tensor) -> float:
        return 100 * float((logits.argmax(1) == y[of]).float().mean())

    streams = student.streams(inputs)
    probability, answer = streams.logits.softmax(1).max(1)
    with_rows = student.table.degree(inputs.neighbors) > 0
    generator = torch.Generator().manual_seed(run.seed)
    dealt = inputs.take(torch.randperm(len(nodes), generator=generator)).neighbors
    swapped = student(NodeInputs(inputs.x, neighbors=dealt)).softmax(1)
    loss = probability - swapped.gather(1, answer.unsqueeze(1)).squeeze(1)
    homophily, degree = local_homophily(view)[nodes], student.table.degree(inputs.neighbors)

    def order(values: Tensor) -> float:
        kept = with_rows & values.isfinite()
        return float(spearmanr(streams.share[kept], values[kept]).statistic)

    small = with_int8_table(student)(inputs)
    figures = {
        "test": accuracy(streams.logits, nodes),
        "structure alone": accuracy(streams.structure, nodes),
        "features alone": accuracy(streams.feature, nodes),
        "α": float(streams.gate.mean()),
        "ρ": float(streams.share.mean()),
        "ρ with loss by swapping": order(loss),
        "ρ with homophily": order(homophily),
        "ρ with degree": order(degree),
        "int8: test": accuracy(small, nodes),
        "int8: same class (%)": 100 * float((small.argmax(1) == answer).float().mean()),
    }
    if view.has_unseen:
        x, new = run.inputs.isolated.x, view.test_unseen
        empty = copy.deepcopy(student)
        empty.routed = False
        figures |= {
            "new, with edges": accuracy(student(run.inputs.unseen), new),
            "without: predictor": accuracy(student(run.inputs.isolated), new),
            "without: empty row": accuracy(empty(run.inputs.isolated), new),
            "without: features' stream": accuracy(feature_stream(student, x), new),
        }
    return figures


def report(cases: list[Case], seeds: int) -> str:
    """The figures, as Markdown: a row per figure, a column per case."""
    found = {case: [ask(train(case, seed)) for seed in range(seeds)] for case in cases}
    names = list(dict.fromkeys(name for runs in found.values() for name in runs[0]))

    def cell(runs: list[dict[str, float]], name: str) -> str:
        if name not in runs[0]:
            return ""
        values = [run[name] for run in runs]
        return f"{statistics.mean(values):.2f} ± {statistics.pstdev(values):.2f}"

    def row(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    lines = [row(["", *(f"{c.graph}, {c.setting}, {c.teacher}" for c in cases)])]
    lines.append(row(["---"] * (1 + len(cases))))
    lines += [row([name, *(cell(runs, name) for runs in found.values())]) for name in names]
    return "\n".join(lines)


def main() -> None:
    """Train, ask, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--graphs", nargs="+", default=[case.graph for case in CASES])
    parser.add_argument("--out", type=Path, help="file to write instead of printing")
    options = parser.parse_args()
    cases = [case for case in CASES if case.graph in options.graphs]
    text = (
        "# What SA-MLP's students rest on\n\n"
        f"Presets, seeds 0 to {options.seeds - 1}, mean ± population standard deviation; accuracy "
        "in % of the observed test nodes, or of the unseen ones where it says new or without.\n\n"
        f"{report(cases, options.seeds)}\n\n"
        f"Python {platform.python_version()}, torch {torch.__version__}, Limbeck "
        f"{limbeck.__version__}.\n\n"
        f"    python benchmarks/sa_mlp_claims.py --seeds {options.seeds}\n"
    )
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
