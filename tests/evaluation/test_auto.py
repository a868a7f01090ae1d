"""The search: limits are kept, halving keeps the best, and what was interrupted ends the same."""

from types import SimpleNamespace

import numpy as np
import pytest

import limbeck
from limbeck.cli import run
from limbeck.errors import OptionError, OutputError, TeacherError
from limbeck.evaluation import auto as auto_module
from limbeck.evaluation.auto import (
    Auto,
    _Entry,
    _Export,
    _Trained,
    exhaustive,
    promoted,
    search,
    suggest,
)
from limbeck.evaluation.cascade import DeferGoal
from limbeck.evaluation.choice import Limits
from limbeck.graphs.view import make_view
from limbeck.methods import make_method
from limbeck.runtime.latency import measure_latency
from limbeck.teachers import fit_teacher
from limbeck.testing import small_graph

QUICK = {
    "methods": ("glnn", "krd"),
    "widths": (4, 16),
    "trials": 6,
    "seeds": 2,
    "method_options": {
        "glnn": {"max_epochs": 9},
        "krd": {"max_epochs": 9, "warmup_epochs": 1},
    },
}


@pytest.fixture(scope="module")
def lesson():
    view = make_view(small_graph(per_class=20), "inductive", 0)
    return view, fit_teacher(view, "gcn", 0, max_epochs=20)


@pytest.fixture(autouse=True)
def _measured_briefly(monkeypatch):
    monkeypatch.setattr(auto_module, "LATENCY_SECONDS", 0.02)


def entry(number: int, width: int, right: int, us: float | None = None) -> _Entry:
    correct = np.arange(10) < right
    method = make_method("glnn", hidden_channels=width)
    trained = [_Trained(correct, 0.9, 0.1, "MLP")]
    exports = [] if us is None else [_Export(us, 10)]
    return _Entry(SimpleNamespace(number=number), method, trained, exports)


def test_halving_keeps_the_best_of_each_width():
    entries = [entry(i, width=4 + 4 * (i % 2), right=i) for i in range(10)]
    kept = promoted(entries, Limits(), 3)
    assert [each.trial.number for each in kept] == [6, 7, 8, 9]  # two of five, rounded up
    assert [each.trial.number for each in promoted(entries[:1], Limits(), 3)] == [0]


def test_halving_puts_what_exceeds_a_limit_behind_the_nearer_first():
    figures = [(9, 90.0), (8, 60.0), (2, 50.0), (1, 40.0)]
    entries = [entry(i, 4, right, us) for i, (right, us) in enumerate(figures)]
    limits = Limits(budget_us=50)
    assert [each.trial.number for each in promoted(entries, limits, 2)] == [2, 3]
    assert [each.trial.number for each in promoted(entries[:2], limits, 2)] == [1]


def test_a_training_comes_back_from_its_record():
    trained = _Trained(np.arange(13) % 3 == 0, None, 1.5, "MLP", "reads a graph")
    again = _Trained.from_record(trained.to_record())
    assert again.correct.tolist() == trained.correct.tolist()
    assert (again.agreement, again.seconds) == (None, 1.5)
    assert (again.student, again.left_out) == ("MLP", "reads a graph")


def test_values_that_are_no_scalars_can_be_searched_and_found_again(tmp_path):
    storage = auto_module._storage(tmp_path)
    values = (("answers",), ("answers", "rows"))
    study = auto_module.optuna.create_study(storage=storage)
    drawn = []
    for _ in range(8):
        trial = study.ask()
        drawn.append((suggest(trial, "told", values), suggest(trial, "lr", (0.1, 0.2))))
        study.tell(trial, 0.5)
    assert {told for told, _ in drawn} == set(values)
    again = auto_module.optuna.load_study(
        study_name=study.study_name, storage=auto_module._storage(tmp_path)
    )
    params = [trial.params for trial in again.trials]
    assert [(values[p["told, place"]], p["lr"]) for p in params] == drawn


def test_options_of_one_method_leave_those_of_another_alone():
    auto = Auto(method_options={"glnn": {"dropout": 0.1}})
    assert auto.options_of("glnn") == {"dropout": 0.1}
    assert auto.options_of("nosmog") == {"encoding": "spectral"}
    assert Auto(method_options={"nosmog": {"encoding": "deepwalk"}}).options_of("nosmog") == {
        "encoding": "deepwalk"
    }


def test_an_interrupted_search_ends_as_one_that_was_not(lesson, tmp_path, monkeypatch):
    view, teacher = lesson
    whole = search(view, [teacher], Auto(**QUICK, folder=tmp_path / "whole"), 0)
    assert {c.method.hidden_channels for c in whole.candidates} == {4, 16}
    assert (tmp_path / "whole" / "choice.json").is_file()

    honest, count = auto_module.run_method, 0

    def interrupted(*args):
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        return honest(*args)

    folder = tmp_path / "parts"
    monkeypatch.setattr(auto_module, "run_method", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(view, [teacher], Auto(**QUICK, folder=folder), 0)
    with (folder / "search.journal").open("a", encoding="utf-8") as journal:
        journal.write('{"op_code":8,"work')  # killed in the middle of a line
    again = search(view, [teacher], Auto(**QUICK, folder=folder), 0)
    assert count - 1 == whole.trainings  # no training was made twice
    assert [c.method for c in again.candidates] == [c.method for c in whole.candidates]
    assert [c.accuracy for c in again.candidates] == [c.accuracy for c in whole.candidates]
    assert again.chosen.method == whole.chosen.method or (
        # bytes of a bundle hold its latency and scores as text, so equal sizes may swap
        abs(again.chosen.num_bytes - whole.chosen.num_bytes) < 100
    )
    count = 0
    assert search(view, [teacher], Auto(**QUICK, folder=folder), 0).chosen.method == (
        again.chosen.method
    )
    assert count == 0


def test_limits_are_kept_and_test_labels_change_nothing(lesson, tmp_path):
    view, teacher = lesson
    free = limbeck.distill(view, teacher, "auto", 0, **QUICK, folder=tmp_path / "a")
    sizes = sorted(each.num_bytes for each in free.choice.candidates)
    limit = (sizes[0] + sizes[-1]) // 2
    tight = limbeck.distill(
        view, teacher, "auto", 0, **QUICK, max_bytes=limit, folder=tmp_path / "a"
    )
    assert tight.choice.chosen.num_bytes <= limit < sizes[-1]
    assert tight.method == tight.choice.chosen.method
    assert tight.choice.best.num_bytes <= limit

    twisted = make_view(small_graph(per_class=20), "inductive", 0)
    for graph in (twisted.everything, twisted.graph):
        test = (
            twisted.test_unseen
            if graph is twisted.everything
            else twisted.nodes[twisted.test_unseen]
        )
        graph.y[test] = (graph.y[test] + 1) % 3
    other = limbeck.distill(twisted, teacher, "auto", 0, **QUICK, folder=tmp_path / "b")
    assert [c.method for c in other.choice.candidates] == [c.method for c in free.choice.candidates]
    assert other.choice.best.accuracy == free.choice.best.accuracy


def test_a_limit_that_none_meets_is_refused_with_the_nearest(lesson):
    view, teacher = lesson
    with pytest.raises(OptionError, match=r"meets budget_us 0\.001: the nearest, \w+ with"):
        limbeck.distill(view, teacher, "auto", 0, **QUICK, budget_us=0.001)


def test_wrong_requests(lesson, tmp_path):
    view, teacher = lesson
    with pytest.raises(TeacherError, match="'glnn' learns from a teacher"):
        limbeck.distill(view, None, "auto", 0, **QUICK)
    with pytest.raises(TeacherError, match="min_agreement"):
        limbeck.distill(view, None, "auto", 0, min_agreement=0.9)
    with pytest.raises(OptionError, match="unknown method 'gln'"):
        limbeck.distill(view, teacher, "auto", 0, methods=("gln",))
    with pytest.raises(OptionError, match="budget_us"):
        limbeck.distill(view, teacher, "auto", 0, budget_us=-1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no search"):
        limbeck.distill(view, teacher, "auto", 0, **QUICK, folder=tmp_path)
    cold, options = view.with_setting("cold-start"), {"kd": {"max_epochs": 2}}
    changes = {"methods": ("kd",), "widths": (4,), "trials": 1, "method_options": options}
    with pytest.raises(OptionError, match="kd reads the graph around a node"):
        limbeck.distill(cold, teacher, "auto", 0, **changes)
    options = {"glnn": {"max_epochs": 9, "lr": 1e30}}
    changes = {"methods": ("glnn",), "widths": (4,), "trials": 1, "method_options": options}
    with pytest.raises(OptionError, match="glnn diverges: its answers"):
        limbeck.distill(view, teacher, "auto", 0, **changes)


def test_in_cold_start_students_are_judged_without_edges(lesson):
    view, teacher = lesson
    options = {"limbeck": {"max_epochs": 20, "trust": "always"}, "glnn": {"max_epochs": 20}}
    changes = {"methods": ("limbeck", "glnn"), "widths": (8,), "trials": 2, "rounds": 1}
    auto = Auto(**changes, seeds=1, reduction=2, method_options=options)
    cold = exhaustive(view.with_setting("cold-start"), [teacher], auto, 0)
    by_name = {each.method.name: each for each in cold.candidates}
    # without edges it answers as the GLNN of its options does
    assert np.array_equal(by_name["limbeck"].correct, by_name["glnn"].correct)
    warm = exhaustive(view.with_setting("inductive"), [teacher], auto, 0)
    by_name = {each.method.name: each for each in warm.candidates}
    assert not np.array_equal(by_name["limbeck"].correct, by_name["glnn"].correct)


@pytest.mark.parametrize("saved", [{}, {"defer": DeferGoal("accuracy", 0.9)}, {"quantize": "int8"}])
def test_bytes_are_those_of_the_bundle_that_is_written(lesson, tmp_path, saved):
    view, teacher = lesson
    changes = {"methods": ("mlp", "rbm"), "widths": (8,), "trials": 2, "rounds": 1, "seeds": 1}
    options = {"mlp": {"max_epochs": 3}, "rbm": {"max_epochs": 3}}
    auto = Auto(**changes, reduction=2, method_options=options, **saved)
    found = exhaustive(view, [teacher], auto, 0).candidates
    # experts have no form in eight bits
    assert {c.method.name for c in found} == ({"mlp"} if "quantize" in saved else {"mlp", "rbm"})
    for candidate in found:
        run = limbeck.distill(view, teacher, candidate.method, 0)
        path = run.save(tmp_path / candidate.method.name, latency=brief_latency, **saved)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        assert size <= candidate.num_bytes < size + 1024


def brief_latency(student):
    return measure_latency(student, seconds=0.1)


def test_limits_hold_for_the_kind_of_student_that_comes_of_it(monkeypatch, tmp_path):
    # an MLP after few epochs, one that reads neighbours after all of them, for one seed of two
    view = make_view(small_graph(per_class=20), "transductive", 0)
    teacher = fit_teacher(view, "gcn", 0, max_epochs=20)
    real = auto_module.run_method

    def run(view, teachers, method, seed):
        hear = "always" if method.max_epochs == 9 and seed == 1 else "validated"
        return real(view, teachers, method.replace(hear=hear), seed)

    monkeypatch.setattr(auto_module, "run_method", run)
    # nothing is learnt, and under seed 0 an MLP is as good
    options = {"limbeck": {"max_epochs": 9, "lr": 1e-9}}
    changes = {"methods": ("limbeck",), "widths": (8,), "trials": 1, "rounds": 1, "seeds": 2}
    auto = Auto(**changes, method_options=options)
    (found,) = search(view, [teacher], auto, 0).candidates
    sizes = []
    for seed, hear in enumerate(("validated", "always")):
        made = make_method("limbeck", hidden_channels=8, hear=hear, **options["limbeck"])
        saved = limbeck.distill(view, teacher, made, seed).save(
            tmp_path / hear, latency=brief_latency
        )
        sizes.append(sum(file.stat().st_size for file in saved.rglob("*") if file.is_file()))
    assert sizes[0] + 1000 < found.num_bytes
    assert sizes[1] <= found.num_bytes < sizes[1] + 1024
    limit = (sizes[0] + sizes[1]) // 2
    with pytest.raises(OptionError, match="no student on .* meets max_bytes"):
        search(view, [teacher], auto.replace(max_bytes=limit), 0)


def test_the_command(tmp_path, capsys):
    quick = ["--teacher", "gcn", "--teacher-set", "max_epochs=3", "--no-latency", "--graph"]
    assert run(["distill", *quick, "digits", "--out", "x", "--budget-us", "5"]) == 2
    assert "--method auto" in capsys.readouterr().err
    options = ["methods=[glnn]", "widths=[4, 8]", "trials=2", "seeds=1", "rounds=1"]
    options += ["method_options={glnn: {max_epochs: 3}}"]
    sets = [part for option in options for part in ("--set", option)]
    out = str(tmp_path / "student")
    command = ["distill", *quick, "digits", "--method", "auto", "--out", out, *sets]
    assert run([*command, "--max-bytes", "100000000"]) == 0
    printed = capsys.readouterr()
    assert "chosen" in printed.out
    assert "round 1 of 1" in printed.err
    assert (tmp_path / "student" / "limbeck.json").is_file()
    assert (tmp_path / "student-search" / "choice.json").is_file()


def test_training_everything_never_chooses_worse_and_trains_more(lesson, tmp_path):
    view, teacher = lesson
    options = Auto(**QUICK, rounds=1, folder=tmp_path / "search")
    halved = search(view, [teacher], options, 0)
    everything = exhaustive(view, [teacher], options, 0)
    assert len(everything.candidates) == 6
    assert everything.trainings == 12
    assert everything.best.accuracy >= halved.best.accuracy
    figures = {str(each.method): each.accuracy for each in everything.candidates}
    for finalist in halved.candidates:  # the very same trainings
        assert figures[str(finalist.method)] == finalist.accuracy


def test_the_budget_on_time_is_that_of_the_exported_student(lesson, monkeypatch):
    view, teacher = lesson

    def as_wide(student, batch_sizes, seconds):
        assert batch_sizes == (1,)
        width = float(student.manifest.hyper_parameters["hidden_channels"])
        figures = {"1": {"p50_us": width, "p99_us": width}}
        return {"threads": 1, "x": figures, "nodes": figures}

    monkeypatch.setattr(auto_module, "measure_latency", as_wide)
    changes = {**QUICK, "methods": ("glnn",), "trials": 4, "seeds": 1}
    found = limbeck.distill(view, teacher, "auto", 0, **changes, budget_us=10)
    assert found.choice.chosen.latency_us == found.method.hidden_channels == 4
    assert {row["meets_limits"] for row in found.choice.rows()} == {True, False}
    with pytest.raises(OptionError, match=r"the nearest, glnn with 4 hidden channels, takes 4\.0"):
        limbeck.distill(view, teacher, "auto", 0, **changes, budget_us=3)
