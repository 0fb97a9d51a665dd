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

    def update(self, kl: float, episodes: int) -> "FixedKL":
        """Itself, whatever the measured KL."""
        return self


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

    def update(self, kl: float, episodes: int) -> "AdaptiveKL":
        """coef * (1 + e * episodes / horizon), with e = clip(kl / target - 1, -clip, clip).

        kl is the mean over the batch's `episodes` responses. ValueError when kl is not finite, or when the horizon is
        so short that the coefficient could reach 0.
        """
        if not math.isfinite(kl):
            raise ValueError(f"adaptive KL: the measured KL is {kl}; look for NaN or infinite log-probabilities")
        if self.clip * episodes >= self.horizon:
            raise ValueError(
                f"adaptive KL: a horizon of {self.horizon:g} episodes is too short for batches of {episodes}; "
                f"set it above {self.clip * episodes:g}"
            )
        error = min(max(kl / self.target - 1, -self.clip), self.clip)
        return replace(self, coef=self.coef * (1 + error * episodes / self.horizon))
