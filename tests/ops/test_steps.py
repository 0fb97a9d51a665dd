"""Probabilities of steps in one number, and labels from roll-outs, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.ops.steps import COMBINATIONS, combined, rollout_labels

STEPS = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_combinations_by_hand() -> None:
    steps = [0.9, 0.5, 0.8]
    found = {how: combined(steps, how) for how in COMBINATIONS}
    assert found == pytest.approx({"product": 0.36, "minimum": 0.5, "last": 0.8, "mean": 2.2 / 3})


@given(STEPS)
def test_how_combinations_stand_to_one_another(steps: list[float]) -> None:
    found = {how: combined(steps, how) for how in COMBINATIONS}
    assert 0 <= found["product"] <= found["minimum"] + 1e-12 <= found["mean"] + 2e-12 <= 1 + 3e-12
    assert found["minimum"] <= found["last"] == steps[-1]
    assert all(combined(steps[:1], how) == pytest.approx(steps[0]) for how in COMBINATIONS)


@given(STEPS)
def test_only_last_asks_for_the_order(steps: list[float]) -> None:
    for how in ("product", "minimum", "mean"):
        assert combined(sorted(steps), how) == pytest.approx(combined(steps, how))


def test_rollout_labels_by_hand() -> None:
    assert rollout_labels([4, 1, 0], 4, soft=False).tolist() == [1.0, 1.0, 0.0]
    assert rollout_labels([4, 1, 0], 4, soft=True).tolist() == [1.0, 0.25, 0.0]


@given(st.lists(st.integers(0, 8), min_size=1), st.just(8))
def test_hard_labels_are_soft_ones_above_0(counts: list[int], tried: int) -> None:
    soft = rollout_labels(counts, tried, soft=True)
    assert (rollout_labels(counts, tried, soft=False) == (soft > 0)).all() and ((soft >= 0) & (soft <= 1)).all()


@pytest.mark.parametrize(("counts", "tried"), [([5], 4), ([-1], 4), ([math.nan], 4), ([0], 0)])
def test_counts_that_cannot_be(counts: list[float], tried: int) -> None:
    with pytest.raises(ValueError, match="give 0 to all of each"):
        rollout_labels(np.array(counts), tried, soft=True)
