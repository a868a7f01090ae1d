r"""Which of several teachers is right where, and whether a student follows the right one.

The claims of `"Multi-Scale Distillation from Multiple Graph Neural Networks"
<https://doi.org/10.1609/aaai.v36i4.20354>`_, made measurable: that deep teachers are better on
nodes of high degree and shallow ones on nodes of low degree, and that attention follows. All
figures are of test nodes inside the observed graph, and are for evaluation only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from scipy.stats import rankdata
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.evaluation.protocol import Run
from limbeck.graphs.profile import num_neighbors
from limbeck.methods.local_structure import saturation
from limbeck.methods.structure_options import StructureOptions
from limbeck.training.loop import seeded

DEGREES = ("0", "1", "2", "3-4", "5-8", "9+")
"""Buckets of the degree, self-loops not counted."""

_DEGREE_STARTS = (1, 2, 3, 5, 9)

DRAWS = 1_000
"""Permutations of a p-value, and resamples of an interval."""

UNIFORM = 0.95
"""Share of the largest entropy above which attention counts as uniform."""

Report = dict[str, Any]
"""What JSON can hold: numbers, ``None``, lists, and dictionaries of them."""


def teachers_by_degree(run: Run, *, seed: int = 0) -> Report:
    """Describe the teachers of a run by the degree of the nodes that they are right on.

    The report holds

    ``"num_nodes"``, ``"degree"``
        Number of nodes, and per bucket of :data:`DEGREES` how many are in it.
    ``"teachers"``
        What :func:`accuracies` says of each, with its ``name`` and ``depth``; and of the student.
    ``"together"``
        ``oracle``: share of nodes on which any teacher is right; ``average``: accuracy of the mean
        of their probabilities; ``best``: the best teacher's.
    ``"depth"``
        :func:`gain_by_degree` of the deepest over the shallowest teacher; ``None`` where depths
        are unknown or alike.
    ``"attention"``
        :func:`attention_by_degree`; ``None`` where the method shows none.
    ``"structure"``
        :class:`~limbeck.methods.local_structure.Saturation` of each teacher's local distributions
        and of the student's; ``None`` for a method that compares none.

    Args:
        run: A finished run with several teachers.
        seed: Draws permutations and resamples.

    Raises:
        OptionError: The run has one teacher or none, no test node is observed, or nodes have
            several labels.
    """
    teachers, view = run.committee, run.view
    if not teachers:
        raise OptionError("teachers are compared by degree where there are several: give a list.")
    if view.info.task == "labels":
        raise OptionError(
            f"teachers are compared by degree by their right classes, and nodes of "
            f"{view.info.name!r} have several labels each."
        )
    nodes = view.test_observed
    if len(nodes) == 0:
        raise OptionError(
            "teachers are compared by degree on observed test nodes, and this view has none: "
            "choose another split."
        )
    y = view.everything.y[nodes]
    degree = num_neighbors(view.observed)[nodes]
    answers = torch.stack([t.answers.observed[nodes] for t in teachers], dim=1)  # [n, K, C]
    right = answers.argmax(2) == y.unsqueeze(1)  # [n, K]
    depths = [teacher.knowledge.depth for teacher in teachers]
    bucket = degree_bucket(degree)
    attention = run.record.get("attention")
    with seeded(seed):
        return {
            "num_nodes": len(nodes),
            "degree": {name: int((bucket == i).sum()) for i, name in enumerate(DEGREES)},
            "teachers": [
                {"name": teacher.name, "depth": depth, **accuracies(right[:, k], bucket)}
                for k, (teacher, depth) in enumerate(zip(teachers, depths, strict=True))
            ],
            "student": accuracies(run.answers.observed[nodes].argmax(1) == y, bucket),
            "together": {
                "oracle": _mean(right.any(1)),
                "average": _mean(answers.softmax(2).mean(1).argmax(1) == y),
                "best": float(right.float().mean(0).max()),
            },
            "depth": _deep_against_shallow(right, depths, degree),
            "attention": None
            if attention is None
            else attention_by_degree(attention[nodes], right, depths, degree),
            "structure": _structure(run),
        }


def degree_bucket(degree: Tensor) -> Tensor:
    """The bucket of :data:`DEGREES` that each degree is in, int64 ``[n]``."""
    return torch.bucketize(degree, torch.tensor(_DEGREE_STARTS), right=True)


def accuracies(right: Tensor, bucket: Tensor) -> Report:
    """Accuracy over all nodes and per bucket of the degree, ``None`` for an empty one.

    Args:
        right: Whether an answer is right, bool ``[n]``.
        bucket: From :func:`degree_bucket`, ``[n]``.
    """
    per_bucket = {
        name: _mean(right[bucket == i]) if bool((bucket == i).any()) else None
        for i, name in enumerate(DEGREES)
    }
    return {"accuracy": _mean(right), "by_degree": per_bucket}


def gain_by_degree(deep: Tensor, shallow: Tensor, degree: Tensor) -> Report:
    r"""How much better a deep teacher is than a shallow one, by degree.

    ``rho`` is Spearman's correlation of a node's gain, in :math:`\{-1, 0, 1\}`, with its degree,
    and ``p`` the share of permutations of the degrees with at least as much, the observed one
    included. Per bucket there is the mean ``gain`` with a bootstrap interval of 95 %, ``low`` to
    ``high``. The claim holds (``holds``) if ``rho`` is positive with ``p`` below 0.01 and the gain
    is negative in the lowest bucket that has nodes and positive in the highest.

    Args:
        deep: Whether the deep teacher is right, bool ``[n]``.
        shallow: Likewise.
        degree: int64 ``[n]``.
    """
    gain = deep.float() - shallow.float()
    bucket = degree_bucket(degree)
    buckets: dict[str, Report | None] = {}
    for i, name in enumerate(DEGREES):
        here = gain[bucket == i]
        buckets[name] = _interval(here) if len(here) else None
    rho, p = _permutation_test(gain, degree)
    filled = [figures["gain"] for figures in buckets.values() if figures is not None]
    holds = rho is not None and rho > 0 and p < 0.01 and filled[0] < 0 < filled[-1]
    return {"rho": rho, "p": p, "by_degree": buckets, "holds": holds}


def attention_by_degree(
    attention: Tensor, right: Tensor, depths: Sequence[int | None], degree: Tensor
) -> Report:
    r"""Whom nodes attend to, by degree, and whether those are right.

    * ``mean``: of each teacher; ``by_degree``: the same per bucket, with the expected ``depth``
      :math:`m_i = \sum_k a_i^k \, \mathrm{depth}_k`;
    * ``rho``, ``p``: Spearman's correlation of :math:`m_i` with the degree, and its permutation
      p-value, ``None`` where depths are unknown or all the same;
    * ``entropy``: mean over nodes, divided by :math:`\ln K`; ``None`` for one teacher;
    * ``agreement``: where teachers disagree on being right, the share of nodes whose teacher with
      the most attention is right (ties share); ``chance``: the share of teachers that are; ``None``
      where teachers never disagree;
    * ``holds``: ``rho`` is positive with ``p`` below 0.01, entropy at most :data:`UNIFORM`, and
      agreement above chance.

    Args:
        attention: ``[n, K]``, rows sum to one.
        right: Whether each teacher is right, bool ``[n, K]``.
        depths: Of the teachers, ``None`` if not known.
        degree: int64 ``[n]``.
    """
    bucket, num_teachers = degree_bucket(degree), attention.shape[1]
    known = all(depth is not None for depth in depths)
    expected = attention @ torch.tensor(cast("list[int]", depths)).float() if known else None
    by_degree: dict[str, Report | None] = {}
    for i, name in enumerate(DEGREES):
        here = bucket == i
        by_degree[name] = None
        if bool(here.any()):
            by_degree[name] = {
                "mean": attention[here].mean(0).tolist(),
                "depth": None if expected is None else float(expected[here].mean()),
            }
    rho, p = (None, 1.0) if expected is None else _permutation_test(expected, degree)
    entropy = None
    if num_teachers > 1:
        entropy = float(torch.special.entr(attention).sum(1).mean()) / math.log(num_teachers)
    agreement = chance = None
    split = right.any(1) & ~right.all(1)
    if bool(split.any()):
        most = attention[split] == attention[split].amax(1, keepdim=True)
        agreement = float(((most & right[split]).sum(1) / most.sum(1)).mean())
        chance = _mean(right[split])
    holds = (
        rho is not None
        and rho > 0
        and p < 0.01
        and (entropy is not None and entropy <= UNIFORM)
        and (agreement is not None and chance is not None and agreement > chance)
    )
    return {
        "mean": attention.mean(0).tolist(),
        "by_degree": by_degree,
        "rho": rho,
        "p": p,
        "entropy": entropy,
        "agreement": agreement,
        "chance": chance,
        "holds": holds,
    }


def spearman(values: Tensor, others: Tensor) -> float | None:
    """Spearman's rank correlation of two vectors ``[n]``; ``None`` where one is constant."""
    ranks = _centred_ranks(values), _centred_ranks(others)
    scale = float(ranks[0].norm() * ranks[1].norm())
    return None if scale == 0 else float(ranks[0] @ ranks[1]) / scale


def _permutation_test(values: Tensor, degree: Tensor) -> tuple[float | None, float]:
    """Spearman's correlation and the share of permutations that have as much, one-sided."""
    rho = spearman(values, degree)
    if rho is None:
        return None, 1.0
    ranks, others = _centred_ranks(values), _centred_ranks(degree)
    scale = float(ranks.norm() * others.norm())
    draws = [float(ranks @ others[torch.randperm(len(others))]) / scale for _ in range(DRAWS)]
    # as much up to rounding: sums are taken in another order
    return rho, (1 + sum(draw >= rho - 1e-9 for draw in draws)) / (1 + DRAWS)


def _centred_ranks(values: Tensor) -> Tensor:
    ranks = torch.from_numpy(rankdata(values.numpy()))
    return ranks - ranks.mean()


def _interval(gain: Tensor) -> Report:
    """Mean of values in {-1, 0, 1}, and the bootstrap's interval from resampled counts."""
    n = torch.tensor(float(len(gain)))
    up, down = (gain > 0).float().mean(), (gain < 0).float().mean()
    ups = torch.binomial(n.expand(DRAWS), up.expand(DRAWS))
    share = (down / (1 - up).clamp_min(1e-12)).clamp(max=1.0)
    downs = torch.binomial(n - ups, share.expand(DRAWS))
    low, high = torch.quantile((ups - downs) / n, torch.tensor([0.025, 0.975])).tolist()
    return {"gain": float(up - down), "low": low, "high": high}


def _deep_against_shallow(
    right: Tensor, depths: Sequence[int | None], degree: Tensor
) -> Report | None:
    known = [depth for depth in depths if depth is not None]
    if len(known) < len(depths) or min(known) == max(known):
        return None
    deep, shallow = known.index(max(known)), known.index(min(known))
    return gain_by_degree(right[:, deep], right[:, shallow], degree)


@torch.no_grad()
def _structure(run: Run) -> Report | None:
    """How saturated the compared distributions are, of each teacher and of the student."""
    method = run.method
    if not isinstance(method, StructureOptions) or method.structure_weight == 0:
        return None
    edges = method.neighborhoods(run.view)
    teachers = method.teacher_states([teacher.knowledge for teacher in run.committee])
    run.student.eval()
    ours = method.student_state(run.student.layers(run.inputs.observed))  # type: ignore[operator]
    described = [
        saturation(state, edges, method.kernel, method.bandwidth)._asdict()
        for state in (*teachers, ours)
    ]
    return {"teachers": described[:-1], "student": described[-1]}


def _mean(right: Tensor) -> float:
    return float(right.float().mean())
