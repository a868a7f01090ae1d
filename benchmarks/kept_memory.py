"""Training with the memory of each step kept for the next, beside training without.

    python benchmarks/kept_memory.py --out benchmarks/results/kept_memory.md

Each figure is of a process of its own with one thread, the two ways in turn: CPU time of the
training in the system and in all, and the peak of the whole process. Accuracies must agree.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import limbeck
from limbeck.evaluation.memory import keep_freed_memory, peak_memory_mb

GRAPHS = ("cpf-cora", "cpf-pubmed")
METHODS = ("glnn", "ff-g2m", "sa-mlp", "fmlp-o")
EPOCHS = 20
TURNS = 3


def train(graph: str, method: str, keep: bool) -> dict[str, float]:
    """CPU seconds and memory of one short training in this process."""
    if keep:
        keep_freed_memory()
    torch.set_num_threads(1)
    view = limbeck.view(limbeck.load_graph(graph), "transductive", 0)
    teacher = limbeck.fit_teacher(view, "sage", 0, max_epochs=2)
    before = resource.getrusage(resource.RUSAGE_SELF)
    run = limbeck.distill(view, teacher, method, 0, max_epochs=EPOCHS)
    after = resource.getrusage(resource.RUSAGE_SELF)
    system = after.ru_stime - before.ru_stime
    return {
        "system": system,
        "all": system + after.ru_utime - before.ru_utime,
        "peak": peak_memory_mb(),
        "accuracy": run.scores["student"]["test_accuracy"],
    }


def in_child(script: str, graph: str, method: str, keep: bool) -> dict[str, Any]:
    """What ``train`` of a script finds in a process of its own."""
    command = [sys.executable, script, "--train", graph, method, *(["--keep"] if keep else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(graph: str, method: str) -> str:
    """Medians of both ways, as a line of the table."""
    turns = [
        [in_child(__file__, graph, method, keep) for keep in (False, True)] for _ in range(TURNS)
    ]
    (accuracy,) = {figures["accuracy"] for turn in turns for figures in turn}
    before, after = (
        {name: statistics.median(turn[way][name] for turn in turns) for name in turns[0][way]}
        for way in (0, 1)
    )
    ratio = statistics.median(turn[1]["all"] / turn[0]["all"] for turn in turns)
    cells: list[Any] = [graph, method, f"{before['all']:.1f} ({before['system']:.1f})"]
    cells += [f"{after['all']:.1f} ({after['system']:.1f})", f"{ratio:.2f}"]
    cells += [f"{before['peak']:,.0f}", f"{after['peak']:,.0f}", f"{100 * accuracy:.2f}"]
    return "| " + " | ".join(cells) + " |"


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
        "| graph | method | CPU s (in the system) | kept | ratio | peak MB | kept | accuracy |",
        "|---" * 8 + "|",
    ]
    lines += [row(graph, method) for graph in GRAPHS for method in METHODS]
    text = (
        "# Memory kept from step to step\n\n"
        f"Transductive, {EPOCHS} epochs of each method at its preset, one thread, median of "
        f"{TURNS} turns; both ways gave the same accuracy, after so few epochs a low one.\n\n"
        + "\n".join(lines)
        + f"\n\nPython {platform.python_version()}, torch {torch.__version__}, "
        f"{' '.join(platform.libc_ver())}, Limbeck {limbeck.__version__}.\n\n"
        "    python benchmarks/kept_memory.py --out benchmarks/results/kept_memory.md\n"
    )
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
