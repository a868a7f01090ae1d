"""LSP: how each node relates to its neighbours in the teacher's hidden layer, into a student."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.graphs.info import TaskName
from limbeck.graphs.view import View
from limbeck.methods.base import Distilled, validation_accuracy
from limbeck.methods.edges import label_loss, training_labels
from limbeck.methods.losses import soft_target_loss
from limbeck.methods.structure_options import StructureOptions
from limbeck.teachers.knowledge import Knowledge
from limbeck.training.loop import Checkpoint
from limbeck.training.tasks import task_of


class LSP(StructureOptions):
    r"""Local structure preserving distillation (Yang et al., CVPR 2020).

    .. math::
        \mathcal{L} = \frac{1}{|L|} \sum_{v \in L} \mathrm{CE}(y_v, \sigma(\mathbf{s}_v))
        + \frac{\lambda}{|D|} \sum_{i \in D} \sum_{j \in N(i)} p^T_{ij} \log
        \frac{p^T_{ij}}{p^S_{ij}}

    with all observed nodes as ``D`` and the distributions of
    :mod:`~limbeck.methods.local_structure`; with ``kd_weight`` the teacher's logits are learnt,
    too. Options beside those of :class:`~limbeck.methods.structure_options.StructureOptions`:

    Args:
        reduction: Mean over ``"nodes"``, or over ``"edges"``, as efficient-gnns computes; the
            weight then means less the denser a graph is.
    """

    name: ClassVar[str] = "lsp"
    title: ClassVar[str] = "local structure preserving: how neighbours relate, into a small GNN"
    tasks: ClassVar[tuple[TaskName, ...]] = ("classes", "labels")
    paper: ClassVar[str] = "https://arxiv.org/abs/2003.10477"

    reduction: Literal["nodes", "edges"] = "nodes"

    def distill(
        self,
        view: View,
        knowledge: Knowledge | None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: str | None = None,
    ) -> Distilled:
        """Train on labels and on the teacher's local structure.

        Raises:
            TeacherError: There is no teacher to learn from, or it is only logits.
            OptionError: The student has no hidden layer to compare.
        """
        if knowledge is None:
            raise TeacherError("method 'lsp' learns from a teacher: give one.")
        student, inputs = self.build(view)
        known, y = inputs.observed, training_labels(view)
        neighborhoods = self.neighborhoods(view)
        log_probs = self.teacher_log_probs([knowledge], neighborhoods)
        # of the whole graph, so that batches of nodes with few edges do not count for more
        scale = 1.0
        if self.reduction == "edges":
            scale = view.num_observed / max(neighborhoods.num_edges, 1)

        def losses(epoch: int) -> Iterator[Tensor]:
            for nodes, logits, divergence in self.steps(student, known, neighborhoods, log_probs):
                loss = label_loss(logits, nodes, y, len(view.train))
                if self.structure_weight > 0:
                    loss = loss + self.structure_weight * scale * divergence.mean()
                if self.kd_weight > 0:
                    theirs = knowledge.logits[nodes]
                    soft = soft_target_loss(logits, theirs, self.temperature, task_of(y))
                    loss = loss + self.kd_weight * soft
                yield loss

        history = self.fit(
            student,
            losses,
            validation_accuracy(student, known, view),
            checkpoint=checkpoint,
            progress=progress,
        )
        return Distilled(student, history, inputs)
