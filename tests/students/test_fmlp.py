"""FMLP-O and FMLP-S, the networks: sizes, gates, and what they can represent."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.framelets import FrameletOptions, Framelets
from limbeck.graphs.sparse import to_csr
from limbeck.students.fmlp import (
    FMLP,
    FMLPO,
    FMLPS,
    BandEncoders,
    GivenBands,
    NodeTables,
)
from limbeck.students.inputs import NodeInputs
from limbeck.testing import check_student

NODES, WIDTH, HIDDEN, CLASSES, BANDS = 14, 6, 8, 3, 2
EXACT = FrameletOptions(mode="eigh")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def edges(num_nodes: int = NODES) -> Tensor:
    """A ring with chords and one isolated node, both directions."""
    ring = torch.arange(num_nodes - 1)
    one_way = torch.stack([ring, (ring + 1) % (num_nodes - 1)])
    chords = torch.tensor([[0, 1, 2], [5, 7, 9]])
    both = torch.cat([one_way, chords], dim=1)
    return torch.cat([both, both.flip(0)], dim=1)


def original(powers: int = 2, **options: object) -> FMLPO:
    return FMLPO(WIDTH, CLASSES, GivenBands(powers, BANDS, HIDDEN), **options).eval()


def simplified(**options: object) -> FMLPS:
    return FMLPS(WIDTH, CLASSES, GivenBands(1, BANDS, HIDDEN), **options).eval()


def given(student: FMLP, nodes: int = NODES) -> NodeInputs:
    return NodeInputs(torch.randn(nodes, WIDTH), bands=torch.randn(nodes, student.reader.width))


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


# --- conformance ------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["split", "released"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("build", [original, simplified])
def test_conforms(build: type[FMLP], gate: str, tied: bool) -> None:
    student = build(gate=gate, tied=tied, head_layers=2, norm="batch", dropout=0.3)
    check_student(student, given(student), CLASSES)
    student.add_predictor(5)
    check_student(student.answering_by("predictor"), given(student), CLASSES)


@pytest.mark.parametrize("network", [FMLPO, FMLPS])
def test_conforms_on_coefficients_of_features(network: type[FMLP]) -> None:
    reader = BandEncoders(2 if network is FMLPO else 1, BANDS, HIDDEN, 5)
    student = network(WIDTH, CLASSES, reader, dropout=0.2)
    inputs = given(student)
    reader.fit(inputs.bands)
    check_student(student, inputs, CLASSES)


def test_sparse_features_answer_as_dense_ones() -> None:
    student = original()
    student.add_predictor(5)
    inputs = given(student)
    x = (inputs.x > 0).float()
    for bands in (inputs.bands, None):
        dense, sparse = NodeInputs(x, bands=bands), NodeInputs(to_csr(x), bands=bands)
        for other in (student, student.answering_by("predictor")):
            torch.testing.assert_close(other(sparse), other(dense))


def test_a_fresh_start_is_another_student() -> None:
    student = original(gate="split", head_layers=2)
    before = copy.deepcopy(student.state_dict())
    student.reset_parameters()
    changed = [name for name, value in student.state_dict().items() if value.ndim > 1]
    assert changed
    assert all(not torch.equal(before[name], student.state_dict()[name]) for name in changed)


# --- sizes and gradients ----------------------------------------------------------------------


def test_as_many_parameters_as_the_card_counts_at_the_size_of_cora() -> None:
    num_nodes, width, hidden, classes = 2708, 1433, 8, 7
    tables = NodeTables(num_nodes, hidden, 2, (1, 2))
    released = FMLPO(width, classes, GivenBands(2, 2, hidden), gate="released")
    assert count(released, tables) == 55_094
    split = FMLPO(width, classes, GivenBands(2, 2, hidden), gate="split")
    assert count(split, tables) == 55_111
    for gate in ("split", "released"):
        student = FMLPS(width, classes, GivenBands(1, 2, hidden), gate=gate)
        assert count(student, NodeTables(num_nodes, hidden, 2, (2,))) == 55_022
    # what is served has nothing as long as the graph
    assert max(p.shape[0] for p in split.parameters()) < 100


@pytest.mark.parametrize("gate", ["split", "released"])
@pytest.mark.parametrize("num_layers", [2, 3])
def test_every_parameter_of_every_band_learns(num_layers: int, gate: str) -> None:
    powers = tuple(range(1, num_layers + 1))
    framelets = Framelets(edges(), NODES)
    for student, tables in (
        (original(num_layers, gate=gate), NodeTables(NODES, HIDDEN, BANDS, powers)),
        (simplified(gate=gate), NodeTables(NODES, HIDDEN, BANDS, (num_layers,))),
    ):
        x = torch.randn(NODES, WIDTH)
        logits = student(NodeInputs(x, bands=tables.on(framelets, 0)))
        F.cross_entropy(logits, torch.arange(NODES) % CLASSES).backward()
        for module in (student, tables):
            for name, parameter in module.named_parameters():
                assert parameter.grad is not None, name
                assert float(parameter.grad.abs().sum()) > 0, name
        for band in range(BANDS):
            assert float(tables.tables.grad[band].abs().sum()) > 0


@pytest.mark.parametrize("num_layers", [3, 4])
def test_each_layer_reads_its_own_power_once(num_layers: int) -> None:
    """A change of one power's block is felt from that layer on, and not before."""
    student = original(num_layers)
    inputs = given(student)
    width = BANDS * HIDDEN
    layers = student.layers(inputs)
    for power in range(num_layers):
        bands = inputs.bands.clone()
        bands[:, power * width : (power + 1) * width] += 1
        changed = student.layers(NodeInputs(inputs.x, bands=bands))
        names = [f"hidden{k + 1}" for k in range(num_layers - 1)] + ["logits"]
        felt = [not torch.equal(changed[name], layers[name]) for name in names]
        assert felt == [k >= power for k in range(num_layers)]


def test_no_message_passes_from_features_to_features() -> None:
    student = original()
    x = torch.randn(NODES, WIDTH, requires_grad=True)
    inputs = NodeInputs(x, bands=torch.randn(NODES, student.reader.width))
    (gradient,) = torch.autograd.grad(student(inputs)[3].sum(), x)
    assert gradient[3].abs().sum() > 0
    gradient[3] = 0
    assert gradient.abs().sum() == 0


# --- tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("powers", [(1, 2), (2,), (1, 2, 3)])
def test_a_table_is_a_row_encoder(powers: tuple[int, ...]) -> None:
    """``Linear(N, h)`` on a row of ``P_b^k`` and the propagated table: values and gradients."""
    framelets = Framelets(edges(), NODES, EXACT)
    tables = NodeTables(NODES, HIDDEN, BANDS, powers).double()
    unit = torch.eye(NODES, dtype=torch.float64)
    rows = [
        framelets.propagate_band(band, unit, power).t() for power in powers for band in range(BANDS)
    ]
    by_rows = torch.cat(
        [
            row @ tables.tables[number % BANDS] + tables.bias[number % BANDS]
            for number, row in enumerate(rows)
        ],
        dim=1,
    )
    by_table = tables.on(framelets, 0)
    torch.testing.assert_close(by_table, by_rows, rtol=0, atol=1e-10)
    weight = torch.randn_like(by_rows)
    parameters = list(tables.parameters())
    ours = torch.autograd.grad((by_table * weight).sum(), parameters)
    theirs = torch.autograd.grad((by_rows * weight).sum(), parameters)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_new_nodes_have_no_row_in_the_table() -> None:
    tables = NodeTables(NODES, HIDDEN, BANDS, (1, 2))
    grown = NODES + 3
    new = torch.tensor([[NODES, NODES + 1], [2, 5]])
    edge_index = torch.cat([edges(), new, new.flip(0)], dim=1)
    framelets = Framelets(edge_index, grown)
    found = tables.on(framelets, 0)
    padded = NodeTables(grown, HIDDEN, BANDS, (1, 2))
    with torch.no_grad():
        padded.bias.copy_(tables.bias)
        padded.tables.zero_()[:, :NODES].copy_(tables.tables)
    torch.testing.assert_close(found, padded.on(framelets, 0))
    # a new node without edges has its bias and nothing else
    torch.testing.assert_close(found[-1], tables.bias.flatten().repeat(2))
    alone = Framelets(edge_index[:, :0], 2)
    torch.testing.assert_close(tables.on(alone, NODES), found[-1:].expand(2, -1))


def test_a_tied_table_serves_all_bands() -> None:
    framelets = Framelets(edges(), NODES)
    tied = NodeTables(NODES, HIDDEN, BANDS, (2,), tied=True)
    apart = NodeTables(NODES, HIDDEN, BANDS, (2,))
    with torch.no_grad():
        apart.tables.copy_(tied.tables.expand(BANDS, -1, -1))
        apart.bias.copy_(tied.bias.expand(BANDS, -1))
    assert count(tied) * BANDS == count(apart)
    torch.testing.assert_close(tied.on(framelets, 0), apart.on(framelets, 0))


def test_coefficients_are_scaled_block_by_block() -> None:
    reader = BandEncoders(2, BANDS, HIDDEN, 5)
    bands = torch.randn(30, 2, BANDS, 5) * torch.tensor([[1.0, 0.1], [0.5, 0.0]])[..., None]
    reader.fit(bands.flatten(1))
    size = bands.square().mean(dim=(0, 3)).sqrt()
    torch.testing.assert_close(reader.scale[:, 0], size[:, 0])
    assert float(reader.scale[1, 1]) == 1  # a block of zeros
    scaled = bands / reader.scale[..., None]
    expected = torch.stack(
        [encoder(scaled[:, :, b]) for b, encoder in enumerate(reader.encoders)], dim=2
    )
    torch.testing.assert_close(reader(bands.flatten(1)), expected)


# --- what the student contains ----------------------------------------------------------------


@pytest.mark.parametrize("gate", ["split", "released"])
@pytest.mark.parametrize("power", [1, 2, 3])
def test_the_simplified_student_contains_its_teacher(power: int, gate: str) -> None:
    """``M_b C_b = X Theta_b`` and a gate open to the graph: FMLP-S is T-SIMP."""
    framelets = Framelets(edges(), NODES, EXACT)
    x = torch.randn(NODES, WIDTH, dtype=torch.float64)
    theta = torch.randn(BANDS, WIDTH, CLASSES, dtype=torch.float64)
    beta = torch.randn(CLASSES, dtype=torch.float64)
    teacher = beta + sum(framelets.propagate_band(b, x @ theta[b], power) for b in range(BANDS))
    student = simplified(gate=gate).double()
    tables = NodeTables(NODES, HIDDEN, BANDS, (power,)).double()
    with torch.no_grad():
        for parameter in tables.parameters():
            parameter.zero_()
        for b, head in enumerate(student.heads):
            tables.tables[b, :, :CLASSES] = x @ theta[b]
            head.first_map.weight.copy_(torch.eye(CLASSES, HIDDEN))
            head.first_map.bias.copy_(beta / BANDS)
        student.gate.weight.zero_()
        student.gate.bias.fill_(40.0 if gate == "split" else -40.0)
        answer = student(NodeInputs(x, bands=tables.on(framelets, 0)))
    torch.testing.assert_close(answer, teacher, rtol=0, atol=1e-8)


def saturate(student: FMLP, *, graph: bool) -> None:
    """Push every gate as far as it goes."""
    gates = [student.gate]
    if isinstance(student, FMLPO) and student.output_gate is not None:
        gates.append(student.output_gate)
    with torch.no_grad():
        for gate in gates:
            gate.weight.zero_()
            gate.bias.fill_(60.0 if graph else -60.0)


def test_a_gate_shut_to_the_graph_leaves_the_features() -> None:
    for student in (original(), simplified()):
        inputs = given(student)
        alone = student(NodeInputs(inputs.x))
        assert float((student(inputs) - alone).detach().abs().max()) > 0.01
        saturate(student, graph=False)
        torch.testing.assert_close(student(inputs), alone, rtol=0, atol=1e-6)
        assert float(student.explain(inputs).gates.max()) < 1e-6


def test_a_gate_open_to_the_graph_leaves_the_bands() -> None:
    for student in (original(), simplified()):
        saturate(student, graph=True)
        inputs = given(student)
        other = NodeInputs(torch.randn(NODES, WIDTH), bands=inputs.bands)
        torch.testing.assert_close(student(inputs), student(other), rtol=0, atol=1e-6)
        assert float(student.explain(inputs).shares[:, -1].max()) < 1e-6


def test_features_alone_by_hand() -> None:
    x = torch.randn(5, WIDTH)
    student = original()
    u = F.relu(student.feature_encoder(x))
    u = F.relu(student.re_encoder(BANDS * u))
    torch.testing.assert_close(student(NodeInputs(x)), BANDS * student.feature_head(u))
    student = simplified()
    expected = BANDS * student.feature_head(student.feature_encoder(x))
    torch.testing.assert_close(student(NodeInputs(x)), expected)


# --- gates ------------------------------------------------------------------------------------


def test_the_split_gate_contains_the_released_one() -> None:
    released, split = original(gate="released"), original(gate="split")
    state = released.state_dict()
    split.load_state_dict(
        {
            **state,
            "output_gate.weight": -state["gate.weight"],
            "output_gate.bias": -state["gate.bias"],
        }
    )
    inputs = given(split)
    torch.testing.assert_close(split(inputs), released(inputs))
    # and what it weighs is told alike
    ours, theirs = split.explain(inputs), released.explain(inputs)
    torch.testing.assert_close(ours.gates, theirs.gates)
    torch.testing.assert_close(ours.shares, theirs.shares)


def test_of_the_simplified_student_both_rules_differ_by_a_sign() -> None:
    released, split = simplified(gate="released"), simplified(gate="split")
    split.load_state_dict(released.state_dict())
    with torch.no_grad():
        split.gate.weight.neg_()
        split.gate.bias.neg_()
    inputs = given(split)
    torch.testing.assert_close(split(inputs), released(inputs))


def test_gates_lie_between_features_and_graph() -> None:
    student = original(3)
    inputs = given(student)
    told = student.explain(inputs)
    assert told.gates.shape == (NODES, 3, BANDS)
    assert float(told.gates.min()) > 0
    assert float(told.gates.max()) < 1
    assert told.shares.shape == (NODES, BANDS + 1)
    torch.testing.assert_close(told.shares.sum(1), torch.ones(NODES))
    parts = student.trace(inputs).parts
    torch.testing.assert_close(parts.sum(1), told.logits)
    torch.testing.assert_close(told.logits, student(inputs))
    without = student.explain(NodeInputs(inputs.x))
    assert float(without.gates.abs().max()) == 0
    torch.testing.assert_close(without.shares[:, -1], torch.ones(NODES))


def test_a_band_that_says_nothing_has_no_share() -> None:
    student = simplified()
    with torch.no_grad():
        student.heads[1].first_map.weight.zero_()
        student.heads[1].first_map.bias.fill_(3.0)  # the same for every class
    shares = student.explain(given(student)).shares
    assert float(shares[:, 1].max()) < 1e-6
    assert float(shares[:, 0].min()) > 0


def test_the_released_output_reads_the_low_band_twice() -> None:
    student = original(tied=True)
    inputs = given(student)
    bands = inputs.bands.clone()
    bands[:, -HIDDEN:] += 1  # the high band of the last power
    torch.testing.assert_close(student(NodeInputs(inputs.x, bands=bands)), student(inputs))
    bands[:, -2 * HIDDEN : -HIDDEN] += 1
    changed = student(NodeInputs(inputs.x, bands=bands))
    assert float((changed - student(inputs)).detach().abs().max()) > 0.01
    assert len(student.heads) == 1


# --- nodes without bands ----------------------------------------------------------------------


def test_a_predictor_that_guesses_right_answers_as_with_bands() -> None:
    student = original()
    student.add_predictor(4)
    bands = torch.randn(student.reader.width)
    with torch.no_grad():
        student.predictor.lins[1].weight.zero_()
        student.predictor.lins[1].bias.copy_(bands)
    x = torch.randn(5, WIDTH)
    guessing = student.answering_by("predictor")
    with_bands = student(NodeInputs(x, bands=bands.expand(5, -1)))
    torch.testing.assert_close(guessing(NodeInputs(x)), with_bands)
    # the same weights, and the other student is as it was
    assert guessing.predictor is student.predictor
    assert student.fallback == "features"
    assert not torch.equal(student(NodeInputs(x)), with_bands)


def test_a_state_remembers_who_answers_nodes_without_bands() -> None:
    student = original()
    student.add_predictor(4)
    state = student.answering_by("predictor").state_dict()
    other = original()
    other.add_predictor(4)
    other.load_state_dict(state)
    assert other.fallback == "predictor"


def test_wrong_use_is_refused() -> None:
    with pytest.raises(OptionError, match="needs two layers or more"):
        original(1)
    with pytest.raises(OptionError, match="FMLP-S reads one power, but 2 were given"):
        FMLPS(WIDTH, CLASSES, GivenBands(2, BANDS, HIDDEN))
    with pytest.raises(OptionError, match="the student has no predictor"):
        original().answering_by("predictor")
    with pytest.raises(OptionError, match="the bands have 3 values per node, but the student"):
        original()(NodeInputs(torch.randn(2, WIDTH), bands=torch.randn(2, 3)))
