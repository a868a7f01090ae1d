"""A student that is itself a GNN: it answers nodes from the graph around them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.hetero import edges_for, without_edges_of
from limbeck.graphs.sparse import take_rows
from limbeck.graphs.view import View
from limbeck.students.inputs import InputSpec, NodeInputs, Surroundings, ViewInputs


class GraphNetwork(Protocol):
    """What a GNN must offer to be a student, beside being a :class:`torch.nn.Module`.

    Our teachers ``gcn``, ``gat``, ``gcnii`` and ``sage`` do.
    """

    in_channels: int
    out_channels: int

    def reset_parameters(self) -> None:
        """Put every layer back to a fresh start."""

    def prepare(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """Normalise the edges once; the result stands for ``edge_index`` in :meth:`layers`."""

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """Each layer's output by name for all nodes of a graph, first to last."""


class GNNStudent(torch.nn.Module):
    """A GNN as a student: it reads the graph around the nodes that it is asked about.

    Each pass goes over the whole of ``inputs.graph``, however few of its nodes are asked about, so
    that nodes are best asked about together; see :func:`full_batch`.

    Args:
        gnn: The network.
        num_nodes: Number of nodes of the graph that it is trained on.

    Shapes:
        - **inputs:** ``graph``: ``x`` ``[N, F]``, dense or ``torch.sparse_csr``, ``edge_index``
          int64 ``[2, E]`` or what ``gnn.prepare`` made of it, ``nodes`` int64 ``[B]``
        - **output:** logits ``[B, C]``
    """

    def __init__(self, gnn: GraphNetwork, num_nodes: int) -> None:
        super().__init__()
        self.gnn = gnn
        self.in_channels = gnn.in_channels
        self.out_channels = gnn.out_channels
        self.num_nodes = num_nodes

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The node inputs that this student reads."""
        graph = InputSpec("graph", self.num_nodes, "int64")
        return (InputSpec("x", self.in_channels), graph)

    def reset_parameters(self) -> None:
        """Put every layer of the network back to a fresh start."""
        self.gnn.reset_parameters()

    def forward(self, inputs: NodeInputs) -> Tensor:
        """Logits ``[B, C]`` of the nodes asked about.

        Raises:
            OptionError: The inputs have no ``graph``.
        """
        return self.layers(inputs)["logits"]

    def layers(self, inputs: NodeInputs) -> dict[str, Tensor]:
        """Outputs of all layers for the nodes asked about, each ``[B, .]``.

        ``"hidden1"``, ``"hidden2"``, ..., ``"logits"``, as the network names them.

        Raises:
            OptionError: The inputs have no ``graph``.
        """
        graph = self._graph(inputs)
        adj = self.gnn.prepare(graph.edge_index, len(graph.x))
        outputs = self.gnn.layers(graph.x, adj)
        return {name: take_rows(output, graph.nodes) for name, output in outputs.items()}

    def typed_layers(self, inputs: NodeInputs) -> dict[str, dict[str, Tensor]]:
        """Outputs of all layers for all nodes of all types, by layer, then by type.

        The network must be one that reads types.

        Raises:
            OptionError: The inputs have no ``graph``.
        """
        graph = self._graph(inputs)
        gnn: Any = self.gnn
        layers: dict[str, dict[str, Tensor]] = gnn.typed_layers(
            graph.x, gnn.prepare(graph.edge_index, len(graph.x))
        )
        return layers

    def _graph(self, inputs: NodeInputs) -> Surroundings:
        if inputs.graph is None:
            raise OptionError(
                "a GNN student reads the graph around a node, and the inputs have none: give "
                "'graph', with the features and edges of all nodes."
            )
        return inputs.graph

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.gnn}, num_nodes={self.num_nodes})"


def full_batch(inputs: NodeInputs) -> bool:
    """Whether a student reads these inputs all at once: one pass over a graph answers all nodes."""
    return inputs.graph is not None


def graph_inputs(view: View, gnn: GraphNetwork) -> ViewInputs:
    """What a GNN student is given of a view's nodes, edges prepared once for its network.

    Observed nodes are asked about on the observed graph; unseen ones on the full graph, and once
    more on the graph in which they have no edges.

    Args:
        view: What may be seen.
        gnn: The student's network.
    """
    known = torch.arange(view.num_observed)
    graph = view.observed
    edges = edges_for(gnn, graph)
    observed = _surrounded(gnn, graph.x, edges, known)
    if not view.has_unseen:
        # an empty graph, so that asking about nobody costs nothing
        empty = take_rows(graph.x, known[:0])
        is_typed = not isinstance(edges, Tensor)
        edges = without_edges_of(edges, 0, empty) if is_typed else edges[:, :0]
        nobody = _surrounded(gnn, empty, edges, known[:0])
        return ViewInputs(observed, nobody, nobody)
    new = torch.arange(view.num_observed, len(view.nodes))
    unseen, isolated = (
        _surrounded(gnn, graph.x, edges_for(gnn, graph), new)
        for graph in (view.everything, view.without_new_edges)
    )
    return ViewInputs(observed, unseen, isolated)


def _surrounded(gnn: GraphNetwork, x: Tensor, edge_index: Any, nodes: Tensor) -> NodeInputs:
    adj = gnn.prepare(edge_index, len(x))
    return NodeInputs(take_rows(x, nodes), graph=Surroundings(x, adj, nodes))
