"""Students that read bands, from torch to the bundle: with their bands, and without."""

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
from limbeck.runtime import BandExplanation, BundledStudent, measure_latency
from limbeck.students.fmlp import FMLP, FMLPO, FMLPS, BandEncoders, GivenBands
from limbeck.students.inputs import InputSpec, NodeInputs

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
