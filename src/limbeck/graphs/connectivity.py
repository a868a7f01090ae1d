"""How well a graph conducts: its spectral gap, its resistances, and what surgery did to both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import cg, eigsh
from torch import Tensor

from limbeck.errors import GraphError
from limbeck.graphs.curvature import IntArray, balanced_forman, simple_csr, to_scipy
from limbeck.graphs.profile import edge_homophily
from limbeck.graphs.view import View

DENSE_NODES = 3_000
"""Largest component whose whole spectrum is computed; beyond, two eigenvalues by Lanczos."""

FAR_SOURCES = 32
"""Nodes from which far pairs are looked for."""


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
