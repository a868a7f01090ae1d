"""Which nodes train, which select, which are scored.

The rule is a fact of the graph (``graph.info.split``); a seed settles what the rule leaves open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from limbeck.errors import OptionError, SplitError
from limbeck.graphs.info import GraphInfo, SplitRule

logger = logging.getLogger(__name__)

# The CPF protocol (Yang, Liu, Shi, WWW 2021), taken over by GLNN and those after it.
TRAIN_PER_CLASS = 20
VAL_PER_CLASS = 30

# Of the rule "balanced": shares of the labelled nodes, in equal numbers of each class.
BALANCED_SHARE = 0.2

# Of the rule "random", where a graph's notes give no "fractions"; the test nodes are the rest.
DEFAULT_FRACTIONS = {"train": 0.6, "val": 0.2}

PARTS = ("train", "val", "test")

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Node indices, int64, ascending, without overlap.

    Args:
        train: Nodes whose labels are learnt from.
        val: Nodes that choose the checkpoint.
        test: Nodes that are scored once.
    """

    train: Tensor
    val: Tensor
    test: Tensor


def split_nodes(graph: Data, seed: int) -> Split:
    """Pick training, validation and test nodes by the rule of ``graph.info.split``.

    * ``"fixed"``: the masks ``train_mask``, ``val_mask``, ``test_mask`` ``[N]``, for every seed.
    * ``"columns"``: column ``seed % S`` of the masks ``[N, S]``.
    * ``"per-class"``: 20 training nodes of each class, then 30 validation nodes of each class,
      all other labelled nodes test; drawn exactly as CPF and GLNN draw them.
    * ``"balanced"``: ``int(0.2 N / C)`` of the ``N`` labelled nodes from each of ``C`` classes for
      training and as many for validation, all others test; a class that is too small gives what
      it has, training first (the split of the framelet students' release).
    * ``"random"``: shares of the labelled nodes, stratified by class: 60/20/20, or
      ``graph.info.notes["fractions"]``. A class too small to stratify (the smallest part would
      get fewer than two of its nodes) is shuffled and dealt one by one to training, test,
      validation, training and so on, so that every class has a training node.

    Nodes without a label (``y == -1``) are drawn for no part. A class that a split leaves
    without a training node is an error, but only a logged warning where
    ``graph.info.notes["published_split"]`` says that the split is one of the literature.

    Args:
        graph: A graph with ``info``; a ``HeteroData`` is split on ``info.notes["target"]``.
            ``y`` is int64 ``[N]``, or ``[N, C]`` for a multi-label graph, whose rule must be
            ``"fixed"`` or ``"columns"``.
        seed: From 0 to 2**32 - 1.

    Raises:
        OptionError: The seed is out of range.
        SplitError: The parts are empty or overlap, a node in a part has no label, a class has
            no training node or too few nodes for the rule, or the masks are missing.
    """
    if not 0 <= seed < 2**32:
        raise OptionError(f"seed {seed} is out of range: choose one from 0 to 4294967295.")
    info: GraphInfo = graph.info
    nodes = graph[info.notes["target"]] if isinstance(graph, HeteroData) else graph
    parts = _RULES[info.split](nodes, info, seed)
    _check_parts(parts, info)
    _check_labels(parts, nodes.y, info)
    return Split(*(torch.from_numpy(part) for part in parts.values()))


def _fixed(nodes: Any, info: GraphInfo, seed: int) -> dict[str, Indices]:
    return {part: np.flatnonzero(_mask(nodes, part, info, dim=1)) for part in PARTS}


def _columns(nodes: Any, info: GraphInfo, seed: int) -> dict[str, Indices]:
    masks = {part: _mask(nodes, part, info, dim=2) for part in PARTS}
    return {part: np.flatnonzero(mask[:, seed % mask.shape[1]]) for part, mask in masks.items()}


def _mask(nodes: Any, part: str, info: GraphInfo, dim: int) -> npt.NDArray[np.bool_]:
    mask = nodes.get(f"{part}_mask")
    if mask is None or mask.dtype != torch.bool or mask.dim() != dim or 0 in mask.shape:
        shape = "[N]" if dim == 1 else "[N, S]"
        raise SplitError(
            f"{_name(info)} needs a boolean '{part}_mask' of shape {shape} for its split."
        )
    values: npt.NDArray[np.bool_] = mask.numpy()
    return values


def _per_class(nodes: Any, info: GraphInfo, seed: int) -> dict[str, Indices]:
    labels = _single_labels(nodes, info)
    needed = TRAIN_PER_CLASS + VAL_PER_CLASS
    for label in np.unique(labels[labels >= 0]):
        have = np.count_nonzero(labels == label)
        if have < needed:
            raise SplitError(
                f"class {info.class_names[label]!r} of {_name(info)} has {have} labelled nodes: "
                f"drawing {TRAIN_PER_CLASS} for training and {VAL_PER_CLASS} for validation "
                f"needs {needed}."
            )
    # RandomState and this order of draws are the protocol: they give the published splits
    random = np.random.RandomState(seed)
    train = _draw_per_class(random, labels, TRAIN_PER_CLASS)
    left = labels.copy()
    left[train] = -1
    val = _draw_per_class(random, left, VAL_PER_CLASS)
    left[val] = -1
    return {"train": np.sort(train), "val": np.sort(val), "test": np.flatnonzero(left >= 0)}


def _draw_per_class(random: np.random.RandomState, labels: Indices, count: int) -> Indices:
    classes = np.unique(labels[labels >= 0])
    return np.concatenate(
        [random.choice(np.flatnonzero(labels == label), count, replace=False) for label in classes]
    )


def _balanced(nodes: Any, info: GraphInfo, seed: int) -> dict[str, Indices]:
    labels = _single_labels(nodes, info)
    classes = np.unique(labels[labels >= 0])
    count = int(BALANCED_SHARE * np.count_nonzero(labels >= 0) / len(classes))
    random = np.random.RandomState(seed)
    drawn = [random.permutation(np.flatnonzero(labels == label)) for label in classes]
    return {
        "train": np.sort(np.concatenate([own[:count] for own in drawn])),
        "val": np.sort(np.concatenate([own[count : 2 * count] for own in drawn])),
        "test": np.sort(np.concatenate([own[2 * count :] for own in drawn])),
    }


def _random(nodes: Any, info: GraphInfo, seed: int) -> dict[str, Indices]:
    labels = _single_labels(nodes, info)
    train_share, val_share = _fractions(info)
    random = np.random.RandomState(seed)
    # with two nodes or more of a class in its smallest part, rounding cannot empty its training
    counts = np.bincount(labels[labels >= 0], minlength=info.num_classes)
    is_small = counts * min(train_share, val_share, 1 - train_share - val_share) < 2
    parts: dict[str, list[Indices]] = {part: [] for part in PARTS}
    for label in np.flatnonzero(is_small & (counts > 0)):
        dealt = random.permutation(np.flatnonzero(labels == label))
        for turn, part in enumerate(("train", "test", "val")):
            parts[part].append(dealt[turn::3])
    large = np.flatnonzero((labels >= 0) & ~is_small[labels])
    if len(large) > 0:
        train, rest = train_test_split(
            large, train_size=train_share, stratify=labels[large], random_state=random
        )
        val, test = train_test_split(
            rest,
            train_size=val_share / (1 - train_share),
            stratify=labels[rest],
            random_state=random,
        )
        for part, chosen in zip(PARTS, (train, val, test), strict=True):
            parts[part].append(chosen)
    empty = np.empty(0, dtype=np.int64)
    return {part: np.sort(np.concatenate([*chosen, empty])) for part, chosen in parts.items()}


def _fractions(info: GraphInfo) -> tuple[float, float]:
    fractions = info.notes.get("fractions", DEFAULT_FRACTIONS)
    train, val = float(fractions["train"]), float(fractions["val"])
    if not (train > 0 and val > 0 and train + val < 1):
        raise SplitError(
            f"{_name(info)} has split fractions train={train} and val={val}: both must be above "
            "0 and their sum below 1."
        )
    return train, val


def _single_labels(nodes: Any, info: GraphInfo) -> Indices:
    if nodes.y.dim() != 1:
        raise SplitError(
            f"{_name(info)} has several labels per node: only a split of its own (rule 'fixed' "
            "or 'columns') can be used."
        )
    labels: Indices = nodes.y.numpy()
    return labels


_RULES: dict[SplitRule, Callable[[Any, GraphInfo, int], dict[str, Indices]]] = {
    "fixed": _fixed,
    "columns": _columns,
    "per-class": _per_class,
    "balanced": _balanced,
    "random": _random,
}


def _check_parts(parts: dict[str, Indices], info: GraphInfo) -> None:
    for part, nodes in parts.items():
        if len(nodes) == 0:
            raise SplitError(f"{_name(info)} has no {_WORDS[part]} nodes in its split.")
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        both = np.intersect1d(parts[first], parts[second])
        if len(both) > 0:
            raise SplitError(
                f"node {_node(info, both[0])} of {_name(info)} is both a {_WORDS[first]} and a "
                f"{_WORDS[second]} node: each node belongs to one part at most."
            )


def _check_labels(parts: dict[str, Indices], y: Tensor, info: GraphInfo) -> None:
    # of several labels one may well be rare: only a node without any is no use
    labels: Indices = (y if y.dim() == 1 else y[:, 0].long()).numpy()
    for part, nodes in parts.items():
        unlabelled = nodes[labels[nodes] < 0]
        if len(unlabelled) > 0:
            raise SplitError(
                f"node {_node(info, unlabelled[0])} of {_name(info)} is a {_WORDS[part]} node "
                "but has no label."
            )
    if y.dim() == 2:
        return
    untrained = np.setdiff1d(labels[labels >= 0], labels[parts["train"]])
    if len(untrained) == 0:
        return
    message = f"class {info.class_names[untrained[0]]!r} of {_name(info)} has no training node"
    if not info.notes.get("published_split"):
        raise SplitError(f"{message}: give it at least one.")
    logger.warning("%s in this published split.", message)


_WORDS = {"train": "training", "val": "validation", "test": "test"}


def _name(info: GraphInfo) -> str:
    return f"graph {info.name!r} (split {info.split!r})"


def _node(info: GraphInfo, row: int) -> str:
    node_id = info.node_ids[row]
    return repr(node_id if isinstance(node_id, str) else int(node_id))
