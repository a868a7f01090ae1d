"""Shifts by hand, and audits of graphs that stayed, drifted, and lost their labels."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import limbeck
from limbeck.errors import BundleError, GraphError
from limbeck.evaluation.audit import answers_for, audit, judge
from limbeck.evaluation.statistics import EDGES, RANGE, SHARES, node_statistics, shift
from limbeck.graphs.sparse import csr_tensor


def test_statistics_by_hand():
    x = torch.tensor([[float(i), float(i == 0)] for i in range(10)])
    degree = torch.tensor([0, 1, 2, 3, 6, 11, 11, 1, 1, 1])
    entry, arrays = node_statistics(x, degree, torch.tensor([0] * 7 + [2] * 3), 3)
    assert arrays[RANGE].tolist() == [[0, 9], [0, 1]]
    assert arrays[EDGES].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8], [0] * 9]
    np.testing.assert_allclose(arrays[SHARES][0], [0.1] * 10, atol=1e-6)
    np.testing.assert_allclose(arrays[SHARES][1], [0.9] + [0] * 8 + [0.1], atol=1e-6)
    assert entry.degree == {"0": 0.1, "1-2": 0.5, "3-5": 0.1, "6-10": 0.1, "11+": 0.2}
    assert entry.classes == pytest.approx((0.7, 0.0, 0.3))


def test_sparse_and_dense_rows_have_the_same_statistics():
    generator = torch.Generator().manual_seed(0)
    dense = (torch.rand(50, 7, generator=generator) < 0.3).float()
    row, column = dense.nonzero().T
    start = torch.cat([torch.zeros(1, dtype=torch.int64), dense.sum(1).long().cumsum(0)])
    sparse = csr_tensor(start, column, torch.ones(len(row)), (50, 7))
    degree, answer = torch.ones(50, dtype=torch.int64), torch.zeros(50, dtype=torch.int64)
    for ours, theirs in zip(
        node_statistics(dense, degree, answer, 2)[1].values(),
        node_statistics(sparse, degree, answer, 2)[1].values(),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_shift_by_hand():
    # so many nodes that half a node and chance do not count
    many = 10**9
    moved = shift(np.array([0.5, 0.5]), np.array([0.8, 0.2]), many, many)
    assert moved == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4), rel=1e-4)
    assert shift(np.array([1.0, 0.0]), np.array([1.0, 0.0]), 10, 10) == 0
    # two samples of one source: nothing on average but chance, which is taken off
    rng = np.random.default_rng(0)
    samples = rng.multinomial(50, [0.1] * 10, size=(200, 2)) / 50
    assert shift(samples[:, 0], samples[:, 1], 50, 50).mean() < 0.25


@pytest.fixture(scope="module")
def run():
    view = limbeck.view(limbeck.load_graph("digits"), seed=0)
    teacher = limbeck.fit_teacher(view, "sgc", max_epochs=20)
    return limbeck.distill(view, teacher, "glnn", max_epochs=20, hidden_channels=16)


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    return run.save(tmp_path_factory.mktemp("audit") / "student")


def test_the_graph_itself_has_not_moved(run, bundle):
    graph = limbeck.load_graph("digits")
    found = audit(bundle, graph, limbeck.knowledge_from(run.teacher.answers.observed))
    assert found.verdict == "keep"
    assert found.reasons == ()
    assert found.nodes == found.known == graph.num_nodes
    assert found.features_moved == found.values_outside == found.degree_shift == 0
    assert found.answer_shift == 0
    assert found.most_moved == ()
    by_class = [part for name, part in found.slices.items() if name.startswith("class=")]
    right = sum(part["accuracy"] * part["num_nodes"] for part in by_class)
    assert right / graph.num_nodes == pytest.approx(found.accuracy)
    same = (run.answers.observed.argmax(1) == run.teacher.answers.observed.argmax(1)).float()
    assert found.agreement == pytest.approx(float(same.mean()), abs=2e-3)


def test_features_that_moved_are_named(bundle):
    graph = limbeck.load_graph("digits")
    graph.x = graph.x.clone()
    graph.x[:, 20:30] = 16 - graph.x[:, 20:30] + 5
    found = audit(bundle, graph)
    assert found.verdict == "distil again"
    assert {int(each.feature) for each in found.most_moved} <= set(range(20, 30))
    assert found.features_moved == pytest.approx(10 / 64, abs=0.02)
    assert found.values_outside > 0
    assert "of the features have drifted" in " ".join(found.reasons)


def test_edges_that_went_away_move_the_degrees_alone(bundle):
    graph = limbeck.load_graph("digits")
    graph.edge_index = graph.edge_index[:, :2000]
    found = audit(bundle, graph)
    assert found.features_moved == 0
    assert found.degree_shift > 0.25
    assert found.degrees["0"][0] == 0
    assert found.degrees["0"][1] > 0.4


def test_a_graph_without_labels_is_judged_by_its_teacher(run, bundle):
    graph = limbeck.load_graph("digits")
    graph.y = torch.full_like(graph.y, -1)
    found = audit(bundle, graph, limbeck.knowledge_from(-run.teacher.answers.observed))
    assert found.accuracy is None
    assert found.ece_before is None
    assert found.verdict == "distil again"
    assert "The agreement is" in found.reasons[0]


def test_new_classes_and_other_features(bundle):
    graph = limbeck.load_graph("digits")
    graph.x = graph.x[:, :10]
    with pytest.raises(GraphError, match="the graph has 10 features, and the student reads 64"):
        audit(bundle, graph)


def test_a_table_is_read_with_the_vocabulary_of_the_bundle(tmp_path):
    rng = np.random.default_rng(0)
    section = np.arange(60) % 2

    def graph(colours, name):
        nodes = {
            "id": [f"n{i}" for i in range(60)],
            "size": rng.normal(size=60),
            "colour": [colours[i % len(colours)] for i in range(60)],
            "label": [f"s{c}" for c in section],
        }
        folder = tmp_path / name
        folder.mkdir()
        pq.write_table(pa.table(nodes), folder / "nodes.parquet")
        ends = rng.integers(0, 60, (2, 200))
        edges = {"source": [f"n{i}" for i in ends[0]], "target": [f"n{i}" for i in ends[1]]}
        pq.write_table(pa.table(edges), folder / "edges.parquet")
        return limbeck.load_graph(str(folder), label="label", categorical=["colour"])

    view = limbeck.view(graph(["green", "red"], "old"), seed=0)
    run = limbeck.distill(view, None, "mlp", max_epochs=2, hidden_channels=4)
    bundle = run.save(tmp_path / "student")
    new = graph(["blue", "green", "red"], "new")
    found = audit(bundle, new)
    assert found.unseen_values == {"colour": 20}
    student = limbeck.load(bundle)
    # what is called blue in the new vocabulary is neither green nor red in that of the bundle
    expected = np.zeros((60, 3), dtype=np.float32)
    expected[:, 0] = new.x[:, 0]
    expected[np.arange(60) % 3 == 1, 1] = 1
    expected[np.arange(60) % 3 == 2, 2] = 1
    labels = new.y.numpy()
    answers = student.predict_logits(x=expected)
    assert found.accuracy == pytest.approx((answers.argmax(1) == labels).mean())
    np.testing.assert_allclose(answers_for(student, new, torch.from_numpy(expected)), answers)


def test_a_bundle_without_statistics_is_refused(run, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(type(run), "_statistics", lambda self: ({}, {}))
    old = run.save(tmp_path / "old")
    with pytest.raises(BundleError, match="keeps nothing of what its nodes were like"):
        audit(old, limbeck.load_graph("digits"))


QUIET = {
    "new_classes": (),
    "features_moved": 0.0,
    "values_outside": 0.0,
    "degree_shift": 0.0,
    "answer_shift": 0.0,
    "accuracy": None,
    "accuracy_before": 0.8,
    "agreement": None,
    "agreement_before": None,
    "ece": None,
    "ece_before": None,
}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "keep"),
        ({"degree_shift": 0.1}, "watch"),
        ({"degree_shift": 0.25}, "distil again"),
        ({"accuracy": 0.79}, "keep"),
        ({"accuracy": 0.77}, "watch"),
        ({"accuracy": 0.7}, "distil again"),
        ({"ece": 0.2, "ece_before": 0.1}, "distil again"),
        ({"new_classes": ("c",)}, "distil again"),
    ],
)
def test_verdicts(changes, verdict):
    found, reasons = judge(QUIET | changes)
    assert found == verdict
    assert len(reasons) == (verdict != "keep")
