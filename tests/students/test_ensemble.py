"""The controls of the students of experts: the average of MLPs, and equal sizes."""

import math

import pytest
import torch

from limbeck.errors import OptionError
from limbeck.students import MLP, NodeInputs
from limbeck.students.ensemble import (
    EnsembleOfMLPs,
    flops_per_node,
    hidden_channels_for,
    num_parameters,
)
from limbeck.students.moe import MoE
from limbeck.students.rbm import RbM
from limbeck.testing import check_student


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def ensemble(num_members: int = 3, **options: object) -> EnsembleOfMLPs:
    return EnsembleOfMLPs([MLP(6, 8, 3, **options) for _ in range(num_members)]).eval()


# -- the ensemble --------------------------------------------------------------------------


def test_it_answers_with_the_mean_of_its_members_probabilities() -> None:
    student, inputs = ensemble(), NodeInputs(torch.randn(10, 6))
    expected = sum(member(inputs).softmax(1) for member in student.members) / 3
    torch.testing.assert_close(student(inputs).softmax(1), expected)
    torch.testing.assert_close(student(inputs).exp(), expected)  # log-probabilities already


def test_by_hand() -> None:
    # members that say (3/4, 1/4) and (1/4, 3/4), and one that says (1/2, 1/2): together 1/2 each
    student = EnsembleOfMLPs([MLP(1, 1, 2, num_layers=1) for _ in range(2)])
    with torch.no_grad():
        for member, odds in zip(student.members, (3.0, 1 / 2), strict=True):
            member.lins[0].weight.zero_()
            member.lins[0].bias.copy_(torch.tensor([odds, 1.0]).log())
    # 3/4 and 1/3: the mean is 13/24
    answer = student(NodeInputs(torch.zeros(1, 1))).exp()[0].tolist()
    assert answer == pytest.approx([13 / 24, 11 / 24])


def test_certain_members_do_not_overflow() -> None:
    student = EnsembleOfMLPs([MLP(1, 1, 2, num_layers=1) for _ in range(2)])
    with torch.no_grad():
        for member, sign in zip(student.members, (1.0, -1.0), strict=True):
            member.lins[0].weight.zero_()
            member.lins[0].bias.copy_(torch.tensor([1e4, -1e4]) * sign)
    answer = student(NodeInputs(torch.zeros(1, 1)))[0].tolist()
    assert answer == pytest.approx([math.log(0.5)] * 2)


def test_one_member_is_itself() -> None:
    student, inputs = ensemble(1), NodeInputs(torch.randn(10, 6))
    torch.testing.assert_close(student(inputs), student.members[0](inputs).log_softmax(1))


def test_conforms() -> None:
    student = ensemble(norm="batch", dropout=0.5, input_dropout=0.1)
    student.train()(NodeInputs(torch.randn(30, 6)))
    check_student(student, NodeInputs(torch.randn(12, 6)), 3)
    student = ensemble(position_channels=2)
    check_student(student, NodeInputs(torch.randn(12, 6), torch.randn(12, 2)), 3)


def test_reset_draws_every_member_anew() -> None:
    student = ensemble()
    before = [member.lins[0].weight.detach().clone() for member in student.members]
    student.reset_parameters()
    for member, weight in zip(student.members, before, strict=True):
        assert not torch.equal(member.lins[0].weight, weight)
    assert not torch.equal(student.members[0].lins[0].weight, student.members[1].lins[0].weight)


@pytest.mark.parametrize(
    "members",
    [[], [MLP(6, 8, 3), MLP(5, 8, 3)], [MLP(6, 8, 3), MLP(6, 8, 2)]],
)
def test_members_must_be_of_one_kind(members: list[MLP]) -> None:
    with pytest.raises(OptionError, match=f"there are {len(members)} members of"):
        EnsembleOfMLPs(members)


# -- sizes ---------------------------------------------------------------------------------


def test_operations_by_hand() -> None:
    mlp = MLP(10, 4, 3, num_layers=3)
    assert flops_per_node(mlp) == 2 * (10 * 4 + 4 * 4 + 4 * 3)
    # of ten features two are not zero on average, and one more is
    assert flops_per_node(mlp, 2.5) == 2 * (2.5 * 4 + 4 * 4 + 4 * 3)
    assert flops_per_node(EnsembleOfMLPs([mlp, mlp]), 2.5) == 2 * flops_per_node(mlp, 2.5)
    rbm = RbM(10, 4, 3, num_experts=5, top_k=2)
    experts, routing, mixing = 2 * 2 * (10 * 4 + 4 * 3), 2 * 5 * (10 + 4), 2 * (4 + 3)
    assert flops_per_node(rbm) == experts + routing + mixing
    moe = MoE(10, 4, 3, num_experts=5, top_k=2)
    gates = 2 * 4 * (10 + 5) + 2 * 4 * (4 + 5)
    assert flops_per_node(moe) == experts + gates + mixing
    low = RbM(10, 4, 3, num_experts=5, top_k=2, expert_rank=2)
    experts = 2 * (10 * 4 + 4 * 3) + 2 * 5 * 2 * (10 + 4 + 4 + 3)
    assert flops_per_node(low) == experts + routing + mixing


@pytest.mark.parametrize(
    ("shape", "num_experts", "top_k", "millions"),
    [
        ((1433, 512, 7, 3), 4, 3, (2.00, 6.02)),  # cora
        ((3703, 512, 6, 2), 4, 3, (3.80, 11.4)),  # citeseer
        ((745, 1024, 8, 2), 5, 3, (1.54, 4.64)),  # amazon-photo
        ((128, 1024, 40, 3), 5, 3, (2.44, 7.35)),  # ogbn-arxiv
    ],
)
def test_operations_are_those_computed_for_the_paper(
    shape: tuple[int, int, int, int],
    num_experts: int,
    top_k: int,
    millions: tuple[float, float],
) -> None:
    with torch.device("meta"):
        students = MLP(*shape), RbM(*shape, num_experts, top_k)
    found = [flops_per_node(student) / 1e6 for student in students]
    assert found == pytest.approx(millions, rel=5e-3)


def test_operations_of_others_are_not_known() -> None:
    with pytest.raises(OptionError, match="operations of Linear are not known"):
        flops_per_node(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("size", [num_parameters, flops_per_node])
def test_a_widened_student_is_as_large_within_a_hundredth(size) -> None:
    def widened(student: type[MLP] | type[MoE], width: int) -> float:
        with torch.device("meta"):
            return size(student(200, width, 7))

    target = size(RbM(200, 256, 7, num_experts=4, top_k=3))
    for student in (MLP, MoE):
        width = hidden_channels_for(target, lambda h, s=student: widened(s, h))
        assert abs(widened(student, width) - target) <= 0.01 * target
        gaps = [abs(widened(student, width + step) - target) for step in (-1, 0, 1)]
        assert gaps[1] == min(gaps)  # no other width is nearer
    assert hidden_channels_for(size(MLP(200, 64, 7)), lambda h: widened(MLP, h)) == 64


@pytest.mark.parametrize("target", [1, 250.0, 10**12])
def test_a_size_that_no_width_has_is_an_error(target: float) -> None:
    # an MLP of 200 features grows by more than 200 parameters with each hidden unit
    with pytest.raises(OptionError, match="no hidden width gives the size"):
        hidden_channels_for(target, lambda h: 2 + 208 * h)
