"""A student that is itself a GNN: its edges as arrays, its layers as an ONNX model.

The model answers some nodes of a graph that is given with them, which the runtime gathers::

    x [n, F], source [e], target [e], weight [e], asked [B]  ->  logits [B, C]

A message goes from ``source`` to ``target`` and counts ``weight`` times; how edges are weighed by
degree is the runtime's to say, since it knows what lies outside the part that it gathered.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.nn import GATConv, GCN2Conv, GCNConv
from torch_geometric.utils import is_undirected, remove_self_loops

from limbeck.errors import OptionError
from limbeck.export.folded import Array, Block, Linear, as_array, hidden_block
from limbeck.export.forms import behind
from limbeck.export.graph import Graph, Signature, float32, int64
from limbeck.export.onnx import RawStudent, Scaling, check_parity, check_scaling, dense_rows
from limbeck.graphs.sparse import is_csr, take_rows
from limbeck.runtime.bundle import NeighborhoodEntry
from limbeck.runtime.neighborhood import Neighborhood, OnnxBallModel
from limbeck.runtime.rows import Rows
from limbeck.runtime.store import NodeStore, store_arrays
from limbeck.runtime.structure import Edges
from limbeck.students.gnn import GNNStudent
from limbeck.students.inputs import NodeInputs, Surroundings
from limbeck.teachers.gat import GAT
from limbeck.teachers.gcn import GCN
from limbeck.teachers.gcnii import GCNII
from limbeck.teachers.sage import SAGE

LOWEST = float32(-3e38)


@dataclass(frozen=True)
class GNNExport:
    """A student that is a GNN, as its bundle holds it.

    Args:
        entry: What the manifest says of what it looks at.
        arrays: The edges, by the names that they have in the store.
        logits: Answers for the known nodes, float32 ``[N, C]``.
        model: The ONNX model.
    """

    entry: NeighborhoodEntry
    arrays: Mapping[str, npt.NDArray[Any]]
    logits: Array
    model: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The manifest's field ``neighborhood``."""
        return asdict(self.entry)


def export_gnn(
    student: GNNStudent,
    inputs: NodeInputs,
    rows: Rows,
    observed: Tensor | None = None,
    scaling: Scaling | None = None,
) -> GNNExport:
    """Export a student that is a GNN, and check that it answers the same.

    Observed nodes are answered on the graph of observed ones, as the student was scored; others on
    the whole graph, and so are the new nodes that come later.

    Args:
        student: The student; it is left as it is.
        inputs: Raw inputs of all ``N`` known nodes, on the CPU, with ``graph``: all nodes in their
            order, and the edges as they were given.
        rows: The nodes' features as the runtime reads them.
        observed: Which known nodes training observed, bool ``[N]``; all by default.
        scaling: What ``x`` was standardised with in training.

    Raises:
        OptionError: The inputs have no graph or an unfit one, the student's network is none of
            GCN, GAT, GraphSAGE and GCNII, or ``scaling`` does not fit.
        ParityError: The bundle would answer differently from torch.
    """
    check_scaling(scaling, student.in_channels)
    if len(inputs) == 0:
        raise OptionError("a student that is a GNN answers from known nodes, and there are none.")
    edges = _checked_edges(inputs)
    raw = RawStudent(copy.deepcopy(student), scaling).cpu().eval()
    gnn = cast(GNNStudent, raw.student).gnn
    entry = NeighborhoodEntry(
        hops=_num_layers(gnn),
        weights=_weights(gnn),
        undirected=is_undirected(edges, num_nodes=len(inputs)),
    )
    arrays = _edge_arrays(edges, len(inputs), keep_loops="mean" in entry.weights)
    logits = _known_logits(raw, inputs, edges, observed)
    exported = GNNExport(entry, arrays, logits, write_gnn(gnn, scaling))
    _check(exported, raw, inputs, edges, rows)
    return exported


def _checked_edges(inputs: NodeInputs) -> Tensor:
    graph = inputs.graph
    if graph is None:
        raise OptionError("the student is a GNN, and the inputs of the known nodes have no graph.")
    if is_csr(graph.edge_index) or graph.edge_index.dtype != torch.int64:
        raise OptionError("the edges of the known nodes must be as they were given, int64 [2, E].")
    if not torch.equal(graph.nodes, torch.arange(len(inputs))) or len(graph.x) != len(inputs):
        raise OptionError("the graph of the known nodes must have all of them, in their order.")
    return graph.edge_index


def _edge_arrays(
    edge_index: Tensor, num_nodes: int, *, keep_loops: bool
) -> dict[str, npt.NDArray[np.int64]]:
    """The nodes that each node has edges from, ascending; an edge that occurs twice stays twice.

    Args:
        edge_index: int64 ``[2, E]``.
        num_nodes: ``N``.
        keep_loops: Whether the graph's own self-loops count beside those that the network adds.
    """
    if not keep_loops:
        edge_index, _ = remove_self_loops(edge_index)
    source, target = edge_index.numpy()
    indptr = np.zeros(num_nodes + 1, dtype=np.int64)
    np.cumsum(np.bincount(target, minlength=num_nodes), out=indptr[1:])
    indices = source[np.lexsort((source, target))]
    return {"neighbors_indptr": indptr, "neighbors_indices": indices}


@torch.no_grad()
def _known_logits(
    raw: RawStudent, inputs: NodeInputs, edges: Tensor, observed: Tensor | None
) -> Array:
    logits = _answers(raw, inputs.x, edges)
    if observed is not None and not bool(observed.all()):
        observed = observed.cpu()
        among_them = edges[:, observed[edges].all(0)]
        logits[observed] = _answers(raw, inputs.x, among_them)[observed]
    return as_array(logits)


def _answers(raw: RawStudent, x: Tensor, edges: Tensor) -> Tensor:
    """Logits ``[N, C]`` of all nodes of a graph, from raw features."""
    x = raw.scaled(dense_rows(NodeInputs(x))[0]) if raw.scales else x
    logits: Tensor = raw.student(NodeInputs(x, graph=Surroundings(x, edges, torch.arange(len(x)))))
    return logits


# --- the networks -----------------------------------------------------------------------------


def _num_layers(gnn: object) -> int:
    if isinstance(gnn, SAGE):
        return len(gnn.lins)
    if isinstance(gnn, GCN | GAT | GCNII):
        return len(gnn.convs)
    raise OptionError(
        f"a bundle has no place for a student of type {type(gnn).__name__}: it holds GNNs of the "
        "types GCN, GAT, SAGE and GCNII."
    )


def _weights(gnn: object) -> str:
    if isinstance(gnn, SAGE):
        return "mean" if len(gnn.roots) == 0 else "neighbor-mean"
    return "attention" if isinstance(gnn, GAT) else "symmetric"


def write_gnn(gnn: object, scaling: Scaling | None) -> bytes:
    """The ONNX model of a GNN, batch norm folded into its weights.

    Args:
        gnn: The network, on the CPU and in eval mode.
        scaling: What features were standardised with in training.

    Raises:
        OptionError: It is none of GCN, GAT, GraphSAGE and GCNII.
    """
    _num_layers(gnn)
    gnn = cast(GCN | GAT | SAGE | GCNII, gnn)
    g = Messages()
    h = "x"
    if scaling is not None:
        mean, deviation = (as_array(vector.cpu()) for vector in scaling)
        h = g.op("Div", g.op("Sub", h, mean), deviation)
    with torch.no_grad():
        if isinstance(gnn, GCN):
            h = _gcn(g, gnn, h)
        elif isinstance(gnn, SAGE):
            h = _sage(g, gnn, h)
        elif isinstance(gnn, GAT):
            h = _gat(g, gnn, h)
        else:
            h = _gcnii(g, gnn, h)
    g.name(g.op("Gather", h, "asked", axis=0), "logits")
    inputs: Signature = {
        "x": ("float32", ("nodes", gnn.in_channels)),
        "source": ("int64", ("edges",)),
        "target": ("int64", ("edges",)),
        "weight": ("float32", ("edges",)),
        "asked": ("int64", ("batch",)),
    }
    return g.model(inputs, {"logits": ("float32", ("batch", gnn.out_channels))})


class Messages(Graph):
    """A graph being written in which nodes send each other messages."""

    def at_edges(self, value: str, end: str) -> str:
        """Rows ``[e, .]`` of the nodes ``[n, .]`` at one end of each edge."""
        return self.op("Gather", value, end, axis=0)

    def received(self, messages: str, width: int, reduction: str = "add") -> str:
        """Sums ``[n, width]`` of the messages ``[e, width]`` that each node receives, or maxima."""
        num_nodes = self.op("Shape", "x", start=0, end=1)
        shape = self.op("Concat", num_nodes, int64(width), axis=0)
        start = self.op("Expand", float32(0.0) if reduction == "add" else LOWEST, shape)
        target = self.op("Unsqueeze", "target", int64(1))
        return self.op("ScatterND", start, target, messages, reduction=reduction)

    def propagated(self, value: str, width: int) -> str:
        """The product of the weighted adjacency with nodes' rows ``[n, width]``."""
        weight = self.op("Unsqueeze", "weight", int64(1))
        return self.received(self.op("Mul", self.at_edges(value, "source"), weight), width)


def _gcn(g: Messages, gnn: GCN, h: str) -> str:
    for i, module in enumerate(gnn.convs):
        conv = cast(GCNConv, module)
        lin = Linear(as_array(conv.lin.weight.t()), as_array(cast(Tensor, conv.bias)))
        block = _with_norm(lin, gnn.norms, i)
        mixed = g.propagated(g.op("MatMul", h, block.map.weight), len(lin.bias))
        h = behind(g, g.op("Add", mixed, block.map.bias), block)
    return h


def _sage(g: Messages, gnn: SAGE, h: str) -> str:
    for i, module in enumerate(gnn.lins):
        lin = cast(torch.nn.Linear, module)
        weight, width, out = lin.weight.t(), lin.in_features, lin.out_features
        if len(gnn.roots):
            weight = torch.cat([weight, cast(torch.nn.Linear, gnn.roots[i]).weight.t()])
        block = _with_norm(Linear(as_array(weight), as_array(lin.bias)), gnn.norms, i)
        # the sums of weights are one, or zero where the bias is to be alone: it comes last
        mixed = g.propagated(g.op("MatMul", h, block.map.weight[:width]), out)
        if len(gnn.roots):
            mixed = g.op("Add", mixed, g.op("MatMul", h, block.map.weight[width:]))
        h = behind(g, g.op("Add", mixed, block.map.bias), block)
    return h


def _with_norm(lin: Linear, norms: torch.nn.ModuleList, layer: int) -> Block:
    """A layer's map with the norm and the ReLU behind it; the last layer has neither."""
    return Block(lin) if layer == len(norms) else hidden_block(lin, norms[layer])


def _gat(g: Messages, gnn: GAT, h: str) -> str:
    for i, module in enumerate(gnn.convs):
        h = _attended(g, cast(GATConv, module), h)
        if i < len(gnn.convs) - 1:
            h = g.op("Elu", h)
    return h


def _attended(g: Messages, conv: GATConv, h: str) -> str:
    """One attention layer, softmax over the messages that a node receives."""
    heads, channels = conv.heads, conv.out_channels
    weight = cast(torch.nn.Linear, conv.lin).weight.t()  # [in, heads * channels]
    by_head = weight.reshape(-1, heads, channels)
    scores = [(by_head * cast(Tensor, att)).sum(-1) for att in (conv.att_src, conv.att_dst)]
    together = as_array(torch.cat([weight, *scores], dim=1))
    widths = int64(heads * channels, heads, heads)
    z, says, hears = g.ops("Split", 3, g.op("MatMul", h, together), widths, axis=1)
    score = g.op("Add", g.at_edges(says, "source"), g.at_edges(hears, "target"))  # [e, heads]
    score = g.op("LeakyRelu", score, alpha=float(conv.negative_slope))
    largest = g.at_edges(g.received(score, heads, "max"), "target")
    power = g.op("Exp", g.op("Sub", score, largest))
    power = g.op("Mul", power, g.op("Unsqueeze", "weight", int64(1)))
    total = g.op("Add", g.at_edges(g.received(power, heads), "target"), float32(1e-16))
    attention = g.op("Unsqueeze", g.op("Div", power, total), int64(2))  # [e, heads, 1]
    sent = g.op("Reshape", g.at_edges(z, "source"), int64(-1, heads, channels))
    sent = g.op("Reshape", g.op("Mul", sent, attention), int64(-1, heads * channels))
    out = g.received(sent, heads * channels)
    if not conv.concat:
        out = g.op("Reshape", out, int64(-1, heads, channels))
        out = g.op("ReduceMean", out, int64(1), keepdims=0)
    if conv.res is not None:
        residual = cast(torch.nn.Linear, conv.res).weight.t()
        out = g.op("Add", out, g.op("MatMul", h, as_array(residual)))
    return g.op("Add", out, as_array(cast(Tensor, conv.bias)))


def _gcnii(g: Messages, gnn: GCNII, h: str) -> str:
    first, last = gnn.first, gnn.last
    h = start = g.op("Relu", g.op("Gemm", h, as_array(first.weight.t()), as_array(first.bias)))
    for module in gnn.convs:
        conv = cast(GCN2Conv, module)
        mixed = g.op("Mul", g.propagated(h, conv.channels), float32(1 - conv.alpha))
        mixed = g.op("Add", mixed, g.op("Mul", start, float32(conv.alpha)))
        own = (1 - conv.beta) * torch.eye(conv.channels) + conv.beta * conv.weight1
        h = g.op("Relu", g.op("MatMul", mixed, as_array(own)))
    return g.op("Gemm", h, as_array(last.weight.t()), as_array(last.bias))


# --- parity -----------------------------------------------------------------------------------


@torch.no_grad()
def _check(
    exported: GNNExport, raw: RawStudent, inputs: NodeInputs, edges: Tensor, rows: Rows
) -> None:
    """Insert the twin of a known node into the graph, with its edges and without; ask both."""
    num_nodes = len(inputs)
    row = num_nodes // 2
    store = NodeStore(
        store_arrays(np.arange(num_nodes), rows, exported.logits),
        num_nodes,
        int(inputs.x.shape[1]),
        exported.logits.shape[1],
    )
    num_classes = exported.logits.shape[1]
    model = OnnxBallModel(exported.model, store.width, num_classes, "the exported model")
    around = Neighborhood(store, exported.arrays, exported.entry, lambda: model)
    known = torch.from_numpy(around.neighbors_of_known(row))
    arriving = torch.stack([known, torch.full_like(known, num_nodes)])
    if exported.entry.undirected:
        arriving = torch.cat([arriving, arriving.flip(0)], dim=1)
    twin = torch.tensor([row])
    (x,) = dense_rows(NodeInputs(take_rows(inputs.x, torch.cat([torch.arange(num_nodes), twin]))))
    nobody, counts = np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
    features = store.features(np.array([row]))
    with_edges = Edges(np.zeros(len(known), dtype=np.int64), known.numpy(), counts)
    expected = _answers(raw, x, torch.cat([edges, arriving], dim=1))[-1:]
    check_parity(expected.numpy(), around.logits(features, with_edges))
    alone = _answers(raw, x[-1:], edges[:, :0])
    check_parity(alone.numpy(), around.logits(features, Edges(nobody, nobody, counts)))
