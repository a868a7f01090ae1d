"""Students that are GNNs: what they read, what they answer, what their layers are called."""

import copy

import pytest
import torch
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.sparse import to_csr
from limbeck.graphs.view import make_view
from limbeck.students import NodeInputs
from limbeck.students.gnn import GNNStudent, full_batch, graph_inputs
from limbeck.students.inputs import Surroundings
from limbeck.teachers.gat import GAT
from limbeck.teachers.gcn import GCN
from limbeck.teachers.gcnii import GCNII
from limbeck.teachers.sage import SAGE
from limbeck.testing import check_student, small_graph

NODES, WIDTH, CLASSES = 10, 6, 3
NETWORKS = {
    "gcn": lambda **options: GCN(WIDTH, 8, CLASSES, 3, **options),
    "gcn-batch": lambda **options: GCN(WIDTH, 8, CLASSES, 3, "batch", **options),
    "gat": lambda **options: GAT(WIDTH, 8, CLASSES, 3, 2, out_heads=3, residual=True, **options),
    "sage": lambda **options: SAGE(WIDTH, 8, CLASSES, 3, **options),
    "sage-root": lambda **options: SAGE(WIDTH, 8, CLASSES, 3, root_weight=True, **options),
    "gcnii": lambda **options: GCNII(WIDTH, 8, CLASSES, 3, **options),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def edges() -> Tensor:
    """Random edges in both directions; node 9 has none."""
    forward = torch.randint(NODES - 1, (2, 20))
    return torch.cat([forward, forward.flip(0)], dim=1)


def student(name: str, **options: object) -> GNNStudent:
    """A student whose running statistics, if any, have left their start."""
    gnn = NETWORKS[name](**options)
    gnn(torch.randn(NODES, WIDTH), edges())
    return GNNStudent(gnn, NODES).eval()


def given(edge_index: Tensor, x: Tensor | None = None) -> NodeInputs:
    """All nodes of a graph with random features."""
    x = torch.randn(NODES, WIDTH) if x is None else x
    return NodeInputs(x, graph=Surroundings(x, edge_index, torch.arange(NODES)))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("prepared", [False, True])
def test_conforms(name: str, prepared: bool) -> None:
    model, edge_index = student(name), edges()
    adj = model.gnn.prepare(edge_index, NODES) if prepared else edge_index
    check_student(model, given(adj), CLASSES)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_answers_as_its_network_does(name: str) -> None:
    model, edge_index = student(name), edges()
    inputs = given(edge_index)
    asked = torch.tensor([7, 0, 7, 9])
    with torch.no_grad():
        whole = model.gnn(inputs.x, edge_index)
        torch.testing.assert_close(model(inputs.take(asked)), whole[asked])
        sparse = given(edge_index, to_csr(inputs.x))
        torch.testing.assert_close(model(sparse.take(asked)), whole[asked], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_rows_of_the_networks_layers(name: str) -> None:
    model = student(name)
    inputs = given(edges())
    asked = torch.tensor([3, 1])
    outputs = model.layers(inputs.take(asked))
    assert list(outputs) == [f"hidden{i + 1}" for i in range(len(outputs) - 1)] + ["logits"]
    assert len(outputs) == (4 if name == "gcnii" else 3)
    assert inputs.graph is not None
    theirs = model.gnn.layers(inputs.x, model.gnn.prepare(inputs.graph.edge_index, NODES))
    for layer, output in outputs.items():
        assert torch.equal(output, theirs[layer][asked])


@pytest.mark.parametrize("name", NETWORKS)
def test_training_passes_draw_what_a_forward_pass_draws(name: str) -> None:
    model = student(name, dropout=0.5, input_dropout=0.3).train()
    inputs = given(edges())
    torch.manual_seed(1)
    logits = copy.deepcopy(model)(inputs)
    torch.manual_seed(1)
    outputs = model.layers(inputs)
    assert torch.equal(outputs["logits"], logits)
    # hidden states are recorded in front of dropout: without input dropout the first has no noise
    model = student(name, dropout=0.5, input_dropout=0.0).train()
    if name not in ("gcnii", "gcn-batch"):
        first = model.layers(inputs)["hidden1"]
        assert torch.equal(first, model.layers(inputs)["hidden1"])
    outputs = model.layers(inputs)
    outputs["logits"].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_states_in_front_of_an_activation(name: str) -> None:
    behind = student(name)
    front = copy.deepcopy(behind)
    front.gnn.exposed = "pre-activation"
    inputs = given(edges())
    activation = torch.nn.functional.elu if name == "gat" else torch.relu
    theirs = front.layers(inputs)
    for layer, output in behind.layers(inputs).items():
        if layer == "logits":
            assert torch.equal(output, theirs[layer])
        else:
            assert bool((theirs[layer] < 0).any())
            assert torch.equal(output, activation(theirs[layer]))


def test_no_graph_is_said_in_one_sentence() -> None:
    with pytest.raises(
        OptionError, match="reads the graph around a node, and the inputs have none"
    ):
        student("gcn")(NodeInputs(torch.randn(2, WIDTH)))


def test_declaration() -> None:
    model = student("gcn")
    declared = [(spec.name, spec.width, spec.dtype) for spec in model.inputs]
    assert declared == [("x", WIDTH, "float32"), ("graph", NODES, "int64")]
    inputs = given(edges())
    assert full_batch(inputs)
    assert not full_batch(NodeInputs(inputs.x))
    assert "GCN" in repr(model)


def test_a_fresh_start_is_that_of_its_network() -> None:
    for name in NETWORKS:
        model = student(name)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        torch.manual_seed(5)
        model.reset_parameters()
        first = {key: value.clone() for key, value in model.state_dict().items()}
        torch.manual_seed(5)
        model.gnn.reset_parameters()
        for key, value in model.state_dict().items():
            assert torch.equal(value, first[key])
        changed = [not torch.equal(before[key], first[key]) for key in before if "weight" in key]
        assert any(changed)


def test_a_state_dict_and_the_options_are_all_that_is_needed() -> None:
    model, inputs = student("gat"), given(edges())
    other = GNNStudent(NETWORKS["gat"](), NODES).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(inputs), model(inputs))


# --- the graph in each condition --------------------------------------------------------------


@pytest.mark.parametrize("name", ["gcn", "gat", "sage", "gcnii"])
def test_unseen_nodes_are_asked_about_on_the_full_graph(name: str) -> None:
    view = make_view(small_graph(), "inductive", 0, unseen=0.5)
    networks = {"gcn": GCN, "gat": GAT, "sage": SAGE, "gcnii": GCNII}
    gnn = networks[name](view.num_features, 8, 3).eval()
    model, inputs = GNNStudent(gnn, view.num_observed), graph_inputs(view, gnn)
    known, full, alone = view.observed, view.everything, view.without_new_edges
    with torch.no_grad():
        torch.testing.assert_close(model(inputs.observed), gnn(known.x, known.edge_index))
        rows = slice(view.num_observed, None)
        torch.testing.assert_close(model(inputs.unseen), gnn(full.x, full.edge_index)[rows])
        torch.testing.assert_close(model(inputs.isolated), gnn(full.x, alone.edge_index)[rows])
        assert not torch.allclose(model(inputs.isolated), model(inputs.unseen))
    assert torch.equal(inputs.unseen.x, full.x[rows])


def test_a_view_without_unseen_nodes_has_nobody_to_ask_about() -> None:
    view = make_view(small_graph(sparse=True), "transductive", 0)
    gnn = GCN(view.num_features, 8, 3).eval()
    inputs = graph_inputs(view, gnn)
    assert inputs.unseen is inputs.isolated
    assert inputs.unseen.graph is not None
    assert len(inputs.unseen.graph.x) == 0
    assert GNNStudent(gnn, view.num_observed)(inputs.unseen).shape == (0, 3)
