"""Node inputs: neighbours as rows of the adjacency over observed nodes."""

import numpy as np
import torch
from torch_geometric.data import Data

from limbeck.graphs.info import GraphInfo
from limbeck.graphs.view import make_view
from limbeck.students import NodeInputs, inputs_of
from limbeck.students.inputs import neighbor_rows, no_neighbors, stack_rows
from limbeck.testing import small_graph


def test_a_neighbour_is_the_source_of_an_edge_into_the_node() -> None:
    edge = torch.tensor([[0], [1]])  # from 0 to 1
    rows = neighbor_rows(edge, 2, 2).to_dense()
    assert torch.equal(rows, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    # as PyG's LINKX reads it: node 1 gets what node 0 is
    from torch_geometric.nn.models.linkx import SparseLinear

    layer = SparseLinear(2, 3, bias=False)
    torch.testing.assert_close(layer(edge), rows @ layer.weight)


def test_edges_that_occur_twice_count_once_and_self_loops_never() -> None:
    edges = torch.tensor([[1, 1, 0, 2, 2], [0, 0, 0, 1, 2]])
    once = neighbor_rows(torch.tensor([[1, 2], [0, 1]]), 3, 3)
    rows = neighbor_rows(edges, 3, 3)
    assert torch.equal(rows.to_dense(), once.to_dense())
    assert rows.values().tolist() == [1.0, 1.0]
    own = neighbor_rows(edges, 3, 3, self_loops=True)
    assert torch.equal(own.to_dense(), once.to_dense() + torch.eye(3))


def test_rows_reach_known_nodes_only() -> None:
    # node 3 is new: 0 and 1 point to it, it points to 1, and 4, new as well, points to it
    edges = torch.tensor([[0, 1, 3, 4], [3, 3, 1, 3]])
    rows = neighbor_rows(edges, 5, 3).to_dense()
    expected = torch.zeros(5, 3)
    expected[3, :2] = 1
    assert torch.equal(rows, expected)


def test_take_and_stack() -> None:
    dense = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    rows = neighbor_rows(dense.nonzero().t().flip(0), 3, 3)
    inputs = NodeInputs(torch.arange(3.0).unsqueeze(1), neighbors=rows)
    taken = inputs.take(torch.tensor([2, 0, 2]))
    assert taken.x.flatten().tolist() == [2.0, 0.0, 2.0]
    assert torch.equal(taken.neighbors.to_dense(), dense[[2, 0, 2]])
    whole = stack_rows(rows, no_neighbors(2, 3))
    assert torch.equal(whole.to_dense(), torch.cat([dense, torch.zeros(2, 3)]))
    assert torch.equal(stack_rows(no_neighbors(1, 3), rows).to_dense()[1:], dense)


def test_inputs_of_a_view() -> None:
    graph = small_graph()
    view = make_view(graph, "inductive", 0, unseen=0.9)
    plain, inputs = inputs_of(view), inputs_of(view, neighbors=True)
    assert plain.observed.neighbors is None
    assert plain.unknown_edges is None
    known, total = view.num_observed, len(view.nodes)
    adjacency = torch.zeros(total, total)
    source, target = view.everything.edge_index
    adjacency[target, source] = 1
    assert torch.equal(inputs.observed.neighbors.to_dense(), adjacency[:known, :known])
    assert torch.equal(inputs.unseen.neighbors.to_dense(), adjacency[known:, :known])
    assert inputs.isolated.neighbors.shape == (total - known, known)
    assert len(inputs.isolated.neighbors.values()) == 0
    assert torch.equal(inputs.unknown_edges, adjacency[known:, known:].sum(1).long())
    assert int(inputs.unknown_edges.sum()) > 0


def test_transductively_nothing_is_unseen() -> None:
    inputs = inputs_of(make_view(small_graph(), "transductive", 0), neighbors=True)
    assert inputs.unseen.neighbors.shape == (0, 120)
    assert inputs.unknown_edges.shape == (0,)


def test_an_edge_between_new_nodes_is_counted_once_for_its_receiver() -> None:
    """Of three new nodes on a path, each edge twice in the list, the middle one loses two."""
    edges = torch.tensor([[0, 1, 3, 4, 4, 5, 3], [1, 0, 4, 3, 5, 4, 4]])
    graph = Data(x=torch.eye(6), edge_index=edges, y=torch.tensor([0, 1, 0, 1, 0, 1]), num_nodes=6)
    for name, nodes in (("train", [0, 1]), ("val", [2]), ("test", [3, 4, 5])):
        graph[f"{name}_mask"] = torch.zeros(6, dtype=torch.bool)
        graph[f"{name}_mask"][nodes] = True
    graph.info = GraphInfo(
        name="path",
        source="hand",
        split="fixed",
        class_names=("a", "b"),
        node_ids=np.arange(6),
    )
    view = make_view(graph, "inductive", 0, unseen=0.999)
    inputs = inputs_of(view, neighbors=True)
    lost = dict(zip(view.nodes[view.num_observed :].tolist(), inputs.unknown_edges, strict=True))
    assert len(inputs.unseen.neighbors) == len(lost) == 2
    new = set(lost)
    for node, count in lost.items():
        others = {s for s, t in edges.t().tolist() if t == node and s in new}
        assert int(count) == len(others)
