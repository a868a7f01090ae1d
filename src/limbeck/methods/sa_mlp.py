"""SA-MLP: soft labels and mixtures of them into an MLP that knows a node's neighbours by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.graphs.sparse import csr_tensor
from limbeck.graphs.view import View
from limbeck.methods.base import Distilled, Method, PositiveInt, Probability
from limbeck.methods.losses import soft_target_loss
from limbeck.students.inputs import NodeInputs, inputs_of
from limbeck.students.mlp import Norm, input_dropout
from limbeck.students.sa_mlp import (
    SAMLP,
    AdjNorm,
    FeatureScale,
    FeatureScaling,
    Head,
    Order,
)
from limbeck.students.structure_tables import (
    FullTable,
    HashedTable,
    LandmarkTable,
    StructureTable,
    TiedTable,
    entry_rows,
    most_named,
)
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint, batches, seeded

Weight = Annotated[float, Field(ge=0)]
Table = Literal["full", "landmark", "hashed", "tied"]


class StructureAwareMLP(Method):
    r"""Structure-aware MLP, SA-MLP (Chen et al., TMLR 2024).

    The student reads a node's features and its row of the adjacency over the observed nodes. In
    the first stage, on batches ``B`` of observed nodes with partners :math:`\pi` drawn within the
    batch and :math:`\lambda \sim \mathrm{Beta}(\eta, \eta)`,

    .. math::
        \mathcal{L} = \frac{w_{ce}}{|B \cap L|} \sum_{v \in B \cap L}
        \mathrm{CE}(y_v, \sigma(\mathbf{s}_v))
        + \frac{w_{kd}}{|B|} \sum_{v \in B} \tau^2 \, \mathrm{KL}(\mathbf{p}_v \,\|\,
        \sigma(\mathbf{s}_v / \tau))
        + \frac{w_{mix}}{|B|} \sum_{v \in B} \tau^2 \, \mathrm{KL}(\tilde{\mathbf{p}}_v \,\|\,
        \sigma(\tilde{\mathbf{s}}_v / \tau))

    with the teacher's :math:`\mathbf{p} = \sigma(\mathbf{t} / \tau)`, and
    :math:`\tilde{\mathbf{s}}_v` the student's answer to the mixture
    :math:`\lambda \cdot_v + (1 - \lambda) \cdot_{\pi(v)}` of rows and features alike. Both
    encoders are linear, so their outputs are mixed instead. In the second stage everything but the
    latent predictor ``R`` is frozen, and on observed nodes that are not for validation

    .. math::
        \mathcal{L}_2 = w_{emb} \, \frac{\sum_v \lVert \mathrm{ReLU}(R(\mathbf{x}_v)) -
        \mathrm{ReLU}(\mathbf{z}_A) \rVert^2}{\sum_v \lVert \mathrm{ReLU}(\mathbf{z}_A) \rVert^2}
        + w_{kd} \, \mathrm{KL} + w_{ce} \, \mathrm{CE}

    of the answers without structure. From then on a node without known neighbours goes to ``R``.
    What of this is the paper's and what is ours is written in ``docs/methods/sa-mlp.md``. Options
    beside those of :class:`~limbeck.methods.base.Method`:

    Args:
        hidden_channels: Width of the encoders, and of the decoders' hidden layers.
        num_layers: Linear maps of each decoder.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, in hidden layers of decoders and predictor.
        ce_weight: :math:`w_{ce}`, the weight of the hard labels.
        kd_weight: :math:`w_{kd}`, the weight of the teacher's answers.
        mix_weight: :math:`w_{mix}`, the weight of mixtures.
        temperature: :math:`\tau`, at which teacher and student are compared.
        mix_concentration: :math:`\eta` of the Beta distribution.
        mix_inputs: What is mixed: ``"both"`` or the ``"structure"`` alone.
        mix_targets: Mix the teacher's ``"probabilities"`` or its ``"logits"``.
        mix_per: Draw :math:`\lambda` once per ``"batch"`` or for each ``"node"``.
        replace_originals: Only mixtures learn from the teacher, not the nodes themselves.
        mix_labels: Mix hard labels, too, where both nodes have one, with the weight
            :math:`w_{ce}`.
        decoupled: Draw :math:`\lambda` for rows and features by themselves; the target's is their
            mean.
        stages: ``"two"``; ``"one"`` leaves the second out; ``"joint"`` adds its loss to each step
            of the first.
        embedding_weight: :math:`w_{emb}`, the weight of the predicted embedding.
        stage2_train: ``"predictor"``, or ``"all"`` for a copy of everything but the table, too,
            which then answers for nodes without neighbours.
        stage2_teacher: Whom the second stage learns from: the ``"gnn"``, the ``"student"`` of the
            first stage, or ``"both"``, the mean of the two divergences.
        stage2_mix: Add mixtures of features to the second stage.
        hold_out: Leave validation nodes out of the first stage, too. What the teacher says of a
            node can be learnt by heart, so otherwise validation does not tell whether a new node
            would be answered as well. ``None`` does so where there are new nodes to answer, that
            is in a view with unseen nodes, and not where test nodes are learnt from, too.
        structure_dropout: Probability that a node is trained as if it had no neighbours; then the
            first stage trains the predictor, too.
        adj_norm: Whether the sum over neighbours is divided by their number (``"row"``), its root
            (``"sqrt-degree"``), or not (``"none"``).
        self_loops: Whether an observed node is its own neighbour.
        order: Of dropout, ReLU and norm in hidden layers: ``"sa-mlp"`` or ``"glnn"``.
        blend: Degree at which the row and the predictor count the same; 0 for no blend.
        init: ``"official"`` starts the table as a linear layer of that many inputs; ``"scaled"``
            so that the structure part of a node of mean degree has the standard deviation
            ``init_std``.
        init_std: See there.
        stream_norm: ``"none"``, ``"batch"`` or ``"layer"``, on the outputs of both encoders.
        feature_scale: ``"none"``; ``"row"`` divides by the sum of a row's absolute values;
            ``"standard"`` standardises columns.
        table: ``"full"``: a row per observed node; ``"landmark"``: for those most often named;
            ``"hashed"``: rows share entries; ``"tied"``: rows follow from features.
        table_lr: Learning rate of row-wise Adagrad for a full table, which then takes steps of its
            own that touch no row but those of a batch, see
            :class:`~limbeck.students.structure_tables.FullTable`; ``None`` trains it with Adam like
            the rest. For tables that dense gradients are too large for.
        table_rows: Landmarks, or entries of the hashed table; at least one.
        num_hashes: Entries that a hashed row is the sum of.
        row_cap: Most neighbours read of a node in training, drawn anew in each step and weighted
            to make up for the others; ``None`` reads all. Evaluation does.
    """

    name: ClassVar[str] = "sa-mlp"
    title: ClassVar[str] = "structure-aware MLP: soft labels, mixed, into features and neighbours"
    paper: ClassVar[str] = "https://arxiv.org/abs/2210.09609"
    # not mix_weight, nor a kd_weight of 0: a table that tunes all of its methods would make one of
    # this method and its ablations
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dropout": (0.0, 0.2, 0.5, 0.8),
        "mix_concentration": (0.2, 0.5, 1.0, 4.0),
        "kd_weight": (0.5, 1.0, 2.0),
        "adj_norm": ("none", "row"),
        "feature_scale": ("none", "row", "standard"),
        "stream_norm": ("none", "layer"),
    }

    hidden_channels: PositiveInt = 256
    num_layers: PositiveInt = 1
    dropout: Probability = 0.5
    batch_size: PositiveInt | None = None
    max_epochs: PositiveInt = 500
    patience: PositiveInt = 100
    ce_weight: Weight = 1.0
    kd_weight: Weight = 1.0
    mix_weight: Weight = 1.0
    temperature: float = Field(default=1.0, gt=0)
    mix_concentration: float = Field(default=1.0, gt=0)
    mix_inputs: Literal["both", "structure"] = "both"
    mix_targets: Literal["probabilities", "logits"] = "probabilities"
    mix_per: Literal["batch", "node"] = "batch"
    replace_originals: bool = False
    mix_labels: bool = False
    decoupled: bool = False
    stages: Literal["one", "two", "joint"] = "two"
    embedding_weight: Weight = 1.0
    stage2_train: Literal["predictor", "all"] = "predictor"
    stage2_teacher: Literal["gnn", "student", "both"] = "gnn"
    stage2_mix: bool = False
    hold_out: bool | None = None
    structure_dropout: Probability = 0.0
    adj_norm: AdjNorm = "none"
    self_loops: bool = False
    order: Order = "sa-mlp"
    blend: Weight = 0.0
    init: Literal["official", "scaled"] = "official"
    init_std: float = Field(default=0.3, gt=0)
    stream_norm: Norm = "none"
    feature_scale: FeatureScale = "none"
    table: Table = "full"
    table_lr: Annotated[float, Field(gt=0)] | None = None
    table_rows: PositiveInt = 1024
    num_hashes: PositiveInt = 2
    row_cap: PositiveInt | None = None

    @field_validator("mix_weight")
    @classmethod
    def _something_to_learn(cls, mix_weight: float, info: ValidationInfo) -> float:
        weights = [mix_weight, info.data.get("ce_weight", 1), info.data.get("kd_weight", 1)]
        if not any(weights):
            raise PydanticCustomError(
                "nothing_to_learn", "one of ce_weight, kd_weight and mix_weight must be positive"
            )
        return mix_weight

    @field_validator("replace_originals")
    @classmethod
    def _mixtures_to_replace_by(cls, replaced: bool, info: ValidationInfo) -> bool:
        if replaced and info.data.get("mix_weight") == 0:
            raise PydanticCustomError("no_mixtures", "with mix_weight 0 there are no mixtures")
        return replaced

    @field_validator("decoupled")
    @classmethod
    def _two_to_decouple(cls, decoupled: bool, info: ValidationInfo) -> bool:
        if decoupled and info.data.get("mix_inputs") == "structure":
            raise PydanticCustomError(
                "one_input_mixed", "with mix_inputs 'structure' there is one weight only"
            )
        return decoupled

    @field_validator("table_lr")
    @classmethod
    def _rows_to_step(cls, table_lr: float | None, info: ValidationInfo) -> float | None:
        if table_lr is not None and info.data.get("table") != "full":
            raise PydanticCustomError("no_full_table", "only table 'full' takes steps of its own")
        return table_lr

    @property
    def reads_teacher(self) -> bool:
        """Whether any loss asks the teacher."""
        return self.kd_weight > 0 or self.mix_weight > 0

    def distill(
        self,
        view: View,
        knowledge: Knowledge | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Train the student with its table, then the predictor that stands in for the table.

        A run that is resumed in its second stage trains the first one again, which ends with the
        same weights.

        Raises:
            TeacherError: There is no teacher to learn from.
        """
        if knowledge is None and self.reads_teacher:
            raise TeacherError(f"method {self.name!r} learns from a teacher: give one.")
        inputs = inputs_of(view, neighbors=True, self_loops=self.self_loops)
        student = self.build(view, inputs.observed)
        lessons = Lessons(self, student, inputs.observed, view, knowledge)
        first = self.fit(
            student,
            lessons.with_structure,
            lessons.accuracy_with_structure,
            checkpoint=checkpoint and checkpoint.of_part("stage 1"),
            progress=progress,
        )
        if self.stages != "two":
            return Distilled(student, first, inputs)
        second = self.fit(
            lessons.freeze(),
            lessons.without_structure,
            lessons.accuracy_without_structure,
            checkpoint=checkpoint and checkpoint.of_part("stage 2"),
            progress=f"{progress} without structure" if progress else None,
        )
        student.routed = True
        return Distilled(student.eval(), first.followed_by(second), inputs)

    def build(self, view: View, known: NodeInputs) -> SAMLP:
        """A fresh student for a view whose observed nodes have the inputs ``known``."""
        scaling = FeatureScaling(self.feature_scale, view.num_features)
        scaling.fit(known.x)
        student = SAMLP(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            self.build_table(NodeInputs(scaling(known.x), neighbors=known.neighbors)),
            self.num_layers,
            self.norm,
            self.dropout,
            self.input_dropout,
            scaling=scaling,
            adj_norm=self.adj_norm,
            stream_norm=self.stream_norm,
            order=self.order,
            blend=self.blend,
            own_head=self.stages == "two" and self.stage2_train == "all",
        )
        # where the first stage trains the predictor, it is asked from the start
        student.routed = self.stages == "joint" or self.structure_dropout > 0
        return student

    def build_table(self, known: NodeInputs) -> StructureTable:
        """A fresh table over the observed nodes, whose scaled inputs are ``known``."""
        assert known.neighbors is not None
        num, h = len(known), self.hidden_channels
        std = None
        if self.init == "scaled":
            mean_degree = len(known.neighbors.values()) / max(num, 1)
            std = self.init_std / max(mean_degree, 1.0) ** 0.5
        if self.table == "landmark":
            return LandmarkTable(num, h, most_named(known.neighbors, self.table_rows), std)
        if self.table == "hashed":
            return HashedTable(num, h, self.table_rows, self.num_hashes, std)
        if self.table == "tied":
            return TiedTable(known.x, h, std)
        return FullTable(num, h, std, row_lr=self.table_lr, row_decay=self.weight_decay)


class StructureAwareLabels(StructureAwareMLP):
    """SA-MLP on labels alone: what its inputs are worth without a teacher.

    Options are those of :class:`StructureAwareMLP`.
    """

    name: ClassVar[str] = "sa-mlp-labels"
    title: ClassVar[str] = "structure-aware MLP on labels alone, no teacher"
    paper: ClassVar[str] = "control of https://arxiv.org/abs/2210.09609"
    needs_teacher: ClassVar[bool] = False
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "kd_weight": (0.0,),
        "mix_concentration": (1.0,),
    }

    kd_weight: Weight = 0.0
    mix_weight: Weight = 0.0


# --- structure mixing -------------------------------------------------------------------------


class Mixture(NamedTuple):
    r"""How the nodes of a batch are mixed with each other.

    Args:
        partner: :math:`\pi`, the other node of each, int64 ``[B]``, a permutation.
        structure: Weight of the node's own structure part, ``[B, 1]`` or ``[1, 1]``.
        features: Weight of its own features, likewise.
        target: Weight of its own target, likewise.
    """

    partner: Tensor
    structure: Tensor
    features: Tensor
    target: Tensor

    def mix(self, values: Tensor, own: Tensor) -> Tensor:
        """The values ``[B, .]`` of the nodes and their partners, weighted ``own`` to the rest."""
        return own * values + (1 - own) * values[self.partner]


def draw_mixture(num_nodes: int, seed: int, method: StructureAwareMLP) -> Mixture:
    r"""Draw partners and weights :math:`\lambda \sim \mathrm{Beta}(\eta, \eta)` for a batch.

    The draw has a seed of its own, so that a run without mixtures draws the same dropout.

    Args:
        num_nodes: Nodes ``B`` of the batch.
        seed: Of the draw.
        method: Its options say what is mixed, and how.
    """
    with seeded(seed):
        partner = torch.randperm(num_nodes)
        shape = (num_nodes if method.mix_per == "node" else 1, 1)
        concentration = torch.full(shape, method.mix_concentration)
        beta = torch.distributions.Beta(concentration, concentration)
        own = beta.sample()
        other = beta.sample() if method.decoupled else own
    if method.mix_inputs == "structure":
        return Mixture(partner, own, torch.ones_like(own), own)
    return Mixture(partner, own, other, (own + other) / 2)


def mixed_target_loss(
    student: Tensor, teacher: Tensor, mixture: Mixture, temperature: float = 1.0
) -> Tensor:
    r"""Divergence of the answers to mixtures from mixtures of the teacher's answers.

    .. math::
        \frac{\tau^2}{|B|} \sum_v \mathrm{KL}(\lambda \, \sigma(\mathbf{t}_v / \tau)
        + (1 - \lambda) \, \sigma(\mathbf{t}_{\pi(v)} / \tau) \,\|\,
        \sigma(\tilde{\mathbf{s}}_v / \tau))

    Args:
        student: Logits ``[B, C]`` of the mixtures.
        teacher: Logits ``[B, C]`` of the nodes themselves, without gradient.
        mixture: How they were mixed.
        temperature: :math:`\tau > 0`.
    """
    target = mixture.mix((teacher / temperature).softmax(1), mixture.target)
    log_student = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(log_student, target, reduction="batchmean") * temperature**2


@contextmanager
def frozen_statistics(module: torch.nn.Module) -> Iterator[None]:
    """Run a block without moving the running statistics of batch norms: mixtures are no nodes."""
    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm1d)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def capped(neighbors: Tensor, cap: int) -> Tensor:
    r"""At most ``cap`` neighbours of each node, drawn uniformly without repetition.

    Those of a node with more neighbours have :math:`\deg / \mathrm{cap}` times their weight, so
    that any sum over them is the full one in expectation.

    Args:
        neighbors: CSR ``[B, N]``.
        cap: Most neighbours to keep, at least 1.
    """
    lengths = neighbors.crow_indices().diff()
    if len(lengths) == 0 or int(lengths.max()) <= cap:
        return neighbors
    row = entry_rows(neighbors)
    order = torch.rand(len(row)).argsort()
    order = order[row[order].argsort(stable=True)]  # rows in their order, shuffled within
    place = torch.arange(len(row)) - neighbors.crow_indices()[row]
    kept = order[place < cap]
    start = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    torch.cumsum(lengths.clamp_max(cap), 0, out=start[1:])
    weight = neighbors.values()[kept] * (lengths / cap).clamp_min(1.0)[row[kept]]
    size = (len(neighbors), int(neighbors.shape[1]))
    return csr_tensor(start, neighbors.col_indices()[kept], weight, size)


# --- the two stages ---------------------------------------------------------------------------


class Targets(NamedTuple):
    """What is asked of the nodes of a batch.

    Args:
        labelled: Which of them are training nodes, bool ``[B]``.
        y: Labels, int64 ``[B]``; read where ``labelled`` only.
        soft: The teacher's logits ``[B, C]``; ``None`` without a teacher.
    """

    labelled: Tensor
    y: Tensor
    soft: Tensor | None


class Lessons:
    """Losses and validation of both stages.

    Args:
        method: The method, for its options.
        student: What is trained.
        known: Inputs of the observed nodes.
        view: What may be seen.
        knowledge: What the teacher says of the observed nodes; ``None`` for labels alone.
    """

    def __init__(
        self,
        method: StructureAwareMLP,
        student: SAMLP,
        known: NodeInputs,
        view: View,
        knowledge: Knowledge | None,
    ) -> None:
        self.method = method
        self.student = student
        self.known = known
        self.y = view.observed.y
        self.soft = None if knowledge is None else knowledge.logits
        observed = torch.arange(view.num_observed)
        self.is_train = torch.isin(observed, view.train)
        self.is_val = torch.isin(observed, view.val)
        # the predictor remembers what it is trained on, so validation nodes must be new to it
        self.second_nodes = observed[~self.is_val]
        hold_out = view.has_unseen if method.hold_out is None else method.hold_out
        self.first_nodes = self.second_nodes if hold_out else observed
        if not method.reads_teacher:  # labels alone say nothing of the other nodes
            self.first_nodes = view.train
        self.val, self.y_val = known.take(view.val), self.y[view.val]
        self.mix_seed = int(torch.randint(2**31, ())) if method.mix_weight > 0 else 0

    # stage 1: the table, both encoders, the gate and the decoders

    def with_structure(self, epoch: int) -> Iterator[Tensor]:
        """Losses of an epoch of the first stage."""
        method, student, head = self.method, self.student, self.student.head
        for step, nodes in enumerate(batches(self.first_nodes, method.batch_size)):
            batch, targets = self.known.take(nodes), self.targets(nodes)
            assert batch.neighbors is not None
            rows = batch.neighbors
            if method.row_cap is not None:
                rows = capped(rows, method.row_cap)
            x = student.read(batch.x)
            z_a, z_x = student.structure_part(rows), head.encode(x)
            given = z_a
            if student.routed:
                degree = student.table.degree(rows)
                guess = student.predictor(x)
                given = torch.where(self.rowless(nodes, degree).unsqueeze(1), guess, z_a)
            logits = head.decode(given, z_x).logits
            loss = self.lesson(logits, targets, soft_weight=self.soft_weight)
            if method.mix_weight > 0:
                mixture = self.mixture(len(nodes), 1, epoch, step)
                with frozen_statistics(head):
                    mixed = head.decode(
                        mixture.mix(z_a, mixture.structure), mixture.mix(z_x, mixture.features)
                    )
                loss = loss + self.mixed_lesson(mixed.logits, targets, mixture)
            if method.stages == "joint":
                new = (~self.is_val[nodes]).nonzero().flatten()
                with frozen_statistics(head):
                    loss = loss + self.predictor_lesson(
                        head,
                        guess[new],
                        z_x[new],
                        head.embed(z_a.detach())[new].detach(),
                        degree[new],
                        self.targets(nodes[new]),
                        logits[new].detach(),
                    )
            yield loss

    def accuracy_with_structure(self) -> float:
        """Accuracy on validation nodes with their neighbours.

        Where the predictor is trained in the first stage, the mean with that without neighbours.
        """
        with_rows = self.accuracy(self.student(self.val))
        if not self.student.routed:
            return with_rows
        return (with_rows + self.accuracy_without_structure()) / 2

    def rowless(self, nodes: Tensor, degree: Tensor) -> Tensor:
        """Which nodes of a batch are trained as if they had no neighbours, bool ``[B]``."""
        lone = degree == 0
        if self.method.structure_dropout > 0:
            lone = lone | (torch.rand(len(nodes)) < self.method.structure_dropout)
        return lone & ~self.is_val[nodes]

    # stage 2: the predictor

    @torch.no_grad()
    def freeze(self) -> torch.nn.Module:
        """End the first stage: note what the predictor is to meet, and return what it trains."""
        student, rows = self.student.eval(), self.known.neighbors
        assert rows is not None
        z_a = student.structure_part(rows)
        self.degree = student.table.degree(rows)
        self.embedding = student.head.embed(z_a)
        z_x = student.head.encode(student.read(self.known.x))
        self.answers = student.head.decode(z_a, z_x).logits
        if student.lone_head is None:
            # a copy, so that no gradient is gathered where nothing is trained
            self.lone_head = copy.deepcopy(student.head).requires_grad_(False)
            return student.predictor
        self.lone_head = student.lone_head
        self.lone_head.load_state_dict(student.head.state_dict())
        return torch.nn.ModuleList([student.predictor, self.lone_head])

    def without_structure(self, epoch: int) -> Iterator[Tensor]:
        """Losses of an epoch of the second stage, after :meth:`freeze`."""
        method, predictor, head = self.method, self.student.predictor, self.lone_head
        for step, nodes in enumerate(batches(self.second_nodes, method.batch_size)):
            targets = self.targets(nodes)
            x = self.student.scaling(self.known.take(nodes).x)
            x = input_dropout(x, method.input_dropout, predictor.training)
            first, z_x = predictor.first(x), head.encode(x)
            loss = self.predictor_lesson(
                head,
                predictor.rest(first),
                z_x,
                self.embedding[nodes],
                self.degree[nodes],
                targets,
                self.answers[nodes],
            )
            if method.stage2_mix and method.mix_weight > 0:
                mixture = self.mixture(len(nodes), 2, epoch, step)
                with frozen_statistics(predictor), frozen_statistics(head):
                    # the predictor's first map is linear, too, so that its outputs can be mixed
                    guess = predictor.rest(mixture.mix(first, mixture.target))
                    mixed = head.decode(guess, mixture.mix(z_x, mixture.target))
                loss = loss + self.mixed_lesson(mixed.logits, targets, mixture)
            if loss.requires_grad:  # labels alone, and no node of this batch has one
                yield loss

    def accuracy_without_structure(self) -> float:
        """Accuracy on validation nodes that are asked without their neighbours."""
        return self.accuracy(self.student.without_structure(self.val.x))

    # losses

    @property
    def soft_weight(self) -> float:
        """Weight of the teacher's answers for the nodes themselves, in the first stage."""
        return 0.0 if self.method.replace_originals else self.method.kd_weight

    def targets(self, nodes: Tensor) -> Targets:
        """What is asked of ``nodes`` (int64 ``[B]``)."""
        soft = None if self.soft is None else self.soft[nodes]
        return Targets(self.is_train[nodes], self.y[nodes], soft)

    def mixture(self, num_nodes: int, stage: int, epoch: int, step: int) -> Mixture:
        """The mixture of one step; the same one when an interrupted run is resumed."""
        return draw_mixture(
            num_nodes, self.mix_seed + (stage << 48) + (epoch << 24) + step, self.method
        )

    def lesson(self, logits: Tensor, targets: Targets, soft_weight: float) -> Tensor:
        """Hard labels of the training nodes and the teacher's answers for all."""
        loss = torch.zeros(())
        if self.method.ce_weight > 0 and bool(targets.labelled.any()):
            hard = F.cross_entropy(logits[targets.labelled], targets.y[targets.labelled])
            loss = loss + self.method.ce_weight * hard
        if soft_weight > 0 and targets.soft is not None:
            soft = soft_target_loss(logits, targets.soft, self.method.temperature)
            loss = loss + soft_weight * soft
        return loss

    def mixed_lesson(self, logits: Tensor, targets: Targets, mixture: Mixture) -> Tensor:
        """The teacher's answers, and perhaps hard labels, for mixtures of nodes."""
        method = self.method
        assert targets.soft is not None
        if method.mix_targets == "logits":
            mixed = mixture.mix(targets.soft, mixture.target)
            soft = soft_target_loss(logits, mixed, method.temperature)
        else:
            soft = mixed_target_loss(logits, targets.soft, mixture, method.temperature)
        loss = method.mix_weight * soft
        both = targets.labelled & targets.labelled[mixture.partner]
        if method.mix_labels and method.ce_weight > 0 and bool(both.any()):
            own = mixture.target.squeeze(1).expand(len(logits))[both]
            mine = F.cross_entropy(logits[both], targets.y[both], reduction="none")
            others = targets.y[mixture.partner][both]
            theirs = F.cross_entropy(logits[both], others, reduction="none")
            loss = loss + method.ce_weight * (own * mine + (1 - own) * theirs).mean()
        return loss

    def predictor_lesson(
        self,
        head: Head,
        guess: Tensor,
        z_x: Tensor,
        embedding: Tensor,
        degree: Tensor,
        targets: Targets,
        answers: Tensor,
    ) -> Tensor:
        """The embedding that a node's row would have given, and its answer without the row.

        Args:
            head: What decodes.
            guess: The predictor's structure parts ``[B, h]``.
            z_x: Feature parts ``[B, h]``.
            embedding: What the rows give, behind norm and ReLU, ``[B, h]``, without gradient.
            degree: Known degrees ``[B]``; a node without row has no embedding to meet.
            targets: Labels and the teacher's answers.
            answers: The student's answers with structure ``[B, C]``, without gradient.
        """
        method = self.method
        logits = head.decode(guess, z_x).logits
        gnn = method.stage2_teacher != "student"
        share = 0.5 if method.stage2_teacher == "both" else 1.0
        loss = self.lesson(logits, targets, soft_weight=share * method.kd_weight if gnn else 0.0)
        if method.stage2_teacher != "gnn" and method.kd_weight > 0:
            soft = soft_target_loss(logits, answers, method.temperature)
            loss = loss + share * method.kd_weight * soft
        known = degree > 0
        if method.embedding_weight > 0 and bool(known.any()):
            with frozen_statistics(head):
                predicted = head.embed(guess)
            distance = embedding_loss(predicted[known], embedding[known])
            loss = loss + method.embedding_weight * distance
        return loss

    def accuracy(self, logits: Tensor) -> float:
        """Share of the validation nodes that ``logits`` ``[val, C]`` name right."""
        return float((logits.argmax(1) == self.y_val).float().mean())


def embedding_loss(predicted: Tensor, target: Tensor) -> Tensor:
    r"""How far predicted embeddings are from those that rows give, whatever their scale.

    .. math::
        \frac{\sum_v \lVert \mathbf{h}_v - \mathbf{h}^*_v \rVert^2}
        {\sum_v \lVert \mathbf{h}^*_v \rVert^2}

    A plain mean of squares would be so small that weight decay outweighs it, and the predictor
    ends as a constant.

    Args:
        predicted: ``[B, h]``.
        target: ``[B, h]``, without gradient.
    """
    return (predicted - target).square().sum() / target.square().sum().clamp_min(1e-12)
