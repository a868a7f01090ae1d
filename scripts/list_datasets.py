"""Print the tables of ``docs/datasets.md``: every named data set, and figures of those at hand.

    LIMBECK_DATA=DATA_ROOT python scripts/list_datasets.py

A data set that the data root does not hold is listed without figures; none is downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch_geometric.data import Data
from torch_geometric.utils import homophily, remove_self_loops

from limbeck.graphs.datasets import DATASETS, DataSet, load_dataset
from limbeck.graphs.sparse import is_csr
from limbeck.graphs.splits import split_nodes


def catalogue_row(entry: DataSet) -> str:
    """What an entry says of itself."""
    name = f"`{entry.name}`" + "".join(f", `:{variant}`" for variant in entry.variants)
    cells = (name, entry.title, entry.description, entry.source, entry.licence, entry.protocol)
    return f"| {' | '.join(cells)} |"


def figures_row(entry: DataSet) -> str:
    """Counts of the graph as Limbeck stores it, homophily and split of seed 0."""
    graph = load_dataset(entry.name)
    split = split_nodes(graph, 0)
    sizes = f"{len(split.train):,} / {len(split.val):,} / {len(split.test):,}"
    cells = (f"`{entry.name}`", *graph_figures(graph), entry.edges, sizes)
    return f"| {' | '.join(cells)} |"


def graph_figures(graph: Data) -> tuple[str, ...]:
    """Nodes, undirected edges, self-loops, features and their form, classes, homophily."""
    classes = str(graph.info.num_classes)
    target = graph.info.notes.get("target")
    x = graph[target].x if target else graph.x
    features = f"{x.shape[1]:,}" + (" (CSR)" if is_csr(x) else "")
    if target:
        return f"{graph.num_nodes:,}", f"{graph.num_edges // 2:,}", "0", features, classes, "-"
    loopless, _ = remove_self_loops(graph.edge_index)
    return (
        f"{graph.num_nodes:,}",
        f"{loopless.shape[1] // 2:,}",
        f"{graph.num_edges - loopless.shape[1]:,}",
        features,
        classes,
        f"{homophily(loopless, graph.y):.3f}",
    )


def main() -> None:
    """Print both tables."""
    print("| name | title | nodes, edges, classes; features | source | licence | split |")
    print("|---|---|---|---|---|---|")
    print("\n".join(map(catalogue_row, DATASETS.values())), end="\n\n")
    print("| name | nodes | edges | loops | features | classes | homophily | edge rule | split |")
    print("|---|---|---|---|---|---|---|---|---|")
    root = Path(os.environ.get("LIMBECK_DATA", ""))
    at_hand = [e for e in DATASETS.values() if e.raw is None or (root / e.raw).exists()]
    print("\n".join(map(figures_row, at_hand)))


if __name__ == "__main__":
    main()
