"""An overlay on a Redis server: several replicas, and what a server can do to them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis_process import RedisServer, running_redis
from tiny_bundle import BIAS, WEIGHT, linear_model

import limbeck
from limbeck.errors import BundleError, MissingExtraError, OutputError
from limbeck.runtime import OverlaidStudent

redis = pytest.importorskip("redis", reason="no redis-py, so overlays on Redis are NOT tested")

from limbeck.runtime.redis_overlay import TURN_SECONDS, RedisOverlay  # noqa: E402


@pytest.fixture
def bundle(write_tiny: Callable[..., Path]) -> Path:
    return write_tiny()


@pytest.fixture
def student(bundle: Path, redis_url: str) -> OverlaidStudent:
    return limbeck.load(bundle).with_overlay(redis_url)


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as found:
        yield found


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may kill."""
    (tmp_path / "redis").mkdir()
    yield from running_redis(tmp_path / "redis")


def answer(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32) @ WEIGHT + BIAS


def key_of(client: Any, end: str) -> bytes:
    (found,) = client.keys(f"limbeck:*:{end}")
    assert isinstance(found, bytes)
    return found


# ------------------------------------------------------------ replicas

REPLICA = """
import sys, limbeck
student = limbeck.load(sys.argv[1]).with_overlay(sys.argv[2])
for line in sys.stdin:
    name, value = line.split()
    if value != "?":
        student.upsert([name], [[float(value), 0, 0]])
    print(float(student.predict_logits([name])[0, 0]), flush=True)
"""


class Replica:
    """A process that upserts (``"n 3"``) and answers (``"n ?"``)."""

    def __init__(self, bundle: Path, url: str) -> None:
        command = [sys.executable, "-c", REPLICA, str(bundle), url]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.communicate()


def test_replicas_see_each_others_changes(bundle: Path, redis_url: str) -> None:
    left, right = Replica(bundle, redis_url), Replica(bundle, redis_url)
    for i in range(3):
        assert left.ask(f"n {i}") == i + 0.5
        assert right.ask("n ?") == i + 0.5
        assert right.ask(f"a {i + 10}") == i + 10.5
        assert left.ask("a ?") == i + 10.5
    left.stop()
    right.stop()


def test_ids_that_are_numbers_and_texts_are_kept_apart(student: OverlaidStudent) -> None:
    with student.overlay.writing() as writer:
        writer.put_node("1", b"text")
        writer.put_node(1, b"number")
        writer.put_edges("1", [1], is_there=True)
        writer.put_edges(1, ["1", "s1", -1], is_there=True)
        assert writer.receivers("1") == [1]
        assert writer.receivers(1) == ["1"]
    text, number = student.overlay.read(["1", 1], [-1, -1])
    assert text[0] is not None
    assert number[0] is not None
    assert (text[0].x, number[0].x) == (b"text", b"number")
    assert [edge.neighbor for edge in text[1]] == [1]
    assert {edge.neighbor for edge in number[1]} == {"1", "s1", -1}
    assert {node for node, _, _ in student.overlay.changes_since(0)} == {"1", 1}
    with student.overlay.writing() as writer:
        assert writer.receivers("1") == [1]
        writer.drop_edges(1)
        assert writer.receivers("1") == []
        writer.put_edges("1", [1], is_there=False)
    assert student.overlay.counts()[:5] == (2, 2, 0, 0, 1)


def test_bundles_share_a_server(
    student: OverlaidStudent, write_tiny: Callable[..., Path], redis_url: str
) -> None:
    other = write_tiny("other", model=linear_model(bias=BIAS + 1))
    second = limbeck.load(other).with_overlay(redis_url)
    student.upsert(["n"], [[1, 2, 3]])
    assert second.overlay.counts().version == 0
    second.upsert(["n"], [[0, 0, 1]])
    np.testing.assert_allclose(student.predict_logits(["n"]), answer([1, 2, 3]))
    np.testing.assert_allclose(second.predict_logits(["n"]), answer([0, 0, 1]) + 1)


# ------------------------------------------------------------ writers


def test_a_killed_writer_leaves_nothing_and_holds_nobody_up(
    student: OverlaidStudent, bundle: Path, redis_url: str
) -> None:
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            own = limbeck.load(bundle).with_overlay(redis_url)
            with own.overlay.writing() as writer:
                writer.put_node("half", b"\0" * 12)
                os.write(writable, b"begun")
                time.sleep(60)
        finally:
            os._exit(1)
    assert os.read(readable, 5) == b"begun"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    started = time.monotonic()
    student.upsert(["whole"], [[1, 0, 0]])
    assert time.monotonic() - started < TURN_SECONDS + 2
    assert [node for node, _, _ in student.overlay.changes_since(0)] == ["whole"]


def test_a_writer_that_slept_through_its_turn_is_refused(
    student: OverlaidStudent, bundle: Path, redis_url: str, client: Any
) -> None:
    other = limbeck.load(bundle).with_overlay(redis_url)
    message = "another process changed the overlay .* meanwhile; nothing was changed"
    with pytest.raises(OutputError, match=message), student.overlay.writing() as writer:  # noqa: PT012
        writer.put_node("a", b"\1" * 12)
        client.delete(key_of(client, "turn"))  # as if it had run out
        other.upsert(["a"], [[1, 2, 3]])
    np.testing.assert_allclose(student.predict_logits(["a"]), answer([1, 2, 3]))
    assert student.overlay.counts().version == 1
    student.upsert(["a"], [[0, 1, 0]])  # and the turn is free
    np.testing.assert_allclose(other.predict_logits(["a"]), answer([0, 1, 0]))


def test_a_block_that_fails_changes_nothing(student: OverlaidStudent, client: Any) -> None:
    before = {key: client.dump(key) for key in client.keys("*")}
    with pytest.raises(ZeroDivisionError), student.overlay.writing() as writer:  # noqa: PT012
        writer.put_node("a", b"\1" * 12)
        raise ZeroDivisionError
    assert {key: client.dump(key) for key in client.keys("*")} == before


# ------------------------------------------------------------ the server


def test_a_server_that_restarts_keeps_what_it_acknowledged(
    bundle: Path, own_server: RedisServer
) -> None:
    student = limbeck.load(bundle).with_overlay(own_server.url)
    student.upsert(["n"], [[1, 2, 3]])
    own_server.kill()
    with pytest.raises(OutputError, match=r"redis://127.0.0.1:\d+/0 cannot be reached"):
        student.predict(["n"])
    with pytest.raises(OutputError, match="cannot be reached"):
        student.upsert(["n"], [[0, 0, 0]])
    with pytest.raises(OutputError, match="cannot be reached"):
        limbeck.load(bundle).with_overlay(own_server.url)
    own_server.start()
    np.testing.assert_allclose(student.predict_logits(["n"]), answer([1, 2, 3]))
    assert student.overlay.losses == 0
    student.upsert(["n"], [[0, 0, 1]])
    np.testing.assert_allclose(student.predict_logits(["n"]), answer([0, 0, 1]))


def test_a_server_that_lost_changes_is_believed(bundle: Path, own_server: RedisServer) -> None:
    """It comes back as of an earlier moment, and others write before this one asks again."""
    student = limbeck.load(bundle).with_overlay(own_server.url)
    student.upsert(["first"], [[1, 0, 0]])
    own_server.kill()
    kept = {path: path.read_bytes() for path in own_server.folder.rglob("*") if path.is_file()}
    own_server.start()
    student.upsert(["lost", "a"], [[2, 0, 0], [2, 0, 0]])
    np.testing.assert_allclose(student.predict_logits(["lost", "a"]), answer([2, 0, 0], [2, 0, 0]))
    own_server.kill()
    own_server.lose_all()
    for path, content in kept.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    own_server.start()
    other = limbeck.load(bundle).with_overlay(own_server.url)
    other.upsert(["second"], [[3, 0, 0]])  # has the number of the change that was lost
    np.testing.assert_allclose(
        student.predict_logits(["first", "second", "a"]),
        answer([1, 0, 0], [3, 0, 0], [1, 0, 0]),
    )
    with pytest.raises(limbeck.errors.RequestError, match="unknown node"):
        student.predict(["lost"])


def test_a_server_that_lost_all_is_named(bundle: Path, own_server: RedisServer) -> None:
    student = limbeck.load(bundle).with_overlay(own_server.url)
    student.upsert(["n"], [[1, 2, 3]])
    own_server.kill()
    own_server.lose_all()
    own_server.start()
    for call in (lambda: student.predict(["n"]), lambda: student.upsert(["n"], [[1, 1, 1]])):
        with pytest.raises(BundleError, match="is gone: the server has lost"):
            call()


def test_a_replica_answers_and_takes_no_change(
    bundle: Path, own_server: RedisServer, student: OverlaidStudent, redis_url: str
) -> None:
    student.upsert(["n"], [[1, 2, 3]])
    port = redis_url.rpartition(":")[2].partition("/")[0]
    with redis.Redis.from_url(own_server.url) as client:
        client.replicaof("127.0.0.1", port)
        until = time.monotonic() + 20
        while not client.keys("limbeck:*:nodes") and time.monotonic() < until:
            time.sleep(0.05)
    reader = limbeck.load(bundle).with_overlay(own_server.url)
    np.testing.assert_allclose(reader.predict_logits(["n"]), answer([1, 2, 3]))
    with pytest.raises(
        OutputError, match="is a read-only replica: give the address of the primary"
    ):
        reader.upsert(["n"], [[0, 0, 0]])


def test_a_full_server_refuses_and_answers(
    student: OverlaidStudent, bundle: Path, redis_url: str, client: Any
) -> None:
    student.upsert(["n"], [[1, 2, 3]])
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutputError, match="out of memory .* nothing was changed"):
            student.upsert(["n"], [[0, 0, 0]])
        np.testing.assert_allclose(student.predict_logits(["n"]), answer([1, 2, 3]))
        client.config_set("maxmemory", 10**9)
        # full in the midst of a change: the server takes none of it
        message = "out of memory"
        with pytest.raises(OutputError, match=message), student.overlay.writing() as w:  # noqa: PT012
            w.put_node("m", b"\0" * 12)
            client.config_set("maxmemory", 1)
        assert [node for node, _, _ in student.overlay.changes_since(0)] == ["n"]
        client.config_set("maxmemory", 10**9)
        client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(OutputError, match="throws away .* set it to noeviction"):
            limbeck.load(bundle).with_overlay(redis_url)
    finally:
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")


def test_who_may_not_is_told_without_the_password(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    for server in running_redis(tmp_path / "locked", "--requirepass", "secret"):
        for user in ("", ":wrong-word@"):
            url = server.url.replace("//", f"//{user}")
            with pytest.raises(
                OutputError, match=r"redis://127.0.0.1:\d+/0 lets nobody in so"
            ) as e:
                limbeck.load(bundle).with_overlay(url)
            assert "wrong-word" not in str(e.value)
        student = limbeck.load(bundle).with_overlay(server.url.replace("//", "//:secret@"))
        student.upsert(["n"], [[1, 2, 3]])
        assert isinstance(student.overlay, RedisOverlay)
        assert "secret" not in student.overlay.name


@pytest.mark.parametrize("url", ["redis://127.0.0.1:port/0", "redis://[::1/0"])
def test_an_address_that_is_none_is_told(bundle: Path, url: str) -> None:
    with pytest.raises(OutputError, match="is no address of a Redis server"):
        limbeck.load(bundle).with_overlay(url)


def test_a_connection_that_is_lost_at_the_commit_says_what_is_known(
    bundle: Path, redis_url: str, student: OverlaidStudent
) -> None:
    """A way to the server that is cut when a change is sent."""
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    listening = socket.create_server(("127.0.0.1", 0))
    cut = threading.Event()

    def carry(source: socket.socket, target: socket.socket, watches: bool) -> None:
        with source, target:
            try:
                while data := source.recv(65536):
                    if watches and cut.is_set() and b"EXEC" in data and b"HSET" in data:
                        source.shutdown(socket.SHUT_RDWR)
                        return
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the other side is gone

    def accept() -> None:
        while True:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", port))
            for pair in ((near, far, True), (far, near, False)):
                threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    through = f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
    writer = limbeck.load(bundle).with_overlay(through)
    writer.upsert(["n"], [[1, 2, 3]])
    cut.set()
    with pytest.raises(
        OutputError, match="lost while a change was written: it is there as a whole"
    ):
        writer.upsert(["n"], [[0, 0, 0]])
    np.testing.assert_allclose(student.predict_logits(["n"]), answer([1, 2, 3]))
    cut.clear()
    writer.upsert(["n"], [[0, 0, 1]])
    np.testing.assert_allclose(student.predict_logits(["n"]), answer([0, 0, 1]))
    writer.close()
    listening.close()


# ------------------------------------------------------------ what is kept


def test_another_bundle_or_format_is_refused(
    student: OverlaidStudent, bundle: Path, redis_url: str, client: Any
) -> None:
    about = key_of(client, "about")
    client.hset(about, "bundle", "f" * 64)
    with pytest.raises(BundleError, match="belongs to another bundle"):
        limbeck.load(bundle).with_overlay(redis_url)
    client.hset(about, "format", 99)
    with pytest.raises(BundleError, match="is of format '99', and this version"):
        limbeck.load(bundle).with_overlay(redis_url)
    client.delete(about)
    client.set(about, "text")
    with pytest.raises(BundleError, match="one of its keys holds something else"):
        limbeck.load(bundle).with_overlay(redis_url)


def test_damage_is_one_clear_error(
    student: OverlaidStudent, bundle: Path, redis_url: str, client: Any
) -> None:
    with student.overlay.writing() as writer:
        writer.put_node("n", np.ones(3, dtype="<f4").tobytes())
        writer.put_edges("n", ["a"], is_there=True)
    sentence = "is damaged: what it keeps of the node 'n' does not fit"
    for key, field in ((key_of(client, "nodes"), b"sn"), (key_of(client, "edges:sn"), b"sa")):
        row = client.hget(key, field)
        for place in (0, len(row) - 1):
            bad = bytearray(row)
            bad[place] ^= 1
            client.hset(key, field, bytes(bad))
            with pytest.raises(BundleError, match=sentence):
                limbeck.load(bundle).with_overlay(redis_url)
            with pytest.raises(BundleError, match=sentence):
                student.overlay.read(["n"], [-1])
            with pytest.raises(BundleError, match=sentence), student.overlay.writing() as writer:
                writer.node("n")
        client.hset(key, field, row)
    versions = key_of(client, "versions")
    client.zadd(versions, {b"sn": 8})
    with pytest.raises(BundleError, match=sentence):
        limbeck.load(bundle).with_overlay(redis_url)
    client.delete(versions)
    with pytest.raises(BundleError, match="is damaged"):
        limbeck.load(bundle).with_overlay(redis_url)


def test_a_backup_is_the_servers(student: OverlaidStudent, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="back up that server"):
        student.overlay.backup(tmp_path / "copy")


def test_without_redis_py_the_extra_is_named(bundle: Path) -> None:
    code = (
        "import sys, json, limbeck\n"
        "sys.modules['redis'] = None\n"
        f"student = limbeck.load({json.dumps(str(bundle))})\n"
        "try:\n    student.with_overlay('redis://127.0.0.1:1/0')\n"
        "except limbeck.errors.MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'limbeck[redis]'" in done.stdout
    assert issubclass(MissingExtraError, limbeck.errors.LimbeckError)
