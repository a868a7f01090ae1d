"""Figures of a graph: resistances in closed form, spectra two ways, and what has none."""

import pytest
import torch
from edge_lists import complete, cycle, edges, path, random_graph

from limbeck.errors import GraphError
from limbeck.graphs import connectivity
from limbeck.graphs.connectivity import far_pairs, figures_of, resistances


def test_resistances_of_a_path_and_a_cycle():
    pairs = torch.tensor([[0, 2, 0], [9, 5, 1]])
    torch.testing.assert_close(
        resistances(path(10), 10, pairs), torch.tensor([9.0, 3.0, 1.0], dtype=torch.float64)
    )
    torch.testing.assert_close(
        resistances(cycle(10), 10, pairs), torch.tensor([0.9, 2.1, 0.9], dtype=torch.float64)
    )
    with pytest.raises(GraphError, match="not connected"):
        resistances(edges([(0, 1), (2, 3)]), 4, torch.tensor([[0], [2]]))


def test_kirchhoff_index_is_the_sum_of_resistances():
    graph = torch.cat([random_graph(12, 15, 0), path(12)], dim=1)
    pairs = torch.combinations(torch.arange(12)).t()
    total = float(resistances(graph, 12, pairs).sum())
    assert figures_of(graph, 12).kirchhoff_index == pytest.approx(total)


def test_far_pairs_of_a_path():
    far = far_pairs(path(10), 10)
    assert far.shape == (2, 10)
    assert set(far[1].tolist()) == {0, 9}
    assert bool(((far[0] - far[1]).abs() >= 5).all())
    assert far_pairs(edges(complete(4)), 4).shape == (2, 0)


def test_large_graphs_by_lanczos(monkeypatch):
    graph = torch.cat([random_graph(80, 120, 0), path(80)], dim=1)
    dense = figures_of(graph, 80)
    monkeypatch.setattr(connectivity, "DENSE_NODES", 10)
    sparse = figures_of(graph, 80)
    assert sparse.algebraic_connectivity == pytest.approx(dense.algebraic_connectivity, rel=1e-6)
    assert sparse.normalised_gap == pytest.approx(dense.normalised_gap, rel=1e-6)
    assert sparse.kirchhoff_index is None


def test_figures_need_edges():
    with pytest.raises(GraphError, match="without edges"):
        figures_of(torch.empty(2, 0, dtype=torch.int64), 3)
