"""What commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def show_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def show_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str | None = None
) -> None:
    """Print a table on stdout."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*["" if value is None else str(value) for value in row])
    console().print(table)


def console() -> Console:
    """Where results go; wide enough for a table when it is not a terminal."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)


def say(text: str) -> None:
    """Print a line about what is going on, on stderr."""
    print(text, file=sys.stderr, flush=True)


def percent(value: float | None) -> str:
    """An accuracy in percent with two digits."""
    return "–" if value is None else f"{100 * value:.2f}"
