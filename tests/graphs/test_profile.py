"""The profile of a graph of six nodes, by hand.

  1 ─ 2      labels  0 a, 1 a, 2 b, 3 a, 4 b, 5 none
   \\ /
3 ─ 0 ─ 5    4 has a loop only; the edge 0-3 is stored twice
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import homophily, to_undirected

import limbeck
from limbeck.errors import GraphError
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.profile import (
    DegreeProfile,
    DuplicateProfile,
    FeatureProfile,
    HomophilyProfile,
    LabelProfile,
    adjusted_homophily,
    edge_homophily,
    local_homophily,
    num_neighbors,
    profile_graph,
)
from limbeck.graphs.sparse import csr_tensor, to_csr

A, B = 0, 1


def graph_of(x: Tensor, edge_index: Tensor, y: list[int], classes: str = "ab") -> Data:
    graph = Data(x=x, edge_index=edge_index, y=torch.tensor(y))
    graph.info = GraphInfo("six", "by hand", "random", tuple(classes), np.arange(len(y)))
    return graph


def star(leaves: int) -> Tensor:
    """Node 0 joined with nodes 1 to ``leaves``, both ways."""
    return to_undirected(torch.stack([torch.zeros(leaves).long(), torch.arange(1, leaves + 1)]))


@pytest.fixture
def graph() -> Data:
    once = torch.tensor([[0, 0, 0, 1, 0], [1, 2, 3, 2, 5]])
    extra = torch.tensor([[4, 0, 3], [4, 3, 0]])
    rows = [[1, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 0], [1, 0, 0], [1, 0, 3]]
    edge_index = torch.cat([to_undirected(once), extra], dim=1)
    return graph_of(torch.tensor(rows).float(), edge_index, [A, A, B, A, B, -1])


def test_size_and_shape_by_hand(graph: Data) -> None:
    found = profile_graph(graph)

    assert (found.name, found.num_nodes, found.num_classes) == ("six", 6, 2)
    assert (found.num_edges, found.self_loops, found.duplicate_edges) == (13, 1, 2)
    assert (found.reciprocity, found.directed) == (1.0, False)
    assert (found.isolated_nodes, found.components) == (1, 2)
    assert found.largest_component_share == pytest.approx(5 / 6)
    # degrees 4, 2, 2, 1, 0, 1; the 99th percentile lies 0.95 of the way from 2 to 4
    assert found.degrees == DegreeProfile(
        zero=1, min=0, median=1.5, mean=pytest.approx(10 / 6), p99=pytest.approx(3.9), max=4
    )


def test_features_labels_and_duplicates_by_hand(graph: Data) -> None:
    found = profile_graph(graph)

    assert found.features == FeatureProfile(
        num_features=3,
        layout="dense",
        dtype="float32",
        density=pytest.approx(6 / 18),
        median_nonzeros=1,
        empty_rows=1,
    )
    assert found.labels == LabelProfile(
        counts={"a": 3, "b": 2},
        unlabelled_share=pytest.approx(1 / 6),
        largest_share=pytest.approx(3 / 5),
    )
    # features: 0 as 4, 1 as 2; neighbours: 3 as 5, but 3 has no features
    assert found.duplicates == DuplicateProfile(same_features=4, same_neighbors=2, same_both=0)


def test_homophily_by_hand(graph: Data) -> None:
    # of the labelled edges 0-1 and 0-3 join a with a, 0-2 and 1-2 join a with b
    assert profile_graph(graph).homophily == HomophilyProfile(
        edge=pytest.approx(1 / 2),
        node=pytest.approx((2 / 3 + 1 / 2 + 0 + 1) / 4),
        # a: 4 of 6 messages are from a, and a is 3/5 of the labelled nodes; b: none, clamped to 0
        edge_insensitive=pytest.approx(2 / 3 - 3 / 5),
        # 6 ends at a, 2 at b: by chance (36 + 4) / 64 = 5/8
        adjusted=pytest.approx((1 / 2 - 5 / 8) / (1 - 5 / 8)),
    )


def test_local_homophily_by_hand(graph: Data) -> None:
    found = local_homophily(graph)

    assert found[:4].tolist() == pytest.approx([2 / 3, 1 / 2, 0, 1])
    assert found[4:].isnan().all()
    assert num_neighbors(graph).tolist() == [4, 2, 2, 1, 0, 1]


def test_edge_homophily_counts_labelled_ends_only() -> None:
    edges, labels = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 3]]), torch.tensor([A, A, B, -1])

    assert edge_homophily(edges, labels) == pytest.approx(1 / 2)
    assert edge_homophily(edges[:, 2:], labels) is None


def test_direction_by_hand() -> None:
    # 0 and 1 point at each other, and 2 at 0; 3 at nobody
    edges = torch.tensor([[0, 1, 2], [1, 0, 0]])
    found = profile_graph(graph_of(torch.eye(4), edges, [A, A, B, B]))

    assert found.directed
    assert found.reciprocity == pytest.approx(2 / 3)
    assert (found.isolated_nodes, found.components, found.degrees.zero) == (1, 2, 2)
    assert any("2 of 4 nodes (50.0%) get none" in sentence for sentence in found.advice)


def test_neighbours_are_the_same_only_in_both_directions() -> None:
    # 1 and 2 get from 0 and send to 3; 4 gets from 0 alone
    edges = torch.tensor([[0, 0, 0, 1, 2], [1, 2, 4, 3, 3]])
    x = torch.ones(5, 1)

    found = profile_graph(graph_of(x, edges, [A, A, B, B, B])).duplicates

    assert found == DuplicateProfile(same_features=5, same_neighbors=2, same_both=2)


def test_isolated_nodes_are_not_twins() -> None:
    edges = torch.tensor([[0, 1], [1, 0]])

    found = profile_graph(graph_of(torch.ones(4, 2), edges, [A, A, B, B])).duplicates

    assert found == DuplicateProfile(same_features=4, same_neighbors=0, same_both=0)


def test_only_loops_are_no_edges_between_nodes() -> None:
    found = profile_graph(graph_of(torch.eye(2), torch.tensor([[0, 1], [0, 1]]), [A, B]))

    assert found.homophily == HomophilyProfile(None, None, None, None)
    assert found.reciprocity is None
    assert not found.directed
    assert any("no edges between different nodes" in sentence for sentence in found.advice)


def test_edges_between_unlabelled_nodes_have_no_homophily() -> None:
    found = profile_graph(graph_of(torch.eye(4), star(1), [A, -1, B, -1]))

    assert found.homophily == HomophilyProfile(None, None, None, None)
    assert "Homophily is not defined" in found.advice[0]


def test_one_class_at_all_ends_has_no_adjusted_homophily() -> None:
    found = profile_graph(graph_of(torch.eye(3), star(1), [A, A, B]))

    assert found.homophily.adjusted is None
    assert found.homophily.edge == 1.0


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ([[0, 2], [1, 3]], 1.0),  # every class with itself
        ([[0, 1], [2, 3]], -1.0),  # every edge across: (0 - 1/2) / (1/2)
        ([[0, 2, 0, 1], [1, 3, 2, 3]], 0.0),  # half within, half across
    ],
)
def test_adjusted_homophily_at_its_marks(edges: list[list[int]], expected: float) -> None:
    labels = torch.tensor([A, A, B, B])
    once = torch.tensor(edges)

    assert adjusted_homophily(once, labels) == pytest.approx(expected)
    assert adjusted_homophily(to_undirected(once), labels) == pytest.approx(expected)


@given(st.data())
def test_node_homophily_is_that_of_pyg_where_every_node_has_a_neighbour(
    data: st.DataObject,
) -> None:
    nodes = data.draw(st.integers(3, 10))
    ends = st.integers(0, nodes - 1)
    chords = data.draw(st.lists(st.tuples(ends, ends).filter(lambda e: e[0] != e[1]), max_size=12))
    ring = [(i, (i + 1) % nodes) for i in range(nodes)]
    edge_index = to_undirected(torch.tensor([*ring, *chords]).t())
    y = [A, B, *data.draw(st.lists(st.integers(0, 2), min_size=nodes - 2, max_size=nodes - 2))]
    graph = graph_of(torch.eye(nodes), edge_index, y, "abc")

    expected = homophily(edge_index, graph.y, method="node")

    assert profile_graph(graph).homophily.node == pytest.approx(expected, rel=1e-5)
    assert float(local_homophily(graph).mean()) == pytest.approx(expected, rel=1e-5)


@given(arrays("float32", (5, 3), elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5])))
def test_same_rows_are_those_that_are_equal_dense_or_sparse(x: np.ndarray) -> None:
    same = (x[:, None] == x[None]).all(-1) & x.any(1)
    dense = torch.from_numpy(x)

    found = profile_graph(graph_of(dense, star(4), [A, A, B, B, B]))
    sparse = profile_graph(graph_of(to_csr(dense), star(4), [A, A, B, B, B]))

    assert found.duplicates.same_features == int((same.sum(1) > 1).sum())
    assert sparse.duplicates == found.duplicates
    assert sparse.features.layout == "sparse"
    assert sparse.features.density == found.features.density
    assert sparse.features.empty_rows == found.features.empty_rows


@given(st.permutations(range(6)))
def test_profile_does_not_depend_on_the_order_of_nodes(order: list[int]) -> None:
    once = torch.tensor([[0, 0, 0, 1, 0], [1, 2, 3, 2, 5]])
    y = torch.tensor([A, A, B, A, B, -1])
    x = torch.tensor([[1.0, 0], [0, 2], [0, 2], [0, 0], [1, 0], [1, 3]])
    place = torch.tensor(order).argsort()
    plain = profile_graph(graph_of(x, to_undirected(once), y.tolist()))

    shuffled = profile_graph(graph_of(x[order], to_undirected(place[once]), y[order].tolist()))

    assert asdict(shuffled.homophily) == pytest.approx(asdict(plain.homophily))
    assert replace(shuffled, homophily=plain.homophily) == plain


def test_stored_zeros_are_no_features_and_the_graph_is_left_alone() -> None:
    # node 0 holds a stored zero in column 1
    values = torch.tensor([1.0, 0.0, 1.0])
    x = csr_tensor(torch.tensor([0, 2, 3, 3]), torch.tensor([0, 1, 0]), values, (3, 2))

    found = profile_graph(graph_of(x, star(2), [A, B, B]))

    assert found.features.median_nonzeros == 1
    assert found.features.empty_rows == 1
    assert found.duplicates.same_features == 2
    assert x.values().tolist() == [1.0, 0.0, 1.0]
    assert x.crow_indices().tolist() == [0, 2, 3, 3]


def test_json_holds_every_figure(graph: Data) -> None:
    found = profile_graph(graph)

    again = json.loads(found.to_json())

    assert again == found.to_dict()
    assert again["homophily"]["edge"] == 0.5
    assert again["labels"]["counts"] == {"a": 3, "b": 2}


def test_refuses_a_graph_with_an_edge_to_nowhere(graph: Data) -> None:
    graph.edge_index = torch.tensor([[0], [6]])

    with pytest.raises(GraphError, match="node 6"):
        profile_graph(graph)


def advice_on(graph: Data) -> str:
    return "\n".join(profile_graph(graph).advice)


def ring(nodes: int) -> Tensor:
    here = torch.arange(nodes)
    return to_undirected(torch.stack([here, (here + 1) % nodes]))


def test_advice_on_homophily_names_its_level() -> None:
    blocks = [A] * 50 + [B] * 50

    mostly = advice_on(graph_of(torch.eye(100), ring(100), blocks))
    never = advice_on(graph_of(torch.eye(100), ring(100), [A, B] * 50))

    assert "mostly share a class (adjusted homophily 0.96)" in mostly
    assert "no more often than by chance (adjusted homophily -1.00)" in never
    assert "MLP" in never


def test_advice_on_twins_empty_rows_and_isolated_nodes() -> None:
    x = torch.ones(100, 2)
    x[60:] = 0
    found = advice_on(graph_of(x, star(79), [A, B] * 50))

    assert "59 of 100 nodes (59.0%) have the features and the neighbours of another" in found
    assert "leak" in found
    assert "79 of 100 nodes (79.0%) have exactly the neighbours of another node" in found
    assert "60 of 100 nodes (60.0%) share their feature row" in found
    assert "40 of 100 nodes (40.0%) have no feature other than zero" in found
    assert "20 of 100 nodes (20.0%) are isolated" in found


def test_advice_on_labels() -> None:
    found = advice_on(graph_of(torch.eye(100), ring(100), [A] * 60 + [B] * 20 + [-1] * 20))

    assert "75% of the labelled nodes are of class 'a'" in found
    assert "The smallest class, 'b', has fewer than 50 labelled nodes (20)" in found
    assert "20.0% of the nodes have no label" in found


def test_advice_on_a_dense_matrix_of_zeros() -> None:
    sparse_rows = torch.eye(100)

    assert "stored as sparse rows" in advice_on(graph_of(sparse_rows, ring(100), [A, B] * 50))
    assert "stored as sparse rows" not in advice_on(
        graph_of(to_csr(sparse_rows), ring(100), [A, B] * 50)
    )


@pytest.mark.parametrize(
    ("name", "adjusted", "same_neighbors"),
    # adjusted homophily as in table 1 of Platonov et al. for cora
    [("cora", 0.771, 210), ("citeseer", 0.671, 587)],
)
def test_real_graphs(data_root: Path, name: str, adjusted: float, same_neighbors: int) -> None:
    found = profile_graph(limbeck.load_graph(name, data_root=data_root))

    assert found.homophily.adjusted == pytest.approx(adjusted, abs=1e-3)
    assert found.duplicates.same_neighbors == same_neighbors
    assert found.features.layout == "sparse"
