"""Attention over one row of tokens, block by block, with one backward pass for all of them.

Left to autograd, every block would cost a row-long gradient of zeros for each of its slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefloop.ops.attention import Traits

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Queries start..stop - 1, the ranges of keys that some of them see, in order, and the bias [L, S] that tells
    which: 0 where seen, -inf where not."""

    start: int
    stop: int
    keys: Ranges
    bias: Tensor


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], traits: Traits) -> Tensor:
    """Scaled dot-product attention with grouped query heads (Ainslie et al. 2023), each query over its block's keys.

    query [H, T, D], key [Hk, T, D] and value [Hk, T, E] with H a multiple of Hk; every token stands in one block.
    Products are in the tensors' dtype, the softmax within is fp32, and so are sums of gradients over blocks. Returns
    [H, T, E].
    """
    out: Tensor = _attend(query, key, value, traits.sinks, blocks, traits)
    return out


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        blocks: Sequence[Block],
        traits: Traits,
    ) -> Tensor:
        heads, length, _ = query.shape
        keys, values = _per_query_head(key, heads), _per_query_head(value, heads)
        out = query.new_empty(length, heads, value.shape[2]).transpose(0, 1)
        weights: list[Tensor] = []
        squashed: list[Tensor] = []
        for block in blocks:
            rows, size = query[:, block.start : block.stop], block.bias.shape[1]
            columns = _gather(keys, block.keys).transpose(1, 2)
            if traits.softcap is None:
                scores = torch.baddbmm(block.bias, rows, columns, alpha=traits.scaling)
            else:
                squashed.append(torch.tanh(torch.bmm(rows, columns).float() * (traits.scaling / traits.softcap)))
                scores = traits.softcap * squashed[-1] + block.bias
            if sinks is not None:
                sink = sinks.to(scores.dtype).view(heads, 1, 1).expand(*scores.shape[:2], 1)
                scores = torch.cat([scores, sink], dim=-1)
            weights.append(torch.softmax(scores, dim=-1).to(query.dtype))
            out[:, block.start : block.stop] = torch.bmm(weights[-1][..., :size], _gather(values, block.keys))
        ctx.save_for_backward(query, key, value, *weights, *squashed)
        ctx.blocks, ctx.traits = blocks, traits
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """With S the scores and P = softmax(S): dV = P' dO, dP = dO V', dS = P x (dP - rowsum(P x dP)), dQ = dS K,
        dK = dS' Q."""
        query, key, value, *saved = ctx.saved_tensors
        blocks: Sequence[Block] = ctx.blocks
        traits: Traits = ctx.traits
        heads, length, width = query.shape
        keys, values = _per_query_head(key, heads), _per_query_head(value, heads)
        d_query = query.new_empty(length, heads, width).transpose(0, 1)
        d_keys, d_values = (torch.zeros(part.shape, device=query.device) for part in (keys, values))
        d_sinks = None if traits.sinks is None else torch.zeros(heads, device=query.device)
        for index, block in enumerate(blocks):
            weights, size = saved[index], block.bias.shape[1]
            rows, d_out = query[:, block.start : block.stop], grads[0][:, block.start : block.stop]
            d_weights = torch.bmm(d_out, _gather(values, block.keys).transpose(1, 2))
            _scatter(d_values, block.keys, torch.bmm(weights[..., :size].transpose(1, 2), d_out))
            if d_sinks is not None:
                d_weights = torch.nn.functional.pad(d_weights, (0, 1))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if d_sinks is not None:
                d_sinks += d_scores[..., size].sum(dim=1, dtype=torch.float32)
                d_scores = d_scores[..., :size]
            if traits.softcap is not None:
                d_scores = (d_scores * (1 - saved[len(blocks) + index].square())).to(query.dtype)
            d_query[:, block.start : block.stop] = torch.bmm(d_scores, _gather(keys, block.keys))
            _scatter(d_keys, block.keys, torch.bmm(d_scores.transpose(1, 2), rows))
        d_key, d_value = (d.view(len(key), -1, *d.shape[1:]).sum(dim=1) for d in (d_keys, d_values))
        made = (d_query.mul_(traits.scaling), d_key.mul_(traits.scaling).to(key.dtype), d_value.to(value.dtype))
        return (*made, None if d_sinks is None or traits.sinks is None else d_sinks.to(traits.sinks.dtype), None, None)


def _per_query_head(tensor: Tensor, heads: int) -> Tensor:
    """[Hk, T, D] -> [H, T, D]: products over as many heads as there are queries share out better over cores."""
    return tensor if len(tensor) == heads else tensor.repeat_interleave(heads // len(tensor), dim=0)


def _gather(tensor: Tensor, ranges: Ranges) -> Tensor:
    parts = [tensor[:, start:stop] for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _scatter(total: Tensor, ranges: Ranges, part: Tensor) -> None:
    done = 0
    for start, stop in ranges:
        total[:, start:stop] += part[:, done : done + stop - start]
        done += stop - start


_attend: Any = _Blocks.apply
