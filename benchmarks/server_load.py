"""Load for a server: wrk where speed is asked for, a steady rate of arrivals where overload is."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SCRIPT = """
wrk.method = "POST"
local file = io.open(os.getenv("BODY"), "rb")
wrk.body = file:read("*all")
file:close()
wrk.headers["content-type"] = "application/json"
if os.getenv("HEAD") ~= "" then
  wrk.headers["inference-header-content-length"] = os.getenv("HEAD")
end
done = function(summary, latency, requests)
  io.write(string.format(
    "FOUND %d %d %d %f %f %f\\n", summary.requests, summary.duration,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write
    + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"""


class Ask(NamedTuple):
    """A request: the address's path, its body, and the length of the JSON before binary tensors."""

    path: str
    body: bytes
    head: int | None

    def as_http(self) -> bytes:
        lines = [f"POST {self.path} HTTP/1.1", "host: x", f"content-length: {len(self.body)}"]
        if self.head is not None:
            lines.append(f"inference-header-content-length: {self.head}")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class Speed(NamedTuple):
    """What wrk found: latencies in milliseconds."""

    requests: int
    seconds: float
    failed: int
    p50: float
    p99: float
    p999: float


def ask_for(name: str, width: int, batch: int, *, binary: bool) -> Ask:
    """Probabilities of random rows, as JSON or binary tensors."""
    x = np.random.default_rng(0).random((batch, width), dtype=np.float32)
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [batch, width]}
    output = {"name": "probabilities", "parameters": {"binary_data": binary}}
    if binary:
        tensor["parameters"] = {"binary_data_size": x.nbytes}
    else:
        tensor["data"] = [round(float(value), 6) for value in x.ravel()]
    head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    body = head + (x.tobytes() if binary else b"")
    return Ask(f"/v2/models/{name}/infer", body, len(head) if binary else None)


def wrk(port: int, ask: Ask, connections: int, seconds: float, cores: set[int]) -> Speed:
    """Load from one thread; each connection asks again when it is answered."""
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("wrk is not installed: apt-get install wrk, or build github.com/wg/wrk.")
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder, "body"), Path(folder, "script.lua")
        body.write_bytes(ask.body)
        script.write_text(SCRIPT)
        head = "" if ask.head is None else str(ask.head)
        url = f"http://127.0.0.1:{port}{ask.path}"
        told = subprocess.run(
            [program, "-t1", f"-c{connections}", f"-d{max(int(seconds), 1)}s", "-s", script, url],
            env=os.environ | {"BODY": str(body), "HEAD": head},
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 30,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        ).stdout
    line = next(line for line in told.splitlines() if line.startswith("FOUND"))
    requests, microseconds, failed, *latencies = map(float, line.split()[1:])
    return Speed(int(requests), microseconds / 1e6, int(failed), *(t / 1000 for t in latencies))


class Arrivals(NamedTuple):
    """What became of arrivals: when each was due, the status of its answer, and its latency."""

    due: np.ndarray
    status: np.ndarray
    seconds: np.ndarray


def arrivals(port: int, ask: Ask, rate: float, seconds: float, connections: int) -> Arrivals:
    """Requests that come at a rate, whatever becomes of those before.

    Latency counts from when a request was due, so that a server that is behind cannot hide it. A
    request that finds all connections busy waits for one; that counts, too. Status 0 stands for a
    connection that failed.
    """
    import uvloop

    return uvloop.run(_arrivals(port, ask.as_http(), rate, seconds, connections))


async def _arrivals(
    port: int, request: bytes, rate: float, seconds: float, connections: int
) -> Arrivals:
    waiting: asyncio.Queue[float | None] = asyncio.Queue()
    found: list[tuple[float, int, float]] = []
    start = time.perf_counter()

    async def one() -> None:
        reader = writer = None
        while (due := await waiting.get()) is not None:
            status = 0
            for _ in range(2):  # the server may have closed a connection that was idle
                try:
                    if writer is None:
                        reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    assert reader is not None
                    writer.write(request)
                    status = await _status(reader)
                    break
                except (OSError, asyncio.IncompleteReadError):
                    if writer is not None:
                        writer.close()
                    writer = None
            found.append((due - start, status, time.perf_counter() - due))
        if writer is not None:
            writer.close()

    workers = [asyncio.create_task(one()) for _ in range(connections)]
    sent = 0
    while (now := time.perf_counter() - start) < seconds:
        wanted = int(rate * now)
        for i in range(sent, wanted):
            waiting.put_nowait(start + i / rate)
        sent = wanted
        await asyncio.sleep(0.002)
    for _ in workers:
        waiting.put_nowait(None)
    await asyncio.gather(*workers)
    due, status, took = (np.array(column) for column in zip(*found, strict=True))
    return Arrivals(due, status, took)


async def _status(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head[9:12])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(port: int, path: str = "/v2/health/ready", seconds: float = 180) -> None:
    """Wait until a server is ready."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5)
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the server does not start.")


def split_cores() -> tuple[set[int], set[int]]:
    """One core for the server, the others for the load; the same where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return {cores[0]}, set(cores[1:] or cores)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Memory that a process holds."""
    lines: Iterable[str] = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
