"""A student that is an R-GCN: its answers for known nodes, and an MLP for nodes without edges.

A bundle's store holds nodes of the labelled type alone. So a known node is answered as on the graph
of all types, once and for all, and a new one from its features: without edges an R-GCN is the MLP
of the labelled type's own maps.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from limbeck.errors import OptionError
from limbeck.export.folded import Array, as_array
from limbeck.export.onnx import RawStudent, Scaling, check_parity, dense_rows
from limbeck.graphs.hetero import bare, reordered, without_edges_of
from limbeck.graphs.sparse import take_rows
from limbeck.students.gnn import GNNStudent
from limbeck.students.inputs import NodeInputs
from limbeck.students.mlp import MLP
from limbeck.teachers.rgcn import RGCN, RelationalConv

PROBED = 64


def is_typed(student: torch.nn.Module) -> bool:
    """Whether a student is an R-GCN."""
    return isinstance(student, GNNStudent) and isinstance(student.gnn, RGCN)


def without_edges(gnn: RGCN) -> MLP:
    """The MLP that an R-GCN is for a node of the labelled type that has no edges."""
    roots = []
    for module in gnn.convs:
        conv = cast(RelationalConv, module)
        roots.append(cast(torch.nn.Linear, conv.roots[conv.types.index(gnn.target)]))
    width = roots[0].out_features
    mlp = MLP(gnn.in_channels, width, gnn.out_channels, len(roots))
    state: dict[str, Tensor] = {}
    for name, root in zip(_maps(mlp), roots, strict=True):
        state |= {f"{name}.weight": root.weight, f"{name}.bias": root.bias}
    mlp.load_state_dict(state)
    return mlp.eval()


def _maps(mlp: MLP) -> list[str]:
    """Names of an MLP's linear maps, first to last."""
    return [name for name, part in mlp.named_modules() if isinstance(part, torch.nn.Linear)]


@torch.no_grad()
def export_rgcn(
    student: GNNStudent,
    inputs: NodeInputs,
    observed: Tensor | None = None,
    scaling: Scaling | None = None,
) -> tuple[Array, MLP]:
    """Answers for the known nodes, and what answers new ones; checked against the network.

    Args:
        student: The student; it is left as it is.
        inputs: Raw inputs of all ``N`` known nodes, on the CPU, with ``graph``: the graph of all
            types, in which the labelled nodes stand in their order.
        observed: Which known nodes training observed, bool ``[N]``; all by default. They are
            answered on the graph of observed ones, all others on the whole graph.
        scaling: What ``x`` was standardised with in training.

    Returns:
        Logits float32 ``[N, C]``, and an MLP on features.

    Raises:
        OptionError: The inputs have no graph of types.
        ParityError: The MLP answers differently from the R-GCN.
    """
    graph: Any = None if inputs.graph is None else inputs.graph.edge_index
    raw = RawStudent(copy.deepcopy(student), scaling).cpu().eval()
    gnn = cast(RGCN, cast(GNNStudent, raw.student).gnn)
    if isinstance(graph, Tensor):  # an ordinary graph, all of one type
        graph = gnn.as_typed(graph, len(inputs))
    if not isinstance(graph, HeteroData):
        raise OptionError("the student reads types of nodes, and its inputs have no such graph.")
    seen = torch.ones(len(inputs), dtype=torch.bool) if observed is None else observed.cpu()
    order = torch.cat([seen.nonzero().flatten(), (~seen).nonzero().flatten()])
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    x = raw.scaled(dense_rows(NodeInputs(inputs.x))[0]) if raw.scales else inputs.x
    x = take_rows(x, order)
    whole = reordered(bare(graph, gnn.target, x), x, place)
    logits = gnn(x, whole)
    known = int(seen.sum())
    if known < len(order):
        few = take_rows(x, torch.arange(known))
        logits[:known] = gnn(few, without_edges_of(whole, known, few))
    alone = without_edges(gnn)
    rows = take_rows(x, torch.arange(min(PROBED, len(order))))
    expected = gnn(rows, without_edges_of(whole, 0, rows))
    check_parity(as_array(expected), as_array(alone(NodeInputs(rows))))
    return as_array(logits[place]), alone
