"""Tuning: the same number of trials for every method, and nothing of the test nodes."""

import json

import pytest
import torch

from limbeck.errors import DivergedError, OptionError
from limbeck.evaluation.bench import run_bench
from limbeck.evaluation.plan import Bench
from limbeck.evaluation.tune import Case, best_candidate, candidates, tune
from limbeck.graphs.view import make_view
from limbeck.methods import make_method
from limbeck.registry import METHODS
from limbeck.teachers import fit_teacher
from limbeck.testing import small_graph


@pytest.mark.parametrize("name", METHODS)
def test_every_candidate_is_a_valid_method(name: str) -> None:
    method = make_method(name)
    found = candidates(method, 12)
    assert len(found) == 12
    assert found[0] == {}
    assert found == candidates(method, 12)
    assert found[:5] == candidates(method, 5)  # more trials keep those that there were
    assert set(found[1]) == set(method.search_space()) >= {"lr", "weight_decay", "dropout"}
    for changes in found:
        method.replace(**changes)


def test_a_candidate_that_diverges_is_worse_than_all_others(caplog) -> None:
    view = make_view(small_graph(), "transductive", 0)
    case = Case(view, (fit_teacher(view, "gcn", 0, max_epochs=5),), 0)
    method = make_method("glnn", hidden_channels=8, max_epochs=15)
    changes = [{"lr": 1e25}, {"lr": 0.01}, {"lr": 1e26}]
    assert best_candidate(method, changes, [case]).lr == 0.01
    assert caplog.text.count("the loss is not a number") == 2
    with pytest.raises(DivergedError, match="lower the learning rate"):
        best_candidate(method, changes[:1], [case])


def test_the_best_on_validation_is_kept_and_test_labels_change_nothing() -> None:
    view = make_view(small_graph(), "inductive", 0)
    teacher = fit_teacher(view, "gcn", 0, max_epochs=30)
    method = make_method("glnn", hidden_channels=8, max_epochs=15)
    kept = tune(view, teacher, method, 4)
    scores = {}
    for changes in candidates(method, 4):
        candidate = method.replace(**changes)
        torch.manual_seed(0)
        scores[candidate] = candidate.distill(view, teacher.knowledge).history.best_score
    assert scores[kept] == max(scores.values())
    assert tune(view, teacher, method, 1) is method
    view.everything.y[view.num_observed :] = 0
    view.observed.y[view.test_observed] = 0
    assert tune(view, teacher, method, 4) == kept


QUICK = {
    "graphs": ("digits",),
    "seeds": 1,
    "latency": False,
    "teacher_options": {"sage": {"max_epochs": 3}},
    "method_options": {"glnn": {"max_epochs": 3}},
}


def test_variants_are_rows_of_their_own(tmp_path) -> None:
    variants = {"wide": {"method": "glnn", "options": {"hidden_channels": 96}}}
    bench = Bench(**QUICK, methods=("glnn", "wide"), variants=variants)
    rows = {row["method"]: row for row in run_bench(bench, tmp_path).to_pylist()}
    assert set(rows) == {"teacher", "glnn", "wide"}
    assert rows["wide"]["parameters"] > rows["glnn"]["parameters"]
    assert rows["wide"]["epochs"] == 3  # the method's own options hold for the variant
    with pytest.raises(OptionError, match="variant 'mlp' has the name of a method"):
        Bench(**QUICK, methods=("mlp",), variants={"mlp": {"method": "glnn"}}).check_names()
    with pytest.raises(OptionError, match="glnm"):
        Bench(**QUICK, methods=("w",), variants={"w": {"method": "glnm"}}).check_names()


def test_a_table_tunes_once_per_graph_and_cut(tmp_path, monkeypatch) -> None:
    import limbeck.evaluation.bench as bench_module

    calls = []
    real = bench_module.drawn_best

    def counted(method, trials, seed, cases):
        calls.append((method.name, *(case.view.seed for case in cases)))
        return real(method, trials, seed, cases)

    monkeypatch.setattr(bench_module, "drawn_best", counted)
    options = {**QUICK, "seeds": 2, "methods": ("glnn",), "trials": 2}
    table = run_bench(Bench(**options), tmp_path)
    assert calls == [("glnn", 1000)]
    assert run_bench(Bench(**options), tmp_path).equals(table)
    run_bench(Bench(**{**options, "trials": 3}), tmp_path)
    assert len(calls) == 2


def test_a_table_can_describe_the_routing(tmp_path) -> None:
    small = {"max_epochs": 2, "pretrain_epochs": 1}
    options = {**QUICK, "method_options": {"glnn": {"max_epochs": 3}, "rbm": small}}
    bench = Bench(**options, methods=("glnn", "rbm"), diagnostics=True)
    rows = {row["method"]: row for row in run_bench(bench, tmp_path).to_pylist()}
    assert rows["glnn"]["routing"] is None
    report = json.loads(rows["rbm"]["routing"])
    assert len(report["layers"]) == 2
    assert 0 <= report["test"]["own"] <= 1
