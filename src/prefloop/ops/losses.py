"""Losses as sums over their elements, weights applied: the sums of any split of a batch add up to the batch's.

Denominators belong to the caller, over the whole batch. R tokens read, N pairs.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefloop.ops.masking import masked_sum


class PolicyLoss(NamedTuple):
    """Sums over the mask, and the largest ratio in it (0 when the mask is all zero); only `loss` has a gradient."""

    loss: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]
    approx_kl: Float[Tensor, ""]
    ratio_max: Float[Tensor, ""]


class ValueLoss(NamedTuple):
    """Sums over the mask; only `loss` has a gradient."""

    loss: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]


def sft(logprobs: Float[Tensor, " R"], weight: Float[Tensor, " R"]) -> Float[Tensor, ""]:
    """-sum_r w_r log p_r, in nats: weighted cross-entropy."""
    return -masked_sum(logprobs, weight)


def bradley_terry(
    score_a: Float[Tensor, " N"],
    score_b: Float[Tensor, " N"],
    *,
    target: Float[Tensor, " N"],
    margin: Float[Tensor, " N"],
    weight: Float[Tensor, " N"],
) -> Float[Tensor, ""]:
    """sum_n w ( -t log sigmoid(d - m) - (1 - t) log sigmoid(-d - m) ), with d = score_a - score_b.

    target t in [0, 1] is the probability that a is preferred: 1 or 0 for a choice, 1/2 for a tie, 1 - eps for label
    smoothing. margin m >= 0 is taken from the preferred side's lead (Llama 2, arXiv 2307.09288, eq. 2). Bradley and
    Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), eq. 1.
    """
    lead = score_a - score_b
    return masked_sum(-target * logsigmoid(lead - margin) - (1 - target) * logsigmoid(-lead - margin), weight)


def ppo_policy(
    logprobs: Float[Tensor, " R"],
    old_logprobs: Float[Tensor, " R"],
    advantages: Float[Tensor, " R"],
    mask: Shaped[Tensor, " R"],
    *,
    clip: float,
) -> PolicyLoss:
    """-sum_r min(rho A, clip(rho, 1 - clip, 1 + clip) A), with rho = exp(logprobs - old_logprobs).

    Schulman et al. 2017 (arXiv 1707.06347), eq. 7. `clip_fraction` counts the tokens whose clipped term was the smaller
    one (no gradient); `approx_kl` sums (log rho)^2 / 2, in nats.
    """
    live = mask != 0
    log_ratio = torch.where(live, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    free, clipped = -ratio * advantages, -ratio.clamp(1 - clip, 1 + clip) * advantages
    return PolicyLoss(
        loss=masked_sum(torch.maximum(free, clipped), mask),
        clip_fraction=masked_sum((clipped > free).to(ratio.dtype), mask),
        approx_kl=masked_sum(0.5 * log_ratio.detach() ** 2, mask),
        ratio_max=torch.cat([ratio.detach()[live], ratio.new_zeros(1)]).max(),
    )


def ppo_value(
    values: Float[Tensor, " R"],
    old_values: Float[Tensor, " R"],
    returns: Float[Tensor, " R"],
    mask: Shaped[Tensor, " R"],
    *,
    clip: float | None,
) -> ValueLoss:
    """sum_r 1/2 max( (v - ret)^2, (clip(v, old - clip, old + clip) - ret)^2 ); clip=None leaves the first term alone.

    The form of OpenAI's PPO and RLHF code (Ziegler et al. 2019). `clip_fraction` counts the tokens whose clipped term
    was the larger one (no gradient).
    """
    returns = torch.where(mask != 0, returns, 0.0)
    free = (values - returns) ** 2
    if clip is None:
        return ValueLoss(0.5 * masked_sum(free, mask), masked_sum(torch.zeros_like(free), mask))
    clipped = (values.clamp(old_values - clip, old_values + clip) - returns) ** 2
    return ValueLoss(
        loss=0.5 * masked_sum(torch.maximum(free, clipped), mask),
        clip_fraction=masked_sum((clipped > free).to(free.dtype), mask),
    )
