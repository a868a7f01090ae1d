"""Advice: probes see what a graph was made to hold, and no test label."""

import json
import math

import numpy as np
import pytest
import torch

from limbeck.cli import run
from limbeck.errors import GraphError, OptionError
from limbeck.evaluation.advise import Estimate, advise, interval
from limbeck.graphs.view import make_view
from limbeck.testing import small_graph, small_label_graph


def test_the_interval_by_hand():
    # variance 2e-4 with n - 1; (1/2 + 1/2) of it; t of one degree of freedom at 97.5 % is 12.706
    found = interval(np.array([0.01, 0.03]), 0.5)
    assert found.value == pytest.approx(0.02)
    assert found.high - found.value == pytest.approx(12.7062 * math.sqrt(2e-4), rel=1e-4)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    # more nodes held out per node trained on make it wider
    assert interval(np.array([0.01, 0.03]), 2.0).high > found.high


@pytest.mark.parametrize(
    ("low", "high", "sign"), [(0.01, 0.02, 1), (-0.02, -0.01, -1), (-0.01, 0.02, 0)]
)
def test_the_sign_of_an_estimate(low, high, sign):
    assert Estimate((low + high) / 2, low, high).sign == sign


def noisy_features() -> object:
    """Classes that edges show and features hardly do."""
    graph = small_graph(per_class=60)
    graph.x = graph.x + 3 * torch.randn(graph.x.shape, generator=torch.Generator().manual_seed(0))
    return graph


def no_edges() -> object:
    """Classes that features show, without an edge."""
    graph = small_graph(per_class=60)
    graph.edge_index = graph.edge_index[:, :0]
    return graph


def test_neighbours_matter_where_only_edges_show_the_class():
    advice = advise(noisy_features(), repeats=4)
    assert advice["neighbours"].sign == 1
    assert advice["labels around"].sign == 1
    assert advice["gap: inductive"].value > advice["gap: cold-start"].value
    assert advice.accuracy["teacher"] > advice.accuracy["mlp"]
    assert advice.num_train + advice.num_held_out == 144  # 80 % of 180 nodes


def test_without_edges_nothing_but_the_features_matters():
    advice = advise(no_edges(), repeats=4)
    assert advice["features"].sign == 1
    assert advice["neighbours"].sign == 0
    assert abs(advice["gap: transductive"].value) < 0.1
    assert advice["labels around"].value <= 0
    assert len(advice.findings) == 10
    assert all(finding.sentence.endswith(".") for finding in advice.findings)


def test_it_is_the_same_again_and_test_labels_change_nothing():
    graph = noisy_features()
    view = make_view(graph, "transductive", 0)
    first = advise(graph, repeats=2)
    test = view.nodes[view.test_observed]
    # shifted classes of test nodes leave the rule's draw of them alone: it is given as masks
    for name, part in (("train", view.train), ("val", view.val), ("test", view.test_observed)):
        mask = torch.zeros(graph.num_nodes, dtype=torch.bool)
        graph[f"{name}_mask"] = mask.index_fill_(0, view.nodes[part], True)
    graph.info = type(graph.info)(**{**vars(graph.info), "split": "fixed"})
    graph.y[test] = (graph.y[test] + 1) % 3
    assert advise(graph, repeats=2).accuracy == first.accuracy


def test_wrong_requests():
    with pytest.raises(OptionError, match="repeats"):
        advise(small_graph(), repeats=1)
    with pytest.raises(GraphError, match="several labels"):
        advise(small_label_graph(), repeats=2)


def test_the_command_prints_one_json_document(capsys, monkeypatch):
    monkeypatch.setattr("limbeck.evaluation.advise.EPOCHS", 5)
    assert run(["profile", "digits", "--advise", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = [finding["name"] for finding in document["probes"]["findings"]]
    assert names[:2] == ["pays", "pays on new nodes"]
    assert names[-1] == "gap: cold-start"
    assert 0 < document["probes"]["accuracy"]["teacher"] <= 1
