import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import scipy.sparse as sp
from tiny_bundle import BIAS, WEIGHT, X, linear_model, manifest_fields, tiny_parts

import limbeck
from limbeck.errors import BundleError, OptionError, RequestError
from limbeck.features import FeatureEncoder
from limbeck.runtime import load_bundle, measure_latency
from limbeck.runtime.bundle import write_bundle
from limbeck.runtime.kernel import BLOCK_ROWS, OnnxKernel
from limbeck.runtime.rows import check_rows

# by hand: X @ WEIGHT + BIAS
LOGITS = [[1.5, 0], [0.5, 3], [4.5, -2], [0.5, 0]]
CLASSES = ["art", "maths", "art", "art"]


def test_known_and_new_nodes_get_the_same_answers(write_tiny: Callable[..., Path]) -> None:
    student = load_bundle(write_tiny())
    ids = ["a", "b", "ç", ""]
    np.testing.assert_array_equal(student.predict_logits(ids), LOGITS)
    for x in (X, X.tolist(), sp.csr_matrix(X), ([0, 1, 2, 3, 3], [0, 1, 2], [1, 3, 2])):
        np.testing.assert_allclose(student.predict_logits(x=x), LOGITS, atol=1e-6)
        assert student.predict(x=x).tolist() == CLASSES
    assert student.predict(ids).tolist() == CLASSES
    assert student.predict(["ç"]).tolist() == ["art"]
    assert "4 known nodes" in repr(student)


def test_probabilities_are_calibrated(write_tiny: Callable[..., Path]) -> None:
    student = load_bundle(write_tiny())
    # temperature 2: logits (1.5, 0) become (0.75, 0)
    expected = 1 / (1 + np.exp(-0.75))
    probs = student.predict_proba(["a"])
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, [[expected, 1 - expected]], rtol=1e-6)
    np.testing.assert_allclose(student.predict_proba(x=X[:1]), probs, rtol=1e-6)


@pytest.mark.parametrize("request_", [{"nodes": []}, {"x": []}, {"x": np.empty((0, 3))}])
def test_empty_batches(write_tiny: Callable[..., Path], request_: dict[str, Any]) -> None:
    student = load_bundle(write_tiny())
    assert student.predict(**request_).shape == (0,)
    assert student.predict_proba(**request_).shape == (0, 2)


def test_integer_ids_and_answers_that_are_the_callers(write_tiny: Callable[..., Path]) -> None:
    student = load_bundle(write_tiny(ids=(30, 10, 40, 20)))
    assert student.predict(np.array([20, 10])).tolist() == ["art", "maths"]
    student.predict_logits([30])[:] = 7  # a copy: the store is as before
    np.testing.assert_array_equal(student.predict_logits([30]), [LOGITS[0]])


def test_either_nodes_or_x(write_tiny: Callable[..., Path]) -> None:
    student = load_bundle(write_tiny())
    with pytest.raises(RequestError, match="either nodes or x; neither"):
        student.predict()
    with pytest.raises(RequestError, match="either nodes or x; both"):
        student.predict(["a"], x=X)


def test_an_answer_that_overflows_is_refused(write_tiny: Callable[..., Path]) -> None:
    student = load_bundle(write_tiny())
    with pytest.raises(RequestError, match=r"x\[1\] holds numbers so large"):
        student.predict(x=[[0, 0, 0], [3e38, 0, 3e38]])
    assert student.predict_proba(x=[[1e38, 0, 0]]).tolist() == [[1, 0]]


def test_blocks_join_seamlessly() -> None:
    kernel = OnnxKernel(linear_model(), 3, 2, "model.onnx")
    x = np.random.default_rng(0).integers(0, 3, (2 * BLOCK_ROWS + 5, 3)).astype(np.float32)
    for rows in (x, check_rows(sp.csr_matrix(x), 3)):
        np.testing.assert_allclose(kernel(rows), x @ WEIGHT + BIAS, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        b"",
        b"not onnx",
        linear_model()[:-20],
        linear_model(WEIGHT[:2]),
        linear_model(WEIGHT[:, :1], BIAS[:1]),
    ],
)
def test_a_model_that_does_not_fit(write_tiny: Callable[..., Path], model: bytes) -> None:
    student = load_bundle(write_tiny(model=model))
    assert student.predict(["a"]).tolist() == ["art"]  # known nodes need no model
    with pytest.raises(BundleError, match=r"model\.onnx"):
        student.predict(x=X)


def test_a_model_cannot_read_other_files(
    write_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_from_string(linear_model())
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "secret"), ("offset", "0"), ("length", "24")):
        weight.external_data.add(key=key, value=value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=r"model\.onnx is not a model"):
        load_bundle(write_tiny(model=model.SerializeToString())).predict(x=X)


def test_tables_need_an_encoder(write_tiny: Callable[..., Path]) -> None:
    with pytest.raises(RequestError, match="its features came as an array"):
        load_bundle(write_tiny()).predict_table(pa.table({"a": [1.0]}))


def test_tables(write_tiny: Callable[..., Path]) -> None:
    table = pa.table({"year": X[:, 0], "pages": X[:, 1], "cited": X[:, 2]})
    encoder = FeatureEncoder.fit(table, ["year", "pages", "cited"], where="nodes.csv")
    fields = manifest_fields(preprocessing=encoder.to_json())
    student = load_bundle(write_tiny(manifest=fields))
    shuffled = table.select(["cited", "year", "pages"])
    assert student.predict_table(shuffled).tolist() == CLASSES


def test_tables_of_words(write_tiny: Callable[..., Path]) -> None:
    table = pa.table({"words": [["a"], ["b"], ["c"], []]})
    encoder = FeatureEncoder.fit(table, ["words"], where="nodes.parquet")
    fields = manifest_fields(preprocessing=encoder.to_json())
    student = load_bundle(write_tiny(manifest=fields))
    # bags of one word each are the unit vectors: logits are a row of WEIGHT plus BIAS
    assert student.predict_table(table).tolist() == ["art", "maths", "art", "art"]


BLOCKED = """
import sys
import importlib.abc

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED_NAMES:
            raise ImportError(name + " is blocked")

BLOCKED_NAMES = {"torch", "torch_geometric", "scipy", "sklearn", "onnx", "pydantic"}
sys.meta_path.insert(0, Blocker())
import limbeck
student = limbeck.load(sys.argv[1])
assert student.predict(nodes=["a", "b"]).tolist() == ["art", "maths"]
assert "onnxruntime" not in sys.modules
assert student.predict(x=[[1, 0, 0]]).tolist() == ["art"]
assert "pyarrow" not in sys.modules
"""


def test_base_install_is_enough(write_tiny: Callable[..., Path]) -> None:
    source = Path(limbeck.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED, str(write_tiny())],
        check=True,
        env={"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
    )


# ---------------------------------------------------------------- latency


@pytest.mark.parametrize("ids", [("a", "b", "c", "d"), (4, 3, 2, 1)])
def test_latency(write_tiny: Callable[..., Path], ids: tuple[Any, ...]) -> None:
    student = load_bundle(write_tiny(ids=ids))
    figures = measure_latency(student, batch_sizes=(1, 8), seconds=0.04)
    assert figures["threads"] == 1
    for kind in ("x", "nodes"):
        assert list(figures[kind]) == ["1", "8"]
        for figure in figures[kind].values():
            assert 0 < figure["p50_us"] <= figure["p99_us"]
            assert figure["repeats"] >= 5


def test_latency_options(write_tiny: Callable[..., Path], tmp_path: Path) -> None:
    student = load_bundle(write_tiny())
    for sizes, seconds in (((), 1.0), ((0,), 1.0), ((1,), 0.0), ((1,), float("nan"))):
        with pytest.raises(OptionError):
            measure_latency(student, sizes, seconds)
    parts = tiny_parts()
    nobody = {name: array[:0] for name, array in parts["store"].items()}
    nobody["ids_offsets"] = np.zeros(1, np.int64)
    parts |= {"store": nobody, "manifest": manifest_fields(num_nodes=0)}
    empty = load_bundle(write_bundle(tmp_path / "empty", **parts))
    assert empty.predict(x=X).tolist() == CLASSES
    with pytest.raises(OptionError, match="knows no node"):
        measure_latency(empty)
