"""From rows of a table to answers: which columns say what, and what a row is answered from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from limbeck.errors import InputError, OptionError, RequestError, nearest_name
from limbeck.features import ColumnEncoding, FeatureEncoder, SparseRows
from limbeck.runtime.kernel import softmax
from limbeck.runtime.predictor import BundledStudent
from limbeck.scoring.problems import Mask, feature_problems, is_null

MAX_BATCH_ROWS = 16_384
BATCH_VALUES = 2**21
"""Features of a batch: 8 MB of float32. More rows at once are no faster, and take memory."""

OWN_COLUMNS = ("file", "row", "prediction", "probability", "deferred", "by_teacher")
OWN_LISTS = ("probabilities", "logits")


@dataclass(frozen=True)
class Columns:
    """What is read of the input, and what is written beside the prediction.

    Args:
        id: Columns that are passed through to the output; without any the output names each row
            by its ``file`` and its ``row`` in it, the first of which is 0.
        nodes: Column with the ids of known nodes, which are then answered from the bundle; ``None``
            for new nodes, which are answered from their features.
        features: Column that holds all features of a node as a list; ``None`` for the columns
            that the graph's own table had or, for a student whose features came as an array, the
            only fixed-size list of their number.
        neighbors: Column with the ids of a node's neighbours, a list, for a student that reads
            them; a null is an empty list.
        probabilities: Write the probability of each class, too.
        logits: Write the logits, too.
        cascade: Mark what the student should not be trusted on, and answer it from the teacher
            where the bundle knows that (:meth:`limbeck.BundledStudent.decide`).
    """

    id: tuple[str, ...] = ()
    nodes: str | None = None
    features: str | None = None
    neighbors: str | None = None
    probabilities: bool = False
    logits: bool = False
    cascade: bool = False


class Scored(NamedTuple):
    """What became of a batch.

    Args:
        answers: The output's rows, in the input's order.
        bad: The rows that could not be answered, with their reasons.
        unknown: Values that training had not seen, by column; they count as zeros.
    """

    answers: pa.Table
    bad: pa.Table
    unknown: dict[str, int]


class RowScorer:
    """Answers batches of rows of one schema.

    Args:
        student: The student.
        columns: What is read and written.
        schema: Schema of the input.
        where: What to call the input in messages.

    Raises:
        InputError: A column is missing, of a wrong type, or not one that this student reads.
    """

    def __init__(
        self, student: BundledStudent, columns: Columns, schema: pa.Schema, where: str
    ) -> None:
        self._student = student
        self._columns = columns
        self._where = where
        _check_options(columns, student)
        for name in (*columns.id, columns.nodes, columns.features, columns.neighbors):
            if name is not None:
                _field(schema, name, where)
        self._encoder = None if columns.nodes else _encoder(student, columns, schema, where)
        self._check_types(schema)
        self._id_fields = [schema.field(name) for name in columns.id] or [
            pa.field("file", pa.string()),
            pa.field("row", pa.int64()),
        ]

    @cached_property
    def read(self) -> list[str]:
        """Names of the columns to read, each once."""
        features = [] if self._encoder is None else [c.name for c in self._encoder.columns]
        others = (self._columns.nodes, self._columns.neighbors)
        wanted = [*self._columns.id, *features, *(name for name in others if name is not None)]
        return list(dict.fromkeys(wanted))

    @cached_property
    def batch_rows(self) -> int:
        """Rows to read at once."""
        return int(np.clip(BATCH_VALUES // max(self._student.width, 1), 256, MAX_BATCH_ROWS))

    @cached_property
    def answer_schema(self) -> pa.Schema:
        """Schema of the output; its metadata hold the classes, in the order of the lists."""
        num_classes = len(self._student.classes)
        wanted = {"probabilities": self._columns.probabilities, "logits": self._columns.logits}
        lists = [
            pa.field(name, pa.list_(pa.float32(), num_classes))
            for name in OWN_LISTS
            if wanted[name]
        ]
        decided = [pa.field("deferred", pa.bool_()), pa.field("by_teacher", pa.bool_())]
        return pa.schema(
            [
                *self._id_fields,
                pa.field("prediction", pa.string()),
                pa.field("probability", pa.float32()),
                *(decided if self._columns.cascade else []),
                *lists,
            ],
            metadata={"classes": json.dumps(self._student.classes, ensure_ascii=False)},
        )

    @cached_property
    def bad_schema(self) -> pa.Schema:
        """Schema of the side file of rows that could not be answered."""
        place = [pa.field("file", pa.string()), pa.field("row", pa.int64())]
        carried = self._id_fields if self._columns.id else []
        return pa.schema([*place, *carried, pa.field("reason", pa.string())])

    def score(self, batch: pa.RecordBatch, file: str, first_row: int) -> Scored:
        """Answer a batch.

        Args:
            batch: Rows with the columns :attr:`read`.
            file: Name of the file that they are in.
            first_row: Number of the first of them in it.
        """
        table = pa.Table.from_batches([batch])
        reasons = self._reasons(table)
        asked, good = _without(table, np.arange(table.num_rows), reasons)
        request, unknown = self._request(asked)
        logits, refused = self._logits(asked, request)
        if refused:
            reasons |= {int(good[row]): reason for row, reason in refused.items()}
            asked, good = _without(table, np.arange(table.num_rows), reasons)
            logits = np.delete(logits, list(refused), axis=0)
        place = _place(file, first_row, table.num_rows)
        ids = table.select(self._columns.id) if self._columns.id else place
        bad_rows = pa.array(sorted(reasons), type=pa.int64())
        bad = [place, table.select(self._columns.id)] if self._columns.id else [place]
        bad_columns = [column for part in bad for column in part.take(bad_rows).columns]
        texts = pa.array([reasons[row] for row in sorted(reasons)], type=pa.string())
        kept = ids if not reasons else ids.take(pa.array(good))
        return Scored(
            pa.Table.from_arrays(
                [*kept.columns, *self._answer_columns(asked, logits)], schema=self.answer_schema
            ),
            pa.Table.from_arrays([*bad_columns, texts], schema=self.bad_schema),
            unknown,
        )

    # ------------------------------------------------------------ what is asked

    def _reasons(self, table: pa.Table) -> dict[int, str]:
        """Rows that cannot be asked about, each with its first problem."""
        reasons: dict[int, str] = {}
        for mask, reason in self._problems(table):
            for row in np.flatnonzero(mask).tolist():
                reasons.setdefault(row, reason)
        return reasons

    def _problems(self, table: pa.Table) -> Iterator[tuple[Mask, str]]:
        if self._encoder is not None:
            yield from feature_problems(table, self._encoder)
            return
        assert self._columns.nodes is not None
        ids = table.column(self._columns.nodes)
        null = is_null(ids)
        yield null, f"column {self._columns.nodes!r} is null"
        unknown = np.zeros(len(null), dtype=np.bool_)
        unknown[~null] = self._student.store.find(_ids(ids.drop_null())) < 0
        yield unknown, "the bundle does not know this node"

    def _request(self, table: pa.Table) -> tuple[dict[str, Any], dict[str, int]]:
        """What the student is asked, and how many values training had not seen, by column."""
        if self._encoder is None:
            assert self._columns.nodes is not None
            return {"nodes": _ids(table.column(self._columns.nodes))}, {}
        encoded = self._encoder.encode_with_report(table, self._where)
        rows = encoded.rows
        x: Any = rows
        if isinstance(rows, SparseRows):
            x = (rows.indptr, rows.indices, rows.values)
        request: dict[str, Any] = {"x": x}
        if self._columns.neighbors is not None:
            lists = table.column(self._columns.neighbors).to_pylist()
            request["neighbors"] = [[i for i in ids or () if i is not None] for ids in lists]
        return request, encoded.unknown

    def _logits(
        self, table: pa.Table, request: dict[str, Any]
    ) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
        """Logits ``[B, C]``, and the rows that the student refuses, found by halving."""
        try:
            return self._student.predict_logits(**request), {}
        except RequestError as error:
            if table.num_rows == 1:
                nothing = np.full((1, len(self._student.classes)), np.nan, dtype=np.float32)
                return nothing, {0: str(error)}
        middle = table.num_rows // 2
        halves = [table.slice(0, middle), table.slice(middle)]
        (first, refused), (second, others) = (
            self._logits(half, self._request(half)[0]) for half in halves
        )
        shifted = {row + middle: reason for row, reason in others.items()}
        return np.concatenate([first, second]), refused | shifted

    # ------------------------------------------------------------ what is answered

    def _answer_columns(
        self, table: pa.Table, logits: npt.NDArray[np.float32]
    ) -> list[pa.Array | pa.ChunkedArray]:
        """The columns behind the ids, in the order of the schema."""
        probabilities = softmax(logits, self._student.manifest.temperature)
        answer = probabilities.argmax(axis=1)
        confidence = probabilities[np.arange(len(answer)), answer]
        decided: list[pa.Array] = []
        if self._columns.cascade:
            cascade = self._student.cascade
            known = None
            if self._columns.nodes is not None:
                ids = _ids(table.column(self._columns.nodes))
                known = self._student.store.rows_of(ids)
            choice = cascade.decide(probabilities, known)
            answer, confidence = choice.answer, choice.confidence
            decided = [pa.array(choice.deferred), pa.array(choice.by_teacher)]
        names = pa.array(self._student.classes, type=pa.string()).take(pa.array(answer))
        lists = {"probabilities": probabilities, "logits": logits}
        return [
            names,
            pa.array(confidence, type=pa.float32()),
            *decided,
            *(_as_lists(lists[name]) for name in OWN_LISTS if name in self.answer_schema.names),
        ]

    def _check_types(self, schema: pa.Schema) -> None:
        """Refuse columns whose type no row of it could be read from.

        Raises:
            InputError: Names the column and the types.
        """
        nodes, neighbors = self._columns.nodes, self._columns.neighbors
        text = self._student.store.ids.dtype.kind != "i"
        wanted = "text" if text else "integers"
        if nodes is not None and not _holds_ids(schema.field(nodes).type, text):
            raise OptionError(
                f"column {nodes!r} of {self._where} is {schema.field(nodes).type}: the ids of the "
                f"known nodes are {wanted}."
            )
        if neighbors is not None:
            given = schema.field(neighbors).type
            if not _is_list(given) or not _holds_ids(given.value_type, text):
                raise OptionError(
                    f"column {neighbors!r} of {self._where} is {given}: neighbours are lists of "
                    f"ids, which are {wanted} here."
                )
        if self._encoder is not None:
            for column in self._encoder.columns:
                given = schema.field(column.name).type
                fixed = given.list_size if pa.types.is_fixed_size_list(given) else column.width
                if column.kind == "vector" and fixed != column.width:
                    raise OptionError(
                        f"column {column.name!r} of {self._where} holds lists of {fixed} numbers: "
                        f"the student reads {column.width}."
                    )
            self._encoder.encode(schema.empty_table(), self._where)


# --- small tools -----------------------------------------------------------------------------


def _check_options(columns: Columns, student: BundledStudent) -> None:
    """Refuse parts that do not fit each other or the student."""
    for name in columns.id:
        if name in (*OWN_COLUMNS, *OWN_LISTS, "reason"):
            raise OptionError(
                f"option --id names the column {name!r}, and the output has one of its own: "
                "rename that of the input."
            )
    if len(set(columns.id)) != len(columns.id):
        raise OptionError("option --id names a column twice.")
    if columns.nodes is not None and (columns.features or columns.neighbors):
        raise OptionError(
            "option --nodes asks for known nodes, --features and --neighbors belong to new ones."
        )
    if columns.neighbors is not None and not _reads_neighbors(student):
        raise OptionError(
            f"the student {student.manifest.student!r} reads no neighbors: leave --neighbors out."
        )
    if columns.cascade and student.manifest.cascade is None:
        raise OptionError(
            "this bundle has no threshold to defer by: distil it with --defer-accuracy or "
            "--defer-coverage, or leave --cascade out."
        )


def _reads_neighbors(student: BundledStudent) -> bool:
    reads_edges = student.structure is not None or student.neighborhood is not None
    return reads_edges or student.manifest.position_width > 0


def _encoder(
    student: BundledStudent, columns: Columns, schema: pa.Schema, where: str
) -> FeatureEncoder:
    """What turns a row into features: that of the bundle, or a list that holds them all."""
    stored, width = student.manifest.preprocessing, student.width
    if stored is not None and columns.features is None:
        encoder = FeatureEncoder.from_json(dict(stored))
        for column in encoder.columns:
            _field(schema, column.name, where)
        return encoder
    name = columns.features
    if name is None:
        fitting = [
            field.name
            for field in schema
            if pa.types.is_fixed_size_list(field.type) and field.type.list_size == width
        ]
        if len(fitting) != 1:
            raise OptionError(
                f"{where} has {len(fitting)} columns of fixed-size lists of {width} numbers: name "
                "the column of features with --features."
            )
        name = fitting[0]
    return FeatureEncoder((ColumnEncoding(name, "vector", width),))


def _field(schema: pa.Schema, name: str, where: str) -> pa.Field:
    if schema.names.count(name) > 1:
        raise InputError(f"{where} has more than one column called {name!r}.")
    if name not in schema.names:
        near = nearest_name(name, schema.names)
        hint = f"did you mean {near!r}? " if near else ""
        raise InputError(
            f"no column {name!r} in {where}: {hint}There are {', '.join(map(repr, schema.names))}."
        )
    return schema.field(name)


def _holds_ids(given: pa.DataType, text: bool) -> bool:
    if pa.types.is_dictionary(given):
        given = given.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(given) for test in tests) if text else pa.types.is_integer(given)


def _is_list(given: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(given) for test in tests)


def _ids(column: pa.ChunkedArray) -> list[Any]:
    """Ids as the node store takes them."""
    numbers: list[Any] = (
        column.to_numpy().tolist() if pa.types.is_integer(column.type) else column.to_pylist()
    )
    return numbers


def _without(
    table: pa.Table, rows: npt.NDArray[np.int64], reasons: Mapping[int, str]
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The table without some rows, and the numbers of those left."""
    if not reasons:
        return table, rows
    left = np.delete(rows, list(reasons))
    return table.take(pa.array(left)), left


def _place(file: str, first_row: int, count: int) -> pa.Table:
    """Where each row stands."""
    rows = np.arange(first_row, first_row + count, dtype=np.int64)
    return pa.table({"file": pa.repeat(pa.scalar(file), count), "row": rows})


def _as_lists(values: npt.NDArray[np.float32]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
