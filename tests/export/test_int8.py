"""Students as folded layers, and in eight bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import limbeck
from limbeck.errors import OptionError
from limbeck.export import export_bundle
from limbeck.export.compiled import compile_student
from limbeck.export.onnx import known_logits
from limbeck.graphs.info import GraphInfo
from limbeck.runtime.native import HAS_KERNELS, NativeKernel, answer_of_network
from limbeck.runtime.rows import CsrRows
from limbeck.students import MLP, NodeInputs
from limbeck.students.rbm import RbM

NODES, WIDTH, CLASSES = 300, 20, 4


def trained(**options: Any) -> MLP:
    """An MLP whose norms and weights are not those that it starts with."""
    torch.manual_seed(0)
    mlp = MLP(WIDTH, 32, CLASSES, 3, **options)
    mlp.train()
    for _ in range(3):
        mlp(NodeInputs(3 * torch.randn(64, WIDTH) + 1))
    return mlp.eval()


def inputs() -> NodeInputs:
    torch.manual_seed(1)
    return NodeInputs(3 * torch.randn(NODES, WIDTH) + 1)


def save(path: Path, student: torch.nn.Module, **options: Any) -> Path:
    names = tuple(f"class {c}" for c in range(CLASSES))
    return export_bundle(
        path,
        student=student,
        inputs=inputs(),
        graph_info=GraphInfo("random", "", "random", names, np.arange(NODES)),
        method="none",
        student_name="mlp",
        hyper_parameters={},
        teacher={},
        setting="none",
        scores={"student": {"test_accuracy": 0.5}},
        fingerprint="",
        counts={},
        **options,
    )


SCALING = (torch.full((WIDTH,), 1.0), torch.full((WIDTH,), 3.0))


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("scaling", [None, SCALING])
def test_a_folded_mlp_answers_as_torch(tmp_path: Path, norm: str, scaling: Any) -> None:
    mlp = trained(norm=norm)
    student = limbeck.load(save(tmp_path / "mlp", mlp, scaling=scaling))
    expected = known_logits(mlp, inputs(), scaling)
    assert student.manifest.folded is not None
    assert student.manifest.folded.widths == (WIDTH, 32, 32, CLASSES)
    assert isinstance(student.kernel, NativeKernel) == HAS_KERNELS
    x = inputs().x.numpy()
    np.testing.assert_allclose(student.predict_logits(x=x), expected, atol=2e-5)
    indptr = np.arange(0, NODES * WIDTH + 1, WIDTH)
    entries = (indptr, np.tile(np.arange(WIDTH), NODES), x.ravel())
    np.testing.assert_allclose(student.predict_logits(x=entries), expected, atol=2e-5)
    general = student.kernel.general if HAS_KERNELS else student.kernel
    np.testing.assert_allclose(general(x), expected, atol=2e-5)


def test_features_too_large_for_their_deviation_are_not_folded() -> None:
    far = (torch.full((WIDTH,), 1e7), torch.full((WIDTH,), 1.0))
    compiled = compile_student(trained(), far)
    assert compiled is not None
    assert compiled.entry.scaled  # but standardised first
    near = compile_student(trained(), SCALING)
    assert near is not None
    assert near.entry.is_mlp


def test_experts_that_share_a_map_have_no_compiled_form() -> None:
    student = RbM(WIDTH, 8, CLASSES, 2, 3, 2, expert_rank=2)
    student.convert(inputs())
    assert compile_student(student.eval()) is None


def test_eight_bits(tmp_path: Path) -> None:
    mlp = trained(norm="batch")
    expected = known_logits(mlp, inputs(), SCALING)
    path = save(
        tmp_path / "small",
        mlp,
        scaling=SCALING,
        quantize="int8",
        observed=torch.arange(NODES) < 200,
        judge=lambda logits: {"test_accuracy": float(logits.shape[0])},
    )
    student = limbeck.load(path)
    entry = student.manifest.quantization
    assert entry is not None
    assert entry.calibration_nodes == 200
    assert student.manifest.folded is None
    x, known = inputs().x.numpy(), np.arange(NODES)
    stored = student.predict_logits(known)
    # what was measured is what changed
    assert 0 < np.abs(stored - expected).max() < 0.2
    assert entry.agreement == np.mean(stored.argmax(1) == expected.argmax(1)) > 0.9
    # an answer does not depend on what else is asked for
    np.testing.assert_allclose(student.predict_logits(x=x), stored, atol=1e-5)
    np.testing.assert_allclose(student.predict_logits(x=x[7:8]), stored[7:8], atol=1e-5)
    card = (path / "README.md").read_text()
    assert "200 observed nodes set" in card
    assert f"{100 * entry.agreement:.2f} % of the known nodes keep the class" in card
    assert "| score | student | student as int8 |" in card
    assert "| test_accuracy | 0.5 | 300 |" in card


def test_eight_bits_are_for_mlps(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="quantize is 'int4': it must be 'int8'"):
        save(tmp_path / "a", trained(), quantize="int4")
    rbm = RbM(WIDTH, 8, CLASSES, 2, 3, 2)
    rbm.convert(inputs())
    with pytest.raises(OptionError, match="RbM has no form in int8: only MLPs do"):
        save(tmp_path / "b", rbm, quantize="int8")
    with pytest.raises(OptionError, match="observed nodes to calibrate"):
        save(
            tmp_path / "c",
            trained(),
            quantize="int8",
            observed=torch.zeros(NODES, dtype=torch.bool),
        )
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_request_are_the_kernels_whatever_their_form() -> None:
    if not HAS_KERNELS:
        pytest.skip("built without a C compiler")
    compiled = compile_student(trained())
    assert compiled is not None
    answer = answer_of_network(compiled.entry, compiled.arrays)
    kernel = NativeKernel(answer, lambda: pytest.fail("asked"))
    x = inputs().x.numpy()[:5]
    rows = CsrRows(np.arange(0, 101, 20), np.tile(np.arange(20), 5), x.ravel(), WIDTH)
    np.testing.assert_allclose(kernel(rows), kernel(x), atol=1e-5)
