"""``limbeck methods`` and ``limbeck teachers``: what there is, with every option."""

from __future__ import annotations

from typing import Any

from limbeck.cli.output import show_json, show_table


def methods(name: str | None = None, *, json: bool = False) -> None:
    """List the methods, or the options of one.

    Args:
        name: A method whose options to print.
        json: Print JSON.
    """
    _show("method", name, as_json=json)


def teachers(name: str | None = None, *, json: bool = False) -> None:
    """List the teachers, or the options of one.

    Args:
        name: A teacher whose options to print.
        json: Print JSON.
    """
    _show("teacher", name, as_json=json)


def _show(kind: str, name: str | None, *, as_json: bool) -> None:
    from limbeck.registry import names, resolve

    chosen = [name] if name else sorted(names(kind))
    documents = [_describe(key, resolve(kind, key)) for key in chosen]
    if as_json:
        show_json(documents[0] if name else documents)
    elif name:
        document = documents[0]
        rows = [(o["name"], o["default"], o["range"], o["meaning"]) for o in document["options"]]
        title = f"{name}: {document['title']}"
        show_table(title, ("option", "default", "range", "meaning"), rows, document["paper"])
    else:
        names_only = [(d["name"], d["title"], d["paper"]) for d in documents]
        show_table(f"{kind}s", ("name", "what it is", "source"), names_only)


def _describe(name: str, options: Any) -> dict[str, Any]:
    schema = options.model_json_schema()
    meanings = _meanings(options)
    return {
        "name": name,
        "title": options.title,
        "paper": options.paper,
        "options": [
            {
                "name": key,
                "default": field.get("default"),
                "range": _range(field),
                "meaning": meanings.get(key),
            }
            for key, field in schema["properties"].items()
        ],
    }


def _meanings(options: Any) -> dict[str, str]:
    """Meaning of each option, from the ``Args`` of the class and of those above it."""
    from docstring_parser import DocstringStyle, parse

    meanings: dict[str, str] = {}
    for cls in reversed(options.__mro__):
        if cls.__module__.startswith("pydantic") or cls is object:
            continue
        for parameter in parse(cls.__doc__ or "", DocstringStyle.GOOGLE).params:
            text = " ".join((parameter.description or "").split())
            meanings[parameter.arg_name] = (
                text.replace("``", "").replace(":math:", "").replace("`", "")
            )
    return meanings


def _range(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_range(part) for part in field["anyOf"])
    if "enum" in field:
        return ", ".join(str(value) for value in field["enum"])
    signs = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
    }
    bounds = [f"{sign} {field[key]}" for key, sign in signs.items() if key in field]
    return " ".join([field.get("type", ""), ", ".join(bounds)]).strip()
