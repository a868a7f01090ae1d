"""SA-MLP: an MLP that reads a node's features and, beside them, the ids of its neighbours."""

from __future__ import annotations

import copy
import itertools
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.sparse import is_csr, take_rows, with_values
from limbeck.graphs.view import Scaling
from limbeck.students.inputs import InputSpec, NodeInputs
from limbeck.students.mlp import Norm, input_dropout, make_norm
from limbeck.students.structure_tables import (
    StructureTable,
    divided_by_degree,
    effects_of_neighbors,
    entry_rows,
    neighbors_of,
)

AdjNorm = Literal["none", "row", "sqrt-degree"]
Order = Literal["sa-mlp", "glnn"]
FeatureScale = Literal["none", "row", "standard"]

DEGREE_POWER: dict[AdjNorm, float] = {"none": 0.0, "sqrt-degree": 0.5, "row": 1.0}
"""Power of the degree that the sum over a node's neighbours is divided by."""


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

    @property
    def first_map(self) -> torch.nn.Linear:
        """The first linear map."""
        return cast(torch.nn.Linear, self.lins[0])

    @property
    def hidden(self) -> list[tuple[torch.nn.Module, torch.nn.Linear]]:
        """Norm of each hidden layer, and the linear map that follows it."""
        lins = cast(list[torch.nn.Linear], list(self.lins[1:]))
        return list(zip(self.norms, lins, strict=True))

    def first(self, h: Tensor) -> Tensor:
        """Output of the first linear map."""
        mapped: Tensor = self.first_map(h)
        return mapped

    def rest(self, h: Tensor) -> Tensor:
        """All that follows the first linear map."""
        for norm, lin in self.hidden:
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
        return self._answer(self.structure_norm(z_a), self.feature_norm(z_x))

    def layers(self, z_a: Tensor, x: Tensor) -> dict[str, Tensor]:
        """``"hidden1"``, both parts as the gate reads them ``[B, 2h]``, and ``"logits"``.

        Args:
            z_a: Structure parts ``[B, h]``.
            x: Scaled features ``[B, F]``.
        """
        z_a, z_x = self.structure_norm(z_a), self.feature_norm(self.encode(x))
        hidden = F.relu(torch.cat([z_a, z_x], dim=1))
        return {"hidden1": hidden, "logits": self._answer(z_a, z_x).logits}

    def _answer(self, z_a: Tensor, z_x: Tensor) -> Streams:
        h_a = F.relu(F.dropout(z_a, self.dropout, self.training))
        h_x = F.relu(F.dropout(z_x, self.dropout, self.training))
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
        neighbors = neighbors_of(inputs, "SA-MLP")
        z_a, degree = self.structure_part(neighbors), self.table.degree(neighbors)
        return self._streams(self.read(inputs.x), z_a, degree)

    def layers(self, inputs: NodeInputs) -> dict[str, Tensor]:
        """The hidden layer that both streams share and the logits, from one pass.

        ``"hidden1"`` ``[B, 2h]``: the structure's part and the features' part side by side, behind
        norm and ReLU and before dropout, as the gate reads them; ``"logits"`` ``[B, C]``.

        Raises:
            OptionError: The inputs have no ``neighbors``.
        """
        neighbors = neighbors_of(inputs, "SA-MLP")
        z_a, degree = self.structure_part(neighbors), self.table.degree(neighbors)
        x = self.read(inputs.x)
        if not self.routed:
            return self.head.layers(z_a, x)
        z_a = self._blended(x, z_a, degree)
        outputs = self.head.layers(z_a, x)
        if self.lone_head is None:
            return outputs
        alone = (degree == 0).nonzero().flatten()
        theirs = self.lone_head.layers(z_a[alone], take_rows(x, alone))
        return {name: all_.index_copy(0, alone, theirs[name]) for name, all_ in outputs.items()}

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
        neighbors = neighbors_of(inputs, "SA-MLP")
        x = self.read(inputs.x)
        z_a, degree = self.structure_part(neighbors), self.table.degree(neighbors)
        streams = self._streams(x, z_a, degree)

        def without(row: Tensor, total: Tensor, degree: Tensor) -> Tensor:
            z_a = self._normalised(total, degree) + self.structure_bias
            return self._streams(take_rows(x, row), z_a, degree).logits

        effects = effects_of_neighbors(self.table, neighbors, streams.logits, without)
        return Explanation(streams.logits, streams.gate.squeeze(1), streams.share, effects)

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
        return divided_by_degree(total, degree, DEGREE_POWER[self.adj_norm])

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.in_channels}, {self.out_channels}, "
            f"table={type(self.table).__name__}({self.table.num_columns}), routed={self.routed})"
        )


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)
