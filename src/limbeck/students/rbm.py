"""Routing-by-Memory: experts that a node is sent to by the direction of its features."""

from __future__ import annotations

import math
import warnings
from typing import cast

import torch
from scipy.sparse import csr_array
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.sparse import is_csr, linear, take_rows, weighted_sums
from limbeck.students.experts import (
    ExpertLayer,
    ExpertStudent,
    Routing,
    bounded_exp,
    largest,
    squared_variation,
    unit,
    widths,
)
from limbeck.students.inputs import NodeInputs
from limbeck.students.mlp import Norm

INIT_GAIN = 1.1
"""Input gain of every expert at the start, where gains are trained."""

KMEANS_STARTS = 10
"""Starts of k-means, of which the best is kept (scikit-learn's default when RbM was written)."""

CLUSTER_ROWS = 100_000
"""Rows that decide where memories are placed; of more, as many are drawn."""

BLOCK = 16_384
"""Rows per forward pass of the conversion."""


class RbMLayer(ExpertLayer):
    r"""A layer whose rows go to the experts with the nearest memories.

    Each expert :math:`e` owns a memory :math:`\mathbf{m}_e` in the space of the rows. With
    :math:`\mathrm{unit}(\mathbf{v}) = \mathbf{v} / \lVert \mathbf{v} \rVert_2`,

    .. math::
        s_e &= \langle \mathrm{unit}(\mathbf{h}), \mathrm{unit}(\mathbf{m}_e) \rangle \\
        S &= \text{the } k \text{ experts of largest } s_e \\
        a_e &= \frac{\exp(s_e)}{\sum_{j \in S} \exp(s_j)} \quad (e \in S) \\
        \mathbf{y} &= e^{t} \sum_{e \in S} \mathrm{sg}(a_e) \, \bigl(
        \mathbf{W}_e \, \mathrm{dropout}(e^{\mathbf{g}_e} \odot \mathbf{h}) + \mathbf{b}_e \bigr)

    (`"Graph Knowledge Distillation to Mixture of Experts" <https://arxiv.org/abs/2406.11919>`_, as
    coded by its authors). The gates :math:`a` are detached where they multiply (sg): no loss of
    the result reaches the rows through them. Memories get no gradient from the routing either;
    in every forward pass of training they follow the rows that came to them,

    .. math::
        \mathbf{m}_e \leftarrow \mu \, \mathrm{unit}(\mathbf{m}_e)
        + (1 - \mu) \sum_{b : e \in S_b} w_{be} \, \mathrm{unit}(\mathbf{h}_b), \qquad
        w_{\cdot e} = \mathrm{softmax}_{b : e \in S_b}(a_{be}),

    and are moved apart by :func:`self_similarity_loss`. In pretraining the layer is its first
    expert, a plain linear map without scale and gain; :meth:`convert` ends that.

    Args:
        in_channels: Width of a row.
        out_channels: Width of the result.
        num_experts: Number of experts ``E``.
        top_k: Experts per row ``k``, fewer than ``E``.
        dropout: Probability of dropping an entry of a row before an expert reads it.
        input_gain: Train a gain per expert and entry of a row, :math:`e^{\mathbf{g}_e}`, which is
            1.1 at first and at most 100; without it the gain is 1.
        momentum: :math:`\mu`, the share of a memory that a forward pass leaves.
        init_scale: The scale :math:`e^t` at first; it is trained, and at most 100.
        train_memory: Whether the memories are parameters that the optimiser moves, too.
        expert_rank: Let the experts share one map and differ by low rank, see
            :class:`~limbeck.students.experts.Corrections`; then they share the gain, too. This is
            ours, not the paper's.

    Shapes:
        - **input:** ``[B, in]``, dense or ``torch.sparse_csr``
        - **output:** ``[B, out]``, and the routing: similarity ``[B, E]``, gates ``[B, E]``
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_experts: int = 4,
        top_k: int = 3,
        dropout: float = 0.0,
        *,
        input_gain: bool = False,
        momentum: float = 0.9,
        init_scale: float = 2.0,
        train_memory: bool = True,
        expert_rank: int | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, num_experts, top_k, dropout, init_scale, expert_rank
        )
        self.momentum = momentum
        self.memory = torch.nn.Parameter(
            torch.zeros(num_experts, in_channels), requires_grad=train_memory
        )
        self.log_gain: torch.nn.Parameter | None = None
        if input_gain:
            num_gains = num_experts if expert_rank is None else 1
            self.log_gain = torch.nn.Parameter(
                torch.full((num_gains, in_channels), math.log(INIT_GAIN))
            )

    def reset_parameters(self) -> None:
        """Put the layer back to a fresh start, in pretraining."""
        super().reset_parameters()
        torch.nn.init.zeros_(self.memory)
        if self.log_gain is not None:
            torch.nn.init.constant_(self.log_gain, math.log(INIT_GAIN))

    def forward(self, h: Tensor) -> tuple[Tensor, Routing | None]:
        """The result ``[B, out]`` for rows ``[B, in]``, and where they went once routed.

        In training it moves the memories.
        """
        if not self.routed:
            return self.ask(0, h), None
        rows = unit(h)  # [B, in]
        similarity = linear(rows, unit(self.memory).detach())  # [B, E]
        gates = softmax_over(largest(similarity, self.top_k), similarity)
        gain = None if self.log_gain is None else bounded_exp(self.log_gain)
        y = bounded_exp(self.log_scale) * self.mix(h, gates.detach(), gain)
        if self.training:
            self.update_memory(rows.detach(), gates.detach())
        return y, Routing(similarity, gates)

    @torch.no_grad()
    def update_memory(self, rows: Tensor, gates: Tensor) -> None:
        """Move each memory towards the unit rows ``[B, in]`` that its expert got.

        An expert without rows keeps its direction; its memory becomes shorter, which nothing
        depends on.
        """
        gates = gates.masked_fill(gates == 0, -math.inf)
        weight = gates.softmax(0).nan_to_num(0.0)  # [B, E], over the rows
        center = weighted_sums(rows, weight)  # [E, in]
        self.memory.copy_(self.momentum * unit(self.memory) + (1 - self.momentum) * center)

    @torch.no_grad()
    def convert(self, h: Tensor) -> None:
        """End pretraining: place the memories by spherical k-means, clone the first expert.

        Args:
            h: Rows of all nodes that may be seen, ``[N, in]``, dense or CSR.

        Raises:
            OptionError: There are fewer rows than experts.
        """
        self.memory.copy_(spherical_kmeans(h, self.num_experts))
        first = self.experts[0].state_dict()
        for expert in self.experts[1:]:
            expert.load_state_dict(first)
        self.routed = True


class RbM(ExpertStudent):
    r"""A multilayer perceptron whose every linear map is an :class:`RbMLayer`.

    .. math::
        \mathbf{h}^{l+1} = \mathrm{ReLU}(\mathrm{norm}(\mathrm{RbM}^l(\mathbf{h}^l)))

    and a bare layer last (`"Graph Knowledge Distillation to Mixture of Experts"
    <https://arxiv.org/abs/2406.11919>`_). Until :meth:`convert` it is a plain MLP.

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width of each hidden layer.
        out_channels: Number of classes ``C``.
        num_layers: Number of layers, at least 1.
        num_experts: Experts per layer ``E``.
        top_k: Experts per node and layer ``k``, fewer than ``E``.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, after the mixture and before each ReLU.
        dropout: Probability of dropping an entry of a layer's input, features included, before
            an expert reads it; routing sees all of it.
        input_dropout: Probability of dropping a feature before it is routed.
        position_channels: Width ``d`` of the positional encoding that stands behind the features,
            0 for none.
        input_gain: Train a gain per expert and input, see :class:`RbMLayer`.
        momentum: Share of a memory that a forward pass leaves.
        init_scale: Scale of each layer's output at first.
        train_memory: Whether the optimiser moves the memories, too.
        expert_rank: Rank by which the experts of a layer differ from one map that they share;
            ``None`` gives each a map of its own.

    Shapes:
        - **inputs:** ``x`` ``[B, F]``, dense or ``torch.sparse_csr``; ``position`` ``[B, d]``
        - **output:** logits ``[B, C]``
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        num_experts: int = 4,
        top_k: int = 3,
        norm: Norm = "none",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        position_channels: int = 0,
        *,
        input_gain: bool = False,
        momentum: float = 0.9,
        init_scale: float = 2.0,
        train_memory: bool = True,
        expert_rank: int | None = None,
    ) -> None:
        layers: list[ExpertLayer] = [
            RbMLayer(
                into,
                out,
                num_experts,
                top_k,
                dropout,
                input_gain=input_gain,
                momentum=momentum,
                init_scale=init_scale,
                train_memory=train_memory,
                expert_rank=expert_rank,
            )
            for into, out in widths(
                in_channels + position_channels, hidden_channels, out_channels, num_layers
            )
        ]
        super().__init__(
            layers, in_channels, hidden_channels, norm, input_dropout, position_channels
        )

    @torch.no_grad()
    def convert(self, inputs: NodeInputs) -> None:
        """End pretraining, layer by layer from the features.

        Each layer is clustered on what the layers before it answer once they are converted, in
        eval mode. The mode is left as it was.

        Args:
            inputs: Inputs of all nodes that may be seen.

        Raises:
            OptionError: There are fewer nodes than experts.
        """
        training = self.training
        self.eval()
        h = self.read(inputs)
        for i, layer in enumerate(self.layers):
            cast(RbMLayer, layer).convert(h)
            if i < len(self.norms):
                blocks = torch.split(torch.arange(h.shape[0]), BLOCK)
                h = torch.cat([self.activate(layer(take_rows(h, rows))[0], i) for rows in blocks])
        self.train(training)

    def auxiliary_loss(
        self,
        routings: list[Routing],
        commitment: float,
        self_similarity: float,
        load_balance: float,
    ) -> Tensor:
        r"""What keeps the routing in order, summed over the layers.

        .. math:: \sum_l \alpha \, L_c^l + \beta \, L_s^l + \gamma \, L_b^l

        The memories are taken as they are now, which is after the forward pass that the routings
        come from. A loss with the weight 0 is left out: without :math:`L_s` the memories have no
        gradient at all, and no weight decay.

        Args:
            routings: From :meth:`trace`; none in pretraining, where the loss is zero.
            commitment: :math:`\alpha`, the weight of :func:`commitment_loss`.
            self_similarity: :math:`\beta`, the weight of :func:`self_similarity_loss`.
            load_balance: :math:`\gamma`, the weight of :func:`load_balance_loss`.
        """
        total = torch.zeros(())
        for layer, routing in zip(self.layers, routings, strict=False):
            if commitment > 0:
                total = total + commitment * commitment_loss(routing)
            if self_similarity > 0:
                memory = cast(RbMLayer, layer).memory
                total = total + self_similarity * self_similarity_loss(memory)
            if load_balance > 0:
                total = total + load_balance * load_balance_loss(routing)
        return total


def commitment_loss(routing: Routing) -> Tensor:
    r"""Pull rows towards the memories they go to: :math:`-\frac1B \sum_b \sum_e a_{be} s_{be}`.

    Its gradient reaches the rows, through the similarities and through the gates, and not the
    memories.
    """
    return -(routing.gates * routing.similarity).sum(1).mean()


def self_similarity_loss(memory: Tensor) -> Tensor:
    r"""Push memories apart.

    .. math::
        \frac{1}{E^2} \sum_{e,e'} \langle \mathrm{unit}(\mathbf{m}_e),
        \mathrm{sg}(\mathrm{unit}(\mathbf{m}_{e'})) \rangle

    The gradient comes from one side of the product only and stands at a right angle to each
    memory. Between :math:`1/E` for orthogonal memories (less for opposed ones) and 1 for equal
    ones.

    Args:
        memory: ``[E, d]``.
    """
    # of a copy: the next forward pass overwrites the memory, maybe before this loss goes backward
    direction = unit(memory.clone())
    return (direction @ direction.detach().t()).mean()


def load_balance_loss(routing: Routing) -> Tensor:
    r"""Even the load :math:`\sum_b a_{be}` of the experts: its squared coefficient of variation."""
    return squared_variation(routing.gates.sum(0))


def softmax_over(chosen: Tensor, scores: Tensor) -> Tensor:
    """Softmax of ``scores`` ``[B, E]`` over the entries that are ``chosen``, zero elsewhere."""
    return scores.masked_fill(~chosen, -math.inf).softmax(1)


def spherical_kmeans(rows: Tensor, num_clusters: int) -> Tensor:
    """Directions in which rows lie densest: k-means on unit rows, its centres made unit.

    Random numbers come from PyTorch's generator. The best of ten starts by k-means++ is kept, and
    of more than :data:`CLUSTER_ROWS` rows only as many, drawn uniformly, are looked at.

    Args:
        rows: ``[N, d]``, dense or CSR.
        num_clusters: Number of directions ``E``.

    Returns:
        ``[E, d]``, dense, of norm one (of norm zero only for a cluster of zero rows).

    Raises:
        OptionError: There are fewer rows than clusters.
    """
    num_rows = rows.shape[0]
    if num_rows < num_clusters:
        raise OptionError(
            f"num_experts is {num_clusters}, but only {num_rows} nodes are observed: each expert "
            "needs one at least."
        )
    if num_rows > CLUSTER_ROWS:
        rows = take_rows(rows, torch.randperm(num_rows)[:CLUSTER_ROWS])
    seed = int(torch.randint(2**31 - 1, ()))
    kmeans = KMeans(num_clusters, init="k-means++", n_init=KMEANS_STARTS, random_state=seed)
    # one thread: the order in which several would add up their shares is not deterministic
    with threadpool_limits(1), warnings.catch_warnings():
        # fewer distinct directions than experts leave some memories equal, which is no harm:
        # ties are broken, and the losses part them
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        kmeans.fit(_to_numpy(unit(rows)))
    return unit(torch.from_numpy(kmeans.cluster_centers_))


def _to_numpy(rows: Tensor) -> object:
    """A matrix as scikit-learn reads it, dense or CSR."""
    rows = rows.detach().cpu()
    if not is_csr(rows):
        return rows.numpy()
    indptr, indices = rows.crow_indices().int().numpy(), rows.col_indices().int().numpy()
    shape = (rows.shape[0], rows.shape[1])
    return csr_array((rows.values().numpy(), indices, indptr), shape=shape)
