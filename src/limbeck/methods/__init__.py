"""Methods: one distillation algorithm per file, shared losses, presets beside them."""

from typing import Any

from limbeck.errors import OptionError
from limbeck.methods.base import Distilled, Method, Student
from limbeck.registry import resolve


def make_method(
    name: str, graph: str = "", setting: str = "transductive", **changes: Any
) -> Method:
    """A method by name with the preset of a graph in a setting, and your changes on top.

    ``abkd:stride`` is ``abkd`` with its option ``preset`` at ``stride``.

    Raises:
        OptionError: Unknown method or option, or a value out of range.
    """
    base, _, variant = name.partition(":")
    method: type[Method] = resolve("method", base)
    if variant:
        if "preset" not in method.model_fields:
            raise OptionError(f"method {base!r} has no presets, so there is no {name!r}.")
        changes = {"preset": variant, **changes}
    return method.for_graph(graph, setting, **changes)


__all__ = ["Distilled", "Method", "Student", "make_method"]
