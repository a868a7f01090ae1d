"""What a graph is like, and what that means for distilling a teacher on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.utils import (
    coalesce,
    degree,
    homophily,
    remove_self_loops,
    subgraph,
    to_scipy_sparse_matrix,
)

from limbeck.errors import GraphError
from limbeck.graphs.checks import check_graph
from limbeck.graphs.hetero import labelled_graph
from limbeck.graphs.sparse import SPARSE_BELOW, is_csr

# Rows of a dense feature matrix that are made sparse at a time while hashing: bounds memory.
_HASH_BLOCK = 1 << 22


@dataclass(frozen=True)
class FeatureProfile:
    """Features of the nodes.

    Args:
        num_features: Number of columns.
        layout: ``"dense"`` or ``"sparse"``, as stored.
        dtype: Type of the values, as ``"float32"``.
        density: Share of the values that are not zero.
        median_nonzeros: Median number of non-zero values in a row.
        empty_rows: Number of nodes whose features are all zero.
    """

    num_features: int
    layout: str
    dtype: str
    density: float
    median_nonzeros: float
    empty_rows: int


@dataclass(frozen=True)
class DegreeProfile:
    """Number of distinct other nodes from which a node gets a message, over all nodes.

    Args:
        zero: Number of nodes that get no message.
        min: Smallest.
        median: Median.
        mean: Mean.
        p99: 99th percentile.
        max: Largest.
    """

    zero: int
    min: int
    median: float
    mean: float
    p99: float
    max: int


@dataclass(frozen=True)
class HomophilyProfile:
    """Do neighbours share a class? Each figure is ``None`` where it is not defined.

    All are taken on distinct edges without self-loops whose ends are both labelled.

    Args:
        edge: Share of the edges that join two nodes of one class.
        node: Share of a node's neighbours that have its class, mean over the nodes that have a
            labelled neighbour.
        edge_insensitive: Edge homophily of each class above its share of the nodes, from "Large
            Scale Learning on Non-Homophilous Graphs" (https://arxiv.org/abs/2110.14446).
        adjusted: Edge homophily above what the degrees of the classes give by chance; see
            :func:`adjusted_homophily`. The one to compare graphs by.
    """

    edge: float | None
    node: float | None
    edge_insensitive: float | None
    adjusted: float | None


@dataclass(frozen=True)
class LabelProfile:
    """Labels of the nodes.

    Args:
        counts: Number of labelled nodes of each class, by its name.
        unlabelled_share: Share of the nodes that have no label.
        largest_share: Share of the labelled nodes that are of the largest class, which is the
            accuracy of always answering that class.
    """

    counts: dict[str, int]
    unlabelled_share: float
    largest_share: float


@dataclass(frozen=True)
class DuplicateProfile:
    """Number of nodes that another node equals.

    Args:
        same_features: Nodes with a feature row, not all zero, that another node has too.
        same_neighbors: Nodes with exactly the neighbours, at least one, of another node; where
            edges have a direction, both the sources and the targets are the same.
        same_both: Nodes for which one other node fulfils both.
    """

    same_features: int
    same_neighbors: int
    same_both: int


@dataclass(frozen=True)
class Profile:
    """Figures of a graph; made by :func:`profile_graph`.

    Args:
        name: The graph's name.
        num_nodes: Number of nodes.
        num_edges: Number of edges as stored: an undirected edge counts twice.
        num_classes: Number of classes.
        self_loops: Number of stored edges from a node to itself.
        duplicate_edges: Number of stored edges that repeat an earlier one.
        reciprocity: Share of the distinct edges without self-loops whose reverse is there too;
            ``None`` without edges.
        directed: Whether an edge lacks its reverse.
        isolated_nodes: Number of nodes with no edge to or from another node.
        components: Number of connected components, directions ignored.
        largest_component_share: Share of the nodes in the largest component.
        features: Features.
        degrees: Degrees.
        homophily: Homophily.
        labels: Labels.
        duplicates: Nodes that equal another.
        advice: What the figures mean for distillation, one sentence each.
    """

    name: str
    num_nodes: int
    num_edges: int
    num_classes: int
    self_loops: int
    duplicate_edges: int
    reciprocity: float | None
    directed: bool
    isolated_nodes: int
    components: int
    largest_component_share: float
    features: FeatureProfile
    degrees: DegreeProfile
    homophily: HomophilyProfile
    labels: LabelProfile
    duplicates: DuplicateProfile
    advice: list[str]

    def to_dict(self) -> dict[str, object]:
        """The figures as plain values, nested as the fields are."""
        return asdict(self)

    def to_json(self) -> str:
        """The figures as one JSON document."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)


def profile_graph(graph: Data | HeteroData) -> Profile:
    """Measure a graph.

    A million nodes with ten million edges take about ten seconds on one core; memory beyond the
    graph is that of its edges and of its adjacency matrix in CSR form.

    Args:
        graph: A graph with ``x``, ``edge_index``, ``y`` (-1 where there is no label) and ``info``;
            of a ``HeteroData`` its labelled type, see :func:`limbeck.graphs.hetero.labelled_graph`.

    Raises:
        GraphError: If the graph does not pass :func:`limbeck.graphs.checks.check_graph`, or has
            several labels per node.
    """
    if isinstance(graph, HeteroData):
        graph = labelled_graph(graph)
    check_graph(graph, graph.info.name)
    if graph.y.dim() == 2:
        raise GraphError(
            f"{graph.info.name} has several labels per node: a profile tells of classes, one per "
            "node."
        )
    stored, num_nodes = graph.edge_index, graph.num_nodes
    distinct = coalesce(stored, num_nodes=num_nodes)
    edges = remove_self_loops(distinct)[0]
    adjacency = to_scipy_sparse_matrix(edges, num_nodes=num_nodes).tocsr()
    reciprocity, isolated = _reciprocity(adjacency), _isolated(edges, num_nodes)
    components, largest = _components(adjacency)
    features, degrees, labels = _features(graph.x), _degrees(edges, num_nodes), _labels(graph)
    of_edges = _homophily(edges, graph.y)
    duplicates = _duplicates(graph.x, adjacency)
    return Profile(
        name=graph.info.name,
        num_nodes=num_nodes,
        num_edges=stored.shape[1],
        num_classes=graph.info.num_classes,
        self_loops=int((stored[0] == stored[1]).sum()),
        duplicate_edges=stored.shape[1] - distinct.shape[1],
        reciprocity=reciprocity,
        directed=reciprocity is not None and reciprocity < 1,
        isolated_nodes=isolated,
        components=components,
        largest_component_share=largest,
        features=features,
        degrees=degrees,
        homophily=of_edges,
        labels=labels,
        duplicates=duplicates,
        advice=[  # the most consequential first
            *_advice_on_homophily(of_edges),
            *_advice_on_duplicates(duplicates, num_nodes),
            *_advice_on_features(features, num_nodes),
            *_advice_on_edges(reciprocity, isolated, degrees.zero, num_nodes),
            *_advice_on_labels(labels),
        ],
    )


def distinct_edges(graph: Data) -> Tensor:
    """The edges without self-loops and repetitions, int64 ``[2, E']``, sorted."""
    distinct = coalesce(graph.edge_index, num_nodes=graph.num_nodes)
    edges: Tensor = remove_self_loops(distinct)[0]
    return edges


def num_neighbors(graph: Data) -> Tensor:
    """Number of distinct other nodes from which each node gets a message, int64 ``[N]``."""
    count: Tensor = degree(distinct_edges(graph)[1], graph.num_nodes, dtype=torch.int64)
    return count


def local_homophily(graph: Data) -> Tensor:
    """Share of each node's labelled neighbours that have its label.

    Returns:
        float32 ``[N]``; NaN where a node has no label or no labelled neighbour.
    """
    source, target = _labelled_edges(distinct_edges(graph), graph.y)
    same = (graph.y[source] == graph.y[target]).double()
    total = degree(target, graph.num_nodes, dtype=torch.float64)
    hits = torch.zeros(graph.num_nodes, dtype=torch.float64).index_add_(0, target, same)
    share: Tensor = (hits / total).float()  # 0/0 is NaN
    return share


def edge_homophily(edge_index: Tensor, labels: Tensor) -> float | None:
    """Share of the edges between labelled nodes that join two of one class; no self-loops.

    Args:
        edge_index: int64 ``[2, E]``.
        labels: int64 ``[N]``, -1 for none.

    Returns:
        The figure; ``None`` without such edges.
    """
    edges = _labelled_edges(remove_self_loops(edge_index)[0], labels)
    return float(homophily(edges, labels, method="edge")) if edges.shape[1] > 0 else None


def adjusted_homophily(edge_index: Tensor, labels: Tensor) -> float | None:
    r"""Adjusted homophily, from "Characterizing Graph Datasets for Node Classification" (Platonov
    et al., NeurIPS 2023, https://arxiv.org/abs/2209.06177).

    .. math::
        h_\mathrm{adj} = \frac{h_\mathrm{edge} - \sum_k D_k^2 / (2|E|)^2}
                              {1 - \sum_k D_k^2 / (2|E|)^2}

    where :math:`D_k` is the number of edge ends at nodes of class :math:`k`. It is 1 where every
    edge joins a class with itself and 0 where the classes are joined as by chance.

    Args:
        edge_index: int64 ``[2, E]``; an undirected edge is stored once or twice, all in one way.
        labels: int64 ``[N]``, none of them -1 at the ends of an edge.

    Returns:
        The figure; ``None`` without edges and where all ends have one class.
    """  # noqa: D205
    ends = torch.bincount(labels[edge_index].reshape(-1)).double()
    if int((ends > 0).sum()) < 2:
        return None
    by_chance = float((ends / ends.sum()).square().sum())
    of_edges = float((labels[edge_index[0]] == labels[edge_index[1]]).double().mean())
    return (of_edges - by_chance) / (1 - by_chance)


def _features(x: Tensor) -> FeatureProfile:
    rows, columns = x.shape
    per_row = np.concatenate([np.diff(block.indptr) for block in _blocks(x)])
    return FeatureProfile(
        num_features=columns,
        layout="sparse" if is_csr(x) else "dense",
        dtype=str(x.dtype).removeprefix("torch."),
        density=float(per_row.sum() / (rows * columns)),
        median_nonzeros=float(np.median(per_row)),
        empty_rows=int((per_row == 0).sum()),
    )


def _degrees(edges: Tensor, num_nodes: int) -> DegreeProfile:
    values = torch.bincount(edges[1], minlength=num_nodes).numpy()
    return DegreeProfile(
        zero=int((values == 0).sum()),
        min=int(values.min()),
        median=float(np.median(values)),
        mean=float(values.mean()),
        p99=float(np.percentile(values, 99)),
        max=int(values.max()),
    )


def _reciprocity(adjacency: sparse.csr_matrix) -> float | None:
    if adjacency.nnz == 0:
        return None
    return float(adjacency.multiply(adjacency.T).nnz / adjacency.nnz)


def _isolated(edges: Tensor, num_nodes: int) -> int:
    return int((torch.bincount(edges.reshape(-1), minlength=num_nodes) == 0).sum())


def _components(adjacency: sparse.csr_matrix) -> tuple[int, float]:
    count, which = connected_components(adjacency, directed=True, connection="weak")
    return int(count), float(np.bincount(which).max() / adjacency.shape[0])


def _labels(graph: Data) -> LabelProfile:
    labelled = graph.y[graph.y >= 0]
    counts = torch.bincount(labelled, minlength=graph.info.num_classes).tolist()
    return LabelProfile(
        counts=dict(zip(graph.info.class_names, counts, strict=True)),
        unlabelled_share=int((graph.y < 0).sum()) / graph.num_nodes,
        largest_share=max(counts) / len(labelled),
    )


def _labelled_edges(edges: Tensor, labels: Tensor) -> Tensor:
    return edges[:, (labels[edges] >= 0).all(dim=0)]


def _homophily(edges: Tensor, labels: Tensor) -> HomophilyProfile:
    # PyG takes -1 for a class like any other, so it gets the labelled nodes alone
    labelled = labels >= 0
    edges, _ = subgraph(labelled, edges, relabel_nodes=True, num_nodes=len(labels))
    labels = labels[labelled]
    if edges.shape[1] == 0:
        return HomophilyProfile(edge=None, node=None, edge_insensitive=None, adjusted=None)
    # PyG counts a node without neighbours as 0; such a node says nothing and is left out here
    with_neighbors = len(torch.unique(edges[1]))
    of_nodes = homophily(edges, labels, method="node") * len(labels) / with_neighbors
    many_classes = int(labels.max()) > 0
    return HomophilyProfile(
        edge=edge_homophily(edges, labels),
        node=float(of_nodes),
        edge_insensitive=(
            float(homophily(edges, labels, method="edge_insensitive")) if many_classes else None
        ),
        adjusted=adjusted_homophily(edges, labels),
    )


def _duplicates(x: Tensor, adjacency: sparse.csr_matrix) -> DuplicateProfile:
    of_features = np.concatenate([_hash_rows(block) for block in _blocks(x)])
    both_ways = sparse.hstack([adjacency, adjacency.T.tocsr()], format="csr")  # [N, 2N]
    of_neighbors = _hash_rows(both_ways)
    # 0 is the hash of an empty row: nothing that two nodes could share
    featured, connected = of_features != 0, of_neighbors != 0
    of_both = _mix(of_features) + of_neighbors
    return DuplicateProfile(
        same_features=_num_repeated(of_features[featured]),
        same_neighbors=_num_repeated(of_neighbors[connected]),
        same_both=_num_repeated(of_both[featured & connected]),
    )


def _num_repeated(values: npt.NDArray[np.uint64]) -> int:
    _, counts = np.unique(values, return_counts=True)
    return int(counts[counts > 1].sum())


def _blocks(x: Tensor) -> Iterator[sparse.csr_array]:
    """The rows of ``x``, in order, as CSR matrices without stored zeros."""
    if is_csr(x):
        parts = (x.values(), x.col_indices(), x.crow_indices())
        whole = sparse.csr_array(
            tuple(part.numpy() for part in parts), shape=(x.shape[0], x.shape[1])
        )
        if not whole.data.all():
            whole = whole.copy()  # the arrays are the tensor's own
            whole.eliminate_zeros()
        yield whole
    else:
        for rows in torch.split(x, max(1, _HASH_BLOCK // x.shape[1])):
            yield sparse.csr_array(rows.numpy())


def _hash_rows(matrix: sparse.csr_array) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each row: the sum, modulo 2^64, of a hash of each (column, value).

    Two different rows among a million collide with a probability below 1e-7; a row without
    entries hashes to 0.
    """
    values = np.ascontiguousarray(matrix.data, dtype=np.float64).view(np.uint64)
    entries = _mix(_mix(matrix.indices.astype(np.uint64)) + values)
    running = np.zeros(len(entries) + 1, dtype=np.uint64)
    np.cumsum(entries, out=running[1:])  # wraps around, and so does the difference
    return running[matrix.indptr[1:]] - running[matrix.indptr[:-1]]


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): spreads every bit over all 64."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _advice_on_homophily(of_edges: HomophilyProfile) -> Iterator[str]:
    adjusted = of_edges.adjusted
    if adjusted is None:
        yield (
            "Homophily is not defined, as no edge joins two labelled nodes of a graph with several "
            "classes: compare teacher and plain MLP to see whether the edges help."
        )
    elif adjusted >= 0.5:
        yield (
            f"Neighbours mostly share a class (adjusted homophily {adjusted:.2f}): a GNN teacher "
            "gains from the edges, and its soft labels carry much of that gain to a student that "
            "reads features alone; expect the rest of the gap on unseen nodes."
        )
    elif adjusted >= 0.1:
        yield (
            f"Neighbours share a class somewhat more often than by chance (adjusted homophily "
            f"{adjusted:.2f}): a student that reads features alone keeps less of the teacher's "
            "gain; look at the slices by local homophily."
        )
    else:
        yield (
            f"Neighbours share a class no more often than by chance (adjusted homophily "
            f"{adjusted:.2f}): a plain MLP may match a GNN teacher that averages neighbours, so "
            "score it first, and try a teacher made for heterophily and a student that reads the "
            "edges themselves."
        )


def _advice_on_duplicates(duplicates: DuplicateProfile, num_nodes: int) -> Iterator[str]:
    if duplicates.same_both >= 0.01 * num_nodes:
        yield (
            f"{_part(duplicates.same_both, num_nodes)} have the features and the neighbours of "
            "another node: such twins leak answers from training to test nodes, so drop all but "
            "one of them or keep them in one part of the split."
        )
    if duplicates.same_neighbors >= 0.2 * num_nodes:
        yield (
            f"{_part(duplicates.same_neighbors, num_nodes)} have exactly the neighbours of another "
            "node: where these nodes have few neighbours that is ordinary, else they may be copies "
            "that leak answers from training to test nodes."
        )
    if duplicates.same_features >= 0.05 * num_nodes:
        yield (
            f"{_part(duplicates.same_features, num_nodes)} share their feature row with another "
            "node: a student that reads features alone gives such nodes one answer."
        )


def _advice_on_features(features: FeatureProfile, num_nodes: int) -> Iterator[str]:
    if features.empty_rows >= 0.01 * num_nodes:
        yield (
            f"{_part(features.empty_rows, num_nodes)} have no feature other than zero: a student "
            "that reads features alone cannot tell them apart, one that reads positions or "
            "neighbours can."
        )
    if 0 < features.median_nonzeros <= 5 < features.num_features:
        yield (
            f"Half of the nodes have at most {features.median_nonzeros:g} non-zero features out "
            f"of {features.num_features}: features alone say little of such a node."
        )
    if features.layout == "dense" and features.density < SPARSE_BELOW:
        yield (
            f"Only {features.density:.1%} of the features are not zero: stored as sparse rows they "
            "train and answer faster."
        )


def _advice_on_edges(
    reciprocity: float | None, isolated: int, no_message: int, num_nodes: int
) -> Iterator[str]:
    if reciprocity is None:
        yield "There are no edges between different nodes: a teacher can be no better than an MLP."
    elif isolated >= 0.02 * num_nodes:
        yield (
            f"{_part(isolated, num_nodes)} are isolated: the teacher knows no more of them than "
            "their features, and a student that reads neighbours or positions gets nothing for "
            "them; look at the slice 'degree=0'."
        )
    if reciprocity is not None and reciprocity < 1:
        yield (
            f"Edges have a direction ({reciprocity:.0%} have their reverse) and a message goes "
            f"from source to target only, so that {_part(no_message, num_nodes)} get none: add the "
            "reverse edges if the relation holds both ways."
        )


def _advice_on_labels(labels: LabelProfile) -> Iterator[str]:
    if labels.largest_share >= 0.5:
        largest = max(labels.counts, key=lambda name: labels.counts[name])
        yield (
            f"{labels.largest_share:.0%} of the labelled nodes are of class {largest!r}: always "
            "answering it gives that accuracy, so read macro F1 as well."
        )
    smallest = min(labels.counts, key=lambda name: labels.counts[name])
    if labels.counts[smallest] < 50:
        yield (
            f"The smallest class, {smallest!r}, has fewer than 50 labelled nodes "
            f"({labels.counts[smallest]}): it does not allow a split of 20 training and 30 "
            "validation nodes per class, and its scores will be noisy."
        )
    if labels.unlabelled_share > 0:
        yield (
            f"{labels.unlabelled_share:.1%} of the nodes have no label: they are never scored, "
            "but a student still learns from the teacher's answers for them."
        )


def _part(count: int, num_nodes: int) -> str:
    return f"{count} of {num_nodes} nodes ({count / num_nodes:.1%})"
