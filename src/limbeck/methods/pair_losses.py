r"""Every layer of a teacher against every layer of a student, weighted by attention.

Row ``i`` of a map belongs to layer ``i`` of the teacher, column ``j`` to layer ``j`` of the
student: an attention map ``A`` and dissimilarity maps ``D``, all ``[T, S]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from limbeck.methods.base import PositiveInt
from limbeck.methods.g_crd import contrasts
from limbeck.methods.layers import Auxiliary, Head, Layers, draw_nodes
from limbeck.training.options import Options

Pairs = Literal["attention", "uniform", "diagonal", "last-layer"]
Granularity = Literal["pooled", "node"]
FeatureNorm = Literal["none", "l2", "std"]
MapNorm = Literal["none", "fro", "row"]
Axis = Literal["student", "teacher", "both"]
MapReduction = Literal["row-sum-mean", "mean-all", "sum"]
Preset = Literal[
    "abkd-v1",
    "abkd-v1-raw",
    "e-stride",
    "stride",
    "s-stride",
    "abkd-robust",
    "abkd-frozen-t",
    "last-layer",
    "uniform",
    "diagonal",
]

_V1 = {
    "pairs": "attention",
    "granularity": "pooled",
    "feat_norm": "l2",
    "map_norm": "fro",
    "map_bias": True,
    "teacher_maps": "trained",
    "embedding_weight": 1.0,
    "structure_weight": 0.0,
}
_STRIDE = {**_V1, "granularity": "node", "map_norm": "none", "structure_weight": 0.1}
_ROBUST = {**_STRIDE, "feat_norm": "std", "map_bias": False, "structure_weight": 0.0}
PAIR_PRESETS: dict[str, dict[str, Any]] = {
    "abkd-v1": _V1,
    "abkd-v1-raw": {**_V1, "feat_norm": "none", "map_norm": "none"},
    "e-stride": {**_STRIDE, "structure_weight": 0.0},
    "stride": _STRIDE,
    "s-stride": {**_STRIDE, "embedding_weight": 0.0},
    "abkd-robust": _ROBUST,
    "abkd-frozen-t": {**_ROBUST, "teacher_maps": "orthogonal"},
    "last-layer": {**_STRIDE, "pairs": "last-layer"},
    "uniform": {**_STRIDE, "pairs": "uniform"},
    "diagonal": {**_STRIDE, "pairs": "diagonal"},
}
"""What each preset sets; every one sets the same options."""

NORM_EPS = 1e-12
DEVIATION_EPS = 1e-5
MAP_EPS = 1e-8
FEW_NODES = 256
"""Batches of fewer nodes have means too noisy for attention; running means stand in for them."""

TYPES_KEPT = 4
"""Teacher's layers whose means and covariances are kept: those of a few types of nodes."""

MOMENTUM = 0.9
"""Share of the old running mean that a batch leaves."""


class PairOptions(Options):
    r"""How layers are paired and compared.

    Args:
        preset: Sets all options from ``pairs`` to ``structure_weight`` that are not given.
        pairs: Weights of the pairs: trained ``"attention"``; ``"uniform"``, 1 over the number of
            student layers; ``"diagonal"``, teacher layer ``i`` with student layer
            :math:`\lceil i S / T \rceil`; ``"last-layer"``, the last two and nothing else.
        granularity: Distances of ``"pooled"`` vectors, the means over nodes, or per ``"node"``.
        feat_norm: Of projected rows: ``"none"``; ``"l2"``, length one; ``"std"``, columns
            standardised over the nodes and divided by the root of their number (per node only).
        map_norm: Of the map of distances: ``"none"``; ``"fro"``, by its Frobenius norm; ``"row"``,
            each row by its 2-norm.
        map_bias: Whether the linear maps into the common space have a bias.
        teacher_maps: The teacher's maps are ``"trained"``, or ``"orthogonal"`` ones that stay,
            and with them the subspace projection.
        embedding_weight: Weight of the distances.
        structure_weight: Weight of the contrast (G-CRD) between nodes, pair by pair.
        layers: ``"all"`` layers, or ``"hidden"`` ones only.
        axis: What attention sums to one over: the ``"student"`` layers, the ``"teacher"`` layers,
            or ``"both"`` at once.
        map_reduction: ``"row-sum-mean"``: row sums, their mean; ``"mean-all"``: the mean of all
            entries; ``"sum"``.
        common_channels: Width of the common space.
        subspace: Whether distances are taken behind a further trained map, shared by all layers.
        share_maps: Whether attention and distances share their maps.
        tied_maps: One map per width instead of one per layer.
        contrast_temperature: What cosines are divided by in the contrast.
        max_samples: Most nodes that are contrasted in a step, the same for all pairs.
        max_nodes: Most nodes that are compared in a step at all, drawn anew each time; ``None`` for
            all. A step's cost grows with them times the number of the teacher's layers.
    """

    preset: Preset = "stride"
    pairs: Pairs = "attention"
    granularity: Granularity = "node"
    feat_norm: FeatureNorm = "l2"
    map_norm: MapNorm = "none"
    map_bias: bool = True
    teacher_maps: Literal["trained", "orthogonal"] = "trained"
    embedding_weight: float = Field(default=1.0, ge=0)
    structure_weight: float = Field(default=0.1, ge=0)
    layers: Literal["all", "hidden"] = "all"
    axis: Axis = "student"
    map_reduction: MapReduction = "row-sum-mean"
    common_channels: PositiveInt = 64
    subspace: bool = True
    share_maps: bool = False
    tied_maps: bool = False
    contrast_temperature: float = Field(default=0.075, gt=0)
    max_samples: PositiveInt = 512
    max_nodes: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**PAIR_PRESETS.get(values.get("preset", "stride"), {}), **values}

    @field_validator("feat_norm")
    @classmethod
    def _nodes_to_standardise(cls, norm: FeatureNorm, info: ValidationInfo) -> FeatureNorm:
        if norm == "std" and info.data.get("granularity") == "pooled":
            raise PydanticCustomError(
                "one_row", "'std' standardises over nodes, so granularity must be 'node'"
            )
        return norm

    @field_validator("structure_weight")
    @classmethod
    def _something_to_compare(cls, weight: float, info: ValidationInfo) -> float:
        if weight == 0 and info.data.get("embedding_weight") == 0:
            raise PydanticCustomError(
                "nothing_to_compare", "it or embedding_weight must be positive"
            )
        return weight


# --- attention --------------------------------------------------------------------------------


def pool(layers: Layers) -> list[Tensor]:
    """Mean over the nodes of each layer, ``[width]``."""
    return [layer.mean(0) for layer in layers]


def attention_map(queries: Tensor, keys: Tensor, axis: Axis = "student") -> Tensor:
    r"""Scaled dot-product attention of teacher layers to student layers.

    .. math::
        A_{ij} = \frac{\exp(\mathbf{q}_i \cdot \mathbf{k}_j / \sqrt{d})}{
        \sum_{j'} \exp(\mathbf{q}_i \cdot \mathbf{k}_{j'} / \sqrt{d})}

    Args:
        queries: ``[T, d]``, one per teacher layer.
        keys: ``[S, d]``, one per student layer.
        axis: See :class:`PairOptions`.

    Returns:
        ``[T, S]``.
    """
    logits = queries @ keys.t() / queries.shape[1] ** 0.5
    if axis == "both":
        return torch.softmax(logits.flatten(), 0).view_as(logits)
    return torch.softmax(logits, 1 if axis == "student" else 0)


def fixed_map(pairs: Pairs, num_teacher: int, num_student: int) -> Tensor:
    """The weights ``[T, S]`` of pairs that are not attended to but given."""
    if pairs == "diagonal":
        column = [-(-(i + 1) * num_student // num_teacher) - 1 for i in range(num_teacher)]
        return F.one_hot(torch.tensor(column), num_student).float()
    return torch.full((num_teacher, num_student), 1 / num_student)


def row_entropy(weights: Tensor) -> Tensor:
    """Entropy of each row of a map ``[T, S]``, 1 for a uniform one, ``[T]``; 0 if ``S`` is 1."""
    entropy: Tensor = torch.special.entr(weights).sum(1)
    columns = weights.shape[1]
    return torch.div(entropy, math.log(columns)) if columns > 1 else torch.zeros_like(entropy)


# --- distances --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FrozenLayers:
    """A teacher's layers for some nodes, with what of them is the same in every step.

    Args:
        layers: Each ``[n, width]``, without gradient.
    """

    layers: Layers

    @cached_property
    def means(self) -> list[Tensor]:
        """Mean over the nodes of each layer, ``[width]``."""
        return pool(self.layers)

    @cached_property
    def columns(self) -> list[Tensor]:
        """The layers of each width (:func:`by_width`), node by node along the last axis.

        Each ``[L, width, n]``.
        """
        places = by_width([h.shape[1] for h in self.layers])
        return [torch.stack([self.layers[i].t() for i in few]) for few in places]

    @cached_property
    def covariances(self) -> list[Tensor]:
        """Covariances of their columns over the nodes, each ``[L, width, width]``."""
        return [_covariance(h - h.mean(2, keepdim=True)) for h in self.columns]

    def are(self, layers: Layers) -> bool:
        """Whether these are the very same tensors."""
        return len(layers) == len(self.layers) and all(
            ours is theirs for ours, theirs in zip(self.layers, layers, strict=True)
        )


def by_width(widths: Sequence[int]) -> list[list[int]]:
    """Which layers have the same width, for each width in the order of its first layer.

    They are computed with together: a step over the 64 layers of a deep teacher would otherwise
    spend its time on calls.
    """
    return [[i for i, w in enumerate(widths) if w == width] for width in dict.fromkeys(widths)]


def squared_distances(teacher: Tensor, student: Tensor) -> Tensor:
    r"""Mean over nodes of :math:`\lVert \mathbf{U}_i[v] - \mathbf{Z}_j[v] \rVert^2`, pair by pair.

    Taken as :math:`(\lVert \mathbf{U}_i \rVert^2 + \lVert \mathbf{Z}_j \rVert^2 -
    2 \langle \mathbf{U}_i, \mathbf{Z}_j \rangle) / n`, which builds nothing of the size
    ``T × S × n × d``; it cancels for near rows, so it is clamped at 0.

    Args:
        teacher: :math:`\mathbf{U}`, ``[T, n, d]``.
        student: :math:`\mathbf{Z}`, ``[S, n, d]``.

    Returns:
        ``[T, S]``, not negative.
    """
    u, z = teacher.flatten(1), student.flatten(1)
    squares: Tensor = u.square().sum(1)[:, None] + z.square().sum(1)
    return ((squares - 2 * u @ z.t()) / teacher.shape[1]).clamp_min(0)


def correlation_distances(
    teacher: FrozenLayers,
    student: Layers,
    teacher_maps: LayerMaps,
    student_maps: LayerMaps,
    behind: Tensor | None = None,
) -> Tensor:
    r"""The same of rows whose columns are standardised over the nodes, over :math:`\sqrt d`.

    That is 2 less twice the mean correlation of the columns: from 0 to 4, and 2 for layers that
    have nothing to do with each other. Correlations of projected columns follow from those of the
    layers, :math:`\mathbf{W}^T_i \, \mathrm{cov}(\mathbf{H}^T_i, \mathbf{H}^S_j) \,
    \mathbf{W}^{S\top}_j`, so that no layer is projected node by node. A bias changes nothing.

    Args:
        teacher: The teacher's layers.
        student: Each ``[n, width]``.
        teacher_maps: The teacher's maps into the common space.
        student_maps: The student's.
        behind: Matrix ``[d, d]`` of a linear map behind all of them.

    Returns:
        ``[T, S]``, not negative.
    """
    ours = [layer - layer.mean(0) for layer in student]
    mine = student_maps.matrices(ours, behind)
    spread = [_deviations(w, _covariance(h.t())) for w, h in zip(mine, ours, strict=True)]
    our_deviations = torch.stack([deviation for deviation, _ in spread], dim=1)  # [d, S]
    our_lengths = torch.stack([length for _, length in spread])  # [S]
    # all student layers side by side, and which columns are whose
    beside, maps = torch.cat(ours, dim=1), torch.cat(mine, dim=1)  # [n, W], [d, W]
    widths = torch.tensor([h.shape[1] for h in ours], device=beside.device)
    owners = torch.repeat_interleave(torch.arange(len(ours), device=beside.device), widths)
    owner = F.one_hot(owners, len(ours)).to(beside)  # [W, S]
    rows = []
    parts = teacher_maps.parts(teacher.layers, behind)
    for part, columns, covariance in zip(parts, teacher.columns, teacher.covariances, strict=True):
        deviation, length = _deviations(part.weight, covariance)  # [L, d], [L]
        # the student's columns are centred, so the teacher's need not be
        across = (columns.flatten(0, 1) @ beside).view(*columns.shape[:2], -1) / len(beside)
        shared = (part.weight @ across) * maps  # [L, d, W]
        correlation = (shared @ owner) / (deviation[:, :, None] * our_deviations)
        rows.append(length[:, None] + our_lengths - 2 * correlation.mean(1))
    return in_order(rows, [part.layers for part in parts]).clamp_min(0)


def _covariance(centred: Tensor) -> Tensor:
    """Covariance ``[.., width, width]`` of variables of mean 0 whose values are rows."""
    return centred @ centred.mT / centred.shape[-1]


def _deviations(weight: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations ``[.., d]`` of projected columns, and the mean square once divided.

    The second, ``[..]``, is 1 unless a column hardly varies.
    """
    variance = ((weight @ covariance) * weight).sum(-1)
    # a root of the clamped variance: a column that does not vary has no gradient, not NaN
    smallest = variance.clamp_min(DEVIATION_EPS**2)
    return smallest.sqrt(), (variance / smallest).mean(-1)


def in_order(parts: Sequence[Tensor], layers: Sequence[Sequence[int]]) -> Tensor:
    """What was computed for the layers of each width, by layer: ``[all layers, ..]``.

    Args:
        parts: Each ``[L, ..]``.
        layers: Which layers each is about.
    """
    if len(parts) == 1:
        return parts[0]
    places = torch.tensor([i for few in layers for i in few], device=parts[0].device)
    return torch.cat(list(parts))[places.argsort()]


def normalise_map(distances: Tensor, norm: MapNorm) -> Tensor:
    """A map ``[T, S]``, normalised as ``map_norm`` says."""
    if norm == "fro":
        return torch.div(distances, torch.linalg.matrix_norm(distances) + MAP_EPS)
    if norm == "row":
        lengths = torch.linalg.vector_norm(distances, dim=1, keepdim=True)
        return torch.div(distances, lengths + MAP_EPS)
    return distances


def reduce_map(weights: Tensor, distances: Tensor, reduction: MapReduction) -> Tensor:
    """The weighted distances of all pairs as one number."""
    weighted = weights * distances
    if reduction == "sum":
        return weighted.sum()
    return weighted.mean() if reduction == "mean-all" else weighted.sum(1).mean()


# --- the module -------------------------------------------------------------------------------


class MapsOfWidth(NamedTuple):
    """The maps of the layers of one width."""

    layers: list[int]
    """Which layers these are."""
    weight: Tensor
    """``[L, d, width]``; ``[1, d, width]`` if they share one."""
    bias: Tensor | None
    """``[L, 1, d]`` or ``[1, 1, d]``."""


class LayerMaps(torch.nn.Module):
    """A linear map into the common space for each of several layers.

    The maps of layers of one width are one tensor. A comparison may be of the first layers alone.

    Args:
        widths: Widths of the layers.
        out_channels: Width of the common space.
        bias: Whether the maps have one.
        tied: Share a map among layers of one width.
        orthogonal: Draw (semi-)orthogonal maps that are not trained.
    """

    def __init__(
        self,
        widths: Sequence[int],
        out_channels: int,
        bias: bool = True,
        tied: bool = False,
        orthogonal: bool = False,
    ) -> None:
        super().__init__()
        self.layers = by_width(widths)
        self.tied = tied
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        for few in self.layers:
            maps = [
                torch.nn.Linear(widths[i], out_channels, bias=bias)
                for i in (few[:1] if tied else few)
            ]
            if orthogonal:
                for each in maps:
                    torch.nn.init.orthogonal_(each.weight)
            weight = torch.stack([each.weight.detach() for each in maps])
            self.weights.append(torch.nn.Parameter(weight, not orthogonal))
            if bias:
                moved = torch.stack([each.bias.detach() for each in maps])[:, None]
                self.biases.append(torch.nn.Parameter(moved, not orthogonal))

    def parts(self, layers: Layers, behind: Tensor | None = None) -> list[MapsOfWidth]:
        """The maps of the first layers, width by width.

        Args:
            layers: These layers.
            behind: Matrix ``[d, d]`` of a linear map behind all of them. It is multiplied with
                the maps, not with the rows.
        """
        parts = []
        for k, every in enumerate(self.layers):
            few = [i for i in every if i < len(layers)]
            if not few:
                continue
            weight, bias = self.weights[k], self.biases[k] if len(self.biases) else None
            if len(few) < len(weight):
                weight = weight[: len(few)]
                bias = None if bias is None else bias[: len(few)]
            if behind is not None:
                weight = behind @ weight
                bias = None if bias is None else bias @ behind.t()
            parts.append(MapsOfWidth(few, weight, bias))
        return parts

    def matrices(self, layers: Layers, behind: Tensor | None = None) -> list[Tensor]:
        """Matrix ``[d, width]`` of each layer's map and of what is behind it; see :meth:`parts`."""
        found: dict[int, Tensor] = {}
        for few, weight, _ in self.parts(layers, behind):
            found.update(zip(few, weight.expand(len(few), -1, -1), strict=True))
        return [found[i] for i in range(len(layers))]

    def forward(self, layers: Layers, behind: Tensor | None = None) -> Tensor:
        """All layers in the common space, ``[L, n, d]``.

        Args:
            layers: Each ``[n, width]``.
            behind: See :meth:`parts`.
        """
        parts = self.parts(layers, behind)
        projected = []
        for few, weight, bias in parts:
            rows = torch.stack([layers[i] for i in few]) @ weight.mT
            projected.append(rows if bias is None else rows + bias)
        return in_order(projected, [part.layers for part in parts])


class PairLoss(Auxiliary):
    r"""Attention over all pairs of layers, and the distances that it weights.

    .. math::
        \mathcal{L} = \frac{1}{T} \sum_{ij} A_{ij} (\lambda_e D^{emb}_{ij} + \lambda_s D^{str}_{ij})

    For ``pairs="last-layer"`` only the last two layers are compared, and their distance is the
    loss, not normalised as a map.

    Args:
        teacher: Widths of the teacher's layers.
        student: Widths of the student's layers.
        options: How they are compared.
    """

    def __init__(
        self, teacher: Sequence[int], student: Sequence[int], options: PairOptions
    ) -> None:
        super().__init__()
        self.options = options
        if options.pairs == "last-layer":
            teacher, student = teacher[-1:], student[-1:]
        width, bias, tied = options.common_channels, options.map_bias, options.tied_maps
        fixed = options.teacher_maps == "orthogonal"
        attends, embeds = options.pairs == "attention", options.embedding_weight > 0
        self.query = self.key = self.teacher_maps = self.student_maps = None
        self.subspace: torch.nn.Parameter | None = None
        if attends or (embeds and options.share_maps):
            self.query = LayerMaps(teacher, width, bias, tied, fixed and options.share_maps)
            self.key = LayerMaps(student, width, bias, tied)
        if embeds:
            self.teacher_maps, self.student_maps = self.query, self.key
            if not options.share_maps:
                self.teacher_maps = LayerMaps(teacher, width, bias, tied, fixed)
                self.student_maps = LayerMaps(student, width, bias, tied)
            if options.subspace:
                # the identity at first, so that with and without it training starts alike
                self.subspace = torch.nn.Parameter(torch.eye(width), not fixed)
        self.teacher_heads = self.student_heads = None
        if options.structure_weight > 0:
            self.teacher_heads = torch.nn.ModuleList(Head(w, width) for w in teacher)
            self.student_heads = torch.nn.ModuleList(Head(w, width) for w in student)
        self.means: list[Tensor] | None = None
        self.frozen: list[FrozenLayers] = []
        running = [torch.zeros(w) for w in student]
        self.register_buffer("running", torch.cat(running))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))
        self.last: tuple[Tensor, Tensor] | None = None

    def see_all(self, teacher: Layers) -> None:
        """Keep the teacher's exact means, which batches would only estimate."""
        self.means = pool(self._compared(teacher))

    def forward(
        self, student: Layers, teacher: Layers, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss over all pairs; what is drawn are the samples of nodes."""
        options = self.options
        student, teacher = self._compared(student), self._compared(teacher)
        most = options.max_nodes
        chosen = None if most is None else draw_nodes(len(student[0]), most, generator)
        if chosen is not None:
            student, teacher = (
                [h.index_select(0, chosen) for h in side] for side in (student, teacher)
            )
        frozen = self._frozen(teacher)
        teacher_means = frozen.means if self.means is None else self.means
        student_means = self._student_means(student)
        weights = self._weights(teacher_means, student_means)
        distances = torch.zeros_like(weights)
        if options.embedding_weight > 0:
            pooled = options.granularity == "pooled"
            embedding = self._embedding(
                FrozenLayers([mean[None] for mean in teacher_means]) if pooled else frozen,
                [mean[None] for mean in student_means] if pooled else student,
            )
            distances = distances + options.embedding_weight * embedding
        if options.structure_weight > 0:
            structure = self._structure(teacher, student, generator)
            distances = distances + options.structure_weight * structure
        self.last = weights.detach(), distances.detach()
        return reduce_map(weights, distances, options.map_reduction)

    def describe(self) -> dict[str, Any]:
        """Maps of the last loss, the attention's entropy and the size of the subspace map."""
        if self.last is None:
            return {}
        weights, distances = self.last
        figures: dict[str, Any] = {
            "attention": weights.tolist(),
            "distances": distances.tolist(),
            "entropy": float(row_entropy(weights).mean()),
        }
        if self.subspace is not None:
            figures["subspace_norm"] = float(self.subspace.detach().norm())
        return figures

    def _compared(self, layers: Layers) -> Layers:
        return layers[-1:] if self.options.pairs == "last-layer" else layers

    def _student_means(self, student: Layers) -> list[Tensor]:
        means = pool(student)
        if self.means is None or len(student[0]) >= FEW_NODES or not self.training:
            return means
        assert isinstance(self.running, Tensor)
        assert isinstance(self.batches_seen, Tensor)
        flat, widths = torch.cat(means), [len(mean) for mean in means]
        if int(self.batches_seen) > 0:
            flat = MOMENTUM * self.running + (1 - MOMENTUM) * flat
        self.running.copy_(flat.detach())
        self.batches_seen += 1
        return list(torch.split(flat, widths))

    def _weights(self, teacher_means: Layers, student_means: Layers) -> Tensor:
        if self.options.pairs != "attention":
            fixed = fixed_map(self.options.pairs, len(teacher_means), len(student_means))
            return fixed.to(student_means[0])
        assert self.query is not None
        assert self.key is not None
        queries, keys = (
            maps([mean[None] for mean in means])[:, 0]
            for maps, means in ((self.query, teacher_means), (self.key, student_means))
        )
        return attention_map(queries, keys, self.options.axis)

    def _frozen(self, teacher: Layers) -> FrozenLayers:
        """These layers with what is known of them from earlier steps, if they were seen lately."""
        found = next((each for each in self.frozen if each.are(teacher)), None)
        if found is None:
            found = FrozenLayers(teacher)
            self.frozen = [found, *self.frozen[: TYPES_KEPT - 1]]
        return found

    def _embedding(self, teacher: FrozenLayers, student: Layers) -> Tensor:
        assert self.teacher_maps is not None
        assert self.student_maps is not None
        maps = (self.teacher_maps, self.student_maps)
        norm = self.options.feat_norm
        if norm == "std":
            distances = correlation_distances(teacher, student, *maps, self.subspace)
        else:
            theirs, ours = (
                each(layers, self.subspace)
                for each, layers in zip(maps, (teacher.layers, student), strict=True)
            )
            if norm == "l2":
                theirs, ours = (F.normalize(h, dim=2, eps=NORM_EPS) for h in (theirs, ours))
            distances = squared_distances(theirs, ours)
        last = self.options.pairs == "last-layer"
        return distances if last else normalise_map(distances, self.options.map_norm)

    def _structure(
        self, teacher: Layers, student: Layers, generator: torch.Generator | None
    ) -> Tensor:
        assert self.teacher_heads is not None
        assert self.student_heads is not None
        chosen = draw_nodes(len(student[0]), self.options.max_samples, generator)
        heads = (self.teacher_heads, self.student_heads)
        theirs, ours = (
            torch.stack(
                [
                    F.normalize(
                        head(layer if chosen is None else layer.index_select(0, chosen)), dim=1
                    )
                    for head, layer in zip(side, layers, strict=False)  # a type may lack the last
                ]
            )
            for side, layers in zip(heads, (teacher, student), strict=True)
        )
        return contrasts(theirs, ours, self.options.contrast_temperature)
