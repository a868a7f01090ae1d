"""Students that add neighbours to the first layer, in the form that LINKX and ours come to."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_bundle import export_toy, neighbor_lists

from limbeck.errors import BundleError
from limbeck.export.sums import fold_sum, summed
from limbeck.graphs.sparse import to_csr
from limbeck.runtime import BundledStudent, StructureExplanation, load_bundle, open_bundle
from limbeck.runtime.bundle import parse_manifest
from limbeck.students.inputs import NodeInputs
from limbeck.students.mlp import MLP, Norm
from limbeck.students.neighbor_mlp import NeighborMLP
from limbeck.students.structure_tables import FullTable

NODES, WIDTH, HIDDEN, CLASSES = 12, 6, 8, 3
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}


def known_nodes() -> NodeInputs:
    """Twelve nodes, the first of them without neighbours."""
    generator = torch.Generator().manual_seed(1)
    rows = (torch.rand(NODES, NODES, generator=generator) < 0.3).float()
    rows[0] = 0.0
    x = (torch.rand(NODES, WIDTH, generator=generator) < 0.5).float()
    return NodeInputs(x, neighbors=to_csr(rows))


def build(norm: Norm = "none") -> NeighborMLP:
    """A student in eval mode whose batch norms have seen something."""
    torch.manual_seed(0)
    among, alone = (MLP(WIDTH, HIDDEN, CLASSES, 3, norm) for _ in range(2))
    student = NeighborMLP(among, alone, FullTable(NODES, HIDDEN, init_std=0.5))
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(5):
            alone(known_nodes())
        alone.eval()
        for _ in range(5):
            student(known_nodes())
    return student.eval()


def export(path: Path, student: NeighborMLP, **options: Any) -> Path:
    return export_toy(path, student, known_nodes(), "neighbormlp", **options)


@pytest.fixture(params=["none", "batch", "layer"])
def norm(request: pytest.FixtureRequest) -> Norm:
    name: Norm = request.param
    return name


def test_folding_changes_no_answer(norm: Norm) -> None:
    student = build(norm)
    before = copy.deepcopy(student.state_dict())
    folded = fold_sum(student)
    assert isinstance(folded, NeighborMLP)
    with torch.no_grad():
        torch.testing.assert_close(folded(known_nodes()), student(known_nodes()))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    form = summed(folded)
    assert (form.encoder.norm is not None) == (norm == "layer")
    assert (len(form.rest), form.power) == (2, 1.0)
    assert form.lone is not None
    assert len(form.lone) == 3


def test_scaled_features_and_any_norm(tmp_path: Path, norm: Norm) -> None:
    scaling = (torch.linspace(-1, 1, WIDTH), torch.linspace(0.5, 2, WIDTH))
    student, inputs = build(norm), known_nodes()
    bundle = load_bundle(export(tmp_path / "student", student, scaling=scaling))
    read = (inputs.x - scaling[0]) / scaling[1]
    with torch.no_grad():
        expected = student(NodeInputs(read, neighbors=inputs.neighbors))
        alone = student.alone(NodeInputs(read))
    x, lists = inputs.x.numpy(), neighbor_lists(inputs)
    np.testing.assert_allclose(bundle.predict_logits(x=x, neighbors=lists), expected, **CLOSE)
    np.testing.assert_allclose(bundle.predict_logits(x=x), alone, **CLOSE)
    np.testing.assert_allclose(bundle.predict_logits(range(NODES)), expected, **CLOSE)


def test_neighbours_are_explained(tmp_path: Path) -> None:
    student, inputs = build(), known_nodes()
    bundle: BundledStudent = load_bundle(export(tmp_path / "student", student))
    found = bundle.explain(x=inputs.x.numpy(), neighbors=neighbor_lists(inputs))
    assert isinstance(found, StructureExplanation)
    assert (found.gate, found.share) == (None, None)
    expected = student.explain(inputs).neighbors.to_dense()
    for node, effects in enumerate(found.neighbors):
        assert sorted(effect.neighbor for effect in effects) == neighbor_lists(inputs)[node]
        for effect in effects:
            assert effect.change == pytest.approx(float(expected[node, effect.neighbor]), abs=1e-5)


def test_what_the_bundle_says(tmp_path: Path) -> None:
    manifest = open_bundle(export(tmp_path / "student", build("layer"))).manifest
    assert manifest.structure is not None
    structure = manifest.structure
    assert (structure.gated, structure.lone, structure.power) == (False, True, 1.0)
    assert manifest.folded is not None
    chains = {"encoder", "from_sum", "lone_encoder", "lone_from_sum"}
    assert set(manifest.folded.chains) == chains
    assert manifest.folded.chains["encoder"][0].norm == "before relu"
    assert manifest.folded.heads == ()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"structure": {"lone": 1}}, "structure.lone"),
        ({"structure": {"lone": False}}, "folded.chains"),  # as a reader of older bundles has it
        ({"structure": {"gated": True}}, "structure.lone"),
        ({"folded": {"chains": {}}}, "folded.chains"),
    ],
)
def test_fields_that_contradict_each_other(
    tmp_path: Path, change: dict[str, dict[str, Any]], field: str
) -> None:
    path = export(tmp_path / "student", build())
    document = json.loads((path / "limbeck.json").read_text())
    parse_manifest(document, path)
    for name, fields in change.items():
        document[name] |= fields
    with pytest.raises(BundleError, match=field) as raised:
        parse_manifest(document, path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("chain", ["encoder", "lone_encoder"])
@pytest.mark.parametrize("change", [{"relu": True}, {"norm": "behind relu"}])
def test_no_encoder_ends_in_a_relu(tmp_path: Path, chain: str, change: dict[str, Any]) -> None:
    path = export(tmp_path / "student", build())
    document = json.loads((path / "limbeck.json").read_text())
    document["folded"]["chains"][chain][0] |= change
    with pytest.raises(BundleError, match=rf"folded.chains.{chain}. .* without a ReLU"):
        parse_manifest(document, path)
