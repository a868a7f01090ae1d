"""What folding leaves, by hand."""

import numpy as np
import pytest
import torch

from limbeck.export.folded import CorrectedExperts, Experts, Gate, Linear, Memories, fold
from limbeck.students import MLP
from limbeck.students.moe import MoE
from limbeck.students.rbm import RbM


def one_layer(**options: object) -> RbM:
    """Two features, two classes, two experts that answer with twice and three times a feature."""
    student = RbM(2, 5, 2, 1, num_experts=2, top_k=1, init_scale=10.0, **options)
    (layer,) = student.layers
    layer.routed = True
    with torch.no_grad():
        layer.memory.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
        for e, expert in enumerate(layer.experts):
            expert.weight.copy_(torch.tensor([[2.0 + e, 0.0], [0.0, 0.0]]))
            expert.bias.copy_(torch.tensor([0.0, 1.0 + e]))
    return student.eval()


def test_scale_and_gain_are_in_the_weights_and_memories_are_unit() -> None:
    student = one_layer(input_gain=True)
    with torch.no_grad():
        student.layers[0].log_gain.copy_(torch.tensor([[1.0, 1.0], [1.5, 1.0]]).log())
    (block,) = fold(student) or []
    assert isinstance(block.map, Experts)
    # [E, in, out]: scale 10, gains 1 and 1.5
    expected = [[[20, 0], [0, 0]], [[45, 0], [0, 0]]]
    np.testing.assert_allclose(block.map.weight, expected, rtol=1e-6)
    np.testing.assert_allclose(block.map.bias, [[0, 10], [0, 20]], rtol=1e-6)
    assert isinstance(block.map.chooser, Memories)
    np.testing.assert_allclose(block.map.chooser.directions, [[0.6, 0], [0.8, 1]], rtol=1e-6)
    assert not block.relu


def test_a_layer_in_pretraining_is_its_first_expert() -> None:
    student = one_layer()
    student.layers[0].routed = False
    (block,) = fold(student) or []
    assert isinstance(block.map, Linear)
    np.testing.assert_array_equal(block.map.weight, [[2, 0], [0, 0]])
    np.testing.assert_array_equal(block.map.bias, [0, 1])


def norm_of(student: MLP | RbM | MoE) -> torch.nn.BatchNorm1d:
    """Make its first batch norm answer ``2 h - 6``."""
    norm = student.norms[0]
    assert isinstance(norm, torch.nn.BatchNorm1d)
    norm.eps = 0.0
    with torch.no_grad():
        norm.running_mean.fill_(2.0)
        norm.running_var.fill_(4.0)
        norm.weight.fill_(4.0)
        norm.bias.fill_(-2.0)
    return norm


def test_batch_norm_is_in_the_weights() -> None:
    torch.manual_seed(0)
    mlp = MLP(3, 4, 2, norm="batch").eval()
    norm_of(mlp)
    first, last = fold(mlp) or []
    np.testing.assert_allclose(first.map.weight, 2 * mlp.lins[0].weight.t().detach())
    np.testing.assert_allclose(first.map.bias, 2 * mlp.lins[0].bias.detach() - 6)
    assert (first.shift, first.norm, first.relu, last.relu) == (None, None, True, False)


@pytest.mark.parametrize("kind", [RbM, MoE])
def test_its_shift_is_only_where_gates_sum_to_one(kind: type[RbM] | type[MoE]) -> None:
    torch.manual_seed(0)
    student = kind(3, 4, 2, num_experts=3, top_k=2, norm="batch", init_scale=1.0).eval()
    for layer in student.layers:
        layer.routed = True
    norm_of(student)
    first, _ = fold(student) or []
    biases = np.stack([expert.bias.detach().numpy() for expert in student.layers[0].experts])
    if kind is RbM:
        np.testing.assert_allclose(first.map.bias, 2 * biases - 6, rtol=1e-6)
        assert first.shift is None
    else:
        assert isinstance(first.map, Experts)
        assert isinstance(first.map.chooser, Gate)
        np.testing.assert_allclose(first.map.bias, 2 * biases, rtol=1e-6)
        np.testing.assert_allclose(first.shift, [-6] * 4, rtol=1e-6)


def test_low_rank_stays_low() -> None:
    student = RbM(30, 20, 4, 1, num_experts=3, top_k=2, expert_rank=2).eval()
    student.layers[0].routed = True
    (block,) = fold(student) or []
    assert isinstance(block.map, CorrectedExperts)
    assert block.map.weight.shape == (30, 4)
    assert block.map.lower.shape == (30, 3 * 2)
    assert block.map.lift.shape == (3 * 2, 4)


def test_the_student_is_left_as_it_is() -> None:
    student = one_layer()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    fold(student)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert fold(torch.nn.Linear(3, 2)) is None
