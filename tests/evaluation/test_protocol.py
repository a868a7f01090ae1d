"""Scores of a run, worked out apart from the code that computes them."""

import pytest
import torch

import limbeck.training.loop as loop
from limbeck.errors import OptionError
from limbeck.evaluation.distill import distill
from limbeck.graphs.view import make_view
from limbeck.runtime import load_bundle, measure_latency
from limbeck.teachers import fit_teacher, knowledge_from
from limbeck.testing import small_graph

QUICK = {"hidden_channels": 16, "max_epochs": 20, "dropout": 0.0}


def right(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


@pytest.fixture(scope="module")
def run():
    view = make_view(small_graph(), "inductive", 0)
    teacher = fit_teacher(view, "gcn", 0, max_epochs=50)
    return distill(view, teacher, "glnn", 0, **QUICK)


def test_test_accuracy_of_each_setting(run):
    view, labels = run.view, run.view.everything.y
    seen = right(run.answers.observed[view.test_observed], labels[view.test_observed])
    new = view.test_unseen
    unseen = right(run.answers.unseen[new - view.num_observed], labels[new])
    expected = {"inductive": unseen, "production": 0.8 * seen + 0.2 * unseen, "cold-start": unseen}
    for setting, accuracy in expected.items():
        scores = run.in_setting(setting).scores["student"]
        assert scores["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_the_teacher_is_asked_as_the_setting_says(run):
    view, labels = run.view, run.view.everything.y
    answers = run.teacher.answers
    seen = right(answers.observed[view.test_observed], labels[view.test_observed])
    unseen = right(answers.unseen, labels[view.test_unseen])
    cold = right(answers.isolated, labels[view.test_unseen])
    expected = {"inductive": unseen, "production": 0.8 * seen + 0.2 * unseen, "cold-start": cold}
    for setting, accuracy in expected.items():
        scores = run.in_setting(setting).scores["teacher"]
        assert scores["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert scores["agreement"] == 1.0


def test_slices_cover_the_test_nodes(run):
    for setting in ("inductive", "production", "cold-start"):
        there = run.in_setting(setting)
        slices = there.scores["student"]["slices"]
        for kind in ("degree=", "homophily=", "class="):
            sizes = [s["num_nodes"] for name, s in slices.items() if name.startswith(kind)]
            assert sum(sizes) == there.scores["student"]["num_test_nodes"]
    cold = run.in_setting("cold-start").scores["student"]["slices"]
    assert cold["degree=0"]["num_nodes"] == len(run.view.test_unseen)


def test_the_temperature_is_fitted_on_validation_nodes(run):
    val, labels = run.view.val, run.view.everything.y

    def nll(temperature: float) -> float:
        logits = run.answers.observed[val] / temperature
        return float(torch.nn.functional.cross_entropy(logits, labels[val]))

    assert nll(run.temperature) <= min(nll(run.temperature * 1.1), nll(run.temperature / 1.1))


def test_a_teacher_of_another_view_is_refused(run):
    other = make_view(small_graph(), "transductive", 0)
    with pytest.raises(OptionError, match="fit the teacher on this very view"):
        distill(other, run.teacher, "glnn")


@pytest.mark.parametrize("setting", ["transductive", "inductive"])
def test_a_teacher_of_another_seed_is_refused(setting):
    # as many nodes, but others are for training, or in another order
    one, other = (make_view(small_graph(), setting, seed) for seed in (0, 1))
    logits = knowledge_from(torch.zeros(len(one.nodes), one.num_classes))
    for teacher in (fit_teacher(one, "gcn", 0, max_epochs=2), logits.fitted(one)):
        distill(one, teacher, "glnn", **QUICK | {"max_epochs": 1})
        with pytest.raises(OptionError, match="fit the teacher on this very view"):
            distill(other, teacher, "glnn")
    distill(other, logits, "glnn", **QUICK | {"max_epochs": 1})


def test_an_interrupted_distillation_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    view = make_view(small_graph(), "transductive", 0)
    logits = knowledge_from(torch.randn(120, 3, generator=torch.Generator().manual_seed(0)))
    options = {"hidden_channels": 16, "max_epochs": 8, "dropout": 0.3, "batch_size": 32}
    whole = distill(view, logits, "glnn", 0, **options)
    real, calls = loop._train_epoch, []

    def break_off(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop, "_train_epoch", break_off)
    monkeypatch.setattr(loop.time, "monotonic", _clock())
    with pytest.raises(KeyboardInterrupt):
        distill(view, logits, "glnn", 0, resume=True, **options)
    assert list((tmp_path / "students").glob("*.checkpoint"))
    calls.clear()
    monkeypatch.setattr(loop, "_train_epoch", lambda *a: (calls.append(1), real(*a))[1])
    resumed = distill(view, logits, "glnn", 0, resume=True, **options)
    assert len(calls) == 4  # eight epochs, four of them done before
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[name])
    assert not list((tmp_path / "students").glob("*.checkpoint"))


def _clock():
    """A clock that jumps by a minute at each look, so that every epoch is written down."""
    times = iter(range(0, 10**6, 60))
    return lambda: float(next(times))


@pytest.mark.parametrize("method", ["glnn", "sa-mlp"])
def test_a_student_is_measured_before_its_bundle_is_written(tmp_path, method):
    view = make_view(small_graph(), "inductive", 0)
    run = distill(view, torch.randn(120, 3), method, max_epochs=2, hidden_channels=8)
    asked = []

    def measure(student):
        asked.append(student.predict(x=view.graph.x.numpy()[:3]))
        return measure_latency(student, (1,), 0.02)

    student = load_bundle(run.save(tmp_path / "student", latency=measure))
    assert (asked[0] == student.predict(x=view.graph.x.numpy()[:3])).all()
    assert student.manifest.latency is not None
