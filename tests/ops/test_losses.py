import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.ops.losses import bradley_terry, ppo_policy, ppo_value, sft


def _full(value: float, n: int = 1) -> Tensor:
    return torch.full((n,), value)


def _pair(lead: Tensor, target: float = 1.0, margin: float = 0.0, weight: float = 1.0) -> Tensor:
    n = len(lead)
    return bradley_terry(
        lead, torch.zeros(n), target=_full(target, n), margin=_full(margin, n), weight=_full(weight, n)
    )


def test_sft_is_weighted_cross_entropy() -> None:
    logprobs = torch.tensor([0.5, 0.25, 0.0]).log()
    assert sft(logprobs, torch.tensor([1.0, 2.0, 0.0])).item() == pytest.approx(5 * math.log(2))


def test_bradley_terry_at_a_tie_costs_log_2_and_pulls_with_a_half() -> None:
    lead = torch.zeros(1, requires_grad=True)
    loss = _pair(lead)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert lead.grad is not None
    assert lead.grad.item() == -0.5


def test_bradley_terry_by_hand() -> None:
    lead = torch.tensor([2.0])
    assert _pair(lead).item() == pytest.approx(math.log1p(math.exp(-2)))
    assert _pair(lead, margin=1.5).item() == pytest.approx(math.log1p(math.exp(-0.5)))
    assert _pair(lead, target=0.0, margin=1.5).item() == pytest.approx(math.log1p(math.exp(3.5)))
    assert _pair(lead, weight=3.0).item() == pytest.approx(3 * math.log1p(math.exp(-2)))


@given(st.floats(-20, 20), st.floats(0, 1), st.floats(0, 3))
def test_bradley_terry_does_not_depend_on_which_side_is_called_a(lead: float, target: float, margin: float) -> None:
    one = _pair(_full(lead), target, margin).item()
    other = _pair(_full(-lead), 1 - target, margin).item()
    assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


@given(st.floats(0.01, 0.49))
def test_label_smoothing_by_target_has_its_minimum_at_the_smoothed_log_odds(smoothing: float) -> None:
    lead = torch.tensor([math.log((1 - smoothing) / smoothing)], requires_grad=True)
    _pair(lead, target=1 - smoothing).backward()
    assert lead.grad is not None
    assert lead.grad.item() == pytest.approx(0, abs=1e-6)


def test_bradley_terry_stays_finite_at_large_leads() -> None:
    lead = torch.tensor([-1e4], requires_grad=True)
    loss = _pair(lead)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert lead.grad is not None
    assert lead.grad.item() == -1


def test_first_ppo_step_has_ratio_1_and_the_policy_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantages = torch.tensor([0.5, -2.0, 100.0])
    mask = torch.tensor([True, True, False])
    loss, clip_fraction, approx_kl, ratio_max = ppo_policy(logprobs, logprobs.detach(), advantages, mask, clip=0.2)
    assert (loss.item(), clip_fraction.item(), approx_kl.item(), ratio_max.item()) == (1.5, 0, 0, 1)
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-0.5, 2.0, 0.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.5, 1.0, -1.2, 0.0),  # a good token, already likelier: stop
        (0.5, -1.0, 0.8, 0.0),  # a bad token, already rarer: stop
        (0.5, 1.0, -0.5, -0.5),  # a good token got rarer: the full pull back
        (1.5, -1.0, 1.5, 1.5),  # a bad token got likelier: the full push away
    ],
)
def test_ppo_clips_only_what_already_moved_the_right_way(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    logprobs = _full(math.log(ratio)).requires_grad_()
    result = ppo_policy(logprobs, torch.zeros(1), _full(advantage), torch.ones(1), clip=0.2)
    assert result.loss.item() == pytest.approx(loss)
    assert result.clip_fraction.item() == (gradient == 0)
    assert result.approx_kl.item() == pytest.approx(math.log(ratio) ** 2 / 2)
    assert result.ratio_max.item() == pytest.approx(ratio)
    result.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(gradient)
    assert not result.approx_kl.requires_grad
    assert not result.ratio_max.requires_grad


def test_values_outside_the_mask_are_never_read() -> None:
    nan = float("nan")
    logprobs = torch.tensor([-1.0, 500.0], requires_grad=True)
    mask = torch.tensor([True, False])
    policy = ppo_policy(logprobs, torch.tensor([-1.0, -500.0]), torch.tensor([1.0, nan]), mask, clip=0.2)
    value = ppo_value(logprobs, torch.tensor([-1.0, nan]), torch.tensor([-2.0, nan]), mask, clip=0.2)
    (policy.loss + value.loss).backward()
    assert (policy.loss.item(), value.loss.item(), policy.ratio_max.item()) == (-1, 0.5, 1)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0.0, 0.0]
    nothing = ppo_policy(logprobs, logprobs, logprobs, torch.zeros(2), clip=0.2)
    assert [figure.item() for figure in nothing] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("value", "target", "clip", "loss", "clipped", "gradient"),
    [
        (1.5, 2.0, None, 0.125, 0, -0.5),
        (1.5, 2.0, 0.2, 0.5 * 0.8**2, 1, 0.0),  # moved towards the return past the clip: stop
        (0.5, 2.0, 0.2, 0.5 * 1.5**2, 0, -1.5),  # moved away from it: the full pull back
        (1.1, 2.0, 0.2, 0.5 * 0.9**2, 0, -0.9),  # within the clip
    ],
)
def test_value_loss_takes_the_larger_error(
    value: float, target: float, clip: float | None, loss: float, clipped: int, gradient: float
) -> None:
    values = _full(value).requires_grad_()
    result = ppo_value(values, torch.ones(1), _full(target), torch.ones(1), clip=clip)
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert result.clip_fraction.item() == clipped
    result.loss.backward()
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(gradient, rel=1e-5)


@given(st.integers(0, 8), st.integers(0, 1000))
def test_splits_add_up(cut: int, seed: int) -> None:
    a, b, c = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight, target = b.abs(), torch.sigmoid(c)

    def losses(part: slice) -> Tensor:
        live = weight[part]
        return torch.stack(
            [
                sft(a[part], live),
                bradley_terry(a[part], b[part], target=target[part], margin=b[part].abs(), weight=live),
                *ppo_policy(a[part], b[part], c[part], live, clip=0.2)[:3],
                *ppo_value(a[part], b[part], c[part], live, clip=0.2),
            ]
        )

    torch.testing.assert_close(losses(slice(cut)) + losses(slice(cut, None)), losses(slice(None)))
