"""``limbeck profile``: what a graph is like, and what that means for distillation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from limbeck.cli.options import GraphSource
from limbeck.cli.output import console, show_json, show_table


def profile(
    graph: str | None = None, *, tables: GraphSource | None = None, json: bool = False
) -> None:
    """Print a graph's size, degrees, homophily, labels and features, and what they mean.

    Args:
        graph: Name of a data set, or a folder that holds node and edge tables.
        tables: Which graph, and how to read it if it is tables.
        json: Print JSON.
    """
    import limbeck

    source = tables or GraphSource()
    if graph is not None:
        source = replace(source, graph=graph)
    figures = limbeck.profile_graph(source.load()).to_dict()
    if json:
        show_json(figures)
        return
    advice: Any = figures.pop("advice")
    show_table(f"graph {figures.pop('name')}", ("", "value"), _rows(figures))
    out = console()
    out.print("\nWhat this means for distillation:")
    for sentence in advice:
        out.print(f"  • {sentence}", soft_wrap=True)


def _rows(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        label = prefix + name.replace("_", " ")
        if isinstance(value, dict):
            yield from _rows(value, f"{label}: ")
        elif isinstance(value, float):
            yield label, f"{value:.4g}"
        else:
            yield label, "–" if value is None else str(value)
