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
    json: bool = False,
) -> None:
    """Print the classes of known nodes, or of new nodes in a table.

    Args:
        bundle: Folder of the bundle.
        nodes: Ids of known nodes.
        input: Table of new nodes (Parquet, CSV, Arrow) with the columns that training had, or a
            .npy file of features [B, F].
        top: Number of classes to print per node.
        json: Print JSON.
    """
    import numpy as np

    import limbeck

    if bool(nodes) == (input is not None):
        raise OptionError("give either --nodes (known nodes) or --input (a table of new nodes).")
    if top < 1:
        raise OptionError(f"option --top is {top}: it must be at least 1.")
    student = limbeck.load(bundle)
    names: list[Any]
    if input is None:
        names = _as_ids(nodes, student)
        probabilities = student.predict_proba(names)
    else:
        probabilities = _predict_file(student, input)
        names = list(range(len(probabilities)))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    answers = [
        {
            "node": name,
            "classes": [{"class": student.classes[c], "probability": float(row[c])} for c in best],
        }
        for name, row, best in zip(names, probabilities, order, strict=True)
    ]
    if json:
        show_json(answers)
        return
    rows = [
        [answer["node"], *[f"{c['class']} ({c['probability']:.4f})" for c in answer["classes"]]]
        for answer in answers
    ]
    count = min(top, len(student.classes))
    columns = ["node" if input is None else "row", *[f"class {i + 1}" for i in range(count)]]
    show_table(str(bundle), columns, rows)


def _as_ids(nodes: tuple[str, ...], student: Any) -> list[Any]:
    """Ids in the type that the bundle has; text that is no number stays text and is not found."""
    if student.store.ids.dtype.kind != "i":
        return list(nodes)
    return [int(node) if node.lstrip("-").isdigit() else node for node in nodes]


def _predict_file(student: Any, path: Path) -> Any:
    import numpy as np

    if path.suffix == ".npy":
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise OptionError(f"{path}: features cannot be read ({error}).") from None
        return student.predict_proba(x=rows)
    from limbeck.table_files import open_table

    columns = [
        column["name"] for column in (student.manifest.preprocessing or {}).get("columns", [])
    ]
    table = open_table(path).read(columns)
    return student.predict_proba(x=student.rows_of_table(table, str(path)))
