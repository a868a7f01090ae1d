"""The fitted temperature, on logits whose temperature is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from limbeck.errors import InputError
from limbeck.evaluation.calibration import TEMPERATURES, fit_temperature
from limbeck.evaluation.metrics import accuracy, expected_calibration_error


@pytest.fixture(scope="module")
def calibrated() -> tuple[Tensor, Tensor]:
    """Logits whose labels were drawn from their own probabilities."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 4, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).view(-1)


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0, 10.0])
def test_undoes_a_factor(calibrated: tuple[Tensor, Tensor], factor: float) -> None:
    logits, labels = calibrated

    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.03)


def test_lowers_the_calibration_error_and_keeps_the_answers(
    calibrated: tuple[Tensor, Tensor],
) -> None:
    logits, labels = calibrated[0] * 4, calibrated[1]
    scaled = logits / fit_temperature(logits, labels)

    assert expected_calibration_error(logits, labels) > 0.1
    assert expected_calibration_error(scaled, labels) < 0.02
    assert accuracy(scaled, labels) == accuracy(logits, labels)


def test_two_nodes_by_hand() -> None:
    # two of three nodes are right: probability 2/3 is best, logit gap ln 2, given was ln 2 * 5
    logits = torch.tensor([[5 * math.log(2), 0.0]] * 3)

    assert fit_temperature(logits, torch.tensor([0, 0, 1])) == pytest.approx(5, rel=1e-4)


@given(st.integers(0, 10_000), st.floats(-1.5, 1.5))
def test_never_raises_the_loss(seed: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(20, 3, generator=generator, dtype=torch.float64) * math.exp(shift)
    labels = torch.randint(3, (20,), generator=generator)

    temperature = fit_temperature(logits, labels)

    assert TEMPERATURES[0] <= temperature <= TEMPERATURES[1] * (1 + 1e-9)
    assert cross_entropy(logits / temperature, labels) <= cross_entropy(logits, labels)


def test_all_right_says_nothing_about_the_temperature() -> None:
    assert fit_temperature(0.1 * torch.eye(3), torch.arange(3)) == 1.0


def test_all_wrong_gives_the_highest_temperature() -> None:
    found = fit_temperature(torch.eye(3), torch.tensor([1, 2, 0]))

    assert found == pytest.approx(TEMPERATURES[1])


def test_logits_that_no_temperature_changes_keep_theirs() -> None:
    assert fit_temperature(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])) == 1.0


def test_refuses_unlabelled_nodes() -> None:
    with pytest.raises(InputError, match="score labelled nodes only"):
        fit_temperature(torch.eye(2), torch.tensor([0, -1]))


def test_temperature_of_several_labels_is_that_of_their_questions() -> None:
    torch.manual_seed(0)
    labels = (torch.rand(400, 3) < torch.tensor([0.2, 0.5, 0.7])).float()
    honest = torch.tensor([0.2, 0.5, 0.7]).logit().expand(400, 3)
    assert fit_temperature(4 * honest, labels) == pytest.approx(4.0, rel=0.25)
