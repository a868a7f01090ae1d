"""Which rows of a batch cannot be answered, and why.

The rules are those of :class:`limbeck.features.FeatureEncoder`, which stops at the first bad row;
here every row is looked at, whole columns at a time, so that the others can still be answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from limbeck.features import ColumnEncoding, FeatureEncoder

Mask: TypeAlias = npt.NDArray[np.bool_]


def feature_problems(table: pa.Table, encoder: FeatureEncoder) -> Iterator[tuple[Mask, str]]:
    """What is wrong with the feature columns of a table, kind by kind.

    Args:
        table: ``B`` rows with the encoder's columns, of the types that it reads.
        encoder: What turns them into features.

    Yields:
        Which rows have a problem, bool ``[B]``, and what it is. Rows that no problem names can be
        encoded.
    """
    for column in encoder.columns:
        values = table.column(column.name)
        yield is_null(values), f"column {column.name!r} is null"
        if column.kind == "numeric":
            yield not_finite(values), f"column {column.name!r} is not a finite float32 number"
        elif column.kind == "vector":
            yield from _vector_problems(values, column)
        elif column.kind == "bag":
            yield _holds_null(values), f"a list in column {column.name!r} holds a null"


def is_null(values: pa.ChunkedArray) -> Mask:
    """Which rows are null, bool ``[B]``."""
    if not values.null_count:
        return np.zeros(len(values), dtype=np.bool_)
    return _bools(values.is_null())


def not_finite(values: pa.ChunkedArray) -> Mask:
    """Which rows hold a number that is none in float32, bool ``[B]``; nulls do not count."""
    numbers = _float32(values.fill_null(0) if values.null_count else values)
    outside: Mask = ~np.isfinite(numbers)
    return outside


def _vector_problems(values: pa.ChunkedArray, column: ColumnEncoding) -> Iterator[tuple[Mask, str]]:
    lengths = pc.list_value_length(values).fill_null(column.width).to_numpy()
    wrong_length: Mask = lengths != column.width
    yield wrong_length, f"the list in column {column.name!r} is not {column.width} long"
    readable = ~(wrong_length | is_null(values))
    flat = pc.list_flatten(values if readable.all() else values.filter(pa.array(readable)))
    if flat.null_count:
        yield (
            _by_row(is_null(flat), readable, column.width),
            f"the list in column {column.name!r} holds a null",
        )
    yield (
        _by_row(not_finite(flat), readable, column.width),
        f"the list in column {column.name!r} holds what is not a finite float32 number",
    )


def _by_row(flags: Mask, readable: Mask, width: int) -> Mask:
    """Whether any value of a row is flagged; ``flags`` are those of the readable rows."""
    rows = np.zeros(len(readable), dtype=np.bool_)
    if flags.any():
        rows[readable] = flags.reshape(-1, width).any(axis=1)
    return rows


def _holds_null(values: pa.ChunkedArray) -> Mask:
    rows = np.zeros(len(values), dtype=np.bool_)
    flat = pc.list_flatten(values)
    if flat.null_count:
        lengths = pc.list_value_length(values).fill_null(0).to_numpy()
        row_of_value = np.repeat(np.arange(len(values)), lengths)
        rows[row_of_value[is_null(flat)]] = True
    return rows


def _float32(values: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    numbers: npt.NDArray[np.float32] = values.cast(pa.float32(), safe=False).to_numpy()
    return numbers


def _bools(values: Any) -> Mask:
    flags: Mask = values.to_numpy().astype(np.bool_, copy=False)
    return flags
