"""Slices of a graph of six nodes, by hand.

  1 ─ 2      labels  0 a, 1 a, 2 b, 3 a, 4 b, 5 none
   \\ /
3 ─ 0 ─ 5    4 has a loop only; the edge 0-3 is stored twice
"""

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from limbeck.errors import GraphError, InputError
from limbeck.evaluation.slices import score_slices, slices
from limbeck.graphs.info import GraphInfo

A, B = 0, 1


@pytest.fixture
def graph() -> Data:
    once = torch.tensor([[0, 0, 0, 1, 0], [1, 2, 3, 2, 5]])
    extra = torch.tensor([[4, 0, 3], [4, 3, 0]])
    edge_index = torch.cat([to_undirected(once), extra], dim=1)
    graph = Data(x=torch.eye(6), edge_index=edge_index, y=torch.tensor([A, A, B, A, B, -1]))
    graph.info = GraphInfo("six", "by hand", "random", ("a", "b"), np.arange(6))
    return graph


def test_slices_by_hand(graph: Data) -> None:
    found = slices(graph, torch.arange(6))

    assert {name: part.tolist() for name, part in found.items()} == {
        "degree=0": [4],
        "degree=1-2": [1, 2, 3, 5],
        "degree=3-5": [0],
        "degree=6-10": [],
        "degree=11+": [],
        "homophily=[0, 0.25)": [2],  # b between two a
        "homophily=[0.25, 0.5)": [],
        "homophily=[0.5, 0.75)": [0, 1],  # 2 of 3 (node 5 does not count), 1 of 2
        "homophily=[0.75, 1]": [3],
        "homophily=no labelled neighbour": [4, 5],
        "class=a": [0, 1, 3],
        "class=b": [2, 4],
    }


def test_slices_are_positions_in_the_given_nodes(graph: Data) -> None:
    found = slices(graph, torch.tensor([4, 0, 2]))

    assert found["degree=0"].tolist() == [0]
    assert found["degree=3-5"].tolist() == [1]
    assert found["class=b"].tolist() == [0, 2]


@pytest.mark.parametrize("neighbors", [1, 2, 3, 5, 6, 10, 11, 30])
def test_degree_slices_begin_where_their_names_say(neighbors: int) -> None:
    star = torch.stack([torch.arange(1, neighbors + 1), torch.zeros(neighbors).long()])
    graph = Data(edge_index=star, y=torch.zeros(neighbors + 1).long(), num_nodes=neighbors + 1)
    graph.info = GraphInfo("star", "by hand", "random", ("a",), np.arange(neighbors + 1))

    found = slices(graph, torch.tensor([0]))

    (name,) = [n for n, part in found.items() if n.startswith("degree=") and len(part)]
    low, _, high = name.removeprefix("degree=").rstrip("+").partition("-")
    assert int(low) <= neighbors <= int(high or 30)


def test_degree_counts_messages_that_arrive(graph: Data) -> None:
    graph.edge_index = torch.tensor([[0, 1], [2, 2]])  # 0 and 1 send, 2 receives

    found = slices(graph, torch.arange(6))

    assert found["degree=1-2"].tolist() == [2]
    assert found["degree=0"].tolist() == [0, 1, 3, 4, 5]


def test_score_slices_by_hand(graph: Data) -> None:
    nodes = torch.tensor([4, 0, 2, 1])  # b a b a
    student = torch.eye(2)[[B, A, A, A]]
    teacher = torch.eye(2)[[A, A, A, B]]

    scores = score_slices(graph, nodes, student, teacher)

    assert scores["class=b"] == {
        "num_nodes": 2,
        "accuracy": 0.5,  # node 4 right, node 2 wrong
        "teacher_accuracy": 0.0,
        "agreement": 0.5,  # on node 2
    }
    assert scores["degree=0"]["accuracy"] == 1.0
    assert scores["degree=1-2"] == {
        "num_nodes": 2,
        "accuracy": 0.5,
        "teacher_accuracy": 0.0,
        "agreement": 0.5,
    }
    assert scores["degree=11+"] == {
        "num_nodes": 0,
        "accuracy": None,
        "teacher_accuracy": None,
        "agreement": None,
    }


def test_score_slices_without_teacher(graph: Data) -> None:
    scores = score_slices(graph, torch.tensor([0]), torch.eye(2)[[A]])

    assert scores["class=a"] == {
        "num_nodes": 1,
        "accuracy": 1.0,
        "teacher_accuracy": None,
        "agreement": None,
    }


def test_refuses_an_unlabelled_node(graph: Data) -> None:
    with pytest.raises(GraphError, match="node 5 has no label"):
        score_slices(graph, torch.tensor([0, 5]), torch.eye(2))


@pytest.mark.parametrize("node", [-1, 6])
def test_refuses_a_node_outside_the_graph(graph: Data, node: int) -> None:
    with pytest.raises(GraphError, match=f"node {node} is not in the graph"):
        slices(graph, torch.tensor([0, node]))


def test_refuses_logits_of_other_nodes(graph: Data) -> None:
    with pytest.raises(InputError, match="2 rows of logits for 1 nodes"):
        score_slices(graph, torch.tensor([0]), torch.eye(2))
    with pytest.raises(InputError, match="2 rows of logits for 1 nodes"):
        score_slices(graph, torch.tensor([0]), torch.eye(2)[:1], torch.eye(2))
