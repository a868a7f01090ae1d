"""``limbeck bench``: a table of graphs, methods, settings and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.cli.options import split_names
from limbeck.cli.output import console, say, show_json

if TYPE_CHECKING:
    from limbeck.evaluation.plan import Group


def bench(
    *,
    out: Path,
    config: Path | None = None,
    graphs: str | None = None,
    methods: str | None = None,
    settings: str | None = None,
    teachers: str | None = None,
    seeds: int | None = None,
    trials: int | None = None,
    diagnostics: bool | None = None,
    latency: bool | None = None,
    data_root: str | None = None,
    workers: int = 1,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Compute a table; what is already there is not computed again.

    Writes runs.parquet (a row per run) and table.md into the folder.

    Args:
        out: Folder of the results.
        config: YAML file with the options below, method_options,
            teacher_options, variants and learn_from.
        graphs: Data sets or folders of tables, separated by commas.
        methods: Methods, separated by commas.
        settings: Settings, separated by commas.
        teachers: Teachers, separated by commas.
        seeds: Number of seeds, from 0.
        trials: Candidates that each method trains per graph and cut, chosen on validation; a
            method whose parts are trained by themselves has as many for each of them.
        diagnostics: Describe where students of experts send nodes, the gates
            and energies of framelet students, and what else a report shows.
        latency: Measure the exported students' latency.
        data_root: Folder of the named data sets; LIMBECK_DATA by default.
        workers: Processes that compute side by side.
        json: Print the rows as JSON.
        quiet: Show no progress.
    """
    from limbeck.evaluation.bench import run_bench
    from limbeck.evaluation.compare import compare
    from limbeck.evaluation.memory import keep_freed_memory
    from limbeck.evaluation.plan import Bench
    from limbeck.files import appearing_whole
    from limbeck.reports.tables import (
        differences_to_terminal,
        standings_to_terminal,
        to_markdown,
        to_terminal,
    )

    lists = {"graphs": graphs, "methods": methods, "settings": settings, "teachers": teachers}
    given: dict[str, Any] = {k: split_names(v) for k, v in lists.items() if v is not None}
    single = {
        "seeds": seeds,
        "trials": trials,
        "diagnostics": diagnostics,
        "latency": latency,
        "data_root": data_root,
    }
    given.update({name: value for name, value in single.items() if value is not None})
    plan = Bench.from_file(config, **given) if config else Bench(**given)

    def report(group: Group, done: int, total: int) -> None:
        if not quiet:
            say(f"[{done}/{total}] {group}")

    keep_freed_memory()
    table = run_bench(plan, out, workers=workers, on_group=report)
    comparison = compare(table)
    with appearing_whole(out / "table.md") as aside:
        aside.write_text(to_markdown(comparison), encoding="utf-8")
    if json:
        show_json(table.to_pylist())
        return
    out_console = console()
    out_console.print(to_terminal(comparison))
    for reference in comparison.differences:
        out_console.print(differences_to_terminal(comparison, reference))
    out_console.print(standings_to_terminal(comparison))
