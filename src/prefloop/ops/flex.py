"""Attention of a whole forest in one fused kernel that skips blocks in which nobody sees anybody: FlexAttention
(Dong et al. 2024, arXiv 2412.05496), for GPUs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from prefloop.ops.attention import Traits

BLOCK = 128  # rows and columns of the blocks that are skipped, masked or read whole
NARROWEST = 16  # the fused kernel takes no narrower heads
KERNELS = 64  # kernels that may be compiled (dtype, heads, width, ...); over torch's own 8 it falls back to plain code

Mod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def forest_mask(positions: Tensor, nodes: Tensor, visible: Tensor, window: int | None) -> BlockMask:
    """Who sees whom among T tokens: ancestors and the own past, within the window in tree positions.

    positions and nodes [T], every node's tokens side by side; visible [N, N] bool (is the second node an ancestor of
    the first, or itself), parents before their children. Reads no value on the host, and no T x T matrix exists.
    """
    limit = len(positions) if window is None else window
    enter, leave = _intervals(visible)
    some, every = _blocks(positions, nodes, visible, limit)
    seen = _seen(positions.int(), (positions - limit).int(), enter[nodes].int(), leave[nodes].int())
    size = (len(positions), len(positions))
    return BlockMask.from_kv_blocks(*_listed(some & ~every), *_listed(every), BLOCK, seen, size)


def flex_attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, traits: Traits) -> Tensor:
    """Attention of the row with grouped heads: query [H, T, D], key and value [Hk, T, D] -> [H, T, D].

    A sink s joins the softmax as a logit without a value: that is the plain result times sigmoid(lse - s). Compiled on
    a GPU; elsewhere plain and slow, and without gradient.
    """
    attend = _compiled() if query.is_cuda else flex_attention
    capped = None if traits.softcap is None else _capped(traits.softcap, query.device)
    row = (query[None], key[None], value[None])
    options: dict[str, Any] = {"block_mask": mask, "scale": traits.scaling, "enable_gqa": True}
    if traits.sinks is None:
        plain: Tensor = attend(*row, capped, **options)[0]
        return plain
    out, aux = attend(*row, capped, **options, return_aux=AuxRequest(lse=True))
    share = torch.sigmoid(aux.lse[0] - traits.sinks.float()[:, None])
    made: Tensor = out[0] * share[..., None].to(out.dtype)
    return made


@cache
def _compiled() -> Any:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KERNELS)
    return torch.compile(flex_attention, dynamic=True)


@cache
def _capped(softcap: float, device: torch.device) -> Callable[..., Tensor]:
    cap = torch.tensor(softcap, device=device)  # as a number it would be compiled in, or not at all

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


def _seen(positions: Tensor, before: Tensor, enter: Tensor, leave: Tensor) -> Mod:
    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        past = (positions[key] <= positions[query]) & (positions[key] > before[query])
        return past & (enter[key] <= enter[query]) & (enter[query] < leave[key])

    return seen


def _intervals(visible: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [N] of the nodes in depth-first order, and of the first node after each one's descendants: one node
    descends from another where its number lies between these."""
    index = torch.arange(len(visible), device=visible.device)
    above = visible & (index[:, None] != index)
    parent = (above * (index + 1)).amax(-1)
    size = visible.sum(0)
    older = (parent[:, None] == parent) & (index < index[:, None])
    enter = (visible * ((older * size).sum(-1) + 1)).sum(-1)
    return enter, enter + size


def _blocks(positions: Tensor, nodes: Tensor, visible: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Blocks [T/128, T/128] in which some query sees some key, and in which every one sees every one.

    Nodes are cut where blocks end. Two such pieces are ranges of positions, whose gaps are a range too.
    """
    device, rows = positions.device, torch.arange(len(positions), device=positions.device)
    blocks = -(-len(positions) // BLOCK)
    pieces = len(visible) + blocks  # at most; what is left over stays empty
    piece = ((rows % BLOCK == 0) | (nodes != nodes.roll(1))).cumsum(0) - 1
    count = torch.zeros(pieces, dtype=torch.long, device=device).index_add(0, piece, torch.ones_like(rows))
    first = torch.full_like(count, len(positions)).scatter_reduce(0, piece, positions, "amin")
    last = first + count - 1
    node, block = (torch.zeros_like(count).scatter(0, piece, of) for of in (nodes, rows // BLOCK))
    related = visible[node][:, node] & (count[:, None] * count > 0)
    least, most = first[:, None] - last, last[:, None] - first
    some = related & (most >= 0) & (least < limit)
    every = (related & (least >= 0) & (most < limit)) * count[:, None] * count
    place = (block[:, None] * blocks + block).flatten()
    sums = torch.zeros(2, blocks**2, dtype=torch.long, device=device)
    sums = sums.index_add(1, place, torch.stack([some.long(), every]).flatten(1)).view(2, blocks, blocks)
    return sums[0] > 0, sums[1] == BLOCK**2


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row are marked [1, 1, n], and their columns first among all [1, 1, n, n]."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]
