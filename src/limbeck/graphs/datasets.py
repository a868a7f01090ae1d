"""Named data sets: the catalogue, and how each is read.

All but two are thin wrappers over PyG's classes; ``wordnet`` and ``digits`` need neither network
nor folder. What Limbeck changes in a graph (edges made undirected, the CPF protocol) is said in
``graph.info.notes`` and in the catalogue.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import aiohttp
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph
from torch import Tensor
from torch_geometric import datasets as pyg
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.transforms import LargestConnectedComponents
from torch_geometric.utils import (
    add_self_loops,
    from_scipy_sparse_matrix,
    remove_self_loops,
    to_undirected,
)

from limbeck.errors import GraphError, OptionError, missing_extra, unknown_name
from limbeck.graphs.cache import cached_root
from limbeck.graphs.info import GraphInfo, SplitRule
from limbeck.graphs.raw_files import CPF, FilteredWikipediaNetwork
from limbeck.graphs.sparse import SPARSE_BELOW, csr_tensor, is_csr, to_csr
from limbeck.graphs.wordnet import load_wordnet

EdgeRule = Literal["given", "symmetrised", "cpf", "glnn"]

NUM_GEOM_GCN_SPLITS = 10

_EDGES: dict[EdgeRule, str] = {
    "given": "as PyG gives them: undirected, in both directions",
    "symmetrised": "made undirected (the source has directions), self-loops kept",
    "cpf": "undirected, largest connected component, then a self-loop on every node",
    "glnn": "made undirected (the source has directions), then a self-loop on every node",
}

# What readers raise on files that are cut short, altered or not what their name says.
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
)


@dataclass(frozen=True)
class DataSet:
    """An entry of the catalogue.

    Args:
        name: What ``load_dataset`` and the command line call it.
        title: What people call it.
        description: What a node, an edge and a class are, in one line.
        source: Where the files come from.
        licence: Under which they are given; ``"not stated"`` where the source says nothing.
        split: How a seed picks training, validation and test nodes.
        protocol: The same in words, with sizes.
        edges: What Limbeck does to the edges.
        raw: The raw file or folder below the data root; ``None`` for the two embedded ones.
        read: Reads the graph from a root in PyG's layout, downloading what is missing.
        variants: What may follow the name after a colon.
        extra: The extra of Limbeck that reading it needs, beside ``train``.
        class_names: Names of the classes where they are known.
        target: The labelled node type of a heterogeneous graph.
        notes: Further facts for ``info.notes``.
    """

    name: str
    title: str
    description: str
    source: str
    licence: str
    split: SplitRule
    protocol: str
    raw: str | None
    read: Callable[[str], Any]
    edges: EdgeRule = "given"
    variants: tuple[str, ...] = ()
    extra: str | None = None
    class_names: tuple[str, ...] = ()
    target: str | None = None
    notes: tuple[tuple[str, str], ...] = ()


def load_dataset(name: str, data_root: str | os.PathLike[str] | None = None) -> Data:
    """Load a named data set.

    Raw files are looked for in a data root in PyG's raw layout, which is only read: they are
    copied to the user's cache (``LIMBECK_CACHE``) and processed there. What the root lacks, PyG
    downloads into the cache.

    Args:
        name: A name of :data:`DATASETS`; for ``cora``, ``citeseer`` and ``pubmed`` also with
            ``:geom-gcn`` (ten splits, picked by the seed), ``:geom-gcn/3`` (the fourth of them)
            or ``:random`` (60/20/20 by the seed).
        data_root: The data root; by default the environment variable ``LIMBECK_DATA``.

    Returns:
        A ``Data`` (``imdb`` and ``ogbn-mag``: ``HeteroData``) with ``info``. ``x`` is float32
        ``[N, F]``, in CSR form where less than 10 % of it are non-zeros; ``y`` is int64 ``[N]``
        (``ppi``: float32 ``[N, 121]``, several labels per node).

    Raises:
        OptionError: Unknown name or variant.
        GraphError: The files are missing and cannot be downloaded, or are damaged.
        OutputError: The cache cannot be written.
        MissingExtraError: The data set needs an extra that is not installed.
    """
    base, _, variant = name.partition(":")
    if base not in DATASETS:
        raise unknown_name("data set", base, DATASETS)
    dataset = _with_variant(DATASETS[base], variant) if ":" in name else DATASETS[base]
    if dataset.raw is None:
        graph: Data = dataset.read("")
        return graph
    graph = _read(dataset, _data_root(data_root))
    _clean(graph, dataset)
    if variant.startswith("geom-gcn/"):
        _keep_column(graph, int(variant.removeprefix("geom-gcn/")))
    if dataset.split == "random":
        _drop_masks(graph)
    graph.info = _info(graph, dataset)
    return graph


def _with_variant(dataset: DataSet, variant: str) -> DataSet:
    family, _, column = variant.partition("/")
    name = f"{dataset.name}-{variant.replace('/', '-')}"  # fit for a file name
    if family not in dataset.variants or (column and family != "geom-gcn"):
        if not dataset.variants:
            raise OptionError(
                f"data set {dataset.name!r} has no variants, but {variant!r} was asked for: "
                f"write {dataset.name!r} alone."
            )
        raise unknown_name(f"variant of data set {dataset.name!r}", variant, dataset.variants)
    if family == "random":
        return replace(dataset, name=name, split="random", protocol=_RANDOM)
    if column and column not in map(str, range(NUM_GEOM_GCN_SPLITS)):
        raise OptionError(
            f"data set {dataset.name!r} has no geom-gcn split {column!r}: choose one from 0 to "
            f"{NUM_GEOM_GCN_SPLITS - 1}."
        )
    folder = Path(dataset.raw or "").parts[0]
    return replace(
        dataset,
        name=name,
        split="fixed" if column else "columns",
        protocol=f"geom-gcn split {column}" if column else _TEN,
        raw=f"{folder}/geom-gcn/raw",
        read=partial(_planetoid, folder, "geom-gcn"),
    )


# --- files ---------------------------------------------------------------------------------


def _data_root(given: str | os.PathLike[str] | None) -> Path | None:
    named = given if given is not None else os.environ.get("LIMBECK_DATA")
    if not named:
        return None
    root = Path(named)
    if not root.is_dir():
        origin = "data_root" if given is not None else "LIMBECK_DATA"
        raise GraphError(f"{origin} is {root}, which is no folder: name the folder of data sets.")
    return root


def _read(dataset: DataSet, root: Path | None) -> Data:
    """Read through the cache: from the data root where it has the files, else by download."""
    raw = dataset.raw or ""
    source = root if root is not None and (root / raw).exists() else None
    entry = cached_root(
        dataset.name, source, raw, lambda folder: _process(dataset, folder, root, source)
    )
    try:
        return _call(dataset, entry)
    except _DAMAGED as error:
        raise GraphError(
            f"data set {dataset.name!r} cannot be read from its cache ({_reason(error)}): remove "
            f"the folder {entry} and load it again."
        ) from error


def _process(dataset: DataSet, folder: Path, root: Path | None, source: Path | None) -> None:
    try:
        _call(dataset, folder)
    except (*_DAMAGED, aiohttp.ClientError) as error:
        if source is not None:
            raise GraphError(
                f"data set {dataset.name!r} cannot be read from {source / (dataset.raw or '')} "
                f"({_reason(error)}): files there are missing or damaged."
            ) from error
        missing = f"is not in {root}" if root is not None else "is not at hand"
        raise GraphError(
            f"data set {dataset.name!r} {missing} and could not be downloaded "
            f"({_reason(error)}): set LIMBECK_DATA to a folder that holds {dataset.raw}."
        ) from error


def _call(dataset: DataSet, root: Path) -> Data:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # PyG announces that it is processing
            graph: Data = dataset.read(str(root))
            return graph
    except ModuleNotFoundError as error:
        if dataset.extra is None or error.name is None:
            raise
        raise missing_extra(error.name, dataset.extra) from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- one reader per source -----------------------------------------------------------------


def _planetoid(folder: str, split: str, root: str) -> Data:
    return pyg.Planetoid(root, folder, split=split)[0]


def _ppi(root: str) -> Data:
    """The 24 graphs of PPI as one, whose masks say to which part a graph belongs."""
    graphs = []
    for part in ("train", "val", "test"):
        for graph in pyg.PPI(f"{root}/ppi", split=part):
            for mask in ("train", "val", "test"):
                graph[f"{mask}_mask"] = torch.full((graph.num_nodes,), mask == part)
            graphs.append(graph)
    union = Batch.from_data_list(graphs)
    keys = ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask")
    return Data(**{key: union[key] for key in keys})


def _ogbn(name: str, root: str) -> Data:
    from ogb.nodeproppred import PygNodePropPredDataset  # an extra, and slow to import

    files = PygNodePropPredDataset(name, root=root)
    graph, split = files[0], files.get_idx_split()
    for part, key in (("train", "train"), ("val", "valid"), ("test", "test")):
        mask = torch.zeros(graph.num_nodes, dtype=torch.bool)
        mask[split[key]] = True
        graph[f"{part}_mask"] = mask
    graph.y = graph.y.view(-1)
    return graph


def _digits(_: str) -> Data:
    """scikit-learn's digits; an edge where either is among the 10 nearest of the other."""
    digits = load_digits()
    nearest = kneighbors_graph(digits.data, n_neighbors=10)
    graph = Data(
        x=torch.from_numpy(digits.data / 16).float(),
        edge_index=to_undirected(from_scipy_sparse_matrix(nearest)[0]),
        y=torch.from_numpy(digits.target).long(),
    )
    graph.info = _info(graph, DATASETS["digits"])
    return graph


def _wordnet(_: str) -> Data:
    return load_wordnet()


# --- what Limbeck does to them ---------------------------------------------------------------


def _clean(graph: Data, dataset: DataSet) -> None:
    """Bring features, edges and labels of a graph that was just read into Limbeck's form."""
    if isinstance(graph, HeteroData):
        for nodes in graph.node_stores:
            if "x" in nodes:
                nodes.x = _compact(nodes.x)
        graph[dataset.target].y = graph[dataset.target].y.view(-1).long()
        return
    _apply_edge_rule(graph, dataset.edges)
    graph.x = _compact(graph.x)
    if graph.y.dim() == 1:
        graph.y = graph.y.long()


def _apply_edge_rule(graph: Data, rule: EdgeRule) -> None:
    if rule == "cpf":
        largest = LargestConnectedComponents()(graph)
        for key, value in largest.items():
            graph[key] = value
    num_nodes = graph.num_nodes
    if rule in ("symmetrised", "glnn"):
        graph.edge_index = to_undirected(graph.edge_index, num_nodes=num_nodes)
    if rule in ("cpf", "glnn"):
        loopless = remove_self_loops(graph.edge_index)[0]
        graph.edge_index = add_self_loops(loopless, num_nodes=num_nodes)[0]


def _compact(x: Tensor) -> Tensor:
    """Features as float32: CSR where less than ``SPARSE_BELOW`` of them are non-zeros."""
    if is_csr(x):
        indptr, indices = x.crow_indices().long(), x.col_indices().long()
        return csr_tensor(indptr, indices, x.values().float(), (x.shape[0], x.shape[1]))
    x = x.float()
    return to_csr(x) if int(x.count_nonzero()) < SPARSE_BELOW * x.numel() else x


def _keep_column(graph: Data, column: int) -> None:
    for part in ("train", "val", "test"):
        graph[f"{part}_mask"] = graph[f"{part}_mask"][:, column].contiguous()


def _drop_masks(graph: Data) -> None:
    for part in ("train", "val", "test"):
        if f"{part}_mask" in graph:
            del graph[f"{part}_mask"]


def _info(graph: Data, dataset: DataSet) -> GraphInfo:
    nodes = graph[dataset.target] if dataset.target else graph
    y = nodes.y
    num_classes = int(y.max()) + 1 if y.dim() == 1 else int(y.shape[1])
    notes: dict[str, Any] = {"licence": dataset.licence, "edges": _EDGES[dataset.edges]}
    if dataset.target:
        notes |= {"target": dataset.target, "edges": "of several types, as PyG gives them"}
    if dataset.split in ("fixed", "columns"):
        notes["published_split"] = True
    return GraphInfo(
        name=dataset.name,
        source=f"{dataset.title}, {dataset.source}; split: {dataset.protocol}",
        split=dataset.split,
        class_names=dataset.class_names or tuple(f"class {i}" for i in range(num_classes)),
        node_ids=np.arange(int(y.shape[0])),
        notes=notes | dict(dataset.notes),
    )


# --- the catalogue -----------------------------------------------------------------------------

_RANDOM = "60/20/20 % drawn by the seed, stratified"
_TEN = "ten published splits, 48/32/20 %; the seed picks one"
_TEN_HETEROPHILOUS = "ten published splits, 50/25/25 %; the seed picks one"
_CPF = "20 training and 30 validation nodes per class drawn by the seed, the rest test"
_CITATION = "papers, citations, topics; words of the abstract"
_PLANETOID = {"source": "kimiyoung/planetoid", "licence": "MIT (source)", "split": "fixed"}
_GEOM_GCN = {
    "source": "graphdml-uiuc-jlu/geom-gcn",
    "licence": "not stated",
    "split": "columns",
    "protocol": _TEN,
    "edges": "symmetrised",
}
_SHCHUR = {
    "source": "shchur/gnn-benchmark",
    "licence": "MIT (source)",
    "split": "per-class",
    "protocol": _CPF,
    "edges": "cpf",
}
_HETEROPHILOUS = {
    "source": "yandex-research/heterophilous-graphs",
    "licence": "MIT (source)",
    "split": "columns",
    "protocol": _TEN_HETEROPHILOUS,
}
_ATTRIBUTED = {
    "source": "AttributedGraphDataset of PyG (Yang et al., 2020)",
    "licence": "not stated",
    "split": "random",
    "protocol": _RANDOM,
    "edges": "symmetrised",
    "extra": "ogb",  # PyG reads it with pandas, which this extra brings
}
