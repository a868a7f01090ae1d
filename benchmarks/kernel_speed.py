"""What the compiled kernels of the runtime cost, beside what else could compute the same.

    python benchmarks/kernel_speed.py

Two students with random weights: 1433-64-7 on rows as sparse as cpf-cora's, 18 words each, and
100-256-256-47 on dense rows. *Public call* is ``predict_proba`` of a loaded bundle, with checks.
All that stands in one table is asked in turns, in one process and on one thread. *CPU* is that
thread's time, the mean over a turn of calls and the quickest turn of all: close to the latency of a
process that has a core and its caches for itself, also where the machine is shared with others. p50
and p99 are by the clock, over all turns, and so hold what others did to the machine.
"""

from __future__ import annotations

import argparse
import logging
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import torch
from untrained import stored_request, untrained_bundle

import limbeck
from limbeck.graphs.sparse import to_csr
from limbeck.runtime import BundledStudent, predictor
from limbeck.runtime.kernel import softmax
from limbeck.students import MLP, NodeInputs

NODES = 2000
WORDS = 18
TURNS = 10
TURN_SECONDS = 0.02
IMPORTS = 3

Call = Callable[[], Any]


def bundle(
    folder: Path, name: str, x: torch.Tensor, sizes: tuple[int, ...], **options: Any
) -> Path:
    """A student with random weights."""
    torch.manual_seed(0)
    width, hidden, num_classes, num_layers = sizes
    student = MLP(width, hidden, num_classes, num_layers)
    return untrained_bundle(folder / name, student, NodeInputs(x), num_classes, **options)


def words() -> torch.Tensor:
    """Binary features, ``WORDS`` in each node."""
    columns = torch.rand(NODES, 1433).topk(WORDS).indices
    return to_csr(torch.zeros(NODES, 1433).scatter_(1, columns, 1))


def without_kernels(path: Path) -> BundledStudent:
    """The same student as an installation without a compiler answers."""
    with mock.patch.object(predictor, "HAS_KERNELS", False):
        student = limbeck.load(path)
        _ = student.kernel
    return student


def by_numpy(layers: list[tuple[np.ndarray, np.ndarray]], request: tuple[Any, ...]) -> np.ndarray:
    """Sparse rows without compiled code, without checks."""
    indptr, indices, values = request
    (weight, bias), *others = layers
    rows = weight[indices] * values[:, None]
    h = (
        rows.sum(0, keepdims=True) if len(indptr) == 2 else np.add.reduceat(rows, indptr[:-1])
    ) + bias
    for weight, bias in others:
        h = np.maximum(h, 0) @ weight + bias
    return softmax(h, 1.0)


def numba_kernel(layers: list[tuple[np.ndarray, np.ndarray]]) -> Callable[..., np.ndarray] | None:
    """The same loops compiled by numba, without checks; ``None`` where it is not installed."""
    try:
        import numba
    except ModuleNotFoundError:
        return None
    (w1, b1), (w2, b2) = layers

    @numba.njit(fastmath=True)  # type: ignore[untyped-decorator]
    def answer(indptr: Any, indices: Any, values: Any) -> Any:
        probs = np.empty((len(indptr) - 1, b2.shape[0]), dtype=np.float32)
        h = np.empty_like(b1)
        for i in range(len(probs)):
            h[:] = b1
            for k in range(indptr[i], indptr[i + 1]):
                for j in range(len(h)):
                    h[j] += values[k] * w1[indices[k], j]
            out = probs[i]
            out[:] = b2
            for j in range(len(h)):
                if h[j] > 0:
                    for c in range(len(out)):
                        out[c] += h[j] * w2[j, c]
            most = out.max()
            for c in range(len(out)):
                out[c] = np.exp(out[c] - most)
            out /= out.sum()
        return probs

    compiled: Callable[..., np.ndarray] = answer
    return compiled


def measure(calls: dict[str, Call], nodes: int, title: str) -> list[str]:
    """A table: each call a turn, then the next, again and again."""
    cpu = dict.fromkeys(calls, math.inf)
    clock: dict[str, list[int]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(TURNS):
        for name, call in calls.items():
            count = 0
            end = time.perf_counter() + TURN_SECONDS
            start = time.thread_time_ns()
            while count < 3 or time.perf_counter() < end:
                for _ in range(20 if nodes == 1 else 1):
                    call()
                    count += 1
            cpu[name] = min(cpu[name], (time.thread_time_ns() - start) / count / 1000)
            for _ in range(200 if nodes == 1 else 20):
                begin = time.perf_counter_ns()
                call()
                clock[name].append(time.perf_counter_ns() - begin)
    lines = [f"| {title} | CPU, us | CPU, us a node | p50, us | p99, us |", "|---|---|---|---|---|"]
    for name in calls:
        p50, p99 = np.percentile(clock[name], [50, 99]) / 1000
        lines.append(
            f"| {name} | {cpu[name]:.2f} | {cpu[name] / nodes:.3f} | {p50:.1f} | {p99:.1f} |"
        )
    print("\n".join(["", *lines]), flush=True)
    return ["", *lines]


def import_seconds(code: str) -> float:
    """The quickest of a few fresh processes that run ``code`` and print how long it took."""
    program = f"import time; s = time.perf_counter()\n{code}\nprint(time.perf_counter() - s)"
    run = partial(subprocess.run, [sys.executable, "-c", program], capture_output=True, check=True)
    return min(float(run(text=True).stdout) for _ in range(IMPORTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="also write the tables there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("limbeck").setLevel(logging.ERROR)  # kernels are left out on purpose
    torch.manual_seed(0)
    tables: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sparse = bundle(folder, "sparse", words(), (1433, 64, 7, 2))
        x = torch.randn(NODES, 100)
        dense = bundle(folder, "dense", x, (100, 256, 47, 3))
        small = bundle(folder, "int8", x, (100, 256, 47, 3), quantize="int8")
        ours, general = limbeck.load(sparse), without_kernels(sparse)
        widths = range(2)
        layers = [
            (
                np.load(sparse / f"store/folded_weight_{i}.npy"),
                np.load(sparse / f"store/folded_bias_{i}.npy"),
            )
            for i in widths
        ]
        by_numba = numba_kernel(layers)
        for size in (1, 256):
            request = stored_request(ours, np.arange(size))
            calls: dict[str, Call] = {
                "public call": partial(ours.predict_proba, x=request),
                "public call, without values": partial(ours.predict_proba, x=request[:2]),
                "kernel alone, to logits": partial(ours.kernel.answer, request),
                "public call, ONNX Runtime": partial(general.predict_proba, x=request),
                "NumPy alone, unchecked": partial(by_numpy, layers, request),
            }
            if by_numba is not None:
                calls["numba alone, unchecked"] = partial(by_numba, *request)
            tables += measure(calls, size, f"1433-64-7, {WORDS} words a node, batch {size}")
        ours, general, rounded = limbeck.load(dense), without_kernels(dense), limbeck.load(small)
        for size in (1, 16, 256):
            rows = x[:size].numpy()
            tables += measure(
                {
                    "public call": partial(ours.predict_proba, x=rows),
                    "kernel alone, to logits": partial(ours.kernel.answer, rows),
                    "public call, ONNX Runtime": partial(general.predict_proba, x=rows),
                    "ONNX Runtime alone, to logits": partial(general.kernel, rows),
                    "public call, int8": partial(rounded.predict_proba, x=rows),
                },
                size,
                f"100-256-256-47, dense, batch {size}",
            )
        for size in (1, 256):
            ids = list(range(size))
            tables += measure(
                {
                    "public call, a list of ids": partial(ours.predict_proba, ids),
                    "public call, an array of ids": partial(ours.predict_proba, np.array(ids)),
                },
                size,
                f"known nodes, 47 classes, batch {size}",
            )
        ask = f"student = limbeck.load({str(sparse)!r})\nstudent.predict(x=[[0] * 1433])"
        starts = {
            "import, load, first answer": f"import limbeck\n{ask}",
            "the same through ONNX Runtime": (
                "import limbeck, logging\nlogging.disable()\nfrom limbeck.runtime import predictor"
                f"\npredictor.HAS_KERNELS = False\n{ask}"
            ),
            "`import numba`, after NumPy": "import numpy\ns = time.perf_counter()\nimport numba",
        }
        starts = starts if by_numba is not None else dict(list(starts.items())[:2])
        lines = ["", "| start | ms |", "|---|---|"]
        lines += [
            f"| {name} | {1000 * import_seconds(code):.0f} |" for name, code in starts.items()
        ]
        print("\n".join(lines), flush=True)
        tables += lines
    versions = (
        f"`python benchmarks/kernel_speed.py`, Python {platform.python_version()}, NumPy "
        f"{np.__version__}, ONNX Runtime {onnxruntime.__version__}, {platform.machine()}."
    )
    text = "\n".join(
        [
            "# The compiled kernels",
            "",
            "One thread. *CPU* is its time a call, the quickest of 10 turns; p50 and p99 are by "
            "the clock, on a machine that others used, too.",
            *tables,
            "",
            versions,
        ]
    )
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
