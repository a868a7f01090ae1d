"""Rows a second and peak memory of bulk scoring, beside a bare ONNX Runtime loop, in one run.

    python benchmarks/score_speed.py --rows 5000000 --workers 2

A student of 100-256-256-47 with random weights answers rows of 100 float32 values, written as
fixed-size lists. The bare loop reads the same Parquet file with pyarrow, runs the same model on one
thread and writes class and probability; it checks nothing and cannot go on. Each runs in a process
of its own, in turn, and the best of --repeats counts; memory is that of the process and those it
starts, looked at fifty times a second, so pages that they share count more than once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.scoring import Columns, score_tables

WIDTH, HIDDEN, CLASSES = 100, 256, 47
BATCH = 16_384
ROW_GROUP = 131_072
WATCH_SECONDS = 0.02


def make_bundle(folder: Path) -> Path:
    # imported here: the processes that are measured import this file, and none of it
    import torch
    from untrained import untrained_bundle

    from limbeck.students import MLP, NodeInputs

    torch.manual_seed(0)
    student = MLP(WIDTH, HIDDEN, CLASSES, num_layers=3)
    inputs = NodeInputs(torch.randn(64, WIDTH))
    return untrained_bundle(folder / "student", student, inputs, CLASSES)


def make_rows(path: Path, rows: int) -> Path:
    rng = np.random.default_rng(0)
    types = {"id": pa.int64(), "x": pa.list_(pa.float32(), WIDTH)}
    schema = pa.schema(types.items())
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, rows, ROW_GROUP):
            count = min(ROW_GROUP, rows - first)
            x = rng.standard_normal(count * WIDTH, dtype=np.float32)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(x), WIDTH)
            ids = pa.array(np.arange(first, first + count))
            writer.write_table(pa.Table.from_arrays([ids, lists], schema=schema))
    return path


def bare(bundle: Path, table: Path, out: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), options)
    schema = pa.schema({"class": pa.int64(), "probability": pa.float32()}.items())
    with (
        pq.ParquetWriter(out, schema, compression="none", use_dictionary=False) as writer,
        pq.ParquetFile(table) as file,
    ):
        for batch in file.iter_batches(BATCH, columns=["x"]):
            x = batch.column(0).flatten().to_numpy().reshape(-1, WIDTH)
            logits = session.run(["logits"], {"x": x})[0]
            logits -= logits.max(axis=1, keepdims=True)
            total = np.exp(logits).sum(axis=1)
            answers = [pa.array(logits.argmax(axis=1)), pa.array(1 / total)]
            writer.write_batch(pa.RecordBatch.from_arrays(answers, schema=schema))


def scored(bundle: Path, table: Path, out: Path, workers: int) -> None:
    score_tables(bundle, [table], out, Columns(id=("id",)), workers=workers)


def measured(work: Callable[..., None], *arguments: Any) -> dict[str, float]:
    """Seconds of a process and its children, on the wall and of CPU, and their peak memory."""
    start, cpu = time.perf_counter(), cpu_of_children()
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    peak, watched = 0, psutil.Process(process.pid)
    while process.is_alive():
        peak = max(peak, memory_of(watched))
        process.join(WATCH_SECONDS)
    if process.exitcode:
        raise SystemExit(f"{work.__name__} ended with {process.exitcode}")
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_of_children() - cpu,
        "peak_mb": peak / 2**20,
    }


def cpu_of_children() -> float:
    """CPU seconds of all processes that have ended below this one."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def memory_of(process: psutil.Process) -> int:
    total = 0
    try:
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary one else")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        bundle, table = make_bundle(folder), make_rows(folder / "in.parquet", arguments.rows)
        runs: dict[str, tuple[Any, ...]] = {
            "bare ONNX Runtime loop": (bare,),
            "limbeck score": (scored, 1),
            f"limbeck score, {arguments.workers} workers": (scored, arguments.workers),
        }
        best: dict[str, dict[str, float]] = {}
        for _ in range(arguments.repeats):  # one after the other, so that noise falls on all alike
            for name, (work, *more) in runs.items():
                out = folder / "out.parquet"
                found = measured(work, bundle, table, out, *more)
                assert pq.read_metadata(out).num_rows == arguments.rows
                if name not in best or found["seconds"] < best[name]["seconds"]:
                    best[name] = found
    finally:
        shutil.rmtree(folder)
    reference = dict(best["bare ONNX Runtime loop"])
    for found in best.values():
        found["rows_per_second"] = arguments.rows / found["seconds"]
        found["rows_per_cpu_second"] = arguments.rows / found["cpu_seconds"]
        found["speed_of_bare"] = reference["seconds"] / found["seconds"]
        found["cpu_speed_of_bare"] = reference["cpu_seconds"] / found["cpu_seconds"]
    print(json.dumps({"rows": arguments.rows, "load": psutil.getloadavg()[0], **best}, indent=1))


if __name__ == "__main__":
    main()
