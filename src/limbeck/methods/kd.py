"""KD: a GNN's soft labels into a smaller GNN."""

from __future__ import annotations

from typing import Any, ClassVar

from limbeck.methods.base import Share
from limbeck.methods.layers import LogitMethod


class KD(LogitMethod):
    r"""Knowledge distillation from logits (Hinton et al., 2015), between graph neural networks.

    .. math::
        \mathcal{L} = \frac{\alpha \tau^2}{|D|} \sum_{v \in D} \mathrm{KL}(
        \sigma(\mathbf{t}_v / \tau) \,\|\, \sigma(\mathbf{s}_v / \tau))
        + \frac{1 - \alpha}{|L|} \sum_{v \in L} \mathrm{CE}(y_v, \sigma(\mathbf{s}_v))

    with the nodes in scope as ``D``. Options are those of
    :class:`~limbeck.methods.layers.LogitMethod`; the weight of the logits is 0.9 here.
    """

    name: ClassVar[str] = "kd"
    title: ClassVar[str] = "soft labels of a GNN into a smaller GNN"
    paper: ClassVar[str] = "https://arxiv.org/abs/1503.02531"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "kd_weight": (0.5, 0.8, 0.9),
        "temperature": (1.0, 2.0, 4.0, 5.0),
    }

    kd_weight: Share = 0.9
