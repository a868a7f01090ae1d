"""The figures of a report: each one plotly figure with a title and the text that says what to see.

Colours of letters, lines and grids are left to the page, which knows whether it is light or dark.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from limbeck.evaluation.compare import (
    TEACHER,
    Cell,
    Comparison,
    Difference,
    is_teacher,
)
from limbeck.reports.runs import Row

PALETTE = (
    "#3b82c4",
    "#e07b39",
    "#3a9d5d",
    "#b45ac9",
    "#d94f5c",
    "#1aa3a3",
    "#b8922b",
    "#7a6ff0",
    "#d1589b",
    "#6b9b2f",
    "#a5694f",
    "#5f87a8",
)
TEACHER_COLOR = "#8a8f98"
SHOWN = 9
"""Lines that a figure shows at first, those of the best; the others wait in its legend."""

COST_AXES = {
    "latency_us_b1": "latency of one node (µs, median)",
    "latency_us_b256": "latency of 256 nodes (µs, median)",
    "model_bytes": "size of the model (bytes)",
    "bundle_bytes": "size of the bundle (bytes)",
    "parameters": "parameters",
    "train_seconds": "training time (s)",
}
"""What accuracy is weighed against; less of it is better."""

EXPERTS = {
    "own": "own experts",
    "shuffled": "another node's",
    "random": "random ones",
    "average": "all experts",
}


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Args:
        kind: What it shows, in one word.
        title: Its title.
        text: What a reader should look at.
        figure: What plotly draws.
    """

    kind: str
    title: str
    text: str
    figure: go.Figure

    def to_dict(self) -> dict[str, Any]:
        """What the page holds of it, as JSON holds it."""
        drawn = _compact(self.figure.to_plotly_json())
        return {"kind": self.kind, "title": self.title, "text": self.text, "figure": drawn}


@dataclass(frozen=True)
class Point:
    """A method among others.

    Args:
        method: The method.
        cost: What it costs, above 0.
        score: Its accuracy, 0 to 1.
        std: Standard deviation of the accuracy, ``None`` for a mean over cells.
    """

    method: str
    cost: float
    score: float
    std: float | None = None


class Colors:
    """A colour per method, the same in all figures.

    Args:
        methods: All methods of the report, in its order.
    """

    def __init__(self, methods: Iterable[str]) -> None:
        names = list(methods)
        students = [method for method in names if not is_teacher(method)]
        members = [method for method in names if is_teacher(method) and method != TEACHER]
        self._places = {method: i for i, method in enumerate(students)}
        self._members = {method: i for i, method in enumerate(members)}

    def __getitem__(self, method: str) -> str:
        """The colour of a method."""
        if is_teacher(method):
            return TEACHER_COLOR
        return PALETTE[self._places[method] % len(PALETTE)]

    def dash(self, method: str) -> str:
        """Its line, which tells methods apart whose colours are alike."""
        kinds = ("solid", "dash", "dot", "dashdot")
        if method in self._members:
            return kinds[1 + self._members[method] % 3]
        return kinds[self._places.get(method, 0) // len(PALETTE) % len(kinds)]


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats: none is as cheap and as accurate, and better in one.

    Args:
        points: The points.

    Returns:
        Those of the Pareto front, the cheapest first.
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.score)):
        if not found or point.score > found[-1].score:
            found.append(point)
    return found


def pareto(points: Sequence[Point], axis: str, colors: Colors, where: str) -> Figure | None:
    """Accuracy against a cost, and the Pareto front of both.

    Args:
        points: The methods, each with its cost.
        axis: A key of :data:`COST_AXES`.
        colors: Colours of the methods.
        where: What the points are of, for the title.

    Returns:
        The figure; ``None`` for fewer than two points.
    """
    if len(points) < 2:
        return None
    drawn = _figure(COST_AXES[axis], "test accuracy (%)")
    costs = [point.cost for point in points]
    drawn.update_xaxes(type="log", **_log_ticks(min(costs), max(costs)))
    best = front(points)
    drawn.add_scatter(
        x=[_short(p.cost) for p in best],
        y=[_percent(p.score) for p in best],
        mode="lines",
        name="Pareto front",
        line={"shape": "hv", "dash": "dot", "width": 2, "color": TEACHER_COLOR},
        hoverinfo="skip",
    )
    for point in points:
        spread = None if point.std is None else {"type": "data", "array": [_percent(point.std)]}
        drawn.add_scatter(
            x=[_short(point.cost)],
            y=[_percent(point.score)],
            error_y=None if spread is None else {**spread, "thickness": 1, "width": 3},
            mode="markers",
            name=point.method,
            marker={
                "size": 11,
                "color": colors[point.method],
                "symbol": "diamond" if is_teacher(point.method) else "circle",
                "line": {"width": 2 if point in best else 0, "color": TEACHER_COLOR},
            },
            hovertemplate=f"{point.method}<br>%{{x:,}} · %{{y:.2f}} %<extra></extra>",
        )
    name = COST_AXES[axis].partition(" (")[0]
    names = ", ".join(point.method for point in best)
    text = (
        "Up is more accurate, left is cheaper (logarithmic). Nothing lies above and to the left of "
        f"the dotted line: the choice is among {names}; each of the others has one of them that is "
        "as cheap and at least as accurate."
    )
    if any(is_teacher(point.method) for point in best):
        text += " A teacher needs the graph for each of its answers."
    return Figure(f"pareto-{axis}", f"Accuracy against {name}, {where}", text, drawn)


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
    drawn = _figure(f"difference to {reference} (points)", "")
    for d in found:
        low, high = d.mean if d.low is None else d.low, d.mean if d.high is None else d.high
        drawn.add_scatter(
            x=[_percent(d.mean)],
            y=[d.method],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [_percent(high - d.mean)],
                "arrayminus": [_percent(d.mean - low)],
            },
            mode="markers",
            marker={"size": 10, "color": colors[d.method]},
            name=d.method,
            showlegend=False,
            hovertemplate=f"{d.method}: %{{x:+.2f}} points, {d.num_seeds} seeds<extra></extra>",
        )
    drawn.add_vline(x=0, line={"dash": "dot", "width": 1.5, "color": TEACHER_COLOR})
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
    drawn = _figure(what, label)
    names: dict[str, None] = {}
    lines: dict[str, dict[str, float]] = {}
    counts: dict[str, float] = {}
    for method, rows in by_method.items():
        if value == "agreement" and is_teacher(method):
            continue
        found: dict[str, list[float]] = {}
        for row in rows:
            for name, figures in (row["slices"] or {}).items():
                group, _, part = name.partition("=")
                if group == kind and figures.get(value) is not None:
                    found.setdefault(part, []).append(figures[value])
                    counts[part] = figures["num_nodes"]
        lines[method] = {part: statistics.fmean(values) for part, values in found.items()}
        names |= dict.fromkeys(found)
    order = sorted(names, key=_slice_order)
    if len(order) < 2:
        return None
    shown = _shown(by_method)
    for method, line in lines.items():
        drawn.add_scatter(
            x=order,
            y=[_percent(line.get(part)) for part in order],
            customdata=[counts.get(part) for part in order],
            mode="lines+markers",
            name=method,
            visible=True if method in shown else "legendonly",
            line={"color": colors[method], "dash": colors.dash(method), "width": 2},
            hovertemplate=f"{method}<br>%{{x}}: %{{y:.1f}} % (%{{customdata}} nodes)"
            "<extra></extra>",
        )
    drawn.update_xaxes(type="category", automargin=True)
    if value == "agreement":
        text = (
            "How often a student answers as its teacher does: high agreement with low accuracy "
            "is a teacher's error learnt, low agreement with high accuracy a gain of its own."
        )
    title = f"{value.capitalize()} by {'local homophily' if kind == 'homophily' else kind}"
    return Figure(f"{value}-{kind}", title, text + _legend_note(len(lines)), drawn)


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
    drawn = _figure("agreement with the teacher (%)", "test accuracy (%)")
    for method, rows in by_method.items():
        both = [(r["agreement"], r["test_accuracy"]) for r in rows if r["agreement"] is not None]
        if is_teacher(method) or not both:
            continue
        drawn.add_scatter(
            x=[_percent(statistics.fmean(a for a, _ in both))],
            y=[_percent(statistics.fmean(s for _, s in both))],
            mode="markers",
            name=method,
            marker={"size": 11, "color": colors[method]},
            hovertemplate=f"{method}<br>agrees %{{x:.1f}} %, right %{{y:.1f}} %<extra></extra>",
        )
    if len(drawn.data) < 2:
        return None
    theirs = [r["test_accuracy"] for r in by_method.get(TEACHER, ())]
    text = "To the right a student follows its teacher, upwards it is right."
    if theirs:
        drawn.add_hline(
            y=_percent(statistics.fmean(theirs)),
            line={"dash": "dot", "width": 1.5, "color": TEACHER_COLOR},
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
    drawn = _figure("confidence (%)", "share of right answers (%)")
    drawn.add_scatter(
        x=[0, 100],
        y=[0, 100],
        mode="lines",
        name="perfect",
        hoverinfo="skip",
        line={"dash": "dot", "width": 1.5, "color": TEACHER_COLOR},
    )
    for method, rows in by_method.items():
        key = "teacher" if method == TEACHER else which
        found = [r["reliability"][key] for r in rows if (r["reliability"] or {}).get(key)]
        if not found:
            continue
        count, sure, right = _pooled(found)
        drawn.add_scatter(
            x=[_percent(value) for value in sure],
            y=[_percent(value) for value in right],
            customdata=count,
            mode="lines+markers",
            name=method,
            visible=True if method in _shown(by_method) else "legendonly",
            line={"color": colors[method], "dash": colors.dash(method), "width": 2},
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
        + _legend_note(len(drawn.data) - 1)
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
    drawn = _figure("expected calibration error (%)", "")
    order = sorted(errors, key=lambda m: -statistics.fmean(errors[m]))
    drawn.add_bar(
        x=[_percent(statistics.fmean(errors[m])) for m in order],
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
    drawn = _figure("epoch", label, log_y=value == "loss")
    seed = None
    for method, rows in by_method.items():
        row = next((r for r in rows if r["curve"]), None)
        if row is None:
            continue
        curve, seed = row["curve"], row["seed"]
        scale: Callable[[float | None], float | None] = _percent if value == "val_score" else _short
        best = curve["best_epoch"]
        drawn.add_scatter(
            x=curve["epoch"],
            y=[scale(v) for v in curve[value]],
            mode="lines+markers",
            name=method,
            visible=True if method in _shown(by_method) else "legendonly",
            line={"color": colors[method], "dash": colors.dash(method), "width": 2},
            marker={"size": [10 if epoch == best else 0.1 for epoch in curve["epoch"]]},
            hovertemplate=f"{method}<br>epoch %{{x}}: %{{y}}<extra></extra>",
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
    text = what + _legend_note(len(drawn.data))
    return Figure(f"training-{value}", f"{title}, seed {seed}", text, drawn)


# -- what a method makes visible -----------------------------------------------------------


def inside(method: str, rows: Sequence[Row]) -> list[Figure]:
    """What a method shows of its students in a cell, from the first run that has it.

    Args:
        method: The method.
        rows: Its runs.
    """
    figures: list[Figure | None] = []
    if report := next((r["routing"] for r in rows if r.get("routing")), None):
        figures += [_experts_worth(method, report), _expert_load(method, report)]
    shown: Row = next((r["diagnostics"] for r in rows if r.get("diagnostics")), {})
    if "gates" in shown:
        figures += [_gates(method, shown["gates"]), _gate_histogram(method, shown["gates"])]
    if report := next((r["framelets"] for r in rows if r.get("framelets")), None):
        figures += [_bands(method, report), _energies(method, report)]
    figures.append(_curvature(method, shown.get("curvature")))
    if report := next((r["attention"] for r in rows if r.get("attention")), None):
        figures += [_teachers(method, report), _attention(method, report)]
    if "layer_maps" in shown:
        figures += [_layer_map(method, shown["layer_maps"], when) for when in ("before", "after")]
    return [figure for figure in figures if figure is not None]


def _experts_worth(method: str, report: Row) -> Figure:
    test = report["test"]
    drawn = _figure("experts that answer", "test accuracy (%)")
    drawn.add_bar(
        x=list(EXPERTS.values()),
        y=[_percent(test[name]) for name in EXPERTS],
        marker={"color": [PALETTE[0], *[TEACHER_COLOR] * 3]},
        showlegend=False,
        hovertemplate="%{x}: %{y:.2f} %<extra></extra>",
    )
    lost = test["own"] - test["shuffled"]
    text = (
        "Every node answered by its own experts, by those of another node, by random ones, and by "
        f"all at once. Sending nodes elsewhere costs {100 * lost:.1f} points: "
        + (
            "the choice of experts matters."
            if lost > 0.01
            else "next to nothing, so the experts are interchangeable here."
        )
    )
    return Figure("experts", f"{method}: what the choice of experts is worth", text, drawn)


def _expert_load(method: str, report: Row) -> Figure:
    drawn = _figure("expert", "share of nodes that use it (%)")
    for i, layer in enumerate(report["observed"]["layers"]):
        shares = [expert["share"] for expert in layer["experts"]]
        drawn.add_bar(
            x=[f"{e + 1}" for e in range(len(shares))],
            y=[_percent(share) for share in shares],
            name=f"layer {i + 1}",
            marker={"color": PALETTE[i % len(PALETTE)]},
            hovertemplate=f"layer {i + 1}, expert %{{x}}: %{{y:.1f}} %<extra></extra>",
        )
    drawn.update_layout(barmode="group")
    drawn.update_xaxes(type="category")
    nmi = [layer.get("nmi_class") for layer in report["observed"]["layers"]]
    known = [value for value in nmi if value is not None]
    text = "Bars of one height are an even load; an expert that nobody uses is wasted."
    if known:
        text += (
            f" Which expert a node takes tells of its class with {max(known):.2f} of normalised "
            "mutual information in the layer where it tells most (0: nothing, 1: all)."
        )
    return Figure("routing", f"{method}: load of the experts", text, drawn)


def _gates(method: str, report: Row) -> Figure | None:
    filled = {name: f for name, f in report["by_degree"].items() if f["num_nodes"]}
    if not filled:
        return None
    drawn = _figure("number of neighbours", "mean (%)")
    lines = (("share", "share of the answer from structure"), ("gate", "gate"))
    for i, (key, label) in enumerate(lines):
        drawn.add_scatter(
            x=list(filled),
            y=[_percent(figures[key]) for figures in filled.values()],
            customdata=[figures["num_nodes"] for figures in filled.values()],
            mode="lines+markers",
            name=label,
            line={"color": PALETTE[i], "width": 2},
            hovertemplate="%{x} neighbours: %{y:.1f} % (%{customdata} nodes)<extra></extra>",
        )
    drawn.update_xaxes(type="category")
    drawn.update_yaxes(range=[0, 103])
    text = (
        "How much of a node's answer comes from who its neighbours are rather than from its "
        "features. A line that rises says that the student trusts structure more where there is "
        "more of it. Read the share: either decoder can grow to make up for the gate."
    )
    return Figure("gates", f"{method}: structure and features by degree", text, drawn)


def _gate_histogram(method: str, report: Row) -> Figure:
    counts = report["histogram"]
    drawn = _figure("structure's share of the answer (%)", "observed nodes")
    width = 100 / len(counts)
    drawn.add_bar(
        x=[width * (i + 0.5) for i in range(len(counts))],
        y=counts,
        width=[width * 0.95] * len(counts),
        marker={"color": PALETTE[0]},
        showlegend=False,
        hovertemplate="around %{x:.0f} %: %{y} nodes<extra></extra>",
    )
    text = (
        "One hump is a student that treats all nodes alike; two humps are nodes answered from "
        "structure and nodes answered from features."
    )
    return Figure("gate-histogram", f"{method}: shares of the structure", text, drawn)


def _bands(method: str, report: Row) -> Figure | None:
    shares = report.get("shares")
    if not shares:
        return None
    drawn = _figure("", "mean share of the answer (%)")
    drawn.add_bar(
        x=list(shares),
        y=[_percent(share) for share in shares.values()],
        marker={"color": [PALETTE[i % len(PALETTE)] for i in range(len(shares))]},
        showlegend=False,
        hovertemplate="%{x}: %{y:.1f} %<extra></extra>",
    )
    drawn.update_xaxes(title="band of the framelet transform, and the plain features")
    homophily = report.get("edge_homophily")
    text = (
        "The low-pass band is what neighbours have in common, the others are how they differ. A "
        "student that leans on the low band treats the graph as homophilic, one whose bands are "
        "near 0 answers from features alone"
        + (f"; here {100 * homophily:.0f} % of the edges join one class." if homophily else ".")
    )
    return Figure("bands", f"{method}: which bands answer", text, drawn)


def _energies(method: str, report: Row) -> Figure | None:
    drawn = _figure("layer", "Rayleigh quotient, 0 to 2")
    for i, (who, layers) in enumerate(
        (("teacher", report["teacher"]), (method, report["student"]))
    ):
        values = {n: f["rayleigh"] for n, f in (layers or {}).items() if f["rayleigh"] is not None}
        if values:
            drawn.add_scatter(
                x=list(values),
                y=[_short(value) for value in values.values()],
                mode="lines+markers",
                name=who,
                line={"color": TEACHER_COLOR if i == 0 else PALETTE[0], "width": 2},
                hovertemplate=f"{who}, %{{x}}: %{{y:.3f}}<extra></extra>",
            )
    if not drawn.data:
        return None
    drawn.update_xaxes(type="category")
    text = (
        "How much a layer's outputs differ along edges: near 0 neighbours are alike (smoothing), "
        "large values are differences kept. A teacher's line that falls towards 0 smooths too much."
    )
    return Figure("energies", f"{method}: energy of the layers", text, drawn)


def _curvature(method: str, histogram: Row | None) -> Figure | None:
    if histogram is None:
        return None
    edges, counts = histogram["edges"], histogram["count"]
    drawn = _figure("balanced Forman curvature", "edges")
    drawn.add_bar(
        x=[_short((a + b) / 2) for a, b in itertools.pairwise(edges)],
        y=counts,
        width=[_short(b - a) for a, b in itertools.pairwise(edges)],
        marker={"color": PALETTE[0]},
        showlegend=False,
        hovertemplate="around %{x:.2f}: %{y} edges<extra></extra>",
    )
    text = (
        "Edges far on the left (towards −2) are bottlenecks through which distant nodes must be "
        "heard; graph surgery removes and relieves those. Edges on the right lie in dense parts."
    )
    return Figure("curvature", f"{method}: curvature of the observed graph", text, drawn)


def _teachers(method: str, report: Row) -> Figure:
    drawn = _figure("number of neighbours", "accuracy on observed test nodes (%)")
    who = [*report["teachers"], {"name": method, **report["student"]}]
    for i, one in enumerate(who):
        found = {name: v for name, v in one["by_degree"].items() if v is not None}
        drawn.add_scatter(
            x=list(found),
            y=[_percent(value) for value in found.values()],
            mode="lines+markers",
            name=one["name"],
            line={
                "color": PALETTE[i % len(PALETTE)],
                "width": 3 if i == len(who) - 1 else 2,
                "dash": "solid" if i == len(who) - 1 else "dash",
            },
            hovertemplate=f"{one['name']}<br>%{{x}} neighbours: %{{y:.1f}} %<extra></extra>",
        )
    drawn.update_xaxes(type="category")
    together = report["together"]
    text = (
        f"Dashed: the teachers, {100 * together['best']:.1f} % for the best; some teacher is right "
        f"on {100 * together['oracle']:.1f} % of the nodes, which bounds what choosing among them "
        "can give. If lines cross, teachers of different depth are right on different nodes."
    )
    return Figure("teachers", f"{method}: teachers by degree", text, drawn)


def _attention(method: str, report: Row) -> Figure | None:
    attention = report.get("attention")
    if attention is None:
        return None
    filled = {name: f["mean"] for name, f in attention["by_degree"].items() if f is not None}
    drawn = _figure("number of neighbours", "mean attention (%)")
    for k, teacher in enumerate(report["teachers"]):
        drawn.add_bar(
            x=list(filled),
            y=[_percent(means[k]) for means in filled.values()],
            name=teacher["name"],
            marker={"color": PALETTE[k % len(PALETTE)]},
            hovertemplate=f"{teacher['name']}, %{{x}} neighbours: %{{y:.1f}} %<extra></extra>",
        )
    drawn.update_layout(barmode="stack")
    drawn.update_xaxes(type="category")
    held = "holds" if attention["holds"] else "does not hold"
    rho = attention["rho"]
    measured = "" if rho is None else f" (rank correlation of depth and degree {rho:+.2f})"
    text = (
        "Whom a node of that degree listens to. The paper's claim is that nodes of high degree "
        f"turn to deeper teachers: here it {held}{measured}. Bars alike for all degrees are "
        "attention that does not depend on the node."
    )
    return Figure("attention", f"{method}: attention by degree", text, drawn)


def _layer_map(method: str, report: Row, when: str) -> Figure:
    one = report[when]
    weights = one["attention"]
    drawn = _figure("student's layer", "teacher's layer")
    drawn.add_heatmap(
        z=[[_percent(value) for value in row] for row in weights],
        x=[str(j + 1) for j in range(len(weights[0]))],
        y=[str(i + 1) for i in range(len(weights))],
        zmin=0,
        zmax=100,
        colorscale="Viridis",
        colorbar={"title": {"text": "attention (%)", "side": "right"}, "thickness": 14},
        hovertemplate="teacher %{y} → student %{x}: %{z:.1f} %<extra></extra>",
    )
    drawn.update_xaxes(type="category")
    drawn.update_yaxes(type="category")
    drawn.update_layout(height=max(280, min(900, 140 + 18 * len(weights))))
    text = (
        "Each row is a teacher layer and sums to 100 %: to which of the student's layers it is "
        "held. Before training rows are nearly even."
        if when == "before"
        else "Compare with the map before: bright cells are pairs of layers that training chose to "
        "match. A column that takes every row is attention that went the easiest way."
    )
    title = f"{method}: layers matched {when} training, epoch {one['epoch']}"
    return Figure(f"layer-map-{when}", title, text, drawn)


# -- helpers -------------------------------------------------------------------------------


def _shown(by_method: Mapping[str, Sequence[Row]]) -> set[str]:
    """The teacher and the most accurate students."""

    def mean(method: str) -> float:
        return statistics.fmean(row["test_accuracy"] or 0 for row in by_method[method])

    return set(sorted(by_method, key=lambda m: (m != TEACHER, -mean(m)))[:SHOWN])


def _log_ticks(low: float, high: float) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 times powers of ten around some values, and the range that holds them."""
    low, high = low / 1.3, high * 1.3
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    at = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    at = [value for value in at if low <= value <= high]
    if len(at) > 9:
        at = [value for value in at if math.log10(value).is_integer()]
    return {
        "tickvals": at,
        "ticktext": [_si(value) for value in at],
        "range": [math.log10(low), math.log10(high)],
    }


def _si(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _figure(x: str, y: str, *, log_y: bool = False) -> go.Figure:
    drawn = go.Figure()
    drawn.update_layout(
        template={},  # the page brings colours
        height=420,
        margin={"l": 62, "r": 14, "t": 12, "b": 56},
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0},
        hoverlabel={"namelength": -1},
    )
    drawn.update_xaxes(title={"text": x}, automargin=True)
    drawn.update_yaxes(title={"text": y}, automargin=True)
    if log_y:
        drawn.update_yaxes(type="log", nticks=8)
    return drawn


def _legend_note(lines: int) -> str:
    return "" if lines <= SHOWN else " A click on a name in the legend shows the methods left out."


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 3)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _compact(drawn: Any) -> Any:
    """What is left of a figure without empty entries."""
    if isinstance(drawn, Mapping):
        kept = {name: _compact(value) for name, value in drawn.items() if value is not None}
        return {n: v for n, v in kept.items() if v != {}}
    if isinstance(drawn, list | tuple):
        return [_compact(value) for value in drawn]
    return drawn
