"""R-GCN: a GNN with a map of its own for each relation, for graphs with several types of nodes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.utils import degree

from limbeck.errors import GraphError, OptionError
from limbeck.graphs.adjacency import bipartite_adjacency
from limbeck.graphs.hetero import Relation, num_nodes
from limbeck.graphs.sparse import linear
from limbeck.graphs.view import View
from limbeck.students.mlp import Exposed, input_dropout
from limbeck.teachers.base import (
    GNN,
    ExposedState,
    PositiveInt,
    Probability,
    TeacherOptions,
    exposed_state,
)

Featureless = Literal["mean", "table"]

NODE = "node"
"""What the one type of an ordinary graph is called."""

EDGE: Relation = (NODE, "to", NODE)


@dataclass(frozen=True, eq=False)
class Typed:
    """A heterogeneous graph, prepared.

    Args:
        features: Features of all types that have some but the target's, ``[N, F]`` each.
        means: For each relation the mean over sources, CSR ``[N of its target, N of its source]``,
            and its transpose, for the gradient.
    """

    features: dict[str, Tensor]
    means: dict[Relation, tuple[Tensor, Tensor]]


class RelationalConv(torch.nn.Module):
    r"""One layer: a map per relation and a map with bias per type of nodes.

    Args:
        in_channels: Width of each type's input.
        out_channels: Width of all types' outputs.
        relations: The relations.
    """

    def __init__(
        self, in_channels: Mapping[str, int], out_channels: int, relations: Sequence[Relation]
    ) -> None:
        super().__init__()
        self.types, self.relations = tuple(in_channels), tuple(relations)
        # lists, since names of types may be anything and those of modules may not
        self.roots = torch.nn.ModuleList(
            torch.nn.Linear(width, out_channels) for width in in_channels.values()
        )
        self.lins = torch.nn.ModuleList(
            torch.nn.Linear(in_channels[source], out_channels, bias=False)
            for source, _, _ in relations
        )

    def forward(self, h: dict[str, Tensor], graph: Typed, wanted: set[str]) -> dict[str, Tensor]:
        """Outputs of the types that are wanted, ``[N, out_channels]`` each."""
        outputs = {}
        for kind, root in zip(self.types, self.roots, strict=True):
            if kind in wanted:
                assert isinstance(root, torch.nn.Linear)
                outputs[kind] = linear(h[kind], root.weight, root.bias)
        for relation, lin in zip(self.relations, self.lins, strict=True):
            source, _, goal = relation
            if goal in wanted:
                assert isinstance(lin, torch.nn.Linear)
                mean = _mean(graph.means[relation], linear(h[source], lin.weight))
                outputs[goal] = outputs[goal] + mean
        return outputs


class RGCN(GNN):
    r"""R-GCN with means over relations, as on OGBN-Mag.

    .. math::
        \mathbf{h}_v^{l+1} = \mathbf{W}_{\tau(v)}^l \mathbf{h}_v^l + \mathbf{b}_{\tau(v)}^l +
        \sum_r \frac{1}{|\mathcal{N}_r(v)|} \sum_{u \in \mathcal{N}_r(v)}
        \mathbf{W}_r^l \mathbf{h}_u^l

    then ReLU and dropout, none after the last layer (`"Modeling Relational Data with Graph
    Convolutional Networks" <https://arxiv.org/abs/1703.06103>`_, in the form of OGB's baseline for
    OGBN-Mag): what PyG's ``HeteroConv`` of ``SAGEConv(..., root_weight=False, bias=False)`` with a
    ``Linear`` per type computes. It has :math:`\sum_l R a_l b_l + T (a_l b_l + b_l)` weights for
    ``R`` relations, ``T`` types and layers from width ``a`` to ``b``.

    A type without features gets the mean of its neighbours' (``featureless="mean"``, no parameter;
    types further away get theirs through those that have them by then), or a trained row per node
    (``"table"``). ``edge_index`` is a ``HeteroData`` of a view; of an ordinary graph, int64
    ``[2, E]``, all nodes are of one type and its edges one relation.

    Args:
        in_channels: Width of each type's features.
        hidden_channels: Width of the hidden layers.
        out_channels: Number of classes ``C``.
        relations: The relations.
        target: The type that is asked about.
        num_layers: Number of layers.
        dropout: Probability of dropping a hidden unit.
        input_dropout: Probability of dropping a feature.
        tables: Number of nodes of each type that gets a table.
        exposed: Whether :meth:`layers` gives hidden states behind their ReLU (``"activation"``)
            or in front of it (``"pre-activation"``).
    """

    reads_types: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: Mapping[str, int],
        hidden_channels: int,
        out_channels: int,
        relations: Sequence[Relation],
        target: str,
        num_layers: int = 2,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        *,
        tables: Mapping[str, int] | None = None,
        exposed: Exposed = "activation",
    ) -> None:
        super().__init__()
        self.target, self.relations = target, tuple(relations)
        self.widths = dict(in_channels)
        self.in_channels = self.widths[target]
        self.out_channels = out_channels
        self.dropout, self.input_dropout = dropout, input_dropout
        self.exposed: Exposed = exposed
        widths = [*[hidden_channels] * (num_layers - 1), out_channels]
        inputs = [self.widths, *[dict.fromkeys(self.widths, width) for width in widths[:-1]]]
        self.convs = torch.nn.ModuleList(
            RelationalConv(before, after, self.relations)
            for before, after in zip(inputs, widths, strict=True)
        )
        self.table_types = tuple(tables or {})
        self.tables = torch.nn.ModuleList(
            torch.nn.Embedding(count, self.widths[kind]) for kind, count in (tables or {}).items()
        )

    @classmethod
    def for_view(
        cls, view: View, hidden_channels: int, featureless: Featureless = "mean", **options: Any
    ) -> Self:
        """A fresh network for a view's types, relations and classes.

        Args:
            view: What may be seen.
            hidden_channels: Width of the hidden layers.
            featureless: What stands for the features of a type without any.
            **options: Further arguments of :class:`RGCN`.
        """
        hetero = view.observed.get("hetero")
        if hetero is None:
            types = {NODE: view.num_features}
            return cls(types, hidden_channels, view.num_classes, [EDGE], NODE, **options)
        types = {
            kind: int(hetero[kind].x.shape[1]) if "x" in hetero[kind] else view.num_features
            for kind in hetero.node_types
        }
        bare_types = [kind for kind in types if "x" not in hetero[kind]]
        counts = {kind: num_nodes(hetero, kind) for kind in bare_types}
        return cls(
            types,
            hidden_channels,
            view.num_classes,
            hetero.edge_types,
            hetero.target,
            tables=counts if featureless == "table" else None,
            **options,
        )

    @property
    def num_table_parameters(self) -> int:
        """Parameters in tables of types without features, which grow with the graph."""
        return sum(parameter.numel() for parameter in self.tables.parameters())

    def reset_parameters(self) -> None:
        """Draw all weights and tables anew, as PyTorch starts them."""
        for module in self.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                module.reset_parameters()

    def normalize(self, edge_index: Any, num_nodes: int) -> Any:
        """The mean over each relation, and features for the types that have none."""
        graph = edge_index
        if isinstance(edge_index, Tensor):
            graph = self.as_typed(edge_index, num_nodes)
        if set(graph.edge_types) != set(self.relations) or graph.target != self.target:
            raise OptionError(
                f"an R-GCN for {_listed(self.relations)} was given a graph with "
                f"{_listed(graph.edge_types)}: build it for this very graph."
            )
        features = {
            kind: graph[kind].x
            for kind in self.widths
            if kind != self.target and "x" in graph[kind]
        }
        missing = set(self.widths) - {self.target, *features, *self.table_types}
        if missing:
            features |= mean_features(graph, missing)
        return Typed(features, {relation: _means(graph, relation) for relation in self.relations})

    @staticmethod
    def as_typed(edge_index: Tensor, num_nodes: int) -> HeteroData:
        """An ordinary graph as one of types: a single one, and a single relation."""
        graph = HeteroData()
        graph.target = NODE
        graph[NODE].num_nodes = num_nodes
        graph[EDGE].edge_index = edge_index
        return graph

    def prepare(self, edge_index: Any, num_nodes: int) -> Any:
        """Normalise once; the result stands for ``edge_index`` in :meth:`forward`."""
        if isinstance(edge_index, Typed):
            return edge_index
        return self.normalize(edge_index, num_nodes)

    def layers(self, x: Tensor, adj: Any) -> dict[str, Tensor]:
        """Outputs of all layers for the target; hidden ones before dropout."""
        return {name: each[self.target] for name, each in self._run(x, adj, self._needed()).items()}

    def typed_layers(self, x: Tensor, adj: Any) -> dict[str, dict[str, Tensor]]:
        """Outputs of all layers for all types, ``[N, .]`` by name of the layer, then of the type.

        Args:
            x: Features of the target, ``[N, F]``.
            adj: What :meth:`prepare` made of the graph.
        """
        return self._run(x, adj, [set(self.widths)] * len(self.convs))

    def _run(self, x: Tensor, graph: Typed, wanted: list[set[str]]) -> dict[str, dict[str, Tensor]]:
        h = {self.target: x, **graph.features}
        for kind, table in zip(self.table_types, self.tables, strict=True):
            assert isinstance(table, torch.nn.Embedding)
            h[kind] = table.weight
        h = {
            kind: input_dropout(each, self.input_dropout, self.training) for kind, each in h.items()
        }
        outputs: dict[str, dict[str, Tensor]] = {}
        for i, (conv, types) in enumerate(zip(self.convs, wanted, strict=True)):
            before = conv(h, graph, types)
            if i == len(self.convs) - 1:
                outputs["logits"] = before
                break
            after = {kind: F.relu(each) for kind, each in before.items()}
            outputs[f"hidden{i + 1}"] = {
                kind: exposed_state(before[kind], after[kind], self.exposed) for kind in types
            }
            h = {kind: F.dropout(each, self.dropout, self.training) for kind, each in after.items()}
        return outputs

    def _needed(self) -> list[set[str]]:
        """The types whose output each layer must give for the target to be answered."""
        needed = [{self.target}]
        for _ in itertools.repeat(None, len(self.convs) - 1):
            sources = {source for source, _, goal in self.relations if goal in needed[0]}
            needed.insert(0, needed[0] | sources)
        return needed


class RGCNOptions(TeacherOptions):
    """Hyper-parameters of :class:`RGCN`; it trains on the whole graph.

    Args:
        featureless: What stands for the features of a type without any: the ``"mean"`` of its
            neighbours' or a trained ``"table"``.
        input_dropout: Probability of dropping a feature in training.
        exposed: Which hidden states methods may learn from: those behind an ``"activation"``, or
            those in front of it (``"pre-activation"``).
    """

    name: ClassVar[str] = "rgcn"
    title: ClassVar[str] = "R-GCN, a map per relation, for graphs with several types of nodes"
    paper: ClassVar[str] = "https://arxiv.org/abs/1703.06103"
    hidden_channels: PositiveInt = 128
    num_layers: PositiveInt = 3
    dropout: Probability = 0.3
    featureless: Featureless = "mean"
    input_dropout: Probability = 0.0
    exposed: ExposedState = "activation"
    fan_out: tuple[PositiveInt, ...] = Field(default=(), max_length=0)

    def build(self, view: View) -> RGCN:
        """A fresh network for the view."""
        return RGCN.for_view(
            view,
            self.hidden_channels,
            self.featureless,
            num_layers=self.num_layers,
            dropout=self.dropout,
            input_dropout=self.input_dropout,
            exposed=self.exposed,
        )


# --- means over relations ----------------------------------------------------------------------


class _Product(torch.autograd.Function):
    """``A h`` whose gradient takes the transpose at hand; PyTorch would build it in every step."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.transpose = transpose
        product: Tensor = torch.sparse.mm(matrix, h)
        return product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return torch.sparse.mm(ctx.transpose, gradient), None, None


def _mean(mean: tuple[Tensor, Tensor], h: Tensor) -> Tensor:
    product: Tensor = _Product.apply(h, *mean)  # type: ignore[no-untyped-call]
    return product


def _means(graph: HeteroData, relation: Relation) -> tuple[Tensor, Tensor]:
    edges = graph[relation].edge_index
    sources, goals = num_nodes(graph, relation[0]), num_nodes(graph, relation[2])
    weight = 1.0 / degree(edges[1], goals)[edges[1]]
    return (
        bipartite_adjacency(edges, (sources, goals), weight),
        bipartite_adjacency(edges.flip(0), (goals, sources), weight),
    )


def mean_features(graph: HeteroData, missing: set[str]) -> dict[str, Tensor]:
    """Features of types without any: the mean over all their neighbours that have some.

    Types are filled in rounds: next to those with features, then next to those, and so on. Only
    neighbours whose features are as wide as the target's count; a node without one gets zeros.

    Args:
        graph: What :func:`limbeck.graphs.hetero.bare` made.
        missing: Types to fill.

    Returns:
        For each of them dense float32 ``[N, F]``.

    Raises:
        GraphError: No relation leads from a type with features to one of them.
    """
    width = graph[graph.target].x.shape[1]
    given = {kind: graph[kind].x for kind in graph.node_types if "x" in graph[kind]}
    known = {kind: x.to_dense() for kind, x in given.items() if x.shape[1] == width}
    filled: dict[str, Tensor] = {}
    while missing - set(filled):
        round_: dict[str, Tensor] = {}
        for kind in missing - set(filled):
            into = [r for r in graph.edge_types if r[2] == kind and r[0] in known]
            if not into:
                continue
            total, count = (
                torch.zeros(num_nodes(graph, kind), width),
                torch.zeros(num_nodes(graph, kind)),
            )
            for relation in into:
                edges = graph[relation].edge_index
                shape = (num_nodes(graph, relation[0]), num_nodes(graph, kind))
                total += torch.sparse.mm(bipartite_adjacency(edges, shape), known[relation[0]])
                count += degree(edges[1], num_nodes(graph, kind))
            round_[kind] = total / count.clamp_min(1).unsqueeze(1)
        if not round_:
            kind = min(missing - set(filled))
            raise GraphError(
                f"node type {kind!r} has no features and no relation into it from a type that has: "
                "give it features, or take featureless='table'."
            )
        filled |= round_
        known |= round_
    return filled


def _listed(relations: Sequence[Relation]) -> str:
    return ", ".join("-".join(relation) for relation in relations) or "no relations"
