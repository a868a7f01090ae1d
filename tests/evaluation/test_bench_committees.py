"""Tables with several teachers: variants, committees, their rows and their cells."""

import json

import pytest

import limbeck.evaluation.bench as bench_module
from limbeck.errors import OptionError
from limbeck.evaluation.bench import run_bench
from limbeck.evaluation.cells import cell_path
from limbeck.evaluation.compare import is_teacher, standings
from limbeck.evaluation.plan import Bench, groups

QUICK = {
    "graphs": ("digits",),
    "seeds": 1,
    "latency": False,
    "teachers": ("depths",),
    "teacher_variants": {
        "gcn2": {"teacher": "gcn", "options": {"num_layers": 2}},
        "gcn3": {"teacher": "gcn", "options": {"num_layers": 3}},
    },
    "committees": {"depths": ("gcn2", "gcn3")},
    "teacher_options": {"gcn": {"max_epochs": 3, "hidden_channels": 8}},
    "methods": ("mlp", "node", "kd"),
    "variants": {"node": {"method": "mskd", "options": {"num_layers": 2, "attention": "node"}}},
    "method_options": {
        "mlp": {"max_epochs": 2},
        "mskd": {"max_epochs": 2, "student": "mlp"},
        "kd": {"max_epochs": 2, "student": "mlp"},
    },
}


def test_each_member_is_trained_once_and_has_a_row(tmp_path, monkeypatch):
    fitted = []
    real = bench_module.fit_teacher
    monkeypatch.setattr(
        bench_module,
        "fit_teacher",
        lambda *a, **o: (fitted.append((a[1], o["num_layers"])), real(*a, **o))[1],
    )
    table = run_bench(Bench(**QUICK), tmp_path)
    assert fitted == [("gcn", 2), ("gcn", 3)]
    rows = {row["method"]: row for row in table.to_pylist()}
    assert set(rows) == {"teacher", "teacher:gcn2", "teacher:gcn3", "mlp", "node", "kd"}
    assert {row["teacher"] for row in rows.values()} == {"depths"}
    members = [rows["teacher:gcn2"], rows["teacher:gcn3"]]
    best = max(members, key=lambda row: row["val_accuracy"])
    assert rows["teacher"]["test_accuracy"] == best["test_accuracy"]
    assert [json.loads(row["options"])["num_layers"] for row in members] == [2, 3]
    assert run_bench(Bench(**QUICK), tmp_path).equals(table)
    assert len(fitted) == 2  # nothing is computed twice

    assert {found.method for found in standings(table)} == {"mlp", "node", "kd"}
    assert is_teacher("teacher:gcn2")
    assert not is_teacher("teachers")


def test_a_variant_stands_alone_and_twice_in_a_committee(tmp_path):
    alone = Bench(**{**QUICK, "teachers": ("gcn3",), "methods": ("node",)})
    rows = [row["method"] for row in run_bench(alone, tmp_path).to_pylist()]
    assert rows == ["teacher", "node"]
    twice = {**QUICK, "committees": {"twins": ("gcn3", "gcn3")}, "teachers": ("twins",)}
    rows = run_bench(Bench(**{**twice, "methods": ("node",)}), tmp_path).to_pylist()
    assert [row["method"] for row in rows] == ["teacher", "teacher:gcn3", "node"]


def test_plain_teachers_keep_their_cells(tmp_path):
    """A committee beside it changes nothing about where a plain teacher's cell is kept."""
    plain = Bench(graphs=("digits",), seeds=1, methods=("mlp",))
    beside = plain.replace(
        teacher_variants=QUICK["teacher_variants"],
        committees=QUICK["committees"],
        teachers=("sage", "depths"),
    )
    (group,) = groups(plain)
    path = cell_path(plain, tmp_path, group, "mlp")
    assert path == cell_path(beside, tmp_path, group, "mlp")
    others = [cell_path(beside, tmp_path, g, "mlp") for g in groups(beside)]
    assert len(set(others)) == 2
    wider = {**QUICK["teacher_variants"]["gcn2"], "options": {"num_layers": 4}}
    changed = beside.replace(teacher_variants={**QUICK["teacher_variants"], "gcn2": wider})
    moved = [cell_path(changed, tmp_path, g, "mlp") for g in groups(changed)]
    assert moved[0] == others[0]
    assert moved[1] != others[1]


def test_tuning_hears_all_teachers(tmp_path):
    table = run_bench(Bench(**{**QUICK, "methods": ("node",), "trials": 2}), tmp_path)
    assert "node" in table["method"].to_pylist()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"committees": {"depths": ("gcn2", "gcn9")}}, "gcn9"),
        ({"committees": {"depths": ()}}, "committees"),
        ({"committees": {"gcn": ("gcn2",)}, "teachers": ("gcn2",)}, "'gcn' is the name of a"),
        ({"teacher_variants": {"gcn2": {"teacher": "gnc"}}, "teachers": ("gcn2",)}, "gnc"),
        (
            {
                "teacher_variants": {"x": {"teacher": "gcn", "options": {"n": 1}}},
                "teachers": ("x",),
            },
            "unknown option 'n'",
        ),
    ],
)
def test_wrong_names(changes, sentence):
    with pytest.raises(OptionError, match=sentence):
        Bench(**{**QUICK, **changes}).check_names()


def test_identical_teachers_do_what_one_of_them_does_and_attention_is_described(tmp_path):
    ways = {
        name: {"method": "mskd", "options": {"num_layers": 2, "attention": attention}}
        for name, attention in (("node", "node"), ("single", "single:1"), ("equal", "equal"))
    }
    plan = {**QUICK, "methods": tuple(ways), "variants": ways, "diagnostics": True}
    same = {**plan, "committees": {"depths": ("gcn3", "gcn3", "gcn3")}}
    rows = {row["method"]: row for row in run_bench(Bench(**same), tmp_path / "same").to_pylist()}
    assert rows["node"]["test_accuracy"] == pytest.approx(rows["single"]["test_accuracy"], abs=0.01)
    assert rows["node"]["attention"] is None  # all nodes attend alike
    rows = {row["method"]: row for row in run_bench(Bench(**plan), tmp_path / "two").to_pylist()}
    report = json.loads(rows["node"]["attention"])
    assert [teacher["depth"] for teacher in report["teachers"]] == [2, 3]
    assert rows["equal"]["attention"] is None
    assert rows["teacher"]["attention"] is None
