"""A student whose nodes change: its bundle, and an overlay of what came after it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from limbeck.errors import RequestError
from limbeck.runtime.changes import (
    ChangeWriter,
    EdgeChange,
    KeptChanges,
    NodeChange,
    NodeId,
)
from limbeck.runtime.explain import BandExplanation, StructureExplanation, explain_structure
from limbeck.runtime.kernel import Routes
from limbeck.runtime.live import LiveStructure
from limbeck.runtime.places import open_changes
from limbeck.runtime.predictor import BundledStudent, Nodes
from limbeck.runtime.rows import CsrRows, Rows, check_rows
from limbeck.runtime.structure import Edges

_Entry = tuple[NodeChange | None, list[EdgeChange]]


class Staleness(NamedTuple):
    """How far what is known of ``B`` nodes has moved from the bundle.

    Args:
        is_new: Whether a node came after the bundle, bool ``[B]``.
        is_changed: Whether it is new, or its features or edges changed, bool ``[B]``.
        unknown_neighbors: How many of its new edges come from nodes that no answer depends on,
            since the bundle does not know them or training did not observe them, int64 ``[B]``. A
            node with many of them is due for a new bundle.
    """

    is_new: npt.NDArray[np.bool_]
    is_changed: npt.NDArray[np.bool_]
    unknown_neighbors: npt.NDArray[np.int64]


class OverlaidStudent(BundledStudent):
    """A bundled student that also answers for nodes that came or changed after the bundle.

    Made by :meth:`BundledStudent.with_overlay`. It answers as the student does, and nodes of the
    overlay by their ids like all others::

        student = limbeck.load("cora-student").with_overlay("cora.overlay")
        student.upsert(["paper-9000"], rows, neighbors=[["paper-4", "paper-17"]])
        student.predict(nodes=["paper-9000"])

    A change is on the disk when its call returns (on a Redis server as that server keeps it), and
    other processes that have the same overlay open answer with it from their next call on. What a
    changed node's answer depends on is updated so:

    * Features: the answer is computed anew.
    * Neighbours, for a student that sums over them (``sa-mlp``, ``linkx``, ``limbeck``):
      the sum moves by the one row that came or went, exactly, see
      :class:`~limbeck.runtime.LiveStructure`. A node that has none left takes the path of nodes
      without neighbours.
    * Positions: those of new nodes, and of known ones whose neighbours are given in full, are the
      mean over observed neighbours; others stay.
    * Bands: they come of the whole graph, so a changed or new node is answered as one that has
      none.
    * Neighbourhoods, for a student that is itself a GNN: new nodes only, each beside the graph of
      the bundle; known ones cannot change.

    Safe for several threads. New nodes are nobody's neighbours in answers: the bundle holds nothing
    of them that could be told. They are counted, see :meth:`staleness`.

    Args:
        student: The student.
        path: File of the overlay, made if it is not there; or a Redis server, ``redis://...``, see
            :class:`~limbeck.runtime.redis_overlay.RedisOverlay`.
        verify: Check all of the overlay for damage.

    Raises:
        BundleError: It is no overlay, is damaged, or belongs to another bundle.
        OutputError: It cannot be made or written, or the server cannot be reached.
        MissingExtraError: It is on a Redis server, and redis-py is not installed.
    """

    def __init__(
        self, student: BundledStudent, path: str | os.PathLike[str], *, verify: bool = True
    ) -> None:
        reads_bands = student.manifest.bands is not None
        super().__init__(
            student.manifest,
            student.store,
            lambda: student.kernel,
            student.structure,
            student.max_neighbors,
            make_cold_kernel=(lambda: student.cold_kernel) if reads_bands else None,
            neighborhood=student.neighborhood,
            cascade=None if student.manifest.cascade is None else student.cascade,
        )
        self.overlay: KeptChanges = open_changes(path, student.manifest, verify=verify)
        self._losses = self.overlay.losses
        self._lock = threading.RLock()
        self._live = None if student.structure is None else LiveStructure(student)
        self._is_sparse = isinstance(self.store.features(np.empty(0, dtype=np.int64)), CsrRows)
        self._is_behind = False  # whether a change is known of and not read
        self._version = 0
        self._is_gone: dict[NodeId, bool] = {}  # of each changed node
        self._gone: set[NodeId] = set()
        self._answers: dict[NodeId, npt.NDArray[np.float32]] = {}
        self._applied: dict[NodeId, int] = {}  # up to which version the edges of one are summed

    @property
    def reads_neighbors(self) -> bool:
        """Whether neighbours of a node have a say in its answer."""
        return (
            self.structure is not None
            or self.neighborhood is not None
            or self.manifest.position_width > 0
        )

    # ------------------------------------------------------------ answering

    def predict_logits(
        self,
        nodes: Nodes | None = None,
        *,
        x: Any = None,
        neighbors: Any = None,
        position: Any = None,
        bands: Any = None,
    ) -> npt.NDArray[np.float32]:
        """Logits before calibration, float32 ``[B, C]``; see :meth:`BundledStudent.predict`.

        Raises:
            RequestError: As there, or a node was deleted.
        """
        others = {"neighbors": neighbors, "position": position, "bands": bands}
        if nodes is None or x is not None or any(v is not None for v in others.values()):
            others["neighbors"] = self._without_gone(neighbors)
            return super().predict_logits(nodes, x=x, **others)
        with self._lock:
            self._refresh()
            ids, changed = self._split(nodes)
            if not changed:
                return super().predict_logits(nodes)
            rest = [i for i in range(len(ids)) if i not in changed]
            logits = np.empty((len(ids), len(self.classes)), dtype=np.float32)
            if rest:
                logits[rest] = super().predict_logits([ids[i] for i in rest])
            missing = {node: None for node in changed.values() if node not in self._answers}
            if missing:
                self._answers |= zip(missing, self._compute(list(missing)), strict=True)
            for place, node in changed.items():
                logits[place] = self._answers[node]
            return logits

    def _taught_rows(self, nodes: Nodes) -> npt.NDArray[np.int64]:
        """Rows of known nodes in the store, −1 for those that came or changed after the bundle."""
        with self._lock:
            self._refresh()
            ids, changed = self._split(nodes)
        rows = self.store.find(ids)
        rows[list(changed)] = -1
        return rows

    def explain(
        self,
        nodes: Nodes | None = None,
        *,
        x: Any = None,
        neighbors: Any = None,
        position: Any = None,
        bands: Any = None,
    ) -> tuple[Routes, ...] | StructureExplanation | BandExplanation:
        """Why nodes are answered as they are; see :meth:`BundledStudent.explain`."""
        others = {"neighbors": neighbors, "position": position, "bands": bands}
        if nodes is None or x is not None or any(v is not None for v in others.values()):
            others["neighbors"] = self._without_gone(neighbors)
            return super().explain(nodes, x=x, **others)
        with self._lock:
            self._refresh()
            ids, changed = self._split(nodes)
        if not changed:
            return super().explain(nodes)
        entries = self.overlay.read(ids, [-1] * len(ids))
        rows = self.store.find(ids)
        features = self._features(rows, entries)
        if self.structure is not None:
            self.manifest.require_one_class("an explanation by neighbors")
            edges = _joined([self._edges_of(i, rows, entries) for i in range(len(ids))])
            temperature = self.manifest.temperature
            return explain_structure(
                self.kernel, self.store, self.structure, features, edges, temperature
            )
        if self.manifest.routing:
            has_position = self.manifest.position_width > 0
            position = self._positions_of(rows, entries) if has_position else None
            return self.kernel.routes(features, position)
        if self.manifest.bands is not None and self.manifest.bands.count > 0:
            has_bands = np.array([entry is None for entry, _ in entries])
            has_bands[has_bands] = self.store.banded(rows[has_bands])
            known = np.zeros((len(ids), self.manifest.bands_width), dtype=np.float32)
            known[has_bands] = self.store.bands(rows[has_bands])
            return self._explain_bands(features, known, has_bands)
        return super().explain(x=features)  # says that there is nothing to explain

    def ignored_neighbors(self, neighbors: Any) -> npt.NDArray[np.int64]:
        """How many of the ids given for each new node no answer depends on, int64 ``[B]``.

        As of :meth:`BundledStudent.ignored_neighbors`, and those of deleted nodes.
        """
        left = self._without_gone(neighbors)
        ignored = super().ignored_neighbors(left)
        if left is neighbors:
            return ignored
        gone = [len(given) - len(kept) for given, kept in zip(neighbors, left, strict=True)]
        return ignored + np.array(gone, dtype=np.int64)

    def staleness(self, nodes: Sequence[NodeId]) -> Staleness:
        """How far what is known of some nodes has moved from the bundle.

        Raises:
            RequestError: A node is not known, or was deleted.
        """
        with self._lock:
            self._refresh()
            ids, changed = self._split(nodes)
            rest = [ids[i] for i in range(len(ids)) if i not in changed]
            if rest:
                self.store.rows_of(rest)
            entries = self.overlay.read(ids, [-1] * len(ids))
        unknown = np.zeros(len(ids), dtype=np.int64)
        for place, (_, edges) in enumerate(entries):
            found = self.store.find([edge.neighbor for edge in edges if edge.is_there])
            unknown[place] = sum(not self._is_read(row) for row in found.tolist())
        is_changed = np.array([entry is not None for entry, _ in entries], dtype=np.bool_)
        return Staleness(self.store.find(ids) < 0, is_changed, unknown)

    # ------------------------------------------------------------ changing

    def upsert(self, nodes: Sequence[NodeId], x: Any = None, *, neighbors: Any = None) -> int:
        """Add nodes, or change known ones; all of them or, at an error, none.

        Args:
            nodes: Their ids, of the type that the bundle's have, each once.
            x: Their features, as of :meth:`predict`; ``None`` keeps those of nodes that are there.
            neighbors: For each the ids of all its neighbours, in the place of those that it had;
                ``None`` keeps those.

        Returns:
            Number of the change, larger than that of every earlier one.

        Raises:
            RequestError: An id is of another type, features do not fit, a new node has none, a
                neighbour was deleted, there are too many, or the student reads no neighbours.
            OutputError: The disk is full or cannot be written; nothing was changed.
        """
        ids = self._checked_ids(nodes)
        if len(set(ids)) != len(ids):
            raise RequestError("nodes names a node twice: give each once.")
        blobs = [None] * len(ids) if x is None else self._blobs(x, len(ids))
        lists = None if neighbors is None else self._checked_lists(neighbors, ids)
        if x is None and neighbors is None:
            raise RequestError("give x, neighbors or both: there is nothing to change.")
        rows = self.store.find(ids).tolist()
        with self.overlay.writing() as writer:
            writer.fetch([*ids, *(node for given in lists or () for node in given)])
            for place, (node, row, blob) in enumerate(zip(ids, rows, blobs, strict=True)):
                self._refuse_known(node, row)
                entry = writer.node(node)
                if blob is None and (entry is None or entry.is_deleted):
                    if row < 0 or entry is not None:
                        raise RequestError(f"the node {node!r} is not there: give its features x.")
                elif blob is None and entry is not None:
                    blob = entry.x
                owns = entry is not None and entry.has_own_edges
                if lists is not None:
                    owns = self._put_neighbors(writer, node, row, lists[place])
                writer.put_node(node, blob, has_own_edges=owns or row < 0)
            return writer.version

    def add_edges(self, edges: Iterable[Sequence[NodeId]], *, undirected: bool = True) -> int:
        """Add edges; see :meth:`upsert` for what it returns and raises.

        Args:
            edges: Pairs of ids: the node that is answered, and its neighbour. A neighbour may be
                unknown: it is kept and counted, and no answer depends on it.
            undirected: Each edge also the other way, where the neighbour is a node that is there.

        Raises:
            RequestError: The first of a pair is not known, or one of them was deleted.
        """
        return self._change_edges(edges, is_there=True, undirected=undirected)

    def remove_edges(self, edges: Iterable[Sequence[NodeId]], *, undirected: bool = True) -> int:
        """Remove edges; those that are not there are passed over. See :meth:`add_edges`."""
        return self._change_edges(edges, is_there=False, undirected=undirected)

    def delete(self, nodes: Sequence[NodeId]) -> int:
        """Delete nodes with all their edges; see :meth:`upsert` for what it returns and raises.

        A node that is added again later has no edges but those given then.

        Raises:
            RequestError: A node is not known, or was deleted before.
        """
        ids = self._checked_ids(nodes)
        rows = self.store.find(ids).tolist()
        with self.overlay.writing() as writer:
            writer.fetch(ids)
            for node, row in zip(ids, rows, strict=True):
                self._refuse_known(node, row)
                self._present(writer, node, row)
                receivers = self._receivers(writer, node, row)
                writer.fetch(receivers)
                for receiver in receivers:
                    self._touch(writer, receiver)
                    writer.put_edges(receiver, [node], is_there=False)
                if self.reads_neighbors:
                    self._put_neighbors(writer, node, row, [])
                owns = self.structure is None or row < 0
                writer.put_node(node, None, has_own_edges=owns, is_deleted=True)
            return writer.version

    def close(self) -> None:
        """Close the overlay."""
        self.overlay.close()

    # ------------------------------------------------------------ what changed

    def _refresh(self) -> None:
        """Learn what any process has committed since."""
        self._is_behind |= self.overlay.is_changed()
        if not self._is_behind:
            return
        if self.overlay.losses != self._losses:
            self._forget()
        changes = self.overlay.changes_since(self._version)
        for node, is_gone, version in changes:
            self._is_gone[node] = is_gone
            self._answers.pop(node, None)
            self._version = max(self._version, version)
        now_gone = {node for node, is_gone, _ in changes if is_gone}
        if now_gone or self._gone:
            # a new set, since others may be reading the old one
            self._gone = (self._gone - {node for node, _, _ in changes}) | now_gone
        self._is_behind = False  # not where reading failed: the next call reads again

    def _forget(self) -> None:
        """Begin again with the bundle: what was read may be there no more."""
        self._losses = self.overlay.losses
        self._version = 0
        self._is_gone, self._gone, self._answers, self._applied = {}, set(), {}, {}
        if self._live is not None:
            self._live = LiveStructure(self._live.student)

    def _split(self, nodes: Any) -> tuple[list[Any], dict[int, NodeId]]:
        """Ids as a list, and those of changed nodes by their place."""
        if not self._is_gone or isinstance(nodes, str | bytes):
            self.store.rows_of(nodes)  # refuses what is no list of ids
            return list(nodes), {}
        ids = nodes.tolist() if isinstance(nodes, np.ndarray) else list(nodes)
        try:
            changed = {
                place: node
                for place, node in enumerate(ids)
                if node in self._is_gone and not isinstance(node, bool | float)
            }
        except TypeError:  # an id that is a list
            self.store.rows_of(nodes)
            raise
        for node in changed.values():
            if self._is_gone[node]:
                raise RequestError(f"the node {node!r} was deleted.")
        return ids, changed

    def _without_gone(self, neighbors: Any) -> Any:
        """Lists of neighbours without deleted nodes."""
        if neighbors is None:
            return None
        with self._lock:
            self._refresh()
            gone = self._gone
        if not gone:
            return neighbors
        self.store.neighbor_rows(neighbors)  # refuses what is no list of lists of ids
        return [[node for node in ids if node not in gone] for ids in neighbors]

    # ------------------------------------------------------------ computing

    def _compute(self, ids: list[NodeId]) -> npt.NDArray[np.float32]:
        """Logits ``[n, C]`` of changed nodes."""
        rows = self.store.find(ids)
        entries = self.overlay.read(ids, [self._applied.get(node, -1) for node in ids])
        x = self._features(rows, entries)
        if self.structure is not None:
            sums, degree = self._sums(ids, rows, entries)
            logits = self.kernel(x, structure=self.structure.structure(sums, degree))
        elif self.neighborhood is not None:
            edges = self.neighborhood.edges_of_request(_neighbor_lists(entries), len(ids))
            logits = self.neighborhood.logits(x, edges)
        elif self.manifest.bands is not None:
            logits = self.cold_kernel(x)
        elif self.manifest.position_width:
            logits = self.kernel(x, self._positions_of(rows, entries))
        else:
            logits = self.kernel(x)
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            node = ids[int(np.argmin(finite))]
            raise RequestError(
                f"the features of the node {node!r} are so large that its answer is not finite."
            )
        return logits

    def _sums(
        self, ids: list[NodeId], rows: npt.NDArray[np.int64], entries: list[_Entry]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """What the neighbours of changed nodes sum to, and how many count."""
        assert self.structure is not None
        assert self._live is not None
        is_known = rows >= 0
        sums = np.zeros((len(ids), self.structure.entry.width), dtype=np.float32)
        degree = np.zeros(len(ids), dtype=np.int64)
        for node, known, (_, edges) in zip(ids, is_known.tolist(), entries, strict=True):
            if known:
                for edge in edges:
                    change = self._live.add if edge.is_there else self._live.remove
                    change(node, edge.neighbor)
                versions = [edge.version for edge in edges]
                self._applied[node] = max(versions, default=self._applied.get(node, -1))
        sums[is_known], degree[is_known] = self._live.sums(rows[is_known])
        new = np.flatnonzero(~is_known)
        lists = _neighbor_lists([entries[i] for i in new])
        edges_of_new = self.structure.edges_of_request(self.store, lists, len(new))
        sums[new], degree[new] = self.structure.sums(edges_of_new)
        return sums, degree

    def _positions_of(
        self, rows: npt.NDArray[np.int64], entries: list[_Entry]
    ) -> npt.NDArray[np.float32]:
        """Positional encodings ``[n, d]`` of known, changed and new nodes."""
        positions = self.store.positions_from_neighbors(_neighbor_lists(entries))
        stored = np.array([entry is None or not entry.has_own_edges for entry, _ in entries])
        positions[stored] = self.store.positions(rows[stored])
        return positions

    def _edges_of(self, place: int, rows: npt.NDArray[np.int64], entries: list[_Entry]) -> Edges:
        """The edges of one known, changed or new node."""
        assert self.structure is not None
        row = rows[place : place + 1]
        if row[0] < 0:
            lists = _neighbor_lists(entries[place : place + 1])
            return self.structure.edges_of_request(self.store, lists, 1)
        changes = entries[place][1]
        neighbors = set(self.structure.edges_of_known(row).neighbor.tolist())
        ignored = 0
        found = self.store.find([edge.neighbor for edge in changes]).tolist()
        for edge, other in zip(changes, found, strict=True):
            if not self._is_read(other):
                ignored += edge.is_there
            elif edge.is_there:
                neighbors.add(other)
            else:
                neighbors.discard(other)
        ordered = np.array(sorted(neighbors), dtype=np.int64)
        return Edges(np.zeros_like(ordered), ordered, np.array([ignored]))

    def _is_read(self, row: int) -> bool:
        """Whether a neighbour in that row of the store counts."""
        return row >= 0 and (self.structure is None or self.structure.observed(row))

    # ------------------------------------------------------------ features as bytes

    def _blobs(self, x: Any, count: int) -> list[bytes | None]:
        """Feature rows as they are kept: float32, or int64 columns and float32 values."""
        rows = check_rows(x, self.width)
        if len(rows) != count:
            raise RequestError(f"there are {len(rows)} rows of x for {count} nodes.")
        if not self._is_sparse:
            dense = rows.dense() if isinstance(rows, CsrRows) else rows
            return [row.astype("<f4").tobytes() for row in dense]
        if not isinstance(rows, CsrRows):
            node, column = np.nonzero(rows)
            ends = np.searchsorted(node, np.arange(count + 1))
            rows = CsrRows(ends, column, rows[node, column], self.width)
        ends = rows.indptr
        return [
            rows.indices[a:b].astype("<i8").tobytes() + rows.values[a:b].astype("<f4").tobytes()
            for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        ]

    def _features(self, rows: npt.NDArray[np.int64], entries: list[_Entry]) -> Rows:
        """Features of known, changed and new nodes, in the form of the store."""
        blobs = [None if entry is None else entry.x for entry, _ in entries]
        stored_places = [i for i, blob in enumerate(blobs) if blob is None]
        stored = self.store.features(rows[stored_places])
        if not isinstance(stored, CsrRows):
            dense = np.empty((len(rows), self.width), dtype=np.float32)
            dense[stored_places] = stored
            for i, blob in enumerate(blobs):
                if blob is not None:
                    dense[i] = np.frombuffer(blob, dtype="<f4")
            return dense
        of_store = iter(range(len(stored)))
        parts = [
            _sparse_row(stored, next(of_store)) if blob is None else _sparse_row_of(blob)
            for blob in blobs
        ]
        indptr = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(columns) for columns, _ in parts], out=indptr[1:])
        none = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        columns, values = (np.concatenate(each) for each in zip(none, *parts, strict=True))
        return CsrRows(indptr, columns, values, self.width)

    # ------------------------------------------------------------ writing

    def _checked_ids(self, nodes: Any) -> list[NodeId]:
        kind = str if self.store.has_text_ids else int
        if isinstance(nodes, str | bytes) or not hasattr(nodes, "__len__"):
            raise RequestError("nodes must be a list of ids.")
        ids = nodes.tolist() if isinstance(nodes, np.ndarray) else list(nodes)
        for node in ids:
            self._check_id(node, kind)
        return ids

    @staticmethod
    def _check_id(node: Any, kind: type[int] | type[str]) -> None:
        if type(node) is not kind:
            what = "strings" if kind is str else "integers"
            raise RequestError(
                f"the node {node!r} is given as {type(node).__name__}, and the ids of the known "
                f"nodes are {what}."
            )
        if isinstance(node, int) and not -(2**63) <= node < 2**63:
            raise RequestError(f"the node {node} is beyond the integers of 64 bits.")
        if isinstance(node, str):
            try:
                node.encode()
            except UnicodeEncodeError:
                raise RequestError(f"the node {node!r} is not text that UTF-8 can hold.") from None

    def _checked_lists(self, neighbors: Any, ids: list[NodeId]) -> list[list[NodeId]]:
        self._check_reads_neighbors()
        counts, _ = self.store.neighbor_rows(neighbors)
        if len(counts) != len(ids):
            raise RequestError(f"there are {len(counts)} lists of neighbors for {len(ids)} nodes.")
        lists = [list(dict.fromkeys(self._checked_ids(given))) for given in neighbors]
        for place, given in enumerate(lists):
            self._check_count(f"neighbors[{place}]", len(given))
        return lists

    def _check_reads_neighbors(self) -> None:
        if not self.reads_neighbors:
            raise RequestError(
                f"the student {self.manifest.student!r} reads no neighbors: leave them out."
            )

    def _check_count(self, what: str, count: int) -> None:
        if self.max_neighbors is not None and count > self.max_neighbors:
            raise RequestError(
                f"{what} names {count:,} nodes, and this student reads at most "
                f"{self.max_neighbors:,} of a node."
            )

    def _refuse_known(self, node: NodeId, row: int) -> None:
        if self.neighborhood is not None and row >= 0:
            raise RequestError(
                f"the node {node!r} cannot change: this student is a GNN, whose answers for others "
                "would change, too; make a new bundle."
            )

    def _present(self, writer: ChangeWriter, node: NodeId, row: int) -> NodeChange | None:
        """The entry of a node that must be there, ``None`` for one as the bundle has it."""
        entry = writer.node(node)
        if entry is None and row < 0:
            raise RequestError(f"unknown node {node!r}: upsert it first.")
        if entry is not None and entry.is_deleted:
            raise RequestError(f"the node {node!r} was deleted.")
        return entry

    def _check_not_gone(self, writer: ChangeWriter, neighbor: NodeId) -> None:
        entry = writer.node(neighbor)
        if entry is not None and entry.is_deleted:
            raise RequestError(f"the neighbor {neighbor!r} was deleted.")

    def _touch(self, writer: ChangeWriter, node: NodeId) -> None:
        """Note that a node's edges change."""
        entry = writer.node(node)
        if entry is None:
            writer.put_node(node, None)
        elif not entry.is_deleted:
            writer.put_node(node, entry.x, has_own_edges=entry.has_own_edges)

    def _current(self, writer: ChangeWriter, node: NodeId, row: int) -> set[NodeId]:
        """The ids of all neighbours that a node has."""
        current: set[NodeId] = set()
        if self.structure is not None and row >= 0:
            current.update(
                self.store.ids_of(self.structure.edges_of_known(np.array([row])).neighbor)
            )
        for edge in writer.edges(node):
            (current.add if edge.is_there else current.discard)(edge.neighbor)
        return current

    def _put_neighbors(
        self, writer: ChangeWriter, node: NodeId, row: int, wanted: list[NodeId]
    ) -> bool:
        """Give a node these neighbours and no others; returns whether all are kept here."""
        for neighbor in wanted:
            self._check_not_gone(writer, neighbor)
        if self.structure is None or row < 0:
            writer.drop_edges(node)
            writer.put_edges(node, wanted, is_there=True)
            return True
        current = self._current(writer, node, row)
        writer.put_edges(node, current - set(wanted), is_there=False)
        writer.put_edges(node, [each for each in wanted if each not in current], is_there=True)
        return False

    def _change_edges(
        self, edges: Iterable[Sequence[NodeId]], *, is_there: bool, undirected: bool
    ) -> int:
        self._check_reads_neighbors()
        pairs = list(edges)
        for place, pair in enumerate(pairs):
            if isinstance(pair, str | bytes) or not hasattr(pair, "__len__") or len(pair) != 2:
                raise RequestError(f"edge {place} must be a pair of ids: a node and its neighbor.")
        flat = self._checked_ids([node for pair in pairs for node in pair])
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        with self.overlay.writing() as writer:
            writer.fetch(flat)
            for node, neighbor in pairs:
                self._change_edge(writer, node, neighbor, is_there=is_there)
                if undirected and self._goes_back(writer, neighbor):
                    self._change_edge(writer, neighbor, node, is_there=is_there)
            return writer.version

    def _goes_back(self, writer: ChangeWriter, neighbor: NodeId) -> bool:
        """Whether an edge can also lead to the neighbour: it is there, and its edges are kept."""
        row = int(self.store.find([neighbor])[0])
        entry = writer.node(neighbor)
        if row < 0:
            return entry is not None
        return self.structure is not None or (entry is not None and entry.has_own_edges)

    def _change_edge(
        self, writer: ChangeWriter, node: NodeId, neighbor: NodeId, *, is_there: bool
    ) -> None:
        row = int(self.store.find([node])[0])
        self._refuse_known(node, row)
        entry = self._present(writer, node, row)
        owns = entry is not None and entry.has_own_edges
        if self.structure is None and not owns:
            raise RequestError(
                f"the bundle does not hold the edges of the node {node!r}: upsert it with all its "
                "neighbors."
            )
        self._check_not_gone(writer, neighbor)
        current = self._current(writer, node, row)
        if (neighbor in current) == is_there:
            return
        self._check_count(f"the node {node!r}", len(current) + is_there)
        writer.put_edges(node, [neighbor], is_there=is_there)
        self._touch(writer, node)

    def _receivers(self, writer: ChangeWriter, node: NodeId, row: int) -> list[NodeId]:
        """The nodes that have an edge from this one."""
        receivers: dict[NodeId, None] = dict.fromkeys(writer.receivers(node))
        if self.structure is not None and row >= 0:
            receivers |= dict.fromkeys(self.store.ids_of(self.structure.receivers(row)))
        return list(receivers)


def _neighbor_lists(entries: Iterable[_Entry]) -> list[list[NodeId]]:
    return [[edge.neighbor for edge in edges if edge.is_there] for _, edges in entries]


def _joined(parts: Sequence[Edges]) -> Edges:
    """The edges of several nodes, each given by itself."""
    lengths = [len(part.neighbor) for part in parts]
    return Edges(
        np.repeat(np.arange(len(parts)), lengths),
        np.concatenate([part.neighbor for part in parts]),
        np.concatenate([part.ignored for part in parts]),
    )


def _sparse_row(rows: CsrRows, place: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    first, last = rows.indptr[place], rows.indptr[place + 1]
    return rows.indices[first:last], rows.values[first:last]


def _sparse_row_of(blob: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    count = len(blob) // 12  # 8 bytes for a column, 4 for its value
    columns = np.frombuffer(blob, dtype="<i8", count=count)
    return columns, np.frombuffer(blob, dtype="<f4", offset=8 * count)
