"""The ensemble is some GLNNs, each on its own, and nothing else."""

from pathlib import Path

import pytest
import torch

from limbeck.errors import OptionError, TeacherError
from limbeck.evaluation.distill import distill
from limbeck.graphs.view import make_view
from limbeck.methods.ensemble import EnsembleOfGLNNs
from limbeck.methods.glnn import GLNN
from limbeck.teachers import knowledge_from
from limbeck.testing import check_method, small_graph
from limbeck.training import Checkpoint, seeded

SMALL = {"hidden_channels": 16, "max_epochs": 4, "batch_size": 32, "dropout": 0.2}


def random_teacher() -> torch.Tensor:
    return torch.randn(120, 3, generator=torch.Generator().manual_seed(7))


def test_conforms() -> None:
    check_method(EnsembleOfGLNNs(**SMALL, num_members=2, label_weight=0.2, temperature=1.3))


def test_its_members_are_glnns_trained_one_after_the_other() -> None:
    view = make_view(small_graph(), "transductive", 0)
    knowledge = knowledge_from(random_teacher()).fitted(view).knowledge
    with seeded(3):
        one_by_one = [GLNN(**SMALL).distill(view, knowledge) for _ in range(3)]
    with seeded(3):
        together = EnsembleOfGLNNs(**SMALL, num_members=3).distill(view, knowledge)
    weights = []
    for member, alone in zip(together.student.members, one_by_one, strict=True):
        mine = member.state_dict()
        assert all(torch.equal(v, mine[name]) for name, v in alone.student.state_dict().items())
        weights.append(mine["lins.0.weight"])
    assert not torch.equal(weights[0], weights[1])
    assert together.history.loss == [loss for one in one_by_one for loss in one.history.loss]
    best = together.history.best_epoch
    assert together.history.val_score[best] == together.history.best_score
    assert together.history.best_score == max(one.history.best_score for one in one_by_one)


def test_one_member_answers_as_glnn() -> None:
    view = make_view(small_graph(), "inductive", 0)
    teacher = knowledge_from(random_teacher())
    alone = distill(view, teacher, GLNN(**SMALL)).answers
    member = distill(view, teacher, EnsembleOfGLNNs(**SMALL, num_members=1)).answers
    torch.testing.assert_close(member.unseen.softmax(1), alone.unseen.softmax(1))


@pytest.mark.parametrize("stop_at", [2, 6])
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch, stop_at: int
) -> None:
    # the first stops in the first member, the second in the second
    view = make_view(small_graph(), "transductive", 0)
    knowledge = knowledge_from(random_teacher()).fitted(view).knowledge
    method = EnsembleOfGLNNs(**SMALL, num_members=2)

    def train(folder: Path) -> dict[str, torch.Tensor]:
        checkpoint = Checkpoint(folder / "run.pt", "a run", every_seconds=0.0)
        with seeded(0):
            return method.distill(view, knowledge, checkpoint=checkpoint).student.state_dict()

    whole = train(tmp_path / "whole")
    monkeypatch.setattr("limbeck.methods.glnn.batches", interrupted_batches(stop_at))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "broken").iterdir()] == [
        f"run-member-{stop_at // 5}.pt"
    ]
    resumed = train(tmp_path / "broken")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert not list((tmp_path / "broken").iterdir())


def interrupted_batches(stop_at: int):
    """``batches``, but the user presses a key when an epoch asks for them that often."""
    from limbeck.training.loop import batches

    epochs = []

    def interrupted(*arguments):
        epochs.append(None)
        if len(epochs) == stop_at:
            raise KeyboardInterrupt
        yield from batches(*arguments)

    return interrupted


def test_a_teacher_and_a_member_are_needed() -> None:
    view = make_view(small_graph(), "transductive", 0)
    with pytest.raises(TeacherError, match="method 'ensemble' learns from a teacher"):
        EnsembleOfGLNNs().distill(view, None)
    with pytest.raises(OptionError, match="'num_members' .* is 0"):
        EnsembleOfGLNNs(num_members=0)
