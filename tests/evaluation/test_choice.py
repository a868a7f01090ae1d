"""The rule of one standard error and the front, on figures worked out by hand."""

import math

import numpy as np
import pytest

from limbeck.errors import OptionError
from limbeck.evaluation.choice import Candidate, Limits, choose, gap_to, on_front, standard_error
from limbeck.methods import make_method


def candidate(correct, *, width=8, us=10.0, num_bytes=100, agreement=0.9) -> Candidate:
    method = make_method("glnn", hidden_channels=width)
    return Candidate(method, np.array(correct, dtype=bool), agreement, us, num_bytes)


def answers(*wrong: int, nodes: int = 16) -> list[bool]:
    return [node not in wrong for node in range(nodes)]


def test_standard_error_by_hand():
    # one seed: the variance of 0, 0, 1, 1 with n − 1 is 1/3, over four nodes
    assert standard_error(np.array([[0.0, 0.0, 1.0, 1.0]])) == pytest.approx(math.sqrt(1 / 12))
    # two seeds: means by node 1/2, 1/2 and by seed 0, 1; variances 0 and 1/2
    assert standard_error(np.array([[0.0, 0.0], [1.0, 1.0]])) == pytest.approx(math.sqrt(1 / 4))
    # the nodes' part and the seeds' part add up: variances 1/8 and 1/8, over two each
    both = np.array([[0.0, 0.0], [0.0, 1.0]])
    assert standard_error(both) == pytest.approx(math.sqrt(1 / 16 + 1 / 16))
    assert standard_error(np.zeros((1, 1))) == 0


def test_the_difference_is_paired():
    best, other = candidate([answers(0)]), candidate([answers(0, 1)])
    gap = gap_to(best, other)
    # fifteen nodes differ by 0 and one by 1: variance 1/16, error 1/16
    assert gap.behind == pytest.approx(1 / 16)
    assert gap.error == pytest.approx(1 / 16)
    assert gap.within_one_error
    # two nodes lost and none won: 2/16, error sqrt(28/240)/4 = 0.0854
    far = gap_to(best, candidate([answers(0, 1, 2)]))
    assert far.behind == pytest.approx(1 / 8)
    assert far.error == pytest.approx(math.sqrt(28 / 240) / 4)
    assert not far.within_one_error


def test_the_smallest_within_one_error_is_taken():
    best = candidate([answers()], width=512, num_bytes=900)
    near = candidate([answers(3)], width=64, num_bytes=300)
    nearer_but_larger = candidate([answers(3)], width=128, num_bytes=500)
    far = candidate([answers(3, 4, 5)], width=8, num_bytes=100)
    choice = choose([far, nearer_but_larger, best, near], Limits())
    assert choice.best is best
    assert choice.chosen is near
    assert choice.candidates[0] is best
    assert choice.candidates[-1] is far
    rows = choice.rows()
    assert [row["chosen"] for row in rows].count(True) == 1
    assert "6.25 points behind" in choice.reason
    assert "300 bytes instead of 900" in choice.reason


def test_the_best_is_taken_if_nothing_smaller_is_near():
    best, far = candidate([answers()]), candidate([answers(1, 2, 3)], num_bytes=10)
    assert choose([far, best], Limits()).chosen is best


@pytest.mark.parametrize(
    "limits", [Limits(budget_us=20), Limits(max_bytes=300), Limits(min_agreement=0.95)]
)
def test_what_exceeds_a_limit_is_neither_chosen_nor_the_yardstick(limits):
    over = candidate([answers()], us=20.1, num_bytes=301, agreement=0.94)
    within = candidate([answers(1, 2, 3)], us=20.0, num_bytes=300, agreement=0.95)
    choice = choose([over, within], limits)
    assert choice.best is choice.chosen is within
    assert [row["meets_limits"] for row in choice.rows()] == [False, True]


def test_without_a_candidate_the_nearest_is_named():
    slow = candidate([answers()], width=64, us=40.0)
    nearer = candidate([answers(1)], width=16, us=30.0, agreement=0.8)
    with pytest.raises(OptionError) as error:
        choose([slow, nearer], Limits(budget_us=20), "'toy'")
    text = str(error.value)
    assert "glnn with 16 hidden channels" in text
    assert "takes 30.0 µs" in text
    assert "agrees" not in text  # it is no limit here
    assert text.count(".") - text.count("30.0") == 1  # one sentence


def test_the_front():
    best = candidate([answers()], us=30, num_bytes=300)
    quick = candidate([answers(1)], us=10, num_bytes=100)
    worse = candidate([answers(1, 2)], us=10, num_bytes=100)
    loyal = candidate([answers(1, 2)], us=10, num_bytes=100, agreement=0.99)
    everyone = [best, quick, worse, loyal]
    assert [on_front(each, everyone) for each in everyone] == [True, True, False, True]
