"""What became of the nodes since a bundle was made, wherever it is kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, TypeAlias

from limbeck.errors import BundleError
from limbeck.runtime.bundle import Manifest

NodeId: TypeAlias = int | str


class NodeChange(NamedTuple):
    """What is kept of a changed or new node.

    Args:
        id: Its id.
        x: Its features as bytes, ``None`` for those of the bundle.
        has_own_edges: Whether its edges are those of the overlay and no others.
        is_deleted: Whether it is gone.
        version: The version that last changed it.
    """

    id: NodeId
    x: bytes | None
    has_own_edges: bool
    is_deleted: bool
    version: int


class EdgeChange(NamedTuple):
    """An edge to a node that came, or one of the bundle that went.

    Args:
        neighbor: Id of the node that the edge comes from.
        is_there: Whether it is there now.
        version: The version that last changed it.
    """

    neighbor: NodeId
    is_there: bool
    version: int


class OverlayCounts(NamedTuple):
    """How much an overlay holds.

    Args:
        version: Number of the last change, 0 for none.
        nodes: Nodes that are new, or whose features or edges changed.
        deleted: Nodes that are gone.
        edges_added: Edges that are not in the bundle.
        edges_removed: Edges of the bundle that are gone.
        bytes: Size of the file and of its write-ahead log; in Redis that of the ids, features and
            edges, without what the server needs to find them.
    """

    version: int
    nodes: int
    deleted: int
    edges_added: int
    edges_removed: int
    bytes: int


class ChangeWriter(Protocol):
    """The changes of one transaction; what it reads is what it has changed itself already."""

    @property
    def version(self) -> int:
        """Number of the change."""

    def fetch(self, nodes: Sequence[NodeId]) -> None:
        """Say which nodes are read next, so that they come in one go where each costs a way."""

    def node(self, node: NodeId) -> NodeChange | None:
        """What is kept of a node."""

    def edges(self, node: NodeId) -> list[EdgeChange]:
        """All edges that are kept of a node."""

    def put_node(
        self,
        node: NodeId,
        x: bytes | None,
        *,
        has_own_edges: bool = False,
        is_deleted: bool = False,
    ) -> None:
        """Keep a node: new features, or ``None`` for those of the bundle."""

    def put_edges(self, node: NodeId, neighbors: Iterable[NodeId], *, is_there: bool) -> None:
        """Keep that a node's edges from some others came or went."""

    def drop_edges(self, node: NodeId) -> None:
        """Forget all edges to a node that came or went."""

    def receivers(self, neighbor: NodeId) -> list[NodeId]:
        """The nodes that have an edge from this one which came after the bundle."""


class KeptChanges(Protocol):
    """What :class:`~limbeck.runtime.OverlaidStudent` needs of an overlay.

    :class:`~limbeck.runtime.Overlay` keeps it in a file, :class:`RedisOverlay` on a server.
    """

    @property
    def losses(self) -> int:
        """How often what was read before may have been lost; a reader that sees it grow forgets."""

    def is_changed(self) -> bool:
        """Whether anything was committed, by any process, since this was last asked."""

    def changes_since(self, version: int) -> list[tuple[NodeId, bool, int]]:
        """Id, whether it is gone, and version of each node that changed after ``version``."""

    def read(
        self, nodes: Sequence[NodeId], since: Sequence[int]
    ) -> list[tuple[NodeChange | None, list[EdgeChange]]]:
        """For each node its entry and its edges that changed since, all as of one moment."""

    def counts(self) -> OverlayCounts:
        """How much it holds."""

    def writing(self) -> AbstractContextManager[ChangeWriter]:
        """One change, whole or not at all: acknowledged when the block ends."""

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy it as of now to a new file."""

    def close(self) -> None:
        """Let go of it; nothing that was acknowledged is lost without."""


def bundle_digest(manifest: Manifest) -> str:
    """What a bundle is known by: the sha256 of the checksums of all its files."""
    checksums = {name: entry.sha256 for name, entry in sorted(manifest.files.items())}
    return hashlib.sha256(json.dumps(checksums).encode()).hexdigest()


def checksum(columns: tuple[object, ...], content: bytes = b"") -> bytes:
    """The 8 bytes that a row of an overlay is checked by, BLAKE2b.

    Args:
        columns: Integers, texts and ``None`` only. Their ``repr`` tells an id ``1`` from ``"1"``
            and says where it ends, so that no two rows are hashed as the same bytes.
        content: A column of bytes, the last.
    """
    return hashlib.blake2b(repr(columns).encode() + content, digest_size=8).digest()


def damaged_row(name: object, node: object) -> BundleError:
    """The error for a row that does not fit its checksum."""
    return BundleError(
        f"the overlay {name} is damaged: what it keeps of the node {node!r} does not fit its "
        "checksum."
    )
