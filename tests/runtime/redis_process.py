"""A Redis server in a process of its own, for tests."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


class RedisServer:
    """A server on a free port that keeps what it acknowledges in a folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self.folder), "--save", "", "--appendonly", "yes"]
        command += ["--appendfsync", "always", *self.options, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                    connection.sendall(b"PING\r\n")
                    if not connection.recv(64).startswith(b"-LOADING"):
                        return
            except OSError:
                assert self.process.poll() is None, "redis-server did not start"
            time.sleep(0.02)
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def lose_all(self) -> None:
        """Lose what is kept, as a server without persistence does."""
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        (self.folder / "dump.rdb").unlink(missing_ok=True)


def running_redis(folder: Path, *options: str) -> Iterator[RedisServer]:
    """A server until the test is done; without redis-server, which no extra brings, a loud skip."""
    pytest.importorskip("redis", reason="no redis-py, so overlays on Redis are NOT tested")
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server here, so overlays on Redis are NOT tested")
    server = RedisServer(folder, *options)
    yield server
    server.kill()
