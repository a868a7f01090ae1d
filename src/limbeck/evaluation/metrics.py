r"""Figures of merit of logits against labels, and of a student against its teacher.

Every function takes torch tensors and returns a Python float. Rows are nodes: ``logits`` is
``[N, C]`` of any float type, ``labels`` is int64 ``[N]`` with values ``0 .. C-1``. All shares lie
between 0 and 1; a table multiplies them by 100.

Where nodes have several labels (``labels`` float ``[N, C]``), :func:`score` asks
:func:`multilabel_f1` and :func:`multilabel_roc_auc`, and otherwise the same functions as for
classes, about the :func:`questions` of yes or no that such labels are.
"""

from __future__ import annotations

from typing import Literal

import torch
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, roc_auc_score
from torch import Tensor
from torch_geometric.utils import to_scipy_sparse_matrix

from limbeck.errors import InputError

#: Number of equal-width confidence bins of :func:`expected_calibration_error`.
ECE_BINS = 15


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of nodes whose largest logit is that of their label.

    Args:
        logits: Float ``[N, C]``.
        labels: int64 ``[N]``.

    Raises:
        InputError: If there is no node, a label is outside ``0 .. C-1``, a logit is not finite
            or the lengths differ. The same holds for every function of this module.
    """
    logits, labels = require_scorable(logits, labels)
    return float(accuracy_score(labels.numpy(), logits.argmax(dim=1).numpy()))


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """F1 score of each class that is a label or an answer, averaged without weights.

    Args:
        logits: Float ``[N, C]``.
        labels: int64 ``[N]``.
    """
    logits, labels = require_scorable(logits, labels)
    return float(f1_score(labels.numpy(), logits.argmax(dim=1).numpy(), average="macro"))


def roc_auc(logits: Tensor, labels: Tensor) -> float | None:
    """Area under the ROC curve of class 1 against class 0.

    Args:
        logits: Float ``[N, C]``.
        labels: int64 ``[N]``.

    Returns:
        The area; ``None`` where it is not defined: ``C`` is not two, or all labels are equal.
    """
    logits, labels = require_scorable(logits, labels)
    if logits.shape[1] != 2 or len(torch.unique(labels)) != 2:
        return None
    return float(roc_auc_score(labels.numpy(), (logits[:, 1] - logits[:, 0]).numpy()))


def multilabel_f1(logits: Tensor, labels: Tensor, average: Literal["micro", "macro"]) -> float:
    """F1 score of several labels per node; a node is given the labels with a logit above 0.

    Args:
        logits: Float ``[N, C]``.
        labels: Ones and zeros, ``[N, C]``.
        average: ``"micro"``: over all nodes and labels at once, PPI's usual figure; ``"macro"``:
            the mean over the labels, 0 for one that no node has or is given.

    Raises:
        InputError: If there is no node, a label is neither one nor zero, a logit is not finite or
            the shapes differ. The same holds for the other functions of several labels.
    """
    logits, labels = require_scorable_labels(logits, labels)
    answer = (logits > 0).numpy()
    return float(f1_score(labels.numpy(), answer, average=average, zero_division=0))


def multilabel_roc_auc(logits: Tensor, labels: Tensor) -> float | None:
    """Area under the ROC curve, the mean over the labels that some nodes have and others lack.

    Args:
        logits: Float ``[N, C]``.
        labels: Ones and zeros, ``[N, C]``.

    Returns:
        The mean; ``None`` if there is no such label.
    """
    logits, labels = require_scorable_labels(logits, labels)
    both = (labels.max(0).values > labels.min(0).values).nonzero().flatten()
    if len(both) == 0:
        return None
    return float(roc_auc_score(labels[:, both].numpy(), logits[:, both].numpy(), average="macro"))


def questions(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    r"""Several labels as questions of two classes, no and yes, one per node and label.

    With logits :math:`(0, z)` the softmax of a question is :math:`\sigma(z)`, so what is defined
    for classes holds for labels: accuracy is the share of right decisions, and a temperature
    divides :math:`z`.

    Args:
        logits: Float ``[N, C]``.
        labels: Ones and zeros, ``[N, C]``.

    Returns:
        Logits ``[N C, 2]`` and int64 labels ``[N C]``, node by node.
    """
    logits, labels = require_scorable_labels(logits, labels)
    return decisions(logits), labels.long().flatten()


def decisions(logits: Tensor) -> Tensor:
    """The logits of :func:`questions`, ``[N C, 2]``."""
    yes = logits.flatten()
    return torch.stack([torch.zeros_like(yes), yes], dim=1)


def expected_calibration_error(logits: Tensor, labels: Tensor, *, bins: int = ECE_BINS) -> float:
    r"""Mean distance between confidence and accuracy, from "On Calibration of Modern Neural
    Networks" (Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599).

    .. math::
        \mathrm{ECE} = \sum_{m=1}^{M} \frac{|B_m|}{N}
        \left| \mathrm{acc}(B_m) - \mathrm{conf}(B_m) \right|

    where bin :math:`B_m` holds the nodes whose largest probability lies in
    :math:`((m-1)/M, m/M]`.

    Args:
        logits: Float ``[N, C]``.
        labels: int64 ``[N]``.
        bins: Number ``M`` of bins of equal width.
    """  # noqa: D205
    logits, labels = require_scorable(logits, labels)
    confidence, answer = logits.softmax(dim=1).max(dim=1)  # [N], [N]
    inner_edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    which = torch.bucketize(confidence, inner_edges)  # [N], a value on an edge goes to the left
    gap = (answer == labels).double() - confidence
    # |B_m| * |acc - conf| is the absolute sum of the bin's gaps
    total = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, gap)
    return float(total.abs().sum() / len(labels))


def brier_score(logits: Tensor, labels: Tensor) -> float:
    r"""Squared distance between the probabilities and the one-hot label, from 0 to 2.

    .. math:: \frac{1}{N} \sum_{v} \sum_{c} (\hat p_{vc} - [y_v = c])^2

    Args:
        logits: Float ``[N, C]``.
        labels: int64 ``[N]``.
    """
    logits, labels = require_scorable(logits, labels)
    return float(
        brier_score_loss(
            labels.numpy(),
            logits.softmax(dim=1).numpy(),
            labels=list(range(logits.shape[1])),
            scale_by_half=False,
        )
    )


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Share of nodes for which student and teacher give the same class.

    Args:
        student_logits: Float ``[N, C]``.
        teacher_logits: Float ``[N, C]``.
    """
    if student_logits.shape != teacher_logits.shape:
        raise InputError(
            f"the student's logits are {_shape(student_logits)} and the teacher's "
            f"{_shape(teacher_logits)}: agreement needs the same nodes and classes in both."
        )
    _require_logits(teacher_logits)
    return accuracy(student_logits, teacher_logits.argmax(dim=1))


def cut_consistency(probs: Tensor, edge_index: Tensor) -> float | None:
    r"""How far predictions agree along edges, from "Graph-less Neural Networks" (Zhang et al.,
    ICLR 2022, https://arxiv.org/abs/2110.08727).

    .. math::
        \frac{\mathrm{Tr}(\hat Y^\top A \hat Y)}{\mathrm{Tr}(\hat Y^\top D \hat Y)}
        = \frac{\sum_{(u,v) \in E} \langle \hat y_u, \hat y_v \rangle}
               {\sum_{(u,v) \in E} \frac12 (\|\hat y_u\|^2 + \|\hat y_v\|^2)}

    with soft predictions :math:`\hat Y`. Where every edge is stored in both directions the two
    forms are equal; the right one is also between 0 and 1 for directed edges. Memory is
    :math:`O(NC + E)`.

    Args:
        probs: Probabilities (or one-hot rows), float ``[N, C]``.
        edge_index: int64 ``[2, E]``; self-loops and repeated edges count as they are given.

    Returns:
        The share; ``None`` for a graph without edges.
    """  # noqa: D205
    _require_logits(probs)
    if edge_index.shape[1] == 0:
        return None
    num_nodes = probs.shape[0]
    if not 0 <= int(edge_index.min()) <= int(edge_index.max()) < num_nodes:
        raise InputError(
            f"edge_index names nodes from {int(edge_index.min())} to {int(edge_index.max())}, but "
            f"there are probabilities of {num_nodes} nodes: ids must be 0 to {num_nodes - 1}."
        )
    y = probs.detach().cpu().double().numpy()  # [N, C]
    adjacency = to_scipy_sparse_matrix(edge_index, num_nodes=num_nodes).tocsr()  # repeats add up
    ends = torch.bincount(edge_index.cpu().reshape(-1), minlength=num_nodes).double().numpy() / 2
    along_edges = float((y * (adjacency @ y)).sum())
    return along_edges / float(ends @ (y * y).sum(axis=1))


def score(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None
) -> dict[str, float | None]:
    """All figures of one set of nodes, under the names that tables and bundles use.

    Args:
        logits: Float ``[N, C]``.
        labels: int64 ``[N]``; or ones and zeros ``[N, C]`` for several labels per node, of which
            ``accuracy`` is micro-F1, ``macro_f1`` and ``roc_auc`` are means over the labels, and
            ``ece``, ``brier`` and ``agreement`` are over the single decisions.
        teacher_logits: Float ``[N, C]``, of the same nodes; without it agreement is ``None``.

    Returns:
        ``accuracy``, ``macro_f1``, ``roc_auc`` (``None`` unless there are two classes), ``ece``,
        ``brier``, ``agreement`` and ``num_nodes``.
    """
    if labels.dim() == 2:
        ours, right = questions(logits, labels)
        theirs = None if teacher_logits is None else decisions(teacher_logits)
        return {
            "accuracy": main_score(logits, labels),
            "macro_f1": multilabel_f1(logits, labels, "macro"),
            "roc_auc": multilabel_roc_auc(logits, labels),
            "ece": expected_calibration_error(ours, right),
            "brier": brier_score(ours, right),
            "agreement": None if theirs is None else agreement(ours, theirs),
            "num_nodes": len(labels),
        }
    return {
        "accuracy": main_score(logits, labels),
        "macro_f1": macro_f1(logits, labels),
        "roc_auc": roc_auc(logits, labels),
        "ece": expected_calibration_error(logits, labels),
        "brier": brier_score(logits, labels),
        "agreement": None if teacher_logits is None else agreement(logits, teacher_logits),
        "num_nodes": len(labels),
    }


def main_score(logits: Tensor, labels: Tensor) -> float:
    """What tables call accuracy: :func:`accuracy`, or micro-F1 where nodes have several labels.

    Args:
        logits: Float ``[N, C]``.
        labels: int64 ``[N]``, or ones and zeros ``[N, C]``.
    """
    if labels.dim() == 2:
        return multilabel_f1(logits, labels, "micro")
    return accuracy(logits, labels)


def require_scorable(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The two on the CPU, logits in float64 so that probabilities sum to one.

    Raises:
        InputError: If they cannot be scored; see :func:`accuracy`.
    """
    _require_logits(logits)
    if labels.shape != logits.shape[:1]:
        raise InputError(
            f"there are {_shape(labels)} labels for logits of shape {_shape(logits)}: "
            "give one label per row."
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise InputError(
            f"labels lie between {int(labels.min())} and {int(labels.max())}, but the logits have "
            f"{logits.shape[1]} classes: score labelled nodes only, with labels from 0 to "
            f"{logits.shape[1] - 1}."
        )
    return logits.detach().cpu().double(), labels.detach().cpu()


def require_scorable_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`require_scorable`, for several labels per node.

    Raises:
        InputError: If they cannot be scored; see :func:`multilabel_f1`.
    """
    _require_logits(logits)
    if labels.shape != logits.shape:
        raise InputError(
            f"there are {_shape(labels)} labels for logits of shape {_shape(logits)}: "
            "give each label of each row."
        )
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise InputError("labels must be ones and zeros: score nodes whose labels are known only.")
    return logits.detach().cpu().double(), labels.detach().cpu()


def _require_logits(logits: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        raise InputError(
            f"logits have shape {_shape(logits)}: "
            "give [N, C] with at least one node and two classes."
        )
    if not bool(torch.isfinite(logits).all()):
        row = int((~torch.isfinite(logits)).any(dim=1).nonzero()[0])
        raise InputError(f"the logits of row {row} are not finite: every logit must be a number.")


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
