"""``limbeck probe``: whether a loss over layers teaches a student anything."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from limbeck.cli.options import parse_settings, split_names
from limbeck.cli.output import show_json, show_table
from limbeck.errors import OptionError


def probe(
    graph: str,
    *,
    teacher: str = "gcnii",
    method: str = "abkd",
    seed: int = 0,
    steps: int = 500,
    lr: float = 0.01,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
    teacher_set: Annotated[tuple[str, ...], Parameter(name="--teacher-set", negative="")] = (),
    data_root: str | None = None,
    json: bool = False,
) -> None:
    """Train only what a method adds to the student, with teacher and student frozen.

    A loss that falls below a hundredth of its start that way is degenerate: it can be satisfied
    without the student.

    Args:
        graph: Name of a data set, or a folder that holds node and edge tables.
        teacher: Name of a teacher (limbeck teachers).
        method: Names of methods that compare layers, such as abkd:stride,fitnet.
        seed: Seed of the split, the teacher and the student.
        steps: Steps of Adam.
        lr: Learning rate of Adam.
        set_: Hyper-parameter of the methods, NAME=VALUE; may be repeated.
        teacher_set: Hyper-parameter of the teacher, NAME=VALUE; may be repeated.
        data_root: Folder of the named data sets; LIMBECK_DATA by default.
        json: Print JSON.
    """
    import limbeck
    from limbeck.evaluation.memory import keep_freed_memory
    from limbeck.evaluation.probe import probe as run_probe

    if steps < 1 or lr <= 0:
        raise OptionError(f"options --steps {steps} and --lr {lr}: both must be positive.")
    options = parse_settings(set_)
    chosen = [limbeck.make_method(name, graph, **options) for name in split_names(method)]
    data = limbeck.load_graph(graph, data_root=data_root)
    view = limbeck.view(data, "transductive", seed)
    keep_freed_memory()
    fitted = limbeck.fit_teacher(view, teacher, seed, progress=True, **parse_settings(teacher_set))
    probes = [
        found
        for each in chosen
        for found in run_probe(view, fitted.knowledge, each, seed, steps=steps, lr=lr)
    ]
    if json:
        show_json([found.to_dict() for found in probes])
        return
    rows = [
        (p.method, p.student, f"{p.start:.4g}", f"{p.end:.4g}", f"{p.ratio:.2g}", p.verdict)
        for p in probes
    ]
    show_table(
        f"{teacher} on {graph}, seed {seed}: {steps} steps with the student frozen",
        ("method", "student", "loss at first", "at the end", "ratio", "verdict"),
        rows,
        "degenerate: below 0.01 of its start without any help of the student",
    )
