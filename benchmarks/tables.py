"""How long a user's tables take to become a graph, and in how much memory.

    python benchmarks/tables.py

makes tables from a seed in a temporary folder, reads each pair in a process of its own, and
writes ``benchmarks/results/tables.md``. Seconds are those of ``read_tables`` alone; the memory is
the peak of the whole process, imports included (also given, as they are half of it).
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

Writer = Callable[[pa.Table, Path], None]


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


def measure_in_child(nodes: Path, edges: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(nodes), str(edges)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def report(rows: list[str], num_nodes: int, num_edges: int) -> str:
    import torch
    import torch_geometric

    versions = {
        "Python": platform.python_version(),
        "pyarrow": pa.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
        "PyG": torch_geometric.__version__,
    }
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
        f"`{command}`, seed {SEED}, {os.cpu_count()} cores, {platform.machine()}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--edges", type=int, default=5_000_000)
    parser.add_argument("--measure", nargs=2, type=Path, metavar=("NODES", "EDGES"))
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    writers: dict[str, Writer] = {
        "parquet": pyarrow.parquet.write_table,
        "csv": pyarrow.csv.write_csv,
    }
    rows = []
    for text_ids in (False, True):
        nodes, edges = make_tables(options.nodes, options.edges, text_ids=text_ids)
        for extension, write in writers.items():
            with tempfile.TemporaryDirectory() as folder:
                paths = [Path(folder, f"{stem}.{extension}") for stem in ("nodes", "edges")]
                write(nodes, paths[0])
                write(edges, paths[1])
                result = measure_in_child(*paths)
            rows.append(
                f"| {extension} | {'text' if text_ids else 'int64'} | {len(nodes):,} | "
                f"{len(edges):,} | {result['stored_edges']:,} | {result['seconds']:.1f} | "
                f"{result['peak_mb']:,.0f} ({result['imports_mb']:,.0f}) |"
            )
            print(rows[-1], flush=True)
    text = report(rows, options.nodes, options.edges)
    RESULT.parent.mkdir(exist_ok=True)
    aside = RESULT.with_suffix(".partial")
    aside.write_text(text)
    aside.replace(RESULT)


if __name__ == "__main__":
    main()
