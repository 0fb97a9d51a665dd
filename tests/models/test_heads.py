from __future__ import annotations

import pytest
import torch

from prefloop.models.heads import ScalarHead, reward_head, value_head


def test_output_is_the_affine_map_by_hand() -> None:
    head = ScalarHead(3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        head.bias.fill_(0.25)
    hidden = torch.tensor([[1.0, 1.0, 2.0], [0.0, -1.0, 4.0]])
    assert head(hidden).tolist() == [1 - 2 + 1 + 0.25, 2 + 2 + 0.25]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_are_fp32_from_any_trunk_and_under_autocast(dtype: torch.dtype) -> None:
    head = reward_head(576, seed=0)
    hidden = torch.randn(7, 576, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = (hidden.double() * head.weight.double()).sum(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = head(hidden)
    assert scores.shape == (7,) and scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), exact, rtol=0, atol=1e-5)


def test_reward_head_is_drawn_with_standard_deviation_one_over_root_of_width_plus_one() -> None:
    width = 65_535
    head = reward_head(width, seed=3)
    assert head.bias.item() == 0.0
    assert head.weight.std().item() == pytest.approx((width + 1) ** -0.5, rel=0.02)
    assert abs(head.weight.mean().item()) < 4 * head.weight.std().item() / width**0.5


def test_reward_head_depends_on_its_seed_and_on_nothing_else() -> None:
    before = torch.get_rng_state()
    first = reward_head(8, seed=1).weight
    torch.randn(5)
    assert torch.equal(reward_head(8, seed=1).weight, first)
    assert not torch.equal(reward_head(8, seed=2).weight, first)
    torch.set_rng_state(before)
    reward_head(8, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_value_head_starts_at_zero_and_learns() -> None:
    head = value_head(4)
    hidden = torch.ones(2, 4)
    assert head(hidden).tolist() == [0.0, 0.0]
    head(hidden).sum().backward()
    assert head.weight.grad is not None and head.weight.grad.tolist() == [2.0] * 4
    assert head.bias.grad is not None and head.bias.grad.item() == 2.0
