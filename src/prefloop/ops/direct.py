"""Losses of policies on comparisons and verdicts, without a reward model: a value for each pair or answer.

Rewards are implicit: beta times the log-ratio log pi(y|x) - log pi_ref(y|x) of an answer, or what stands for it; a lead
is the reward of the preferred answer less that of the other. Losses are of certain labels; `over_labels` makes of them
the expected loss under soft ones. N pairs, B answers; log-probs in nats, s the logistic function.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefloop.ops.masking import masked_sum

Divergence = Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha"]
LARGEST = 80.0  # exponent whose exp, and products of it with small numbers, float32 holds


def over_labels(
    loss: Callable[[Float[Tensor, " N"], Float[Tensor, " N"]], Float[Tensor, " N"]],
    a: Float[Tensor, " N"],
    b: Float[Tensor, " N"],
    target: Float[Tensor, " N"],
    weight: Float[Tensor, " N"],
) -> Float[Tensor, ""]:
    """sum_n w ( t loss(a, b) + (1 - t) loss(b, a) ): the loss of (preferred, other), expected where a is preferred with
    probability t."""
    return masked_sum(target * loss(a, b) + (1 - target) * loss(b, a), weight)


def robust(lead: Float[Tensor, " N"], flips: float) -> Float[Tensor, " N"]:
    """( -(1 - e) log s(d) + e log s(-d) ) / (1 - 2e): where a share e of the labels is flipped, its mean is that of
    -log s(d) over the right ones (Chowdhury et al. 2024, arXiv 2403.00409, eq. 12)."""
    return ((1 - flips) * -logsigmoid(lead) + flips * logsigmoid(-lead)) / (1 - 2 * flips)


def hinge(lead: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """max(0, 1 - d): of log-ratios Liu et al. 2023 (arXiv 2309.06657), of log-probs alone SLiC (Zhao et al. 2023, arXiv
    2305.10425, eq. 1) with delta = 1 / beta, times beta."""
    return torch.relu(1 - lead)


def ipo(lead: Float[Tensor, " N"], tau: float) -> Float[Tensor, " N"]:
    """(h - 1 / (2 tau))^2, h the lead in log-ratios, not times tau (Azar et al. 2023, arXiv 2310.12036, eq. 17). A soft
    label p has its minimum at h = (p - 1/2) / tau."""
    return (lead - 1 / (2 * tau)) ** 2


def exo(lead: Float[Tensor, " N"], target: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """KL of (s(d), s(-d)) from (t, 1 - t): the reverse of DPO's divergence (Ji et al. 2024, arXiv 2402.00856, eq. 16).
    target t in (0, 1); at 0 or 1 it is infinite."""
    ours, others = torch.sigmoid(lead), torch.sigmoid(-lead)
    return ours * (logsigmoid(lead) - target.log()) + others * (logsigmoid(-lead) - torch.log1p(-target))


def nca(won: Float[Tensor, " N"], lost: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """-log s(r_w) - log s(-r_w) / 2 - log s(-r_l) / 2: absolute rewards, so that the preferred answer's does not fall
    (Chen et al. 2024, arXiv 2402.05369, section 3.3 for two answers)."""
    return -logsigmoid(won) - 0.5 * logsigmoid(-won) - 0.5 * logsigmoid(-lost)


def apo_zero(won: Float[Tensor, " N"], lost: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """1 - s(r_w) + s(r_l): the preferred answer up, the other down, where the preferred are better than what the policy
    says by itself (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7)."""
    return torch.sigmoid(-won) + torch.sigmoid(lost)


def apo_down(won: Float[Tensor, " N"], lost: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """s(r_w) + 1 - s(r_w - r_l): both down, the other further, where the policy by itself is better than both
    (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8)."""
    return torch.sigmoid(won) + torch.sigmoid(lost - won)


def sppo(
    ratio_a: Float[Tensor, " N"], ratio_b: Float[Tensor, " N"], target: Float[Tensor, " N"], beta: float
) -> Float[Tensor, " N"]:
    """(x_a - (t - 1/2) / beta)^2 + (x_b - (1/2 - t) / beta)^2 of log-ratios x (Wu et al. 2024, arXiv 2405.00675,
    eq. 4.7 with eta = 1 / beta)."""
    aim = (target - 0.5) / beta
    return (ratio_a - aim) ** 2 + (ratio_b + aim) ** 2


def log_odds(mean_logprob: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """log( p / (1 - p) ) of p = exp(mean log-prob of an answer's tokens), p < 1 (Hong et al. 2024, arXiv 2403.07691,
    eq. 4). At p = 1 it is large and finite."""
    return mean_logprob - torch.log((-torch.expm1(mean_logprob)).clamp(min=torch.finfo(mean_logprob.dtype).tiny))


def divergence_score(ratio: Float[Tensor, " B"], kind: Divergence, alpha: float = 0.5) -> Float[Tensor, " B"]:
    """f'(u) at u = exp(log-ratio), but for a constant: what takes the log-ratio's place when another f-divergence holds
    the policy (Wang et al. 2023, arXiv 2309.16240, table 1).

    reverse_kl: log u. forward_kl: -1 / u. jensen_shannon: log(2u / (1 + u)). alpha in (0, 1): (1 - u^-alpha) / alpha,
    which is reverse KL at 0 and forward KL at 1. Exponents over 80 are held there, with no gradient.
    """
    if kind == "reverse_kl":
        return ratio
    if kind == "jensen_shannon":
        return math.log(2) + logsigmoid(ratio)
    if kind == "forward_kl":
        return 1 - torch.exp((-ratio).clamp(max=LARGEST))
    return (1 - torch.exp((-alpha * ratio).clamp(max=LARGEST))) / alpha


def kto(
    ratio: Float[Tensor, " B"],
    good: Float[Tensor, " B"],
    baseline: float,
    *,
    beta: float,
    desirable: float,
    undesirable: float,
) -> Float[Tensor, " B"]:
    """l_y (1 - v), v = s(beta (x - z0)) of a good answer and s(beta (z0 - x)) of a bad one (Ethayarajh et al. 2024,
    arXiv 2402.01306, eq. 7 and 8, less the constant l_y). good: 1 or 0; baseline z0: see `kto_baseline`."""
    sign = 2 * good - 1
    weight = torch.where(good > 0.5, desirable, undesirable)
    return weight * torch.sigmoid(-sign * beta * (ratio - baseline))


def kto_baseline(mismatched: Float[Tensor, " B"]) -> float:
    """z0 = max(0, mean of log pi(y'|x) - log pi_ref(y'|x)) over answers y' to other prompts than x: a number, without a
    gradient (Ethayarajh et al. 2024, section 4.1)."""
    return max(0.0, float(mismatched.detach().mean()))
