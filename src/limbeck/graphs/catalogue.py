"""The catalogue of named data sets: what each is, and the class of PyG that reads it.

A data set is added by one entry here. :mod:`limbeck.graphs.datasets` loads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph
from torch_geometric import datasets as pyg
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import GlobalStorage
from torch_geometric.utils import from_scipy_sparse_matrix, to_undirected

from limbeck.graphs.hetero import with_reverses
from limbeck.graphs.info import SplitRule
from limbeck.graphs.minimag import SIZES, make_minimag
from limbeck.graphs.raw_files import CPF, FilteredWikipediaNetwork
from limbeck.graphs.wordnet import LEXICOGRAPHER_FILES, load_wordnet

EdgeRule = Literal["given", "symmetrised", "cpf", "glnn"]

# PyG names a root; a graph comes back, with masks where the split is published.
Reader = Callable[[str], Data | HeteroData]


@dataclass(frozen=True)
class DataSet:
    """An entry of the catalogue.

    Args:
        name: What ``load_dataset`` and the command line call it.
        title: What people call it.
        description: What a node, an edge and a class are, and the features, in one line.
        source: Where the files come from.
        licence: Under which that source gives them; ``"not stated"`` where it does not say.
        split: How a seed picks training, validation and test nodes (``GraphInfo.split``).
        protocol: The same in words.
        raw: The raw file or folder below the data root; ``None`` where there are none: embedded or
            generated.
        read: Reads the graph from a root in PyG's layout, downloading what is missing.
        edges: What Limbeck does to the edges: ``"given"``, nothing; ``"symmetrised"``, makes
            them undirected, self-loops kept; ``"cpf"``, keeps the largest connected component
            and gives every node a self-loop; ``"glnn"``, makes them undirected and gives every
            node a self-loop.
        variants: What may follow the name after a colon.
        extra: The extra of Limbeck that reading it needs, beside ``train``.
        class_names: Names of the classes, where they are known.
        target: The labelled node type of a heterogeneous graph.
        caveat: What a reader of its scores should know.
    """

    name: str
    title: str
    description: str
    source: str
    licence: str
    split: SplitRule
    protocol: str
    raw: str | None
    read: Reader
    edges: EdgeRule = "given"
    variants: tuple[str, ...] = ()
    extra: str | None = None
    class_names: tuple[str, ...] = ()
    target: str | None = None
    caveat: str | None = None


RANDOM = "60/20/20 % by the seed, stratified"
BALANCED = "of each class 20 % of the mean class by the seed for train and for val, rest test"
GEOM_GCN = "ten published splits, about 48/32/20 %"
TEN_HALVES = "ten published splits, about 50/25/25 %"
PER_CLASS = "20 train and 30 val per class by the seed, rest test"


# --- readers -----------------------------------------------------------------------------------


def read_planetoid(folder: str, split: str, root: str) -> Data:
    """Read Cora, CiteSeer or PubMed with the split ``"public"`` or ``"geom-gcn"``."""
    return pyg.Planetoid(root, folder, split=split)[0]


def _read_digits(_: str) -> Data:
    """An edge joins two digits where either is among the ten nearest of the other."""
    digits = load_digits()
    nearest = kneighbors_graph(digits.data, n_neighbors=10)
    return Data(
        x=torch.from_numpy(digits.data / 16).float(),  # pixels are 0 to 16
        edge_index=to_undirected(from_scipy_sparse_matrix(nearest)[0]),
        y=torch.from_numpy(digits.target).long(),
    )


def _read_ppi(root: str) -> Data:
    """The 24 graphs of PPI as one; ``batch`` numbers them, and the masks say whose part each is."""
    graphs = []
    for part in ("train", "val", "test"):
        for graph in pyg.PPI(f"{root}/ppi", split=part):
            for mask in ("train", "val", "test"):
                graph[f"{mask}_mask"] = torch.full((graph.num_nodes,), mask == part)
            graphs.append(graph)
    union = Batch.from_data_list(graphs)
    keys = ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask", "batch")
    return Data(**{key: union[key] for key in keys})


def _open_ogbn(name: str, root: str) -> tuple[Data, dict[str, Any]]:
    """A graph of OGB as it stores it, and the nodes of its official split."""
    from ogb.nodeproppred import PygNodePropPredDataset  # an extra, and slow to import

    # OGB stores PyG objects and reads them with torch.load, which must be told that they are safe
    with torch.serialization.safe_globals([DataEdgeAttr, DataTensorAttr, GlobalStorage]):
        files = PygNodePropPredDataset(name, root=root)
    return files[0], files.get_idx_split()


def _add_masks(nodes: Any, split: dict[str, Any], num_nodes: int) -> None:
    for part, key in (("train", "train"), ("val", "valid"), ("test", "test")):
        nodes[f"{part}_mask"] = torch.zeros(num_nodes, dtype=torch.bool)
        nodes[f"{part}_mask"][split[key]] = True


def _read_ogbn(name: str, root: str) -> Data:
    graph, split = _open_ogbn(name, root)
    _add_masks(graph, split, graph.num_nodes)
    graph.y = graph.y.view(-1)
    return graph


def _read_mag(root: str) -> HeteroData:
    """OGBN-Mag: only papers have features; citations undirected, other relations with reverses."""
    stored, split = _open_ogbn("ogbn-mag", root)
    graph = HeteroData()
    for kind, count in stored.num_nodes_dict.items():
        if kind in stored.x_dict:
            graph[kind].x = stored.x_dict[kind]
        else:
            graph[kind].num_nodes = int(count)
    for relation, edges in stored.edge_index_dict.items():
        graph[relation].edge_index = edges
    papers = {key: nodes["paper"] for key, nodes in split.items()}
    graph["paper"].y = stored.y_dict["paper"].view(-1)
    _add_masks(graph["paper"], papers, len(graph["paper"].y))
    return with_reverses(graph)


# --- families of entries -----------------------------------------------------------------------


def _planetoid(name: str, folder: str, description: str, caveat: str | None = None) -> DataSet:
    return DataSet(
        name=name,
        title=f"{folder} (Planetoid)",
        description=description,
        source="kimiyoung/planetoid",
        licence="MIT (source)",
        split="fixed",
        protocol="public: 20 train per class, 500 val, 1000 test",
        raw=f"{folder}/raw",
        read=partial(read_planetoid, folder, "public"),
        variants=("geom-gcn", "random", "20-20-60"),
        caveat=caveat,
    )


def _cpf(name: str, title: str, description: str, raw: str, read: Reader) -> DataSet:
    """A data set in CPF's protocol."""
    return DataSet(
        name=name,
        title=title,
        description=description,
        source="shchur/gnn-benchmark",
        licence="MIT (source)",
        split="per-class",
        protocol=PER_CLASS,
        raw=raw,
        read=read,
        edges="cpf",
    )


def _geom_gcn(name: str, title: str, description: str, raw: str, read: Reader) -> DataSet:
    return DataSet(
        name=name,
        title=title,
        description=description,
        source="graphdml-uiuc-jlu/geom-gcn",
        licence="not stated",
        split="columns",
        protocol=GEOM_GCN,
        raw=raw,
        read=read,
        edges="symmetrised",
        variants=("20-20-60",),
    )


def _webkb(name: str) -> DataSet:
    return replace(
        _geom_gcn(
            name,
            f"{name.capitalize()} (WebKB)",
            "web pages of a university, links, kind of page; words",
            f"{name}/raw",
            lambda root: pyg.WebKB(root, name)[0],
        ),
        caveat="fewer than 60 test nodes: differences of several points are noise",
    )


def _wikipedia(name: str) -> DataSet:
    return replace(
        _geom_gcn(
            name,
            f"{name.capitalize()} (Wikipedia)",
            "articles, links, traffic in five steps; nouns of the article",
            f"{name}/geom_gcn/raw",
            lambda root: pyg.WikipediaNetwork(root, name)[0],
        ),
        caveat=f"many nodes are duplicates, also of test nodes: report {name}-filtered as well",
    )


def _platonov(name: str, description: str, protocol: str = TEN_HALVES) -> DataSet:
    folder = name.replace("-", "_")
    return DataSet(
        name=name,
        title=name.replace("-", " ").capitalize(),
        description=description,
        source="yandex-research/heterophilous-graphs",
        licence="MIT (source)",
        split="columns",
        protocol=protocol,
        raw=f"{folder}/raw",
        read=lambda root: pyg.HeterophilousGraphDataset(root, name)[0],
    )


def _filtered(name: str) -> DataSet:
    folder = name.replace("-", "_")
    description = f"{name.removesuffix('-filtered')} without duplicate nodes"
    return replace(
        _platonov(name, description, GEOM_GCN),
        read=lambda root: FilteredWikipediaNetwork(root, folder)[0],
        variants=("20-20-60",),
    )


def _attributed(name: str, title: str, description: str) -> DataSet:
    return DataSet(
        name=name,
        title=title,
        description=description,
        source="AttributedGraphDataset of PyG",
        licence="not stated",
        split="random",
        protocol=RANDOM,
        raw=f"{name}/raw",
        read=lambda root: pyg.AttributedGraphDataset(root, name)[0],
        edges="symmetrised",
        extra="ogb",  # PyG reads it with pandas, which this extra brings
    )


def _ogbn(name: str, description: str, licence: str, protocol: str, edges: EdgeRule) -> DataSet:
    return DataSet(
        name=name,
        title=name,
        description=description,
        source="Open Graph Benchmark",
        licence=licence,
        split="fixed",
        protocol=protocol,
        raw=name.replace("-", "_"),
        read=partial(_read_ogbn, name),
        edges=edges,
        extra="ogb",
    )


def _minimag(size: str) -> DataSet:
    return DataSet(
        name=f"minimag-{size}",
        title=f"MiniMag, {size}",
        description="papers, authors, institutions, fields; a table of area and school; noise",
        source="generated, in the schema of ogbn-mag",
        licence="generated",
        split="fixed",
        protocol="80/10/10 % by time",
        raw=None,
        read=lambda _: make_minimag(size),
        edges="symmetrised",
        target="paper",
    )


# --- the entries -------------------------------------------------------------------------------

_ENTRIES = (
    DataSet(
        name="wordnet",
        title="WordNet 3.0 nouns",
        description="synsets, semantic pointers, lexicographer files; words of the gloss",
        source="Princeton University, embedded",
        licence="WordNet 3.0",
        split="random",
        protocol="10/10/80 % by the seed, stratified",
        raw=None,
        read=lambda _: load_wordnet(),
        class_names=LEXICOGRAPHER_FILES,
    ),
    DataSet(
        name="digits",
        title="Digits, 10 nearest neighbours",
        description="8 x 8 images, ten nearest neighbours, digits; pixels",
        source="scikit-learn, after UCI",
        licence="BSD (source)",
        split="random",
        protocol=RANDOM,
        raw=None,
        read=_read_digits,
        class_names=tuple("0123456789"),
    ),
    _planetoid("cora", "Cora", "papers, citations, topics; words"),
    _planetoid(
        "citeseer",
        "CiteSeer",
        "papers, citations, topics; words",
        "15 nodes without features or label in the raw files have class 0, as in PyG",
    ),
    _planetoid("pubmed", "PubMed", "papers on diabetes, citations, kind of diabetes; TF-IDF"),
    _cpf(
        "cpf-cora",
        "Cora (CPF)",
        "papers, citations, topics; words",
        "cpf/cora.npz",
        lambda root: CPF(root, "cora")[0],
    ),
    _cpf(
        "cpf-citeseer",
        "CiteSeer (CPF)",
        "papers, citations, topics; words",
        "cpf/citeseer.npz",
        lambda root: CPF(root, "citeseer")[0],
    ),
    replace(
        _cpf(
            "cpf-pubmed",
            "PubMed (CPF protocol)",
            "papers on diabetes, citations, kind of diabetes; TF-IDF",
            "PubMed/raw",
            partial(read_planetoid, "PubMed", "public"),
        ),
        source="kimiyoung/planetoid",
        caveat="Planetoid's file, since CPF's own is not read: node order, hence splits, differ",
    ),
    _cpf(
        "a-photo",
        "Amazon Photo",
        "goods, bought together, categories; words of reviews",
        "Photo/raw",
        lambda root: pyg.Amazon(root, "Photo")[0],
    ),
    _cpf(
        "a-computer",
        "Amazon Computers",
        "goods, bought together, categories; words of reviews",
        "Computers/raw",
        lambda root: pyg.Amazon(root, "Computers")[0],
    ),
    _cpf(
        "a-cs",
        "Coauthor CS",
        "authors, written together, fields; keywords of papers",
        "CS/raw",
        lambda root: pyg.Coauthor(root, "CS")[0],
    ),
    _cpf(
        "a-physics",
        "Coauthor Physics",
        "authors, written together, fields; keywords of papers",
        "Physics/raw",
        lambda root: pyg.Coauthor(root, "Physics")[0],
    ),
    _wikipedia("chameleon"),
    _wikipedia("squirrel"),
    _filtered("chameleon-filtered"),
    _filtered("squirrel-filtered"),
    _geom_gcn(
        "actor",
        "Actor (Film)",
        "actors, on the same page, kind of actor; words of the page",
        "actor/raw",
        lambda root: pyg.Actor(f"{root}/actor")[0],
    ),
    _webkb("texas"),
    _webkb("wisconsin"),
    replace(
        _webkb("cornell"),
        caveat="PyG downloads an old file with the features and labels of texas (homophily 0.30 "
        "instead of 0.12); put the corrected one into the data root",
    ),
    _platonov("roman-empire", "words of an article, order and syntax, syntactic role; embeddings"),
    _platonov("amazon-ratings", "goods, bought together, mean rating; embeddings"),
    _platonov("minesweeper", "cells of a grid, neighbours, mine or not; counts of mines"),
    _platonov("tolokers", "workers, same task, banned or not; profile"),
    _platonov("questions", "users, answered, still active or not; embeddings"),
    _attributed("blogcatalog", "BlogCatalog", "bloggers, contacts, topics; keywords"),
    _attributed("flickr", "Flickr", "users, contacts, groups; tags"),
    _attributed("wiki", "Wiki", "articles, links, topics; TF-IDF"),
    DataSet(
        name="imdb",
        title="IMDB (MAGNN)",
        description="movies, directors, actors; genre of movies; words of the plot",
        source="cynricfu/MAGNN",
        licence="not stated",
        split="fixed",
        protocol="published: 400 train, 400 val, 3478 test movies",
        raw="imdb/raw",
        read=lambda root: pyg.IMDB(f"{root}/imdb")[0],
        class_names=("action", "comedy", "drama"),
        target="movie",
    ),
    _ogbn(
        "ogbn-arxiv",
        "papers, citations, subject; mean word embedding",
        "ODC-BY",
        "official, by year",
        "glnn",
    ),
    _ogbn(
        "ogbn-products",
        "goods, bought together, categories; words reduced to 100",
        "Amazon (see OGB)",
        "official, by sales rank",
        "given",
    ),
    DataSet(
        name="ogbn-mag",
        title="ogbn-mag",
        description="papers, authors, institutions, fields; venue of papers",
        source="Open Graph Benchmark",
        licence="ODC-BY",
        split="fixed",
        protocol="official, by year",
        raw="ogbn_mag",
        read=_read_mag,
        edges="symmetrised",
        extra="ogb",
        target="paper",
    ),
    *(_minimag(size) for size in SIZES),
    DataSet(
        name="ppi",
        title="PPI",
        description="proteins of 24 tissues, interactions, 121 functions, several each; gene sets",
        source="GraphSAGE, by way of DGL",
        licence="not stated",
        split="fixed",
        protocol="published: 20 graphs train, 2 val, 2 test",
        raw="ppi/raw",
        read=_read_ppi,
        caveat="several labels per node",
    ),
)

DATASETS: dict[str, DataSet] = {entry.name: entry for entry in _ENTRIES}
