"""SA-MLP, the network: the card's invariants of architecture, routing and serving."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.sparse import csr_tensor, to_csr
from limbeck.students import NodeInputs
from limbeck.students.inputs import no_neighbors
from limbeck.students.sa_mlp import SAMLP, FeatureScaling, FeedForward
from limbeck.students.structure_tables import (
    FullTable,
    HashedTable,
    LandmarkTable,
    StructureTable,
    TiedTable,
    most_named,
)
from limbeck.testing import check_student

NODES, COLUMNS, WIDTH = 12, 10, 6
TABLES = ["full", "landmark", "hashed", "tied", "tied-sparse"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def table(kind: str = "full", channels: int = 8, init_std: float | None = 0.5) -> StructureTable:
    """A table over 10 known nodes whose rows all differ."""
    if kind == "landmark":
        return LandmarkTable(COLUMNS, channels, torch.tensor([7, 2, 4]), init_std)
    if kind == "hashed":
        return HashedTable(COLUMNS, channels, 5, 3, init_std)
    if kind.startswith("tied"):
        x = (torch.rand(COLUMNS, WIDTH) < 0.5).float()
        tied = TiedTable(to_csr(x) if kind == "tied-sparse" else x, channels, init_std)
        torch.nn.init.normal_(tied.correction, std=0.1)
        return tied
    return FullTable(COLUMNS, channels, init_std)


def adjacency() -> Tensor:
    """Rows of 12 nodes: an empty one, a hub, and weights."""
    dense = (torch.rand(NODES, COLUMNS) < 0.3).float() * torch.rand(NODES, COLUMNS).add(0.5)
    dense[0], dense[1] = 0.0, 1.0
    return dense


def build(kind: str = "full", *, routed: bool = False, **options: object) -> SAMLP:
    """A student in eval mode, whose parts have all been moved away from their start."""
    student = SAMLP(WIDTH, 8, 3, table(kind), **options)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    student.routed = routed
    return student.eval()


def inputs(sparse: bool = False) -> NodeInputs:
    """Inputs of 12 nodes, the first of them without neighbours; all weights are one."""
    x = (torch.rand(NODES, WIDTH) < 0.5).float()
    return NodeInputs(to_csr(x) if sparse else x, neighbors=to_csr((adjacency() > 0).float()))


# --- the table --------------------------------------------------------------------------------


def lazy_and_dense(channels: int = 8, **options: float) -> tuple[FullTable, FullTable]:
    """The same rows, once with steps of their own and once with dense gradients."""
    lazy = FullTable(COLUMNS, channels, 0.5, row_lr=0.1, **options)
    dense = FullTable(COLUMNS, channels, 0.5)
    dense.weight.data.copy_(lazy.weight.data)
    return lazy, dense


def loss_of(rows: FullTable, neighbors: Tensor, target: Tensor) -> Tensor:
    """A loss that reads some rows twice, since mixtures do."""
    bag = rows.bag(neighbors)
    return (bag - target).square().mean() + (0.5 * bag + 0.5 * bag.flip(0)).tanh().sum()


def test_sparse_gradients_are_the_dense_ones() -> None:
    lazy, dense = lazy_and_dense()
    found: list[Tensor] = []
    # hooks run in the order in which they came, so this one is too late to see the gradient
    step = lazy._step
    lazy.weight._post_accumulate_grad_hooks.clear()
    lazy.weight.register_post_accumulate_grad_hook(lambda weight: found.append(weight.grad))
    neighbors, target = to_csr(adjacency()), torch.randn(NODES, 8)
    loss_of(lazy, neighbors, target).backward()
    loss_of(dense, neighbors, target).backward()
    assert found[0].is_sparse
    torch.testing.assert_close(found[0].to_dense(), dense.weight.grad)
    step(lazy.weight)
    assert lazy.weight.grad is None


def test_rows_of_one_value_move_as_those_of_adagrad() -> None:
    lazy, dense = lazy_and_dense(channels=1)
    adagrad = torch.optim.Adagrad(dense.parameters(), lr=0.1)
    for _ in range(6):
        neighbors, target = to_csr(adjacency()), torch.randn(NODES, 1)
        loss_of(lazy, neighbors, target).backward()
        adagrad.zero_grad()
        loss_of(dense, neighbors, target).backward()
        adagrad.step()
    torch.testing.assert_close(lazy.weight, dense.weight)


def test_a_row_moves_by_hand_and_the_others_stay() -> None:
    lazy = FullTable(3, 2, row_lr=0.5, row_decay=0.1)
    lazy.weight.data.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    one = csr_tensor(torch.tensor([0, 1]), torch.tensor([1]), torch.ones(1), (1, 3))
    (lazy.bag(one) * torch.tensor([[1.0, -2.0]])).sum().backward()
    gradient = torch.tensor([1.3, -1.6])  # with a tenth of the row itself
    state = float(gradient.square().mean())
    assert lazy.row_state.tolist() == pytest.approx([0.0, state, 0.0])
    moved = torch.tensor([3.0, 4.0]) - 0.5 * gradient / state**0.5
    expected = torch.stack([torch.tensor([1.0, 2.0]), moved, torch.tensor([5.0, 6.0])])
    torch.testing.assert_close(lazy.weight.detach(), expected)
    lazy.reset_parameters()
    assert not lazy.row_state.any()


@pytest.mark.parametrize("kind", TABLES)
def test_a_bag_is_the_dense_product(kind: str) -> None:
    rows, dense = table(kind), adjacency()
    whole = rows.rows(torch.arange(COLUMNS))
    torch.testing.assert_close(rows.bag(to_csr(dense)), dense @ whole)
    known = rows.knows(torch.arange(COLUMNS)).float()
    torch.testing.assert_close(rows.degree(to_csr(dense)), dense @ known)
    assert torch.equal(whole == 0, (known == 0).unsqueeze(1).expand_as(whole))
    unsorted = csr_tensor(
        torch.tensor([0, 3]), torch.tensor([9, 2, 4]), torch.tensor([1.0, 2.0, 3.0]), (1, COLUMNS)
    )
    expected = whole[9] + 2 * whole[2] + 3 * whole[4]
    torch.testing.assert_close(rows.bag(unsorted)[0], expected)
    assert rows.bag(no_neighbors(0, COLUMNS)).shape == (0, 8)


def test_the_bag_in_place_is_the_general_one() -> None:
    full, neighbors = table(), to_csr(adjacency())
    torch.testing.assert_close(full.bag(neighbors), StructureTable.bag(full, neighbors))
    torch.testing.assert_close(full.bag(neighbors), torch.sparse.mm(neighbors, full.weight))


@pytest.mark.parametrize("kind", TABLES)
def test_every_table_is_trained_through_the_bag(kind: str) -> None:
    rows = table(kind)
    rows.bag(to_csr(adjacency())).square().sum().backward()
    for name, parameter in rows.named_parameters():
        assert float(parameter.grad.abs().sum()) > 0, name


def test_the_official_start_is_that_of_a_linear_layer() -> None:
    full = FullTable(400, 50)
    assert 0.95 / 20 < float(full.weight.detach().abs().max()) <= 1 / 20
    scaled = FullTable(400, 50, init_std=0.3)
    assert float(scaled.weight.detach().std()) == pytest.approx(0.3, rel=0.02)
    hashed = HashedTable(400, 50, 60, 3, init_std=0.3)
    assert float(hashed.rows(torch.arange(400)).detach().std()) == pytest.approx(0.3, rel=0.1)


def test_hashed_rows_are_signed_sums_of_entries() -> None:
    hashed = table("hashed")
    (a, b), (c, d) = hashed.factors.tolist()
    prime = 2**31 - 1
    row = torch.zeros(8)
    for k in range(3):
        entry = (7 * a[k] + b[k]) % prime % 5
        sign = 1 - 2 * ((7 * c[k] + d[k]) % prime % 2)
        row += sign * hashed.weight[entry].detach()
    torch.testing.assert_close(hashed.rows(torch.tensor([7]))[0], row)


def test_a_tied_table_has_rows_for_nodes_that_come_later() -> None:
    tied = table("tied-sparse")
    x = torch.rand(2, WIDTH)
    torch.testing.assert_close(tied.new_rows(x), x @ tied.map.weight.t())
    known = tied.features.to_dense() @ tied.map.weight.t() + tied.correction
    torch.testing.assert_close(tied.rows(torch.arange(COLUMNS)), known)
    neighbors = to_csr(adjacency())
    torch.testing.assert_close(copy.deepcopy(tied).bag(neighbors), tied.bag(neighbors))


def test_most_named_takes_the_first_of_equals() -> None:
    dense = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    assert most_named(to_csr(dense), 3).tolist() == [1, 3, 0]
    assert most_named(to_csr(dense), 9).tolist() == [1, 3, 0, 2]


# --- the network ------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "norm": "batch"}, {"blend": 2.0}])
@pytest.mark.parametrize("routed", [False, True])
def test_conforms(sparse: bool, options: dict[str, object], routed: bool) -> None:
    check_student(build(routed=routed, **options), inputs(sparse), 3)


@pytest.mark.parametrize("kind", TABLES[1:])
@pytest.mark.parametrize("stream_norm", ["batch", "layer"])
def test_variants_conform(kind: str, stream_norm: str) -> None:
    student = build(kind, routed=True, stream_norm=stream_norm, own_head=True, adj_norm="row")
    check_student(student, inputs(True), 3)


def test_logits_by_hand() -> None:
    student, given = build(), inputs()
    rows = given.neighbors.to_dense()
    head = student.head
    h_a = F.relu(rows @ student.table.weight + student.structure_bias)
    h_x = F.relu(given.x @ head.feature_encoder.weight.t() + head.feature_encoder.bias)
    gate = torch.sigmoid(head.gate(torch.cat([h_a, h_x], dim=1)))
    u_a, u_x = head.structure_decoder.lins[0](h_a), head.feature_decoder.lins[0](h_x)
    torch.testing.assert_close(student(given), gate * u_a + (1 - gate) * u_x)
    streams = student.streams(given)
    assert bool(((streams.gate > 0) & (streams.gate < 1)).all())
    for bias, expected in ((50.0, u_a), (-50.0, u_x)):
        with torch.no_grad():
            head.gate.weight.zero_()
            head.gate.bias.fill_(bias)
        torch.testing.assert_close(student(given), expected)


def test_number_of_parameters() -> None:
    n, d, h, c = COLUMNS, WIDTH, 8, 3
    count = sum(p.numel() for p in build().parameters())
    predictor = d * h + h + h * h + h
    assert count == n * h + h + d * h + h + (2 * h + 1) + 2 * (h * c + c) + predictor


def test_permuted_columns_with_permuted_rows_answer_the_same() -> None:
    student, given = build(), inputs()
    expected = student(given)
    order = torch.randperm(COLUMNS)
    with torch.no_grad():
        student.table.weight.copy_(student.table.weight[order].clone())
    moved = NodeInputs(given.x, neighbors=to_csr(given.neighbors.to_dense()[:, order]))
    torch.testing.assert_close(student(moved), expected)


def test_no_message_passing() -> None:
    """A node's answer depends on its own features and ids alone."""
    student, given = build(), inputs()
    expected = student(given)
    x, rows = given.x.clone(), given.neighbors.to_dense()
    x[1:] += 1
    rows[1:] = 1 - rows[1:]
    torch.testing.assert_close(student(NodeInputs(x, neighbors=to_csr(rows)))[0], expected[0])
    node = 3
    student(given)[node].sum().backward()
    touched = student.table.weight.grad.abs().sum(1) > 0
    assert torch.equal(touched, given.neighbors.to_dense()[node] > 0)


def test_relu_and_dropout_commute() -> None:
    z = torch.randn(20, 5)
    torch.manual_seed(1)
    before = F.relu(F.dropout(z, 0.5, True))
    torch.manual_seed(1)
    assert torch.equal(before, F.dropout(F.relu(z), 0.5, True))


@pytest.mark.parametrize("order", ["sa-mlp", "glnn"])
def test_order_of_hidden_layers(order: str) -> None:
    net = FeedForward(4, 5, 3, 2, "layer", 0.0, order)
    torch.nn.init.normal_(net.norms[0].weight)
    torch.nn.init.normal_(net.norms[0].bias)
    h = net.lins[0](torch.ones(2, 4))
    hidden = net.norms[0](F.relu(h)) if order == "sa-mlp" else F.relu(net.norms[0](h))
    torch.testing.assert_close(net(torch.ones(2, 4)), net.lins[1](hidden))


@pytest.mark.parametrize("adj_norm", ["none", "row", "sqrt-degree"])
def test_normalised_rows(adj_norm: str) -> None:
    student, given = build(adj_norm=adj_norm), inputs()
    rows = given.neighbors.to_dense()
    degree = rows.sum(1, keepdim=True).clamp_min(1)
    power = {"none": 0.0, "row": 1.0, "sqrt-degree": 0.5}[adj_norm]
    expected = rows / degree**power @ student.table.weight + student.structure_bias
    torch.testing.assert_close(student.structure_part(given.neighbors), expected)


@pytest.mark.parametrize("sparse", [False, True])
def test_feature_scaling(sparse: bool) -> None:
    x = torch.randn(30, 4).relu() + 0.1
    x[:, 3] = 0
    rows = to_csr(x) if sparse else x
    by_row = FeatureScaling("row", 4)(rows)
    torch.testing.assert_close(by_row.to_dense() if sparse else by_row, x / x.sum(1, keepdim=True))
    standard = FeatureScaling("standard", 4)
    standard.fit(rows)
    scaled = standard(rows).to_dense() if sparse else standard(rows)
    deviation = x.std(0, unbiased=False).clamp_min(1e-30)
    deviation[3] = 1
    expected = x / deviation if sparse else (x - x.mean(0)) / deviation
    torch.testing.assert_close(scaled, expected)
    assert FeatureScaling("none", 4)(rows) is rows


# --- routes -----------------------------------------------------------------------------------


def test_each_node_takes_its_own_route() -> None:
    student, given = build(), inputs()
    with_rows = student(given)
    assert not torch.equal(with_rows[0], student.without_structure(given.x)[0])
    student.routed = True
    routed = student(given)
    torch.testing.assert_close(routed[0], student.without_structure(given.x)[0])
    torch.testing.assert_close(routed[1:], with_rows[1:])
    lone = NodeInputs(given.x, neighbors=no_neighbors(NODES, COLUMNS))
    torch.testing.assert_close(student(lone), student.without_structure(given.x))


def test_lone_nodes_never_read_the_table_nor_the_others_the_predictor() -> None:
    given = inputs()
    lone = NodeInputs(given.x, neighbors=no_neighbors(NODES, COLUMNS))
    student = build(routed=True)
    broken = copy.deepcopy(student)
    with torch.no_grad():
        broken.table.weight.fill_(torch.nan)
        broken.structure_bias.fill_(torch.nan)
    torch.testing.assert_close(broken(lone), student(lone))
    broken = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in broken.predictor.parameters():
            parameter.fill_(torch.nan)
    connected = given.take(torch.arange(1, NODES))
    torch.testing.assert_close(broken(connected), student(connected))


def test_gradients_stay_on_the_route() -> None:
    student, given = build(), inputs()
    student(given).sum().backward()
    assert all(parameter.grad is None for parameter in student.predictor.parameters())
    student.zero_grad()
    student.without_structure(given.x).sum().backward()
    assert student.table.weight.grad is None
    assert student.structure_bias.grad is None


def test_blend_for_low_degrees() -> None:
    student, given = build(routed=True, blend=3.0), inputs()
    degree = given.neighbors.to_dense().sum(1, keepdim=True)
    kappa = degree / (degree + 3)
    z_a = student.structure_part(given.neighbors)
    mixed = kappa * z_a + (1 - kappa) * student.predictor(given.x)
    expected = student.head.decode(mixed, student.head.encode(given.x)).logits
    torch.testing.assert_close(student(given), expected)


def test_a_head_of_their_own_for_lone_nodes() -> None:
    student, given = build(routed=True, own_head=True), inputs()
    z_x = student.lone_head.encode(given.x)
    alone = student.lone_head.decode(student.predictor(given.x), z_x).logits
    torch.testing.assert_close(student(given)[0], alone[0])
    torch.testing.assert_close(student.without_structure(given.x), alone)
    student.lone_head = None
    assert not torch.equal(student(given)[0], alone[0])


def test_a_node_that_knows_no_landmark_is_alone() -> None:
    student = build("landmark", routed=True)
    row = torch.zeros(1, COLUMNS)
    row[0, 0] = 1  # no landmark
    x = torch.rand(1, WIDTH)
    answer = student(NodeInputs(x, neighbors=to_csr(row)))
    torch.testing.assert_close(answer, student.without_structure(x))


def test_the_state_says_whether_nodes_are_routed() -> None:
    student, other = build(routed=True), build()
    other.load_state_dict(student.state_dict())
    assert other.routed
    assert torch.equal(other(given := inputs()), student(given))
    other.reset_parameters()
    assert not other.routed
    assert not torch.equal(other.table.weight, student.table.weight)


def test_what_it_reads() -> None:
    student = build()
    assert [(spec.name, spec.width, spec.dtype) for spec in student.inputs] == [
        ("x", WIDTH, "float32"),
        ("neighbors", COLUMNS, "int64"),
    ]
    assert repr(student) == "SAMLP(6, 3, table=FullTable(10), routed=False)"
    with pytest.raises(OptionError, match="SA-MLP reads the neighbours of a node"):
        student(NodeInputs(torch.rand(2, WIDTH)))
    with pytest.raises(OptionError, match="rows of 4 values, but the hidden layers are 8 wide"):
        SAMLP(WIDTH, 8, 3, table(channels=4))


# --- serving ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("adj_norm", ["none", "row", "sqrt-degree"])
def test_an_edge_more_or_less_is_exact(kind: str, adj_norm: str) -> None:
    student = build(kind, routed=True, adj_norm=adj_norm)
    given = inputs()
    rows = given.neighbors.to_dense()
    z_a, degree = student.structure_part(given.neighbors), student.table.degree(given.neighbors)
    torch.testing.assert_close(student.from_structure(given.x, z_a, degree), student(given))
    ids = torch.randint(COLUMNS, (NODES,))
    new = torch.rand(NODES) < 0.5
    for weight in (1.0, -1.0):
        changed = rows.clone()
        changed[torch.arange(NODES), ids] += weight
        # only edges that can come or go
        chosen = (rows[torch.arange(NODES), ids] == (0 if weight > 0 else 1)) | new.logical_not()
        chosen &= changed[torch.arange(NODES), ids].clamp(0, 1) == changed[torch.arange(NODES), ids]
        assert bool(chosen.any())
        after = to_csr(changed[chosen])
        z_new, degree_new = student.with_edges(
            z_a[chosen], degree[chosen], ids[chosen], weight=weight
        )
        torch.testing.assert_close(degree_new, student.table.degree(after))
        torch.testing.assert_close(z_new, student.structure_part(after), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "landmark"])
@pytest.mark.parametrize("adj_norm", ["none", "row"])
def test_explanation(kind: str, adj_norm: str) -> None:
    student, given = build(kind, routed=True, adj_norm=adj_norm), inputs(True)
    explained = student.explain(given)
    torch.testing.assert_close(explained.logits, student(given))
    streams = student.streams(given)
    torch.testing.assert_close(explained.gate, streams.gate.squeeze(1))
    structure = streams.gate * (streams.structure - streams.structure.mean(1, keepdim=True))
    feature = (1 - streams.gate) * (streams.feature - streams.feature.mean(1, keepdim=True))
    share = structure.norm(dim=1) / (structure.norm(dim=1) + feature.norm(dim=1))
    torch.testing.assert_close(explained.share, share)
    rows, change = given.neighbors.to_dense(), explained.neighbors.to_dense()
    probabilities = explained.logits.softmax(1)
    student.requires_grad_(False)
    for node, column in rows.nonzero().tolist():
        left = rows[[node]].clone()
        left[0, column] = 0
        one = given.take(torch.tensor([node]))
        without = student(NodeInputs(one.x, neighbors=to_csr(left))).softmax(1)[0]
        answer = int(probabilities[node].argmax())
        expected = float(probabilities[node, answer] - without[answer])
        assert float(change[node, column]) == pytest.approx(expected, abs=1e-5)
    assert bool((change[rows == 0] == 0).all())


# --- hidden layers by name --------------------------------------------------------------------


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("own_head", [False, True])
def test_layers_are_those_of_a_forward_pass(routed: bool, own_head: bool) -> None:
    options = {"blend": 2.0, "own_head": own_head, "stream_norm": "layer", "dropout": 0.5}
    student = build(routed=routed, **options).train()
    given = inputs()
    torch.manual_seed(1)
    logits = copy.deepcopy(student)(given)
    torch.manual_seed(1)
    outputs = student.layers(given)
    assert list(outputs) == ["hidden1", "logits"]
    torch.testing.assert_close(outputs["logits"], logits)
    assert outputs["hidden1"].shape == (NODES, 16)


def test_the_hidden_layer_is_what_the_gate_reads() -> None:
    student, given = build(), inputs()
    outputs = student.layers(given)
    gate = torch.sigmoid(student.head.gate(outputs["hidden1"]))
    torch.testing.assert_close(gate, student.streams(given).gate)
    alone = build(routed=True, own_head=True)
    with torch.no_grad():
        for parameter in alone.lone_head.parameters():
            parameter.add_(0.1)
    hidden = alone.layers(given)["hidden1"][0]  # the node without neighbours
    gate = torch.sigmoid(alone.lone_head.gate(hidden))
    torch.testing.assert_close(gate, alone.streams(given).gate[0])
