"""Students that read more than features: what changes when nodes and edges come and go."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import limbeck
from limbeck.errors import RequestError
from limbeck.evaluation.distill import distill
from limbeck.export import export_bundle
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.view import make_view
from limbeck.methods import Method
from limbeck.methods.limbeck import Limbeck
from limbeck.methods.linkx import LINKXOnLabels
from limbeck.methods.sa_mlp import StructureAwareMLP
from limbeck.runtime import BundledStudent, OverlaidStudent, StructureExplanation
from limbeck.students.fmlp import FMLPS, GivenBands
from limbeck.students.gnn import GNNStudent
from limbeck.students.inputs import InputSpec, NodeInputs, Surroundings
from limbeck.teachers import knowledge_from
from limbeck.teachers.sage import SAGE
from limbeck.testing import small_graph

NODES, WIDTH, CLASSES = 30, 6, 3
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}
KINDS: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "sa-mlp": (StructureAwareMLP, {}),
    "linkx": (LINKXOnLabels, {}),
    "limbeck": (Limbeck, {"trust": "always", "hear": "always"}),
}


@pytest.fixture(
    scope="module",
    params=["sa-mlp, dense", "sa-mlp, sparse", "linkx, dense", "limbeck, dense", "limbeck, sparse"],
)
def neighborly(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a student that sums over its neighbours."""
    name, features = request.param.split(", ")
    view = make_view(small_graph(sparse=features == "sparse"), "transductive", 0)
    torch.manual_seed(0)
    teacher = knowledge_from(torch.randn(len(view.nodes), 3))
    kind, options = KINDS[name]
    method = kind(hidden_channels=16, max_epochs=4, **options)
    run = distill(view, teacher if method.needs_teacher else None, method, 0)
    return run.save(tmp_path_factory.mktemp(name) / "student")


@pytest.fixture
def live(neighborly: Path, place: str | Path) -> OverlaidStudent:
    return limbeck.load(neighborly).with_overlay(place)


def rows(student: BundledStudent, nodes: list[int]) -> np.ndarray:
    found = student.store.features(student.store.rows_of(nodes))
    return found if isinstance(found, np.ndarray) else found.dense()


def neighbors(student: BundledStudent, node: int) -> list[int]:
    assert student.structure is not None
    edges = student.structure.edges_of_known(student.store.rows_of([node]))
    return student.store.ids_of(edges.neighbor)


def test_edges_of_known_nodes_are_exact(live: OverlaidStudent, neighborly: Path) -> None:
    plain = limbeck.load(neighborly)
    node = next(n for n in plain.store.ids.tolist() if len(neighbors(plain, n)) > 1)
    near = neighbors(plain, node)
    far = [n for n in plain.store.ids.tolist() if n not in near and n != node][:2]
    live.add_edges([(node, far[0]), (node, far[1])], undirected=False)
    live.remove_edges([(node, near[0])], undirected=False)
    expected = plain.predict_logits(x=rows(plain, [node]), neighbors=[[*near[1:], *far]])
    np.testing.assert_allclose(live.predict_logits([node]), expected, **CLOSE)
    # the other ends were not told
    np.testing.assert_array_equal(live.predict_logits(far), plain.predict_logits(far))
    live.remove_edges([(node, n) for n in (*near, *far)], undirected=True)
    alone = plain.predict_logits(x=rows(plain, [node]))
    np.testing.assert_allclose(live.predict_logits([node]), alone, **CLOSE)
    live.upsert([node], neighbors=[near])
    np.testing.assert_allclose(live.predict_logits([node]), plain.predict_logits([node]), **CLOSE)


def test_features_and_edges_change_together(live: OverlaidStudent, neighborly: Path) -> None:
    plain = limbeck.load(neighborly)
    node, other, third = plain.store.ids.tolist()[:3]
    x = np.zeros((1, plain.width), dtype=np.float32)
    x[0, :3] = [1, 0, 2]
    live.upsert([node], x)
    near = neighbors(plain, node)
    np.testing.assert_allclose(
        live.predict_logits([node]), plain.predict_logits(x=x, neighbors=[near]), **CLOSE
    )
    live.upsert([node], x, neighbors=[[other, third]])
    expected = plain.predict_logits(x=x, neighbors=[[other, third]])
    np.testing.assert_allclose(live.predict_logits([node]), expected, **CLOSE)
    found, wanted = live.explain([node]), plain.explain(x=x, neighbors=[[other, third]])
    assert isinstance(found, StructureExplanation)
    assert isinstance(wanted, StructureExplanation)
    if wanted.share is None:  # a student without a gate
        assert (found.gate, found.share, wanted.gate) == (None, None, None)
    else:
        np.testing.assert_allclose(found.share, wanted.share, **CLOSE)
    assert [e.neighbor for e in found.neighbors[0]] == [e.neighbor for e in wanted.neighbors[0]]
    effects = [[e.change for e in each.neighbors[0]] for each in (found, wanted)]
    np.testing.assert_allclose(*effects, **CLOSE)


def test_new_nodes_and_unknown_neighbours(live: OverlaidStudent, neighborly: Path) -> None:
    plain = limbeck.load(neighborly)
    first, second = plain.store.ids.tolist()[:2]
    x = rows(plain, [first, second]) * 2
    live.upsert([10**6, 10**6 + 1], x, neighbors=[[first, second, 777], []])
    expected = plain.predict_logits(x=x, neighbors=[[first, second], []])
    np.testing.assert_allclose(live.predict_logits([10**6, 10**6 + 1]), expected, **CLOSE)
    assert live.staleness([10**6, 10**6 + 1]).unknown_neighbors.tolist() == [1, 0]
    # a new node is nobody's neighbour in answers, and is counted
    before = live.predict_logits([first])
    live.add_edges([(10**6 + 1, first)])
    np.testing.assert_allclose(live.predict_logits([first]), before, **CLOSE)
    assert live.staleness([first]).unknown_neighbors.tolist() == [1]
    expected = plain.predict_logits(x=x[1:], neighbors=[[first]])
    np.testing.assert_allclose(live.predict_logits([10**6 + 1]), expected, **CLOSE)


def test_a_deleted_node_leaves_the_sums_of_others(
    live: OverlaidStudent, neighborly: Path, place: str | Path
) -> None:
    plain = limbeck.load(neighborly)
    node = next(n for n in plain.store.ids.tolist() if neighbors(plain, n))
    gone = neighbors(plain, node)[0]
    live.delete([gone])
    left = [n for n in neighbors(plain, node) if n != gone]
    expected = plain.predict_logits(x=rows(plain, [node]), neighbors=[left])
    np.testing.assert_allclose(live.predict_logits([node]), expected, **CLOSE)
    # nor does a request reach it
    np.testing.assert_array_equal(
        live.predict_logits(x=rows(plain, [node]), neighbors=[[gone]]),
        plain.predict_logits(x=rows(plain, [node])),
    )
    assert live.ignored_neighbors([[gone, node]]).tolist() == [1]
    with pytest.raises(RequestError, match="was deleted"):
        live.add_edges([(node, gone)])
    # another process reads the same
    other = limbeck.load(neighborly).with_overlay(place)
    np.testing.assert_allclose(other.predict_logits([node]), expected, **CLOSE)


def test_more_neighbours_than_allowed_are_refused(neighborly: Path, tmp_path: Path) -> None:
    plain = limbeck.load(neighborly, max_neighbors=2)
    live = plain.with_overlay(tmp_path / "overlay")
    ids = plain.store.ids.tolist()
    with pytest.raises(RequestError, match="at most 2"):
        live.upsert([10**6], rows(plain, ids[:1]), neighbors=[ids[:3]])
    live.upsert([10**6], rows(plain, ids[:1]), neighbors=[ids[:2]])
    with pytest.raises(RequestError, match="at most 2"):
        live.add_edges([(10**6, ids[2])], undirected=False)
    with pytest.raises(RequestError, match="must be a pair"):
        live.add_edges([(ids[0],)])


# ------------------------------------------------------------ positions, bands, neighbourhoods


class Placed(torch.nn.Module):
    """Logits are linear in features and position."""

    inputs = (InputSpec("x", WIDTH), InputSpec("position", 2))

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH + 2, CLASSES)

    def forward(self, inputs: NodeInputs) -> Tensor:
        logits: Tensor = self.linear(torch.cat([inputs.x, inputs.position], dim=1))
        return logits


def load(folder: Path, student: torch.nn.Module, inputs: NodeInputs) -> BundledStudent:
    names = np.array([f"n{i}" for i in range(NODES)], dtype=object)
    arguments: dict[str, Any] = {
        "student": student.eval(),
        "inputs": inputs,
        "graph_info": GraphInfo("toy", "", "fixed", ("a", "b", "c"), names),
        "method": "toy",
        "student_name": type(student).__name__.lower(),
        "hyper_parameters": {},
        "teacher": {},
        "setting": "transductive",
        "scores": {},
        "fingerprint": "0",
        "counts": {"edges": 3},
    }
    return limbeck.load(export_bundle(folder / "toy", **arguments))


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(NODES, WIDTH)


def test_positions_of_new_nodes_are_those_of_their_neighbours(tmp_path: Path, x: Tensor) -> None:
    plain = load(tmp_path, Placed(), NodeInputs(x, position=torch.randn(NODES, 2)))
    live = plain.with_overlay(tmp_path / "overlay")
    row = x[:1].numpy() + 1
    live.upsert(["new"], row, neighbors=[["n1", "n2"]])
    expected = plain.predict_logits(x=row, neighbors=[["n1", "n2"]])
    np.testing.assert_allclose(live.predict_logits(["new"]), expected, **CLOSE)
    live.add_edges([("new", "n3")])
    expected = plain.predict_logits(x=row, neighbors=[["n1", "n2", "n3"]])
    np.testing.assert_allclose(live.predict_logits(["new"]), expected, **CLOSE)
    # a known one keeps its position until its neighbours are given in full
    live.upsert(["n0"], row)
    expected = plain.predict_logits(x=row, position=plain.store.positions(np.array([0])))
    np.testing.assert_allclose(live.predict_logits(["n0"]), expected, **CLOSE)
    with pytest.raises(RequestError, match="does not hold the edges of the node 'n0'"):
        live.add_edges([("n0", "n1")])
    live.upsert(["n0"], neighbors=[["n4"]])
    expected = plain.predict_logits(x=row, neighbors=[["n4"]])
    np.testing.assert_allclose(live.predict_logits(["n0"]), expected, **CLOSE)
    live.delete(["n4"])
    expected = plain.predict_logits(x=row)
    np.testing.assert_allclose(live.predict_logits(["n0"]), expected, **CLOSE)


def test_changed_nodes_have_no_bands(tmp_path: Path, x: Tensor) -> None:
    student = FMLPS(WIDTH, CLASSES, GivenBands(1, 2, 2))
    width = {spec.name: spec.width for spec in student.inputs}["bands"]
    plain = load(tmp_path, student, NodeInputs(x, bands=torch.randn(NODES, width)))
    live = plain.with_overlay(tmp_path / "overlay")
    row = x[:2].numpy() + 1
    live.upsert(["new", "n0"], row)
    np.testing.assert_allclose(
        live.predict_logits(["new", "n0"]), plain.predict_logits(x=row), **CLOSE
    )
    found = live.explain(["n1", "new", "n0"])
    assert found.has_bands.tolist() == [True, False, False]  # type: ignore[union-attr]


def test_a_gnn_takes_new_nodes_only(tmp_path: Path, x: Tensor) -> None:
    edges = torch.randint(NODES, (2, 60))
    edges = torch.cat([edges, edges.flip(0)], dim=1)
    graph = Surroundings(x, edges, torch.arange(NODES))
    gnn = GNNStudent(SAGE(WIDTH, 8, CLASSES, num_layers=2), NODES)
    plain = load(tmp_path, gnn, NodeInputs(x, graph=graph))
    live = plain.with_overlay(tmp_path / "overlay")
    row = x[:1].numpy() + 1
    live.upsert(["new"], row, neighbors=[["n1", "n2"]])
    live.add_edges([("new", "n3")])
    expected = plain.predict_logits(x=row, neighbors=[["n1", "n2", "n3"]])
    np.testing.assert_allclose(live.predict_logits(["new"]), expected, **CLOSE)
    for change in (lambda: live.upsert(["n0"], row), lambda: live.delete(["n0"])):
        with pytest.raises(RequestError, match="'n0' cannot change"):
            change()
