"""Every error a user of Limbeck can meet.

::

    LimbeckError
    ├── InputError               what was given is wrong; exit code 2
    │   ├── GraphError           nodes, edges, features, labels
    │   │   └── SplitError       training, validation and test nodes
    │   ├── TeacherError         a teacher's module, file or logits
    │   ├── OptionError          a name or a value that is not allowed
    │   ├── RequestError         what a bundle was asked to answer
    │   ├── BundleError          a bundle that cannot be read or trusted
    │   └── OutputError          a place that cannot be written
    └── MissingExtraError        a part of Limbeck that is not installed; exit code 2

Each message is one sentence that names the file, column, node or option and says what
would be right. The command line prints it on stderr and exits with ``exit_code``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LimbeckError(Exception):
    """Base of all errors that Limbeck raises on purpose."""

    exit_code = 2


class InputError(LimbeckError, ValueError):
    """What was given is wrong; the message says what would be right."""


class GraphError(InputError):
    """A graph's nodes, edges, features or labels are not usable as given."""


class SplitError(GraphError):
    """Training, validation and test nodes do not form a usable split."""


class TeacherError(InputError):
    """A teacher's module, file or logits do not fit the graph."""


class OptionError(InputError):
    """A name or a value of an option is not one that is allowed."""


class DivergedError(OptionError):
    """A training's loss is not a number any more, with the options that it was given."""


class RequestError(InputError):
    """A bundle was asked for something that it cannot answer."""


class BundleError(InputError):
    """A bundle is unreadable, incomplete, altered or of an unknown format."""


class OutputError(InputError):
    """An output cannot be written where it was asked for."""


class MissingExtraError(LimbeckError, ImportError):
    """A part of Limbeck was used whose optional dependencies are not installed."""


def nearest_name(given: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name closest to ``given``, or ``None`` if none is near."""
    names = {str(name).lower(): str(name) for name in allowed}
    match = difflib.get_close_matches(str(given).lower(), names, n=1, cutoff=0.6)
    return names[match[0]] if match else None


def unknown_name(kind: str, given: str, allowed: Iterable[str]) -> OptionError:
    """Build the error for a name that is not known, with the nearest one that is.

    Args:
        kind: What the name stands for, as a user would say it (``"method"``).
        given: The name that was given.
        allowed: The names that exist.
    """
    names = sorted(str(name) for name in allowed)
    near = nearest_name(given, names)
    hint = f"did you mean {near!r}? " if near else ""
    return OptionError(f"unknown {kind} {given!r}: {hint}Choose from {', '.join(names)}.")


def missing_extra(module: str, extra: str) -> MissingExtraError:
    """Build the error for a dependency that an extra of Limbeck brings."""
    return MissingExtraError(
        f"this needs the package {module!r}, which is not installed: "
        f"pip install 'limbeck[{extra}]'."
    )
