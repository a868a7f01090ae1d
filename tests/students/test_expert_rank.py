"""Experts that share one map and differ by low rank."""

import pytest
import torch

from limbeck.errors import OptionError
from limbeck.graphs.sparse import to_csr
from limbeck.methods.rbm import RoutingByMemory
from limbeck.students import MLP, NodeInputs
from limbeck.students.experts import Corrections
from limbeck.students.rbm import (
    RbM,
    RbMLayer,
)
from limbeck.testing import check_method, check_student

RANKS = [{"expert_rank": 2}, {"expert_rank": 20}]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def converted(num_layers: int = 2, **options: object) -> RbM:
    student = RbM(8, 10, 3, num_layers, **options)
    student.convert(NodeInputs(torch.randn(60, 8)))
    return student


def drawn_apart(student: RbM) -> RbM:
    with torch.no_grad():
        for parameter in student.layers.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student


@pytest.mark.parametrize("options", RANKS)
@pytest.mark.parametrize("input_gain", [False, True])
def test_conversion_is_still_the_mlp_times_scale_and_gain(options, input_gain: bool) -> None:
    student = RbM(8, 10, 3, 3, init_scale=1.5, input_gain=input_gain, **options)
    inputs = NodeInputs(torch.randn(40, 8))
    mlp = MLP(8, 10, 3, 3)
    for lin, layer in zip(mlp.lins, student.layers, strict=True):
        lin.load_state_dict(layer.experts[0].state_dict())
    torch.testing.assert_close(student(inputs), mlp(inputs))  # before it
    student.convert(inputs)
    h = inputs.x
    for i, lin in enumerate(mlp.lins):
        h = 1.5 * lin((1.1 if input_gain else 1.0) * h)
        h = h if i == 2 else torch.relu(h)
    torch.testing.assert_close(student.eval()(inputs), h, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", RANKS)
def test_in_pretraining_the_corrections_are_not_touched(options) -> None:
    student = RbM(8, 10, 3, **options).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1, weight_decay=0.1)
    student(NodeInputs(torch.randn(20, 8))).square().sum().backward()
    optimizer.step()
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) != (".experts.0." in name), name


@pytest.mark.parametrize("options", RANKS)
def test_conforms(options) -> None:
    student = drawn_apart(converted(dropout=0.5, input_gain=True, norm="batch", **options))
    student.train()(NodeInputs(torch.randn(30, 8)))  # moves what follows the rows
    check_student(student, NodeInputs(torch.randn(12, 8)), 3)


def test_a_method_with_it_conforms() -> None:
    check_method(
        RoutingByMemory(
            hidden_channels=16,
            max_epochs=4,
            batch_size=32,
            dropout=0.2,
            pretrain_epochs=2,
            input_gain=True,
            **RANKS[0],
        )
    )


@pytest.mark.parametrize("options", RANKS)
def test_sparse_features_train_like_dense_ones(options) -> None:
    x = (torch.rand(40, 12) < 0.2).float()
    student = RbM(12, 8, 3, num_experts=5, top_k=2, input_gain=True, **options)
    student.convert(NodeInputs(x))
    state = {name: value.clone() for name, value in drawn_apart(student).state_dict().items()}
    outcomes = []
    for rows in (x, to_csr(x)):
        student.load_state_dict(state)
        student.zero_grad()
        logits, routings, *_ = student.train().trace(NodeInputs(rows))
        (logits.square().sum() + student.auxiliary_loss(routings, 0.1, 0.1, 0.1)).backward()
        gradients = [p.grad for p in student.parameters() if p.grad is not None]
        outcomes.append([*gradients, *(v.clone() for v in student.state_dict().values())])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", RANKS)
def test_reset_forgets_it(options) -> None:
    student = drawn_apart(converted(**options)).train()
    student(NodeInputs(torch.randn(30, 8)))
    student.reset_parameters()
    state = {name: value.clone() for name, value in student.state_dict().items()}
    fresh = RbM(8, 10, 3, **options).state_dict()
    for name, value in state.items():
        start_is_drawn = ".experts." in name or name.endswith("corrections.lower")
        assert start_is_drawn or torch.equal(value, fresh[name]), name
    student.convert(NodeInputs(torch.randn(60, 8)))  # clones again
    weights, biases = student.layers[0].written_out()
    assert torch.equal(weights, weights[:1].expand_as(weights))
    assert torch.equal(biases, biases[:1].expand_as(biases))


# -- low rank ------------------------------------------------------------------------------


@pytest.mark.parametrize("input_gain", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_low_rank_is_a_full_layer_with_its_experts_written_out(
    input_gain: bool, sparse: bool
) -> None:
    options = {"num_experts": 4, "top_k": 2, "input_gain": input_gain}
    low = drawn_apart(converted(1, expert_rank=2, **options)).layers[0].eval()
    full = RbMLayer(8, 3, **options).eval()
    full.routed = True
    weights, biases = low.written_out()
    with torch.no_grad():
        full.memory.copy_(low.memory)
        full.log_scale.copy_(low.log_scale)
        if input_gain:
            full.log_gain.copy_(low.log_gain.expand(4, 8))
        for e, expert in enumerate(full.experts):
            expert.weight.copy_(weights[e])
            expert.bias.copy_(biases[e])
    h = torch.relu(torch.randn(25, 8))
    h = to_csr(h) if sparse else h
    torch.testing.assert_close(low(h)[0], full(h)[0], rtol=1e-4, atol=1e-5)
    mine, theirs = low.written_out(), full.written_out()
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    # they do differ, by a matrix of that rank
    parts = weights - low.experts[0].weight
    assert torch.linalg.matrix_rank(parts.detach(), atol=1e-5).tolist() == [2] * 4


def test_clones_of_low_rank_part_in_training() -> None:
    student = converted(1, expert_rank=2).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        student(NodeInputs(torch.randn(40, 8))).square().sum().backward()
        optimizer.step()
    weights, _ = student.layers[0].written_out()
    assert min(float((weights[e] - weights[0]).norm().detach()) for e in (1, 2, 3)) > 1e-3


def test_a_low_rank_costs_little_more_than_one_map() -> None:
    def size(**options: object) -> int:
        return sum(p.numel() for p in RbMLayer(300, 100, 4, 3, **options).parameters())

    expected = 300 * 100 + 100 + 4 * 8 * (300 + 100) + 4 * 100 + 4 * 300 + 1
    assert size(expert_rank=8, input_gain=False) == expected
    assert size(expert_rank=8, input_gain=True) == expected + 300  # one gain for all
    assert size() == 4 * (300 * 100 + 100) + 4 * 300 + 1


def test_a_rank_is_at_least_one_and_at_most_that_of_the_map() -> None:
    with pytest.raises(OptionError, match="expert_rank is 0: it must be 1 at least"):
        RbMLayer(3, 3, 3, 1, expert_rank=0)
    assert RbMLayer(9, 4, 3, 1, expert_rank=20).corrections.lower.shape == (3, 4, 9)


def test_corrections_by_hand() -> None:
    corrections = Corrections(2, 2, 2, 1)
    with torch.no_grad():
        corrections.lower.copy_(torch.tensor([[[1.0, 2.0]], [[0.0, 1.0]]]))
        corrections.lift.copy_(torch.tensor([[[3.0], [0.0]], [[1.0], [1.0]]]))
        corrections.bias.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    h, gates = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.25, 0.75]])
    # expert 0: (1 + 2) · (3, 0) + (0, 1) = (9, 1); expert 1: 1 · (1, 1) = (1, 1)
    torch.testing.assert_close(corrections(h, gates), torch.tensor([[3.0, 1.0]]))
    assert corrections.written_out().tolist() == [[[3, 6], [0, 0]], [[0, 1], [0, 1]]]
    # a gain of (2, 0): expert 0 reads 2, expert 1 nothing
    doubled = corrections(h, gates, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(doubled, torch.tensor([[0.25 * 6, 0.25]]))
