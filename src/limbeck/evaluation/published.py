"""Numbers that papers print, with who printed them: to be read beside ours, never among them."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import yaml

from limbeck.evaluation.compare import TEACHER, Cell, Comparison


class Published(NamedTuple):
    """A number of the literature, in percent.

    Args:
        graph: Our name of the data set, or that of the nearest one.
        setting: Our name of the setting.
        teacher: Our name of the teacher.
        method: Our name of the method; ``"teacher"`` for the teacher itself. Some are not of ours.
        mean: The mean.
        std: Its standard deviation, ``None`` where none was printed.
        source: Who printed it, and where.
        line: Where our method card quotes it.
        read: Whether the number was read where it was first printed.
        protocol: What it was measured on.
    """

    graph: str
    setting: str
    teacher: str
    method: str
    mean: float
    std: float | None
    source: str
    line: str
    read: str
    protocol: str


class Beside(NamedTuple):
    """A published number and ours of the same name.

    Args:
        published: The number.
        mean: Our mean in percent, ``None`` if the table has none.
        std: Its population standard deviation.
        num_seeds: Seeds of ours.
    """

    published: Published
    mean: float | None
    std: float | None
    num_seeds: int


@cache
def published() -> tuple[Published, ...]:
    """All numbers of ``published.yaml``, in its order."""
    text = resources.files(__package__).joinpath("published.yaml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = yaml.safe_load(text)
    return tuple(
        Published(
            graph,
            entry["setting"],
            entry["teacher"],
            method,
            figures[0],
            figures[1] if len(figures) > 1 else None,
            entry["source"],
            entry["line"],
            entry["read"],
            entry["protocol"].strip(),
        )
        for entry in entries
        for graph, by_method in entry["graphs"].items()
        for method, figures in by_method.items()
    )


def beside(comparison: Comparison) -> list[Beside]:
    """Published numbers of the cells that a comparison has, each with ours of the same name.

    Names agree and little else needs to: code, versions, splits drawn from other seeds, and often
    the tuning differ. Where no cell has the paper's teacher alone, one with a committee that has it
    stands for it: students learn there from the best member, or from all.

    Args:
        comparison: A comparison of ``test_accuracy``.
    """
    ours = {(s.cell, s.method): s for s in comparison.summaries}
    cells = list(dict.fromkeys(cell for cell, _ in ours))
    found = []
    for number in published():
        alone = Cell(number.graph, number.setting, number.teacher)
        member = f"{TEACHER}:{number.teacher}"
        among = (c for c in cells if c[:2] == alone[:2] and (c, member) in ours)
        cell = alone if alone in cells else next(among, None)
        if cell is None:
            continue
        as_member = cell != alone and number.method == TEACHER
        mine = ours.get((cell, member if as_member else number.method))
        found.append(
            Beside(number, None, None, 0)
            if mine is None
            else Beside(number, 100 * mine.mean, 100 * mine.std, mine.num_seeds)
        )
    return found
