"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from limbeck.errors import OptionError

if TYPE_CHECKING:
    from torch_geometric.data import Data


_SEVERAL = Parameter(consume_multiple=True, negative="", show_default=False)
"""An option that takes several values, with or without its name before each."""


@Parameter(name="*")
@dataclass(frozen=True)
class GraphSource:
    """Which graph: a named data set, a folder of tables, or two files."""

    graph: str | None = None
    "Name of a data set (limbeck datasets), or a folder that holds node and edge tables."
    nodes: str | None = None
    "File of nodes: Parquet, CSV or Arrow."
    edges: str | None = None
    "File of edges: Parquet, CSV or Arrow."
    id: str | None = None
    "Column of nodes with their ids."
    label: str | None = None
    "Column of nodes with their classes."
    split: str | None = None
    "Column of nodes that says train, val or test."
    source: str | None = None
    "Column of edges with the id that an edge leaves."
    target: str | None = None
    "Column of edges with the id that an edge enters."
    features: Annotated[tuple[str, ...], _SEVERAL] = ()
    "Feature columns; all others by default."
    categorical: Annotated[tuple[str, ...], _SEVERAL] = ()
    "Feature columns that name a category."
    edge_direction: Literal["undirected", "source-to-target", "target-to-source"] | None = None
    "Which way messages go along an edge; both by default."
    data_root: str | None = None
    "Folder of the named data sets in PyG's raw layout; LIMBECK_DATA by default."

    def load(self) -> Data:
        """Load the graph that these options name."""
        from limbeck.graphs.load import load_graph
        from limbeck.graphs.tables import read_tables

        columns = self._columns()
        if self.nodes is not None:
            if self.graph is not None:
                raise OptionError("options --graph and --nodes name two graphs: give one of them.")
            if self.edges is None:
                raise OptionError("option --edges is missing: give the file of edges.")
            return read_tables(self.nodes, self.edges, **columns)
        if self.edges is not None and self.graph is not None:
            raise OptionError("option --edges belongs to --nodes: with --graph, leave it out.")
        if self.graph is None:
            raise OptionError("no graph was given: use --graph NAME, or --nodes and --edges.")
        return load_graph(self.graph, data_root=self.data_root, **columns)

    def _columns(self) -> dict[str, Any]:
        named = {
            "id": self.id,
            "label": self.label,
            "split": self.split,
            "source": self.source,
            "target": self.target,
            "features": list(self.features) or None,
            "categorical": self.categorical or None,
            "edge_direction": self.edge_direction,
        }
        return {name: value for name, value in named.items() if value is not None}


Settings = Annotated[tuple[str, ...], Parameter(name="--set", negative="", consume_multiple=False)]


def parse_settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Turn ``("dropout=0.3", "norm=batch")`` into options; values are read as YAML.

    Raises:
        OptionError: A pair has no ``=``, or a value cannot be read.
    """
    import yaml

    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise OptionError(f"option --set {pair!r}: write NAME=VALUE, such as dropout=0.3.")
        try:
            options[name.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise OptionError(f"option --set {pair!r}: no value of YAML ({reason}).") from None
    return options


def split_names(names: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in names.split(",") if name.strip())
