"""The one training loop: of teachers, of students, of every stage of every method."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from limbeck.errors import DivergedError
from limbeck.files import appearing_whole

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class History:
    """What happened in a training run.

    Args:
        loss: Mean loss of each epoch's steps.
        val_score: Validation score after each epoch.
        best_epoch: Epoch whose weights were kept, −1 before the first.
        best_score: Its validation score.
        seconds: Time spent, over all resumptions.
        notes: What a method wrote down about some of its epochs, numbers by name.
    """

    loss: list[float] = field(default_factory=list)
    val_score: list[float] = field(default_factory=list)
    best_epoch: int = -1
    best_score: float = float("-inf")
    seconds: float = 0.0
    notes: list[dict[str, Any]] = field(default_factory=list)

    def followed_by(self, second: History) -> History:
        """The epochs of both stages of a training in a row; the best one is that of this stage."""
        return replace(
            self,
            loss=self.loss + second.loss,
            val_score=self.val_score + second.val_score,
            seconds=self.seconds + second.seconds,
            notes=self.notes + second.notes,
        )

    def preceded_by(self, first: History) -> History:
        """The epochs of both stages of a training in a row; the best one is that of this stage."""
        return replace(
            first.followed_by(self),
            best_epoch=len(first.val_score) + self.best_epoch,
            best_score=self.best_score,
        )


@dataclass(frozen=True, eq=False)
class Beside:
    """A module that is trained beside another one, and is no part of what is kept.

    Args:
        module: The module; it has parameters, and shares none with the one beside it.
        lr: Learning rate of its parameters; their weights do not decay.
        max_norm: Largest Euclidean norm of their gradient, which is scaled down to it.
    """

    module: torch.nn.Module
    lr: float
    max_norm: float


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps its state, so that it goes on after an interruption.

    Args:
        path: The file; written aside and renamed, removed when the run has finished.
        key: What the run is (its data, options and seed); a file with another key is not used.
        every_seconds: Shortest time between two writes.
    """

    path: Path
    key: str
    every_seconds: float = 10.0

    def of_part(self, name: str) -> Checkpoint:
        """The checkpoint of one training of a run that consists of several.

        Args:
            name: What the part is called, such as ``"stage 1"``; parts differ in it.
        """
        path = self.path.with_stem(f"{self.path.stem}-{name.replace(' ', '-')}")
        return replace(self, path=path, key=f"{self.key} {name}")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with PyTorch's generator at ``seed``, and put it back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def subnormals_as_zero() -> Iterator[None]:
    """Let this thread take numbers below 1.2e-38 as zero in a block, and put it back afterwards.

    Weight decay drives a weight that nothing needs through all of float32's small numbers, and many
    processors take a hundred cycles and more for a product with one of the smallest. Where
    processors cannot be told to, nothing changes.
    """
    was_so = sys.float_info.min * 0.5 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_so)


def batches(nodes: Tensor, batch_size: int | None) -> Iterator[Tensor]:
    """Shuffle ``nodes`` and cut them into batches.

    As in GLNN's loop, the permutation is cut to whole batches and the rest of it is left out
    of this epoch; fewer nodes than one batch make one batch of all. ``None`` gives all nodes in
    one batch, unshuffled.
    """
    if batch_size is None or len(nodes) <= batch_size:
        yield nodes
        return
    shuffled = nodes[torch.randperm(len(nodes))]
    for start in range(0, len(nodes) // batch_size * batch_size, batch_size):
        yield shuffled[start : start + batch_size]


@subnormals_as_zero()
def fit(
    module: torch.nn.Module,
    losses: Callable[[int], Iterable[Tensor]],
    validate: Callable[[], float],
    *,
    lr: float,
    weight_decay: float,
    max_epochs: int,
    patience: int,
    warm_up: int = 0,
    beside: Beside | None = None,
    note: Callable[[], dict[str, Any] | None] | None = None,
    checkpoint: Checkpoint | None = None,
    progress: str | None = None,
) -> History:
    """Train ``module`` and leave it with the weights of the best validation score.

    Each loss that ``losses(epoch)`` yields is one step of Adam. After each epoch ``validate()``
    is asked, in eval mode and without gradients; a score at least as high as the best so far
    is the new best (ties go to the later epoch), and training stops when ``patience`` epochs
    brought none. Random numbers come from PyTorch's generator, so wrap the call in
    :func:`seeded`. A run that is interrupted and resumed from its checkpoint ends with the very
    weights of one that was not. Subnormal numbers are zeros meanwhile.

    Args:
        module: What is trained; all its parameters.
        losses: Yields the losses of an epoch, each a scalar, computed when it is asked for.
        validate: Score to be maximised on validation nodes of the observed graph.
        lr: Learning rate of Adam.
        weight_decay: L2 penalty inside Adam.
        max_epochs: Largest number of epochs.
        patience: Epochs without a new best after which training stops.
        warm_up: First epochs whose scores are noted but neither kept as the best nor counted
            against ``patience``: for a method whose module is not yet the student that it will
            be. They are part of ``max_epochs``, which must be larger.
        beside: What is trained by the same losses, too, in a group of its own. It neither decides
            which epoch is kept nor goes back to that epoch.
        note: Asked after each epoch's steps for what :attr:`History.notes` shall hold of it.
        checkpoint: Where to keep the state of an unfinished run.
        progress: Label of the progress bar on stderr; ``None`` shows none.

    Returns:
        The history. ``module`` is in eval mode.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    if beside is not None:
        group = {"params": beside.module.parameters(), "lr": beside.lr, "weight_decay": 0.0}
        optimizer.add_param_group(group)
    history = History()
    best = copy.deepcopy(module.state_dict())
    first_epoch = 0
    if checkpoint is not None and (state := _load(checkpoint)) is not None:
        module.load_state_dict(state["module"])
        if beside is not None:
            beside.module.load_state_dict(state["beside"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        history, best, first_epoch = History(**state["history"]), state["best"], state["epoch"] + 1
    started = last_write = time.monotonic()
    spent_before = history.seconds
    bar = tqdm(
        range(first_epoch, max_epochs),
        initial=first_epoch,
        total=max_epochs,
        desc=progress,
        disable=None if progress else True,
        leave=False,
    )
    for epoch in bar:
        if epoch - max(history.best_epoch, warm_up - 1) > patience:
            break
        history.loss.append(_train_epoch(module, optimizer, losses(epoch), beside))
        if note is not None and (noted := note()) is not None:
            history.notes.append(noted)
        history.val_score.append(_score(module, validate))
        if epoch >= warm_up and history.val_score[-1] >= history.best_score:
            history.best_score, history.best_epoch = history.val_score[-1], epoch
            best = _copy_into(best, module.state_dict())
        bar.set_postfix(loss=f"{history.loss[-1]:.4f}", val=f"{history.val_score[-1]:.4f}")
        now = time.monotonic()
        history.seconds = spent_before + now - started
        if checkpoint is not None and now - last_write >= checkpoint.every_seconds:
            _save(checkpoint, module, beside, optimizer, history, best, epoch)
            last_write = now
    bar.close()
    module.load_state_dict(best)
    module.eval()
    history.seconds = spent_before + time.monotonic() - started
    if checkpoint is not None:
        checkpoint.path.unlink(missing_ok=True)
    return history


def _train_epoch(
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    beside: Beside | None,
) -> float:
    module.train()
    if beside is not None:
        beside.module.train()
    total, steps = torch.zeros(()), 0
    for loss in losses:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if beside is not None:
            torch.nn.utils.clip_grad_norm_(beside.module.parameters(), beside.max_norm)
        optimizer.step()
        total += loss.detach()
        steps += 1
    mean = float(total) / max(steps, 1)
    if mean != mean:
        raise DivergedError("the loss is not a number: lower the learning rate 'lr'.")
    return mean


@torch.no_grad()
def _score(module: torch.nn.Module, validate: Callable[[], float]) -> float:
    module.eval()
    return validate()


def _copy_into(best: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, value in state.items():
        best[name].copy_(value)
    return best


def _save(
    checkpoint: Checkpoint,
    module: torch.nn.Module,
    beside: Beside | None,
    optimizer: torch.optim.Optimizer,
    history: History,
    best: dict[str, Tensor],
    epoch: int,
) -> None:
    state = {
        "key": checkpoint.key,
        "epoch": epoch,
        "module": module.state_dict(),
        "beside": {} if beside is None else beside.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": asdict(history),
        "best": best,
        "rng": torch.get_rng_state(),
    }
    checkpoint.path.parent.mkdir(parents=True, exist_ok=True)
    # to a stream, for torch's own writer says nothing that makes sense of a full disk
    with appearing_whole(checkpoint.path) as aside, aside.open("wb") as stream:
        torch.save(state, stream)


def _load(checkpoint: Checkpoint) -> dict[str, Any] | None:
    if not checkpoint.path.is_file():
        return None
    state: dict[str, Any] = torch.load(checkpoint.path, weights_only=True)
    return state if state["key"] == checkpoint.key else None
