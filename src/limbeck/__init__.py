"""Limbeck distils a graph neural network into a student that answers in microseconds.

Importing it imports neither torch nor PyG: each name below is loaded when it is first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.evaluation.distill import distill
    from limbeck.evaluation.protocol import Run
    from limbeck.graphs.load import load_graph
    from limbeck.graphs.profile import profile_graph
    from limbeck.graphs.view import View
    from limbeck.graphs.view import make_view as view
    from limbeck.methods import Method, make_method
    from limbeck.runtime.loading import load_bundle as load
    from limbeck.runtime.predictor import BundledStudent
    from limbeck.teachers.fit import fit_teacher
    from limbeck.teachers.own import Teacher, knowledge_from

_NAMES = {
    "BundledStudent": "limbeck.runtime.predictor:BundledStudent",
    "Method": "limbeck.methods:Method",
    "Run": "limbeck.evaluation.protocol:Run",
    "Teacher": "limbeck.teachers.own:Teacher",
    "View": "limbeck.graphs.view:View",
    "distill": "limbeck.evaluation.distill:distill",
    "fit_teacher": "limbeck.teachers.fit:fit_teacher",
    "knowledge_from": "limbeck.teachers.own:knowledge_from",
    "load": "limbeck.runtime.loading:load_bundle",
    "load_graph": "limbeck.graphs.load:load_graph",
    "make_method": "limbeck.methods:make_method",
    "profile_graph": "limbeck.graphs.profile:profile_graph",
    "view": "limbeck.graphs.view:make_view",
}

__all__ = [
    "BundledStudent",
    "Method",
    "Run",
    "Teacher",
    "View",
    "distill",
    "fit_teacher",
    "knowledge_from",
    "load",
    "load_graph",
    "make_method",
    "profile_graph",
    "view",
]

try:
    __version__ = version("limbeck")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    module, _, attribute = _NAMES[name].partition(":")
    try:
        value = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("limbeck"):
            raise
        from limbeck.errors import missing_extra

        raise missing_extra(error.name, "train") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
