"""LINKX on labels alone: the baseline that reads what SA-MLP reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from limbeck.graphs.view import View
from limbeck.methods.base import Distilled, Method, PositiveInt, Probability, validation_accuracy
from limbeck.students.inputs import inputs_of
from limbeck.students.linkx import LINKX
from limbeck.students.structure_tables import FullTable
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint, batches


class LINKXOnLabels(Method):
    r"""LINKX (Lim et al., NeurIPS 2021), trained on labels alone.

    .. math::
        \mathcal{L} = \frac{1}{|L|} \sum_{v \in L} \mathrm{CE}(y_v, \sigma(\mathbf{s}_v))

    A student that reads neighbours may beat its teacher, or any student that reads features alone,
    by what it reads rather than by what it was taught; this one, with the same inputs and without
    a teacher, tells which. ``num_layers`` counts the linear maps of the last MLP, whose ``norm`` is
    always ``"batch"``. Options are those of :class:`~limbeck.methods.base.Method`.
    """

    name: ClassVar[str] = "linkx"
    title: ClassVar[str] = "LINKX: features and neighbours on labels alone, no teacher"
    paper: ClassVar[str] = "https://arxiv.org/abs/2110.14446"
    needs_teacher: ClassVar[bool] = False
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"hidden_channels": (64, 128, 256)}

    hidden_channels: PositiveInt = 64
    norm: Literal["batch"] = "batch"
    dropout: Probability = 0.5
    batch_size: PositiveInt | None = None
    max_epochs: PositiveInt = 500
    patience: PositiveInt = 100

    def distill(
        self,
        view: View,
        knowledge: Knowledge | None = None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Train on the labels of the training nodes; ``knowledge`` is not used."""
        inputs, y = inputs_of(view, neighbors=True), view.observed.y
        known = inputs.observed
        student = LINKX(
            view.num_features,
            self.hidden_channels,
            view.num_classes,
            FullTable(view.num_observed, self.hidden_channels),
            self.num_layers,
            self.dropout,
            self.input_dropout,
        )

        def losses(epoch: int) -> Iterator[Tensor]:
            for nodes in batches(view.train, self.batch_size):
                yield F.cross_entropy(student(known.take(nodes)), y[nodes])

        history = self.fit(
            student,
            losses,
            validation_accuracy(student, known, view),
            checkpoint=checkpoint,
            progress=progress,
        )
        return Distilled(student, history, inputs)
