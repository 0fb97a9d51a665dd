import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.ops.advantages import discounted_returns
from prefloop.ops.kl import AdaptiveKL, AdaptiveRate, FixedKL, ScheduledKL, k1, k2, k3

Estimator = Callable[[Tensor, Tensor], Tensor]


def _logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _kl(logp: Tensor, logq: Tensor) -> Tensor:
    return (logp.exp() * (logp - logq)).sum()


def test_estimators_by_hand() -> None:
    logp, logq = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert k1(logp, logq).item() == pytest.approx(math.log(2))
    assert k2(logp, logq).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert k3(logp, logq).item() == pytest.approx(0.5 - 1 + math.log(2))


@given(st.integers(0, 10_000))
def test_k1_and_k3_are_unbiased_and_k2_and_k3_never_negative(seed: int) -> None:
    logp, logq = torch.log_softmax(_logits(seed, 2, 6), -1)
    for estimator in (k1, k3):
        torch.testing.assert_close((logp.exp() * estimator(logp, logq)).sum(), _kl(logp, logq))
    assert (k2(logp, logq) >= 0).all()
    assert (k3(logp, logq) >= 0).all()


@given(st.integers(0, 10_000))
def test_expected_gradients_as_a_loss_on_one_token(seed: int) -> None:
    theta, reference = _logits(seed, 2, 6)
    theta.requires_grad_()
    logq = torch.log_softmax(reference, -1)

    def gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(loss(torch.log_softmax(theta, -1)), theta)[0]

    def expected(estimator: Estimator) -> Tensor:
        return gradient(lambda logp: (logp.detach().exp() * estimator(logp, logq)).sum())

    torch.testing.assert_close(expected(k1), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(expected(k2), gradient(lambda logp: _kl(logp, logq)))
    torch.testing.assert_close(expected(k3), gradient(lambda logp: _kl(logq, logp)))


def test_only_k1_to_go_and_k2_of_the_sum_give_the_gradient_of_the_sequence_kl() -> None:
    theta, reference = _logits(3, 2, 4, 3)  # row 0: the first of two tokens; row 1 + x: the second, after token x
    theta.requires_grad_()
    sequences = [(x, y) for x in range(3) for y in range(3)]

    def logprobs(logits: Tensor) -> Tensor:
        rows = torch.log_softmax(logits, -1)
        return torch.stack([torch.stack([rows[0, x], rows[1 + x, y]]) for x, y in sequences])

    logp, logq = logprobs(theta), logprobs(reference)
    prob = logp.detach().sum(1).exp()

    def gradient(loss_per_sequence: Tensor) -> Tensor:
        return torch.autograd.grad((prob * loss_per_sequence).sum(), theta, retain_graph=True)[0]

    total_p, total_q = logp.sum(1), logq.sum(1)
    truth = torch.autograd.grad((total_p.exp() * (total_p - total_q)).sum(), theta, retain_graph=True)[0]
    penalty = k1(logp.detach(), logq)
    to_go = torch.stack([discounted_returns(row, gamma=1.0) for row in penalty])
    torch.testing.assert_close(gradient((to_go * logp).sum(1)), truth)
    torch.testing.assert_close(gradient(k2(total_p, total_q)), truth)
    for estimator in (k1, k2, k3):
        assert (gradient(estimator(logp, logq).sum(1)) - truth).abs().max() > 0.05


def test_adaptive_kl_has_the_constants_of_the_code() -> None:
    controller = AdaptiveKL(coef=0.15, target=6.0, horizon=10_000)
    assert controller.update(6.0, 512) == controller
    assert controller.update(6.6, 512).coef == pytest.approx(0.15 * (1 + 0.1 * 0.0512))
    assert controller.update(60.0, 512).coef == pytest.approx(0.15 * (1 + 0.2 * 0.0512))
    assert controller.update(-1.0, 512).coef == pytest.approx(0.15 * (1 - 0.2 * 0.0512))
    assert AdaptiveKL(0.15, 6.0, 10_000, clip=0.5).update(60.0, 512).coef == pytest.approx(0.15 * (1 + 0.5 * 0.0512))


@given(st.floats(-10, 100), st.integers(1, 500))
def test_adaptive_kl_moves_towards_the_target_and_stays_positive(kl: float, episodes: int) -> None:
    coef = AdaptiveKL(coef=0.1, target=6.0, horizon=128).update(kl, episodes).coef
    assert coef > 0
    assert (coef - 0.1) * (kl - 6.0) >= 0
    assert coef != 0.1 or kl == pytest.approx(6.0)


def test_adaptive_kl_refuses_what_would_break_it() -> None:
    controller = AdaptiveKL(coef=0.1, target=6.0, horizon=10)
    with pytest.raises(ValueError, match="measured KL is nan"):
        controller.update(float("nan"), 4)
    with pytest.raises(ValueError, match=r"set it above 12\.8"):
        controller.update(6.0, 64)


def test_fixed_kl_stays() -> None:
    assert FixedKL(0.05).update(100.0, 512) == FixedKL(0.05)


def test_a_schedule_by_hand() -> None:
    line, curve = ScheduledKL(0.8, 0.1, 4, geometric=False), ScheduledKL(0.8, 0.1, 4, geometric=True)
    found: list[list[float]] = [[], []]
    for _ in range(4):
        found[0].append(line.coef)
        found[1].append(curve.coef)
        line, curve = line.update(9.0, 64), curve.update(0.0, 64)
    assert found[0] == pytest.approx([0.8, 0.8 - 0.7 / 3, 0.8 - 1.4 / 3, 0.1])
    assert found[1] == pytest.approx([0.8, 0.4, 0.2, 0.1])
    assert line.rate == curve.rate == 1 and ScheduledKL(0.8, 0.1, 4, geometric=True, done=2).coef == pytest.approx(0.2)
    assert ScheduledKL(0.5, 0.1, 1, geometric=False).coef == 0.5


def test_a_rate_falls_where_the_kl_is_too_large_and_rises_to_its_peak() -> None:
    controller = AdaptiveRate(coef=0.05, target=6.0, horizon=100)
    slower = controller.update(60.0, 50)
    assert slower.rate == pytest.approx(1 / 1.1) and slower.coef == 0.05
    assert slower.update(6.0, 50) == slower
    assert slower.update(0.0, 50).rate == 1.0 == controller.update(0.0, 50).rate
    assert slower.update(60.0, 50).update(5.4, 50).rate == pytest.approx(1 / 1.21 / 0.95)
    with pytest.raises(ValueError, match="measured KL is inf"):
        controller.update(float("inf"), 50)
