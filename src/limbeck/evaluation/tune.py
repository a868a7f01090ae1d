"""Hyper-parameters chosen on validation nodes, with the same number of trials for every method."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from limbeck.errors import DivergedError
from limbeck.evaluation.protocol import knowledge_for
from limbeck.graphs.view import View
from limbeck.methods import Method
from limbeck.teachers.knowledge import FittedTeacher
from limbeck.training.loop import seeded

logger = logging.getLogger(__name__)


def candidates(method: Method, trials: int, seed: int = 0) -> list[dict[str, Any]]:
    """Changes of a method's options that are worth a trial.

    The first changes nothing. Each further one draws every option of the method's
    :meth:`~limbeck.methods.base.Method.search_space` uniformly and independently.

    Args:
        method: The method with the options to start from.
        trials: How many candidates, the first included.
        seed: Draws them, together with the method's name.
    """
    draw = random.Random(f"{method.name} {seed}")
    space = method.search_space()
    drawn = [{name: draw.choice(values) for name, values in space.items()} for _ in range(trials)]
    return [{}, *drawn[1:]]


def tune(
    view: View,
    teacher: FittedTeacher | Sequence[FittedTeacher] | None,
    method: Method,
    trials: int,
    seed: int = 0,
) -> Method:
    """Train a method with several options and keep those with the best validation accuracy.

    Test nodes are not looked at; of equal candidates the earlier one is kept.

    Args:
        view: What may be seen.
        teacher: The teacher of the view, or several; ``None`` for a method that needs none.
        method: The method with the options to start from, which are the first candidate.
        trials: How many candidates are trained, at least 1; a method whose parts are trained by
            themselves has as many for each of them.
        seed: Draws the candidates and trains each of them.

    Returns:
        The method with the options kept.
    """
    if teacher is None or isinstance(teacher, FittedTeacher):
        teacher = () if teacher is None else (teacher,)
    if trials == 1:
        return method
    return drawn_best(method, trials, seed, [Case(view, tuple(teacher), seed)])


@dataclass(frozen=True, eq=False)
class Case:
    """What a candidate is trained on.

    Args:
        view: What may be seen.
        teachers: The teachers of the view.
        seed: Seed of the student.
    """

    view: View
    teachers: tuple[FittedTeacher, ...]
    seed: int


def drawn_best(method: Method, trials: int, seed: int, cases: Sequence[Case]) -> Method:
    """The best of some drawn candidates, after those of the method's parts.

    Args:
        method: The method with the options to start from.
        trials: Candidates of each part, and of the method.
        seed: Draws the candidates.
        cases: What each is trained on, at least one.
    """
    for name, part in method.parts().items():
        method = method.with_part(name, drawn_best(part, trials, seed, cases))
    return best_candidate(method, candidates(method, trials, seed), cases)


def best_candidate(
    method: Method, changes: Sequence[dict[str, Any]], cases: Sequence[Case]
) -> Method:
    """Train a method with each of some changes and keep those that do best on validation nodes.

    Test nodes are not looked at; of equal candidates the earlier one is kept. One whose training
    diverges is worse than all others.

    Args:
        method: The method that they change.
        changes: What each candidate changes, at least one.
        cases: What each is trained on, at least one; candidates are compared by their mean score.

    Returns:
        The best candidate.

    Raises:
        DivergedError: The training of every candidate diverges.
    """
    best, best_score = method, float("-inf")
    diverged: DivergedError | None = None
    for change in changes:
        candidate = method.replace(**change)
        try:
            score = fmean(_validation_score(candidate, case) for case in cases)
        except DivergedError as error:
            diverged = error
            logger.warning("%s %s: left out, %s", method.name, change or "as given", error)
            continue
        logger.info("%s %s: validation score %.4f", method.name, change or "as given", score)
        if score > best_score:
            best, best_score = candidate, score
    if diverged is not None and best_score == float("-inf"):
        raise diverged
    return best


def _validation_score(method: Method, case: Case) -> float:
    knowledge = knowledge_for(case.view, method, case.teachers)
    with seeded(case.seed):
        return method.distill(case.view, knowledge).history.best_score
