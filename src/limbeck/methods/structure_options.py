"""What LSP and MSKD share: which states are compared, over which edges, a step at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor

from limbeck.errors import OptionError, TeacherError
from limbeck.graphs.view import View
from limbeck.methods.base import PositiveInt, Probability
from limbeck.methods.layers import hidden_layers, teacher_outputs
from limbeck.methods.local_structure import (
    BANDWIDTH,
    Kernel,
    Neighborhoods,
    local_divergence,
    local_log_probs,
)
from limbeck.methods.student_options import StudentOptions
from limbeck.students.gnn import full_batch
from limbeck.students.inputs import NodeInputs
from limbeck.students.mlp import Exposed
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import batches

Weight = Annotated[float, Field(ge=0)]
Width = Annotated[float, Field(gt=0)]

SECOND = 2
"""The student's hidden layer that is compared where there are as many, as in MSKD's code."""


class Step(NamedTuple):
    """A student's answers to some nodes.

    Args:
        nodes: Which observed nodes, int64 ``[B]``.
        logits: The student's, ``[B, C]``.
        divergence: Of its local distributions from those of each teacher, ``[B, K]``; zeros where
            the structure has no weight.
    """

    nodes: Tensor
    logits: Tensor
    divergence: Tensor


class StructureOptions(StudentOptions):
    r"""A method whose student learns its teachers' local structure.

    .. math::
        \mathcal{L} = \mathrm{CE} + \lambda \, \mathcal{L}_{structure} + \lambda_{kd} \,
        \mathcal{L}_{KD}

    with the cross-entropy over the training nodes, and everything else over all observed nodes.
    Options beside those of :class:`~limbeck.methods.student_options.StudentOptions`:

    Args:
        structure_weight: :math:`\lambda`; 0 trains as if there were no structure loss.
        kernel: Of two states; see :func:`~limbeck.methods.local_structure.edge_logits`.
        bandwidth: The kernel's width :math:`\sigma`, the same for all networks, or ``"median"``
            for that of each network's own distances.
        self_loops: Whether each node is compared with itself, too. Otherwise nodes with one
            neighbour learn nothing.
        student_layer: Hidden layer of the student that is compared, counted from 1; ``None`` takes
            the second, or the only one.
        teacher_layers: Name of the hidden layer of each teacher that is compared, such as
            ``"hidden1"``; empty takes the last hidden layer of each.
        kd_weight: :math:`\lambda_{kd}`, the weight of the teachers' answers.
        temperature: :math:`\tau`, at which answers are compared.
        exposed: As in :class:`~limbeck.methods.student_options.StudentOptions`; here
            ``"pre-activation"`` is the default.
        batch_size: Nodes per step, each with all of its neighbours; ``None`` takes all at once, as
            a GNN student always does.
    """

    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "structure_weight": (0.3, 1.0, 3.0, 7.0, 20.0),
        "bandwidth": (BANDWIDTH, "median"),
    }

    hidden_channels: PositiveInt = 68
    num_layers: PositiveInt = 5
    dropout: Probability = 0.5
    lr: float = Field(default=0.005, gt=0)
    max_epochs: PositiveInt = 500
    patience: PositiveInt = 100
    exposed: Exposed = "pre-activation"
    structure_weight: Weight = 7.0
    kernel: Kernel = "l1_exp"
    bandwidth: Width | Literal["median"] = BANDWIDTH
    self_loops: bool = True
    student_layer: PositiveInt | None = None
    teacher_layers: tuple[str, ...] = ()
    kd_weight: Weight = 0.0
    temperature: float = Field(default=1.0, gt=0)

    def neighborhoods(self, view: View) -> Neighborhoods:
        """The edges of the observed graph over which states are compared."""
        return Neighborhoods.of(
            view.observed.edge_index, view.num_observed, self_loops=self.self_loops
        )

    def teacher_log_probs(
        self, teachers: Sequence[Knowledge], neighborhoods: Neighborhoods
    ) -> Tensor:
        """The teachers' local distributions in log form, ``[E, K]``, computed once.

        Raises:
            TeacherError: A teacher is only logits, or has no hidden layer of that name.
            OptionError: ``teacher_layers`` does not name one layer per teacher.
        """
        if self.structure_weight == 0:
            return torch.empty(neighborhoods.num_edges, 0)
        states = self.teacher_states(teachers)
        log_probs = [
            local_log_probs(state, neighborhoods, self.kernel, self.bandwidth) for state in states
        ]
        return torch.stack(log_probs, dim=1)

    def teacher_states(self, teachers: Sequence[Knowledge]) -> list[Tensor]:
        """The hidden state of each teacher that is compared, each ``[observed, .]``.

        Raises:
            TeacherError: A teacher is only logits, or has no hidden layer of that name.
            OptionError: ``teacher_layers`` does not name one layer per teacher.
        """
        names = self.teacher_layers
        if names and len(names) != len(teachers):
            raise OptionError(
                f"option 'teacher_layers' names {len(names)} layers for {len(teachers)} teachers: "
                "name one for each, or none."
            )
        states = []
        for i, knowledge in enumerate(teachers):
            outputs = teacher_outputs(knowledge, self.name)
            if not names:
                states.append(hidden_layers(outputs)[-1])
            elif names[i] in outputs:
                states.append(outputs[names[i]])
            else:
                raise TeacherError(
                    f"teacher {knowledge.name!r} has no layer {names[i]!r}: choose from "
                    f"{', '.join(outputs)}."
                )
        return states

    def student_state(self, outputs: dict[str, Tensor]) -> Tensor:
        """The hidden state of the student that is compared, ``[B, .]``.

        Raises:
            OptionError: The student has no such layer.
        """
        hidden = hidden_layers(outputs)
        if not hidden:
            raise OptionError(
                f"method {self.name!r} compares hidden layers, and this student has none: set "
                "'num_layers' to 2 or more."
            )
        if self.student_layer is None:
            return hidden[min(SECOND, len(hidden)) - 1]
        if self.student_layer > len(hidden):
            raise OptionError(
                f"option 'student_layer' is {self.student_layer}, but the student has "
                f"{len(hidden)} hidden layers: choose one of them."
            )
        return hidden[self.student_layer - 1]

    def steps(
        self,
        student: torch.nn.Module,
        known: NodeInputs,
        neighborhoods: Neighborhoods,
        log_probs: Tensor,
    ) -> Iterator[Step]:
        """Ask the student about all observed nodes, batch by batch, once.

        Args:
            student: Has ``layers``.
            known: Its inputs of the observed nodes.
            neighborhoods: From :meth:`neighborhoods`.
            log_probs: From :meth:`teacher_log_probs`, ``[E, K]``.

        Yields:
            The answers to each batch, computed when they are asked for.
        """
        batch_size = None if full_batch(known) else self.batch_size
        for nodes in batches(torch.arange(len(known)), batch_size):
            if self.structure_weight == 0:
                logits = _layers(student, known.take(nodes))["logits"]
                yield Step(nodes, logits, logits.new_zeros(len(nodes), 1))
                continue
            if len(nodes) == len(known):
                concerned, edges, theirs = nodes, neighborhoods, log_probs
            else:
                batch = neighborhoods.into(nodes)
                concerned, edges = batch.nodes, batch.neighborhoods
                theirs = log_probs[batch.edges]
            outputs = _layers(student, known.take(concerned))
            state = self.student_state(outputs)
            divergence = local_divergence(state, theirs, edges, self.kernel, self.bandwidth)
            yield Step(nodes, outputs["logits"][: len(nodes)], divergence)


def _layers(student: torch.nn.Module, inputs: NodeInputs) -> dict[str, Tensor]:
    return cast("dict[str, Tensor]", student.layers(inputs))  # type: ignore[operator]
