"""Propagated labels: what the training labels around a node say, as an input of a student."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.utils import degree

from limbeck.graphs.adjacency import plain_adjacency
from limbeck.graphs.view import View

STEP = 0.1
"""Share of a node's mass that a step hands on, as in the released code of RbM."""

STEPS = 10
"""Steps of the propagation, as in the released code of RbM."""


def propagated_labels(view: View) -> Tensor:
    r"""Spread the training labels over the observed graph.

    With one row per observed node, :math:`\mathbf{F}_0` the one-hot labels of the training nodes
    (several labels as they are) and zero elsewhere, and :math:`\mathbf{A}` the mean over
    in-neighbours,

    .. math::
        \mathbf{Q}_1 = \mathbf{A} (0.1 \, \mathbf{F}_0), \qquad
        \mathbf{Q}_{t+1} = \mathbf{Q}_t + \mathbf{A} (0.1 \, \mathbf{Q}_t), \quad t < 10,

    and each row is divided by its sum plus :math:`10^{-6}` (released code of `"Graph Knowledge
    Distillation to Mixture of Experts" <https://arxiv.org/abs/2406.11919>`_, which takes the idea
    from CoHOp). A node that no training label reaches has zeros. Nothing else than the observed
    edges and the training labels enters.

    Args:
        view: What may be seen.

    Returns:
        float32 ``[observed, C]``.
    """
    num_nodes = view.num_observed
    edge_index = view.observed.edge_index
    weight = STEP / degree(edge_index[1], num_nodes)[edge_index[1]]
    step = plain_adjacency(edge_index, num_nodes, weight)
    labels = torch.zeros(num_nodes, view.num_classes)
    y = view.observed.y[view.train]
    labels[view.train] = y if y.dim() == 2 else F.one_hot(y, view.num_classes).float()
    spread = torch.sparse.mm(step, labels)
    for _ in range(STEPS - 1):
        spread = spread + torch.sparse.mm(step, spread)
    shares: Tensor = spread / (spread.sum(1, keepdim=True) + 1e-6)
    return shares
