import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefloop.ops.advantages import discounted_returns, gae, group_normalised, leave_one_out

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


def test_group_normalised_by_hand() -> None:
    scores = torch.tensor([[0.0, 2.0], [5.0, 5.0]], dtype=torch.float64)
    scale = 2**0.5 + 1e-4  # the unbiased std of 0 and 2
    assert group_normalised(scores).flatten().tolist() == pytest.approx([-1 / scale, 1 / scale, 0.0, 0.0])


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_the_groups_mean_as_baseline_is_leave_one_out_in_small(scores: list[float]) -> None:
    """(r - mean) G / (G - 1) = r - mean of the others: Dr. GRPO's advantage times G / (G - 1) is RLOO's."""
    row = torch.tensor([scores], dtype=torch.float64)
    scaled = (row - row.mean()) * len(scores) / (len(scores) - 1)
    assert scaled.flatten().tolist() == pytest.approx((row - leave_one_out(row)).flatten().tolist(), abs=1e-9)
