"""Parts that students share, written into an ONNX graph."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from limbeck.export.folded import as_array
from limbeck.export.graph import Graph
from limbeck.students.sa_mlp import FeedForward


def fed_forward(g: Graph, network: FeedForward, value: str) -> str:
    """The result ``[B, out]`` of a network on rows ``[B, in]``."""
    return behind_first(g, network, mapped(g, network.first_map, value))


def behind_first(g: Graph, network: FeedForward, value: str) -> str:
    """All that follows a network's first linear map."""
    for norm, lin in network.hidden:
        if network.order == "sa-mlp":
            value = normed(g, norm, g.op("Relu", value))
        else:
            value = g.op("Relu", normed(g, norm, value))
        value = mapped(g, lin, value)
    return value


def mapped(g: Graph, lin: torch.nn.Linear, value: str) -> str:
    """A linear map of rows."""
    return g.op("Gemm", value, as_array(lin.weight.t()), as_array(lin.bias))


def normed(g: Graph, norm: torch.nn.Module, value: str) -> str:
    """Rows behind a norm of :func:`limbeck.students.mlp.make_norm`."""
    if isinstance(norm, torch.nn.LayerNorm):
        weight, bias = as_array(norm.weight), as_array(norm.bias)
        return g.op("LayerNormalization", value, weight, bias, axis=-1, epsilon=norm.eps)
    if isinstance(norm, torch.nn.BatchNorm1d):
        # in eval mode batch norm is a scale and a shift per column
        scale = norm.weight / (cast(Tensor, norm.running_var) + norm.eps).sqrt()
        shift = norm.bias - cast(Tensor, norm.running_mean) * scale
        return g.op("Add", g.op("Mul", value, as_array(scale)), as_array(shift))
    return value
