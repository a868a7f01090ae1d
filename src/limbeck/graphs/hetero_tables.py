"""Users' own graphs with several types of nodes: a table per type, a table per relation.

A folder holds the tables and a file ``hetero.yaml`` that says what they are::

    target: paper                       # the type with the labels
    nodes:
      paper: {table: papers.parquet, label: venue, split: fold}
      author: {table: authors.csv, id: name}
    edges:
      - {table: writes.parquet, from: author, relation: writes, to: paper,
         source: author, target: paper}
      - {table: cites.csv, from: paper, relation: cites, to: paper}

Columns that are not named are found by their usual names, as for :mod:`limbeck.graphs.tables`,
whose rules for ids, labels, splits and features hold for each table. A type without feature
columns has no features; every relation gets its reverse, unless ``edge_direction`` says otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor
from torch_geometric.data import HeteroData

from limbeck.errors import GraphError
from limbeck.graphs.hetero import check_hetero, with_reverses
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.sparse import is_csr
from limbeck.graphs.tables import (
    ID_COLUMNS,
    SOURCE_COLUMNS,
    TARGET_COLUMNS,
    EdgeDirection,
    NodeTable,
    edge_ends,
    node_ids,
    read_nodes,
)
from limbeck.table_files import TableFile, open_table

PLAN = "hetero.yaml"
"""The file that makes a folder of tables a heterogeneous graph."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodePlan(_Strict):
    """One type of nodes.

    Args:
        table: Its table, in the folder.
        id: Column of the ids.
        label: Column of the classes; of the target only.
        split: Column that says train, val or test; of the target only.
        features: Feature columns; all others by default.
        categorical: Feature columns to encode one-hot.
    """

    table: str
    id: str | None = None
    label: str | None = None
    split: str | None = None
    features: tuple[str, ...] | None = None
    categorical: tuple[str, ...] = ()


class EdgePlan(_Strict):
    """One relation.

    Args:
        table: Its table, in the folder.
        from_: Type of the nodes that an edge leaves (``from`` in the file).
        relation: What it is called.
        to: Type of the nodes that an edge enters.
        source: Column with the id that an edge leaves.
        target: Column with the id that an edge enters.
    """

    table: str
    from_: Annotated[str, Field(alias="from")]
    relation: str
    to: str
    source: str | None = None
    target: str | None = None


class HeteroPlan(_Strict):
    """What ``hetero.yaml`` says.

    Args:
        target: The type with the labels.
        nodes: The types of nodes.
        edges: The relations.
        edge_direction: ``"undirected"`` adds the reverse of every relation,
            ``"source-to-target"`` adds none.
        scale: Whether numeric columns are to be standardised: those of the target by a view, over
            its observed nodes; others over all nodes of their type, which are always observed.
    """

    target: str
    nodes: dict[str, NodePlan]
    edges: Annotated[tuple[EdgePlan, ...], Field(min_length=1)]
    edge_direction: EdgeDirection = "undirected"
    scale: bool = True

    @model_validator(mode="after")
    def _types_exist(self) -> HeteroPlan:
        ends = [end for edge in self.edges for end in (edge.from_, edge.to)]
        for name in (self.target, *ends):
            if name not in self.nodes:
                raise ValueError(f"{name!r} is not among the types under 'nodes'")
        for name, plan in self.nodes.items():
            if name != self.target and (plan.label is not None or plan.split is not None):
                raise ValueError(f"{name!r} is not the target: leave out its label and split")
        if self.edge_direction == "target-to-source":
            raise ValueError("edge_direction is 'undirected' or 'source-to-target' here")
        names = [(edge.from_, edge.relation, edge.to) for edge in self.edges]
        if len(set(names)) < len(names):
            raise ValueError("two relations have the same types and the same name")
        return self


def read_hetero_folder(path: str | os.PathLike[str], *, name: str | None = None) -> HeteroData:
    """Read a heterogeneous graph from a folder with ``hetero.yaml`` and the tables it names.

    Args:
        path: The folder.
        name: What to call the graph; the folder's name by default.

    Returns:
        A ``HeteroData`` with ``info``. Nodes of a type are in the order of their table.

    Raises:
        GraphError: The plan or a table cannot be read or does not fit; the sentence says where.
        SplitError: The split column holds another word, or a node in the split has no label.
    """
    folder = Path(path)
    plan = _plan(folder / PLAN)
    graph = HeteroData()
    ids: dict[str, tuple[pa.ChunkedArray, TableFile]] = {}
    info: GraphInfo | None = None
    for kind, nodes in plan.nodes.items():
        file = open_table(folder / nodes.table)
        if kind == plan.target:
            read = read_nodes(
                file,
                id=nodes.id,
                label=nodes.label,
                split=nodes.split,
                features=nodes.features,
                categorical=nodes.categorical,
            )
            info = _add_target(graph, kind, read, plan, name or folder.resolve().name)
            ids[kind] = read.ids, file
        else:
            ids[kind] = _add_nodes(graph, kind, nodes, file, plan.scale), file
    for edge in plan.edges:
        file = open_table(folder / edge.table)
        columns = (
            file.find_column("source", edge.source, SOURCE_COLUMNS),
            file.find_column("target", edge.target, TARGET_COLUMNS),
        )
        ends = edge_ends(file, columns, (ids[edge.from_], ids[edge.to]))
        edge_index = torch.unique(torch.stack(ends), dim=1)  # an edge given twice is kept once
        graph[edge.from_, edge.relation, edge.to].edge_index = edge_index
    if plan.edge_direction == "undirected":
        graph = with_reverses(graph)
    graph.info = info
    check_hetero(graph, str(folder))
    return graph


def hetero_tables(path: str | os.PathLike[str]) -> list[Path]:
    """The files and folders that :func:`read_hetero_folder` reads, the plan first.

    Raises:
        GraphError: The plan cannot be read.
    """
    plan = _plan(Path(path) / PLAN)
    nodes = [Path(path) / each.table for each in plan.nodes.values()]
    return [Path(path) / PLAN, *nodes, *(Path(path) / each.table for each in plan.edges)]


def _plan(file: Path) -> HeteroPlan:
    try:
        return HeteroPlan.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise GraphError(f"{file} cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GraphError(f"{file} is not YAML ({str(error).splitlines()[0]}).") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise GraphError(f"{file}: {f'{where}: ' if where else ''}{reason}.") from None


def _add_target(
    graph: HeteroData, kind: str, read: NodeTable, plan: HeteroPlan, name: str
) -> GraphInfo:
    graph[kind].x, graph[kind].y = read.x, read.y
    for mask, values in read.masks.items():
        graph[kind][mask] = values
    numeric = read.encoder.numeric_columns
    return GraphInfo(
        name=name,
        source=str(read.file.path.parent / PLAN),
        split="fixed" if read.masks else "random",
        class_names=read.class_names,
        node_ids=read.ids.to_numpy(),
        encoder=read.encoder,
        scaled_columns=numeric if plan.scale and len(numeric) else None,
        notes={"target": kind, "edge_direction": plan.edge_direction},
    )


def _add_nodes(
    graph: HeteroData, kind: str, plan: NodePlan, file: TableFile, scale: bool
) -> pa.ChunkedArray:
    """Add a type without labels; return its ids."""
    column = file.find_column("id", plan.id, ID_COLUMNS)
    features = plan.features
    if features is None:
        features = tuple(each for each in file.columns if each != column)
    if not features:
        ids = node_ids(file.read([column], names=[column]).column(column), column, file)
        graph[kind].num_nodes = len(ids)
        return ids
    read = read_nodes(
        file, id=column, label=None, features=features, categorical=plan.categorical, labelled=False
    )
    graph[kind].x = _standardised(read) if scale else read.x
    return read.ids


def _standardised(read: NodeTable) -> Tensor:
    columns: Any = read.encoder.numeric_columns
    if is_csr(read.x) or len(columns) == 0:
        return read.x
    x = read.x.clone()
    chosen = x[:, torch.as_tensor(columns)]
    deviation = chosen.std(0, unbiased=False)
    deviation[deviation < 1e-12] = 1  # such a column says nothing: it stays at zero
    x[:, torch.as_tensor(columns)] = (chosen - chosen.mean(0)) / deviation
    return x
