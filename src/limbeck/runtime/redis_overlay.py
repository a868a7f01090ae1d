"""What became of the nodes since a bundle was made, kept on a Redis server for several replicas."""

from __future__ import annotations

import os
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import LockNotOwnedError, NoPermissionError
from redis.lock import Lock
from redis.retry import Retry

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

FORMAT = 1

TURN_SECONDS = 2.0
"""How long a writer that falls silent holds up others; what it does later is refused."""

_Item = TypeVar("_Item")

_BATCH = 1000
_TRIES = 100
_HEAD = struct.Struct("<qB")  # version and flags, of a node or an edge
_OWNS, _DELETED, _HAS_X = 1, 2, 4
_COUNTERS = ("deleted", "edges_added", "edges_removed", "bytes")


class RedisOverlay:
    """Changes of nodes and edges beside a bundle, on a Redis server.

    Any number of replicas of a server read and write it; it has the interface of
    :class:`~limbeck.runtime.Overlay`, which see. All of it lies under one prefix, which holds the
    bundle's digest, so overlays of several bundles share a server. Redis 6.2 or later, one primary.

    A change is staged in memory and sent as one ``MULTI``/``EXEC`` under ``WATCH`` of its number:
    the server does all of it, or nothing if anybody else has written since it began. That alone
    makes it right. A lock on the server lets writers take turns, since otherwise a long change
    would lose against short ones for ever; it runs out after :data:`TURN_SECONDS`, so one whose
    writer was killed holds nobody up for longer.

    What is acknowledged survives what the server's ``appendonly`` and ``appendfsync`` say, not
    more. After a lost connection a reader notices if the server has gone back to an earlier state.

    Keys under ``limbeck:{DIGEST}:``

    ==================  ====  ========================================================
    ``about``           hash  format, bundle, number of the last change, counters
    ``nodes``           hash  id → checksum, version, flags, features
    ``versions``        zset  id, by twice its version, and one more if it is deleted
    ``edges:ID``        hash  neighbour → checksum, version, whether it is there
    ``receivers:ID``    set   the nodes that got an edge from this one
    ``turn``            text  the writer whose turn it is
    ==================  ====  ========================================================

    Args:
        url: The server: ``redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]``, with ``rediss://``
            over TLS.
        manifest: The bundle that it belongs to.
        verify: Check every row.
        wait_seconds: How long to wait for the server, and for another process that writes.

    Raises:
        BundleError: What is there is no overlay, is damaged, or belongs to another bundle.
        OutputError: The server cannot be reached, refuses, or evicts what it was given.
    """

    def __init__(
        self,
        url: str,
        manifest: Manifest,
        *,
        verify: bool = True,
        wait_seconds: float = 5.0,
    ) -> None:
        self.name = name_of(url)
        self.losses = 0
        self._wait_seconds = wait_seconds
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._seen: list[bytes] | None = None
        self._is_reconnected = False
        digest = bundle_digest(manifest)
        # in braces: what a cluster would look at to keep all of it on one server
        self._prefix = b"limbeck:{%s}:" % digest[:32].encode()
        self._about = self._key("about")
        # reads may be repeated; a change whose answer was lost may not, since it may be done
        reads_again = Retry(NoBackoff(), 1)
        self._reader = self._connect(
            url, reads_again, max_connections=1, seen=self._note_connection
        )
        self._writer = self._connect(url, Retry(NoBackoff(), 0))
        with self._told():
            self._refuse_eviction()
            self._prepare(digest, manifest)
            if verify:
                self._verify()

    def close(self) -> None:
        """Close the connections; nothing that was acknowledged is lost without."""
        self._reader.close()
        self._writer.close()

    # ------------------------------------------------------------ reading

    def is_changed(self) -> bool:
        """Whether anything was committed, by any process, since this was last asked.

        ``losses`` grows where what was read before may have been lost: the connection was, and
        the server is not as it was left.
        """
        with self._read_lock, self._told():
            found = self._reader.hmget(self._about, ["life", "stamp", "version"])
            if None in found:
                raise BundleError(
                    f"the overlay {self.name} is gone: the server has lost what it kept; restore "
                    "it, or open the bundle again to begin with none."
                )
            changed: bool = found != self._seen
            if self._seen is not None and changed:
                is_back = int(found[2]) < int(self._seen[2]) or found[0] != self._seen[0]
                self.losses += is_back or self._is_reconnected
            self._seen, self._is_reconnected = found, False
            return changed

    def changes_since(self, version: int) -> list[tuple[NodeId, bool, int]]:
        """Id, whether it is gone, and version of each node that changed after ``version``."""
        with self._read_lock, self._told():
            found = self._reader.zrangebyscore(
                self._key("versions"), 2 * version + 2, "+inf", withscores=True
            )
        return [(_id(key), bool(int(score) % 2), int(score) // 2) for key, score in found]

    def read(
        self, nodes: Sequence[NodeId], since: Sequence[int]
    ) -> list[tuple[NodeChange | None, list[EdgeChange]]]:
        """What is kept of some nodes, all as of one moment; see :meth:`Overlay.read`."""
        if not nodes:
            return []
        with self._read_lock, self._told():
            rows, *edges = self._at_once(lambda pipe: self._ask(pipe, nodes))
        return [
            (
                self._node(node, row),
                [edge for edge in self._edges(node, of_node).values() if edge.version > version],
            )
            for node, version, row, of_node in zip(nodes, since, rows, edges, strict=True)
        ]

    def counts(self) -> OverlayCounts:
        """How much it holds."""
        with self._read_lock, self._told():
            nodes, found = self._at_once(
                lambda pipe: (
                    pipe.hlen(self._key("nodes")),
                    pipe.hmget(self._about, ["version", *_COUNTERS]),
                )
            )
        version, deleted, added, removed, size = (int(value or 0) for value in found)
        return OverlayCounts(version, nodes - deleted, deleted, added, removed, size)

    def _at_once(self, ask: Callable[[Any], object]) -> list[Any]:
        """Answers to several questions as of one moment.

        Not by ``MULTI``, in which a server that is out of memory refuses even to read: each change
        moves the stamp, so what was read between two equal ones is of one moment.
        """
        for _ in range(_TRIES):
            pipe = self._reader.pipeline(transaction=False)
            pipe.hmget(self._about, ["life", "stamp"])
            ask(pipe)
            pipe.hmget(self._about, ["life", "stamp"])
            found: list[Any]
            before, *found, after = pipe.execute()
            if before == after:
                return found
        raise OutputError(f"the overlay {self.name} changes faster than it can be read: try again.")

    # ------------------------------------------------------------ writing

    @contextmanager
    def writing(self) -> Iterator[RedisWriter]:
        """One change, whole or not at all: acknowledged by the server when the block ends.

        Raises:
            OutputError: The server cannot be reached, is a read-only replica or out of memory, or
                another process writes for longer than ``wait_seconds``; nothing was changed then.
                Where the connection is lost while the change is sent, the sentence says so: it is
                there as a whole or not at all.
            BundleError: What is kept is damaged.
        """
        with self._write_lock, self._told():
            turn = self._writer.lock(
                self._key("turn"),
                timeout=TURN_SECONDS,
                sleep=0.003,
                blocking_timeout=self._wait_seconds,
                thread_local=False,
            )
            if not turn.acquire():
                raise OutputError(
                    f"another process has been writing the overlay {self.name} for more than "
                    f"{self._wait_seconds:g} s; nothing was changed, try again."
                )
            try:
                with self._writer.pipeline(transaction=True) as pipe:
                    pipe.watch(self._about)
                    writer = RedisWriter(self, self._writer, turn)
                    yield writer
                    pipe.multi()
                    writer.stage(pipe)
                    # with the change, since each write by itself may wait for the server's disk
                    pipe.delete(turn.name)
                    self._commit(pipe)
            except BaseException:
                # it may have run out, or the server be away: then it ends by itself
                with suppress(redis.RedisError):
                    turn.release()
                raise

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Refuses: what a server keeps is backed up there.

        Raises:
            OutputError: Always.
        """
        raise OutputError(
            f"the overlay {self.name} is on a Redis server and cannot be copied to "
            f"{os.fspath(path)}: back up that server (BGSAVE, or its append-only file)."
        )

    def _commit(self, pipe: Any) -> None:
        try:
            pipe.execute()
        except redis.WatchError as error:
            # redis-py raises it, too, where the connection was lost while a key was watched
            if isinstance(error.__context__, redis.ConnectionError | redis.TimeoutError):
                raise self._lost() from error
            raise OutputError(
                f"another process changed the overlay {self.name} meanwhile; nothing was changed, "
                "try again."
            ) from error
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise self._lost() from error

    def _lost(self) -> OutputError:
        return OutputError(
            f"the connection to the overlay {self.name} was lost while a change was written: it is "
            "there as a whole or not at all, so send it again."
        )

    # ------------------------------------------------------------ rows

    def _key(self, name: str, node: NodeId | None = None) -> bytes:
        key = self._prefix + name.encode()
        return key if node is None else key + b":" + _field(node)

    def _ask(self, pipe: Any, nodes: Sequence[NodeId]) -> None:
        """Ask for the rows of nodes, and then for the edges of each."""
        pipe.hmget(self._key("nodes"), [_field(node) for node in nodes])
        for node in nodes:
            pipe.hgetall(self._key("edges", node))

    def _node(self, node: NodeId, row: bytes | None) -> NodeChange | None:
        """A row of ``nodes``, checked."""
        if row is None:
            return None
        if row[:8] != checksum((node,), row[8:]):
            raise damaged_row(self.name, node)
        version, flags = _HEAD.unpack_from(row, 8)
        x = row[8 + _HEAD.size :] if flags & _HAS_X else None
        return NodeChange(node, x, bool(flags & _OWNS), bool(flags & _DELETED), version)

    def _edges(self, node: NodeId, rows: dict[bytes, bytes]) -> dict[NodeId, EdgeChange]:
        """The rows of a node's edges by its neighbours, checked."""
        edges = {}
        for field, row in rows.items():
            neighbor = _id(field)
            if row[:8] != checksum((node, neighbor), row[8:]):
                raise damaged_row(self.name, node)
            version, flags = _HEAD.unpack_from(row, 8)
            edges[neighbor] = EdgeChange(neighbor, bool(flags), version)
        return edges

    # ------------------------------------------------------------ the server

    def _connect(
        self,
        url: str,
        retry: Retry,
        *,
        max_connections: int | None = None,
        seen: Callable[[Any], None] | None = None,
    ) -> Any:
        """A client; ``Any``, since redis-py's types allow for text and asynchronous answers."""
        try:
            pool = redis.ConnectionPool.from_url(
                url,
                retry=retry,
                max_connections=max_connections,
                redis_connect_func=seen,
                socket_timeout=self._wait_seconds,
                socket_connect_timeout=self._wait_seconds,
                protocol=2,
                decode_responses=False,
            )
        except ValueError as error:
            raise OutputError(f"{self.name} is no address of a Redis server: {error}.") from error
        return redis.Redis.from_pool(pool)

    def _note_connection(self, connection: Any) -> None:
        """Called by redis-py in the place of its own greeting."""
        connection.on_connect()
        self._is_reconnected = True

    def _refuse_eviction(self) -> None:
        try:
            memory = self._reader.info("memory")
        except NoPermissionError:
            return  # a user that may not ask; documented as the operator's to see to
        policy = str(memory.get("maxmemory_policy", ""))
        if memory.get("maxmemory") and policy.startswith("allkeys"):
            raise OutputError(
                f"the server of the overlay {self.name} throws away what it was given when its "
                f"memory is full (maxmemory-policy {policy}): set it to noeviction."
            )

    def _prepare(self, digest: str, manifest: Manifest) -> None:
        """Begin an overlay, or check that the one there is of this bundle."""
        made_for = f"{manifest.method} of {manifest.graph.name}"
        about = self._reader.hgetall(self._about)
        if not about:
            new = {
                "format": FORMAT,
                "bundle": digest,
                "made_for": made_for,
                "life": secrets.token_hex(8),
                "stamp": "",
                "version": 0,
                **dict.fromkeys(_COUNTERS, 0),
            }
            with self._writer.pipeline(transaction=True) as pipe:
                pipe.watch(self._about)
                if not pipe.exists(self._about):
                    pipe.multi()
                    pipe.hset(self._about, mapping=new)
                    with suppress(redis.WatchError):  # another process was first
                        pipe.execute()
            about = self._reader.hgetall(self._about)
        kept = {
            key.decode(errors="replace"): value.decode(errors="replace")
            for key, value in about.items()
        }
        if kept.get("format") != str(FORMAT):
            raise BundleError(
                f"the overlay {self.name} is of format {kept.get('format')!r}, and this version of "
                f"Limbeck reads format {FORMAT} on a Redis server."
            )
        if kept.get("bundle") != digest:
            raise BundleError(
                f"the overlay {self.name} belongs to another bundle ({kept.get('made_for')}, "
                f"{str(kept.get('bundle'))[:12]}) than the one given ({made_for}, {digest[:12]})."
            )

    def _verify(self) -> None:
        """Check every row, and that readers would be told of it."""
        for fields in _batches(self._reader.hscan_iter(self._key("nodes"), count=_BATCH)):
            found = [field for field, _ in fields]
            nodes = [_id(field) for field in found]

            def ask(pipe: Any, found: list[bytes] = found, nodes: list[NodeId] = nodes) -> None:
                pipe.zmscore(self._key("versions"), found)
                self._ask(pipe, nodes)

            scores, rows, *edges = self._at_once(ask)
            for node, score, row, of_node in zip(nodes, scores, rows, edges, strict=True):
                change = self._node(node, row)
                self._edges(node, of_node)
                if change is not None and score != _score(change):
                    raise damaged_row(self.name, node)
        kept, noted, last, version = self._at_once(
            lambda pipe: (
                pipe.hlen(self._key("nodes")),
                pipe.zcard(self._key("versions")),
                pipe.zrange(self._key("versions"), -1, -1, withscores=True),
                pipe.hget(self._about, "version"),
            )
        )
        if kept != noted or (last and last[0][1] // 2 > int(version)):
            raise BundleError(f"the overlay {self.name} is damaged: some of its keys are missing.")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The errors of the server and of the way to it as ours."""
        try:
            yield
        except redis.RedisError as error:
            raise self._error(error) from error

    def _error(self, error: redis.RedisError) -> BundleError | OutputError:
        said = " ".join(str(error).split()).rstrip(".")
        if isinstance(error, redis.AuthenticationError | NoPermissionError) or said.startswith(
            ("NOAUTH", "WRONGPASS", "NOPERM")
        ):
            return OutputError(f"the server of the overlay {self.name} lets nobody in so: {said}.")
        if isinstance(error, redis.ReadOnlyError):
            return OutputError(
                f"the overlay {self.name} is a read-only replica: give the address of the primary; "
                "nothing was changed."
            )
        if isinstance(error, redis.OutOfMemoryError):
            return OutputError(
                f"the overlay {self.name} cannot grow: its server is out of memory (maxmemory); "
                "nothing was changed."
            )
        if isinstance(error, redis.ConnectionError | redis.TimeoutError):
            return OutputError(f"the overlay {self.name} cannot be reached: {said}.")
        if said.startswith("WRONGTYPE"):
            return BundleError(
                f"the overlay {self.name} is damaged: one of its keys holds something else."
            )
        return OutputError(f"the server of the overlay {self.name} refuses: {said}.")


class RedisWriter:
    """The changes of one transaction; made by :meth:`RedisOverlay.writing`.

    What is read is fetched once, and what is put stays in memory until the block ends.

    Args:
        overlay: What they are changes of.
        client: Where what is there is read from.
        turn: The turn, which lasts while this reads.
    """

    def __init__(self, overlay: RedisOverlay, client: Any, turn: Lock) -> None:
        self._overlay = overlay
        self._client = client
        self._turn = turn
        self._renewed = time.monotonic()
        found = client.hget(overlay._about, "version")
        if found is None:
            raise BundleError(f"the overlay {overlay.name} is gone: the server has lost it.")
        self.version = int(found) + 1
        self._kept_nodes: dict[NodeId, NodeChange | None] = {}
        self._kept_edges: dict[NodeId, dict[NodeId, EdgeChange]] = {}
        self._nodes: dict[NodeId, NodeChange] = {}
        self._edges: dict[NodeId, dict[NodeId, EdgeChange]] = {}
        self._receivers: dict[NodeId, dict[NodeId, bool]] = {}

    def fetch(self, nodes: Sequence[NodeId]) -> None:
        """Read what is kept of some nodes, in one go."""
        missing = [node for node in dict.fromkeys(nodes) if node not in self._kept_nodes]
        for some in _batches(missing):
            self._keep_turn()
            pipe = self._client.pipeline(transaction=False)
            self._overlay._ask(pipe, some)
            rows, *edges = pipe.execute()
            for node, row, of_node in zip(some, rows, edges, strict=True):
                self._kept_nodes[node] = self._overlay._node(node, row)
                self._kept_edges[node] = self._overlay._edges(node, of_node)

    def node(self, node: NodeId) -> NodeChange | None:
        """What is kept of a node, with what this transaction has changed."""
        self.fetch([node])
        return self._nodes.get(node, self._kept_nodes[node])

    def edges(self, node: NodeId) -> list[EdgeChange]:
        """All edges that are kept of a node, with what this transaction has changed."""
        self.fetch([node])
        return list(self._edges.get(node, self._kept_edges[node]).values())

    def put_node(
        self,
        node: NodeId,
        x: bytes | None,
        *,
        has_own_edges: bool = False,
        is_deleted: bool = False,
    ) -> None:
        """Keep a node: new features, or ``None`` for those of the bundle."""
        self._nodes[node] = NodeChange(node, x, has_own_edges, is_deleted, self.version)

    def put_edges(self, node: NodeId, neighbors: Iterable[NodeId], *, is_there: bool) -> None:
        """Keep that a node's edges from some others came or went."""
        edges = self._edges_of(node)
        for neighbor in neighbors:
            edges[neighbor] = EdgeChange(neighbor, is_there, self.version)
            self._receivers.setdefault(neighbor, {})[node] = is_there

    def drop_edges(self, node: NodeId) -> None:
        """Forget all edges to a node that came or went."""
        edges = self._edges_of(node)
        for neighbor in edges:
            self._receivers.setdefault(neighbor, {})[node] = False
        edges.clear()

    def receivers(self, neighbor: NodeId) -> list[NodeId]:
        """The nodes that have an edge from this one which came after the bundle."""
        self._keep_turn()
        found = self._client.smembers(self._overlay._key("receivers", neighbor))
        changed = self._receivers.get(neighbor, {})
        kept = [node for node in map(_id, sorted(found)) if node not in changed]
        return kept + [node for node, is_there in changed.items() if is_there]

    def stage(self, pipe: Any) -> None:
        """Send all of it as the commands of one transaction."""
        key = self._overlay._key
        counted = dict.fromkeys(_COUNTERS, 0)
        self.fetch([*self._nodes, *self._edges])
        rows: dict[bytes, bytes] = {}
        for node, change in self._nodes.items():
            field, row = _field(node), _node_row(change)
            rows[field] = row
            old = self._kept_nodes[node]
            counted["deleted"] += change.is_deleted - (old is not None and old.is_deleted)
            counted["bytes"] += len(row) - (0 if old is None else len(_node_row(old)))
            counted["bytes"] += len(field) if old is None else 0
        if rows:
            pipe.hset(key("nodes"), mapping=rows)
            scores = {_field(node): _score(change) for node, change in self._nodes.items()}
            pipe.zadd(key("versions"), scores)
        for node, edges in self._edges.items():
            before = self._kept_edges[node]
            for sign, some in ((1, edges), (-1, before)):
                there = sum(edge.is_there for edge in some.values())
                counted["edges_added"] += sign * there
                counted["edges_removed"] += sign * (len(some) - there)
                sizes = (len(_field(neighbor)) + 8 + _HEAD.size for neighbor in some)
                counted["bytes"] += sign * sum(sizes)
            gone = [_field(neighbor) for neighbor in before if neighbor not in edges]
            new = {
                _field(edge.neighbor): _edge_row(node, edge)
                for edge in edges.values()
                if edge.version == self.version
            }
            if gone:
                pipe.hdel(key("edges", node), *gone)
            if new:
                pipe.hset(key("edges", node), mapping=new)
        for neighbor, changed in self._receivers.items():
            came = [_field(node) for node, is_there in changed.items() if is_there]
            went = [_field(node) for node, is_there in changed.items() if not is_there]
            if came:
                pipe.sadd(key("receivers", neighbor), *came)
            if went:
                pipe.srem(key("receivers", neighbor), *went)
        for name, more in counted.items():
            if more:
                pipe.hincrby(key("about"), name, more)
        # the stamp tells two changes of one number apart, where a server lost one of them
        stamped = {"version": self.version, "stamp": secrets.token_hex(8)}
        pipe.hset(key("about"), mapping=stamped)

    def _edges_of(self, node: NodeId) -> dict[NodeId, EdgeChange]:
        """The edges of a node, to be changed."""
        if node not in self._edges:
            self.fetch([node])
            self._edges[node] = dict(self._kept_edges[node])
        return self._edges[node]

    def _keep_turn(self) -> None:
        """Let the turn last while a long change reads; without it the commit may be refused."""
        now = time.monotonic()
        if now - self._renewed > TURN_SECONDS / 4:
            self._renewed = now
            with suppress(LockNotOwnedError):
                self._turn.extend(TURN_SECONDS, replace_ttl=True)


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    rest = iter(items)
    while some := list(islice(rest, _BATCH)):
        yield some


def name_of(url: str) -> str:
    """A server's address as it may be shown: without user, password and options."""
    scheme, _, rest = url.partition("?")[0].partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _field(node: NodeId) -> bytes:
    """An id as bytes, by which ``1`` and ``"1"`` are not the same."""
    return b"s" + node.encode() if isinstance(node, str) else b"i%d" % node


def _id(field: bytes) -> NodeId:
    return field[1:].decode() if field[:1] == b"s" else int(field[1:])


def _score(change: NodeChange) -> int:
    """Where a node stands among the versions: exact in a double up to version 2**52."""
    return 2 * change.version + change.is_deleted


def _node_row(change: NodeChange) -> bytes:
    flags = _OWNS * change.has_own_edges | _DELETED * change.is_deleted
    flags |= _HAS_X * (change.x is not None)
    row = _HEAD.pack(change.version, flags) + (change.x or b"")
    return checksum((change.id,), row) + row


def _edge_row(node: NodeId, edge: EdgeChange) -> bytes:
    row = _HEAD.pack(edge.version, edge.is_there)
    return checksum((node, edge.neighbor), row) + row
