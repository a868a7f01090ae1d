"""RbM and its control: the losses of an epoch, conversion in the middle of training, options."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.errors import OptionError, TeacherError
from limbeck.evaluation.distill import distill
from limbeck.graphs.view import make_view
from limbeck.methods.experts import (
    ExpertLessons,
    ExpertOptions,
    sharpened_target_loss,
    whole_batches,
)
from limbeck.methods.losses import soft_target_loss
from limbeck.methods.moe import MixtureOfExperts
from limbeck.methods.rbm import RoutingByMemory
from limbeck.students import MLP, NodeInputs, inputs_of
from limbeck.students.experts import Routing, Trace
from limbeck.students.rbm import RbM
from limbeck.teachers import knowledge_from
from limbeck.testing import check_method, small_graph
from limbeck.training import Checkpoint, seeded

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
    # p = (9/10, 1/10) and τ = 1/2: the targets are p² = (0.81, 0.01), both sides divided by τ
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


class Unrouted(MLP):
    """A student that has nothing to route."""

    def trace(self, inputs):
        return Trace(self(inputs), [], self.hidden(inputs))


def test_an_epoch_is_one_step_on_the_sum_over_its_batches() -> None:
    view = make_view(small_graph(), "transductive", 0)
    knowledge = knowledge_from(random_teacher()).fitted(view).knowledge
    student, known, y = Unrouted(12, 8, 3), inputs_of(view).observed, view.observed.y

    def auxiliary_loss(routings: list[Routing]) -> torch.Tensor:
        return torch.tensor(10.0)

    method = rbm(label_weight=0.25, temperature=1.5, batch_size=50)
    arguments = (student, known, view, knowledge, auxiliary_loss)
    (loss,) = ExpertLessons(method, *arguments).epoch(0)
    logits, log_teacher = student(known), F.log_softmax(knowledge.logits, dim=1)
    expected = torch.zeros(())
    assert len(view.train) == 72
    for nodes in (view.train[:50], view.train[50:]):
        expected = expected + 0.25 * F.cross_entropy(logits[nodes], y[nodes]) + 10
    for nodes in torch.arange(120).split(50):
        soft = sharpened_target_loss(logits[nodes], log_teacher[nodes], 1.5)
        # a mean within the batch, a sum over batches; the auxiliary loss is not weighted
        expected = expected + 0.75 * soft + 10
    torch.testing.assert_close(loss, expected)
    # a step per batch: 72 and 120 nodes cut to whole batches of 50
    by_batch = ExpertLessons(method.replace(steps="batch"), *arguments)
    assert len(list(by_batch.epoch(0))) == 1 + 2


# -- conversion in training ----------------------------------------------------------------


def test_conversion_happens_once_and_earlier_scores_do_not_count(monkeypatch) -> None:
    conversions = []
    convert = RbM.convert

    def spy(student: RbM, inputs: NodeInputs) -> None:
        assert not any(bool(layer.memory.any()) for layer in student.layers)
        conversions.append(len(inputs))
        convert(student, inputs)

    monkeypatch.setattr(RbM, "convert", spy)
    view = make_view(small_graph(), "inductive", 0)
    run = distill(view, knowledge_from(random_teacher()), rbm(pretrain_epochs=3, max_epochs=2))
    assert conversions == [view.num_observed]  # of observed nodes, and of nothing else
    assert len(run.history.val_score) == 5
    assert run.history.best_epoch >= 3
    assert all(layer.routed for layer in run.student.layers)


def test_without_pretraining_it_routes_from_the_start() -> None:
    view = make_view(small_graph(), "transductive", 0)
    run = distill(view, knowledge_from(random_teacher()), rbm(pretrain_epochs=0, max_epochs=1))
    assert len(run.history.val_score) == 1
    assert all(layer.routed for layer in run.student.layers)


@pytest.mark.parametrize("method", [rbm(), MixtureOfExperts(**SMALL)])
@pytest.mark.parametrize("stop_at", [2, 4])
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch, method: ExpertOptions, stop_at: int
) -> None:
    # the first stops in pretraining, the second behind the conversion
    view = make_view(small_graph(), "transductive", 0)
    knowledge = knowledge_from(random_teacher()).fitted(view).knowledge
    epoch, epochs = ExpertLessons.epoch, []

    def interrupted(*arguments):
        epochs.append(None)
        if len(epochs) == stop_at:
            raise KeyboardInterrupt
        yield from epoch(*arguments)

    def train(path: Path) -> dict[str, torch.Tensor]:
        checkpoint = Checkpoint(path, "a run", every_seconds=0.0)
        with seeded(0):
            return method.distill(view, knowledge, checkpoint=checkpoint).student.state_dict()

    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(ExpertLessons, "epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "broken")
    resumed = train(tmp_path / "broken")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


# -- what it learns ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rbm", "moe"])
def test_it_learns_what_a_perfect_teacher_says_and_nothing_from_a_shuffled_one(name: str) -> None:
    graph = small_graph()
    view = make_view(graph, "transductive", 0)
    perfect = 8.0 * F.one_hot(graph.y, 3).float()
    shuffled = perfect[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    chosen = {"rbm": RoutingByMemory, "moe": MixtureOfExperts}[name]
    method = chosen(hidden_channels=32, max_epochs=60, pretrain_epochs=10)
    accuracy = [
        distill(view, knowledge_from(logits), method).scores["student"]["test_accuracy"]
        for logits in (perfect, shuffled)
    ]
    plain = distill(view, None, "mlp", 0, dropout=0.0, max_epochs=100)
    assert accuracy[0] > plain.scores["student"]["test_accuracy"]
    assert accuracy[1] < accuracy[0] - 0.3


# -- options -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [RoutingByMemory, MixtureOfExperts])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 5, "num_experts": 5}, "'top_k' .* is 5: it must be below num_experts, 5"),
        ({"num_experts": 3}, "'top_k' .* is [34]: it must be below num_experts, 3"),
        ({"num_experts": 1}, "'num_experts' .* is 1: input should be greater"),
        ({"temperature": 0}, "'temperature'"),
        ({"kd_mode": "proper"}, "'kd_mode' .* is 'proper'"),
        ({"load_balance_weight": -1e-7}, "'load_balance_weight'"),
        ({"experts": 4}, "unknown option 'experts'"),
    ],
)
def test_options_are_checked(method, changes, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        method(**changes)


def test_a_small_coefficient_of_a_file_is_a_number() -> None:
    # YAML reads 1e-7 as text
    assert RoutingByMemory(load_balance_weight="1e-7").load_balance_weight == 1e-7


def test_more_experts_than_nodes_is_an_error() -> None:
    view = make_view(small_graph(per_class=10), "transductive", 0)
    teacher = knowledge_from(torch.randn(30, 3))
    with pytest.raises(OptionError, match="num_experts is 31, but only 30 nodes are observed"):
        distill(view, teacher, rbm(num_experts=31))


@pytest.mark.parametrize("method", [rbm(), MixtureOfExperts(**SMALL)])
def test_a_teacher_is_needed(method: ExpertOptions) -> None:
    view = make_view(small_graph(), "transductive", 0)
    with pytest.raises(TeacherError, match=f"method '{method.name}' learns from a teacher"):
        method.distill(view, None)
