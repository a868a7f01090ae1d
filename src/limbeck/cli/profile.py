"""``limbeck profile``: what a graph is like, and what that means for distillation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from limbeck.cli.options import GraphSource
from limbeck.cli.output import console, show_json, show_table

if TYPE_CHECKING:
    from limbeck.evaluation.advise import Advice


def profile(
    graph: str | None = None,
    *,
    tables: GraphSource | None = None,
    advise: bool = False,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Print a graph's size, degrees, homophily, labels and features, and what they mean.

    Args:
        graph: Name of a data set, or a folder that holds node and edge tables.
        tables: Which graph, and how to read it if it is tables.
        advise: Train small probes, too, and say whether distilling will pay, what a student should
            read, and how far it will lie behind its teacher in each setting.
        seed: Of the split and the probes.
        json: Print JSON.
    """
    import limbeck

    source = tables or GraphSource()
    if graph is not None:
        source = replace(source, graph=graph)
    loaded = source.load()
    figures = limbeck.profile_graph(loaded).to_dict()
    probed = _probe(loaded, seed) if advise else None
    if json:
        show_json(figures if probed is None else {**figures, "probes": probed.to_dict()})
        return
    advice: Any = figures.pop("advice")
    show_table(f"graph {figures.pop('name')}", ("", "value"), _rows(figures))
    out = console()
    out.print("\nWhat this means for distillation:")
    for sentence in advice:
        out.print(f"  • {sentence}", soft_wrap=True)
    if probed is not None:
        out.print(
            f"\nWhat small probes say ({probed.repeats} divisions of the labelled nodes outside of "
            f"the test part: {probed.num_train} to train on, {probed.num_held_out} to score):",
            soft_wrap=True,
        )
        for finding in probed.findings:
            out.print(f"  • {finding.sentence}", soft_wrap=True)


def _probe(graph: Any, seed: int) -> Advice:
    from limbeck.evaluation.advise import advise

    return advise(graph, seed)


def _rows(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        label = prefix + name.replace("_", " ")
        if isinstance(value, dict):
            yield from _rows(value, f"{label}: ")
        elif isinstance(value, float):
            yield label, f"{value:.4g}"
        else:
            yield label, "–" if value is None else str(value)
