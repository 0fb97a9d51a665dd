from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefloop.ops.advantages import discounted_returns, gae, group_advantages, leave_one_out, overlong_penalty

rows = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=12)
fraction = st.floats(0, 1)


def test_discounted_returns_by_hand() -> None:
    assert discounted_returns(torch.tensor([1.0, 0.0, 4.0]), gamma=0.5).tolist() == [2.0, 2.0, 4.0]


def test_gae_by_hand() -> None:
    rewards, values = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25], requires_grad=True)
    advantages, returns = gae(rewards, values, gamma=0.5, lam=0.5)
    # delta_1 = 1 - 0.25, delta_0 = 0 + 0.5 * 0.25 - 0.5
    assert advantages.tolist() == [-0.375 + 0.25 * 0.75, 0.75]
    assert returns.tolist() == [0.3125, 1.0]
    assert not returns.requires_grad


@given(rows, fraction, fraction)
def test_gae_equals_the_double_sum(pairs: list[tuple[float, float]], gamma: float, lam: float) -> None:
    rewards, values = torch.tensor(pairs, dtype=torch.float64).T
    length, following = len(pairs), [*values.tolist()[1:], 0.0]
    delta = [rewards[t].item() + gamma * following[t] - values[t].item() for t in range(length)]
    brute = [sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, length)) for t in range(length)]
    advantages, returns = gae(rewards, values, gamma=gamma, lam=lam)
    assert advantages.tolist() == pytest.approx(brute, abs=1e-9)
    assert returns.tolist() == pytest.approx((advantages + values).tolist())


@given(rows, fraction)
def test_lambda_1_is_monte_carlo_and_lambda_0_is_one_step(pairs: list[tuple[float, float]], gamma: float) -> None:
    rewards, values = torch.tensor(pairs, dtype=torch.float64).T
    _, returns = gae(rewards, values, gamma=gamma, lam=1.0)
    torch.testing.assert_close(returns, discounted_returns(rewards, gamma=gamma))
    advantages, _ = gae(rewards, values, gamma=gamma, lam=0.0)
    following = torch.cat([values[1:], torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(advantages, rewards + gamma * following - values)


def test_float32_does_not_drift_over_a_long_response() -> None:
    rewards = torch.full((4096,), 0.1)
    returns = discounted_returns(rewards, gamma=1.0)
    assert returns[0].item() == pytest.approx(4096 * rewards[0].item(), rel=1e-7)


def test_an_empty_response_has_no_advantages() -> None:
    advantages, returns = gae(torch.zeros(0), torch.zeros(0), gamma=1.0, lam=0.95)
    assert advantages.shape == returns.shape == (0,)


def test_leave_one_out_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    assert leave_one_out(scores).tolist() == [[4.0, 3.5, 1.5], [1.5, 1.5, 0.0]]


@given(st.integers(1, 4), st.integers(2, 6), st.floats(-9, 9), st.integers(0, 99))
def test_leave_one_out_is_the_group_mean_scaled_and_blind_to_what_all_share(
    prompts: int, group: int, shared: float, seed: int
) -> None:
    scores = torch.randn(prompts, group, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left = scores - leave_one_out(scores)
    torch.testing.assert_close(left, (scores - scores.mean(dim=1, keepdim=True)) * group / (group - 1))
    torch.testing.assert_close(left, (scores + shared) - leave_one_out(scores + shared))


@pytest.mark.parametrize(
    ("centre", "scale", "expected"),
    [
        ("group", "group", (-1 / (2**0.5 + 1e-4), 1 / (2**0.5 + 1e-4), 0.0, 0.0)),  # the unbiased std of 0 and 2
        ("group", "none", (-1.0, 1.0, 0.0, 0.0)),
        ("others", "none", (-2.0, 2.0, 0.0, 0.0)),
        ("batch", "batch", tuple((r - 3) / (6**0.5 + 1e-4) for r in (0, 2, 5, 5))),
        ("group", "batch", tuple(d / (6**0.5 + 1e-4) for d in (-1, 1, 0, 0))),
        ("none", "none", (0.0, 2.0, 5.0, 5.0)),
    ],
)
def test_group_advantages_by_hand(centre: Any, scale: Any, expected: tuple[float, ...]) -> None:
    scores = torch.tensor([[0.0, 2.0], [5.0, 5.0]], dtype=torch.float64)
    found = group_advantages(scores, centre=centre, scale=scale)
    assert found.flatten().tolist() == pytest.approx(expected)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.sampled_from(["group", "others"]))
def test_a_group_that_scores_alike_teaches_nothing_and_the_batch_as_centre_would(row: list[float], centre: Any) -> None:
    flat = torch.full((1, len(row)), row[0], dtype=torch.float64)
    scores = torch.cat([flat, torch.tensor([row], dtype=torch.float64) + 20])
    for scale in ("none", "batch"):
        assert group_advantages(scores, centre=centre, scale=scale)[0].abs().max() < 1e-12
    assert group_advantages(scores, centre="batch", scale="none")[0].abs().max() > 1


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, 0.0), (16_384, 0.0), (17_408, -0.25), (18_432, -0.5), (20_480, -1.0), (30_000, -1.0)],
)
def test_overlong_penalty_has_dapos_numbers(length: int, expected: float) -> None:
    assert overlong_penalty(length, 20_480, 4_096) == pytest.approx(expected)
    assert overlong_penalty(length, 20_480, 0) == (-1.0 if length > 20_480 else 0.0)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_the_groups_mean_as_baseline_is_leave_one_out_in_small(scores: list[float]) -> None:
    """(r - mean) G / (G - 1) = r - mean of the others: Dr. GRPO's advantage times G / (G - 1) is RLOO's."""
    row = torch.tensor([scores], dtype=torch.float64)
    scaled = (row - row.mean()) * len(scores) / (len(scores) - 1)
    assert scaled.flatten().tolist() == pytest.approx((row - leave_one_out(row)).flatten().tolist(), abs=1e-9)
