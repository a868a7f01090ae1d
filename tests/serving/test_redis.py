"""Two servers that share the overlay of a Redis server."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis_process import RedisServer, running_redis
from server_process import Process
from starlette.testclient import TestClient


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    yield from running_redis(tmp_path / "redis")


def test_replicas_answer_with_each_others_changes(
    serve: Callable[..., TestClient], server: RedisServer
) -> None:
    left, right = serve(overlay=server.url), serve(overlay=server.url)
    body = {"nodes": [{"id": "n", "x": [1, 2, 3]}]}
    assert left.put("/nodes", json=body).json()["change"] == 1
    found = [each.post("/predict", json={"nodes": ["n"]}).json() for each in (left, right)]
    assert found[0]["answers"] == found[1]["answers"]
    stale = right.post("/nodes/staleness", json={"nodes": ["n"]}).json()
    assert stale["nodes"][0]["is_new"] is True
    assert 'limbeck_overlay{model="tiny",what="nodes"} 1.0' in right.get("/metrics").text
    assert right.request("DELETE", "/nodes", json={"nodes": ["n"]}).status_code == 200
    assert left.post("/predict", json={"nodes": ["n"]}).status_code == 422
    # without the server: told so, and new nodes are answered as ever when it is back
    server.kill()
    for answer in (left.put("/nodes", json=body), left.post("/predict", json={"nodes": ["a"]})):
        assert answer.status_code == 503
        assert "cannot be reached" in answer.json()["error"]
    assert 'limbeck_requests_total{route="/nodes"' in left.get("/metrics").text
    server.start()
    assert left.put("/nodes", json=body).json()["change"] == 3
    assert right.post("/predict", json={"nodes": ["n"]}).status_code == 200


def test_the_command_line_takes_a_server(tiny: Path, tmp_path: Path, server: RedisServer) -> None:
    import httpx

    process = Process(tmp_path, str(tiny), "--overlay", server.url)
    body = {"nodes": [{"id": "n", "x": [1, 2, 3]}]}
    answer = httpx.put(f"{process.url}/nodes", json=body, headers=process.headers)
    assert answer.status_code == 200, answer.text
    process.stop()
    server.kill()
    command = [sys.executable, "-c", "from limbeck.cli import main; main()", "serve", str(tiny)]
    environment = os.environ | {"LIMBECK_OVERLAY": server.url}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 2
    assert "cannot be reached" in " ".join(done.stderr.split())
