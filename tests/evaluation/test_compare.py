"""Comparisons over seeds, on tables that a person can check."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import InputError, OptionError
from limbeck.evaluation.compare import (
    Cell,
    Standing,
    Summary,
    compare,
    critical_difference,
    paired_differences,
    standings,
    summarise,
)

CORA = Cell("cora", "inductive", "sage")
TEXAS = Cell("texas", "inductive", "sage")


def rows_of(cell: Cell, **accuracies: list[float]) -> list[dict[str, object]]:
    """One row per method and seed, seeds from 0."""
    return [
        {**cell._asdict(), "seed": seed, "method": method, "test_accuracy": accuracy}
        for method, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]


RUNS = [
    *rows_of(CORA, rbm=[0.9, 0.8], teacher=[0.9, 0.7], glnn=[0.8, 0.6], mlp=[0.6, 0.6]),
    *rows_of(TEXAS, rbm=[0.5, 0.5], teacher=[0.5, 0.5], glnn=[0.6, 0.6], mlp=[0.7, 0.9]),
]


def test_summary_by_hand() -> None:
    found = summarise(RUNS)

    # population deviation of 0.9 and 0.7 is 0.1
    assert Summary(CORA, "teacher", pytest.approx(0.8), pytest.approx(0.1), 2) in found
    assert Summary(TEXAS, "glnn", pytest.approx(0.6), pytest.approx(0), 2) in found
    assert len(found) == 8


def test_arrow_table_and_rows_give_the_same() -> None:
    assert compare(pa.Table.from_pylist(RUNS)) == compare(RUNS)


def test_methods_are_in_the_order_of_a_table() -> None:
    assert compare(RUNS).methods == ("teacher", "mlp", "glnn", "rbm")


def test_differences_are_paired_by_seed() -> None:
    # glnn is 0.1 below the teacher in both seeds, though both vary by more
    runs = rows_of(CORA, teacher=[0.9, 0.7, 0.8], glnn=[0.8, 0.6, 0.7])

    (found,) = paired_differences(runs, "teacher")

    assert (found.mean, found.low, found.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert (found.method, found.reference, found.num_seeds) == ("glnn", "teacher", 3)


def test_only_common_seeds_are_paired() -> None:
    runs = rows_of(CORA, teacher=[0.9, 0.7, 0.8], glnn=[0.5, 0.5])

    (found,) = paired_differences(runs, "teacher")

    assert found.mean == pytest.approx((-0.4 - 0.2) / 2)
    assert found.num_seeds == 2


def test_one_seed_has_no_interval() -> None:
    (found,) = paired_differences(rows_of(CORA, teacher=[0.9], glnn=[0.8]), "teacher")

    assert (found.low, found.high) == (None, None)


def test_methods_without_a_seed_in_common_are_left_out() -> None:
    runs = [*rows_of(CORA, teacher=[0.9]), *rows_of(CORA, glnn=[0.8, 0.7])[1:]]

    assert paired_differences(runs, "teacher") == []


def test_interval_is_that_of_the_mean_of_normal_differences() -> None:
    differences = np.random.default_rng(0).normal(0.02, 0.01, size=50)
    runs = rows_of(CORA, teacher=[0.5] * 50, glnn=list(0.5 + differences))

    (found,) = paired_differences(runs, "teacher")

    half = 1.96 * differences.std() / np.sqrt(50)
    assert found.low == pytest.approx(found.mean - half, abs=2e-4)
    assert found.high == pytest.approx(found.mean + half, abs=2e-4)


def test_interval_repeats_for_a_seed_and_does_not_depend_on_other_methods() -> None:
    teacher, glnn, mlp = np.random.default_rng(0).uniform(size=(3, 8)).tolist()
    runs = rows_of(CORA, teacher=teacher, glnn=glnn)
    more = rows_of(CORA, teacher=teacher, mlp=mlp, glnn=glnn)

    (alone,) = paired_differences(runs, "teacher")

    assert paired_differences(runs, "teacher") == [alone]
    assert alone in paired_differences(more, "teacher")
    assert paired_differences(runs, "teacher", seed=1) != [alone]


@given(st.lists(st.floats(0, 1).map(lambda v: round(v, 4)), min_size=2, max_size=6))
def test_interval_holds_the_mean_and_lies_within_the_differences(values: list[float]) -> None:
    runs = rows_of(CORA, teacher=[0.0] * len(values), glnn=values)

    (found,) = paired_differences(runs, "teacher", resamples=500)

    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9


def test_standings_by_hand() -> None:
    # means on cora: mlp 0.6, glnn 0.7, rbm 0.85, teacher 0.8; on texas: 0.8, 0.6, 0.5, 0.5
    found = standings(RUNS)

    near = pytest.approx
    # all have a mean rank of 2 (3 and 1, 2 and 2, 1 and 3) and keep their order
    assert found == [
        Standing("mlp", 2, 2, near(0.125), near(0.25), CORA, near(0.2), CORA),
        Standing("glnn", 2, 2, near(0.175), near(0.2), TEXAS, near(0.1), CORA),
        Standing("rbm", 2, 2, near(0.15), near(0.3), TEXAS, near(0.0), TEXAS),
    ]


def test_ties_share_their_rank_and_the_best_comes_first() -> None:
    runs = rows_of(CORA, mlp=[0.5], glnn=[0.5], rbm=[0.9])

    found = [(standing.method, standing.mean_rank) for standing in standings(runs)]

    assert found == [("rbm", 1), ("mlp", 2.5), ("glnn", 2.5)]


def test_no_teacher_no_gap_to_it() -> None:
    (first, *_) = standings(rows_of(CORA, mlp=[0.5], glnn=[0.6]))

    assert (first.gap_to_teacher, first.gap_to_teacher_cell) == (None, None)


def test_rounding_breaks_no_tie() -> None:
    cell = Cell("g", "transductive", "sage")
    thirds = [1 / 3, 2 / 3, 0.1]
    rows = rows_of(cell, teacher=[0.5] * 3, a=thirds, b=[0.1, 1 / 3, 2 / 3], c=[1.1 / 3] * 3)
    assert [standing.mean_rank for standing in standings(rows)] == [2.0, 2.0, 2.0]


def test_ranks_are_taken_in_cells_that_have_every_method() -> None:
    runs = [*RUNS, *rows_of(Cell("actor", "inductive", "sage"), mlp=[0.9], glnn=[0.1])]

    assert {standing.num_cells for standing in standings(runs)} == {2}
    assert standings([*rows_of(CORA, mlp=[0.5]), *rows_of(TEXAS, glnn=[0.5])]) == []


def test_committees_may_have_other_members() -> None:
    depths = {"teacher": [0.8], "teacher:sage": [0.8], "glnn": [0.5], "mlp": [0.4], "rbm": [0.6]}
    types = {"teacher": [0.8], "teacher:rgcn": [0.8], "glnn": [0.6], "mlp": [0.4], "rbm": [0.5]}
    runs = [*rows_of(CORA, **depths), *rows_of(TEXAS, **types)]
    assert [(s.method, s.mean_rank) for s in standings(runs)] == [
        ("glnn", 1.5),
        ("rbm", 1.5),
        ("mlp", 3.0),
    ]
    assert critical_difference(runs) is not None


def test_a_cell_without_the_teacher_of_others_is_not_ranked() -> None:
    runs = [*rows_of(CORA, teacher=[0.8], mlp=[0.5]), *rows_of(TEXAS, mlp=[0.5])]
    assert [standing.num_cells for standing in standings(runs)] == [1]


def test_ranks_compare_seeds_that_all_methods_have() -> None:
    # b is 0.1 behind on every common seed and alone has the third, which is easy
    runs = rows_of(CORA, teacher=[0.8, 0.8], a=[0.6, 0.6], b=[0.5, 0.5, 0.8], c=[0.4, 0.4])
    found = {s.method: s for s in standings(runs)}
    assert [found[name].mean_rank for name in "abc"] == [1, 2, 3]
    assert found["b"].gap_to_best == pytest.approx(0.1)
    assert critical_difference([*runs, *rows_of(TEXAS, teacher=[1.0], a=[1.0], b=[0.0], c=[0.5])])


def test_no_seed_in_common_no_rank() -> None:
    early, late = rows_of(CORA, a=[0.5, 0.6]), rows_of(CORA, b=[0.5, 0.6, 0.7])
    assert standings([*early, *late[2:]]) == []


def test_a_gap_below_the_teacher_is_positive_and_above_it_negative() -> None:
    found = {s.method: s for s in standings(rows_of(CORA, teacher=[0.8], mlp=[0.5], rbm=[0.9]))}

    assert found["mlp"].gap_to_teacher == pytest.approx(0.3)
    assert found["rbm"].gap_to_teacher == pytest.approx(-0.1)
    assert found["rbm"].gap_to_best == 0
    assert found["mlp"].mean_gap_to_best == pytest.approx(0.4)


def test_a_reference_that_no_cell_has_is_left_out_of_a_comparison() -> None:
    assert list(compare(rows_of(CORA, teacher=[0.8], mlp=[0.5])).differences) == ["teacher"]


def test_a_null_figure_is_left_out() -> None:
    runs = [{**row, "test_roc_auc": None} for row in rows_of(CORA, mlp=[0.5])]
    runs += [{**row, "test_roc_auc": 0.7} for row in rows_of(TEXAS, mlp=[0.5])]

    assert [summary.cell for summary in summarise(runs, "test_roc_auc")] == [TEXAS]


def changed(**columns: object) -> list[dict[str, object]]:
    return [{**RUNS[0], **columns}]


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([], "no run has a value in column 'test_accuracy'"),
        (changed(test_accuracy=None), "no run has a value"),
        (changed(test_accuracy=float("nan")), "run 0 has nan in column 'test_accuracy'"),
        (changed(teacher=None), "run 0 has no value in column 'teacher'"),
        ([{"graph": "cora"}], "run 0 has no column 'setting'"),
        ([*RUNS, RUNS[0]], "seed 0 of method 'rbm' on cora / inductive / sage is there twice"),
    ],
)
def test_refuses_a_table_that_cannot_be_compared(runs: list[dict[str, object]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        compare(runs)


def test_refuses_options_that_do_not_exist() -> None:
    with pytest.raises(OptionError, match="did you mean 'test_accuracy'"):
        compare(RUNS, "test_acuracy")
    with pytest.raises(OptionError, match="reference method 'gln': did you mean 'glnn'"):
        paired_differences(RUNS, "gln")
    with pytest.raises(OptionError, match="between 0 and 1"):
        paired_differences(RUNS, "glnn", confidence=95)
    with pytest.raises(OptionError, match="at least 100"):
        paired_differences(RUNS, "glnn", resamples=0)


def test_critical_difference_by_hand() -> None:
    # three students in four cells, always in one order
    rows = [
        {
            "graph": f"g{cell}",
            "setting": "inductive",
            "teacher": "sage",
            "seed": 0,
            "method": method,
            "test_accuracy": accuracy - 0.01 * cell,
        }
        for cell in range(4)
        for method, accuracy in (("a", 0.9), ("b", 0.8), ("c", 0.7), ("teacher", 0.1))
    ]
    found = critical_difference(rows)
    assert found is not None
    assert found.methods == ("a", "b", "c")
    assert found.ranks == (1, 2, 3)
    # Demšar (2006), table 5a: q is 2.343 for three at 5 %
    assert found.distance == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 4)), abs=1e-3)
    # Friedman's statistic is 12 * 4 / (3 * 4) * (1 + 4 + 9 - 3 * 16 / 4) = 8, of two degrees
    assert found.p_value == pytest.approx(math.exp(-4))
    assert found.groups == (("a", "b"), ("b", "c"))
    assert critical_difference([r for r in rows if r["method"] != "c"]) is None
    assert critical_difference([r for r in rows if r["graph"] == "g0"]) is None
    alike = critical_difference([{**r, "test_accuracy": 0.5} for r in rows])
    assert alike is not None
    assert alike.p_value == 1
    assert alike.groups == (("a", "b", "c"),)
    with pytest.raises(OptionError, match="alpha is 5"):
        critical_difference(rows, alpha=5)
