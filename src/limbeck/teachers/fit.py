"""Training a teacher of ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck.errors import OptionError
from limbeck.graphs.hetero import edges_for
from limbeck.graphs.sparse import take_rows
from limbeck.graphs.view import View
from limbeck.registry import resolve
from limbeck.teachers.base import GNN, TeacherOptions
from limbeck.teachers.cache import TeacherCache, key_of
from limbeck.teachers.knowledge import Answers, FittedTeacher, Knowledge, ask, with_noise
from limbeck.training.loop import Checkpoint, History, batches, fit, seeded
from limbeck.training.options import preset
from limbeck.training.sampler import NeighborSampler
from limbeck.training.tasks import ONE_CLASS, task_of

PRESETS = Path(__file__).with_name("presets.yaml")

logger = logging.getLogger(__name__)


def teacher_options(name: str, graph: str, **changes: Any) -> TeacherOptions:
    """Options of a teacher for a graph: its preset, with your changes on top.

    Raises:
        OptionError: Unknown teacher or option, or a value out of range.
    """
    options: type[TeacherOptions] = resolve("teacher", name)
    return options(**{**preset(PRESETS, name, graph), **changes})


def fit_teacher(
    view: View,
    name: str = "sage",
    seed: int = 0,
    *,
    cache: TeacherCache | None = None,
    half_layers: bool = False,
    progress: bool = False,
    **changes: Any,
) -> FittedTeacher:
    """Train a teacher on the observed graph of a view, or take it from the cache.

    The checkpoint with the best validation accuracy (micro-F1 for several labels per node) is
    kept, ties go to the later epoch. What is stored is keyed by the observed graph, the options
    and the seed, so all methods and all settings with the same cut share it.

    Args:
        view: What may be seen.
        name: One of ``limbeck teachers``.
        seed: Seed of the weights, dropout and neighbour draws.
        cache: Where trained teachers are kept; the user's cache folder by default.
        half_layers: Keep its hidden layers as float16 in the user's cache folder, for deep teachers
            of large graphs; see :class:`~limbeck.teachers.cache.TeacherCache`.
        progress: Show a progress bar on stderr.
        **changes: Hyper-parameters that differ from the preset of this graph.

    A teacher that is no better on validation nodes than the largest class is warned of.

    Raises:
        OptionError: Unknown teacher or option, or a value out of range.
    """
    options = teacher_options(name, view.info.dataset, **changes)
    cache = cache or TeacherCache(half_layers=half_layers)
    key = key_of(view.fingerprint, view.evaluation_fingerprint, name, options.model_dump(), seed)
    with seeded(seed):
        module = options.build(view)
        with cache.lock(key):
            record = cache.load(key)
            if record is None:
                checkpoint = Checkpoint(cache.path(key).with_suffix(".checkpoint"), key)
                label = f"teacher {name}" if progress else None
                history = train(module, view, options, checkpoint=checkpoint, progress=label)
                knowledge, answers = ask(module, view, name, options.num_layers)
                cache.save(key, knowledge, answers, module.state_dict(), history.seconds)
                record = cache.load(key)
                assert record is not None
    module.load_state_dict(record["state"])
    module.eval()
    knowledge = Knowledge(**record["knowledge"])
    _say_if_it_learnt_nothing(view, knowledge)
    return FittedTeacher(
        name=name,
        knowledge=with_noise(knowledge, module, view),
        answers=Answers(**record["answers"]),
        module=module,
        options=options.model_dump(),
        num_parameters=sum(p.numel() for p in module.parameters()),
        train_seconds=record["train_seconds"],
        view=view.cut_fingerprint,
    )


def _say_if_it_learnt_nothing(view: View, knowledge: Knowledge) -> None:
    """Warn of a teacher that is no better than the answer that asks nothing of a node.

    Students learn such a teacher's answers as faithfully as a good one's.
    """
    y = view.observed.y[view.val]
    if task_of(y) is not ONE_CLASS:
        return
    right = int((knowledge.logits[view.val].argmax(1) == y).sum())
    largest = int(y.bincount().max())
    if right <= largest:
        logger.warning(
            "teacher %r is right on %.1f %% of the validation nodes, and the largest class alone "
            "would be on %.1f %%: it has learnt nothing that shows; try another seed, learning "
            "rate or teacher.",
            knowledge.name,
            100 * right / len(y),
            100 * largest / len(y),
        )


def train(
    module: GNN,
    view: View,
    options: TeacherOptions,
    *,
    checkpoint: Checkpoint | None = None,
    progress: str | None = None,
) -> History:
    """Train a network on the labels of the training nodes.

    With ``options.fan_out`` each step draws the neighbourhood of a batch of training nodes,
    else each step is one pass over the observed graph. Validation always uses all neighbours.
    """
    graph = view.observed
    adj = module.prepare(edges_for(module, graph), view.num_observed)
    task, y_val = task_of(graph.y), graph.y[view.val]
    if options.fan_out:
        if len(options.fan_out) != options.num_layers:
            raise OptionError(
                f"option 'fan_out' draws {len(options.fan_out)} hops, but the teacher has "
                f"{options.num_layers} layers: give one number per layer."
            )
        sampler = NeighborSampler(graph.edge_index, view.num_observed, options.fan_out)

    def losses(epoch: int) -> Iterator[Tensor]:
        if not options.fan_out:
            logits = module(graph.x, adj)
            loss = task.label_loss(logits[view.train], graph.y[view.train])
            yield loss + options.penalty(module)
            return
        for nodes in batches(view.train, options.batch_size):
            drawn = sampler.sample(nodes)
            logits = module(take_rows(graph.x, drawn.n_id), drawn.edge_index)
            loss = task.label_loss(logits[: len(nodes)], graph.y[nodes])
            yield loss + options.penalty(module)

    def validate() -> float:
        return task.score(module(graph.x, adj)[view.val], y_val)

    return fit(
        module,
        losses,
        validate,
        lr=options.lr,
        weight_decay=options.weight_decay,
        max_epochs=options.max_epochs,
        patience=options.patience,
        checkpoint=checkpoint,
        progress=progress,
    )
