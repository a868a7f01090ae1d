from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import limbeck
from limbeck.errors import OptionError, OutputError
from limbeck.export import export_bundle, known_logits
from limbeck.features import FeatureEncoder
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.sparse import to_csr
from limbeck.runtime import measure_latency, open_bundle
from limbeck.runtime.bundle import SparseEntry
from limbeck.runtime.rows import CsrRows
from limbeck.students import MLP, NodeInputs
from limbeck.students.moe import MoE
from limbeck.students.rbm import RbM

NODES, WIDTH = 30, 6
CLASS_NAMES = ("art", "maths", "музыка")


def make_info(ids: Any = None, **changes: Any) -> GraphInfo:
    ids = np.arange(NODES) * 7 if ids is None else np.array(ids, dtype=object)
    return GraphInfo("toy", "made by hand", "fixed", CLASS_NAMES, ids, **changes)


def make_x(sparse: bool = False) -> torch.Tensor:
    x = torch.randn(NODES, WIDTH, generator=torch.Generator().manual_seed(1))
    return to_csr(x * (x > 0.8)) if sparse else x


def export(path: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "student": MLP(WIDTH, 8, 3, norm="batch", dropout=0.5),
        "inputs": NodeInputs(make_x()),
        "graph_info": make_info(),
        "method": "glnn",
        "student_name": "mlp",
        "hyper_parameters": {"lr": 0.01},
        "teacher": {"name": "sage"},
        "setting": "inductive",
        "scores": {"teacher": {"test_accuracy": 0.9}, "student": {"test_accuracy": 0.875}},
        "fingerprint": "0123abcd",
        "counts": {"edges": 12},
        "temperature": 1.5,
    }
    return export_bundle(path, **arguments | changes)


@pytest.mark.parametrize(("sparse", "scaled"), [(False, True), (True, True)])
def test_round_trip(tmp_path: Path, sparse: bool, scaled: bool) -> None:
    student = MLP(WIDTH, 8, 3, norm="layer").eval()
    x = make_x(sparse)
    scaling = (torch.full((WIDTH,), 0.5), torch.full((WIDTH,), 2.0)) if scaled else None
    export(tmp_path / "toy", student=student, inputs=NodeInputs(x), scaling=scaling)
    loaded = limbeck.load(tmp_path / "toy")

    dense = x.to_dense()
    standard = (dense - 0.5) / 2 if scaled else dense
    with torch.no_grad():
        expected = torch.softmax(student(NodeInputs(standard)) / 1.5, dim=1).numpy()
    ids = (np.arange(NODES) * 7).tolist()
    np.testing.assert_allclose(loaded.predict_proba(ids), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(loaded.predict_proba(x=dense), expected, atol=1e-5, rtol=0)
    assert loaded.predict(ids).tolist() == [CLASS_NAMES[c] for c in expected.argmax(axis=1)]

    stored = loaded.store.features(np.arange(NODES))
    assert isinstance(stored, np.ndarray) is not sparse
    if sparse:
        request = (stored.indptr, stored.indices, stored.values)
        np.testing.assert_allclose(loaded.predict_proba(x=request), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", [RbM, MoE])
def test_experts_round_trip(tmp_path: Path, kind: type[RbM] | type[MoE], sparse: bool) -> None:
    torch.manual_seed(0)
    x, position = (torch.rand(NODES, 200) < 0.03).float(), torch.randn(NODES, 4)
    student = kind(200, 8, 3, num_experts=4, top_k=2, position_channels=4)
    if isinstance(student, RbM):
        student.convert(NodeInputs(x, position))
    student.eval()
    inputs = NodeInputs(to_csr(x) if sparse else x, position)
    loaded = limbeck.load(export(tmp_path / "toy", student=student, inputs=inputs))
    assert [(layer.experts, layer.top_k) for layer in loaded.manifest.routing] == [(4, 2)] * 2
    assert (loaded.manifest.sparse is not None) is sparse
    # what is read for an entry: rows of two experts of width 8, or of the gate
    assert loaded.manifest.sparse == (SparseEntry(16) if sparse else None)

    with torch.no_grad():
        traced = student.trace(NodeInputs(x, position))
        expected = torch.softmax(traced.logits / 1.5, dim=1).numpy()
    ids = (np.arange(NODES) * 7).tolist()
    stored = loaded.store.features(np.arange(NODES))
    forms = [x.numpy()]
    if isinstance(stored, CsrRows):
        forms.append((stored.indptr, stored.indices, stored.values))
    for rows in forms:
        found = loaded.predict_proba(x=rows, position=position)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
        known, new = loaded.explain(ids), loaded.explain(x=rows, position=position)
        for routing, *layers in zip(traced.routings, known, new, strict=True):
            for layer in layers:
                gates = np.zeros((NODES, 4), dtype=np.float32)
                np.put_along_axis(gates, layer.experts, layer.gates, axis=1)
                np.testing.assert_allclose(gates, routing.gates.numpy(), atol=1e-5)


def test_manifest_and_card_say_what_was_measured(tmp_path: Path) -> None:
    measure = partial(measure_latency, batch_sizes=(1, 5), seconds=0.02)
    slices = {
        "degree=0": {"num_nodes": 0, "accuracy": None},
        "degree=11+": {"num_nodes": 3, "accuracy": 2 / 3},
    }
    scores = {
        "teacher": {"test_accuracy": 0.9, "test_roc_auc": None},
        "student": {"test_accuracy": 0.875, "ece": 0.0301, "slices": slices},
    }
    opened = open_bundle(export(tmp_path / "toy", scores=scores, latency=measure))
    manifest = opened.manifest
    assert manifest.limbeck == limbeck.__version__
    assert manifest.classes == CLASS_NAMES
    assert manifest.temperature == 1.5
    assert manifest.graph.counts == {"nodes": NODES, "edges": 12}
    assert manifest.versions["torch"] == torch.__version__
    assert manifest.latency is not None
    card = (tmp_path / "toy" / "README.md").read_text(encoding="utf-8")
    assert "# mlp by glnn on toy" in card
    assert "| test_accuracy | 0.9 | 0.875 |\n| ece | – | 0.0301 |\n\n" in card
    assert (
        "| slice | num_nodes | accuracy |\n| --- | --- | --- |\n| degree=11+ | 3 | 0.6667 |" in card
    )
    assert list(manifest.latency["x"]) == ["1", "5"]
    assert "| new nodes | 5 | " in card
    assert "student = limbeck.load('toy')" in card
    assert "student.predict(nodes=[0])" in card
    assert "| 2 | музыка |" in card


def test_odd_names_of_classes_and_nodes(tmp_path: Path) -> None:
    ids = [f"статья {i}\n" for i in range(NODES - 2)] + ["", "𝕏"]
    info = GraphInfo("a|b\nc", "x", "fixed", ("p|q", "r\ns", "t"), np.array(ids, dtype=object))
    loaded = limbeck.load(export(tmp_path / "toy", graph_info=info, scores={}))
    assert loaded.classes == info.class_names
    np.testing.assert_array_equal(
        loaded.predict_logits(["𝕏", ids[3]]), loaded.predict_logits(ids)[[-1, 3]]
    )
    card = (tmp_path / "toy" / "README.md").read_text(encoding="utf-8")
    assert "| 0 | p\\|q |" in card
    assert "| 1 | r s |" in card
    assert card.startswith("# mlp by glnn on a|b c\n")
    assert "## Scores\n\nNot measured." in card
    assert "## Latency\n\nNot measured." in card


def test_encoder_travels_with_the_student(tmp_path: Path) -> None:
    columns = [f"f{i}" for i in range(WIDTH)]
    table = pa.table(dict(zip(columns, make_x().T.numpy(), strict=True)))
    encoder = FeatureEncoder.fit(table, columns, where="nodes.csv")
    loaded = limbeck.load(export(tmp_path / "toy", graph_info=make_info(encoder=encoder)))
    ids = (np.arange(NODES) * 7).tolist()
    assert loaded.predict_table(table).tolist() == loaded.predict(ids).tolist()


def test_a_node_or_none(tmp_path: Path) -> None:
    for count in (1, 0):
        info = GraphInfo("toy", "", "fixed", CLASS_NAMES, np.arange(count))
        inputs = NodeInputs(make_x()[:count])
        loaded = limbeck.load(export(tmp_path / f"toy-{count}", inputs=inputs, graph_info=info))
        assert loaded.predict(range(count)).shape == (count,)
        assert loaded.predict(x=make_x().numpy()).shape == (NODES,)


def test_known_logits_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    student = MLP(WIDTH, 8, 3, dropout=0.5)
    whole = known_logits(student, NodeInputs(make_x()))
    monkeypatch.setattr("limbeck.export.onnx.BLOCK_ROWS", 7)
    np.testing.assert_allclose(known_logits(student, NodeInputs(make_x())), whole, atol=1e-6)
    assert student.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graph_info": make_info(range(3))}, "3 node ids for 30 nodes"),
        ({"inputs": NodeInputs(make_x()[:, :4])}, "4 features, and the student reads 6"),
        ({"student": MLP(WIDTH, 8, 2)}, "2 logits, and the graph 'toy' has 3 classes"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        export(tmp_path / "toy", **changes)
    assert list(tmp_path.iterdir()) == []


def test_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    with pytest.raises(OutputError, match="not a bundle"):
        export(tmp_path / "toy")
