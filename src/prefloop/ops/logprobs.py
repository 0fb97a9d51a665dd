"""Log-probabilities, entropy and exact KL from hidden states, in chunks: an R x V matrix never exists.

R tokens read, V vocabulary, D width. For the gradient a fixed amount is kept, and the logits of other chunks are
recomputed in backward.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefloop.ops.accumulate import accumulate
from prefloop.ops.rows import compare_rows, read_rows, suits

ELEMENTS = 2**24  # of R x V at a time, where the caller names no number of rows: 64 MiB in float32
PRODUCT = 2**22  # of V x D at a time, before it goes into a sum
KEPT = 2**26  # of R x V at most that wait for the backward pass, whatever R and V; what is over is made again
NOT_ABOVE_0 = "temperature is {}, but log-probabilities need one above 0"


def token_logprobs(
    hidden: Float[Tensor, "R D"],
    weight: Float[Tensor, "V D"],
    targets: Int64[Tensor, " R"],
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk: int | None = None,
    entropy: bool = False,
    master: Float32[Tensor, "V D"] | None = None,
) -> tuple[Float32[Tensor, " R"], Float32[Tensor, " R"] | None]:
    """log p(target_r) in nats and, when asked for, the entropy -sum_v p_v log p_v of the same distribution.

    p = softmax(cap(hidden @ weight.T) / temperature), cap(z) = softcap * tanh(z / softcap) (Gemma 2, arXiv 2408.00118);
    the product is in hidden's dtype, all after it in float32. The temperature is part of the policy (Ziegler et al.
    2019): pass the sampler's. `master`: its grad takes the weight's gradient, which autograd then gets none of; nothing
    else of its size is made. ValueError when temperature <= 0.
    """

    if temperature <= 0:
        raise ValueError(NOT_ABOVE_0.format(temperature))
    chunk = chunk or max(1, ELEMENTS // len(weight))
    logprobs, entropies = _token_logprobs(hidden, weight, targets, temperature, softcap, chunk, entropy, master)
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
        master: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        learns, frozen = ctx.needs_input_grad[0] and not entropy, not ctx.needs_input_grad[1]
        logprobs, entropies = (torch.zeros(len(hidden), device=hidden.device) for _ in range(2))
        slopes = torch.empty_like(hidden) if learns and frozen else hidden.new_empty(0)
        kept: list[Tensor] = []
        for rows in _slices(len(hidden), chunk):
            keep = learns and (frozen or rows.stop * len(weight) <= KEPT)
            found = _read(hidden[rows], weight, targets[rows], temperature, softcap, keep, entropy)
            logprobs[rows], entropies[rows], apart = found
            if apart is not None:
                if frozen:
                    slopes[rows] = apart @ weight.to(hidden.dtype)
                else:
                    kept.append(apart)
        ctx.save_for_backward(hidden, weight, targets, entropies, slopes, *kept)
        ctx.options = temperature, softcap, chunk, entropy, master
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, entropies, slopes, *kept = ctx.saved_tensors
        temperature, softcap, chunk, entropy, master = ctx.options
        scales = (-grads[0] / temperature)[:, None]
        if len(slopes):
            return (slopes.float() * scales).to(hidden.dtype), *(None,) * 7
        d_hidden = torch.empty_like(hidden)
        d_weight: Tensor | None = None if master is None else master.grad
        if d_weight is None and ctx.needs_input_grad[1]:
            d_weight = torch.zeros(weight.shape, device=weight.device)
        for index, rows in enumerate(_slices(len(hidden), chunk)):
            scale = scales[rows]
            if index < len(kept):
                apart = kept[index]
            elif entropy:
                logits, slope = _logits(hidden[rows], weight, temperature, softcap, True)
                logp = torch.log_softmax(logits, dim=-1)
                apart = logp.exp() * (scale - grads[1][rows, None] * (logp + entropies[rows, None]) / temperature)
                apart = _apart(apart, targets[rows, None], slope, scale).to(hidden.dtype)
                scale = torch.ones_like(scale)
            else:
                apart = _read(hidden[rows], weight, targets[rows], temperature, softcap, True, False)[2]
            d_hidden[rows] = (apart @ weight.to(hidden.dtype)).float().mul_(scale).to(hidden.dtype)
            if d_weight is not None:
                _add_product(d_weight, apart.T, (hidden[rows].float() * scale).to(hidden.dtype))
        if master is not None:
            master.grad, d_weight = d_weight, None
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), *(None,) * 6


_token_logprobs: Any = _TokenLogprobs.apply


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, a slice of rows at a time."""
    for rows in _slices(len(left), max(1, PRODUCT // right.shape[1])):
        accumulate(total[rows], left[rows] @ right)


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


def _read(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    softcap: float | None,
    apart: bool,
    entropy: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """log p_t and, where asked for, the entropy of p (not with `apart`), and p - 1_t times the cap's slope in hidden's
    dtype."""
    if softcap is None and suits(hidden):
        logits = hidden @ weight.to(hidden.dtype).T
        return *read_rows(logits, targets, temperature, apart=apart), logits if apart else None
    logits, slope = _logits(hidden, weight, temperature, softcap, apart)
    logp, at = torch.log_softmax(logits, dim=-1), targets[:, None]
    chosen = logp.gather(-1, at)[:, 0]
    entropies = -torch.linalg.vecdot(logp.exp(), logp) if entropy else torch.zeros_like(chosen)
    return chosen, entropies, _apart(logp.exp_(), at, slope).to(hidden.dtype) if apart else None


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

    if temperature <= 0:
        raise ValueError(NOT_ABOVE_0.format(temperature))
    rows = hidden_p, hidden_q, targets
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*rows, weight_p, weight_q))
    at_once = not learns and softcap is None and suits(hidden_p) and hidden_p.dtype == hidden_q.dtype

    def read(hidden_p: Tensor, hidden_q: Tensor, targets: Tensor) -> Compared:
        if at_once:
            logits_p, logits_q = hidden_p @ weight_p.to(hidden_p.dtype).T, hidden_q @ weight_q.to(hidden_q.dtype).T
            return Compared(*compare_rows(logits_p, logits_q, targets, temperature))
        logp = _log_softmax(hidden_p, weight_p, temperature, softcap)
        logq = _log_softmax(hidden_q, weight_q, temperature, softcap)
        p, chosen = logp.exp(), targets[:, None]
        entropy, cross = -torch.linalg.vecdot(p, logp), -torch.linalg.vecdot(p, logq)
        return Compared(logp.gather(-1, chosen)[:, 0], logq.gather(-1, chosen)[:, 0], entropy, cross - entropy)

    chunk = chunk or max(1, ELEMENTS // len(weight_p))
    parts: list[Compared] = [
        checkpoint(read, *part, use_reentrant=False, preserve_rng_state=False) if learns else read(*part)
        for part in zip(*(torch.split(tensor, chunk) for tensor in rows), strict=True)
    ]
    return Compared(*map(torch.cat, zip(*parts, strict=True)))


def _log_softmax(hidden: Tensor, weight: Tensor, temperature: float, softcap: float | None) -> Tensor:
    return torch.log_softmax(_logits(hidden, weight, temperature, softcap, False)[0], dim=-1)
