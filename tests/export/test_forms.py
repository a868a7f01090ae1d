"""Students of experts as ONNX: each form answers as torch does, and costs what it says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import limbeck.export.onnx
from limbeck.export import ParityError, to_onnx, to_sparse_onnx
from limbeck.export.onnx import routing_entries
from limbeck.runtime.kernel import OnnxKernel, softmax
from limbeck.runtime.rows import CsrRows
from limbeck.students import MLP, NodeInputs
from limbeck.students.experts import ExpertStudent
from limbeck.students.moe import MoE
from limbeck.students.rbm import RbM

WIDTH, HIDDEN, CLASSES = 40, 12, 3
BATCHES = (0, 1, 10, 256)


def make_student(kind: str, norm: str = "none", position: int = 0, top_k: int = 2) -> Any:
    """A student past pretraining whose parameters are drawn apart."""
    torch.manual_seed(3)
    size = (WIDTH, HIDDEN, CLASSES, 3)
    common: dict[str, Any] = {"norm": norm, "position_channels": position, "dropout": 0.5}
    student: torch.nn.Module
    if kind == "mlp":
        student = MLP(*size, **common)
    elif kind == "moe":
        student = MoE(*size, 5, top_k, **common)
        student.begin_routing()
    else:
        options: dict[str, Any] = {
            "rbm": {"input_gain": True},
            "low rank": {"expert_rank": 2, "input_gain": True},
            "pretraining": {},
        }[kind]
        student = RbM(*size, 5, top_k, **common, **options)
        if kind != "pretraining":
            behind = torch.randn(60, position) if position else None
            student.convert(NodeInputs(torch.randn(60, WIDTH), behind))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in student.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
    return student.eval()


def make_rows(batch: int, position: int = 0) -> tuple[torch.Tensor, ...]:
    """Rows with few entries, the first without any."""
    x = torch.rand(batch, WIDTH) * (torch.rand(batch, WIDTH) < 0.15)
    x[:1] = 0
    return (x, torch.randn(batch, position)) if position else (x,)


def entries(x: torch.Tensor) -> CsrRows:
    row, column = np.nonzero(x.numpy())
    indptr = np.searchsorted(row, np.arange(len(x) + 1))
    return CsrRows(indptr, column, x.numpy()[row, column], x.shape[1])


def make_kernel(student: Any, **options: Any) -> OnnxKernel:
    positions = student.inputs[1].width if len(student.inputs) > 1 else 0
    model = to_onnx(student, options.pop("scaling", None))
    routing = routing_entries(student)
    return OnnxKernel(model, WIDTH, CLASSES, "model.onnx", positions, routing=routing, **options)


def probabilities(student: Any, rows: tuple[torch.Tensor, ...]) -> np.ndarray:
    with torch.no_grad():
        return torch.softmax(student(NodeInputs(*rows)), dim=1).numpy()


def agree(student: Any, kernel: OnnxKernel, position: int, sparse: bool) -> None:
    for batch in BATCHES:
        rows = make_rows(batch, position)
        arrays = [entries(rows[0]) if sparse else rows[0].numpy(), *(p.numpy() for p in rows[1:])]
        answer = softmax(kernel(*arrays), 1.0)
        assert answer.shape == (batch, CLASSES)
        np.testing.assert_allclose(answer, probabilities(student, rows), atol=1e-5, rtol=0)


KINDS = ["mlp", "rbm", "low rank", "moe", "pretraining"]


@pytest.mark.parametrize("position", [0, 4])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_dense_and_sparse_models_answer_as_torch_does(
    kind: str, norm: str, position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.runtime.kernel.ENTRY_COLUMNS", 0.5)  # always the sparse model
    student = make_student(kind, norm, position)
    agree(student, make_kernel(student), position, sparse=False)
    agree(student, make_kernel(student, sparse=to_sparse_onnx(student)), position, sparse=True)


@pytest.mark.parametrize("kind", ["rbm", "moe"])
@pytest.mark.parametrize(("bound", "form"), [(0, "grouped"), (2**40, "all")])
@pytest.mark.parametrize("top_k", [1, 4])
def test_both_forms_of_a_dense_layer_answer_as_torch_does(
    kind: str, bound: int, form: str, top_k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.export.forms.GROUP_ABOVE", bound)
    student = make_student(kind, "batch", top_k=top_k)
    operations = Counter(
        node.op_type for node in onnx.load_from_string(to_onnx(student)).graph.node
    )
    assert (operations["ScatterND"], operations["NonZero"]) == (
        (3, 3) if form == "grouped" else (0, 0)
    )
    agree(student, make_kernel(student), 0, sparse=False)


def test_wide_layers_are_grouped_and_narrow_ones_are_not() -> None:
    student = RbM(300, 200, 5, 3, 6, 2)
    student.convert(NodeInputs(torch.rand(30, 300)))
    nodes = onnx.load_from_string(to_onnx(student)).graph.node
    # the products with a bias, and what begins a group of them
    kinds = [
        node.op_type
        for node in nodes
        if node.op_type == "NonZero" or (node.op_type == "Gemm" and len(node.input) == 3)
    ]
    # two layers with a product per expert, and the last with one product for all of them
    assert kinds == ["NonZero", *["Gemm"] * 6, "NonZero", *["Gemm"] * 6, "Gemm"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_model_only_gathers_from_weights_as_long_as_the_features(kind: str) -> None:
    sparse = to_sparse_onnx(make_student(kind, position=4))
    assert sparse is not None
    assert isinstance(sparse.content, bytes)
    graph = onnx.load_from_string(sparse.content).graph
    long = {
        array.name for array in graph.initializer if len(array.dims) == 2 and array.dims[0] >= WIDTH
    }
    readers = {
        (node.op_type, i)
        for node in graph.node
        for i, name in enumerate(node.input)
        if name in long
    }
    assert readers == {("Gather", 0)}
    # a row's entries are read once for routing, and for each of its k experts
    widest = max(
        numpy_helper.to_array(array).shape[1] for array in graph.initializer if array.name in long
    )
    expected = {"mlp": HIDDEN, "pretraining": HIDDEN, "low rank": HIDDEN + 5 * 2}
    assert sparse.values_per_entry == expected.get(kind, 2 * HIDDEN) >= widest


@pytest.mark.parametrize("kind", ["rbm", "low rank", "moe"])
@pytest.mark.parametrize("sparse", [False, True])
def test_routes_are_those_of_torch(
    kind: str, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.runtime.kernel.ENTRY_COLUMNS", 0.5)
    student: ExpertStudent = make_student(kind)
    kernel = make_kernel(student, sparse=to_sparse_onnx(student))
    (x,) = make_rows(50)
    with torch.no_grad():
        routings = student.trace(NodeInputs(x)).routings
    routes = kernel.routes(entries(x) if sparse else x.numpy())
    assert len(routes) == len(routings) == 3
    for route, routing in zip(routes, routings, strict=True):
        gates = np.zeros((50, 5), dtype=np.float32)
        np.put_along_axis(gates, route.experts, route.gates, axis=1)
        np.testing.assert_allclose(gates, routing.gates.numpy(), atol=1e-6)
        assert (np.diff(route.gates, axis=1) <= 1e-7).all()


@pytest.mark.parametrize("bound", [0, 2**40])
@pytest.mark.parametrize("sparse", [False, True])
def test_ties_go_to_the_first_expert(
    bound: int, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.export.forms.GROUP_ABOVE", bound)
    monkeypatch.setattr("limbeck.runtime.kernel.ENTRY_COLUMNS", 0.5)
    student = make_student("rbm")
    with torch.no_grad():
        for layer in student.layers:
            layer.memory.copy_(layer.memory[:1].expand_as(layer.memory))
    # in torch the order of equal columns of a product hangs on where they stand
    kernel = make_kernel(student, sparse=to_sparse_onnx(student))
    (x,) = make_rows(30)
    for route in kernel.routes(entries(x) if sparse else x.numpy()):
        np.testing.assert_array_equal(route.experts, np.tile([0, 1], (30, 1)))
        np.testing.assert_allclose(route.gates, 0.5)


def test_a_node_without_features_goes_to_the_first_experts() -> None:
    student = make_student("rbm")
    kernel = make_kernel(student, sparse=to_sparse_onnx(student))
    nothing = CsrRows(np.zeros(2, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), WIDTH)
    for rows in (nothing, nothing.dense()):
        first = kernel.routes(rows)[0]
        assert first.experts.tolist() == [[0, 1]]
        np.testing.assert_allclose(first.gates, [[0.5, 0.5]])
        expected = probabilities(student, (torch.zeros(1, WIDTH),))
        np.testing.assert_allclose(softmax(kernel(rows), 1.0), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "rbm", "moe"])
def test_sparse_features_may_be_scaled_but_not_centred(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.runtime.kernel.ENTRY_COLUMNS", 0.5)
    student, deviation = make_student(kind), torch.linspace(0.5, 300, WIDTH)
    scaling = (torch.zeros(WIDTH), deviation)
    kernel = make_kernel(student, scaling=scaling, sparse=to_sparse_onnx(student, scaling))
    (x,) = make_rows(20)
    answer = softmax(kernel(entries(x * deviation)), 1.0)
    np.testing.assert_allclose(answer, probabilities(student, (x,)), atol=1e-5)
    assert to_sparse_onnx(student, (torch.ones(WIDTH), deviation)) is None


def test_students_that_are_not_known_go_through_torch() -> None:
    class Doubled(RbM):
        def trace(self, inputs: NodeInputs) -> Any:
            traced = super().trace(inputs)
            return traced._replace(logits=2 * traced.logits)

    torch.manual_seed(0)
    student = Doubled(WIDTH, HIDDEN, CLASSES)
    student.convert(NodeInputs(torch.randn(20, WIDTH)))
    student.eval()
    assert to_sparse_onnx(student) is None
    assert routing_entries(student) == ()
    kernel = make_kernel(student)
    agree(student, kernel, 0, sparse=False)
    assert kernel.routes(make_rows(2)[0].numpy()) == ()

    class Named(RbM):
        """Computes what RbM does."""

    named = Named(WIDTH, HIDDEN, CLASSES)
    named.load_state_dict(student.state_dict())
    assert len(routing_entries(named)) == 2


def test_a_sparse_model_that_differs_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    other = to_sparse_onnx(make_student("mlp"))
    assert other is not None
    monkeypatch.setattr(limbeck.export.onnx, "_sparse_model", lambda *parts: other.content)
    with pytest.raises(ParityError, match="differs from the student by"):
        to_sparse_onnx(make_student("rbm"))


def test_the_same_student_gives_the_same_bytes() -> None:
    assert to_onnx(make_student("rbm")) == to_onnx(make_student("rbm"))
    assert to_sparse_onnx(make_student("moe")) == to_sparse_onnx(make_student("moe"))
