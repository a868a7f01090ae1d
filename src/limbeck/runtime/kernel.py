"""What computes logits from feature rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from limbeck.errors import BundleError
from limbeck.runtime.bundle import BandsEntry, RoutingEntry
from limbeck.runtime.rows import CsrRows, Rows

if TYPE_CHECKING:
    import onnxruntime

# Rows per call of the session. They bound the memory that hidden layers and, for sparse input
# without a sparse model, dense rows take; from a few hundred rows on, more of them are no faster
# per row.
BLOCK_ROWS = 4096
BLOCK_VALUES = 2**23  # 32 MB of float32

# Weights that one call of a sparse model copies together, 4 MB of float32: with fewer the calls
# cost more than they do, with more the copy leaves the cache (measured: 2**19 to 2**21 are level).
GATHER_VALUES = 2**20

# A gathered entry takes as long as this many columns of a dense product, and a dense product as
# long as if it had a few rows more, in which weights are read (measured at widths 128 and 512:
# sparse rows are level with dense ones at a quarter of the columns for a row, at a sixteenth for
# sixteen and more).
ENTRY_COLUMNS = 16
DENSE_START_ROWS = 3

ModelContent: TypeAlias = bytes | Callable[[], bytes]
"""Content of a model file, or what reads it when it is first needed."""

Ends: TypeAlias = Mapping[str, tuple[str, int | None]]
"""Inputs or outputs of a model in order: their type, and their width, ``None`` if it is free."""

STREAMS = ("logits", "gate", "structure_logits", "feature_logits")
"""What the model of a student that weighs neighbours with a gate answers."""

BAND_ANSWERS = ("logits", "gates", "shares")
"""What the models of a student that reads bands answer, where they tell how these count."""

ENTRIES: Ends = {"columns": ("tensor(int64)", None), "values": ("tensor(float)", None)}
"""How a sparse model reads features: each row's columns and values, filled up with zeros."""


class Routes(NamedTuple):
    """Where a layer of experts sends nodes.

    Args:
        experts: Experts chosen, int64 ``[B, k]``, the one with the largest gate first.
        gates: Their weights in the layer's result, float32 ``[B, k]``.
    """

    experts: npt.NDArray[np.int64]
    gates: npt.NDArray[np.float32]


class Structure(NamedTuple):
    """What the neighbours of nodes contribute.

    Args:
        parts: Their rows, summed and divided as the student has it, float32 ``[B, h]``.
        known: How much they count against what the features let expect, 0 to 1, float32
            ``[B, 1]``; 0 for a node without known neighbours, whose ``parts`` no student looks at
            that answers such a node in another way. Not read by one that does not.
    """

    parts: npt.NDArray[np.float32]
    known: npt.NDArray[np.float32]


class Streams(NamedTuple):
    """The two answers of a student with a gate for neighbours, and how they are weighted.

    Args:
        logits: The student's answer, float32 ``[B, C]``.
        gate: Weight of the structure's logits, 0 to 1, float32 ``[B, 1]``.
        structure: Logits from the structure, float32 ``[B, C]``.
        feature: Logits from the features, float32 ``[B, C]``.
    """

    logits: npt.NDArray[np.float32]
    gate: npt.NDArray[np.float32]
    structure: npt.NDArray[np.float32]
    feature: npt.NDArray[np.float32]


class BandAnswers(NamedTuple):
    """The answer of a student that reads bands, and how these count in it.

    Args:
        logits: The student's answer, float32 ``[B, C]``.
        gates: Weight of the graph beside the features, 0 to 1, in each layer and band, float32
            ``[B, layers, bands]``; the output is the last layer.
        shares: Share of the answer that each band has, and behind them that of the features, 0 to
            1, float32 ``[B, bands + 1]``.
    """

    logits: npt.NDArray[np.float32]
    gates: npt.NDArray[np.float32]
    shares: npt.NDArray[np.float32]


class Kernel(Protocol):
    """A student's arithmetic: checked rows in, logits out."""

    def __call__(
        self,
        x: Rows,
        position: npt.NDArray[np.float32] | None = None,
        *,
        structure: Structure | None = None,
        bands: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Logits ``[B, C]`` of the rows ``x``, with what else the student reads of a node."""
        ...

    def band_answers(self, x: Rows, bands: npt.NDArray[np.float32] | None = None) -> BandAnswers:
        """The answer of a student that reads bands, and how these count in it."""
        ...

    def streams(self, x: Rows, structure: Structure) -> Streams:
        """The two answers of a student with a gate for neighbours."""
        ...

    def routes(
        self, x: Rows, position: npt.NDArray[np.float32] | None = None
    ) -> tuple[Routes, ...]:
        """Where each layer of experts sends the rows ``x``; nothing if there is none."""
        ...


@dataclass(frozen=True)
class SparseModel:
    """A student's second model, which reads the entries of sparse rows.

    Args:
        content: Content of the model file, or what reads it.
        values_per_entry: Weights of the first layer that it copies together for one entry.
        where: Name of the file, for messages.
    """

    content: ModelContent
    values_per_entry: int
    where: str | os.PathLike[str]


class OnnxKernel:
    """Runs a student's models in ONNX Runtime, on one thread.

    Sparse rows go to the sparse model where there is one, as their entries, and rows of so many
    entries that this would take longer go to the dense one; without a sparse model all rows are
    made dense, block by block. Each model is opened when the first row for it arrives.

    Args:
        model: The model of dense rows.
        width: Number of features ``F``.
        num_classes: Number of classes ``C``.
        where: Name of the model's file, for messages.
        position_width: Width ``d`` of the positional encoding, 0 for none.
        structure_width: Width ``h`` of what neighbours contribute, 0 for a student that reads none.
        gated: Whether the model of such a student weighs two answers with a gate; it is told then
            how much neighbours count.
        lone: Whether one without a gate answers nodes without neighbours in another way; it is told
            which they are, likewise.
        bands_width: Number of values ``w`` of bands, 0 for a model that reads none.
        bands: What the model tells of bands, ``None`` for nothing.
        routing: The layers of experts whose routes the models answer, too.
        sparse: The model of sparse rows, or ``None``.

    Raises:
        BundleError: At the first row: ONNX Runtime cannot read a model, or its inputs and outputs
            are not those that ``docs/bundle.md`` says.
    """

    def __init__(
        self,
        model: ModelContent,
        width: int,
        num_classes: int,
        where: str | os.PathLike[str],
        position_width: int = 0,
        *,
        structure_width: int = 0,
        gated: bool = True,
        lone: bool = False,
        bands_width: int = 0,
        bands: BandsEntry | None = None,
        routing: Sequence[RoutingEntry] = (),
        sparse: SparseModel | None = None,
    ) -> None:
        self._model = model
        self._where = where
        self._width = width
        self._num_classes = num_classes
        self._position_width = position_width
        self._structure_width = structure_width
        self._gated = gated and structure_width > 0
        self._reads_known = self._gated or lone
        self._bands_width = bands_width
        self._bands = bands
        self._routing = tuple(routing)
        self._sparse = sparse

    def __call__(
        self,
        x: Rows,
        position: npt.NDArray[np.float32] | None = None,
        *,
        structure: Structure | None = None,
        bands: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Logits ``[B, C]`` of the rows ``x``; what is left out is zeros."""
        found = self._run(("logits",), x, position, structure, bands)
        logits: npt.NDArray[np.float32] = found[0]
        return logits

    def streams(self, x: Rows, structure: Structure) -> Streams:
        """The two answers of a student with a gate for neighbours."""
        return Streams(*self._run(STREAMS, x, structure=structure))

    def band_answers(self, x: Rows, bands: npt.NDArray[np.float32] | None = None) -> BandAnswers:
        """The answer of a student that reads bands, and how these count in it."""
        assert self._bands is not None
        logits, gates, shares = self._run(BAND_ANSWERS, x, bands=bands)
        by_layer = gates.reshape(len(gates), self._bands.layers, self._bands.count)
        return BandAnswers(logits, by_layer, shares)

    def routes(
        self, x: Rows, position: npt.NDArray[np.float32] | None = None
    ) -> tuple[Routes, ...]:
        """Where each layer of experts sends the rows ``x``; nothing if there is none."""
        if not self._routing:
            return ()
        found = self._run(route_names(len(self._routing)), x, position)
        return tuple(Routes(*found[i : i + 2]) for i in range(0, len(found), 2))

    # ------------------------------------------------------------ running

    def _run(
        self,
        outputs: Sequence[str],
        x: Rows,
        position: npt.NDArray[np.float32] | None = None,
        structure: Structure | None = None,
        bands: npt.NDArray[np.float32] | None = None,
    ) -> list[npt.NDArray[Any]]:
        """The outputs of that name for all rows, block by block."""
        beside = {}
        if self._position_width:
            beside["position"] = _or_zeros(position, len(x), self._position_width)
        if self._structure_width:
            parts, known = (None, None) if structure is None else structure
            beside["structure"] = _or_zeros(parts, len(x), self._structure_width)
            if self._reads_known:
                beside["known"] = _or_zeros(known, len(x), 1)
        if self._bands_width:
            beside["bands"] = _or_zeros(bands, len(x), self._bands_width)
        joined: list[npt.NDArray[Any]] = []
        for rows, session, feed in self._blocks(x):
            for name, values in beside.items():
                feed[name] = values if rows is None else values[rows]
            found: list[npt.NDArray[Any]] = session.run(outputs, feed)
            if rows is None:
                return found
            if not joined:
                joined = [np.empty((len(x), part.shape[1]), part.dtype) for part in found]
            for whole, part in zip(joined, found, strict=True):
                whole[rows] = part
        return joined

    def _blocks(self, x: Rows) -> Iterator[_Block]:
        if len(x) == 0:
            yield None, self._dense_session, {"x": np.zeros((0, self._width), dtype=np.float32)}
        elif isinstance(x, CsrRows):
            if self._sparse is None:
                yield from self._dense_blocks(x, np.arange(len(x)))
            else:
                yield from self._sparse_blocks(x, self._sparse)
        elif len(x) <= BLOCK_ROWS:
            yield None, self._dense_session, {"x": x}
        else:
            for start in range(0, len(x), BLOCK_ROWS):
                rows = slice(start, start + BLOCK_ROWS)
                yield rows, self._dense_session, {"x": x[rows]}

    def _sparse_blocks(self, x: CsrRows, sparse: SparseModel) -> Iterator[_Block]:
        """Blocks of short rows for the sparse model, and of long ones for the dense one."""
        if self._routing or self._structure_width:
            x = x.summed()  # a row's length is that of its entries only if no column comes twice
        num_rows = len(x)
        most_entries = GATHER_VALUES // sparse.values_per_entry
        longest_sparse = self._width * (num_rows + DENSE_START_ROWS) / (ENTRY_COLUMNS * num_rows)
        longest = x.longest()
        if longest <= longest_sparse and longest * num_rows <= most_entries:
            columns, values = x.padded()
            yield None, self._sparse_session, {"columns": columns, "values": values}
            return
        # rows of like length come together, so that little is filled up
        lengths = np.diff(x.indptr)
        order = np.argsort(lengths, kind="stable")
        lengths = lengths[order]
        num_sparse = int(np.searchsorted(lengths, longest_sparse, side="right"))
        start = 0
        while start < num_sparse:
            stop = start + _rows_that_fit(lengths[start:num_sparse], most_entries)
            rows = order[start:stop]
            columns, values = x.take(rows).padded()
            yield rows, self._sparse_session, {"columns": columns, "values": values}
            start = stop
        yield from self._dense_blocks(x, order[num_sparse:])

    def _dense_blocks(self, x: CsrRows, rows: npt.NDArray[np.int64]) -> Iterator[_Block]:
        """Those rows of ``x``, made dense for the dense model."""
        step = max(1, min(BLOCK_ROWS, BLOCK_VALUES // self._width))
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            yield block, self._dense_session, {"x": x.take(block).dense()}

    # ------------------------------------------------------------ sessions

    @cached_property
    def _dense_session(self) -> onnxruntime.InferenceSession:
        rows = {"x": ("tensor(float)", self._width)}
        return self._open(self._model, self._where, rows)

    @cached_property
    def _sparse_session(self) -> onnxruntime.InferenceSession:
        assert self._sparse is not None
        return self._open(self._sparse.content, self._sparse.where, ENTRIES)

    def _open(
        self, content: ModelContent, where: str | os.PathLike[str], rows: Ends
    ) -> onnxruntime.InferenceSession:
        inputs, outputs = dict(rows), {"logits": ("tensor(float)", self._num_classes)}
        if self._position_width:
            inputs["position"] = ("tensor(float)", self._position_width)
        if self._structure_width:
            inputs["structure"] = ("tensor(float)", self._structure_width)
        if self._reads_known:
            inputs["known"] = ("tensor(float)", 1)
        if self._gated:
            for name in STREAMS[1:]:
                outputs[name] = ("tensor(float)", 1 if name == "gate" else self._num_classes)
        if self._bands_width:
            inputs["bands"] = ("tensor(float)", self._bands_width)
        if self._bands is not None and self._bands.count:
            outputs["gates"] = ("tensor(float)", self._bands.layers * self._bands.count)
            outputs["shares"] = ("tensor(float)", self._bands.count + 1)
        names = iter(route_names(len(self._routing)))
        for layer in self._routing:
            outputs[next(names)] = ("tensor(int64)", layer.top_k)
            outputs[next(names)] = ("tensor(float)", layer.top_k)
        return open_model(content, where, inputs, outputs)


_Block: TypeAlias = tuple[
    slice | npt.NDArray[np.int64] | None, "onnxruntime.InferenceSession", dict[str, Any]
]
"""Rows of a request (``None``: all), the session that answers for them, and what it is fed."""


def softmax(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float32]:
    """Softmax of ``logits / temperature`` over the last axis, float32 ``[B, C]``."""
    # the largest comes off first: what is divided is never above zero, so never overflows
    scaled: npt.NDArray[np.float32] = logits - logits.max(axis=1, keepdims=True)
    scaled /= np.float32(temperature)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled


def sigmoid(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float32]:
    """Sigmoid of ``logits / temperature``, float32 ``[B, C]``."""
    scaled: npt.NDArray[np.float32] = logits / np.float32(temperature)
    small = np.exp(-np.abs(scaled))  # of what is never above zero, so never overflows
    upper: npt.NDArray[np.float32] = np.where(scaled >= 0, np.float32(1), small) / (1 + small)
    return upper


def _or_zeros(
    values: npt.NDArray[np.float32] | None, count: int, width: int
) -> npt.NDArray[np.float32]:
    return np.zeros((count, width), dtype=np.float32) if values is None else values


def route_names(num_layers: int) -> tuple[str, ...]:
    """Names of the outputs that say where layers of experts send rows, layer by layer."""
    return tuple(f"{what}_{i}" for i in range(num_layers) for what in ("experts", "gates"))


def open_model(
    content: ModelContent, where: str | os.PathLike[str], inputs: Ends, outputs: Ends
) -> onnxruntime.InferenceSession:
    """A session on one thread of a model whose inputs and outputs are as they must be.

    The model is given as bytes, not as a path: ONNX Runtime then refuses weights that a model would
    have it read from other files.

    Args:
        content: Content of the model file, or what reads it.
        where: Name of the file, for messages.
        inputs: All that the model may read.
        outputs: What it must answer, perhaps beside others.

    Raises:
        BundleError: ONNX Runtime cannot read it, or its inputs and outputs are others.
    """
    # imported here: known nodes are answered without it
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # errors arrive as exceptions, not on stderr
    try:
        session = onnxruntime.InferenceSession(
            content if isinstance(content, bytes) else content(),
            options,
            providers=["CPUExecutionProvider"],
        )
    except (
        failures.Fail,
        failures.InvalidArgument,
        failures.InvalidGraph,
        failures.InvalidProtobuf,
        failures.NoSuchFile,
        failures.NotImplemented,
        failures.RuntimeException,
    ) as error:
        raise BundleError(f"{where} is not a model that ONNX Runtime can run.") from error
    _check_ends(session.get_outputs(), outputs, f"{where} answers")
    _check_ends(session.get_inputs(), inputs, f"{where} reads")
    for value in session.get_inputs():
        if value.name not in inputs:
            raise BundleError(f"{where} reads {value.name}, which a bundle has no place for.")
    return session


def _check_ends(values: Sequence[Any], wanted: Ends, what: str) -> None:
    found = {
        value.name: (value.type, value.shape[1] if len(value.shape) == 2 else value.shape)
        for value in values
    }
    fits = all(
        name in found and found[name][0] == dtype and width in (None, found[name][1])
        for name, (dtype, width) in wanted.items()
    )
    if not fits:
        raise BundleError(f"{what} {_listed(found)}, and must have {_listed(wanted)}.")


def _listed(ends: Mapping[str, tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {dtype} [B, {width or 'm'}]" for name, (dtype, width) in ends.items())


def _rows_that_fit(lengths: npt.NDArray[np.int64], most_entries: int) -> int:
    """How many of the first rows may be filled up to one length together, at least one.

    Args:
        lengths: Entries of each row, never falling; at least one row.
        most_entries: How many entries they may have then.
    """
    lengths = lengths[: max(most_entries, 1)]
    filled_up = lengths * np.arange(1, len(lengths) + 1)
    return max(1, int(np.searchsorted(filled_up, most_entries, side="right")))
