import logging
import warnings

import numpy as np
import onnx
import pytest
import torch

import limbeck.export.onnx
from limbeck.errors import OptionError
from limbeck.export import ParityError, to_onnx
from limbeck.runtime.kernel import OnnxKernel, softmax
from limbeck.students import MLP, InputSpec, NodeInputs

WIDTH, CLASSES = 6, 3


def make_student(num_layers: int = 2, norm: str = "none") -> MLP:
    """A student whose norms are not at their start, where they do nothing."""
    torch.manual_seed(0)
    student = MLP(WIDTH, 5, CLASSES, num_layers, norm, dropout=0.5, input_dropout=0.5)
    for module in student.norms:
        for parameter in module.parameters():
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return student


def make_scaling() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.linspace(-100, 2000, WIDTH), torch.linspace(0.5, 300, WIDTH)


# every depth, norm and scaling, and every pair of a norm and scaling; an export takes half a second
VARIANTS = [
    (1, "none", False),
    (1, "none", True),
    (2, "batch", True),
    (2, "layer", False),
    (3, "batch", False),
    (3, "layer", True),
]


@pytest.mark.parametrize(("num_layers", "norm", "scaled"), VARIANTS)
def test_torch_and_runtime_agree(num_layers: int, norm: str, scaled: bool) -> None:
    student = make_student(num_layers, norm)
    scaling = make_scaling() if scaled else None
    kernel = OnnxKernel(to_onnx(student, scaling), WIDTH, CLASSES, "model.onnx")
    student.eval()
    for batch in (0, 1, 7, 300):
        x = torch.randn(batch, WIDTH)
        raw = x if scaling is None else x * scaling[1] + scaling[0]
        standard = raw if scaling is None else (raw - scaling[0]) / scaling[1]
        with torch.no_grad():
            expected = torch.softmax(student(NodeInputs(standard)), dim=1).numpy()
        probs = softmax(kernel(raw.numpy()), 1.0)
        assert probs.shape == (batch, CLASSES)
        np.testing.assert_allclose(probs, expected, atol=1e-5, rtol=0)


def test_model_is_small_plain_and_the_same_twice() -> None:
    student = make_student(3, "batch")
    first, second = to_onnx(student), to_onnx(student)
    assert first == second
    model = onnx.load_from_string(first)
    # batch norm and dropout are folded away
    assert [node.op_type for node in model.graph.node] == ["Gemm", "Relu", "Gemm", "Relu", "Gemm"]
    # neither file names of this machine nor names of our code
    assert b".py" not in first
    assert b"site-packages" not in first
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_student_is_left_as_it_is_and_nothing_is_said(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    student = make_student(2, "batch")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_onnx(student)
    assert student.training
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    # and only for that long
    assert logging.getLogger("torch.onnx._internal.exporter._registration").filters == []


def test_a_model_that_differs_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    other = to_onnx(make_student(1))
    monkeypatch.setattr(limbeck.export.onnx, "_dense_model", lambda *parts: other)
    with pytest.raises(ParityError, match="differs from the student by"):
        to_onnx(make_student(2))


def test_students_that_read_more_than_x() -> None:
    class Banded(MLP):
        @property
        def inputs(self) -> tuple[InputSpec, ...]:
            return (InputSpec("x", WIDTH), InputSpec("bands", 2))

    with pytest.raises(OptionError, match="Banded reads x, bands"):
        to_onnx(Banded(WIDTH, 5, CLASSES))


@pytest.mark.parametrize(
    ("mean", "deviation", "message"),
    [
        (torch.zeros(5), torch.ones(6), "mean of the scaling must be 6"),
        (torch.zeros(6), torch.ones(6, 1), "deviation of the scaling must be 6"),
        (torch.full((6,), torch.nan), torch.ones(6), "mean of the scaling must be 6 finite"),
        (torch.zeros(6), torch.zeros(6), "above 0"),
    ],
)
def test_scaling_that_does_not_fit(
    mean: torch.Tensor, deviation: torch.Tensor, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        to_onnx(make_student(), (mean, deviation))
