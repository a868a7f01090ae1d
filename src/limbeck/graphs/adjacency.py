"""Normalised adjacency matrices, built once and used in every product.

All are CSR ``[N, N]`` whose row is the node that receives: ``spmm(A, H)`` aggregates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.utils import add_remaining_self_loops, coalesce, degree

from limbeck.graphs.sparse import csr_tensor


def plain_adjacency(edge_index: Tensor, num_nodes: int, weight: Tensor | None = None) -> Tensor:
    """The adjacency ``A`` in CSR form, entry ``(i, j)`` for an edge from ``j`` to ``i``.

    Edges that occur twice count twice.
    """
    return bipartite_adjacency(edge_index, (num_nodes, num_nodes), weight)


def bipartite_adjacency(
    edge_index: Tensor, num_nodes: tuple[int, int], weight: Tensor | None = None
) -> Tensor:
    """The same between two kinds of nodes: CSR ``[goals, sources]``.

    Args:
        edge_index: int64 ``[2, E]``, sources above goals.
        num_nodes: Number of sources and of goals.
        weight: Of each edge, float32 ``[E]``; ones by default.
    """
    sources, goals = num_nodes
    if weight is None:
        weight = torch.ones(edge_index.shape[1], device=edge_index.device)
    receiver_first = edge_index.flip(0)
    receiver_first, weight = coalesce(receiver_first, weight, max(sources, goals))
    counts = torch.bincount(receiver_first[0], minlength=goals)
    indptr = torch.zeros(goals + 1, dtype=torch.int64, device=edge_index.device)
    torch.cumsum(counts, 0, out=indptr[1:])
    return csr_tensor(indptr, receiver_first[1], weight, (goals, sources))


def mean_adjacency(edge_index: Tensor, num_nodes: int) -> Tensor:
    r""":math:`(D + I)^{-1}(A + I)`: the mean over the neighbours and the node itself.

    A self-loop that the graph already has counts once more, as in GraphSAGE's "gcn"
    aggregator on the graphs of the CPF protocol.
    """
    loops = torch.arange(num_nodes, device=edge_index.device).expand(2, -1)
    edges = torch.cat([edge_index, loops], dim=1)
    weight = 1.0 / degree(edges[1], num_nodes)[edges[1]]
    return plain_adjacency(edges, num_nodes, weight)


def symmetric_adjacency(edge_index: Tensor, num_nodes: int) -> Tensor:
    r""":math:`\hat D^{-1/2} \hat A \hat D^{-1/2}` with one self-loop per node (GCN)."""
    edges, _ = add_remaining_self_loops(edge_index, num_nodes=num_nodes)
    scale = degree(edges[1], num_nodes).pow(-0.5)
    return plain_adjacency(edges, num_nodes, scale[edges[0]] * scale[edges[1]])


__all__ = ["bipartite_adjacency", "mean_adjacency", "plain_adjacency", "symmetric_adjacency"]
