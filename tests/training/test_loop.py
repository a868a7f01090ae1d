"""The training loop, held against cases that can be worked out by hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.training import Checkpoint, batches, fit, seeded
from limbeck.training.loop import subnormals_as_zero


class Interrupted(Exception):
    """Stands for a kill in the middle of a run."""


def counter() -> torch.nn.Module:
    """One weight that a step of Adam moves by about the learning rate."""
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    return module


def train(module: torch.nn.Module, scores: list[float], patience: int = 50, **options: object):
    seen: list[float] = []

    def losses(epoch: int) -> Iterator[Tensor]:
        yield -module.weight.sum()

    def validate() -> float:
        assert not module.training
        seen.append(float(module.weight.detach()))
        return scores[len(seen) - 1]

    history = fit(
        module,
        losses,
        validate,
        lr=1.0,
        weight_decay=0.0,
        max_epochs=len(scores),
        patience=patience,
        **options,
    )
    return history, seen


def test_ties_go_to_the_later_epoch():
    module = counter()
    history, seen = train(module, [0.5, 0.9, 0.7, 0.9, 0.2])
    assert history.best_epoch == 3
    assert float(module.weight.detach()) == seen[3]
    assert not module.training


def test_patience_counts_epochs_without_a_new_best():
    history, seen = train(counter(), [0.9, 0.1, 0.1, 0.1, 0.1, 0.95], patience=3)
    assert len(seen) == 4  # the best, then three without a gain
    assert history.best_epoch == 0


def test_scores_of_the_warm_up_do_not_count():
    module = counter()
    history, seen = train(module, [0.99, 0.9, 0.5, 0.4, 0.3, 0.6], patience=2, warm_up=2)
    assert history.val_score == [0.99, 0.9, 0.5, 0.4, 0.3]  # noted; patience counts from epoch 2
    assert history.best_epoch == 2
    assert history.best_score == 0.5
    assert float(module.weight.detach()) == seen[2]


def test_a_warm_up_longer_than_the_patience_is_free():
    history, seen = train(counter(), [0.9, 0.1, 0.1, 0.1, 0.5, 0.6], patience=1, warm_up=4)
    assert len(seen) == 6
    assert history.best_epoch == 5


def test_adam_takes_one_step_per_loss():
    module = counter()
    steps = 0

    def losses(epoch: int) -> Iterator[Tensor]:
        nonlocal steps
        for _ in range(3):
            steps += 1
            yield -module.weight.sum()

    options = {"lr": 0.1, "weight_decay": 0.0, "max_epochs": 2, "patience": 5}
    fit(module, losses, lambda: 0.0, **options)
    assert steps == 6
    assert float(module.weight.detach()) == pytest.approx(0.6, abs=1e-5)  # Adam: lr per step


def test_a_loss_that_is_not_a_number_is_an_error():
    module = counter()
    with pytest.raises(OptionError, match="learning rate"):
        fit(
            module,
            lambda epoch: [module.weight.sum() * float("nan")],
            lambda: 0.0,
            lr=0.1,
            weight_decay=0.0,
            max_epochs=2,
            patience=5,
        )


def noisy_run(path: Path, stop_at: int | None) -> dict[str, Tensor]:
    """Train with dropout and shuffled batches; optionally break off in an epoch."""
    with seeded(3):
        module = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 2)
        )
        x = torch.randn(20, 4)

        def losses(epoch: int) -> Iterator[Tensor]:
            if epoch == stop_at:
                raise Interrupted
            for nodes in batches(torch.arange(20), 6):
                yield module(x[nodes]).square().mean()

        def validate() -> float:
            return -float(module(x).square().mean())

        fit(
            module,
            losses,
            validate,
            lr=0.01,
            weight_decay=1e-3,
            max_epochs=12,
            patience=50,
            checkpoint=Checkpoint(path, "a run", every_seconds=0.0),
        )
    return module.state_dict()


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path):
    whole = noisy_run(tmp_path / "whole", stop_at=None)
    with pytest.raises(Interrupted):
        noisy_run(tmp_path / "broken", stop_at=7)
    assert (tmp_path / "broken").is_file()
    resumed = noisy_run(tmp_path / "broken", stop_at=None)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "broken").exists()  # a finished run leaves no state behind


def test_a_checkpoint_of_another_run_is_not_used(tmp_path):
    path = tmp_path / "state"
    with pytest.raises(Interrupted):
        noisy_run(path, stop_at=7)
    module = counter()
    history, _ = train(module, [0.1, 0.2], checkpoint=Checkpoint(path, "another run"))
    assert len(history.val_score) == 2


def test_batches_drop_the_rest_but_never_all():
    nodes = torch.arange(10)
    assert [len(b) for b in batches(nodes, 4)] == [4, 4]
    assert len(torch.cat(list(batches(nodes, 4))).unique()) == 8
    assert [len(b) for b in batches(nodes, 16)] == [10]
    assert torch.equal(next(batches(nodes, None)), nodes)


def test_seeded_restores_the_generator():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded(5):
        torch.rand(7)
    assert torch.equal(torch.rand(3), expected)


def flushes() -> bool:
    return float(torch.tensor([1e-40]) * 1.0) == 0.0


def test_subnormal_numbers_are_zero_while_a_module_trains():
    """Else weights that decay to nothing make each step several times as slow."""
    module, seen = counter(), []

    def losses(epoch: int) -> Iterator[Tensor]:
        seen.append(flushes())
        yield -module.weight.sum()

    options = {"lr": 1.0, "weight_decay": 0.0, "max_epochs": 2, "patience": 5}
    possible = torch.set_flush_denormal(False)  # not on every processor
    assert not flushes()
    fit(module, losses, lambda: 0.0, **options)
    assert seen == [possible, possible]
    assert not flushes()

    def interrupted(epoch: int) -> Iterator[Tensor]:
        raise Interrupted
        yield

    with pytest.raises(Interrupted):
        fit(module, interrupted, lambda: 0.0, **options)
    assert not flushes()

    with subnormals_as_zero():
        fit(module, losses, lambda: 0.0, **options)
        assert flushes() is possible  # as whoever called it had it
    assert not flushes()
