"""Framelet bands of the nodes of a view: the known ones, and those that come later."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.graphs.framelets import FrameletOptions, Framelets
from limbeck.graphs.sparse import is_csr, linear, take_rows
from limbeck.graphs.view import View

ReadBands = Callable[[Framelets, int], Tensor]
"""Bands ``[n, w]`` of the ``n`` nodes of a transform's graph, which are numbered in the view from
the integer given."""


@dataclass(frozen=True, eq=False)
class ViewBands:
    """Bands of all nodes of a view.

    Args:
        observed: Of the observed nodes on the observed graph, float32 ``[observed, w]``.
        unseen: Of the unseen nodes on the full graph, ``[unseen, w]``.
    """

    observed: Tensor
    unseen: Tensor


@torch.no_grad()
def bands_of_view(
    view: View, options: FrameletOptions, read: ReadBands, observed: Tensor
) -> ViewBands:
    """Bands of unseen nodes beside those of the observed ones, which stay as they are.

    An unseen node is inserted with all its edges, those to other unseen nodes among them, and the
    transform of the grown graph is asked for its row. Bands of observed nodes change, too, when
    neighbours arrive; a server that caches them would not notice, so nor does this.

    Args:
        view: What may be seen.
        options: The transform's.
        read: What reads bands off a transform.
        observed: Bands of the observed nodes, ``[observed, w]``.
    """
    known, total = view.num_observed, len(view.nodes)
    if known == total:
        return ViewBands(observed, observed[:0])
    full = Framelets(view.everything.edge_index, total, options)
    return ViewBands(observed, read(full, 0)[known:])


@torch.no_grad()
def feature_bands(framelets: Framelets, x: Tensor, powers: Sequence[int]) -> Tensor:
    r"""The band coefficients :math:`\mathbf{P}_b^k \mathbf{X}`, side by side.

    Args:
        framelets: The transform of a graph of ``N`` nodes.
        x: ``[N, q]``, dense or CSR.
        powers: The powers ``k``, ascending.

    Returns:
        Dense ``[N, powers · bands · q]``, powers outermost.
    """
    by_power = framelets.powers(x, max(powers))  # [power][band], from power 1
    return torch.cat([block for power in powers for block in by_power[power - 1]], dim=1)


def random_projection(num_features: int, width: int) -> Tensor:
    r"""Signs :math:`\pm 1/\sqrt{q}`, which keep inner products to :math:`O(1/\sqrt{q})`.

    Drawn from PyTorch's generator.

    Args:
        num_features: ``F``.
        width: ``q``.

    Returns:
        ``[q, F]``.
    """
    signs = torch.randint(2, (width, num_features), dtype=torch.float32) * 2 - 1
    return signs / math.sqrt(width)


def project(x: Tensor, projection: Tensor | None) -> Tensor:
    """Features ``[N, F]`` times a projection ``[q, F]``; as they are where there is none."""
    return x if projection is None else linear(x, projection)


def rows_from(x: Tensor, first: int, count: int) -> Tensor:
    """Rows ``first`` to ``first + count`` of a dense or CSR matrix."""
    if not is_csr(x):
        return x[first : first + count]
    return take_rows(x, torch.arange(first, first + count))
