"""Why a student that reads neighbours answers as it does."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from limbeck.runtime.kernel import Kernel, Routes, Streams, softmax
from limbeck.runtime.rows import CsrRows, Rows
from limbeck.runtime.store import NodeStore
from limbeck.runtime.structure import Edges, StructureStore

EXPLAINED_AT_ONCE = 4096
"""Neighbours whose removal is tried in one pass."""


class Effect(NamedTuple):
    """What one neighbour does to an answer.

    Args:
        neighbor: Its id.
        change: How much more probable the class answered is than without it, −1 to 1.
    """

    neighbor: Any
    change: float


class StructureExplanation(NamedTuple):
    r"""How much features and neighbours count in the answers for ``B`` nodes.

    Args:
        gate: :math:`\alpha`, the weight of the structure's logits, 0 to 1, float32 ``[B]``;
            ``None`` for a student without a gate (LINKX, our own), which adds up what features
            and neighbours contribute and has one answer.
        share: :math:`\rho`, the structure's share of the answer, 0 to 1, float32 ``[B]``: the
            length of its weighted logits, less their mean over the classes, in that of both. The
            gate alone says little: either decoder can grow to make up for it. ``None`` likewise.
        neighbors: For each node its neighbours, the one that moved the answer most first.
        ignored: How many of the ids given no answer depends on, int64 ``[B]``; 0 for known nodes.
    """

    gate: npt.NDArray[np.float32] | None
    share: npt.NDArray[np.float32] | None
    neighbors: tuple[tuple[Effect, ...], ...]
    ignored: npt.NDArray[np.int64]


class BandExplanation(NamedTuple):
    """How much features and bands count in the answers for ``B`` nodes.

    Args:
        gates: Weight of the graph beside the features, 0 to 1, in each layer and band, float32
            ``[B, layers, bands]``; the output is the last layer.
        shares: Share of the answer that each band has, and behind them that of the features, 0 to
            1, float32 ``[B, bands + 1]``: the lengths of what they add to the logits, less its mean
            over the classes. The gate alone says little: a head can grow to make up for it.
        has_bands: Whether a node's bands are known, bool ``[B]``; the others are answered from what
            the student guesses of theirs, or from features alone.
    """

    gates: npt.NDArray[np.float32]
    shares: npt.NDArray[np.float32]
    has_bands: npt.NDArray[np.bool_]


def reasons_of(
    explanation: tuple[Routes, ...] | StructureExplanation | BandExplanation, count: int
) -> list[dict[str, Any]]:
    """What was explained of ``count`` nodes, node by node, as JSON holds it."""
    if isinstance(explanation, BandExplanation):
        return [
            {
                "band_gates": gates.tolist(),
                "band_shares": shares[:-1].tolist(),
                "feature_share": float(shares[-1]),
                "has_bands": bool(has_bands),
            }
            for gates, shares, has_bands in zip(
                explanation.gates, explanation.shares, explanation.has_bands, strict=True
            )
        ]
    if isinstance(explanation, StructureExplanation):
        reasons: list[dict[str, Any]] = [
            {"neighbors": [{"node": node, "change": change} for node, change in neighbors]}
            for neighbors in explanation.neighbors
        ]
        if explanation.gate is None or explanation.share is None:
            return reasons
        weights = zip(explanation.gate.tolist(), explanation.share.tolist(), strict=True)
        return [
            {"gate": gate, "structure_share": share, **reason}
            for (gate, share), reason in zip(weights, reasons, strict=True)
        ]
    return [
        {
            "layers": [
                {"experts": layer.experts[i].tolist(), "gates": layer.gates[i].tolist()}
                for layer in explanation
            ]
        }
        for i in range(count)
    ]


def explain_structure(
    kernel: Kernel,
    store: NodeStore,
    structure: StructureStore,
    x: Rows,
    edges: Edges,
    temperature: float,
) -> StructureExplanation:
    """Say how much neighbours count; each is taken away by itself.

    Without its last neighbour a node is answered as one that has none. A student without a gate
    tells nothing but the neighbours' effects.

    Args:
        kernel: What computes the answers.
        store: The known nodes.
        structure: What they tell their neighbours.
        x: Features of ``B`` nodes.
        edges: Their edges.
        temperature: Of the probabilities.
    """
    sums, degree = structure.sums(edges)
    parts = structure.structure(sums, degree)
    streams = kernel.streams(x, parts) if structure.entry.gated else None
    logits = kernel(x, structure=parts) if streams is None else streams.logits
    probs = softmax(logits, temperature)
    answer = probs.argmax(axis=1)
    change = np.empty(len(edges.node), dtype=np.float32)
    for start in range(0, len(change), EXPLAINED_AT_ONCE):
        block = slice(start, start + EXPLAINED_AT_ONCE)
        node = edges.node[block]
        rows, has_row = structure.rows(edges.neighbor[block])
        left = structure.structure(sums[node] - rows, degree[node] - has_row)
        logits = kernel(x.take(node) if isinstance(x, CsrRows) else x[node], structure=left)
        without = softmax(logits, temperature)[np.arange(len(node)), answer[node]]
        change[block] = probs[node, answer[node]] - without
    return StructureExplanation(
        None if streams is None else streams.gate[:, 0],
        None if streams is None else _share(streams),
        _ordered(store, edges, change),
        edges.ignored,
    )


def _share(streams: Streams) -> npt.NDArray[np.float32]:
    """The structure's share of the answers, ``[B]``."""
    gate = streams.gate[:, 0]
    structure = gate * np.linalg.norm(_centred(streams.structure), axis=1)
    feature = (1 - gate) * np.linalg.norm(_centred(streams.feature), axis=1)
    share: npt.NDArray[np.float32] = structure / np.maximum(structure + feature, np.float32(1e-12))
    return share


def _centred(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    centred: npt.NDArray[np.float32] = logits - logits.mean(axis=1, keepdims=True)
    return centred


def _ordered(
    store: NodeStore, edges: Edges, change: npt.NDArray[np.float32]
) -> tuple[tuple[Effect, ...], ...]:
    """The neighbours of each node, that of the largest effect first."""
    order = np.lexsort((-np.abs(change), edges.node))
    ids, values = store.ids_of(edges.neighbor[order]), change[order].tolist()
    effects = [Effect(*pair) for pair in zip(ids, values, strict=True)]
    ends = np.searchsorted(edges.node, np.arange(len(edges) + 1)).tolist()
    return tuple(tuple(effects[a:b]) for a, b in itertools.pairwise(ends))
