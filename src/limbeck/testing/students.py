"""What every student must do."""

from __future__ import annotations

import inspect
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from limbeck.export.onnx import to_onnx
from limbeck.graphs.sparse import csr_tensor, is_csr, take_rows, to_csr
from limbeck.methods import Student
from limbeck.runtime.kernel import OnnxKernel
from limbeck.students.inputs import NodeInputs, Surroundings, no_neighbors

PARITY = 1e-5


def check_student(student: torch.nn.Module, inputs: NodeInputs, num_classes: int) -> None:
    """Run the battery over a student.

    Shape and type of the answer; batches of one and of none; a node's answer does not depend on
    the other nodes of the batch; eval mode is deterministic; a state dict round trip; hidden layers
    by name, where the student has ``layers``; the exported model answers as torch does, to 1e-5 in
    probability.

    A student that reads neighbours takes them in any order and answers nodes that have none. One
    that reads bands answers nodes that have none. One that reads the graph does not care how its
    nodes are numbered, and answers where there are no edges. These are not one network to export,
    since what lies around a node is kept per node.

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
    if inspect.ismethod(getattr(student, "layers", None)):
        _check_layers(student, inputs, logits)
    if inputs.neighbors is not None:
        _check_neighbors(student, inputs, inputs.neighbors, logits)
    if inputs.bands is not None:
        _check_bands(student, inputs, inputs.bands)
    if inputs.graph is not None:
        _check_graph(student, inputs, inputs.graph, logits)
    if inputs.neighbors is None and inputs.bands is None and inputs.graph is None:
        _check_export(student, inputs, logits)


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


def _check_layers(student: torch.nn.Module, inputs: NodeInputs, logits: torch.Tensor) -> None:
    with torch.no_grad():
        outputs: dict[str, torch.Tensor] = student.layers(inputs)  # type: ignore[operator]
    assert list(outputs)[-1] == "logits", "the last of the student's layers is not its logits"
    for name, output in outputs.items():
        assert len(output) == len(inputs), f"layer {name} has {len(output)} rows"
    torch.testing.assert_close(outputs["logits"], logits, rtol=1e-4, atol=1e-5)


def _check_bands(student: torch.nn.Module, inputs: NodeInputs, bands: torch.Tensor) -> None:
    width = _width(student, "bands")
    assert width == bands.shape[1], f"{width} values are declared for bands of {bands.shape[1]}"
    with torch.no_grad():
        alone = student(replace(inputs, bands=None))
    assert len(alone) == len(inputs), f"nodes without bands: {len(alone)} answers"
    assert torch.isfinite(alone).all(), "logits of nodes without bands are not finite"


def _check_graph(
    student: torch.nn.Module, inputs: NodeInputs, graph: Surroundings, logits: torch.Tensor
) -> None:
    num_nodes = len(graph.x)
    width = _width(student, "graph")
    assert width == num_nodes, f"{width} nodes are declared, the graph has {num_nodes}"
    place = torch.arange(num_nodes).flip(0)
    if is_csr(graph.edge_index):
        edges = to_csr(graph.edge_index.to_dense().flip(0, 1))
    else:
        edges = place[graph.edge_index].flip(1)
    renumbered = Surroundings(take_rows(graph.x, place), edges, place[graph.nodes])
    lonely = replace(graph, edge_index=torch.empty(2, 0, dtype=torch.int64))
    with torch.no_grad():
        answer = student(replace(inputs, graph=renumbered))
        alone = student(replace(inputs, graph=lonely))
    torch.testing.assert_close(answer, logits, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(alone).all(), "logits on a graph without edges are not finite"


def _width(student: torch.nn.Module, name: str) -> int:
    """The width that a student declares of an input."""
    widths = {spec.name: spec.width for spec in cast(Student, student).inputs}
    assert name in widths, f"the student is given {name} and does not declare them"
    return widths[name]


def _check_neighbors(
    student: torch.nn.Module, inputs: NodeInputs, rows: torch.Tensor, logits: torch.Tensor
) -> None:
    width = _width(student, "neighbors")
    assert width == rows.shape[1], f"{width} neighbours are declared, {rows.shape[1]} have a column"
    starts = rows.crow_indices()
    # the entries of each row from last to first
    order = torch.cat([torch.arange(a, b).flip(0) for a, b in itertools.pairwise(starts.tolist())])
    size = (len(rows), int(rows.shape[1]))
    flipped = csr_tensor(starts, rows.col_indices()[order], rows.values()[order], size)
    with torch.no_grad():
        answer = student(replace(inputs, neighbors=flipped))
        torch.testing.assert_close(answer, logits, rtol=1e-4, atol=1e-5)
        alone = student(replace(inputs, neighbors=no_neighbors(*size)))
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
