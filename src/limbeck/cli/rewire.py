"""``limbeck rewire``: relieve a graph's bottlenecks before a teacher is trained on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.cli.options import GraphSource
from limbeck.cli.output import show_json, show_table


def rewire(
    graph: str | None = None,
    *,
    tables: GraphSource | None = None,
    out: Path,
    setting: str = "transductive",
    seed: int = 0,
    unseen: float = 0.2,
    loops: str = "0.05",
    tau: float = 1.0,
    removal_bound: float = 0.5,
    removal: bool = True,
    figures: bool = True,
    json: bool = False,
) -> None:
    """Rewire a graph by stochastic discrete Ricci flow and write its edges as a table.

    In a setting that cuts nodes away only the observed graph is rewired: give the same setting,
    seed and share of unseen nodes when you distil.

    Args:
        graph: Name of a data set, or a folder that holds node and edge tables.
        tables: Which graph, and how to read it if it is tables.
        out: File of the edges, columns source and target: .parquet, .arrow, .feather or .csv.
        setting: transductive, inductive, production or cold-start.
        seed: Seed of the split and of the surgery.
        unseen: Share of test nodes that surgery never sees.
        loops: Number of iterations, or a share of the edges such as 0.05.
        tau: Sharpness of the draw among new edges; inf takes the best.
        removal_bound: Curvature above which an edge may be removed.
        removal: Whether edges are removed at all.
        figures: Measure the graph before and after.
        json: Print JSON.
    """
    import limbeck
    from limbeck.graphs import rewire as surgery
    from limbeck.graphs.connectivity import before_and_after
    from limbeck.graphs.edge_tables import check_table_path, write_edges
    from limbeck.graphs.view import with_observed_edges

    source = tables or GraphSource()
    if graph is not None:
        source = replace(source, graph=graph)
    options = surgery.SurgeryOptions(
        surgery.parse_loops(loops), tau, removal_bound if removal else None
    )
    check_table_path(out)
    view = limbeck.view(source.load(), setting, seed, unseen=unseen)
    done = surgery.rewire(view.observed.edge_index, view.num_observed, options, seed)
    rewired = with_observed_edges(view, done.edge_index)
    document: dict[str, Any] = {
        "graph": view.info.name,
        "setting": view.setting,
        "seed": seed,
        "unseen": unseen,
        "options": options.to_dict(),
        "added": int(done.added.shape[1]),
        "removed": int(done.removed.shape[1]),
    }
    write_edges(rewired, out, document)
    document["edges"] = str(out)
    if figures:
        before, after = before_and_after(view, rewired)
        document |= {"before": before.to_dict(), "after": after.to_dict()}
    if json:
        show_json(document)
    else:
        _show(document)


def _show(document: dict[str, Any]) -> None:
    title = f"{document['graph']}, {document['setting']}, seed {document['seed']}"
    counts = [("edges added", "", document["added"]), ("edges removed", "", document["removed"])]
    figures = []
    if "before" in document:
        before, after = dict(_flat(document["before"])), dict(_flat(document["after"]))
        figures = [(name, _digits(before[name]), _digits(after[name])) for name in before]
    rows = [*counts, *figures]
    show_table(f"rewired {title}", ("", "before", "after"), rows, f"edges: {document['edges']}")


def _flat(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    for name, value in figures.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _flat(value, f"{label} ")
        else:
            yield label, value


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
