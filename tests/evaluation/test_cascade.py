"""Risk and coverage by hand, and thresholds that keep what they promise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import InputError, OptionError
from limbeck.evaluation.cascade import (
    DEFERS_ALL,
    DeferGoal,
    accuracy_lower_bound,
    fit_cascade,
    risk_coverage,
    stored_teacher,
)
from limbeck.runtime.bundle import CascadeEntry
from limbeck.runtime.cascade import Cascade
from limbeck.runtime.kernel import softmax

# margins 3, 2, 2, 1: the surest is right, one of the two next, and the last
LOGITS = torch.tensor([[3.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
LABELS = torch.tensor([0, 1, 1, 1])


def confidence(margin: float) -> float:
    return 1 / (1 + np.exp(-margin))


def test_curve_by_hand():
    curve = risk_coverage(LOGITS, LABELS)
    np.testing.assert_allclose(curve.threshold, [confidence(m) for m in (3, 2, 1)], rtol=1e-6)
    assert curve.kept.tolist() == [1, 3, 4]  # the two of the same confidence come together
    assert curve.right.tolist() == [1, 2, 3]
    np.testing.assert_allclose(curve.coverage, [0.25, 0.75, 1.0])
    np.testing.assert_allclose(curve.accuracy, [1, 2 / 3, 3 / 4])


@pytest.mark.parametrize(
    ("goal", "margin", "coverage", "accuracy"),
    [
        (DeferGoal("accuracy", 0.9), 3, 0.25, 1.0),
        (DeferGoal("accuracy", 0.7), 1, 1.0, 0.75),
        (DeferGoal("coverage", 0.5), 2, 0.75, 2 / 3),
        (DeferGoal("coverage", 0.2), 3, 0.25, 1.0),
    ],
)
def test_thresholds_by_hand(goal, margin, coverage, accuracy):
    entry = fit_cascade(goal, LOGITS, LABELS, 1.0)
    assert entry.threshold == pytest.approx(confidence(margin), rel=1e-6)
    assert (entry.coverage, entry.accuracy) == (coverage, pytest.approx(accuracy))
    assert entry.together is None


def test_an_accuracy_out_of_reach_defers_every_node():
    wrong = 1 - LABELS
    teacher = torch.nn.functional.one_hot(wrong, 2).float()
    entry = fit_cascade(
        DeferGoal("accuracy", 0.9), LOGITS, torch.tensor([1, 0, 0, 0]), 1.0, teacher
    )
    assert (entry.threshold, entry.coverage, entry.accuracy) == (DEFERS_ALL, 0.0, None)
    probabilities = softmax(LOGITS.numpy(), 1.0)
    assert Cascade(entry).decide(probabilities).deferred.all()
    assert entry.together == 1.0


def test_together_counts_the_teacher_on_deferred_nodes():
    teacher = torch.nn.functional.one_hot(LABELS, 2).float()
    entry = fit_cascade(DeferGoal("coverage", 0.5), LOGITS, LABELS, 1.0, teacher)
    assert entry.together == 3 / 4  # two of three by the student, the last by the teacher


@given(
    st.lists(st.tuples(st.integers(-8, 8), st.booleans()), min_size=1, max_size=40),
    st.floats(0.05, 1.0),
    st.sampled_from(["accuracy", "coverage"]),
    st.floats(0.2, 5.0),
)
def test_the_runtime_keeps_exactly_what_was_fitted(nodes, wanted, kind, temperature):
    logits = torch.tensor([[margin / 2, 0.0] for margin, _ in nodes])
    answer = logits.argmax(1)
    right = torch.tensor([is_right for _, is_right in nodes])
    labels = torch.where(right, answer, 1 - answer)
    entry = fit_cascade(DeferGoal(kind, wanted), logits, labels, temperature)
    choice = Cascade(entry).decide(softmax(logits.numpy(), temperature))
    kept = ~choice.deferred
    assert kept.mean() == pytest.approx(entry.coverage)
    if kept.any():
        accuracy = (choice.answer[kept] == labels.numpy()[kept]).mean()
        assert accuracy == pytest.approx(entry.accuracy)
        assert entry.accuracy_lower <= entry.accuracy
        assert (entry.accuracy if kind == "accuracy" else entry.coverage) >= wanted - 1e-12
    else:
        assert kind == "accuracy"


def test_bound_by_hand():
    # all of n right: the bound p solves p^n = 0.05
    assert accuracy_lower_bound(10, 10) == pytest.approx(0.05**0.1)
    assert accuracy_lower_bound(0, 10) == 0.0


def test_stored_teacher_keeps_classes_and_gaps():
    logits = torch.tensor([[1e5, 0.0], [2.0, 5.0], [torch.nan, torch.nan]])
    stored = stored_teacher(logits, torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert stored.dtype == np.float16
    assert stored[:2].argmax(1).tolist() == [0, 1]
    assert np.isfinite(stored[:2]).all()
    assert np.isnan(stored[2]).all()


ENTRY = CascadeEntry(0.8, "accuracy", 0.9, 4, 0.5, 1.0, 0.5, None, {})


def test_known_deferred_nodes_are_answered_by_the_teacher():
    theirs = np.array([[0, -4], [np.nan, np.nan], [0, -4]], dtype=np.float16)
    probabilities = np.array([[0.3, 0.7], [0.3, 0.7], [0.1, 0.9]], dtype=np.float32)
    choice = Cascade(ENTRY, theirs).decide(probabilities, np.arange(3))
    assert choice.deferred.tolist() == [True, True, False]
    assert choice.by_teacher.tolist() == [True, False, False]
    assert choice.answer.tolist() == [0, 1, 1]
    assert choice.confidence[0] == pytest.approx(1 / (1 + np.exp(-4)), rel=1e-3)
    stale = Cascade(ENTRY, theirs).decide(probabilities, np.array([-1, 1, 2]))
    assert not stale.by_teacher.any()
    new = Cascade(ENTRY, theirs).decide(probabilities)
    assert (new.deferred.tolist(), new.by_teacher.any()) == ([True, True, False], False)
    assert not Cascade(ENTRY, theirs).decide(probabilities, np.arange(3), 0.0).deferred.any()


def test_bad_input():
    for wanted in (0.0, 1.5, float("nan")):
        with pytest.raises(OptionError, match="must be above 0 and at most 1"):
            DeferGoal("accuracy", wanted)
    with pytest.raises(InputError):
        risk_coverage(LOGITS, torch.tensor([0, 1, 2, 0]))
    with pytest.raises(OptionError, match="threshold is nan"):
        Cascade(ENTRY).decide(np.ones((1, 1), dtype=np.float32), None, float("nan"))
