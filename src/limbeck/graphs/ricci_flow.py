"""Stochastic discrete Ricci flow: its loop and the edits that it makes, compiled.

Everything works in place on the CSR form of a simple undirected graph with sorted rows, ``indptr``
``[N + 1]`` and ``indices``, and on the curvature of each entry. :mod:`limbeck.graphs.rewire` says
what the flow is for.
"""

from __future__ import annotations

import numba
import numpy as np

from limbeck.graphs.curvature import (
    OF_BOTH,
    OF_X,
    OF_Y,
    FloatArray,
    IntArray,
    clear_partners,
    clear_sides,
    count_partners,
    curvature_of,
    formula,
    mark_sides,
    place_of,
)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def flow(
    indptr: IntArray,
    indices: IntArray,
    curvature: FloatArray,
    draws: FloatArray,
    tau: float,
    bound: float,
) -> tuple[IntArray, IntArray]:
    """Run the flow in place, one iteration per draw, until nothing is left to do.

    Curvature is computed anew only where an edit changes it, see :func:`_refresh`.

    Args:
        indptr: int64 ``[N + 1]``.
        indices: int64, with room behind its last entry for two more per draw.
        curvature: Of each entry, float64, with the same room.
        draws: Uniform numbers in [0, 1), float64.
        tau: Sharpness of the draw among candidates; ``inf`` takes the best.
        bound: Curvature above which an edge may be removed; ``inf`` removes none.

    Returns:
        The edges added, int64 ``[A, 2]``, and those removed, int64 ``[R, 2]``, in their order.
    """
    num_nodes = len(indptr) - 1
    side, partners = np.zeros(num_nodes, np.int64), np.zeros(num_nodes, np.int64)
    added = np.zeros((len(draws), 2), np.int64)
    removed = np.zeros((len(draws), 2), np.int64)
    num_added, num_removed = 0, 0
    if indptr[-1] == 0:
        return added[:0], removed[:0]
    for draw in draws:
        # 1. the edge of smallest curvature
        lowest = np.argmin(curvature[: indptr[-1]])
        x, y = np.searchsorted(indptr, lowest, side="right") - 1, indices[lowest]
        # 2.–3. one new edge between the neighbourhoods of its ends
        new_i, new_j = -1, -1
        ends_i, ends_j, gains = _candidates(indptr, indices, x, y, side, partners)
        if len(gains) > 0:
            chosen = _draw(gains, tau, draw)
            new_i, new_j = ends_i[chosen], ends_j[chosen]
            insert_edge(indptr, indices, curvature, new_i, new_j)
            _refresh(indptr, indices, curvature, new_i, new_j, side, partners)
            added[num_added, 0], added[num_added, 1] = new_i, new_j
            num_added += 1
        # 4. the edge of largest curvature goes, if it may
        old_i, old_j = _removable(indptr, indices, curvature, bound, new_i, new_j)
        if old_i >= 0:
            delete_edge(indptr, indices, curvature, old_i, old_j)
            _refresh(indptr, indices, curvature, old_i, old_j, side, partners)
            removed[num_removed, 0], removed[num_removed, 1] = old_i, old_j
            num_removed += 1
        if new_i < 0 and old_i < 0:
            break
    return added[:num_added].copy(), removed[:num_removed].copy()


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _candidates(
    indptr: IntArray, indices: IntArray, x: int, y: int, side: IntArray, partners: IntArray
) -> tuple[IntArray, IntArray, FloatArray]:
    """New edges between the closed neighbourhoods of x and y, and what each adds to Ric(x, y).

    The gain follows from the counts of the edge: a candidate makes a node a common neighbour, or
    adds one edge between the two sides, or does neither.
    """
    degree_x, degree_y = indptr[x + 1] - indptr[x], indptr[y + 1] - indptr[y]
    triangles = mark_sides(indptr, indices, x, y, side)
    squares_x, squares_y, gamma = count_partners(indptr, indices, x, y, side, partners)
    before = formula(degree_x, degree_y, triangles, squares_x, squares_y, gamma)
    most = (degree_x + 1) * (degree_y + 1)
    ends_i, ends_j = np.empty(most, np.int64), np.empty(most, np.int64)
    gains = np.empty(most)
    count = 0
    # (x, j) and (i, y): a neighbour of one end becomes one of both
    for near, far, own, other in ((x, y, OF_Y, OF_X), (y, x, OF_X, OF_Y)):
        for entry in range(indptr[far], indptr[far + 1]):
            j = indices[entry]
            if side[j] != own:
                continue
            for partner in range(indptr[j], indptr[j + 1]):  # j leaves its side
                partners[indices[partner]] -= side[indices[partner]] == other
            squares_near, gamma_near = _partnered(indptr, indices, near, side, partners, other, j)
            squares_far, gamma_far = _partnered(indptr, indices, far, side, partners, own, j)
            for partner in range(indptr[j], indptr[j + 1]):
                partners[indices[partner]] += side[indices[partner]] == other
            after = formula(
                degree_x + (near == x),
                degree_y + (near == y),
                triangles + 1,
                squares_near,
                squares_far,
                max(gamma_near, gamma_far),
            )
            ends_i[count], ends_j[count], gains[count] = near, j, after - before
            count += 1
    # (i, j) with i a neighbour of x and j one of y
    for entry in range(indptr[x], indptr[x + 1]):
        i = indices[entry]
        if side[i] != OF_X and side[i] != OF_BOTH:
            continue
        for other_entry in range(indptr[y], indptr[y + 1]):
            j = indices[other_entry]
            if side[j] != OF_Y and side[j] != OF_BOTH:
                continue
            if i == j or (side[i] == OF_BOTH and side[j] == OF_BOTH and i > j):
                continue  # the same pair from the other end
            place = place_of(indptr, indices, i, j)
            if place < indptr[i + 1] and indices[place] == j:
                continue
            gain = 0.0
            if side[i] == OF_X and side[j] == OF_Y:
                after = formula(
                    degree_x,
                    degree_y,
                    triangles,
                    squares_x + (partners[i] == 0),
                    squares_y + (partners[j] == 0),
                    max(gamma, partners[i] + 1, partners[j] + 1),
                )
                gain = after - before
            ends_i[count], ends_j[count], gains[count] = i, j, gain
            count += 1
    clear_partners(indptr, indices, x, y, partners)
    clear_sides(indptr, indices, x, y, side)
    return ends_i[:count], ends_j[:count], gains[:count]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _partnered(
    indptr: IntArray,
    indices: IntArray,
    end: int,
    side: IntArray,
    partners: IntArray,
    own: int,
    without: int,
) -> tuple[int, int]:
    """Nodes of one side that have partners, leaving one out, and the most that one has."""
    squares, most = 0, 0
    for entry in range(indptr[end], indptr[end + 1]):
        node = indices[entry]
        if side[node] == own and node != without:
            squares += partners[node] > 0
            most = max(most, partners[node])
    return squares, most


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _draw(gains: FloatArray, tau: float, draw: float) -> int:
    """Index drawn with probability softmax(tau · gains), from a uniform number in [0, 1)."""
    best = gains.max()
    if np.isinf(tau):
        return int(np.argmax(gains))
    weights = np.exp(tau * (gains - best))
    total = np.cumsum(weights)
    return int(min(np.searchsorted(total, draw * total[-1], side="right"), len(gains) - 1))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _removable(
    indptr: IntArray,
    indices: IntArray,
    curvature: FloatArray,
    bound: float,
    new_i: int,
    new_j: int,
) -> tuple[int, int]:
    """The edge of largest curvature above the bound that is no bridge and not new, or (-1, -1)."""
    if np.isinf(bound):
        return -1, -1
    ceiling, after = np.inf, -1  # edges already refused: those before this place in the order
    while True:
        best, place = bound, -1
        for entry in range(indptr[-1]):
            value = curvature[entry]
            refused = value > ceiling or (value == ceiling and entry <= after)
            if value > best and not refused:
                best, place = value, entry
        if place < 0:
            return -1, -1
        i, j = int(np.searchsorted(indptr, place, side="right") - 1), int(indices[place])
        is_new = (i == new_i and j == new_j) or (i == new_j and j == new_i)
        if not is_new and not is_bridge(indptr, indices, i, j):
            return i, j
        ceiling, after = best, place


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def is_bridge(indptr: IntArray, indices: IntArray, x: int, y: int) -> bool:
    """Whether x and y fall apart without their edge: a search from x that does not use it."""
    seen = np.zeros(len(indptr) - 1, np.bool_)
    queue = np.empty(len(indptr) - 1, np.int64)
    queue[0], seen[x] = x, True
    head, tail = 0, 1
    while head < tail:
        node = queue[head]
        head += 1
        for entry in range(indptr[node], indptr[node + 1]):
            other = indices[entry]
            if node == x and other == y:
                continue
            if other == y:
                return False
            if not seen[other]:
                seen[other] = True
                queue[tail] = other
                tail += 1
    return True


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _refresh(
    indptr: IntArray,
    indices: IntArray,
    curvature: FloatArray,
    i: int,
    j: int,
    side: IntArray,
    partners: IntArray,
) -> None:
    """Compute the curvature anew wherever an edit of (i, j) changed it, and nowhere else.

    These are the edges at i and at j, whose degrees and common neighbours changed, and those from
    a neighbour of i alone to a neighbour of j alone, which close a 4-cycle with (i, j).
    """
    for end in (i, j):
        for entry in range(indptr[end], indptr[end + 1]):
            _set(indptr, indices, curvature, end, indices[entry], side, partners)
    mark_sides(indptr, indices, i, j, side)
    pairs = [(i, j)][:0]
    for entry in range(indptr[i], indptr[i + 1]):
        u = indices[entry]
        if side[u] == OF_X:
            for other in range(indptr[u], indptr[u + 1]):
                if side[indices[other]] == OF_Y:
                    pairs.append((u, indices[other]))
    clear_sides(indptr, indices, i, j, side)
    for u, v in pairs:
        _set(indptr, indices, curvature, u, v, side, partners)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _set(
    indptr: IntArray,
    indices: IntArray,
    curvature: FloatArray,
    x: int,
    y: int,
    side: IntArray,
    partners: IntArray,
) -> None:
    low, high = min(x, y), max(x, y)  # one order for all, so that values are the same to the bit
    value = curvature_of(indptr, indices, low, high, side, partners)
    curvature[place_of(indptr, indices, low, high)] = value
    curvature[place_of(indptr, indices, high, low)] = value


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def insert_edge(indptr: IntArray, indices: IntArray, curvature: FloatArray, x: int, y: int) -> None:
    """Add an edge, both directions; the arrays have room behind their last entry."""
    for row, column in ((x, y), (y, x)):
        place, end = place_of(indptr, indices, row, column), indptr[-1]
        for entry in range(end, place, -1):
            indices[entry] = indices[entry - 1]
            curvature[entry] = curvature[entry - 1]
        indices[place] = column
        indptr[row + 1 :] += 1


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def delete_edge(indptr: IntArray, indices: IntArray, curvature: FloatArray, x: int, y: int) -> None:
    """Remove an edge, both directions."""
    for row, column in ((x, y), (y, x)):
        place, end = place_of(indptr, indices, row, column), indptr[-1]
        for entry in range(place, end - 1):
            indices[entry] = indices[entry + 1]
            curvature[entry] = curvature[entry + 1]
        indptr[row + 1 :] -= 1
