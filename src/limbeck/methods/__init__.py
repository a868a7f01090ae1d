"""Methods: one distillation algorithm per file, shared losses, presets beside them."""

from typing import Any

from limbeck.methods.base import Distilled, Method, Student
from limbeck.registry import resolve


def make_method(
    name: str, graph: str = "", setting: str = "transductive", **changes: Any
) -> Method:
    """A method by name with the preset of a graph in a setting, and your changes on top.

    Raises:
        OptionError: Unknown method or option, or a value out of range.
    """
    method: type[Method] = resolve("method", name)
    return method.for_graph(graph, setting, **changes)


__all__ = ["Distilled", "Method", "Student", "make_method"]
