"""``limbeck audit``: whether a student still fits the graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.cli.options import GraphSource
from limbeck.cli.output import console, percent, show_json, show_table

if TYPE_CHECKING:
    from limbeck.evaluation.audit import Audit


def audit(
    bundle: Path,
    graph: str | None = None,
    *,
    tables: GraphSource | None = None,
    teacher_logits: Path | None = None,
    json: bool = False,
) -> None:
    """Compare a new graph with what a student was distilled from; say whether to distil again.

    Args:
        bundle: Folder of the bundle.
        graph: Name of a data set, or a folder that holds node and edge tables.
        tables: Which graph, and how to read it if it is tables.
        teacher_logits: A teacher's logits on the new graph: .npy, .npz, .pt or .parquet.
        json: Print JSON.
    """
    import limbeck
    from limbeck.evaluation.audit import audit as run_audit

    source = tables or GraphSource()
    if graph is not None:
        source = replace(source, graph=graph)
    teacher = None if teacher_logits is None else limbeck.knowledge_from(teacher_logits)
    found = run_audit(bundle, source.load(), teacher)
    if json:
        show_json(found.to_dict())
    else:
        _show(bundle, found)


def _show(bundle: Path, found: Audit) -> None:
    rows = [
        ("nodes", f"{found.nodes:,}", ""),
        ("known to the bundle", f"{found.known:,}", ""),
        ("features that drifted, %", percent(found.features_moved), ""),
        ("values outside, %", percent(found.values_outside), ""),
        ("shift of degrees", f"{found.degree_shift:.3f}", ""),
        ("shift of answers", f"{found.answer_shift:.3f}", ""),
        ("accuracy, %", percent(found.accuracy), percent(found.accuracy_before)),
        ("agreement, %", percent(found.agreement), percent(found.agreement_before)),
        ("ece, %", percent(found.ece), percent(found.ece_before)),
        ("ece calibrated, %", percent(found.ece_calibrated), ""),
        *(
            (f"not seen in training: {name}", f"{n:,}", "")
            for name, n in found.unseen_values.items()
        ),
    ]
    show_table(str(bundle), ("", "now", "when made"), rows)
    moved = [
        (each.feature, f"{each.shift:.3f}", percent(each.outside)) for each in found.most_moved
    ]
    if moved:
        show_table("features that moved most", ("feature", "shift", "outside, %"), moved)
    parts = [
        (name, part["num_nodes"], percent(part["accuracy"]), percent(part["agreement"]))
        for name, part in found.slices.items()
    ]
    show_table("slices", ("slice", "nodes", "accuracy, %", "agreement, %"), parts)
    out = console()
    out.print(f"\nverdict: {found.verdict}")
    for reason in found.reasons:
        out.print(f"  • {reason}", soft_wrap=True)
