"""The diagram of ranks: a file that is XML, with every student where its rank is."""

import re
from itertools import pairwise
from xml.etree import ElementTree

from limbeck.evaluation.compare import CriticalDifference
from limbeck.reports.ranks import MARGIN, WIDTH, ranks_svg
from limbeck.reports.tables import critical_note

FOUND = CriticalDifference(
    ("a", "b<c", "d"), (1.0, 2.0, 3.0), 4, 1.657, 0.05, 0.018, (("a", "b<c"),)
)


def test_the_drawing():
    svg = ranks_svg(FOUND)
    root = ElementTree.fromstring(svg)
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a  1.00", "b<c  2.00", "3.00  d", "critical difference 1.66"} <= set(texts)
    # the bar over a and b: from rank 1 to rank 2, halfway along the line
    bar = next(e for e in root.iter() if e.get("stroke-width") == "5")
    assert float(bar.get("x1")) == MARGIN - 4
    assert float(bar.get("x2")) == WIDTH / 2 + 4
    assert max(float(y) for y in re.findall(r'y[12]?="([\d.]+)"', svg)) < float(
        root.get("viewBox").split()[3]
    )


def test_the_note():
    assert critical_note(FOUND) == (
        "Friedman's test over 4 cells: p = 0.018; critical difference of mean ranks "
        "(Nemenyi, 5 %): 1.66. Not told apart, each from first to last in rank: a – b<c."
    )


def test_ticks_of_many_students_do_not_run_into_each_other():
    names = tuple(f"student {i}" for i in range(23))
    ranks = tuple(1.0 + i for i in range(23))
    svg = ranks_svg(CriticalDifference(names, ranks, 24, 7.1, 0.05, 0.01, ()))
    ticks = [float(x) for x in re.findall(r'<text x="([\d.]+)"[^>]*>\d+</text>', svg)]
    assert 2 < len(ticks) <= 17
    assert min(b - a for a, b in pairwise(ticks)) > 20  # two digits of 13 pixels
