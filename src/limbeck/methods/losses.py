"""Losses that several methods share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Mean over nodes of :math:`\tau^2 \, \mathrm{KL}(\sigma(t/\tau) \,\|\, \sigma(s/\tau))`.

    The factor :math:`\tau^2` keeps the gradient's size when the temperature changes (Hinton et
    al., 2015); with :math:`\tau = 1`, GLNN's choice, it is the plain divergence.

    Args:
        student: Logits ``[B, C]``.
        teacher: Logits ``[B, C]``, without gradient.
        temperature: :math:`\tau > 0`.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean of :math:`(\mathbf{T}\mathbf{T}^\top - \mathbf{S}\mathbf{S}^\top)^2` over node pairs.

    Neither side is normalised (NOSMOG, Tian et al., ICLR 2023), so its size grows with the fourth
    power of the representations' scale. The widths may differ.

    Args:
        student: Representations ``[B, H]``.
        teacher: Representations ``[B, H']``, without gradient.
    """
    return F.mse_loss(student @ student.t(), teacher @ teacher.t())
