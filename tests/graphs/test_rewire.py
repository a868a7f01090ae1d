"""Surgery: the algorithm against its definition, its guards, and no leak."""

import math

import numpy as np
import pytest
import torch
from edge_lists import barbell, complete, edges, path, random_graph
from scipy.sparse.csgraph import connected_components

from limbeck.errors import GraphError, OptionError
from limbeck.graphs.connectivity import figures_of
from limbeck.graphs.curvature import formula, simple_csr, to_scipy
from limbeck.graphs.rewire import SurgeryOptions, rewire, rewire_at_random
from limbeck.graphs.view import make_view, rewire_view
from limbeck.testing.graphs import small_graph

ADDITIONS = SurgeryOptions(loops=4, tau=20.0, removal_bound=None)


def components(edge_index: torch.Tensor, num_nodes: int) -> list[int]:
    adjacency = to_scipy(*simple_csr(edge_index, num_nodes))
    return connected_components(adjacency, directed=False)[1].tolist()


# -- the algorithm, slowly ------------------------------------------------------------------


class Slow:
    """Stochastic discrete Ricci flow by sets, everything computed anew in every step."""

    def __init__(self, edge_index: torch.Tensor, num_nodes: int) -> None:
        self.near: list[set[int]] = [set() for _ in range(num_nodes)]
        for u, v in edge_index.t().tolist():
            if u != v:
                self.link(u, v)

    def link(self, u: int, v: int) -> None:
        self.near[u].add(v)
        self.near[v].add(u)

    def cut(self, u: int, v: int) -> None:
        self.near[u].remove(v)
        self.near[v].remove(u)

    def edges(self) -> list[tuple[int, int]]:
        return [(u, v) for u, near in enumerate(self.near) for v in sorted(near) if u < v]

    def sides(self, x: int, y: int) -> tuple[set[int], set[int], set[int]]:
        near_x, near_y = self.near[x], self.near[y]
        return near_x - near_y - {y}, near_y - near_x - {x}, near_x & near_y

    def curvature(self, x: int, y: int) -> float:
        of_x, of_y, both = self.sides(x, y)
        partners = [len(self.near[k] & of_y) for k in of_x]
        others = [len(self.near[k] & of_x) for k in of_y]
        squares = sum(p > 0 for p in partners), sum(p > 0 for p in others)
        most = max([0, *partners, *others])
        return formula(len(self.near[x]), len(self.near[y]), len(both), *squares, most)

    def bridge(self, u: int, v: int) -> bool:
        self.cut(u, v)
        seen, todo = {u}, [u]
        while todo:
            new = self.near[todo.pop()] - seen
            seen |= new
            todo += new
        self.link(u, v)
        return v not in seen

    def step(self, draw: float, tau: float, bound: float):
        x, y = min(self.edges(), key=lambda edge: self.curvature(*edge))
        of_x, of_y, both = map(sorted, self.sides(x, y))
        pairs = [*((x, j) for j in of_y), *((y, i) for i in of_x)]
        for i in sorted([*of_x, *both]):
            for j in sorted([*of_y, *both]):
                twice = i in both and j in both and i > j
                if i != j and not twice and j not in self.near[i]:
                    pairs.append((i, j))
        gains = []
        before = self.curvature(x, y)
        for pair in pairs:
            self.link(*pair)
            gains.append(self.curvature(x, y) - before)
            self.cut(*pair)
        new = None
        if pairs:
            if math.isinf(tau):
                new = pairs[int(np.argmax(gains))]
            else:
                weights = np.exp(tau * (np.array(gains) - max(gains))).cumsum()
                new = pairs[int(np.searchsorted(weights, draw * weights[-1], side="right"))]
            self.link(*new)
        allowed = [
            edge
            for edge in self.edges()
            if (new is None or set(edge) != set(new))
            and self.curvature(*edge) > bound
            and not self.bridge(*edge)
        ]
        old = max(allowed, key=lambda edge: self.curvature(*edge), default=None)
        if old is not None:
            self.cut(*old)
        return new, old


@pytest.mark.parametrize("tau", [1.0, 8.0, math.inf])
@pytest.mark.parametrize(("num_edges", "bound"), [(25, 0.3), (60, 0.3), (45, -2.0), (60, None)])
def test_the_same_as_by_definition(num_edges, bound, tau):
    num_nodes, loops, seed = 24, 12, 3
    graph = random_graph(num_nodes, num_edges, seed)
    done = rewire(graph, num_nodes, SurgeryOptions(loops, tau, bound), seed)
    draws = torch.rand(loops, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    slow = Slow(graph, num_nodes)
    steps = [slow.step(d, tau, math.inf if bound is None else bound) for d in draws.tolist()]
    added = [set(new) for new, _ in steps if new is not None]
    removed = [set(old) for _, old in steps if old is not None]
    assert [set(pair) for pair in done.added.t().tolist()] == added
    assert [set(pair) for pair in done.removed.t().tolist()] == removed
    once = done.edge_index[:, done.edge_index[0] < done.edge_index[1]]
    assert [tuple(pair) for pair in once.t().tolist()] == slow.edges()


# -- the worked example ---------------------------------------------------------------------


def test_two_cliques_before_and_after():
    before = figures_of(barbell(), 16)
    assert before.algebraic_connectivity == pytest.approx(0.2042, abs=5e-5)
    assert before.kirchhoff_index == pytest.approx(106.0, abs=0.05)
    assert before.normalised_gap == pytest.approx(0.0288, abs=5e-5)
    assert before.curvature["min"] == pytest.approx(-1.5)
    done = rewire(barbell(), 16, ADDITIONS, seed=0)
    after = figures_of(done.edge_index, 16)
    assert after.num_edges == before.num_edges + 4
    assert after.algebraic_connectivity == pytest.approx(1.127, abs=5e-4)
    assert after.kirchhoff_index == pytest.approx(40.4, abs=0.05)
    assert after.normalised_gap == pytest.approx(0.150, abs=5e-4)
    assert after.curvature["min"] == pytest.approx(-0.5)


@pytest.mark.parametrize("seed", range(4))
def test_additions_never_make_it_worse(seed):
    graph, num_nodes = random_graph(20, 40, seed), 20
    graph = torch.cat([graph, path(20)], dim=1)
    one = figures_of(graph, num_nodes)
    for loops in range(1, 6):
        options = SurgeryOptions(loops=loops, tau=5.0, removal_bound=None)
        other = figures_of(rewire(graph, num_nodes, options, seed).edge_index, num_nodes)
        assert other.algebraic_connectivity >= one.algebraic_connectivity - 1e-9
        assert other.kirchhoff_index <= one.kirchhoff_index + 1e-9
        one = other


# -- what comes out -------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [0.5, -2.0])
def test_result_is_simple_symmetric_and_as_connected_as_before(bound):
    graph, num_nodes = random_graph(40, 45, 1), 40
    done = rewire(graph, num_nodes, SurgeryOptions(loops=15, tau=2.0, removal_bound=bound))
    out = done.edge_index
    assert not bool((out[0] == out[1]).any()) or bool((graph[0] == graph[1]).any())
    keys = out[0] * num_nodes + out[1]
    assert torch.equal(keys, keys.unique())
    assert torch.equal((out[1] * num_nodes + out[0]).sort().values, keys)
    assert components(out, num_nodes) == components(graph, num_nodes)
    assert done.added.shape[1] <= 15
    assert done.removed.shape[1] > 0


def test_a_tree_loses_no_edge():
    tree = edges(((child - 1) // 2, child) for child in range(1, 15))
    done = rewire(tree, 15, SurgeryOptions(loops=1, removal_bound=-2.0))
    kept = {frozenset(pair) for pair in done.edge_index.t().tolist()}
    bridges_lost = {frozenset(pair) for pair in tree.t().tolist()} - kept
    assert len(bridges_lost) <= 1  # on the cycle that the new edge closed
    assert components(done.edge_index, 15) == [0] * 15


def test_the_edge_just_added_stays():
    triangle_and_tail = edges([(0, 1), (1, 2), (2, 0), (2, 3), (3, 4)])
    done = rewire(triangle_and_tail, 5, SurgeryOptions(loops=1, tau=math.inf, removal_bound=-2.0))
    assert done.added.shape[1] == done.removed.shape[1] == 1
    assert set(done.added[:, 0].tolist()) != set(done.removed[:, 0].tolist())


def test_self_loops_stay():
    graph = torch.cat([barbell(), torch.arange(16).expand(2, -1)], dim=1)
    out = rewire(graph, 16, ADDITIONS).edge_index
    plain = rewire(barbell(), 16, ADDITIONS).edge_index
    assert torch.equal(out[:, out[0] != out[1]], plain)
    assert out[0][out[0] == out[1]].tolist() == list(range(16))


def test_a_seed_decides_and_infinite_sharpness_needs_none():
    drawn = [rewire(barbell(), 16, ADDITIONS, seed).added.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    best = SurgeryOptions(loops=4, tau=math.inf)
    assert torch.equal(rewire(barbell(), 16, best, 0)[0], rewire(barbell(), 16, best, 1)[0])


def test_complete_graph_has_nothing_to_do():
    done = rewire(edges(complete(5)), 5, SurgeryOptions(loops=10, removal_bound=None))
    assert done.added.shape == done.removed.shape == (2, 0)
    assert done.edge_index.shape == (2, 20)


def test_graph_without_edges():
    done = rewire(torch.empty(2, 0, dtype=torch.int64), 3, SurgeryOptions(loops=2))
    assert done.edge_index.shape == (2, 0)


def test_random_control_makes_as_many_edits_and_keeps_components():
    graph = random_graph(60, 80, 2)
    done = rewire_at_random(graph, 60, 10, 6, seed=0)
    known = {frozenset(pair) for pair in graph.t().tolist()}
    assert done.added.shape[1] == 10
    assert not known & {frozenset(pair) for pair in done.added.t().tolist()}
    assert {frozenset(pair) for pair in done.removed.t().tolist()} <= known
    assert done.removed.shape[1] == 6
    assert components(done.edge_index, 60) == components(graph, 60)
    again = rewire_at_random(graph, 60, 10, 6, seed=0)
    assert torch.equal(done.edge_index, again.edge_index)


def test_random_control_on_many_small_components():
    graph = torch.cat([barbell(4) + 8 * copy for copy in range(50)], dim=1)
    done = rewire_at_random(graph, 400, 100, 100)
    assert done.added.shape[1] == done.removed.shape[1] == 100
    assert components(done.edge_index, 400) == components(graph, 400)


def test_random_control_without_room():
    with pytest.raises(GraphError, match="room for 1 new edges and 1 removals"):
        rewire_at_random(path(3), 3, 2, 1)


# -- options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loops": -1}, "option 'loops' is -1"),
        ({"loops": 1.5}, "option 'loops' is 1.5"),
        ({"loops": True}, "option 'loops' is True"),
        ({"tau": 0.0}, "option 'tau' is 0.0"),
        ({"tau": math.nan}, "option 'tau' is nan"),
        ({"removal_bound": -3.0}, "option 'removal_bound' is -3.0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(OptionError, match=message):
        SurgeryOptions(**options)


def test_loops_are_a_number_or_a_share():
    assert SurgeryOptions(loops=7).num_loops(1000) == 7
    assert SurgeryOptions(loops=0.05).num_loops(101) == 6


def test_suffixes_of_names():
    assert SurgeryOptions.from_suffix("sdrf") == SurgeryOptions()
    assert SurgeryOptions.from_suffix("sdrf/20").loops == 20
    assert SurgeryOptions.from_suffix("sdrf/0.1").loops == 0.1
    for wrong in ("sdfr", "sdrf/", "sdrf/many", "sdrf/2.5", "flow/3"):
        with pytest.raises(OptionError, match="unknown suffix"):
            SurgeryOptions.from_suffix(wrong)


# -- views ----------------------------------------------------------------------------------


def test_only_the_observed_graph_is_rewired():
    view = make_view(small_graph(), "inductive", 0)
    rewired = rewire_view(view, SurgeryOptions(loops=5))
    assert not torch.equal(rewired.observed.edge_index, view.observed.edge_index)

    def of_unseen(some):
        edge_index = some.everything.edge_index
        return edge_index[:, (edge_index >= view.num_observed).any(0)]

    def among_observed(some):
        edge_index = some.everything.edge_index
        return edge_index[:, (edge_index < view.num_observed).all(0)]

    assert torch.equal(of_unseen(rewired), of_unseen(view))
    assert torch.equal(among_observed(rewired), rewired.observed.edge_index)
    assert torch.equal(rewired.observed.x, view.observed.x)
    assert torch.equal(rewired.observed.y, view.observed.y)
    assert rewired.fingerprint != view.fingerprint


def test_edges_of_unseen_nodes_change_nothing():
    graph = small_graph()
    view = make_view(graph, "inductive", 0)
    unseen = view.nodes[view.num_observed :]
    touched = torch.isin(graph.edge_index, unseen).any(0)
    other = graph.clone()
    other.edge_index = graph.edge_index[:, ~touched]
    options = SurgeryOptions(loops=5)
    one = rewire_view(view, options)
    two = rewire_view(make_view(other, "inductive", 0), options)
    assert one.fingerprint == two.fingerprint
