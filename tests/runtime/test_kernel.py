"""Sparse rows through the sparse model, in blocks, and where nodes are sent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from test_bundle_format import edit_manifest
from tiny_bundle import BIAS, WEIGHT, X, linear_model, manifest_fields

from limbeck.cli import run
from limbeck.errors import BundleError, RequestError
from limbeck.runtime import kernel as kernel_module
from limbeck.runtime import load_bundle
from limbeck.runtime.bundle import RoutingEntry
from limbeck.runtime.kernel import OnnxKernel, SparseModel
from limbeck.runtime.rows import CsrRows, check_rows

WIDE = 400


def make_model(inputs: dict[str, Any], nodes: list[Any], constants: dict[str, Any]) -> bytes:
    """A model that answers ``logits``, and routes where the nodes name them."""
    kinds = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("int64"): TensorProto.INT64}
    ends = {"logits": (np.float32, 2), "experts_0": (np.int64, 1), "gates_0": (np.float32, 1)}
    written = {name for node in nodes for name in node.output}
    graph = helper.make_graph(
        nodes,
        "student",
        [
            helper.make_tensor_value_info(name, kinds[np.dtype(kind)], ["batch", width])
            for name, (kind, width) in inputs.items()
        ],
        [
            helper.make_tensor_value_info(name, kinds[np.dtype(kind)], ["batch", width])
            for name, (kind, width) in ends.items()
            if name in written
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def sparse_model(weight: np.ndarray = WEIGHT, bias: np.ndarray = BIAS) -> bytes:
    """``linear_model`` on entries, as docs/bundle.md describes it."""
    nodes = [
        helper.make_node("Gather", ["weight", "columns"], ["rows"]),
        helper.make_node("Unsqueeze", ["values", "one"], ["value"]),
        helper.make_node("MatMul", ["value", "rows"], ["sum"]),
        helper.make_node("Squeeze", ["sum", "one"], ["flat"]),
        helper.make_node("Add", ["flat", "bias"], ["logits"]),
    ]
    inputs = {"columns": (np.int64, "entries"), "values": (np.float32, "entries")}
    constants = {"weight": weight, "bias": bias, "one": np.array([1])}
    return make_model(inputs, nodes, constants)


def routed_model() -> bytes:
    """Sends a row to expert 1 if its second feature is the largest, and so on."""
    nodes = [
        helper.make_node("Gemm", ["x", "weight", "bias"], ["logits"]),
        helper.make_node("TopK", ["x", "one"], ["gates_0", "experts_0"]),
    ]
    constants = {"weight": WEIGHT, "bias": BIAS, "one": np.array([1])}
    return make_model({"x": (np.float32, 3)}, nodes, constants)


def wide_kernel(values_per_entry: int = 2) -> tuple[OnnxKernel, np.ndarray]:
    """A kernel with both models of one linear map, and its weights."""
    weight = np.random.default_rng(0).integers(-4, 5, (WIDE, 2)).astype(np.float32)
    sparse = SparseModel(sparse_model(weight), values_per_entry, "sparse.onnx")
    model = linear_model(weight, BIAS)
    return OnnxKernel(model, WIDE, 2, "model.onnx", sparse=sparse), weight


class Recorder:
    """Stands before a session and notes what it is asked."""

    def __init__(self, session: Any, asked: list[tuple[str, tuple[int, ...]]], name: str) -> None:
        self.session, self.asked, self.name = session, asked, name

    def run(self, outputs: Any, feed: dict[str, np.ndarray]) -> Any:
        self.asked.append((self.name, next(iter(feed.values())).shape))
        return self.session.run(outputs, feed)


def recorded(kernel: OnnxKernel) -> list[tuple[str, tuple[int, ...]]]:
    asked: list[tuple[str, tuple[int, ...]]] = []
    for name in ("sparse", "dense"):
        session = Recorder(getattr(kernel, f"_{name}_session"), asked, name)
        kernel.__dict__[f"_{name}_session"] = session
    return asked


def rows_of_lengths(lengths: list[int]) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = np.zeros((len(lengths), WIDE), dtype=np.float32)
    for row, length in zip(x, lengths, strict=True):
        row[rng.choice(WIDE, length, replace=False)] = rng.integers(1, 5, length)
    return x


# ---------------------------------------------------------------- sparse rows


def test_short_rows_go_to_the_sparse_model_and_long_ones_to_the_dense_one() -> None:
    kernel, weight = wide_kernel()
    asked = recorded(kernel)
    for lengths, expected in (
        ([7], [("sparse", (1, 7))]),
        ([0], [("sparse", (1, 1))]),
        ([350], [("dense", (1, WIDE))]),  # a single row: sparse to a quarter of the columns
        ([100], [("sparse", (1, 100))]),
        ([101], [("dense", (1, WIDE))]),
        ([5, 0, 9, 9], [("sparse", (4, 9))]),
        ([5, 300, 9, 9], [("sparse", (3, 9)), ("dense", (1, WIDE))]),
        ([300, 200], [("dense", (2, WIDE))]),
    ):
        x = rows_of_lengths(lengths)
        logits = kernel(check_rows(sp.csr_matrix(x), WIDE))
        np.testing.assert_allclose(logits, x @ weight + BIAS, rtol=1e-5)
        assert asked == expected
        asked.clear()
    kernel(rows_of_lengths([7]))
    assert asked == [("dense", (1, WIDE))]


def test_a_call_of_the_sparse_model_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "GATHER_VALUES", 100)
    kernel, weight = wide_kernel(values_per_entry=2)  # so 50 entries a call
    asked = recorded(kernel)
    x = rows_of_lengths([10, 1, 20, 2, 20, 10, 3, 0])
    logits = kernel(check_rows(sp.csr_matrix(x), WIDE))
    np.testing.assert_allclose(logits, x @ weight + BIAS, rtol=1e-5)
    # by length: 0 1 2 3 10 fit filled up, and 10 20 do, not three of 20
    assert asked == [("sparse", (5, 10)), ("sparse", (2, 20)), ("sparse", (1, 20))]


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.int64, st.integers(0, 12), elements=st.integers(0, 30)),
    st.integers(1, 200),
    st.integers(0, 2**32 - 1),
)
def test_any_mixture_of_rows(lengths: np.ndarray, most: int, seed: int) -> None:
    kernel, weight = wide_kernel(values_per_entry=1)
    rng = np.random.default_rng(seed)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    columns = rng.integers(0, WIDE, indptr[-1])  # perhaps the same twice, in any order
    values = rng.integers(-3, 4, indptr[-1]).astype(np.float32)
    x = sp.csr_matrix((values, columns, indptr), (len(lengths), WIDE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_module, "GATHER_VALUES", most)
        logits = kernel(CsrRows(indptr, columns, values, WIDE))
    np.testing.assert_allclose(logits, x @ weight + BIAS, rtol=1e-5)


def test_many_rows_without_a_sparse_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "BLOCK_ROWS", 3)
    kernel = OnnxKernel(linear_model(), 3, 2, "model.onnx")
    x = np.arange(24, dtype=np.float32).reshape(8, 3) % 5
    for rows in (x, check_rows(sp.csr_matrix(x), 3)):
        np.testing.assert_allclose(kernel(rows), x @ WEIGHT + BIAS)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (([0, 2], [1, 2], [1, 2]), [[0, 1, 2]]),
        (([0, 2], [2, 1], [1, 2]), [[0, 2, 1]]),
        (([0, 3], [1, 1, 0], [1, 2, 4]), [[4, 3, 0]]),
        (([0, 0, 2, 2, 4], [0, 2, 0, 2], [1, 2, 3, 4]), [[0] * 3, [1, 0, 2], [0] * 3, [3, 0, 4]]),
        (([0, 2, 2, 4], [2, 2, 1, 1], [1, 2, 3, 4]), [[0, 0, 3], [0] * 3, [0, 7, 0]]),
        (([0, 0], [], []), [[0, 0, 0]]),
    ],
)
def test_columns_that_come_twice_are_added_up(rows: Any, expected: Any) -> None:
    given_rows = check_rows(rows, 3)
    assert isinstance(given_rows, CsrRows)
    summed = given_rows.summed()
    np.testing.assert_array_equal(summed.dense(), expected)
    columns, values = summed.padded()
    for row in range(len(expected)):
        entries = columns[row][values[row] != 0]
        assert (np.diff(entries) > 0).all()
    assert summed.summed() is summed


# ---------------------------------------------------------------- bundles


def sparse_fields(**changes: Any) -> dict[str, Any]:
    return manifest_fields(sparse={"values_per_entry": 2}) | changes


def test_a_bundle_with_a_sparse_model(write_tiny: Callable[..., Path]) -> None:
    bundle = write_tiny(manifest=sparse_fields(), sparse_model=sparse_model())
    student = load_bundle(bundle)
    assert student.manifest.sparse is not None
    asked = recorded(student.kernel)  # type: ignore[arg-type]
    np.testing.assert_allclose(student.predict_logits(x=sp.csr_matrix((1, 3))), [BIAS])
    np.testing.assert_allclose(student.predict_logits(x=X), X @ WEIGHT + BIAS)
    assert [name for name, _ in asked] == ["sparse", "dense"]


def test_models_are_read_when_they_are_needed(write_tiny: Callable[..., Path]) -> None:
    bundle = write_tiny(manifest=sparse_fields(), sparse_model=sparse_model())
    student = load_bundle(bundle)
    (bundle / "model.onnx").unlink()
    assert student.predict(x=([0, 0], [])).tolist() == ["art"]
    with pytest.raises(BundleError, match=r"model\.onnx cannot be read: No such file"):
        student.predict(x=X)


@pytest.mark.parametrize(
    "model",
    [b"", b"not onnx", linear_model(), sparse_model()[:-20], sparse_model(WEIGHT[:, :1], BIAS[:1])],
)
def test_a_sparse_model_that_does_not_fit(write_tiny: Callable[..., Path], model: bytes) -> None:
    student = load_bundle(write_tiny(manifest=sparse_fields(), sparse_model=model))
    assert student.predict(x=X[:1]).tolist() == ["art"]
    with pytest.raises(BundleError, match=r"sparse\.onnx"):
        student.predict(x=([0, 0], []))


def test_the_sparse_file_is_checked_like_any_other(write_tiny: Callable[..., Path]) -> None:
    bundle = write_tiny(manifest=sparse_fields(), sparse_model=sparse_model())
    (bundle / "sparse.onnx").write_bytes(sparse_model() + b"x")
    with pytest.raises(BundleError, match=r"sparse\.onnx has .* bytes"):
        load_bundle(bundle)
    (bundle / "sparse.onnx").unlink()
    with pytest.raises(BundleError, match=r"sparse\.onnx is missing"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparse": None}, "'sparse' must be an object if the file 'sparse.onnx' is listed"),
        ({"sparse": {}}, "'sparse.values_per_entry' must be an integer"),
        ({"sparse": {"values_per_entry": 0}}, "of at least 1"),
        ({"routing": {}}, "'routing' must be a list"),
        ({"routing": [3]}, "'routing' must be a list of objects"),
        ({"routing": [{"experts": 2, "top_k": 3}]}, "'routing.top_k' must be at most"),
        ({"routing": [{"experts": 2}]}, "'routing.top_k' must be an integer"),
    ],
)
def test_fields_that_do_not_fit(
    write_tiny: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    bundle = write_tiny(manifest=sparse_fields(), sparse_model=sparse_model())
    edit_manifest(bundle, lambda document: document.update(change))
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


def test_format_1_is_still_read(write_tiny: Callable[..., Path]) -> None:
    bundle = write_tiny()

    def as_it_was(document: dict[str, Any]) -> None:
        document["format"] = 1
        del document["routing"], document["sparse"]

    edit_manifest(bundle, as_it_was)
    student = load_bundle(bundle)
    assert (student.manifest.format, student.manifest.routing) == (1, ())
    np.testing.assert_allclose(student.predict_logits(x=sp.csr_matrix(X)), X @ WEIGHT + BIAS)
    with pytest.raises(RequestError, match="no layers of experts"):
        student.explain(["a"])


# ---------------------------------------------------------------- routes


ROUTED = manifest_fields(routing=[{"experts": 3, "top_k": 1}])


def test_explain(write_tiny: Callable[..., Path]) -> None:
    student = load_bundle(write_tiny(manifest=ROUTED, model=routed_model()))
    # rows of X by hand: 1 in column 0, 3 in column 1, 2 in column 2, and nothing, which ties
    for request in ({"x": X}, {"x": sp.csr_matrix(X)}, {"nodes": ["a", "b", "ç", ""]}):
        (layer,) = student.explain(**request)
        assert layer.experts.tolist() == [[0], [1], [2], [0]]
        assert layer.gates.tolist() == [[1], [3], [2], [0]]
    assert [part.shape for part in student.explain([])[0]] == [(0, 1), (0, 1)]
    assert student.predict(x=X).tolist() == ["art", "maths", "art", "art"]


def test_explain_needs_experts(write_tiny: Callable[..., Path]) -> None:
    student = load_bundle(write_tiny())
    with pytest.raises(RequestError, match="the student 'mlp' has no layers of experts") as raised:
        student.explain(["a"])
    assert str(raised.value).count(".") == 1
    with pytest.raises(RequestError, match="either nodes or x; both"):
        load_bundle(write_tiny("routed", manifest=ROUTED)).explain(["a"], x=X)


def test_routes_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "BLOCK_ROWS", 3)
    kernel = OnnxKernel(routed_model(), 3, 2, "model.onnx", routing=[RoutingEntry(3, 1)])
    (layer,) = kernel.routes(np.tile(X, (2, 1)))
    assert layer.experts.dtype == np.int64
    assert layer.experts.ravel().tolist() == [0, 1, 2, 0] * 2


def test_a_model_without_the_routes_that_are_declared(write_tiny: Callable[..., Path]) -> None:
    student = load_bundle(write_tiny(manifest=ROUTED))
    with pytest.raises(BundleError, match=r"model\.onnx answers logits .* must have .* experts_0"):
        student.explain(["a"])


def test_predict_explains(
    write_tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(write_tiny(manifest=ROUTED, model=routed_model()))
    assert run(["predict", bundle, "--nodes", "b", "--explain"]) == 0
    printed = capsys.readouterr().out
    assert "layer 1: expert (gate)" in printed
    assert "1 (3.00)" in printed
    assert run(["predict", bundle, "--nodes", "b", "--explain", "--json"]) == 0
    assert '"experts": [\n          1\n' in capsys.readouterr().out.replace("\r", "")
    assert run(["inspect", bundle]) == 0
    assert "1 of 3" in capsys.readouterr().out
    assert run(["predict", str(write_tiny("plain")), "--nodes", "b", "--explain"]) == 2
    assert "no layers of experts" in capsys.readouterr().err
