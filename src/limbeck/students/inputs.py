"""What a student reads of a node, and how it says so."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch_geometric.utils import remove_self_loops

from limbeck.graphs.adjacency import plain_adjacency
from limbeck.graphs.label_propagation import propagated_labels
from limbeck.graphs.positions import PositionOptions, Positions, Rule, extend, positions_of
from limbeck.graphs.sparse import csr_tensor, take_rows
from limbeck.graphs.view import View


@dataclass(frozen=True)
class InputSpec:
    """Declaration of one node input; batching, export, runtime and server follow from it.

    Args:
        name: ``"x"``: the node's features; ``"position"``: its positional encoding;
            ``"bands"``: what the bands of a graph transform say of it; ``"neighbors"``: ids of
            known nodes that it has edges to, as many as there are; ``"graph"``: the graph around
            it, for a student that is itself a GNN.
        width: Number of values per node; of ``"neighbors"`` and ``"graph"`` the number of nodes
            that can be named.
        dtype: Type of the values on the wire and in ONNX; ``"int64"`` for ``"neighbors"`` and
            ``"graph"``.
    """

    name: str
    width: int
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class Surroundings:
    """A graph and some of its nodes: what a student reads that is itself a GNN.

    Args:
        x: Features of all nodes of the graph, ``[N, F]``, float32, dense or ``torch.sparse_csr``.
        edge_index: Its edges, int64 ``[2, E]``, or what :meth:`limbeck.teachers.GNN.prepare` made
            of them.
        nodes: The nodes that are asked about, int64 ``[B]``.
    """

    x: Tensor
    edge_index: Tensor
    nodes: Tensor


@dataclass(frozen=True)
class NodeInputs:
    """The inputs of ``B`` nodes.

    Args:
        x: Features ``[B, F]``, float32, dense or ``torch.sparse_csr``.
        position: Positional encodings ``[B, d]``, float32, or ``None``.
        neighbors: Edges to observed nodes, ``torch.sparse_csr`` ``[B, observed]``, float32, or
            ``None``. A value is the weight of an edge; a row may be empty.
        bands: What the bands of a graph transform say of the nodes, ``[B, w]``, float32. A student
            that reads bands and gets ``None`` answers from the features alone.
        graph: The graph around the nodes, whose rows ``graph.nodes`` are those of ``x``.
    """

    x: Tensor
    position: Tensor | None = None
    neighbors: Tensor | None = None
    bands: Tensor | None = None
    graph: Surroundings | None = None

    def __len__(self) -> int:
        return int(self.x.shape[0])

    @property
    def position_width(self) -> int:
        """Width ``d`` of the positional encodings, 0 where there are none."""
        return 0 if self.position is None else int(self.position.shape[1])

    def take(self, index: Tensor) -> NodeInputs:
        """Return the inputs of the nodes ``index`` (int64 ``[b]``), in that order."""
        position = None if self.position is None else self.position[index]
        neighbors = None if self.neighbors is None else take_rows(self.neighbors, index)
        bands = None if self.bands is None else self.bands[index]
        graph = self.graph
        if graph is not None:
            graph = replace(graph, nodes=graph.nodes[index])
        return NodeInputs(take_rows(self.x, index), position, neighbors, bands, graph)


@dataclass(frozen=True)
class ViewInputs:
    """The inputs of all nodes of a view, as a student would get them in each condition.

    Args:
        observed: Of the observed nodes.
        unseen: Of the unseen nodes when they arrive with their edges.
        isolated: Of the unseen nodes when they arrive without edges.
        unknown_edges: How many edges of each unseen node lead to another one and are therefore
            left out of ``unseen.neighbors``, int64 ``[unseen]``; ``None`` without ``neighbors``.
    """

    observed: NodeInputs
    unseen: NodeInputs
    isolated: NodeInputs
    unknown_edges: Tensor | None = None

    def without_edges(self, nodes: Tensor) -> NodeInputs | None:
        """The inputs that observed nodes would have if they arrived without edges, as new ones do.

        Args:
            nodes: Observed nodes, int64 ``[B]``.

        Returns:
            Features, a position of zeros and an empty row of neighbours, as far as the student
            reads them; ``None`` for one that reads the graph around a node.
        """
        there = self.observed.take(nodes)
        if there.graph is not None or self.isolated.bands is not None:
            return None
        position, neighbors = there.position, there.neighbors
        if position is not None:
            position = torch.zeros_like(position)
        if neighbors is not None:
            neighbors = no_neighbors(len(nodes), int(neighbors.shape[1]))
        return NodeInputs(there.x, position, neighbors)


def inputs_of(
    view: View,
    positions: PositionOptions | None = None,
    *,
    labels: bool = False,
    rule: Rule = "mean-observed",
    neighbors: bool = False,
    self_loops: bool = False,
) -> ViewInputs:
    """Build the inputs of a view's nodes; everything learnt comes from the observed graph.

    Args:
        view: What may be seen.
        positions: Which positional encoding the student reads beside ``x``; ``None`` for none.
        labels: Whether it reads propagated training labels, too. They are the last columns of the
            position.
        rule: How a new node gets those labels from its neighbours.
        neighbors: Whether it reads the ids of a node's neighbours; see :func:`neighbor_rows`.
        self_loops: Whether an observed node is a neighbour of itself.
    """
    x = view.everything.x
    unseen = take_rows(x, torch.arange(view.num_observed, len(view.nodes)))
    parts = [] if positions is None else [positions_of(view, positions)]
    if labels:
        spread = propagated_labels(view)
        arriving = extend(spread, view, rule=rule)
        parts.append(Positions(spread, arriving, torch.zeros_like(arriving)))
    if not parts:
        new = NodeInputs(unseen)
        built = ViewInputs(NodeInputs(view.observed.x), new, new)
    else:
        built = ViewInputs(
            NodeInputs(view.observed.x, torch.cat([part.observed for part in parts], dim=1)),
            NodeInputs(unseen, torch.cat([part.unseen for part in parts], dim=1)),
            NodeInputs(unseen, torch.cat([part.isolated for part in parts], dim=1)),
        )
    return _with_neighbors(built, view, self_loops) if neighbors else built


def neighbor_rows(
    edge_index: Tensor, num_nodes: int, num_known: int, *, self_loops: bool = False
) -> Tensor:
    """Each node's row of the adjacency, over the columns of known nodes.

    A neighbour of a node is the source of an edge into it, as for every teacher of ours. Edges that
    occur twice count once, and the graph's own self-loops not at all.

    Args:
        edge_index: int64 ``[2, E]``.
        num_nodes: Number of nodes ``N``.
        num_known: Number of nodes that have a column; they come first. Edges from others are left
            out.
        self_loops: Give each known node an edge to itself.

    Returns:
        ``torch.sparse_csr`` ``[N, num_known]`` of ones, the columns of a row in ascending order.
    """
    edges, _ = remove_self_loops(edge_index)
    if self_loops:
        edges = torch.cat([edges, torch.arange(num_known).expand(2, -1)], dim=1)
    square = plain_adjacency(edges[:, edges[0] < num_known], num_nodes)
    ones = torch.ones_like(square.values())
    return csr_tensor(square.crow_indices(), square.col_indices(), ones, (num_nodes, num_known))


def no_neighbors(num_nodes: int, num_known: int) -> Tensor:
    """The rows of ``num_nodes`` nodes without edges, ``torch.sparse_csr`` ``[N, num_known]``."""
    start = torch.zeros(num_nodes + 1, dtype=torch.int64)
    return csr_tensor(start, start[:0], torch.empty(0), (num_nodes, num_known))


def stack_rows(above: Tensor, below: Tensor) -> Tensor:
    """One CSR matrix above another of the same width."""
    start = torch.cat([above.crow_indices(), below.crow_indices()[1:] + above.crow_indices()[-1]])
    return csr_tensor(
        start,
        torch.cat([above.col_indices(), below.col_indices()]),
        torch.cat([above.values(), below.values()]),
        (len(above) + len(below), int(above.shape[1])),
    )


def _with_neighbors(inputs: ViewInputs, view: View, self_loops: bool) -> ViewInputs:
    """The same inputs with rows of the adjacency, all of them over the observed nodes."""
    known, total = view.num_observed, len(view.nodes)
    new = torch.arange(known, total)
    edges = view.everything.edge_index[:, view.everything.edge_index[1] >= known]
    arriving = take_rows(neighbor_rows(edges, total, known), new)
    all_edges = take_rows(neighbor_rows(edges, total, total), new)
    observed = neighbor_rows(view.observed.edge_index, known, known, self_loops=self_loops)
    return ViewInputs(
        replace(inputs.observed, neighbors=observed),
        replace(inputs.unseen, neighbors=arriving),
        replace(inputs.isolated, neighbors=no_neighbors(len(new), known)),
        all_edges.crow_indices().diff() - arriving.crow_indices().diff(),
    )
