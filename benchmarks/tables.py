"""How long a user's tables take to become a graph, and in how much memory.

    python benchmarks/tables.py

makes tables from a seed in a temporary folder, reads each pair in a process of its own, and
writes ``benchmarks/results/tables.md``. Seconds are those of ``read_tables`` alone; the memory is
the peak of the whole process, imports included.

Making the tables has a process of its own too: on Linux a child's ``ru_maxrss`` starts at the
memory of the process that started it, so that one must stay small.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

RESULT = Path(__file__).parent / "results" / "tables.md"
NUM_NUMERIC = 16
SEED = 0

STEMS = ("nodes", "edges")
WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "parquet": pyarrow.parquet.write_table,
    "csv": pyarrow.csv.write_csv,
}


def make_tables(num_nodes: int, num_edges: int, *, text_ids: bool) -> tuple[pa.Table, pa.Table]:
    """Draw a nodes table (16 numbers, a category, a label, a split) and an edges table."""
    rng = np.random.default_rng(SEED)
    ids = pa.array(rng.permutation(4 * num_nodes)[:num_nodes])
    if text_ids:
        ids = pc.binary_join_element_wise("package-", ids.cast(pa.string()), "")
    columns: dict[str, Any] = {
        "id": ids,
        "label": _draw_words(rng, [f"section {c}" for c in range(40)], num_nodes),
        "split": _draw_words(rng, ["train", "val", "test"], num_nodes),
        "licence": _draw_words(rng, [f"licence {c}" for c in range(12)], num_nodes),
    }
    for column in range(NUM_NUMERIC):
        columns[f"number_{column}"] = rng.normal(size=num_nodes)
    source, target = (ids.take(pa.array(rng.integers(0, num_nodes, num_edges))) for _ in range(2))
    return pa.table(columns), pa.table({"source": source, "target": target})


def _draw_words(rng: np.random.Generator, words: list[str], size: int) -> pa.Array:
    return pa.array(words).take(pa.array(rng.integers(0, len(words), size)))


def measure(nodes: Path, edges: Path) -> dict[str, float]:
    """Read one graph; to be called in a process of its own."""
    from limbeck.graphs.tables import read_tables

    imports_mb = _peak_mb()
    start = time.perf_counter()
    graph = read_tables(nodes, edges, categorical=["licence"])
    seconds = time.perf_counter() - start
    return {
        "stored_edges": graph.num_edges,
        "seconds": seconds,
        "imports_mb": imports_mb,
        "peak_mb": _peak_mb(),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_child(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def report(rows: list[str], num_nodes: int, num_edges: int, load: float) -> str:
    packages = ("pyarrow", "numpy", "torch", "torch-geometric")
    versions = {"Python": platform.python_version(), **{name: version(name) for name in packages}}
    command = f"python benchmarks/tables.py --nodes {num_nodes} --edges {num_edges}"
    lines = [
        "# Reading tables",
        "",
        f"Nodes tables with {NUM_NUMERIC} numbers, a category of 12, a label of 40 classes and a "
        "split; edges are stored in both directions. Peak memory is that of the whole process; "
        "importing alone takes the share in brackets.",
        "",
        "| format | ids | nodes | edge rows | stored edges | seconds | peak MB (imports) |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"`{command}`, seed {SEED}, {os.cpu_count()} cores, {platform.machine()}, "
        f"load of the machine at the start {load:.1f}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def write_tables(folder: Path, extension: str, sizes: tuple[int, int], *, text_ids: bool) -> None:
    """Make and write one pair; to be called in a process of its own."""
    for stem, table in zip(STEMS, make_tables(*sizes, text_ids=text_ids), strict=True):
        WRITERS[extension](table, folder / f"{stem}.{extension}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure limbeck.graphs.tables.read_tables.")
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--edges", type=int, default=5_000_000)
    parser.add_argument("--write", nargs=3, metavar=("FOLDER", "EXTENSION", "IDS"))
    parser.add_argument("--measure", nargs=2, type=Path, metavar=("NODES", "EDGES"))
    options = parser.parse_args()
    sizes = (options.nodes, options.edges)
    if options.write:
        folder, extension, id_type = options.write
        write_tables(Path(folder), extension, sizes, text_ids=id_type == "text")
        return
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    load = os.getloadavg()[0]  # seconds mean little where others compute at the same time
    rows = []
    for id_type in ("int64", "text"):
        for extension in WRITERS:
            rows.append(measure_pair(extension, id_type, sizes))
            print(rows[-1], flush=True)
    text = report(rows, *sizes, load)
    RESULT.parent.mkdir(exist_ok=True)
    aside = RESULT.with_suffix(".partial")
    aside.write_text(text)
    aside.replace(RESULT)


def measure_pair(extension: str, id_type: str, sizes: tuple[int, int]) -> str:
    """Make one pair of tables, read it, and give the line of the report."""
    num_nodes, num_edges = sizes
    with tempfile.TemporaryDirectory() as folder:
        made = ("--nodes", str(num_nodes), "--edges", str(num_edges))
        in_child(*made, "--write", folder, extension, id_type)
        paths = [str(Path(folder, f"{stem}.{extension}")) for stem in STEMS]
        result = json.loads(in_child("--measure", *paths))
    return (
        f"| {extension} | {id_type} | {num_nodes:,} | {num_edges:,} | "
        f"{result['stored_edges']:,} | {result['seconds']:.1f} | "
        f"{result['peak_mb']:,.0f} ({result['imports_mb']:,.0f}) |"
    )


if __name__ == "__main__":
    main()
