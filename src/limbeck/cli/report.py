"""``limbeck report``: tables of runs as one HTML file."""

from __future__ import annotations

from pathlib import Path

from limbeck.cli.output import say, show_json
from limbeck.errors import OptionError


def report(
    *runs: Path,
    out: Path = Path("report.html"),
    title: str = "Limbeck: a comparison",
    json: bool = False,
) -> None:
    """Write one HTML file about tables of runs; it opens offline, on a laptop and on a phone.

    Args:
        runs: Folders that limbeck bench wrote.
        out: The file to write.
        title: Title of the page.
        json: Print the file's name and size as JSON.
    """
    from limbeck.reports.report import write_report

    if not runs:
        raise OptionError("no folder of runs was given: name one that 'limbeck bench' wrote.")
    file = write_report(runs, out, title=title)
    size = file.stat().st_size
    if json:
        show_json({"report": str(file), "bytes": size})
        return
    say(f"{file}: {size / 1e6:.1f} MB, open it in a browser.")
