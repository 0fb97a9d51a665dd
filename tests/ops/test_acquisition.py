"""Which comparisons a label would teach most."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from prefloop.ops.acquisition import near_miss, preference_variance

number = st.floats(-30, 30)
many = st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(number, min_size=n, max_size=n), min_size=2, max_size=5))


def test_two_members_by_hand() -> None:
    # preferences 0.75 and 0.25; 0.75 twice; sure of either; sure of one
    third = math.log(3)
    leads = [[third, third, 50, 50], [-third, third, -50, 50]]
    assert preference_variance(leads) == pytest.approx([0.0625, 0, 0.25, 0])
    assert near_miss(leads) == pytest.approx([1, 0.75, 1, 0])
    assert near_miss([[0.0, third]]) == pytest.approx([1, 0.75])


@given(many)
def test_near_misses_are_own_doubt_and_disagreement(leads: list[list[float]]) -> None:
    variance, near = preference_variance(leads), near_miss(leads)
    chances = expit(np.array(leads))
    assert near == pytest.approx((4 * chances * (1 - chances)).mean(axis=0) + 4 * variance)
    assert ((variance >= 0) & (variance <= 0.25 + 1e-12)).all() and (near <= 1 + 1e-12).all()
    turned, shuffled = -np.array(leads), leads[::-1]
    for other in (turned, shuffled):
        assert preference_variance(other) == pytest.approx(variance)
        assert near_miss(other) == pytest.approx(near)


@given(number, st.integers(2, 5))
def test_members_that_say_the_same_do_not_disagree(lead: float, count: int) -> None:
    assert preference_variance([[lead]] * count) == pytest.approx([0], abs=1e-12)
    assert near_miss([[lead]] * count) == pytest.approx(near_miss([[lead]]))


@pytest.mark.parametrize("leads", [[[1.0]], [1.0, 2.0], [[math.nan], [1.0]], np.zeros((0, 3))])
def test_one_member_has_nobody_to_disagree_with(leads: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="of 2 members at least"):
        preference_variance(leads)


def test_nobody_knows_no_near_miss() -> None:
    with pytest.raises(ValueError, match="of 1 members at least"):
        near_miss(np.zeros((0, 3)))
