"""The table of SA-MLP: what each known node tells its neighbours, stored in one of four ways."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.sparse import csr_tensor, is_csr, take_rows, with_values
from limbeck.students.inputs import NodeInputs

HASH_PRIME = 2**31 - 1
"""Columns are hashed modulo this prime, so there can be as many."""

ADAGRAD_EPSILON = 1e-10
"""As in :class:`torch.optim.Adagrad`."""

EXPLAINED_AT_ONCE = 4096
"""Neighbours whose removal is tried in one pass."""


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
    r"""A row of its own for every known node, ``N`` times ``h`` in one contiguous block.

    With ``row_lr`` the table takes its own steps, which cost what the rows that a batch names cost
    and not what the table does: each backward pass gives a sparse gradient, and row-wise Adagrad
    moves those rows at once,

    .. math::
        \mathbf{g}_j \leftarrow \mathbf{g}_j + \gamma \mathbf{W}_A[j], \qquad
        s_j \leftarrow s_j + \tfrac{1}{h} \lVert \mathbf{g}_j \rVert^2, \qquad
        \mathbf{W}_A[j] \leftarrow \mathbf{W}_A[j]
        - \frac{\eta}{\sqrt{s_j} + \epsilon} \, \mathbf{g}_j

    (`"Adaptive Subgradient Methods" <https://jmlr.org/papers/v12/duchi11a.html>`_ with one
    accumulator per row instead of ``h``). Its state is a number per row, where dense Adam keeps a
    gradient and two moments of the table's own size; the optimiser of the rest finds no gradient
    here and leaves the table alone.

    Args:
        num_columns: Number of known nodes ``N``.
        channels: Width ``h`` of a row.
        init_std: As for :class:`StructureTable`.
        row_lr: Learning rate :math:`\eta` of row-wise Adagrad; ``None`` for a dense gradient that
            some optimiser reads.
        row_decay: Weight decay :math:`\gamma`, of the rows that a batch names only.
    """

    def __init__(
        self,
        num_columns: int,
        channels: int,
        init_std: float | None = None,
        *,
        row_lr: float | None = None,
        row_decay: float = 0.0,
    ) -> None:
        super().__init__(num_columns, channels, init_std)
        self.row_lr = row_lr
        self.row_decay = row_decay
        self.weight = torch.nn.Parameter(torch.empty(num_columns, channels))
        self.row_state: Tensor | None
        # a buffer, so that a checkpoint holds it
        self.register_buffer("row_state", None if row_lr is None else torch.zeros(num_columns))
        if row_lr is not None:
            self.weight.register_post_accumulate_grad_hook(self._step)  # type: ignore[no-untyped-call]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Put the rows back to a fresh start."""
        torch.nn.init.uniform_(self.weight, -self.bound, self.bound)
        if self.row_state is not None:
            self.row_state.zero_()

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``[n, h]`` of the columns ``ids`` (int64 ``[n]``)."""
        return F.embedding(ids, self.weight, sparse=self.row_lr is not None)

    def bag(self, neighbors: Tensor) -> Tensor:
        """Sum of the neighbours' rows, ``[B, h]``, read from the table in place."""
        sparse = self.row_lr is not None
        return _bag(self.weight, neighbors.col_indices(), neighbors, sparse=sparse)

    @torch.no_grad()
    def _step(self, weight: Tensor) -> None:
        """Move the rows that have a gradient, and forget it."""
        assert weight.grad is not None
        assert self.row_state is not None
        assert self.row_lr is not None
        gradient = weight.grad.coalesce()
        weight.grad = None
        ids, rows = gradient.indices()[0], gradient.values()
        if self.row_decay > 0:
            rows.add_(weight[ids], alpha=self.row_decay)
        state = self.row_state[ids] + rows.square().mean(1)
        self.row_state[ids] = state
        rows.mul_((-self.row_lr / (state.sqrt() + ADAGRAD_EPSILON)).unsqueeze(1))
        weight.index_add_(0, ids, rows)


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
        corrected: Whether rows have corrections.
    """

    def __init__(
        self,
        features: Tensor,
        channels: int,
        init_std: float | None = None,
        *,
        corrected: bool = True,
    ) -> None:
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
        self.correction = (
            torch.nn.Parameter(torch.empty(self.num_columns, channels)) if corrected else None
        )
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
        if self.correction is not None:
            torch.nn.init.zeros_(self.correction)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``[n, h]`` of the columns ``ids`` (int64 ``[n]``)."""
        rows = self.new_rows(take_rows(self.features, ids))
        return rows if self.correction is None else rows + self.correction[ids]

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


def neighbors_of(inputs: NodeInputs, reader: str) -> Tensor:
    """The neighbours of some nodes, CSR ``[B, N]``.

    Args:
        inputs: What a student is given of the nodes.
        reader: What to call that student in messages.

    Raises:
        OptionError: The inputs have no ``neighbors``.
    """
    if inputs.neighbors is None:
        raise OptionError(
            f"{reader} reads the neighbours of a node, and the inputs have none: give a row for "
            "each node, empty where it has no edges."
        )
    return inputs.neighbors


def divided_by_degree(total: Tensor, degree: Tensor, power: float) -> Tensor:
    """Sums over neighbours ``[B, h]`` divided by a power of the degree; zeros where that is 0.

    Args:
        total: The sums ``[B, h]``.
        degree: Known degrees ``[B]``.
        power: 0 leaves the sums as they are, also where the degree is 0.
    """
    if power == 0:
        return total
    divided = total / degree.clamp_min(1e-12).pow(power).unsqueeze(1)
    # rounding that is left over where the last edge went would be divided by next to nothing
    return torch.where((degree > 0).unsqueeze(1), divided, 0.0)


def effects_of_neighbors(
    table: StructureTable,
    neighbors: Tensor,
    logits: Tensor,
    answer: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """How much each neighbour moved the answer, by taking it away by itself.

    Args:
        table: What neighbours tell.
        neighbors: CSR ``[B, N]``.
        logits: The answers with all neighbours, ``[B, C]``.
        answer: Gives the logits ``[n, C]`` of some nodes from their places among the ``B`` (int64
            ``[n]``), the sums over their neighbours ``[n, h]`` and their known degrees ``[n]``.

    Returns:
        CSR ``[B, N]`` with the entries of ``neighbors``. A value is how much more probable the
        class answered is than it would be without that neighbour, −1 to 1.
    """
    probability, answered = logits.softmax(1).max(1)
    rows, ids, weights = entry_rows(neighbors), neighbors.col_indices(), neighbors.values()
    total, degree = table.bag(neighbors), table.degree(neighbors)
    change = torch.empty_like(weights)
    for entries in torch.split(torch.arange(len(ids)), EXPLAINED_AT_ONCE):
        row, weight = rows[entries], weights[entries]
        left = total[row] - weight.unsqueeze(1) * table.rows(ids[entries])
        left_degree = degree[row] - weight * table.knows(ids[entries])
        without = answer(row, left, left_degree).softmax(1)
        change[entries] = probability[row] - without.gather(1, answered[row, None]).squeeze(1)
    return with_values(neighbors, change)


def entry_rows(neighbors: Tensor) -> Tensor:
    """The row of each entry of a CSR matrix, int64 ``[entries]``."""
    return torch.repeat_interleave(torch.arange(len(neighbors)), neighbors.crow_indices().diff())


def _bag(table: Tensor, ids: Tensor, neighbors: Tensor, *, sparse: bool = False) -> Tensor:
    """Weighted sums ``[B, h]`` of a table's rows ``ids``, one for each entry of ``neighbors``."""
    return F.embedding_bag(
        ids,
        table,
        neighbors.crow_indices(),
        mode="sum",
        sparse=sparse,
        per_sample_weights=neighbors.values(),
        include_last_offset=True,
    )
