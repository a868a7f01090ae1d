"""What figures of a report have in common: the figure itself, colours, an empty plot, numbers.

Colours of letters, lines and grids are left to the page, which knows whether it is light or dark.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from limbeck.evaluation.compare import TEACHER, is_teacher
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

    def symbol(self, method: str) -> str:
        """Its marker, which tells methods apart whose colours are alike, and teachers from all."""
        if is_teacher(method):
            kinds = ("diamond", "diamond-open", "diamond-cross", "diamond-tall")
            return kinds[(1 + self._members[method] % 3) if method in self._members else 0]
        kinds = ("circle", "square", "triangle-up", "cross")
        return kinds[self._places.get(method, 0) // len(PALETTE) % len(kinds)]


def empty_plot(x: str, y: str, *, log_y: bool = False) -> go.Figure:
    """A plot without data.

    Args:
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
        log_y: Whether the vertical axis is logarithmic.
    """
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


def shown_at_first(by_method: Mapping[str, Sequence[Row]]) -> set[str]:
    """The teacher and the most accurate students."""

    def mean(method: str) -> float:
        return statistics.fmean(row["test_accuracy"] or 0 for row in by_method[method])

    return set(sorted(by_method, key=lambda m: (m != TEACHER, -mean(m)))[:SHOWN])


def method_line(method: str, colors: Colors, shown: Collection[str]) -> dict[str, Any]:
    """How plotly draws the line of a method; one that is not shown waits in the legend."""
    return {
        "mode": "lines+markers",
        "name": method,
        "visible": True if method in shown else "legendonly",
        "line": {"color": colors[method], "dash": colors.dash(method), "width": 2},
    }


def legend_note(lines: int) -> str:
    """What the text of a figure with so many lines says of those not shown at first."""
    return "" if lines <= SHOWN else " A click on a name in the legend shows the methods left out."


def percent(share: float | None) -> float | None:
    """A share as the page holds it: in percent, to three decimals."""
    return None if share is None else round(100 * share, 3)


def short(value: float | None) -> float | None:
    """A number as the page holds it: to five digits."""
    return None if value is None else float(f"{value:.5g}")


def _compact(drawn: Any) -> Any:
    """What is left of a figure without empty entries."""
    if isinstance(drawn, Mapping):
        kept = {name: _compact(value) for name, value in drawn.items() if value is not None}
        return {n: v for n, v in kept.items() if v != {}}
    if isinstance(drawn, list | tuple):
        return [_compact(value) for value in drawn]
    return drawn
