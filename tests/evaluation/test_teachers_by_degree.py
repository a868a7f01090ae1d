"""Which teacher is right where: each figure against planted answers."""

import json
import math

import pytest
import torch

from limbeck.errors import OptionError
from limbeck.evaluation.distill import distill
from limbeck.evaluation.teachers_by_degree import (
    DEGREES,
    accuracies,
    attention_by_degree,
    degree_bucket,
    gain_by_degree,
    spearman,
    teachers_by_degree,
)
from limbeck.graphs.view import make_view
from limbeck.teachers import Teacher
from limbeck.teachers.gcn import GCN
from limbeck.testing import small_graph
from limbeck.training.loop import seeded

SMALL = {"hidden_channels": 16, "num_layers": 3, "max_epochs": 4}


def test_buckets():
    degree = torch.tensor([0, 1, 2, 3, 4, 5, 8, 9, 1000])
    assert degree_bucket(degree).tolist() == [0, 1, 2, 3, 3, 4, 4, 5, 5]
    figures = accuracies(torch.tensor([1, 1, 0, 1, 0, 0, 0, 1, 1]).bool(), degree_bucket(degree))
    assert figures["accuracy"] == pytest.approx(5 / 9)
    assert list(figures["by_degree"]) == list(DEGREES)
    assert figures["by_degree"]["3-4"] == 0.5
    assert accuracies(torch.tensor([True]), torch.tensor([0]))["by_degree"]["9+"] is None


def test_spearman_by_hand():
    assert spearman(torch.tensor([1.0, 2.0, 30.0]), torch.tensor([5, 6, 7])) == pytest.approx(1)
    assert spearman(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([5, 6, 7])) == pytest.approx(-1)
    # ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * 4 / (4 * 15)
    values = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([20, 10, 40, 30])
    assert spearman(*values) == pytest.approx(0.6)
    assert spearman(torch.ones(4), torch.arange(4)) is None


def planted(num_nodes=300):
    """Degrees, and answers of a shallow and a deep teacher: each right on its own half."""
    degree = torch.arange(num_nodes) // 25 + 1
    deep = degree > 6
    return degree, ~deep, deep


def test_a_claim_that_holds_and_one_that_does_not():
    degree, shallow, deep = planted()
    with seeded(0):
        found = gain_by_degree(deep, shallow, degree)
        assert found["rho"] > 0.8
        assert found["p"] == pytest.approx(1 / 1001)
        assert found["by_degree"]["1"] == {"gain": -1.0, "low": -1.0, "high": -1.0}
        assert found["by_degree"]["9+"]["gain"] == 1
        assert found["by_degree"]["0"] is None
        assert found["holds"]
        assert not gain_by_degree(shallow, deep, degree)["holds"]
        none = gain_by_degree(deep, deep, degree)
    assert (none["rho"], none["p"], none["holds"]) == (None, 1.0, False)


def test_interval_of_a_gain():
    degree = torch.full((400,), 7)
    deep = torch.arange(400) % 10 < 6
    shallow = torch.arange(400) % 10 > 6
    with seeded(0):
        figures = gain_by_degree(deep, shallow, degree)["by_degree"]["5-8"]
    # gains: 0.6 up, 0.3 down; the mean's deviation is sqrt((0.9 - 0.09) / 400) = 0.045
    assert figures["gain"] == pytest.approx(0.3)
    assert figures["low"] == pytest.approx(0.3 - 1.96 * 0.045, abs=0.015)
    assert figures["high"] == pytest.approx(0.3 + 1.96 * 0.045, abs=0.015)


def test_attention_that_follows_degree():
    degree, shallow, deep = planted()
    right = torch.stack([shallow, deep], dim=1)
    follows = torch.where(right, 0.9, 0.1)
    with seeded(0):
        found = attention_by_degree(follows, right, [2, 4], degree)
        assert found["holds"]
        assert found["agreement"] == 1
        assert found["chance"] == 0.5
        assert found["by_degree"]["1"]["depth"] == pytest.approx(0.9 * 2 + 0.1 * 4)
        entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
        assert found["entropy"] == pytest.approx(entropy, abs=1e-5)
        flat = attention_by_degree(torch.full_like(follows, 0.5), right, [2, 4], degree)
        assert flat["entropy"] == pytest.approx(1)
        assert flat["rho"] is None
        assert flat["agreement"] == 0.5  # a tie is shared: chance
        assert not flat["holds"]
        unknown = attention_by_degree(follows, right, [2, None], degree)
        assert unknown["rho"] is None
        agreed = attention_by_degree(follows, torch.ones_like(right), [2, 4], degree)
        assert agreed["agreement"] is None
        assert not agreed["holds"]


@pytest.fixture(scope="module")
def run():
    view = make_view(small_graph(), "transductive", 0)
    teachers = []
    for depth in (2, 3):
        with seeded(depth):
            module = GCN(view.num_features, 12, view.num_classes, depth)
        teacher = Teacher(module, f"gcn{depth}").fitted(view)
        teachers.append(teacher)
    return distill(view, teachers, "mskd", **SMALL)


def test_the_report_of_a_run(run):
    report = teachers_by_degree(run)
    json.dumps(report)
    assert report["num_nodes"] == sum(report["degree"].values()) == len(run.view.test_observed)
    y = run.view.everything.y[run.view.test_observed]
    for figures, scores in zip(report["teachers"], run.committee_scores, strict=True):
        assert figures["name"] == scores["name"]
        assert figures["accuracy"] == pytest.approx(scores["test_accuracy"])
    assert report["student"]["accuracy"] == pytest.approx(run.scores["student"]["test_accuracy"])
    best = max(figures["accuracy"] for figures in report["teachers"])
    assert report["together"]["best"] == pytest.approx(best)
    assert report["together"]["oracle"] >= best
    assert len(report["structure"]["teachers"]) == 2
    assert report["depth"] is None  # modules of one's own do not say how deep they are
    assert sum(report["attention"]["mean"]) == pytest.approx(1, abs=1e-5)
    assert len(y) == report["num_nodes"]
    assert teachers_by_degree(run) == report  # the same random numbers, those of the seed


def test_one_teacher_is_not_compared(run):
    alone = distill(run.view, run.teacher, "lsp", **SMALL)
    with pytest.raises(OptionError, match="where there are several"):
        teachers_by_degree(alone)


def test_a_method_without_structure(run):
    plain = distill(run.view, list(run.committee), "plain", **SMALL)
    report = teachers_by_degree(plain)
    assert report["structure"] is None
    assert report["attention"] is None
