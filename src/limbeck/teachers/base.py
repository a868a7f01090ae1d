"""What all our teachers share: their options, and hidden layers by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from limbeck.graphs.sparse import is_csr
from limbeck.graphs.view import View
from limbeck.students.mlp import Exposed
from limbeck.training.options import Options

Probability = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
ExposedState = Annotated[Exposed, Field(exclude_if=lambda exposed: exposed == "activation")]
"""Which hidden states a teacher shows.

Written down only where it is not the usual one, so that teachers stored before there was a choice
keep their name.
"""


def reset(*modules: torch.nn.Module) -> None:
    """Put modules back to a fresh start, those of a list one by one."""
    for module in modules:
        if isinstance(module, torch.nn.ModuleList):
            reset(*module)
        elif callable(back := getattr(module, "reset_parameters", None)):
            back()


def exposed_state(before: Tensor, after: Tensor, exposed: Exposed) -> Tensor:
    """A hidden state as ``layers`` names it: in front of its activation, or behind it."""
    return after if exposed == "activation" else before


class GNN(torch.nn.Module, ABC):
    """A graph neural network whose hidden layers can be asked for by name.

    ``edge_index`` is the usual int64 ``[2, E]``, or what :meth:`prepare` made of it, so that
    nothing that stays the same is computed in every epoch.
    """

    reads_types: ClassVar[bool] = False
    """Whether it is given the ``HeteroData`` for ``edge_index`` where there are types of nodes."""

    @abstractmethod
    def normalize(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """The form of the edges that :meth:`layers` multiplies with."""

    @abstractmethod
    def layers(self, x: Tensor, adj: Tensor) -> dict[str, Tensor]:
        """Each layer's output by name, first to last; the last is ``"logits"`` ``[N, C]``."""

    def prepare(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """Normalise the edges once; the result stands for ``edge_index`` in :meth:`forward`."""
        return edge_index if is_csr(edge_index) else self.normalize(edge_index, num_nodes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits ``[N, C]`` of all nodes of the graph given."""
        return self.layers(x, self.prepare(edge_index, int(x.shape[0])))["logits"]


class TeacherOptions(Options, ABC):
    """Hyper-parameters that every teacher has.

    Args:
        hidden_channels: Width of the hidden layers.
        num_layers: Number of graph layers.
        dropout: Probability of dropping a hidden unit in training.
        lr: Learning rate of Adam.
        weight_decay: L2 penalty inside Adam.
        max_epochs: Largest number of epochs.
        patience: Epochs without a new best on validation after which training stops.
        fan_out: Neighbours drawn per hop, outermost last; empty trains on the whole graph.
        batch_size: Training nodes per step where neighbours are drawn.
    """

    hidden_channels: PositiveInt = 64
    num_layers: PositiveInt = 2
    dropout: Probability = 0.5
    lr: float = Field(default=0.01, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    max_epochs: PositiveInt = 200
    patience: PositiveInt = 50
    fan_out: tuple[PositiveInt, ...] = ()
    batch_size: PositiveInt = 512

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]

    @property
    def hops(self) -> int:
        """Hops from a node to the furthest features that its answer depends on."""
        return self.num_layers

    def penalty(self, module: GNN) -> Tensor:
        """What training adds to the loss of each step, beside ``weight_decay``: nothing here."""
        return torch.zeros(())

    @abstractmethod
    def build(self, view: View) -> GNN:
        """A fresh network for the view's features, classes and observed nodes."""
