"""Requests a second of ``limbeck serve``, and how long they take.

    python benchmarks/server_speed.py BUNDLE [--seconds 5] [--connections 1 16]

One worker answers on the loopback; the load comes from a process of its own, which sends the next
request of a connection when the last is answered, over plain sockets and with ready-made bytes, so
that it costs as little as may be. Both share the machine: on few cores the figures are a lower
bound. Rows are random features, in the protocol's JSON and as binary tensors; only probabilities
are asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

import limbeck

BATCHES = (1, 10, 100)


def request_of(name: str, width: int, batch: int, *, binary: bool) -> bytes:
    x = np.random.default_rng(0).random((batch, width), dtype=np.float32)
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [batch, width]}
    output = {"name": "probabilities", "parameters": {"binary_data": binary}}
    if binary:
        tensor["parameters"] = {"binary_data_size": x.nbytes}
    else:
        tensor["data"] = [round(float(value), 6) for value in x.ravel()]
    head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    body = head + (x.tobytes() if binary else b"")
    lines = [f"POST /v2/models/{name}/infer HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    if binary:
        lines.append(f"inference-header-content-length: {len(head)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def one_connection(port: int, request: bytes, until: float, times: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        start = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        lower = head.lower()
        length = int(lower.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        times.append(time.perf_counter() - start)
    writer.close()


def load(port: int, request: bytes, connections: int, seconds: float, found: Any) -> None:
    """Runs in a process of its own."""
    import uvloop

    async def all_of_them() -> list[float]:
        warm: list[float] = []
        await one_connection(port, request, time.perf_counter() + 0.3, warm)
        times: list[float] = []
        until = time.perf_counter() + seconds
        each = (one_connection(port, request, until, times) for _ in range(connections))
        await asyncio.gather(*each)
        return times

    found.put(uvloop.run(all_of_them()))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    arguments = parser.parse_args()
    width = limbeck.load(arguments.bundle).width
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "from limbeck.cli import main; main()"
    bundle = f"model={arguments.bundle}"
    server = subprocess.Popen(
        [sys.executable, "-c", command, "serve", bundle, "--port", str(port)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        print(f"{arguments.bundle.name}, {width} features; {platform.processor() or 'CPU'}, ")
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.seconds:g} s each"
        )
        print()
        print(
            "| tensors | batch | connections | requests/s | CPU µs | p50 ms | p99 ms | p99.9 ms |"
        )
        print("|---|---|---|---|---|---|---|---|")
        context = multiprocessing.get_context("spawn")
        for binary in (False, True):
            for batch in BATCHES:
                request = request_of("model", width, batch, binary=binary)
                for connections in arguments.connections:
                    found = context.Queue()
                    before = cpu_seconds(server.pid)
                    process = context.Process(
                        target=load, args=(port, request, connections, arguments.seconds, found)
                    )
                    process.start()
                    times = np.array(found.get())
                    process.join()
                    # the warm-up's requests cost, too, and are not counted: a little too much
                    cost = 1e6 * (cpu_seconds(server.pid) - before) / len(times)
                    p50, p99, p999 = 1000 * np.percentile(times, [50, 99, 99.9])
                    print(
                        f"| {'binary' if binary else 'JSON'} | {batch} | {connections} "
                        f"| {len(times) / arguments.seconds:,.0f} | {cost:.0f} | {p50:.2f} "
                        f"| {p99:.2f} | {p999:.2f} |",
                        flush=True,
                    )
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def wait_for(port: int) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1)
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the server does not start.")


if __name__ == "__main__":
    main()
