"""What a run lets a reader see: hand-worked histories, and students that are asked."""

import pytest
import torch

from limbeck.evaluation.bench import _noted
from limbeck.evaluation.calibration import reliability
from limbeck.evaluation.distill import distill
from limbeck.evaluation.metrics import expected_calibration_error
from limbeck.evaluation.slices import DEGREES
from limbeck.evaluation.visible import (
    curvature_histogram,
    diagnostics,
    layer_maps,
    reliabilities,
    training_curve,
)
from limbeck.graphs.view import make_view
from limbeck.methods import make_method
from limbeck.teachers.fit import fit_teacher
from limbeck.testing import small_graph
from limbeck.training.loop import History, seeded


@pytest.fixture(scope="module")
def view():
    return make_view(small_graph(), "inductive", 0)


@pytest.fixture(scope="module")
def teacher(view):
    return fit_teacher(view, "gcn", 0, max_epochs=3, hidden_channels=8)


def test_a_curve_keeps_its_ends_and_its_best():
    history = History([float(i) for i in range(101)], [0.123456] * 101, best_epoch=37)
    curve = training_curve(history, points=5)
    assert curve["epoch"] == [0, 25, 37, 50, 75, 100]
    assert curve["loss"] == [0, 25, 37, 50, 75, 100]
    assert curve["val_score"] == [0.1235] * 6
    assert curve["best_epoch"] == 37
    assert training_curve(History([1.0], [0.5], 0))["epoch"] == [0]
    assert training_curve(History())["epoch"] == []
    # JSON has no such numbers
    assert (
        training_curve(History([float("inf"), float("nan")], [0.5, 0.5], 0))["loss"] == [None] * 2
    )


def test_reliability_holds_what_the_calibration_error_sums():
    with seeded(0):
        logits, labels = 3 * torch.randn(200, 4), torch.randint(4, (200,))
    found = reliability(logits, labels)
    assert sum(found["count"]) == 200
    gaps = [
        n * abs(a - c)
        for n, a, c in zip(found["count"], found["accuracy"], found["confidence"], strict=True)
        if n
    ]
    assert sum(gaps) / 200 == pytest.approx(expected_calibration_error(logits, labels), abs=1e-3)
    # two sure answers, one of them right, and fourteen empty bins
    sure = reliability(torch.tensor([[9.0, -9.0], [9.0, -9.0]]), torch.tensor([0, 1]))
    assert sure["count"] == [0] * 14 + [2]
    assert sure["accuracy"] == [None] * 14 + [0.5]


def test_maps_before_and_after():
    def note(epoch):
        return {"epoch": epoch, "attention": [[epoch]], "distances": [[1]], "entropy": 0.5}

    history = History(best_epoch=12, notes=[note(0), {"epoch": 5}, note(10), note(20)])
    maps = layer_maps(history)
    assert (maps["before"]["epoch"], maps["after"]["epoch"]) == (0, 10)
    assert maps["entropy"] == [[0, 0.5], [10, 0.5], [20, 0.5]]
    assert layer_maps(History()) is None


def test_gates_of_a_student_with_two_streams(view, teacher):
    run = distill(view, teacher, "sa-mlp", 0, max_epochs=3, hidden_channels=8)
    gates = diagnostics(run)["gates"]
    assert tuple(gates["by_degree"]) == DEGREES
    assert sum(f["num_nodes"] for f in gates["by_degree"].values()) == view.num_observed
    assert sum(gates["histogram"]) == view.num_observed
    for figures in gates["by_degree"].values():
        assert (figures["share"] is None) == (figures["num_nodes"] == 0)
    trusted = reliabilities(run)
    assert sum(trusted["teacher"]["count"]) == sum(trusted["calibrated"]["count"])
    curvature = curvature_histogram(run)
    assert sum(curvature["count"]) > 0
    assert len(curvature["edges"]) == len(curvature["count"]) + 1


def test_a_plain_student_has_nothing_to_show(view, teacher):
    assert diagnostics(distill(view, teacher, "glnn", 0, max_epochs=2)) == {}


def test_notes_leave_the_student_as_it_is(view, teacher):
    method = make_method("abkd", max_epochs=12, hidden_channels=8)
    noted = _noted(method)
    assert noted.log_every > 0
    plain, told = distill(view, teacher, method, 0), distill(view, teacher, noted, 0)
    assert "layer_maps" in diagnostics(told)
    assert diagnostics(plain) == {}
    for mine, theirs in zip(
        plain.student.state_dict().values(), told.student.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)
