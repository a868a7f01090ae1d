"""Named data sets: from a name to a graph.

``DATASETS`` is the catalogue. What Limbeck changes in a graph (edges made undirected, the CPF
protocol) is said in ``graph.info.notes``.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
import textwrap
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import LargestConnectedComponents
from torch_geometric.utils import add_self_loops, remove_self_loops, to_undirected

from limbeck.errors import GraphError, OptionError, missing_extra, unknown_name
from limbeck.graphs.cache import cached_root, is_unwritable
from limbeck.graphs.catalogue import (
    BALANCED,
    DATASETS,
    GEOM_GCN,
    RANDOM,
    DataSet,
    EdgeRule,
    read_planetoid,
)
from limbeck.graphs.checks import check_graph
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.sparse import SPARSE_BELOW, csr_tensor, is_csr, take_rows, to_csr

__all__ = ["DATASETS", "DataSet", "load_dataset"]

NUM_GEOM_GCN_SPLITS = 10

_MASKS = ("train_mask", "val_mask", "test_mask")

_EDGE_NOTES: dict[EdgeRule, str] = {
    "given": "as the source gives them: undirected, stored in both directions",
    "symmetrised": "made undirected (the source gives directions), self-loops kept",
    "cpf": "undirected, of the largest connected component, and a self-loop on every node",
    "glnn": "made undirected (the source gives directions), and a self-loop on every node",
}

# What readers raise on files that are missing, cut short or not what their name says.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    RuntimeError,
    AttributeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    aiohttp.ClientError,
)


def load_dataset(name: str, data_root: str | os.PathLike[str] | None = None) -> Data:
    """Load a named data set.

    Raw files are looked for in a data root in PyG's raw layout, which is only read: they are
    copied to the user's cache (``LIMBECK_CACHE``) and processed there. What the root lacks, PyG
    downloads into the cache.

    Args:
        name: A name of :data:`DATASETS`; for ``cora``, ``citeseer`` and ``pubmed`` also with
            ``:geom-gcn`` (ten splits, picked by the seed), ``:geom-gcn/3`` (the fourth of them)
            or ``:random`` (60/20/20 by the seed); for these, Geom-GCN's graphs and the filtered
            ones ``:20-20-60`` (20/20/60, of every class as many).
        data_root: The data root; by default the environment variable ``LIMBECK_DATA``.

    Returns:
        A ``Data`` (``imdb`` and ``ogbn-mag``: ``HeteroData``) with ``info``. ``x`` is float32
        ``[N, F]``, in CSR form where less than 10 % of it are non-zeros; ``y`` is int64 ``[N]``
        (``ppi``: float32 ``[N, 121]``, several labels per node; ``batch``, int64 ``[N]``, numbers
        its graphs).

    Raises:
        OptionError: Unknown name or variant.
        GraphError: The files are missing and cannot be downloaded, or are damaged.
        OutputError: The cache cannot be written.
        MissingExtraError: The data set needs an extra that is not installed.
    """
    dataset = _find(name)
    if dataset.raw is None:
        graph: Data = dataset.read("")
    else:
        graph = _clean(_read(dataset, _data_root(data_root)), dataset)
    column = name.partition(":geom-gcn/")[2]
    if column:
        _keep_column(graph, int(column))
    if dataset.split in ("random", "balanced"):
        _drop_masks(graph)
    if "info" not in graph:  # wordnet brings its own
        graph.info = _info(graph, dataset, name)
    return graph


def _find(name: str) -> DataSet:
    base, colon, variant = name.partition(":")
    if base not in DATASETS:
        raise unknown_name("data set", base, DATASETS)
    dataset = DATASETS[base]
    if not colon:
        return dataset
    if not dataset.variants:
        raise OptionError(f"data set {base!r} has no variants: write {base!r}, not {name!r}.")
    family, slash, column = variant.partition("/")
    if family not in dataset.variants:
        raise unknown_name(f"variant of data set {base!r}", variant, dataset.variants)
    if slash and (family != "geom-gcn" or column not in map(str, range(NUM_GEOM_GCN_SPLITS))):
        raise OptionError(
            f"data set {base!r} has no variant {variant!r}: a number follows 'geom-gcn/' only, "
            f"from 0 to {NUM_GEOM_GCN_SPLITS - 1}."
        )
    return _variant(dataset, family, column)


def _variant(dataset: DataSet, family: str, column: str) -> DataSet:
    # a graph's name is part of file names
    named = replace(dataset, name="-".join(filter(None, (dataset.name, family, column))))
    if family == "random":
        return replace(named, split="random", protocol=RANDOM)
    if family == "20-20-60":
        return replace(named, split="balanced", protocol=BALANCED)
    folder = str(dataset.raw).removesuffix("/raw")
    return replace(
        named,
        split="fixed" if column else "columns",
        protocol=f"number {column} of {GEOM_GCN}" if column else GEOM_GCN,
        raw=f"{folder}/geom-gcn/raw",
        read=partial(read_planetoid, folder, "geom-gcn"),
    )


# --- files -------------------------------------------------------------------------------------


def _data_root(given: str | os.PathLike[str] | None) -> Path | None:
    named = given if given is not None else os.environ.get("LIMBECK_DATA")
    if not named:
        return None
    root = Path(named)
    if not root.is_dir():
        origin = "data_root" if given is not None else "LIMBECK_DATA"
        raise GraphError(f"{origin} is {root}, which is not a folder: name the data sets' folder.")
    return root


def _read(dataset: DataSet, root: Path | None) -> Data:
    """Read through the cache: from the data root where it has the files, else by download."""
    raw = str(dataset.raw)
    source = root if root is not None and (root / raw).exists() else None
    process = partial(_process, dataset, root, source)
    # variants that differ in the split alone share an entry: it is named after the raw files
    entry = cached_root(raw.removesuffix("/raw").replace("/", "-"), source, raw, process)
    try:
        return _call(dataset, entry, quiet=True)
    except _DAMAGED as error:
        raise GraphError(
            f"data set {dataset.name!r} cannot be read from its cache ({_reason(error)}): remove "
            f"the folder {entry} and load it again."
        ) from error


def _process(dataset: DataSet, root: Path | None, source: Path | None, folder: Path) -> None:
    try:
        _call(dataset, folder, quiet=source is not None)
    except _DAMAGED as error:
        if is_unwritable(error):
            raise
        if source is not None:
            raise GraphError(
                f"data set {dataset.name!r} cannot be read from {source / str(dataset.raw)} "
                f"({_reason(error)}): files there are missing or damaged."
            ) from error
        missing = f"is not in {root}" if root is not None else "is not at hand"
        raise GraphError(
            f"data set {dataset.name!r} {missing} and could not be downloaded "
            f"({_reason(error)}): set LIMBECK_DATA to a folder that holds {dataset.raw}."
        ) from error


def _call(dataset: DataSet, root: Path, *, quiet: bool) -> Data:
    try:
        with _readers_output(quiet):
            graph: Data = dataset.read(str(root))
            return graph
    except ModuleNotFoundError as error:
        if dataset.extra is None or error.name is None:
            raise
        raise missing_extra(error.name.partition(".")[0], dataset.extra) from error


@contextlib.contextmanager
def _readers_output(quiet: bool) -> Iterator[None]:
    """Keep stdout for our caller: PyG and OGB tell there what they do, and ask before a download.

    Three warnings about their own code, on which a user cannot act, are kept back.
    """
    told = io.StringIO() if quiet else sys.stderr
    with (
        contextlib.redirect_stdout(told),
        contextlib.redirect_stderr(told),
        warnings.catch_warnings(),
    ):
        for message in (
            "Sparse CSR tensor support is in beta",
            "Sparse invariant checks are implicitly disabled",
            "The given NumPy array is not writable",
        ):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        yield


def _reason(error: BaseException) -> str:
    text = textwrap.shorten(str(error), 160, placeholder=" ...").rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- what Limbeck does to a graph --------------------------------------------------------------


def _clean(graph: Data, dataset: DataSet) -> Data:
    """Bring features, edges and labels of a graph that was just read into Limbeck's form."""
    if isinstance(graph, HeteroData):
        for nodes in graph.node_stores:
            if "x" in nodes:
                nodes.x = _compact(nodes.x)
        labelled = graph[dataset.target]
        labelled.y = labelled.y.view(-1).long()
        return graph
    graph.x = _compact(graph.x)
    for mask in _MASKS:
        if mask in graph:
            graph[mask] = graph[mask].bool()  # PyG leaves some as it finds them, uint8
    graph.y = graph.y.long() if graph.y.dim() == 1 else graph.y.float()
    _check(graph, dataset)
    return _with_edges(graph, dataset.edges)


def _check(graph: Data, dataset: DataSet) -> None:
    """Refuse what a raw file that was cut short becomes: PyG reads the lines that there are."""
    where = f"data set {dataset.name!r} (raw files {dataset.raw})"
    check_graph(graph, where)
    for mask in _MASKS:
        if mask in graph and len(graph[mask]) != graph.num_nodes:
            raise GraphError(
                f"{where} has {graph.num_nodes} nodes but {len(graph[mask])} entries in its "
                f"{mask}: a file is incomplete."
            )


def _with_edges(graph: Data, rule: EdgeRule) -> Data:
    if rule == "cpf":
        # its subgraph indexes rows, which CSR features do not allow
        features, graph.x = graph.x, torch.arange(graph.num_nodes)
        graph = LargestConnectedComponents()(graph)
        graph.x = take_rows(features, graph.x)
    if rule in ("symmetrised", "glnn"):
        graph.edge_index = to_undirected(graph.edge_index, num_nodes=graph.num_nodes)
    if rule in ("cpf", "glnn"):
        edge_index, _ = remove_self_loops(graph.edge_index)
        graph.edge_index, _ = add_self_loops(edge_index, num_nodes=graph.num_nodes)
    return graph


def _compact(x: Tensor) -> Tensor:
    """Features as float32: CSR where less than ``SPARSE_BELOW`` of them are non-zeros."""
    if is_csr(x):
        indptr, indices = x.crow_indices().long(), x.col_indices().long()
        return csr_tensor(indptr, indices, x.values().float(), (x.shape[0], x.shape[1]))
    x = x.float()
    return to_csr(x) if int(x.count_nonzero()) < SPARSE_BELOW * x.numel() else x


def _keep_column(graph: Data, column: int) -> None:
    for mask in _MASKS:
        graph[mask] = graph[mask][:, column].contiguous()


def _drop_masks(graph: Data) -> None:
    for mask in _MASKS:
        if mask in graph:
            del graph[mask]


def _info(graph: Data, dataset: DataSet, given: str) -> GraphInfo:
    y: Tensor = graph[dataset.target].y if dataset.target else graph.y
    num_classes = int(y.max()) + 1 if y.dim() == 1 else int(y.shape[1])
    notes: dict[str, Any] = {"licence": dataset.licence, "edges": _EDGE_NOTES[dataset.edges]}
    if dataset.target:
        edges = "with their reverses" if dataset.edges == "symmetrised" else "as PyG gives them"
        notes |= {"target": dataset.target, "edges": f"of several types, {edges}"}
    if dataset.caveat:
        notes["caveat"] = dataset.caveat
    if dataset.split in ("fixed", "columns"):
        notes["published_split"] = True
    return GraphInfo(
        name=dataset.name,
        source=f"{dataset.title}, {dataset.source}; split: {dataset.protocol}",
        split=dataset.split,
        class_names=dataset.class_names or tuple(f"class {i}" for i in range(num_classes)),
        node_ids=np.arange(int(y.shape[0])),
        dataset=given,
        notes=notes,
        task="labels" if y.dim() == 2 else "classes",
    )
