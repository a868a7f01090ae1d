"""The frozen-student probe: can a loss over layers be brought to nothing without the student?

What is trained beside a student, projections and attention, is trained alone here, against a
teacher and a student that both stay as they are. A loss that falls to a hundredth of its start all
the same has little to teach: the loss is *degenerate* on that pair of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.evaluation.compare import DEGENERATE_BELOW
from limbeck.graphs.view import View
from limbeck.methods import Method
from limbeck.methods.layers import Auxiliary, LayerMethod, Layers, nodes_in_scope
from limbeck.methods.plain import PlainStudent
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import seeded


@dataclass(frozen=True)
class Probe:
    """What a probe found.

    Args:
        method: Name of the method, with its preset if it has one.
        student: State of the frozen student: ``"untrained"``, or ``"trained"`` on labels.
        start: The loss at first.
        end: The loss after ``steps`` steps.
        steps: Number of steps.
    """

    method: str
    student: Literal["untrained", "trained"]
    start: float
    end: float
    steps: int

    @property
    def ratio(self) -> float:
        """``end`` over ``start``; 1 for a loss that is zero from the start."""
        return self.end / self.start if self.start > 0 else 1.0

    @property
    def degenerate(self) -> bool:
        """Whether the loss fell below a hundredth of its start."""
        return self.ratio < DEGENERATE_BELOW

    @property
    def verdict(self) -> str:
        """``"degenerate"`` or ``"holds"``."""
        return "degenerate" if self.degenerate else "holds"

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "method": self.method,
            "student": self.student,
            "start": self.start,
            "end": self.end,
            "ratio": self.ratio,
            "steps": self.steps,
            "verdict": self.verdict,
        }


def probe_layers(
    auxiliary: Auxiliary,
    teacher: Layers,
    student: Layers,
    *,
    steps: int = 500,
    lr: float = 0.01,
    seed: int = 0,
) -> tuple[float, float]:
    """Train a loss's own parameters against layers that stay.

    Args:
        auxiliary: The loss, fresh; it is changed.
        teacher: The teacher's layers, each ``[n, .]``.
        student: The student's layers for the same nodes, likewise.
        steps: Number of steps of Adam.
        lr: Learning rate.
        seed: Draws the sample of nodes, which is the same in all steps.

    Returns:
        The loss at first, and after the last step.
    """
    teacher = [layer.detach() for layer in teacher]
    student = [layer.detach() for layer in student]
    auxiliary.train()

    def loss() -> Tensor:
        value = auxiliary(student, teacher, torch.Generator().manual_seed(seed))
        return cast(Tensor, value)

    parameters = [p for p in auxiliary.parameters() if p.requires_grad]
    start = float(loss().detach())
    if not parameters:
        return start, start
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return start, float(loss().detach())


def probe(
    view: View,
    knowledge: Knowledge,
    method: Method,
    seed: int = 0,
    *,
    states: Sequence[Literal["untrained", "trained"]] = ("untrained", "trained"),
    steps: int = 500,
    lr: float = 0.01,
) -> list[Probe]:
    """Probe a method on a teacher and on its own student.

    Args:
        view: What may be seen.
        knowledge: What the teacher says of the observed nodes.
        method: A method that compares layers, with its hyper-parameters.
        seed: Seed of the student and of the loss's parameters.
        states: Whether the frozen student is untrained, or trained on labels as the method would
            train it, or one after the other.
        steps: Steps of Adam for the loss's parameters.
        lr: Their learning rate.

    Raises:
        OptionError: The method compares no layers, or a network has none to compare.
        TeacherError: The teacher is only logits.
    """
    if not isinstance(method, LayerMethod):
        raise OptionError(
            f"method {method.name!r} compares no layers, so there is nothing to probe: try 'abkd', "
            "'fitnet', 'g-crd' or 'gsp'."
        )
    if method.beta == 0:
        method = method.replace(beta=1.0)
    nodes = nodes_in_scope(view, method.scope)
    teacher = [layer[nodes] for layer in method.teacher_layers(knowledge)]
    found = []
    for state in states:
        with seeded(seed):
            student, inputs = method.build(view)
            if state == "trained":
                plain = _labels_only(method)
                plain.train(student, inputs, view, None)
            auxiliary = method.auxiliary_beside(student, inputs.observed, teacher)
            assert auxiliary is not None
            with torch.no_grad():
                outputs = student.layers(inputs.observed.take(nodes))  # type: ignore[operator]
            mine = method.student_layers(outputs)
            start, end = probe_layers(auxiliary, teacher, mine, steps=steps, lr=lr, seed=seed)
        found.append(Probe(name_of(method), state, start, end, steps))
    return found


def name_of(method: Method) -> str:
    """A method's name, with its preset where it has one: ``"abkd:stride"``."""
    preset = getattr(method, "preset", None)
    return method.name if preset is None else f"{method.name}:{preset}"


def _labels_only(method: LayerMethod) -> PlainStudent:
    known = method.model_dump()
    return PlainStudent(**{name: known[name] for name in PlainStudent.model_fields})
