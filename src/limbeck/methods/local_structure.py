r"""How a node relates to its neighbours, as a distribution that a student can be taught.

For a hidden state :math:`\mathbf{h}` ``[N, d]`` and every edge from ``j`` into ``i``

.. math::
    r_{ij} = \lVert \mathbf{h}_j - \mathbf{h}_i \rVert_1, \qquad
    s_{ij} = \exp(-r_{ij} / \sigma), \qquad
    p_{ij} = \frac{\exp s_{ij}}{\sum_{m \in N(i)} \exp s_{im}}

The kernel's value is a logit: a softmax over the edges into ``i`` follows. The student's
distribution is drawn to the teacher's by

.. math:: D_i = \sum_{j \in N(i)} p^T_{ij} (\log p^T_{ij} - \log p^S_{ij})

(`"Distilling Knowledge from Graph Convolutional Networks" <https://arxiv.org/abs/2003.10477>`_;
for several teachers `"Multi-Scale Distillation from Multiple Graph Neural Networks"
<https://doi.org/10.1609/aaai.v36i4.20354>`_). Everything is in log form, and distances are computed
edge by edge in both directions, so that memory grows with ``E + N d`` and never with ``E d``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.graphs.sparse import csr_tensor, take_rows
from limbeck.students.inputs import neighbor_rows

Kernel = Literal["l1_exp", "rbf", "cosine", "poly", "l2"]
Bandwidth = float | Literal["median"]
Metric = Literal["l1", "squared", "dot"]

BANDWIDTH = 100.0
r"""The width :math:`\sigma` of the released code, for states of every width."""

METRIC: dict[Kernel, Metric] = {
    "l1_exp": "l1",
    "rbf": "squared",
    "cosine": "dot",
    "poly": "dot",
    "l2": "squared",
}

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Neighborhoods:
    """Which nodes each node is compared with: the edges into it, by receiver.

    Args:
        indptr: Where the edges into each of the ``R`` receivers start, int64 ``[R + 1]``. Receivers
            are the first ``R`` nodes.
        senders: The node at the other end of each edge, int64 ``[E]``.
    """

    indptr: Tensor
    senders: Tensor

    @classmethod
    def of(cls, edge_index: Tensor, num_nodes: int, *, self_loops: bool = True) -> Neighborhoods:
        """The in-neighbours of all nodes; edges that occur twice count once.

        Args:
            edge_index: int64 ``[2, E]``; self-loops in it do not count.
            num_nodes: Number of nodes ``N``.
            self_loops: Whether each node is a neighbour of itself. A node with one other neighbour
                has nothing to learn otherwise: its distribution is certain.
        """
        rows = neighbor_rows(edge_index, num_nodes, num_nodes, self_loops=self_loops)
        return cls(rows.crow_indices(), rows.col_indices())

    @property
    def num_receivers(self) -> int:
        """Number of nodes ``R`` that edges lead into, or could."""
        return len(self.indptr) - 1

    @property
    def num_edges(self) -> int:
        """Number of edges ``E``."""
        return len(self.senders)

    @cached_property
    def receivers(self) -> Tensor:
        """The node that each edge leads into, int64 ``[E]``, ascending."""
        return torch.repeat_interleave(torch.arange(self.num_receivers), self.indptr.diff())

    @cached_property
    def between_two(self) -> Tensor:
        """Whether an edge joins two different nodes, bool ``[E]``."""
        return self.senders != self.receivers

    def into(self, nodes: Tensor) -> Batch:
        """The whole neighbourhoods of some nodes.

        Args:
            nodes: int64 ``[B]``, without repetition.
        """
        places = csr_tensor(
            self.indptr, self.senders, torch.arange(self.num_edges), (self.num_receivers,) * 2
        )
        rows = take_rows(places, nodes)
        place = torch.full((self.num_receivers,), -1)
        place[nodes] = torch.arange(len(nodes))
        others = torch.unique(rows.col_indices()[place[rows.col_indices()] < 0])
        place[others] = torch.arange(len(nodes), len(nodes) + len(others))
        inner = Neighborhoods(rows.crow_indices(), place[rows.col_indices()])
        return Batch(inner, torch.cat([nodes, others]), rows.values())


class Batch(NamedTuple):
    """Some nodes with all of their neighbours.

    Args:
        neighborhoods: The edges into the ``B`` nodes, which count from 0 in the order of ``nodes``.
        nodes: All ``M`` nodes concerned, the ``B`` nodes first, int64 ``[M]``.
        edges: Where these edges stand among those of the whole, int64 ``[E']``.
    """

    neighborhoods: Neighborhoods
    nodes: Tensor
    edges: Tensor


# -- the distribution ----------------------------------------------------------------------


def local_log_probs(
    hidden: Tensor,
    neighborhoods: Neighborhoods,
    kernel: Kernel = "l1_exp",
    bandwidth: Bandwidth = BANDWIDTH,
) -> Tensor:
    r"""The distribution :math:`\log p_{ij}` ``[E]`` of each node over its neighbours.

    Args:
        hidden: States ``[N, d]``; half precision is computed in single.
        neighborhoods: Which nodes are compared.
        kernel: See :func:`edge_logits`.
        bandwidth: See :func:`edge_logits`.
    """
    return edge_log_softmax(edge_logits(hidden, neighborhoods, kernel, bandwidth), neighborhoods)


def local_divergence(
    hidden: Tensor,
    teacher_log_probs: Tensor,
    neighborhoods: Neighborhoods,
    kernel: Kernel = "l1_exp",
    bandwidth: Bandwidth = BANDWIDTH,
) -> Tensor:
    r"""The divergence :math:`D_i` of the student's local distribution from the teacher's.

    It is 0 where a node has one neighbour or none. With kernel ``"l1_exp"`` or ``"rbf"`` it lies
    below half a nat, whatever the states: a loss of this size needs a weight of 1 to 10.

    Args:
        hidden: The student's states ``[N, d]``.
        teacher_log_probs: What :func:`local_log_probs` made of the teacher's, without gradient:
            ``[E]``, or ``[E, K]`` for several teachers.
        neighborhoods: Which nodes are compared, with ``E`` edges and ``R`` receivers.
        kernel: See :func:`edge_logits`.
        bandwidth: See :func:`edge_logits`.

    Returns:
        ``[R]``, or ``[R, K]`` for several teachers.
    """
    log_probs = local_log_probs(hidden, neighborhoods, kernel, bandwidth)
    teacher = teacher_log_probs.detach().to(log_probs.dtype)
    if teacher.ndim == 2:
        log_probs = log_probs.unsqueeze(1)
    per_edge = teacher.exp() * (teacher - log_probs)
    start = per_edge.new_zeros(neighborhoods.num_receivers, *per_edge.shape[1:])
    return start.index_add(0, neighborhoods.receivers, per_edge)


def edge_logits(
    hidden: Tensor,
    neighborhoods: Neighborhoods,
    kernel: Kernel = "l1_exp",
    bandwidth: Bandwidth = BANDWIDTH,
) -> Tensor:
    r"""How similar the two ends of each edge are, ``[E]``.

    ``"l1_exp"``
        :math:`\exp(-\lVert \mathbf{h}_j - \mathbf{h}_i \rVert_1 / \sigma)`, as both codes compute.
    ``"rbf"``
        :math:`\exp(-\lVert \mathbf{h}_j - \mathbf{h}_i \rVert_2^2 / (2 \sigma))`.
    ``"cosine"``, ``"poly"``
        The cosine of the two states, and its square; 0 where a state is all zeros.
    ``"l2"``
        The distance :math:`\lVert \mathbf{h}_j - \mathbf{h}_i \rVert_2` itself, unbounded and the
        wrong way round; kept for comparison with `"On Representation Knowledge Distillation for
        Graph Neural Networks" <https://arxiv.org/abs/2111.04964>`_.

    Args:
        hidden: States ``[N, d]``; half precision is computed in single.
        neighborhoods: Which nodes are compared.
        kernel: One of those above.
        bandwidth: :math:`\sigma > 0`, or ``"median"`` for :func:`median_distance` of these very
            states; only ``"l1_exp"`` and ``"rbf"`` have one.
    """
    hidden = _at_least_single(hidden)
    if METRIC[kernel] == "dot":
        cosine = edge_measure(_unit_rows(hidden), neighborhoods, "dot")
        return cosine if kernel == "cosine" else cosine.square()
    distance = edge_measure(hidden, neighborhoods, METRIC[kernel])
    if kernel == "l2":
        # the root's gradient is infinite at 0, where the distance's sub-gradient 0 is taken
        apart = distance > 0
        return torch.where(apart, distance.where(apart, distance.new_ones(())).sqrt(), 0.0)
    sigma = _sigma(distance, neighborhoods, bandwidth)
    return torch.exp(-distance / (sigma if kernel == "l1_exp" else 2 * sigma))


def edge_log_softmax(logits: Tensor, neighborhoods: Neighborhoods) -> Tensor:
    """The logarithm of the softmax over the edges into each node, without overflow.

    Args:
        logits: ``[E]``.
        neighborhoods: The edges.
    """
    receivers, count = neighborhoods.receivers, neighborhoods.num_receivers
    largest = logits.detach().new_full((count,), -torch.inf)
    largest = largest.scatter_reduce(0, receivers, logits.detach(), "amax")
    shifted = logits - largest[receivers]
    total = shifted.new_zeros(count).index_add(0, receivers, shifted.exp())
    # the largest contributes 1; nodes without edges have 0, whose logarithm nobody reads
    return shifted - total.clamp_min(1.0).log()[receivers]


def median_distance(
    hidden: Tensor, neighborhoods: Neighborhoods, kernel: Kernel = "l1_exp"
) -> float:
    r"""The median of the distance that a kernel reads, over edges between different nodes.

    Where it is 0, since most neighbours have the very same state, it is the mean instead, and 1
    where there is no distance at all.

    Args:
        hidden: States ``[N, d]``.
        neighborhoods: The edges.
        kernel: ``"l1_exp"``: the distance :math:`r_{ij}`; ``"rbf"``: the squared Euclidean one.
    """
    with torch.no_grad():
        distance = edge_measure(_at_least_single(hidden), neighborhoods, METRIC[kernel])
    return _sigma(distance, neighborhoods, "median")


class Saturation(NamedTuple):
    r"""How much a local distribution says; a kernel that is too narrow or too wide says nothing.

    Args:
        median_distance: Median of the distance that the kernel reads, over edges between different
            nodes.
        share_near_0: Share of those edges with :math:`s < 0.01`.
        share_near_1: Share of those edges with :math:`s > 0.99`.
        information: Mean over nodes with neighbours of
            :math:`\mathrm{KL}(p_i \,\|\, \mathrm{uniform})`, in nats.
    """

    median_distance: float
    share_near_0: float
    share_near_1: float
    information: float


@torch.no_grad()
def saturation(
    hidden: Tensor,
    neighborhoods: Neighborhoods,
    kernel: Kernel = "l1_exp",
    bandwidth: Bandwidth = BANDWIDTH,
) -> Saturation:
    """Describe the local distributions of states ``[N, d]``.

    Args:
        hidden: States ``[N, d]``.
        neighborhoods: The edges; shares are 0 where none of them joins two nodes.
        kernel: See :func:`edge_logits`.
        bandwidth: See :func:`edge_logits`.
    """
    logits = edge_logits(hidden, neighborhoods, kernel, bandwidth)
    log_probs = edge_log_softmax(logits, neighborhoods)
    degree = neighborhoods.indptr.diff()
    log_uniform = -degree.clamp_min(1).log()[neighborhoods.receivers]
    total = (log_probs.exp() * (log_probs - log_uniform)).sum()
    between = logits[neighborhoods.between_two]
    edges = max(len(between), 1)
    return Saturation(
        median_distance(hidden, neighborhoods, kernel),
        int((between < 0.01).sum()) / edges,
        int((between > 0.99).sum()) / edges,
        float(total) / max(int((degree > 0).sum()), 1),
    )


def _sigma(distance: Tensor, neighborhoods: Neighborhoods, bandwidth: Bandwidth) -> float:
    if bandwidth != "median":
        return float(bandwidth)
    between = distance.detach()[neighborhoods.between_two]
    if not bool((between > 0).any()):
        return 1.0
    median = float(between.median())
    return median if median > 0 else float(between.mean())


def _unit_rows(hidden: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays one, with a finite gradient."""
    length = hidden.detach().norm(dim=1, keepdim=True)
    alive = length > 1e-12
    norm = hidden.where(alive, hidden.new_ones(())).norm(dim=1, keepdim=True)
    return torch.where(alive, hidden / norm, 0.0)


def _at_least_single(hidden: Tensor) -> Tensor:
    return hidden if hidden.dtype == torch.float64 else hidden.float()


# -- edge by edge --------------------------------------------------------------------------


def edge_measure(hidden: Tensor, neighborhoods: Neighborhoods, metric: Metric) -> Tensor:
    r"""Distance or product of the states at the two ends of each edge, ``[E]``, on a CPU.

    Nothing of the size ``E d`` is ever written down, neither here nor for the gradient, which
    computes the differences anew.

    Args:
        hidden: States ``[N, d]``, float32 or float64.
        neighborhoods: The edges.
        metric: ``"l1"``: :math:`\sum_c |h_{jc} - h_{ic}|`, with gradient 0 at the kink;
            ``"squared"``: :math:`\sum_c (h_{jc} - h_{ic})^2`; ``"dot"``:
            :math:`\sum_c h_{jc} h_{ic}`.
    """
    measure: Tensor = _EdgeMeasure.apply(  # type: ignore[no-untyped-call]
        hidden, neighborhoods.indptr, neighborhoods.senders, metric
    )
    return measure


class _EdgeMeasure(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, indptr: Tensor, senders: Tensor, metric: Metric
    ) -> Tensor:
        states = hidden.detach().contiguous()
        ctx.save_for_backward(states, indptr, senders)
        ctx.metric = metric
        out = states.new_empty(len(senders))
        forward, _ = _LOOPS[metric]
        forward(*(tensor.numpy() for tensor in (indptr, senders, states, out)))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        states, indptr, senders = ctx.saved_tensors
        out = torch.zeros_like(states)
        _, backward = _LOOPS[ctx.metric]
        parts = (indptr, senders, states, gradient.contiguous(), out)
        backward(*(tensor.numpy() for tensor in parts))
        return out, None, None, None


# sums may be taken in any order, which lets them be vectorised; NaN and infinity stay what they are
_jit = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})


@_jit  # type: ignore[untyped-decorator]
def _l1(indptr: IntArray, senders: IntArray, h: FloatArray, out: FloatArray) -> None:
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            j = senders[e]
            total = h.dtype.type(0)
            for c in range(h.shape[1]):
                total += abs(h[j, c] - h[i, c])
            out[e] = total


@_jit  # type: ignore[untyped-decorator]
def _l1_gradient(
    indptr: IntArray, senders: IntArray, h: FloatArray, g: FloatArray, out: FloatArray
) -> None:
    own = np.empty(h.shape[1], h.dtype)  # what a receiver gets, kept close by
    for i in range(len(indptr) - 1):
        own[:] = 0
        for e in range(indptr[i], indptr[i + 1]):
            j, weight = senders[e], g[e]
            for c in range(h.shape[1]):
                difference = h[j, c] - h[i, c]
                step = weight * (h.dtype.type(difference > 0) - h.dtype.type(difference < 0))
                out[j, c] += step
                own[c] -= step
        out[i] += own


@_jit  # type: ignore[untyped-decorator]
def _squared(indptr: IntArray, senders: IntArray, h: FloatArray, out: FloatArray) -> None:
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            j = senders[e]
            total = h.dtype.type(0)
            for c in range(h.shape[1]):
                difference = h[j, c] - h[i, c]
                total += difference * difference
            out[e] = total


@_jit  # type: ignore[untyped-decorator]
def _squared_gradient(
    indptr: IntArray, senders: IntArray, h: FloatArray, g: FloatArray, out: FloatArray
) -> None:
    own = np.empty(h.shape[1], h.dtype)
    for i in range(len(indptr) - 1):
        own[:] = 0
        for e in range(indptr[i], indptr[i + 1]):
            j, weight = senders[e], g[e] + g[e]
            for c in range(h.shape[1]):
                step = weight * (h[j, c] - h[i, c])
                out[j, c] += step
                own[c] -= step
        out[i] += own


@_jit  # type: ignore[untyped-decorator]
def _dot(indptr: IntArray, senders: IntArray, h: FloatArray, out: FloatArray) -> None:
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            j = senders[e]
            total = h.dtype.type(0)
            for c in range(h.shape[1]):
                total += h[j, c] * h[i, c]
            out[e] = total


@_jit  # type: ignore[untyped-decorator]
def _dot_gradient(
    indptr: IntArray, senders: IntArray, h: FloatArray, g: FloatArray, out: FloatArray
) -> None:
    own = np.empty(h.shape[1], h.dtype)
    for i in range(len(indptr) - 1):
        own[:] = 0
        for e in range(indptr[i], indptr[i + 1]):
            j, weight = senders[e], g[e]
            for c in range(h.shape[1]):
                own[c] += weight * h[j, c]
                out[j, c] += weight * h[i, c]
        out[i] += own


_LOOPS = {
    "l1": (_l1, _l1_gradient),
    "squared": (_squared, _squared_gradient),
    "dot": (_dot, _dot_gradient),
}
