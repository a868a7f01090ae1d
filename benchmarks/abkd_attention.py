"""Where ABKD's attention goes, whether it is the same for every seed, and what it is good for.

    python benchmarks/abkd_attention.py --out runs/abkd_attention [--seeds 10]
    pip install matplotlib
    python benchmarks/abkd_attention.py --out runs/abkd_attention \\
        --picture docs/images/abkd_maps.svg

A GCNII of 64 layers and 64 channels teaches one of 4 layers and 8 channels on Cora. For each preset
the page has the attention's entropy at the first and the last epoch (1: uniform), the share of
teacher layers whose favourite student layer is the same in two seeds, and the rank correlation of
the last map with linear CKA between the layers that were left. Accuracy against `uniform`,
`diagonal` and `last-layer` is in the table of abkd_cora.yaml.

Then students as wide as their teacher, started from the teacher's layers (section 3.2.3 of the
papers): student layer j takes the weights of the teacher layer that attends to it most, of the last
ones, of any ones (drawn, a control), or is drawn at random; test accuracy before and after training
on labels. The attention
is that of `abkd-robust` with `axis=teacher`, in which each student layer has one unit to spend over
teacher layers: over a single student layer the papers' own softmax is constant. Each seed's figures
are kept under --out, so the command can be stopped and started again; seeds may be shared out among
processes (--first). The page is written to benchmarks/results/abkd_attention.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

import limbeck
from limbeck.evaluation.metrics import accuracy
from limbeck.files import appearing_whole
from limbeck.methods import make_method
from limbeck.methods.abkd import layer_sources, start_from_teacher
from limbeck.methods.layers import teacher_outputs
from limbeck.methods.plain import PlainStudent
from limbeck.teachers.knowledge import FittedTeacher
from limbeck.training.loop import seeded

RESULT = Path(__file__).parent / "results" / "abkd_attention.md"
GRAPH = "cora"
TEACHER = {"num_layers": 64, "hidden_channels": 64, "max_epochs": 120, "patience": 30}
SMALL = {"student": "gcnii", "num_layers": 4, "hidden_channels": 8, "dropout": 0.3}
EPOCHS = {"max_epochs": 200, "patience": 50}
PRESETS: dict[str, dict[str, Any]] = {
    "abkd-v1": {},
    "stride": {"max_nodes": 256, "max_samples": 256},
    "abkd-robust": {"max_nodes": 512},
}
WIDE = {"student": "gcnii", "hidden_channels": 64, "dropout": 0.6}
DEPTHS = (1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="where to draw the maps of the first seed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.first, arguments.seeds):
        file = arguments.out / f"{seed}.json"
        if not file.is_file():
            figures = measured(seed)
            with appearing_whole(file) as aside:
                aside.write_text(json.dumps(figures), encoding="utf-8")
        print(f"seed {seed} done", flush=True)
    found = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(arguments.out.glob("*.json"))
    ]
    lines = [
        "# ABKD's attention\n",
        f"Written by `benchmarks/abkd_attention.py`: {GRAPH}, {len(found)} seeds,",
        f"torch {torch.__version__}, {platform.machine()}.\n",
        *describe([each["maps"] for each in found]),
        "",
        *describe_starts([each["starts"] for each in found]),
    ]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))
    if arguments.picture:
        draw(found[0]["maps"], arguments.picture)


def measured(seed: int) -> dict[str, Any]:
    """All figures of one seed: a map per preset, test accuracies per depth and start."""
    view = limbeck.view(limbeck.load_graph(GRAPH), "transductive", seed)
    teacher = limbeck.fit_teacher(view, "gcnii", seed, **TEACHER)
    return {
        "maps": {name: attention(view, teacher, seed, name, own) for name, own in PRESETS.items()},
        "starts": {str(depth): started(view, teacher, seed, depth) for depth in DEPTHS},
    }


# --- the map ----------------------------------------------------------------------------------


def attention(
    view: limbeck.View, teacher: FittedTeacher, seed: int, preset: str, options: dict[str, Any]
) -> dict[str, Any]:
    """First and last entropy, the last map, and its correlation with CKA."""
    method = make_method(f"abkd:{preset}", GRAPH, **SMALL, **EPOCHS, log_every=1, **options)
    run = limbeck.distill(view, teacher, method, seed)
    notes = run.history.notes
    last = torch.tensor(notes[-1]["attention"])
    with torch.no_grad():
        layers = run.student.layers(run.inputs.observed)  # type: ignore[operator]
    theirs = [h for n, h in teacher_outputs(teacher.knowledge, "abkd").items() if n != "logits"]
    ours = [h for name, h in layers.items() if name != "logits"]
    similar = torch.tensor([[linear_cka(a, b) for b in ours] for a in theirs])
    return {
        "first": notes[0]["entropy"],
        "last": notes[-1]["entropy"],
        "map_before": notes[0]["attention"],
        "map": last.tolist(),
        "cka": float(spearmanr(last.flatten(), similar.flatten()).statistic),
    }


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of two layers ``[n, .]``, 0 to 1."""
    a, b = a - a.mean(0), b - b.mean(0)
    scale = float((a.t() @ a).norm() * (b.t() @ b).norm())
    return float((a.t() @ b).square().sum()) / scale if scale > 0 else 0.0


def describe(seeds: list[dict[str, Any]]) -> list[str]:
    """The table of entropies, agreement and CKA."""
    lines = [
        "| preset | entropy at first | at the end | same favourite | chance | ρ with CKA |",
        "|---|---|---|---|---|---|",
    ]
    for name in PRESETS:
        found = [each[name] for each in seeds]
        maps = [torch.tensor(each["map"]) for each in found]
        same = [
            float((one.argmax(1) == other.argmax(1)).float().mean())
            for one, other in itertools.combinations(maps, 2)
        ]
        figures = [mean_std([each[key] for each in found]) for key in ("first", "last")]
        figures.append(f"{statistics.mean(same):.2f}" if same else "–")
        figures += [f"{1 / maps[0].shape[1]:.2f}", mean_std([each["cka"] for each in found])]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return lines


def draw(maps: dict[str, dict[str, Any]], path: Path) -> None:
    """Each preset's map at the first epoch and at the last one, as an SVG."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "limbeck", "font.family": "sans-serif", "font.size": 9})
    figure, axes = plt.subplots(
        1, 2 * len(maps), figsize=(9.6, 5.4), sharey=True, layout="constrained"
    )
    image = None
    each = itertools.product(maps, ("map_before", "map"))
    for axis, (name, which) in zip(axes, each, strict=True):
        weights = torch.tensor(maps[name][which])
        when = "before" if which == "map_before" else "after"
        rows, columns = weights.shape
        image = axis.imshow(
            weights, vmin=0, vmax=1, aspect="auto", extent=(0.5, columns + 0.5, rows + 0.5, 0.5)
        )
        axis.set_title(f"{name}\n{when}", fontsize=9)
        axis.set_xlabel("student's layer")
        axis.set_xticks(range(1, columns + 1))
    axes[0].set_ylabel("teacher's layer")
    figure.colorbar(image, ax=axes, label="attention", shrink=0.8)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


# --- the start --------------------------------------------------------------------------------


def started(
    view: limbeck.View, teacher: FittedTeacher, seed: int, depth: int
) -> dict[str, tuple[float, float]]:
    """Test accuracy before and after training, by where the student's weights come from."""
    size = {**WIDE, **EPOCHS, "num_layers": depth}
    method = make_method(
        "abkd:abkd-robust", GRAPH, **size, axis="teacher", max_nodes=512, log_every=1
    )
    distilled = limbeck.distill(view, teacher, method, seed)
    last = torch.tensor(distilled.history.notes[-1]["attention"])
    generator = torch.Generator().manual_seed(seed)
    sources = {
        "random": None,
        "last": layer_sources(depth, None, len(last), "last"),
        "any": torch.randint(len(last), (depth,), generator=generator).tolist(),
        "attention": layer_sources(depth, last, len(last), "attention"),
    }
    found = {
        rule: started_from(layers, view, teacher, seed, size) for rule, layers in sources.items()
    }
    after = scored(view, distilled.student, distilled.inputs.observed)
    return {**found, "random, distilled by abkd-robust": (found["random"][0], after)}


def started_from(
    sources: list[int] | None,
    view: limbeck.View,
    teacher: FittedTeacher,
    seed: int,
    size: dict[str, Any],
) -> tuple[float, float]:
    """Test accuracy before and after training on labels; ``None``: a start at random."""
    plain = make_method("plain", GRAPH, **size)
    assert isinstance(plain, PlainStudent)
    with seeded(seed):
        student, inputs = plain.build(view)
        if sources is not None:
            assert teacher.module is not None
            start_from_teacher(student.gnn, teacher.module, sources)  # type: ignore[arg-type]
        student.eval()
        before = scored(view, student, inputs.observed)
        plain.train(student, inputs, view, None)
        return before, scored(view, student, inputs.observed)


@torch.no_grad()
def scored(view: limbeck.View, student: torch.nn.Module, known: Any) -> float:
    """Accuracy on test nodes, in percent."""
    nodes = view.test_observed
    return 100 * accuracy(student(known.take(nodes)), view.everything.y[nodes])


def describe_starts(seeds: list[dict[str, dict[str, tuple[float, float]]]]) -> list[str]:
    """The table of initialisations."""
    lines = [
        "| layers | weights from | test before training | after |",
        "|---|---|---|---|",
    ]
    for depth, rules in seeds[0].items():
        for rule in rules:
            before, after = (
                mean_std([each[depth][rule][when] for each in seeds]) for when in (0, 1)
            )
            lines.append(f"| {depth} | {rule} | {before} | {after} |")
    return lines


def mean_std(values: list[float]) -> str:
    """Mean ± population standard deviation."""
    return f"{statistics.mean(values):.2f} ± {statistics.pstdev(values):.2f}"


if __name__ == "__main__":
    main()
