"""From a row of a user's table to a row of numbers.

A :class:`FeatureEncoder` is fitted once, when a graph is read, and applied again wherever new
rows arrive: it lies below both wings of Limbeck and needs no more than numpy and pyarrow.

======================================  =============  ==========================================
column of the table                     kind           columns of the encoded row
======================================  =============  ==========================================
int, float, decimal, bool               `numeric`      1, the number
text, int, bool, date; declared         `categorical`  1 per category seen in fitting, one-hot
dictionary (Arrow, pandas, R factor)    `categorical`  the same, without being declared
list of floats, fixed-size list         `vector`       as many as the lists are long
list of text, list of ints              `bag`          1 per word or id seen in fitting, 0 or 1
======================================  =============  ==========================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from limbeck.errors import BundleError, GraphError, nearest_name

Kind = Literal["numeric", "categorical", "vector", "bag"]

MAX_DENSE_CATEGORIES = 256
"""Up to so many one-hot columns in all, rows are dense: 1 GB for a million rows."""


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Rows that keep only their stored entries (CSR).

    Args:
        indptr: Where each row starts in ``indices`` and ``values``, int64 ``[N + 1]``.
        indices: Column of each entry, int64 ``[nnz]``, ascending and unique within a row.
        values: Value of each entry, float32 ``[nnz]``.
        width: Number of columns ``F``.
    """

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    width: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return len(self), self.width

    def to_dense(self) -> npt.NDArray[np.float32]:
        """Return the same rows as a float32 array ``[N, F]``."""
        dense = np.zeros(self.shape, dtype=np.float32)
        dense[_row_of_entry(self.indptr), self.indices] = self.values
        return dense


FeatureRows = npt.NDArray[np.float32] | SparseRows


@dataclass(frozen=True)
class ColumnEncoding:
    """How one column of the table is encoded.

    Args:
        name: Name of the column.
        kind: ``"numeric"``, ``"categorical"``, ``"vector"`` or ``"bag"``.
        width: Number of columns that it becomes.
        vocabulary: Sorted categories, words or ids seen in fitting, all ``str`` or all
            ``int``; empty for the other kinds.
    """

    name: str
    kind: Kind
    width: int = 1
    vocabulary: tuple[str, ...] | tuple[int, ...] = ()

    @cached_property
    def vocabulary_array(self) -> pa.Array:
        """The vocabulary as Arrow wants it for a lookup, ``int64`` or ``large_string``."""
        is_int = bool(self.vocabulary) and isinstance(self.vocabulary[0], int)
        return pa.array(self.vocabulary, type=pa.int64() if is_int else pa.large_string())


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoded rows, and what was left out of them.

    Args:
        rows: float32 ``[N, F]`` or :class:`SparseRows`.
        unknown: Column name to the number of its categories, words or ids that fitting had
            not seen and that are therefore zeros; columns without any are not listed.
    """

    rows: FeatureRows
    unknown: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureEncoder:
    """The columns that make up a node's features, in order.

    Example:
        >>> table = pa.table({"age": [3, 5], "colour": ["red", "blue"]})
        >>> encoder = FeatureEncoder.fit(table, ["age", "colour"], categorical=["colour"])
        >>> encoder.encode(table)
        array([[3., 0., 1.],
               [5., 1., 0.]], dtype=float32)

    Args:
        columns: One encoding per column of the table.
    """

    columns: tuple[ColumnEncoding, ...]

    @classmethod
    def fit(
        cls,
        table: pa.Table,
        columns: Sequence[str],
        *,
        categorical: Collection[str] = (),
        where: str = "the table",
    ) -> FeatureEncoder:
        """Learn kinds, widths and vocabularies from a table.

        Vocabularies are sorted, so the order of the rows does not matter.

        Args:
            table: The table; at least one row.
            columns: Names of the feature columns, in the order of the encoded row.
            categorical: Those among them to encode one-hot. Dictionary columns always are.
            where: What to call the table in an error: its path.

        Raises:
            GraphError: If there is no feature column, a column is missing, or it holds what
                is not a feature (text that was not declared categorical, say).
        """
        if not columns:
            raise GraphError(f"{where} has no feature column: give each node at least one.")
        for name in categorical:
            if name not in columns:
                raise _missing_column(name, columns, f"the feature columns of {where}")
        return cls(
            tuple(
                _fit_column(name, _column(table, name, where), name in categorical, where)
                for name in columns
            )
        )

    @property
    def width(self) -> int:
        """Number of columns ``F`` of an encoded row."""
        return sum(column.width for column in self.columns)

    @property
    def sparse(self) -> bool:
        """Whether rows are encoded as :class:`SparseRows`; depends on no row.

        They are if there is a bag, or more than ``MAX_DENSE_CATEGORIES`` one-hot columns.
        """
        one_hot = sum(column.width for column in self.columns if column.kind == "categorical")
        has_bag = any(column.kind == "bag" for column in self.columns)
        return has_bag or one_hot > MAX_DENSE_CATEGORIES

    @property
    def numeric_columns(self) -> npt.NDArray[np.int64]:
        """Indices of the encoded columns that come from numeric columns, int64."""
        return np.array(
            [
                first
                for column, first in zip(self.columns, self._offsets(), strict=True)
                if column.kind == "numeric"
            ],
            dtype=np.int64,
        )

    def encode(
        self, table: pa.Table, where: str = "the table", *, ids: pa.ChunkedArray | None = None
    ) -> FeatureRows:
        """Encode a table's rows; other columns than the encoder's are ignored.

        In sparse rows numeric and vector columns keep their zeros as entries, so that they can
        be standardised in place.

        Args:
            table: The table, ``N`` rows.
            where: What to call the table in an error: its path.
            ids: The rows' own ids, ``[N]``, to name a row in an error by; without them it is
                named by its number.

        Returns:
            float32 ``[N, F]``, or :class:`SparseRows` where :attr:`sparse` says so.

        Raises:
            GraphError: If a column is missing or of another type than in fitting, or if a value
                is null, not a number, infinite (in float32), or a list of the wrong length.
        """
        return self.encode_with_report(table, where, ids=ids).rows

    def encode_with_report(
        self, table: pa.Table, where: str = "the table", *, ids: pa.ChunkedArray | None = None
    ) -> Encoded:
        """Encode as :meth:`encode` does, and count what fitting had not seen.

        A category, word or id that fitting had not seen is encoded as zeros.
        """
        unknown: dict[str, int] = {}
        blocks = self._blocks(table, _Place(where, ids), unknown)
        if self.sparse:
            return Encoded(_side_by_side([_as_sparse(block) for block in blocks]), unknown)
        rows = np.zeros((table.num_rows, self.width), dtype=np.float32)
        for block, first in zip(blocks, self._offsets(), strict=True):
            if isinstance(block, SparseRows):
                rows[_row_of_entry(block.indptr), block.indices + first] = block.values
            else:
                rows[:, first : first + block.shape[1]] = block
        return Encoded(rows, unknown)

    def to_json(self) -> dict[str, Any]:
        """Return the encoder as plain dicts, lists, strings and ints."""
        return {
            "columns": [
                {**asdict(column), "vocabulary": list(column.vocabulary)} for column in self.columns
            ]
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> FeatureEncoder:
        """Rebuild an encoder from what :meth:`to_json` gave.

        Raises:
            BundleError: If the document is not one that :meth:`to_json` could have given.
        """
        columns = document.get("columns") if isinstance(document, Mapping) else None
        if not isinstance(columns, list) or not columns:
            raise BundleError("the feature encoder has no list of columns.")
        return cls(tuple(_column_from_json(column) for column in columns))

    def _offsets(self) -> list[int]:
        """First encoded column of each column."""
        widths = [column.width for column in self.columns]
        return [0, *np.cumsum(widths[:-1]).tolist()]

    def _blocks(
        self, table: pa.Table, place: _Place, unknown: dict[str, int]
    ) -> Iterator[FeatureRows]:
        for encoding in self.columns:
            values = _decoded(_column(table, encoding.name, place.where))
            if values.null_count:
                raise place.error(encoding.name, _first(values.is_null()), "is null")
            block, num_unknown = _ENCODE[encoding.kind](values, encoding, place)
            if num_unknown:
                unknown[encoding.name] = num_unknown
            yield block


@dataclass(frozen=True, eq=False)
class _Place:
    """Where values come from, to say so in an error."""

    where: str
    ids: pa.ChunkedArray | None

    def error(self, column: str, row: int, problem: str) -> GraphError:
        if self.ids is None:
            row_name = f"row {row} (the first is 0)"
        else:
            row_name = f"node {self.ids[row].as_py()!r}"
        return GraphError(
            f"column {column!r} of {self.where} {problem} for {row_name}: "
            "a feature needs a finite value for every node."
        )

    def type_error(self, column: str, given: pa.DataType, wanted: str) -> GraphError:
        return GraphError(f"column {column!r} of {self.where} is {given}, expected {wanted}.")


# --- fitting ---------------------------------------------------------------------------------


def _fit_column(
    name: str, values: pa.ChunkedArray, categorical: bool, where: str
) -> ColumnEncoding:
    kind = _kind(name, values, categorical, where)
    if kind == "numeric":
        return ColumnEncoding(name, kind)
    if kind == "vector":
        lengths = pc.list_value_length(values).drop_null()
        width = lengths[0].as_py() if len(lengths) else 0
        if not width:
            raise GraphError(f"column {name!r} of {where} holds empty lists only.")
        return ColumnEncoding(name, kind, width=width)
    place = _Place(where, None)
    words = _decoded(values) if kind == "categorical" else pc.list_flatten(values)
    seen = pc.unique(_as_words(words, name, place, is_int=pa.types.is_integer(words.type)))
    vocabulary = tuple(sorted(seen.drop_null().to_pylist()))
    if not vocabulary:
        raise GraphError(f"column {name!r} of {where} holds no value at all.")
    return ColumnEncoding(name, kind, width=len(vocabulary), vocabulary=vocabulary)


def _kind(name: str, values: pa.ChunkedArray, categorical: bool, where: str) -> Kind:
    given = values.type
    if categorical or pa.types.is_dictionary(given):
        return "categorical"
    # a column without any value has type null; encoding says which node's value is missing
    if _is_number(given) or pa.types.is_null(given):
        return "numeric"
    if _is_list(given):
        items = given.value_type
        if pa.types.is_floating(items) or (
            pa.types.is_fixed_size_list(given) and _is_number(items)
        ):
            return "vector"
        if pa.types.is_integer(items) or _is_text(items):
            return "bag"
    if _is_text(given):
        example = next(iter(values.drop_null().slice(0, 1).to_pylist()), "")
        raise GraphError(
            f"column {name!r} of {where} holds text (such as {example!r}), which is no feature: "
            f"declare it with categorical=[{name!r}] (--categorical {name}), or name the feature "
            "columns with features (--features)."
        )
    raise GraphError(
        f"column {name!r} of {where} is {given}, which is no feature: give numbers, categories, "
        "or lists of numbers or words, or name the feature columns with features."
    )


# --- encoding, one function per kind ---------------------------------------------------------


def _encode_numeric(
    values: pa.ChunkedArray, encoding: ColumnEncoding, place: _Place
) -> tuple[FeatureRows, int]:
    if not _is_number(values.type):
        raise place.type_error(encoding.name, values.type, "a number")
    numbers = _float32(values)
    if not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        raise place.error(encoding.name, row, _problem(values[row].as_py()))
    return numbers[:, None], 0


def _encode_vector(
    values: pa.ChunkedArray, encoding: ColumnEncoding, place: _Place
) -> tuple[FeatureRows, int]:
    width = encoding.width
    if not _is_list(values.type) or not _is_number(values.type.value_type):
        raise place.type_error(encoding.name, values.type, f"lists of {width} numbers")
    lengths = pc.list_value_length(values).to_numpy()
    if not (lengths == width).all():
        row = int(np.argmax(lengths != width))
        problem = f"is a list of {lengths[row]} numbers, expected {width},"
        raise place.error(encoding.name, row, problem)
    flat = pc.list_flatten(values)
    if flat.null_count:
        raise place.error(encoding.name, _first(flat.is_null()) // width, "holds a null")
    numbers = _float32(flat)
    if not np.isfinite(numbers).all():
        first = int(np.argmin(np.isfinite(numbers)))
        raise place.error(encoding.name, first // width, _problem(flat[first].as_py()))
    return numbers.reshape(-1, width), 0


def _encode_categorical(
    values: pa.ChunkedArray, encoding: ColumnEncoding, place: _Place
) -> tuple[FeatureRows, int]:
    codes = _codes(values, encoding, place)
    known = codes >= 0
    rows = SparseRows(
        indptr=_starts(known.astype(np.int64)),
        indices=codes[known],
        values=np.ones(int(known.sum()), dtype=np.float32),
        width=encoding.width,
    )
    return rows, int(len(codes) - known.sum())


def _encode_bag(
    values: pa.ChunkedArray, encoding: ColumnEncoding, place: _Place
) -> tuple[FeatureRows, int]:
    if not _is_list(values.type):
        raise place.type_error(encoding.name, values.type, "lists of words or ids")
    num_rows, width = len(values), encoding.width
    lengths = pc.list_value_length(values).to_numpy().astype(np.int64)
    flat = pc.list_flatten(values)
    row_of_word = np.repeat(np.arange(num_rows), lengths)
    if flat.null_count:
        raise place.error(encoding.name, int(row_of_word[_first(flat.is_null())]), "holds a null")
    codes = _codes(flat, encoding, place)
    known = codes >= 0
    # one number per (row, word): sorting it sorts rows by their words and shows repetitions
    # (np.unique says the same, through a hash table that is many times slower)
    pairs = np.sort(row_of_word[known] * width + codes[known])
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    row, indices = np.divmod(pairs, width)
    rows = SparseRows(
        indptr=_starts(np.bincount(row, minlength=num_rows)),
        indices=indices,
        values=np.ones(len(pairs), dtype=np.float32),
        width=width,
    )
    return rows, int(len(codes) - known.sum())


_ENCODE: dict[
    Kind, Callable[[pa.ChunkedArray, ColumnEncoding, _Place], tuple[FeatureRows, int]]
] = {
    "numeric": _encode_numeric,
    "vector": _encode_vector,
    "categorical": _encode_categorical,
    "bag": _encode_bag,
}


def _codes(
    words: pa.ChunkedArray, encoding: ColumnEncoding, place: _Place
) -> npt.NDArray[np.int64]:
    """Place of each word in the vocabulary, -1 for one that is not in it."""
    vocabulary = encoding.vocabulary_array
    words = _as_words(words, encoding.name, place, is_int=pa.types.is_integer(vocabulary.type))
    codes = pc.index_in(words, value_set=vocabulary).fill_null(-1).to_numpy()
    return cast("npt.NDArray[np.int64]", codes.astype(np.int64))


def _as_words(
    values: pa.ChunkedArray, name: str, place: _Place, *, is_int: bool
) -> pa.ChunkedArray:
    """Cast categories, words or ids to the one type that vocabularies of their kind have."""
    given = values.type
    # 0.1 + 0.2 is not the category 0.3: floats cannot be told apart reliably
    if pa.types.is_floating(given):
        raise place.type_error(name, given, "text or whole numbers, to be categories or words")
    try:
        return values.cast(pa.int64() if is_int else pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        wanted = "whole numbers of 64 bits, as in fitting" if is_int else "text or whole numbers"
        raise place.type_error(name, given, wanted) from error


# --- small tools -----------------------------------------------------------------------------


def _column(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise _missing_column(name, table.column_names, where)
    return table.column(name)


def _missing_column(name: str, there: Sequence[str], where: str) -> GraphError:
    near = nearest_name(name, there)
    hint = f"did you mean {near!r}? " if near else ""
    return GraphError(
        f"no column {name!r} in {where}: {hint}There are {', '.join(map(repr, there))}."
    )


def _decoded(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(values.type):
        return values.cast(values.type.value_type)
    return values


def _is_number(given: pa.DataType) -> bool:
    tests = (
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_decimal,
        pa.types.is_boolean,
    )
    return any(test(given) for test in tests)


def _is_text(given: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(given) for test in tests)


def _is_list(given: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(given) for test in tests)


def _float32(values: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    # unsafe: large integers are rounded as any float32 is, and 1e300 becomes infinite
    return cast("npt.NDArray[np.float32]", values.cast(pa.float32(), safe=False).to_numpy())


def _problem(value: Any) -> str:
    if value != value:
        return "is not a number (NaN)"
    return "is infinite" if value in (np.inf, -np.inf) else f"is {value!r}, too large for float32,"


def _first(mask: pa.ChunkedArray) -> int:
    return int(np.argmax(mask.to_numpy()))


def _starts(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


def _row_of_entry(indptr: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))


def _as_sparse(block: FeatureRows) -> SparseRows:
    if isinstance(block, SparseRows):
        return block
    num_rows, width = block.shape
    return SparseRows(
        indptr=np.arange(num_rows + 1) * width,
        indices=np.tile(np.arange(width), num_rows),
        values=block.reshape(-1),
        width=width,
    )


def _side_by_side(blocks: Sequence[SparseRows]) -> SparseRows:
    """Join blocks of columns; all have the same rows."""
    indptr = np.sum([block.indptr for block in blocks], axis=0)
    indices = np.empty(indptr[-1], dtype=np.int64)
    values = np.empty(indptr[-1], dtype=np.float32)
    row_start, first_column = indptr[:-1].copy(), 0
    for block in blocks:
        lengths = np.diff(block.indptr)
        # an entry moves with its row: by where the row starts there less where it started here
        target = np.repeat(row_start - block.indptr[:-1], lengths) + np.arange(len(block.indices))
        indices[target] = block.indices + first_column
        values[target] = block.values
        row_start += lengths
        first_column += block.width
    return SparseRows(indptr, indices, values, first_column)


def _column_from_json(document: Any) -> ColumnEncoding:
    fields = {"name": str, "kind": str, "width": int, "vocabulary": list}
    if not isinstance(document, Mapping) or set(document) != set(fields):
        raise BundleError(f"a column of the feature encoder must have {', '.join(fields)}.")
    name, vocabulary = document["name"], document["vocabulary"]
    for key, wanted in fields.items():
        if type(document[key]) is not wanted:
            raise BundleError(
                f"{key!r} of feature column {name!r} is not of type {wanted.__name__}."
            )
    if document["kind"] not in get_args(Kind):
        raise BundleError(f"feature column {name!r} has unknown kind {document['kind']!r}.")
    if {type(word) for word in vocabulary} not in (set(), {str}, {int}):
        raise BundleError(f"the vocabulary of feature column {name!r} is not all text or all ints.")
    encoding = ColumnEncoding(name, document["kind"], document["width"], tuple(vocabulary))
    has_words = encoding.kind in ("categorical", "bag")
    widths_agree = encoding.width == len(vocabulary) if has_words else not vocabulary
    if encoding.kind == "numeric":
        widths_agree = encoding.width == 1
    if encoding.width < 1 or not widths_agree:
        raise BundleError(f"the width of feature column {name!r} does not fit its vocabulary.")
    return encoding
