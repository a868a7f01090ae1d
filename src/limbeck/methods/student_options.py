"""Options of methods whose student may be a GNN: which network it is, and of what size."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from limbeck.graphs.view import View
from limbeck.methods.base import Method, PositiveInt, Probability
from limbeck.students.gnn import GNNStudent, graph_inputs
from limbeck.students.inputs import ViewInputs, inputs_of
from limbeck.students.mlp import Exposed
from limbeck.students.sa_mlp import SAMLP
from limbeck.students.structure_tables import FullTable
from limbeck.teachers.gat import GAT
from limbeck.teachers.gcn import GCN
from limbeck.teachers.gcnii import GCNII
from limbeck.teachers.rgcn import RGCN, Featureless
from limbeck.teachers.sage import SAGE

StudentName = Literal["mlp", "sa-mlp", "gcn", "gat", "sage", "gcnii", "rgcn"]


class StudentOptions(Method):
    r"""A method whose student may be a GNN.

    A GNN student is trained on all observed nodes at once, whatever ``batch_size``. Options beside
    those of :class:`~limbeck.methods.base.Method`:

    Args:
        student: ``"mlp"`` reads a node's features; ``"sa-mlp"`` the ids of its neighbours, too,
            through a table with a row per observed node and without a predictor for nodes that
            have none; ``"gcn"``, ``"gat"``, ``"sage"`` and ``"gcnii"`` read the graph around it,
            ``"rgcn"`` with all types of nodes.
        hidden_channels: Width of the hidden layers; of a GAT all heads together.
        num_layers: Number of an MLP's linear maps, of an SA-MLP decoder's, or of graph layers.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, before each ReLU; GAT, GCNII and R-GCN
            have none.
        heads: Heads of a GAT's hidden layers.
        out_heads: Heads of a GAT's last layer, whose mean are the logits.
        residual: Add to each layer of a GAT but the first a linear map of its input.
        attention_dropout: Probability of dropping an attention weight of a GAT in training.
        root_weight: Give a GraphSAGE's centre node a map of its own instead of averaging it, too.
        alpha: Weight of a GCNII's initial residual.
        theta: Strength of the own weights of a GCNII's layers.
        featureless: What stands, in an R-GCN, for the features of a type without any: the
            ``"mean"`` of its neighbours' or a trained ``"table"``.
        exposed: Which hidden states the student shows to losses that compare layers: those behind
            an ``"activation"``, or those in front of it (``"pre-activation"``).
    """

    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"input_dropout": (0.0, 0.3, 0.5, 0.6)}

    student: StudentName = "gcn"
    hidden_channels: PositiveInt = 64
    batch_size: PositiveInt | None = None
    heads: PositiveInt = 2
    out_heads: PositiveInt = 1
    residual: bool = False
    attention_dropout: Probability = 0.0
    root_weight: bool = False
    alpha: float = Field(default=0.1, ge=0, le=1)
    theta: float = Field(default=0.5, gt=0)
    featureless: Featureless = "mean"
    exposed: Exposed = "activation"

    @model_validator(mode="after")
    def _heads_divide_width(self) -> StudentOptions:
        if self.student == "gat" and self.hidden_channels % self.heads:
            raise ValueError(
                f"hidden_channels {self.hidden_channels} is not a multiple of heads {self.heads}"
            )
        return self

    def build(self, view: View) -> tuple[torch.nn.Module, ViewInputs]:
        """A fresh student for a view, and what it is given of the view's nodes.

        Returns:
            The student, whose ``layers(inputs)`` names its hidden states, and its inputs in each
            condition.
        """
        if self.student == "mlp":
            mlp = self.build_mlp(view)
            mlp.exposed = self.exposed
            return mlp, inputs_of(view)
        if self.student == "sa-mlp":
            return self.build_sa_mlp(view), inputs_of(view, neighbors=True)
        gnn = self.build_gnn(view)
        return GNNStudent(gnn, view.num_observed), graph_inputs(view, gnn)

    def build_gnn(self, view: View) -> GAT | GCN | GCNII | RGCN | SAGE:
        """A fresh GNN of this method's size; there must be one."""
        width, classes = self.hidden_channels, view.num_classes
        if self.student == "gat":
            return GAT(
                view.num_features,
                width,
                classes,
                self.num_layers,
                self.heads,
                self.dropout,
                self.attention_dropout,
                out_heads=self.out_heads,
                residual=self.residual,
                input_dropout=self.input_dropout,
                exposed=self.exposed,
            )
        if self.student == "gcnii":
            return GCNII(
                view.num_features,
                width,
                classes,
                self.num_layers,
                self.alpha,
                self.theta,
                self.dropout,
                input_dropout=self.input_dropout,
                exposed=self.exposed,
            )
        if self.student == "sage":
            return SAGE(
                view.num_features,
                width,
                classes,
                self.num_layers,
                self.norm,
                self.dropout,
                self.input_dropout,
                root_weight=self.root_weight,
                exposed=self.exposed,
            )
        if self.student == "rgcn":
            return RGCN.for_view(
                view,
                width,
                self.featureless,
                num_layers=self.num_layers,
                dropout=self.dropout,
                input_dropout=self.input_dropout,
                exposed=self.exposed,
            )
        assert self.student == "gcn"
        return GCN(
            view.num_features,
            width,
            classes,
            self.num_layers,
            self.norm,
            self.dropout,
            self.input_dropout,
            exposed=self.exposed,
        )

    def build_sa_mlp(self, view: View) -> SAMLP:
        """A fresh SA-MLP of this method's size, all nodes of which go through its table."""
        return SAMLP(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            FullTable(view.num_observed, self.hidden_channels),
            self.num_layers,
            self.norm,
            self.dropout,
            self.input_dropout,
        )
