"""Requests a second of ``limbeck serve``, beside mlserver; overload; memory.

    python benchmarks/server_speed.py BUNDLE [--parts speed costs overload memory]
        [--mlserver PYTHON] [--seconds 5] [--minutes 15]

One worker answers on the loopback, on a core of its own where there are several; the load comes
from the others. Rows are random features, in the protocol's JSON and as binary tensors; only
probabilities are asked for.

*speed* is by wrk, one thread of it: each connection asks again when it is answered. With
``--mlserver`` the Python of an environment that has mlserver 1.7.1 and onnxruntime answers the
same requests from the same model (a runtime of a few lines, ``parallel_workers`` 0), in turn with
ours. *CPU* is the server's processor time for a request.

*costs* takes a request's processor time apart: in this process, without sockets, the least of some
rounds, so that it can be told on a busy machine, too.

*overload* finds the capacity with batches of 100, offers twice as much for ``--overload-seconds``
at a steady rate, and then half of it: how many are answered, how many turned away (429, 503), and
how long those that are answered take, from when they were due.

*memory* is what the worker holds over ``--requests`` requests.

All ends after ``--minutes``; what did not fit in is said.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from server_load import (
    Ask,
    arrivals,
    ask_for,
    cpu_seconds,
    free_port,
    resident_mb,
    split_cores,
    wait_for,
    wrk,
)
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

import limbeck
from limbeck.serving import Settings, create_app, open_inference
from limbeck.serving.protocol import InferProtocol

PARTS = ("speed", "costs", "overload", "memory")
RUNTIME = """
import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Student(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, request):
        x = NumpyCodec.decode_input(request.inputs[0]).astype(np.float32)
        (logits,) = self.session.run(["logits"], {"x": x})
        grown = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = grown / grown.sum(axis=1, keepdims=True)
        output = NumpyCodec.encode_output("probabilities", probabilities)
        return InferenceResponse(model_name=self.name, outputs=[output])
"""


class Server:
    """A server in a process of its own."""

    def __init__(self, name: str, command: list[str], port: int, **options: object) -> None:
        self.name = name
        self.port = port
        cores, _ = split_cores()
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            **options,  # type: ignore[call-overload]
        )

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def ours(bundle: Path) -> Iterator[Server]:
    port = free_port()
    start = "from limbeck.cli import main; main()"
    command = [sys.executable, "-c", start, "serve", f"model={bundle}", "--port", str(port)]
    server = Server("limbeck", command, port, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        wait_for(port)
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def mlserver(bundle: Path, python: Path) -> Iterator[Server]:
    port, grpc, metrics = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "student_runtime.py").write_text(RUNTIME)
        model = {
            "name": "model",
            "implementation": "student_runtime.Student",
            "parameters": {"uri": str((bundle / "model.onnx").resolve())},
        }
        (folder / "model-settings.json").write_text(json.dumps(model))
        settings = {
            "host": "127.0.0.1",
            "http_port": port,
            "grpc_port": grpc,
            "metrics_port": metrics,
            "parallel_workers": 0,
            "debug": False,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        command = [str(python.parent / "mlserver"), "start", str(folder)]
        paths = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        paths["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        server = Server("mlserver", command, port, env=os.environ | paths, cwd=folder)
        try:
            wait_for(port)
            yield server
        finally:
            server.stop()


def show_speed(
    servers: list[Server],
    width: int,
    batches: list[int],
    connections: list[int],
    seconds: float,
    left: Callable[[], float],
) -> None:
    _, cores = split_cores()
    print("| server | tensors | batch | connections | requests/s | CPU µs | p50 ms | p99 | p99.9 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for binary in (False, True):
        for batch in batches:
            ask = ask_for("model", width, batch, binary=binary)
            for count in connections:
                for server in servers:
                    kind = "binary" if binary else "JSON"
                    row = f"| {server.name} | {kind} | {batch} | {count} |"
                    if left() < 2 * seconds:
                        print(f"{row} no time left |")
                        continue
                    if binary and server.name == "mlserver":
                        print(f"{row} reads no binary tensors over HTTP | | | | |", flush=True)
                        continue
                    wrk(server.port, ask, count, 1, cores)
                    before = cpu_seconds(server.pid)
                    found = wrk(server.port, ask, count, seconds, cores)
                    cost = 1e6 * (cpu_seconds(server.pid) - before) / max(found.requests, 1)
                    failed = f" ({found.failed} failed)" if found.failed else ""
                    print(
                        f"{row} {found.requests / found.seconds:,.0f}{failed} | {cost:.0f} "
                        f"| {found.p50:.3f} | {found.p99:.3f} | {found.p999:.3f} |",
                        flush=True,
                    )


class Wire(asyncio.Transport):
    """A connection without a socket, which tells when an answer has been written."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = asyncio.Event()

    def write(self, data: Any) -> None:
        if data.endswith(b"}") or len(data) < 2:  # uvicorn writes head and body apart
            self.answered.set()

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...


def show_costs(bundle: Path) -> None:
    print("| JSON, batch 1 | CPU µs |")
    print("|---|---|")
    uvloop.run(whole_requests(bundle))
    student = limbeck.load(bundle)
    ask = ask_for("model", student.width, 1, binary=False)
    asked = open_inference.read_request(ask.body, None, 1)
    logits = student.predict_logits(x=asked.question.x)
    steps: dict[str, Callable[[], object]] = {
        "parsed": lambda: open_inference.read_request(ask.body, None, 1),
        "answered by the student": lambda: student.predict_logits(x=asked.question.x),
        "written": lambda: open_inference.write_answer(
            asked, logits, student.manifest, "model", "1"
        ),
    }
    for name, step in steps.items():
        took = min(timeit.repeat(step, timer=time.thread_time, number=500, repeat=20)) / 500
        print(f"| of it: {name} | {1e6 * took:.1f} |")


def at_once(_: object, body: bytes, header_length: str | None, tell: Callable[[Any], None]) -> None:
    """An answer for which nothing is done, in the place of the server's ``start_infer``."""
    tell((b"{}", {}))


async def whole_requests(bundle: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        gate = create_app(Settings({"model": str(bundle)}, f"{folder}/plan.json"))
        gate.models.load()
        request = ask_for("model", limbeck.load(bundle).width, 1, binary=False).as_http()
        config = Config(gate, proxy_headers=False, log_level="warning", access_log=False)
        config.load()
        ways = (
            ("a request by uvicorn and Starlette", HttpToolsProtocol, gate.start_infer),
            ("a request by the quick way", InferProtocol, gate.start_infer),
            ("of it: HTTP, the gate, counted", InferProtocol, at_once),
        )
        for name, way, start_infer in ways:
            gate.start_infer = start_infer
            state = ServerState()
            state.default_headers = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")]
            protocol, wire = way(config, state, {}), Wire()
            protocol.connection_made(wire)
            times = []
            for _ in range(20):
                start = time.thread_time()
                for _ in range(200):
                    wire.answered.clear()
                    protocol.data_received(request)
                    await wire.answered.wait()
                times.append((time.thread_time() - start) / 200)
            print(f"| {name} | {1e6 * min(times):.1f} |")


def show_overload(server: Server, width: int, seconds: float) -> None:
    server_cores, cores = split_cores()
    os.sched_setaffinity(0, cores)
    ask = ask_for("model", width, 100, binary=True)
    found = wrk(server.port, ask, 16, 5, cores)
    capacity = found.requests / found.seconds
    print(f"Capacity with batches of 100, 16 connections: {capacity:,.0f} requests/s.\n")
    print("| offered/s | for s | answered/s | turned away/s | failed | p50 ms | p99 ms | MB |")
    print("|---|---|---|---|---|---|---|---|")
    for times, duration in ((0.5, 5.0), (2.0, seconds), (0.5, 10.0)):
        offered = arrivals(server.port, ask, times * capacity, duration, connections=600)
        total = max(float(offered.due.max()), duration)
        done = offered.status == 200
        shed = np.isin(offered.status, (429, 503))
        p50, p99 = 1000 * np.percentile(offered.seconds[done], [50, 99])
        print(
            f"| {times * capacity:,.0f} ({times:g}×) | {duration:g} | {done.sum() / total:,.0f} "
            f"| {shed.sum() / total:,.0f} | {(~done & ~shed).sum()} | {p50:.1f} | {p99:.1f} "
            f"| {resident_mb(server.pid):.0f} |",
            flush=True,
        )
    os.sched_setaffinity(0, server_cores | cores)


def show_memory(server: Server, ask: Ask, requests: int, left: Callable[[], float]) -> None:
    _, cores = split_cores()
    print("| requests | MB |")
    print("|---|---|")
    total, shown = 0, 0
    while total < requests and left() > 10:
        total += wrk(server.port, ask, 16, 5, cores).requests
        if total - shown >= requests / 10 or not shown:
            print(f"| {total:,} | {resident_mb(server.pid):.1f} |", flush=True)
            shown = total
    if total < requests:
        print(f"| no time left after {total:,} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--mlserver", type=Path, help="the Python of mlserver's environment")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=15.0)
    arguments = parser.parse_args()
    until = time.perf_counter() + 60 * arguments.minutes

    def left() -> float:
        return until - time.perf_counter()

    width = limbeck.load(arguments.bundle).width
    print(f"{arguments.bundle.name}, {width} features; {platform.processor() or 'CPU'}, ", end="")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ours(arguments.bundle))
        if "speed" in arguments.parts:
            servers = [server]
            with contextlib.ExitStack() as others:
                if arguments.mlserver is not None:
                    other = mlserver(arguments.bundle, arguments.mlserver)
                    servers.append(others.enter_context(other))
                print("\n## Speed\n")
                show_speed(
                    servers,
                    width,
                    arguments.batches,
                    arguments.connections,
                    arguments.seconds,
                    left,
                )
        if "costs" in arguments.parts:
            print("\n## Costs\n")
            show_costs(arguments.bundle)
        if "overload" in arguments.parts:
            print("\n## Overload\n")
            if left() > arguments.overload_seconds + 30:
                show_overload(server, width, arguments.overload_seconds)
            else:
                print("no time left")
        if "memory" in arguments.parts:
            print("\n## Memory\n")
            ask = ask_for("model", width, 1, binary=False)
            show_memory(server, ask, arguments.requests, left)


if __name__ == "__main__":
    main()
