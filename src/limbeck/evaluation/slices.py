"""Scores of parts of the test nodes: by degree, by local homophily, by class.

A mean hides for whom a student works. A student without edges tends to lose where the teacher
gained from the graph, and the slices show where that is. They read every label of the graph and
belong to evaluation only, never to training.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data

from limbeck.errors import GraphError, InputError
from limbeck.evaluation.metrics import agreement, decisions, main_score
from limbeck.graphs.profile import local_homophily, num_neighbors
from limbeck.training.tasks import labelled_rows

DEGREES = ("0", "1-2", "3-5", "6-10", "11+")
_DEGREE_STARTS = (1, 3, 6, 11)
HOMOPHILIES = ("[0, 0.25)", "[0.25, 0.5)", "[0.5, 0.75)", "[0.75, 1]", "no labelled neighbour")
_HOMOPHILY_STARTS = (0.25, 0.5, 0.75)


def slices(graph: Data, nodes: Tensor) -> dict[str, Tensor]:
    """Divide nodes three times: by degree, by local homophily and by class.

    Degree is the number of distinct other nodes from which a node gets a message: in an undirected
    graph its number of neighbours, and ``"degree=0"`` holds the isolated nodes. Local homophily
    is the share of those neighbours, among the labelled ones, that have the node's label.

    Args:
        graph: The graph with the edges that the answer was given with, and with all labels.
        nodes: Ids of the nodes to divide, int64 ``[B]``.

    Returns:
        Positions *in* ``nodes``, int64, ascending, under ``"degree=1-2"``,
        ``"homophily=[0.25, 0.5)"``, ``"class=NAME"`` and so on. Every slice is there, also an
        empty one. Each division covers every node once, except that unlabelled nodes have no class
        and count as having no labelled neighbour. Nodes with several labels are divided by degree
        alone.

    Raises:
        GraphError: If a node is not in the graph.
    """
    _require_nodes(graph, nodes)
    by_degree = _positions("degree", DEGREES, degree_bins(num_neighbors(graph)[nodes]))
    if graph.y.dim() == 2:
        return by_degree
    homophily = local_homophily(graph)[nodes]
    homophily_bin = torch.bucketize(homophily, torch.tensor(_HOMOPHILY_STARTS), right=True)
    homophily_bin[homophily.isnan()] = len(HOMOPHILIES) - 1
    return {
        **by_degree,
        **_positions("homophily", HOMOPHILIES, homophily_bin),
        **_positions("class", graph.info.class_names, graph.y[nodes]),
    }


def degree_bins(degree: Tensor) -> Tensor:
    """Which of :data:`DEGREES` each number of neighbours falls into, int64 ``[N]``."""
    return torch.bucketize(degree, torch.tensor(_DEGREE_STARTS), right=True)


def score_slices(
    graph: Data, nodes: Tensor, logits: Tensor, teacher_logits: Tensor | None = None
) -> dict[str, dict[str, float | None]]:
    """Score every slice of labelled nodes.

    Args:
        graph: As for :func:`slices`.
        nodes: Ids of labelled nodes, int64 ``[B]``.
        logits: Answers for ``nodes``, in their order, float ``[B, C]``.
        teacher_logits: The teacher's answers for the same nodes, float ``[B, C]``.

    Returns:
        For each slice ``num_nodes``, ``accuracy`` (micro-F1 of several labels), and, where there is
        a teacher, ``teacher_accuracy`` and ``agreement``, else ``None``. An empty slice has
        ``num_nodes`` 0 and ``None`` for the rest.

    Raises:
        InputError: If the logits do not fit the nodes.
        GraphError: If a node is not in the graph or has no label.
    """
    _require_nodes(graph, nodes)
    labels = graph.y[nodes]
    hidden = ~labelled_rows(labels)
    if bool(hidden.any()):
        node = int(nodes[hidden][0])
        raise GraphError(f"node {node} has no label: only labelled nodes can be scored.")
    for given in (logits, teacher_logits):
        if given is not None and len(given) != len(nodes):
            raise InputError(
                f"there are {len(given)} rows of logits for {len(nodes)} nodes: "
                "give one row per node, in the order of the nodes."
            )
    return {
        name: _score(
            logits[part], labels[part], None if teacher_logits is None else teacher_logits[part]
        )
        for name, part in slices(graph, nodes).items()
    }


def _score(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None
) -> dict[str, float | None]:
    if len(labels) == 0:
        return {"num_nodes": 0, "accuracy": None, "teacher_accuracy": None, "agreement": None}
    figures = {
        "num_nodes": len(labels),
        "accuracy": main_score(logits, labels),
        "teacher_accuracy": None,
        "agreement": None,
    }
    if teacher_logits is not None:
        figures["teacher_accuracy"] = main_score(teacher_logits, labels)
        if labels.dim() == 2:
            logits, teacher_logits = decisions(logits), decisions(teacher_logits)
        figures["agreement"] = agreement(logits, teacher_logits)
    return figures


def _positions(kind: str, names: tuple[str, ...], which: Tensor) -> dict[str, Tensor]:
    return {f"{kind}={name}": (which == i).nonzero().view(-1) for i, name in enumerate(names)}


def _require_nodes(graph: Data, nodes: Tensor) -> None:
    outside = (nodes < 0) | (nodes >= graph.num_nodes)
    if bool(outside.any()):
        raise GraphError(
            f"node {int(nodes[outside][0])} is not in the graph: "
            f"nodes are numbered 0 to {graph.num_nodes - 1}."
        )
