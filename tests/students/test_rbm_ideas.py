"""What RbM can do beyond its paper: centred and sharpened routing, the sphere, low rank."""

import math

import pytest
import torch
import torch.nn.functional as F

from limbeck.errors import OptionError
from limbeck.graphs.sparse import to_csr
from limbeck.methods.rbm import RoutingByMemory
from limbeck.students import MLP, NodeInputs
from limbeck.students.experts import Corrections, unit
from limbeck.students.rbm import (
    RbM,
    RbMLayer,
    commitment_loss,
    directions,
    load_balance_loss,
    mean_row,
    repelled,
    spherical_kmeans,
)
from limbeck.testing import check_method, check_student

OFF = {
    "centered_routing": False,
    "gate_sharpness": False,
    "repulsion": None,
    "expert_rank": None,
}
IDEAS = [
    {"centered_routing": True},
    {"gate_sharpness": True},
    {"repulsion": 0.2},
    {"expert_rank": 2},
    {"centered_routing": True, "gate_sharpness": True, "repulsion": 0.2, "expert_rank": 3},
]


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


# -- all of them ---------------------------------------------------------------------------


def test_without_them_nothing_changes() -> None:
    outcomes = []
    for options in ({}, OFF):
        torch.manual_seed(5)
        student = converted(dropout=0.3, input_gain=True, **options).train()
        trace = student.trace(NodeInputs(torch.randn(30, 8)))
        loss = trace.logits.square().sum() + student.auxiliary_loss(trace.routings, 0.1, 0.1, 0.1)
        loss.backward()
        gradients = {name: p.grad for name, p in student.named_parameters()}
        outcomes.append(({**student.state_dict(), "loss": loss.detach()}, gradients))
    (plain, plain_gradients), (off, off_gradients) = outcomes
    assert plain.keys() == off.keys()
    assert all(torch.equal(value, off[name]) for name, value in plain.items())
    assert all(torch.equal(value, off_gradients[name]) for name, value in plain_gradients.items())
    names = {name.split(".", 2)[2] for name in plain if name.startswith("layers.")}
    assert not any(
        word in name for name in names for word in ("center", "sharpness", "corrections")
    )


@pytest.mark.parametrize("options", IDEAS)
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


@pytest.mark.parametrize("options", IDEAS)
def test_in_pretraining_nothing_of_them_is_touched(options) -> None:
    student = RbM(8, 10, 3, **options).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1, weight_decay=0.1)
    student(NodeInputs(torch.randn(20, 8))).square().sum().backward()
    optimizer.step()
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) != (".experts.0." in name), name


@pytest.mark.parametrize("options", IDEAS)
def test_conforms(options) -> None:
    student = drawn_apart(converted(dropout=0.5, input_gain=True, norm="batch", **options))
    student.train()(NodeInputs(torch.randn(30, 8)))  # moves what follows the rows
    check_student(student, NodeInputs(torch.randn(12, 8)), 3)


def test_a_method_with_all_of_them_conforms() -> None:
    # determinism for a seed, and nothing of test labels or unseen nodes in means and memories
    check_method(
        RoutingByMemory(
            hidden_channels=16,
            max_epochs=4,
            batch_size=32,
            dropout=0.2,
            pretrain_epochs=2,
            input_gain=True,
            **IDEAS[-1],
        )
    )


@pytest.mark.parametrize("options", IDEAS)
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


@pytest.mark.parametrize("options", IDEAS)
def test_reset_forgets_them(options) -> None:
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


# -- centred routing -----------------------------------------------------------------------


def test_a_constant_added_to_all_rows_does_not_change_where_they_go() -> None:
    h, constant = torch.randn(60, 6), torch.full((6,), 3.0)
    seen = []
    for rows in (h, h + constant):
        torch.manual_seed(2)
        layer = RbMLayer(6, 5, 4, 2, centered_routing=True)
        layer.convert(rows)
        routings = [layer.train()(batch)[1] for batch in rows.split(20)]
        seen.append((torch.cat([r.similarity for r in routings]), layer.memory, layer.center))
    torch.testing.assert_close(seen[0][0], seen[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0][1], seen[1][1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0][2] + constant, seen[1][2], rtol=1e-4, atol=1e-5)


def test_centred_similarities_are_cosines_seen_from_the_mean() -> None:
    h = torch.relu(torch.randn(60, 6) + 2)
    layer = RbMLayer(6, 5, 4, 2, centered_routing=True).eval()
    layer.convert(h)
    torch.testing.assert_close(layer.center, h.mean(0))
    expected = F.cosine_similarity((h - h.mean(0))[:, None], layer.memory[None], dim=2)
    torch.testing.assert_close(layer(h)[1].similarity, expected)
    # what rows share hides how they differ: seen from the origin they all point the same way
    plain = RbMLayer(6, 5, 4, 2).eval()
    plain.convert(h)
    spread = [one(h)[1].similarity.std(1).mean().item() for one in (layer, plain)]
    assert spread[0] > 3 * spread[1]


def test_the_mean_follows_the_rows_in_training_only_and_after_they_were_routed() -> None:
    layer = RbMLayer(2, 3, 2, 1, centered_routing=True, momentum=0.9)
    layer.convert(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
    assert layer.center.tolist() == [2.0, 1.0]
    h = torch.tensor([[4.0, 1.0], [2.0, 9.0]])
    layer.eval()(h)
    assert layer.center.tolist() == [2.0, 1.0]
    _, routing = layer.train()(h)
    # rows less (2, 1) are (2, 0) and (0, 8): unit axes, whatever the mean is afterwards
    torch.testing.assert_close(routing.similarity, unit(layer_memory_before(layer, h)))
    torch.testing.assert_close(layer.center, torch.tensor([2 + 0.1 * (3 - 2), 1 + 0.1 * (5 - 1)]))


def layer_memory_before(layer: RbMLayer, h: torch.Tensor) -> torch.Tensor:
    """Memories placed at the rows (1, 0) and (3, 2) seen from (2, 1), as columns over the axes."""
    diagonal = 1 / math.sqrt(2)
    first = torch.tensor([[-diagonal, -diagonal], [diagonal, diagonal]])
    order = [0, 1] if float(layer.memory[0].detach().sum()) < 0 else [1, 0]
    return torch.eye(2) @ first[order].t()


def test_directions_and_means_of_sparse_rows_are_those_of_dense_ones() -> None:
    x = (torch.rand(20, 7) < 0.3).float()
    center = torch.rand(7)
    torch.testing.assert_close(mean_row(to_csr(x)), x.mean(0))
    torch.testing.assert_close(directions(to_csr(x), center), unit(x - center))
    assert directions(to_csr(x), None).layout == torch.sparse_csr
    torch.testing.assert_close(directions(x, None), unit(x))


def test_clusters_seen_from_a_center(monkeypatch) -> None:
    corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    center = torch.tensor([50.0, 50.0])
    rows = corners.repeat(20, 1) + 0.01 * torch.randn(60, 2) + center
    found = spherical_kmeans(rows, 3, center)
    assert torch.equal((found @ corners.t() > 0.99).sum(0), torch.ones(3, dtype=torch.int64))
    looked_at = []

    def spy(rows, center):
        looked_at.append(len(rows))
        return directions(rows, center)

    monkeypatch.setattr("limbeck.students.rbm.directions", spy)
    monkeypatch.setattr("limbeck.students.rbm.CLUSTER_ENTRIES", 50)
    spherical_kmeans(rows, 3, center)
    spherical_kmeans(rows, 3)
    assert looked_at == [25, 60]  # 50 entries are 25 rows of two; rows that stay sparse all count


# -- sharpness of the gates ----------------------------------------------------------------


def test_sharpness_multiplies_the_cosines_of_the_chosen() -> None:
    layer = RbMLayer(6, 5, 4, 2, gate_sharpness=True).eval()
    h = torch.randn(30, 6)
    layer.convert(h)
    plain = layer(h)[1]
    with torch.no_grad():
        layer.log_sharpness.fill_(math.log(7))
    sharp = layer(h)[1]
    torch.testing.assert_close(sharp.similarity, plain.similarity)
    assert torch.equal(sharp.gates > 0, plain.gates > 0)
    chosen = plain.gates > 0
    expected = (7 * plain.similarity).masked_fill(~chosen, -math.inf).softmax(1)
    torch.testing.assert_close(sharp.gates, expected)


def test_the_result_trains_the_sharpness_and_the_routing_losses_do_not() -> None:
    layer = drawn_apart(converted(1, num_experts=4, top_k=2, gate_sharpness=True)).layers[0]
    layer = layer.double()
    with torch.no_grad():
        layer.log_sharpness.fill_(0.4)
    h = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    y, routing = layer(h)
    frozen, similarity = routing.gates.detach() > 0, routing.similarity.detach()

    def loss_at(log_sharpness: torch.Tensor) -> torch.Tensor:
        scores = log_sharpness.exp() * similarity
        gates = scores.masked_fill(~frozen, -math.inf).softmax(1)
        return (layer.log_scale.exp() * layer.mix(h, gates)).square().sum()

    at = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(loss_at(at), at)
    (mine,) = torch.autograd.grad(y.square().sum(), layer.log_sharpness, retain_graph=True)
    torch.testing.assert_close(mine, expected)
    # and rows get no gradient of the result through the gates, as without sharpness
    (through_all,) = torch.autograd.grad(y.square().sum(), h, retain_graph=True)
    fixed = (layer.log_scale.exp() * layer.mix(h, routing.gates.detach())).square().sum()
    (through_experts,) = torch.autograd.grad(fixed, h)
    torch.testing.assert_close(through_all, through_experts)
    routing_loss = commitment_loss(routing) + load_balance_loss(routing)
    gradients = torch.autograd.grad(routing_loss, [layer.log_sharpness, h], allow_unused=True)
    assert gradients[0] is None
    assert bool(gradients[1].any())


# -- memories on the sphere ----------------------------------------------------------------


def test_repulsion_by_hand() -> None:
    # two points at a right angle: each goes straight away from the other, by the whole angle
    apart = repelled(torch.eye(2, 3), 0.3)
    cosine, sine = math.cos(0.3), math.sin(0.3)
    torch.testing.assert_close(apart, torch.tensor([[cosine, -sine, 0.0], [-sine, cosine, 0.0]]))
    opposed = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(repelled(opposed, 0.3), opposed)  # nowhere to go
    torch.testing.assert_close(repelled(opposed[:1], 0.3), opposed[:1])
    torch.testing.assert_close(repelled(torch.eye(4), 0.0), torch.eye(4))


def test_repulsion_descends_along_the_sphere_and_spreads_points_evenly() -> None:
    memory = unit(torch.randn(4, 6, dtype=torch.float64)).requires_grad_()
    away = ~torch.eye(4, dtype=torch.bool)
    crowding = (memory @ memory.detach().t()).masked_fill(~away, -math.inf).logsumexp(1).sum()
    (gradient,) = torch.autograd.grad(crowding, memory)
    along = gradient - (gradient * memory).sum(1, keepdim=True) * memory
    step = (repelled(memory.detach(), 1e-6) - memory.detach()) / 1e-6
    torch.testing.assert_close(step, -along.detach(), rtol=1e-4, atol=1e-5)
    points = unit(torch.ones(4, 6) + 0.01 * torch.randn(4, 6))
    for _ in range(300):
        points = repelled(points, 0.1)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(4))
    cosines = (points @ points.t())[away]
    # the corners of a regular simplex: the most that four directions can be apart
    torch.testing.assert_close(cosines, torch.full_like(cosines, -1 / 3), rtol=0, atol=0.02)


def test_on_the_sphere_the_average_is_the_only_updater() -> None:
    student = converted(repulsion=0.1).train()
    trace = student.trace(NodeInputs(torch.randn(30, 8)))
    student.auxiliary_loss(trace.routings, 0.1, 0.1, 0.1).backward()
    for layer in student.layers:
        assert layer.memory.grad is None
        torch.testing.assert_close(layer.memory.norm(dim=1), torch.ones(4))
    # an expert without rows is moved by the others alone
    layer = RbMLayer(2, 2, 2, 1, repulsion=0.3)
    layer.routed = True
    with torch.no_grad():
        layer.memory.copy_(torch.eye(2))
    layer.train()(torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(layer.memory, repelled(torch.eye(2), 0.3))


@pytest.mark.parametrize("angle", [-0.1, 4.0])
def test_an_angle_is_checked(angle: float) -> None:
    with pytest.raises(OptionError, match=f"repulsion is {angle}: it must be an angle"):
        RbMLayer(3, 3, 3, 1, repulsion=angle)


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
