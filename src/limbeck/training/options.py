"""Hyper-parameters: frozen, validated, with presets in a readable file beside the code."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from limbeck.errors import OptionError, nearest_name


class Options(BaseModel):
    """Base of every set of hyper-parameters.

    A wrong name or value raises :class:`~limbeck.errors.OptionError` in one sentence that names
    the option, what was given and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise OptionError(_sentence(type(self), error)) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some options changed, validated anew."""
        return type(self)(**{**self.model_dump(), **changes})


def _sentence(options: type[Options], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, OptionError):  # of options that are the value of an option
        return str(inner)
    name = ".".join(str(part) for part in first["loc"]) or "options"
    if first["type"] == "extra_forbidden":
        near = nearest_name(name, options.model_fields)
        hint = f"did you mean {near!r}? " if near else ""
        known = ", ".join(sorted(options.model_fields))
        return f"unknown option {name!r} of {options.__name__}: {hint}Choose from {known}."
    message = str(first["msg"])
    reason = message[0].lower() + message[1:]
    given = first.get("input")
    return f"option {name!r} of {options.__name__} is {given!r}: {reason}."


@cache
def read_presets(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Presets of a YAML file: name of the method or teacher → data set → options."""
    with file.open(encoding="utf-8") as stream:
        presets: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(stream)
    return presets


def preset(file: Path, name: str, graph: str, setting: str = "transductive") -> dict[str, Any]:
    """Options of ``name`` for a graph: its ``default`` overlaid by the graph's own entry.

    The graph's name is used without its split and surgery: ``cora:geom-gcn/3+sdrf`` looks for
    ``cora``, then ``cora:geom-gcn``. In a setting that cuts nodes away, ``cora@inductive`` comes on
    top.
    """
    entries = read_presets(file).get(name, {})
    chosen = dict(entries.get("default", {}))
    whole = graph.split("+")[0].split("/")[0]
    keys = dict.fromkeys((whole.split(":")[0], whole))
    for key in keys:
        chosen.update(entries.get(key, {}))
    if setting != "transductive":
        for key in keys:
            chosen.update(entries.get(f"{key}@inductive", {}))
    return chosen
