"""Students that read bands, from torch to the bundle: with their bands, and without."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

import limbeck
from limbeck.errors import BundleError, OptionError, RequestError
from limbeck.export import export_bundle
from limbeck.export.bands import export_bands
from limbeck.export.compiled import compile_bands
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.sparse import to_csr
from limbeck.runtime import BandExplanation, BundledStudent, loading, measure_latency
from limbeck.runtime.bundle import parse_manifest
from limbeck.runtime.kernel import OnnxKernel
from limbeck.runtime.native import (
    HAS_KERNELS,
    NativeKernel,
    answer_of_bands,
    folded_shapes,
    read_folded,
)
from limbeck.students.fmlp import FMLP, FMLPO, FMLPS, BandEncoders, GivenBands
from limbeck.students.inputs import InputSpec, NodeInputs

needs_kernels = pytest.mark.skipif(not HAS_KERNELS, reason="built without a C compiler")

NODES, WIDTH, CLASSES = 30, 12, 3
IDS = list(range(0, 10 * NODES, 10))


class Banded(torch.nn.Module):
    """A student of one's own: logits are linear in features and bands, and it explains nothing."""

    inputs = (InputSpec("x", WIDTH), InputSpec("bands", 4))

    def __init__(self) -> None:
        super().__init__()
        self.of_x = torch.nn.Linear(WIDTH, CLASSES)
        self.of_bands = torch.nn.Linear(4, CLASSES)

    def forward(self, inputs: NodeInputs) -> Tensor:
        logits: Tensor = self.of_x(inputs.x)
        return logits if inputs.bands is None else logits + self.of_bands(inputs.bands)


def fmlp_o() -> FMLP:
    student = FMLPO(WIDTH, CLASSES, GivenBands(2, 2, 5), head_layers=2, norm="batch", dropout=0.5)
    student.add_predictor(7)
    student.fallback = "predictor"
    return student


def fmlp_x() -> FMLP:
    reader = BandEncoders(3, 2, 5, 4)
    reader.fit(torch.randn(20, reader.width) * 3)
    return FMLPO(WIDTH, CLASSES, reader, gate="released")


STUDENTS = {
    "fmlp-o": fmlp_o,
    "fmlp-s": lambda: FMLPS(WIDTH, CLASSES, GivenBands(1, 3, 5), gate="released"),
    "fmlp-x": fmlp_x,
    "own": Banded,
}


def make_inputs(student: torch.nn.Module, *, sparse: bool = False) -> NodeInputs:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NODES, WIDTH, generator=generator)
    width = {spec.name: spec.width for spec in student.inputs}["bands"]
    bands = torch.randn(NODES, width, generator=generator)
    return NodeInputs(to_csr(x * (x > 0.3)) if sparse else x, bands=bands)


def load(
    folder: Path, student: torch.nn.Module, inputs: NodeInputs, **changes: Any
) -> BundledStudent:
    arguments: dict[str, Any] = {
        "student": student,
        "inputs": inputs,
        "graph_info": GraphInfo("toy", "", "fixed", ("a", "b", "c"), np.array(IDS)),
        "method": "fmlp-o",
        "student_name": "fmlpo",
        "hyper_parameters": {},
        "teacher": {},
        "setting": "transductive",
        "scores": {},
        "fingerprint": "0",
        "counts": {"edges": 3},
    }
    return limbeck.load(export_bundle(folder / "toy", **arguments | changes))


def four_bands() -> FMLP:
    """A student that Limbeck knows: one of one's own takes seconds to export."""
    return FMLPS(WIDTH, CLASSES, GivenBands(1, 2, 2))


@pytest.fixture(params=STUDENTS)
def student(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return STUDENTS[request.param]().eval()


@pytest.mark.parametrize("sparse", [False, True])
def test_with_bands_without_and_known(
    tmp_path: Path, student: torch.nn.Module, sparse: bool
) -> None:
    inputs = make_inputs(student, sparse=sparse)
    banded = torch.arange(NODES) % 4 > 0
    scaling = None if sparse else (torch.full((WIDTH,), 0.5), torch.full((WIDTH,), 2.0))
    loaded = load(tmp_path, student, inputs, banded=banded, scaling=scaling)
    dense = inputs.x.to_dense()
    seen = dense if sparse else (dense - 0.5) / 2
    with torch.no_grad():
        warm = student(NodeInputs(seen, bands=inputs.bands)).numpy()
        cold = student(NodeInputs(seen)).numpy()
    x: Any = dense
    if sparse:
        stored = loaded.store.features(np.arange(NODES))
        x = (stored.indptr, stored.indices, stored.values)
    bands = inputs.bands.numpy()
    np.testing.assert_allclose(loaded.predict_logits(x=x, bands=bands), warm, atol=1e-5)
    np.testing.assert_allclose(loaded.predict_logits(x=x), cold, atol=1e-5)
    known = np.where(banded.numpy()[:, None], warm, cold)
    np.testing.assert_allclose(loaded.predict_logits(IDS), known, atol=1e-5)
    assert not np.allclose(warm, cold, atol=1e-3)

    if not isinstance(student, FMLP):
        with pytest.raises(RequestError, match="nothing to explain"):
            loaded.explain(IDS)
        return
    with torch.no_grad():
        told = student.explain(NodeInputs(seen, bands=inputs.bands))
        told_cold = student.explain(NodeInputs(seen))
    entry = loaded.manifest.bands
    assert (entry.layers, entry.count) == told.gates.shape[1:]
    for found, expected in (
        (loaded.explain(x=x, bands=bands), told),
        (loaded.explain(x=x), told_cold),
    ):
        assert isinstance(found, BandExplanation)
        np.testing.assert_allclose(found.gates, expected.gates.numpy(), atol=1e-5)
        np.testing.assert_allclose(found.shares, expected.shares.numpy(), atol=1e-4)
        np.testing.assert_allclose(found.shares.sum(1), 1, atol=1e-5)
    of_known = loaded.explain(IDS)
    np.testing.assert_array_equal(of_known.has_bands, banded.numpy())
    gates = torch.where(banded[:, None, None], told.gates, told_cold.gates).numpy()
    np.testing.assert_allclose(of_known.gates, gates, atol=1e-5)
    assert loaded.explain([]).gates.shape == (0, *told.gates.shape[1:])


def test_bands_stay_in_the_file_until_they_are_asked_for(tmp_path: Path) -> None:
    student = four_bands()
    loaded = load(tmp_path, student, make_inputs(student))
    stored = loaded.store._arrays["bands"]
    assert isinstance(stored.base, np.memmap)
    assert not stored.flags.writeable


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"x": np.zeros((2, WIDTH)), "bands": [[0.0] * 4]}, "1 rows of bands for 2 rows"),
        ({"x": np.zeros((1, WIDTH)), "bands": [[0.0] * 3]}, "reads 4 numbers of bands"),
        ({"x": np.zeros((1, WIDTH)), "bands": [[0.0] * 3 + [np.nan]]}, r"bands\[0, 3\] is nan"),
        ({"x": np.zeros((1, WIDTH)), "neighbors": [[10]]}, "leave neighbors and position out"),
        ({"nodes": [10], "bands": [[0.0] * 4]}, "belong to new nodes"),
    ],
)
def test_wrong_requests(tmp_path: Path, request_: dict[str, Any], message: str) -> None:
    student = four_bands()
    loaded = load(tmp_path, student, make_inputs(student))
    with pytest.raises(RequestError, match=message):
        loaded.predict(**request_)


def test_latency_and_card(tmp_path: Path) -> None:
    def measure(student: BundledStudent) -> dict[str, Any]:
        return measure_latency(student, batch_sizes=(2,), seconds=0.02)

    student = four_bands()
    load(tmp_path, student, make_inputs(student), latency=measure)
    card = (tmp_path / "toy" / "README.md").read_text(encoding="utf-8")
    assert "what the bands of a graph transform say of it" in card
    assert "| new nodes | 2 | " in card


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    student = four_bands()
    inputs = make_inputs(student)
    with pytest.raises(OptionError, match="bands of 4 values per node, .* have none"):
        load(tmp_path, student, NodeInputs(inputs.x))
    with pytest.raises(OptionError, match="banded must be 30 booleans"):
        load(tmp_path, student, inputs, banded=torch.ones(3, dtype=torch.bool))
    assert list(tmp_path.iterdir()) == []


# --- the compiled kernels ---------------------------------------------------------------------


def trained_norms(student: torch.nn.Module) -> None:
    """Norms as they are behind training, not as they begin."""
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)


HEADS = [(1, "none"), (2, "none"), (2, "batch"), (3, "layer")]


@needs_kernels
@pytest.mark.parametrize(("layers", "width"), [(1, 5), (2, 16), (3, 33)])
@pytest.mark.parametrize("coefficients", [0, 4])
@pytest.mark.parametrize("gate", ["split", "released"])
@pytest.mark.parametrize("tied", [False, True])
def test_compiled_answers_are_those_of_torch(
    layers: int, width: int, coefficients: int, gate: Any, tied: bool
) -> None:
    torch.manual_seed(layers)
    network = FMLPS if layers == 1 else FMLPO
    x = torch.randn(300, WIDTH) * (torch.rand(300, WIDTH) < 0.4)
    for count, (head_layers, norm) in itertools.product((1, 3), HEADS):
        reader = GivenBands(layers, count, width)
        if coefficients:
            reader = BandEncoders(layers, count, width, coefficients)
            reader.fit(torch.randn(20, reader.width) * 3)
        student = network(
            WIDTH, CLASSES, reader, head_layers=head_layers, norm=norm, gate=gate, tied=tied
        ).eval()
        trained_norms(student)
        student.add_predictor(7)
        bands = torch.randn(300, reader.width)
        for fallback in ("predictor", "features"):
            own = student.answering_by(fallback)
            compiled = compile_bands(own)
            shapes = {name: array.shape for name, array in compiled.arrays.items()}
            assert shapes == folded_shapes(compiled.entry, WIDTH)
            answer = answer_of_bands(compiled.entry, compiled.arrays)
            with torch.no_grad():
                warm = own(NodeInputs(x, bands=bands)).numpy()
                cold = own(NodeInputs(x)).numpy()
            for batch in (0, 1, 10, 300):
                rows = sp.csr_array(x[:batch].numpy())
                read = bands[:batch].numpy()
                for form in (x[:batch].numpy(), (rows.indptr, rows.indices, rows.data)):
                    np.testing.assert_allclose(answer(form, read), warm[:batch], atol=1e-5)
                    np.testing.assert_allclose(answer(form), cold[:batch], atol=1e-5)


@pytest.mark.parametrize("with_kernels", [pytest.param(True, marks=needs_kernels), False])
@pytest.mark.parametrize("name", ["fmlp-o", "fmlp-s", "fmlp-x"])
def test_with_and_without_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_kernels: bool, name: str
) -> None:
    torch.manual_seed(0)
    student = STUDENTS[name]().eval()
    inputs = make_inputs(student)
    monkeypatch.setattr(loading, "HAS_KERNELS", with_kernels)
    loaded = load(tmp_path, student, inputs)
    kind = NativeKernel if with_kernels else OnnxKernel
    assert isinstance(loaded.kernel, kind)
    assert isinstance(loaded.cold_kernel, kind)
    x, bands = inputs.x.numpy(), inputs.bands.numpy()
    with torch.no_grad():
        warm, cold = student(inputs).numpy(), student(NodeInputs(inputs.x)).numpy()
    rows = sp.csr_matrix(x)
    columns = rows.indices.copy()
    columns[:2] = columns[1::-1]  # no order that the kernels need
    rows.data[:2] = rows.data[1::-1].copy()
    for form in (x, x.tolist(), x.astype(np.float64), (rows.indptr, columns, rows.data)):
        np.testing.assert_allclose(loaded.predict_logits(x=form), cold, atol=1e-5)
        for read in (bands, bands.tolist(), bands.astype(np.float64)):
            found = loaded.predict_logits(x=form, bands=read)
            np.testing.assert_allclose(found, warm, atol=1e-5)
    assert loaded.explain(x=x, bands=bands).gates.shape[0] == NODES
    wrong = np.full_like(x, np.inf)
    with pytest.raises(RequestError, match=r"x\[0, 0\] is inf"):
        loaded.predict(x=wrong)
    with pytest.raises(RequestError, match=r"x\[0, 0\] is inf"):
        loaded.predict(x=wrong, bands=bands)
    with pytest.raises(RequestError, match=r"bands\[0, 0\] is nan"):
        loaded.predict(x=x, bands=np.full_like(bands, np.nan))
    with pytest.raises(RequestError, match="rows of bands for"):
        loaded.predict(x=x, bands=bands[:1])
    overlaid = loaded.with_overlay(tmp_path / "overlay")
    overlaid.upsert([IDS[0], 7], x[[1, 2]])
    np.testing.assert_allclose(overlaid.predict_logits([IDS[0], 7]), cold[[1, 2]], atol=1e-5)


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda folded: folded.pop(name)


def set_to(value: Any, *path: Any) -> Callable[[dict[str, Any]], Any]:
    def change(folded: Any) -> None:
        for name in path[:-1]:
            folded = folded[name]
        folded[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("bands"), r"'folded\.bands' must be an object"),
        (without("chains"), r"'folded\.chains' must be an object"),
        (set_to(1, "bands", "layers"), r"'folded\.bands\.layers' must be that of bands"),
        (set_to(True, "bands", "count"), r"'folded\.bands\.count' must be an integer"),
        (set_to(3, "bands", "count"), r"'folded\.bands\.count' must be that of bands"),
        (
            set_to(5, "bands", "coefficients"),
            r"coefficients' must be such that a node has 24 values",
        ),
        (set_to(-1, "bands", "coefficients"), r"coefficients' must be an integer of at least 0"),
        (set_to(0, "bands", "tied"), r"'folded\.bands\.tied' must be true or false"),
        (set_to(True, "bands", "tied"), r"'folded\.chains' must be an object with encoder"),
        (set_to(None, "bands", "released"), r"'folded\.bands\.released' must be true or false"),
        (set_to([], "chains", "encoder"), r"leads from 12 values to 0"),
        (set_to(6, "chains", "encoder", 0, "answers"), r"from 5 values to 3|from 6 values to"),
        (set_to(11, "chains", "encoder", 0, "reads"), r"leads from 12 values to 5"),
        (set_to([], "chains", "student"), r"'folded\.chains' must be an object with encoder"),
        (set_to(4, "chains", "from_band_1", 0, "reads"), r"leads from 5 values to 3"),
        (set_to(4, "chains", "re_encoder", 0, "answers"), r"leads from 5 values to 5"),
        (set_to("no", "scaled"), r"'folded\.scaled' must be true or false"),
    ],
)
def test_what_a_manifest_cannot_say(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    torch.manual_seed(0)
    student = fmlp_x().eval()
    load(tmp_path, student, make_inputs(student))
    document = json.loads((tmp_path / "toy" / "limbeck.json").read_text())
    where = Path("limbeck.json")
    assert parse_manifest(document, where).folded.bands.coefficients == 4
    change(document["folded"])
    with pytest.raises(BundleError, match=message):
        parse_manifest(document, where)


@needs_kernels
@pytest.mark.parametrize(
    "name", ["folded_gate", "folded_bands_factor", "folded_from_band_1_bias_0"]
)
def test_arrays_that_do_not_fit_the_manifest(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    student = fmlp_x().eval()
    inputs = make_inputs(student)
    exported = export_bands(student, inputs)
    manifest = load(tmp_path, student, inputs).manifest
    for array in (None, exported.compiled.arrays[name][:-1]):
        arrays = {**exported.compiled.arrays, name: array}
        if array is None:
            del arrays[name]
        with pytest.raises(BundleError, match=rf"{name}\.npy"):
            read_folded(arrays, manifest, "store")


def test_more_bands_than_the_kernels_read(tmp_path: Path) -> None:
    student = FMLPS(WIDTH, CLASSES, GivenBands(1, 65, 1)).eval()
    inputs = make_inputs(student)
    loaded = load(tmp_path, student, inputs)
    assert isinstance(loaded.kernel, OnnxKernel)
    with torch.no_grad():
        expected = student(inputs).numpy()
    found = loaded.predict_logits(x=inputs.x.numpy(), bands=inputs.bands.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)
