"""FMLP-O and FMLP-S: MLPs that read a node's features and what each framelet band says of it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.framelets import Framelets
from limbeck.graphs.sparse import linear
from limbeck.students.inputs import InputSpec, NodeInputs
from limbeck.students.mlp import Norm, dropout, input_dropout
from limbeck.students.sa_mlp import FeedForward

GateRule = Literal["split", "released"]
Fallback = Literal["predictor", "features"]


# --- where the bands of a node come from ------------------------------------------------------


class NodeTables(torch.nn.Module):
    r"""The row encoders :math:`E_b` in table form: framelet propagation of a learned node table.

    .. math::
        E_b \, \mathbf{p}_{b,k,i} = (\mathbf{P}_b^k \mathbf{M}_b)_i + \boldsymbol{\beta}_b, \qquad
        \mathbf{P}_b = \mathbf{W}_b^\top \hat{\mathbf{A}} \mathbf{W}_b

    so that no row of :math:`\mathbf{P}_b^k` is ever written down. It exists in training only: what
    it says of the known nodes is kept, and the student reads that.

    Args:
        num_nodes: Number of known nodes ``N``.
        hidden_channels: Width ``h``.
        num_bands: Number of bands.
        powers: The powers ``k`` that the student reads, ascending.
        tied: One table for all bands, as the released FMLP-S has.

    Shapes:
        - **output:** pre-activations ``[N, powers · bands · h]``, powers outermost
    """

    def __init__(
        self,
        num_nodes: int,
        hidden_channels: int,
        num_bands: int,
        powers: Sequence[int],
        *,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.num_bands = num_bands
        self.powers = tuple(powers)
        num_tables = 1 if tied else num_bands
        self.tables = torch.nn.Parameter(torch.empty(num_tables, num_nodes, hidden_channels))
        self.bias = torch.nn.Parameter(torch.empty(num_tables, hidden_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every table as the weight of ``torch.nn.Linear(N, h)``."""
        bound = max(self.tables.shape[1], 1) ** -0.5
        torch.nn.init.uniform_(self.tables, -bound, bound)
        torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, framelets: Framelets) -> Tensor:
        """Pre-activations of all nodes of the observed graph."""
        return self.on(framelets, 0)

    def on(self, framelets: Framelets, first: int) -> Tensor:
        """Pre-activations of the nodes ``first, first + 1, ...`` of a graph of their own.

        A node without a row in the tables contributes nothing to its neighbours, and nothing to
        itself but the bias.

        Args:
            framelets: The transform of the graph, of ``n`` nodes.
            first: Number in the view of its first node.

        Returns:
            ``[n, powers · bands · h]``.
        """
        rows = self.tables[:, first : first + framelets.num_nodes]
        missing = framelets.num_nodes - rows.shape[1]
        rows = F.pad(rows, (0, 0, 0, missing)) if missing > 0 else rows
        blocks: list[list[Tensor]] = [[] for _ in self.powers]
        for band in range(self.num_bands):
            table = band if len(self.tables) > 1 else 0
            z, done = rows[table], 0
            for index, power in enumerate(self.powers):
                z, done = framelets.propagate_band(band, z, power - done), power
                blocks[index].append(z + self.bias[table])
        return torch.cat([z for of_power in blocks for z in of_power], dim=1)

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        num_tables, num_nodes, width = self.tables.shape
        return f"{num_tables} x {num_nodes} x {width}, powers={self.powers}"


class GivenBands(torch.nn.Module):
    """Bands that are pre-activations already: what :class:`NodeTables` kept of known nodes.

    Args:
        num_powers: Number of powers ``P``.
        num_bands: Number of bands.
        hidden_channels: Width ``h``.

    Shapes:
        - **input:** ``[B, P · bands · h]``
        - **output:** ``[B, P, bands, h]``
    """

    def __init__(self, num_powers: int, num_bands: int, hidden_channels: int) -> None:
        super().__init__()
        self.num_powers = num_powers
        self.num_bands = num_bands
        self.hidden_channels = hidden_channels

    @property
    def width(self) -> int:
        """Number of values per node that it reads."""
        return self.num_powers * self.num_bands * self.hidden_channels

    def forward(self, bands: Tensor) -> Tensor:
        """The pre-activations, block by block."""
        return bands.reshape(len(bands), self.num_powers, self.num_bands, self.hidden_channels)

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        return f"{self.num_powers} x {self.num_bands} x {self.hidden_channels}"


class BandEncoders(GivenBands):
    r"""An encoder per band for coefficients :math:`\mathbf{P}_b^k \mathbf{X}`, as FMLP-X has.

    .. math:: \mathbf{z}_{b,k} = \mathbf{E}_b (\mathbf{P}_b^k \mathbf{X})_i / s_{b,k}
        + \boldsymbol{\beta}_b

    Spectra shrink with the power, so that without the scales :math:`s_{b,k}` the encoder that all
    powers of a band share would hear the first of them only.

    Args:
        num_powers: Number of powers ``P``.
        num_bands: Number of bands.
        hidden_channels: Width ``h``.
        in_channels: Values ``q`` per power and band.

    Shapes:
        - **input:** ``[B, P · bands · q]``, as the transform gives them
        - **output:** ``[B, P, bands, h]``
    """

    def __init__(
        self, num_powers: int, num_bands: int, hidden_channels: int, in_channels: int
    ) -> None:
        super().__init__(num_powers, num_bands, hidden_channels)
        self.in_channels = in_channels
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(num_powers, num_bands))
        self.encoders = torch.nn.ModuleList(
            torch.nn.Linear(in_channels, hidden_channels) for _ in range(num_bands)
        )

    @property
    def width(self) -> int:
        """Number of values per node that it reads."""
        return self.num_powers * self.num_bands * self.in_channels

    @torch.no_grad()
    def fit(self, bands: Tensor) -> None:
        """Learn the scales: the root mean square of each block over the known nodes.

        Args:
            bands: ``[N, P · bands · q]`` of the observed nodes. A block of zeros keeps scale 1.
        """
        blocks = bands.reshape(len(bands), self.num_powers, self.num_bands, self.in_channels)
        size = blocks.square().mean(dim=(0, 3)).sqrt()
        # rounding that is left where a block should be zero must not be blown up to size one
        self.scale.copy_(torch.where(size > 1e-6, size, torch.ones_like(size)))

    def forward(self, bands: Tensor) -> Tensor:
        """The pre-activations, block by block."""
        encoded = []
        for number, block in enumerate(torch.split(bands, self.in_channels, dim=1)):
            power, band = divmod(number, self.num_bands)
            encoder = cast(torch.nn.Linear, self.encoders[band])
            # what comes out is scaled, not what goes in: it is far narrower
            scaled = F.linear(block, encoder.weight) / self.scale[power, band]
            encoded.append(scaled + encoder.bias)
        shape = (len(bands), self.num_powers, self.num_bands, self.hidden_channels)
        return torch.stack(encoded, dim=1).reshape(shape)

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        return f"{self.num_powers} x {self.num_bands} x {self.in_channels}"


# --- the students -----------------------------------------------------------------------------


class Trace(NamedTuple):
    """What happens to nodes inside a student.

    Args:
        hidden: The hidden layers ``[B, h]``, first to last.
        gates: In each layer, the output's last, how much the graph counts beside the features in
            each band, ``[B, bands]``; zeros where no band is read.
        bands: Each band's logits ``[B, bands, C]`` before the gate.
        features: The features' logits ``[B, C]`` before the gate.
    """

    hidden: list[Tensor]
    gates: list[Tensor]
    bands: Tensor
    features: Tensor

    @property
    def parts(self) -> Tensor:
        """What each band adds to the logits, and the features behind them, ``[B, bands + 1, C]``.

        Their sum are the logits.
        """
        gate = self.gates[-1].unsqueeze(2)
        of_features = (1 - gate).sum(1) * self.features
        return torch.cat([gate * self.bands, of_features.unsqueeze(1)], dim=1)

    @property
    def logits(self) -> Tensor:
        """The student's logits ``[B, C]``."""
        gate = self.gates[-1].unsqueeze(2)
        return (gate * self.bands + (1 - gate) * self.features.unsqueeze(1)).sum(1)


class BandExplanation(NamedTuple):
    """Why a student answers as it does.

    Args:
        logits: ``[B, C]``.
        gates: Weight of the graph, beside the features, 0 to 1, in each layer and band,
            ``[B, layers, bands]``; the output is the last layer. It weighs the graph under either
            gate rule.
        shares: Share of the answer that each band has, and behind them that of the features, 0 to
            1, ``[B, bands + 1]``: the lengths of what they add to the logits, each without its mean
            over the classes, divided by their sum. The gate alone says little, since a head can
            grow to make up for it.
    """

    logits: Tensor
    gates: Tensor
    shares: Tensor


class FMLP(torch.nn.Module, ABC):
    r"""What FMLP-O and FMLP-S share: encoders, the gate, one head per band, one for features.

    A known node brings its bands. One that brings none (``bands=None``) is answered from its
    features: by what the :attr:`predictor` says that its bands would be, or, where there is no
    predictor or :attr:`fallback` is ``"features"``, with every gate closed to the graph.

    Args:
        in_channels: Number of features ``F``.
        out_channels: Number of classes ``C``.
        reader: What turns bands into pre-activations ``[B, P, bands, h]``.
        head_layers: Linear maps of each head, at least 1.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, in the heads' hidden layers.
        dropout: Probability of dropping a hidden unit.
        input_dropout: Probability of dropping a feature.
        gate: What the gate weighs. ``"split"``: the graph in every layer; the output of FMLP-O has
            a gate of its own. ``"released"``: the features in the output, although it is the
            hidden layers' gate there, too, where it weighs the graph.
        tied: One head for all bands, that of the low band, and in the output of FMLP-O its bands
            for all, as the released code has it.

    Shapes:
        - **inputs:** ``x`` ``[B, F]``, dense or ``torch.sparse_csr``; ``bands`` ``[B, w]``
        - **output:** logits ``[B, C]``
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        reader: GivenBands,
        *,
        head_layers: int = 1,
        norm: Norm = "none",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        gate: GateRule = "split",
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_bands = reader.num_bands
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.gate_rule = gate
        self.tied = tied
        self.fallback: Fallback = "features"
        h = reader.hidden_channels
        self.reader = reader
        self.feature_encoder = torch.nn.Linear(in_channels, h)
        self.gate = torch.nn.Linear(2 * h, 1)
        self.heads = torch.nn.ModuleList(
            FeedForward(h, h, out_channels, head_layers, norm, dropout, "glnn")
            for _ in range(1 if tied else self.num_bands)
        )
        self.feature_head = FeedForward(h, h, out_channels, head_layers, norm, dropout, "glnn")
        self.predictor: FeedForward | None = None
        self._complete()

    @abstractmethod
    def _complete(self) -> None:
        """Check the reader's powers and add the parts that the other student does not have."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The node inputs that this student reads."""
        return (InputSpec("x", self.in_channels), InputSpec("bands", self.reader.width))

    def reset_parameters(self) -> None:
        """Put every part back to a fresh start; the scales of bands are kept."""
        for module in self.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.BatchNorm1d | torch.nn.LayerNorm):
                module.reset_parameters()

    def add_predictor(self, hidden_channels: int) -> FeedForward:
        """Give the student a fresh predictor of bands, an MLP of two layers, and return it.

        Args:
            hidden_channels: Width of its hidden layer.
        """
        r = self.reader
        width = r.num_powers * r.num_bands * r.hidden_channels
        self.predictor = FeedForward(
            self.in_channels, hidden_channels, width, 2, "none", self.dropout, "glnn"
        )
        self.predictor.train(self.training)
        return self.predictor

    def answering_by(self, fallback: Fallback) -> Self:
        """The same student, weights and all, with another answer to nodes without bands.

        Raises:
            OptionError: It has no predictor and shall answer by it.
        """
        if fallback == "predictor" and self.predictor is None:
            raise OptionError("the student has no predictor: train one, or answer by features.")
        other = copy.copy(self)
        other.fallback = fallback
        return other

    def forward(self, inputs: NodeInputs) -> Tensor:
        """Logits ``[B, C]`` of the nodes."""
        return self.trace(inputs).logits

    def layers(self, inputs: NodeInputs) -> dict[str, Tensor]:
        """Each layer's output by name, ``"hidden1"`` first, ``"logits"`` ``[B, C]`` last."""
        trace = self.trace(inputs)
        hidden = {f"hidden{number}": h for number, h in enumerate(trace.hidden, start=1)}
        return {**hidden, "logits": trace.logits}

    @torch.no_grad()
    def explain(self, inputs: NodeInputs) -> BandExplanation:
        """Say how much each band and the features count. The student must be in eval mode."""
        trace = self.trace(inputs)
        parts = trace.parts
        sizes = (parts - parts.mean(2, keepdim=True)).norm(dim=2)
        shares = sizes / sizes.sum(1, keepdim=True).clamp_min(1e-12)
        return BandExplanation(trace.logits, torch.stack(trace.gates, dim=1), shares)

    def trace(self, inputs: NodeInputs) -> Trace:
        """Answer the nodes and keep what was on the way.

        Raises:
            OptionError: The bands are not as wide as those that the student was made for.
        """
        x = input_dropout(inputs.x, self.input_dropout, self.training)
        if inputs.bands is not None:
            if inputs.bands.shape[1] != self.reader.width:
                raise OptionError(
                    f"the bands have {inputs.bands.shape[1]} values per node, but the student "
                    f"reads {self.reader.width}."
                )
            return self.from_bands(x, self.reader(inputs.bands))
        if self.fallback == "predictor":
            return self.from_bands(x, self.predicted_bands(x))
        return self.from_bands(x, None)

    def predicted_bands(self, x: Tensor) -> Tensor:
        """What the predictor takes for the pre-activations of nodes, ``[B, P, bands, h]``.

        Args:
            x: Features ``[B, F]``, dense or CSR.
        """
        assert self.predictor is not None
        first = self.predictor.first_map
        flat = self.predictor.rest(linear(x, first.weight, first.bias))
        r = self.reader
        return flat.reshape(len(flat), r.num_powers, r.num_bands, r.hidden_channels)

    @abstractmethod
    def from_bands(self, x: Tensor, z: Tensor | None) -> Trace:
        """Answer nodes from features ``[B, F]`` and pre-activations ``[B, P, bands, h]``.

        ``None`` closes every gate to the graph.
        """

    def get_extra_state(self) -> Tensor:
        """Whether nodes without bands go to the predictor, a bool scalar."""
        return torch.tensor(self.fallback == "predictor")

    def set_extra_state(self, state: Tensor) -> None:
        """Take over whether nodes without bands go to the predictor."""
        self.fallback = "predictor" if bool(state) else "features"

    def _encode_features(self, x: Tensor) -> Tensor:
        return linear(x, self.feature_encoder.weight, self.feature_encoder.bias)

    def _output(self, z: Tensor | None, u: Tensor, gate: torch.nn.Module) -> tuple[Tensor, ...]:
        r"""Weight of the graph ``[B, bands]``, logits of bands and of features.

        .. math::
            \sum_b \alpha_b F_b(\mathbf{z}_b) + (1 - \alpha_b) F_X(\mathbf{u})

        and with the released rule :math:`1 - \alpha_b` in the place of :math:`\alpha_b`.
        """
        of_features: Tensor = self.feature_head(u)
        if z is None:
            closed = of_features.new_zeros(len(u), self.num_bands)
            return closed, closed.unsqueeze(2) * of_features.unsqueeze(1), of_features
        alpha = _gate(gate, z, u)
        graph_weight = 1 - alpha if self.gate_rule == "released" else alpha
        heads = [self.heads[b if len(self.heads) > 1 else 0] for b in range(self.num_bands)]
        of_bands = torch.stack([head(z[:, b]) for b, head in enumerate(heads)], dim=1)
        return graph_weight, of_bands, of_features

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.in_channels}, {self.out_channels}, "
            f"bands={self.num_bands}, powers={self.reader.num_powers}, fallback={self.fallback!r})"
        )


class FMLPO(FMLP):
    r"""FMLP-O: the student of a framelet network, one power of the operator per layer.

    With :math:`\phi(\cdot) = \mathrm{ReLU}(\mathrm{dropout}(\cdot))`, pre-activations
    :math:`\mathbf{z}_{b,k} = E_b \mathbf{p}_{b,k}`, the gate
    :math:`\gamma(\mathbf{z}, \mathbf{u}) = \sigma(\mathbf{a}^\top [\mathbf{z} ; \mathbf{u}] + a_0)`
    and :math:`\mathbf{u}_1 = \phi(E_X \mathbf{x})`,

    .. math::
        \mathbf{h}_k &= \sum_b \alpha_b \, \phi(\mathbf{z}_{b,k}) + (1 - \alpha_b) \, \mathbf{u}_k,
        \qquad \mathbf{u}_{k+1} = \phi(E_2 \mathbf{h}_k), \qquad k < n \\
        \mathbf{s} &= \sum_b \alpha_b F_b(\phi(\mathbf{z}_{b,n}))
        + (1 - \alpha_b) F_X(\mathbf{u}_n)

    (`"Frameless Graph Knowledge Distillation" <https://arxiv.org/abs/2307.06631>`_, as in its
    released network, but for an encoder and a head of its own per band and, by default, a gate of
    its own in the output). All layers share :math:`E_b`, :math:`E_2` and the hidden gate. FMLP-X is
    the same network over :class:`BandEncoders`.

    Its arguments are those of :class:`FMLP`; ``reader`` must have at least two powers.

    Raises:
        OptionError: There is one power only, so no hidden layer.
    """

    re_encoder: torch.nn.Linear
    output_gate: torch.nn.Linear | None

    def _complete(self) -> None:
        if self.reader.num_powers < 2:
            raise OptionError("FMLP-O has one power per layer and needs two layers or more.")
        h = self.reader.hidden_channels
        self.re_encoder = torch.nn.Linear(h, h)
        self.output_gate = torch.nn.Linear(2 * h, 1) if self.gate_rule == "split" else None

    def from_bands(self, x: Tensor, z: Tensor | None) -> Trace:
        """Answer nodes from features ``[B, F]`` and pre-activations ``[B, P, bands, h]``."""
        u = self._phi(self._encode_features(x))
        hidden, gates = [], []
        for layer in range(self.reader.num_powers - 1):
            if z is None:
                alpha = u.new_zeros(len(u), self.num_bands)
                h = self.num_bands * u
            else:
                z_k = self._phi(z[:, layer])  # [B, bands, h]
                alpha = _gate(self.gate, z_k, u)
                weight = alpha.unsqueeze(2)
                h = (weight * z_k + (1 - weight) * u.unsqueeze(1)).sum(1)
            hidden.append(h)
            gates.append(alpha)
            u = self._phi(self.re_encoder(h))
        last = None
        if z is not None:
            of_output = z[:, -1]
            if self.tied:  # the low band's rows for every band
                of_output = of_output[:, :1].expand(-1, self.num_bands, -1)
            last = self._phi(of_output)
        output_gate = self.gate if self.output_gate is None else self.output_gate
        alpha, of_bands, of_features = self._output(last, u, output_gate)
        return Trace(hidden, [*gates, alpha], of_bands, of_features)

    def _phi(self, z: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            z = dropout(z, self.dropout)
        return F.relu(z)


class FMLPS(FMLP):
    r"""FMLP-S: the student of a simplified framelet model; linear but for its gate.

    .. math::
        \mathbf{u} = E_X \mathbf{x}, \qquad \mathbf{z}_b = E_b \mathbf{p}_{b,n}, \qquad
        \mathbf{s} = \sum_b \alpha_b F_b(\mathbf{z}_b) + (1 - \alpha_b) F_X(\mathbf{u})

    (`"Frameless Graph Knowledge Distillation" <https://arxiv.org/abs/2307.06631>`_). With gates
    open to the graph and :math:`\mathbf{M}_b \mathbf{C}_b = \mathbf{X} \boldsymbol{\Theta}_b` it is
    its teacher. There is no dropout before the gate; what :meth:`layers` calls its hidden layer is
    the mixture :math:`\sum_b \alpha_b \mathbf{z}_b + (1 - \alpha_b) \mathbf{u}`, which it never
    forms.

    Its arguments are those of :class:`FMLP`; ``reader`` must have one power.

    Raises:
        OptionError: There are several powers.
    """

    def _complete(self) -> None:
        if self.reader.num_powers != 1:
            raise OptionError(f"FMLP-S reads one power, but {self.reader.num_powers} were given.")

    def from_bands(self, x: Tensor, z: Tensor | None) -> Trace:
        """Answer nodes from features ``[B, F]`` and pre-activations ``[B, 1, bands, h]``."""
        u = self._encode_features(x)
        z_b = None if z is None else z[:, 0]
        weight, of_bands, of_features = self._output(z_b, u, self.gate)
        opened = weight.unsqueeze(2)
        of_graph = 0.0 if z_b is None else opened * z_b
        hidden = (of_graph + (1 - opened) * u.unsqueeze(1)).sum(1)
        return Trace([hidden], [weight], of_bands, of_features)


def _gate(gate: torch.nn.Module, z: Tensor, u: Tensor) -> Tensor:
    r"""The gate :math:`\sigma(\mathbf{a}^\top [\mathbf{z}_b ; \mathbf{u}] + a_0)` of each band.

    Args:
        gate: A linear map from ``2h`` values to one.
        z: ``[B, bands, h]``.
        u: ``[B, h]``.

    Returns:
        ``[B, bands]``.
    """
    both = torch.cat([z, u.unsqueeze(1).expand_as(z)], dim=2)
    return torch.sigmoid(cast(Tensor, gate(both))).squeeze(2)
