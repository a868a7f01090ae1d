"""SA-MLP: an MLP that reads a node's features and, beside them, the ids of its neighbours."""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.sparse import csr_tensor, is_csr, take_rows, with_values
from limbeck.graphs.view import Scaling
from limbeck.students.inputs import InputSpec, NodeInputs
from limbeck.students.mlp import Norm, input_dropout, make_norm

AdjNorm = Literal["none", "row", "sqrt-degree"]
Order = Literal["sa-mlp", "glnn"]
FeatureScale = Literal["none", "row", "standard"]

DEGREE_POWER: dict[AdjNorm, float] = {"none": 0.0, "sqrt-degree": 0.5, "row": 1.0}
"""Power of the degree that the sum over a node's neighbours is divided by."""

HASH_PRIME = 2**31 - 1
"""Columns are hashed modulo this prime, so there can be as many."""

EXPLAINED_AT_ONCE = 4096
"""Neighbours whose removal is tried in one pass."""


# --- the structure table ----------------------------------------------------------------------


class StructureTable(torch.nn.Module, ABC):
    r"""What each known node tells its neighbours: a row :math:`\mathbf{W}_A[j]` of ``h`` values.

    Subclasses differ in how they store the rows.

    Args:
        num_columns: Number of known nodes ``N``.
        channels: Width ``h`` of a row.
        init_std: Standard deviation of a row's values at first; ``None`` for that of
            ``torch.nn.Linear(N, h)``, which is :math:`1 / \sqrt{3N}`.
    """

    def __init__(self, num_columns: int, channels: int, init_std: float | None = None) -> None:
        super().__init__()
        self.num_columns = num_columns
        self.channels = channels
        self.bound = 1 / math.sqrt(max(num_columns, 1))
        if init_std is not None:
            self.bound = init_std * math.sqrt(3)

    @abstractmethod
    def reset_parameters(self) -> None:
        """Put the rows back to a fresh start."""

    @abstractmethod
    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``[n, h]`` of the columns ``ids`` (int64 ``[n]``)."""

    def knows(self, ids: Tensor) -> Tensor:
        """Which of the columns ``ids`` (int64 ``[n]``) have a row at all, bool ``[n]``."""
        return torch.ones_like(ids, dtype=torch.bool)

    def bag(self, neighbors: Tensor) -> Tensor:
        """Sum of the neighbours' rows, each times its weight, ``[B, h]``; zeros for none.

        Args:
            neighbors: CSR ``[B, N]``.
        """
        ids, place = torch.unique(neighbors.col_indices(), return_inverse=True)
        return _bag(self.rows(ids), place, neighbors)

    def degree(self, neighbors: Tensor) -> Tensor:
        """Sum of the weights of the neighbours that have a row, ``[B]``.

        Args:
            neighbors: CSR ``[B, N]``.
        """
        weights = neighbors.values() * self.knows(neighbors.col_indices())
        return torch.zeros(len(neighbors)).index_add(0, entry_rows(neighbors), weights)

    def extra_repr(self) -> str:
        """What ``print`` shows of the table."""
        return f"{self.num_columns}, {self.channels}"


class FullTable(StructureTable):
    """A row of its own for every known node, ``N`` times ``h`` in one contiguous block."""

    def __init__(self, num_columns: int, channels: int, init_std: float | None = None) -> None:
        super().__init__(num_columns, channels, init_std)
        self.weight = torch.nn.Parameter(torch.empty(num_columns, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Put the rows back to a fresh start."""
        torch.nn.init.uniform_(self.weight, -self.bound, self.bound)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``[n, h]`` of the columns ``ids`` (int64 ``[n]``)."""
        return self.weight[ids]

    def bag(self, neighbors: Tensor) -> Tensor:
        """Sum of the neighbours' rows, ``[B, h]``, read from the table in place."""
        return _bag(self.weight, neighbors.col_indices(), neighbors)


class LandmarkTable(StructureTable):
    """Rows for some known nodes only; edges to the others say nothing.

    A node whose neighbours are no landmarks is one without neighbours.

    Args:
        num_columns: Number of known nodes ``N``.
        channels: Width ``h`` of a row.
        landmarks: The nodes that have a row, int64 ``[M]``; see :func:`most_named`.
        init_std: As for :class:`StructureTable`.
    """

    def __init__(
        self, num_columns: int, channels: int, landmarks: Tensor, init_std: float | None = None
    ) -> None:
        super().__init__(num_columns, channels, init_std)
        place = torch.full((num_columns,), -1, dtype=torch.int64)
        place[landmarks] = torch.arange(len(landmarks))
        self.place: Tensor
        self.register_buffer("place", place)
        self.weight = torch.nn.Parameter(torch.empty(len(landmarks), channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Put the rows back to a fresh start."""
        torch.nn.init.uniform_(self.weight, -self.bound, self.bound)

    def knows(self, ids: Tensor) -> Tensor:
        """Which of the columns ``ids`` (int64 ``[n]``) are landmarks, bool ``[n]``."""
        return self.place[ids] >= 0

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``[n, h]`` of the columns ``ids`` (int64 ``[n]``), zeros where there is none."""
        rows = ids.new_zeros(len(ids), self.channels, dtype=self.weight.dtype)
        known = self.knows(ids).nonzero().flatten()
        return rows.index_add(0, known, self.weight[self.place[ids[known]]])


class HashedTable(StructureTable):
    r"""Rows that share the entries of a smaller table.

    .. math:: \mathbf{W}_A[j] = \sum_{k=1}^{K} s_k(j) \, \mathbf{T}[h_k(j)]

    with hash functions :math:`h_k(j) = ((a_k j + b_k) \bmod p) \bmod M` and signs :math:`s_k`
    drawn in the same way.

    Args:
        num_columns: Number of known nodes ``N``.
        channels: Width ``h`` of a row.
        num_rows: Rows ``M`` of the table :math:`\mathbf{T}`.
        num_hashes: Hash functions ``K``.
        init_std: As for :class:`StructureTable`.
    """

    def __init__(
        self,
        num_columns: int,
        channels: int,
        num_rows: int,
        num_hashes: int = 2,
        init_std: float | None = None,
    ) -> None:
        super().__init__(num_columns, channels, init_std)
        self.factors: Tensor
        # factors and offsets of the hash functions, then those of the signs: [2, 2, K]
        self.register_buffer("factors", torch.randint(1, HASH_PRIME, (2, 2, num_hashes)))
        self.weight = torch.nn.Parameter(torch.empty(num_rows, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Put the rows back to a fresh start; the hash functions stay."""
        bound = self.bound / math.sqrt(self.factors.shape[2])
        torch.nn.init.uniform_(self.weight, -bound, bound)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``[n, h]`` of the columns ``ids`` (int64 ``[n]``)."""
        (a, b), (sign_a, sign_b) = self.factors
        ids = ids.unsqueeze(1)
        entries = (ids * a + b) % HASH_PRIME % len(self.weight)  # [n, K]
        signs = 1 - 2 * ((ids * sign_a + sign_b) % HASH_PRIME % 2)
        return F.embedding_bag(
            entries, self.weight, per_sample_weights=signs.to(self.weight.dtype), mode="sum"
        )


class TiedTable(StructureTable):
    r"""Rows that follow from the known nodes' features, with a correction for each.

    .. math:: \mathbf{W}_A[j] = \mathbf{V} \mathbf{x}_j + \boldsymbol{\delta}_j

    The corrections start at zero and are held there by weight decay. A node that comes later has
    a row, too: :math:`\mathbf{V} \mathbf{x}`, see :meth:`new_rows`.

    Args:
        features: Of the known nodes, scaled as the student scales them, ``[N, F]``, dense or CSR.
            They are not part of the state.
        channels: Width ``h`` of a row.
        init_std: As for :class:`StructureTable`, of the map; ``None`` for ``torch.nn.Linear``'s.
    """

    def __init__(self, features: Tensor, channels: int, init_std: float | None = None) -> None:
        super().__init__(len(features), channels, init_std)
        self.feature_channels = int(features.shape[1])
        self.init_std = init_std
        # the arrays of a CSR matrix, since modules that hold one cannot be copied
        sparse = is_csr(features)
        self.values: Tensor
        self.indptr: Tensor | None
        self.indices: Tensor | None
        self.register_buffer("values", features.values() if sparse else features, persistent=False)
        indptr, indices = (
            (features.crow_indices(), features.col_indices()) if sparse else (None,) * 2
        )
        self.register_buffer("indptr", indptr, persistent=False)
        self.register_buffer("indices", indices, persistent=False)
        self.map = torch.nn.Linear(self.feature_channels, channels, bias=False)
        self.correction = torch.nn.Parameter(torch.empty(self.num_columns, channels))
        self.reset_parameters()

    @property
    def features(self) -> Tensor:
        """Features of the known nodes, ``[N, F]``."""
        if self.indptr is None or self.indices is None:
            return self.values
        size = (self.num_columns, self.feature_channels)
        return csr_tensor(self.indptr, self.indices, self.values, size)

    def reset_parameters(self) -> None:
        """Put map and corrections back to a fresh start."""
        self.map.reset_parameters()
        if self.init_std is not None:
            torch.nn.init.uniform_(self.map.weight, -self.bound, self.bound)
        torch.nn.init.zeros_(self.correction)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``[n, h]`` of the columns ``ids`` (int64 ``[n]``)."""
        return self.new_rows(take_rows(self.features, ids)) + self.correction[ids]

    def new_rows(self, x: Tensor) -> Tensor:
        """Rows ``[n, h]`` of nodes that came later, from their features ``[n, F]``."""
        rows: Tensor = self.map(x)
        return rows


def most_named(neighbors: Tensor, count: int) -> Tensor:
    """The columns that occur in most rows, int64 ``[count]``; of equal ones those that stand first.

    Args:
        neighbors: CSR ``[B, N]``.
        count: How many; all of them if there are fewer.
    """
    named = torch.bincount(neighbors.col_indices(), minlength=int(neighbors.shape[1]))
    return named.argsort(descending=True, stable=True)[:count]


def entry_rows(neighbors: Tensor) -> Tensor:
    """The row of each entry of a CSR matrix, int64 ``[entries]``."""
    return torch.repeat_interleave(torch.arange(len(neighbors)), neighbors.crow_indices().diff())


def _bag(table: Tensor, ids: Tensor, neighbors: Tensor) -> Tensor:
    """Weighted sums ``[B, h]`` of a table's rows ``ids``, one for each entry of ``neighbors``."""
    return F.embedding_bag(
        ids,
        table,
        neighbors.crow_indices(),
        mode="sum",
        per_sample_weights=neighbors.values(),
        include_last_offset=True,
    )


# --- the network ------------------------------------------------------------------------------


class FeatureScaling(torch.nn.Module):
    """How features are scaled before anything reads them.

    Args:
        kind: ``"none"``; ``"row"`` divides a row by the sum of its absolute values; ``"standard"``
            standardises columns by what :meth:`fit` saw. Sparse features are not centred then,
            only divided.
        channels: Number of features ``F``.
    """

    def __init__(self, kind: FeatureScale, channels: int) -> None:
        super().__init__()
        self.kind = kind
        self.mean: Tensor
        self.deviation: Tensor
        if kind == "standard":
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("deviation", torch.ones(channels))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Learn from the features ``[N, F]`` of the observed nodes; only ``"standard"`` does."""
        if self.kind != "standard":
            return
        if is_csr(x):
            arrays = (x.values().numpy(), x.col_indices().numpy(), x.crow_indices().numpy())
            matrix = csr_array(arrays, shape=(int(x.shape[0]), int(x.shape[1])))
            scaler = StandardScaler(with_mean=False).fit(matrix)
        else:
            scaler = StandardScaler().fit(x.numpy())
            self.mean.copy_(torch.from_numpy(scaler.mean_))
        self.deviation.copy_(torch.from_numpy(scaler.scale_))

    def forward(self, x: Tensor) -> Tensor:
        """Scaled features, in the layout of ``x`` ``[B, F]``."""
        if self.kind == "standard":
            return Scaling(self.mean, self.deviation).apply(x)
        if self.kind == "none":
            return x
        if not is_csr(x):
            return F.normalize(x, p=1, dim=1)
        row = entry_rows(x)
        sums = torch.zeros(len(x)).index_add(0, row, x.values().abs()).clamp_min(1e-12)
        return with_values(x, x.values() / sums[row])

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        return self.kind


class FeedForward(torch.nn.Module):
    """Linear maps with dropout, ReLU and norm between them, in SA-MLP's order or GLNN's.

    Args:
        in_channels: Width of a row.
        hidden_channels: Width of each hidden layer.
        out_channels: Width of the result.
        num_layers: Number of linear maps, at least 1.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, in each hidden layer.
        dropout: Probability of dropping a hidden unit.
        order: ``"sa-mlp"``: dropout, ReLU, norm, as in the released network; ``"glnn"``: norm,
            ReLU, dropout. With dropout before batch norm its running variance is that of training.

    Shapes:
        - **input:** ``[B, in]``, dense or ``torch.sparse_csr``
        - **output:** ``[B, out]``
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        norm: Norm = "none",
        dropout: float = 0.0,
        order: Order = "sa-mlp",
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.order = order
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.lins = torch.nn.ModuleList(
            torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)
        )
        self.norms = torch.nn.ModuleList(make_norm(norm, width) for width in widths[1:-1])

    def forward(self, h: Tensor) -> Tensor:
        """The result ``[B, out]`` for rows ``[B, in]``."""
        return self.rest(self.first(h))

    def first(self, h: Tensor) -> Tensor:
        """Output of the first linear map."""
        mapped: Tensor = self.lins[0](h)
        return mapped

    def rest(self, h: Tensor) -> Tensor:
        """All that follows the first linear map."""
        for norm, lin in zip(self.norms, self.lins[1:], strict=True):
            if self.order == "sa-mlp":
                h = norm(F.relu(F.dropout(h, self.dropout, self.training)))
            else:
                h = F.dropout(F.relu(norm(h)), self.dropout, self.training)
            h = lin(h)
        return h


class Streams(NamedTuple):
    r"""The two answers of a node, and how they are weighted.

    Args:
        gate: :math:`\alpha`, the weight of the structure's answer, ``[B, 1]``.
        structure: Logits from the structure, ``[B, C]``.
        feature: Logits from the features, ``[B, C]``.
    """

    gate: Tensor
    structure: Tensor
    feature: Tensor

    @property
    def logits(self) -> Tensor:
        """The student's logits ``[B, C]``."""
        return self.gate * self.structure + (1 - self.gate) * self.feature

    @property
    def share(self) -> Tensor:
        r"""The structure's share of the answer, 0 to 1, ``[B]``.

        .. math::
            \rho = \frac{\lVert \alpha \bar{\mathbf{u}}_A \rVert}
            {\lVert \alpha \bar{\mathbf{u}}_A \rVert
            + \lVert (1 - \alpha) \bar{\mathbf{u}}_X \rVert}

        with the logits' mean over the classes taken off, which no probability depends on. The gate
        alone says little: either decoder can grow to make up for it.
        """
        structure = (self.gate * _centred(self.structure)).norm(dim=1)
        feature = ((1 - self.gate) * _centred(self.feature)).norm(dim=1)
        share: Tensor = structure / (structure + feature).clamp_min(1e-12)
        return share


class Head(torch.nn.Module):
    """All of SA-MLP but the structure: feature encoder, gate and the two decoders.

    Its arguments are those of :class:`SAMLP`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        norm: Norm,
        dropout: float,
        stream_norm: Norm,
        order: Order,
    ) -> None:
        super().__init__()
        h = hidden_channels
        self.dropout = dropout
        self.feature_encoder = torch.nn.Linear(in_channels, h)
        self.structure_norm = make_norm(stream_norm, h)
        self.feature_norm = make_norm(stream_norm, h)
        self.gate = torch.nn.Linear(2 * h, 1)
        decoder = (h, h, out_channels, num_layers, norm, dropout, order)
        self.structure_decoder = FeedForward(*decoder)
        self.feature_decoder = FeedForward(*decoder)

    def encode(self, x: Tensor) -> Tensor:
        """The feature part :math:`z_X` ``[B, h]`` of scaled features ``[B, F]``."""
        encoded: Tensor = self.feature_encoder(x)
        return encoded

    def embed(self, z_a: Tensor) -> Tensor:
        """What becomes of the structure part ``[B, h]`` without dropout: norm, ReLU."""
        return F.relu(self.structure_norm(z_a))

    def decode(self, z_a: Tensor, z_x: Tensor) -> Streams:
        """The two streams' answers from their parts, ``[B, h]`` each."""
        h_a = F.relu(F.dropout(self.structure_norm(z_a), self.dropout, self.training))
        h_x = F.relu(F.dropout(self.feature_norm(z_x), self.dropout, self.training))
        gate = torch.sigmoid(self.gate(torch.cat([h_a, h_x], dim=1)))
        return Streams(gate, self.structure_decoder(h_a), self.feature_decoder(h_x))


class Explanation(NamedTuple):
    """Why the student answers as it does.

    Args:
        logits: ``[B, C]``.
        gate: Weight of the structure's logits, 0 to 1, ``[B]``.
        share: The structure's share of the answer, 0 to 1, ``[B]``; see :attr:`Streams.share`.
        neighbors: CSR ``[B, N]`` with the entries of the input. A value is how much more probable
            the class answered is than it would be without that neighbour, −1 to 1.
    """

    logits: Tensor
    gate: Tensor
    share: Tensor
    neighbors: Tensor


class SAMLP(torch.nn.Module):
    r"""A structure-aware MLP: two linear encoders, two decoders, one gate, no message passing.

    .. math::
        \mathbf{z}_A &= \sum_j A_{ij} \mathbf{W}_A[j] + \mathbf{b}_A, \qquad
        \mathbf{z}_X = \mathbf{W}_X \mathbf{x}_i + \mathbf{b}_X \\
        \mathbf{h}_\cdot &= \mathrm{ReLU}(\mathrm{dropout}(\mathbf{z}_\cdot)), \qquad
        \alpha = \sigma(\mathbf{g}^\top [\mathbf{h}_A ; \mathbf{h}_X] + c) \\
        \mathbf{s} &= \alpha \, D_A(\mathbf{h}_A) + (1 - \alpha) \, D_X(\mathbf{h}_X)

    (`"SA-MLP: Distilling Graph Knowledge from GNNs into Structure-Aware MLP"
    <https://arxiv.org/abs/2210.09609>`_, as in its released network). Once :attr:`routed`, a node
    without known neighbours takes :math:`\mathbf{z}_A = R(\mathbf{x}_i)` from the latent predictor,
    an MLP of two layers, and one with few of them a blend,

    .. math::
        \mathbf{z}_A = \kappa \, \mathbf{z}_A + (1 - \kappa) \, R(\mathbf{x}_i), \qquad
        \kappa = \deg_i / (\deg_i + k).

    Until then every node goes through the table, an empty row being :math:`\mathbf{b}_A`.

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width ``h`` of both encoders, and of the decoders' hidden layers.
        out_channels: Number of classes ``C``.
        table: The rows :math:`\mathbf{W}_A`, ``h`` wide.
        num_layers: Linear maps of each decoder, at least 1.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, in hidden layers of decoders and predictor.
        dropout: Probability of dropping a hidden unit.
        input_dropout: Probability of dropping a feature; 0 in the released network.
        adj_norm: Whether the sum over neighbours is divided by their number (``"row"``), by its
            root (``"sqrt-degree"``), or not (``"none"``).
        stream_norm: ``"none"``, ``"batch"`` or ``"layer"``, on both encoders' outputs before
            dropout and ReLU; ours.
        scaling: How features are scaled before anything reads them, fitted; ``None`` leaves them as
            they are. Ours.
        order: Of dropout, ReLU and norm in hidden layers, see :class:`FeedForward`.
        blend: :math:`k`, the degree at which both parts count the same; 0 for no blend.
        own_head: Give nodes without neighbours a feature encoder, gate and decoders of their own.

    Shapes:
        - **inputs:** ``x`` ``[B, F]``, dense or ``torch.sparse_csr``; ``neighbors`` ``[B, N]``,
          ``torch.sparse_csr``
        - **output:** logits ``[B, C]``

    Raises:
        OptionError: The table is not as wide as the hidden layers.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        table: StructureTable,
        num_layers: int = 1,
        norm: Norm = "none",
        dropout: float = 0.5,
        input_dropout: float = 0.0,
        *,
        adj_norm: AdjNorm = "none",
        stream_norm: Norm = "none",
        scaling: FeatureScaling | None = None,
        order: Order = "sa-mlp",
        blend: float = 0.0,
        own_head: bool = False,
    ) -> None:
        super().__init__()
        if table.channels != hidden_channels:
            raise OptionError(
                f"the structure table has rows of {table.channels} values, but the hidden layers "
                f"are {hidden_channels} wide: both must be the same."
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.input_dropout = input_dropout
        self.adj_norm: AdjNorm = adj_norm
        self.blend = blend
        self.routed = False
        h = hidden_channels
        self.scaling = FeatureScaling("none", in_channels) if scaling is None else scaling
        self.table = table
        self.structure_bias = torch.nn.Parameter(torch.empty(h))
        self.head = Head(
            in_channels, h, out_channels, num_layers, norm, dropout, stream_norm, order
        )
        self.predictor = FeedForward(in_channels, h, h, 2, norm, dropout, order)
        # a copy draws no random numbers, so that the rest is trained as without it
        self.lone_head = copy.deepcopy(self.head) if own_head else None
        self._reset_bias()

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The node inputs that this student reads."""
        neighbors = InputSpec("neighbors", self.table.num_columns, "int64")
        return (InputSpec("x", self.in_channels), neighbors)

    def reset_parameters(self) -> None:
        """Put every part back to a fresh start; feature scaling is kept."""
        self.routed = False
        self.table.reset_parameters()
        self._reset_bias()
        for part in (self.head, self.predictor, self.lone_head):
            for module in [] if part is None else part.modules():
                if isinstance(module, torch.nn.Linear | torch.nn.BatchNorm1d | torch.nn.LayerNorm):
                    module.reset_parameters()

    def _reset_bias(self) -> None:
        # as torch.nn.Linear(N, h) starts its bias, and with the table's own range otherwise
        torch.nn.init.uniform_(self.structure_bias, -self.table.bound, self.table.bound)

    def forward(self, inputs: NodeInputs) -> Tensor:
        """Logits ``[B, C]`` of the nodes.

        Raises:
            OptionError: The inputs have no ``neighbors``.
        """
        return self.streams(inputs).logits

    def streams(self, inputs: NodeInputs) -> Streams:
        """The two streams' answers for the nodes, each node on its own route.

        Raises:
            OptionError: The inputs have no ``neighbors``.
        """
        neighbors = _neighbors_of(inputs)
        z_a, degree = self.structure_part(neighbors), self.table.degree(neighbors)
        return self._streams(self.read(inputs.x), z_a, degree)

    # what a server calls: the structure part of a known node is kept, and follows its edges

    def structure_part(self, neighbors: Tensor) -> Tensor:
        r"""The part :math:`\mathbf{z}_A` ``[B, h]`` that nodes' neighbours contribute.

        Args:
            neighbors: CSR ``[B, N]``.
        """
        total, degree = self.table.bag(neighbors), self.table.degree(neighbors)
        return self._normalised(total, degree) + self.structure_bias

    def with_edges(
        self, z_a: Tensor, degree: Tensor, ids: Tensor, weight: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        r"""Structure parts after one more edge each, in time ``h`` per node whatever their degree.

        .. math:: \mathbf{z}_A \pm \mathbf{W}_A[j]

        and where the sum is divided by the degree, the same of the sum.

        Args:
            z_a: Structure parts ``[B, h]``.
            degree: Their nodes' known degrees ``[B]``; see :meth:`StructureTable.degree`.
            ids: The neighbour of each that comes or goes, int64 ``[B]``.
            weight: 1 where it comes, −1 where it goes.

        Returns:
            The structure parts ``[B, h]`` and the degrees ``[B]`` afterwards.
        """
        power = DEGREE_POWER[self.adj_norm]
        total = (z_a - self.structure_bias) * degree.pow(power).unsqueeze(1)
        total = total + weight * self.table.rows(ids)
        degree = degree + weight * self.table.knows(ids)
        return self._normalised(total, degree) + self.structure_bias, degree

    def from_structure(self, x: Tensor, z_a: Tensor, degree: Tensor) -> Tensor:
        """Logits ``[B, C]`` from features and structure parts.

        Args:
            x: Features ``[B, F]``, dense or CSR.
            z_a: Structure parts ``[B, h]``; not looked at where the degree is 0, once routed.
            degree: Known degrees ``[B]``; 0 for a node without neighbours.
        """
        return self._streams(self.read(x), z_a, degree).logits

    def without_structure(self, x: Tensor) -> Tensor:
        """Logits ``[B, C]`` of nodes without neighbours, from features alone: no table is read.

        Args:
            x: Features ``[B, F]``, dense or CSR.
        """
        x = self.read(x)
        head = self.head if self.lone_head is None else self.lone_head
        return head.decode(self.predictor(x), head.encode(x)).logits

    @torch.no_grad()
    def explain(self, inputs: NodeInputs) -> Explanation:
        """Say how much structure and features count, and which neighbours moved the answer.

        Each neighbour is taken away by itself; the last one of a node leaves it to the predictor.
        The student must be in eval mode.

        Raises:
            OptionError: The inputs have no ``neighbors``.
        """
        neighbors = _neighbors_of(inputs)
        x = self.read(inputs.x)
        z_a, degree = self.structure_part(neighbors), self.table.degree(neighbors)
        streams = self._streams(x, z_a, degree)
        probability, answer = streams.logits.softmax(1).max(1)
        rows, ids, weights = entry_rows(neighbors), neighbors.col_indices(), neighbors.values()
        total = self.table.bag(neighbors)
        change = torch.empty_like(weights)
        for entries in torch.split(torch.arange(len(ids)), EXPLAINED_AT_ONCE):
            row, weight = rows[entries], weights[entries]
            left = total[row] - weight.unsqueeze(1) * self.table.rows(ids[entries])
            left_degree = degree[row] - weight * self.table.knows(ids[entries])
            without = self._streams(
                take_rows(x, row),
                self._normalised(left, left_degree) + self.structure_bias,
                left_degree,
            )
            remaining = without.logits.softmax(1).gather(1, answer[row].unsqueeze(1)).squeeze(1)
            change[entries] = probability[row] - remaining
        return Explanation(
            streams.logits, streams.gate.squeeze(1), streams.share, with_values(neighbors, change)
        )

    # what training calls

    def read(self, x: Tensor) -> Tensor:
        """Features ``[B, F]`` as the encoders read them: scaled, in training with input dropout."""
        return input_dropout(self.scaling(x), self.input_dropout, self.training)

    def get_extra_state(self) -> Tensor:
        """Whether nodes without neighbours go to the predictor, a bool scalar."""
        return torch.tensor(self.routed)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over whether nodes without neighbours go to the predictor."""
        self.routed = bool(state)

    def _streams(self, x: Tensor, z_a: Tensor, degree: Tensor) -> Streams:
        """The streams of scaled features ``x``, each node on its own route."""
        if not self.routed:
            return self.head.decode(z_a, self.head.encode(x))
        z_a = self._blended(x, z_a, degree)
        streams = self.head.decode(z_a, self.head.encode(x))
        if self.lone_head is None:
            return streams
        alone = (degree == 0).nonzero().flatten()
        theirs = self.lone_head.decode(z_a[alone], self.lone_head.encode(take_rows(x, alone)))
        return Streams(
            *(all_.index_copy(0, alone, own) for all_, own in zip(streams, theirs, strict=True))
        )

    def _blended(self, x: Tensor, z_a: Tensor, degree: Tensor) -> Tensor:
        kappa = torch.where(degree > 0, degree / (degree + self.blend), 0.0)
        guessing = (kappa < 1).nonzero().flatten()
        if len(guessing) == 0:
            return z_a
        guess = self.predictor(take_rows(x, guessing))
        kappa = kappa[guessing].unsqueeze(1)
        # chosen, not multiplied with zero: the structure part of a lone node may be anything
        guess = torch.where(kappa > 0, guess.lerp(z_a[guessing], kappa), guess)
        return z_a.index_copy(0, guessing, guess)

    def _normalised(self, total: Tensor, degree: Tensor) -> Tensor:
        """Sums ``[B, h]`` over neighbours as ``adj_norm`` wants them."""
        power = DEGREE_POWER[self.adj_norm]
        if power == 0:
            return total
        return total / degree.clamp_min(1e-12).pow(power).unsqueeze(1)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.in_channels}, {self.out_channels}, "
            f"table={type(self.table).__name__}({self.table.num_columns}), routed={self.routed})"
        )


def _neighbors_of(inputs: NodeInputs) -> Tensor:
    if inputs.neighbors is None:
        raise OptionError(
            "SA-MLP reads the neighbours of a node, and the inputs have none: give a row for each "
            "node, empty where it has no edges."
        )
    return inputs.neighbors


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)
