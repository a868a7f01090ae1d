"""Graphs with several types of nodes: how a PyG ``HeteroData`` goes through the project.

One type is labelled, the *target*. Everything that is about single nodes (splits, students that
read features, scores, bundles) is about the target alone, and gets it as an ordinary ``Data``
(:func:`labelled_graph`) whose ``edge_index`` joins nodes of the target. The whole graph stays with
it as ``hetero``; networks that read types (:class:`limbeck.teachers.rgcn.RGCN`) are given that.

A setting hides nodes of the target, with all their edges in all relations. Nodes of other types
are always observed, and so are their features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import ToUndirected
from torch_geometric.utils import coalesce, remove_self_loops

from limbeck.errors import GraphError
from limbeck.graphs.checks import check_ends, check_features, check_nodes
from limbeck.graphs.info import GraphInfo, SplitRule

logger = logging.getLogger(__name__)

Relation: TypeAlias = tuple[str, str, str]
"""Type of an edge's source, name of the relation, type of its target."""

MAX_PATHS = 20_000_000
"""Paths of two steps through one type above which they are not taken for edges."""

MASKS = ("train_mask", "val_mask", "test_mask")


# --- what a graph must be ----------------------------------------------------------------------


def target_of(graph: HeteroData, where: str = "the graph") -> str:
    """Name of the labelled node type.

    Raises:
        GraphError: No type has labels ``y``, or several have and ``info`` does not say which.
    """
    info = graph.get("info")
    if info is not None and "target" in info.notes:
        return str(info.notes["target"])
    labelled = [kind for kind in graph.node_types if "y" in graph[kind]]
    if len(labelled) != 1:
        found = " and ".join(map(repr, labelled)) if labelled else "no type of nodes"
        raise GraphError(f"{where} has labels 'y' for {found}: give them to exactly one type.")
    return str(labelled[0])


def check_hetero(graph: HeteroData, where: str) -> None:
    """Refuse a heterogeneous graph that no student could be distilled from.

    The target needs ``x`` (float32 ``[N, F]``, dense or CSR) and ``y`` (int64 ``[N]``, -1: none);
    another type ``x`` or ``num_nodes``; each relation ``edge_index`` (int64 ``[2, E]``, which may
    be empty) between nodes that exist. There must be at least one edge.

    Raises:
        GraphError: One sentence that names the first thing found wrong.
    """
    target = target_of(graph, where)
    for kind in graph.node_types:
        named = f"node type {kind!r} of {where}"
        if kind == target:
            check_nodes(graph[kind], graph.get("info"), named)
        elif "x" in graph[kind]:
            check_features(graph[kind].x, graph[kind], named)
        elif "num_nodes" not in graph[kind]:
            raise GraphError(f"{named} has neither features 'x' nor 'num_nodes': give one of them.")
    for relation in graph.edge_types:
        edges = graph[relation].get("edge_index")
        named = f"relation {'-'.join(relation)} of {where}"
        for kind in (relation[0], relation[2]):
            if kind not in graph.node_types:
                raise GraphError(f"{named} joins {kind!r}, which is no type of nodes there.")
        check_ends(edges, (num_nodes(graph, relation[0]), num_nodes(graph, relation[2])), named)
    if not any(graph[relation].edge_index.numel() for relation in graph.edge_types):
        raise GraphError(f"{where} has no edges: a graph needs at least one.")


def num_nodes(graph: HeteroData, kind: str) -> int:
    """Number of nodes of a type."""
    nodes = graph[kind]
    return int(nodes.x.shape[0] if "x" in nodes else nodes.num_nodes)


def from_hetero(data: HeteroData, name: str = "graph") -> HeteroData:
    """Check a ``HeteroData`` and add what Limbeck needs to know; the given one is not changed.

    Args:
        data: A graph whose labels ``y``, and masks if it has a split of its own, belong to one
            type of nodes. Its relations are taken as they are: messages go one way only where
            there is no reverse relation (``torch_geometric.transforms.ToUndirected`` adds them).
        name: What to call it.

    Raises:
        GraphError: It is not usable.
    """
    graph = data.clone()
    for nodes in graph.node_stores:
        if isinstance(nodes.get("x"), Tensor):
            nodes.x = nodes.x.float()
    where = f"the graph {name!r}"
    check_hetero(graph, where)
    if graph.get("info") is not None:
        return graph
    target = target_of(graph, where)
    nodes = graph[target]
    masks = [mask for mask in MASKS if mask in nodes]
    if masks and len(masks) < 3:
        raise GraphError(
            f"node type {target!r} of {where} has {' and '.join(masks)} only: give train_mask, "
            "val_mask and test_mask, or none of them."
        )
    rule: SplitRule = "random"
    if masks:
        rule = "columns" if nodes.train_mask.dim() == 2 else "fixed"
    graph.info = GraphInfo(
        name=name,
        source="PyG HeteroData",
        split=rule,
        class_names=tuple(str(i) for i in range(int(nodes.y.max()) + 1)),
        node_ids=np.arange(len(nodes.y)),
        notes={"target": target},
    )
    return graph


def with_reverses(graph: HeteroData) -> HeteroData:
    """The graph with a reverse of each relation; one within a type is made undirected."""
    undirected: HeteroData = ToUndirected()(graph)
    return undirected


# --- the labelled type as a graph of its own ---------------------------------------------------


def labelled_graph(graph: HeteroData) -> Data:
    """The labelled type as a ``Data``, which keeps the whole graph as ``hetero``.

    Its ``edge_index`` is what students and teachers read that know one type of nodes: the relations
    within the target if it has any, else the paths of two steps through another type, both ways,
    without self-loops; ``info.notes["neighbors"]`` says which. A type through which there are more
    than :data:`MAX_PATHS` such paths is left out.

    Raises:
        GraphError: The graph does not pass :func:`check_hetero`.
    """
    info: GraphInfo = graph.info
    check_hetero(graph, f"graph {info.name!r}")
    target = target_of(graph)
    nodes = graph[target]
    edge_index, neighbors = _neighbor_edges(graph, target)
    masks = {mask: nodes[mask] for mask in MASKS if mask in nodes}
    data = Data(x=nodes.x, edge_index=edge_index, y=nodes.y, num_nodes=len(nodes.x), **masks)
    data.info = replace(info, notes={**info.notes, "neighbors": neighbors})
    data.hetero = bare(graph, target, nodes.x)
    return data


def _neighbor_edges(graph: HeteroData, target: str) -> tuple[Tensor, str]:
    """Edges ``[2, E]`` between nodes of the target, and what they are."""
    within = [relation for relation in graph.edge_types if relation[0] == relation[2] == target]
    total = num_nodes(graph, target)
    if within:
        edges = torch.cat([graph[relation].edge_index for relation in within], dim=1)
        return coalesce(edges, num_nodes=total), ", ".join("-".join(name) for name in within)
    found, through = [torch.empty((2, 0), dtype=torch.int64)], []
    for kind in graph.node_types:
        ends = [_ends(graph, target, kind, relation) for relation in graph.edge_types]
        pairs = torch.cat([pair for pair in ends if pair is not None] or found[:1], dim=1)
        joins = coalesce(pairs, num_nodes=max(total, num_nodes(graph, kind)))
        paths = int(torch.bincount(joins[1]).square().sum())
        if paths == 0:
            continue
        if paths > MAX_PATHS:
            logger.warning("%d paths through %r are too many for edges: left out", paths, kind)
            continue
        shape = (total, num_nodes(graph, kind))
        ones = np.ones(joins.shape[1], dtype=np.int64)
        incidence = sparse.csr_array((ones, tuple(joins.numpy())), shape=shape)
        row, column = (incidence @ incidence.T).nonzero()
        found.append(torch.from_numpy(np.stack([row, column]).astype(np.int64)))
        through.append(kind)
    edges, _ = remove_self_loops(coalesce(torch.cat(found, dim=1), num_nodes=total))
    return edges, "two steps through " + " or ".join(through) if through else "none"


def _ends(graph: HeteroData, target: str, kind: str, relation: Relation) -> Tensor | None:
    """Edges between the target and another type as (node of the target, other node)."""
    source, _, goal = relation
    if (source, goal) == (target, kind):
        edges: Tensor = graph[relation].edge_index
        return edges
    return graph[relation].edge_index.flip(0) if (source, goal) == (kind, target) else None


# --- what views make of the whole graph --------------------------------------------------------


def bare(graph: HeteroData, target: str, x: Tensor) -> HeteroData:
    """Features and edges alone, those of the target being ``x``; tensors are shared."""
    made = HeteroData()
    made.target = target
    for kind in graph.node_types:
        if kind == target:
            made[kind].x = x
        elif "x" in graph[kind]:
            made[kind].x = graph[kind].x
        else:
            made[kind].num_nodes = num_nodes(graph, kind)
    for relation in graph.edge_types:
        made[relation].edge_index = graph[relation].edge_index
    return made


def reordered(hetero: HeteroData, x: Tensor, place: Tensor) -> HeteroData:
    """The graph with the target's nodes in another order.

    Args:
        hetero: What :func:`bare` made.
        x: Features of the target in the new order, ``[N, F]``.
        place: The new row of each node of the target, int64 ``[N]``.
    """
    made = bare(hetero, hetero.target, x)
    for relation in made.edge_types:
        source, goal = made[relation].edge_index
        source = place[source] if relation[0] == hetero.target else source
        goal = place[goal] if relation[2] == hetero.target else goal
        made[relation].edge_index = torch.stack([source, goal])
    return made


def without_edges_of(hetero: HeteroData, num_known: int, x: Tensor) -> HeteroData:
    """The graph in which nodes of the target from row ``num_known`` on have no edges.

    Args:
        hetero: What :func:`reordered` made.
        num_known: Number of nodes that keep their edges.
        x: Features of the target: of the first ``num_known`` nodes, which leaves the others out of
            the graph, or of all.
    """
    made = bare(hetero, hetero.target, x)
    for relation in made.edge_types:
        edges = made[relation].edge_index
        known = torch.ones(edges.shape[1], dtype=torch.bool)
        for end, kind in ((0, relation[0]), (1, relation[2])):
            if kind == hetero.target:
                known &= edges[end] < num_known
        if relation[0] == relation[2] == hetero.target:
            known |= (edges[0] == edges[1]) & (edges[0] < len(x))  # its own self-loop stays
        made[relation].edge_index = edges[:, known]
    return made


def tensors_of(hetero: HeteroData) -> Iterable[Tensor]:
    """Features and edges of all types but the target's features, in an order of their names."""
    for kind in sorted(hetero.node_types):
        if kind != hetero.target and "x" in hetero[kind]:
            yield hetero[kind].x
    for relation in sorted(hetero.edge_types):
        yield hetero[relation].edge_index


def edges_for(network: object, graph: Data) -> Any:
    """What a network reads of a view's graph beside the features of its nodes.

    Args:
        network: It says by ``reads_types`` whether it reads types of nodes; a module that does not
            say (a user's own) does.
        graph: A graph of a view.

    Returns:
        ``graph.hetero`` where there is one and the network reads types, else ``edge_index``.
    """
    if "hetero" in graph and getattr(network, "reads_types", True):
        return graph.hetero
    return graph.edge_index
