"""``limbeck predict``: ask a bundle, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from limbeck.cli.output import show_json, show_table
from limbeck.errors import OptionError


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
        explain: Print also the experts that each layer sends a node to, with their gates; for
            students of experts, such as those of rbm and moe.
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
    layers = student.explain(**request) if explain else ()
    names = list(range(len(probabilities))) if input is not None else request["nodes"]
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    answers: list[dict[str, Any]] = [
        {
            "node": name,
            "classes": [{"class": student.classes[c], "probability": float(row[c])} for c in best],
        }
        for name, row, best in zip(names, probabilities, order, strict=True)
    ]
    if explain:
        for i, answer in enumerate(answers):
            answer["layers"] = [
                {"experts": layer.experts[i].tolist(), "gates": layer.gates[i].tolist()}
                for layer in layers
            ]
    if json:
        show_json(answers)
        return
    columns = [
        "node" if input is None else "row",
        *[f"class {i + 1}" for i in range(min(top, len(student.classes)))],
        *[f"layer {i + 1}: expert (gate)" for i in range(len(layers))],
    ]
    rows = [
        [
            answer["node"],
            *[f"{c['class']} ({c['probability']:.4f})" for c in answer["classes"]],
            *[_sent_to(layer) for layer in answer.get("layers", [])],
        ]
        for answer in answers
    ]
    show_table(str(bundle), columns, rows)


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
