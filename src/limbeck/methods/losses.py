"""Losses that several methods share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from limbeck.training.tasks import ONE_CLASS, Task


def soft_target_loss(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, task: Task = ONE_CLASS
) -> Tensor:
    r"""Mean over nodes of :math:`\tau^2 \, \mathrm{KL}(\sigma(t/\tau) \,\|\, \sigma(s/\tau))`.

    See :meth:`Task.soft_loss <limbeck.training.tasks.Task.soft_loss>`, also for several labels per
    node.

    Args:
        student: Logits ``[B, C]``.
        teacher: Logits ``[B, C]``, without gradient.
        temperature: :math:`\tau > 0`.
        task: What is asked of the nodes.
    """
    return task.soft_loss(student, teacher, temperature)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean of :math:`(\mathbf{T}\mathbf{T}^\top - \mathbf{S}\mathbf{S}^\top)^2` over node pairs.

    Neither side is normalised (NOSMOG, Tian et al., ICLR 2023), so its size grows with the fourth
    power of the representations' scale. The widths may differ.

    Args:
        student: Representations ``[B, H]``.
        teacher: Representations ``[B, H']``, without gradient.
    """
    return F.mse_loss(student @ student.t(), teacher @ teacher.t())
