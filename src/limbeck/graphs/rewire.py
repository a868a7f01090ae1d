r"""Graph surgery: new edges around bottlenecks, fewer edges where they are redundant.

Stochastic discrete Ricci flow (SDRF; Topping et al., `"Understanding over-squashing and bottlenecks
on graphs via curvature" <https://arxiv.org/abs/2111.14522>`_, ICLR 2022), applied once, before a
teacher is trained. It reads edges alone: no features, no labels. Surgery belongs to the *view*:
only the observed graph is rewired, and unseen nodes arrive with the edges they have.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csgraph
from torch import Tensor
from torch_geometric.utils import contains_self_loops

from limbeck.errors import GraphError, OptionError
from limbeck.graphs.curvature import all_curvatures, csr_edges, place_of, simple_csr, to_scipy
from limbeck.graphs.ricci_flow import delete_edge, flow, insert_edge, is_bridge

SUFFIX = "sdrf"
"""What follows a graph's name and a plus where its view is to be rewired: ``texas+sdrf/20``."""


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

    Curvature is computed once for all edges and then only where an edit changes it.

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
    added, removed = flow(indptr, indices, curvature, draws.numpy(), options.tau, bound)
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
            insert_edge(start, indices, shadow, x, y)
            added.append((x, y))
    order = torch.randperm(originals.shape[1], generator=generator)
    for x, y in originals[:, order].t().tolist():
        if len(removed) == num_removed:
            break
        if not is_bridge(start, indices, x, y):
            delete_edge(start, indices, shadow, x, y)
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
