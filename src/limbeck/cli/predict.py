"""``limbeck predict``: ask a bundle, without torch."""

from __future__ import annotations

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
    top: int = 1,
    explain: bool = False,
    json: bool = False,
) -> None:
    """Print the classes of known nodes, or of new nodes in a table.

    Args:
        bundle: Folder of the bundle.
        nodes: Ids of known nodes.
        input: Table of new nodes (Parquet, CSV, Arrow) with the columns that training had, or a
            .npy file of features [B, F].
        top: Number of classes to print per node.
        explain: Print also why: for students of experts, such as those of rbm and moe, the experts
            that each layer sends a node to, with their gates; for students that read neighbours,
            such as those of sa-mlp, how much these count, and which moved the answer most.
        json: Print JSON.
    """
    import numpy as np

    import limbeck

    if bool(nodes) == (input is not None):
        raise OptionError("give either --nodes (known nodes) or --input (a table of new nodes).")
    if top < 1:
        raise OptionError(f"option --top is {top}: it must be at least 1.")
    student = limbeck.load(bundle)
    request = {"nodes": _as_ids(nodes, student)} if input is None else _rows_of_file(student, input)
    probabilities = student.predict_proba(**request)
    reasons = _reasons(student.explain(**request), len(probabilities)) if explain else []
    names = list(range(len(probabilities))) if input is not None else request["nodes"]
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    answers: list[dict[str, Any]] = [
        {
            "node": name,
            "classes": [{"class": student.classes[c], "probability": float(row[c])} for c in best],
        }
        for name, row, best in zip(names, probabilities, order, strict=True)
    ]
    for answer, reason in zip(answers, reasons, strict=bool(reasons)):
        answer |= reason
    if json:
        show_json(answers)
        return
    columns = [
        "node" if input is None else "row",
        *[f"class {i + 1}" for i in range(min(top, len(student.classes)))],
        *_reason_columns(reasons),
    ]
    rows = [
        [
            answer["node"],
            *[f"{c['class']} ({c['probability']:.4f})" for c in answer["classes"]],
            *_reason_cells(answer),
        ]
        for answer in answers
    ]
    show_table(str(bundle), columns, rows)


def _reasons(explanation: Any, count: int) -> list[dict[str, Any]]:
    """What was explained, node by node."""
    from limbeck.runtime import StructureExplanation

    if isinstance(explanation, StructureExplanation):
        return [
            {
                "gate": float(gate),
                "structure_share": float(share),
                "neighbors": [{"node": node, "change": change} for node, change in neighbors],
            }
            for gate, share, neighbors in zip(
                explanation.gate, explanation.share, explanation.neighbors, strict=True
            )
        ]
    return [
        {
            "layers": [
                {"experts": layer.experts[i].tolist(), "gates": layer.gates[i].tolist()}
                for layer in explanation
            ]
        }
        for i in range(count)
    ]


def _reason_columns(reasons: list[dict[str, Any]]) -> list[str]:
    if not reasons:
        return []
    if "layers" in reasons[0]:
        return [f"layer {i + 1}: expert (gate)" for i in range(len(reasons[0]["layers"]))]
    return ["gate", "share of structure", "neighbour (change)"]


def _reason_cells(answer: dict[str, Any]) -> list[str]:
    if "layers" in answer:
        return [_sent_to(layer) for layer in answer["layers"]]
    if "neighbors" not in answer:
        return []
    most = answer["neighbors"][:SHOWN_NEIGHBORS]
    moved = ", ".join(f"{each['node']} ({each['change']:+.4f})" for each in most)
    return [f"{answer['gate']:.4f}", f"{answer['structure_share']:.4f}", moved]


def _sent_to(layer: dict[str, Any]) -> str:
    """Experts of a layer and their gates, the largest first."""
    pairs = zip(layer["experts"], layer["gates"], strict=True)
    return ", ".join(f"{expert} ({gate:.2f})" for expert, gate in pairs)


def _as_ids(nodes: tuple[str, ...], student: Any) -> list[Any]:
    """Ids in the type that the bundle has; text that is no number stays text and is not found."""
    if student.store.ids.dtype.kind != "i":
        return list(nodes)
    return [int(node) if node.lstrip("-").isdigit() else node for node in nodes]


def _rows_of_file(student: Any, path: Path) -> dict[str, Any]:
    """Features of new nodes, as the student takes them."""
    import numpy as np

    if path.suffix == ".npy":
        try:
            return {"x": np.load(path, allow_pickle=False)}
        except (OSError, ValueError) as error:
            raise OptionError(f"{path}: features cannot be read ({error}).") from None
    from limbeck.table_files import open_table

    columns = [
        column["name"] for column in (student.manifest.preprocessing or {}).get("columns", [])
    ]
    return {"x": student.rows_of_table(open_table(path).read(columns), str(path))}
