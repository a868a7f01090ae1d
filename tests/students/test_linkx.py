"""LINKX, the network: what PyG's computes for a whole graph, one node at a time."""

import pytest
import torch
from torch_geometric.nn.models import LINKX as PyGLINKX

from limbeck.errors import OptionError
from limbeck.graphs.sparse import to_csr
from limbeck.students import NodeInputs
from limbeck.students.linkx import LINKX
from limbeck.students.structure_tables import FullTable
from limbeck.testing import check_student

NODES, COLUMNS, WIDTH, HIDDEN, CLASSES = 12, 10, 6, 8, 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(*, sparse: bool = False) -> NodeInputs:
    """Inputs of 12 nodes, the first of them without neighbours."""
    rows = (torch.rand(NODES, COLUMNS) < 0.3).float()
    rows[0] = 0.0
    x = (torch.rand(NODES, WIDTH) < 0.5).float()
    return NodeInputs(to_csr(x) if sparse else x, neighbors=to_csr(rows))


def build(num_layers: int = 2) -> LINKX:
    """A student in eval mode whose batch norms have seen something."""
    table = FullTable(COLUMNS, HIDDEN, init_std=0.5)
    student = LINKX(WIDTH, HIDDEN, CLASSES, table, num_layers, dropout=0.5)
    with torch.no_grad():
        for _ in range(5):
            student(inputs())
    return student.eval()


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("sparse", [False, True])
def test_computes_what_pyg_computes(num_layers: int, sparse: bool) -> None:
    ours, given = build(num_layers), inputs(sparse=sparse)
    theirs = PyGLINKX(COLUMNS, WIDTH, HIDDEN, CLASSES, num_layers, dropout=0.5).eval()
    with torch.no_grad():
        theirs.edge_lin.weight.copy_(ours.table.weight)
        theirs.edge_lin.bias.copy_(ours.structure_bias)
        for mine, other in (
            (ours.feature_encoder, theirs.node_mlp.lins[0]),
            (ours.structure_map, theirs.cat_lin1),
            (ours.feature_map, theirs.cat_lin2),
            (ours.final, theirs.final_mlp),
        ):
            other.load_state_dict(mine.state_dict())
        torch.testing.assert_close(ours(given), theirs(given.x.to_dense(), given.neighbors))


def test_starts_in_the_range_that_pyg_starts_in() -> None:
    ours = LINKX(WIDTH, HIDDEN, CLASSES, FullTable(400, HIDDEN))
    theirs = PyGLINKX(400, WIDTH, HIDDEN, CLASSES, 2)
    for mine, other in (
        (ours.table.weight, theirs.edge_lin.weight),
        (ours.structure_bias, theirs.edge_lin.bias),
    ):
        assert float(mine.detach().abs().max()) <= 1 / 20
        assert float(other.detach().abs().max()) <= 1 / 20
    before = ours.feature_map.weight.clone()
    ours.reset_parameters()
    assert not torch.equal(ours.feature_map.weight, before)


@pytest.mark.parametrize("sparse", [False, True])
def test_conforms(sparse: bool) -> None:
    check_student(build(), inputs(sparse=sparse), CLASSES)


def test_layers_by_name() -> None:
    student, given = build(), inputs()
    with torch.no_grad():
        layers = student.layers(given)
        assert list(layers) == ["hidden1", "logits"]
        assert layers["hidden1"].shape == (NODES, HIDDEN)
        assert float(layers["hidden1"].min()) == 0
        torch.testing.assert_close(layers["logits"], student(given))


def test_the_answer_does_not_depend_on_features_of_neighbours() -> None:
    student, given = build(), inputs()
    changed = given.x.clone()
    changed[1:] += 1.0
    with torch.no_grad():
        torch.testing.assert_close(
            student(given)[0], student(NodeInputs(changed, neighbors=given.neighbors))[0]
        )


def test_bad_input() -> None:
    with pytest.raises(OptionError, match="rows of 4 values, but the hidden layers are 8 wide"):
        LINKX(WIDTH, HIDDEN, CLASSES, FullTable(COLUMNS, 4))
    with pytest.raises(OptionError, match="LINKX reads the neighbours of a node"):
        build()(NodeInputs(inputs().x))
