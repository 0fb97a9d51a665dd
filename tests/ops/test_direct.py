"""Direct losses: numbers of their papers by hand, and identities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefloop.ops.direct import (
    Divergence,
    apo_down,
    apo_zero,
    divergence_score,
    exo,
    hinge,
    ipo,
    kto,
    kto_baseline,
    log_odds,
    nca,
    over_labels,
    robust,
    sppo,
)
from prefloop.ops.losses import bradley_terry

FINITE = st.floats(-20, 20)


def full(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def settled(loss: Callable[[Tensor], Tensor], steps: int, rate: float = 0.1) -> float:
    """Log-odds of the first of two actions after gradient descent on a loss of log-ratios [2] from a uniform start."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        (grad,) = torch.autograd.grad(loss(torch.log_softmax(logits, 0) + math.log(2)), logits)
        with torch.no_grad():
            logits -= rate * grad
    first, second = logits.tolist()
    return float(first - second)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_ipo_stops_at_its_optimum_where_dpo_goes_on_to_1(tau: float) -> None:
    """Two actions, one always preferred, uniform reference: IPO's policy is sigmoid(0.5 / tau), DPO's 1 for every tau
    (Azar et al. 2023, section 5)."""
    lead = settled(lambda x: ipo(x[:1] - x[1:], tau).sum(), 200)
    assert sigmoid(lead) == pytest.approx(sigmoid(0.5 / tau), abs=1e-9)
    found = [settled(lambda x: -logsigmoid(tau * (x[0] - x[1])), steps, 4 / tau**2) for steps in (50, 500)]
    assert 0.5 / tau < found[0] < found[1] and sigmoid(found[1]) > 0.99


@given(st.floats(0, 1), st.floats(0.05, 5))
def test_ipo_of_a_soft_label_has_its_minimum_where_the_paper_has_it(target: float, tau: float) -> None:
    lead = full((target - 0.5) / tau).requires_grad_()
    over_labels(lambda a, b: ipo(a - b, tau), lead, full(0.0), full(target), full(2.0)).backward()
    assert lead.grad is not None and lead.grad.item() == pytest.approx(0, abs=1e-9)


def test_ipo_by_hand() -> None:
    """h = 3 - 1, tau = 0.25: (2 - 2)^2, and the other way (-2 - 2)^2."""
    assert ipo(full(2.0, -2.0), 0.25).tolist() == [0.0, 16.0]


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_conservative_dpo_has_no_gradient_where_it_believes_the_label_as_much_as_it_should(smoothing: float) -> None:
    """At sigmoid(d) = 1 - eps; plain DPO's gradient there is -eps."""
    found = []
    for eps in (smoothing, 0.0):
        lead = full(math.log((1 - smoothing) / smoothing)).requires_grad_()
        one, nothing = full(1.0), full(0.0)
        bradley_terry(lead, nothing, target=one, margin=nothing, weight=one, label_smoothing=eps).backward()
        assert lead.grad is not None
        found.append(lead.grad.item())
    assert found == pytest.approx([0.0, -smoothing], abs=1e-12)


@given(FINITE, st.floats(0.01, 0.45))
def test_robust_is_right_on_average_over_flipped_labels_and_conservative_is_not(lead: float, flips: float) -> None:
    d = full(lead)
    mean = (1 - flips) * robust(d, flips) + flips * robust(-d, flips)
    assert mean.item() == pytest.approx(-logsigmoid(d).item(), abs=1e-9)
    smoothed = (1 - flips) * -logsigmoid(d) + flips * -logsigmoid(-d)
    biased = (1 - flips) * smoothed + flips * (-(1 - flips) * logsigmoid(-d) - flips * logsigmoid(d))
    assert biased.item() - smoothed.item() == pytest.approx(flips * (1 - 2 * flips) * lead, abs=1e-9)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=2), st.floats(0, 0.3), st.integers(1, 30), st.integers(1, 30))
def test_a_length_that_labels_favour_is_not_learned(rewards: list[float], alpha: float, n: int, m: int) -> None:
    """R-DPO: of labels by Bradley-Terry of r the loss has its minimum at pi ~ pi_ref exp((r - alpha |y|) / beta)."""
    beta, length = 0.5, full(n, m)
    ratio = ((full(*rewards) - alpha * length) / beta).requires_grad_()
    scores = beta * ratio + alpha * length
    target, nothing, one = full(sigmoid(rewards[0] - rewards[1])), full(0.0), full(1.0)
    bradley_terry(scores[:1], scores[1:], target=target, margin=nothing, weight=one).backward()
    assert ratio.grad is not None and ratio.grad.tolist() == pytest.approx([0, 0], abs=1e-9)


@given(FINITE, st.floats(0.01, 0.99))
def test_exo_is_the_kl_from_the_labels_and_0_only_there(lead: float, target: float) -> None:
    q = sigmoid(lead)
    divergence = sum(x * math.log(x / p) for x, p in ((q, target), (1 - q, 1 - target)) if x > 0)
    assert exo(full(lead), full(target)).item() == pytest.approx(divergence, abs=1e-6)
    assert exo(full(math.log(target / (1 - target))), full(target)).item() == pytest.approx(0, abs=1e-9)


def test_hinge_by_hand() -> None:
    assert hinge(full(-1.0, 0.25, 1.0, 3.0)).tolist() == [2.0, 0.75, 0.0, 0.0]


def test_anchored_and_contrastive_losses_by_hand() -> None:
    """Rewards log 3 and -log 4, so that s(r_w) = 3/4, s(r_l) = 1/5, s(r_w - r_l) = 12/13."""
    won, lost = full(math.log(3)), full(-math.log(4))
    assert apo_zero(won, lost).item() == pytest.approx(1 / 4 + 1 / 5)
    assert apo_down(won, lost).item() == pytest.approx(3 / 4 + 1 / 13)
    assert nca(won, lost).item() == pytest.approx(-math.log(3 / 4) - 0.5 * math.log(1 / 4) - 0.5 * math.log(4 / 5))


@pytest.mark.parametrize(("loss", "signs"), [(nca, (1, -1)), (apo_zero, (1, -1)), (apo_down, (-1, -1))])
def test_where_losses_pull_both_answers_of_a_policy_at_its_start(
    loss: Callable[[Tensor, Tensor], Tensor], signs: tuple[int, int]
) -> None:
    """The chosen up and the rejected down, but under apo_down both down. Plain DPO says of neither where it goes."""
    rewards = full(0.0, -0.5).requires_grad_()
    loss(rewards[:1], rewards[1:]).sum().backward()
    assert rewards.grad is not None
    assert tuple(-int(math.copysign(1, g)) for g in rewards.grad.tolist()) == signs


@given(st.floats(0, 1), st.floats(0.05, 5))
def test_sppo_has_its_minimum_at_the_labels_lead_over_a_half(target: float, beta: float) -> None:
    aim = (target - 0.5) / beta
    assert sppo(full(aim), full(-aim), full(target), beta).item() == 0
    assert sppo(full(1.0), full(2.0), full(1.0), 0.5).item() == (1 - 1) ** 2 + (2 + 1) ** 2


def test_log_odds_by_hand_and_at_probability_1() -> None:
    """p = 1/2 and 1/4: odds 1 and 1/3, so ORPO's term is -log s(log 3) = log(4/3)."""
    found = log_odds(full(math.log(0.5), math.log(0.25)))
    assert found.tolist() == pytest.approx([0.0, -math.log(3)])
    assert -logsigmoid(found[0] - found[1]).item() == pytest.approx(math.log(4 / 3))
    assert math.isfinite(log_odds(full(0.0)).item())


F = {
    "reverse_kl": lambda u: u * math.log(u),
    "forward_kl": lambda u: -math.log(u),
    "jensen_shannon": lambda u: u * math.log(u) - (u + 1) * math.log((u + 1) / 2),
    "alpha": lambda u: (u ** (1 - 0.3) - (1 - 0.3) * u - 0.3) / (0.3 * (0.3 - 1)),
}


@pytest.mark.parametrize("kind", get_args(Divergence))
@given(st.floats(-3, 3), st.floats(-3, 3))
def test_scores_are_the_derivatives_of_the_divergences(kind: Divergence, x: float, y: float) -> None:
    """Of f with D(pi || ref) = E_ref f(u), by finite differences; constants fall out of a lead."""

    def slope(at: float) -> float:
        u, h = math.exp(at), 1e-5
        return float((F[kind](u + h * u) - F[kind](u - h * u)) / (2 * h * u))

    scores = divergence_score(full(x, y), kind, 0.3)
    assert (scores[0] - scores[1]).item() == pytest.approx(slope(x) - slope(y), abs=1e-4, rel=1e-4)


@given(st.floats(-4, 4))
def test_alpha_is_reverse_kl_at_0_and_forward_kl_at_1(x: float) -> None:
    assert divergence_score(full(x), "alpha", 1e-7).item() == pytest.approx(x, abs=1e-5)
    assert divergence_score(full(x), "alpha", 1 - 1e-12).item() == pytest.approx(1 - math.exp(-x), abs=1e-6)


@pytest.mark.parametrize("kind", get_args(Divergence))
def test_an_unlikely_answer_has_no_infinite_score_or_gradient(kind: Divergence) -> None:
    ratio = torch.tensor([0.5, -400.0], requires_grad=True)
    score = 0.1 * divergence_score(ratio, kind)
    (-logsigmoid(score[0] - score[1])).backward()
    assert ratio.grad is not None and torch.isfinite(ratio.grad).all() and torch.isfinite(score).all()


def test_kto_by_hand() -> None:
    """beta (x - z0) = log 3 of a good, -log 4 of a bad answer: 1.5 (1 - 3/4) and 0.5 (1 - 4/5)."""
    ratio = full(1 + 2 * math.log(3), 1 - 2 * math.log(4))
    found = kto(ratio, full(1.0, 0.0), 1.0, beta=0.5, desirable=1.5, undesirable=0.5)
    assert found.tolist() == pytest.approx([1.5 / 4, 0.5 / 5])


def test_ktos_baseline_is_never_below_0_and_has_no_gradient() -> None:
    assert kto_baseline(full(-3.0, 1.0)) == 0.0
    ratios = full(3.0, -1.0).requires_grad_()
    assert kto_baseline(ratios) == 1.0 and isinstance(kto_baseline(ratios), float)


def test_a_soft_label_is_the_mixture_of_both() -> None:
    a, b, target, weight = full(1.0, 0.0), full(-1.0, 2.0), full(0.75, 1.0), full(2.0, 0.0)
    found = over_labels(apo_zero, a, b, target, weight)
    assert found.item() == pytest.approx(2 * (0.75 * apo_zero(a, b)[0] + 0.25 * apo_zero(b, a)[0]).item())
