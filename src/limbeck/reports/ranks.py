"""The critical-difference diagram: mean ranks on a line, bars over what is not told apart.

After figure 1 of "Statistical Comparisons of Classifiers over Multiple Data Sets" (Demšar, JMLR
2006), as an SVG in the colour of the text around it, so that it is read on light and on dark.
"""

from __future__ import annotations

import math
from html import escape

from limbeck.evaluation.compare import CriticalDifference

WIDTH = 760
MARGIN = 190
"""Room for names on either side of the line."""
MOST_TICKS = 16
"""Most steps from one end of the line to the other; more would run into each other."""
_LINE, _ROW = 64, 22


def ranks_svg(critical: CriticalDifference, *, color: str = "currentColor") -> str:
    """Draw mean ranks and what they tell apart.

    Args:
        critical: What :func:`limbeck.evaluation.compare.critical_difference` found.
        color: Colour of lines and letters; by default that of the text around the drawing, black in
            a file of its own.

    Returns:
        An ``<svg>`` element, which is also a file.
    """
    low, high = 1, max(len(critical.methods), math.ceil(max(critical.ranks)))
    left, right = MARGIN, WIDTH - MARGIN

    def x(rank: float) -> float:
        return left + (rank - low) / (high - low) * (right - left)

    half = math.ceil(len(critical.methods) / 2)
    first_row = _LINE + 22 + 9 * len(critical.groups)
    height = first_row + half * _ROW + 6
    parts = [
        _line(x(low), _LINE, x(high), _LINE),
        *(
            _line(x(rank), _LINE - 6, x(rank), _LINE) + _text(x(rank), _LINE - 11, str(rank))
            for rank in range(low, high + 1, math.ceil((high - low) / MOST_TICKS))
        ),
        _text((left + right) / 2, 12, "mean rank, 1 is best"),
    ]
    reach = min(x(low + critical.distance), right)
    label = f"critical difference {critical.distance:.2f}"
    parts += [_line(left, 30, reach, 30, 2), _text(left - 8, 34, label, "end")]
    for i, (method, rank) in enumerate(zip(critical.methods, critical.ranks, strict=True)):
        best = i < half
        y = first_row + _ROW * (i if best else len(critical.methods) - 1 - i) + 8
        end = left - 12 if best else right + 12
        name = f"{method}  {rank:.2f}" if best else f"{rank:.2f}  {method}"
        parts.append(_line(x(rank), _LINE, x(rank), y) + _line(x(rank), y, end, y))
        parts.append(_text(end + (-5 if best else 5), y + 4, name, "end" if best else "start"))
    place = dict(zip(critical.methods, critical.ranks, strict=True))
    for i, group in enumerate(critical.groups):
        y = _LINE + 12 + 9 * i
        parts.append(_line(x(place[group[0]]) - 4, y, x(place[group[-1]]) + 4, y, 5))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'width="{WIDTH}" font-family="system-ui, sans-serif" font-size="13" '
        f'fill="{color}" stroke="{color}">'
        f"<title>Mean ranks of {len(critical.methods)} students over {critical.num_cells} cells; "
        "a thick bar joins those that are not told apart</title>"
        f"{''.join(parts)}</svg>\n"
    )


def _line(x1: float, y1: float, x2: float, y2: float, width: float = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke-width="{width:g}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" stroke="none" '
        f'xml:space="preserve">{escape(text)}</text>'
    )
