"""``limbeck latency``: how long an answer takes, beside the teacher's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.cli.output import show_json, show_table
from limbeck.errors import OptionError


def latency(
    bundle: Path,
    *,
    batch_sizes: tuple[int, ...] = (1, 10, 256, 4096),
    seconds: float = 4.0,
    teacher: bool = False,
    graph: str | None = None,
    data_root: str | None = None,
    json: bool = False,
) -> None:
    """Measure a bundle's latency on this machine, one thread, p50 and p99 in microseconds.

    Args:
        bundle: Folder of the bundle.
        batch_sizes: Numbers of nodes per call.
        seconds: Time to spend on the student, in total.
        teacher: Measure the teacher too: on the whole graph and on drawn neighbourhoods.
        graph: The graph for the teacher; the bundle's own by default.
        data_root: Folder of the named data sets; LIMBECK_DATA by default.
        json: Print JSON.
    """
    import limbeck
    from limbeck.runtime.latency import measure_latency

    student = limbeck.load(bundle)
    figures = measure_latency(student, batch_sizes, seconds)
    columns: dict[str, Any] = {"student": figures["x"], "stored answer": figures["nodes"]}
    document: dict[str, Any] = {"threads": 1, **columns}
    if teacher:
        from limbeck.evaluation.latency import measure_teacher_latency

        manifest = student.manifest
        name = str(manifest.teacher.get("name"))
        if not manifest.teacher.get("options"):
            raise OptionError(
                f"{bundle}: its teacher {name!r} is not one of ours and is not in the bundle, so "
                "it cannot be timed; leave --teacher out."
            )
        if not (graph or manifest.graph.dataset):
            raise OptionError(
                f"{bundle}: the teacher is timed on a graph, and this bundle's is your own: name "
                "it with --graph FOLDER."
            )
        theirs = measure_teacher_latency(
            name,
            manifest.teacher["options"],
            limbeck.load_graph(graph or manifest.graph.dataset, data_root=data_root),
            batch_sizes,
            seconds,
        )
        columns.update(theirs)
        document.update(theirs)
    if json:
        show_json(document)
        return
    rows = []
    for size in batch_sizes:
        cells = []
        for figure in columns.values():
            at = figure.get(str(size))
            cells.append("–" if at is None else f"{at['p50_us']:,.1f} / {at['p99_us']:,.1f}")
        rows.append([size, *cells])
    show_table(f"{bundle}: µs per call, p50 / p99, one thread", ("batch", *columns), rows)
