"""Rates, seeds and orders: pure functions of a step, with hand-computed numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.configs.shared import OptimConfig
from prefloop.engine.schedule import derived_seed, rate, take


def test_warm_up_then_decay() -> None:
    optim = OptimConfig(lr=1.0, warmup=0.2)
    assert [rate(optim, step, 10) for step in range(10)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    held = optim.model_copy(update={"decay": False})
    assert [rate(held, step, 10) for step in range(10)] == pytest.approx([1 / 3, 2 / 3, *[1.0] * 8])
    assert rate(optim.model_copy(update={"warmup": 0.0}), 0, 10) == 1.0
    assert rate(optim, 0, 1) == 1.0


@given(st.integers(1, 200), st.floats(0, 1), st.booleans())
def test_every_rate_is_above_zero_and_at_most_the_peak(total: int, warmup: float, decay: bool) -> None:
    optim = OptimConfig(lr=1.0, warmup=warmup, decay=decay)
    assert all(0 < rate(optim, step, total) <= 1 for step in range(total))


def test_derived_seeds() -> None:
    assert derived_seed(0, "a", 1) == derived_seed(0, "a", 1)
    different = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1"), (0, "a", 1, 0), ("a", 0, 1), ()]
    assert len({derived_seed(*parts) for parts in different}) == len(different)
    assert all(0 <= derived_seed(i) < 2**63 for i in range(100))


@given(st.integers(1, 20), st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_takes_are_windows_of_one_endless_sequence(size: int, start: int, count: int, seed: int) -> None:
    items = list(range(size))
    whole = take(items, 0, start + count, seed)
    assert take(items, start, count, seed) == whole[start:]
    for epoch in range((start + count) // size):
        assert sorted(whole[epoch * size : (epoch + 1) * size]) == items


def test_orders_differ_by_epoch_and_seed() -> None:
    items = list(range(30))
    orders = [take(items, 0, 30, 0), take(items, 30, 30, 0), take(items, 0, 30, 1)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
