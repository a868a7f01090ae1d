"""Tables: complete, resumable, and never computed twice."""

import contextlib
import json
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

import limbeck.evaluation.bench as bench_module
from limbeck.errors import OptionError, OutputError
from limbeck.evaluation.bench import run_bench
from limbeck.evaluation.cells import COSTS, SCHEMA
from limbeck.evaluation.plan import Bench, groups
from limbeck.reports.runs import read_runs

QUICK = {
    "graphs": ("digits",),
    "settings": ("transductive", "inductive", "cold-start"),
    "seeds": 2,
    "latency": False,
    "teacher_options": {"sage": {"max_epochs": 3}},
    "method_options": {"mlp": {"max_epochs": 3}, "glnn": {"max_epochs": 3}},
}


def test_a_row_per_cell_and_no_cell_twice(tmp_path, monkeypatch):
    trained = []
    real = bench_module.distill
    monkeypatch.setattr(
        bench_module, "distill", lambda *a: (trained.append(a[2].name), real(*a))[1]
    )
    table = run_bench(Bench(**QUICK), tmp_path / "out")
    assert table.schema == SCHEMA
    # 3 settings × 2 seeds × (teacher, mlp, glnn); one training serves all settings with a cut
    assert table.num_rows == 3 * 2 * 3
    assert len(trained) == 2 * 2 * 2
    keys = [(r["setting"], r["seed"], r["method"]) for r in table.to_pylist()]
    assert len(set(keys)) == len(keys)
    assert pq.read_table(tmp_path / "out" / "runs.parquet").equals(table)

    (spent,) = json.loads((tmp_path / "out/bench.json").read_text())["spent"]
    assert spent["cells"] == 2 * 2 * 3  # two cuts, two seeds, the teacher and two students
    assert spent["workers"] == 1
    assert spent["graphs"] == ["digits"]
    assert spent["seconds"] > 0

    again = run_bench(Bench(**QUICK), tmp_path / "out")
    assert again.equals(table)
    assert len(trained) == 8
    assert json.loads((tmp_path / "out/bench.json").read_text())["spent"] == [spent]

    more = run_bench(Bench(**{**QUICK, "seeds": 3}), tmp_path / "out")
    assert len(trained) == 12
    assert more.num_rows == 3 * 3 * 3
    first, second = json.loads((tmp_path / "out/bench.json").read_text())["spent"]
    assert first == spent
    assert second["cells"] == 1 * 2 * 3

    changed = {**QUICK, "method_options": {**QUICK["method_options"], "glnn": {"max_epochs": 4}}}
    run_bench(Bench(**changed), tmp_path / "out")
    assert trained[12:] == ["glnn"] * 4  # the changed method only, not the MLP


def test_an_interrupted_table_goes_on(tmp_path, monkeypatch):
    real = bench_module.distill
    calls = []

    def break_off(*arguments):
        calls.append(arguments[2].name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(bench_module, "distill", break_off)
    small = Bench(**{**QUICK, "settings": ("transductive",), "seeds": 1})
    with pytest.raises(KeyboardInterrupt):
        run_bench(small, tmp_path)
    assert calls == ["mlp", "glnn"]
    (spent,) = json.loads((tmp_path / "bench.json").read_text())["spent"]
    assert spent["cells"] == 2  # the teacher and the MLP, though their group is not whole
    table = run_bench(small, tmp_path)
    assert calls[2:] == ["glnn"]
    assert table.num_rows == 3
    first, second = json.loads((tmp_path / "bench.json").read_text())["spent"]
    assert (first, second["cells"]) == (spent, 1)


def test_the_time_is_written_down_while_a_table_is_computed(tmp_path, monkeypatch):
    """A call that is killed leaves no other trace of what it took."""
    monkeypatch.setattr(bench_module, "NOTE_EVERY", 0.01)

    def written() -> float:
        return json.loads((tmp_path / "bench.json").read_text())["spent"][0]["seconds"]

    seen = []

    def wait(*_):
        deadline = time.monotonic() + 30
        first = None
        while time.monotonic() < deadline:
            with contextlib.suppress(IndexError):  # nothing is written yet
                first = first or written()
                if written() > first:
                    seen.append(first)
                    return
            time.sleep(0.01)

    small = Bench(**{**QUICK, "settings": ("transductive",), "seeds": 1})
    run_bench(small, tmp_path, on_group=wait)
    assert len(seen) == 1
    assert written() > seen[0]


FRAMELETS = {
    "graphs": ("digits",),
    "teachers": ("framelet-simplified", "sage"),
    "methods": ("glnn", "fmlp-s"),
    "learn_from": {"fmlp-s": ("framelet-simplified",)},
    "seeds": 1,
    "latency": True,
    "diagnostics": True,
    "teacher_options": {"framelet-simplified": {"max_epochs": 2}, "sage": {"max_epochs": 2}},
    "method_options": {
        "glnn": {"max_epochs": 2},
        "fmlp-s": {"max_epochs": 2, "hidden_channels": 4, "predictor_channels": 0},
    },
}


def test_a_method_may_learn_from_some_teachers_only_and_framelets_are_described(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(bench_module, "LATENCY_SECONDS", 0.02)
    rows = run_bench(Bench(**FRAMELETS), tmp_path / "out").to_pylist()
    assert {(row["teacher"], row["method"]) for row in rows} == {
        ("framelet-simplified", "teacher"),
        ("framelet-simplified", "glnn"),
        ("framelet-simplified", "fmlp-s"),
        ("sage", "teacher"),
        ("sage", "glnn"),
    }
    described = {row["method"]: row["framelets"] for row in rows if row["framelets"]}
    assert list(described) == ["fmlp-s"]
    report = json.loads(described["fmlp-s"])
    assert set(report["gates"][0]) == {"low", "high"}
    assert sum(report["student"]["logits"]["band_shares"].values()) == pytest.approx(1, abs=1e-3)
    shown = {(r["teacher"], r["method"]): r["diagnostics"] for r in rows}
    assert shown["sage", "glnn"] == "{}"
    assert json.loads(shown["framelet-simplified", "fmlp-s"])["curvature"]["count"]
    # a transform of the whole graph is no answer for a node
    untimed = [(r["teacher"], r["method"]) for r in rows if r["latency_us_b1"] is None]
    assert untimed == [("framelet-simplified", "teacher")]


@pytest.mark.parametrize(
    ("learn_from", "message"),
    [
        ({"fmlp-o": ("sage",)}, "unknown method in 'learn_from' 'fmlp-o'"),
        ({"glnn": ("gcn",)}, "unknown teacher in 'learn_from' 'gcn'"),
        ({"glnn": ("sage",), "fmlp-s": ("sage",)}, "no method learns from teacher 'framelet-s"),
    ],
)
def test_who_learns_from_whom_is_checked(learn_from, message):
    with pytest.raises(OptionError, match=message):
        Bench(**{**FRAMELETS, "learn_from": learn_from}).check_names()


def test_processes_give_the_same_rows(tmp_path):
    one = run_bench(Bench(**QUICK), tmp_path / "one")
    two = run_bench(Bench(**QUICK), tmp_path / "two", workers=2)
    timed = ["train_seconds", "peak_mb"]
    assert one.drop_columns(timed).equals(two.drop_columns(timed))


def test_slices_and_options_travel_with_the_rows(tmp_path):
    small = Bench(**{**QUICK, "settings": ("transductive",), "seeds": 1})
    for row in run_bench(small, tmp_path).to_pylist():
        slices = json.loads(row["slices"])
        total = sum(s["num_nodes"] for name, s in slices.items() if name.startswith("class="))
        assert total == row["num_test_nodes"]
        assert json.loads(row["options"])["max_epochs"] == 3


def test_a_yaml_file_and_options_beside_it(tmp_path):
    file = tmp_path / "table.yaml"
    file.write_text("graphs: [digits]\nseeds: [3, 5]\nmethods: [glnn]\n")
    bench = Bench.from_file(file, methods=("mlp", "glnn"))
    assert bench.seeds == (3, 5)
    assert bench.methods == ("mlp", "glnn")
    assert [g.seed for g in groups(bench)] == [3, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("graphs: [digits]\nsedes: 3\n", r"table.yaml: unknown option 'sedes'.*'seeds'"),
        ("graphs: []\n", "option 'graphs'.*at least 1 item"),
        ("graphs: [digits]\nseeds: 0\n", "option 'seeds'.*at least one seed"),
        ("- graphs\n", "expected options with names"),
        ("graphs: [digits\n", "not a YAML file that can be read"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, message):
    file = tmp_path / "table.yaml"
    file.write_text(text)
    with pytest.raises(OptionError, match=message) as error:
        Bench.from_file(file)
    assert "\n" not in str(error.value)


def test_wrong_names_are_found_before_anything_is_trained(tmp_path):
    for change, message in (
        ({"methods": ("gllnn",)}, "unknown method 'gllnn'"),
        ({"teachers": ("sagee",)}, "unknown teacher 'sagee'"),
        ({"settings": ("inductiv",)}, "unknown setting 'inductiv'"),
        ({"method_options": {"glnn": {"dropout": 2.0}}}, "option 'dropout' of GLNN is 2.0"),
    ):
        with pytest.raises(OptionError, match=message):
            run_bench(Bench(**{**QUICK, **change}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(OutputError, match="exists and holds no table of Limbeck"):
        run_bench(Bench(**QUICK), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_named_candidates_are_chosen_on_validation_nodes(tmp_path, monkeypatch):
    scored = []
    real = bench_module.best_candidate
    monkeypatch.setattr(
        bench_module,
        "best_candidate",
        lambda m, changes, cases: (
            scored.append((changes, [case.seed for case in cases])),
            real(m, changes, cases),
        )[1],
    )
    changes = [{"lr": 1e-9}, {"lr": 0.05}]
    plan = {
        **QUICK,
        "settings": ("transductive",),
        "methods": ("best", "mlp"),
        "variants": {
            "best": {"method": "mlp", "options": {"max_epochs": 8}, "candidates": changes}
        },
        "tuning_seeds": 2,
    }
    rows = run_bench(Bench(**plan), tmp_path).to_pylist()
    chosen = {json.loads(row["options"])["lr"] for row in rows if row["method"] == "best"}
    assert chosen == {0.05}
    assert scored == [(tuple(changes), [1000, 1001])]  # once, and not for the other method
    run_bench(Bench(**plan), tmp_path)
    assert len(scored) == 1
    wrong = Bench(**{**plan, "variants": {"best": {"method": "mlp", "candidates": [{"lr": -1}]}}})
    with pytest.raises(OptionError, match="option 'lr'"):
        wrong.check_names()


def test_graphs_may_have_seeds_of_their_own():
    plan = Bench(graphs=("digits", "cora"), seeds=3, graph_seeds={"cora": 1})
    found = [(group.seed, group.graph) for group in groups(plan)]
    assert found == [(0, "digits"), (0, "cora"), (1, "digits"), (2, "digits")]


def test_the_first_seeds_are_probed_and_layers_may_be_halved(tmp_path):
    plan = {
        **QUICK,
        "settings": ("transductive",),
        "methods": ("abkd",),
        "method_options": {"abkd": {"max_epochs": 2, "hidden_channels": 4, "max_nodes": 64}},
    }
    plain = run_bench(Bench(**plan), tmp_path / "plain").to_pylist()
    assert {row["table_parameters"] for row in plain} == {0}
    half = Bench(**plan, half_layers=True, probe=True, probe_seeds=1)
    rows = run_bench(half, tmp_path / "half").to_pylist()
    ratios = {r["seed"]: r["probe_ratio"] for r in rows if r["method"] == "abkd"}
    assert ratios[0] is not None
    assert ratios[1] is None


def test_costs_are_measured_once_and_for_old_cells_too(tmp_path, monkeypatch):
    trained = []
    real = bench_module.distill
    monkeypatch.setattr(
        bench_module, "distill", lambda *a: (trained.append(a[2].name), real(*a))[1]
    )
    monkeypatch.setattr(bench_module, "LATENCY_SECONDS", 0.02)
    plain = {**QUICK, "settings": ("transductive",)}
    without = run_bench(Bench(**plain), tmp_path)
    assert all(without[column].null_count == without.num_rows for column in COSTS)
    assert trained == ["mlp", "glnn"] * 2

    timed = Bench(**{**plain, "latency": True})
    table = run_bench(timed, tmp_path)
    assert trained[4:] == ["mlp", "glnn"]  # once per method, for whatever number of seeds
    assert table.drop_columns(list(COSTS)).equals(without.drop_columns(list(COSTS)))
    for row in table.to_pylist():
        assert row["latency_us_b256"] > row["latency_us_b1"] > 0 or row["method"] == "teacher"
        if row["method"] == "teacher":
            assert row["latency_us_b1"] > 0
            assert row["bundle_bytes"] is None
        else:
            # 1,797 nodes of 64 float32 are stored beside the model
            assert row["bundle_bytes"] - row["model_bytes"] > 1797 * 64 * 4
            assert row["model_bytes"] > 4 * row["parameters"]
    by_method = {(r["method"], r["latency_us_b1"]) for r in table.to_pylist()}
    assert len(by_method) == 3
    assert not list((tmp_path / "costs").glob("*.bundle"))

    run_bench(timed, tmp_path)
    assert len(trained) == 6
    # a method that is new leaves its student behind, and is not trained again for this
    options = {**QUICK["method_options"], "krd": {"max_epochs": 2, "hidden_channels": 16}}
    more = Bench(**{**plain, "latency": True, "methods": ("krd",), "method_options": options})
    rows = run_bench(more, tmp_path).to_pylist()
    assert trained[6:] == ["krd", "krd"]
    assert all(row["latency_us_b1"] for row in rows)


def test_costs_are_those_of_the_kind_of_student(tmp_path, monkeypatch):
    # one method, whose student is an MLP under one seed and reads neighbours under the other
    real = bench_module.distill

    def distill(view, teachers, method, seed):
        return real(view, teachers, method.replace(hear="always" if seed else "validated"), seed)

    monkeypatch.setattr(bench_module, "distill", distill)
    monkeypatch.setattr(bench_module, "LATENCY_SECONDS", 0.02)
    # labels alone are learnt, where an MLP that has learnt nothing yet is as good
    options = {"max_epochs": 1, "hidden_channels": 16, "lr": 1e-9}
    plan = {
        **QUICK,
        "settings": ("transductive",),
        "methods": ("limbeck",),
        "method_options": {"limbeck": options},
    }
    rows = run_bench(Bench(**{**plan, "latency": True}), tmp_path).to_pylist()
    kinds = {r["student"]: r for r in rows if r["method"] == "limbeck"}
    assert set(kinds) == {"mlp", "neighbormlp"}
    assert kinds["neighbormlp"]["model_bytes"] > kinds["mlp"]["model_bytes"]
    for kind in kinds.values():
        assert kind["model_bytes"] > 4 * kind["parameters"]
    assert {r["student"] for r in rows if r["method"] == "teacher"} == {None}


def test_tables_that_changed_are_computed_anew(tmp_path):
    folder = tmp_path / "mine"
    write_tables(folder, 0)
    plan = {**QUICK, "graphs": (str(folder),), "methods": ("mlp",), "seeds": 1}
    plan = {**plan, "settings": ("transductive",), "trials": 2}
    first = run_bench(Bench(**plan), tmp_path / "runs")
    assert run_bench(Bench(**plan), tmp_path / "runs").equals(first)
    write_tables(folder, 1)
    again = run_bench(Bench(**plan), tmp_path / "runs")
    fresh = run_bench(Bench(**plan), tmp_path / "fresh")
    timed = ["train_seconds", "peak_mb"]
    assert again.drop_columns(timed).equals(fresh.drop_columns(timed))
    assert not again.drop_columns(timed).equals(first.drop_columns(timed))


def write_tables(folder, seed):
    draw = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    lines = [f"{i},{i % 2},{draw.normal() + i % 2},{draw.normal()}" for i in range(40)]
    (folder / "nodes.csv").write_text("\n".join(["id,label,a,b", *lines]))
    edges = [f"{i},{draw.integers(40)}" for i in range(40)]
    (folder / "edges.csv").write_text("\n".join(["source,target", *edges]))


def test_an_interrupted_table_is_read_as_far_as_it_is(tmp_path, monkeypatch):
    small = {**QUICK, "settings": ("transductive",), "seeds": 1}
    run_bench(Bench(**small), tmp_path)
    about = json.loads((tmp_path / "bench.json").read_text())
    assert about["finished"] is True
    seen = []

    def stop(bench, folder, group):
        if seen:
            raise KeyboardInterrupt
        seen.append(group)
        bench_module_run_group(bench, folder, group)

    bench_module_run_group = bench_module.run_group
    monkeypatch.setattr(bench_module, "run_group", stop)
    # more seeds, and one method has other options now: its old cells are not of this table
    options = {**QUICK["method_options"], "mlp": {"max_epochs": 2}}
    more = Bench(**{**small, "seeds": 3, "method_options": options})
    with pytest.raises(KeyboardInterrupt):
        run_bench(more, tmp_path)
    read = read_runs([tmp_path])
    assert not read.folders[0].finished
    found = [(r["seed"], r["method"], r["epochs"]) for r in read.rows]
    assert found == [(0, "teacher", None), (0, "mlp", 2), (0, "glnn", 3)]


def test_curves_and_reliability_travel_with_the_rows(tmp_path):
    small = Bench(**{**QUICK, "settings": ("transductive",), "seeds": 1})
    for row in run_bench(small, tmp_path).to_pylist():
        trusted = json.loads(row["reliability"])
        if row["method"] == "teacher":
            assert list(trusted) == ["teacher"]
            assert row["curve"] is None
        else:
            assert sum(trusted["student"]["count"]) == row["num_test_nodes"]
            assert json.loads(row["curve"])["epoch"] == [0, 1, 2]
    about = json.loads((tmp_path / "bench.json").read_text())
    assert about["bench"]["graphs"] == ["digits"]
    assert about["versions"]["torch"]
