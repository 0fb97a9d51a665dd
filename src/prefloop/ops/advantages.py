"""Returns, advantages, baselines of responses of L tokens, G to each of P prompts; recursions run in float64."""

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


def group_normalised(scores: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """(r - mean) / (std + 1e-4) within each group, with the unbiased std: 0 where all answers score alike.

    GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2); the paper leaves open which std, its code and TRL take
    this one.
    """
    return (scores - scores.mean(dim=1, keepdim=True)) / (scores.std(dim=1, keepdim=True) + 1e-4)
