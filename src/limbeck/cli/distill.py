"""``limbeck distill``: one graph, one teacher, one method, one bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from limbeck.cli.options import GraphSource, parse_settings, split_names
from limbeck.cli.output import percent, say, show_json, show_table
from limbeck.errors import OptionError

if TYPE_CHECKING:
    from limbeck import Method, Run, View
    from limbeck.evaluation.auto import Auto
    from limbeck.evaluation.cascade import DeferGoal
    from limbeck.evaluation.choice import Choice
    from limbeck.teachers import FittedTeacher


def distill(
    *,
    source: GraphSource | None = None,
    out: Path,
    method: str = "glnn",
    budget_us: float | None = None,
    min_agreement: float | None = None,
    max_bytes: int | None = None,
    teacher: str | None = None,
    teacher_file: Path | None = None,
    logits: Path | None = None,
    setting: str = "transductive",
    seed: int = 0,
    unseen: float = 0.2,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
    teacher_set: Annotated[tuple[str, ...], Parameter(name="--teacher-set", negative="")] = (),
    half_layers: bool = False,
    latency: bool = True,
    defer_accuracy: float | None = None,
    defer_coverage: float | None = None,
    quantize: Literal["int8"] | None = None,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a teacher, distil it into a student, score both and write the student's bundle.

    An interrupted command goes on where it stopped when it is given again.

    Args:
        source: Which graph.
        out: Folder of the bundle.
        method: Name of a method (limbeck methods), or auto to search one on validation nodes.
        budget_us: With auto: most microseconds that the answer for one new node may take.
        min_agreement: With auto: least agreement with the teacher on validation nodes.
        max_bytes: With auto: most bytes of the bundle.
        teacher: Name of a teacher (limbeck teachers), sage by default; or several, separated by
            commas, each with options of its own, such as gcn:num_layers=2,gcn:num_layers=3.
        teacher_file: A trained module of your own, saved with torch.save(module, path).
        logits: A teacher's logits: .npy, .npz, .pt or .parquet.
        setting: transductive, inductive, production or cold-start.
        seed: Seed of the split, the teacher and the student.
        unseen: Share of test nodes that training never sees.
        set_: Hyper-parameter of the method, NAME=VALUE; may be repeated.
        teacher_set: Hyper-parameter of all teachers, NAME=VALUE; may be repeated.
        half_layers: Keep the teachers' hidden layers as float16 in the cache.
        latency: Measure the student's latency for the bundle.
        defer_accuracy: Keep a threshold below which the student defers, so that it has this
            accuracy on the validation nodes that it keeps; and the teacher's answers for others.
        defer_coverage: The same, so that it keeps this share of the validation nodes.
        quantize: int8 computes answers in eight bits, for students that are MLPs.
        json: Print one JSON document.
        quiet: Show no progress.
    """
    import limbeck
    from limbeck.evaluation.memory import keep_freed_memory
    from limbeck.runtime.bundle import check_target
    from limbeck.runtime.latency import measure_latency

    check_target(out)
    defer = _goal(defer_accuracy, defer_coverage)
    limits = {"budget_us": budget_us, "min_agreement": min_agreement, "max_bytes": max_bytes}
    limits = {name: value for name, value in limits.items() if value is not None}
    chosen: Method | Auto
    if method == "auto":
        from limbeck.evaluation.auto import Auto

        chosen = Auto(**{"folder": out.with_name(f"{out.name}-search"), **parse_settings(set_)})
        chosen = chosen.replace(**limits, defer=defer, quantize=quantize)
    else:
        _check_no_limits(limits)
        name = (source or GraphSource()).graph or ""
        chosen = limbeck.make_method(method, name, **parse_settings(set_))
    _check_teacher(teacher, teacher_file, logits)
    keep_freed_memory()
    graph = (source or GraphSource()).load()
    view = limbeck.view(graph, setting, seed, unseen=unseen)
    progress = not quiet
    known: Any
    if logits is not None:
        known = limbeck.knowledge_from(logits)
    elif teacher_file is not None:
        known = limbeck.Teacher.from_file(teacher_file)
    else:
        known = _fit_teachers(
            view, teacher or "sage", seed, teacher_set, half_layers=half_layers, progress=progress
        )
    run = limbeck.distill(view, known, chosen, seed, progress=progress, resume=True)
    if progress:
        say("writing the bundle" + (" and measuring its latency" if latency else ""))
    path = run.save(
        out, latency=measure_latency if latency else None, defer=defer, quantize=quantize
    )
    if json:
        show_json(_document(run, path))
    else:
        _show(run, view, path)


def _check_no_limits(limits: dict[str, Any]) -> None:
    if limits:
        name = next(iter(limits)).replace("_", "-")
        raise OptionError(f"option --{name} is a limit of a search: use it with --method auto.")


def _fit_teachers(
    view: View,
    teachers: str,
    seed: int,
    settings: tuple[str, ...],
    *,
    half_layers: bool,
    progress: bool,
) -> list[FittedTeacher]:
    """Train each of the teachers that ``gcn:num_layers=2,gat`` names, called as given."""
    import limbeck

    fitted = []
    for given in split_names(teachers):
        name, *own = given.split(":")
        options = {**parse_settings(settings), **parse_settings(tuple(own))}
        teacher = limbeck.fit_teacher(
            view, name, seed, half_layers=half_layers, progress=progress, **options
        )
        fitted.append(replace(teacher, name=given))
    return fitted


def _goal(accuracy: float | None, coverage: float | None) -> DeferGoal | None:
    from limbeck.evaluation.cascade import DeferGoal

    if accuracy is not None and coverage is not None:
        raise OptionError("options --defer-accuracy and --defer-coverage exclude each other.")
    if accuracy is not None:
        return DeferGoal("accuracy", accuracy)
    return None if coverage is None else DeferGoal("coverage", coverage)


def _check_teacher(teacher: str | None, teacher_file: Path | None, logits: Path | None) -> None:
    given = {"--teacher": teacher, "--teacher-file": teacher_file, "--logits": logits}
    named = [option for option, value in given.items() if value is not None]
    if len(named) > 1:
        raise OptionError(f"options {' and '.join(named)} name two teachers: give one of them.")


def _document(run: Run, path: Path) -> dict[str, Any]:
    return {
        "bundle": str(path),
        "scores": run.scores,
        "method": run.method.name,
        "options": run.method.model_dump(mode="json"),
        "teacher": None if run.teacher is None else run.teacher.name,
        **({"teachers": run.committee_scores} if run.committee else {}),
        "setting": run.view.setting,
        "graph": run.view.info.name,
        "seed": run.seed,
        "epochs": len(run.history.val_score),
        "train_seconds": run.history.seconds,
        **({} if run.choice is None else {"choice": run.choice.to_dict()}),
    }


def _show_choice(choice: Choice) -> None:
    columns = (
        "",
        "method",
        "width",
        "val accuracy %",
        "behind",
        "± error",
        "agreement %",
        "µs",
        "bytes",
        "front",
        "in limits",
    )
    rows = []
    for row in choice.rows():
        marks = {"chosen": row["chosen"], "best": row["best"]}
        rows.append(
            [
                ", ".join(name for name, here in marks.items() if here),
                row["method"],
                row["hidden_channels"],
                percent(row["accuracy"]),
                percent(row["behind"]),
                percent(row["standard_error"]),
                percent(row["agreement"]),
                f"{row['latency_us']:.1f}",
                row["bytes"],
                "yes" if row["front"] else "",
                "yes" if row["meets_limits"] else "no",
            ]
        )
    title = f"finalists of {choice.trainings} trainings ({choice.train_seconds:.0f} s of a core)"
    show_table(title, columns, rows, choice.reason)


def _show(run: Run, view: View, path: Path) -> None:
    if run.choice is not None:
        _show_choice(run.choice)
    scores = {who: figures for who, figures in run.scores.items() if figures is not None}
    if run.committee:
        members = {figures["name"]: figures for figures in run.committee_scores}
        scores = {**members, "student": scores["student"]}
    rows = []
    for name in ("val_accuracy", "test_accuracy", "test_macro_f1", "ece", "agreement"):
        shown = name.replace("accuracy", scores["student"]["metric"])
        rows.append([shown, *[percent(figures.get(name)) for figures in scores.values()]])
    where = f"{view.info.name}, {view.setting}, seed {view.seed}"
    columns = ("%", *[run.method.name if who == "student" else who for who in scores])
    show_table(f"{run.method.name} on {where}", columns, rows, f"bundle: {path}")
