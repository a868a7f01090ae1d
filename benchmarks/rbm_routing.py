"""What the routing of RbM and of its control does, and what RbM owes to each of its parts.

python benchmarks/rbm_routing.py --out runs/rbm_routing

Every finished run is one JSON file in the folder; a run that is there is not made again. At the end
``benchmarks/results/rbm_routing.md`` is written from all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import limbeck
from limbeck.evaluation.compare import paired_differences
from limbeck.evaluation.routing import ROUTINGS, RoutingTrace, routing_diagnostics
from limbeck.graphs.view import View
from limbeck.methods.experts import ExpertOptions
from limbeck.methods.moe import MixtureOfExperts
from limbeck.methods.rbm import RoutingByMemory
from limbeck.students.inputs import NodeInputs, ViewInputs
from limbeck.students.rbm import RbM
from limbeck.training.loop import History

METHODS = {"rbm": RoutingByMemory, "moe": MixtureOfExperts}
RESULT = Path(__file__).with_name("results") / "rbm_routing.md"
PACKAGES = ("torch", "torch-geometric", "numpy", "scikit-learn")

PRESET = "preset"
RANDOM_MEMORY = "random memories"
VARIANTS: dict[str, dict[str, Any]] = {
    PRESET: {},
    "alpha = 0": {"commitment_weight": 0.0},
    "beta = 0": {"self_similarity_weight": 0.0},
    "gamma = 0": {"load_balance_weight": 0.0},
    "no pretraining": {"pretrain_epochs": 0},
    RANDOM_MEMORY: {},
    "fixed memories": {"memory_momentum": 1.0, "train_memory": False},
}
"""What is taken from RbM, and the options that do it. Fixed memories stay where k-means puts them;
random ones start as normal vectors, and move as usual."""

AFTER = (0, 5, 25, 100)
"""Epochs after the conversion at which memories are looked at."""

CONVERGED = 10
"""Epochs up to the best one over which the share of moving nodes is averaged."""


class Job(NamedTuple):
    graph: str
    setting: str
    method: str
    variant: str
    seed: int
    hidden_channels: int | None = None

    @property
    def file(self) -> str:
        width = "" if self.hidden_channels is None else f"-{self.hidden_channels}"
        variant = self.variant.replace(" ", "")
        return f"{self.graph}{width}.{self.setting}.{self.method}.{variant}.{self.seed}.json"


def jobs() -> Iterator[Job]:
    for setting in ("inductive", "transductive"):
        for method in METHODS:
            for seed in range(3):
                yield Job("cpf-cora", setting, method, PRESET, seed)
        for seed in range(3):
            yield Job("cpf-cora", setting, "rbm", "beta = 0", seed)
    for variant in VARIANTS:
        for seed in range(5):
            yield Job("cpf-cora", "inductive", "rbm", variant, seed)
    for seed in range(2):
        yield Job("a-photo", "transductive", "rbm", PRESET, seed, hidden_channels=128)


# -- one run -------------------------------------------------------------------------------


def watched(method: type[ExpertOptions], traces: list[RoutingTrace], variant: str) -> type:
    """The method, with its routing followed and its memories placed as the variant says."""

    class Watched(method):
        def inputs_of(self, view: View) -> ViewInputs:
            inputs = super().inputs_of(view)
            traces.append(RoutingTrace(inputs.observed))
            return inputs

        def fit(
            self,
            module: torch.nn.Module,
            losses: Callable[[int], Iterable[Tensor]],
            validate: Callable[[], float],
            **rest: Any,
        ) -> History:
            def followed(epoch: int) -> Iterator[Tensor]:
                yield from losses(epoch)
                traces[0](epoch, module.student)

            if variant == RANDOM_MEMORY:
                place_at_random(module.student)
            return super().fit(module, followed, validate, **rest)

    return Watched


def place_at_random(student: RbM) -> None:
    """Let the student's conversion draw its memories.

    Until the experts part, a layer answers alike wherever it sends a node: that the layers behind
    have been clustered already changes nothing.
    """
    convert = student.convert

    def convert_and_draw(inputs: NodeInputs) -> None:
        convert(inputs)
        for layer in student.layers:
            torch.nn.init.normal_(layer.memory)

    student.convert = convert_and_draw


@cache
def view_and_teacher(graph: str, setting: str, seed: int) -> tuple[View, Any]:
    view = limbeck.view(limbeck.load_graph(graph), setting, seed)
    return view, limbeck.fit_teacher(view, "sage", seed)


def run(job: Job) -> dict[str, Any]:
    view, teacher = view_and_teacher(job.graph, job.setting, job.seed)
    traces: list[RoutingTrace] = []
    changes = dict(VARIANTS[job.variant])
    if job.hidden_channels is not None:
        changes["hidden_channels"] = job.hidden_channels
    method = watched(METHODS[job.method], traces, job.variant)
    options = method.for_graph(job.graph, job.setting, **changes)
    finished = limbeck.distill(view, teacher, options, job.seed)
    return {
        **job._asdict(),
        "options": options.model_dump(mode="json"),
        "scores": {
            who: {name: scores[name] for name in ("test_accuracy", "val_accuracy")}
            for who, scores in finished.scores.items()
            if who in ("teacher", "student")
        },
        "best_epoch": finished.history.best_epoch,
        "seconds": finished.history.seconds,
        "trace": traces[0].epochs,
        "diagnostics": routing_diagnostics(finished),
    }


# -- the page ------------------------------------------------------------------------------


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Iterable[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean ± population standard deviation; – where a figure is not defined."""
    found = [scale * value for value in values if value is not None]
    if not found:
        return "–"
    return f"{statistics.mean(found):.{digits}f} ± {statistics.pstdev(found):.{digits}f}"


def mean(values: Iterable[float | None], digits: int = 2) -> str:
    found = [value for value in values if value is not None]
    return f"{statistics.mean(found):.{digits}f}" if found else "–"


def cells(runs: list[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Runs with presets by graph, setting and method, three seeds at most."""
    found = defaultdict(list)
    for entry in runs:
        if entry["variant"] == PRESET and entry["seed"] < 3:
            width = entry["hidden_channels"]
            graph = entry["graph"] if width is None else f"{entry['graph']} (width {width})"
            found[graph, entry["setting"], entry["method"]].append(entry)
    return found


def routings_table(runs: list[dict[str, Any]]) -> str:
    rows = []
    for key, members in cells(runs).items():
        own = [entry["diagnostics"]["test"]["own"] for entry in members]
        row = [*key, str(len(members)), spread(own, 100)]
        for name in ROUTINGS[1:]:
            drops = [
                entry["diagnostics"]["test"][name] - entry["diagnostics"]["test"]["own"]
                for entry in members
            ]
            row.append(spread(drops, 100))
        rows.append(row)
    return table(["graph", "setting", "student", "seeds", "own routing", *ROUTINGS[1:]], rows)


def layers_table(runs: list[dict[str, Any]]) -> str:
    rows = []
    for key, members in cells(runs).items():
        for layer in range(len(members[0]["diagnostics"]["layers"])):
            reports = [entry["diagnostics"]["observed"]["layers"][layer] for entry in members]
            num_experts = len(reports[0]["experts"])

            def of(*names: str, digits: int = 2, reports: list[dict[str, Any]] = reports) -> str:
                return " / ".join(mean((r[name] for r in reports), digits) for name in names)

            row = [*key, str(layer + 1), of("load_entropy")]
            row.append(mean(num_experts * report["min_share"] for report in reports))
            row += [of("load_cv2"), of("num_sets", digits=1), of("gate_entropy", digits=3)]
            row.append(of("gap_05", "gap_50", "gap_95"))
            for name in ("nmi_class", "nmi_teacher"):
                row.append(f"{of(name)} ({of(f'{name}_random')})")
            row.append(of("moved_dropout", "moved_noise", "moved_random", digits=3))
            rows.append(row)
    head = ["graph", "setting", "student", "layer", "load entropy", "min share × E", "CV²", "sets"]
    head += ["gate entropy", "gap: 5 / 50 / 95 %", "NMI class (dealt)", "NMI teacher (dealt)"]
    return table([*head, "moved: dropout / noise / other node"], rows)


def experts_table(runs: list[dict[str, Any]]) -> str:
    names = ("memory_cosine", "weight_distance", "weight_cosine", "output_cka", "scale")
    rows = []
    for key, members in cells(runs).items():
        kind = "observed" if key[1] == "transductive" else "unseen"
        own = [entry["diagnostics"][kind]["accuracy"]["own"] for entry in members]
        for layer in range(len(members[0]["diagnostics"]["layers"])):
            row = [*key, str(layer + 1)]
            for name in names:
                row.append(mean(entry["diagnostics"]["layers"][layer][name] for entry in members))
            for name in ("used", "unused", "shuffled"):
                values = [
                    entry["diagnostics"][kind]["layers"][layer][f"accuracy_{name}"]
                    for entry in members
                ]
                drops = [a - b for a, b in zip(values, own, strict=True) if a is not None]
                row.append(spread(drops, 100))
            rows.append(row)
    head = ["graph", "setting", "student", "layer", *(name.replace("_", " ") for name in names)]
    return table([*head, "one expert, used", "one expert, left out", "shuffled here"], rows)


def memory_table(runs: list[dict[str, Any]]) -> str:
    groups = defaultdict(list)
    for entry in runs:
        known = entry["graph"] == "cpf-cora" and entry["method"] == "rbm" and entry["seed"] < 3
        if known and entry["variant"] in (PRESET, "beta = 0"):
            groups[entry["setting"], entry["variant"]].append(entry)
    rows = []
    for (setting, variant), members in groups.items():
        for layer in range(len(members[0]["diagnostics"]["layers"])):
            row = [setting, "0.01" if variant == PRESET else "0", str(layer + 1)]
            for after in AFTER:
                row.append(
                    mean(
                        entry["trace"][after]["layers"][layer]["memory_cosine"]
                        for entry in members
                        if after < len(entry["trace"])
                    )
                )
            row.append(
                mean(entry["diagnostics"]["layers"][layer]["memory_cosine"] for entry in members)
            )
            rows.append(row)
    epochs = [f"epoch {after + 1}" for after in AFTER]
    return table(["setting", "beta", "layer", *epochs, "best epoch"], rows)


def stability_table(runs: list[dict[str, Any]]) -> str:
    rows = []
    for key, members in cells(runs).items():
        for layer in range(len(members[0]["diagnostics"]["layers"])):
            row = [*key, str(layer + 1)]
            at = [[report["layers"][layer]["moved"] for report in e["trace"]] for e in members]
            row.append(mean((statistics.mean(moves[1:11]) for moves in at), 3))
            converged = []
            for entry, moves in zip(members, at, strict=True):
                best = entry["best_epoch"] - entry["trace"][0]["epoch"]
                found = [m for m in moves[max(best - CONVERGED + 1, 0) : best + 1] if m is not None]
                converged.append(statistics.mean(found) if found else None)
            row.append(mean(converged, 3))
            row.append(mean((statistics.mean(moves[-CONVERGED:]) for moves in at), 3))
            rows.append(row)
    head = ["graph", "setting", "student", "layer", "first 10 epochs"]
    return table([*head, "10 up to the best", "last 10"], rows)


def ablation_table(runs: list[dict[str, Any]]) -> str:
    members = [
        entry
        for entry in runs
        if (entry["graph"], entry["setting"], entry["method"]) == ("cpf-cora", "inductive", "rbm")
    ]
    rows = [
        {
            "graph": entry["graph"],
            "setting": entry["setting"],
            "teacher": "sage",
            "method": entry["variant"],
            "seed": entry["seed"],
            "test_accuracy": entry["scores"]["student"]["test_accuracy"],
        }
        for entry in members
    ]
    differences = {d.method: d for d in paired_differences(rows, PRESET)}
    lines = []
    for variant in VARIANTS:
        there = [entry for entry in members if entry["variant"] == variant]
        if not there:
            continue
        own = [entry["scores"]["student"]["test_accuracy"] for entry in there]
        gap = differences.get(variant)
        interval = "–"
        if gap is not None and gap.low is not None:
            interval = f"{100 * gap.mean:+.2f} [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}]"
        line = [variant, str(len(there)), spread(own, 100), interval]
        nodes = [entry["diagnostics"]["observed"]["layers"] for entry in there]
        experts = [entry["diagnostics"]["layers"] for entry in there]
        for name, reports in (
            ("load_entropy", nodes),
            ("nmi_class", nodes),
            ("memory_cosine", experts),
        ):
            by_layer = zip(*([layer[name] for layer in report] for report in reports), strict=True)
            line.append(" / ".join(map(mean, by_layer)))
        lines.append(line)
    head = ["variant", "seeds", "test accuracy", "difference to the preset"]
    return table([*head, "load entropy", "NMI class", "memory cosine"], lines)


def write_page(runs: list[dict[str, Any]]) -> None:
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    seconds = sum(entry["seconds"] for entry in runs)
    parts = [
        "# What the routing does",
        "`python benchmarks/rbm_routing.py --out runs/rbm_routing`",
        f"{len(runs)} runs, {seconds / 60:.0f} minutes of training; presets unless a width is "
        "given, one SAGE teacher per graph, setting and seed for all students, the epoch chosen on "
        f"validation. Python {platform.python_version()}, limbeck {limbeck.__version__}, "
        f"{versions}; CPU ({platform.machine()}), one thread. How each figure is defined: "
        "`limbeck.evaluation.routing`. ± is the population standard deviation over seeds.",
        "## Accuracy under other experts",
        "Test accuracy in % with the student's own routing, and what other experts add to it, in "
        "points: those of another node (shuffled), k drawn ones (random), all of them (average).",
        routings_table(runs),
        "## Load, gates, classes, stability",
        "On observed nodes, means over seeds. Sets: how many different ones occur. Gap: quantiles "
        "of the largest similarity less the smallest chosen one (cosines in `rbm`, the gate's "
        "logits in `moe`). In brackets: the mutual information if the same first experts were "
        "dealt anew among the nodes. Moved: share of nodes whose set of experts changes under "
        "input dropout 0.1 and under noise 0.1, and of those whose set is not that of a random "
        "other node.",
        layers_table(runs),
        "## Experts",
        "Cosines, distance, CKA and scale: means over seeds. The last three columns: change of the "
        "accuracy on the setting's test nodes, in points, when in this layer alone a single expert "
        "answers that they use, or one that they leave out, or when they take another node's "
        "gates.",
        experts_table(runs),
        "## Memories in training (cpf-cora, rbm)",
        "Mean cosine of two memories after the given epoch of routing, over three seeds (those "
        "that train so long), and in the student that is kept.",
        memory_table(runs),
        "## Nodes that change experts from one epoch to the next",
        "Share of at most 2,000 observed nodes whose set of experts is not that of the epoch "
        "before, means over epochs and seeds: the first ten epochs of routing, the ten up to the "
        "one that is kept, the last ten.",
        stability_table(runs),
        "## What each part is worth (cpf-cora, inductive, rbm)",
        "Test accuracy in %; differences in points, paired by seed, with their 95 % bootstrap "
        "interval (BCa); other figures per layer. Random memories are normal vectors in place of "
        "k-means' centers; fixed ones stay where k-means puts them.",
        ablation_table(runs),
    ]
    RESULT.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(RESULT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/rbm_routing"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = []
    for job in dict.fromkeys(jobs()):
        file = arguments.out / job.file
        if not file.is_file():
            file.write_text(json.dumps(run(job)), encoding="utf-8")
            print(file, flush=True)
        runs.append(json.loads(file.read_text(encoding="utf-8")))
    write_page(runs)


if __name__ == "__main__":
    main()
