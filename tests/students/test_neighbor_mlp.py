"""The MLP that hears its neighbours, and the one that answers where there are none."""

import pytest
import torch

from limbeck.errors import OptionError
from limbeck.graphs.sparse import to_csr
from limbeck.students import MLP, NodeInputs
from limbeck.students.inputs import no_neighbors
from limbeck.students.mlp import Norm
from limbeck.students.neighbor_mlp import NeighborMLP
from limbeck.students.sa_mlp import AdjNorm
from limbeck.students.structure_tables import FullTable
from limbeck.testing import check_student

NODES, COLUMNS, WIDTH, HIDDEN, CLASSES = 12, 10, 6, 8, 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def given(*, sparse: bool = False) -> NodeInputs:
    """Inputs of 12 nodes, the first of them without neighbours."""
    rows = (torch.rand(NODES, COLUMNS) < 0.4).float()
    rows[0] = 0.0
    rows[1:, 0] = 1.0
    x = (torch.rand(NODES, WIDTH) < 0.5).float()
    return NodeInputs(to_csr(x) if sparse else x, neighbors=to_csr(rows))


def build(norm: Norm = "none", num_layers: int = 2, adj_norm: AdjNorm = "row") -> NeighborMLP:
    """A student in eval mode whose batch norms have seen something."""
    among, alone = (MLP(WIDTH, HIDDEN, CLASSES, num_layers, norm, 0.5) for _ in range(2))
    student = NeighborMLP(among, alone, FullTable(COLUMNS, HIDDEN, init_std=0.5), adj_norm)
    with torch.no_grad():
        for _ in range(3):
            alone(given())
        alone.eval()
        for _ in range(3):
            student(given())
    return student.eval()


def test_by_hand() -> None:
    among, alone = MLP(1, 1, 2), MLP(1, 1, 2)
    student = NeighborMLP(among, alone, FullTable(2, 1)).eval()
    values = {
        "among.lins.0.weight": [[1.0]],
        "among.lins.0.bias": [0.5],
        "among.lins.1.weight": [[1.0], [-2.0]],
        "among.lins.1.bias": [0.0, 1.0],
        "alone.lins.0.weight": [[3.0]],
        "alone.lins.0.bias": [0.0],
        "alone.lins.1.weight": [[1.0], [0.0]],
        "alone.lins.1.bias": [0.0, 7.0],
        "table.weight": [[4.0], [2.0]],
    }
    student.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    rows = to_csr(torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]))
    with torch.no_grad():
        logits = student(NodeInputs(torch.ones(3, 1), neighbors=rows))
    # 1 + 0.5 + (4 + 2) / 2 = 4.5; 1 + 0.5 + 2 = 3.5; alone 3
    assert logits.tolist() == [[4.5, -8.0], [3.5, -6.0], [3.0, 7.0]]


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_conforms(norm: Norm) -> None:
    check_student(build(norm, 3), given(sparse=norm == "none"), CLASSES)


def test_layers_are_those_of_the_mlp_that_answers() -> None:
    student, inputs = build("layer", 3), given()
    with torch.no_grad():
        layers = student.layers(inputs)
        alone = student.alone.layers(NodeInputs(inputs.x))
    assert list(layers) == ["hidden1", "hidden2", "logits"]
    for name, rows in layers.items():
        torch.testing.assert_close(rows[0], alone[name][0])
        assert not torch.equal(rows[1], alone[name][1])


@pytest.mark.parametrize("adj_norm", ["none", "row", "sqrt-degree"])
def test_explains_by_taking_neighbours_away(adj_norm: AdjNorm) -> None:
    student, inputs = build(adj_norm=adj_norm), given()
    assert inputs.neighbors is not None
    found = student.explain(inputs)
    effects, rows = found.neighbors.to_dense(), inputs.neighbors.to_dense()
    assert torch.equal(found.neighbors.col_indices(), inputs.neighbors.col_indices())
    with torch.no_grad():
        probs = student(inputs).softmax(1)
        for node, neighbor in rows.nonzero().tolist():
            left = rows.clone()
            left[node, neighbor] = 0
            without = student(NodeInputs(inputs.x, neighbors=to_csr(left))).softmax(1)[node]
            answered = int(probs[node].argmax())
            expected = float(probs[node, answered] - without[answered])
            assert float(effects[node, neighbor]) == pytest.approx(expected, abs=1e-6)


def test_an_mlp_whose_weights_are_held_stays_as_it_is() -> None:
    student, inputs = build("batch"), given()
    before = {name: value.clone() for name, value in student.alone.state_dict().items()}
    student.alone.requires_grad_(False)
    student.train()
    assert student.training
    assert student.among.training
    assert not student.alone.training
    student(inputs).sum().backward()
    assert all(torch.equal(value, before[k]) for k, value in student.alone.state_dict().items())
    student.alone.requires_grad_(True)
    assert student.train().alone.training


def test_a_fresh_start() -> None:
    student, inputs = build("batch"), given()
    before = {name: value.clone() for name, value in student.named_parameters()}
    student.reset_parameters()
    changed = [n for n, value in student.named_parameters() if not torch.equal(value, before[n])]
    assert {name.split(".")[0] for name in changed} == {"among", "alone", "table"}
    with torch.no_grad():
        assert torch.isfinite(student(inputs)).all()
    assert repr(student) == "NeighborMLP(6, 3, num_layers=2, table=FullTable(10))"


def test_bad_input() -> None:
    table = FullTable(COLUMNS, HIDDEN)
    one, other = MLP(WIDTH, HIDDEN, CLASSES), MLP(WIDTH, 4, CLASSES)
    with pytest.raises(OptionError, match=r"\[6, 8, 3\] values, that of nodes alone \[6, 4, 3\]"):
        NeighborMLP(one, other, table)
    with pytest.raises(OptionError, match="rows of 8 values, but the first layer answers 4"):
        NeighborMLP(other, other, table)
    with pytest.raises(OptionError, match="num_layers at least 2"):
        NeighborMLP(*(MLP(WIDTH, HIDDEN, HIDDEN, 1) for _ in range(2)), table)
    with pytest.raises(OptionError, match="this student reads the neighbours of a node"):
        build()(NodeInputs(given().x))
    lonely = NodeInputs(given().x, neighbors=no_neighbors(NODES, COLUMNS))
    with torch.no_grad():
        student = build()
        assert torch.equal(student(lonely), student.alone(lonely))
