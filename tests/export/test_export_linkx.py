"""LINKX folded into its bundle: one row per neighbour, one map of features, no gate."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_bundle import export_toy, neighbor_lists

from limbeck.cli import run as cli
from limbeck.errors import BundleError, OptionError, RequestError
from limbeck.export.linkx import fold_linkx, last_mlp
from limbeck.graphs.sparse import to_csr
from limbeck.runtime import (
    BundledStudent,
    StructureExplanation,
    load_bundle,
    loading,
    measure_latency,
    open_bundle,
)
from limbeck.runtime.bundle import MODEL, parse_manifest
from limbeck.runtime.explain import reasons_of
from limbeck.runtime.native import HAS_KERNELS, NativeKernel
from limbeck.students.inputs import NodeInputs
from limbeck.students.linkx import LINKX
from limbeck.students.structure_tables import (
    FullTable,
    HashedTable,
    LandmarkTable,
    StructureTable,
    TiedTable,
)

NODES, WIDTH, HIDDEN, CLASSES = 12, 6, 8, 3
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}


def known_nodes(*, sparse: bool = False) -> NodeInputs:
    """Twelve nodes, the first of them without neighbours."""
    generator = torch.Generator().manual_seed(1)
    rows = (torch.rand(NODES, NODES, generator=generator) < 0.3).float()
    rows[0] = 0.0
    x = (torch.rand(NODES, WIDTH, generator=generator) < 0.5).float()
    return NodeInputs(to_csr(x) if sparse else x, neighbors=to_csr(rows))


def build(table: StructureTable | None = None, num_layers: int = 2) -> LINKX:
    """A student in eval mode whose batch norms have seen something."""
    torch.manual_seed(0)
    table = FullTable(NODES, HIDDEN, init_std=0.5) if table is None else table
    student = LINKX(WIDTH, HIDDEN, CLASSES, table, num_layers, dropout=0.5)
    with torch.no_grad():
        for _ in range(5):
            student(known_nodes())
    return student.eval()


def tables() -> dict[str, StructureTable]:
    torch.manual_seed(0)
    tied = TiedTable(known_nodes().x, HIDDEN, init_std=0.5)
    torch.nn.init.normal_(tied.correction)
    return {
        "landmark": LandmarkTable(NODES, HIDDEN, torch.tensor([1, 4, 7]), init_std=0.5),
        "hashed": HashedTable(NODES, HIDDEN, num_rows=5, init_std=0.5),
        "tied": tied,
    }


def export(path: Path, student: LINKX, inputs: NodeInputs, **options: Any) -> Path:
    return export_toy(path, student, inputs, "linkx", **options)


@pytest.fixture
def bundle(tmp_path: Path) -> BundledStudent:
    return load_bundle(export(tmp_path / "student", build(), known_nodes()))


# --- the fold ---------------------------------------------------------------------------------


def test_folded_by_hand() -> None:
    student = LINKX(1, 1, 2, FullTable(2, 1), num_layers=1).eval()
    values = {
        "table.weight": [[2.0], [-1.0]],
        "structure_bias": [0.5],
        "feature_encoder.weight": [[3.0]],
        "feature_encoder.bias": [-1.0],
        "structure_map.weight": [[2.0]],
        "structure_map.bias": [0.25],
        "feature_map.weight": [[-0.5]],
        "feature_map.bias": [1.0],
    }
    student.load_state_dict({name: torch.tensor(v) for name, v in values.items()}, strict=False)
    folded = fold_linkx(student)
    assert folded.table.rows(torch.arange(2)).tolist() == [[6.0], [-3.0]]  # times 1 + 2
    assert folded.feature_encoder.weight.tolist() == [[1.5]]  # times 1 - 0.5
    # (1 + 2) 0.5 + 0.25 + (1 - 0.5) (-1) + 1
    assert folded.feature_encoder.bias.tolist() == [2.25]
    for part in ("structure_bias", "structure_map.weight", "structure_map.bias"):
        assert not folded.get_parameter(part).any()
    assert not any(value.any() for value in folded.feature_map.parameters())
    # the student itself is as it was
    assert student.table.rows(torch.arange(2)).tolist() == [[2.0], [-1.0]]


@pytest.mark.parametrize("table", ["full", "landmark", "hashed"])
def test_folding_changes_no_answer(table: str) -> None:
    student = build(tables().get(table), num_layers=3)
    before = copy.deepcopy(student.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fold_linkx(student)(known_nodes()), student(known_nodes()))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_last_mlp_in_other_words(num_layers: int) -> None:
    student, rows = build(num_layers=num_layers), torch.randn(5, HIDDEN)
    with torch.no_grad():
        torch.testing.assert_close(last_mlp(student)(rows), student.final(rows))


# --- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("table", ["full", "landmark", "hashed", "tied"])
def test_any_table_and_scaling(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    table: str,
    sparse: bool,
    scaled: bool,
    with_kernels: bool,
) -> None:
    if with_kernels and not HAS_KERNELS:
        pytest.skip("built without a C compiler")
    mean = torch.zeros(WIDTH) if sparse else torch.linspace(-1, 1, WIDTH)
    scaling = (mean, torch.linspace(0.5, 2, WIDTH)) if scaled else None
    student, inputs = build(tables().get(table)), known_nodes(sparse=sparse)
    path = export(tmp_path / "student", student, inputs, scaling=scaling)
    monkeypatch.setattr(loading, "HAS_KERNELS", with_kernels)
    loaded = load_bundle(path)
    assert isinstance(loaded.kernel, NativeKernel) == with_kernels
    x = inputs.x.to_dense()
    read = x if scaling is None else (x - scaling[0]) / scaling[1]
    with torch.no_grad():
        expected = student(NodeInputs(read, neighbors=inputs.neighbors))
        alone = student(NodeInputs(read, neighbors=to_csr(torch.zeros(NODES, NODES))))
    np.testing.assert_allclose(loaded.predict_logits(range(NODES)), expected, **CLOSE)
    rows, column = np.nonzero(x.numpy())
    entries = (np.searchsorted(rows, np.arange(NODES + 1)), column)
    for form in (x.numpy(), entries):
        found = loaded.predict_logits(x=form, neighbors=neighbor_lists(inputs))
        np.testing.assert_allclose(found, expected, **CLOSE)
        np.testing.assert_allclose(loaded.predict_logits(x=form), alone, **CLOSE)
    assert (tmp_path / "student" / "sparse.onnx").exists() == sparse


def test_one_call_of_compiled_code_answers(bundle: BundledStudent) -> None:
    if not HAS_KERNELS:
        pytest.skip("built without a C compiler")
    inputs = known_nodes()
    answer = bundle._answer_among(inputs.x.numpy(), neighbor_lists(inputs))
    np.testing.assert_allclose(answer, bundle.predict_logits(range(NODES)), **CLOSE)


def test_nodes_without_neighbours_never_read_the_table(
    bundle: BundledStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = known_nodes().x.numpy()
    alone = bundle.predict_logits(x=x)
    assert bundle.structure is not None
    monkeypatch.setattr(bundle.structure, "_table", np.full_like(bundle.structure._table, np.nan))
    for name in ("kernel", "_answer_new", "_answer_among"):  # made anew of this table
        bundle.__dict__.pop(name, None)
    np.testing.assert_array_equal(bundle.predict_logits(x=x), alone)
    with pytest.raises(RequestError, match="not finite"):
        bundle.predict_logits(x=x, neighbors=neighbor_lists(known_nodes()))


def test_latency_is_measured(bundle: BundledStudent) -> None:
    assert measure_latency(bundle, (1, 4), 0.05)["x"]["4"]["p50_us"] > 0


def test_no_form_in_int8_but_the_table(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="LINKX has no form in int8"):
        export(tmp_path / "student", build(), known_nodes(), quantize="int8")


# --- why --------------------------------------------------------------------------------------


def test_neighbours_are_explained_without_a_gate(bundle: BundledStudent) -> None:
    inputs = known_nodes()
    x, lists = inputs.x.numpy(), neighbor_lists(inputs)
    found = bundle.explain(x=x, neighbors=lists)
    assert isinstance(found, StructureExplanation)
    assert (found.gate, found.share) == (None, None)
    known = bundle.explain(range(NODES))
    assert isinstance(known, StructureExplanation)
    probs = bundle.predict_proba(x=x, neighbors=lists)
    for node, (effects, own) in enumerate(zip(found.neighbors, lists, strict=True)):
        assert sorted(effect.neighbor for effect in effects) == own
        changes = [effect.change for effect in effects]
        assert changes == sorted(changes, key=abs, reverse=True)
        for effect in effects:
            left = [one for one in own if one != effect.neighbor]
            less = bundle.predict_proba(x=x[node : node + 1], neighbors=[left])[0]
            assert effect.change == pytest.approx(
                probs[node].max() - less[probs[node].argmax()], abs=1e-5
            )
        np.testing.assert_allclose([e.change for e in known.neighbors[node]], changes, **CLOSE)
    reasons = reasons_of(found, NODES)
    assert [list(reason) for reason in reasons] == [["neighbors"]] * NODES
    assert reasons[0] == {"neighbors": []}


def test_predict_explains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(export(tmp_path / "student", build(), known_nodes()))
    assert cli(["predict", path, "--nodes", "3", "--explain"]) == 0
    printed = capsys.readouterr().out
    assert "neighbour (change)" in printed
    assert "gate" not in printed
    assert "share" not in printed
    assert cli(["predict", path, "--nodes", "3", "--explain", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert set(answer) == {"node", "classes", "neighbors"}
    assert {one["node"] for one in answer["neighbors"]} == set(neighbor_lists(known_nodes())[3])


# --- the bundle -------------------------------------------------------------------------------


def test_what_the_bundle_says(tmp_path: Path) -> None:
    path = export(tmp_path / "student", build(), known_nodes())
    manifest = open_bundle(path).manifest
    assert manifest.structure is not None
    assert (manifest.structure.gated, manifest.structure.power) == (False, 0.0)
    assert manifest.folded is not None
    assert set(manifest.folded.chains) == {"encoder", "from_sum"}
    assert manifest.folded.heads == ()
    assert "the ids of its neighbours" in (path / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"structure": {"gated": 1}}, "structure.gated"),
        ({"structure": {"gated": True}}, "folded.heads"),  # as a reader of older bundles has it
        ({"folded": {"heads": [{"norm": "none", "epsilon": 0.0}]}}, "folded.heads"),
        ({"folded": {"chains": {}}}, "folded.chains"),
        ({"structure": {"width": 7}}, "folded.chains"),
    ],
)
def test_fields_that_contradict_each_other(
    tmp_path: Path, change: dict[str, dict[str, Any]], field: str
) -> None:
    path = export(tmp_path / "student", build(), known_nodes())
    document = json.loads((path / "limbeck.json").read_text())
    parse_manifest(document, path)
    for name, fields in change.items():
        document[name] |= fields
    with pytest.raises(BundleError, match=field) as raised:
        parse_manifest(document, path)
    assert "\n" not in str(raised.value)


def test_a_model_with_a_gate_is_not_that_of_a_student_without(tmp_path: Path) -> None:
    inputs = known_nodes()
    path = export(tmp_path / "student", build(), inputs)
    manifest = open_bundle(path).manifest
    assert manifest.structure is not None
    wrong = replace(manifest, structure=replace(manifest.structure, gated=True))
    gated = loading.make_kernel(wrong, (path / MODEL).read_bytes(), path / MODEL, None)
    with pytest.raises(BundleError, match="must have logits .* gate"):
        gated(inputs.x.numpy())
