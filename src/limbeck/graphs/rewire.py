r"""Graph surgery: new edges around bottlenecks, fewer edges where they are redundant.

Stochastic discrete Ricci flow (SDRF; Topping et al., `"Understanding over-squashing and bottlenecks
on graphs via curvature" <https://arxiv.org/abs/2111.14522>`_, ICLR 2022), applied once, before a
teacher is trained. It reads edges alone: no features, no labels. Surgery belongs to the *view*:
only the observed graph is rewired, and unseen nodes arrive with the edges they have.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import torch
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import cg, eigsh
from torch import Tensor
from torch_geometric.utils import contains_self_loops, homophily, remove_self_loops

from limbeck.errors import GraphError, OptionError, OutputError
from limbeck.graphs.curvature import (
    OF_BOTH,
    OF_X,
    OF_Y,
    FloatArray,
    IntArray,
    all_curvatures,
    balanced_forman,
    clear_partners,
    clear_sides,
    count_partners,
    csr_edges,
    curvature_of,
    formula,
    mark_sides,
    place_of,
    simple_csr,
    to_scipy,
)
from limbeck.table_files import FORMATS

if TYPE_CHECKING:  # a view applies the surgery that its graph asks for
    from limbeck.graphs.view import View

SUFFIX = "sdrf"
"""What follows a graph's name and a plus where its view is to be rewired: ``texas+sdrf/20``."""

DENSE_NODES = 3_000
"""Largest component whose whole spectrum is computed; beyond, two eigenvalues by Lanczos."""

FAR_SOURCES = 32
"""Nodes from which far pairs are looked for."""


@dataclass(frozen=True)
class SurgeryOptions:
    r"""How much surgery, and of which kind.

    Args:
        loops: Number of iterations, each of which adds and removes at most one edge: an integer,
            or a share of the number of undirected edges, rounded up.
        tau: Sharpness :math:`\tau` of the draw among candidates, softmax of :math:`\tau` times
            the improvement; ``inf`` takes the best, the first of equals.
        removal_bound: An edge is removed only if its curvature is larger; ``None`` removes none.

    Raises:
        OptionError: A value is out of range.
    """

    loops: int | float = 0.05
    tau: float = 1.0
    removal_bound: float | None = 0.5

    def __post_init__(self) -> None:
        whole = isinstance(self.loops, int) and not isinstance(self.loops, bool)
        share = isinstance(self.loops, float) and 0 < self.loops < 1
        if not share and not (whole and self.loops >= 0):
            raise OptionError(
                f"option 'loops' is {self.loops!r}: give a number of iterations, such as 10, or a "
                "share of the edges between 0 and 1, such as 0.05."
            )
        if not self.tau > 0:
            raise OptionError(f"option 'tau' is {self.tau!r}: it must be positive.")
        if self.removal_bound is not None and not self.removal_bound >= -2:
            raise OptionError(
                f"option 'removal_bound' is {self.removal_bound!r}: it must be at least -2, which "
                "no curvature is below."
            )

    def num_loops(self, num_edges: int) -> int:
        """Iterations on a graph with so many undirected edges."""
        if isinstance(self.loops, int):
            return self.loops
        return math.ceil(self.loops * num_edges)

    @classmethod
    def from_suffix(cls, suffix: str) -> SurgeryOptions:
        """Options of a name's suffix: ``"sdrf"``, ``"sdrf/20"`` or ``"sdrf/0.1"``.

        Raises:
            OptionError: It is none of these.
        """
        kind, slash, loops = suffix.partition("/")
        if kind == SUFFIX and not slash:
            return cls()
        wrong = OptionError(
            f"unknown suffix {'+' + suffix!r} of a graph: write +{SUFFIX}, +{SUFFIX}/20 for 20 "
            f"iterations, or +{SUFFIX}/0.1 for a tenth of its edges."
        )
        if kind != SUFFIX:
            raise wrong
        try:
            return cls(loops=parse_loops(loops))
        except OptionError:  # no number, or one that is neither
            raise wrong from None

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON has them; an infinite ``tau`` is ``"inf"``."""
        return asdict(self) | {"tau": self.tau if math.isfinite(self.tau) else "inf"}


def parse_loops(text: str) -> int | float:
    """``"20"`` as a number of iterations, ``"0.05"`` as a share of the edges.

    Raises:
        OptionError: It is no number.
    """
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise OptionError(
            f"option 'loops' is {text!r}: give a number of iterations, such as 10, or a share of "
            "the edges between 0 and 1, such as 0.05."
        ) from None


class Surgery(NamedTuple):
    """A rewired graph and what was done to it.

    Args:
        edge_index: Edges in both directions, sorted, each once, int64 ``[2, 2E']``; self-loops of
            the graph given stay.
        added: Added edges in their order, int64 ``[2, A]``.
        removed: Removed edges in their order, int64 ``[2, R]``. An edge may be added, removed
            and added again.
    """

    edge_index: Tensor
    added: Tensor
    removed: Tensor


def rewire(
    edge_index: Tensor,
    num_nodes: int,
    options: SurgeryOptions = SurgeryOptions(),
    seed: int = 0,
) -> Surgery:
    """Rewire a graph by SDRF; directions and repetitions do not count.

    Each iteration takes the edge of smallest curvature, adds one edge between the neighbourhoods
    of its ends, drawn by how much that raises its curvature, and removes the edge of largest
    curvature if it is above the bound. Never removed are bridges and the edge just added, so the
    connected components stay as they are. It stops early when nothing was done.

    Curvature is computed once for all edges and then only where an edit changes it, see
    :func:`_refresh`.

    Args:
        edge_index: int64 ``[2, E]``.
        num_nodes: Number of nodes ``N``.
        options: How much.
        seed: Seed of the draws.
    """
    indptr, indices = simple_csr(edge_index, num_nodes)
    loops = options.num_loops(len(indices) // 2)
    draws = torch.rand(loops, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    bound = math.inf if options.removal_bound is None else options.removal_bound
    curvature = all_curvatures(indptr, indices)
    room = np.zeros(2 * loops, np.int64)  # every iteration adds at most one edge, both directions
    indices = np.concatenate([indices, room])
    curvature = np.concatenate([curvature, room.astype(np.float64)])
    added, removed = _flow(indptr, indices, curvature, draws.numpy(), options.tau, bound)
    return Surgery(
        _with_given_loops(csr_edges(indptr, indices[: indptr[-1]]), edge_index, num_nodes),
        torch.from_numpy(added).t().contiguous(),
        torch.from_numpy(removed).t().contiguous(),
    )


def rewire_at_random(
    edge_index: Tensor, num_nodes: int, num_added: int, num_removed: int, seed: int = 0
) -> Surgery:
    """The control: as many edits as surgery made, but anywhere.

    A new edge joins a drawn node and another one drawn from its component; removed are drawn edges
    of the graph given that are no bridges. So the components stay, too.

    Args:
        edge_index: int64 ``[2, E]``.
        num_nodes: Number of nodes ``N``.
        num_added: Edges to add.
        num_removed: Edges to remove.
        seed: Seed of the draws.

    Raises:
        GraphError: There is no room for so many edits.
    """
    indptr, indices = simple_csr(edge_index, num_nodes)
    component = csgraph.connected_components(to_scipy(indptr, indices), directed=False)[1]
    both = csr_edges(indptr, indices)
    originals = both[:, both[0] < both[1]]
    generator = torch.Generator().manual_seed(seed)
    start = indptr.copy()
    indices = np.concatenate([indices, np.zeros(2 * num_added, np.int64)])
    shadow = np.zeros(len(indices))
    added: list[tuple[int, int]] = []
    removed: list[tuple[int, int]] = []
    # ten draws per edit, and some, are enough unless the graph is nearly complete or a tree
    for x, y in _pairs(component, 10 * num_added + 1_000, generator):
        if len(added) == num_added:
            break
        place = place_of(start, indices, x, y)
        known = place < start[x + 1] and indices[place] == y
        if x != y and not known:
            _insert(start, indices, shadow, x, y)
            added.append((x, y))
    order = torch.randperm(originals.shape[1], generator=generator)
    for x, y in originals[:, order].t().tolist():
        if len(removed) == num_removed:
            break
        if not _is_bridge(start, indices, x, y):
            _delete(start, indices, shadow, x, y)
            removed.append((x, y))
    if len(added) < num_added or len(removed) < num_removed:
        raise GraphError(
            f"there is room for {len(added)} new edges and {len(removed)} removals, but "
            f"{num_added} and {num_removed} were asked for."
        )
    return Surgery(
        _with_given_loops(csr_edges(start, indices[: start[-1]]), edge_index, num_nodes),
        torch.tensor(added, dtype=torch.int64).reshape(-1, 2).t(),
        torch.tensor(removed, dtype=torch.int64).reshape(-1, 2).t(),
    )


def rewire_view(view: View, options: SurgeryOptions, seed: int | None = None) -> View:
    """A view whose observed graph is rewired; features, labels and splits are untouched.

    Surgery sees the observed graph alone. Edges that touch an unseen node stay as they are, so
    nothing that training sees depends on them.

    Args:
        view: Any view.
        options: How much surgery.
        seed: Seed of the draws; the view's own by default.
    """
    seed = view.seed if seed is None else seed
    done = rewire(view.observed.edge_index, view.num_observed, options, seed)
    return with_observed_edges(view, done.edge_index)


def with_observed_edges(view: View, edge_index: Tensor) -> View:
    """A view with other edges between its observed nodes, int64 ``[2, E]``."""
    observed, everything = view.observed.clone(), view.everything.clone()
    observed.edge_index = edge_index
    of_unseen = (everything.edge_index >= view.num_observed).any(0)
    everything.edge_index = torch.cat([edge_index, everything.edge_index[:, of_unseen]], dim=1)
    return replace(view, observed=observed, everything=everything)


def write_edges(view: View, path: Path, notes: dict[str, Any] | None = None) -> None:
    """Write the edges of a view as a table that :func:`limbeck.graphs.tables.read_tables` reads.

    Columns ``source`` and ``target`` hold the nodes' own ids, each undirected edge once. The file
    is there as a whole or not at all.

    Args:
        view: Its full graph is written: of a rewired view, the rewired edges between observed
            nodes and those of unseen nodes as they are.
        path: ``.parquet``, ``.arrow``, ``.feather`` or ``.csv``; one that is there is replaced.
        notes: Kept as JSON in the metadata of the table, except in CSV.

    Raises:
        OutputError: Another extension, or the file cannot be written.
    """
    check_table_path(path)
    ends = torch.unique(view.nodes[view.everything.edge_index].sort(0).values, dim=1).numpy()
    ids = view.info.node_ids
    table = pa.table({"source": pa.array(ids[ends[0]]), "target": pa.array(ids[ends[1]])})
    if notes is not None:
        table = table.replace_schema_metadata({"limbeck": json.dumps(notes)})
    write = {
        "parquet": pyarrow.parquet.write_table,
        "arrow": pyarrow.feather.write_feather,
        "csv": pyarrow.csv.write_csv,
    }[FORMATS[path.suffix.lower()]]
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(table, aside)
        os.replace(aside, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}).") from None
    finally:
        aside.unlink(missing_ok=True)


def check_table_path(path: Path) -> None:
    """Refuse a file that no table can be written to.

    Raises:
        OutputError: Its extension is unknown, it is a folder, or its folder does not exist.
    """
    if path.suffix.lower() not in FORMATS:
        raise OutputError(
            f"{path} has the extension {path.suffix!r}: a table is a {', '.join(FORMATS)} file."
        )
    if path.is_dir() or not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: give a file in a folder that exists.")


# -- the flow -------------------------------------------------------------------------------


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _flow(
    indptr: IntArray,
    indices: IntArray,
    curvature: FloatArray,
    draws: FloatArray,
    tau: float,
    bound: float,
) -> tuple[IntArray, IntArray]:
    """Run the flow in place, one iteration per draw; return the edges added and removed."""
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
            _insert(indptr, indices, curvature, new_i, new_j)
            _refresh(indptr, indices, curvature, new_i, new_j, side, partners)
            added[num_added, 0], added[num_added, 1] = new_i, new_j
            num_added += 1
        # 4. the edge of largest curvature goes, if it may
        old_i, old_j = _removable(indptr, indices, curvature, bound, new_i, new_j)
        if old_i >= 0:
            _delete(indptr, indices, curvature, old_i, old_j)
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
        if not is_new and not _is_bridge(indptr, indices, i, j):
            return i, j
        ceiling, after = best, place


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _is_bridge(indptr: IntArray, indices: IntArray, x: int, y: int) -> bool:
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
def _insert(indptr: IntArray, indices: IntArray, curvature: FloatArray, x: int, y: int) -> None:
    """Add an edge, both directions; the arrays have room behind their last entry."""
    for row, column in ((x, y), (y, x)):
        place, end = place_of(indptr, indices, row, column), indptr[-1]
        for entry in range(end, place, -1):
            indices[entry] = indices[entry - 1]
            curvature[entry] = curvature[entry - 1]
        indices[place] = column
        indptr[row + 1 :] += 1


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _delete(indptr: IntArray, indices: IntArray, curvature: FloatArray, x: int, y: int) -> None:
    """Remove an edge, both directions."""
    for row, column in ((x, y), (y, x)):
        place, end = place_of(indptr, indices, row, column), indptr[-1]
        for entry in range(place, end - 1):
            indices[entry] = indices[entry + 1]
            curvature[entry] = curvature[entry + 1]
        indptr[row + 1 :] -= 1


# -- before and after -----------------------------------------------------------------------


@dataclass(frozen=True)
class GraphFigures:
    """How well a graph conducts. Spectra and resistances are those of its largest component.

    Args:
        num_edges: Undirected edges without self-loops.
        curvature: Balanced Forman curvature: ``min``, ``p5``, ``median``, ``mean``, ``max``.
        algebraic_connectivity: Second eigenvalue of ``D − A``; an added edge never lowers it.
        normalised_gap: Second eigenvalue of ``I − D^{-1/2} A D^{-1/2}``; may go either way.
        kirchhoff_index: ``n`` times the sum of the inverse eigenvalues of ``D − A`` but the
            first, which is the sum of effective resistances over pairs; an added edge never
            raises it. ``None`` above :data:`DENSE_NODES` nodes.
        far_resistance: Mean effective resistance of the far pairs; ``None`` without pairs.
        far_commute: Their mean commute time, twice the component's edges times the resistance.
        edge_homophily: Share of edges between labelled nodes that join two of one class.
    """

    num_edges: int
    curvature: dict[str, float | None]
    algebraic_connectivity: float
    normalised_gap: float
    kirchhoff_index: float | None
    far_resistance: float | None
    far_commute: float | None
    edge_homophily: float | None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON has them."""
        return asdict(self)


def figures_of(
    edge_index: Tensor, num_nodes: int, y: Tensor | None = None, pairs: Tensor | None = None
) -> GraphFigures:
    """Measure a graph.

    Args:
        edge_index: int64 ``[2, E]``; directions, repetitions and self-loops do not count.
        num_nodes: Number of nodes ``N``.
        y: Classes, int64 ``[N]``, −1 for none; read for the homophily alone.
        pairs: Far pairs from :func:`far_pairs`, int64 ``[2, P]``; give both graphs the same.

    Raises:
        GraphError: There are no edges.
    """
    curvature = balanced_forman(edge_index, num_nodes)
    if len(curvature.values) == 0:
        raise GraphError("a graph without edges conducts nothing: nothing can be measured.")
    nodes, adjacency = _largest_component(*simple_csr(edge_index, num_nodes))
    laplacian = _laplacian(adjacency)
    scale = sparse.diags_array(laplacian.diagonal() ** -0.5)  # a component with edges has no zero
    normalised = sparse.csr_array(scale @ laplacian @ scale)
    kirchhoff = None
    if len(nodes) <= DENSE_NODES:
        spectrum = np.linalg.eigvalsh(laplacian.toarray())
        connectivity = float(spectrum[1])
        kirchhoff = float(len(nodes) * (1 / spectrum[1:]).sum())
        gap = float(np.linalg.eigvalsh(normalised.toarray())[1])
    else:
        connectivity, gap = _second_eigenvalue(laplacian), _second_eigenvalue(normalised)
    resistance = None
    if pairs is not None and pairs.shape[1] > 0:
        resistance = float(resistances(edge_index, num_nodes, pairs).mean())
    return GraphFigures(
        num_edges=len(curvature.values),
        curvature=curvature.quantiles(),
        algebraic_connectivity=connectivity,
        normalised_gap=gap,
        kirchhoff_index=kirchhoff,
        far_resistance=resistance,
        far_commute=None if resistance is None else adjacency.nnz * resistance,
        edge_homophily=None if y is None else edge_homophily(edge_index, y),
    )


def before_and_after(view: View, rewired: View) -> tuple[GraphFigures, GraphFigures]:
    """Measure the observed graphs of a view and of the same view after surgery.

    Far pairs are those of the graph before; the homophily is over the labels of all observed nodes,
    which no training sees.
    """
    y, num_nodes = view.everything.y[: view.num_observed], view.num_observed
    pairs = far_pairs(view.observed.edge_index, num_nodes)
    before = figures_of(view.observed.edge_index, num_nodes, y, pairs)
    return before, figures_of(rewired.observed.edge_index, num_nodes, y, pairs)


def edge_homophily(edge_index: Tensor, y: Tensor) -> float | None:
    """Share of the edges between labelled nodes that join two of one class; no self-loops."""
    edges = remove_self_loops(edge_index)[0]
    edges = edges[:, (y[edges] >= 0).all(0)]
    return float(homophily(edges, y, method="edge")) if edges.shape[1] > 0 else None


def far_pairs(edge_index: Tensor, num_nodes: int, seed: int = 0) -> Tensor:
    """Pairs as far apart as the largest component has them, from drawn nodes.

    From each of :data:`FAR_SOURCES` drawn nodes (all, if there are fewer) to the farthest node,
    the first of equals; pairs at distance 1 are left out.

    Returns:
        int64 ``[2, P]``.
    """
    nodes, adjacency = _largest_component(*simple_csr(edge_index, num_nodes))
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randperm(len(nodes), generator=generator)[:FAR_SOURCES].numpy()
    hops = csgraph.shortest_path(adjacency, unweighted=True, indices=sources)
    far = hops.argmax(1)
    apart = hops.max(1) > 1
    return torch.from_numpy(np.stack([nodes[sources[apart]], nodes[far[apart]]]))


def resistances(edge_index: Tensor, num_nodes: int, pairs: Tensor) -> Tensor:
    r"""Effective resistance :math:`(e_u - e_v)^\top (D - A)^+ (e_u - e_v)` of each pair.

    By conjugate gradients with the degrees as preconditioner.

    Args:
        edge_index: int64 ``[2, E]``.
        num_nodes: Number of nodes ``N``.
        pairs: int64 ``[2, P]``, the two nodes of each in one component.

    Returns:
        float64 ``[P]``.

    Raises:
        GraphError: A pair's nodes are not connected.
    """
    adjacency = to_scipy(*simple_csr(edge_index, num_nodes))
    component = csgraph.connected_components(adjacency, directed=False)[1]
    laplacian = _laplacian(adjacency)
    inverse = sparse.diags_array(1 / np.maximum(laplacian.diagonal(), 1))
    found = []
    for u, v in pairs.t().tolist():
        if component[u] != component[v]:
            raise GraphError(f"nodes {u} and {v} are not connected: they have no resistance.")
        current = np.zeros(num_nodes)
        current[u] += 1.0
        current[v] -= 1.0
        # the right side is orthogonal to the null space, so the semi-definite system is solvable
        potential, _ = cg(laplacian, current, rtol=1e-10, maxiter=10 * num_nodes, M=inverse)
        found.append(potential[u] - potential[v])
    return torch.tensor(found, dtype=torch.float64)


def _second_eigenvalue(laplacian: sparse.csr_array) -> float:
    """By shift and invert just below 0, where a Laplacian's spectrum begins."""
    start = np.ones(laplacian.shape[0])
    start[::2] = -1.0  # fixed, so that the same graph gives the same digits
    values = eigsh(laplacian.tocsc(), k=2, sigma=-1e-3, v0=start, return_eigenvectors=False)
    return float(np.sort(values)[1])


def _largest_component(indptr: IntArray, indices: IntArray) -> tuple[IntArray, sparse.csr_array]:
    """Nodes of the largest component, the first of equals, and its adjacency matrix."""
    adjacency = to_scipy(indptr, indices)
    component = csgraph.connected_components(adjacency, directed=False)[1]
    nodes = np.flatnonzero(component == np.bincount(component).argmax())
    return nodes, sparse.csr_array(adjacency[nodes][:, nodes])


def _laplacian(adjacency: sparse.csr_array) -> sparse.csr_array:
    return sparse.csr_array(sparse.diags_array(adjacency.sum(axis=1)) - adjacency)


def _pairs(
    component: npt.NDArray[np.int32], count: int, generator: torch.Generator
) -> list[list[int]]:
    """Drawn nodes, and for each a node drawn from its component, perhaps itself."""
    members, sizes = np.argsort(component, kind="stable"), np.bincount(component)
    first = np.cumsum(sizes) - sizes
    x = torch.randint(len(component), (count,), generator=generator).numpy()
    share = torch.rand(count, dtype=torch.float64, generator=generator).numpy()
    of_x = component[x]
    y = members[first[of_x] + (share * sizes[of_x]).astype(np.int64)]
    pairs: list[list[int]] = np.stack([x, y], axis=1).tolist()
    return pairs


def _with_given_loops(edges: Tensor, given: Tensor, num_nodes: int) -> Tensor:
    """Edges with the self-loops that the graph had, sorted."""
    if contains_self_loops(given):  # as of the CPF protocol: teachers count them
        loops = torch.unique(given[:, given[0] == given[1]], dim=1)
        edges = torch.cat([edges, loops], dim=1)
    return edges[:, torch.argsort(edges[0] * num_nodes + edges[1])]
