"""What a teacher hands over: computed once, frozen, and only about observed nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from limbeck.errors import TeacherError
from limbeck.graphs.hetero import edges_for
from limbeck.graphs.sparse import is_csr
from limbeck.graphs.view import View
from limbeck.teachers.base import GNN

NOISE_ROWS = 4096
"""Nodes whose noise is drawn at once, so that it never takes as much memory as the features."""


@dataclass(frozen=True, eq=False)
class Knowledge:
    """A teacher's word on the observed nodes of a view.

    Args:
        logits: float32 ``[observed, C]``.
        hidden: Hidden layers by name, each float32 ``[observed, H]``, first to last; empty for a
            teacher that is only logits.
        depth: Number of graph layers, ``None`` if not known.
        name: What the teacher is called in tables.
        ask_noisy: Computes :attr:`noisy_logits`; ``None`` for a teacher that is only logits.
        ask_typed: Computes :attr:`typed_layers`; ``None`` for a teacher that reads no types.
    """

    logits: Tensor
    hidden: dict[str, Tensor] = field(default_factory=dict)
    depth: int | None = None
    name: str = "logits"
    ask_noisy: Callable[[], Tensor] | None = field(default=None, repr=False)
    ask_typed: Callable[[], dict[str, dict[str, Tensor]]] | None = field(default=None, repr=False)

    @cached_property
    def typed_layers(self) -> dict[str, dict[str, Tensor]] | None:
        """Outputs of all layers for all types of nodes, by layer, then by type, ``[N, .]`` each.

        ``None`` where there are no types, or the teacher does not read them. Computed when a
        method first reads it, and not stored.
        """
        return None if self.ask_typed is None else self.ask_typed()

    @cached_property
    def noisy_logits(self) -> Tensor | None:
        """Logits ``[observed, C]`` under noisy features, ``None`` if there is no network to ask.

        One draw of standard normal noise on every (standardised) feature of the observed nodes,
        the same for every teacher of a view. It is computed when a method first reads it: few
        methods do, and sparse features must become dense for it.
        """
        return None if self.ask_noisy is None else self.ask_noisy()


@dataclass(frozen=True, eq=False)
class Answers:
    """A teacher's predictions for scoring; no method ever sees them.

    Args:
        observed: Logits of the observed nodes on the observed graph, ``[observed, C]``.
        unseen: Logits of the unseen nodes with the full graph restored, ``[unseen, C]``;
            ``None`` where there are none or the teacher cannot say.
        isolated: Logits of the unseen nodes without their edges, likewise.
    """

    observed: Tensor
    unseen: Tensor | None = None
    isolated: Tensor | None = None


@dataclass(frozen=True, eq=False)
class FittedTeacher:
    """A trained teacher as the rest of the project sees it.

    Args:
        name: What it is called in tables.
        knowledge: What methods learn from.
        answers: What it is scored by.
        module: The network, ``None`` if there are only logits.
        options: Its hyper-parameters, for the record.
        num_parameters: Number of trained parameters, ``None`` if not known.
        train_seconds: Time its training took, ``None`` if not known.
        view: :attr:`~limbeck.graphs.view.View.cut_fingerprint` of the view that it was asked about;
            empty if not known.
    """

    name: str
    knowledge: Knowledge
    answers: Answers
    module: torch.nn.Module | None = None
    options: dict[str, Any] = field(default_factory=dict)
    num_parameters: int | None = None
    train_seconds: float | None = None
    view: str = ""


def check_logits(logits: Tensor, rows: int, classes: int, where: str) -> Tensor:
    """Check a teacher's logits and return them as float32.

    Raises:
        TeacherError: Wrong shape, or a value that is not a finite number.
    """
    if logits.ndim != 2 or tuple(logits.shape) != (rows, classes):
        raise TeacherError(
            f"{where}: logits have the shape {tuple(logits.shape)}, but the graph asks for "
            f"{(rows, classes)}: one row per node and one column per class."
        )
    logits = logits.detach().to(torch.float32).cpu()
    if not bool(torch.isfinite(logits).all()):
        row = int((~torch.isfinite(logits)).any(1).nonzero()[0])
        raise TeacherError(
            f"{where}: the logits of node {row} hold NaN or infinity; every value must be finite."
        )
    return logits.contiguous()


@torch.no_grad()
def ask(
    module: torch.nn.Module, view: View, name: str, depth: int | None
) -> tuple[Knowledge, Answers]:
    """Ask a trained module for everything it knows about a view.

    Observed nodes are asked on the observed graph; unseen ones with the full graph restored,
    and once more without their edges.
    """
    module.eval()
    observed = view.observed
    where = f"teacher {name!r}"
    rows, classes = view.num_observed, view.num_classes
    hidden: dict[str, Tensor] = {}
    edges = edges_for(module, observed)
    if isinstance(module, GNN):
        layers = module.layers(observed.x, module.prepare(edges, rows))
        logits = layers.pop("logits")
        hidden = layers
    else:
        logits = _call(module, observed.x, edges, name)
    knowledge = Knowledge(check_logits(logits, rows, classes, where), hidden, depth, name)
    if not view.has_unseen:
        return knowledge, Answers(knowledge.logits)
    total = len(view.nodes)
    unseen = []
    for graph in (view.everything, view.without_new_edges):
        logits = _call(module, graph.x, edges_for(module, graph), name)
        unseen.append(check_logits(logits, total, classes, where)[rows:])
    return knowledge, Answers(knowledge.logits, *unseen)


def with_noise(knowledge: Knowledge, module: torch.nn.Module, view: View) -> Knowledge:
    """The same knowledge, which asks ``module`` for what is computed when it is first read."""
    noisy = partial(ask_noisy, module, view, knowledge.name)
    reads_types = "hetero" in view.observed and hasattr(module, "typed_layers")
    typed = partial(ask_typed, module, view) if reads_types else None
    return replace(knowledge, ask_noisy=noisy, ask_typed=typed)


@torch.no_grad()
def ask_typed(module: Any, view: View) -> dict[str, dict[str, Tensor]]:
    """Ask a trained R-GCN for the layers of all types of nodes of the observed graph."""
    module.eval()
    adj = module.prepare(view.observed.hetero, view.num_observed)
    layers: dict[str, dict[str, Tensor]] = module.typed_layers(view.observed.x, adj)
    return layers


@torch.no_grad()
def ask_noisy(module: torch.nn.Module, view: View, name: str) -> Tensor:
    """Ask a trained module about the observed graph with standard normal noise on all features.

    The noise is drawn from the fingerprint of what the view observes, so it depends on neither
    the caller's random numbers nor anything unseen.

    Returns:
        Logits ``[observed, C]``, float32.

    Raises:
        TeacherError: The module's answer does not fit the graph.
    """
    module.eval()
    x = view.observed.x.to_dense() if is_csr(view.observed.x) else view.observed.x.clone()
    generator = torch.Generator().manual_seed(int(view.fingerprint[:12], 16))
    for rows in x.split(NOISE_ROWS):
        rows.add_(torch.randn(rows.shape, generator=generator))
    logits = _call(module, x, edges_for(module, view.observed), name)
    return check_logits(
        logits, view.num_observed, view.num_classes, f"teacher {name!r} under noise"
    )


def _call(module: torch.nn.Module, x: Tensor, edge_index: Tensor | HeteroData, name: str) -> Tensor:
    if isinstance(edge_index, HeteroData) and not isinstance(module, GNN):
        features = {**edge_index.collect("x", allow_empty=True), edge_index.target: x}
        logits = module(features, edge_index.edge_index_dict)
        logits = logits.get(edge_index.target) if isinstance(logits, dict) else logits
    else:
        logits = module(x, edge_index)
    if not isinstance(logits, Tensor):
        raise TeacherError(
            f"teacher {name!r}: forward(x, edge_index) returned {type(logits).__name__}; it must "
            "return the logits of all nodes as one tensor."
        )
    return logits
