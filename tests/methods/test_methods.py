"""Methods: the battery over everything registered, and each against its equations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import TeacherError
from limbeck.evaluation.distill import distill
from limbeck.graphs.view import make_view
from limbeck.methods import make_method
from limbeck.methods.losses import soft_target_loss
from limbeck.registry import METHODS
from limbeck.teachers import knowledge_from
from limbeck.testing import check_method, small_graph
from limbeck.testing.methods import same_weights

SMALL = {"hidden_channels": 16, "max_epochs": 5, "batch_size": 32, "dropout": 0.2}


# the battery's graphs are too small for positions of 64 values; tables are propagated whole
FITTING = {
    "nosmog": {"encoding": "spectral", "dim": 4},
    "rbm": {"pretrain_epochs": 2},
    "moe": {"pretrain_epochs": 2},
    "fmlp-o": {"batch_size": None},
    "fmlp-s": {"batch_size": None},
}


@pytest.mark.parametrize("name", METHODS)
def test_conforms(name):
    check_method(make_method(name, **{**SMALL, **FITTING.get(name, {})}))


def test_glnn_with_labels_conforms():
    check_method(make_method("glnn", "small-graph", label_weight=0.3, temperature=2.0, **SMALL))


def test_soft_target_loss_by_hand():
    # teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2)
    teacher = torch.log(torch.tensor([[3.0, 1.0]]))
    student = torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(soft_target_loss(student, teacher)) == pytest.approx(expected, abs=1e-6)
    two = soft_target_loss(student.repeat(2, 1), teacher.repeat(2, 1))
    assert float(two) == pytest.approx(expected, abs=1e-6)  # a mean over nodes, not a sum
    # at temperature 2 the teacher is (√3, 1) normalised, and the loss is multiplied by 4
    p = math.sqrt(3) / (math.sqrt(3) + 1)
    tempered = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert float(soft_target_loss(student, teacher, 2.0)) == pytest.approx(tempered, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 5.0))
def test_soft_target_loss_is_a_divergence(seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, 6, 4, generator=generator)
    assert float(soft_target_loss(student, teacher, temperature)) >= -1e-6
    assert float(soft_target_loss(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-6)
    shifted = soft_target_loss(student + 3.0, teacher - 1.0, temperature)
    torch.testing.assert_close(shifted, soft_target_loss(student, teacher, temperature))


def test_glnn_with_all_weight_on_labels_is_the_plain_mlp():
    view = make_view(small_graph(), "transductive", 0)
    logits = knowledge_from(torch.randn(120, 3))
    mlp = distill(view, None, make_method("mlp", "x", **SMALL))
    glnn = distill(view, logits, make_method("glnn", "x", label_weight=1.0, **SMALL))
    assert same_weights(mlp, glnn)


def test_glnn_learns_what_a_perfect_teacher_says():
    graph = small_graph()
    view = make_view(graph, "transductive", 0)
    perfect = 8.0 * torch.nn.functional.one_hot(graph.y, 3).float()
    run = distill(view, knowledge_from(perfect), "glnn", 0, dropout=0.0, max_epochs=100)
    plain = distill(view, None, "mlp", 0, dropout=0.0, max_epochs=100)
    student = run.scores["student"]
    assert student["test_accuracy"] > plain.scores["student"]["test_accuracy"]
    assert student["agreement"] == pytest.approx(student["test_accuracy"])
    assert run.scores["teacher"]["test_accuracy"] == 1.0


def test_a_method_that_needs_a_teacher_says_so():
    view = make_view(small_graph(), "transductive", 0)
    with pytest.raises(TeacherError, match="method 'glnn' learns from a teacher: give one"):
        distill(view, None, "glnn")
