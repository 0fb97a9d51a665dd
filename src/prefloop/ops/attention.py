"""Attention of one block of queries over one block of keys, by grouped products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Traits:
    """What a layer's attention does beside softmax(q k): read from the model, per layer."""

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, traits: Traits) -> Tensor:
    """Scaled dot-product attention with grouped query heads (Ainslie et al. 2023).

    query [..., H, L, D], key and value [..., Hk, S, D] with H a multiple of Hk, bias broadcastable to
    [..., L, S] fp32, 0 where seen and -inf where not; softmax in fp32. Returns [..., H, L, D] in value's dtype.
    """
    heads, length, width = query.shape[-3:]
    kv_heads, keys = key.shape[-3], key.shape[-2]
    rows = heads // kv_heads * length
    grouped = query.reshape(*query.shape[:-3], kv_heads, rows, width)
    scores = torch.matmul(grouped, key.transpose(-1, -2)).float() * traits.scaling
    if traits.softcap is not None:
        scores = traits.softcap * torch.tanh(scores / traits.softcap)
    scores = scores.view(*query.shape[:-3], heads, length, keys)
    if bias is not None:
        scores = scores + bias.unsqueeze(-3)
    if traits.sinks is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        sinks = traits.sinks.float().view(heads, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]
    weights = weights.to(value.dtype).view(*query.shape[:-3], kv_heads, rows, keys)
    return torch.matmul(weights, value).view(*query.shape[:-1], value.shape[-1])
