"""Feature rows of a request: checked, and in one of two forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from limbeck.errors import RequestError

_ACCEPTED = (
    "give rows as a dense [B, F] array, a SciPy CSR matrix or arrays (indptr, indices[, values])"
)


_WHAT = {"x": "features", "position": "numbers of a position", "bands": "numbers of bands"}


@dataclass(frozen=True, eq=False)
class CsrRows:
    """``B`` sparse rows: row ``i`` holds ``values[k]`` in column ``indices[k]``.

    ``k`` runs over ``indptr[i]:indptr[i + 1]``. A column that occurs twice in a row counts
    twice, as in SciPy.

    Args:
        indptr: int64 ``[B + 1]``, from 0 to ``nnz``, never falling.
        indices: int64 ``[nnz]``, each in ``[0, width)``.
        values: float32 ``[nnz]``, finite.
        width: Number of columns ``F``.
    """

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    width: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def dense(self) -> npt.NDArray[np.float32]:
        """The same rows as a dense float32 array ``[B, F]``."""
        flat = np.zeros(len(self) * self.width, dtype=np.float32)
        np.add.at(flat, self._row_of_entry() * self.width + self.indices, self.values)
        return flat.reshape(len(self), self.width)

    def longest(self) -> int:
        """Number of entries of the longest row."""
        return len(self.indices) if len(self) == 1 else int(np.diff(self.indptr).max(initial=0))

    def take(self, rows: npt.NDArray[np.int64]) -> CsrRows:
        """The rows of these numbers (int64 ``[b]``), in that order."""
        indptr, place = entries_of(self.indptr, rows)
        return CsrRows(indptr, self.indices[place], self.values[place], self.width)

    def padded(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Columns and values of the rows, ``[B, m]`` each.

        ``m`` is the number of entries of the longest row, at least 1; shorter ones are filled up
        with zeros in column 0.
        """
        shape = (len(self), max(self.longest(), 1))
        if len(self.indices) == shape[0] * shape[1]:  # all rows are as long
            return self.indices.reshape(shape), self.values.reshape(shape)
        is_entry = np.arange(shape[1]) < np.diff(self.indptr)[:, None]
        columns, values = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        columns[is_entry], values[is_entry] = self.indices, self.values
        return columns, values

    def summed(self) -> CsrRows:
        """The same rows with their columns in order and each column once, its values added up."""
        rises = self.indices[1:] > self.indices[:-1]
        if len(self) > 1:
            first = self.indptr[1:-1]  # first entry of each row but the first row
            rises[first[(first > 0) & (first < len(self.indices))] - 1] = True
        if rises.all():
            return self
        entry, place = np.unique(
            self._row_of_entry() * self.width + self.indices, return_inverse=True
        )
        values = np.bincount(place, weights=self.values, minlength=len(entry)).astype(np.float32)
        indptr = np.searchsorted(entry, np.arange(len(self) + 1) * self.width)
        return CsrRows(indptr, entry % self.width, values, self.width)

    def _row_of_entry(self) -> npt.NDArray[np.int64]:
        """Row of each entry, ``[nnz]``."""
        return np.repeat(np.arange(len(self)), np.diff(self.indptr))


def entries_of(
    indptr: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the entries of some rows of a CSR matrix stand, those of one row together.

    Args:
        indptr: int64 ``[N + 1]``.
        rows: Numbers of rows, int64 ``[b]``.

    Returns:
        Where each of those rows begins among their entries, int64 ``[b + 1]``, and the place of
        each entry in the matrix.
    """
    first = indptr[rows]
    lengths = indptr[rows + 1] - first
    begins = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=begins[1:])
    # its row's first entry plus its place in the row
    return begins, np.repeat(first - begins[:-1], lengths) + np.arange(begins[-1])


Rows: TypeAlias = npt.NDArray[np.float32] | CsrRows
"""Rows ready for a kernel: dense, C-contiguous float32 ``[B, F]``, or CSR."""


def check_rows(x: Any, width: int) -> Rows:
    """Check the feature rows of a request and bring them to one of two forms.

    Args:
        x: Dense rows ``[B, F]`` (nested lists or an array of booleans, integers or floats);
            a CSR matrix (anything with ``indptr``, ``indices``, ``data`` and ``shape``); or a
            tuple ``(indptr, indices)`` or ``(indptr, indices, values)``, values being ones if
            not given.
        width: Number of features ``F``.

    Raises:
        RequestError: ``x`` is none of these, is of another width, holds a value that is not
            finite in float32, or a column that does not exist.
    """
    if isinstance(x, tuple):
        if len(x) not in (2, 3):
            raise RequestError(f"x is a tuple of {len(x)}: {_ACCEPTED}.")
        return _check_csr(x[0], x[1], x[2] if len(x) == 3 else None, width)
    if all(hasattr(x, name) for name in ("indptr", "indices", "data", "shape")):
        if getattr(x, "format", "csr") != "csr":
            raise RequestError(f"x is a sparse matrix of format {x.format!r}: give x.tocsr().")
        _check_width(x.shape, width)
        rows = _check_csr(x.indptr, x.indices, x.data, width)
        if len(rows) != x.shape[0]:
            raise RequestError(
                f"x.indptr describes {len(rows)} rows, and x.shape says {x.shape[0]}."
            )
        return rows
    return _check_dense(x, width)


def check_beside(name: str, given: Any, width: int) -> npt.NDArray[np.float32]:
    """Check what a request gives beside features: positional encodings ``[B, d]``, or bands.

    Args:
        name: ``"position"`` or ``"bands"``.
        given: The numbers.
        width: How many of a node.

    Raises:
        RequestError: They are not dense rows of that many finite numbers.
    """
    return _check_dense(given, width, name)


def _check_dense(x: Any, width: int, name: str = "x") -> npt.NDArray[np.float32]:
    given = _numbers(name, x, "biuf")
    if given.shape == (0,):  # an empty list: no rows
        given = given.reshape(0, width)
    if given.ndim != 2:
        hint = " one node is [row]," if given.ndim == 1 else ""
        accepted = _ACCEPTED if name == "x" else f"give [B, {width}] numbers"
        raise RequestError(f"{name} has {given.ndim} dimensions and must have 2:{hint} {accepted}.")
    _check_width(given.shape, width, name)
    rows = _to_float32(given)
    finite = np.isfinite(rows)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise RequestError(
            f"{name}[{row}, {column}] is {given[row, column]}: it must be a finite float32 number."
        )
    return rows


def _check_csr(indptr: Any, indices: Any, values: Any, width: int) -> CsrRows:
    pointers = _vector("x.indptr", indptr, "iu")
    columns = _vector("x.indices", indices, "iu")
    if len(pointers) == 0 or pointers[0] != 0 or pointers[-1] != len(columns):
        raise RequestError(
            f"x.indptr must start with 0 and end with the number of indices, {len(columns)}."
        )
    if (pointers[1:] < pointers[:-1]).any():
        row = int(np.argmax(pointers[1:] < pointers[:-1]))
        raise RequestError(f"x.indptr falls at row {row}: row ends must not fall.")
    outside = (columns < 0) | (columns >= width)
    if outside.any():
        position = int(np.argmax(outside))
        row = int(np.searchsorted(pointers, position, side="right")) - 1
        raise RequestError(
            f"x has the column {columns[position]} in row {row}: columns are 0 to {width - 1}."
        )
    return CsrRows(
        pointers.astype(np.int64, copy=False),
        columns.astype(np.int64, copy=False),
        _check_values(values, len(columns)),
        width,
    )


def _check_values(values: Any, count: int) -> npt.NDArray[np.float32]:
    if values is None:
        return np.ones(count, dtype=np.float32)
    given = _vector("x.values", values, "biuf")
    if len(given) != count:
        raise RequestError(f"x has {len(given)} values for {count} indices: give one for each.")
    numbers = _to_float32(given)
    finite = np.isfinite(numbers)
    if not finite.all():
        position = int(np.argmin(finite))
        raise RequestError(
            f"x.values[{position}] is {given[position]}: features must be finite float32 numbers."
        )
    return numbers


def _check_width(shape: tuple[int, ...], width: int, name: str = "x") -> None:
    if len(shape) != 2 or shape[1] != width:
        what = _WHAT[name]
        raise RequestError(
            f"{name} has the shape {tuple(shape)}: the student reads {width} {what}, so "
            f"[B, {width}]."
        )


def _vector(name: str, given: Any, kinds: str) -> npt.NDArray[Any]:
    array = _numbers(name, given, kinds)
    if array.ndim != 1:
        raise RequestError(f"{name} has {array.ndim} dimensions and must have 1.")
    return array


def _numbers(name: str, given: Any, kinds: str) -> npt.NDArray[Any]:
    """``given`` as an array whose type is one of NumPy's ``kinds``; an empty one may be any."""
    try:
        array = np.asarray(given)
    # what arrays of other libraries raise where they cannot become one of NumPy's
    except (ValueError, TypeError, RuntimeError) as error:
        raise RequestError(f"{name} is not an array of numbers: {_ACCEPTED}.") from error
    if array.dtype.kind not in kinds:
        if array.size == 0 and array.dtype.kind == "f":
            return array.astype(np.int64)
        what = "integers" if kinds == "iu" else "numbers"
        raise RequestError(f"{name} must hold {what}, and is of type {array.dtype}.")
    return array


def _to_float32(given: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):  # becomes infinite, which the caller refuses by name
        return np.ascontiguousarray(given, dtype=np.float32)
