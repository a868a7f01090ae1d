"""Students that are GNNs, from torch to the bundle: new nodes around stored ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import limbeck
from limbeck.errors import OptionError, RequestError
from limbeck.export import export_bundle
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.sparse import to_csr
from limbeck.runtime import BundledStudent, measure_latency
from limbeck.students.gnn import GNNStudent
from limbeck.students.inputs import NodeInputs, Surroundings
from limbeck.teachers.gat import GAT
from limbeck.teachers.gcn import GCN
from limbeck.teachers.gcnii import GCNII
from limbeck.teachers.sage import SAGE
from limbeck.teachers.sgc import SGC

NODES, WIDTH, CLASSES = 40, 12, 3
IDS = [f"n{i}" for i in range(NODES)]

NETWORKS = {
    "gcn": lambda: GCN(WIDTH, 8, CLASSES, num_layers=3, norm="layer"),
    "gcn-batch": lambda: GCN(WIDTH, 8, CLASSES, num_layers=2, norm="batch"),
    "sage": lambda: SAGE(WIDTH, 8, CLASSES, num_layers=2, norm="batch"),
    "sage-root": lambda: SAGE(WIDTH, 8, CLASSES, num_layers=3, norm="batch", root_weight=True),
    "gat": lambda: GAT(WIDTH, 8, CLASSES, num_layers=2, heads=2, out_heads=2, residual=True),
    "gat-1": lambda: GAT(WIDTH, 8, CLASSES, num_layers=1, heads=4),
    "gcnii": lambda: GCNII(WIDTH, 8, CLASSES, num_layers=4),
    "sage-1": lambda: SAGE(WIDTH, 8, CLASSES, num_layers=1),
}


def make_gnn(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    gnn = NETWORKS[name]()
    for module in gnn.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 2.0)
            module.bias.data.normal_()
    return gnn.eval()


def make_graph(*, directed: bool = False, sparse: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(NODES, WIDTH, generator=generator)
    x = to_csr(x * (x > 0.5)) if sparse else x
    edges = torch.randint(NODES - 2, (2, 70), generator=generator)  # two isolated nodes
    edges = torch.cat([edges, torch.tensor([[5, 5, 7], [5, 9, 7]])], dim=1)  # self-loops too
    return x, edges if directed else torch.cat([edges, edges.flip(0)], dim=1)


def load(
    folder: Path,
    gnn: torch.nn.Module,
    x: Tensor,
    edges: Tensor,
    max_neighbors: int | None = None,
    **changes: Any,
) -> BundledStudent:
    graph = Surroundings(x, edges, torch.arange(len(x)))
    arguments: dict[str, Any] = {
        "student": GNNStudent(gnn, NODES),
        "inputs": NodeInputs(x, graph=graph),
        "graph_info": GraphInfo("toy", "", "fixed", ("a", "b", "c"), np.array(IDS, dtype=object)),
        "method": "mskd",
        "student_name": "gnn",
        "hyper_parameters": {},
        "teacher": {},
        "setting": "inductive",
        "scores": {},
        "fingerprint": "0",
        "counts": {"edges": int(edges.shape[1])},
    }
    path = export_bundle(folder / "toy", **arguments | changes)
    return limbeck.load(path, max_neighbors=max_neighbors)


def inserted(
    gnn: torch.nn.Module, x: Tensor, edges: Tensor, new: Tensor, known: list[int], directed: bool
) -> np.ndarray:
    """Torch's answer for a new node on the whole graph with that node in it."""
    source = torch.tensor(known, dtype=torch.int64)
    arriving = torch.stack([source, torch.full_like(source, NODES)])
    if not directed:
        arriving = torch.cat([arriving, arriving.flip(0)], dim=1)
    x = torch.cat([x.to_dense(), new[None]])
    with torch.no_grad():
        return gnn(x, torch.cat([edges, arriving], dim=1))[-1].numpy()


ASKED = [[0, 5, 9], [7], [], [38], [3, 3, 1, 2, 4, 8], list(range(30))]


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_new_nodes_are_answered_as_on_the_graph_with_them_in_it(
    tmp_path: Path, name: str, directed: bool
) -> None:
    gnn = make_gnn(name)
    x, edges = make_graph(directed=directed, sparse=name == "sage")
    student = load(tmp_path, gnn, x, edges)
    assert student.manifest.neighborhood is not None
    assert student.manifest.neighborhood.undirected is not directed
    new = torch.randn(len(ASKED), WIDTH, generator=torch.Generator().manual_seed(4))
    found = student.predict_logits(x=new, neighbors=[[IDS[i] for i in own] for own in ASKED])
    for node, known, answer in zip(new, ASKED, found, strict=True):
        expected = inserted(gnn, x, edges, node, sorted(set(known)), directed)
        np.testing.assert_allclose(answer, expected, atol=1e-5, rtol=1e-5)

    with torch.no_grad():
        alone = torch.cat([gnn(row[None], edges[:, :0]) for row in new]).numpy()
        known_answers = gnn(x, edges).numpy()
    np.testing.assert_allclose(student.predict_logits(x=new), alone, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(student.predict_logits(IDS), known_answers, atol=1e-5, rtol=1e-5)


def test_scaling_is_part_of_the_model(tmp_path: Path) -> None:
    gnn, (x, edges) = make_gnn("gcn"), make_graph()
    scaling = (torch.full((WIDTH,), 0.5), torch.full((WIDTH,), 2.0))
    student = load(tmp_path, gnn, x, edges, scaling=scaling)
    new = torch.zeros(WIDTH)
    expected = inserted(gnn, (x - 0.5) / 2, edges, (new - 0.5) / 2, [3, 4], directed=False)
    found = student.predict_logits(x=new[None], neighbors=[["n3", "n4"]])[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with torch.no_grad():
        known = gnn((x - 0.5) / 2, edges).numpy()
    np.testing.assert_allclose(student.predict_logits(IDS), known, atol=1e-5)


def test_observed_nodes_are_answered_on_their_own_graph(tmp_path: Path) -> None:
    gnn, (x, edges) = make_gnn("sage"), make_graph()
    observed = torch.arange(NODES) % 3 > 0
    student = load(tmp_path, gnn, x, edges, observed=observed)
    with torch.no_grad():
        whole = gnn(x, edges)
        part = gnn(x, edges[:, observed[edges].all(0)])
    expected = torch.where(observed[:, None], part, whole).numpy()
    assert not torch.allclose(part[observed], whole[observed])
    np.testing.assert_allclose(student.predict_logits(IDS), expected, atol=1e-5)


def test_nodes_of_a_batch_do_not_see_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = load(tmp_path, make_gnn("gat"), *make_graph())
    new = torch.randn(9, WIDTH).numpy()
    neighbors = [["n1", "n2", f"n{i}"] for i in range(9)]
    together = student.predict_logits(x=new, neighbors=neighbors)
    for i in range(9):
        one = student.predict_logits(x=new[i : i + 1], neighbors=neighbors[i : i + 1])
        np.testing.assert_allclose(one[0], together[i], atol=1e-6)
    # in blocks, and in halves of blocks where neighbourhoods are large
    monkeypatch.setattr("limbeck.runtime.neighborhood.BLOCK_NODES", 4)
    monkeypatch.setattr("limbeck.runtime.neighborhood.BLOCK_VALUES", WIDTH)
    in_blocks = student.predict_logits(x=new, neighbors=neighbors)
    np.testing.assert_allclose(in_blocks, together, atol=1e-6)
    assert student.predict_logits(x=np.zeros((0, WIDTH)), neighbors=[]).shape == (0, CLASSES)


@pytest.mark.parametrize("name", ["gcn", "sage", "sage-root", "gat"])
def test_a_sample_of_many_neighbours(tmp_path: Path, name: str) -> None:
    gnn, (x, edges) = make_gnn(name), make_graph()
    hub = torch.stack([torch.arange(1, 38), torch.zeros(37, dtype=torch.int64)])
    edges = torch.cat([edges, hub, hub.flip(0)], dim=1)
    whole = load(tmp_path, gnn, x, edges)
    sampled = limbeck.load(tmp_path / "toy", max_neighbors=4)
    loose = limbeck.load(tmp_path / "toy", max_neighbors=NODES * 3)
    request = {"x": x[:3], "neighbors": [["n0"], ["n0", "n1"], []]}
    np.testing.assert_allclose(
        loose.predict_logits(**request), whole.predict_logits(**request), atol=1e-6
    )
    found = sampled.predict_logits(**request)
    assert not np.allclose(found[:2], whole.predict_logits(**request)[:2], atol=1e-4)
    np.testing.assert_allclose(found[2], whole.predict_logits(**request)[2], atol=1e-6)
    # the same in any company, and again
    np.testing.assert_array_equal(sampled.predict_logits(**request), found)
    one = sampled.predict_logits(x=x[1:2], neighbors=[["n1", "n0"]])
    np.testing.assert_allclose(one[0], found[1], atol=1e-6)
    with pytest.raises(RequestError, match="at most 4"):
        sampled.predict(x=x[:1], neighbors=[["n0", "n1", "n2", "n3", "n4"]])


def test_a_sample_counts_for_all(tmp_path: Path) -> None:
    """Where all neighbours of a hub are alike, a sample of them says what all of them would."""
    torch.manual_seed(0)
    edges = torch.stack([torch.arange(1, NODES), torch.zeros(NODES - 1, dtype=torch.int64)])
    edges = torch.cat([edges, edges.flip(0)], dim=1)
    x = torch.ones(NODES, WIDTH)
    x[0] = torch.randn(WIDTH)
    for name in NETWORKS:
        load(tmp_path, make_gnn(name), x, edges)
        request = {"x": torch.randn(1, WIDTH), "neighbors": [["n0"]]}
        whole = limbeck.load(tmp_path / "toy").predict_logits(**request)
        sampled = limbeck.load(tmp_path / "toy", max_neighbors=5).predict_logits(**request)
        np.testing.assert_allclose(sampled, whole, atol=1e-5, rtol=1e-5)


def test_ids_that_are_not_known_are_ignored_and_counted(tmp_path: Path) -> None:
    student = load(tmp_path, make_gnn("gcn"), *make_graph())
    row = torch.randn(1, WIDTH)
    with_unknown = student.predict_logits(x=row, neighbors=[["n1", "elsewhere", "n2"]])
    np.testing.assert_array_equal(
        with_unknown, student.predict_logits(x=row, neighbors=[["n2", "n1", "n1"]])
    )
    assert student.ignored_neighbors([["n1", "elsewhere"], []]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"x": np.zeros((2, WIDTH)), "neighbors": [["n1"]]}, "1 lists of neighbors for 2 rows"),
        ({"x": np.zeros((1, WIDTH)), "position": [[1.0]]}, "leave position out"),
        ({"nodes": ["n1"], "neighbors": [["n1"]]}, "belong to new nodes"),
        ({"x": np.zeros((1, WIDTH)), "bands": [[1.0]]}, "reads no bands"),
    ],
)
def test_wrong_requests(tmp_path: Path, request_: dict[str, Any], message: str) -> None:
    student = load(tmp_path, make_gnn("gcn"), *make_graph())
    with pytest.raises(RequestError, match=message):
        student.predict(**request_)


def test_what_there_is_not(tmp_path: Path) -> None:
    student = load(tmp_path, make_gnn("gcn"), *make_graph())
    with pytest.raises(RequestError, match="nothing to explain"):
        student.explain(["n1"])
    with pytest.raises(RequestError, match="is a GNN"):
        _ = student.kernel


def test_latency_and_card(tmp_path: Path) -> None:
    def measure(student: BundledStudent) -> dict[str, Any]:
        return measure_latency(student, batch_sizes=(1, 3), seconds=0.02)

    student = load(tmp_path, make_gnn("sage"), *make_graph(), latency=measure)
    assert student.manifest.latency is not None
    assert list(student.manifest.latency["x"]) == ["1", "3"]
    card = (tmp_path / "toy" / "README.md").read_text(encoding="utf-8")
    assert "neighbors=[['n0']])" in card
    assert "the ids of its neighbours" in card


def test_a_node_or_none(tmp_path: Path) -> None:
    gnn = make_gnn("sage")
    info = GraphInfo("toy", "", "fixed", ("a", "b", "c"), np.arange(1))
    x, edges = torch.randn(1, WIDTH), torch.empty(2, 0, dtype=torch.int64)
    student = load(tmp_path, gnn, x, edges, graph_info=info)
    assert student.predict([0]).shape == (1,)
    assert student.predict(x=np.ones((2, WIDTH)), neighbors=[[0], []]).shape == (2,)
    with pytest.raises(OptionError, match="there are none"):
        load(tmp_path, gnn, x[:0], edges, graph_info=replace(info, node_ids=np.arange(0)))


def test_inputs_that_cannot_be_exported(tmp_path: Path) -> None:
    gnn, (x, edges) = make_gnn("gcn"), make_graph()
    graph = Surroundings(x, edges, torch.arange(NODES))
    for changed, message in (
        (None, "have no graph"),
        (replace(graph, nodes=torch.arange(3)), "all of them, in their order"),
        (replace(graph, edge_index=gnn.prepare(edges, NODES)), "as they were given"),
    ):
        with pytest.raises(OptionError, match=message):
            load(tmp_path, gnn, x, edges, inputs=NodeInputs(x, graph=changed))
    other = SGC(WIDTH, CLASSES, 2)
    other.in_channels, other.out_channels = WIDTH, CLASSES
    with pytest.raises(OptionError, match="no place for a student of type SGC"):
        load(tmp_path, other, x, edges)
    assert list(tmp_path.iterdir()) == []
