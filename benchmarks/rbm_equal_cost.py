"""Routing-by-Memory beside plain students of the same size, and of the same cost.

    python benchmarks/rbm_equal_cost.py --out runs/rbm_equal_cost

trains what is missing of ``runs/rbm_equal_cost`` and writes
``benchmarks/results/rbm_equal_cost.md``. It can be stopped and started again; ``--report-only``
writes the page from what is there.

The yardstick is an RbM of two layers with 128 hidden units and the presets of its graph. Against
it stand, with as many parameters within 1 %, one wide MLP (``glnn``), ``E`` MLPs whose
probabilities are averaged (``ensemble``) and a mixture of experts with a trained gate (``moe``);
and, with as many operations per node within 1 %, an MLP of about ``k`` times the width. The MLPs
run with GLNN's own presets and with the recipe that RbM's code gives the MLP beside its RbM; so
does the MoE.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Literal

import torch
from rbm_ideas import SMALL, arguments_of, page, run_all, seed_by_seed, write_page

from limbeck.evaluation.plan import Bench, Variant
from limbeck.graphs.load import load_graph
from limbeck.graphs.sparse import is_csr
from limbeck.methods import make_method
from limbeck.students import MLP
from limbeck.students.ensemble import (
    EnsembleOfMLPs,
    flops_per_node,
    hidden_channels_for,
    num_parameters,
)
from limbeck.students.moe import MoE
from limbeck.students.rbm import RbM

GRAPHS = ("cpf-cora", "cpf-citeseer", "a-photo")
SETTINGS = ("transductive", "inductive")

Kind = Literal["glnn", "ensemble", "moe"]
Size = Literal["parameters", "operations"]

EQUALS: tuple[tuple[Kind, Size, tuple[bool, ...]], ...] = (
    ("glnn", "parameters", (False, True)),
    ("ensemble", "parameters", (False, True)),
    ("moe", "parameters", (True,)),
    ("glnn", "operations", (False, True)),
)
"""What stands against RbM, as large in what, and whether without the recipe and with it."""

RECIPES: dict[tuple[str, str], dict[str, float]] = {
    ("cpf-cora", "transductive"): {
        "dropout": 0.6,
        "lr": 0.01,
        "weight_decay": 5e-4,
        "label_weight": 0.2,
        "temperature": 1.29,
    },
    ("cpf-cora", "inductive"): {
        "dropout": 0.4,
        "lr": 0.005,
        "weight_decay": 1e-3,
        "label_weight": 0.3,
        "temperature": 0.6,
    },
    ("cpf-citeseer", "transductive"): {
        "dropout": 0.6,
        "lr": 0.01,
        "weight_decay": 1e-3,
        "label_weight": 0.0,
        "temperature": 1.19,
    },
    ("cpf-citeseer", "inductive"): {
        "dropout": 0.6,
        "lr": 0.01,
        "weight_decay": 1e-3,
        "label_weight": 0.0,
        "temperature": 0.55,
    },
    ("a-photo", "transductive"): {
        "dropout": 0.4,
        "lr": 0.01,
        "weight_decay": 5e-4,
        "label_weight": 0.4,
        "temperature": 0.5,
    },
    ("a-photo", "inductive"): {
        "dropout": 0.4,
        "lr": 0.01,
        "weight_decay": 5e-4,
        "label_weight": 0.4,
        "temperature": 0.9,
    },
}
"""What RbM's released code trains its MLP with (https://github.com/Rufaim/routing-by-memory)."""


@cache
def shape_of(graph: str) -> tuple[int, int, float]:
    """Features, classes, and the mean number of features that are stored per node."""
    data = load_graph(graph)
    stored = data.x.values().numel() if is_csr(data.x) else data.x.numel()
    return data.x.shape[1], int(data.y.max()) + 1, stored / data.x.shape[0]


@cache
def yardstick(graph: str, setting: str) -> RbM:
    """The RbM that the others are compared with, without its weights."""
    num_features, num_classes, _ = shape_of(graph)
    preset = make_method("rbm", graph, setting)
    with torch.device("meta"):
        return RbM(
            num_features,
            SMALL["hidden_channels"],
            num_classes,
            num_experts=preset.num_experts,
            top_k=preset.top_k,
            input_gain=preset.input_gain,
        )


def build(kind: Kind, graph: str, width: int, num_members: int = 1) -> torch.nn.Module:
    """A student of two layers, without its weights."""
    num_features, num_classes, _ = shape_of(graph)
    with torch.device("meta"):
        if kind == "moe":
            defaults = make_method("moe", graph)
            return MoE(
                num_features,
                width,
                num_classes,
                num_experts=defaults.num_experts,
                top_k=defaults.top_k,
            )
        mlps = [MLP(num_features, width, num_classes) for _ in range(num_members)]
        return mlps[0] if kind == "glnn" else EnsembleOfMLPs(mlps)


def as_large(kind: Kind, size: Size, graph: str, setting: str) -> dict[str, int]:
    """Options of a student of two layers that is as large, or as costly, as the yardstick."""
    measure = num_parameters if size == "parameters" else flops_per_node
    members = make_method("rbm", graph, setting).num_experts if kind == "ensemble" else 1
    width = hidden_channels_for(
        measure(yardstick(graph, setting)),
        lambda hidden: measure(build(kind, graph, hidden, members)),
    )
    options = {"num_layers": 2, "hidden_channels": width}
    return options | {"num_members": members} if kind == "ensemble" else options


def bench_of(graph: str, setting: str, seed: int) -> Bench:
    """The table of one cell and seed: the yardstick, an MLP of its width, and what is as large."""
    recipe = RECIPES[graph, setting]
    variants = {}
    for kind, size, recipes in EQUALS:
        options = as_large(kind, size, graph, setting)
        for with_recipe in recipes:
            name = f"{kind}, equal {size}" + (", recipe" if with_recipe else "")
            chosen = {**options, **recipe} if with_recipe else options
            variants[name] = Variant(method=kind, options=chosen)
    return Bench(
        graphs=(graph,),
        settings=(setting,),
        seeds=(seed,),
        methods=("rbm", "glnn", *variants),
        method_options={"rbm": SMALL, "glnn": SMALL},
        variants=variants,
        latency=False,
    )


def students(graph: str, setting: str) -> Iterator[tuple[str, int, torch.nn.Module]]:
    """Name and width of every student of a cell, and the student without its weights."""
    width = SMALL["hidden_channels"]
    yield "rbm", width, yardstick(graph, setting)
    yield "glnn", width, build("glnn", graph, width)
    for kind, size, _ in EQUALS:
        options = as_large(kind, size, graph, setting)
        width = options["hidden_channels"]
        yield (
            f"{kind}, equal {size}",
            width,
            build(kind, graph, width, options.get("num_members", 1)),
        )


def sizes() -> str:
    """Width, parameters and operations of every student, as Markdown."""
    lines = [
        "## Sizes",
        "",
        "| graph | setting | student | width | parameters | operations per node, dense "
        "| with sparse features |",
        "|---|---|---|---|---|---|---|",
    ]
    for graph in GRAPHS:
        stored = shape_of(graph)[2]
        for setting in SETTINGS:
            for name, width, student in students(graph, setting):
                lines.append(
                    f"| {graph} | {setting} | {name} | {width} | {num_parameters(student):,} "
                    f"| {flops_per_node(student):,.0f} | {flops_per_node(student, stored):,.0f} |"
                )
    lines += [
        "",
        "*Operations: two for a multiplication with its addition, in experts, routing and mixture; "
        "MLP: 2 Σ d d′; RbM: 2 k Σ d d′ + 2 E Σ d + k Σ d′; MoE with a gate of width g: "
        "2 k Σ d d′ + 2 g Σ (d + E) + k Σ d′. With sparse features the first d is the mean number "
        "of stored entries of a row; widths are matched on the dense count.*",
    ]
    return "\n".join(lines)


def main() -> None:
    arguments = arguments_of(__doc__, "rbm_equal_cost")
    benches = [bench_of(*cell) for cell in seed_by_seed(GRAPHS, SETTINGS)]
    rows = run_all(benches, arguments.out, train=not arguments.report_only)
    note = (
        "One SAGE teacher per graph, setting and seed for all students. *rbm*: two layers with 128 "
        "hidden units, presets; *glnn*: an MLP of that width. *Equal parameters* and *equal "
        "operations* within 1 % of *rbm*. *Recipe*: the options that RbM's released code gives the "
        "MLP beside its RbM; else the presets of `glnn`. Nothing was tuned here."
    )
    title = "Routing-by-Memory at equal size and equal cost"
    parts = [*page(title, "rbm_equal_cost", note, rows), sizes()]
    write_page("rbm_equal_cost", iter(parts))


if __name__ == "__main__":
    main()
