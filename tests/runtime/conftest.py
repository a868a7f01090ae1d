"""The tiny bundle, written where a test wants it, and places for overlays."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis_process import RedisServer, running_redis
from tiny_bundle import tiny_parts

from limbeck.runtime.bundle import write_bundle


@pytest.fixture
def write_tiny(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny bundle, with some of its parts changed."""

    def write(name: str = "tiny", ids: Any = ("a", "b", "ç", ""), **changes: Any) -> Path:
        return write_bundle(tmp_path / name, **(tiny_parts(ids) | changes))

    return write


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    yield from running_redis(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    """A server that keeps nothing yet."""
    import redis

    with redis.Redis.from_url(shared_redis.url) as client:
        client.flushall()
    return shared_redis.url


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    """Where an overlay is kept: a file, and a server."""
    if request.param == "sqlite":
        return tmp_path / "tiny.sqlite"
    url: str = request.getfixturevalue("redis_url")
    return url
