"""Framelet students: soft labels into MLPs that read what each band of a graph says of a node."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from limbeck.errors import TeacherError, unknown_name
from limbeck.graphs.bands import (
    ViewBands,
    bands_of_view,
    feature_bands,
    project,
    random_projection,
    rows_from,
)
from limbeck.graphs.framelet_banks import Bank, Fidelity, Mode
from limbeck.graphs.framelets import FrameletOptions, Framelets
from limbeck.graphs.view import View
from limbeck.methods.base import Distilled, Method, PositiveInt, Probability, Share
from limbeck.methods.losses import soft_target_loss
from limbeck.methods.sa_mlp import embedding_loss
from limbeck.students.fmlp import (
    FMLP,
    FMLPO,
    FMLPS,
    BandEncoders,
    GateRule,
    GivenBands,
    NodeTables,
)
from limbeck.students.inputs import NodeInputs, ViewInputs, inputs_of
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint, History, batches

Weight = Annotated[float, Field(ge=0)]
Policy = Literal["rows", "predictor", "features-only"]

POLICIES: tuple[Policy, ...] = get_args(Policy)
"""How new nodes are answered, in order of fidelity."""


# --- what all framelet students share ---------------------------------------------------------


class FrameletMLP(Method):
    r"""What FMLP-O, FMLP-S and FMLP-X share (Shi et al., TNNLS 2025).

    The student reads a node's features and its bands, see :mod:`limbeck.students.fmlp`, and learns

    .. math::
        \mathcal{L} = \frac{\lambda}{|L|} \sum_{v \in L} \mathrm{CE}(y_v, \sigma(\mathbf{s}_v))
        + \frac{1 - \lambda}{|D|} \sum_{v \in D} \tau^2 \, \mathrm{KL}(
        \sigma(\mathbf{t}_v / \tau) \,\|\, \sigma(\mathbf{s}_v / \tau))

    in one step, with ``D`` all observed nodes but those withheld. Then everything is frozen, and a
    predictor learns from features what a node's bands would be: nodes without bands go to it.
    What of this is the paper's and what is ours is written in ``docs/methods/framelet.md``. Options
    beside those of :class:`~limbeck.methods.base.Method`:

    Args:
        hidden_channels: Width of all encoders.
        num_layers: The highest power of a band's operator.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, in hidden layers of the heads.
        head_layers: Linear maps of each head.
        gate: What the gate weighs: ``"split"``, the graph everywhere; ``"released"``, the features
            in the output.
        label_weight: :math:`\lambda`, the weight of the hard labels, 0 to 1.
        temperature: :math:`\tau`, at which both distributions are compared.
        bank: Filters of the transform: ``"haar"``, ``"linear"``, ``"quadratic"``, ``"sigmoid"`` or
            ``"entropy"``.
        levels: Levels of the transform.
        dilation: Between one level and the next, more than 1.
        degree: Degree of the polynomials that stand for the filters; ``None`` takes the bank's.
        mode: How the transform is applied: ``"matfree"``, ``"sparse"`` or ``"eigh"``.
        fused: Filter by the operator that aggregates, too.
        epsilon: The teacher's perturbation of the aggregation, which its students share.
        fidelity: ``"project"``, or ``"released"`` for the transform as published.
        new_nodes: How nodes are answered that were not there: ``"rows"``, by their row in the
            transform of the grown graph, or where they come without edges, so that no known node is
            in it, as under the next; ``"predictor"``, by bands guessed from their features;
            ``"features-only"``, with all gates closed to the graph.
        predictor_channels: Width of the predictor's hidden layer; 0 trains none.
        predictor_weight: Weight of the answers that guessed bands lead to, in the predictor's loss,
            beside their distance from the bands.
        withhold: Share of the observed nodes that are neither for training nor for validation
            whose soft labels are never read. Whoever reads them all can learn them by heart; those
            nodes say who uses the graph, see :func:`withheld_nodes`.
        two_step: Make hard and soft labels a step each, as the released loop does, even where the
            weight of one is zero.
        greedy_restore: Go back to the best weights after each epoch that brought none, as the
            released loop does.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2307.06631"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (0.001, 0.005, 0.01),
        "weight_decay": (0.0, 5e-4, 5e-3, 0.01),
        "dropout": (0.0, 0.1, 0.3, 0.5),
        "hidden_channels": (8, 64, 128, 256),
        "num_layers": (2, 3, 4),
        "label_weight": (0.0, 0.1, 0.5),
        "temperature": (1.0, 2.0, 4.0),
    }

    hidden_channels: PositiveInt = 64
    num_layers: PositiveInt = 2
    dropout: Probability = 0.1
    batch_size: PositiveInt | None = None
    head_layers: PositiveInt = 1
    gate: GateRule = "split"
    label_weight: Share = 0.0
    temperature: float = Field(default=1.0, gt=0)
    bank: Bank = "haar"
    levels: PositiveInt = 1
    dilation: float = Field(default=2.0, gt=1)
    degree: PositiveInt | None = None
    mode: Mode = "matfree"
    fused: bool = False
    epsilon: Weight = 0.0
    fidelity: Fidelity = "project"
    new_nodes: Policy = "rows"
    predictor_channels: int = Field(default=128, ge=0)
    predictor_weight: Weight = 1.0
    withhold: Share = 0.0
    two_step: bool = False
    greedy_restore: bool = False

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        _ = self.framelets  # options of the transform that exclude each other

    @field_validator("predictor_channels")
    @classmethod
    def _predictor_to_answer(cls, channels: int, info: ValidationInfo) -> int:
        if channels == 0 and info.data.get("new_nodes") == "predictor":
            raise PydanticCustomError(
                "no_predictor", "with new_nodes 'predictor' it must be at least 1"
            )
        return channels

    @property
    def framelets(self) -> FrameletOptions:
        """The transform's options."""
        return FrameletOptions(
            bank=self.bank,
            levels=self.levels,
            dilation=self.dilation,
            degree=self.degree,
            mode=self.mode,
            fused=self.fused,
            epsilon=self.epsilon,
            fidelity=self.fidelity,
        )

    @property
    def powers(self) -> tuple[int, ...]:
        """The powers of each band's operator that the student reads, ascending."""
        return tuple(range(1, self.num_layers + 1))

    @abstractmethod
    def build(self, view: View, framelets: Framelets) -> tuple[FMLP, BandSource]:
        """A fresh student, and what its bands come from.

        Args:
            view: What may be seen.
            framelets: The transform of the observed graph.
        """

    def build_student(
        self, view: View, network: type[FMLP], reader: GivenBands, *, tied: bool = False
    ) -> FMLP:
        """A fresh student of a class for the view's features and classes."""
        return network(
            view.num_features,
            view.num_classes,
            reader,
            head_layers=self.head_layers,
            norm=self.norm,
            dropout=self.dropout,
            input_dropout=self.input_dropout,
            gate=self.gate,
            tied=tied,
        )

    def distill(
        self,
        view: View,
        knowledge: Knowledge | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Train the student with its bands, then the predictor that stands in for bands.

        A run that is resumed in its second stage trains the first one again, which ends with the
        same weights.

        Raises:
            TeacherError: There is no teacher to learn from.
        """
        if knowledge is None:
            raise TeacherError(f"method {self.name!r} learns from a teacher: give one.")
        framelets = Framelets(view.observed.edge_index, view.num_observed, self.framelets)
        student, source = self.build(view, framelets)
        lessons = Lessons(self, student, source, framelets, view, knowledge)
        history = lessons.learn(checkpoint and checkpoint.of_part("stage 1"), progress)
        bands = bands_of_view(view, self.framelets, source.on, lessons.freeze())
        if self.predictor_channels > 0:
            second = lessons.learn_to_predict(
                checkpoint and checkpoint.of_part("stage 2"),
                f"{progress} without bands" if progress else None,
            )
            history = history.followed_by(second)
        inputs = BandInputs.of(inputs_of(view), bands)
        student, inputs = under_policy(student, inputs, self.new_nodes)
        return Distilled(student.eval(), history, inputs)


# --- new nodes --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BandInputs(ViewInputs):
    """Inputs of a view's nodes with their bands, and what new nodes would bring.

    Args:
        unseen_bands: Bands ``[unseen, w]`` of unseen nodes with their edges; their rows of the
            transform of the full graph, whatever :attr:`unseen` holds. Without edges a node brings
            no bands, under any policy.
    """

    unseen_bands: Tensor | None = None

    @classmethod
    def of(cls, inputs: ViewInputs, bands: ViewBands) -> Self:
        """Inputs with bands for all nodes."""
        return cls(
            replace(inputs.observed, bands=bands.observed),
            replace(inputs.unseen, bands=bands.unseen),
            inputs.isolated,
            inputs.unknown_edges,
            bands.unseen,
        )

    def inputs_for(self, policy: Policy) -> BandInputs:
        """What new nodes bring under a policy: their rows, or no bands at all."""
        bands = self.unseen_bands if policy == "rows" else None
        return replace(self, unseen=replace(self.unseen, bands=bands))


def under_policy(student: FMLP, inputs: BandInputs, policy: Policy) -> tuple[FMLP, BandInputs]:
    """A trained student and its inputs, with another answer to new nodes.

    Nothing is trained or computed: one run can be scored under every policy.

    Args:
        student: The student; the one returned shares its weights.
        inputs: Its inputs, from any policy.
        policy: One of :data:`POLICIES`.

    Raises:
        OptionError: There is no such policy, or the student has no predictor to answer by.
    """
    if policy not in POLICIES:
        raise unknown_name("policy", policy, POLICIES)
    by_features = policy == "features-only" or (policy == "rows" and student.predictor is None)
    student = student.answering_by("features" if by_features else "predictor")
    return student, inputs.inputs_for(policy)


def withheld_nodes(view: View, share: float) -> Tensor:
    """Observed nodes whose soft labels a student does without, ascending, int64.

    They are drawn from those that are neither for training nor for validation, by the fingerprint
    of what the view observes: the same nodes for every method and seed.

    Args:
        view: What may be seen.
        share: Of those nodes, 0 to 1; their number is rounded down.
    """
    others = torch.ones(view.num_observed, dtype=torch.bool)
    others[torch.cat([view.train, view.val])] = False
    nodes = others.nonzero().flatten()
    generator = torch.Generator().manual_seed(int(view.fingerprint[:12], 16))
    drawn = torch.randperm(len(nodes), generator=generator)[: int(share * len(nodes))]
    return nodes[drawn].sort().values


# --- both stages ------------------------------------------------------------------------------


class BandSource(torch.nn.Module, ABC):
    """What bands come from; a module, since it may have parameters to train."""

    @abstractmethod
    def on(self, framelets: Framelets, first: int) -> Tensor:
        """Bands ``[n, w]`` of the nodes of a graph, which are numbered from ``first``."""


class TableBands(BandSource):
    """Bands that learned node tables give."""

    def __init__(self, tables: NodeTables) -> None:
        super().__init__()
        self.tables = tables

    def on(self, framelets: Framelets, first: int) -> Tensor:
        """Bands ``[n, w]`` of the nodes of a graph, which are numbered from ``first``."""
        return self.tables.on(framelets, first)


class FeatureBands(BandSource):
    """Bands that features, or a projection of them, have."""

    def __init__(self, x: Tensor, projection: Tensor | None, powers: tuple[int, ...]) -> None:
        super().__init__()
        self.x = x
        self.projection = projection
        self.powers = powers

    def on(self, framelets: Framelets, first: int) -> Tensor:
        """Bands ``[n, w]`` of the nodes of a graph, which are numbered from ``first``."""
        x = rows_from(self.x, first, framelets.num_nodes)
        return feature_bands(framelets, project(x, self.projection), self.powers)


class Lessons:
    """Losses and validation of both stages.

    Args:
        method: The method, for its options.
        student: What is trained.
        source: What its bands come from, trained with it.
        framelets: The transform of the observed graph.
        view: What may be seen.
        knowledge: What the teacher says of the observed nodes.
    """

    def __init__(
        self,
        method: FrameletMLP,
        student: FMLP,
        source: BandSource,
        framelets: Framelets,
        view: View,
        knowledge: Knowledge,
    ) -> None:
        self.method = method
        self.student = student
        self.source = source
        self.framelets = framelets
        self.x = NodeInputs(view.observed.x)
        self.y, self.soft = view.observed.y, knowledge.logits
        observed = torch.arange(view.num_observed)
        self.is_train = torch.isin(observed, view.train)
        self.num_train = len(view.train)
        self.nodes = observed[~torch.isin(observed, withheld_nodes(view, method.withhold))]
        # the predictor remembers what it is trained on, so validation nodes must be new to it
        self.second_nodes = self.nodes[~torch.isin(self.nodes, view.val)]
        self.val, self.y_val = view.val, self.y[view.val]
        self.learns_bands = any(True for _ in source.parameters())
        self._bands: Tensor | None = None

    # stage 1: the student and its tables

    def learn(self, checkpoint: Checkpoint | None, progress: str | None) -> History:
        """Train the student, and its tables where it has some."""
        method = self.method
        module = torch.nn.ModuleDict({"student": self.student, "source": self.source})
        validate = self.accuracy_with_bands
        if method.greedy_restore:
            validate = GreedyRestore(module, validate)
        if self.learns_bands:  # the rest of the decay is that of :meth:`more_decay`
            method = method.replace(weight_decay=self.table_decay)
        return method.fit(
            module, self.with_bands, validate, checkpoint=checkpoint, progress=progress
        )

    def with_bands(self, epoch: int) -> Iterator[Tensor]:
        """Losses of an epoch of the first stage."""
        hard, soft = self.method.label_weight, 1 - self.method.label_weight
        steps = [(hard, 0.0), (0.0, soft)] if self.method.two_step else [(hard, soft)]
        for nodes in batches(self.nodes, self.method.batch_size):
            inputs = self.x.take(nodes)
            for hard_weight, soft_weight in steps:
                logits = self.student(replace(inputs, bands=self.bands()[nodes]))
                loss = self.lesson(logits, nodes, hard_weight, soft_weight)
                if self.method.two_step:
                    # a step of no weight still has momentum and weight decay
                    loss = loss + 0.0 * logits.sum()
                if loss.requires_grad:  # labels alone, and no node of this batch has one
                    loss = loss + self.more_decay()
                    self._bands = self._bands if not self.learns_bands else None
                    yield loss

    def bands(self) -> Tensor:
        """Bands ``[N, w]`` of the observed nodes, with gradient where tables are trained.

        What validation computed is what the next step needs, for the tables are the same: it is
        kept until they change.
        """
        if self._bands is None:
            with torch.set_grad_enabled(self.learns_bands):
                self._bands = self.source.on(self.framelets, 0)
        return self._bands

    def accuracy_with_bands(self) -> float:
        """Accuracy on validation nodes with their bands."""
        return self.accuracy(self.student, self.bands()[self.val])

    @property
    def table_decay(self) -> float:
        """L2 penalty of the tables."""
        assert isinstance(self.method, TableMethod)
        return self.method.table_decay

    def more_decay(self) -> Tensor | float:
        """What is left of the weight decay for all that is no table.

        Adam adds its decay to the gradient, so a penalty of the loss is a parameter group's.
        """
        if not self.learns_bands:
            return 0.0
        left = self.method.weight_decay - self.table_decay
        if left == 0:
            return 0.0
        squares = [weight.square().sum() for weight in self.student.parameters()]
        return left / 2 * torch.stack(squares).sum()

    @torch.no_grad()
    def freeze(self) -> Tensor:
        """End the first stage and return the bands ``[N, w]`` that known nodes keep."""
        self._bands = None  # training ended with other tables than the best
        self.known_bands = self.bands().detach()
        self.frozen = copy.deepcopy(self.student).requires_grad_(False).eval()
        return self.known_bands

    # stage 2: the predictor

    def learn_to_predict(self, checkpoint: Checkpoint | None, progress: str | None) -> History:
        """Train the predictor, after :meth:`freeze`."""
        predictor = self.student.add_predictor(self.method.predictor_channels)
        history = self.method.fit(
            predictor,
            self.without_bands,
            self.accuracy_without_bands,
            checkpoint=checkpoint,
            progress=progress,
        )
        self.student.fallback = "predictor"
        return history

    def without_bands(self, epoch: int) -> Iterator[Tensor]:
        """Losses of an epoch of the second stage."""
        hard, soft = self.method.label_weight, 1 - self.method.label_weight
        for nodes in batches(self.second_nodes, self.method.batch_size):
            x = self.x.take(nodes).x
            guess = self.student.predicted_bands(x)
            with torch.no_grad():
                given = self.frozen.reader(self.known_bands[nodes])
            loss = embedding_loss(guess.flatten(1), given.flatten(1))
            if self.method.predictor_weight > 0:
                logits = self.frozen.from_bands(x, guess).logits
                lesson = self.lesson(logits, nodes, hard, soft)
                loss = loss + self.method.predictor_weight * lesson
            yield loss

    def accuracy_without_bands(self) -> float:
        """Accuracy on validation nodes whose bands are guessed."""
        return self.accuracy(self.student.answering_by("predictor"), None)

    # losses

    def lesson(
        self, logits: Tensor, nodes: Tensor, hard_weight: float, soft_weight: float
    ) -> Tensor:
        """Soft labels of the nodes of a batch, and hard ones where they have some.

        Args:
            logits: ``[B, C]``.
            nodes: Which nodes they are, int64 ``[B]``.
            hard_weight: Weight of the hard labels.
            soft_weight: Weight of the soft ones.
        """
        loss = logits.new_zeros(())
        if soft_weight > 0:
            soft = soft_target_loss(logits, self.soft[nodes], self.method.temperature)
            loss = loss + soft_weight * soft
        labelled = self.is_train[nodes]
        if hard_weight > 0 and bool(labelled.any()):
            hard = F.cross_entropy(logits[labelled], self.y[nodes[labelled]], reduction="sum")
            # over batches this is the mean over all labelled nodes, however they fall
            share = len(self.nodes) / (len(nodes) * self.num_train)
            loss = loss + hard_weight * share * hard
        return loss

    def accuracy(self, student: FMLP, bands: Tensor | None) -> float:
        """Share of the validation nodes that the student names right."""
        with torch.no_grad():
            logits = student(replace(self.x.take(self.val), bands=bands))
        return float((logits.argmax(1) == self.y_val).float().mean())


class GreedyRestore:
    """Validation as in the released loop, which goes back to the best weights in every epoch.

    Args:
        module: What is trained.
        validate: Its score.
    """

    def __init__(self, module: torch.nn.Module, validate: Any) -> None:
        self.module = module
        self.validate = validate
        self.best = float("-inf")
        self.state: dict[str, Tensor] = {}

    def __call__(self) -> float:
        """The score of the weights as they came; afterwards the module has the best so far."""
        score: float = self.validate()
        if score >= self.best:
            self.best, self.state = score, copy.deepcopy(self.module.state_dict())
        else:
            self.module.load_state_dict(self.state)
        return score


# --- the three methods ------------------------------------------------------------------------


class TableMethod(FrameletMLP):
    """What FMLP-O and FMLP-S share: tables with a row per known node, trained on all at once.

    Options beside those of :class:`FrameletMLP`:

    Args:
        table_decay: L2 penalty of the tables, in the place of ``weight_decay``. Each row gets the
            gradient of its node's surroundings alone, some ``1/N`` of what a weight of the network
            gets, so that a penalty meant for the network takes the graph out of the student.
        tied: The low band's encoder and head where the released code has them for all bands.
    """

    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"table_decay": (0.0, 1e-6, 1e-5)}

    table_decay: Weight = 0.0
    tied: bool = False

    @field_validator("batch_size")
    @classmethod
    def _all_at_once(cls, batch_size: int | None) -> None:
        if batch_size is not None:
            raise PydanticCustomError(
                "tables_at_once", "tables are propagated whole in every step, so it must be none"
            )


class FMLPOriginal(TableMethod):
    """FMLP-O: the student of a framelet network (Shi et al., TNNLS 2025).

    Layer ``k`` reads the ``k``-th power of each band's operator, by a learned table in its place.
    Options are those of :class:`TableMethod`; ``num_layers`` is at least 2.
    """

    name: ClassVar[str] = "fmlp-o"
    title: ClassVar[str] = "framelet MLP, original: one power of each band's operator per layer"

    num_layers: int = Field(default=2, ge=2)

    def build(self, view: View, framelets: Framelets) -> tuple[FMLP, BandSource]:
        """A fresh student, and tables for the observed nodes."""
        num_bands, h = len(framelets.bands), self.hidden_channels
        reader = GivenBands(len(self.powers), num_bands, h)
        student = self.build_student(view, FMLPO, reader, tied=self.tied)
        return student, TableBands(NodeTables(view.num_observed, h, num_bands, self.powers))


class FMLPSimplified(TableMethod):
    """FMLP-S: the student of a simplified framelet model (Shi et al., TNNLS 2025).

    It reads the highest power of each band's operator, by a learned table in its place, and is
    linear but for its gate. Options are those of :class:`TableMethod`; there is no dropout but in
    deeper heads.
    """

    name: ClassVar[str] = "fmlp-s"
    title: ClassVar[str] = "framelet MLP, simplified: the highest power of each band's operator"

    @property
    def powers(self) -> tuple[int, ...]:
        """The power of each band's operator that the student reads."""
        return (self.num_layers,)

    def build(self, view: View, framelets: Framelets) -> tuple[FMLP, BandSource]:
        """A fresh student, and tables for the observed nodes."""
        num_bands, h = len(framelets.bands), self.hidden_channels
        student = self.build_student(view, FMLPS, GivenBands(1, num_bands, h), tied=self.tied)
        tables = NodeTables(view.num_observed, h, num_bands, self.powers, tied=self.tied)
        return student, TableBands(tables)


class FMLPFeatures(FrameletMLP):
    r"""FMLP-X: FMLP on the bands of the features themselves; ours.

    In the place of learned tables it reads the coefficients :math:`\mathbf{P}_b^k \mathbf{X}`, so
    that nothing has as many rows as the graph has nodes, and a new node has all that a known one
    has. Options beside those of :class:`FrameletMLP`:

    Args:
        network: ``"original"``, FMLP-O's layers; or ``"simplified"``, FMLP-S's.
        projection: Read a random projection of the features to so many columns, where there are
            more; ``None`` reads all.
        batch_size: Nodes per step; ``None`` takes all at once.
    """

    name: ClassVar[str] = "fmlp-x"
    title: ClassVar[str] = "framelet MLP on the bands of the features: works for new nodes"

    network: Literal["original", "simplified"] = Field(default="original", validate_default=True)
    projection: PositiveInt | None = 256

    @field_validator("network")
    @classmethod
    def _deep_enough(cls, network: str, info: ValidationInfo) -> str:
        if network == "original" and info.data.get("num_layers") == 1:
            raise PydanticCustomError(
                "one_layer", "with num_layers 1 there is no hidden layer, so choose 'simplified'"
            )
        return network

    @property
    def powers(self) -> tuple[int, ...]:
        """The powers of each band's operator that the student reads, ascending."""
        return super().powers if self.network == "original" else (self.num_layers,)

    def build(self, view: View, framelets: Framelets) -> tuple[FMLP, BandSource]:
        """A fresh student whose scales fit the observed nodes, and the features' bands."""
        x = view.everything.x  # rows of unseen nodes are read when the student is trained
        width, projection = view.num_features, None
        if self.projection is not None and self.projection < width:
            width, projection = self.projection, random_projection(width, self.projection)
        source = FeatureBands(x, projection, self.powers)
        reader = BandEncoders(len(self.powers), len(framelets.bands), self.hidden_channels, width)
        reader.fit(source.on(framelets, 0))
        network = FMLPO if self.network == "original" else FMLPS
        return self.build_student(view, network, reader), source
