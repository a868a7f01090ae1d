"""Hyper-parameters chosen on validation nodes, with the same number of trials for every method."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any

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
        trials: How many candidates are trained, at least 1.
        seed: Draws the candidates and trains each of them.

    Returns:
        The method with the options kept.
    """
    if teacher is None or isinstance(teacher, FittedTeacher):
        teacher = () if teacher is None else (teacher,)
    knowledge = knowledge_for(view, method, teacher)
    best, best_score = method, float("-inf")
    for changes in candidates(method, trials, seed) if trials > 1 else []:
        candidate = method.replace(**changes)
        with seeded(seed):
            score = candidate.distill(view, knowledge).history.best_score
        logger.info("%s %s: validation accuracy %.4f", method.name, changes or "as given", score)
        if score > best_score:
            best, best_score = candidate, score
    return best
