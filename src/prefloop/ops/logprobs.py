"""Log-probabilities, entropy and exact KL from hidden states, in chunks: an R x V matrix never exists.

R tokens read, V vocabulary, D width. Where a gradient is needed a chunk's logits are recomputed in backward.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ELEMENTS = 2**24  # of R x V at a time, where the caller names no number of rows: 64 MiB in float32


def token_logprobs(
    hidden: Float[Tensor, "R D"],
    weight: Float[Tensor, "V D"],
    targets: Int64[Tensor, " R"],
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk: int | None = None,
    entropy: bool = False,
) -> tuple[Float32[Tensor, " R"], Float32[Tensor, " R"] | None]:
    """log p(target_r) in nats and, when asked for, the entropy -sum_v p_v log p_v of the same distribution.

    p = softmax(cap(hidden @ weight.T) / temperature), cap(z) = softcap * tanh(z / softcap) (Gemma 2, arXiv 2408.00118);
    the product is in hidden's dtype, all after it in float32. The temperature is part of the policy (Ziegler et al.
    2019): pass the sampler's. ValueError when temperature <= 0.
    """

    def read(hidden: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        logp = _log_softmax(hidden, weight, temperature, softcap)
        chosen = logp.gather(-1, targets[:, None]).squeeze(-1)
        return chosen, -torch.linalg.vecdot(logp.exp(), logp) if entropy else None

    parts = _by_chunk(read, (hidden, targets), (weight,), chunk)
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]) if entropy else None


class Compared(NamedTuple):
    """What two models say of the same tokens, [R] each, in nats: log p and log q of the targets, the entropy of p,
    and KL(p || q) over the whole vocabulary."""

    logp: Tensor
    logq: Tensor
    entropy: Tensor
    kl: Tensor


def compared_logprobs(
    hidden_p: Float[Tensor, "R D"],
    weight_p: Float[Tensor, "V D"],
    hidden_q: Float[Tensor, "R Dq"],
    weight_q: Float[Tensor, "V Dq"],
    targets: Int64[Tensor, " R"],
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Compared:
    """`token_logprobs` of both models, and the exact KL(p || q) = sum_v p_v (log p_v - log q_v) per token, with each
    model's logits made once. ValueError when temperature <= 0.
    """

    def read(hidden_p: Tensor, hidden_q: Tensor, targets: Tensor, weight_p: Tensor, weight_q: Tensor) -> Compared:
        logp = _log_softmax(hidden_p, weight_p, temperature, softcap)
        logq = _log_softmax(hidden_q, weight_q, temperature, softcap)
        p, chosen = logp.exp(), targets[:, None]
        entropy, cross = -torch.linalg.vecdot(p, logp), -torch.linalg.vecdot(p, logq)
        return Compared(logp.gather(-1, chosen)[:, 0], logq.gather(-1, chosen)[:, 0], entropy, cross - entropy)

    parts = _by_chunk(read, (hidden_p, hidden_q, targets), (weight_p, weight_q), chunk)
    return Compared(*map(torch.cat, zip(*parts, strict=True)))


def _log_softmax(hidden: Tensor, weight: Tensor, temperature: float, softcap: float | None) -> Tensor:
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, but log-probabilities need one above 0")
    # Cast per chunk, not once: the chunks' gradients then add up in the weight's own, wider dtype.
    logits = (hidden @ weight.to(hidden.dtype).T).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits / temperature if temperature != 1 else logits, dim=-1)


def _by_chunk(
    read: Callable[..., Any], rows: tuple[Tensor, ...], weights: tuple[Tensor, ...], chunk: int | None
) -> list[Any]:
    chunk = chunk or max(1, ELEMENTS // len(weights[0]))
    recompute = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*rows, *weights))
    return [
        checkpoint(read, *part, *weights, use_reentrant=False, preserve_rng_state=False)
        if recompute
        else read(*part, *weights)
        for part in zip(*(torch.split(tensor, chunk) for tensor in rows), strict=True)
    ]
