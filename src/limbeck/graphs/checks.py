"""Checks that every graph must pass, wherever it came from.

Splits are checked where they are drawn, by :mod:`limbeck.graphs.splits`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from limbeck.errors import GraphError
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.sparse import is_csr


def check_graph(data: Data, where: str) -> None:
    """Refuse a graph that no student could be distilled from.

    It must have features ``x`` (float32 ``[N, F]``, dense or CSR, finite), at least one edge in
    ``edge_index`` (int64 ``[2, E]``, between nodes that exist), and a class ``y`` per node
    (int64 ``[N]``, -1 for none) of which at least two occur, or several labels per node (float32
    ``[N, C]`` of ones and zeros, a row of -1 for none) of which one occurs. If the graph has an
    ``info``, its node ids, class names and task must match.

    Args:
        data: The graph.
        where: What to call it in an error: its path or name.

    Raises:
        GraphError: One sentence that names the first thing found wrong.
    """
    check_kind(data, where)
    check_features(data.get("x"), data, where)
    num_nodes = int(data["x"].shape[0])
    _check_edges(data.get("edge_index"), num_nodes, data, where)
    _check_labels(data.get("y"), num_nodes, where)
    info = data.get("info")
    if info is not None:
        if len(info.node_ids) != num_nodes:
            raise GraphError(f"{where} has {num_nodes} nodes but {len(info.node_ids)} node ids.")
        _check_info(data["y"], info, where)


def _check_info(y: Tensor, info: GraphInfo, where: str) -> None:
    if (y.dim() == 2) != (info.task == "labels"):
        raise GraphError(
            f"'y' of {where} has the shape {tuple(y.shape)}, but its task is {info.task!r}: "
            "classes are [N], labels [N, C]."
        )
    if y.dim() == 2 and y.shape[1] != info.num_classes:
        raise GraphError(
            f"{where} has {y.shape[1]} labels per node, but {info.num_classes} names of them."
        )
    if y.dim() == 1 and int(y.max()) >= info.num_classes:
        raise GraphError(f"{where} has a label {int(y.max())}, but {info.num_classes} classes.")


def check_kind(data: Any, where: str) -> None:
    """Refuse a graph of a kind that has to be made plain first: one with several types of nodes.

    Raises:
        GraphError: It is one.
    """
    if isinstance(data, HeteroData):
        raise GraphError(
            f"{where} has {len(data.node_types)} types of nodes: give a graph with one, such as "
            "what limbeck.graphs.hetero.labelled_graph makes of it."
        )


def check_nodes(nodes: Any, info: Any, where: str) -> None:
    """Refuse the labelled nodes of a heterogeneous graph where :func:`check_graph` would.

    Args:
        nodes: What holds their ``x`` and ``y``.
        info: The graph's ``info``, or ``None``.
        where: What to call them in an error.

    Raises:
        GraphError: One sentence that names the first thing found wrong.
    """
    check_features(nodes.get("x"), nodes, where)
    # the nodes as a graph of their own, whose one edge stands for those of the relations
    alone = Data(x=nodes["x"], y=nodes.get("y"), edge_index=torch.zeros((2, 1), dtype=torch.int64))
    if info is not None:
        alone.info = info
    check_graph(alone, where)


def check_ends(edge_index: Any, num_nodes: tuple[int, int], where: str) -> None:
    """Refuse edges between two types of nodes that are not int64 ``[2, E]`` or out of range.

    Args:
        edge_index: The edges; there may be none.
        num_nodes: Number of nodes of the source's type and of the target's.
        where: What to call them in an error.

    Raises:
        GraphError: They are not usable.
    """
    usable = isinstance(edge_index, Tensor) and edge_index.dtype == torch.int64
    if not usable or edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise GraphError(f"'edge_index' of {where} must be a tensor torch.int64 [2, E].")
    for ends, count in zip(edge_index, num_nodes, strict=True):
        low, high = (int(end) for end in torch.aminmax(ends)) if len(ends) else (0, count - 1)
        if not 0 <= low <= high < count:
            wrong = low if low < 0 else high
            raise GraphError(f"an edge of {where} names node {wrong}, expected 0 to {count - 1}.")


def check_features(x: Any, data: Any, where: str) -> None:
    """Refuse features that are not float32 ``[N, F]``, dense or CSR, and finite.

    Args:
        x: The features.
        data: What they belong to; its ``info``, if any, names the nodes.
        where: What to call it in an error.

    Raises:
        GraphError: They are not usable.
    """
    if not isinstance(x, Tensor):
        raise GraphError(f"{where} has no node features: 'x' must be a tensor [N, F].")
    if x.dim() != 2 or x.dtype != torch.float32 or 0 in x.shape:
        raise GraphError(
            f"'x' of {where} is {x.dtype} of shape {tuple(x.shape)}, expected torch.float32 "
            "[N, F] with at least one row and column."
        )
    values = x.values() if is_csr(x) else x
    # the two ends tell it for all values (a NaN makes both NaN), without a mask of their size
    if values.numel() == 0 or torch.stack(torch.aminmax(values)).isfinite().all():
        return
    position = int((~values.isfinite()).flatten().nonzero()[0])
    if is_csr(x):
        row = int(torch.searchsorted(x.crow_indices(), position, right=True)) - 1
        column = int(x.col_indices()[position])
    else:
        row, column = divmod(position, x.shape[1])
    raise GraphError(
        f"feature {column} of node {_name(data, row)} of {where} is "
        f"{float(values.flatten()[position])}: features must be finite."
    )


def _check_edges(edge_index: Any, num_nodes: int, data: Data, where: str) -> None:
    if not isinstance(edge_index, Tensor) or edge_index.numel() == 0:
        raise GraphError(f"{where} has no edges: a graph needs at least one.")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise GraphError(
            f"'edge_index' of {where} is {edge_index.dtype} of shape {tuple(edge_index.shape)}, "
            "expected torch.int64 [2, E]."
        )
    low, high = torch.aminmax(edge_index)
    for node in (int(low), int(high)):
        if not 0 <= node < num_nodes:
            raise GraphError(
                f"an edge of {where} names node {node}, expected 0 to {num_nodes - 1}."
            )


def _check_labels(y: Any, num_nodes: int, where: str) -> None:
    if not isinstance(y, Tensor):
        raise GraphError(f"{where} has no labels: 'y' must be a tensor [N].")
    if y.dim() == 2 and y.shape[1] > 1:
        _check_several_labels(y, num_nodes, where)
        return
    if tuple(y.shape) != (num_nodes,) or y.dtype != torch.int64:
        raise GraphError(
            f"'y' of {where} is {y.dtype} of shape {tuple(y.shape)}, expected torch.int64 "
            f"[{num_nodes}], one class per node."
        )
    if int(y.min()) < -1:
        raise GraphError(f"{where} has a label {int(y.min())}, expected a class or -1 for none.")
    classes = torch.unique(y[y >= 0])
    if len(classes) == 0:
        raise GraphError(f"no node of {where} has a label: at least two classes are needed.")
    if len(classes) == 1:
        raise GraphError(f"all labels of {where} are one class: at least two are needed.")


def _check_several_labels(y: Tensor, num_nodes: int, where: str) -> None:
    if y.shape[0] != num_nodes or y.dtype != torch.float32:
        raise GraphError(
            f"'y' of {where} is {y.dtype} of shape {tuple(y.shape)}, expected torch.float32 "
            f"[{num_nodes}, C] for several labels per node."
        )
    hidden = (y == -1).all(1)
    wrong = ~(hidden | ((y == 0) | (y == 1)).all(1))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise GraphError(
            f"the labels of row {row} of {where} are neither ones and zeros nor all -1 for none: "
            "every label of a node must be told."
        )
    if not bool((y > 0).any()):
        raise GraphError(f"no node of {where} has a label: at least one is needed.")


def _name(data: Any, row: int) -> str:
    info = data.get("info")
    if info is None or row >= len(info.node_ids):
        return str(row)
    node_id = info.node_ids[row]
    return repr(node_id if isinstance(node_id, str) else int(node_id))
