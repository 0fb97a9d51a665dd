"""Attention over one row of tokens, block by block, with one backward pass for all of them. Blocks of like size are
stacked, padded, so that one product does for many.

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
STACKED = 2**19  # scores of a stack's heads, at most: they stay in a core's cache from product to softmax to product
PADDED = 1.25  # times the scores that its blocks need


@dataclass(frozen=True, slots=True)
class Block:
    """Queries start..stop - 1, the ranges of keys that some of them see, in order, and the bias [L, S] that tells
    which: 0 where seen, -inf where not."""

    start: int
    stop: int
    keys: Ranges
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Stack:
    """N blocks as one, of L queries and S keys each. Queries that share a key head, G of them a token, are rows of one
    product; a row that pads is the one after a head's last.

    asked: places [N x G x L] among G x (T + 1) queries; read: places [N x S] of keys; ranges: (block, first of its S
    keys, start, stop) of each run of keys.
    """

    bias: Tensor  # [N, 1, L, S]
    asked: Tensor
    read: Tensor
    ranges: tuple[tuple[int, int, int, int], ...]

    def shape(self, group: int) -> tuple[int, int, int, int]:
        """Of the scores of one key head: blocks, G, L, S."""
        blocks, _, rows, keys = self.bias.shape
        return blocks, group, rows, keys


def stacked(blocks: Sequence[Block], heads: int, key_heads: int, length: int) -> list[Stack]:
    """Stack the blocks of a row of `length` tokens for so many heads of queries and of keys."""
    left = sorted(blocks, key=lambda block: block.bias.shape[::-1], reverse=True)
    made = []
    while left:
        members, left = _alike(left, heads)
        made.append(_stack(members, heads // key_heads, length))
    return made


def _alike(blocks: Sequence[Block], heads: int) -> tuple[list[Block], list[Block]]:
    """Blocks for one stack, the first among them, and the others."""
    members, others = [blocks[0]], list[Block]()
    (rows, keys), needed = blocks[0].bias.shape, blocks[0].bias.numel()
    for block in blocks[1:]:
        (more, some), own = block.bias.shape, block.bias.numel()
        padded = (len(members) + 1) * max(rows, more) * max(keys, some)
        if padded <= PADDED * (needed + own) and padded * heads <= STACKED:
            members.append(block)
            rows, keys, needed = max(rows, more), max(keys, some), needed + own
        else:
            others.append(block)
    return members, others


def _stack(blocks: Sequence[Block], group: int, length: int) -> Stack:
    device, rows, keys = blocks[0].bias.device, *(max(block.bias.shape[axis] for block in blocks) for axis in (0, 1))
    bias = blocks[0].bias.new_full((len(blocks), rows, keys), float("-inf"))
    bias[:, :, 0] = 0  # a row that pads sees something
    queries = torch.full((len(blocks), rows), length, device=device)
    read = torch.zeros((len(blocks), keys), dtype=torch.long, device=device)
    ranges = []
    for index, block in enumerate(blocks):
        count, seen = block.bias.shape
        bias[index, :count, :seen] = block.bias
        queries[index, :count] = torch.arange(block.start, block.stop, device=device)
        first = 0
        for start, stop in block.keys:
            read[index, first : first + stop - start] = torch.arange(start, stop, device=device)
            ranges.append((index, first, start, stop))
            first += stop - start
    asked = torch.arange(group, device=device)[None, :, None] * (length + 1) + queries[:, None]
    return Stack(bias[:, None], asked.flatten(), read.flatten(), tuple(ranges))


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, stacks: Sequence[Stack], traits: Traits) -> Tensor:
    """Scaled dot-product attention with grouped query heads (Ainslie et al. 2023), each query over its block's keys.

    query [H, T, D], key [Hk, T, D] and value [Hk, T, E] with H a multiple of Hk; every token stands in one block.
    Products are in the tensors' dtype, the softmax within is fp32, and so are sums of gradients over blocks. Returns
    [H, T, E].
    """
    out: Tensor = _attend(query, key, value, traits.sinks, stacks, traits)
    return out


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        stacks: Sequence[Stack],
        traits: Traits,
    ) -> Tensor:
        (heads, length, _), key_heads = query.shape, len(key)
        queries, key, value = _by_key_head(query, key_heads), key.contiguous(), value.contiguous()
        out = queries.new_empty(*queries.shape[:2], value.shape[2])
        weights: list[Tensor] = []
        squashed: list[Tensor] = []
        for stack in stacks:
            rows, keys, values = (
                _rows(queries, stack.asked, stack),
                *(_rows(x, stack.read, stack) for x in (key, value)),
            )
            shape = len(rows), rows.shape[1], keys.shape[1]
            if traits.softcap is None:
                scores = torch.baddbmm(rows.new_empty(shape), rows, keys.mT, beta=0, alpha=traits.scaling)
            else:
                squashed.append(torch.bmm(rows, keys.mT).float().mul_(traits.scaling / traits.softcap).tanh_())
                scores = traits.softcap * squashed[-1]
            scores.view(key_heads, *stack.shape(heads // key_heads)).add_(stack.bias)
            if sinks is not None:
                sink = sinks.to(scores.dtype).view(key_heads, 1, -1, 1, 1)
                sink = sink.expand(key_heads, *stack.shape(heads // key_heads)[:3], 1)
                scores = torch.cat([scores, sink.reshape(*shape[:2], 1)], dim=-1)
            weights.append(torch.softmax(scores, dim=-1).to(query.dtype))
            _put(out, stack, torch.bmm(weights[-1][..., : shape[2]], values))
        ctx.save_for_backward(queries, key, value, *weights, *squashed)
        ctx.stacks, ctx.traits, ctx.shape = stacks, traits, query.shape
        return out.view(heads, length + 1, -1)[:, :length]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """With S the scores and P = softmax(S): dV = P' dO, dP = dO V', dS = P x (dP - rowsum(P x dP)), dQ = dS K,
        dK = dS' Q."""
        queries, key, value, *saved = ctx.saved_tensors
        stacks: Sequence[Stack] = ctx.stacks
        traits: Traits = ctx.traits
        heads, length, width = ctx.shape
        d_outs = _by_key_head(grads[0], len(key))
        d_query = torch.empty_like(queries)
        d_key, d_value = (torch.zeros(part.shape, device=key.device) for part in (key, value))
        d_sinks = None if traits.sinks is None else torch.zeros(heads, device=key.device)
        for index, stack in enumerate(stacks):
            weights, keys, values = saved[index], *(_rows(x, stack.read, stack) for x in (key, value))
            rows, d_out = (_rows(x, stack.asked, stack) for x in (queries, d_outs))
            size = keys.shape[1]
            d_weights = torch.bmm(d_out, values.mT)
            _add(d_value, stack, torch.bmm(weights[..., :size].mT, d_out))
            if d_sinks is not None:
                d_weights = torch.nn.functional.pad(d_weights, (0, 1))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if d_sinks is not None:
                by_head = d_scores[..., size].reshape(len(key), *stack.shape(heads // len(key))[:3])
                d_sinks += by_head.sum(dim=(1, 3), dtype=torch.float32).flatten()
                d_scores = d_scores[..., :size]
            if traits.softcap is not None:
                d_scores = (d_scores * (1 - saved[len(stacks) + index].square())).to(key.dtype)
            _put(d_query, stack, torch.bmm(d_scores, keys))
            _add(d_key, stack, torch.bmm(d_scores.mT, rows))
        d_query = d_query.view(heads, length + 1, width)[:, :length].mul_(traits.scaling)
        made = d_query, d_key.mul_(traits.scaling).to(key.dtype), d_value.to(value.dtype)
        return (*made, None if d_sinks is None or traits.sinks is None else d_sinks.to(traits.sinks.dtype), None, None)


def _by_key_head(tensor: Tensor, key_heads: int) -> Tensor:
    """[H, T, E] -> [Hk, G x (T + 1), E], with a row of zeros after each head's last."""
    return torch.nn.functional.pad(tensor, (0, 0, 0, 1)).view(key_heads, -1, tensor.shape[2])


def _rows(tensor: Tensor, places: Tensor, stack: Stack) -> Tensor:
    """[Hk, rows, E] -> [Hk x N, rows of a block, E]."""
    return tensor.index_select(1, places).view(len(tensor) * len(stack.bias), -1, tensor.shape[2])


def _put(total: Tensor, stack: Stack, part: Tensor) -> None:
    """The inverse, for queries."""
    total.index_copy_(1, stack.asked, part.view(len(total), -1, total.shape[2]))


def _add(total: Tensor, stack: Stack, part: Tensor) -> None:
    """The inverse, for keys, which several blocks may see."""
    parts = part.float().view(len(total), len(stack.bias), -1, total.shape[2])
    for block, first, start, stop in stack.ranges:
        total[:, start:stop] += parts[:, block, first : first + stop - start]


_attend: Any = _Blocks.apply
