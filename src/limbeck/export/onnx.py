"""A student as an ONNX model."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.export.folded import Block, Linear, fold
from limbeck.export.forms import (
    DenseRows,
    Rows,
    SparseRows,
    routing_of,
    values_per_entry,
    write,
)
from limbeck.export.graph import Dtype, Graph, Signature, without_subnormals
from limbeck.graphs.sparse import is_csr
from limbeck.runtime.bundle import INPUTS, RoutingEntry
from limbeck.runtime.kernel import (
    ENTRIES,
    OnnxKernel,
    SparseModel,
    open_model,
    route_names,
    softmax,
)
from limbeck.runtime.rows import CsrRows
from limbeck.students.experts import ExpertStudent
from limbeck.students.inputs import InputSpec, NodeInputs, Surroundings

PARITY = 1e-5
"""Largest difference in probability allowed between torch and the exported model."""

PROBE_ROWS = 64
BLOCK_ROWS = 4096

TIE = 1e-5
"""Experts whose similarities are as close as this are chosen by rounding."""

Scaling = tuple[Tensor, Tensor]
"""Mean and deviation of each column, ``[F]`` each."""


class ParityError(RuntimeError):
    """The exported model does not answer as the student does: a fault of Limbeck's."""


class RawStudent(torch.nn.Module):
    """A student that reads raw, dense features: they are scaled inside.

    Args:
        student: The student, which reads ``x``.
        scaling: Mean and deviation that it was trained with, or ``None``.

    Shapes:
        - **input:** raw features ``[B, F]``; positions ``[B, d]`` if the student reads them
        - **output:** logits ``[B, C]``
    """

    def __init__(self, student: torch.nn.Module, scaling: Scaling | None) -> None:
        super().__init__()
        self.student = student
        self.scales = scaling is not None
        if scaling is not None:
            self.register_buffer("mean", scaling[0].float())
            self.register_buffer("deviation", scaling[1].float())

    def forward(
        self,
        x: Tensor,
        position: Tensor | None = None,
        neighbors: Tensor | None = None,
        bands: Tensor | None = None,
    ) -> Tensor:
        """Logits ``[B, C]`` of raw rows ``x``."""
        return cast(Tensor, self.student(self.inputs(x, position, neighbors, bands)))

    def inputs(
        self,
        x: Tensor,
        position: Tensor | None = None,
        neighbors: Tensor | None = None,
        bands: Tensor | None = None,
    ) -> NodeInputs:
        """What the student reads of raw rows ``x``."""
        return NodeInputs(self.scaled(x), position, neighbors, bands)

    def scaled(self, x: Tensor) -> Tensor:
        """Raw rows as the student was trained on them."""
        if not self.scales:
            return x
        return (x - cast(Tensor, self.mean)) / cast(Tensor, self.deviation)


def known_logits(
    student: torch.nn.Module, inputs: NodeInputs, scaling: Scaling | None = None
) -> npt.NDArray[np.float32]:
    """The student's logits for all known nodes, float32 ``[N, C]``, in blocks of nodes.

    Args:
        student: The student; it is left as it is.
        inputs: Raw inputs of the nodes.
        scaling: Mean and deviation that features were standardised with in training.
    """
    raw_student = RawStudent(copy.deepcopy(student), scaling).cpu().eval()
    inputs = on_cpu(inputs)
    blocks = []
    with torch.no_grad():
        # one empty block where there is no node, for the number of classes
        for start in range(0, max(len(inputs), 1), BLOCK_ROWS):
            index = torch.arange(start, min(start + BLOCK_ROWS, len(inputs)))
            block = inputs.take(index)
            beside = {"neighbors": block.neighbors, "bands": block.bands}
            blocks.append(raw_student(*dense_rows(block), **beside).numpy())
    return np.concatenate(blocks)


def on_cpu(inputs: NodeInputs) -> NodeInputs:
    """The same inputs on the CPU."""

    def moved(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.detach().cpu()

    x, graph = inputs.x.detach().cpu(), inputs.graph
    if graph is not None:
        edges = graph.edge_index  # a HeteroData, where there are types of nodes
        edges = edges.detach().cpu() if isinstance(edges, Tensor) else copy.copy(edges).cpu()
        graph = Surroundings(graph.x.detach().cpu(), edges, graph.nodes.detach().cpu())
    return NodeInputs(
        x, moved(inputs.position), moved(inputs.neighbors), moved(inputs.bands), graph
    )


def dense_rows(inputs: NodeInputs) -> tuple[Tensor, ...]:
    """Dense features ``[B, F]``, and positions ``[B, d]`` behind them where there are any."""
    x = inputs.x.to_dense() if is_csr(inputs.x) else inputs.x
    return (x,) if inputs.position is None else (x, inputs.position)


def to_onnx(
    student: torch.nn.Module,
    scaling: Scaling | None = None,
    *,
    probe: tuple[Tensor, ...] | None = None,
) -> bytes:
    """Export a student to ONNX and check that it answers the same.

    The model maps ``x``, raw features float32 ``[B, F]``, and ``position`` ``[B, d]`` if the
    student reads it, to ``logits`` float32 ``[B, C]`` for any ``B``. Scaling is part of the model,
    what is constant is folded into the weights. A student of experts costs what its chosen experts
    cost, see :mod:`limbeck.export.forms`, and says beside its logits where each of its layers
    sends a node: ``experts_0`` int64 ``[B, k]``, ``gates_0`` float32 ``[B, k]`` and so on. Students
    that Limbeck does not know go through :func:`torch.onnx.export`, with logits alone. The student
    itself is left as it is.

    Args:
        student: The student; its ``inputs`` declare ``x``, and perhaps ``position``.
        scaling: Mean and deviation that ``x`` was standardised with in training, ``[F]`` each.
        probe: Raw dense inputs to compare the two on; normal random numbers by default.

    Returns:
        The serialised model.

    Raises:
        OptionError: The student reads something else, or ``scaling`` does not fit.
        ParityError: Probabilities differ by more than :data:`PARITY`.
    """
    widths = input_widths(student)
    check_scaling(scaling, widths[0])
    raw_student = RawStudent(copy.deepcopy(student), scaling).cpu().eval()
    blocks = fold(raw_student.student)
    if blocks is None:
        model = export_module(raw_student, dict(zip(INPUTS, widths, strict=False)))
    else:
        model = _dense_model(blocks, scaling, widths)
    rows = random_rows(scaling, widths) if probe is None else probe
    rows = clearly_routed(raw_student, rows)
    expected = _logits(raw_student, rows)
    kernel = OnnxKernel(model, widths[0], expected.shape[1], "the exported model", sum(widths[1:]))
    x, *position = (np.ascontiguousarray(part.numpy()) for part in rows)
    check_parity(expected, kernel(x, position[0] if position else None))
    return model


def to_sparse_onnx(
    student: torch.nn.Module,
    scaling: Scaling | None = None,
    *,
    probe: tuple[Tensor, ...] | None = None,
) -> SparseModel | None:
    """Export a student as a model that reads the entries of sparse rows and costs what they cost.

    The model maps ``columns`` int64 ``[B, m]`` and ``values`` float32 ``[B, m]``, the entries of
    ``B`` rows of raw features, of which shorter rows fill up with values of zero, and ``position``
    ``[B, d]`` if the student reads it, to what the model of :func:`to_onnx` answers. No column of
    a row may come twice.

    Args:
        student: The student.
        scaling: What ``x`` was standardised with in training.
        probe: Raw dense inputs to compare the two on; random numbers, mostly zeros, by default.

    Returns:
        The model; ``None`` where there is no such form: for a student that Limbeck does not know,
        and where scaling takes off a mean, which leaves no row sparse.

    Raises:
        OptionError: The student reads something else, or ``scaling`` does not fit.
        ParityError: Probabilities differ by more than :data:`PARITY`.
    """
    widths = input_widths(student)
    check_scaling(scaling, widths[0])
    raw_student = RawStudent(copy.deepcopy(student), scaling).cpu().eval()
    blocks = fold(raw_student.student)
    if blocks is None or (scaling is not None and bool(scaling[0].any())):
        return None
    model = _sparse_model(blocks, scaling, widths)
    rows = _sparse_random_rows(scaling, widths) if probe is None else probe
    rows = clearly_routed(raw_student, rows)
    expected = _logits(raw_student, rows)
    ends: dict[str, tuple[str, int | None]] = dict(ENTRIES)
    if len(rows) > 1:
        ends["position"] = ("tensor(float)", widths[1])
    answers: dict[str, tuple[str, int | None]] = {"logits": ("tensor(float)", expected.shape[1])}
    session = open_model(model, "the exported sparse model", ends, answers)
    check_parity(expected, session.run(["logits"], _entries(rows))[0])
    return SparseModel(model, values_per_entry(blocks[0].map), "the exported sparse model")


def reads_linearly(student: torch.nn.Module) -> bool:
    """Whether every layer of a student is one linear map, as those that int8 has a form for."""
    blocks = fold(copy.deepcopy(student).cpu().eval())
    return blocks is not None and all(isinstance(block.map, Linear) for block in blocks)


def routing_entries(student: torch.nn.Module) -> tuple[RoutingEntry, ...]:
    """The layers of experts that the exported student tells of; none for other students."""
    blocks = fold(copy.deepcopy(student).cpu().eval())
    return () if blocks is None else routing_of(blocks)


def input_widths(student: torch.nn.Module) -> tuple[int, ...]:
    """Number of features that a student reads, and of values of a position if it reads one.

    Raises:
        OptionError: It reads something else, which a bundle has no place for.
    """
    inputs = cast(tuple[InputSpec, ...], student.inputs)
    names = tuple(spec.name for spec in inputs)
    alike = all(spec.dtype == "float32" for spec in inputs)
    if not names or names != INPUTS[: len(names)] or not alike:
        raise OptionError(
            f"the student {type(student).__name__} reads {', '.join(names) or 'nothing'}: a "
            "bundle holds students that read x, or x and position, as float32."
        )
    return tuple(spec.width for spec in inputs)


def check_scaling(scaling: Scaling | None, width: int) -> None:
    """Refuse scaling that does not fit ``width`` features.

    Raises:
        OptionError: A vector has another length, is not finite, or a deviation is not above 0.
    """
    if scaling is None:
        return
    for name, vector in zip(("mean", "deviation"), scaling, strict=True):
        if vector.shape != (width,) or not vector.isfinite().all():
            raise OptionError(
                f"the {name} of the scaling must be {width} finite numbers, one per feature."
            )
    if not (scaling[1] > 0).all():
        raise OptionError("the deviation of the scaling must be above 0 for every feature.")


def _dense_model(blocks: list[Block], scaling: Scaling | None, widths: tuple[int, ...]) -> bytes:
    """The model of dense rows of a student that is known."""
    graph = Graph()
    rows = "x"
    if scaling is not None:
        mean, deviation = (vector.cpu().float().numpy() for vector in scaling)
        rows = graph.op("Div", graph.op("Sub", rows, mean), deviation)
    if len(widths) > 1:
        rows = graph.op("Concat", rows, "position", axis=1)
    inputs = _inputs({"x": ("float32", ("batch", widths[0]))}, widths)
    return _model(graph, inputs, DenseRows(graph, rows, sum(widths)), blocks)


def _sparse_model(blocks: list[Block], scaling: Scaling | None, widths: tuple[int, ...]) -> bytes:
    """The model of sparse rows of a student that is known."""
    graph = Graph()
    values = "values"
    if scaling is not None:
        deviation = scaling[1].cpu().float().numpy()
        values = graph.op("Div", values, graph.op("Gather", deviation, "columns", axis=0))
    position = DenseRows(graph, "position", widths[1]) if len(widths) > 1 else None
    rows = SparseRows(graph, "columns", values, widths[0], position)
    entries: Signature = {
        "columns": ("int64", ("batch", "entries")),
        "values": ("float32", ("batch", "entries")),
    }
    return _model(graph, _inputs(entries, widths), rows, blocks)


def _inputs(features: Signature, widths: tuple[int, ...]) -> Signature:
    if len(widths) == 1:
        return features
    return {**features, "position": ("float32", ("batch", widths[1]))}


def _model(graph: Graph, inputs: Signature, rows: Rows, blocks: list[Block]) -> bytes:
    """A student's blocks on ``rows``, with its logits and routes as outputs."""
    written = write(rows, blocks)
    graph.name(written.logits, "logits")
    outputs: dict[str, tuple[Dtype, tuple[str | int, ...]]] = {
        "logits": ("float32", ("batch", len(blocks[-1].map.bias.T)))
    }
    names = iter(route_names(len(written.routes)))
    for routes, layer in zip(written.routes, routing_of(blocks), strict=True):
        for value, dtype in ((routes.experts, "int64"), (routes.gates, "float32")):
            name = next(names)
            graph.name(value, name)
            outputs[name] = (cast(Dtype, dtype), ("batch", layer.top_k))
    return graph.model(inputs, outputs)


def export_module(
    module: torch.nn.Module, inputs: Mapping[str, int], outputs: Sequence[str] = ("logits",)
) -> bytes:
    """A module of any kind as an ONNX model, by :func:`torch.onnx.export`.

    Args:
        module: The module, on the CPU and in eval mode; it reads float32 ``[B, .]`` tensors.
        inputs: What it reads, in order, by name, with the width of each.
        outputs: Names of what it answers, ``[B, .]`` each.
    """
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(torch.zeros(2, width) for width in inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs),
            verbose=False,
        )
    if program is None:  # only where a file is asked for
        raise RuntimeError("torch.onnx.export returned no model")
    return bytes(_clean(program.model_proto).SerializeToString(deterministic=True))


def _clean(model: Any) -> Any:
    """Leave out what the exporter notes for debugging, file names of this machine among it.

    Subnormal weights become zeros, as everywhere in a bundle.
    """
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    # intermediate shapes: inferred again by any reader, and wrong after folding (quantisation
    # trips over them)
    del model.graph.value_info[:]
    model.graph.name = "student"
    for tensor in model.graph.initializer:
        array = without_subnormals(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for part in (*model.graph.node, *model.graph.initializer, *_ends(model)):
        part.doc_string = ""
        del part.metadata_props[:]
    for value in _ends(model):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(model, full_check=True)
    return model


def _ends(model: Any) -> list[Any]:
    return [*model.graph.input, *model.graph.output]


def random_rows(scaling: Scaling | None, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Inputs ``[PROBE_ROWS, .]`` of the size that the student is used to."""
    generator = torch.Generator().manual_seed(0)
    x, *others = (torch.randn(PROBE_ROWS, width, generator=generator) for width in widths)
    if scaling is not None:
        x = x * scaling[1].cpu().float() + scaling[0].cpu().float()
    return (x, *others)


def _sparse_random_rows(scaling: Scaling | None, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The same with some ten features per node."""
    x, *others = random_rows(scaling, widths)
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(x.shape, generator=generator) < 10 / widths[0]
    return (x * kept, *others)


def _entries(rows: tuple[Tensor, ...]) -> dict[str, npt.NDArray[Any]]:
    """Dense inputs as a sparse model reads them."""
    x, *others = (part.numpy() for part in rows)
    row, column = np.nonzero(x)
    indptr = np.searchsorted(row, np.arange(len(x) + 1))
    columns, values = CsrRows(indptr, column, x[row, column], x.shape[1]).padded()
    return {"columns": columns, "values": values, **dict(zip(INPUTS[1:], others, strict=False))}


def clearly_routed(raw_student: RawStudent, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The rows but those that some layer of experts sends where it does by a hair.

    The order of two experts that are all but equal is a matter of rounding, in PyTorch of where
    they stand in a product: neither answer is wrong then, and they may differ by any amount.
    """
    rows = tuple(part.cpu().float() for part in rows)
    student = raw_student.student
    if not isinstance(student, ExpertStudent):
        return rows
    with torch.no_grad():
        routings = student.trace(raw_student.inputs(*rows)).routings
    clear = torch.ones(len(rows[0]), dtype=torch.bool)
    for routing in routings:
        chosen = routing.gates > 0
        last_in = routing.similarity.masked_fill(~chosen, torch.inf).amin(1)
        first_out = routing.similarity.masked_fill(chosen, -torch.inf).amax(1)
        # of exactly equal ones both take the first, as for a node without features
        clear &= (last_in - first_out > TIE) | (routing.similarity == 0).all(1)
    return tuple(part[clear] for part in rows)


def _logits(raw_student: RawStudent, rows: tuple[Tensor, ...]) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = raw_student(*rows).numpy()
    return logits


def check_parity(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> None:
    """Compare logits ``[B, C]`` of the student with those of its exported model.

    Raises:
        ParityError: Probabilities differ by more than :data:`PARITY`.
    """
    difference = np.abs(softmax(ours, 1.0) - softmax(theirs, 1.0)).max(initial=0.0)
    if not difference <= PARITY:
        raise ParityError(
            f"the exported model differs from the student by {difference:.2g} in probability, and "
            f"{PARITY:g} is allowed"
        )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep two messages of the exporter from users, who cannot act on them.

    One says that torchvision, which we do not use, is not installed; the other is about a
    deprecated call inside torch itself.
    """

    def not_about_torchvision(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addFilter(not_about_torchvision)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning
            )
            yield
    finally:
        logger.removeFilter(not_about_torchvision)
