"""What methods share that compare hidden layers of a teacher with those of a student.

Such a method trains a module of its own beside the student: projections, heads, attention. It is
an :class:`Auxiliary`, holds no parameter of the student and is thrown away after training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.errors import OptionError, TeacherError
from limbeck.graphs.info import TaskName
from limbeck.graphs.sparse import take_rows
from limbeck.graphs.view import View
from limbeck.methods.base import Distilled, Share, validation_accuracy
from limbeck.methods.losses import soft_target_loss
from limbeck.methods.student_options import StudentOptions
from limbeck.students.gnn import full_batch
from limbeck.students.inputs import NodeInputs, ViewInputs
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Beside, Checkpoint, batches, seeded
from limbeck.training.tasks import ONE_CLASS, Task, task_of

Layers: TypeAlias = Sequence[Tensor]
"""Outputs of some layers for the same nodes, each ``[n, width]``, first to last."""

Scope = Literal["train", "target", "all"]
Types = Literal["merged", "separate"]
Reduction = Literal["batchmean", "elementmean"]

AUXILIARY_SEED = 0x5EED_1A7E
"""Added to the caller's seed, so that what is trained beside a student draws numbers of its own."""


# --- which layers, which nodes ----------------------------------------------------------------


def recorded(
    outputs: Mapping[str, Tensor], depth: int | None, which: Literal["all", "hidden"]
) -> list[Tensor]:
    """Outputs of a network's layers, first to last.

    Args:
        outputs: By name, as ``layers`` of a network gives them, ``"logits"`` among them.
        depth: Number of the network's own layers: graph layers of a GNN, linear maps of an MLP.
            Where as many hidden layers were recorded, the logits come from a classifier behind
            them (GCNII) and are not a layer. ``None`` if not known.
        which: ``"all"`` layers, or the ``"hidden"`` ones only.
    """
    hidden = hidden_layers(outputs)
    behind = depth is not None and len(hidden) >= depth
    return hidden if which == "hidden" or behind else [*hidden, outputs["logits"]]


def hidden_layers(outputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The outputs of a network that are no logits, first to last."""
    return [output for name, output in outputs.items() if name != "logits"]


def teacher_outputs(knowledge: Knowledge, method: str) -> dict[str, Tensor]:
    """A teacher's layers by name, float32 ``[observed, .]``, detached; ``"logits"`` last.

    Args:
        knowledge: What the teacher says.
        method: Name of the method that asks, for the error.

    Raises:
        TeacherError: The teacher is only logits.
    """
    if not knowledge.hidden:
        raise TeacherError(
            f"method {method!r} compares layers, and teacher {knowledge.name!r} is only logits: "
            "give a network of limbeck's, or one that is a limbeck.teachers.GNN."
        )
    outputs = {**knowledge.hidden, "logits": knowledge.logits}
    return {name: output.detach().to(torch.float32) for name, output in outputs.items()}


def nodes_in_scope(view: View, scope: Scope) -> Tensor:
    """The observed nodes whose layers and logits are compared, int64."""
    return view.train if scope == "train" else torch.arange(view.num_observed)


# --- what is trained beside a student ---------------------------------------------------------


class Auxiliary(torch.nn.Module, ABC):
    """A loss over layers, with whatever parameters it needs: the training-only part of a method.

    It owns no parameter of the student or of the teacher.
    """

    @abstractmethod
    def forward(
        self, student: Layers, teacher: Layers, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            student: The student's layers for some nodes, each ``[n, .]``, with gradient.
            teacher: The teacher's layers for the same nodes, without gradient.
            generator: Draws what is drawn; PyTorch's own by default.
        """

    def see_all(self, teacher: Layers) -> None:
        """Be shown the teacher's layers for all nodes in scope, before training in batches."""

    def describe(self) -> dict[str, Any]:
        """Numbers about the last loss, for the record."""
        return {}


class Head(torch.nn.Sequential):
    """The projection of FitNet and G-CRD: a linear map, batch norm, ReLU.

    Args:
        in_channels: Width of the layer.
        out_channels: Width of the space that layers are compared in.

    Shapes:
        - **input:** ``[n, in]``, at least two nodes in training
        - **output:** ``[n, out]``, not negative
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            torch.nn.Linear(in_channels, out_channels),
            torch.nn.BatchNorm1d(out_channels),
            torch.nn.ReLU(),
        )


def draw_nodes(num_nodes: int, most: int, generator: torch.Generator | None) -> Tensor | None:
    """At most ``most`` distinct nodes below ``num_nodes``, int64; ``None`` where all fit."""
    if num_nodes <= most:
        return None
    return torch.randperm(num_nodes, generator=generator)[:most]


# --- methods ----------------------------------------------------------------------------------


def logit_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    reduction: Reduction = "batchmean",
    task: Task = ONE_CLASS,
) -> Tensor:
    r""":math:`\tau^2 \, \mathrm{KL}(\sigma(t/\tau) \,\|\, \sigma(s/\tau))` of logits.

    Args:
        student: Logits ``[n, C]``.
        teacher: Logits ``[n, C]``, without gradient.
        temperature: :math:`\tau > 0`.
        reduction: ``"batchmean"``: the mean over nodes. ``"elementmean"``: over nodes and classes,
            ``C`` times smaller, as in the code of efficient-gnns (PyTorch's default reduction).
            Several labels are always averaged over.
        task: What is asked of the nodes.
    """
    loss = soft_target_loss(student, teacher, temperature, task)
    if reduction == "elementmean" and task is ONE_CLASS:
        return loss / student.shape[1]
    return loss


class ScopedMethod(StudentOptions, ABC):
    """A method that trains a student, which may be a GNN, on labels and on a scope of nodes.

    A step takes all nodes in scope at once; with ``batch_size`` a student that reads single nodes
    takes batches of them. Options beside those of
    :class:`~limbeck.methods.student_options.StudentOptions`:

    Args:
        scope: Nodes whose layers and logits are compared: ``"target"``, all observed nodes, whose
            labels are not read, or only those for ``"train"``. Methods of one table should have
            the same. ``"all"`` compares the layers of all types of nodes, where both networks are
            R-GCNs and the method is ABKD; logits are those of ``"target"``.
        types: How they are compared then: ``"merged"``, as nodes of one type; ``"separate"``, one
            comparison per type with the same maps, all of one weight, the last layer being that of
            the labelled type alone.
        log_every: Epochs from one entry of ``History.notes`` to the next; 0 writes none.
    """

    tasks: ClassVar[tuple[TaskName, ...]] = ("classes", "labels")

    scope: Scope = "target"
    types: Types = "separate"
    log_every: int = Field(default=0, ge=0)

    compares_types: ClassVar[bool] = False
    """Whether the method has the scope ``"all"``."""

    @model_validator(mode="after")
    def _scope_fits(self) -> ScopedMethod:
        if self.scope == "all" and not (self.compares_types and self.student == "rgcn"):
            raise ValueError("scope 'all' is for the method 'abkd' with the student 'rgcn'")
        return self

    def distill(
        self,
        view: View,
        knowledge: Knowledge | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Build a student and train it.

        Raises:
            TeacherError: There is no teacher to learn from, or it is only logits where layers are
                compared.
            OptionError: The student has no layer to compare.
        """
        student, inputs = self.build(view)
        return self.train(
            student, inputs, view, knowledge, checkpoint=checkpoint, progress=progress
        )

    def train(
        self,
        student: torch.nn.Module,
        inputs: ViewInputs,
        view: View,
        knowledge: Knowledge | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Train a student that has been built, or that another training has left behind.

        Args:
            student: What :meth:`build` returned.
            inputs: What it is given of the view's nodes.
            view: What may be seen.
            knowledge: What the teacher says of the observed nodes.
            checkpoint: Where to keep the state of an unfinished run.
            progress: Label of the progress bar on stderr; ``None`` shows none.

        Raises:
            TeacherError: As :meth:`distill`.
            OptionError: As :meth:`distill`.
        """
        if knowledge is None and self.needs_teacher:
            raise TeacherError(f"method {self.name!r} learns from a teacher: give one.")
        known, y = inputs.observed, view.observed.y
        nodes = nodes_in_scope(view, self.scope)
        labelled = torch.zeros(view.num_observed, dtype=torch.bool)
        labelled[view.train] = True
        batch_size = None if full_batch(known) else self.batch_size
        teacher = self.teacher_layers(knowledge)
        auxiliary = self.auxiliary_beside(student, known, teacher)
        if auxiliary is not None and batch_size is not None and batch_size < len(nodes):
            auxiliary.see_all([take_rows(layer, nodes) for layer in teacher])
        record = _Record(self, student, auxiliary)
        typed = None
        if self.scope == "all" and auxiliary is not None:
            typed = TypedLayers(self, knowledge, view)
        seed = torch.initial_seed() + AUXILIARY_SEED

        def losses(epoch: int) -> Iterator[Tensor]:
            # a generator per epoch, so that a resumed run draws what it would have drawn
            generator = torch.Generator().manual_seed(seed + epoch)
            for batch in batches(nodes, batch_size):
                if typed is None:
                    outputs = _layers(student, known.take(batch))
                else:  # a GNN's batch is all nodes
                    by_type = cast(Any, student).typed_layers(known)
                    outputs = {layer: each[typed.target] for layer, each in by_type.items()}
                soft = None if knowledge is None else take_rows(knowledge.logits, batch)
                loss = self.supervised(outputs["logits"], y[batch], labelled[batch], soft)
                if auxiliary is None:
                    yield loss
                    continue
                if typed is None:
                    theirs = [take_rows(layer, batch) for layer in teacher]
                    distance = auxiliary(self.student_layers(outputs), theirs, generator)
                else:
                    distance = typed.distance(auxiliary, by_type, generator)
                record.look(epoch, loss, distance)
                yield loss + self.auxiliary_weight * distance

        history = self.fit(
            student,
            losses,
            validation_accuracy(student, known, view),
            beside=self.beside(auxiliary),
            note=record.note,
            checkpoint=checkpoint,
            progress=progress,
        )
        return Distilled(student, history, inputs)

    @property
    def auxiliary_weight(self) -> float:
        """Weight of what is trained beside the student; 0 where nothing is."""
        return 0.0

    def supervised(
        self, logits: Tensor, y: Tensor, labelled: Tensor, soft: Tensor | None
    ) -> Tensor:
        """The loss of the logits: here the cross-entropy of the training nodes.

        Args:
            logits: The student's, ``[n, C]``.
            y: Labels, int64 ``[n]`` or float32 ``[n, C]``; read where ``labelled`` only.
            labelled: Which of the nodes are for training, bool ``[n]``.
            soft: The teacher's logits, ``[n, C]``; ``None`` without a teacher.
        """
        if not bool(labelled.any()):
            return 0.0 * logits.sum()  # a batch without labels teaches none
        return task_of(y).label_loss(logits[labelled], y[labelled])

    def teacher_layers(self, knowledge: Knowledge | None) -> list[Tensor]:
        """The teacher's layers that are compared, each ``[observed, .]``; here none."""
        return []

    def student_layers(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Those of the student's outputs that are compared, each ``[n, .]``; here none."""
        return []

    def auxiliary_beside(
        self, student: torch.nn.Module, known: NodeInputs, teacher: Layers
    ) -> Auxiliary | None:
        """What is trained beside the student, fresh; here nothing."""
        return None

    def beside(self, auxiliary: Auxiliary | None) -> Beside | None:
        """How it is trained."""
        return None


class LogitMethod(ScopedMethod, ABC):
    r"""A method whose student may learn from the teacher's logits, too.

    .. math::
        \mathcal{L} = \alpha \, \tau^2 \, \mathrm{KL} + (1 - \alpha) \, \mathrm{CE}

    with the divergence over the nodes in scope and the cross-entropy over the training nodes.
    Options beside those of :class:`ScopedMethod`:

    Args:
        kd_weight: :math:`\alpha`, 0 to 1; 0 leaves the logits out.
        temperature: :math:`\tau`, at which teacher and student are compared.
        kl_reduction: ``"batchmean"``, the divergence's mean over nodes, or ``"elementmean"``, over
            nodes and classes, as in efficient-gnns.
    """

    kd_weight: Share = 0.0
    temperature: float = Field(default=4.0, gt=0)
    kl_reduction: Reduction = "batchmean"

    def supervised(
        self, logits: Tensor, y: Tensor, labelled: Tensor, soft: Tensor | None
    ) -> Tensor:
        """The loss of the logits: labels and, with ``kd_weight``, the teacher's logits."""
        hard = super().supervised(logits, y, labelled, soft)
        if self.kd_weight == 0:
            return hard
        assert soft is not None
        divergence = logit_loss(logits, soft, self.temperature, self.kl_reduction, task_of(y))
        return self.kd_weight * divergence + (1 - self.kd_weight) * hard


class LayerMethod(LogitMethod, ABC):
    r"""A method that compares layers, :math:`\mathcal{L} + \beta \, \mathcal{L}_{aux}`.

    Layers are compared as they stand behind their activation and before dropout; the baselines
    compare the last hidden ones. Options beside those of :class:`LogitMethod`:

    Args:
        beta: :math:`\beta`, the weight of the comparison; 0 leaves it out.
        auxiliary_lr_scale: Learning rate of what is trained beside the student, in units of ``lr``.
        auxiliary_clip: Largest norm of its gradient.
    """

    beta: float = Field(default=1.0, ge=0)
    auxiliary_lr_scale: float = Field(default=1.0, gt=0)
    auxiliary_clip: float = Field(default=5.0, gt=0)

    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"beta": (0.1, 1.0, 10.0, 100.0)}

    @abstractmethod
    def build_auxiliary(self, teacher: Sequence[int], student: Sequence[int]) -> Auxiliary:
        """The loss over layers, fresh.

        Args:
            teacher: Widths of the teacher's layers that are compared.
            student: Widths of the student's.
        """

    @property
    def auxiliary_weight(self) -> float:
        r""":math:`\beta`."""
        return self.beta

    def teacher_layers(self, knowledge: Knowledge | None) -> list[Tensor]:
        """The teacher's layers that are compared, each ``[observed, .]``.

        Raises:
            TeacherError: The teacher is only logits.
        """
        assert knowledge is not None
        if self.beta == 0:
            return []
        return self.compared(teacher_outputs(knowledge, self.name), knowledge.depth)

    def student_layers(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Those of the student's outputs that are compared, each ``[n, .]``.

        Raises:
            OptionError: There is none.
        """
        return self.compared(outputs, self.num_layers)

    def compared(self, outputs: Mapping[str, Tensor], depth: int | None) -> list[Tensor]:
        """The layers of a network that are compared: here the last hidden one.

        Raises:
            OptionError: There is none.
        """
        hidden = hidden_layers(outputs)
        if not hidden:
            raise OptionError(
                f"method {self.name!r} compares hidden layers, but one of the two networks has "
                "none: give it one more layer with 'num_layers'."
            )
        return hidden[-1:]

    def auxiliary_beside(
        self, student: torch.nn.Module, known: NodeInputs, teacher: Layers
    ) -> Auxiliary | None:
        """What is trained beside the student, fresh; with ``beta=0`` nothing.

        It is drawn from a seed of its own, so that the student's weights, dropout and batches are
        those of a training without it.
        """
        if self.beta == 0:
            return None
        student.eval()
        with torch.no_grad():
            few = known if full_batch(known) else known.take(torch.arange(min(len(known), 2)))
            mine = self.student_layers(_layers(student, few))
        with seeded(torch.initial_seed() + AUXILIARY_SEED):
            return self.build_auxiliary(_widths(teacher), _widths(mine))

    def beside(self, auxiliary: Auxiliary | None) -> Beside | None:
        """How it is trained: Adam without weight decay, its gradient clipped."""
        if auxiliary is None or next(auxiliary.parameters(), None) is None:
            return None
        return Beside(auxiliary, self.auxiliary_lr_scale * self.lr, self.auxiliary_clip)


class TypedLayers:
    """A teacher's layers for all types of nodes, and how a student's are compared with them.

    Args:
        method: Says which layers are compared, and how types are.
        knowledge: What the teacher says.
        view: What may be seen.

    Raises:
        TeacherError: The teacher reads no types.
    """

    def __init__(self, method: ScopedMethod, knowledge: Knowledge | None, view: View) -> None:
        layers = None if knowledge is None else knowledge.typed_layers
        if knowledge is None or layers is None:
            raise TeacherError(
                "scope 'all' compares types of nodes, and the teacher reads none: give the teacher "
                "'rgcn' on a graph that has several."
            )
        last = layers["logits"]
        self.method = method
        self.target = str(view.observed.hetero.target)
        # a type without nodes says nothing; the labelled one comes last, so that its map is logged
        others = sorted(kind for kind, h in last.items() if len(h) and kind != self.target)
        self.kinds = [*others, self.target]
        self.teacher = self._parts(layers, knowledge.depth)

    def distance(
        self,
        auxiliary: Auxiliary,
        student: Mapping[str, Mapping[str, Tensor]],
        generator: torch.Generator,
    ) -> Tensor:
        """The loss: over all nodes at once, or the mean over types."""
        mine = self._parts(student, self.method.num_layers)
        pairs = zip(mine, self.teacher, strict=True)
        return torch.stack([auxiliary(ours, theirs, generator) for ours, theirs in pairs]).mean()

    def _parts(
        self, layers: Mapping[str, Mapping[str, Tensor]], depth: int | None
    ) -> list[list[Tensor]]:
        """The layers that are compared, of each type or of all nodes as one."""
        assert isinstance(self.method, LayerMethod)
        if self.method.types == "merged":
            rows = {name: torch.cat([h[k] for k in self.kinds]) for name, h in layers.items()}
            return [self.method.compared(rows, depth)]
        parts = []
        for kind in self.kinds:
            rows = {name: h[kind] for name, h in layers.items()}
            chosen = self.method.compared(rows, depth)
            if kind != self.target:  # only its logits mean classes
                chosen = [h for h in chosen if h is not rows["logits"]]
            parts.append(chosen)
        return parts


class _Record:
    """Writes down how training goes, each ``log_every`` epochs."""

    def __init__(
        self, method: ScopedMethod, student: torch.nn.Module, auxiliary: Auxiliary | None
    ) -> None:
        self.method, self.student, self.auxiliary = method, student, auxiliary
        self.entry: dict[str, Any] | None = None

    def look(self, epoch: int, supervised: Tensor, distance: Tensor) -> None:
        """Measure both losses and how their gradients compare at the student."""
        every = self.method.log_every
        if every == 0 or epoch % every:
            return
        assert self.auxiliary is not None
        theirs = self.method.auxiliary_weight * self._gradient(distance)
        self.entry = {
            "epoch": epoch,
            "supervised": float(supervised.detach()),
            "auxiliary": float(distance.detach()),
            "gradient_ratio": theirs / max(self._gradient(supervised), 1e-12),
            **self.auxiliary.describe(),
        }

    def note(self) -> dict[str, Any] | None:
        """What was measured in this epoch, if anything."""
        entry, self.entry = self.entry, None
        return entry

    def _gradient(self, loss: Tensor) -> float:
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        squares = [float(g.square().sum()) for g in gradients if g is not None]
        return float(sum(squares) ** 0.5)


def _layers(student: torch.nn.Module, inputs: NodeInputs) -> dict[str, Tensor]:
    return cast("dict[str, Tensor]", student.layers(inputs))  # type: ignore[operator]


def _widths(layers: Layers) -> list[int]:
    return [int(layer.shape[1]) for layer in layers]
