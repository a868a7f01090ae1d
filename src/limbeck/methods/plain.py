"""The plain student: the same network and training, labels only."""

from __future__ import annotations

from typing import ClassVar

from limbeck.methods.layers import ScopedMethod


class PlainStudent(ScopedMethod):
    r"""A student trained on labels, the row that every distilled one is compared with.

    .. math::
        \mathcal{L} = \frac{1}{|L|} \sum_{v \in L} \mathrm{CE}(y_v, \sigma(\mathbf{s}_v))

    Options are those of :class:`~limbeck.methods.layers.ScopedMethod`.
    """

    name: ClassVar[str] = "plain"
    title: ClassVar[str] = "the student on labels alone, GNN or MLP; no teacher"
    paper: ClassVar[str] = "control"
    needs_teacher: ClassVar[bool] = False
