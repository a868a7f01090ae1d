"""The quick way in answers as the other does, whatever comes over a connection."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import Process
from tiny_bundle import BIAS, linear_model, tiny_parts

from limbeck.runtime.bundle import write_bundle

QUICK = "/v2/models/tiny/infer"
OTHER = "/v2/models/tiny/versions/1/infer"  # through ASGI
ROUTE = "/v2/models/{model}/infer"


def body_of(*x: float, **fields: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": list(x)}
    return json.dumps({"inputs": [tensor], **fields}).encode()


def head_of(length: int, *lines: str, path: str = QUICK, version: str = "1.1") -> bytes:
    own = [f"POST {path} HTTP/{version}", "host: x", "authorization: Bearer secret"]
    return "\r\n".join([*own, f"content-length: {length}", *lines, "", ""]).encode()


def request_of(body: bytes, *lines: str, **changes: str) -> bytes:
    return head_of(len(body), *lines, **changes) + body


class Connection:
    """A connection that sends what it is told, byte by byte."""

    def __init__(self, process: Process) -> None:
        host, _, port = process.address.partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self._file = self.socket.makefile("rb")

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        status = int(self._file.readline().split()[1])
        headers = {}
        while line := self._file.readline().strip():
            key, _, value = line.decode().partition(": ")
            headers[key] = value
        content = self._file.read(int(headers["content-length"]))
        return status, headers, json.loads(content)

    def is_closed(self) -> bool:
        return self._file.read(1) == b""

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture
def connect() -> Iterator[Callable[[Process], Connection]]:
    made = []

    def start(process: Process) -> Connection:
        made.append(Connection(process))
        return made[-1]

    yield start
    for connection in made:
        connection.close()


def counted(process: Process, status: int) -> float:
    """Requests of the quick way's route by the metrics."""
    page = httpx.get(f"{process.url}/metrics", headers=process.headers).text
    pattern = rf'limbeck_requests_total{{route="{re.escape(ROUTE)}",status="{status}"}} (\S+)'
    found = re.search(pattern, page)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (body_of(1, 2, 3), 200),
        (body_of(1, 2, 3, id="7", outputs=[{"name": "labels"}]), 200),
        (b"{", 400),
        (b"", 400),
        (b"{}", 422),
        (body_of(1, 2), 422),
        (body_of(3e38, 0, 3e38), 422),
    ],
)
def test_both_ways_answer_the_same(
    running: Process, connect: Callable[[Process], Connection], body: bytes, status: int
) -> None:
    connection = connect(running)
    answers = []
    for path in (QUICK, OTHER):
        connection.send(request_of(body, path=path))
        answers.append(connection.answer())
    (quick, quick_headers, quick_content), (other, other_headers, other_content) = answers
    assert quick == other == status
    assert quick_content == other_content
    assert set(quick_headers) == set(other_headers) == set(quick_headers) | {"date", "server"}
    assert quick_headers["content-type"] == other_headers["content-type"]


def test_pieces_pipelines_and_other_ways_of_asking(
    running: Process, connect: Callable[[Process], Connection]
) -> None:
    connection = connect(running)
    whole = request_of(body_of(1, 2, 3, id="pieces"))
    for i in range(0, len(whole), 37):
        connection.send(whole[i : i + 37])
        time.sleep(0.001)
    assert connection.answer()[2]["id"] == "pieces"
    # several at once: the first is answered first, and none is lost
    nodes = {"inputs": [{"name": "nodes", "datatype": "BYTES", "shape": [1], "data": ["b"]}]}
    connection.send(
        request_of(json.dumps({**nodes, "id": "0"}).encode())
        + request_of(body_of(1, 2, 3, id="1"))
        + request_of(body_of(1, 2, 3, id="2"), path=OTHER)
        + request_of(body_of(1, 2, 3, id="3"))
    )
    assert [connection.answer()[2]["id"] for _ in range(4)] == ["0", "1", "2", "3"]
    body = body_of(1, 2, 3)
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    head = head_of(0, "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"")
    connection.send(head + chunked)
    assert connection.answer()[0] == 200
    connection.send(head_of(len(body), "expect: 100-continue"))
    assert connection._file.readline() == b"HTTP/1.1 100 Continue\r\n"
    connection._file.readline()
    connection.send(body)
    assert connection.answer()[0] == 200
    connection.send(request_of(body, "connection: close"))
    assert connection.answer()[1]["connection"] == "close"
    assert connection.is_closed()
    old = connect(running)
    old.send(request_of(body, version="1.0"))
    assert old.answer()[0] == 200
    assert old.is_closed()


def test_what_may_not_pass_is_turned_away_at_its_head(
    running: Process, connect: Callable[[Process], Connection]
) -> None:
    connection = connect(running)
    wrong = request_of(body_of(1, 2, 3)).replace(b"Bearer secret", b"Bearer wrong!")
    before = counted(running, 401)
    connection.send(wrong)
    status, headers, content = connection.answer()
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert "token" in content["error"]
    assert counted(running, 401) == before + 1
    connection.send(request_of(body_of(1, 2, 3)))  # the connection goes on
    assert connection.answer()[0] == 200
    connection.send(head_of(2**30))
    assert connection.answer()[0] == 413


def test_a_client_that_goes_is_counted_out(
    running: Process, connect: Callable[[Process], Connection]
) -> None:
    before = counted(running, 0)
    connection = connect(running)
    connection.send(request_of(body_of(1, 2, 3))[:-5])
    connection.close()
    for _ in range(100):
        if counted(running, 0) == before + 1:
            break
        time.sleep(0.05)
    assert counted(running, 0) == before + 1
    assert "the client went before its request was whole" in running.log.read_text()


def test_limits_swaps_and_the_end(
    tiny: Path, tmp_path: Path, connect: Callable[[Process], Connection]
) -> None:
    process = Process(tmp_path, str(tiny), "--max-concurrency", "2")
    first, second, third = (connect(process) for _ in range(3))
    body = body_of(0, 0, 0)
    for half in (first, second):  # both are in flight until their bodies are whole
        half.send(head_of(len(body)))
    time.sleep(0.2)
    third.send(request_of(body))
    status, headers, content = third.answer()
    assert (status, headers["retry-after"]) == (503, "1")
    assert "2 requests are being answered" in content["error"]
    second.send(body)
    assert second.answer()[0] == 200
    # what began before a swap is answered by the version that it began with
    parts = tiny_parts() | {"model": linear_model(bias=BIAS + 1)}
    other = write_bundle(tmp_path / "other", **parts)
    swap = httpx.post(
        f"{process.url}/models/tiny/swap",
        json={"bundle": str(other)},
        headers=process.headers,
        timeout=60,
    )
    assert swap.json()["active"] == "2"
    third.send(request_of(body))
    assert third.answer()[2]["model_version"] == "2"
    first.send(body[:10])
    # the end waits for it, too
    stopping = threading.Thread(target=process.stop)
    stopping.start()
    time.sleep(0.5)
    assert stopping.is_alive()
    first.send(body[10:])
    status, headers, content = first.answer()
    assert (status, headers["connection"], content["model_version"]) == (200, "close", "1")
    stopping.join()
    assert '"event":"stopped"' in process.log.read_text()
