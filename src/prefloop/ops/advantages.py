"""Returns and advantages of one response of L tokens, without gradient; recursions run in float64."""

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
