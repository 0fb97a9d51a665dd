import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.ops.losses import binary, bradley_terry, centring, plackett_luce, ppo_policy, ppo_value, sft

TRL = Path(sys.prefix).with_name(".venv-trl") / "bin" / "python"
THEIRS = """
import json, sys, types
from collections import defaultdict
import torch
from trl.trainer.reward_trainer import RewardTrainer

found = []
for case in json.load(sys.stdin):
    scores = torch.tensor(case["chosen"] + case["rejected"], dtype=torch.float64, requires_grad=True)
    trainer = types.SimpleNamespace(
        model=types.SimpleNamespace(training=False),
        args=types.SimpleNamespace(center_rewards_coefficient=case["coefficient"]),
        accelerator=types.SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )
    inputs = {"margin": torch.tensor(case["margin"], dtype=torch.float64)} if case["margin"] else {}
    loss = RewardTrainer.compute_loss(trainer, lambda **_: types.SimpleNamespace(logits=scores[:, None]), inputs)
    loss.backward()
    found.append([loss.item(), *scores.grad.tolist()])
print(json.dumps(found))
"""


def _full(value: float, n: int = 1) -> Tensor:
    return torch.full((n,), value)


def _pair(
    lead: Tensor,
    target: float = 1.0,
    margin: float = 0.0,
    weight: float = 1.0,
    smoothing: float = 0.0,
    floor: float = 0,
) -> Tensor:
    n = len(lead)
    return bradley_terry(
        lead,
        torch.zeros(n),
        target=_full(target, n),
        margin=_full(margin, n),
        weight=_full(weight, n),
        label_smoothing=smoothing,
        floor=floor,
    )


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _ranked(scores: Tensor, *ranks: int) -> Tensor:
    """Plackett-Luce of one ranking of weight 1."""
    m = len(ranks)
    return plackett_luce(scores, rank=torch.tensor(ranks), ranking=torch.zeros(m), weight=torch.ones(m))


def test_sft_is_weighted_cross_entropy() -> None:
    logprobs = torch.tensor([0.5, 0.25, 0.0]).log()
    assert sft(logprobs, torch.tensor([1.0, 2.0, 0.0])).item() == pytest.approx(5 * math.log(2))


def test_binary_by_hand_and_as_bradley_terry_against_nothing() -> None:
    logits, label = torch.tensor([math.log(3), 0.0, 9.0]), torch.tensor([1.0, 0.25, 0.5])
    weight = torch.tensor([2.0, 1.0, 0.0])
    found = binary(logits, label, weight).item()
    assert found == pytest.approx(2 * math.log(4 / 3) + math.log(2))
    zeros = torch.zeros(3)
    pairs = bradley_terry(logits, zeros, target=label, margin=zeros, weight=weight)
    assert found == pytest.approx(pairs.item())


@given(st.floats(0.01, 0.99))
def test_binary_has_its_minimum_at_the_labels_log_odds(label: float) -> None:
    logit = torch.tensor([math.log(label / (1 - label))], requires_grad=True)
    binary(logit, _full(label), _full(1.0)).backward()
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(0, abs=1e-6)


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


@given(st.floats(0.01, 0.49))
def test_label_smoothing_has_its_minimum_at_the_smoothed_log_odds_and_leaves_ties(smoothing: float) -> None:
    for target, side in ((1.0, 1), (0.0, -1), (0.5, 0)):
        lead = torch.tensor([side * math.log((1 - smoothing) / smoothing)], requires_grad=True)
        _pair(lead, target, smoothing=smoothing).backward()
        assert lead.grad is not None
        assert lead.grad.item() == pytest.approx(0, abs=1e-6)


def test_smoothing_and_floor_by_hand() -> None:
    """P = sigmoid(log 3) = 3/4 of the answer that was preferred."""
    lead = torch.tensor([math.log(3)])
    assert _pair(lead, smoothing=0.1).item() == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25))
    assert _pair(lead, floor=0.1).item() == pytest.approx(-math.log(0.9 * 0.75 + 0.05))
    assert _pair(lead, target=0.25, floor=0.1).item() == pytest.approx(
        -0.25 * math.log(0.9 * 0.75 + 0.05) - 0.75 * math.log(0.9 * 0.25 + 0.05)
    )
    assert _pair(lead + 2, margin=2.0, floor=0.1).item() == pytest.approx(-math.log(0.9 * 0.75 + 0.05))


@given(st.floats(-30, 30), st.floats(0, 1), st.floats(0, 3))
def test_a_floor_bounds_the_loss_and_its_absence_changes_nothing(lead: float, target: float, margin: float) -> None:
    plain, none = _pair(_full(lead), target, margin), _pair(_full(lead), target, margin, smoothing=0.0, floor=0.0)
    assert plain.item() == none.item()
    floored = _pair(_full(lead), target, margin, floor=0.1).item()
    assert floored <= min(-math.log(0.05), plain.item() - math.log(0.9)) + 1e-5


def test_without_a_floor_a_wrong_label_costs_without_bound_and_pulls_with_all_its_weight() -> None:
    for floor, loss, pull in ((0.0, 1e4, -1.0), (0.1, -math.log(0.05), 0.0)):
        lead = torch.tensor([-1e4], requires_grad=True)
        made = _pair(lead, floor=floor)
        made.backward()
        assert made.item() == pytest.approx(loss)
        assert lead.grad is not None
        assert lead.grad.item() == pull


def test_centring_by_hand() -> None:
    a, b = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([3.0, -2.0, 1.0])
    assert centring(a, b, torch.tensor([1.0, 1.0, 0.5])).item() == 16 + 0 + 18


def test_differences_leave_the_mean_open_and_centring_closes_it() -> None:
    """Negative control: without it the scores' mean has no gradient."""
    for coef, mean_grad in ((0.0, 0.0), (0.01, 0.01 * 2 * 2 * (3.0 + 2.0))):
        scores = torch.tensor([3.0, 2.0], requires_grad=True)
        one = torch.ones(1)
        loss = bradley_terry(scores[:1], scores[1:], target=one, margin=0 * one, weight=one)
        (loss + coef * centring(scores[:1], scores[1:], one)).backward()
        assert scores.grad is not None
        assert scores.grad.sum().item() == pytest.approx(mean_grad, abs=1e-6)


def test_plackett_luce_by_hand() -> None:
    """exp(s) = 1, 2, 3, 4: the second best is chosen among 1, 2 and 3 once 4 is gone."""
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0]).log()
    assert _ranked(scores, 3, 2, 1, 0).item() == pytest.approx(-math.log(4 / 10 * 3 / 6 * 2 / 3))
    assert _ranked(scores, 0, 1, 2, 3).item() == pytest.approx(-math.log(1 / 10 * 2 / 9 * 3 / 7))
    assert _ranked(scores, 10, 7, 2, 0).item() == _ranked(scores, 3, 2, 1, 0).item()
    assert _ranked(scores, 1, 1, 1, 0).item() == pytest.approx(-math.log(4 / 10 * 1 / 6 * 2 / 6 * 3 / 6))
    assert _ranked(scores, 2, 1, 1, 0).item() == pytest.approx(-math.log(4 / 10 * 2 / 6 * 3 / 6))


@given(st.integers(0, 1000), st.integers(1, 5))
def test_the_likelihoods_of_all_rankings_add_up_to_1(seed: int, count: int) -> None:
    scores = _random(count, seed=seed)
    total = sum(math.exp(-_ranked(scores, *ranks).item()) for ranks in itertools.permutations(range(count)))
    assert total == pytest.approx(1)


@given(st.floats(-20, 20))
def test_plackett_luce_of_two_is_bradley_terry_and_of_two_that_tie_twice_its_tie(lead: float) -> None:
    scores = torch.tensor([lead, 0.0])
    assert _ranked(scores, 0, 1).item() == pytest.approx(_pair(_full(lead)).item(), abs=1e-6)
    assert _ranked(scores, 1, 0).item() == pytest.approx(_pair(_full(lead), 0.0).item(), abs=1e-6)
    assert _ranked(scores, 0, 0).item() == pytest.approx(2 * _pair(_full(lead), 0.5).item(), abs=1e-5)


@given(st.integers(0, 1000), st.floats(-50, 50))
def test_plackett_luce_reads_neither_order_nor_level_nor_worse_than_last(seed: int, level: float) -> None:
    scores, order = _random(5, seed=seed), torch.randperm(5, generator=torch.Generator().manual_seed(seed)).tolist()
    ranks = (2, 0, 3, 1, 1)
    loss = _ranked(scores, *ranks).item()
    assert _ranked(scores[order], *(ranks[i] for i in order)).item() == pytest.approx(loss)
    assert _ranked(scores + level, *ranks).item() == pytest.approx(loss)
    assert _ranked(scores[:1], 7).item() == 0


def test_rankings_do_not_mix_and_weights_multiply() -> None:
    scores = _random(5)
    mixed = plackett_luce(
        scores[[0, 3, 1, 4, 2]],
        rank=torch.tensor([1, 1, 0, 0, 2]),
        ranking=torch.tensor([0, 1, 0, 1, 0]),
        weight=torch.tensor([2.0, 0.5, 2.0, 0.5, 2.0]),
    )
    assert mixed.item() == pytest.approx(
        2 * _ranked(scores[:3], 1, 0, 2).item() + 0.5 * _ranked(scores[3:], 1, 0).item()
    )


@pytest.mark.parametrize("kind", ["pairs", "smoothed", "floored", "centred", "ranked"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    a, b = _random(2, 6).requires_grad_()
    target, margin, weight = torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rank, ranking = torch.tensor([0, 2, 1, 1, 0, 1]), torch.tensor([0, 0, 0, 0, 1, 1])

    def loss(a: Tensor, b: Tensor) -> Tensor:
        if kind == "ranked":
            return plackett_luce(a, rank=rank, ranking=ranking, weight=weight)
        if kind == "centred":
            return centring(a, b, weight)
        noise = {"smoothed": {"label_smoothing": 0.1}, "floored": {"floor": 0.1}}.get(kind, {})
        return bradley_terry(a, b, target=target, margin=margin, weight=weight, **noise)

    assert torch.autograd.gradcheck(loss, (a, b))


@pytest.mark.skipif(not TRL.exists(), reason=f"no TRL to compare with at {TRL}: `make bench` installs it")
def test_pairs_cost_what_they_do_in_trl() -> None:
    """Loss and gradient, with and without margins and centring."""
    cases, ours = [], []
    for seed, (margins, coefficient) in enumerate(itertools.product((True, False), (0.01, None))):
        scores, margin = _random(2, 7, seed=seed).mul(2).requires_grad_(), _random(7, seed=9).abs() * margins
        cases.append({"chosen": scores[0].tolist(), "rejected": scores[1].tolist(), "coefficient": coefficient})
        cases[-1] |= {"margin": margin.tolist() if margins else None}
        one = torch.ones(7, dtype=torch.float64)
        loss = bradley_terry(*scores, target=one, margin=margin, weight=one) / 7
        loss = loss + (coefficient or 0.0) * centring(*scores, one) / 7
        loss.backward()
        assert scores.grad is not None
        ours.append([loss.item(), *scores.grad.flatten().tolist()])
    done = subprocess.run([TRL, "-c", THEIRS], input=json.dumps(cases), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(ours, json.loads(done.stdout), rtol=1e-9)


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
                bradley_terry(a[part], b[part], target=target[part], margin=live, weight=live, floor=0.1),
                centring(a[part], b[part], live),
                *ppo_policy(a[part], b[part], c[part], live, clip=0.2)[:3],
                *ppo_value(a[part], b[part], c[part], live, clip=0.2),
            ]
        )

    torch.testing.assert_close(losses(slice(cut)) + losses(slice(cut, None)), losses(slice(None)))
