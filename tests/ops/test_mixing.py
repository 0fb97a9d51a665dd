"""Several rewards as one: sums and gates by hand, and where a multiplier goes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.ops.mixing import Multiplier, gate_shut, reference_scale, weighted_sum

FINITE = st.floats(-50, 50)


def test_a_scale_is_the_mean_over_all_and_the_std_within_prompts() -> None:
    mean, std = reference_scale([[1.0, 3.0], [10.0, 14.0]])
    assert (mean, std) == (7.0, pytest.approx(math.sqrt((1 + 1 + 4 + 4) / 2)))
    assert reference_scale([[1.0], [2.0], [6.0]]) == (3.0, pytest.approx(math.sqrt(7)))
    assert reference_scale([[4.0, 4.0], [5.0, 5.0]]) == (4.5, 0.0)


def test_a_weighted_sum_by_hand() -> None:
    scores = [[1.0, 2.0, 0.0], [4.0, -1.0, 0.5], [0.0, 3.0, -2.0]]
    assert weighted_sum(scores, [1.0, 0.5, -2.0]).tolist() == [3.0, -4.5, 4.25]


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=5), FINITE, FINITE)
def test_a_weighted_sum_is_linear_in_its_weights(answers: list[tuple[float, float]], a: float, b: float) -> None:
    scores = np.array(answers).T
    apart = weighted_sum(scores, [a, 0.0]) + weighted_sum(scores, [0.0, b])
    assert weighted_sum(scores, [a, b]) == pytest.approx(apart, abs=1e-6)
    assert weighted_sum(scores, [1.0, 0.0]) == pytest.approx(scores[0])


def test_the_gate_has_llama_2s_truth_table() -> None:
    """The safety reward takes over where it is below the threshold or the prompt is unsafe, at it and safe it does
    not."""
    guard, unsafe = [-2.0, -2.0, 1.0, 1.0, -1.0, -1.0], [False, True, False, True, False, True]
    assert gate_shut(guard, -1.0, unsafe).tolist() == [True, True, False, True, False, True]


@given(st.lists(st.tuples(FINITE, st.booleans()), min_size=1), FINITE, st.floats(0, 10))
def test_a_higher_threshold_never_opens_a_gate(answers: list[tuple[float, bool]], below: float, more: float) -> None:
    guard, unsafe = zip(*answers, strict=True)
    low, high = gate_shut(guard, below, unsafe), gate_shut(guard, below + more, unsafe)
    assert (high | ~low).all() and (low >= np.array(unsafe)).all()


def test_a_multiplier_by_hand() -> None:
    start = Multiplier(0.5, rate=0.2, at_least=1.0)
    assert start.update(0.0).value == pytest.approx(0.7)
    assert start.update(1.0) == start
    assert start.update(3.0).value == pytest.approx(0.1)
    assert start.update(4.0).value == 0.0
    assert start.mixed([2.0, 0.0], [-1.0, 3.0]) == pytest.approx([1.0, 1.0])
    assert Multiplier(0.0, 1.0, 1.0).mixed([2.0], [9.0]).tolist() == [2.0]
    with pytest.raises(ValueError, match="the mean score is nan"):
        start.update(math.nan)


@given(st.floats(0, 1e6), FINITE, FINITE)
def test_what_is_mixed_lies_between(value: float, total: float, score: float) -> None:
    (mixed,) = Multiplier(value, 1.0, 0.0).mixed([total], [score])
    assert min(total, score) - 1e-6 <= mixed <= max(total, score) + 1e-6


@given(st.floats(0, 10), st.floats(0.001, 1), FINITE, FINITE)
def test_a_multiplier_rises_by_its_rate_times_the_violation_and_never_below_0(
    value: float, rate: float, at_least: float, mean: float
) -> None:
    moved = Multiplier(value, rate, at_least).update(mean).value
    assert moved == pytest.approx(max(0.0, value + rate * (at_least - mean))) and moved >= 0
    assert (moved - value) * (at_least - mean) >= 0


def best_response(multiplier: Multiplier) -> float:
    """Held score x of a policy that maximises the mix of 2 - (x + 1)^2 and x, less its leash 0.1 x^2: without the
    constraint x is below -0.9."""
    share = multiplier.value / (1 + multiplier.value)
    return (share - 2 * (1 - share)) / (2 * (1 - share) + 0.2)


def settle(at_least: float, value: float) -> Multiplier:
    multiplier = Multiplier(value, 0.3, at_least)
    for _ in range(400):
        multiplier = multiplier.update(best_response(multiplier))
    return multiplier


@pytest.mark.parametrize("at_least", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("value", [0.0, 20.0])
def test_a_multiplier_settles_where_its_constraint_binds(at_least: float, value: float) -> None:
    settled = settle(at_least, value)
    assert best_response(settled) == pytest.approx(at_least, abs=1e-6) and settled.value > 0.1


def test_a_multiplier_of_a_slack_constraint_goes_to_0() -> None:
    settled = settle(-1.5, 20.0)
    assert settled.value == 0.0 and best_response(settled) == pytest.approx(-2 / 2.2)


def test_a_constraint_that_nothing_can_meet_takes_over_without_end() -> None:
    """The control of the above: no policy reaches 99, so the multiplier rises on and on."""
    assert settle(99.0, 0.0).value > 1000
