"""A student that reads neighbours, taken apart: its table as arrays, the rest of it as ONNX.

What the neighbours of a node contribute is a sum of rows of the table, which the runtime reads
through a memory map; the models get it beside the features::

    x, structure [B, h], known [B, 1]  ->  logits, gate, structure_logits, feature_logits

``structure`` is that sum, divided by a power of the degree where the student does so, without the
bias; ``known`` says how much it counts against the latent predictor, 0 for a node without known
neighbours. A LINKX and a :class:`~limbeck.students.neighbor_mlp.NeighborMLP` have neither a gate
nor a predictor (:mod:`limbeck.export.sums`), and only the latter has another answer for nodes
without known neighbours, so is told of them::

    x, structure [B, h]  ->  logits
    x, structure [B, h], known [B, 1]  ->  logits
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.export.compiled import compile_structure
from limbeck.export.folded import Array, Linear, as_array
from limbeck.export.forms import DenseRows, Rows, SparseRows, behind, write
from limbeck.export.graph import Graph, Signature, float32, int64
from limbeck.export.networks import behind_first, fed_forward, normed
from limbeck.export.onnx import PROBE_ROWS, Scaling, check_parity, check_scaling, known_logits
from limbeck.export.sums import Summed, fold_sum, summed
from limbeck.graphs.sparse import is_csr
from limbeck.runtime.bundle import StructureEntry
from limbeck.runtime.kernel import OnnxKernel, SparseModel
from limbeck.runtime.kernel import Structure as StructureInputs
from limbeck.runtime.rows import CsrRows
from limbeck.runtime.rows import Rows as RuntimeRows
from limbeck.runtime.structure import Edges, StructureStore
from limbeck.students.inputs import NodeInputs, no_neighbors
from limbeck.students.linkx import LINKX
from limbeck.students.neighbor_mlp import NeighborMLP
from limbeck.students.sa_mlp import DEGREE_POWER, SAMLP, Head
from limbeck.students.structure_tables import FullTable, HashedTable, LandmarkTable, TiedTable

TableDtype: TypeAlias = Literal["float32", "int8"]

NeighborReader: TypeAlias = SAMLP | LINKX | NeighborMLP
"""The students that are taken apart here."""


@dataclass(frozen=True)
class StructureExport:
    """A student that reads neighbours, as its bundle holds it.

    Args:
        entry: What the manifest says of the table.
        arrays: Table, edges and sums, by the names that they have in the store.
        logits: Answers for the known nodes, float32 ``[N, C]``.
        model: The ONNX model of dense rows.
        sparse: That of sparse rows, or ``None``.
        folded: The manifest's field ``folded``; its arrays are among the others.
    """

    entry: StructureEntry
    arrays: Mapping[str, npt.NDArray[Any]]
    logits: Array
    model: bytes
    sparse: SparseModel | None
    folded: Mapping[str, Any]

    @property
    def fields(self) -> dict[str, Any]:
        """The manifest's fields ``structure`` and ``folded``."""
        return {"structure": asdict(self.entry), "folded": dict(self.folded)}


def export_structure(
    student: NeighborReader,
    inputs: NodeInputs,
    rows: RuntimeRows,
    columns: Tensor,
    scaling: Scaling | None = None,
    table_dtype: TableDtype = "float32",
) -> StructureExport:
    """Take a student apart and check that it answers the same.

    Args:
        student: The student; it is left as it is.
        inputs: Raw inputs of all ``N`` known nodes, on the CPU.
        rows: Their features as the runtime reads them.
        columns: The known node that each column of ``inputs.neighbors`` stands for, int64: those
            that training observed.
        scaling: What ``x`` was standardised with in training.
        table_dtype: How the table's rows are stored. ``"int8"`` takes a quarter of the memory, with
            one factor per row, and answers may differ from the student's.

    Raises:
        OptionError: The inputs have no neighbours, or weighted ones, or do not fit the student, or
            ``scaling`` or ``table_dtype`` does not.
        ParityError: The bundle would answer differently from torch.
    """
    check_scaling(scaling, student.in_channels)
    neighbors = _checked_neighbors(student, inputs, columns)
    if table_dtype not in ("float32", "int8"):
        raise OptionError(f"table_dtype is {table_dtype!r}: it must be 'float32' or 'int8'.")
    student = copy.deepcopy(student).cpu().eval()
    exact = known_logits(student, inputs, scaling)
    _write_out(student)
    as_trained = student
    if not isinstance(student, SAMLP):
        student = fold_sum(student)
    table = _store_table(student, columns, len(inputs), table_dtype)
    if table_dtype == "int8":
        as_trained = student  # as its rows are stored
    logits = exact if table_dtype == "float32" else known_logits(student, inputs, scaling)
    agreement = float((exact.argmax(1) == logits.argmax(1)).mean()) if len(logits) else 1.0
    entry = _entry(student, table_dtype, agreement)
    arrays: dict[str, npt.NDArray[Any]] = {**table, **_edge_arrays(neighbors, columns)}
    arrays["structure"] = np.zeros((len(inputs), entry.width), dtype=np.float32)
    arrays["degree"] = np.zeros(len(inputs), dtype=np.int64)
    store = StructureStore(arrays, entry, len(inputs))
    arrays["structure"], arrays["degree"] = store.sums(store.edges_of_known(np.arange(len(inputs))))
    model = _dense_model(student, scaling)
    sparse = None
    if is_csr(inputs.x) and (scaling is None or not bool(scaling[0].any())):
        maps = len(_first_maps(student)) if isinstance(student, SAMLP) else 1 + entry.lone
        values_per_entry = maps * entry.width  # each leads from features to a part
        sparse = SparseModel(
            _sparse_model(student, scaling), values_per_entry, "the exported sparse model"
        )
    compiled = compile_structure(student, scaling)
    arrays |= compiled.arrays
    exported = StructureExport(entry, arrays, logits, model, sparse, compiled.fields)
    _check(exported, as_trained, inputs, rows, scaling)
    return exported


def _entry(student: NeighborReader, dtype: TableDtype, agreement: float) -> StructureEntry:
    width = student.table.channels
    if not isinstance(student, SAMLP):
        form = summed(student)
        lone = form.lone is not None
        return StructureEntry(width, form.power, 0.0, dtype, agreement, gated=False, lone=lone)
    power = DEGREE_POWER[student.adj_norm]
    blend = float(student.blend) if student.routed else 0.0
    return StructureEntry(width, power, blend, dtype, agreement)


def _checked_neighbors(student: NeighborReader, inputs: NodeInputs, columns: Tensor) -> Tensor:
    neighbors = inputs.neighbors
    if neighbors is None:
        raise OptionError(
            "the student reads neighbors, and the inputs of the known nodes have none."
        )
    width = student.table.num_columns
    if neighbors.shape[1] != width or len(columns) != width:
        raise OptionError(
            f"the student knows {width} neighbors by name, the inputs {neighbors.shape[1]}, and "
            f"columns names {len(columns)}: all must be the same."
        )
    if not bool((neighbors.values() == 1).all()):
        raise OptionError("edges in a bundle have no weights, and those of the inputs have some.")
    return neighbors


# --- the table --------------------------------------------------------------------------------


@torch.no_grad()
def _write_out(student: NeighborReader) -> None:
    """Put a table of rows in the place of one whose rows follow from what no bundle has.

    Raises:
        OptionError: The table is of a type that a bundle has no place for.
    """
    table = student.table
    if isinstance(table, TiedTable):
        written_out = FullTable(table.num_columns, table.channels)
        written_out.weight.copy_(table.rows(torch.arange(table.num_columns)))
        student.table = table = written_out
    if not isinstance(table, FullTable | LandmarkTable | HashedTable):
        raise OptionError(f"a bundle has no place for a table of type {type(table).__name__}.")


@torch.no_grad()
def _store_table(
    student: NeighborReader, columns: Tensor, num_nodes: int, dtype: TableDtype
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of the table; that of ``student`` is made what they hold."""
    table = cast(FullTable | LandmarkTable | HashedTable, student.table)
    place = table.place if isinstance(table, LandmarkTable) else torch.arange(table.num_columns)
    column = np.full(num_nodes, -1, dtype=np.int64)
    column[columns.numpy()] = place.numpy()
    observed = np.zeros(num_nodes, dtype=np.bool_)
    observed[columns.numpy()] = True
    arrays: dict[str, npt.NDArray[Any]] = {"column": column, "observed": observed}
    if isinstance(table, HashedTable):
        arrays["hash_factors"] = table.factors.numpy()
    if dtype == "float32":
        return {**arrays, "table": as_array(table.weight)}
    small, scale = to_int8(table.weight)
    table.weight.copy_(small * scale)
    return {**arrays, "table": small.numpy(), "table_scale": as_array(scale.squeeze(1))}


def to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a table in eight bits, symmetric, with one factor per row.

    Args:
        rows: float32 ``[n, h]``.

    Returns:
        int8 ``[n, h]``, of which the largest of a row is 127 in magnitude, and the factors, float32
        ``[n, 1]``; their product stands for the rows.
    """
    scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    return (rows / scale).round().to(torch.int8), scale


def _edge_arrays(neighbors: Tensor, columns: Tensor) -> dict[str, npt.NDArray[np.int64]]:
    """Each known node's neighbours as rows of the store, in ascending order."""
    indptr = neighbors.crow_indices().long().numpy()
    node = np.repeat(np.arange(len(neighbors)), np.diff(indptr))
    indices = columns[neighbors.col_indices()].long().numpy()
    return {
        "neighbors_indptr": indptr,
        "neighbors_indices": indices[np.lexsort((indices, node))],
    }


# --- the models -------------------------------------------------------------------------------


class _Streams(NamedTuple):
    """Names of values in the graph: the gate ``[B, 1]`` and the streams' logits ``[B, C]``."""

    gate: str
    structure: str
    feature: str


def _dense_model(student: NeighborReader, scaling: Scaling | None) -> bytes:
    graph = Graph()
    x = "x"
    if scaling is not None:
        x = graph.op("Div", graph.op("Sub", x, as_array(scaling[0])), as_array(scaling[1]))
    width = student.in_channels
    rows = DenseRows(graph, x, width)
    return _model(rows, student, {"x": ("float32", ("batch", width))})


def _sparse_model(student: NeighborReader, scaling: Scaling | None) -> bytes:
    graph = Graph()
    values = "values"
    if scaling is not None:
        deviation = graph.op("Gather", as_array(scaling[1]), "columns", axis=0)
        values = graph.op("Div", values, deviation)
    rows = SparseRows(graph, "columns", values, student.in_channels, None)
    entries: Signature = {
        "columns": ("int64", ("batch", "entries")),
        "values": ("float32", ("batch", "entries")),
    }
    return _model(rows, student, entries)


def _model(rows: Rows, student: NeighborReader, features: Signature) -> bytes:
    """The student on ``rows`` and the sums of its neighbours' rows."""
    g, width, num_classes = rows.graph, student.table.channels, student.out_channels
    if not isinstance(student, SAMLP):
        form = summed(student)
        g.name(_write_sum(rows, form, width), "logits")
        known: Signature = {} if form.lone is None else {"known": ("float32", ("batch", 1))}
        return g.model(
            {**features, "structure": ("float32", ("batch", width)), **known},
            {"logits": ("float32", ("batch", num_classes))},
        )
    streams = _write(rows, student)
    # s = u_X + a (u_A - u_X)
    difference = g.op("Sub", streams.structure, streams.feature)
    logits = g.op("Add", streams.feature, g.op("Mul", streams.gate, difference))
    names = ("gate", "structure_logits", "feature_logits")
    for value, name in zip((logits, *streams), ("logits", *names), strict=True):
        g.name(value, name)
    inputs: Signature = {
        **features,
        "structure": ("float32", ("batch", width)),
        "known": ("float32", ("batch", 1)),
    }
    outputs: Signature = {
        "logits": ("float32", ("batch", num_classes)),
        "gate": ("float32", ("batch", 1)),
        "structure_logits": ("float32", ("batch", num_classes)),
        "feature_logits": ("float32", ("batch", num_classes)),
    }
    return g.model(inputs, outputs)


def _write_sum(rows: Rows, form: Summed, width: int) -> str:
    """Logits of nodes whose neighbours' part is added to the first layer, each on its route."""
    g = rows.graph
    encoded = rows.linear(cast(Linear, form.encoder.map))
    hidden = behind(g, g.op("Add", "structure", encoded), form.encoder)
    logits = write(DenseRows(g, hidden, width), form.rest).logits
    if form.lone is None:
        return logits
    lone, has_any = form.lone, g.op("Greater", "known", float32(0.0))

    def with_lone() -> list[str]:
        return [g.op("Where", has_any, logits, write(rows, lone).logits)]

    return g.choose(_any_alone(g, has_any), with_lone, lambda: [logits])[0]


def _any_alone(g: Graph, has_any: str) -> str:
    """Whether a batch has a node without neighbours; one without computes nothing for such."""
    num_alone = g.op("ReduceSum", g.op("Cast", g.op("Not", has_any), to=TensorProto.INT32))
    return g.op("Greater", g.op("Reshape", num_alone, int64()), np.array(0, dtype=np.int32))


def _write(rows: Rows, student: SAMLP) -> _Streams:
    """Both streams of each node, on its own route."""
    g, maps = rows.graph, _first_maps(student)
    magnitude = None
    if student.scaling.kind == "row":
        magnitude = g.op("Max", rows.magnitude(), float32(1e-12))
    z_a = g.op("Add", "structure", as_array(student.structure_bias))
    if not student.routed:
        return _decoded(g, student.head, z_a, _encoded(rows, maps, magnitude)[0])
    has_any = g.op("Greater", "known", float32(0.0))
    if student.blend > 0:  # every node asks the predictor, so all first maps are one product
        z_x, first, *others = _encoded(rows, maps, magnitude)
        guess = behind_first(g, student.predictor, first)
        blended = g.op("Add", guess, g.op("Mul", "known", g.op("Sub", z_a, guess)))
        # chosen, not multiplied with zero: the sum of a node without neighbours may be anything
        z_a = g.op("Where", has_any, blended, guess)
        return _routed(g, student, has_any, z_a, guess, z_x, others)
    z_x = _encoded(rows, maps[:1], magnitude)[0]

    def with_predictor() -> _Streams:
        first, *others = _encoded(rows, maps[1:], magnitude)
        guess = behind_first(g, student.predictor, first)
        return _routed(g, student, has_any, g.op("Where", has_any, z_a, guess), guess, z_x, others)

    return _Streams(
        *g.choose(
            _any_alone(g, has_any), with_predictor, lambda: _decoded(g, student.head, z_a, z_x)
        )
    )


def _routed(
    g: Graph, student: SAMLP, has_any: str, z_a: str, guess: str, z_x: str, others: list[str]
) -> _Streams:
    """Both streams, where nodes without neighbours may have a head of their own."""
    streams = _decoded(g, student.head, z_a, z_x)
    if student.lone_head is None:
        return streams
    alone = _decoded(g, student.lone_head, guess, others[0])
    return _Streams(
        *(g.op("Where", has_any, own, their) for own, their in zip(streams, alone, strict=True))
    )


def _first_maps(student: SAMLP) -> list[Linear]:
    """All that is multiplied with features: the encoder, and what nodes without neighbours need."""
    lins = [student.head.feature_encoder]
    if student.routed:
        lins.append(student.predictor.first_map)
        if student.lone_head is not None:
            lins.append(student.lone_head.feature_encoder)
    maps = []
    for lin in lins:
        weight, bias = lin.weight.t(), cast(Tensor, lin.bias)
        if student.scaling.kind == "standard":
            weight = weight / student.scaling.deviation.unsqueeze(1)
            bias = bias - student.scaling.mean @ weight
        maps.append(Linear(as_array(weight), as_array(bias)))
    return maps


def _encoded(rows: Rows, maps: list[Linear], magnitude: str | None) -> list[str]:
    """The features through some of the first maps, in one product.

    Args:
        rows: The features.
        maps: The maps.
        magnitude: Name of what rows are divided by, ``[B, 1]``; ``None`` leaves them as they are.
    """
    g = rows.graph
    weight = np.hstack([lin.weight for lin in maps])
    bias = np.concatenate([lin.bias for lin in maps])
    if magnitude is None:
        together = rows.linear(Linear(weight, bias))
    else:
        together = g.op("Add", g.op("Div", rows.times(weight), magnitude), bias)
    if len(maps) == 1:
        return [together]
    return g.ops("Split", len(maps), together, int64(*(len(lin.bias) for lin in maps)), axis=1)


def _decoded(g: Graph, head: Head, z_a: str, z_x: str) -> _Streams:
    h_a = g.op("Relu", normed(g, head.structure_norm, z_a))
    h_x = g.op("Relu", normed(g, head.feature_norm, z_x))
    weight, bias = as_array(head.gate.weight.t()), as_array(head.gate.bias)  # [2 h, 1]
    width = len(weight) // 2
    from_structure = g.op("Gemm", h_a, weight[:width], bias)
    gate = g.op("Sigmoid", g.op("Add", from_structure, g.op("MatMul", h_x, weight[width:])))
    return _Streams(
        gate,
        fed_forward(g, head.structure_decoder, h_a),
        fed_forward(g, head.feature_decoder, h_x),
    )


# --- parity -----------------------------------------------------------------------------------


@torch.no_grad()
def _check(
    exported: StructureExport,
    student: NeighborReader,
    inputs: NodeInputs,
    rows: RuntimeRows,
    scaling: Scaling | None,
) -> None:
    """Compare with torch on known nodes, spread evenly, with their neighbours and without."""
    if len(inputs) == 0:
        return
    probe = torch.linspace(0, len(inputs) - 1, min(PROBE_ROWS, len(inputs))).long()
    chosen = probe.numpy()
    x = rows.take(chosen) if isinstance(rows, CsrRows) else rows[chosen]
    store = StructureStore(exported.arrays, exported.entry, len(inputs))
    kernel = OnnxKernel(
        exported.model,
        student.in_channels,
        student.out_channels,
        "the exported model",
        structure_width=exported.entry.width,
        gated=exported.entry.gated,
        lone=exported.entry.lone,
        sparse=exported.sparse,
    )
    dense = x.dense() if isinstance(x, CsrRows) else x
    none = np.empty(0, dtype=np.int64)
    for edges in (
        store.edges_of_known(chosen),
        Edges(none, none, np.zeros(len(chosen), dtype=np.int64)),
    ):
        taken = inputs.take(probe)
        if len(edges.node) == 0:
            alone = no_neighbors(len(chosen), student.table.num_columns)
            taken = NodeInputs(taken.x, neighbors=alone)
        expected = known_logits(student, taken, scaling)
        structure: StructureInputs = store.structure(*store.sums(edges))
        for form in (dense, x):
            check_parity(expected, kernel(form, structure=structure))
