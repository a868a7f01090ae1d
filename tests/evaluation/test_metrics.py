"""Figures of merit, by hand on four nodes and by their properties."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from torch import Tensor

from limbeck.errors import InputError
from limbeck.evaluation.metrics import (
    accuracy,
    agreement,
    brier_score,
    cut_consistency,
    expected_calibration_error,
    macro_f1,
    multilabel_f1,
    multilabel_roc_auc,
    roc_auc,
    score,
)

# four nodes, three classes; the third node answers 0 and is 2
PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
LOGITS = PROBS.double().log()
LABELS = torch.tensor([0, 1, 2, 2])


@st.composite
def answers(draw: st.DrawFn, num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits ``[N, C]`` and labels ``[N]``."""
    nodes = draw(st.integers(1, 12))
    classes = num_classes or draw(st.integers(2, 5))
    logits = draw(arrays("float32", (nodes, classes), elements=st.floats(-30, 30, width=32)))
    labels = draw(arrays("int64", nodes, elements=st.integers(0, classes - 1)))
    return torch.from_numpy(logits), torch.from_numpy(labels)


@st.composite
def predicted_graphs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits ``[N, C]`` and a directed ``edge_index``, with loops and repeats."""
    logits, _ = draw(answers())
    ends = st.integers(0, len(logits) - 1)
    edges = draw(st.lists(st.tuples(ends, ends), min_size=1, max_size=20))
    return logits, torch.tensor(edges).t().contiguous()


def test_score_by_hand() -> None:
    teacher = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]])  # answers 0, 0, 0, 2

    scores = score(LOGITS, LABELS, teacher)

    assert scores == {
        "accuracy": pytest.approx(3 / 4),
        # class 0: 1 hit, 1 false: 2/3; class 1: 1; class 2: 1 hit, 1 missed: 2/3
        "macro_f1": pytest.approx((2 / 3 + 1 + 2 / 3) / 3),
        "roc_auc": None,
        # confidences 0.7, 0.8, 0.5, 0.6 lie in four bins; the gaps are 0.3, 0.2, -0.5, 0.4
        "ece": pytest.approx((0.3 + 0.2 + 0.5 + 0.4) / 4),
        # rows: 0.09+0.04+0.01, 0.01+0.04+0.01, 0.25+0.09+0.64, 0.04+0.04+0.16
        "brier": pytest.approx((0.14 + 0.06 + 0.98 + 0.24) / 4),
        "agreement": pytest.approx(3 / 4),
        "num_nodes": 4,
    }


def test_score_without_teacher_has_no_agreement() -> None:
    assert score(LOGITS, LABELS)["agreement"] is None


def test_gaps_within_a_bin_cancel() -> None:
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()

    # both in one bin: half are right at confidence 0.9
    assert expected_calibration_error(logits, torch.tensor([0, 1])) == pytest.approx(0.4)


def test_confidence_on_a_bin_edge_belongs_to_the_lower_bin() -> None:
    # equal logits give exactly 0.5, the edge of two bins: with the 0.4 of above in another bin the
    # gaps add up, in one bin they would cancel
    logits = torch.tensor([[0.0, 0.0], [0.9, 0.1]])
    logits[1] = logits[1].log()

    found = expected_calibration_error(logits, torch.tensor([0, 1]), bins=2)

    assert found == pytest.approx((0.5 + 0.9) / 2)


def test_roc_auc_by_hand() -> None:
    one = torch.tensor([0.1, 0.6, 0.4, 0.9])
    logits = torch.stack([1 - one, one], dim=1).log()

    # of the four pairs only (0.4, 0.6) is in the wrong order
    assert roc_auc(logits, torch.tensor([0, 0, 1, 1])) == pytest.approx(3 / 4)


def test_roc_auc_is_not_defined_for_one_label() -> None:
    assert roc_auc(torch.zeros(3, 2), torch.ones(3, dtype=torch.int64)) is None


def test_brier_score_of_two_classes_counts_both() -> None:
    logits = torch.tensor([[0.9, 0.1], [0.4, 0.6]]).log()

    # 0.01 + 0.01 and 0.36 + 0.36... of label 0: (0.4 - 1)^2 + 0.6^2
    assert brier_score(logits, torch.tensor([0, 0])) == pytest.approx((0.02 + 0.72) / 2)


def test_macro_f1_leaves_out_classes_that_do_not_occur() -> None:
    logits = torch.eye(5)[[0, 1]]

    assert macro_f1(logits, torch.tensor([0, 1])) == 1.0


@given(answers())
def test_shares_stay_in_range(given_answers: tuple[Tensor, Tensor]) -> None:
    logits, labels = given_answers
    scores = score(logits, labels, logits)

    for name in ("accuracy", "macro_f1", "ece"):
        assert 0 <= scores[name] <= 1
    assert 0 <= scores["brier"] <= 2
    assert scores["agreement"] == 1


@given(answers(), st.randoms())
def test_scores_do_not_depend_on_the_order_of_nodes(
    given_answers: tuple[Tensor, Tensor], random: object
) -> None:
    logits, labels = given_answers
    order = list(range(len(labels)))
    random.shuffle(order)

    shuffled = score(logits[order], labels[order])

    for name, value in score(logits, labels).items():
        assert shuffled[name] == pytest.approx(value)


@given(answers(num_classes=2))
def test_scores_do_not_depend_on_which_class_is_first(
    given_answers: tuple[Tensor, Tensor],
) -> None:
    logits, labels = given_answers
    swapped = logits.flip(1), 1 - labels

    assert brier_score(*swapped) == pytest.approx(brier_score(logits, labels))
    assert roc_auc(*swapped) == pytest.approx(roc_auc(logits, labels))


def test_cut_consistency_of_hard_answers_is_the_share_of_agreeing_edges() -> None:
    one_hot = torch.eye(2)[[0, 0, 1]]
    path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])

    assert cut_consistency(one_hot, path) == pytest.approx(1 / 2)


def test_cut_consistency_of_soft_answers_by_hand() -> None:
    probs = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    both_ways = torch.tensor([[0, 1], [1, 0]])

    # Tr(Y'AY) = 2 * 0.5, Tr(Y'DY) = 1 + 0.5
    assert cut_consistency(probs, both_ways) == pytest.approx(2 / 3)
    assert cut_consistency(probs, both_ways[:, :1]) == pytest.approx(2 / 3)


def test_cut_consistency_without_edges_is_not_defined() -> None:
    assert cut_consistency(PROBS, torch.empty(2, 0, dtype=torch.int64)) is None


@given(predicted_graphs())
def test_cut_consistency_equals_the_dense_formula(graph: tuple[Tensor, Tensor]) -> None:
    logits, edge_index = graph
    edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    y = logits.double().softmax(1)
    a = torch.zeros(len(y), len(y), dtype=torch.float64)
    a.index_put_(tuple(edge_index), torch.ones(edge_index.shape[1]).double(), accumulate=True)

    expected = (y.T @ a @ y).trace() / (y.T @ torch.diag(a.sum(1)) @ y).trace()

    assert cut_consistency(y, edge_index) == pytest.approx(float(expected))


@given(predicted_graphs())
def test_cut_consistency_stays_in_range_for_directed_edges(graph: tuple[Tensor, Tensor]) -> None:
    logits, edge_index = graph

    assert 0 <= cut_consistency(logits.softmax(1), edge_index) <= 1 + 1e-9
    hard = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).double()
    same = (hard[edge_index[0]] * hard[edge_index[1]]).sum(1).mean()
    assert cut_consistency(hard, edge_index) == pytest.approx(float(same))


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        (LOGITS[:3], LABELS, r"\[4\] labels for logits of shape \[3, 3\]"),
        (LOGITS, torch.tensor([0, -1, 2, 2]), "score labelled nodes only"),
        (LOGITS, LABELS + 1, "labels lie between 1 and 3"),
        (LOGITS.log(), LABELS, "row 0 are not finite"),
        (LOGITS[:0], LABELS[:0], r"shape \[0, 3\]"),
        (LOGITS[:, :1], LABELS, "two classes"),
    ],
)
def test_refuses_what_cannot_be_scored(logits: Tensor, labels: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        accuracy(logits, labels)


def test_refuses_logits_of_other_nodes() -> None:
    with pytest.raises(InputError, match="same nodes and classes"):
        agreement(LOGITS, LOGITS[:2])


def test_refuses_a_teacher_that_is_not_finite() -> None:
    with pytest.raises(InputError, match="row 1 are not finite"):
        agreement(LOGITS, LOGITS.index_fill(0, torch.tensor([1]), float("nan")))


def test_cut_consistency_refuses_edges_of_other_nodes() -> None:
    with pytest.raises(InputError, match="from 0 to 4"):
        cut_consistency(PROBS, torch.tensor([[0], [4]]))


# -- several labels per node


MANY = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
THEIRS = torch.tensor([[2.0, 1.0, -1.0], [3.0, -1.0, -1.0], [-2.0, 2.0, -1.0]])


def test_f1_of_several_labels_by_hand() -> None:
    """Found 3, missed 1 (node 1, label 1), too many 1 (node 0, label 1)."""
    assert multilabel_f1(THEIRS, MANY, "micro") == pytest.approx(6 / 8)
    # label 0: 1; label 1: one of each, 1/2; label 2, which nobody has: 0
    assert multilabel_f1(THEIRS, MANY, "macro") == pytest.approx((1 + 0.5 + 0) / 3)


def test_roc_auc_of_several_labels_leaves_out_what_all_lack() -> None:
    # label 0: both that have it above the other, 1; label 1: (-1, 2) against 1, 1/2
    assert multilabel_roc_auc(THEIRS, MANY) == pytest.approx(0.75)
    assert multilabel_roc_auc(THEIRS, torch.zeros(3, 3)) is None


def test_score_of_several_labels_is_over_decisions() -> None:
    scores = score(THEIRS, MANY, -THEIRS)
    assert scores["accuracy"] == pytest.approx(6 / 8)
    assert scores["agreement"] == 0.0
    p = THEIRS.double().sigmoid()
    assert scores["brier"] == pytest.approx(float(2 * (p - MANY).square().mean()))
    assert scores["num_nodes"] == 3


@pytest.mark.parametrize(
    ("labels", "message"),
    [(MANY[:2], "give each label of each row"), (MANY - 1, "ones and zeros")],
)
def test_labels_that_cannot_be_scored(labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score(THEIRS, labels)
