"""Known nodes whose edges come and go after the bundle was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.errors import RequestError
from limbeck.runtime.predictor import BundledStudent, Nodes


@dataclass
class _Changed:
    """A node whose edges are not those of the bundle."""

    sums: npt.NDArray[np.float32]
    degree: int
    added: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    ignored: set[Any] = field(default_factory=set)


class LiveStructure:
    r"""Answers for known nodes after edges were added and removed, in memory.

    What a node's neighbours contribute is a sum, so an edge more or less is exact and costs the
    ``h`` values of one row, whatever the node's degree:

    .. math:: \sum_j \mathbf{W}_A[j] \pm \mathbf{W}_A[i]

    An edge leads *to* ``node`` *from* ``neighbor``; for an undirected one make both calls. Ids of
    neighbours that are not known, or that training did not observe, are ignored and counted: a node
    of which many are ignored is due for a new bundle. Not for several threads at once::

        live = LiveStructure(limbeck.load("cora-student"))
        live.add("paper-17", "paper-4")
        live.predict_logits(["paper-17"])

    Args:
        student: A student that reads neighbours.

    Raises:
        RequestError: The student reads no neighbours.
    """

    def __init__(self, student: BundledStudent) -> None:
        if student.structure is None:
            raise RequestError(f"the student {student.manifest.student!r} reads no neighbors.")
        self.student = student
        self._structure = student.structure
        self._changed: dict[int, _Changed] = {}

    def add(self, node: int | str, neighbor: int | str) -> bool:
        """Add the edge to ``node`` from ``neighbor``.

        Returns:
            Whether answers can change by it: not for an edge that is there, nor for a neighbour
            that is ignored.

        Raises:
            RequestError: ``node`` is not known, or an id is of another type.
        """
        changed, row, other = self._find(node, neighbor)
        if other is None:
            changed.ignored.add(neighbor)
            return False
        if self._has_edge(changed, row, other):
            return False
        changed.removed.discard(other)
        if not self._structure.has_edge(row, other):
            changed.added.add(other)
        self._move(changed, other, 1)
        return True

    def remove(self, node: int | str, neighbor: int | str) -> bool:
        """Remove the edge to ``node`` from ``neighbor``; see :meth:`add`.

        Returns:
            Whether answers can change by it: not for an edge that is not there, nor for a
            neighbour that is ignored.

        Raises:
            RequestError: ``node`` is not known, or an id is of another type.
        """
        changed, row, other = self._find(node, neighbor)
        if other is None:
            changed.ignored.discard(neighbor)
            return False
        if not self._has_edge(changed, row, other):
            return False
        changed.added.discard(other)
        if self._structure.has_edge(row, other):
            changed.removed.add(other)
        self._move(changed, other, -1)
        return True

    def predict_logits(self, nodes: Nodes) -> npt.NDArray[np.float32]:
        """Logits of known nodes before calibration, float32 ``[B, C]``.

        Nodes without changes are looked up as ever.

        Raises:
            RequestError: A node is not known.
        """
        store = self.student.store
        rows = store.rows_of(nodes)
        logits = store.logits(rows)
        place = np.array([i for i, row in enumerate(rows.tolist()) if row in self._changed])
        if len(place) == 0:
            return logits
        changed = [self._changed[row] for row in rows[place].tolist()]
        sums = np.stack([node.sums for node in changed])
        degree = np.array([node.degree for node in changed])
        structure = self._structure.structure(sums, degree)
        logits[place] = self.student.kernel(store.features(rows[place]), structure=structure)
        return logits

    def sums(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """What the neighbours of known nodes (rows ``[B]``) sum to now, and how many count.

        Returns:
            Copies, float32 ``[B, h]`` and int64 ``[B]``.
        """
        sums, degree = self._structure.known_sums(rows)
        for place, row in enumerate(rows.tolist()):
            if row in self._changed:
                sums[place], degree[place] = self._changed[row].sums, self._changed[row].degree
        return sums, degree

    def ignored(self, nodes: Nodes) -> npt.NDArray[np.int64]:
        """How many neighbours were added to each node that no answer depends on, int64 ``[B]``.

        Raises:
            RequestError: A node is not known.
        """
        rows = self.student.store.rows_of(nodes).tolist()
        counts = [len(self._changed[row].ignored) if row in self._changed else 0 for row in rows]
        return np.array(counts, dtype=np.int64)

    def _find(self, node: int | str, neighbor: int | str) -> tuple[_Changed, int, int | None]:
        """What is kept of a node, its row, and that of a neighbour, ``None`` if it is ignored."""
        row = int(self.student.store.rows_of(np.array([node]))[0])
        other = int(self.student.store.find([neighbor])[0])
        if row not in self._changed:
            sums, degree = self._structure.known_sums(np.array([row]))
            self._changed[row] = _Changed(sums[0], int(degree[0]))
        is_read = other >= 0 and self._structure.observed(other)
        return self._changed[row], row, other if is_read else None

    def _has_edge(self, changed: _Changed, row: int, other: int) -> bool:
        if other in changed.added:
            return True
        return other not in changed.removed and self._structure.has_edge(row, other)

    def _move(self, changed: _Changed, other: int, sign: int) -> None:
        rows, has_row = self._structure.rows(np.array([other]))
        changed.sums += sign * rows[0]
        changed.degree += sign * int(has_row[0])
        if changed.degree == 0:
            changed.sums[:] = 0  # no rounding is left over
