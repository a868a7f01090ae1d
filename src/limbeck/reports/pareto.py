"""Accuracy against what a method costs, and the Pareto front of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.evaluation.compare import is_teacher
from limbeck.reports.drawing import TEACHER_COLOR, Colors, Figure, empty_plot, percent, short

COST_AXES = {
    "latency_us_b1": "latency of one node (µs, median)",
    "latency_us_b256": "latency of 256 nodes (µs, median)",
    "model_bytes": "size of the model (bytes)",
    "bundle_bytes": "size of the bundle (bytes)",
    "parameters": "parameters",
    "train_seconds": "training time (s)",
}
"""What accuracy is weighed against; less of it is better."""

PER_CHARACTER = 0.023
"""Share of the width that a character of a name takes on a phone; names stand left of the front."""


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
    drawn = empty_plot(COST_AXES[axis], "test accuracy (%)")
    costs = [point.cost for point in points]
    best = front(points)
    named = [point for point in best if not is_teacher(point.method)]  # theirs are diamonds
    room = PER_CHARACTER * max((len(point.method) for point in named), default=0) + 0.05
    drawn.update_xaxes(type="log", **_log_ticks(min(costs), max(costs), min(room, 0.4)))
    drawn.add_scatter(
        x=[short(p.cost) for p in best],
        y=[percent(p.score) for p in best],
        mode="lines",
        name="Pareto front",
        line={"shape": "hv", "dash": "dot", "width": 2, "color": TEACHER_COLOR},
        hoverinfo="skip",
    )
    for point in points:
        spread = None if point.std is None else {"type": "data", "array": [percent(point.std)]}
        drawn.add_scatter(
            x=[short(point.cost)],
            y=[percent(point.score)],
            error_y=None if spread is None else {**spread, "thickness": 1, "width": 3},
            mode="markers+text" if point in named else "markers",
            text=[point.method] if point in named else None,
            textposition="top left",
            name=point.method,
            marker={
                "size": 11,
                "color": colors[point.method],
                "symbol": colors.symbol(point.method),
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


def _log_ticks(low: float, high: float, room: float) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 times powers of ten around some values, and the range that holds them.

    ``room`` is the share of the range that is left free before the lowest one.
    """
    low, high = low / 1.3, high * 1.3
    low /= (high / low) ** (room / (1 - room))
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
