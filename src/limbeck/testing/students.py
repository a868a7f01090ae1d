"""What every student must do."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import cast

import numpy as np
import torch

from limbeck.export.onnx import to_onnx
from limbeck.graphs.sparse import csr_tensor
from limbeck.methods import Student
from limbeck.runtime.kernel import OnnxKernel
from limbeck.students.inputs import NodeInputs, no_neighbors

PARITY = 1e-5


def check_student(student: torch.nn.Module, inputs: NodeInputs, num_classes: int) -> None:
    """Run the battery over a student.

    Shape and type of the answer; batches of one and of none; a node's answer does not depend on
    the other nodes of the batch; eval mode is deterministic; a state dict round trip; the exported
    model answers as torch does, to 1e-5 in probability. A student that reads neighbours takes them
    in any order and answers nodes that have none; it is not one network to export, since what its
    neighbours contribute is kept per node.

    Args:
        student: The student.
        inputs: Inputs of at least four nodes.
        num_classes: Number of classes ``C``.

    Raises:
        AssertionError: The student breaks a rule; the message says which.
    """
    student.eval()
    assert len(cast(Student, student).inputs) > 0, "the student declares no inputs"
    with torch.no_grad():
        logits = student(inputs)
        assert logits.shape == (len(inputs), num_classes), f"logits have shape {logits.shape}"
        assert logits.dtype == torch.float32, f"logits are {logits.dtype}, not float32"
        assert torch.isfinite(logits).all(), "logits are not finite"
        assert torch.equal(logits, student(inputs)), "eval mode is not deterministic"
        one = student(inputs.take(torch.tensor([2])))
        torch.testing.assert_close(one[0], logits[2], rtol=1e-4, atol=1e-5)
        assert student(inputs.take(torch.tensor([], dtype=torch.int64))).shape == (0, num_classes)
        order = torch.arange(len(inputs)).flip(0)
        torch.testing.assert_close(student(inputs.take(order)), logits[order], rtol=1e-4, atol=1e-5)
    _check_state(student, inputs, logits)
    if inputs.neighbors is None:
        _check_export(student, inputs, logits)
    else:
        _check_neighbors(student, inputs, inputs.neighbors, logits)


def _check_state(student: torch.nn.Module, inputs: NodeInputs, logits: torch.Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.pt"
        torch.save(student.state_dict(), path)
        state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
        student.load_state_dict(state)
        assert torch.equal(student(inputs), logits), "a state dict does not restore the student"
    for name, value in state.items():
        floating = value.is_floating_point()
        assert not floating or value.dtype == torch.float32, f"{name} is {value.dtype}"


def _check_neighbors(
    student: torch.nn.Module, inputs: NodeInputs, rows: torch.Tensor, logits: torch.Tensor
) -> None:
    width = {spec.name: spec.width for spec in cast(Student, student).inputs}["neighbors"]
    assert width == rows.shape[1], f"{width} neighbours are declared, {rows.shape[1]} have a column"
    starts = rows.crow_indices()
    # the entries of each row from last to first
    order = torch.cat([torch.arange(a, b).flip(0) for a, b in itertools.pairwise(starts.tolist())])
    size = (len(rows), int(rows.shape[1]))
    flipped = csr_tensor(starts, rows.col_indices()[order], rows.values()[order], size)
    with torch.no_grad():
        answer = student(NodeInputs(inputs.x, inputs.position, flipped))
        torch.testing.assert_close(answer, logits, rtol=1e-4, atol=1e-5)
        alone = student(NodeInputs(inputs.x, inputs.position, no_neighbors(*size)))
    assert torch.isfinite(alone).all(), "logits of nodes without neighbours are not finite"


def _check_export(student: torch.nn.Module, inputs: NodeInputs, logits: torch.Tensor) -> None:
    rows = [inputs.x.to_dense().numpy()]
    if inputs.position is not None:
        rows.append(inputs.position.numpy())
    positions = sum(part.shape[1] for part in rows[1:])
    shape = (rows[0].shape[1], logits.shape[1])
    kernel = OnnxKernel(to_onnx(student, None), *shape, "the exported model", positions)
    answer = torch.from_numpy(np.asarray(kernel(*rows)))
    error = float((answer.softmax(1) - logits.softmax(1)).abs().max())
    assert error <= PARITY, f"the exported model differs from torch by {error:.1e}"
