"""Per-token estimators of KL(p || q) on tokens sampled from p, in nats, and the coefficient that scales the penalty.

p is the policy that sampled, q the reference. Values and gradients differ (Schulman 2020, "Approximating KL
divergence"): the docstrings give the expected gradient of each as a loss on one token, on-policy. Summed per token over
a response, all three miss the effect of a token on later ones. Only two forms give the gradient of the KL of whole
responses: k1 as a reward, summed to go, and k2 of the summed log-ratio (`k2(logp.sum(), logq.sum())`).
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


def k1(logp: Float[Tensor, "*shape"], logq: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log p - log q: unbiased, any sign. For the reward; as a loss its expected gradient is 0."""
    return logp - logq


def k2(logp: Float[Tensor, "*shape"], logq: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """(log p - log q)^2 / 2: biased, never negative. As a loss its expected gradient is that of KL(p || q)."""
    return 0.5 * (logp - logq) ** 2


def k3(logp: Float[Tensor, "*shape"], logq: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """r - 1 - log r with r = q / p: unbiased, never negative. As a loss its expected gradient is that of KL(q || p).

    The KL term of GRPO (arXiv 2402.03300, eq. 4).
    """
    log_ratio = logq - logp
    return torch.expm1(log_ratio) - log_ratio


@dataclass(frozen=True)
class FixedKL:
    """A KL coefficient that stays as it is."""

    coef: float
    rate: float = 1.0

    def update(self, kl: float, episodes: int) -> "FixedKL":
        """Itself, whatever the measured KL."""
        return self


@dataclass(frozen=True)
class ScheduledKL:
    """A KL coefficient that goes from `first` to `last` over `batches`, in equal differences or (geometric) equal
    ratios: a strong leash that is let out, or one that is drawn in. `done` batches lie behind."""

    first: float
    last: float
    batches: int
    geometric: bool
    done: int = 0
    rate: float = 1.0

    @property
    def coef(self) -> float:
        share = self.done / max(self.batches - 1, 1)
        if self.geometric:
            return float(self.first ** (1 - share) * self.last**share)
        return (1 - share) * self.first + share * self.last

    def update(self, kl: float, episodes: int) -> "ScheduledKL":
        """One batch further, whatever the measured KL."""
        return replace(self, done=self.done + 1)


@dataclass(frozen=True)
class AdaptiveKL:
    """A KL coefficient that steers the measured KL towards `target` (nats per response).

    `horizon` is in episodes; `clip` bounds the relative error. Ziegler et al. 2019 (arXiv 1909.08593), the form of the
    code, not of the paper.
    """

    coef: float
    target: float
    horizon: float
    clip: float = 0.2
    rate: float = 1.0

    def update(self, kl: float, episodes: int) -> "AdaptiveKL":
        """coef * (1 + e * episodes / horizon), with e = clip(kl / target - 1, -clip, clip).

        kl is the mean over the batch's `episodes` responses. ValueError when kl is not finite, or when the horizon is
        so short that the coefficient could reach 0.
        """
        return replace(self, coef=self.coef * _correction(self, kl, episodes))


@dataclass(frozen=True)
class AdaptiveRate:
    """A fixed KL coefficient and a multiplier `rate` <= 1 of the learning rate, which steers the measured KL towards
    `target` as AdaptiveKL's coefficient does, in the other direction: a policy too far away learns more slowly."""

    coef: float
    target: float
    horizon: float
    clip: float = 0.2
    rate: float = 1.0

    def update(self, kl: float, episodes: int) -> "AdaptiveRate":
        """min(1, rate / (1 + e * episodes / horizon)); e, kl and ValueError as for AdaptiveKL."""
        return replace(self, rate=min(1.0, self.rate / _correction(self, kl, episodes)))


def _correction(by: AdaptiveKL | AdaptiveRate, kl: float, episodes: int) -> float:
    if not math.isfinite(kl):
        raise ValueError(f"adaptive KL: the measured KL is {kl}; look for NaN or infinite log-probabilities")
    if by.clip * episodes >= by.horizon:
        raise ValueError(
            f"adaptive KL: a horizon of {by.horizon:g} episodes is too short for batches of {episodes}; "
            f"set it above {by.clip * episodes:g}"
        )
    error = min(max(kl / by.target - 1, -by.clip), by.clip)
    return 1 + error * episodes / by.horizon
