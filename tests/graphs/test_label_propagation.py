"""Propagated labels as an input."""

import torch
from torch_geometric.data import Data

from limbeck.graphs.label_propagation import propagated_labels
from limbeck.graphs.view import make_view
from limbeck.students import inputs_of
from limbeck.testing import small_graph


def test_a_path_by_hand(monkeypatch) -> None:
    monkeypatch.setattr("limbeck.graphs.label_propagation.STEPS", 2)
    view = make_view(small_graph(), "transductive", 0)
    # 0 – 1 – 2, 3 alone; node 0 is trained on and has class 1
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    observed = Data(x=torch.zeros(4, 2), edge_index=edges, y=torch.tensor([1, 0, 2, 2]))
    fields = {name: getattr(view, name) for name in view.__dataclass_fields__}
    small = type(view)(**{**fields, "observed": observed, "train": torch.tensor([0])})
    # Q1: node 1 gets half of 0.1; Q2 = Q1 + A(0.1 Q1): nodes 0 and 2 get 0.1 · 0.05 from node 1
    spread = torch.zeros(4, 3)
    spread[:, 1] = torch.tensor([0.005, 0.05, 0.005, 0.0])
    expected = spread / (spread.sum(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(propagated_labels(small), expected)


def test_it_sees_training_labels_and_the_observed_graph_alone() -> None:
    graph = small_graph()
    view = make_view(graph, "inductive", 0)
    before = propagated_labels(view)
    view.observed.y[view.val] = 0
    view.everything.y[view.num_observed :] = 0
    view.everything.edge_index = view.everything.edge_index[:, :1]
    assert torch.equal(before, propagated_labels(view))
    view.observed.y[view.train] = (view.observed.y[view.train] + 1) % 3
    assert not torch.equal(before, propagated_labels(view))


def test_they_stand_behind_the_position_and_reach_new_nodes_by_their_neighbours() -> None:
    view = make_view(small_graph(), "inductive", 0)
    inputs = inputs_of(view, labels=True)
    spread = propagated_labels(view)
    assert torch.equal(inputs.observed.position, spread)
    first = view.num_observed
    source, target = view.everything.edge_index
    for node in range(first, len(view.nodes)):
        known = source[(target == node) & (source < first)]
        mean = spread[known].mean(0) if len(known) else torch.zeros(3)
        torch.testing.assert_close(inputs.unseen.position[node - first], mean)
    assert not inputs.isolated.position.any()
