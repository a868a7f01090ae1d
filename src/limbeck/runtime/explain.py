"""Why a student that reads neighbours answers as it does."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from limbeck.runtime.kernel import Kernel, Streams, softmax
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
        gate: :math:`\alpha`, the weight of the structure's logits, 0 to 1, float32 ``[B]``.
        share: :math:`\rho`, the structure's share of the answer, 0 to 1, float32 ``[B]``: the
            length of its weighted logits, less their mean over the classes, in that of both. The
            gate alone says little: either decoder can grow to make up for it.
        neighbors: For each node its neighbours, the one that moved the answer most first.
        ignored: How many of the ids given no answer depends on, int64 ``[B]``; 0 for known nodes.
    """

    gate: npt.NDArray[np.float32]
    share: npt.NDArray[np.float32]
    neighbors: tuple[tuple[Effect, ...], ...]
    ignored: npt.NDArray[np.int64]


def explain_structure(
    kernel: Kernel,
    store: NodeStore,
    structure: StructureStore,
    x: Rows,
    edges: Edges,
    temperature: float,
) -> StructureExplanation:
    """Say how much neighbours count; each is taken away by itself.

    Without its last neighbour a node is answered as one that has none.

    Args:
        kernel: What computes the answers.
        store: The known nodes.
        structure: What they tell their neighbours.
        x: Features of ``B`` nodes.
        edges: Their edges.
        temperature: Of the probabilities.
    """
    sums, degree = structure.sums(edges)
    streams = kernel.streams(x, structure.structure(sums, degree))
    probs = softmax(streams.logits, temperature)
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
        streams.gate[:, 0], _share(streams), _ordered(store, edges, change), edges.ignored
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
