"""The card of a bundle: a README made from its manifest, so from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Table = list[list[str]]


def make_card(manifest: Mapping[str, Any], bundle_name: str, example_id: int | str | None) -> str:
    """Text of ``README.md``, in Markdown.

    Args:
        manifest: The fields of ``limbeck.json`` but ``format`` and ``files``.
        bundle_name: Name of the bundle's folder, for the example.
        example_id: Id of a known node, for the example; ``None`` if there is none.
    """
    title = f"{manifest['student']} by {manifest['method']} on {manifest['graph']['name']}"
    parts = [
        f"# {_one_line(title)}",
        _summary(manifest),
        "## Use",
        _example(manifest, bundle_name, example_id),
        "## Scores",
        _scores(manifest["scores"]),
        *_slices(manifest["scores"]),
        *_structure(manifest.get("structure")),
        *_quantization(manifest.get("quantization")),
        "## Latency",
        _latency(manifest["latency"]),
        "## Made from",
        _markdown(["what", "value"], _origin(manifest)),
        "## Classes",
        _markdown(["", "class"], [[str(i), name] for i, name in enumerate(manifest["classes"])]),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(manifest: Mapping[str, Any]) -> str:
    graph = manifest["graph"]
    width = manifest["inputs"][0]["width"]
    beside = "no edges"
    if _names_neighbors(manifest):
        beside = "the ids of its neighbours"
    elif manifest.get("bands") is not None:
        beside = "what the bands of a graph transform say of it where that is known"
    elif manifest["hyper_parameters"].get("student") == "rgcn":
        beside = "no edges (known nodes were answered with those of the graph of all types)"
    count = len(manifest["classes"])
    told = f"tells {count} classes apart"
    if manifest.get("task") == "labels":
        told = (
            f"tells for each of {count} labels whether a node has it (in the tables below, "
            "accuracy is micro-F1)"
        )
    return (
        f"A student for node classification, distilled by Limbeck {manifest['limbeck']} with the "
        f"method `{manifest['method']}` in the {manifest['setting']} setting. It reads {width:,} "
        f"features of a node, {beside}, and {told}; the "
        f"answers for the {graph['counts']['nodes']:,} nodes that it knows are stored."
    )


def _example(manifest: Mapping[str, Any], bundle_name: str, example_id: int | str | None) -> str:
    known = "" if example_id is None else f"student.predict(nodes=[{example_id!r}])  # known\n"
    width = manifest["inputs"][0]["width"]
    edges = ""
    if _names_neighbors(manifest) and example_id is not None:
        edges = f"student.predict_proba(x=rows[:1], neighbors=[[{example_id!r}]])  # with an edge\n"
    return (
        "```python\n"
        "import limbeck\n"
        f"student = limbeck.load({bundle_name!r})\n"
        f"{known}"
        f"student.predict_proba(x=rows)  # new nodes: [B, {width}], raw features\n"
        f"{edges}"
        "```"
    )


def _names_neighbors(manifest: Mapping[str, Any]) -> bool:
    """Whether a request for a new node may name its neighbours."""
    return any(manifest.get(name) is not None for name in ("structure", "neighborhood"))


def _scores(scores: Mapping[str, Any]) -> str:
    """A table with a column for each of teacher, student and others that were scored."""
    columns = {name: dict(_leaves(_without_slices(value))) for name, value in scores.items()}
    rows = list(dict.fromkeys(key for column in columns.values() for key in column))
    if not rows:
        return "Not measured."
    body = [[row, *(column.get(row, "–") for column in columns.values())] for row in rows]
    return _markdown(["score", *columns], body)


def _without_slices(scores: Any) -> Any:
    if not isinstance(scores, Mapping):
        return scores
    return {key: value for key, value in scores.items() if key != "slices"}


def _slices(scores: Mapping[str, Any]) -> list[str]:
    """The student's scores on parts of the test nodes that hold any, where it was scored so."""
    student = scores.get("student")
    slices = student.get("slices", {}) if isinstance(student, Mapping) else {}
    body = {name: dict(_leaves(part)) for name, part in slices.items() if part.get("num_nodes")}
    if not body:
        return []
    columns = list(dict.fromkeys(key for part in body.values() for key in part))
    rows = [[name, *(part.get(key, "–") for key in columns)] for name, part in body.items()]
    return ["Slices of the student's test nodes:", _markdown(["slice", *columns], rows)]


def _structure(structure: Mapping[str, Any] | None) -> list[str]:
    """What storing the table of neighbours in few bits costs, where it is stored so."""
    if structure is None or structure["table_dtype"] == "float32":
        return []
    return [
        f"The rows that neighbours contribute are stored as {structure['table_dtype']}, with one "
        f"factor each. {100 * structure['agreement']:.2f} % of the known nodes keep the class that "
        "they have with the rows as trained, so accuracy differs by the rest at most."
    ]


def _quantization(quantization: Mapping[str, Any] | None) -> list[str]:
    """What computing in eight bits costs, where it is done."""
    if quantization is None:
        return []
    return [
        f"Answers are computed with weights in {quantization['weights']} and activations in uint8, "
        f"whose ranges {quantization['calibration_nodes']:,} observed nodes set. "
        f"{100 * quantization['agreement']:.2f} % of the known nodes keep the class that they have "
        "in float32; no calibrated probability of theirs changes by more than "
        f"{quantization['largest_change']:.2g}. Scores of the *student* are those of float32."
    ]


def _latency(latency: Mapping[str, Any] | None) -> str:
    if latency is None:
        return "Not measured."
    titles = {"x": "new nodes", "nodes": "known nodes"}
    body = [
        [titles[kind], size, _number(figures["p50_us"]), _number(figures["p99_us"])]
        for kind in titles
        for size, figures in latency[kind].items()
    ]
    table = _markdown(["asked for", "nodes per call", "p50, us", "p99, us"], body)
    return f"{table}\n\nPer call of `predict_proba`, on {latency['threads']} thread."


def _origin(manifest: Mapping[str, Any]) -> Table:
    graph = manifest["graph"]
    rows = [
        ["graph", f"{graph['name']} ({graph['source']})"],
        ["fingerprint", graph["fingerprint"]],
        *([name, f"{count:,}"] for name, count in graph["counts"].items()),
        *([f"teacher: {key}", value] for key, value in _leaves(manifest["teacher"])),
        *([key, value] for key, value in _leaves(manifest["hyper_parameters"])),
        ["temperature (calibration)", _number(manifest["calibration"]["temperature"])],
        *([name, version] for name, version in manifest["versions"].items()),
    ]
    return rows


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value in nested objects, with its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    elif value is not None:
        yield prefix or "value", _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    """Four digits, or all of a number's integer part."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _markdown(header: list[str], rows: Table) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """A table's cell must not hold what ends it."""
    return _one_line(text).replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())
