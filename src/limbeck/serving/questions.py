"""What requests ask and tell, read from JSON and checked field by field."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from limbeck.errors import nearest_name
from limbeck.runtime.rows import check_rows
from limbeck.serving.batching import Tell
from limbeck.serving.failures import Refusal
from limbeck.serving.models import Version

PREDICT = ("model", "version", "nodes", "x", "neighbors", "position", "bands", "top_k", "explain")
UPSERT = ("model", "nodes")
NODE = ("id", "x", "neighbors")
DELETE = ("model", "nodes")
EDGES = ("model", "add", "remove", "undirected")
SPARSE = ("indptr", "indices", "values")


@dataclass(frozen=True)
class Question:
    """Nodes that a student is asked about.

    Args:
        nodes: Ids of known nodes, or ``None``.
        x: Features of new ones as ``BundledStudent.predict`` takes them, or ``None``.
        neighbors: For each new one a list of ids, or ``None``.
        position: Positional encodings of new ones, or ``None``.
        bands: Bands of new ones, or ``None``.
    """

    nodes: list[Any] | None = None
    x: Any = None
    neighbors: list[Any] | None = None
    position: Any = None
    bands: Any = None

    @classmethod
    def checked(cls, max_batch: int, **fields: Any) -> Question:
        """A question about at most ``max_batch`` nodes.

        Raises:
            Refusal: It gives neither nodes nor x, or both, or too many.
        """
        question = cls(**fields)
        if (question.nodes is None) == (question.x is None):
            given = "neither" if question.x is None else "both"
            raise Refusal(422, f"give either nodes or x; {given} was given.")
        if len(question) > max_batch:
            what = "x" if question.nodes is None else "nodes"
            raise Refusal(
                422, f"{what} names {len(question):,} nodes, and a request may name {max_batch:,}."
            )
        return question

    def __len__(self) -> int:
        if self.nodes is not None:
            return len(self.nodes)
        if isinstance(self.x, tuple):
            return max(len(self.x[0]) - 1, 0) if hasattr(self.x[0], "__len__") else 0
        return len(self.x) if getattr(self.x, "ndim", 1) else 0

    def asked_with(self) -> dict[str, Any]:
        """The arguments of ``BundledStudent.predict``."""
        return {
            "nodes": self.nodes,
            "x": self.x,
            "neighbors": self.neighbors,
            "position": self.position,
            "bands": self.bands,
        }

    def ask(self, version: Version, max_neighbors: int, tell: Tell) -> None:
        """Ask a version for its answer, float32 ``[B, C]``; new dense rows go with others'.

        Args:
            version: What answers.
            max_neighbors: How many neighbours a node may name.
            tell: Called with the answer, at once or later, or with what went wrong later.

        Raises:
            RequestError: The student cannot answer.
            Refusal: A node names more neighbours than ``max_neighbors``, or too many rows wait.
        """
        if self.neighbors is not None:
            for place, ids in enumerate(self.neighbors):
                if hasattr(ids, "__len__") and len(ids) > max_neighbors:
                    raise Refusal(
                        422,
                        f"neighbors[{place}] names {len(ids):,} nodes, and a request may name "
                        f"{max_neighbors:,} of a node.",
                    )
        student = version.student
        is_plain = self.x is not None and self.position is None and self.bands is None
        if not is_plain or isinstance(self.x, tuple):
            tell(student.predict_logits(**self.asked_with()))
            return
        rows = check_rows(self.x, student.width)
        assert isinstance(rows, np.ndarray)
        if self.neighbors is not None and len(self.neighbors) != len(rows):
            raise Refusal(
                422,
                f"there are {len(self.neighbors)} lists of neighbors for {len(rows)} rows of x.",
            )
        version.batcher.ask(rows, self.neighbors, tell)


def read_json(body: bytes) -> dict[str, Any]:
    """A body that is one JSON object.

    Raises:
        Refusal: It is not.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is not valid JSON: {error}.") from None
    if not isinstance(document, dict):
        raise Refusal(422, "the body must be a JSON object.")
    return document


def check_fields(document: dict[str, Any], allowed: Iterable[str], what: str = "the body") -> None:
    """Refuse fields that do not exist, by the nearest name that does.

    Raises:
        Refusal: There is one.
    """
    names = tuple(allowed)
    for name in document:
        if name not in names:
            near = nearest_name(name, names)
            hint = f"did you mean {near!r}? " if near else ""
            raise Refusal(
                422, f"{what} has the unknown field {name!r}: {hint}It may have {', '.join(names)}."
            )


def a_string(document: dict[str, Any], name: str) -> str | None:
    """A field that is a string, ``None`` without it."""
    value = document.get(name)
    if value is not None and not isinstance(value, str):
        raise Refusal(422, f"{name} must be a string.")
    return value


def a_flag(document: dict[str, Any], name: str, default: bool) -> bool:
    """A field that is true or false."""
    value = document.get(name, default)
    if not isinstance(value, bool):
        raise Refusal(422, f"{name} must be true or false.")
    return value


def a_count(document: dict[str, Any], name: str, default: int) -> int:
    """A field that is a number of at least 1."""
    value = document.get(name, default)
    if type(value) is not int or value < 1:
        raise Refusal(422, f"{name} must be an integer of at least 1.")
    return value


def a_list(document: dict[str, Any], name: str) -> list[Any] | None:
    """A field that is a list, ``None`` without it."""
    value = document.get(name)
    if value is not None and not isinstance(value, list):
        raise Refusal(422, f"{name} must be a list.")
    return value


def features(value: Any, name: str = "x") -> Any:
    """Features of several nodes: lists of numbers, or an object of a CSR matrix's arrays."""
    if not isinstance(value, dict):
        if value is not None and not isinstance(value, list):
            raise Refusal(
                422, f"{name} must be a list of rows, or an object of {', '.join(SPARSE)}."
            )
        return value
    check_fields(value, SPARSE, name)
    if "indptr" not in value or "indices" not in value:
        raise Refusal(422, f"{name} must have indptr and indices.")
    return tuple(value[key] for key in SPARSE if value.get(key) is not None)


def read_question(document: dict[str, Any], max_batch: int) -> Question:
    """The nodes that a request for people asks about."""
    return Question.checked(
        max_batch,
        nodes=a_list(document, "nodes"),
        x=features(document.get("x")),
        neighbors=a_list(document, "neighbors"),
        position=a_list(document, "position"),
        bands=a_list(document, "bands"),
    )


@dataclass(frozen=True)
class Group:
    """Nodes that are changed in one call, since the same is given of each.

    Args:
        ids: Their ids.
        x: Their features, ``None`` where none are given.
        neighbors: Their neighbours, ``None`` where none are given.
    """

    ids: list[Any]
    x: Any
    neighbors: list[Any] | None


def read_group(document: dict[str, Any], width: int) -> Group:
    """The nodes of an upsert; all of them give the same fields.

    Raises:
        Refusal: A node is not an object with an id, or gives other fields than the first.
    """
    nodes = a_list(document, "nodes")
    if not nodes:
        raise Refusal(422, "nodes must be a list of at least one node.")
    for place, node in enumerate(nodes):
        if not isinstance(node, dict) or "id" not in node:
            raise Refusal(422, f"nodes[{place}] must be an object with an id.")
        check_fields(node, NODE, f"nodes[{place}]")
        if node.keys() != nodes[0].keys():
            raise Refusal(422, f"nodes[{place}] gives other fields than nodes[0]: send them apart.")
    ids = [node["id"] for node in nodes]
    neighbors = [node["neighbors"] for node in nodes] if "neighbors" in nodes[0] else None
    if "x" not in nodes[0]:
        return Group(ids, None, neighbors)
    if not isinstance(nodes[0]["x"], dict):
        return Group(ids, [node["x"] for node in nodes], neighbors)
    return Group(ids, _sparse([node["x"] for node in nodes], width), neighbors)


def _sparse(rows: list[Any], width: int) -> Any:
    """Sparse rows of one node each, ``{"indices": [...], "values": [...]}``, as one matrix."""
    parts = []
    for place, row in enumerate(rows):
        name = f"nodes[{place}].x"
        if not isinstance(row, dict):
            raise Refusal(422, f"{name} must be an object of indices and values, as nodes[0].x is.")
        check_fields(row, SPARSE[1:], name)
        indices = a_list(row, "indices")
        if indices is None:
            raise Refusal(422, f"{name}.indices must be a list.")
        values = a_list(row, "values")
        values = [1.0] * len(indices) if values is None else values
        checked = check_rows(([0, len(indices)], indices, values), width)
        assert not isinstance(checked, np.ndarray)
        parts.append(checked)
    ends = np.cumsum([0, *[len(part.indices) for part in parts]])
    return (
        ends,
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.values for part in parts]),
    )
