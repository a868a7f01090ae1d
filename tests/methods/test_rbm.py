"""RbM and its control: the losses of an epoch, conversion in the middle of training, options."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import limbeck.methods.rbm
from limbeck.errors import OptionError, TeacherError
from limbeck.evaluation.protocol import Run, distill
from limbeck.graphs.view import make_view
from limbeck.methods.experts import sharpened_target_loss, whole_batches
from limbeck.methods.losses import soft_target_loss
from limbeck.methods.moe import MixtureOfExperts
from limbeck.methods.rbm import RoutingByMemory
from limbeck.students.mlp import MLP
from limbeck.teachers import knowledge_from
from limbeck.testing import check_method, small_graph
from limbeck.training import Checkpoint, fit, seeded

SMALL = {
    "hidden_channels": 16,
    "max_epochs": 4,
    "batch_size": 32,
    "dropout": 0.2,
    "pretrain_epochs": 2,
}


def rbm(**changes: object) -> RoutingByMemory:
    return RoutingByMemory(**{**SMALL, **changes})


def random_teacher() -> torch.Tensor:
    return torch.randn(120, 3, generator=torch.Generator().manual_seed(7))


# -- the battery ---------------------------------------------------------------------------


def test_conforms() -> None:
    check_method(rbm(label_weight=0.2, temperature=1.3))


def test_conforms_with_every_other_option() -> None:
    check_method(
        rbm(
            num_layers=3,
            num_experts=5,
            top_k=2,
            norm="batch",
            input_dropout=0.1,
            input_gain=True,
            steps="batch",
            kd_mode="tempered",
            train_memory=False,
            init_scale=1.0,
        )
    )


def test_moe_conforms() -> None:
    check_method(MixtureOfExperts(**SMALL, num_experts=4, top_k=3))


# -- the loss ------------------------------------------------------------------------------


def test_sharpened_target_loss_is_the_divergence_at_temperature_one() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 4)
    log_teacher = F.log_softmax(teacher, dim=1)
    mine = sharpened_target_loss(student, log_teacher, 1.0)
    torch.testing.assert_close(mine, soft_target_loss(student, teacher))


def test_sharpened_target_loss_has_the_gradient_of_the_card() -> None:
    torch.manual_seed(0)
    student = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    log_teacher = F.log_softmax(torch.randn(6, 4, dtype=torch.float64), dim=1)
    for tau in (0.5, 1.29):
        (gradient,) = torch.autograd.grad(sharpened_target_loss(student, log_teacher, tau), student)
        target = (log_teacher / tau).exp()  # p^(1/τ), not normalised again
        weight = target.sum(1, keepdim=True)
        expected = (weight * student.detach().softmax(1) - target) / tau / 6
        torch.testing.assert_close(gradient, expected)


def test_sharpened_target_loss_by_hand_can_be_negative() -> None:
    # p = (1/2, 1/2), τ = 1/2: p^2 = 1/4 each, (log ½ - log q) / τ; q = p gives zero, and
    # q = (1, 0) for p = (9/10, 1/10) gives 2 (0.81 ln 0.9 + 0.01 (ln 0.1 + 3 + ln(1 + e^-3)) + ...)
    half = torch.full((1, 2), 0.5).log()
    assert float(sharpened_target_loss(torch.zeros(1, 2), half, 0.5)) == pytest.approx(0)
    log_teacher = torch.tensor([[0.9, 0.1]]).log()
    log_q = F.log_softmax(torch.tensor([[3.0, 0.0]]), dim=1)[0]
    by_hand = 2 * (0.81 * (log_teacher[0, 0] - log_q[0]) + 0.01 * (log_teacher[0, 1] - log_q[1]))
    loss = sharpened_target_loss(torch.tensor([[3.0, 0.0]]), log_teacher, 0.5)
    torch.testing.assert_close(loss, by_hand)
    assert float(loss) < 0


def test_batches_keep_all_nodes_but_a_single_last_one() -> None:
    nodes = torch.arange(9)
    assert [b.tolist() for b in whole_batches(nodes, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [len(b) for b in whole_batches(nodes, 6)] == [6, 3]
    assert [len(b) for b in whole_batches(nodes, None)] == [9]
    assert [len(b) for b in whole_batches(nodes[:1], 4)] == [1]


def test_an_epoch_is_one_step_on_the_sum_over_its_batches() -> None:
    view = make_view(small_graph(), "transductive", 0)
    teacher = knowledge_from(random_teacher()).fitted(view).knowledge
    student = MLPWithTrace(12, 8, 3)
    calls = []

    def auxiliary_loss(routings: list[object]) -> torch.Tensor:
        calls.append(routings)
        return torch.tensor(10.0)

    known = limbeck.methods.rbm.inputs_of(view).observed
    arguments = (student, known, view, teacher, auxiliary_loss)
    method = rbm(label_weight=0.25, temperature=1.5, batch_size=50)
    (loss,) = method.epoch_losses(*arguments)
    logits, y = student(known), view.observed.y
    log_teacher = F.log_softmax(teacher.logits, dim=1)
    train = view.train.split(50)
    expected = sum(0.25 * F.cross_entropy(logits[nodes], y[nodes]) + 10 for nodes in train)
    for nodes in torch.arange(120).split(50):
        soft = sharpened_target_loss(logits[nodes], log_teacher[nodes], 1.5)
        expected = expected + 0.75 * soft + 10  # the auxiliary loss once per batch, unscaled
    torch.testing.assert_close(loss, expected)
    assert len(calls) == len(train) + 3
    assert len(list(method.replace(steps="batch").epoch_losses(*arguments))) == len(
        train
    ) // 1 + 2 - (len(view.train) % 50 > 0 and len(view.train) > 50)


class MLPWithTrace(MLP):
    """A student that routes nothing."""

    def trace(self, inputs):
        return self(inputs), []
