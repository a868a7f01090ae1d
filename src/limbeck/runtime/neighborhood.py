"""A student that is itself a GNN: the nodes around a new one, read from the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from limbeck.errors import BundleError
from limbeck.runtime.arrays import checked_array
from limbeck.runtime.bundle import STORE, NeighborhoodEntry
from limbeck.runtime.kernel import Ends, ModelContent, open_model
from limbeck.runtime.rows import CsrRows, Rows, entries_of
from limbeck.runtime.store import NodeStore
from limbeck.runtime.structure import Edges

if TYPE_CHECKING:
    import onnxruntime

# New nodes are answered together, each with its own copy of the nodes around it, as long as the
# features of all of them take no more than this, 64 MB of float32.
BLOCK_NODES = 64
BLOCK_VALUES = 2**24

# Odd factors of a 64-bit hash (splitmix64), which decides where a sample of neighbours begins.
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True, eq=False)
class Ball:
    """``B`` new nodes and, for each by itself, the known nodes around it.

    Its nodes are the new ones, ``0 ... B - 1``, and behind them a copy of each known node for every
    new one that it is near to, so that no new node sees another.

    Args:
        rows: Row in the store of each known node, int64 ``[n - B]``.
        source: Where each edge comes from, int64 ``[e]``.
        target: Where it leads to, int64 ``[e]``.
        weight: What the message is multiplied with, float32 ``[e]``.
        num_new: ``B``.
    """

    rows: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    num_new: int

    def __len__(self) -> int:
        return self.num_new + len(self.rows)


class BallModel(Protocol):
    """The arithmetic of a student that is a GNN: a ball in, logits of its new nodes out."""

    def __call__(self, x: npt.NDArray[np.float32], ball: Ball) -> npt.NDArray[np.float32]:
        """Logits ``[B, C]`` of the new nodes, given features ``[n, F]`` of all."""
        ...


class OnnxBallModel:
    """Runs a GNN in ONNX Runtime, on one thread; opened when the first new node arrives.

    Args:
        model: Content of the model file, or what reads it.
        width: Number of features ``F``.
        num_classes: Number of classes ``C``.
        where: Name of the file, for messages.

    Raises:
        BundleError: At the first node: ONNX Runtime cannot read the model, or its inputs and
            outputs are not those that ``docs/bundle.md`` says.
    """

    def __init__(
        self, model: ModelContent, width: int, num_classes: int, where: str | os.PathLike[str]
    ) -> None:
        self._model = model
        self._where = where
        self._width = width
        self._num_classes = num_classes

    def __call__(self, x: npt.NDArray[np.float32], ball: Ball) -> npt.NDArray[np.float32]:
        """Logits ``[B, C]`` of the new nodes, given features ``[n, F]`` of all."""
        feed = {
            "x": x,
            "source": ball.source,
            "target": ball.target,
            "weight": ball.weight,
            "asked": np.arange(ball.num_new),
        }
        logits: npt.NDArray[np.float32] = self._session.run(("logits",), feed)[0]
        return logits

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        inputs: Ends = {
            "x": ("tensor(float)", self._width),
            "source": ("tensor(int64)", None),
            "target": ("tensor(int64)", None),
            "weight": ("tensor(float)", None),
            "asked": ("tensor(int64)", None),
        }
        outputs: Ends = {"logits": ("tensor(float)", self._num_classes)}
        return open_model(self._model, self._where, inputs, outputs)


class Neighborhood:
    """Answers new nodes with edges to known ones, as the GNN would on the graph with them in it.

    The graph is the one that the bundle was made of: what became of it since, a new node asked for
    before among it, no answer shows. Stored arrays stay memory-mapped, and of them only what lies
    around the nodes asked about is read.

    Args:
        store: The known nodes.
        arrays: Arrays by name, of which ``neighbors_indptr`` and ``neighbors_indices`` are read.
        entry: What the student looks at.
        make_model: Makes what computes logits; called when the first new node arrives.
        where: Name of the store, for messages.
        max_neighbors: How many stored edges of a known node are read; of more, so many are drawn,
            always the same ones, and count for all. ``None`` reads all.

    Raises:
        BundleError: An array is missing or has another type or shape.
    """

    def __init__(
        self,
        store: NodeStore,
        arrays: Mapping[str, npt.NDArray[Any]],
        entry: NeighborhoodEntry,
        make_model: Callable[[], BallModel],
        *,
        where: str = STORE,
        max_neighbors: int | None = None,
    ) -> None:
        self.entry = entry
        self._store = store
        self._where = where
        self._make_model = make_model
        self._max_neighbors = max_neighbors
        self._indptr = checked_array(
            arrays, where, "neighbors_indptr", np.int64, (store.num_nodes + 1,)
        )
        self._indices = checked_array(arrays, where, "neighbors_indices", np.int64, (None,))

    @cached_property
    def model(self) -> BallModel:
        """What computes logits; made at first use."""
        return self._make_model()

    def edges_of_request(self, neighbors: Any, count: int) -> Edges:
        """The edges of new nodes, each to a known one.

        Args:
            neighbors: For each new node a list of ids; ``None`` for no edges at all.
            count: Number of new nodes ``B``.

        Raises:
            RequestError: It is not a list of ``B`` lists of ids, or one is too long.
        """
        return Edges(
            *self._store.edges_of_request(neighbors, count, self._max_neighbors, is_read=None)
        )

    def neighbors_of_known(self, row: int) -> npt.NDArray[np.int64]:
        """Rows of the nodes that a known node has stored edges from, ascending, each once."""
        neighbors: npt.NDArray[np.int64] = np.unique(self._stored_edges(np.array([row]))[1])
        return neighbors

    def logits(self, x: Rows, edges: Edges) -> npt.NDArray[np.float32]:
        """Logits ``[B, C]`` of new nodes.

        Args:
            x: Their features ``[B, F]``.
            edges: Their edges.

        Raises:
            BundleError: The stored edges are not those of a CSR matrix.
        """
        blocks = [self._answer(x, edges, 0, min(BLOCK_NODES, len(edges)))]
        for start in range(BLOCK_NODES, len(edges), BLOCK_NODES):
            blocks.append(self._answer(x, edges, start, min(start + BLOCK_NODES, len(edges))))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def _answer(self, x: Rows, edges: Edges, start: int, stop: int) -> npt.NDArray[np.float32]:
        first, last = np.searchsorted(edges.node, [start, stop])
        ball = self.ball(edges.node[first:last] - start, edges.neighbor[first:last], stop - start)
        if stop - start > 1 and len(ball) * self._store.width > BLOCK_VALUES:
            middle = (start + stop) // 2
            parts = self._answer(x, edges, start, middle), self._answer(x, edges, middle, stop)
            return np.concatenate(parts)
        new = np.arange(start, stop)
        own = x.take(new) if isinstance(x, CsrRows) else x[new]
        known = self._store.features(ball.rows)
        return self.model(np.concatenate([_dense(own), _dense(known)]), ball)

    def ball(
        self, node: npt.NDArray[np.int64], neighbor: npt.NDArray[np.int64], count: int
    ) -> Ball:
        """The ``L`` hops around some new nodes.

        Args:
            node: The new node of each edge, int64 ``[m]``, never falling.
            neighbor: Row in the store of its neighbour, int64 ``[m]``, each once per node.
            count: Number of new nodes ``B``.
        """
        # a copy of a known node is named by the new node it belongs to and its row in the store
        num_known = max(self._store.num_nodes, 1)
        given = node * num_known + neighbor
        seen = frontier = np.sort(given)
        sources, targets, shares = [], [], []
        for _ in range(self.entry.hops - 1):
            if len(frontier) == 0:
                break
            counts, stored, share = self._stored_edges(frontier % num_known)
            target = np.repeat(frontier, counts)
            source = target - target % num_known + stored
            sources.append(source)
            targets.append(target)
            shares.append(np.repeat(share, counts))
            frontier = np.setdiff1d(source, seen)
            seen = np.union1d(seen, frontier)
        rows = seen % num_known

        def place(names: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
            return count + np.searchsorted(seen, np.concatenate(names)) if names else node[:0]

        given_place = place([given])
        parts = [  # source, target and what an edge stands for
            (place(sources), place(targets), np.concatenate([*shares, np.empty(0)])),
            (given_place, node, np.ones(len(node))),
        ]
        degree = np.concatenate(
            [np.bincount(node, minlength=count), self._indptr[rows + 1] - self._indptr[rows]]
        )
        if self.entry.undirected:
            parts.append((node, given_place, np.ones(len(node))))
            degree[given_place] += 1
        if self.entry.weights != "neighbor-mean":
            everyone = np.arange(count + len(rows))
            parts.append((everyone, everyone, np.ones(len(everyone))))
            degree += 1
        source, target, share = (np.concatenate(part) for part in zip(*parts, strict=True))
        weight = share * self._weights(degree, source, target)
        return Ball(rows, source, target, weight.astype(np.float32), count)

    def _weights(
        self,
        degree: npt.NDArray[np.int64],
        source: npt.NDArray[np.int64],
        target: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float64]:
        """How the GNN weighs edges, ``[e]``, by the degrees that the whole graph has."""
        if self.entry.weights == "attention":
            return np.ones(len(source))
        if self.entry.weights == "symmetric":
            scale = np.maximum(degree, 1) ** -0.5
            symmetric: npt.NDArray[np.float64] = scale[source] * scale[target]
            return symmetric
        mean: npt.NDArray[np.float64] = 1.0 / np.maximum(degree, 1)[target]
        return mean

    def _stored_edges(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Stored edges into known nodes, or a sample where there are too many.

        Returns:
            How many are read of each node, int64 ``[b]``; the rows that they come from, those of
            one node together; and for how many edges of a node one stands, ``[b]``.
        """
        first, last = self._indptr[rows], self._indptr[rows + 1]
        if (first < 0).any() or (last < first).any() or (last > len(self._indices)).any():
            raise BundleError(f"{self._where}/neighbors_indptr.npy does not hold the ends of rows.")
        degree = last - first
        most = self._max_neighbors
        if most is None or degree.max(initial=0) <= most:
            counts, place = degree, entries_of(self._indptr, rows)[1]
        else:
            counts = np.minimum(degree, most)
            place = _sample(rows, first, degree, counts)
        stored = self._indices[place]
        if ((stored < 0) | (stored >= self._store.num_nodes)).any():
            raise BundleError(
                f"{self._where}/neighbors_indices.npy names a node that is not there."
            )
        return counts, stored, degree / np.maximum(counts, 1)


def _sample(
    rows: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    degree: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Places of some edges of each node, evenly spread from one that its row decides.

    So each edge is as likely as another over all graphs, a node's sample is the same in every
    request, whatever else is asked for, and nothing but the sample is read.
    """
    begins = np.cumsum(counts) - counts
    index = np.arange(counts.sum()) - np.repeat(begins, counts)
    start = _mixed(rows) % np.maximum(degree, 1).astype(np.uint64)
    step = np.repeat(degree, counts)
    # floor(i d / k) are k different numbers below d
    spread = np.repeat(start.astype(np.int64), counts) + index * step // np.repeat(counts, counts)
    place: npt.NDArray[np.int64] = np.repeat(first, counts) + spread % np.maximum(step, 1)
    return place


def _mixed(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """A hash of each row number (splitmix64), whose remainders are as good as random."""
    z = rows.astype(np.uint64) * _MIX[0] + _MIX[0]
    z = (z ^ (z >> np.uint64(30))) * _MIX[1]
    z = (z ^ (z >> np.uint64(27))) * _MIX[2]
    return z ^ (z >> np.uint64(31))


def _dense(rows: Rows) -> npt.NDArray[np.float32]:
    return rows.dense() if isinstance(rows, CsrRows) else rows
