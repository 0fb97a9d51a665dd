"""Weights for tokens that another policy wrote: the sampler's weights were older, or of another precision.

mu is what sampled, pi what learns; a weight multiplies a token's share of the policy gradient and has no gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def importance_weights(
    log_ratio: Float[Tensor, "*shape"],
    *,
    beyond: Literal["truncate", "mask"],
    low: float | None = None,
    high: float | None = None,
) -> Float[Tensor, "*shape"]:
    """exp(log_ratio), log_ratio = log pi - log mu of a token or of a whole answer (nats); None is no bound.

    truncate: clip(w, low, high), biased and of bounded variance (Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training", high alone). mask: 0 outside [low, high] (Liu et al. 2025, "When speed kills
    stability"; IcePop).
    """
    weights = log_ratio.detach().exp()
    if beyond == "truncate":
        return weights.clamp(min=0.0 if low is None else low, max=high)
    inside = weights >= (0.0 if low is None else low)
    return torch.where(inside if high is None else inside & (weights <= high), weights, 0.0)


def not_too_far(
    mean_log_ratio: Float[Tensor, " B"], advantages: Float[Tensor, " B"], *, limit: float
) -> Float[Tensor, " B"]:
    """0 where an answer's advantage is negative and (1/|y|) sum_t log mu - log pi above `limit` (nats a token), else 1.

    DeepSeek-V3.2 (arXiv 2512.02556, eq. 9): what the policy no longer says is not pushed down further.
    mean_log_ratio is that of log pi - log mu.
    """
    return ((advantages >= 0) | (-mean_log_ratio.detach() <= limit)).to(mean_log_ratio.dtype)
