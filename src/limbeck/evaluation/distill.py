"""``limbeck.distill``: by a method, its name, or the method that a search chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from limbeck.evaluation.protocol import OneTeacher, Run, all_fitted, run_method
from limbeck.graphs.cache import cache_folder
from limbeck.graphs.view import View
from limbeck.methods import Method, make_method

if TYPE_CHECKING:
    from limbeck.evaluation.auto import Auto


def distill(
    view: View,
    teacher: OneTeacher | Sequence[OneTeacher] | None = None,
    method: str | Method | Auto = "glnn",
    seed: int = 0,
    *,
    resume: bool = False,
    progress: bool = False,
    **changes: Any,
) -> Run:
    """Distil a teacher into a student.

    Args:
        view: What may be seen.
        teacher: From :func:`limbeck.fit_teacher`, :class:`limbeck.Teacher` or
            :func:`limbeck.knowledge_from`; a bare module or logits ``[N, C]`` work too. Methods
            that learn from labels alone need none, and use it only for comparison. Several may
            be given, of any kinds and depths: a method for several learns from all of them, any
            other from the one with the best accuracy on validation nodes, ties to the first.
        method: Name of a method, or one with its hyper-parameters. ``"auto"`` searches one on
            validation nodes, under limits such as ``budget_us=50`` and ``min_agreement=0.95``; its
            options are those of :class:`limbeck.evaluation.auto.Auto`.
        seed: Seed of the student's weights, dropout and batches.
        resume: Keep the state of an unfinished run in the cache folder, and go on from it when
            the very same run is asked for again.
        progress: Show a progress bar on stderr.
        **changes: Hyper-parameters that differ from the preset of this graph.

    Raises:
        OptionError: Unknown method or option, or a value out of range; or no student meets the
            limits of ``"auto"``.
        TeacherError: The method needs a teacher, or the teacher does not fit the graph.
    """
    if isinstance(method, Method):
        method = method.replace(**changes) if changes else method
    elif isinstance(method, str) and method != "auto":
        method = make_method(method, view.info.dataset, view.setting, **changes)
    teachers = all_fitted(view, teacher)
    if isinstance(method, Method):
        return run_method(view, teachers, method, seed, resume=resume, progress=progress)

    from limbeck.evaluation.auto import Auto, search  # Optuna takes its time

    auto = Auto(**changes) if isinstance(method, str) else method.replace(**changes)
    if resume and auto.folder is None:
        auto = auto.replace(folder=cache_folder() / "auto")
    choice = search(view, teachers, auto, seed, progress=progress)
    found = choice.chosen.method
    run = run_method(view, teachers, found, seed, resume=resume, progress=progress)
    return replace(run, choice=choice)
