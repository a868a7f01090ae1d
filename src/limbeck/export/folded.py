"""What a trained student computes, with all that is constant folded into its weights.

A student that this module knows becomes a list of :class:`Block`, each a map, a norm and a ReLU,
as arrays; :mod:`limbeck.export.forms` writes them as ONNX. Scale :math:`e^t`, input gains and batch
norm end in the weights, memories are of length one. Weights multiply rows from the right, so they
are ``[in, out]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.students.experts import ExpertLayer, ExpertStudent, bounded_exp, unit
from limbeck.students.mlp import MLP
from limbeck.students.moe import MoELayer
from limbeck.students.rbm import RbMLayer
from limbeck.students.sa_mlp import FeedForward

Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """A linear map: ``h @ weight + bias``.

    Args:
        weight: ``[in, out]``.
        bias: ``[out]``.
    """

    weight: Array
    bias: Array


@dataclass(frozen=True)
class Memories:
    """Chooses experts by the direction of a row, as :class:`~limbeck.students.rbm.RbMLayer`.

    Args:
        directions: Unit memories, one a column, ``[in, E]``.
    """

    directions: Array


@dataclass(frozen=True)
class Gate:
    """Chooses experts by a trained gate, as :class:`~limbeck.students.moe.MoELayer`.

    Args:
        project: Map to the width ``g`` of the comparison.
        columns: Unit columns times the sharpness, ``[g, E]``.
    """

    project: Linear
    columns: Array


@dataclass(frozen=True)
class Experts:
    r"""Linear maps of which each row uses some: :math:`\sum_e a_e (\mathbf{W}_e h + \mathbf{b}_e)`.

    Args:
        weight: ``[E, in, out]``.
        bias: ``[E, out]``.
        top_k: Experts per row ``k``.
        chooser: What chooses them and sets the gates :math:`a_e`.
    """

    weight: Array
    bias: Array
    top_k: int
    chooser: Memories | Gate


@dataclass(frozen=True)
class CorrectedExperts:
    r"""Experts that differ by low rank from a map they share.

    .. math::
        \Bigl(\sum_e a_e\Bigr) \mathbf{W} h
        + \sum_e a_e (\mathbf{A}_e \mathbf{B}_e h + \mathbf{b}_e)

    Args:
        weight: The shared map, ``[in, out]``.
        lower: All :math:`\mathbf{B}_e`, side by side, ``[in, E * r]``.
        lift: All :math:`\mathbf{A}_e`, one below the other, ``[E * r, out]``.
        bias: ``[E, out]``.
        top_k: Experts per row ``k``.
        chooser: What chooses them and sets the gates :math:`a_e`.
    """

    weight: Array
    lower: Array
    lift: Array
    bias: Array
    top_k: int
    chooser: Memories | Gate


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation over the last axis.

    Args:
        weight: ``[out]``.
        bias: ``[out]``.
        epsilon: Added to the variance.
    """

    weight: Array
    bias: Array
    epsilon: float


Map: TypeAlias = Linear | Experts | CorrectedExperts


@dataclass(frozen=True)
class Block:
    """One layer of a student and what follows it.

    Args:
        map: The layer.
        shift: Added to its result, ``[out]``; ``None`` for nothing.
        norm: Layer norm behind it, or ``None``.
        relu: Whether there is a ReLU behind them.
        norm_last: Whether the norm comes behind the ReLU, not before it.
    """

    map: Map
    shift: Array | None = None
    norm: LayerNorm | None = None
    relu: bool = False
    norm_last: bool = False


def fold(student: torch.nn.Module) -> list[Block] | None:
    """The blocks of a student in eval mode; ``None`` for a student that is not known here.

    Known are :class:`~limbeck.students.mlp.MLP` and
    :class:`~limbeck.students.experts.ExpertStudent` whose layers are known, also subclasses that
    do not compute otherwise.

    Args:
        student: The student, on the CPU; it is left as it is.
    """
    maps: list[Map]
    with torch.no_grad():
        if isinstance(student, MLP) and _computes_as(student, MLP, "first", "hidden", "classify"):
            maps = [linear_of(cast(torch.nn.Linear, lin)) for lin in student.lins]
        elif isinstance(student, ExpertStudent) and _computes_as(
            student, ExpertStudent, "trace", "read"
        ):
            layers = [cast(ExpertLayer, layer) for layer in student.layers]
            if any(type(layer) not in _CHOOSERS for layer in layers):
                return None
            maps = [_experts(layer) for layer in layers]
        else:
            return None
        norms = list(student.norms)
        return [
            *(hidden_block(layer, norm) for layer, norm in zip(maps, norms, strict=False)),
            Block(maps[-1]),
        ]


def mlp_layers(blocks: list[Block], scaling: tuple[Tensor, Tensor] | None) -> list[Linear] | None:
    """The layers of a student that is an MLP, which read raw features.

    Args:
        blocks: The student.
        scaling: Mean and deviation that features were standardised with in training, ``[F]`` each.

    Returns:
        Linear maps with a ReLU behind each but the last; ``None`` for any other student.
    """
    maps = [block.map for block in blocks if isinstance(block.map, Linear)]
    as_mlp = [block.relu for block in blocks] == [True] * (len(blocks) - 1) + [False]
    if len(maps) < len(blocks) or not as_mlp or _has_more(blocks):
        return None
    if scaling is None:
        return maps
    mean, deviation = (vector.cpu().double().numpy() for vector in scaling)
    weight = maps[0].weight / deviation[:, None]
    bias = maps[0].bias - mean @ weight
    return [Linear(weight.astype(np.float32), bias.astype(np.float32)), *maps[1:]]


def _has_more(blocks: list[Block]) -> bool:
    """Whether something stands between a map and its ReLU."""
    return any(block.norm is not None or block.shift is not None for block in blocks)


def sums_to_one(layer: Map) -> bool:
    """Whether the weights of the layer's maps sum to one in every row, as those of one map do."""
    return isinstance(layer, Linear) or isinstance(layer.chooser, Memories)


def _computes_as(student: torch.nn.Module, base: type[torch.nn.Module], *parts: str) -> bool:
    """Whether the methods that a student of this kind answers with are those of ``base``."""
    return all(
        getattr(type(student), name) is getattr(base, name)
        for name in ("forward", "activate", *parts)
    )


def linear_of(lin: torch.nn.Linear) -> Linear:
    """The map of a layer."""
    return Linear(as_array(lin.weight.t()), as_array(lin.bias))


def affine(norm: torch.nn.BatchNorm1d) -> tuple[Array, Array]:
    """Batch norm in eval mode: a factor and a summand per column."""
    scale = norm.weight / (cast(Tensor, norm.running_var) + norm.eps).sqrt()
    return as_array(scale), as_array(norm.bias - cast(Tensor, norm.running_mean) * scale)


def feed_forward_blocks(network: FeedForward) -> list[Block]:
    """The layers of a network; batch norm is folded into the map that it stands beside."""
    blocks, layer = [], linear_of(network.first_map)
    for norm, lin in network.hidden:
        following = linear_of(lin)
        if network.order != "sa-mlp":
            blocks.append(hidden_block(layer, norm))
        elif isinstance(norm, torch.nn.BatchNorm1d):  # behind the ReLU: into the next map
            scale, shift = affine(norm)
            blocks.append(Block(layer, relu=True))
            bias = following.bias + shift @ following.weight
            following = Linear(scale[:, None] * following.weight, bias)
        else:
            blocks.append(replace(hidden_block(layer, norm), norm_last=True))
        layer = following
    return [*blocks, Block(layer)]


def _experts(layer: ExpertLayer) -> Map:
    if isinstance(layer, RbMLayer) and not layer.routed:
        # in pretraining the layer is its first expert, without scale and gain
        return linear_of(cast(torch.nn.Linear, layer.experts[0]))
    chooser = _CHOOSERS[type(layer)](layer)
    scale = bounded_exp(layer.log_scale)
    log_gain = layer.log_gain if isinstance(layer, RbMLayer) else None
    gain = torch.ones(()) if log_gain is None else bounded_exp(log_gain).unsqueeze(2)  # [., in, 1]
    weights, biases = layer.written_out()
    bias = as_array(scale * biases)
    if layer.corrections is None:
        weight = as_array(scale * (weights.transpose(1, 2) * gain))
        return Experts(weight, bias, layer.top_k, chooser)
    base = cast(torch.nn.Linear, layer.experts[0])
    shared_gain = gain[0] if log_gain is not None else gain
    lower = layer.corrections.lower.flatten(0, 1).t()  # [in, E * r]
    lift = layer.corrections.lift.transpose(1, 2).flatten(0, 1)  # [E * r, out]
    return CorrectedExperts(
        as_array(scale * (base.weight.t() * shared_gain)),
        as_array(lower * shared_gain),
        as_array(scale * lift),
        bias,
        layer.top_k,
        chooser,
    )


def _memories(layer: RbMLayer) -> Memories:
    return Memories(as_array(unit(layer.memory).t()))


def _gate(layer: MoELayer) -> Gate:
    columns = bounded_exp(layer.log_sharpness) * unit(layer.columns).t()
    return Gate(linear_of(layer.project), as_array(columns))


_CHOOSERS: dict[type[torch.nn.Module], Callable[[Any], Memories | Gate]] = {
    RbMLayer: _memories,
    MoELayer: _gate,
}


def hidden_block(layer: Map, norm: torch.nn.Module) -> Block:
    """A layer with the norm and the ReLU behind it."""
    if isinstance(norm, torch.nn.LayerNorm):
        return Block(
            layer, norm=LayerNorm(as_array(norm.weight), as_array(norm.bias), norm.eps), relu=True
        )
    if not isinstance(norm, torch.nn.BatchNorm1d):
        return Block(layer, relu=True)
    scale, shift = affine(norm)
    scaled = _scaled(layer, scale)
    if not sums_to_one(layer):
        return Block(scaled, shift=shift, relu=True)
    return Block(replace(scaled, bias=scaled.bias + shift), relu=True)


def _scaled(layer: Map, scale: Array) -> Map:
    """The layer with each column of its result multiplied with ``scale`` ``[out]``."""
    scaled = replace(layer, weight=layer.weight * scale, bias=layer.bias * scale)
    if isinstance(scaled, CorrectedExperts):
        return replace(scaled, lift=scaled.lift * scale)
    return scaled


def as_array(tensor: Tensor) -> Array:
    """The values of a tensor as a contiguous float32 array."""
    return np.ascontiguousarray(tensor.detach().float().numpy())
