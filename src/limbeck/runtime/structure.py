"""What a node's neighbours contribute: rows of a table, summed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from limbeck.errors import BundleError
from limbeck.runtime.arrays import checked_array
from limbeck.runtime.bundle import STORE, Bundle, StructureEntry
from limbeck.runtime.kernel import Structure
from limbeck.runtime.store import NodeStore

HASH_PRIME = 2**31 - 1
"""Columns of a hashed table are hashed modulo this prime."""

BLOCK_VALUES = 2**22
"""Values of the table that are copied together, 16 MB of float32."""


class Edges(NamedTuple):
    """Edges of ``B`` nodes to known ones, each once, those of one node together.

    Args:
        node: Which of the nodes, int64 ``[n]``, never falling.
        neighbor: Row of its neighbour in the store, int64 ``[n]``.
        ignored: For each node how many of the ids given no answer depends on, int64 ``[B]``: ids
            that are not known, or of nodes that training did not observe.
    """

    node: npt.NDArray[np.int64]
    neighbor: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ignored)


class StructureStore:
    """The table of a student that reads neighbours, and what is kept of known nodes.

    Arrays stay memory-mapped. Of the table only the rows are read that neighbours name, and none
    for a node without known neighbours.

    Args:
        arrays: Arrays by name, see ``docs/bundle.md``.
        entry: What the manifest says of the table.
        num_nodes: Number of known nodes ``N``.
        where: Name of the store, for messages.

    Raises:
        BundleError: An array is missing or has another type or shape than these say.
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        entry: StructureEntry,
        num_nodes: int,
        where: str = STORE,
    ) -> None:
        def checked(name: str, dtype: type[np.generic], *shape: int | None) -> npt.NDArray[Any]:
            return checked_array(arrays, where, name, dtype, shape)

        self.entry = entry
        self._where = where
        is_int8 = entry.table_dtype == "int8"
        self._table = checked("table", np.int8 if is_int8 else np.float32, None, entry.width)
        self._scale = checked("table_scale", np.float32, len(self._table)) if is_int8 else None
        self._column = checked("column", np.int64, num_nodes)
        self._observed = checked("observed", np.bool_, num_nodes)
        self._factors = (
            checked("hash_factors", np.int64, 2, 2, None) if "hash_factors" in arrays else None
        )
        self._sums = checked("structure", np.float32, num_nodes, entry.width)
        self._degree = checked("degree", np.int64, num_nodes)
        self._indptr = checked("neighbors_indptr", np.int64, num_nodes + 1)
        self._indices = checked("neighbors_indices", np.int64, None)

    @classmethod
    def open(cls, bundle: Bundle) -> StructureStore | None:
        """That of an opened bundle; ``None`` if its student reads no neighbours.

        Raises:
            BundleError: An array is missing, unreadable or of the wrong type or shape.
        """
        manifest = bundle.manifest
        if manifest.structure is None:
            return None
        return cls(
            bundle.arrays(),
            manifest.structure,
            manifest.graph.counts["nodes"],
            str(bundle.path / STORE),
        )

    @property
    def table(self) -> tuple[npt.NDArray[Any] | None, ...]:
        """The table, its scale, each node's column, who was observed, and factors of hashes."""
        return (self._table, self._scale, self._column, self._observed, self._factors)

    # ------------------------------------------------------------ edges

    def edges_of_request(
        self, store: NodeStore, neighbors: Any, count: int, most: int | None = None
    ) -> Edges:
        """The edges of new nodes.

        Args:
            store: The known nodes, which the ids are looked up in.
            neighbors: For each new node a list of ids; ``None`` for no edges at all.
            count: Number of new nodes ``B``.
            most: How many ids a node may name; ``None`` for any number.

        Raises:
            RequestError: It is not a list of ``B`` lists of ids, or one is too long.
        """
        return Edges(*store.edges_of_request(neighbors, count, most, self._observed))

    def edges_of_known(self, rows: npt.NDArray[np.int64]) -> Edges:
        """The edges of known nodes, int64 ``[B]``, as training or their arrival had them.

        Raises:
            BundleError: The stored rows are not those of a CSR matrix.
        """
        first, last = self._indptr[rows], self._indptr[rows + 1]
        if (first < 0).any() or (last < first).any() or (last > len(self._indices)).any():
            raise BundleError(f"{self._where}/neighbors_indptr.npy does not hold the ends of rows.")
        lengths = last - first
        before = np.cumsum(lengths) - lengths
        place = np.repeat(first - before, lengths) + np.arange(lengths.sum())
        neighbor = self._indices[place]
        if ((neighbor < 0) | (neighbor >= len(self._column))).any():
            raise BundleError(
                f"{self._where}/neighbors_indices.npy names a node that is not there."
            )
        return Edges(np.repeat(np.arange(len(rows)), lengths), neighbor, np.zeros_like(lengths))

    def has_edge(self, row: int, neighbor: int) -> bool:
        """Whether a known node had an edge from another one when the bundle was made."""
        stored = self._indices[self._indptr[row] : self._indptr[row + 1]]
        place = int(np.searchsorted(stored, neighbor))
        return place < len(stored) and int(stored[place]) == neighbor

    def receivers(self, neighbor: int) -> npt.NDArray[np.int64]:
        """Rows of the nodes that had an edge from a known one; reads all edges, 1 ms a million."""
        place = np.flatnonzero(self._indices == neighbor)
        rows: npt.NDArray[np.int64] = np.searchsorted(self._indptr, place, side="right") - 1
        return rows

    def observed(self, row: int) -> bool:
        """Whether training observed a known node."""
        return bool(self._observed[row])

    # ------------------------------------------------------------ sums

    def sums(self, edges: Edges) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Sums of the neighbours' rows ``[B, h]``, and how many have one, ``[B]``."""
        node, column = edges.node, self._column[edges.neighbor]
        has_row = column >= 0
        if not has_row.all():
            node, column = node[has_row], column[has_row]
        most = max(1, BLOCK_VALUES // self.entry.width)
        if len(edges) == 1 and len(column) <= most:  # a single request, which nothing is cut for
            each = np.ones((1, len(column)), dtype=np.float32)
            return each @ self._read(column), np.array([len(column)])
        degree = np.bincount(node, minlength=len(edges))
        sums = np.zeros((len(edges), self.entry.width), dtype=np.float32)
        ends = np.cumsum(degree)
        start = 0
        while start < len(edges):
            # whole nodes, as many as fit; of one with more neighbours than that some at a time
            done = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, done + most, side="right")))
            if stop == start + 1:
                for first in range(done, int(ends[start]), most):
                    last = min(first + most, int(ends[start]))
                    sums[start] += self._read(column[first:last]).sum(axis=0)
            else:
                rows = self._read(column[done : ends[stop - 1]])
                ones = np.ones(int(degree[start:stop].max()), dtype=np.float32)
                place = 0
                # a product with ones: np.add.reduceat takes six times as long
                for own, length in zip(sums[start:stop], degree[start:stop].tolist(), strict=True):
                    np.dot(ones[:length], rows[place : place + length], out=own)
                    place += length
            start = stop
        return sums, degree

    def known_sums(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The same of known nodes, as they are stored, copies."""
        return self._sums[rows], self._degree[rows]

    def rows(
        self, neighbors: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """What known nodes (int64 ``[n]``) tell: rows ``[n, h]``, zeros where there is none.

        Returns:
            The rows, and which nodes have one, ``[n]``.
        """
        column = self._column[neighbors]
        has_row = column >= 0
        rows = np.zeros((len(neighbors), self.entry.width), dtype=np.float32)
        rows[has_row] = self._read(column[has_row])
        return rows, has_row

    def structure(self, sums: npt.NDArray[np.float32], degree: npt.NDArray[np.int64]) -> Structure:
        """Sums and degrees as the kernel reads them."""
        if self.entry.blend:
            known = (degree / (degree + self.entry.blend)).astype(np.float32)[:, None]
        else:  # nothing to weigh: a node has known neighbours or none
            known = (degree > 0).astype(np.float32)[:, None]
        if self.entry.power:
            divisor = np.maximum(degree, 1).astype(np.float32) ** np.float32(self.entry.power)
            sums = sums / divisor[:, None]
        return Structure(sums, known)

    def _read(self, columns: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Rows ``[n, h]`` of columns that have one."""
        if self._factors is None:
            return self._entries(columns)
        (a, b), (sign_a, sign_b) = self._factors
        place = (columns[:, None] * a + b) % HASH_PRIME % len(self._table)  # [n, K]
        sign = 1 - 2 * ((columns[:, None] * sign_a + sign_b) % HASH_PRIME % 2)
        entries = self._entries(place.ravel()).reshape(*place.shape, self.entry.width)
        signed: npt.NDArray[np.float32] = np.einsum("nk,nkh->nh", sign.astype(np.float32), entries)
        return signed

    def _entries(self, place: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        try:
            entries = self._table.take(place, axis=0)
        except IndexError as error:
            raise BundleError(f"{self._where}/column.npy names a row that is not there.") from error
        if self._scale is not None:
            entries = entries.astype(np.float32) * self._scale[place][:, None]
        as_float32: npt.NDArray[np.float32] = entries
        return as_float32
