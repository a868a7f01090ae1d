"""The MLP student."""

import copy

import pytest
import torch

from limbeck.graphs.sparse import to_csr
from limbeck.students import MLP, NodeInputs
from limbeck.students.mlp import dropout
from limbeck.testing import check_student


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_conforms(num_layers, norm):
    torch.manual_seed(0)
    student = MLP(6, 8, 3, num_layers, norm, dropout=0.5, input_dropout=0.2)
    student(NodeInputs(torch.randn(10, 6)))  # moves batch norm away from its start
    check_student(student, NodeInputs(torch.randn(12, 6)), 3)


def test_two_layers_by_hand():
    student = MLP(2, 2, 2)
    with torch.no_grad():
        student.lins[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        student.lins[0].bias.copy_(torch.tensor([0.0, 1.0]))
        student.lins[1].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        student.lins[1].bias.copy_(torch.tensor([0.5, 0.0]))
    # x = (2, 3): hidden (2, -2) → ReLU (2, 0) → logits (2.5, 0)
    # x = (0, 0): hidden (0, 1) → logits (2.5, 3)
    logits = student(NodeInputs(torch.tensor([[2.0, 3.0], [0.0, 0.0]])))
    torch.testing.assert_close(logits, torch.tensor([[2.5, 0.0], [2.5, 3.0]]))
    torch.testing.assert_close(
        student.hidden(NodeInputs(torch.tensor([[2.0, 3.0]]))), torch.tensor([[2.0, -2.0]])
    )


def test_sparse_features_train_like_dense_ones():
    x = (torch.rand(30, 12) < 0.2).float()
    grads = []
    for rows in (x, to_csr(x)):
        torch.manual_seed(1)
        student = MLP(12, 8, 3)
        student(NodeInputs(rows)).square().sum().backward()
        grads.append(student.lins[0].weight.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_input_dropout_keeps_the_mean_and_the_layout():
    x = to_csr((torch.rand(200, 50) < 0.3).float())
    student = MLP(50, 4, 2, num_layers=1, input_dropout=0.5)
    torch.manual_seed(0)
    with torch.no_grad():
        student.lins[0].weight.fill_(1.0)
        student.lins[0].bias.zero_()
        kept = student(NodeInputs(x))[:, 0].mean()
    assert float(kept) == pytest.approx(float(x.values().sum() / 200), rel=0.05)


def test_repr_and_inputs():
    student = MLP(5, 8, 3, num_layers=3)
    assert repr(student) == "MLP(5, 3, num_layers=3)"
    assert [(spec.name, spec.width) for spec in student.inputs] == [("x", 5)]


def test_reset_parameters_gives_a_fresh_start():
    student = MLP(5, 8, 3, norm="batch")
    before = student.lins[0].weight.clone()
    student.reset_parameters()
    assert not torch.equal(before, student.lins[0].weight)


def test_dropout_drops_the_share_that_it_should_and_keeps_the_mean():
    torch.manual_seed(0)
    for p in (0.0, 0.1, 0.5, 0.9):
        dropped = dropout(torch.ones(999, 1001), p)  # not a multiple of what a word holds
        assert float((dropped == 0).float().mean()) == pytest.approx(p, abs=2e-3)
        assert float(dropped.mean()) == pytest.approx(1.0, abs=1e-2)
        values = dropped.unique()
        assert len(values) == (1 if p == 0 else 2)
    assert torch.isfinite(dropout(torch.ones(10), 0.9999999)).all()


def test_dropout_passes_the_gradient_of_what_it_kept():
    x = torch.randn(50, 20, requires_grad=True)
    dropped = dropout(x, 0.5)
    dropped.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(dropped == 0, 0.0, 2.0))


def test_dropout_entries_are_independent():
    torch.manual_seed(1)
    kept = (dropout(torch.ones(20_000, 8), 0.5) > 0).float()
    correlation = torch.corrcoef(kept.t()) - torch.eye(8)
    assert float(correlation.abs().max()) < 0.03


def test_layers_are_those_of_a_forward_pass():
    torch.manual_seed(0)
    student = MLP(6, 8, 3, 3, "batch", dropout=0.5, input_dropout=0.2)
    inputs = NodeInputs(torch.randn(20, 6))
    torch.manual_seed(1)
    logits = copy.deepcopy(student)(inputs)
    torch.manual_seed(1)
    outputs = student.layers(inputs)
    assert list(outputs) == ["hidden1", "hidden2", "logits"]
    assert torch.equal(outputs["logits"], logits)
    student.eval()
    outputs = student.layers(inputs)
    # the last hidden layer, behind norm and ReLU
    expected = torch.relu(student.norms[1](student.hidden(inputs)))
    torch.testing.assert_close(outputs["hidden2"], expected)
    student.exposed = "pre-activation"
    front = student.layers(inputs)
    assert bool((front["hidden1"] < 0).any())
    torch.testing.assert_close(front["hidden1"].relu(), outputs["hidden1"])
    assert torch.equal(front["logits"], outputs["logits"])


def test_hidden_states_are_recorded_in_front_of_dropout():
    torch.manual_seed(0)
    student = MLP(6, 64, 3, 2, dropout=0.5).train()
    inputs = NodeInputs(torch.randn(20, 6))
    assert torch.equal(student.layers(inputs)["hidden1"], student.layers(inputs)["hidden1"])
    assert not torch.equal(student.layers(inputs)["logits"], student.layers(inputs)["logits"])
    assert list(MLP(6, 8, 3, 1).layers(inputs)) == ["logits"]
