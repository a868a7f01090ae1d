r"""Products with the normalised matrices of an undirected graph, several terms in one pass.

All are of the form :math:`D + f S A S` with diagonal :math:`D` and :math:`S`, and a pattern
:math:`A` that stores no values, so one set of arrays serves the Laplacian and the adjacency with
self-loops. A recurrence of Chebyshev polynomials costs little more than the bare
products: each pass forms the next polynomial in place of the last but one, row by row, and adds it
to the results while the row is in the cache.

Rows are shared out over threads, as many as PyTorch uses; each row is summed by one thread, so
results do not depend on their number.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.graphs.sparse import is_csr

Block = npt.NDArray[Any]
"""Dense numbers, float32 or float64, C-contiguous; all in one product have one type."""

# Below this many multiplications starting a thread costs more than it brings.
WORTH_A_THREAD = 2**21
CHUNKS_PER_THREAD = 4


class Pattern:
    """Where an undirected graph has edges.

    Args:
        adjacency: Symmetric ``torch.sparse_csr`` ``[N, N]`` without loops; its values are not read.
    """

    def __init__(self, adjacency: Tensor) -> None:
        assert is_csr(adjacency)
        self.num_nodes = int(adjacency.shape[0])
        self.indptr = adjacency.crow_indices().numpy()
        columns = adjacency.col_indices().numpy()
        # half the bytes of the edge stream, for all graphs that fit into memory
        self.indices = columns.astype(np.int32 if self.num_nodes < 2**31 else np.int64)

    @property
    def degrees(self) -> npt.NDArray[np.int64]:
        """Number of neighbours of each node, int64 ``[N]``."""
        return np.diff(self.indptr)

    def run(self, kernel: Callable[..., None], width: int, *arguments: Any) -> None:
        """Run a kernel over all rows, in as many threads as PyTorch uses.

        Args:
            kernel: Called with the pattern's arrays, ``arguments``, and the rows to do.
            width: Number of columns, for what the work is worth.
            *arguments: Handed on.
        """
        whole = partial(kernel, self.indptr, self.indices, *arguments)
        work = (len(self.indices) + self.num_nodes) * width
        threads = min(torch.get_num_threads(), work // WORTH_A_THREAD)
        if threads <= 1:
            whole(0, self.num_nodes)
            return
        # as many entries in each chunk, a row counting as one more
        cost = self.indptr + np.arange(self.num_nodes + 1)
        shares = np.linspace(0, cost[-1], CHUNKS_PER_THREAD * threads + 1)
        bounds = np.searchsorted(cost, shares)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(whole, bounds[:-1], bounds[1:]))


@dataclass(frozen=True, eq=False)
class Matrix:
    r"""The symmetric matrix :math:`D + f S A S`.

    Args:
        pattern: :math:`A`.
        scale: Diagonal of :math:`S`, float64 ``[N]``.
        diagonal: That of :math:`D`, float64 ``[N]``.
        factor: :math:`f`.
    """

    pattern: Pattern
    scale: npt.NDArray[np.float64]
    diagonal: npt.NDArray[np.float64]
    factor: float

    def times(self, z: Block) -> Block:
        """The product with ``z`` ``[N, q]``."""
        out = np.zeros_like(z)
        self._step(1.0, 0.0, z, out)
        return out

    def chebyshev(self, z: Block, series: npt.NDArray[np.float64]) -> Block:
        r"""Several polynomials of the matrix, :math:`\sum_k c_{m,k} T_k(S) z`, on one basis.

        Args:
            z: ``[N, q]``.
            series: Coefficients ``[M, p + 1]``, ``p`` at least 1.

        Returns:
            ``[M, N, q]``.
        """
        count, terms = series.shape
        out = np.empty((count, *z.shape), dtype=z.dtype)
        coefficients = series.astype(z.dtype)
        current = np.zeros_like(z)
        previous = z
        pending, fresh = 1, True  # T_0 is not in the results yet
        for k in range(1, terms):
            pending += 1
            if k == 1:
                target, current = current, z
            else:
                # T_k takes the place of T_{k-2}; z itself is not ours to overwrite
                target = previous.copy() if previous is z else previous
            # three terms at a time are added, which reads and writes the results a third as often
            added = pending if pending == 3 or k == terms - 1 else 0
            weights = np.zeros((3, count), dtype=z.dtype)
            if added:
                weights[3 - added :] = coefficients.T[k + 1 - added : k + 1]
                pending = 0
            self._step(
                1.0 if k == 1 else 2.0,
                0.0 if k == 1 else -1.0,
                current,
                target,
                weights[:, : count if added else 0],
                out,
                fresh,
            )
            fresh = fresh and not added
            previous, current = current, target
        return out

    def adjoint(self, parts: Block, series: npt.NDArray[np.float64]) -> Block:
        r"""The transpose of :meth:`chebyshev`: :math:`\sum_m \sum_k c_{m,k} T_k(S) y_m`.

        Clenshaw's recurrence takes as many products for all parts together as for one.

        Args:
            parts: ``[M, N, q]``.
            series: Coefficients ``[M, p + 1]``, ``p`` at least 1.

        Returns:
            ``[N, q]``.
        """
        coefficients = series.astype(parts.dtype)
        current = np.tensordot(coefficients[:, -1], parts, axes=1).astype(parts.dtype, copy=False)
        previous = np.zeros_like(current)
        for k in range(series.shape[1] - 2, -1, -1):
            twice = 1.0 if k == 0 else 2.0
            self.pattern.run(
                _clenshaw_rows,
                parts.shape[2],
                *self._numbers(parts.dtype, twice, -1.0),
                current,
                previous,
                coefficients[:, k].copy(),
                parts,
            )
            previous, current = current, previous
        return current

    def _step(
        self,
        times: float,
        back: float,
        t: Block,
        target: Block,
        weights: Block | None = None,
        out: Block | None = None,
        fresh: bool = False,
    ) -> None:
        """``target = times (S t) + back target`` and, if asked, what that adds to ``out``."""
        if weights is None or out is None:
            weights = np.zeros((3, 0), dtype=t.dtype)
            out = np.empty((0, 1, 1), dtype=t.dtype)
        self.pattern.run(
            _rows, t.shape[1], *self._numbers(t.dtype, times, back), t, target, weights, out, fresh
        )

    def _numbers(
        self, dtype: np.dtype[Any], times: float, back: float
    ) -> tuple[Block, Block, Any, Any]:
        """The matrix times a number in the type of the product, and the other number."""
        scale, diagonal = self.scale.astype(dtype), (times * self.diagonal).astype(dtype)
        factor, back_factor = np.array([times * self.factor, back], dtype=dtype)
        return scale, diagonal, factor, back_factor


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _rows(
    indptr: Any,
    indices: Any,
    scale: Any,
    diagonal: Any,
    factor: Any,
    back: Any,
    t: Any,
    target: Any,
    weights: Any,
    out: Any,
    fresh: bool,
    first: int,
    last: int,
) -> None:
    """Rows of ``target = (diagonal + factor s A s) t + back target``.

    ``weights`` ``[3, M]`` say how much of the old ``target``, of ``t`` and of the new ``target``
    is added to each of the ``M`` results, or stored in them if they are fresh.
    """
    width = t.shape[1]
    row = np.empty(width, dtype=t.dtype)
    for i in range(first, last):
        row[:] = 0
        for entry in range(indptr[i], indptr[i + 1]):
            j = indices[entry]
            value = scale[j]
            for q in range(width):
                row[q] += value * t[j, q]
        value = factor * scale[i]
        own = diagonal[i]
        for q in range(width):
            row[q] = value * row[q] + own * t[i, q] + back * target[i, q]
        for m in range(weights.shape[1]):
            of_old, of_t, of_new = weights[0, m], weights[1, m], weights[2, m]
            if fresh:
                for q in range(width):
                    out[m, i, q] = of_new * row[q] + of_t * t[i, q] + of_old * target[i, q]
            elif of_old != 0 or of_t != 0 or of_new != 0:  # else its polynomial has ended
                for q in range(width):
                    out[m, i, q] += of_new * row[q] + of_t * t[i, q] + of_old * target[i, q]
        for q in range(width):
            target[i, q] = row[q]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _clenshaw_rows(
    indptr: Any,
    indices: Any,
    scale: Any,
    diagonal: Any,
    factor: Any,
    back: Any,
    t: Any,
    target: Any,
    weights: Any,
    parts: Any,
    first: int,
    last: int,
) -> None:
    """Rows of ``target = (diagonal + factor s A s) t + back target + Σ_m weights_m parts_m``."""
    width = t.shape[1]
    row = np.empty(width, dtype=t.dtype)
    for i in range(first, last):
        row[:] = 0
        for entry in range(indptr[i], indptr[i + 1]):
            j = indices[entry]
            value = scale[j]
            for q in range(width):
                row[q] += value * t[j, q]
        value = factor * scale[i]
        own = diagonal[i]
        for q in range(width):
            row[q] = value * row[q] + own * t[i, q] + back * target[i, q]
        for m in range(len(weights)):
            value = weights[m]
            for q in range(width):
                row[q] += value * parts[m, i, q]
        for q in range(width):
            target[i, q] = row[q]


__all__ = ["Block", "Matrix", "Pattern"]
