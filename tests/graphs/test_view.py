"""The view: what training sees, in every setting."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import OptionError, SplitError
from limbeck.graphs.view import SETTINGS, make_view
from limbeck.testing import small_graph

CUT = ("inductive", "production", "cold-start")


@pytest.mark.parametrize("setting", CUT)
def test_the_cut_follows_the_protocol(setting):
    graph = small_graph()
    view = make_view(graph, setting, seed=3)
    test = make_view(graph, "transductive", seed=3).test_observed  # rows of the graph
    shuffled = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(3))]
    size = int(0.2 * len(test))
    assert view.nodes[view.test_unseen].tolist() == shuffled[:size].tolist()
    assert view.nodes[view.test_observed].tolist() == shuffled[size:].tolist()
    assert view.num_observed == graph.num_nodes - size
    # observed nodes stand in the order training, validation, observed test
    assert view.train.tolist() == list(range(len(view.train)))


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_unobserved_is_in_the_observed_graph(setting):
    graph = small_graph()
    view = make_view(graph, setting, seed=1)
    labelled = torch.cat([view.train, view.val])
    hidden = torch.ones(view.num_observed, dtype=torch.bool)
    hidden[labelled] = False
    assert (view.observed.y[hidden] == -1).all()
    assert torch.equal(view.observed.y[labelled], graph.y[view.nodes[labelled]])
    assert int(view.observed.edge_index.max()) < view.num_observed
    assert torch.equal(view.observed.x, graph.x[view.nodes[: view.num_observed]])
    # every edge among observed nodes is there, and no other
    observed = set(view.nodes[: view.num_observed].tolist())
    inside = {(a, b) for a, b in graph.edge_index.t().tolist() if a in observed and b in observed}
    mine = {tuple(pair) for pair in view.nodes[view.observed.edge_index].t().tolist()}
    assert mine == inside


def test_the_full_graph_is_the_given_one_in_another_order():
    graph = small_graph()
    view = make_view(graph, "inductive", seed=2)
    everything = view.everything
    assert torch.equal(everything.y, graph.y[view.nodes])
    mine = {tuple(pair) for pair in view.nodes[everything.edge_index].t().tolist()}
    assert mine == {tuple(pair) for pair in graph.edge_index.t().tolist()}


def test_a_cold_start_leaves_new_nodes_only_their_self_loops():
    graph = small_graph()
    loops = torch.arange(graph.num_nodes).expand(2, -1)
    graph.edge_index = torch.cat([graph.edge_index, loops], dim=1)
    view = make_view(graph, "cold-start", seed=0)
    source, target = view.without_new_edges.edge_index
    touched = (source >= view.num_observed) | (target >= view.num_observed)
    assert torch.equal(source[touched], target[touched])
    assert int(touched.sum()) == len(view.test_unseen)
    assert int((~touched).sum()) == view.observed.edge_index.shape[1]


def test_settings_with_the_same_cut_train_alike():
    graph = small_graph()
    prints = {make_view(graph, setting, seed=0).fingerprint for setting in CUT}
    assert len(prints) == 1
    assert make_view(graph, "transductive", seed=0).fingerprint not in prints
    assert make_view(graph, "inductive", seed=1).fingerprint not in prints


def test_the_fingerprint_ignores_what_training_cannot_see():
    graph = small_graph()
    view = make_view(graph, "inductive", seed=0)
    changed = small_graph()
    changed.x = graph.x.clone()
    changed.x[view.nodes[view.test_unseen]] += 1.0
    after = make_view(changed, "inductive", seed=0)
    assert after.fingerprint == view.fingerprint
    assert after.evaluation_fingerprint != view.evaluation_fingerprint
    changed.x[view.nodes[view.train[0]]] += 1.0
    assert make_view(changed, "inductive", seed=0).fingerprint != view.fingerprint


def test_scaling_is_learnt_from_observed_nodes_only():
    graph = small_graph()
    graph.x[:, 0] = graph.x[:, 0] * 50 + 7
    graph.info = dataclasses.replace(graph.info, scaled_columns=np.array([0]))
    view = make_view(graph, "inductive", seed=0)
    assert float(view.observed.x[:, 0].mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(view.observed.x[:, 0].std(unbiased=False)) == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(view.observed.x[:, 1], graph.x[view.nodes[: view.num_observed], 1])
    assert torch.allclose(view.scaling.apply(graph.x[view.nodes]), view.everything.x)
    noisy = graph.clone()
    noisy.x = graph.x.clone()
    noisy.x[view.nodes[view.test_unseen]] = 1e4
    assert torch.equal(make_view(noisy, "inductive", seed=0).observed.x, view.observed.x)


def test_a_constant_column_stays_finite():
    graph = small_graph()
    graph.x[:, 0] = 3.0
    graph.info = dataclasses.replace(graph.info, scaled_columns=np.array([0]))
    assert (make_view(graph, "transductive", 0).observed.x[:, 0] == 0).all()


def test_sparse_features_are_scaled_but_not_centred():
    graph = small_graph(sparse=True)
    values = graph.x.to_dense()
    values[:, 0] *= 10
    graph.x = values.to_sparse_csr()
    graph.info = dataclasses.replace(graph.info, scaled_columns=np.array([0]))
    view = make_view(graph, "transductive", 0)
    column = view.observed.x.to_dense()[:, 0]
    assert float(column.square().mean().sqrt()) == pytest.approx(1.0, abs=1e-5)
    assert bool(((column == 0) == (values[:, 0] == 0)).all())


def test_bad_options():
    graph = small_graph()
    with pytest.raises(OptionError, match="unknown setting 'inductve': did you mean 'inductive'"):
        make_view(graph, "inductve")
    with pytest.raises(OptionError, match="'unseen' is 1.5: it must lie between 0 and 1"):
        make_view(graph, "inductive", unseen=1.5)
    with pytest.raises(SplitError, match="24 test nodes: too few to leave a share of 0.01 unseen"):
        make_view(graph, "inductive", unseen=0.01)
    with pytest.raises(OptionError, match="cannot be scored as 'inductive'"):
        make_view(graph, "transductive").with_setting("inductive")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(SETTINGS))
def test_every_node_is_somewhere_exactly_once(seed, setting):
    graph = small_graph()
    view = make_view(graph, setting, seed)
    assert view.nodes.sort().values.tolist() == list(range(graph.num_nodes))
    parts = torch.cat([view.train, view.val, view.test_observed, view.test_unseen])
    assert len(parts.unique()) == len(parts) == graph.num_nodes
