r"""Balanced Forman curvature: which edges of a graph are its bottlenecks.

For an edge :math:`i \sim j` of a simple undirected graph with degrees :math:`d_i, d_j`

.. math::
    \mathrm{Ric}(i, j) = \frac{2}{d_i} + \frac{2}{d_j} - 2 + \frac{2|\Delta|}{\max(d_i, d_j)}
    + \frac{|\Delta|}{\min(d_i, d_j)}
    + \frac{|\square^i| + |\square^j|}{\gamma \max(d_i, d_j)}

and 0 where one end has degree 1 (Topping et al., `"Understanding over-squashing and bottlenecks on
graphs via curvature" <https://arxiv.org/abs/2111.14522>`_, ICLR 2022). :math:`\Delta` are the
common neighbours. A 4-cycle without diagonals through the edge is an edge between a neighbour of
:math:`i` alone and a neighbour of :math:`j` alone. So with the bipartite graph of those edges,
:math:`\square^i` are the neighbours of :math:`i` that have a partner in it, :math:`\square^j`
likewise, and :math:`\gamma` is its largest degree; without such edges the term is 0. Everything
here is exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from limbeck.graphs.framelets import clean_adjacency

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Curvature(NamedTuple):
    """The curvature of every edge.

    Args:
        edge_index: Each undirected edge once, the smaller end first, sorted, int64 ``[2, E]``.
        values: Its balanced Forman curvature, greater than −2, float64 ``[E]``.
    """

    edge_index: Tensor
    values: Tensor

    def quantiles(self) -> dict[str, float | None]:
        """Smallest value, 5th percentile, median, mean and largest; ``None`` without edges."""
        names = ("min", "p5", "median", "mean", "max")
        if len(self.values) == 0:
            return dict.fromkeys(names)
        marks = torch.tensor([0.0, 0.05, 0.5, 1.0], dtype=torch.float64)
        low, p5, median, high = (float(v) for v in torch.quantile(self.values, marks))
        figures = (low, p5, median, float(self.values.mean()), high)
        return dict(zip(names, figures, strict=True))


def balanced_forman(edge_index: Tensor, num_nodes: int) -> Curvature:
    """Curvature of every edge of a graph.

    Directions, repetitions and self-loops do not count. Each edge costs the sum of its
    neighbours' degrees, on the cheaper of its two sides.

    Args:
        edge_index: int64 ``[2, E]``, in any order and direction.
        num_nodes: Number of nodes ``N``.

    Raises:
        GraphError: An edge names a node that does not exist.
    """
    indptr, indices = simple_csr(edge_index, num_nodes)
    values = all_curvatures(indptr, indices)
    edges = csr_edges(indptr, indices)
    once = edges[0] < edges[1]
    return Curvature(edges[:, once], torch.from_numpy(values)[once])


def simple_csr(edge_index: Tensor, num_nodes: int) -> tuple[IntArray, IntArray]:
    """The simple undirected graph of some edges: ``indptr`` ``[N + 1]`` and sorted ``indices``."""
    adjacency = clean_adjacency(edge_index, num_nodes)
    return adjacency.crow_indices().numpy(), adjacency.col_indices().numpy()


def csr_edges(indptr: IntArray, indices: IntArray) -> Tensor:
    """The edges of a CSR graph in both directions, int64 ``[2, 2E]``."""
    source = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return torch.from_numpy(np.stack([source, indices]))


def to_scipy(indptr: IntArray, indices: IntArray) -> sparse.csr_array[Any, tuple[int, int]]:
    """The adjacency matrix of a CSR graph, as SciPy's graph algorithms read it, float64."""
    size = len(indptr) - 1
    return sparse.csr_array((np.ones(len(indices)), indices, indptr), shape=(size, size))


# -- kernels, on the CSR form of a simple undirected graph with sorted rows -----------------

# What a node is to an edge (x, y): `side` of a Neighbourhood's arrays.
NOBODY, OF_X, OF_Y, OF_BOTH = 0, 1, 2, 3


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def formula(
    degree_x: int, degree_y: int, triangles: int, squares_x: int, squares_y: int, gamma: int
) -> float:
    """Curvature from its counts."""
    low, high = min(degree_x, degree_y), max(degree_x, degree_y)
    if low <= 1:
        return 0.0
    value = 2.0 / degree_x + 2.0 / degree_y - 2.0
    value += 2.0 * triangles / high + triangles / low
    if gamma > 0:
        value += (squares_x + squares_y) / (gamma * high)
    return value


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def mark_sides(indptr: IntArray, indices: IntArray, x: int, y: int, side: IntArray) -> int:
    """Write into ``side`` whose neighbour each node is; return how many are of both.

    ``side`` must hold zeros, and :func:`clear_sides` puts them back. The ends are nobody's.
    """
    for entry in range(indptr[x], indptr[x + 1]):
        side[indices[entry]] = OF_X
    triangles = 0
    for entry in range(indptr[y], indptr[y + 1]):
        node = indices[entry]
        side[node] += OF_Y
        triangles += side[node] == OF_BOTH
    side[x] = NOBODY
    side[y] = NOBODY
    return triangles


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def clear_sides(indptr: IntArray, indices: IntArray, x: int, y: int, side: IntArray) -> None:
    """Undo :func:`mark_sides`."""
    for end in (x, y):
        for entry in range(indptr[end], indptr[end + 1]):
            side[indices[entry]] = NOBODY


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def count_partners(
    indptr: IntArray, indices: IntArray, x: int, y: int, side: IntArray, partners: IntArray
) -> tuple[int, int, int]:
    """Count each node's edges to the other side into ``partners``; zeros must be there before.

    Returns:
        How many nodes of x alone have one, how many of y alone, and the largest number.
    """
    work_x, work_y = 0, 0
    for entry in range(indptr[x], indptr[x + 1]):
        node = indices[entry]
        if side[node] == OF_X:
            work_x += indptr[node + 1] - indptr[node]
    for entry in range(indptr[y], indptr[y + 1]):
        node = indices[entry]
        if side[node] == OF_Y:
            work_y += indptr[node + 1] - indptr[node]
    near, near_side, far, far_side = x, OF_X, y, OF_Y
    if work_y < work_x:  # each edge between the sides is seen from either of them
        near, near_side, far, far_side = y, OF_Y, x, OF_X
    squares_near, squares_far, gamma = 0, 0, 0
    for entry in range(indptr[near], indptr[near + 1]):
        node = indices[entry]
        if side[node] != near_side:
            continue
        count = 0
        for other in range(indptr[node], indptr[node + 1]):
            partner = indices[other]
            if side[partner] == far_side:
                partners[partner] += 1
                count += 1
        partners[node] = count
        squares_near += count > 0
        gamma = max(gamma, count)
    for entry in range(indptr[far], indptr[far + 1]):
        count = partners[indices[entry]]
        if side[indices[entry]] == far_side:
            squares_far += count > 0
            gamma = max(gamma, count)
    if near == x:
        return squares_near, squares_far, gamma
    return squares_far, squares_near, gamma


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def clear_partners(indptr: IntArray, indices: IntArray, x: int, y: int, partners: IntArray) -> None:
    """Undo :func:`count_partners`."""
    for end in (x, y):
        for entry in range(indptr[end], indptr[end + 1]):
            partners[indices[entry]] = 0


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def curvature_of(
    indptr: IntArray, indices: IntArray, x: int, y: int, side: IntArray, partners: IntArray
) -> float:
    """Curvature of the edge (x, y); ``side`` and ``partners`` are zeros ``[N]``, and stay so."""
    degree_x, degree_y = indptr[x + 1] - indptr[x], indptr[y + 1] - indptr[y]
    if min(degree_x, degree_y) <= 1:
        return 0.0
    triangles = mark_sides(indptr, indices, x, y, side)
    squares_x, squares_y, gamma = count_partners(indptr, indices, x, y, side, partners)
    clear_partners(indptr, indices, x, y, partners)
    clear_sides(indptr, indices, x, y, side)
    return float(formula(degree_x, degree_y, triangles, squares_x, squares_y, gamma))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def all_curvatures(indptr: IntArray, indices: IntArray) -> FloatArray:
    """Curvature of every entry of the CSR form, float64 ``[2E]``."""
    num_nodes = len(indptr) - 1
    values = np.zeros(len(indices))
    side, partners = np.zeros(num_nodes, np.int64), np.zeros(num_nodes, np.int64)
    for x in range(num_nodes):
        for entry in range(indptr[x], indptr[x + 1]):
            y = indices[entry]
            if x < y:
                value = curvature_of(indptr, indices, x, y, side, partners)
                values[entry] = value
                values[place_of(indptr, indices, y, x)] = value
    return values


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def place_of(indptr: IntArray, indices: IntArray, x: int, y: int) -> int:
    """Where ``y`` stands, or would stand, in the sorted row of ``x``."""
    low, high = indptr[x], indptr[x + 1]
    while low < high:
        middle = (low + high) // 2
        if indices[middle] < y:
            low = middle + 1
        else:
            high = middle
    return int(low)
