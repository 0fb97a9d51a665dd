"""Log-probabilities, entropy and exact KL from hidden states, in chunks: an R x V matrix never exists.

R tokens read, V vocabulary, D width. For the gradient a fixed amount is kept, and the logits of other chunks are
recomputed in backward.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefloop.ops.accumulate import accumulate

ELEMENTS = 2**24  # of R x V at a time, where the caller names no number of rows: 64 MiB in float32
KEPT = 2**26  # of R x V at most that wait for the backward pass, whatever R and V; what is over is made again


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

    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, but log-probabilities need one above 0")
    chunk = chunk or max(1, ELEMENTS // len(weight))
    logprobs, entropies = _token_logprobs(hidden, weight, targets, temperature, softcap, chunk, entropy)
    return logprobs, entropies if entropy else None


class _TokenLogprobs(torch.autograd.Function):
    """With z the logits before cap and temperature, y = cap(z) / T, p = softmax(y), H the entropy of p, and gradients g
    of log p_t and e of H: dy = g (1_t - p) - e p (log p + H). Where no entropy is asked for, a row's g only scales
    p - 1_t, which goes into the products as it is: with a frozen head already in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        softcap: float | None,
        chunk: int,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        learns, frozen = ctx.needs_input_grad[0] and not entropy, not ctx.needs_input_grad[1]
        logprobs, entropies = (torch.zeros(len(hidden), device=hidden.device) for _ in range(2))
        slopes = torch.empty_like(hidden) if learns and frozen else hidden.new_empty(0)
        kept: list[Tensor] = []
        for rows in _slices(len(hidden), chunk):
            keep = learns and (frozen or rows.stop * len(weight) <= KEPT)
            logits, slope = _logits(hidden[rows], weight, temperature, softcap, keep)
            logp, at = torch.log_softmax(logits, dim=-1), targets[rows, None]
            logprobs[rows] = logp.gather(-1, at)[:, 0]
            if entropy:
                entropies[rows] = -torch.linalg.vecdot(logp.exp(), logp)
            if keep:
                apart = _apart(logp.exp_(), at, slope).to(hidden.dtype)
                if frozen:
                    slopes[rows] = apart @ weight.to(hidden.dtype)
                else:
                    kept.append(apart)
        ctx.save_for_backward(hidden, weight, targets, entropies, slopes, *kept)
        ctx.options = temperature, softcap, chunk, entropy
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, entropies, slopes, *kept = ctx.saved_tensors
        temperature, softcap, chunk, entropy = ctx.options
        scales = (-grads[0] / temperature)[:, None]
        if len(slopes):
            return (slopes.float() * scales).to(hidden.dtype), *(None,) * 6
        d_hidden = torch.empty_like(hidden)
        d_weight: Tensor | None = None
        for index, rows in enumerate(_slices(len(hidden), chunk)):
            scale, at = scales[rows], targets[rows, None]
            if index < len(kept):
                apart = kept[index]
            else:
                logits, slope = _logits(hidden[rows], weight, temperature, softcap, True)
                if entropy:
                    logp = torch.log_softmax(logits, dim=-1)
                    apart = logp.exp() * (scale - grads[1][rows, None] * (logp + entropies[rows, None]) / temperature)
                    apart = _apart(apart, at, slope, scale).to(hidden.dtype)
                    scale = torch.ones_like(scale)
                else:
                    apart = _apart(torch.softmax(logits, dim=-1), at, slope).to(hidden.dtype)
            d_hidden[rows] = (apart @ weight.to(hidden.dtype)).float().mul_(scale).to(hidden.dtype)
            if ctx.needs_input_grad[1]:
                scaled = (hidden[rows].float() * scale).to(hidden.dtype)
                if d_weight is None:
                    d_weight = (apart.T @ scaled).float()
                elif hidden.dtype == torch.float32:
                    d_weight.addmm_(apart.T, scaled)
                else:
                    accumulate(d_weight, apart.T @ scaled)
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), *(None,) * 5


_token_logprobs: Any = _TokenLogprobs.apply


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _logits(
    hidden: Tensor, weight: Tensor, temperature: float, softcap: float | None, slope: bool
) -> tuple[Tensor, Tensor | None]:
    """Logits in fp32 after cap and temperature, and where asked for (and not 1) the cap's slope at each."""
    # Cast per chunk, not once: the chunks' gradients then add up in the weight's own, wider dtype.
    logits = (hidden @ weight.to(hidden.dtype).T).float()
    found = None
    if softcap is not None:
        squashed = torch.tanh(logits / softcap)
        logits, found = softcap * squashed, 1 - squashed.square() if slope else None
    return logits / temperature if temperature != 1 else logits, found


def _apart(p: Tensor, at: Tensor, slope: Tensor | None, scale: Tensor | None = None) -> Tensor:
    """p - scale x 1_t (scale 1 by default), times the cap's slope, in place."""
    one = p.new_ones(at.shape) if scale is None else scale
    apart = p.scatter_add_(-1, at, -one)
    return apart if slope is None else apart.mul_(slope)


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
    return torch.log_softmax(_logits(hidden, weight, temperature, softcap, False)[0], dim=-1)


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
