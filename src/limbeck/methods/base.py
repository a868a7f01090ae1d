"""What every method is: validated hyper-parameters and a ``distill`` that reads like its paper."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, Self

import torch
from pydantic import Field
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.info import TaskName
from limbeck.graphs.view import View
from limbeck.students.inputs import InputSpec, NodeInputs, ViewInputs
from limbeck.students.mlp import MLP, Norm
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Beside, Checkpoint, History, fit
from limbeck.training.options import Options, preset
from limbeck.training.tasks import task_of

PRESETS = Path(__file__).with_name("presets.yaml")

Probability = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]


class Student(Protocol):
    """The network that answers: a module that declares which inputs a node must bring."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The node inputs that it reads."""

    def __call__(self, inputs: NodeInputs) -> Tensor:
        """Logits ``[B, C]`` of the nodes."""


@dataclass(frozen=True, eq=False)
class Distilled:
    """What a method returns.

    Args:
        student: The trained student, in eval mode.
        history: How training went.
        inputs: What the student was given of each node, and is given in each condition.
        record: What a method shows of its training, by name; of observed nodes, in their order.
    """

    student: torch.nn.Module
    history: History
    inputs: ViewInputs
    record: dict[str, Tensor] = field(default_factory=dict)


class Method(Options, ABC):
    """A distillation algorithm with its hyper-parameters.

    Options that all methods share:

    Args:
        hidden_channels: Width of the student's hidden layers.
        num_layers: Number of the student's linear maps.
        norm: ``"none"``, ``"batch"`` or ``"layer"``, before each ReLU.
        dropout: Probability of dropping a hidden unit in training.
        input_dropout: Probability of dropping a feature in training.
        lr: Learning rate of Adam.
        weight_decay: L2 penalty inside Adam.
        batch_size: Nodes per step; ``None`` takes all at once.
        max_epochs: Largest number of epochs.
        patience: Epochs without a new best on validation after which training stops.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    several_teachers: ClassVar[bool] = False
    """Whether ``distill`` takes a tuple of what several teachers say."""

    tasks: ClassVar[tuple[TaskName, ...]] = ("classes",)
    """Tasks that ``distill`` has losses for; see :mod:`limbeck.training.tasks`."""

    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (0.001, 0.003, 0.005, 0.01),
        "weight_decay": (0.0, 1e-4, 5e-4, 1e-3, 5e-3),
        "dropout": (0.0, 0.1, 0.3, 0.5, 0.6),
    }

    hidden_channels: PositiveInt = 128
    num_layers: PositiveInt = 2
    norm: Norm = "none"
    dropout: Probability = 0.0
    input_dropout: Probability = 0.0
    lr: float = Field(default=0.01, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    batch_size: PositiveInt | None = 512
    max_epochs: PositiveInt = 200
    patience: PositiveInt = 50

    @classmethod
    def for_graph(cls, graph: str, setting: str = "transductive", **changes: Any) -> Self:
        """The preset of a graph in a setting, with your changes on top.

        Raises:
            OptionError: Unknown option, or a value out of range.
        """
        return cls(**{**preset(PRESETS, cls.name, graph, setting), **changes})

    @classmethod
    def search_space(cls) -> dict[str, tuple[Any, ...]]:
        """Values that tuning tries for an option: those of ``searched``, of all base classes."""
        space: dict[str, tuple[Any, ...]] = {}
        for base in reversed(cls.__mro__):
            space.update(vars(base).get("searched", {}))
        return space

    def parts(self) -> dict[str, Method]:
        """Methods that train a part of the student by themselves, by the name of their options.

        The ``trials`` of a table settle each of them first, on its own validation score and with as
        many trials; :meth:`with_part` takes what they found. A variant's ``candidates`` and
        ``method="auto"`` leave them as they are.
        """
        return {}

    def with_part(self, name: str, part: Method) -> Self:
        """This method with the options of a part.

        Args:
            name: A key of :meth:`parts`.
            part: The part; what it has beyond the options of that name stays its own.
        """
        own: Options = getattr(self, name)
        return self.replace(
            **{name: {each: getattr(part, each) for each in type(own).model_fields}}
        )

    @abstractmethod
    def distill(
        self,
        view: View,
        knowledge: Knowledge | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Train a student on the observed graph of a view.

        Random numbers come from PyTorch's generator, which the caller has seeded.

        Args:
            view: What may be seen.
            knowledge: What the teacher says of the observed nodes.
            checkpoint: Where to keep the state of an unfinished run.
            progress: Label of the progress bar on stderr; ``None`` shows none.
        """

    def fit(
        self,
        module: torch.nn.Module,
        losses: Callable[[int], Iterable[Tensor]],
        validate: Callable[[], float],
        *,
        warm_up: int = 0,
        beside: Beside | None = None,
        note: Callable[[], dict[str, Any] | None] | None = None,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> History:
        """Train by this method's options; see :func:`limbeck.training.loop.fit`.

        Args:
            module: What is trained.
            losses: Yields the losses of an epoch.
            validate: Score to be maximised.
            warm_up: Epochs before those that ``max_epochs`` counts.
            beside: What is trained by the same losses and thrown away.
            note: Asked after each epoch for what the history shall hold of it.
            checkpoint: Where to keep the state of an unfinished run.
            progress: Label of the progress bar on stderr; ``None`` shows none.
        """
        return fit(
            module,
            losses,
            validate,
            lr=self.lr,
            weight_decay=self.weight_decay,
            max_epochs=warm_up + self.max_epochs,
            patience=self.patience,
            warm_up=warm_up,
            beside=beside,
            note=note,
            checkpoint=checkpoint,
            progress=progress,
        )

    def check_task(self, view: View) -> None:
        """Refuse a view whose task this method has no losses for.

        Raises:
            OptionError: It has none.
        """
        if view.info.task not in self.tasks:
            raise OptionError(
                f"method {self.name!r} learns one class per node, and those of "
                f"{view.info.name!r} have several labels: choose another, such as 'glnn'."
            )

    def build_mlp(self, view: View, position_channels: int = 0) -> MLP:
        """A fresh MLP of this method's size for the view's features and classes."""
        return MLP(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            self.num_layers,
            self.norm,
            self.dropout,
            self.input_dropout,
            position_channels,
        )


def validation_accuracy(
    student: torch.nn.Module, inputs: NodeInputs, view: View
) -> Callable[[], float]:
    """A function that scores the student on the view's validation nodes.

    By accuracy, or by micro-F1 where nodes have several labels.
    """
    val_inputs, y_val = inputs.take(view.val), view.observed.y[view.val]
    task = task_of(y_val)

    def accuracy() -> float:
        return task.score(student(val_inputs), y_val)

    return accuracy
