"""Users' own graphs: a table of nodes and a table of edges.

A nodes table has one row per node: an id, a label, perhaps a split, and features; an edges table
one row per edge: the ids of its two ends. :func:`read_tables` makes a graph of them::

    graph = read_tables("packages.parquet", "needs.csv", id="name", label="section")

Self-loops in the edges table are kept; an edge that is given several times is kept once.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch_geometric.data import Data

from limbeck.errors import GraphError, SplitError, unknown_name
from limbeck.features import FeatureEncoder, FeatureRows, SparseRows
from limbeck.graphs.checks import check_graph
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.sparse import csr_tensor
from limbeck.table_files import TableFile, find_table, open_table

EdgeDirection = Literal["undirected", "source-to-target", "target-to-source"]

ID_COLUMNS = ("id", "node", "node_id")
LABEL_COLUMNS = ("label", "y", "class")
SPLIT_COLUMNS = ("split", "fold")
SOURCE_COLUMNS = ("source", "src", "from")
TARGET_COLUMNS = ("target", "dst", "to")

SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
UNUSED_WORDS = ("", "none", "unused")


class TableOptions(TypedDict, total=False):
    """Options of :func:`read_tables`, which explains them."""

    id: str | None
    label: str | None
    split: str | None
    source: str | None
    target: str | None
    features: Sequence[str] | None
    categorical: Collection[str]
    edge_direction: EdgeDirection
    name: str | None
    scale: bool


def read_folder(path: str | os.PathLike[str], **options: Unpack[TableOptions]) -> Data:
    """Read a graph from a folder that holds its two tables.

    They are ``nodes`` and ``edges`` with the extension ``.parquet``, ``.csv``, ``.arrow`` or
    ``.feather``, or folders ``nodes/`` and ``edges/`` of Parquet parts.

    Args:
        path: The folder. The graph is called after it, unless ``name`` says otherwise.
        **options: As for :func:`read_tables`.

    Raises:
        GraphError: As for :func:`read_tables`; also where a table is missing or there are two.
    """
    if options.get("name") is None:
        options["name"] = Path(path).resolve().name
    return read_tables(find_table(path, "nodes"), find_table(path, "edges"), **options)


def read_tables(
    nodes: str | os.PathLike[str],
    edges: str | os.PathLike[str] | None,
    *,
    id: str | None = None,
    label: str | None = None,
    split: str | None = None,
    source: str | None = None,
    target: str | None = None,
    features: Sequence[str] | None = None,
    categorical: Collection[str] = (),
    edge_direction: EdgeDirection = "undirected",
    name: str | None = None,
    scale: bool = True,
) -> Data:
    """Read a graph from a table of nodes and a table of edges.

    A table is a ``.parquet``, ``.arrow``, ``.feather`` (Arrow IPC) or ``.csv`` file or a folder
    of Parquet files. In CSV an empty cell is a null, lists cannot be written, and ids, classes
    and categories are integers if all of a column are written so (``7``, not ``07``), else text.

    Args:
        nodes: Path of the nodes table.
        edges: Path of the edges table. Columns other than the two ends are ignored.
        id: Column of the nodes' ids: unique integers or texts. Default: the one called ``id``,
            ``node`` or ``node_id``.
        label: Column of the classes, of any type; null or ``""`` for a node without one. Classes
            are sorted. Default: the one called ``label``, ``y`` or ``class``.
        split: Column of ``train``, ``val`` (also ``valid``, ``validation``, ``dev``) and
            ``test``; null, ``none`` or ``unused`` for a node in none of them. Default: the one
            called ``split`` or ``fold``; without it a seed picks 60/20/20 at random.
        source: Column of the edges' first ends. Default: ``source``, ``src`` or ``from``.
        target: Column of their second ends. Default: ``target``, ``dst`` or ``to``.
        features: Feature columns, in order; see :mod:`limbeck.features` for what they may hold.
            Default: all columns of the nodes table without another part.
        categorical: Feature columns to encode one-hot.
        edge_direction: Which way messages go: ``"undirected"`` both ways,
            ``"source-to-target"`` or ``"target-to-source"``.
        name: What to call the graph. Default: the name of the nodes file.
        scale: Whether numeric columns are to be standardised, by a view, over its observed nodes.

    Returns:
        A graph with ``x`` (float32 ``[N, F]``, dense or CSR as the encoder says), ``edge_index``
        (int64 ``[2, E]``, sorted, no edge twice), ``y`` (int64 ``[N]``, -1 for no label),
        ``train_mask``, ``val_mask`` and ``test_mask`` (bool ``[N]``) if there is a split, and
        ``info``. Nodes are in the order of their table.

    Raises:
        GraphError: A file cannot be read, a column is missing or not usable, an id is null, given
            twice or unknown, a feature is not finite, there are no edges, or fewer than two
            classes.
        SplitError: The split column holds another word, or a node in the split has no label.
        OptionError: ``edge_direction`` is unknown.
    """
    if edge_direction not in get_args(EdgeDirection):
        raise unknown_name("edge direction", edge_direction, get_args(EdgeDirection))
    if edges is None:
        raise GraphError(f"no edges are given for {nodes}: name an edges table.")
    edge_file = open_table(edges)
    ends = (
        edge_file.find_column("source", source, SOURCE_COLUMNS),
        edge_file.find_column("target", target, TARGET_COLUMNS),
    )
    _check_parts(edge_file, {"source": ends[0], "target": ends[1]})
    read = read_nodes(
        open_table(nodes),
        id=id,
        label=label,
        split=split,
        features=features,
        categorical=categorical,
    )
    node_file, ids, encoder, masks = read.file, read.ids, read.encoder, read.masks

    source_index, target_index = edge_ends(edge_file, ends, ((ids, node_file),) * 2)
    edge_index = _edge_index(source_index, target_index, len(ids), edge_direction)
    info = GraphInfo(
        name=name or node_file.path.stem,
        source=str(node_file.path),
        split="fixed" if masks else "random",
        class_names=read.class_names,
        node_ids=ids.to_numpy(),
        encoder=encoder,
        scaled_columns=encoder.numeric_columns if scale and len(encoder.numeric_columns) else None,
        notes={
            "edge_direction": edge_direction,
            "edge_rows": len(source_index),
            "self_loops": int((edge_index[0] == edge_index[1]).sum()),
        },
    )
    data = Data(x=read.x, edge_index=edge_index, y=read.y, **masks)
    data.info = info
    check_graph(data, str(node_file.path))
    return data


@dataclass(frozen=True, eq=False)
class NodeTable:
    """A table of nodes that was read.

    Args:
        file: The table.
        ids: The nodes' ids, ``int64`` or ``large_string`` ``[N]``.
        x: Features, float32 ``[N, F]``, dense or CSR.
        encoder: How rows became features.
        y: Class of each node, -1 for none, int64 ``[N]``; all -1 in a table without labels.
        class_names: Names of the classes.
        masks: ``train_mask``, ``val_mask`` and ``test_mask``, bool ``[N]``; none without a split.
    """

    file: TableFile
    ids: pa.ChunkedArray
    x: Tensor
    encoder: FeatureEncoder
    y: Tensor
    class_names: tuple[str, ...]
    masks: dict[str, Tensor]


def read_nodes(
    file: TableFile,
    *,
    id: str | None = None,
    label: str | None = None,
    split: str | None = None,
    features: Sequence[str] | None = None,
    categorical: Collection[str] = (),
    labelled: bool = True,
) -> NodeTable:
    """Read a table of nodes.

    Args:
        file: The table.
        id: Column of the ids; see :func:`read_tables`, as for the others.
        label: Column of the classes.
        split: Column of the split.
        features: Feature columns.
        categorical: Feature columns to encode one-hot.
        labelled: Whether it has labels; without, all columns but the id are features.

    Raises:
        GraphError: As for :func:`read_tables`.
        SplitError: As for :func:`read_tables`.
    """
    parts = _node_parts(file, id, label, split, features, labelled=labelled)
    table = file.read(parts.columns, names=parts.names(categorical))
    ids = node_ids(table.column(parts.id), parts.id, file)
    encoder = FeatureEncoder.fit(
        table, parts.features, categorical=categorical, where=str(file.path)
    )
    x = _feature_tensor(encoder.encode(table, str(file.path), ids=ids))
    y: npt.NDArray[np.int64] = np.full(len(ids), -1)
    class_names: tuple[str, ...] = ()
    if parts.label is not None:
        y, class_names = _labels(table.column(parts.label), parts.label, file)
    masks = {}
    if parts.split is not None:
        masks = _split_masks(table.column(parts.split), parts.split, y, ids, file)
    return NodeTable(file, ids, x, encoder, torch.from_numpy(y), class_names, masks)


# --- which column is what --------------------------------------------------------------------


@dataclass(frozen=True)
class _NodeParts:
    """Which column of the nodes table plays which part."""

    id: str
    label: str | None
    split: str | None
    features: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        """All columns to read."""
        named = [self.id, self.label, self.split]
        return [*(column for column in named if column is not None), *self.features]

    def names(self, categorical: Collection[str]) -> list[str]:
        """Columns whose values are names rather than quantities."""
        return [
            column
            for column in self.columns
            if column not in self.features or column in categorical
        ]


def _node_parts(
    file: TableFile,
    id: str | None,
    label: str | None,
    split: str | None,
    features: Sequence[str] | None,
    *,
    labelled: bool,
) -> _NodeParts:
    named: dict[str, str | None] = {"id": file.find_column("id", id, ID_COLUMNS)}
    if labelled:
        named["label"] = file.find_column("label", label, LABEL_COLUMNS)
        named["split"] = file.find_optional_column("split", split, SPLIT_COLUMNS)
    if features is None:
        features = [column for column in file.columns if column not in named.values()]
    for column in features:
        file.check_column(column, "features")
    for column in features:
        for part, taken in named.items():
            if column == taken:
                raise GraphError(f"column {column!r} of {file.path} is both {part} and feature.")
        if list(features).count(column) > 1:
            raise GraphError(f"column {column!r} of {file.path} is named twice in features.")
    _check_parts(file, named)
    return _NodeParts(
        cast("str", named["id"]), named.get("label"), named.get("split"), tuple(features)
    )


def _check_parts(file: TableFile, named: dict[str, Any]) -> None:
    parts: dict[str, str] = {}
    for part, column in named.items():
        if column in parts:
            raise GraphError(
                f"column {column!r} of {file.path} is both {parts[column]} and {part}."
            )
        if column is not None:
            parts[column] = part


# --- ids and edges ---------------------------------------------------------------------------


def node_ids(values: pa.ChunkedArray, column: str, file: TableFile) -> pa.ChunkedArray:
    """The nodes' ids, ``int64`` or ``large_string``, after checking that they are ids."""
    ids = _as_ids(values, column, file)
    unique = pc.count_distinct(ids).as_py()
    if unique < len(ids):
        counts = pc.value_counts(ids)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]
        raise GraphError(
            f"node id {twice['values'].as_py()!r} occurs {twice['counts'].as_py()} times in column "
            f"{column!r} of {file.path}: ids must be unique."
        )
    return ids


def _as_ids(values: pa.ChunkedArray, column: str, file: TableFile) -> pa.ChunkedArray:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy()))
        raise GraphError(
            f"column {column!r} of {file.path} is null in row {row} (the first is 0): "
            "every row needs an id."
        )
    try:
        if pa.types.is_integer(values.type):
            return values.cast(pa.int64())
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            return values.cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise GraphError(f"ids in column {column!r} of {file.path} exceed 64 bits.") from error
    raise GraphError(
        f"column {column!r} of {file.path} is {values.type}: ids must be integers or text."
    )


def edge_ends(
    file: TableFile,
    columns: tuple[str, str],
    nodes: tuple[tuple[pa.ChunkedArray, TableFile], tuple[pa.ChunkedArray, TableFile]],
) -> tuple[Tensor, Tensor]:
    """Rows of the edges' ends in the tables of their nodes, int64 ``[rows]`` each.

    Args:
        file: The edges table.
        columns: Its columns of sources and of targets.
        nodes: Of each end the ids of the nodes and their table.

    Raises:
        GraphError: An id is null or unknown.
    """
    table = file.read(columns, names=columns)
    source, target = (
        _rows_of_ids(_as_ids(table.column(column), column, file), column, file, ids, node_file)
        for column, (ids, node_file) in zip(columns, nodes, strict=True)
    )
    return source, target


def _rows_of_ids(
    wanted: pa.ChunkedArray,
    column: str,
    file: TableFile,
    ids: pa.ChunkedArray,
    node_file: TableFile,
) -> Tensor:
    if wanted.type != ids.type:
        if "csv" not in (file.format, node_file.format):
            kinds = {pa.int64(): "integers", pa.large_string(): "text"}
            raise GraphError(
                f"column {column!r} of {file.path} holds {kinds[wanted.type]}, but the ids of "
                f"{node_file.path} are {kinds[ids.type]}: both must be of one type."
            )
        # a CSV file does not say whether 7 is a number, so what is written decides
        wanted, ids = wanted.cast(pa.large_string()), ids.cast(pa.large_string())
    rows = pc.index_in(wanted, value_set=ids.combine_chunks())
    if rows.null_count:
        row = int(np.argmax(rows.is_null().to_numpy()))
        raise GraphError(
            f"column {column!r} of {file.path} names node {wanted[row].as_py()!r} in row {row} "
            f"(the first is 0), which is not in {node_file.path}; {rows.null_count} rows of "
            f"{len(rows)} name unknown nodes."
        )
    return torch.from_numpy(rows.to_numpy().astype(np.int64))


def _edge_index(
    source: Tensor, target: Tensor, num_nodes: int, edge_direction: EdgeDirection
) -> Tensor:
    """Edges as PyG stores them, sorted and each once.

    One number per edge, ``from * N + to``, makes that a single sort: for 5 M edges in both
    directions 0.5 s, where ``torch_geometric.utils.to_undirected`` takes 4 s.
    """
    keys = []
    if edge_direction != "target-to-source":
        keys.append(source * num_nodes + target)
    if edge_direction != "source-to-target":
        keys.append(target * num_nodes + source)
    unique = torch.unique(torch.cat(keys))
    return torch.stack([unique // num_nodes, unique % num_nodes])


# --- features, labels, splits ----------------------------------------------------------------


def _feature_tensor(rows: FeatureRows) -> Tensor:
    if not isinstance(rows, SparseRows):
        return torch.from_numpy(rows)
    indptr, indices, values = map(torch.from_numpy, (rows.indptr, rows.indices, rows.values))
    return csr_tensor(indptr, indices, values, rows.shape)


def _labels(
    values: pa.ChunkedArray, column: str, file: TableFile
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Class of each node, -1 for none, and the names of the classes."""
    labels = _comparable_labels(values, column, file)
    classes = sorted(pc.unique(labels).drop_null().to_pylist())
    if not classes:
        raise GraphError(f"column {column!r} of {file.path} has no label in any row.")
    codes = pc.index_in(labels, value_set=pa.array(classes, type=labels.type), skip_nulls=True)
    y = codes.fill_null(-1).to_numpy().astype(np.int64)
    return y, tuple(str(name) for name in classes)


def _comparable_labels(values: pa.ChunkedArray, column: str, file: TableFile) -> pa.ChunkedArray:
    """Labels as integers if they are whole numbers, else as text; null where there is none."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    try:
        if pa.types.is_integer(values.type):
            return values.cast(pa.int64())
        if pa.types.is_floating(values.type):
            # integers with gaps become floats with NaN in pandas
            numbers = pc.if_else(pc.is_nan(values), None, values)
            return numbers.cast(pa.int64())
        labels = values.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise GraphError(
            f"column {column!r} of {file.path} is {values.type} and cannot be a label: give whole "
            "numbers or text."
        ) from error
    return pc.if_else(pc.equal(labels, ""), None, labels)


def _split_masks(
    values: pa.ChunkedArray,
    column: str,
    y: npt.NDArray[np.int64],
    ids: pa.ChunkedArray,
    file: TableFile,
) -> dict[str, Tensor]:
    """The three masks, after checking that every word is known and every node in them labelled."""
    try:
        words = values.cast(pa.large_string())
    except pa.ArrowNotImplementedError as error:
        raise SplitError(f"column {column!r} of {file.path} is {values.type}, not text.") from error
    words = pc.utf8_trim_whitespace(pc.utf8_lower(words)).fill_null("")
    known = [*UNUSED_WORDS, *(word for group in SPLIT_WORDS.values() for word in group)]
    unknown = ~pc.is_in(words, value_set=pa.array(known, type=pa.large_string())).to_numpy()
    if unknown.any():
        row = int(np.argmax(unknown))
        raise SplitError(
            f"column {column!r} of {file.path} is {values[row].as_py()!r} for node "
            f"{ids[row].as_py()!r}: expected train, val, test, or nothing for a node in none."
        )
    masks = {}
    for name, group in SPLIT_WORDS.items():
        mask = pc.is_in(words, value_set=pa.array(group, type=pa.large_string())).to_numpy()
        unlabelled = mask & (y < 0)
        if unlabelled.any():
            raise SplitError(
                f"node {ids[int(np.argmax(unlabelled))].as_py()!r} of {file.path} is in {name} by "
                f"column {column!r} but has no label."
            )
        masks[f"{name}_mask"] = torch.from_numpy(mask)
    return masks
