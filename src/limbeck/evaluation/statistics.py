r"""What nodes are like, in numbers few enough to keep: features, degrees, answers.

Two sets of nodes are compared by the population stability index of their shares :math:`p_i` and
:math:`q_i` in :math:`k` ranges of a value,

.. math:: \mathrm{PSI} = \sum_i (q_i - p_i) \ln \frac{q_i}{p_i}

the symmetric divergence of Jeffreys (1946). Two samples of :math:`m` and :math:`n` nodes of one
source have an index of :math:`(k - 1)(1/m + 1/n)` on average (Yurdakul and Naranjo, "Statistical
Properties of the Population Stability Index", Journal of Risk Model Validation 2020), which
:func:`shift` takes off, so that few nodes are not taken for a drift.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from limbeck.evaluation.slices import DEGREES, degree_bins
from limbeck.graphs.sparse import is_csr
from limbeck.runtime.bundle import StatisticsEntry

NUM_BINS = 10
RANGE, EDGES, SHARES = "feature_range", "feature_edges", "feature_shares"

# Values of features that are looked at together, 64 MB of float32.
_BLOCK_VALUES = 2**24


def node_statistics(
    x: Tensor, degree: Tensor, answer: Tensor, num_classes: int
) -> tuple[StatisticsEntry, dict[str, npt.NDArray[np.float32]]]:
    """Describe nodes.

    Args:
        x: Their raw features, float32 ``[N, F]``, dense or CSR.
        degree: Number of their neighbours, int64 ``[N]``.
        answer: Class that the student answers, int64 ``[N]``.
        num_classes: Number of classes ``C``.

    Returns:
        What the manifest keeps, and the arrays of the store: ``feature_range``, float32 ``[F, 2]``,
        the least and the largest value; ``feature_edges``, float32 ``[F, 9]``, the deciles;
        ``feature_shares``, float32 ``[F, 10]``, the shares of the nodes between them: of those
        beyond the one below and not beyond the one above.
    """
    ranges, edges, shares = [], [], []
    # the least value that a tenth, two tenths, ... of the nodes do not exceed: one of the values
    # itself, not between two of them, for of words nearly all are 0
    ranks = -(-len(x) * np.arange(1, NUM_BINS) // NUM_BINS) - 1
    for block in column_blocks(x):
        deciles = np.partition(block, ranks, axis=0)[ranks].T
        ranges.append(np.stack([block.min(axis=0), block.max(axis=0)], axis=1))
        edges.append(deciles)
        shares.append(bin_shares(block, deciles))
    arrays = {
        name: np.concatenate(parts).astype(np.float32)
        for name, parts in ((RANGE, ranges), (EDGES, edges), (SHARES, shares))
    }
    entry = StatisticsEntry(
        len(degree),
        dict(zip(DEGREES, degree_shares(degree).tolist(), strict=True)),
        tuple((torch.bincount(answer, minlength=num_classes) / len(answer)).tolist()),
    )
    return entry, arrays


def degree_shares(degree: Tensor) -> npt.NDArray[np.float64]:
    """Share of nodes in each range of degrees, float64 ``[5]``."""
    counts = torch.bincount(degree_bins(degree), minlength=len(DEGREES))
    shares: npt.NDArray[np.float64] = (counts.double() / len(degree)).numpy()
    return shares


def column_blocks(x: Tensor) -> Iterator[npt.NDArray[np.float32]]:
    """The columns of ``x`` in dense blocks ``[N, b]``, few enough at a time to fit into memory."""
    num_nodes, width = x.shape
    step = max(_BLOCK_VALUES // max(num_nodes, 1), 1)
    if not is_csr(x):
        dense = x.numpy()
        for first in range(0, width, step):
            yield dense[:, first : first + step]
        return
    parts = (x.values().numpy(), x.col_indices().numpy(), x.crow_indices().numpy())
    by_column = sparse.csr_array(parts, shape=(num_nodes, width)).tocsc()
    for first in range(0, width, step):
        yield by_column[:, first : first + step].toarray()


def bin_shares(
    block: npt.NDArray[np.float32], edges: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Shares of nodes between the edges of each column.

    Args:
        block: Values, float32 ``[N, b]``.
        edges: Never falling, float32 ``[b, k - 1]``.

    Returns:
        float64 ``[b, k]``.
    """
    beyond = [np.ones(block.shape[1])]
    beyond += [(block > edge).mean(axis=0) for edge in edges.T]
    beyond.append(np.zeros(block.shape[1]))
    shares: npt.NDArray[np.float64] = -np.diff(np.stack(beyond, axis=1), axis=1)
    return shares


def shift(
    before: npt.NDArray[np.floating],
    after: npt.NDArray[np.floating],
    num_before: int,
    num_after: int,
) -> npt.NDArray[np.float64]:
    """How far shares have moved: their stability index, less what chance gives.

    Half a node is added to each range that either has any of, so that an empty one is not
    infinitely unlikely.

    Args:
        before: Shares, ``[..., k]``.
        after: The same of other nodes.
        num_before: How many nodes the first are of.
        num_after: How many the second are of.

    Returns:
        float64 ``[...]``, at least 0.
    """
    used = (before > 0) | (after > 0)
    count = used.sum(axis=-1, keepdims=True)
    p = np.where(used, (before * num_before + 0.5) / (num_before + 0.5 * count), 1.0)
    q = np.where(used, (after * num_after + 0.5) / (num_after + 0.5 * count), 1.0)
    index = ((q - p) * np.log(q / p)).sum(axis=-1)
    by_chance = (count[..., 0] - 1) * (1 / num_before + 1 / num_after)
    moved: npt.NDArray[np.float64] = np.maximum(index - by_chance, 0.0)
    return moved
