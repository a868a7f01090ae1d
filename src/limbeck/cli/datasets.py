"""``limbeck datasets``: the graphs that have a name."""

from __future__ import annotations

from limbeck.cli.output import show_json, show_table


def datasets(*, json: bool = False) -> None:
    """List the graphs that have a name.

    Args:
        json: Print JSON.
    """
    from limbeck.graphs.datasets import DATASETS

    rows = [(name, d.title, d.split, d.source) for name, d in DATASETS.items()]
    if json:
        show_json(
            [dict(zip(("name", "title", "split", "source"), row, strict=True)) for row in rows]
        )
    else:
        show_table("data sets", ("name", "what it is", "split", "source"), rows)
