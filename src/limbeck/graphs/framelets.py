r"""Framelets on a graph: a tight frame that splits a signal into bands and loses nothing.

.. math::
    \mathbf{W}_{r,l} = g_r(\xi_l(\mathbf{L})) \prod_{m<l} g_0(\xi_m(\mathbf{L})), \quad
    \mathbf{W}_0 = \prod_{m<J} g_0(\xi_m(\mathbf{L})), \quad
    \sum_b \mathbf{W}_b^\top \mathbf{W}_b = \mathbf{I}

(`"How Framelets Enhance Graph Neural Networks" <https://arxiv.org/abs/2102.06986>`_), and the
operator of one band that `"Frameless Graph Knowledge Distillation"
<https://arxiv.org/abs/2307.06631>`_ hands from teacher to student,

.. math::
    \mathbf{P}_b = \mathbf{W}_b^\top \hat{\mathbf{A}}_b \mathbf{W}_b, \quad
    \hat{\mathbf{A}}_b = \hat{\mathbf{A}} \mp \varepsilon \tilde{\mathbf{D}}^{-1}

with the minus in the low band. :math:`\mathbf{L} = \mathbf{I} - \mathbf{D}^{-1/2} \mathbf{A}
\mathbf{D}^{-1/2}` has no self-loops, :math:`\hat{\mathbf{A}} = \tilde{\mathbf{D}}^{-1/2}
(\mathbf{A} + \mathbf{I}) \tilde{\mathbf{D}}^{-1/2}` has one per node. All operators are symmetric.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.utils import remove_self_loops, to_undirected

from limbeck.errors import GraphError, OptionError, OutputError
from limbeck.graphs import framelet_banks as banks
from limbeck.graphs.adjacency import plain_adjacency
from limbeck.graphs.framelet_banks import Band, FrameletOptions
from limbeck.graphs.framelet_products import Block, Matrix, Pattern
from limbeck.graphs.sparse import is_csr

MAX_EIGH_NODES = 5000
"""Above this many nodes all eigenvectors take minutes and hundreds of megabytes."""

BLOCK_COLUMNS = 64
"""Columns that are dense at a time where features are sparse or results go to files."""

PRUNE_BELOW = 1e-8
"""Entries of explicit operators that are dropped."""

FUSED_TOLERANCE = 1e-6
"""Error of the polynomial that stands for a power of a band in fused mode."""


def clean_adjacency(edge_index: Tensor, num_nodes: int) -> Tensor:
    """The graph that the transform sees: undirected, each edge once, no self-loops.

    Args:
        edge_index: int64 ``[2, E]``; may be directed, hold loops, or name an edge twice.
        num_nodes: Number of nodes ``N``.

    Returns:
        ``torch.sparse_csr`` ``[N, N]``, float32, all values 1.

    Raises:
        GraphError: An edge names a node that does not exist.
    """
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < num_nodes:
        raise GraphError(
            f"the edges name nodes from {int(edge_index.min())} to {int(edge_index.max())}, but "
            f"the graph has {num_nodes} nodes: they must lie between 0 and {num_nodes - 1}."
        )
    edges, _ = remove_self_loops(edge_index)
    return plain_adjacency(to_undirected(edges, num_nodes=num_nodes), num_nodes)


class Framelets:
    r"""The framelet transform of one graph.

    Every product is differentiable in ``z``, twice too; the graph has no gradient. ``z`` is dense
    ``[N, q]`` on the CPU, float32 or float64, and results have its type.

    Args:
        edge_index: int64 ``[2, E]``, cleaned by :func:`clean_adjacency`, or what that returned.
        num_nodes: Number of nodes ``N``.
        options: What makes the transform; Haar, one level, matrix-free by default.

    Attributes:
        bands: The bands, low first; wherever a band is asked for, its number in this order.
        num_nodes: ``N``.
        options: As given.

    Raises:
        GraphError: An edge names a node that does not exist.
        OptionError: ``mode="eigh"`` on more than :data:`MAX_EIGH_NODES` nodes.

    Example:
        >>> framelets = Framelets(edge_index, num_nodes)
        >>> low, high = framelets.decompose(z)
        >>> torch.testing.assert_close(framelets.reconstruct([low, high]), z)
    """

    def __init__(
        self, edge_index: Tensor, num_nodes: int, options: FrameletOptions | None = None
    ) -> None:
        self.options = options or FrameletOptions()
        self.num_nodes = num_nodes
        self.bands: tuple[Band, ...] = self.options.bands
        adjacency = edge_index if is_csr(edge_index) else clean_adjacency(edge_index, num_nodes)
        self._pattern = Pattern(adjacency)
        degrees = self._pattern.degrees.astype(np.float64)
        # an isolated node: L_ii = 1 and nothing to gather, as in PyG
        self._scale = np.divide(1, np.sqrt(degrees), out=np.zeros(num_nodes), where=degrees > 0)
        self._loop_scale = 1 / np.sqrt(degrees + 1)
        self._realisation = self._realise()

    @property
    def num_edges(self) -> int:
        """Number of stored edges, two for each undirected one."""
        return len(self._pattern.indices)

    def decompose(self, z: Tensor) -> list[Tensor]:
        r"""The coefficients :math:`\mathbf{W}_b \mathbf{z}` of every band.

        All bands of a level share one basis: :math:`pJ` sparse products.
        """
        self._check(z)
        parts: tuple[Tensor, ...] = _linear(self._split, self._joined, z)
        return list(parts)

    def reconstruct(self, parts: Sequence[Tensor]) -> Tensor:
        r"""The signal :math:`\sum_b \mathbf{W}_b^\top \mathbf{c}_b` of coefficients.

        The adjoint of :meth:`decompose`, at the same :math:`pJ` products.

        Args:
            parts: One ``[N, q]`` per band, in the order of :attr:`bands`.

        Raises:
            GraphError: Not as many parts as bands, or of the wrong shape.
        """
        if len(parts) != len(self.bands):
            raise GraphError(
                f"{len(parts)} parts were given, but the transform has {len(self.bands)} bands."
            )
        for part in parts:
            self._check(part)
        return _linear(self._join, lambda z: tuple(self.decompose(z)), *parts)[0]

    def filter(self, b: int, z: Tensor) -> Tensor:
        r"""The coefficients :math:`\mathbf{W}_b \mathbf{z}` of one band."""
        self._check(z)
        return self._symmetric(lambda block: self._realisation.filter(b, block), z)

    def aggregate(self, z: Tensor, b: int) -> Tensor:
        r"""The aggregation :math:`\hat{\mathbf{A}}_b \mathbf{z}` inside a band, ε included."""
        self._check(z)
        sign = -1 if self.bands[b].is_low else 1
        return self._symmetric(self._adjacency(sign * self.options.epsilon).times, z)

    def adjacency(self, z: Tensor) -> Tensor:
        r"""The product :math:`\hat{\mathbf{A}} \mathbf{z}`, without ε."""
        self._check(z)
        return self._symmetric(self._adjacency(0.0).times, z)

    def laplacian(self, z: Tensor) -> Tensor:
        r"""The product with what the filters are functions of.

        :math:`\mathbf{L} \mathbf{z}`, or :math:`(\mathbf{I} - \hat{\mathbf{A}}) \mathbf{z}` where
        the transform is fused.
        """
        self._check(z)
        return self._symmetric(self._dilated(1.0, 0.0).times, z)

    def propagate_band(self, b: int, z: Tensor, power: int = 1) -> Tensor:
        r"""The operator of one band, :math:`\mathbf{P}_b^k \mathbf{z}`.

        Args:
            b: Number of the band.
            z: ``[N, q]``.
            power: The power ``k``, 0 or above.

        Raises:
            OptionError: A negative power.
        """
        self._check(z)
        _check_power(power)
        if power > 0 and self._one_polynomial:
            series = banks.power_series(self.options, b, power, FUSED_TOLERANCE)
            matrix = self._dilated(1.0, -1.0)
            return self._symmetric(lambda block: matrix.chebyshev(block, series[None])[0], z)
        for _ in range(power):
            z = self.filter(b, self.aggregate(self.filter(b, z), b))
        return z

    def propagate(
        self,
        z: Tensor,
        power: int = 1,
        *,
        block: int | None = None,
        out: str | os.PathLike[str] | None = None,
    ) -> list[Tensor]:
        r"""The operators of all bands, :math:`\mathbf{P}_b^k \mathbf{z}`.

        The bands share one basis where they can, see :meth:`num_products`.

        Args:
            z: ``[N, q]``, dense or ``torch.sparse_csr``.
            power: The power ``k``, 0 or above.
            block: Columns done at a time; memory beyond the results is a few dense blocks of them.
                ``None``: all of a dense ``z``, :data:`BLOCK_COLUMNS` if ``z`` is sparse or results
                go to files.
            out: An existing folder for the results, as memory-mapped ``BAND-POWER.npy``, for those
                that do not fit into memory.

        Returns:
            One dense ``[N, q]`` per band.

        Raises:
            OptionError: A negative power, or a block of no columns.
            OutputError: ``out`` cannot be written to.
        """
        return self._in_blocks(z, [power], block, out)[0]

    def powers(
        self,
        z: Tensor,
        n: int,
        *,
        block: int | None = None,
        out: str | os.PathLike[str] | None = None,
    ) -> list[list[Tensor]]:
        r"""All powers up to ``n``, each from the one before it.

        Args:
            z: ``[N, q]``, dense or ``torch.sparse_csr``.
            n: The highest power, 1 or above.
            block: As for :meth:`propagate`.
            out: As for :meth:`propagate`.

        Returns:
            :math:`\mathbf{P}_b^k \mathbf{z}` as ``[k - 1][b]``.

        Raises:
            OptionError: ``n`` is below 1, or a block of no columns.
            OutputError: ``out`` cannot be written to.
        """
        if n < 1:
            raise OptionError(f"powers up to {n} were asked for: it must be at least 1.")
        return self._in_blocks(z, list(range(1, n + 1)), block, out)

    def rows(self, nodes: Tensor, power: int = 1, *, block: int | None = None) -> list[Tensor]:
        r"""Rows of the operators, :math:`\mathbf{e}_v^\top \mathbf{P}_b^k`.

        Rows are as wide as the graph and nearly dense from the second power on: for small graphs
        and for single nodes.

        Args:
            nodes: int64 ``[n]``.
            power: The power ``k``, 0 or above.
            block: Rows done at a time, all by default.

        Returns:
            One float32 ``[n, N]`` per band.

        Raises:
            OptionError: A negative power.
        """
        unit = torch.zeros(self.num_nodes, len(nodes))
        unit[nodes, torch.arange(len(nodes))] = 1
        return [part.t().contiguous() for part in self.propagate(unit, power, block=block)]

    def response(self, eigenvalues: Tensor) -> Tensor:
        r"""What each band makes of an eigenvector, :math:`w_b(\lambda)`.

        Args:
            eigenvalues: Of :math:`\mathbf{L}` (fused: of :math:`\mathbf{I} - \hat{\mathbf{A}}`),
                in :math:`[0, 2]`, ``[n]``.

        Returns:
            float64 ``[B, n]``; of the polynomials, unless ``mode="eigh"``.
        """
        values = eigenvalues.detach().to(torch.float64).numpy()
        return torch.from_numpy(banks.response(self.options, values))

    def tight_defect(self) -> float:
        r"""The largest :math:`|\sum_b w_b(\lambda)^2 - 1|` on :math:`[0, 2]`."""
        return banks.tight_defect(self.options)

    def num_products(self, *powers: int) -> int:
        """Sparse products, each with as many columns as ``z``, that matrix-free powers take.

        ``num_products(k)`` is the cost of ``propagate(z, k)``, ``num_products(1, ..., n)`` that
        of ``powers(z, n)``: those in between come for free.
        """
        count, degree = len(self.bands), self.options.effective_degree
        highest = max(powers, default=0)
        if highest == 0:
            return 0
        if self._one_polynomial:
            return int(self._fused_series(powers).shape[1]) - 1
        decompositions = degree * self.options.levels
        once = sum(degree * (band.level + 1) for band in self.bands)
        return decompositions + count + once + (highest - 1) * (2 * once + count)

    @property
    def _one_polynomial(self) -> bool:
        return self.options.fused and self.options.mode == "matfree"

    def _realise(self) -> _Realisation:
        options = self.options
        if options.mode == "eigh":
            if self.num_nodes > MAX_EIGH_NODES:
                raise OptionError(
                    f"option 'mode' is 'eigh', but the graph has {self.num_nodes} nodes: it is "
                    f"for up to {MAX_EIGH_NODES}; use 'matfree'."
                )
            laplacian = self._dilated(1.0, 0.0).times(np.eye(self.num_nodes))
            return _Eigenvectors(laplacian, options)
        levels = [self._dilated(options.dilation**-level, -1.0) for level in range(options.levels)]
        if options.mode == "sparse":
            return _Explicit([_explicit(matrix) for matrix in levels], options)
        return _Polynomials(levels, options)

    def _dilated(self, factor: float, shift: float) -> Matrix:
        """``factor`` times the Laplacian of the filters plus ``shift`` times the identity."""
        if self.options.fused:
            scale = self._loop_scale
            return Matrix(self._pattern, scale, factor * (1 - scale**2) + shift, -factor)
        diagonal = np.full(self.num_nodes, factor + shift)
        return Matrix(self._pattern, self._scale, diagonal, -factor)

    def _adjacency(self, epsilon: float) -> Matrix:
        scale = self._loop_scale
        return Matrix(self._pattern, scale, (1 + epsilon) * scale**2, 1.0)

    def _fused_series(self, powers: Sequence[int]) -> npt.NDArray[np.float64]:
        """Coefficients ``[len(powers) B, p + 1]`` of all bands of some powers, padded by zeros."""
        found = [
            banks.power_series(self.options, b, power, FUSED_TOLERANCE)
            for power in powers
            for b in range(len(self.bands))
        ]
        padded = np.zeros((len(found), max(map(len, found))))
        for row, series in zip(padded, found, strict=True):
            row[: len(series)] = series
        return padded

    def _powers(self, z: Tensor, wanted: Sequence[int]) -> list[list[Tensor]]:
        """Some powers, ascending, of a dense block."""
        if self._one_polynomial and wanted[0] > 0:
            return self._fused_powers(z, wanted)
        bands = range(len(self.bands))
        reached, current = 0, [z for _ in bands]
        found = []
        for power in wanted:
            if reached == 0 and power > 0:
                parts = self.decompose(z)
                current = [self.filter(b, self.aggregate(parts[b], b)) for b in bands]
                reached = 1
            current = [self.propagate_band(b, current[b], power - reached) for b in bands]
            reached = power
            found.append(current)
        return found

    def _fused_powers(self, z: Tensor, wanted: Sequence[int]) -> list[list[Tensor]]:
        series, matrix = self._fused_series(wanted), self._dilated(1.0, -1.0)
        self._check(z)

        def forward(signal: Tensor) -> tuple[Tensor, ...]:
            return _tensors(matrix.chebyshev(_array(signal), series))

        def adjoint(*gradients: Tensor) -> tuple[Tensor]:
            return (_linear(backward, forward, *gradients)[0],)

        def backward(*parts: Tensor) -> tuple[Tensor]:
            return (torch.from_numpy(matrix.adjoint(_stacked(parts), series)),)

        parts = list(_linear(forward, adjoint, z))
        count = len(self.bands)
        return [parts[i : i + count] for i in range(0, len(parts), count)]

    def _in_blocks(
        self,
        z: Tensor,
        wanted: list[int],
        block: int | None,
        out: str | os.PathLike[str] | None,
    ) -> list[list[Tensor]]:
        _check_power(wanted[0])
        if block is not None and block < 1:
            raise OptionError(f"option 'block' is {block}: it must be at least 1.")
        if not is_csr(z) and block is None and out is None:
            self._check(z)
            return self._powers(z, wanted)
        _check_rows(z, self.num_nodes)
        found = [[self._target(z, band, power, out) for band in self.bands] for power in wanted]
        for columns, dense in _column_blocks(z, block or BLOCK_COLUMNS):
            for targets, parts in zip(found, self._powers(dense, wanted), strict=True):
                for target, part in zip(targets, parts, strict=True):
                    target[:, columns] = part
        return found

    def _target(
        self, z: Tensor, band: Band, power: int, out: str | os.PathLike[str] | None
    ) -> Tensor:
        """Where a result is put: memory, or a file."""
        if out is None:
            return z.new_zeros(tuple(z.shape), layout=torch.strided)
        path = Path(out) / f"{band.name}-{power}.npy"
        dtype = torch.empty(0, dtype=z.dtype).numpy().dtype
        try:
            mapped = np.lib.format.open_memmap(path, "w+", dtype, tuple(z.shape))
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from None
        return torch.from_numpy(mapped)

    def _symmetric(self, apply: Callable[[Block], Block], z: Tensor) -> Tensor:
        """A product with a symmetric matrix, whose gradient is the same product."""

        def forward(signal: Tensor) -> tuple[Tensor]:
            return (torch.from_numpy(apply(_array(signal))),)

        def adjoint(gradient: Tensor) -> tuple[Tensor]:
            return (self._symmetric(apply, gradient),)

        return _linear(forward, adjoint, z)[0]

    def _split(self, z: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, self._realisation.split(_array(z))))

    def _join(self, *parts: Tensor) -> tuple[Tensor]:
        return (torch.from_numpy(self._realisation.join([_array(part) for part in parts])),)

    def _joined(self, *parts: Tensor) -> tuple[Tensor]:
        return (self.reconstruct(parts),)

    def _check(self, z: Tensor) -> None:
        if z.layout != torch.strided or z.device.type != "cpu":
            raise GraphError(
                f"the signal is {z.layout} on {z.device.type!r}: it must be dense on the CPU."
            )
        _check_rows(z, self.num_nodes)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.num_nodes}, {self.options.bank}, "
            f"bands={len(self.bands)}, mode={self.options.mode})"
        )


class _Realisation(ABC):
    """One way to apply the operators ``W_b``; ``z`` is ``[N, q]``."""

    def __init__(self, options: FrameletOptions) -> None:
        self.bands = options.bands

    def split(self, z: Block) -> list[Block]:
        """The coefficients of all bands."""
        return [self.filter(b, z) for b in range(len(self.bands))]

    def join(self, parts: list[Block]) -> Block:
        """The adjoint of :meth:`split`."""
        signal = self.filter(0, parts[0])
        for b in range(1, len(parts)):
            signal += self.filter(b, parts[b])
        return signal

    @abstractmethod
    def filter(self, b: int, z: Block) -> Block:
        """The coefficients of one band."""


class _Polynomials(_Realisation):
    """Chebyshev polynomials of the graph, applied to blocks; no operator is ever formed.

    Args:
        levels: The matrix that each level's polynomials are of, finest first.
        options: What makes the transform.
    """

    def __init__(self, levels: list[Matrix], options: FrameletOptions) -> None:
        super().__init__(options)
        self.levels = levels
        self.series = banks.coefficients(options.bank, options.effective_degree)

    def split(self, z: Block) -> list[Block]:
        """Level by level: its high bands stay, its low band goes on to the next."""
        high: list[Block] = []
        for matrix in self.levels:
            z, *fine = matrix.chebyshev(z, self.series)
            high.extend(fine)
        return [z, *high]

    def join(self, parts: list[Block]) -> Block:
        """The levels in reverse order."""
        z, high, count = parts[0], parts[1:], len(self.series) - 1
        for level in range(len(self.levels) - 1, -1, -1):
            fine = high[level * count : (level + 1) * count]
            z = self.levels[level].adjoint(np.stack([z, *fine]), self.series)
        return z

    def filter(self, b: int, z: Block) -> Block:
        """The low-passes of the levels before it, then its own filter."""
        band = self.bands[b]
        for level in range(band.level + 1):
            r = band.filter if level == band.level else 0
            z = self.levels[level].chebyshev(z, self.series[r : r + 1])[0]
        return z


class _Explicit(_Realisation):
    """The same polynomials as sparse matrices.

    Args:
        levels: The matrix that each level's polynomials are of, float64 ``[N, N]``.
        options: What makes the transform.
    """

    def __init__(self, levels: list[sparse.csr_array], options: FrameletOptions) -> None:
        super().__init__(options)
        series = banks.coefficients(options.bank, options.effective_degree)
        low = sparse.eye_array(levels[0].shape[0], format="csr")
        high: list[sparse.csr_array] = []
        for matrix in levels:
            current, previous = matrix, sparse.eye_array(matrix.shape[0], format="csr")
            filtered = [c[0] * previous + c[1] * current for c in series]
            for k in range(2, series.shape[1]):
                current, previous = 2 * (matrix @ current) - previous, current
                filtered = [f + c[k] * current for f, c in zip(filtered, series, strict=True)]
            low, *fine = (_pruned(f @ low) for f in filtered)
            high.extend(fine)
        self.operators = [low, *high]

    def filter(self, b: int, z: Block) -> Block:
        """One product, in float64."""
        return np.ascontiguousarray(self.operators[b] @ z, dtype=z.dtype)


class _Eigenvectors(_Realisation):
    """Exact filters by all eigenvectors.

    Args:
        laplacian: float64 ``[N, N]``.
        options: What makes the transform.
    """

    def __init__(self, laplacian: Block, options: FrameletOptions) -> None:
        super().__init__(options)
        eigenvalues, self.vectors = np.linalg.eigh(laplacian)
        self.values = banks.response(options, eigenvalues)

    def filter(self, b: int, z: Block) -> Block:
        """To the eigenvectors and back, in float64."""
        spectrum = self.values[b][:, None] * (self.vectors.T @ z)
        return np.ascontiguousarray(self.vectors @ spectrum, dtype=z.dtype)


def _explicit(matrix: Matrix) -> sparse.csr_array:
    pattern = matrix.pattern
    shape = (pattern.num_nodes, pattern.num_nodes)
    row = np.repeat(np.arange(pattern.num_nodes), pattern.degrees)
    values = matrix.factor * matrix.scale[row] * matrix.scale[pattern.indices]
    edges = sparse.csr_array((values, pattern.indices, pattern.indptr), shape=shape)
    return sparse.csr_array(edges + sparse.diags_array(matrix.diagonal, format="csr"))


def _pruned(matrix: sparse.csr_array) -> sparse.csr_array:
    matrix.data[np.abs(matrix.data) < PRUNE_BELOW] = 0
    matrix.eliminate_zeros()
    return matrix


class _Linear(torch.autograd.Function):
    """A linear map whose gradient is its adjoint, given as a function."""

    @staticmethod
    def forward(
        ctx: Any,
        apply: Callable[..., tuple[Tensor, ...]],
        adjoint: Callable[..., tuple[Tensor, ...]],
        *signals: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.adjoint = adjoint
        return apply(*signals)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.adjoint(*gradients)


def _linear(
    apply: Callable[..., tuple[Tensor, ...]],
    adjoint: Callable[..., tuple[Tensor, ...]],
    *signals: Tensor,
) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = _Linear.apply(apply, adjoint, *signals)  # type: ignore[no-untyped-call]
    return found


def _array(z: Tensor) -> Block:
    return z.detach().contiguous().numpy()


def _tensors(stacked: Block) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(part) for part in stacked)


def _stacked(parts: Sequence[Tensor]) -> Block:
    return np.stack([_array(part) for part in parts])


def _column_blocks(z: Tensor, width: int) -> Iterator[tuple[slice, Tensor]]:
    """Dense blocks of columns, and which ones they are."""
    if not is_csr(z):
        for first in range(0, z.shape[1], width):
            yield slice(first, first + width), z[:, first : first + width]
        return
    arrays = (z.values().numpy(), z.col_indices().numpy(), z.crow_indices().numpy())
    by_column = sparse.csr_array(arrays, shape=(z.shape[0], z.shape[1])).tocsc()
    for first in range(0, z.shape[1], width):
        columns = slice(first, first + width)
        yield columns, torch.from_numpy(by_column[:, columns].toarray(order="C"))


def _check_rows(z: Tensor, num_nodes: int) -> None:
    if z.ndim != 2 or z.shape[0] != num_nodes or z.dtype not in (torch.float32, torch.float64):
        raise GraphError(
            f"the signal is {z.dtype} of shape {tuple(z.shape)}: it must be float32 or float64 "
            f"with one row for each of the {num_nodes} nodes."
        )


def _check_power(power: int) -> None:
    if power < 0:
        raise OptionError(f"the power is {power}: it must be 0 or above.")


__all__ = ["Band", "FrameletOptions", "Framelets", "clean_adjacency"]
