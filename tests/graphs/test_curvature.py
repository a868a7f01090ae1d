"""Curvature: closed forms, the definition by sets, and what must not matter."""

import pytest
import torch
from edge_lists import complete, cycle, edges, random_graph

from limbeck.errors import GraphError
from limbeck.graphs.curvature import balanced_forman


def grid(n: int) -> torch.Tensor:
    right = [(n * i + j, n * i + j + 1) for i in range(n) for j in range(n - 1)]
    down = [(n * i + j, n * i + n + j) for i in range(n - 1) for j in range(n)]
    return edges(right + down)


def at(edge_index: torch.Tensor, num_nodes: int, u: int, v: int) -> float:
    found = balanced_forman(edge_index, num_nodes)
    place = ((found.edge_index[0] == u) & (found.edge_index[1] == v)).nonzero()
    return float(found.values[int(place)])


def by_definition(neighbours: list[set[int]], i: int, j: int) -> float:
    """The formula of the paper, word by word."""
    d_i, d_j = len(neighbours[i]), len(neighbours[j])
    if min(d_i, d_j) == 1:
        return 0.0

    def partners(a: int, b: int) -> list[int]:
        """For each neighbour of a alone, how many 4-cycles without diagonals it closes."""
        alone = neighbours[a] - neighbours[b] - {b}
        counts = [len((neighbours[k] & neighbours[b]) - neighbours[a] - {a}) for k in alone]
        return [count for count in counts if count > 0]

    of_i, of_j = partners(i, j), partners(j, i)
    triangles = len(neighbours[i] & neighbours[j])
    value = 2 / d_i + 2 / d_j - 2 + 2 * triangles / max(d_i, d_j) + triangles / min(d_i, d_j)
    if of_i:
        value += (len(of_i) + len(of_j)) / (max(of_i + of_j) * max(d_i, d_j))
    return value


@pytest.mark.parametrize(("n", "value"), [(3, 1.5), (4, 1.0), (5, 0.0), (6, 0.0), (9, 0.0)])
def test_cycles(n, value):
    torch.testing.assert_close(
        balanced_forman(cycle(n), n).values, torch.full((n,), value, dtype=torch.float64)
    )


@pytest.mark.parametrize("n", [3, 4, 6, 8])
def test_complete_graphs(n):
    values = balanced_forman(edges(complete(n)), n).values
    assert len(values) == n * (n - 1) // 2
    torch.testing.assert_close(values, torch.full_like(values, n / (n - 1)))


def test_inside_of_a_grid():
    assert at(grid(7), 49, 24, 25) == pytest.approx(0)


def test_inside_of_a_binary_tree():
    tree = edges(((child - 1) // 2, child) for child in range(1, 31))
    assert at(tree, 31, 1, 3) == pytest.approx(-2 / 3)


def test_complete_bipartite():
    k33 = edges((i, 3 + j) for i in range(3) for j in range(3))
    torch.testing.assert_close(
        balanced_forman(k33, 6).values, torch.zeros(9, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_bridge_of_two_cliques():
    barbell = edges([*complete(8), *complete(8, 8), (7, 8)])
    assert at(barbell, 16, 7, 8) == pytest.approx(-1.5)


def test_an_end_of_degree_one_has_none():
    star = edges((0, leaf) for leaf in range(1, 6))
    assert balanced_forman(star, 6).values.tolist() == [0.0] * 5


@pytest.mark.parametrize(("num_edges", "seed"), [(30, 0), (60, 1), (120, 2), (200, 3)])
def test_the_definition_by_sets(num_edges, seed):
    num_nodes = 25
    graph = random_graph(num_nodes, num_edges, seed)
    neighbours: list[set[int]] = [set() for _ in range(num_nodes)]
    for u, v in graph.t().tolist():
        if u != v:
            neighbours[u].add(v)
            neighbours[v].add(u)
    found = balanced_forman(graph, num_nodes)
    wanted = [by_definition(neighbours, u, v) for u, v in found.edge_index.t().tolist()]
    assert len(wanted) == sum(map(len, neighbours)) // 2
    torch.testing.assert_close(found.values, torch.tensor(wanted, dtype=torch.float64))
    assert float(found.values.min()) > -2


def test_node_order_does_not_matter():
    graph = random_graph(30, 90, 4)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(5))
    one, other = balanced_forman(graph, 30), balanced_forman(order[graph], 30)
    renamed = order[one.edge_index].sort(0).values
    place = (renamed[0] * 30 + renamed[1]).argsort()
    assert torch.equal(renamed[:, place], other.edge_index)
    torch.testing.assert_close(one.values[place], other.values)


def test_directions_repetitions_and_loops_do_not_matter():
    graph = random_graph(20, 50, 6)
    loops = torch.arange(20).expand(2, -1)
    noisy = torch.cat([graph.flip(0), loops, graph], dim=1)
    for one, other in zip(balanced_forman(graph, 20), balanced_forman(noisy, 20), strict=True):
        assert torch.equal(one, other)


def test_quantiles():
    barbell = edges([*complete(8), *complete(8, 8), (7, 8)])
    figures = balanced_forman(barbell, 16).quantiles()
    assert figures["min"] == pytest.approx(-1.5)
    assert figures["max"] == pytest.approx(8 / 7)
    nothing = balanced_forman(torch.empty(2, 0, dtype=torch.int64), 3)
    assert set(nothing.quantiles().values()) == {None}


def test_an_edge_to_nobody():
    with pytest.raises(GraphError, match="name nodes from 0 to 3"):
        balanced_forman(torch.tensor([[0], [3]]), 3)
