"""What methods that distil along edges share: pairs of nodes, targets, labels among all nodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.utils import add_self_loops, remove_self_loops

from limbeck.graphs.adjacency import plain_adjacency
from limbeck.graphs.sparse import take_rows
from limbeck.graphs.view import View
from limbeck.training.tasks import hidden_like, labelled_rows, task_of


def neighbor_pairs(view: View, *, self_loops: bool) -> Tensor:
    """The pairs (node, neighbour) of the observed graph as a CSR matrix ``[N, N]``.

    Entry ``(i, j)`` says that an edge leads from ``j`` to ``i``: the student at ``i`` may learn
    from the teacher at ``j``. An edge that the graph holds twice counts twice.

    Args:
        view: What may be seen.
        self_loops: Whether each node is paired with itself, once; self-loops of the graph itself
            are dropped either way.
    """
    edge_index, _ = remove_self_loops(view.observed.edge_index)
    if self_loops:
        edge_index, _ = add_self_loops(edge_index, num_nodes=view.num_observed)
    return plain_adjacency(edge_index, view.num_observed)


@dataclass(frozen=True, eq=False)
class PairTargets:
    r"""What ``B`` nodes shall learn along their pairs, summed per node.

    .. math::
        \sum_{(i,j)} \mathrm{KL}(\mathbf{p}_j \,\|\, \mathbf{q}_i)
        = \sum_{(i,j)} \mathbf{p}_j^\top \log \mathbf{p}_j
        - \sum_i \Big( \sum_{j} \mathbf{p}_j \Big)^{\!\top} \log \mathbf{q}_i

    The student enters per node, not per pair, so that a step costs one sparse product and
    memory for nodes alone, however many edges there are.

    Args:
        probs: Sum of the neighbours' teacher probabilities, ``[B, C]``.
        negentropy: Sum over all pairs of the teacher's negative entropy, a scalar.
        num_pairs: Number of pairs, a scalar.
    """

    probs: Tensor
    negentropy: Tensor
    num_pairs: Tensor

    @classmethod
    def along(cls, pairs: Tensor, log_teacher: Tensor) -> PairTargets:
        """Sum up the teacher along pairs.

        Args:
            pairs: CSR ``[B, N]``, how often each pair counts; zero leaves it out.
            log_teacher: The teacher's log-probabilities ``[N, C]``.
        """
        probs = log_teacher.exp()
        negentropy = (probs * log_teacher).sum(1, keepdim=True)
        summed = torch.sparse.mm(pairs, torch.cat([probs, negentropy], dim=1))  # [B, C + 1]
        return cls(summed[:, :-1], summed[:, -1].sum(), pairs.values().sum())

    def divergence(self, log_student: Tensor) -> Tensor:
        """Mean over the pairs of the divergence from student to teacher, zero without pairs.

        Args:
            log_student: The student's log-probabilities ``[B, C]`` of the same nodes.
        """
        total = self.negentropy - (self.probs * log_student).sum()
        return total / self.num_pairs.clamp(min=1)


def edges_into(adj: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The edges that end in some nodes, with everyone who takes part in them.

    Args:
        adj: CSR ``[N, N]``, row of the receiver.
        nodes: Receivers, int64 ``[B]``, without repetition.

    Returns:
        All nodes concerned, int64 ``[M]``, of which the first ``B`` are ``nodes``; and the edges
        as sender and receiver, int64 ``[2, E]``, counted in that order.
    """
    rows = take_rows(adj, nodes)
    receivers = torch.repeat_interleave(torch.arange(len(nodes)), rows.crow_indices().diff())
    place = torch.full((adj.shape[0],), -1)
    place[nodes] = torch.arange(len(nodes))
    others = torch.unique(rows.col_indices()[place[rows.col_indices()] < 0])
    place[others] = torch.arange(len(nodes), len(nodes) + len(others))
    concerned = torch.cat([nodes, others])
    return concerned, torch.stack([place[rows.col_indices()], receivers])


def training_labels(view: View) -> Tensor:
    """Labels of the training nodes, in the view's form, −1 for every other observed node."""
    y = hidden_like(view.observed.y, view.num_observed)
    y[view.train] = view.observed.y[view.train]
    return y


def label_loss(logits: Tensor, nodes: Tensor, y: Tensor, num_train: int) -> Tensor:
    """Cross-entropy of the training nodes among some nodes; the binary one for several labels.

    Over all nodes it is the mean over the training nodes; over a batch it is that in expectation,
    also where a batch happens to hold none of them.

    Args:
        logits: The student's ``[B, C]``.
        nodes: Which nodes they are, int64 ``[B]``.
        y: From :func:`training_labels`, ``[N]`` or ``[N, C]``.
        num_train: Number of training nodes.
    """
    there = y[nodes]
    known = labelled_rows(there)
    total = task_of(y).label_loss(logits[known], there[known], reduction="sum")
    return total * (len(y) / (len(nodes) * num_train))
