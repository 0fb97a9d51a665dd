"""Losses as sums over their elements, weights applied: the sums of any split of a batch add up to the batch's.

Denominators belong to the caller, over the whole batch. R tokens read, N pairs, M places in rankings.
"""

import math
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
    label_smoothing: float = 0.0,
    floor: float = 0.0,
) -> Float[Tensor, ""]:
    """sum_n w ( -t log P(d - m) - (1 - t) log P(-d - m) ), in nats, with d = score_a - score_b and P = sigmoid.

    target t in [0, 1] is the probability that a is preferred: 1 or 0 for a choice, 1/2 for a tie, between for soft
    labels. margin m >= 0 is taken from the preferred side's lead (Llama 2, arXiv 2307.09288, eq. 2). Bradley and
    Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), eq. 1.

    label_smoothing eps in [0, 1/2): a label is wrong so often, t becomes (1 - eps) t + eps (1 - t). floor e in [0, 1):
    an answer is random so often, P becomes (1 - e) P + e/2 and a pair costs -log(e/2) at most (Christiano et al. 2017,
    arXiv 1706.03741, section 2.2.3, with e = 0.1).
    """
    lead = score_a - score_b
    target = target + label_smoothing * (1 - 2 * target)
    preferred, other = (_log_chance(side - margin, floor) for side in (lead, -lead))
    return masked_sum(-target * preferred - (1 - target) * other, weight)


def _log_chance(logit: Float[Tensor, " N"], floor: float) -> Float[Tensor, " N"]:
    chance = logsigmoid(logit)
    if not floor:
        return chance
    return torch.logaddexp(chance + math.log1p(-floor), chance.new_tensor(math.log(floor / 2)))


def plackett_luce(
    scores: Float[Tensor, " M"],
    *,
    rank: Shaped[Tensor, " M"],
    ranking: Shaped[Tensor, " M"],
    weight: Float[Tensor, " M"],
) -> Float[Tensor, ""]:
    """-sum_j w_j ( s_j - log sum_i exp(s_i) ), i over the answers of j's ranking that rank no better than j; in nats.

    The negative log-likelihood of whole rankings: the best is chosen among all, the next among the rest, and so on
    (Luce 1959; Plackett 1975; Rafailov et al. 2023, arXiv 2305.18290, eq. 18). Place j has a rank (0 best), the number
    of its ranking and that ranking's weight. Two answers cost what Bradley-Terry does. Answers that tie are each chosen
    among all that tie and all worse ones (Breslow 1974), so that two that tie cost twice a Bradley-Terry tie.
    """
    left = (ranking[:, None] == ranking) & (rank[:, None] <= rank)
    chances = scores - torch.where(left, scores, -math.inf).logsumexp(-1)
    return -masked_sum(chances, weight)


def binary(logits: Float[Tensor, " R"], label: Float[Tensor, " R"], weight: Float[Tensor, " R"]) -> Float[Tensor, ""]:
    """-sum_r w ( t log sigmoid(z) + (1 - t) log sigmoid(-z) ), in nats; label t in [0, 1] is a probability.

    Of steps of an answer, z at the last token of each: Lightman et al. 2023 (arXiv 2305.20050) with labels 0 and 1,
    Math-Shepherd (Wang et al. 2023, arXiv 2312.08935) with soft ones too.
    """
    return -masked_sum(label * logsigmoid(logits) + (1 - label) * logsigmoid(-logits), weight)


def centring(
    score_a: Float[Tensor, " N"], score_b: Float[Tensor, " N"], weight: Float[Tensor, " N"]
) -> Float[Tensor, ""]:
    """sum_n w (score_a + score_b)^2: differences leave the scores' mean open, this pulls it to 0 (Eisenstein et al.
    2023, arXiv 2312.09244, eq. 2; their and TRL's coefficient is 0.01)."""
    return masked_sum((score_a + score_b) ** 2, weight)


def ppo_policy(
    logprobs: Float[Tensor, " R"],
    old_logprobs: Float[Tensor, " R"],
    advantages: Float[Tensor, " R"],
    mask: Shaped[Tensor, " R"],
    *,
    clip: float,
    clip_high: float | None = None,
) -> PolicyLoss:
    """-sum_r min(rho A, clip(rho, 1 - clip, 1 + clip_high) A), with rho = exp(logprobs - old_logprobs).

    Schulman et al. 2017 (arXiv 1707.06347), eq. 7, where clip_high is clip, as it is where not given; DAPO (Yu et al.
    2025, arXiv 2503.14476, eq. 8) has it higher. `clip_fraction` counts the tokens whose clipped term was the smaller
    one (no gradient); `approx_kl` sums (log rho)^2 / 2, in nats.
    """
    live, log_ratio = _log_ratio(logprobs, old_logprobs, mask)
    ratio = log_ratio.exp()
    high = 1 + (clip if clip_high is None else clip_high)
    free, clipped = -ratio * advantages, -ratio.clamp(1 - clip, high) * advantages
    return PolicyLoss(
        loss=masked_sum(torch.maximum(free, clipped), mask),
        clip_fraction=masked_sum((clipped > free).to(ratio.dtype), mask),
        approx_kl=masked_sum(0.5 * log_ratio.detach() ** 2, mask),
        ratio_max=torch.cat([ratio.detach()[live], ratio.new_zeros(1)]).max(),
    )


def weighted_policy(
    logprobs: Float[Tensor, " R"],
    log_ratio: Float[Tensor, " R"],
    advantages: Float[Tensor, " R"],
    mask: Shaped[Tensor, " R"],
    *,
    clip: float,
    clip_high: float,
) -> PolicyLoss:
    """-sum_r w A logprobs, with the weight w = clip(exp(log_ratio), 1 - clip, 1 + clip_high) without a gradient.

    CISPO (MiniMax-M1, arXiv 2506.13585, eq. 4): the weight is clipped instead of the update, so that every token keeps
    a gradient. `clip_fraction` counts the tokens whose weight was clipped; the rest is as in ppo_policy.
    """
    live, log_ratio = _log_ratio(log_ratio.detach(), torch.zeros_like(log_ratio), mask)
    ratio = log_ratio.exp()
    weight = ratio.clamp(1 - clip, 1 + clip_high)
    return PolicyLoss(
        loss=-masked_sum(weight * advantages * logprobs, mask),
        clip_fraction=masked_sum((weight != ratio).to(ratio.dtype), mask),
        approx_kl=masked_sum(0.5 * log_ratio**2, mask),
        ratio_max=torch.cat([ratio[live], ratio.new_zeros(1)]).max(),
    )


def _log_ratio(
    logprobs: Float[Tensor, " R"], old_logprobs: Float[Tensor, " R"], mask: Shaped[Tensor, " R"]
) -> tuple[Tensor, Tensor]:
    live = mask != 0
    return live, torch.where(live, logprobs - old_logprobs, 0.0)


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
