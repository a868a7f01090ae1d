"""Figures of a cell of a comparison: its methods against each other and against their teacher."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from limbeck.evaluation.compare import TEACHER, Cell, Comparison, Difference, is_teacher
from limbeck.reports.drawing import (
    TEACHER_COLOR,
    Colors,
    Figure,
    empty_plot,
    legend_note,
    method_line,
    percent,
    short,
    shown_at_first,
)
from limbeck.reports.runs import Row

_DOTTED = {"dash": "dot", "width": 1.5, "color": TEACHER_COLOR}
"""The line that methods are held against."""


def differences(
    comparison: Comparison, cell: Cell, reference: str, colors: Colors
) -> Figure | None:
    """Paired differences to a reference with their intervals.

    Args:
        comparison: The comparison.
        cell: The cell.
        reference: A key of ``comparison.differences``.
        colors: Colours of the methods.
    """
    found: list[Difference] = [
        d for d in comparison.differences.get(reference, ()) if d.cell == cell
    ]
    if not found:
        return None
    found.sort(key=lambda d: d.mean)
    drawn = empty_plot(f"difference to {reference} (points)", "")
    for d in found:
        low, high = d.mean if d.low is None else d.low, d.mean if d.high is None else d.high
        drawn.add_scatter(
            x=[percent(d.mean)],
            y=[d.method],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [percent(high - d.mean)],
                "arrayminus": [percent(d.mean - low)],
            },
            mode="markers",
            marker={"size": 10, "color": colors[d.method]},
            name=d.method,
            showlegend=False,
            hovertemplate=f"{d.method}: %{{x:+.2f}} points, {d.num_seeds} seeds<extra></extra>",
        )
    drawn.add_vline(x=0, line=_DOTTED)
    drawn.update_layout(height=130 + 30 * len(found))
    drawn.update_yaxes(automargin=True)
    seeds = max(d.num_seeds for d in found)
    text = (
        f"Each point is the mean of the differences seed by seed, over {seeds} seeds, with its "
        f"{100 * comparison.confidence:g} % bootstrap interval; an interval that crosses the "
        "dotted line shows no difference."
        if seeds > 1
        else "One seed has no interval: read these differences as single trials."
    )
    return Figure(f"difference-{reference}", f"Difference to {reference}", text, drawn)


_SLICES = {
    "degree": (
        "number of neighbours",
        "A student without edges loses where the teacher gained from the graph, most often at "
        "high degree; nodes without neighbours show what is left of the teacher there.",
    ),
    "homophily": (
        "share of neighbours of the node's own class",
        "On the left neighbours mislead and on the right they agree. A student that falls with "
        "the teacher on the left has copied its habit; one that does not can be worth more there.",
    ),
    "class": (
        "class",
        "A mean hides small classes: look for one on which a student falls far below the teacher.",
    ),
}


def slices(
    by_method: Mapping[str, Sequence[Row]], kind: str, colors: Colors, value: str = "accuracy"
) -> Figure | None:
    """Accuracy, or agreement with the teacher, by degree, by local homophily or by class.

    Args:
        by_method: The runs of a cell.
        kind: ``"degree"``, ``"homophily"`` or ``"class"``.
        colors: Colours of the methods.
        value: ``"accuracy"`` or ``"agreement"``.

    Returns:
        The figure; ``None`` where no run has such slices.
    """
    what, text = _SLICES[kind]
    label = "test accuracy (%)" if value == "accuracy" else "agreement with the teacher (%)"
    drawn = empty_plot(what, label)
    names: dict[str, None] = {}
    lines: dict[str, dict[str, float]] = {}
    counts: dict[str, list[float]] = {}
    for method, rows in by_method.items():
        if value == "agreement" and is_teacher(method):
            continue
        found: dict[str, list[float]] = {}
        for row in rows:
            for name, figures in (row["slices"] or {}).items():
                group, _, part = name.partition("=")
                if group == kind and figures.get(value) is not None:
                    found.setdefault(part, []).append(figures[value])
                    counts.setdefault(part, []).append(figures["num_nodes"])
        lines[method] = {part: statistics.fmean(values) for part, values in found.items()}
        names |= dict.fromkeys(found)
    order = sorted(names, key=_slice_order)
    if len(order) < 2:
        return None
    shown = shown_at_first(by_method)
    for method, line in lines.items():
        drawn.add_scatter(
            x=order,
            y=[percent(line.get(part)) for part in order],
            customdata=[round(statistics.fmean(counts[part])) for part in order],
            **method_line(method, colors, shown),
            hovertemplate=f"{method}<br>%{{x}}: %{{y:.1f}} % (%{{customdata}} nodes a seed)"
            "<extra></extra>",
        )
    drawn.update_xaxes(type="category", automargin=True)
    if value == "agreement":
        text = (
            "How often a student answers as its teacher does: high agreement with low accuracy "
            "is a teacher's error learnt, low agreement with high accuracy a gain of its own."
        )
    title = f"{value.capitalize()} by {'local homophily' if kind == 'homophily' else kind}"
    return Figure(f"{value}-{kind}", title, text + legend_note(len(lines)), drawn)


def _slice_order(name: str) -> tuple[int, float, str]:
    """Ranges by where they begin, then what is no range."""
    digits = name.strip("[").replace(",", " ").replace("-", " ").replace("+", " ").split()
    try:
        return 0, float(digits[0]), name
    except (ValueError, IndexError):
        # 'class 10' comes after 'class 9'
        tail = "".join(c for c in name if c.isdigit())
        return 1, float(tail) if tail else float("inf"), name


def agreement(by_method: Mapping[str, Sequence[Row]], colors: Colors) -> Figure | None:
    """Agreement with the teacher against accuracy."""
    drawn = empty_plot("agreement with the teacher (%)", "test accuracy (%)")
    for method, rows in by_method.items():
        both = [(r["agreement"], r["test_accuracy"]) for r in rows if r["agreement"] is not None]
        if is_teacher(method) or not both:
            continue
        drawn.add_scatter(
            x=[percent(statistics.fmean(a for a, _ in both))],
            y=[percent(statistics.fmean(s for _, s in both))],
            mode="markers",
            name=method,
            marker={"size": 11, "color": colors[method], "symbol": colors.symbol(method)},
            hovertemplate=f"{method}<br>agrees %{{x:.1f}} %, right %{{y:.1f}} %<extra></extra>",
        )
    if len(drawn.data) < 2:
        return None
    theirs = [r["test_accuracy"] for r in by_method.get(TEACHER, ())]
    text = "To the right a student follows its teacher, upwards it is right."
    if theirs:
        drawn.add_hline(
            y=percent(statistics.fmean(theirs)),
            line=_DOTTED,
            annotation={"text": "teacher", "showarrow": False},
            annotation_position="bottom left",
        )
        text += " A student above the dotted line is more often right than who taught it."
    return Figure("agreement", "Agreement and accuracy", text, drawn)


def calibration(
    by_method: Mapping[str, Sequence[Row]], colors: Colors, which: str
) -> Figure | None:
    """A reliability diagram.

    Args:
        by_method: The runs of a cell.
        colors: Colours of the methods.
        which: ``"student"`` as it was trained, or ``"calibrated"`` by its temperature.
    """
    drawn = empty_plot("confidence (%)", "share of right answers (%)")
    drawn.add_scatter(
        x=[0, 100],
        y=[0, 100],
        mode="lines",
        name="perfect",
        hoverinfo="skip",
        line=_DOTTED,
    )
    shown = shown_at_first(by_method)
    for method, rows in by_method.items():
        key = "teacher" if method == TEACHER else which
        found = [r["reliability"][key] for r in rows if (r["reliability"] or {}).get(key)]
        if not found:
            continue
        count, sure, right = _pooled(found)
        drawn.add_scatter(
            x=[percent(value) for value in sure],
            y=[percent(value) for value in right],
            customdata=count,
            **method_line(method, colors, shown),
            hovertemplate=f"{method}<br>sure %{{x:.0f}} %, right %{{y:.0f}} % "
            "(%{customdata} answers)<extra></extra>",
        )
    if len(drawn.data) < 2:
        return None
    drawn.update_xaxes(range=[0, 101])
    drawn.update_yaxes(range=[0, 103])
    how = "as trained" if which == "student" else "after temperature scaling, as a bundle answers"
    text = (
        "On the dotted line an answer given with 80 % is right in 80 % of the cases. Below it a "
        "method is too sure of itself, above it too modest; ends of a line may rest on few nodes."
        + legend_note(len(drawn.data) - 1)
    )
    return Figure(f"calibration-{which}", f"Calibration {how}", text, drawn)


def _pooled(
    found: Sequence[Mapping[str, Sequence[Any]]],
) -> tuple[list[int], list[float], list[float]]:
    """Bins of several runs together, without the empty ones."""
    bins = []
    for i in range(len(found[0]["count"])):
        count = sum(one["count"][i] for one in found)
        if count:
            sure = sum(one["count"][i] * (one["confidence"][i] or 0) for one in found) / count
            right = sum(one["count"][i] * (one["accuracy"][i] or 0) for one in found) / count
            bins.append((count, sure, right))
    return [b[0] for b in bins], [b[1] for b in bins], [b[2] for b in bins]


def calibration_error(by_method: Mapping[str, Sequence[Row]], colors: Colors) -> Figure | None:
    """Expected calibration error of each method."""
    errors = {
        method: [r["ece"] for r in rows if r["ece"] is not None]
        for method, rows in by_method.items()
    }
    errors = {method: values for method, values in errors.items() if values}
    if not errors:
        return None
    drawn = empty_plot("expected calibration error (%)", "")
    order = sorted(errors, key=lambda m: -statistics.fmean(errors[m]))
    drawn.add_bar(
        x=[percent(statistics.fmean(errors[m])) for m in order],
        y=order,
        orientation="h",
        marker={"color": [colors[m] for m in order]},
        showlegend=False,
        hovertemplate="%{y}: %{x:.2f} %<extra></extra>",
    )
    drawn.update_layout(height=130 + 28 * len(order))
    drawn.update_yaxes(automargin=True)
    text = (
        "How far a method's probability lies from how often it is right, on average and before "
        "temperature scaling; shorter is better."
    )
    return Figure("calibration-error", "Calibration error as trained", text, drawn)


def training(by_method: Mapping[str, Sequence[Row]], colors: Colors, value: str) -> Figure | None:
    """Training curves of one seed.

    Args:
        by_method: The runs of a cell.
        colors: Colours of the methods.
        value: ``"val_score"`` or ``"loss"``.
    """
    label = "validation accuracy (%)" if value == "val_score" else "training loss"
    drawn = empty_plot("epoch", label, log_y=value == "loss")
    seeds = set[int]()
    shown = shown_at_first(by_method)
    for method, rows in by_method.items():
        row = min((r for r in rows if r["curve"]), key=lambda r: r["seed"], default=None)
        if row is None:
            continue
        curve, seed = row["curve"], row["seed"]
        seeds.add(seed)
        scale: Callable[[float | None], float | None] = percent if value == "val_score" else short
        best = curve["best_epoch"]
        drawn.add_scatter(
            x=curve["epoch"],
            y=[scale(v) for v in curve[value]],
            **method_line(method, colors, shown),
            marker={"size": [10 if epoch == best else 0.1 for epoch in curve["epoch"]]},
            hovertemplate=f"{method}, seed {seed}<br>epoch %{{x}}: %{{y}}<extra></extra>",
        )
    if not drawn.data:
        return None
    what = (
        "The dot is the epoch whose weights were kept, by validation accuracy alone. A line that "
        "still rises at its end was stopped by its number of epochs."
        if value == "val_score"
        else "Losses of different methods measure different things: read each line by itself, for "
        "steps, jumps and whether it had come to rest (logarithmic)."
    )
    title = "Validation accuracy in training" if value == "val_score" else "Loss in training"
    text = what + legend_note(len(drawn.data))
    which = f"seed {min(seeds)}" if len(seeds) == 1 else "each method's first seed"
    return Figure(f"training-{value}", f"{title}, {which}", text, drawn)
