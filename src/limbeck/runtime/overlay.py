"""What became of the nodes since a bundle was made, kept in one SQLite file."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.errors import BundleError, OutputError
from limbeck.runtime.bundle import Manifest
from limbeck.runtime.changes import (
    EdgeChange,
    NodeChange,
    NodeId,
    OverlayCounts,
    bundle_digest,
    checksum,
    damaged_row,
)

FORMAT = 2
_APPLICATION = 0x4C494D42
"""SQLite's ``application_id`` of an overlay: ``LIMB``."""

_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE nodes (
    id PRIMARY KEY NOT NULL,
    x BLOB,                               -- features, NULL for those of the bundle
    has_own_edges INTEGER NOT NULL,       -- 1: its edges are those below, and no others
    is_deleted INTEGER NOT NULL,
    version INTEGER NOT NULL,
    checksum BLOB NOT NULL                -- of the other columns: SQLite has none of content
);
CREATE INDEX nodes_by_version ON nodes (version);
CREATE TABLE edges (
    node NOT NULL,
    neighbor NOT NULL,
    is_there INTEGER NOT NULL,            -- 0: an edge of the bundle that is gone
    version INTEGER NOT NULL,
    checksum BLOB NOT NULL,
    PRIMARY KEY (node, neighbor)
) WITHOUT ROWID;
CREATE INDEX edges_by_neighbor ON edges (neighbor);
"""


class Overlay:
    """Changes of nodes and edges beside a bundle, in one SQLite file.

    It keeps them and answers nothing; :class:`~limbeck.runtime.OverlaidStudent` does. A change is
    on the disk when :meth:`writing` ends: the file is in WAL mode, and each commit waits for the
    disk (``synchronous=FULL``). Any number of processes read beside one that writes; two that write
    take turns. A process that is killed leaves its last commit, never half of one. Each row has a
    checksum, which is compared whenever it is read.

    Args:
        path: The file; made if it is not there.
        manifest: The bundle that it belongs to.
        verify: Check the whole file for damage: its structure, its indices and every row.
        wait_seconds: How long to wait for another process that writes.

    Raises:
        BundleError: The file is no overlay, is damaged, or belongs to another bundle.
        OutputError: The file cannot be made or written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest,
        *,
        verify: bool = True,
        wait_seconds: float = 5.0,
    ) -> None:
        self.path = Path(path)
        self._wait_seconds = wait_seconds
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        if not self.path.parent.is_dir():
            raise OutputError(f"{self.path} cannot be made: there is no folder {self.path.parent}.")
        with self._told():
            self._writer = self._connect()
            self._prepare(bundle_digest(manifest), manifest)
            if verify:
                self._verify()
            self._reader = self._connect()
            self._reader.execute("PRAGMA query_only = 1")
        self._seen: int | None = None

    @property
    def losses(self) -> int:
        """0: what a file has acknowledged is never lost."""
        return 0

    def close(self) -> None:
        """Close the file; nothing that was acknowledged is lost without."""
        self._reader.close()
        self._writer.close()

    # ------------------------------------------------------------ reading

    def is_changed(self) -> bool:
        """Whether anything was committed, by any process, since this was last asked."""
        with self._read_lock, self._told():
            found: int = self._reader.execute("PRAGMA data_version").fetchone()[0]
            changed = found != self._seen
            self._seen = found
            return changed

    def changes_since(self, version: int) -> list[tuple[NodeId, bool, int]]:
        """Id, whether it is gone, and version of each node that changed after ``version``."""
        query = "SELECT * FROM nodes WHERE version > ?"
        with self._read_lock, self._told():
            changes = (self._node(row) for row in self._reader.execute(query, (version,)))
            return [(change.id, change.is_deleted, change.version) for change in changes]

    def read(
        self, nodes: Sequence[NodeId], since: Sequence[int]
    ) -> list[tuple[NodeChange | None, list[EdgeChange]]]:
        """What is kept of some nodes, all as of one moment.

        Args:
            nodes: Their ids.
            since: For each the version up to which its edges are known already.

        Returns:
            For each node its entry, ``None`` for none, and its edges that changed since.
        """
        with self._read_lock, self._told():
            self._reader.execute("BEGIN")
            try:
                return [
                    (self._entry(self._reader, node), self._edges(self._reader, node, version))
                    for node, version in zip(nodes, since, strict=True)
                ]
            finally:
                self._reader.execute("COMMIT")

    def counts(self) -> OverlayCounts:
        """How much it holds; reads all of its index, so not for every request."""
        query = (
            "SELECT (SELECT value FROM about WHERE name = 'version'),"
            " (SELECT count(*) FROM nodes WHERE NOT is_deleted),"
            " (SELECT count(*) FROM nodes WHERE is_deleted),"
            " (SELECT count(*) FROM edges WHERE is_there),"
            " (SELECT count(*) FROM edges WHERE NOT is_there)"
        )
        with self._read_lock, self._told():
            found = self._reader.execute(query).fetchone()
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        size = sum(file.stat().st_size for file in files if file.exists())
        version, nodes, deleted, added, removed = found
        return OverlayCounts(version, nodes, deleted, added, removed, size)

    # ------------------------------------------------------------ writing

    @contextmanager
    def writing(self) -> Iterator[OverlayWriter]:
        """One change, whole or not at all: on the disk when the block ends.

        Raises:
            OutputError: The disk is full or cannot be written, or another process writes for
                longer than ``wait_seconds``; nothing was changed then.
            BundleError: The file is damaged.
        """
        with self._write_lock, self._told():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield OverlayWriter(self, self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself where the disk is full
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the overlay as of now to a new file, while others read and write.

        Raises:
            OutputError: ``path`` is there already, or cannot be written.
        """
        target = Path(path)
        if target.exists():
            raise OutputError(f"{target} is there already: give a new file for the backup.")
        with self._told():
            source, copy = self._connect(), sqlite3.connect(target)
            try:
                source.backup(copy)
            finally:
                copy.close()
                source.close()

    # ------------------------------------------------------------ rows

    def _entry(self, connection: sqlite3.Connection, node: NodeId) -> NodeChange | None:
        """What is kept of a node."""
        found = connection.execute("SELECT * FROM nodes WHERE id = ?", (node,)).fetchone()
        return None if found is None else self._node(found)

    def _edges(self, connection: sqlite3.Connection, node: NodeId, since: int) -> list[EdgeChange]:
        """The edges to a node that changed after a version."""
        query = "SELECT * FROM edges WHERE node = ? AND version > ?"
        return [self._edge(row)[1] for row in connection.execute(query, (node, since))]

    def _node(self, row: tuple[Any, ...]) -> NodeChange:
        """A row of ``nodes``, checked."""
        node, x, has_own_edges, is_deleted, version, kept = row
        # a damaged row may hold values of other types
        if kept != _node_checksum(node, x, has_own_edges, is_deleted, version):
            raise damaged_row(self.path, node)
        return NodeChange(node, x, bool(has_own_edges), bool(is_deleted), version)

    def _edge(self, row: tuple[Any, ...]) -> tuple[NodeId, EdgeChange]:
        """A row of ``edges``, checked: the node, and the edge to it."""
        *columns, kept = row
        if kept != checksum(tuple(columns)):
            raise damaged_row(self.path, row[0])
        node, neighbor, is_there, version = columns
        return node, EdgeChange(neighbor, bool(is_there), version)

    # ------------------------------------------------------------ the file

    def _verify(self) -> None:
        """Check the file's structure, that its indices fit its tables, and every row."""
        writer = self._writer
        writer.execute("BEGIN")  # all as of one moment, while others write
        try:
            found = writer.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise BundleError(f"the overlay {self.path} is damaged: {_one_line(found)}.")
            last = max((self._node(row).version for row in _all(writer, "nodes")), default=0)
            for row in _all(writer, "edges"):
                self._edge(row)
            query = "SELECT value FROM about WHERE name = 'version'"
            version = writer.execute(query).fetchone()
            # a number that is too small would be given to another change again
            if version is None or not isinstance(version[0], int) or version[0] < last:
                raise BundleError(
                    f"the overlay {self.path} is damaged: it does not know its last change."
                )
        finally:
            writer.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        # no implicit transactions: each BEGIN stands where it is meant
        connection = sqlite3.connect(
            self.path,
            timeout=self._wait_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _prepare(self, digest: str, manifest: Manifest) -> None:
        """Make the tables of a new file, or check that they are those of this bundle."""
        writer = self._writer
        application = writer.execute("PRAGMA application_id").fetchone()[0]
        is_empty = not writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != _APPLICATION and not is_empty:
            raise BundleError(f"{self.path} is a database of something else, not an overlay.")
        if application != _APPLICATION:
            writer.execute("PRAGMA journal_mode = WAL")
            writer.execute("BEGIN IMMEDIATE")
            # another process may have made them while this one waited
            if not writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in _statements(_TABLES):
                    writer.execute(statement)
                about = {
                    "format": FORMAT,
                    "bundle": digest,
                    "made_for": f"{manifest.method} of {manifest.graph.name}",
                    "version": 0,
                }
                writer.executemany("INSERT INTO about VALUES (?, ?)", about.items())
                writer.execute(f"PRAGMA application_id = {_APPLICATION}")
            writer.execute("COMMIT")
        about = dict(writer.execute("SELECT name, value FROM about"))
        if about.get("format") != FORMAT:
            raise BundleError(
                f"the overlay {self.path} is of format {about.get('format')!r}, and this version "
                f"of Limbeck reads format {FORMAT}."
            )
        if about.get("bundle") != digest:
            raise BundleError(
                f"the overlay {self.path} belongs to another bundle ({about.get('made_for')}, "
                f"{str(about.get('bundle'))[:12]}) than the one given ({manifest.method} of "
                f"{manifest.graph.name}, {digest[:12]})."
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._error(error) from error
        # what is no text comes as UnicodeDecodeError, also where SQLite's own tables are damaged
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise BundleError(
                f"the overlay {self.path} is damaged or no overlay at all: {_one_line(error)}."
            ) from error

    def _error(self, error: sqlite3.OperationalError) -> BundleError | OutputError:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith("SQLITE_FULL"):
            return OutputError(
                f"the overlay {self.path} cannot grow: the disk is full; nothing was changed."
            )
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return OutputError(
                f"another process has been writing the overlay {self.path} for more than "
                f"{self._wait_seconds:g} s; nothing was changed, try again."
            )
        if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_PERM")):
            return OutputError(
                f"the overlay {self.path} cannot be opened or written: {_one_line(error)}."
            )
        return BundleError(f"the overlay {self.path} is damaged: {_one_line(error)}.")


class OverlayWriter:
    """The changes of one transaction; made by :meth:`Overlay.writing`.

    Args:
        overlay: What they are changes of.
        connection: Where they are written.
    """

    def __init__(self, overlay: Overlay, connection: sqlite3.Connection) -> None:
        self._overlay = overlay
        self._connection = connection
        self.version: int = connection.execute(
            "UPDATE about SET value = value + 1 WHERE name = 'version' RETURNING value"
        ).fetchone()[0]

    def fetch(self, nodes: Sequence[NodeId]) -> None:
        """Nothing: the file is at hand."""

    def node(self, node: NodeId) -> NodeChange | None:
        """What is kept of a node, with what this transaction has changed."""
        return self._overlay._entry(self._connection, node)

    def edges(self, node: NodeId) -> list[EdgeChange]:
        """All edges that are kept of a node, with what this transaction has changed."""
        return self._overlay._edges(self._connection, node, -1)

    def put_node(
        self,
        node: NodeId,
        x: bytes | None,
        *,
        has_own_edges: bool = False,
        is_deleted: bool = False,
    ) -> None:
        """Keep a node: new features, or ``None`` for those of the bundle."""
        row = (node, x, int(has_own_edges), int(is_deleted), self.version)
        self._connection.execute(
            "INSERT OR REPLACE INTO nodes VALUES (?, ?, ?, ?, ?, ?)", (*row, _node_checksum(*row))
        )

    def put_edges(self, node: NodeId, neighbors: Iterable[NodeId], *, is_there: bool) -> None:
        """Keep that a node's edges from some others came or went."""
        rows = ((node, neighbor, int(is_there), self.version) for neighbor in neighbors)
        self._connection.executemany(
            "INSERT OR REPLACE INTO edges VALUES (?, ?, ?, ?, ?)",
            ((*row, checksum(row)) for row in rows),
        )

    def drop_edges(self, node: NodeId) -> None:
        """Forget all edges to a node that came or went."""
        self._connection.execute("DELETE FROM edges WHERE node = ?", (node,))

    def receivers(self, neighbor: NodeId) -> list[NodeId]:
        """The nodes that have an edge from this one which came after the bundle."""
        rows = self._connection.execute("SELECT * FROM edges WHERE neighbor = ?", (neighbor,))
        edges = [self._overlay._edge(row) for row in rows]
        return [node for node, edge in edges if edge.is_there]


def _node_checksum(
    node: object, x: object, has_own_edges: object, is_deleted: object, version: object
) -> bytes:
    columns = (node, has_own_edges, is_deleted, version)
    return checksum(columns, x) if isinstance(x, bytes) else checksum((*columns, x))


def _all(connection: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    return connection.execute(f"SELECT * FROM {table}")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; ``executescript`` would end the transaction."""
    return (part for part in script.split(";") if part.strip())


def _one_line(error: object) -> str:
    return " ".join(str(error).split()).rstrip(".")
