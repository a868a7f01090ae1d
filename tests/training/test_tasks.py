"""What follows from a task: losses and scores by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score

from limbeck.methods.edges import label_loss
from limbeck.training.tasks import (
    ONE_CLASS,
    SEVERAL_LABELS,
    hidden_like,
    labelled_rows,
    task_of,
)

CLASSES = torch.tensor([0, -1, 2])
LABELS = torch.tensor([[1.0, 0.0], [-1.0, -1.0], [0.0, 0.0]])


def test_labels_tell_their_task():
    assert task_of(CLASSES) is ONE_CLASS
    assert task_of(LABELS) is SEVERAL_LABELS


@pytest.mark.parametrize("y", [CLASSES, LABELS])
def test_hidden_rows_are_known_and_made(y):
    assert labelled_rows(y).tolist() == [True, False, True]
    hidden = hidden_like(y, 5)
    assert hidden.shape == (5, *y.shape[1:])
    assert hidden.dtype == y.dtype
    assert not labelled_rows(hidden).any()


def test_label_loss_of_labels_by_hand():
    logits = torch.tensor([[math.log(3), 0.0], [0.0, -math.log(3)]])  # σ = 3/4, 1/2; 1/2, 1/4
    y = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    rows = [(-math.log(3 / 4) + math.log(2)) / 2, (math.log(2) + math.log(4)) / 2]
    assert float(SEVERAL_LABELS.label_loss(logits, y)) == pytest.approx(sum(rows) / 2)
    assert float(SEVERAL_LABELS.label_loss(logits, y, "sum")) == pytest.approx(sum(rows))


@pytest.mark.parametrize("task", [ONE_CLASS, SEVERAL_LABELS])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_loss_is_least_at_the_teacher(task, temperature):
    torch.manual_seed(0)
    teacher = torch.randn(6, 4)
    student = teacher.clone().requires_grad_()
    least = task.soft_loss(student, teacher, temperature)
    (gradient,) = torch.autograd.grad(least, student)
    assert float(gradient.abs().max()) < 1e-6
    for _ in range(5):
        assert task.soft_loss(teacher + torch.randn(6, 4), teacher, temperature) > least


def test_soft_loss_of_labels_is_the_binary_cross_entropy_with_probabilities():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    p, t = (student / 2).sigmoid(), (teacher / 2).sigmoid()
    by_hand = -(t * p.log() + (1 - t) * (1 - p).log()).mean() * 4
    torch.testing.assert_close(SEVERAL_LABELS.soft_loss(student, teacher, 2.0), by_hand)


@pytest.mark.parametrize("task", [ONE_CLASS, SEVERAL_LABELS])
def test_several_teachers_are_one_under_a_one_hot_attention(task):
    torch.manual_seed(0)
    student, teachers = torch.randn(5, 3), torch.randn(5, 2, 3)
    second = torch.tensor([0.0, 1.0]).expand(5, 2)
    alone = task.soft_loss(student, teachers[:, 1], 2.0)
    torch.testing.assert_close(task.mixed_soft_loss(student, teachers, second, 2.0), alone)


def test_mixed_loss_of_labels_is_that_of_the_mixed_probabilities():
    """The binary cross-entropy is linear in its target (MSKD's card, section 3.5)."""
    torch.manual_seed(0)
    student, teachers = torch.randn(5, 3), torch.randn(5, 2, 3)
    attention = torch.randn(5, 2).softmax(1)
    target = (attention.unsqueeze(2) * teachers.sigmoid()).sum(1)
    expected = F.binary_cross_entropy_with_logits(student, target)
    torch.testing.assert_close(
        SEVERAL_LABELS.mixed_soft_loss(student, teachers, attention), expected
    )


@pytest.mark.parametrize("task", [ONE_CLASS, SEVERAL_LABELS])
def test_a_mixture_averages_probabilities(task):
    torch.manual_seed(0)
    teachers, attention = torch.randn(5, 2, 3), torch.randn(5, 2).softmax(1)
    each = torch.stack([task.probabilities(teachers[:, k]) for k in range(2)], dim=1)
    expected = (attention.unsqueeze(2) * each).sum(1)
    torch.testing.assert_close(task.probabilities(task.mixture(teachers, attention)), expected)


def test_a_sure_mixture_stays_finite():
    logits = SEVERAL_LABELS.mixture(torch.full((1, 2, 2), 200.0), torch.full((1, 2), 0.5))
    assert logits.tolist() == [[200.0, 200.0]]


def test_score_of_labels_is_micro_f1():
    torch.manual_seed(0)
    logits, y = torch.randn(50, 4), (torch.rand(50, 4) < 0.3).float()
    expected = f1_score(y.numpy(), (logits > 0).numpy(), average="micro")
    assert SEVERAL_LABELS.score(logits, y) == pytest.approx(expected)
    assert SEVERAL_LABELS.score(-torch.ones(2, 3), torch.zeros(2, 3)) == 0.0


@pytest.mark.parametrize("y", [CLASSES, LABELS])
def test_batches_add_up_to_the_mean_over_training_nodes(y):
    torch.manual_seed(0)
    logits = torch.randn(3, 3 if y.dim() == 1 else 2)
    train = torch.tensor([0, 2])
    whole = label_loss(logits, torch.arange(3), y, 2)
    torch.testing.assert_close(whole, task_of(y).label_loss(logits[train], y[train]))
    parts = [label_loss(logits[[i]], torch.tensor([i]), y, 2) for i in range(3)]
    torch.testing.assert_close(sum(parts) / 3, whole)
    assert float(parts[1]) == 0.0  # a batch without a label teaches none
