"""FMLP-O, FMLP-S and FMLP-X as ONNX: their logits, and how much each band counts."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import torch

from limbeck.export.folded import Array, Linear, as_array
from limbeck.export.forms import DenseRows, Rows
from limbeck.export.graph import Graph, float32, int64
from limbeck.export.networks import behind_first, fed_forward, mapped
from limbeck.students.fmlp import FMLP, FMLPO, FMLPS, BandEncoders, GivenBands
from limbeck.students.sa_mlp import FeedForward

Blocks = list[list[str]]
"""Pre-activations ``[B, h]`` by power and band."""


class WrittenBands(NamedTuple):
    """Names of what a student answers.

    Args:
        logits: ``[B, C]``.
        gates: Weight of the graph in each layer and band, ``[B, layers * bands]``.
        shares: Share of each band in the answer, and of the features, ``[B, bands + 1]``.
    """

    logits: str
    gates: str
    shares: str


def writes(student: torch.nn.Module) -> bool:
    """Whether :func:`write_fmlp` knows a student; not a subclass, which may compute otherwise."""
    return type(student) in (FMLPO, FMLPS) and (
        type(cast(FMLP, student).reader) in (GivenBands, BandEncoders)
    )


@torch.no_grad()
def write_fmlp(rows: Rows, student: FMLP, bands: str | None) -> WrittenBands:
    """Write a student into the graph of ``rows``.

    Args:
        rows: The features as the model reads them.
        student: The student, on the CPU and in eval mode.
        bands: Name of the nodes' bands ``[B, w]``; ``None`` for nodes without.
    """
    g = rows.graph
    predicted = bands is None and student.fallback == "predictor"
    maps = [student.feature_encoder]
    if predicted:
        assert student.predictor is not None
        maps.append(student.predictor.first_map)
    u, *guess = _first_maps(rows, maps)
    z: Blocks | None = None
    if bands is not None:
        z = _read(g, student.reader, bands)
    elif predicted:
        assert student.predictor is not None
        z = _blocks(g, student.reader, behind_first(g, student.predictor, guess[0]))
    gates: list[list[str]] = []
    if isinstance(student, FMLPO):
        for layer in range(student.reader.num_powers - 1):
            u = g.op("Relu", u)
            hidden = None if z is None else [g.op("Relu", block) for block in z[layer]]
            alphas, u = _mixed(g, student, hidden, u)
            gates.append(alphas)
            u = mapped(g, student.re_encoder, u)
        u = g.op("Relu", u)
    last = None if z is None else _last(g, student, z[-1])
    return _output(g, student, last, u, gates)


def _first_maps(rows: Rows, lins: list[torch.nn.Linear]) -> list[str]:
    """The features through each of some maps, in one product."""
    weight = np.hstack([as_array(lin.weight.t()) for lin in lins])
    bias = np.concatenate([as_array(lin.bias) for lin in lins])
    both = rows.linear(Linear(np.ascontiguousarray(weight), bias))
    if len(lins) == 1:
        return [both]
    widths = int64(*(lin.out_features for lin in lins))
    return rows.graph.ops("Split", len(lins), both, widths, axis=1)


def _read(g: Graph, reader: GivenBands, bands: str) -> Blocks:
    """What the reader makes of bands, block by block."""
    if not isinstance(reader, BandEncoders):
        return _blocks(g, reader, bands)
    pieces = _split(g, bands, [reader.in_channels] * reader.num_powers * reader.num_bands)
    blocks: Blocks = []
    for power in range(reader.num_powers):
        blocks.append([])
        for band, module in enumerate(reader.encoders):
            encoder = cast(torch.nn.Linear, module)
            weight = as_array(encoder.weight.t() / reader.scale[power, band])
            piece = pieces[power * reader.num_bands + band]
            blocks[-1].append(g.op("Gemm", piece, weight, as_array(encoder.bias)))
    return blocks


def _blocks(g: Graph, reader: GivenBands, value: str) -> Blocks:
    """Pre-activations ``[B, P · bands · h]``, taken apart."""
    flat = _split(g, value, [reader.hidden_channels] * reader.num_powers * reader.num_bands)
    bands = reader.num_bands
    return [flat[p * bands : (p + 1) * bands] for p in range(reader.num_powers)]


def _split(g: Graph, value: str, widths: list[int]) -> list[str]:
    if len(widths) == 1:
        return [value]
    return g.ops("Split", len(widths), value, int64(*widths), axis=1)


def _mixed(g: Graph, student: FMLPO, z: list[str] | None, u: str) -> tuple[list[str], str]:
    """Gates ``[B, 1]`` of a hidden layer, and the mixture ``[B, h]`` of bands and features."""
    if z is None:
        count = student.num_bands
        return _closed(g, student, u), g.op("Mul", u, float32(float(count)))
    alphas = _gates(g, student.gate, z, u)
    parts = []
    for alpha, block in zip(alphas, z, strict=True):
        difference = g.op("Mul", alpha, g.op("Sub", block, u))
        parts.append(g.op("Add", u, difference))
    return alphas, g.op("Sum", *parts)


def _last(g: Graph, student: FMLP, z: list[str]) -> list[str]:
    """What the heads of the output read of each band."""
    if not isinstance(student, FMLPO):
        return z
    if student.tied:  # the low band's rows for every band
        z = [z[0]] * len(z)
    return [g.op("Relu", block) for block in z]


def _output(
    g: Graph, student: FMLP, z: list[str] | None, u: str, hidden: list[list[str]]
) -> WrittenBands:
    of_features = fed_forward(g, student.feature_head, u)  # [B, C]
    if z is None:
        weights, parts = _closed(g, student, u), []
        remaining = g.op("Add", weights[0], float32(float(student.num_bands)))
    else:
        gate = student.gate
        if isinstance(student, FMLPO) and student.output_gate is not None:
            gate = student.output_gate
        weights = _gates(g, gate, z, u)
        if student.gate_rule == "released":
            weights = [g.op("Sub", float32(1.0), weight) for weight in weights]
        heads = [student.heads[b if len(student.heads) > 1 else 0] for b in range(len(z))]
        parts = [
            g.op("Mul", weight, fed_forward(g, cast(FeedForward, head), block))
            for weight, head, block in zip(weights, heads, z, strict=True)
        ]
        remaining = g.op("Sum", *(g.op("Sub", float32(1.0), weight) for weight in weights))
    parts.append(g.op("Mul", remaining, of_features))
    logits = g.op("Sum", *parts)
    gates = g.op("Concat", *(name for layer in [*hidden, weights] for name in layer), axis=1)
    sizes = [_size(g, part) for part in parts]
    if z is None:
        sizes = [*_closed(g, student, u), *sizes]
    together = g.op("Concat", *sizes, axis=1)
    total = g.op("Max", g.op("ReduceSum", together, int64(1)), float32(1e-12))
    return WrittenBands(logits, gates, g.op("Div", together, total))


def _gates(g: Graph, gate: torch.nn.Linear, z: list[str], u: str) -> list[str]:
    """The gate of each band, ``[B, 1]``: what it reads of the features is the same for all."""
    weight, bias = as_array(gate.weight.t()), as_array(gate.bias)  # [2 h, 1]
    width = len(weight) // 2
    of_features = DenseRows(g, u, width).linear(Linear(_part(weight[width:]), bias))
    return [
        g.op("Sigmoid", g.op("Add", g.op("MatMul", block, _part(weight[:width])), of_features))
        for block in z
    ]


def _part(weight: Array) -> Array:
    return np.ascontiguousarray(weight)


def _closed(g: Graph, student: FMLP, u: str) -> list[str]:
    """A gate of zero ``[B, 1]`` for each band."""
    zero = g.op("Expand", float32(0.0), _column(g, u))
    return [zero] * student.num_bands


def _column(g: Graph, value: str) -> str:
    """The shape ``[B, 1]`` of a column beside rows."""
    return g.op("Concat", g.op("Shape", value, start=0, end=1), int64(1), axis=0)


def _size(g: Graph, part: str) -> str:
    """Length ``[B, 1]`` of what is added to the logits, less its mean over the classes."""
    centred = g.op("Sub", part, g.op("ReduceMean", part, int64(1)))
    return g.op("Sqrt", g.op("ReduceSumSquare", centred, int64(1)))
