"""Time of a training epoch and peak memory: the plain student, G-CRD, and ABKD's presets.

    python benchmarks/abkd_overhead.py [GRAPH]

A GCNII of 64 layers and 64 channels teaches one of 4 layers and 16 channels on all observed nodes
of Cora (or of GRAPH). Time does not depend on weights, so the teacher is not trained. For the time
all methods take turns in one process with one thread, ROUNDS times EPOCHS epochs each, validation
included; the figure is the median round. For the memory each has a process of its own, and the
figure is the peak beyond what the process held before its first epoch. What is left of training is
the student: its parameters, the bytes of its bundle's model and the latency of a new node with a
neighbour are measured of what is exported after EPOCHS epochs; for the latency the bundles take
turns, too, and the figure is the median of the quickest round. The table is written to
benchmarks/results/abkd_overhead.md.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

import limbeck
from limbeck.evaluation.memory import peak_memory_mb, reset_peak_memory
from limbeck.methods import make_method
from limbeck.methods.layers import LayerMethod
from limbeck.runtime.bundle import MODEL
from limbeck.runtime.latency import measure_latency
from limbeck.teachers.gcnii import GCNII
from limbeck.teachers.knowledge import Answers, FittedTeacher, Knowledge, ask
from limbeck.training.loop import seeded

RESULT = Path(__file__).parent / "results" / "abkd_overhead.md"
METHODS = (
    *("plain", "kd", "fitnet", "at", "gsp", "g-crd"),
    *("abkd:abkd-v1", "abkd:abkd-robust", "abkd:e-stride", "abkd:stride"),
)
ROUNDS, EPOCHS = 9, 3
SIZE = {"student": "gcnii", "num_layers": 4, "hidden_channels": 16, "dropout": 0.6}


def main() -> None:
    graph = sys.argv[1] if len(sys.argv) > 1 else "cora"
    torch.set_num_threads(1)
    view, knowledge = prepare(graph)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(ROUNDS):
        for name in METHODS:
            seconds[name].append(epoch_seconds(name, view, knowledge))
    times = {name: statistics.median(found) for name, found in seconds.items()}
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        found = list(pool.map(peak_and_size, METHODS, [graph] * len(METHODS)))
    lines = [
        f"{graph}, GCNII 64 layers of 64 to 4 layers of 16, scope of all observed nodes:",
        "",
        "| method | trained beside | s / epoch | of plain | of G-CRD | peak, MB "
        "| student's weights | model, bytes | latency, µs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    students = exported(view, knowledge)
    for name, (peak, beside) in zip(METHODS, found, strict=True):
        weights, size, latency = students[name]
        lines.append(
            f"| {name} | {beside:,} | {times[name]:.3f} | {times[name] / times['plain']:.1f} "
            f"| {times[name] / times['g-crd']:.2f} | {peak:,.0f} "
            f"| {weights:,} | {size:,} | {latency:.0f} |"
        )
    print("\n".join(lines))
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def prepare(graph: str) -> tuple[limbeck.View, Knowledge]:
    view = limbeck.view(limbeck.load_graph(graph), "transductive", 0)
    with seeded(0):
        teacher = GCNII(view.num_features, 64, view.num_classes, 64)
    return view, ask(teacher, view, "gcnii", 64)[0]


def epoch_seconds(name: str, view: limbeck.View, knowledge: Knowledge) -> float:
    method = make_method(name, "", **SIZE, max_epochs=EPOCHS, patience=EPOCHS)
    with seeded(0):
        history = method.distill(view, knowledge).history
    return history.seconds / len(history.val_score)


def exported(view: limbeck.View, knowledge: Knowledge) -> dict[str, tuple[int, int, float]]:
    """Weights of each student, bytes of its exported model, and latency of one node in us."""
    teacher = FittedTeacher("gcnii", knowledge, Answers(knowledge.logits))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        bundles, predictors = {}, {}
        for place, name in enumerate(METHODS):
            method = make_method(name, "", **SIZE, max_epochs=EPOCHS, patience=EPOCHS)
            run = limbeck.distill(view, teacher, method)
            bundles[name] = run.save(Path(folder) / str(place))
            predictors[name] = limbeck.load(bundles[name])
            found[name] = sum(p.numel() for p in run.student.parameters())
        rounds = [
            {
                name: measure_latency(predictor, (1,), seconds=0.5)["x"]["1"]["p50_us"]
                for name, predictor in predictors.items()
            }
            for _ in range(ROUNDS)
        ]
        return {
            name: (
                found[name],
                (bundles[name] / MODEL).stat().st_size,
                min(each[name] for each in rounds),
            )
            for name in METHODS
        }


def peak_and_size(name: str, graph: str) -> tuple[float, int]:
    """Peak memory of two epochs in MB, and parameters that are trained and thrown away."""
    torch.set_num_threads(1)
    view, knowledge = prepare(graph)
    reset_peak_memory()
    before = peak_memory_mb()
    epoch_seconds(name, view, knowledge)
    peak = peak_memory_mb() - before
    method = make_method(name, "", **SIZE)
    if not isinstance(method, LayerMethod):
        return peak, 0
    student, inputs = method.build(view)
    layers = method.teacher_layers(knowledge)
    auxiliary = method.auxiliary_beside(student, inputs.observed, layers)
    return peak, 0 if auxiliary is None else sum(p.numel() for p in auxiliary.parameters())


if __name__ == "__main__":
    main()
