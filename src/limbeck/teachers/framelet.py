"""Framelet teachers: graph networks that see a signal in several bands."""

from __future__ import annotations

import itertools
import math
import weakref
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from limbeck.errors import GraphError, OptionError
from limbeck.graphs.framelet_banks import Bank, Fidelity, Mode
from limbeck.graphs.framelets import FrameletOptions, Framelets, clean_adjacency
from limbeck.graphs.sparse import linear
from limbeck.graphs.view import View
from limbeck.students.mlp import input_dropout
from limbeck.teachers.base import GNN, PositiveInt, Probability, TeacherOptions
from limbeck.training.options import Options

Theta = Literal["auto", "node", "channel"]
Activation = Literal["relu", "shrinkage"]
Threshold = Literal["soft", "hard"]
T = TypeVar("T")


class FrameletGNN(GNN):
    """What the framelet teachers share: the transform of the graph they are asked on.

    The edges are made undirected, and self-loops dropped, before anything else. The transform of
    a prepared graph is built once and kept while the graph lives.

    Args:
        transform: What makes the transform.
    """

    def __init__(self, transform: FrameletOptions) -> None:
        super().__init__()
        self.transform = transform
        self._kept: _Kept[Framelets] = _Kept()

    @property
    def num_bands(self) -> int:
        """Number of bands ``B``."""
        return len(self.transform.bands)

    def normalize(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """The undirected graph without self-loops; each band normalises it in its own way."""
        return clean_adjacency(edge_index, num_nodes)

    def framelets(self, adj: Tensor) -> Framelets:
        """The transform of a graph that :meth:`normalize` returned."""
        found = self._kept.get(adj)
        if found is None:
            found = self._kept.put(Framelets(adj, int(adj.shape[0]), self.transform), adj)
        return found


class FrameletConv(torch.nn.Module):
    r"""One layer of the original framelet network.

    .. math::
        \mathbf{H}' = \sum_b \mathbf{W}_b^\top \mathrm{ReLU}\left( \hat{\mathbf{A}}_b \mathbf{W}_b
        \mathbf{H} \mathbf{\Theta}_b \right) + \mathbf{1} \boldsymbol{\beta}^\top

    Args:
        in_channels: Width of :math:`\mathbf{H}`.
        out_channels: Width of :math:`\mathbf{H}'`.
        num_bands: Number of bands ``B``.
    """

    def __init__(self, in_channels: int, out_channels: int, num_bands: int) -> None:
        super().__init__()
        self.weights = _weights(in_channels, out_channels, num_bands)
        self.bias = torch.nn.Parameter(torch.zeros(out_channels))
        self.maps_first = num_bands * out_channels < in_channels

    def forward(self, h: Tensor, framelets: Framelets) -> Tensor:
        """Map ``[N, in_channels]``, dense or CSR, to ``[N, out_channels]``."""
        if self.maps_first:  # Θ and W commute, and the narrower products are the cheaper ones
            mapped = linear(h, torch.cat(list(self.weights), dim=1).t())  # h is read once
            width = len(self.bias)
            blocks = torch.split(mapped, width, dim=1)
            parts = [framelets.filter(b, block) for b, block in enumerate(blocks)]
        else:
            coefficients = framelets.decompose(_dense(h))
            parts = [c @ w for c, w in zip(coefficients, self.weights, strict=True)]
        parts = [F.relu(framelets.aggregate(part, b)) for b, part in enumerate(parts)]
        return framelets.reconstruct(parts) + self.bias


class OriginalFramelet(FrameletGNN):
    r"""The spatial framelet network, the "original" teacher: a stack of :class:`FrameletConv`.

    The ReLU inside the bands is the only non-linearity; between layers there is dropout and nothing
    else (`"Frameless Graph Knowledge Distillation" <https://arxiv.org/abs/2307.06631>`_).

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width of the hidden layers.
        out_channels: Number of classes ``C``.
        num_layers: Number of layers.
        transform: What makes the transform.
        dropout: Probability of dropping a hidden unit.
        input_dropout: Probability of dropping a feature.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        transform: FrameletOptions,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__(transform)
        self.dropout = dropout
        self.input_dropout = input_dropout
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.convs = torch.nn.ModuleList(
            FrameletConv(a, b, self.num_bands) for a, b in itertools.pairwise(widths)
        )

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """Outputs of all layers, before dropout."""
        framelets = self.framelets(adj)
        outputs: dict[str, Tensor] = {}
        h = input_dropout(x, self.input_dropout, self.training)
        for i, conv in enumerate(self.convs[:-1]):
            outputs[f"hidden{i + 1}"] = h = conv(h, framelets)
            h = F.dropout(h, self.dropout, self.training)
        outputs["logits"] = self.convs[-1](h, framelets)
        return outputs


class SimplifiedFramelet(FrameletGNN):
    r"""The simplified framelet network: one linear map per band, no non-linearity.

    .. math::
        \mathbf{Y} = \sum_b \mathbf{P}_b^n \mathbf{X} \mathbf{\Theta}_b
        + \mathbf{1} \boldsymbol{\beta}^\top, \quad
        \mathbf{P}_b = \mathbf{W}_b^\top \hat{\mathbf{A}}_b \mathbf{W}_b

    (`"Frameless Graph Knowledge Distillation" <https://arxiv.org/abs/2307.06631>`_). Training
    computes :math:`\mathbf{P}_b^n \mathbf{X}` once and is a logistic regression from then on; where
    it is only asked, the maps come first and the products are ``C`` wide.

    Args:
        in_channels: Number of features ``F``.
        out_channels: Number of classes ``C``.
        power: Power ``n`` of the operators; 0 is a regression on the features alone.
        transform: What makes the transform.
    """

    def __init__(
        self, in_channels: int, out_channels: int, power: int, transform: FrameletOptions
    ) -> None:
        super().__init__(transform)
        self.power = power
        self.weights = _weights(in_channels, out_channels, self.num_bands)
        self.bias = torch.nn.Parameter(torch.zeros(out_channels))
        self._features: _Kept[list[Tensor]] = _Kept()

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """The logits; there is no hidden layer."""
        features = self._features.get(x, adj)
        if features is None and self.training:
            with torch.no_grad():
                propagated = self.framelets(adj).propagate(x, self.power)
            features = self._features.put(propagated, x, adj)
        if features is not None:
            parts = [part @ w for part, w in zip(features, self.weights, strict=True)]
        else:
            framelets = self.framelets(adj)
            parts = [
                framelets.propagate_band(b, linear(x, w.t()), self.power)
                for b, w in enumerate(self.weights)
            ]
        return {"logits": torch.stack(parts).sum(0) + self.bias}


class SpectralFramelet(FrameletGNN):
    r"""UFGConv: filters that are learnt on the coefficients, without aggregation.

    .. math::
        \mathbf{H}' = \sum_b \mathbf{W}_b^\top \rho_b\left( \operatorname{diag}(\boldsymbol\theta_b)
        \mathbf{W}_b \mathbf{H} \mathbf{\Theta} \right) + \mathbf{1} \boldsymbol{\beta}^\top

    (`"How Framelets Enhance Graph Neural Networks" <https://arxiv.org/abs/2102.06986>`_). With the
    activation ``"relu"``, :math:`\rho` is the identity and a ReLU stands between layers; with
    ``"shrinkage"`` there is none, and :math:`\rho` sets coefficients of the high bands to zero that
    are below

    .. math::
        \tau_b = \sigma \sqrt{2 \ln N / N} \,
        \|\mathbf{C}_b\|_F^2 / \|\mathbf{C}_{b^*}\|_F^2

    with the first high band :math:`b^*`, and, if soft, pulls the others towards zero by as much.

    Args:
        in_channels: Number of features ``F``.
        hidden_channels: Width of the hidden layers.
        out_channels: Number of classes ``C``.
        num_layers: Number of layers.
        transform: What makes the transform.
        num_nodes: Number of nodes of the one graph that it is for, with a weight
            :math:`\theta_{b,i}` for each; ``None`` for weights per channel instead, which serve
            any graph.
        dropout: Probability of dropping a hidden unit.
        activation: ``"relu"`` or ``"shrinkage"``.
        threshold: ``"soft"`` or ``"hard"``, of the shrinkage.
        sigma: Noise level :math:`\sigma` of the shrinkage.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        transform: FrameletOptions,
        num_nodes: int | None,
        dropout: float = 0.0,
        activation: Activation = "relu",
        threshold: Threshold = "soft",
        sigma: float = 1.0,
    ) -> None:
        super().__init__(transform)
        self.num_nodes = num_nodes
        self.dropout = dropout
        self.activation = activation
        self.threshold = threshold
        self.sigma = sigma
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.weights = torch.nn.ParameterList(
            torch.nn.init.xavier_uniform_(torch.empty(a, b)) for a, b in itertools.pairwise(widths)
        )
        self.biases = torch.nn.ParameterList(torch.zeros(width) for width in widths[1:])
        self.thetas = torch.nn.ParameterList(
            torch.empty(self.num_bands, *self._theta_shape(width)).uniform_(0.9, 1.1)
            for width in widths[1:]
        )

    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """Outputs of all layers; hidden ones after ReLU if there is one, before dropout.

        Raises:
            GraphError: There is a weight per node, and the graph has another number of nodes.
        """
        if self.num_nodes not in (None, len(adj)):
            raise GraphError(
                f"this teacher has a weight for each of {self.num_nodes} nodes and was asked on a "
                f"graph of {len(adj)}: train it with theta='channel' to ask it on other graphs."
            )
        framelets = self.framelets(adj)
        outputs: dict[str, Tensor] = {}
        h = x
        for i, theta in enumerate(self.thetas):
            coefficients = framelets.decompose(linear(h, self.weights[i].t()))
            parts = [t * c for t, c in zip(theta, coefficients, strict=True)]
            if self.activation == "shrinkage":
                parts = shrink(parts, self.sigma, self.threshold)
            h = framelets.reconstruct(parts) + self.biases[i]
            if i == len(self.thetas) - 1:
                outputs["logits"] = h
            else:
                h = F.relu(h) if self.activation == "relu" else h
                outputs[f"hidden{i + 1}"] = h
                h = F.dropout(h, self.dropout, self.training)
        return outputs

    def _theta_shape(self, width: int) -> tuple[int, int]:
        return (1, width) if self.num_nodes is None else (self.num_nodes, 1)


def shrink(parts: list[Tensor], sigma: float, threshold: Threshold) -> list[Tensor]:
    r"""Threshold the coefficients of all bands but the low one, which is the first.

    Args:
        parts: One ``[N, q]`` per band.
        sigma: Noise level :math:`\sigma`.
        threshold: ``"soft"``: :math:`\mathrm{sign}(c) \max(|c| - \tau_b, 0)`; ``"hard"``:
            :math:`c \, [|c| > \tau_b]`.

    Returns:
        As many, of the same shapes. The thresholds themselves have no gradient.
    """
    low, *high = parts
    num_nodes = max(len(low), 1)
    base = sigma * math.sqrt(2 * math.log(num_nodes) / num_nodes)
    first = high[0].detach().square().sum().clamp(min=torch.finfo(low.dtype).tiny)
    found = [low]
    for part in high:
        tau = base * part.detach().square().sum() / first
        if threshold == "soft":
            found.append(part.sign() * F.relu(part.abs() - tau))
        else:
            found.append(part * (part.abs() > tau))
    return found


class TransformFields(Options):
    """The options of a framelet transform, as fields of what uses one.

    Args:
        bank: Filters: ``"haar"``, ``"linear"``, ``"quadratic"``, ``"sigmoid"`` or ``"entropy"``.
        levels: Number of levels.
        dilation: Factor between the arguments of two levels, above 1; without effect at one level.
        degree: Degree of the polynomials; by default 8 for Haar and 10 for Linear, which are tight
            to rounding.
        mode: ``"matfree"``, ``"sparse"`` or ``"eigh"``, which is exact and for small graphs.
        fused: Build the filters on ``I − Â``, so that all operators commute.
        epsilon: Perturbation of the aggregation, less of the node itself in the low band and more
            in the others.
        fidelity: ``"released"`` takes degree 1, as the released code does.
    """

    bank: Bank = "haar"
    levels: PositiveInt = 1
    dilation: float = Field(default=2.0, gt=1)
    degree: PositiveInt | None = None
    mode: Mode = "matfree"
    fused: bool = False
    epsilon: float = Field(default=0.0, ge=0)
    fidelity: Fidelity = "project"

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        _ = self.transform  # options that exclude each other are refused there

    @property
    def transform(self) -> FrameletOptions:
        """The options as the transform takes them."""
        names = FrameletOptions.__dataclass_fields__
        return FrameletOptions(**{name: getattr(self, name) for name in names})


class FrameletTeacherOptions(TeacherOptions, TransformFields):
    """What the options of all framelet teachers share.

    The teachers read the whole graph, so neighbours are never drawn: ``fan_out`` stays empty.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2307.06631"
    weight_decay: float = Field(default=0.01, ge=0)
    max_epochs: PositiveInt = 500

    @field_validator("fan_out")
    @classmethod
    def _whole_graph(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value:
            raise ValueError("a framelet transform is one of the whole graph, leave it empty")
        return value


class OriginalFrameletOptions(FrameletTeacherOptions):
    """Hyper-parameters of :class:`OriginalFramelet`.

    Args:
        input_dropout: Probability of dropping a feature in training.
    """

    name: ClassVar[str] = "framelet-original"
    title: ClassVar[str] = "framelets, a ReLU inside every band"
    hidden_channels: PositiveInt = 8
    dropout: Probability = 0.0
    input_dropout: Probability = 0.0

    def build(self, view: View) -> OriginalFramelet:
        """A fresh network for the view."""
        return OriginalFramelet(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            self.num_layers,
            self.transform,
            self.dropout,
            self.input_dropout,
        )


class SimplifiedFrameletOptions(FrameletTeacherOptions):
    """Hyper-parameters of :class:`SimplifiedFramelet`; ``num_layers`` is the operators' power.

    ``hidden_channels`` and ``dropout`` have no meaning here and stay at their defaults.
    """

    name: ClassVar[str] = "framelet-simplified"
    title: ClassVar[str] = "framelets, one linear map per band"

    def build(self, view: View) -> SimplifiedFramelet:
        """A fresh network for the view."""
        return SimplifiedFramelet(
            view.num_features, view.num_classes, self.num_layers, self.transform
        )


class SpectralFrameletOptions(FrameletTeacherOptions):
    """Hyper-parameters of :class:`SpectralFramelet`; ``epsilon`` has no meaning here.

    The degree is 1 by default: a tight frame with all weights near 1 is the identity, so that the
    network starts, and stays, as an MLP; polynomials of degree 1 let low frequencies gain.

    Args:
        activation: ``"relu"`` between layers, or ``"shrinkage"`` of the high bands.
        threshold: ``"soft"`` or ``"hard"`` shrinkage.
        sigma: Noise level of the shrinkage.
        theta: Weights per ``"node"``, as in the paper, which cannot answer unseen nodes, or per
            ``"channel"``; ``"auto"``: per node where the view has no unseen nodes, else per
            channel.
    """

    name: ClassVar[str] = "framelet-spectral"
    title: ClassVar[str] = "framelets, learnt weights on the coefficients (UFGConv)"
    paper: ClassVar[str] = "https://arxiv.org/abs/2102.06986"
    hidden_channels: PositiveInt = 16
    dropout: Probability = 0.7
    levels: PositiveInt = 2
    degree: PositiveInt | None = 1
    max_epochs: PositiveInt = 200
    patience: PositiveInt = 200
    activation: Activation = "relu"
    threshold: Threshold = "soft"
    sigma: float = Field(default=1.0, ge=0)
    theta: Theta = "auto"

    def build(self, view: View) -> SpectralFramelet:
        """A fresh network for the view.

        Raises:
            OptionError: A weight per node on a view with unseen nodes.
        """
        if self.theta == "node" and view.has_unseen:
            raise OptionError(
                f"option 'theta' is 'node', but the setting {view.setting!r} has unseen nodes, "
                "which would have no weight: use 'channel' or 'auto'."
            )
        per_channel = self.theta == "channel" or view.has_unseen
        return SpectralFramelet(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            self.num_layers,
            self.transform,
            None if per_channel else view.num_observed,
            self.dropout,
            self.activation,
            self.threshold,
            self.sigma,
        )


class _Kept(Generic[T]):
    """A value for the tensors that it was computed from, by identity, while they live.

    It is no part of a module: a copy of the module, or one read from a file, starts without it.
    """

    def __init__(self) -> None:
        self._sources: tuple[weakref.ref[Tensor], ...] = ()
        self._value: T | None = None

    def get(self, *sources: Tensor) -> T | None:
        """The value, if it is for exactly these tensors."""
        kept = [source() for source in self._sources]
        same = len(kept) == len(sources) and all(a is b for a, b in zip(kept, sources, strict=True))
        return self._value if same else None

    def put(self, value: T, *sources: Tensor) -> T:
        """Keep another value instead; it is let go with the first of its tensors."""
        self._value = value
        self._sources = tuple(weakref.ref(source, self._let_go) for source in sources)
        return value

    def _let_go(self, source: weakref.ref[Tensor]) -> None:
        if source in self._sources:
            self._sources, self._value = (), None

    def __reduce__(self) -> tuple[type[_Kept[T]], tuple[()]]:
        return type(self), ()


def _weights(in_channels: int, out_channels: int, num_bands: int) -> torch.nn.ParameterList:
    """A matrix ``[in_channels, out_channels]`` per band, Xavier-uniform."""
    return torch.nn.ParameterList(
        torch.nn.init.xavier_uniform_(torch.empty(in_channels, out_channels))
        for _ in range(num_bands)
    )


def _dense(x: Tensor) -> Tensor:
    return x if x.layout == torch.strided else x.to_dense()


__all__ = [
    "FrameletConv",
    "FrameletGNN",
    "FrameletTeacherOptions",
    "OriginalFramelet",
    "OriginalFrameletOptions",
    "SimplifiedFramelet",
    "SimplifiedFrameletOptions",
    "SpectralFramelet",
    "SpectralFrameletOptions",
    "TransformFields",
    "shrink",
]
