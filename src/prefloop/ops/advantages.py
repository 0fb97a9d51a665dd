"""Returns, advantages, baselines of responses of L tokens, G to each of P prompts; recursions run in float64."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def discounted_returns(rewards: Float[Tensor, " L"], *, gamma: float) -> Float[Tensor, " L"]:
    """G_t = r_t + gamma G_{t+1}, with G = 0 after the last token."""
    total, returns = 0.0, []
    for reward in reversed(rewards.tolist()):
        total = reward + gamma * total
        returns.append(total)
    return torch.tensor(returns[::-1], dtype=rewards.dtype, device=rewards.device)


def gae(
    rewards: Float[Tensor, " L"], values: Float[Tensor, " L"], *, gamma: float, lam: float
) -> tuple[Float[Tensor, " L"], Float[Tensor, " L"]]:
    """Advantages A_t = delta_t + gamma lam A_{t+1} and returns A_t + V_t, with delta_t = r_t + gamma V_{t+1} - V_t.

    The value after the last token is 0. Schulman et al. 2016 (arXiv 1506.02438), eq. 16.
    """
    value = values.detach().double()
    following = torch.cat([value[1:], value.new_zeros(1)])[: len(value)]
    advantages = discounted_returns(rewards.double() + gamma * following - value, gamma=gamma * lam)
    return advantages.to(values.dtype), (advantages + value).to(values.dtype)


def leave_one_out(scores: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """The mean score of the G - 1 >= 1 other responses to the same prompt: a baseline that leaves the policy gradient
    unbiased, as the response itself has no part in it. Kool et al. 2019; RLOO (Ahmadian et al. 2024, arXiv 2402.14740).
    """
    return (scores.sum(dim=1, keepdim=True) - scores) / (scores.shape[1] - 1)


def group_advantages(
    scores: Float[Tensor, "P G"],
    *,
    centre: Literal["none", "group", "others", "batch"],
    scale: Literal["none", "group", "batch"],
) -> Float[Tensor, "P G"]:
    """(r - b) / (s + 1e-4), with b the mean of the group, of the others in it or of the batch, s the unbiased std of
    the group or of the batch; without a scale r - b. 0 where all answers of a group that is the centre score alike.

    group, group: GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2; it leaves open which std, its code and TRL
    take this one). group, none: Dr. GRPO (Liu et al. 2025, arXiv 2503.20783). others, none: RLOO. batch, batch:
    REINFORCE++, group, batch: its variant with a baseline (Hu 2025, arXiv 2501.03262).
    """
    if centre == "others":
        left = scores - leave_one_out(scores)
    elif centre == "group":
        left = scores - scores.mean(dim=1, keepdim=True)
    else:
        left = scores - scores.mean() if centre == "batch" else scores
    if scale == "none":
        return left
    return left / ((scores.std(dim=1, keepdim=True) if scale == "group" else scores.std()) + 1e-4)


def overlong_penalty(length: int, longest: int, buffer: float) -> float:
    """0 up to longest - buffer tokens, then falling in a line to -1 at longest: DAPO's soft overlong punishment (Yu et
    al. 2025, arXiv 2503.14476, eq. 13; there longest 20,480 and buffer 4,096)."""
    over = length - (longest - buffer)
    return -min(over / buffer, 1.0) if over > 0 and buffer else -float(over > 0)
