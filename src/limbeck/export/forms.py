"""A folded student as ONNX: how its layers are computed, for dense rows and for sparse ones.

A layer of experts has three forms, and each costs ``k`` of its ``E`` experts where that is more
than a few microseconds:

* *all*: one product with all experts' weights side by side, of which the chosen ones are taken. For
  narrow layers, where a product costs less than choosing rows for it.
* *grouped*: for each expert the rows that chose it, one product, and the results added up where the
  rows came from.
* *gathered*, for sparse rows: row ``c`` of expert ``e`` is row ``e F + c`` of all experts' weights
  one below the other. The entries of a row, once for each expert chosen and times its gate, name
  the rows that are read and added: nothing else of the weights is touched.

``benchmarks/experts_latency.py`` measures them beside each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from limbeck.export.folded import (
    Array,
    Block,
    CorrectedExperts,
    Experts,
    Gate,
    Linear,
    Map,
    Memories,
    sums_to_one,
)
from limbeck.export.graph import Graph, float32, int64
from limbeck.runtime.bundle import RoutingEntry
from limbeck.students.experts import SMALLEST_NORM

GROUP_ABOVE = 2**15
"""Multiplications per row that choosing must save before a dense layer is computed grouped.

Measured: choosing costs 5 us at batch 1, as much as some 100,000 of them there and 25,000 in a
batch of 256.
"""


class Routes(NamedTuple):
    """Where a layer sends rows: names of values in the graph.

    Args:
        experts: Experts chosen, int64 ``[B, k]``, the one with the largest gate first.
        gates: Their weights, float32 ``[B, k]``.
    """

    experts: str
    gates: str


class Rows(ABC):
    """The rows of a batch as a layer reads them, and what can be computed of them.

    Args:
        graph: The graph that is written.
        width: Values per row ``in``.
    """

    def __init__(self, graph: Graph, width: int) -> None:
        self.graph = graph
        self.width = width

    @abstractmethod
    def times(self, matrix: Array) -> str:
        """The rows times a matrix ``[in, w]``: ``[B, w]``."""

    @abstractmethod
    def linear(self, layer: Linear) -> str:
        """A linear map of the rows, ``[B, out]``."""

    @abstractmethod
    def length(self) -> str:
        """Euclidean length of each row, ``[B, 1]``."""

    @abstractmethod
    def magnitude(self) -> str:
        """Sum of the absolute values of each row, ``[B, 1]``."""

    @abstractmethod
    def compare(self, memories: Memories) -> tuple[str, str]:
        """Products with the memories' directions ``[B, E]``, and the rows' lengths ``[B, 1]``."""

    @abstractmethod
    def mix(self, experts: Experts, routes: Routes) -> str:
        """The chosen experts' answers, weighted with the gates, ``[B, out]``."""


class DenseRows(Rows):
    """Rows as they are between layers.

    Args:
        graph: The graph that is written.
        value: Name of the rows, float32 ``[B, in]``.
        width: Values per row ``in``.
    """

    def __init__(self, graph: Graph, value: str, width: int) -> None:
        super().__init__(graph, width)
        self.value = value

    def times(self, matrix: Array) -> str:
        """The rows times a matrix ``[in, w]``: ``[B, w]``."""
        return self.graph.op("MatMul", self.value, matrix)

    def linear(self, layer: Linear) -> str:
        """A linear map of the rows, ``[B, out]``."""
        return self.graph.op("Gemm", self.value, layer.weight, layer.bias)

    def length(self) -> str:
        """Euclidean length of each row, ``[B, 1]``."""
        # a product with ones: on wide rows ReduceL2 takes several times as long
        ones = np.ones((1, self.width), dtype=np.float32)
        squares = self.graph.op("Mul", self.value, self.value)
        square = self.graph.op("Gemm", ones, squares, transB=1)  # [1, B]
        return self.graph.op("Sqrt", self.graph.op("Reshape", square, int64(-1, 1)))

    def magnitude(self) -> str:
        """Sum of the absolute values of each row, ``[B, 1]``."""
        return self.graph.op("ReduceL1", self.value, int64(1))

    def compare(self, memories: Memories) -> tuple[str, str]:
        """Products with the memories' directions ``[B, E]``, and the rows' lengths ``[B, 1]``."""
        return self.times(memories.directions), self.length()

    def mix(self, experts: Experts, routes: Routes) -> str:
        """The chosen experts' answers, weighted, ``[B, out]``: all or grouped."""
        num_experts, width, out = experts.weight.shape
        saved = (num_experts - experts.top_k) * width * out
        return self.grouped(experts, routes) if saved > GROUP_ABOVE else self.all(experts, routes)

    def all(self, experts: Experts, routes: Routes) -> str:
        """All experts in one product, then those chosen; see :meth:`mix`."""
        g = self.graph
        num_experts, width, out = experts.weight.shape
        side_by_side = experts.weight.transpose(1, 0, 2).reshape(width, num_experts * out)
        answers = self.linear(Linear(side_by_side, experts.bias.reshape(-1)))
        answers = g.op("Reshape", answers, int64(-1, num_experts, out))  # [B, E, out]
        chosen = g.op("Unsqueeze", routes.experts, int64(2))
        answers = g.op("GatherND", answers, chosen, batch_dims=1)  # [B, k, out]
        return _row_by_row(g, routes.gates, answers)

    def grouped(self, experts: Experts, routes: Routes) -> str:
        """Each expert on the rows that chose it; see :meth:`mix`."""
        g = self.graph
        num_experts, _, out = experts.weight.shape
        # one entry per row and place among its k, at the expert that stands there: [E, B, k]
        chosen = g.op("OneHot", routes.experts, int64(num_experts), int64(0, 1), axis=0)
        counts = g.op("ReduceSum", chosen, int64(1, 2), keepdims=0)  # [E]
        pairs = g.op("NonZero", chosen)  # [3, B * k]: expert, row, place; by expert
        row = g.op("Gather", pairs, np.array(1), axis=0)  # [B * k]
        parts = g.ops("Split", num_experts, row, counts, axis=0)
        answers = [
            g.op("Gemm", g.op("Gather", self.value, part, axis=0), weight, bias)
            for part, weight, bias in zip(parts, experts.weight, experts.bias, strict=True)
        ]
        answer = g.op("Concat", *answers, axis=0)  # [B * k, out]
        place = g.op("Slice", pairs, int64(1), int64(3), int64(0))
        gate = g.op("GatherND", routes.gates, g.op("Transpose", place, perm=[1, 0]))
        weighted = g.op("Mul", answer, g.op("Unsqueeze", gate, int64(1)))
        shape = g.op("Concat", g.op("Shape", self.value, start=0, end=1), int64(out), axis=0)
        zeros = g.op("ConstantOfShape", shape)
        row = g.op("Unsqueeze", row, int64(1))
        return g.op("ScatterND", zeros, row, weighted, reduction="add")


class SparseRows(Rows):
    """Feature rows as their entries, with dense positions behind them or without.

    Each row has the same number ``m`` of entries, filled up with zeros.

    Args:
        graph: The graph that is written.
        columns: Name of the entries' columns, int64 ``[B, m]``.
        values: Name of their values, float32 ``[B, m]``.
        num_features: Number of features ``F``.
        position: Positions ``[B, d]``, or ``None``.
    """

    def __init__(
        self,
        graph: Graph,
        columns: str,
        values: str,
        num_features: int,
        position: DenseRows | None,
    ) -> None:
        super().__init__(graph, num_features + (0 if position is None else position.width))
        self.columns = columns
        self.values = values
        self.num_features = num_features
        self.position = position

    def times(self, matrix: Array) -> str:
        """The rows times a matrix ``[in, w]``: ``[B, w]``."""
        g = self.graph
        gathered = g.op("Gather", matrix[: self.num_features], self.columns, axis=0)  # [B, m, w]
        product = _row_by_row(g, self.values, gathered)
        if self.position is None:
            return product
        return g.op("Add", product, self.position.times(matrix[self.num_features :]))

    def linear(self, layer: Linear) -> str:
        """A linear map of the rows, ``[B, out]``."""
        return self.graph.op("Add", self.times(layer.weight), layer.bias)

    def length(self) -> str:
        """Euclidean length of each row, ``[B, 1]``."""
        return self.graph.op("Sqrt", self._square())

    def magnitude(self) -> str:
        """Sum of the absolute values of each row, ``[B, 1]``."""
        magnitude = self.graph.op("ReduceL1", self.values, int64(1))
        if self.position is None:
            return magnitude
        return self.graph.op("Add", magnitude, self.position.magnitude())

    def compare(self, memories: Memories) -> tuple[str, str]:
        """Products with the memories' directions ``[B, E]``, and the rows' lengths ``[B, 1]``."""
        return self.times(memories.directions), self.length()

    def mix(self, experts: Experts, routes: Routes) -> str:
        """The chosen experts' answers, weighted, ``[B, out]``: gathered."""
        g, num_features = self.graph, self.num_features
        weight = experts.weight[:, :num_features].reshape(-1, experts.weight.shape[2])
        first_row = g.op("Mul", routes.experts, int64(num_features))  # [B, k]
        row = g.op(  # [B, k, m]
            "Add",
            g.op("Unsqueeze", first_row, int64(2)),
            g.op("Unsqueeze", self.columns, int64(1)),
        )
        value = g.op(
            "Mul",
            g.op("Unsqueeze", routes.gates, int64(2)),
            g.op("Unsqueeze", self.values, int64(1)),
        )
        gathered = g.op("Gather", weight, g.op("Flatten", row), axis=0)  # [B, k * m, out]
        mixed = _row_by_row(g, g.op("Flatten", value), gathered)
        if self.position is None:
            return g.op("Add", mixed, _mixed_bias(g, experts.bias, routes))
        behind = replace(experts, weight=experts.weight[:, num_features:])
        return g.op("Add", mixed, self.position.mix(behind, routes))

    def _square(self) -> str:
        """Squared length of each row, ``[B, 1]``."""
        square = self.graph.op("ReduceSumSquare", self.values, int64(1))
        if self.position is None:
            return square
        behind = self.graph.op("ReduceSumSquare", self.position.value, int64(1))
        return self.graph.op("Add", square, behind)


@dataclass(frozen=True)
class Written:
    """A student written into a graph.

    Args:
        logits: Name of the logits, ``[B, C]``.
        routes: Where each layer of experts sends the rows.
    """

    logits: str
    routes: list[Routes]


def write(rows: Rows, blocks: list[Block]) -> Written:
    """Write a student's blocks into the graph of ``rows``."""
    routes = []
    for block in blocks:
        value, sent = _apply(rows, block.map)
        if sent is not None:
            routes.append(sent)
        value = behind(rows.graph, value, block)
        rows = DenseRows(rows.graph, value, block.map.bias.shape[-1])
    return Written(value, routes)


def routing_of(blocks: list[Block]) -> tuple[RoutingEntry, ...]:
    """Number of experts and ``k`` of each layer of experts, as a bundle declares them."""
    return tuple(
        RoutingEntry(len(block.map.bias), block.map.top_k)
        for block in blocks
        if not isinstance(block.map, Linear)
    )


def values_per_entry(layer: Map) -> int:
    """How many weights of a first layer are read for one entry of a sparse row, at most at once."""
    if isinstance(layer, Linear):
        return int(layer.weight.shape[1])
    if isinstance(layer, Experts):
        mixed = layer.top_k * layer.weight.shape[2]
    else:
        mixed = layer.weight.shape[1] + layer.lower.shape[1]
    gate = layer.chooser.project.weight.shape[1] if isinstance(layer.chooser, Gate) else 0
    return int(max(mixed, gate))


def _apply(rows: Rows, layer: Map) -> tuple[str, Routes | None]:
    """A layer's result ``[B, out]`` before shift and norm, and where it sends the rows."""
    if isinstance(layer, Linear):
        return rows.linear(layer), None
    if isinstance(layer.chooser, Memories):
        routes = _nearest(rows, layer.chooser, layer.top_k)
    else:
        routes = _ranked_first(rows, layer.chooser, layer.top_k)
    if isinstance(layer, Experts):
        return rows.mix(layer, routes), routes
    return _corrected(rows, layer, routes), routes


def _nearest(rows: Rows, memories: Memories, top_k: int) -> Routes:
    """The experts of nearest memory, with a softmax over them as gates."""
    g = rows.graph
    products, length = rows.compare(memories)
    # a row's length changes no order; of equal products TopK takes the first, as `largest` does
    product, experts = g.ops("TopK", 2, products, int64(top_k), axis=1)
    cosine = g.op("Div", product, g.op("Max", length, float32(SMALLEST_NORM)))
    return Routes(experts, g.op("Softmax", cosine, axis=1))


def _ranked_first(rows: Rows, gate: Gate, top_k: int) -> Routes:
    """The experts that a trained gate ranks first, with a softmax over all as gates."""
    g = rows.graph
    projected = DenseRows(g, rows.linear(gate.project), gate.project.bias.shape[0])
    length = g.op("Max", projected.length(), float32(SMALLEST_NORM))
    logits = g.op("Div", projected.times(gate.columns), length)
    _, experts = g.ops("TopK", 2, logits, int64(top_k), axis=1)
    gates = g.op("GatherElements", g.op("Softmax", logits, axis=1), experts, axis=1)
    return Routes(experts, gates)


def _corrected(rows: Rows, layer: CorrectedExperts, routes: Routes) -> str:
    """Experts that share a map: one product with it and with what all corrections read."""
    g = rows.graph
    num_experts, out = layer.bias.shape
    rank = layer.lower.shape[1] // num_experts
    both = rows.times(np.hstack([layer.weight, layer.lower]))
    shared, lowered = g.ops("Split", 2, both, int64(out, num_experts * rank), axis=1)
    rows_and_experts = (g.op("Shape", routes.gates, start=0, end=1), int64(num_experts))
    zeros = g.op("ConstantOfShape", g.op("Concat", *rows_and_experts, axis=0))
    gates = g.op("ScatterElements", zeros, routes.experts, routes.gates, axis=1)  # [B, E]
    lowered = g.op("Reshape", lowered, int64(-1, num_experts, rank))
    weighted = g.op("Mul", lowered, g.op("Unsqueeze", gates, int64(2)))
    lifted = g.op("MatMul", g.op("Flatten", weighted), layer.lift)
    if not sums_to_one(layer):
        shared = g.op("Mul", shared, g.op("ReduceSum", routes.gates, int64(1)))
    return g.op("Add", g.op("Add", shared, lifted), _mixed_bias(g, layer.bias, routes))


def behind(g: Graph, value: str, block: Block) -> str:
    """What follows a layer: shift, norm and ReLU."""
    if block.shift is not None:
        value = g.op("Add", value, block.shift)
    if block.relu and block.norm_last:
        value = g.op("Relu", value)
    if block.norm is not None:
        norm = block.norm
        value = g.op(
            "LayerNormalization", value, norm.weight, norm.bias, axis=-1, epsilon=norm.epsilon
        )
    return g.op("Relu", value) if block.relu and not block.norm_last else value


def _mixed_bias(g: Graph, bias: Array, routes: Routes) -> str:
    """The chosen experts' biases, weighted with the gates, ``[B, out]``."""
    return _row_by_row(g, routes.gates, g.op("Gather", bias, routes.experts, axis=0))


def _row_by_row(g: Graph, weights: str, matrices: str) -> str:
    """For each row its weights ``[B, n]`` times its own matrix ``[B, n, w]``: ``[B, w]``."""
    product = g.op("MatMul", g.op("Unsqueeze", weights, int64(1)), matrices)
    return g.op("Squeeze", product, int64(1))
