"""Students of experts: RbM against its equations, and its control with a trained gate."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.sparse import to_csr
from limbeck.students import MLP, NodeInputs
from limbeck.students.experts import Routing, largest, squared_variation, unit
from limbeck.students.moe import MoE, MoELayer
from limbeck.students.rbm import (
    RbM,
    RbMLayer,
    commitment_loss,
    load_balance_loss,
    self_similarity_loss,
    spherical_kmeans,
)
from limbeck.testing import check_student


def routed_layer(
    num_experts: int = 4, top_k: int = 3, width: int = 6, out: int = 5, **options: object
) -> RbMLayer:
    """A layer past pretraining whose experts differ and whose memories are random."""
    layer = RbMLayer(width, out, num_experts, top_k, **options)
    layer.routed = True
    torch.nn.init.normal_(layer.memory)
    return layer.eval()


def routed_student(in_channels: int = 8, num_layers: int = 3, **options: object) -> RbM:
    """A converted student whose experts have been drawn apart."""
    student = RbM(in_channels, 10, 3, num_layers, **options)
    student.convert(NodeInputs(torch.randn(60, in_channels)))
    with torch.no_grad():
        for parameter in student.layers.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# -- the layer -----------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_row_is_the_weighted_sum_of_its_nearest_experts(top_k: int, sparse: bool) -> None:
    layer = routed_layer(4, top_k, input_gain=True)
    with torch.no_grad():
        layer.log_gain.normal_(0, 0.3)
    h = torch.relu(torch.randn(20, 6))
    y, routing = layer(to_csr(h) if sparse else h)
    cosine = torch.nn.functional.cosine_similarity(h[:, None], layer.memory[None], dim=2)
    for b in range(len(h)):
        chosen = cosine[b].topk(top_k).indices
        weight = cosine[b][chosen].softmax(0)
        answers = [layer.experts[e](layer.log_gain[e].exp() * h[b]) for e in chosen.tolist()]
        expected = 2.0 * sum(w * a for w, a in zip(weight, answers, strict=True))
        torch.testing.assert_close(y[b], expected, rtol=1e-5, atol=1e-5)
        assert set(routing.gates[b].nonzero().flatten().tolist()) == set(chosen.tolist())


def test_order_of_rows_does_not_matter() -> None:
    layer, h = routed_layer(), torch.randn(20, 6)
    order = torch.randperm(20)
    torch.testing.assert_close(layer(h[order])[0], layer(h)[0][order])


def test_gates_are_weights_over_the_chosen_and_depend_on_directions_alone() -> None:
    layer, h = routed_layer(5, 2), torch.randn(50, 6)
    _, routing = layer(h)
    assert bool((routing.gates >= 0).all())
    assert routing.gates.count_nonzero(1).tolist() == [2] * 50
    torch.testing.assert_close(routing.gates.sum(1), torch.ones(50))
    chosen = routing.gates[routing.gates > 0].view(50, 2)
    assert float((chosen.amax(1) / chosen.amin(1)).max()) <= math.e**2  # cosines are in [-1, 1]
    with torch.no_grad():
        layer.memory.mul_(torch.rand(5, 1) + 0.5)
    longer = layer(h * (10 * torch.rand(50, 1) + 0.1))[1]
    torch.testing.assert_close(longer.gates, routing.gates)


def test_ties_go_to_the_first_expert_also_for_a_row_without_features() -> None:
    assert largest(torch.tensor([[0.0, 0, 0, 0], [1, 2, 2, 2], [3, 1, 3, 1]]), 2).tolist() == [
        [True, True, False, False],
        [False, True, True, False],
        [True, False, True, False],
    ]
    for h in (torch.zeros(1, 6), to_csr(torch.zeros(1, 6))):
        y, routing = routed_layer(4, 3)(h)
        assert routing.gates.tolist() == [[pytest.approx(1 / 3)] * 3 + [0.0]]
        assert bool(torch.isfinite(y).all())


def test_largest_marks_what_topk_finds() -> None:
    scores = torch.randn(200, 7)
    expected = torch.zeros(200, 7, dtype=torch.bool).scatter(1, scores.topk(3).indices, True)
    assert torch.equal(largest(scores, 3), expected)


def test_unit_rows_keep_layout_and_zeros() -> None:
    rows = torch.tensor([[3.0, 0, 4], [0, 0, 0]])
    expected = torch.tensor([[0.6, 0, 0.8], [0, 0, 0]])
    torch.testing.assert_close(unit(rows), expected)
    sparse = unit(to_csr(rows))
    assert sparse.layout == torch.sparse_csr
    torch.testing.assert_close(sparse.to_dense(), expected)
    assert unit(torch.zeros(2, 3, dtype=torch.float16)).tolist() == torch.zeros(2, 3).tolist()


def test_a_scale_is_held_at_100_and_gets_no_gradient_there() -> None:
    layer, h = routed_layer(), torch.randn(9, 6)
    y, _ = layer(h)
    with torch.no_grad():
        layer.log_scale.fill_(math.log(100) + 1)
    held, _ = layer(h)
    torch.testing.assert_close(held, 50 * y)  # 2 at first
    held.sum().backward()
    assert float(layer.log_scale.grad) == 0


def test_dropout_is_drawn_for_each_expert_and_leaves_the_routing_alone() -> None:
    layer = routed_layer(3, 2, width=50, dropout=0.5)
    with torch.no_grad():
        for expert in layer.experts[1:]:
            expert.load_state_dict(layer.experts[0].state_dict())
    h = torch.randn(4, 50)
    _, before = layer(h)
    layer.train()
    y, routing = layer(h)
    assert torch.equal(routing.gates, before.gates)
    # clones answer differently under dropout: the mixture is none of a single masked answer
    assert not torch.allclose(y, 2 * layer.experts[0](h))


@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 4), (4, 0), (1, 1)])
def test_some_but_not_all_experts_must_be_chosen(num_experts: int, top_k: int) -> None:
    with pytest.raises(OptionError, match=f"top_k is {top_k} and num_experts is {num_experts}"):
        RbMLayer(3, 3, num_experts, top_k)


# -- gradients -----------------------------------------------------------------------------


def test_the_task_reaches_rows_through_experts_only() -> None:
    layer = routed_layer(4, 2).double()
    h = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    y, routing = layer(h)
    (mine,) = torch.autograd.grad(y.square().sum(), h)
    assert layer.memory.grad is None
    frozen = routing.gates.detach()
    (through_experts,) = torch.autograd.grad((2 * layer.mix(h, frozen)).square().sum(), h)
    torch.testing.assert_close(mine, through_experts)


def test_experts_that_are_not_chosen_learn_nothing() -> None:
    layer = routed_layer(4, 1)
    y, routing = layer(layer.memory[2:3].detach().repeat(6, 1))
    assert routing.gates[:, 2].tolist() == [1.0] * 6
    y.sum().backward()
    assert layer.memory.grad is None
    for e, expert in enumerate(layer.experts):
        learnt = expert.weight.grad is not None and bool(expert.weight.grad.any())
        assert learnt == (e == 2)


@pytest.mark.parametrize("loss", [commitment_loss, load_balance_loss])
def test_routing_losses_reach_rows_and_not_memories(loss) -> None:
    layer = routed_layer(4, 3).double()
    h = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: loss(layer(rows)[1]), h)
    loss(layer(h)[1]).backward()
    assert bool(h.grad.any())
    assert layer.memory.grad is None


def test_self_similarity_turns_memories_and_does_not_lengthen_them() -> None:
    memory = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    self_similarity_loss(memory).backward()
    torch.testing.assert_close((memory.grad * memory).sum(1), torch.zeros(4, dtype=torch.float64))
    # dLs/dM_e = (I - m_e m_e^T) sum_e' m_e' / (E^2 |M_e|)
    norm = memory.detach().norm(dim=1, keepdim=True)
    m = memory.detach() / norm
    total = m.sum(0)
    expected = (total - m * (m @ total)[:, None]) / (16 * norm)
    torch.testing.assert_close(memory.grad, expected)


# -- losses by hand ------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    layer = routed_layer(4, 1)
    _, routing = layer(3 * layer.memory[:1].detach().repeat(8, 1))
    assert float(commitment_loss(routing)) == pytest.approx(-1)
    # one of E experts has it all: Var = B²/E, mean² = B²/E²
    assert float(load_balance_loss(routing)) == pytest.approx(4)
    even = Routing(torch.zeros(8, 4), torch.full((8, 4), 0.25))
    assert float(load_balance_loss(even)) == 0
    assert float(self_similarity_loss(torch.eye(4, 6) * 7)) == pytest.approx(1 / 4)
    assert float(self_similarity_loss(torch.ones(4, 6))) == pytest.approx(1)
    assert float(squared_variation(torch.tensor([1.0, 3.0]))) == pytest.approx(2 / 4)


def test_the_auxiliary_loss_sums_layers_and_leaves_out_what_has_no_weight() -> None:
    student = routed_student().train()
    logits, routings, _ = student.trace(NodeInputs(torch.randn(30, 8)))
    assert logits.shape == (30, 3)
    expected = sum(
        0.1 * commitment_loss(routing)
        + 0.2 * self_similarity_loss(layer.memory)
        + 0.3 * load_balance_loss(routing)
        for layer, routing in zip(student.layers, routings, strict=True)
    )
    torch.testing.assert_close(student.auxiliary_loss(routings, 0.1, 0.2, 0.3), expected)
    student.auxiliary_loss(routings, 0.1, 0.0, 0.3).backward(retain_graph=True)
    assert all(layer.memory.grad is None for layer in student.layers)
    assert float(student.auxiliary_loss(routings, 0, 0, 0)) == 0


def test_losses_of_two_batches_can_go_backward_together() -> None:
    # the second forward pass overwrites memories that the first one's loss was computed from
    student = routed_student().train()
    state = {name: value.clone() for name, value in student.state_dict().items()}
    inputs = [NodeInputs(torch.randn(30, 8)) for _ in range(2)]

    def gradients(together: bool) -> list[Tensor]:
        student.load_state_dict(state)
        student.zero_grad()
        total = torch.zeros(())
        for batch in inputs:
            loss = student.auxiliary_loss(student.trace(batch)[1], 0.1, 0.2, 0.3)
            if together:
                total = total + loss
            else:
                loss.backward()
        if together:
            total.backward()
        return [layer.memory.grad.clone() for layer in student.layers]

    for one, other in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(one, other)


# -- memories ------------------------------------------------------------------------------


def update(memory: Tensor, h: Tensor, top_k: int = 1, momentum: float = 0.9) -> RbMLayer:
    layer = RbMLayer(h.shape[1], 2, len(memory), top_k, momentum=momentum)
    layer.routed = True
    with torch.no_grad():
        layer.memory.copy_(memory)
    layer.train()(h)
    return layer


def test_memories_move_to_their_rows_by_hand() -> None:
    memory = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    h = torch.tensor([[3.0, 4.0], [1.0, 0.0], [4.0, 3.0]])
    for rows in (h, to_csr(h)):
        layer = update(memory, rows)
        # rows 1 and 2 are nearest to memory 0, with gates of 1 each, so each weighs a half;
        # row 0 to memory 1; memory 2 has none
        expected = torch.tensor(
            [
                [0.9 + 0.1 * (0.5 * 1.0 + 0.5 * 0.8), 0.1 * 0.5 * 0.6],
                [0.1 * 0.6, 0.9 + 0.1 * 0.8],
                [-0.9, 0.0],
            ]
        )
        torch.testing.assert_close(layer.memory.detach(), expected)


def test_rows_weigh_by_a_softmax_of_their_gates_over_the_batch() -> None:
    memory, h = torch.randn(4, 6), torch.randn(12, 6)
    layer = update(memory, h, top_k=2, momentum=0.8)
    fresh = RbMLayer(6, 2, 4, 2)
    fresh.routed = True
    with torch.no_grad():
        fresh.memory.copy_(memory)
    gates = fresh.eval()(h)[1].gates
    for e in range(4):
        rows = gates[:, e].nonzero().flatten()
        weight = gates[rows, e].softmax(0)
        expected = 0.8 * unit(memory)[e]
        expected = expected + 0.2 * (weight[:, None] * unit(h[rows])).sum(0)
        torch.testing.assert_close(layer.memory[e].detach(), expected.detach())


def test_an_expert_without_rows_keeps_its_direction() -> None:
    memory = torch.tensor([[5.0, 0.0], [0.0, -3.0]])
    layer = update(memory, torch.tensor([[1.0, 0.1]]))
    torch.testing.assert_close(layer.memory[1].detach(), torch.tensor([0.0, -0.9]))


def test_a_momentum_of_one_leaves_directions() -> None:
    memory, h = torch.randn(4, 6), torch.randn(9, 6)
    torch.testing.assert_close(update(memory, h, 3, 1.0).memory.detach(), unit(memory))


def test_memories_move_in_training_only() -> None:
    student = routed_student()
    before = [layer.memory.detach().clone() for layer in student.layers]
    inputs = NodeInputs(torch.randn(20, 8))
    student.eval()(inputs)
    now = [layer.memory for layer in student.layers]
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    student.train()(inputs)  # no auxiliary loss is asked for
    assert not any(torch.equal(a, b) for a, b in zip(before, now, strict=True))


def test_memories_stay_float32_under_autocast() -> None:
    student = routed_student().train()
    with torch.autocast("cpu", torch.bfloat16):
        logits, routings, _ = student.trace(NodeInputs(torch.randn(20, 8)))
        loss = logits.float().square().mean() + student.auxiliary_loss(routings, 0.1, 0.1, 0.1)
    loss.backward()
    for layer in student.layers:
        assert layer.memory.dtype == torch.float32
        assert bool(torch.isfinite(layer.memory).all())
        assert bool(torch.isfinite(layer.memory.grad).all())


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_a_batch_of_one_row_trains(norm: str) -> None:
    student = routed_student(norm=norm).train()
    statistics = [buffer.clone() for buffer in student.norms.buffers()]
    logits, routings, _ = student.trace(NodeInputs(torch.randn(1, 8)))
    (logits.sum() + student.auxiliary_loss(routings, 0.1, 0.1, 0.1)).backward()
    assert bool(torch.isfinite(logits).all())
    assert all(torch.equal(a, b) for a, b in zip(statistics, student.norms.buffers(), strict=True))


# -- pretraining and conversion ------------------------------------------------------------


def test_in_pretraining_it_is_the_mlp_of_the_first_experts() -> None:
    student = RbM(8, 10, 3, 3, norm="layer", input_gain=True)
    mlp = MLP(8, 10, 3, 3, "layer")
    for lin, layer in zip(mlp.lins, student.layers, strict=True):
        lin.load_state_dict(layer.experts[0].state_dict())
    inputs = NodeInputs(torch.randn(20, 8))
    torch.testing.assert_close(student(inputs), mlp(inputs))
    logits, routings, _ = student.train().trace(inputs)
    assert routings == []
    before = {name: value.clone() for name, value in student.state_dict().items()}
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1, weight_decay=0.1)
    logits.square().sum().backward()
    optimizer.step()
    for name, value in student.state_dict().items():
        moved = ".experts.0." in name or name.startswith("norms")
        assert torch.equal(value, before[name]) != moved, name


@pytest.mark.parametrize("input_gain", [False, True])
def test_conversion_multiplies_the_mlp_by_scale_and_gain(input_gain: bool) -> None:
    student = RbM(8, 10, 3, 3, num_experts=5, top_k=2, input_gain=input_gain, init_scale=1.5)
    inputs = NodeInputs(torch.randn(40, 8))
    student.convert(inputs)
    assert student.training  # left as it was
    h = inputs.x
    for i, layer in enumerate(student.layers):
        h = 1.5 * layer.experts[0]((1.1 if input_gain else 1.0) * h)
        h = h if i == 2 else torch.relu(h)
    torch.testing.assert_close(student.eval()(inputs), h, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_conversion_clusters_each_layer_behind_the_converted_ones(sparse: bool) -> None:
    x = (torch.rand(50, 8) < 0.4).float()
    inputs = NodeInputs(to_csr(x) if sparse else x)
    student = RbM(8, 10, 3, 2, dropout=0.9)
    torch.manual_seed(3)
    student.convert(inputs)
    torch.manual_seed(3)
    first = spherical_kmeans(inputs.x, 4)
    hidden = torch.relu(2 * student.layers[0].experts[0](x))
    second = spherical_kmeans(hidden, 4)
    torch.testing.assert_close(student.layers[0].memory.detach(), first)
    torch.testing.assert_close(student.layers[1].memory.detach(), second, rtol=1e-4, atol=1e-4)
    for layer in student.layers:
        assert layer.memory.norm(dim=1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)


def test_spherical_kmeans_finds_directions_and_ignores_lengths() -> None:
    axes = torch.eye(3, 5)
    rows = axes.repeat(20, 1) * (10 * torch.rand(60, 1) + 0.1) + 0.01 * torch.rand(60, 5)
    found = spherical_kmeans(rows, 3)
    assert torch.equal((found @ axes.t() > 0.99).sum(0), torch.ones(3, dtype=torch.int64))
    torch.manual_seed(1)
    one = spherical_kmeans(rows, 3)
    torch.manual_seed(1)
    assert torch.equal(one, spherical_kmeans(rows, 3))
    torch.manual_seed(1)
    torch.testing.assert_close(one, spherical_kmeans(to_csr(rows), 3))


def test_spherical_kmeans_of_few_directions_and_of_few_rows(monkeypatch) -> None:
    same = spherical_kmeans(torch.ones(10, 4), 3)  # no warning, no NaN
    torch.testing.assert_close(same, torch.full((3, 4), 0.5))
    assert bool(torch.isfinite(spherical_kmeans(torch.zeros(10, 4), 3)).all())
    with pytest.raises(OptionError, match="num_experts is 4, but only 3 nodes are observed"):
        spherical_kmeans(torch.randn(3, 5), 4)
    monkeypatch.setattr("limbeck.students.rbm.CLUSTER_ROWS", 30)
    assert spherical_kmeans(torch.randn(100, 5), 4).shape == (4, 5)


def test_a_state_dict_carries_whether_the_student_routes() -> None:
    pretraining = RbM(8, 10, 3)
    routed = routed_student(num_layers=2)
    inputs = NodeInputs(torch.randn(20, 8))
    fresh = RbM(8, 10, 3)
    fresh.load_state_dict(routed.state_dict())
    assert torch.equal(fresh.eval()(inputs), routed.eval()(inputs))
    with pytest.raises(OptionError, match="one of pretraining"):
        routed.load_state_dict(pretraining.state_dict())
    routed.reset_parameters()
    assert not routed.layers[0].routed
    assert not bool(routed.layers[0].memory.any())
    assert float(routed.layers[0].log_scale.detach().exp()) == pytest.approx(2.0)


# -- the battery ---------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "top_k"), [("none", 3), ("batch", 1), ("layer", 2)])
def test_conforms(norm: str, top_k: int) -> None:
    student = routed_student(
        6, 2, top_k=top_k, norm=norm, dropout=0.5, input_gain=True, input_dropout=0.2
    )
    student.train()(NodeInputs(torch.randn(30, 6)))  # moves batch norm and memories
    check_student(student, NodeInputs(torch.randn(12, 6)), 3)


def test_pretraining_conforms() -> None:
    check_student(RbM(6, 8, 3), NodeInputs(torch.randn(12, 6)), 3)


def test_sparse_features_train_like_dense_ones() -> None:
    x = (torch.rand(40, 12) < 0.2).float()
    student = RbM(12, 8, 3, num_experts=5, top_k=2, input_gain=True)
    student.convert(NodeInputs(x))
    state = {name: value.clone() for name, value in student.state_dict().items()}
    outcomes = []
    for rows in (x, to_csr(x)):
        student.load_state_dict(state)
        student.zero_grad()
        logits, routings, _ = student.train().trace(NodeInputs(rows))
        (logits.square().sum() + student.auxiliary_loss(routings, 0.1, 0.1, 0.1)).backward()
        gradients = [p.grad for p in student.parameters() if p.grad is not None]
        outcomes.append([*gradients, *(layer.memory.detach().clone() for layer in student.layers)])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_repr_and_inputs() -> None:
    student = RbM(5, 8, 3, num_layers=3, num_experts=6, top_k=2)
    assert repr(student) == "RbM(5, 3, num_layers=3, num_experts=6, top_k=2)"
    assert [(spec.name, spec.width) for spec in student.inputs] == [("x", 5)]


def test_a_student_with_one_layer_routes_features() -> None:
    student = routed_student(6, 1)
    routings = student.trace(NodeInputs(torch.randn(10, 6))).routings
    assert [routing.gates.shape for routing in routings] == [(10, 4)]


# -- the control ---------------------------------------------------------------------------


def test_moe_gates_by_hand() -> None:
    layer = MoELayer(6, 5, 7, num_experts=5, top_k=2).eval()
    layer.routed = True
    h = torch.randn(10, 6)
    y, routing = layer(h)
    cosine = torch.nn.functional.cosine_similarity(
        layer.project(h)[:, None], layer.columns[None], dim=2
    )
    weight = (2 * cosine).softmax(1)  # over all experts, and not again over the chosen
    for b in range(10):
        chosen = weight[b].topk(2).indices
        expected = 2 * sum(weight[b, e] * layer.experts[e](h[b]) for e in chosen.tolist())
        torch.testing.assert_close(y[b], expected)
        assert float(routing.gates[b].sum().detach()) < 1
    y.sum().backward()  # unlike RbM's, the gate learns from the task
    assert bool(layer.columns.grad.any())
    assert bool(layer.project.weight.grad.any())


def test_moe_pretraining_gives_each_expert_a_piece_of_the_batch() -> None:
    layer, h = MoELayer(6, 5, 7, num_experts=3, top_k=2).train(), torch.randn(7, 6)
    y, routing = layer(h)
    assert routing is None
    expected = [layer.experts[e](h[b]) for b, e in enumerate([0, 0, 0, 1, 1, 2, 2])]
    torch.testing.assert_close(y, torch.stack(expected))


def test_moe_balance_loss_by_hand() -> None:
    student = MoE(6, 8, 3, 2)
    gates = torch.tensor([[0.6, 0.0], [0.5, 0.0], [0.0, 0.1]])
    loss = student.balance_loss([Routing(gates, gates)] * 2)
    # loads 1.1 and 0.1: var 0.5, mean 0.6; rows 2 and 1: var 0.5, mean 1.5
    assert float(loss) == pytest.approx(2 * (0.5 / 0.36 + 0.5 / 2.25), rel=1e-5)
    assert float(student.balance_loss([])) == 0


def test_moe_conforms() -> None:
    student = MoE(6, 8, 3, norm="batch", dropout=0.5)
    check_student(student, NodeInputs(torch.randn(12, 6)), 3)
    student.begin_routing()
    student.train()(NodeInputs(torch.randn(30, 6)))
    check_student(student, NodeInputs(torch.randn(12, 6)), 3)
    assert np.isfinite(float(student.layers[0].log_sharpness.detach()))
