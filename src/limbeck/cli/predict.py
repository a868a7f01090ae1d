"""``limbeck predict``: ask a bundle, without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from limbeck.cli.output import show_json, show_table
from limbeck.errors import OptionError

SHOWN_NEIGHBORS = 3
"""Neighbours that are printed of a node, those that moved its answer most."""


def predict(
    bundle: Path,
    *,
    nodes: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    input: Path | None = None,
    neighbors: str | None = None,
    top: int | None = None,
    explain: bool = False,
    json: bool = False,
) -> None:
    """Print the classes or labels of known nodes, or of new nodes in a table.

    Args:
        bundle: Folder of the bundle.
        nodes: Ids of known nodes.
        input: Table of new nodes (Parquet, CSV, Arrow) with the columns that training had, or a
            .npy file of features [B, F].
        neighbors: Column of that table that lists the ids of a row's neighbours, for students that
            read them, such as those of sa-mlp, linkx and limbeck, or positions: lists, or text in
            which spaces, commas or semicolons part the ids. A row may be empty. Ids that the bundle
            does not know are ignored.
        top: Number of classes or labels to print per node, the most probable first; by default the
            class, or all labels with a probability above one half.
        explain: Print also why: for students of experts, such as those of rbm and moe, the experts
            that each layer sends a node to, with their gates; for students that read neighbours,
            such as those of sa-mlp and linkx, which moved the answer most, and where a gate weighs
            them how much they count; for students that read bands, such as those of fmlp-o, how
            much each band counts.
        json: Print JSON.
    """
    import numpy as np

    import limbeck
    from limbeck.runtime.explain import reasons_of

    if bool(nodes) == (input is not None):
        raise OptionError("give either --nodes (known nodes) or --input (a table of new nodes).")
    if neighbors is not None and input is None:
        raise OptionError("--neighbors names a column of the table --input: give that, too.")
    if top is not None and top < 1:
        raise OptionError(f"option --top is {top}: it must be at least 1.")
    student = limbeck.load(bundle)
    request = (
        {"nodes": _as_ids(nodes, student)}
        if input is None
        else _rows_of_file(student, input, neighbors)
    )
    probabilities = student.predict_proba(**request)
    reasons = reasons_of(student.explain(**request), len(probabilities)) if explain else []
    names = list(range(len(probabilities))) if input is not None else request["nodes"]
    order = np.argsort(-probabilities, axis=1, kind="stable")
    several = student.manifest.several_labels
    counts = (probabilities > 0.5).sum(axis=1) if several else np.ones(len(order), dtype=int)
    shown = [row[: count if top is None else top] for row, count in zip(order, counts, strict=True)]
    answers: list[dict[str, Any]] = [
        {
            "node": name,
            "classes": [{"class": student.classes[c], "probability": float(row[c])} for c in best],
        }
        for name, row, best in zip(names, probabilities, shown, strict=True)
    ]
    for answer, reason in zip(answers, reasons, strict=bool(reasons)):
        answer |= reason
    if json:
        show_json(answers)
        return
    columns = [
        "node" if input is None else "row",
        *(["labels"] if several else [f"class {i + 1}" for i in range(_width(shown))]),
        *_reason_columns(reasons),
    ]
    rows = [
        [
            answer["node"],
            *_answer_cells(answer["classes"], several=several),
            *_reason_cells(answer),
        ]
        for answer in answers
    ]
    show_table(str(bundle), columns, rows)


def _width(shown: list[Any]) -> int:
    return max(map(len, shown), default=1)


def _answer_cells(classes: list[dict[str, Any]], *, several: bool) -> list[str]:
    """A cell per class, or one with all labels of a node."""
    cells = [f"{c['class']} ({c['probability']:.4f})" for c in classes]
    return [", ".join(cells) or "none"] if several else cells


def _reason_columns(reasons: list[dict[str, Any]]) -> list[str]:
    if not reasons:
        return []
    if "layers" in reasons[0]:
        return [f"layer {i + 1}: expert (gate)" for i in range(len(reasons[0]["layers"]))]
    if "band_gates" in reasons[0]:
        count = len(reasons[0]["band_gates"])
        gates = [f"layer {i + 1}: gates of bands" for i in range(count)]
        return [*gates, "shares of bands", "share of features"]
    weighed = ["gate", "share of structure"] if "gate" in reasons[0] else []
    return [*weighed, "neighbour (change)"]


def _reason_cells(answer: dict[str, Any]) -> list[str]:
    if "layers" in answer:
        return [_sent_to(layer) for layer in answer["layers"]]
    if "band_gates" in answer:
        gates = [_figures(layer) for layer in answer["band_gates"]]
        return [*gates, _figures(answer["band_shares"]), f"{answer['feature_share']:.4f}"]
    if "neighbors" not in answer:
        return []
    most = answer["neighbors"][:SHOWN_NEIGHBORS]
    moved = ", ".join(f"{each['node']} ({each['change']:+.4f})" for each in most)
    weights = [answer[name] for name in ("gate", "structure_share") if name in answer]
    return [*(f"{weight:.4f}" for weight in weights), moved]


def _figures(values: list[float]) -> str:
    """Gates or shares of bands, the low-pass first."""
    return ", ".join(f"{value:.4f}" for value in values)


def _sent_to(layer: dict[str, Any]) -> str:
    """Experts of a layer and their gates, the largest first."""
    pairs = zip(layer["experts"], layer["gates"], strict=True)
    return ", ".join(f"{expert} ({gate:.2f})" for expert, gate in pairs)


def _as_ids(nodes: Iterable[str], student: Any) -> list[Any]:
    """Ids in the type that the bundle has; text that is no number stays text and is not found."""
    if student.store.ids.dtype.kind != "i":
        return list(nodes)
    return [int(node) if node.lstrip("-").isdigit() else node for node in nodes]


def _rows_of_file(student: Any, path: Path, neighbors: str | None) -> dict[str, Any]:
    """Features of new nodes, and the ids of their neighbours, as the student takes them."""
    import numpy as np

    if path.suffix == ".npy":
        if neighbors is not None:
            raise OptionError(f"{path} has no columns: give a table as --input for --neighbors.")
        try:
            return {"x": np.load(path, allow_pickle=False)}
        except (OSError, ValueError) as error:
            raise OptionError(f"{path}: features cannot be read ({error}).") from None
    from limbeck.table_files import open_table

    columns = [
        column["name"] for column in (student.manifest.preprocessing or {}).get("columns", [])
    ]
    file = open_table(path)
    if neighbors is not None:
        file.check_column(neighbors, "neighbors")
    wanted = columns if neighbors is None else list(dict.fromkeys([*columns, neighbors]))
    # a feature that is missing is told by the student, who knows what it is
    present = [name for name in wanted if name in file.columns]
    table = file.read(present or file.columns[:1])
    request: dict[str, Any] = {"x": student.rows_of_table(table, str(path))}
    if neighbors is not None:
        lists = table[neighbors].to_pylist()
        request["neighbors"] = [_neighbor_ids(ids, student) for ids in lists]
    return request


def _neighbor_ids(given: Any, student: Any) -> list[Any]:
    """Ids of one row's neighbours: from a list, from text, from a single id, or from nothing."""
    if given is None:
        return []
    if isinstance(given, str):
        given = re.split(r"[\s,;]+", given.strip(" \t\n,;"))
        given = [] if given == [""] else given
    ids = given if isinstance(given, list) else [given]
    return _as_ids((str(node) for node in ids if node is not None), student)
