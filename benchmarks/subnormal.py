"""Training and answering with subnormal numbers as zeros, beside training and answering with them.

    python benchmarks/subnormal.py --out benchmarks/results/subnormal.md

Each figure is of a process of its own with one thread, the two ways in turn: CPU time of the
student's training, and the median latency of its bundle. Figures of the student must agree. "With
them" is Limbeck with both of its switches taken out, which no option does.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from kept_memory import in_child

import limbeck
from limbeck.export import bundle, graph, onnx
from limbeck.runtime import load_bundle, measure_latency

CASES = (
    ("cpf-cora", "glnn"),
    ("cpf-pubmed", "glnn"),
    ("a-photo", "glnn"),
    ("a-computer", "glnn"),
    ("a-computer", "nosmog"),
    ("a-computer", "moe"),
)
SHOWN = ("val_accuracy", "test_accuracy", "brier")
BATCHES = (1, 256)
TURNS = 3


def keep_subnormals() -> None:
    """Take out what makes them zeros."""

    def as_it_is(given: Any) -> Any:
        return given

    torch.set_flush_denormal = as_it_is
    for module in (graph, bundle, onnx):
        vars(module)["without_subnormals"] = as_it_is


def train(name: str, method: str, keep: bool) -> dict[str, Any]:
    """One training and its bundle in this process."""
    torch.set_num_threads(1)
    view = limbeck.view(limbeck.load_graph(name), "transductive", 0)
    teacher = limbeck.fit_teacher(view, "sage", 0)
    if keep:
        keep_subnormals()
    started = time.process_time()
    run = limbeck.distill(view, teacher, method, 0)
    seconds = time.process_time() - started
    weights = torch.cat([part.detach().flatten() for part in run.student.parameters()])
    small = (weights != 0) & (weights.abs() < torch.finfo(torch.float32).smallest_normal)
    with tempfile.TemporaryDirectory() as folder:
        written = run.save(Path(folder) / "student")
        latency = measure_latency(load_bundle(written), BATCHES, seconds=2.0)["x"]
    return {
        "seconds": seconds,
        "share": float(small.float().mean()),
        "microseconds": [latency[str(size)]["p50_us"] for size in BATCHES],
        "figures": [run.scores["student"][figure] for figure in SHOWN],
    }


def row(name: str, method: str) -> str:
    """Medians of both ways, as a line of the table."""
    turns = [
        [in_child(__file__, name, method, keep) for keep in (True, False)] for _ in range(TURNS)
    ]
    (figures,) = {tuple(way["figures"]) for turn in turns for way in turn}
    ratio = statistics.median(zeros["seconds"] / kept["seconds"] for kept, zeros in turns)
    cells = [name, method]
    cells += [f"{statistics.median(turn[way]['seconds'] for turn in turns):.1f}" for way in (0, 1)]
    cells += [f"{ratio:.2f}", f"{100 * turns[0][0]['share']:.2f}"]
    for place in range(len(BATCHES)):
        for way in (0, 1):
            median = statistics.median(turn[way]["microseconds"][place] for turn in turns)
            cells.append(f"{median:.1f}" if median < 100 else f"{median:,.0f}")
    cells += [f"{100 * figure:.2f}" for figure in figures[:2]]
    line = "| " + " | ".join(cells) + " |"
    print(line, file=sys.stderr, flush=True)
    return line


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file to write instead of printing")
    parser.add_argument("--train", nargs=2, metavar=("GRAPH", "METHOD"), help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(json.dumps(train(*options.train, keep=options.keep)))
        return
    lines = [
        "| graph | method | CPU s of training | zeros | ratio | % of weights "
        "| µs for 1 node | zeros | µs for 256 | zeros | val % | test % |",
        "|---" * 12 + "|",
    ]
    lines += [row(*case) for case in CASES]
    text = (
        "# Subnormal numbers as zeros\n\n"
        "Transductive, each method at its preset, SAGE as teacher, one thread, median of "
        f"{TURNS} turns. *% of weights*: how many are subnormal when training keeps them. Accuracy "
        "on validation and test nodes and Brier's score are the same to the last digit both "
        "ways.\n\n"
        + "\n".join(lines)
        + f"\n\nPython {platform.python_version()}, torch {torch.__version__}, "
        f"{platform.machine()}, Limbeck {limbeck.__version__}.\n\n"
        "    python benchmarks/subnormal.py --out benchmarks/results/subnormal.md\n"
    )
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
