"""The fused attention of a forest: its mask against the definition and torch's own, its results against products."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex_attention_module
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from prefloop.ops.attention import Traits, attend
from prefloop.ops.flex import BLOCK, flex_attend, forest_mask

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
LISTS = [f"{full}{side}_{what}" for full in ("", "full_") for side in ("kv", "q") for what in ("num_blocks", "indices")]
TRAITS = {
    "plain": Traits(scaling=0.3),
    "window": Traits(scaling=0.3, window=9),
    "softcap": Traits(scaling=0.3, softcap=0.7),
    "sinks": Traits(scaling=0.3, sinks=torch.linspace(-2, 3, 4)),
    "all": Traits(scaling=0.3, window=200, softcap=0.7, sinks=torch.linspace(-2, 3, 4)),
}

Forest = tuple[Tensor, Tensor, Tensor]  # positions, nodes, visible


def forest(seed: int, trees: int, longest: int, *, flat: bool = False) -> Forest:
    """Random trees in one row; parents stand anywhere before their children, so the row is in no depth-first order."""
    chance = random.Random(seed)
    ancestors: list[list[int]] = []
    ends: list[int] = []
    positions: list[int] = []
    nodes: list[int] = []
    for _ in range(trees):
        root = len(ancestors)
        for index in range(root, root + chance.randint(1, 8)):
            parent = root if flat else max(root, index - chance.randint(1, 4))
            start = 0 if index == root else ends[parent]
            length = chance.randint(1, longest)
            ancestors.append([index] if index == root else [*ancestors[parent], index])
            ends.append(start + length)
            positions += range(start, start + length)
            nodes += [index] * length
    visible = torch.zeros(len(ancestors), len(ancestors), dtype=torch.bool)
    for index, above in enumerate(ancestors):
        visible[index, above] = True
    return torch.tensor(positions), torch.tensor(nodes), visible


def defined(layout: Forest, window: int | None) -> Tensor:
    """[T, T]: an ancestor or the own node, not later, and within the window."""
    positions, nodes, visible = layout
    gap = positions[:, None] - positions
    return visible[nodes][:, nodes] & (gap >= 0) & (gap < (window or len(positions)))


def evaluated(mask: BlockMask) -> Tensor:
    rows = torch.arange(mask.shape[-1], device=mask.kv_indices.device)
    nothing = rows.new_zeros(())
    return mask.mask_mod(nothing, nothing, rows[:, None], rows)


@pytest.mark.parametrize("window", [None, 1, 5, 150, 400])
@pytest.mark.parametrize(
    "layout",
    [
        forest(0, 1, 1),
        forest(1, 5, 30),
        forest(2, 4, 60, flat=True),
        forest(3, 2, 500),
        forest(4, 1, 600, flat=True),
        (torch.arange(2 * BLOCK), torch.zeros(2 * BLOCK, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)),
    ],
    ids=["one-token", "deep", "flat", "deep-long", "flat-long", "whole-blocks"],
)
def test_blocks_are_torchs_own(layout: Forest, window: int | None) -> None:
    """Which blocks are skipped, masked and whole, found without a T x T matrix, and what a masked one lets through."""
    mask, size = forest_mask(*layout, window), len(layout[0])
    assert torch.equal(evaluated(mask), defined(layout, window))
    expected = create_block_mask(mask.mask_mod, 1, 1, size, size, device="cpu")
    assert mask.shape == expected.shape and mask.BLOCK_SIZE == expected.BLOCK_SIZE
    for name in LISTS:
        assert torch.equal(getattr(mask, name), getattr(expected, name)), name


def test_long_trees_have_blocks_of_every_kind() -> None:
    """The comparison above would not see a kind that never occurs."""
    mask = forest_mask(*forest(3, 2, 500), None)
    whole, some = int(mask.full_kv_num_blocks.sum()), int(mask.kv_num_blocks.sum())
    assert whole > 5 and some > 5 and whole + some < mask.kv_num_blocks.numel() ** 2 / 2


def rows(layout: Forest, key_heads: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(h, len(layout[0]), 16, generator=generator) for h in (4, key_heads, key_heads))
    return query, key, value


def products(query: Tensor, key: Tensor, value: Tensor, layout: Forest, traits: Traits) -> Tensor:
    seen = defined(layout, traits.window)
    return attend(query, key, value, torch.zeros(seen.shape).masked_fill_(~seen, float("-inf")), traits)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("key_heads", [1, 2])
@pytest.mark.parametrize("name", TRAITS)
@pytest.mark.parametrize("device", DEVICES)
def test_it_equals_the_products(device: str, name: str, key_heads: int) -> None:
    traits = TRAITS[name]
    on = traits if traits.sinks is None else replace(traits, sinks=traits.sinks.to(device))
    for layout in (forest(5, 3, 40), forest(7, 1, 9)):
        given = rows(layout, key_heads)
        mask = forest_mask(*(part.to(device) for part in layout), traits.window)
        found = flex_attend(*(part.to(device) for part in given), mask, on)
        torch.testing.assert_close(found.cpu(), products(*given, layout, traits), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", TRAITS)
@pytest.mark.parametrize("device", DEVICES)
def test_its_gradients_are_the_products(device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch refuses gradients on a CPU, whose kernel has none; its plain formula, which runs here, has them."""
    monkeypatch.setattr(flex_attention_module, "_validate_device", lambda *_: None)
    layout, traits = forest(5, 3, 40), TRAITS[name]
    given = [part.requires_grad_() for part in rows(layout, 2)]
    if traits.sinks is not None:
        given.append(traits.sinks.clone().requires_grad_())
    weights = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1))

    def gradients(there: list[Tensor], attend: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        with_sinks = replace(traits, sinks=there[3]) if len(there) > 3 else traits
        return torch.autograd.grad((attend(*there[:3], with_sinks) * weights.to(there[0].device)).sum(), there)

    mask = forest_mask(*(part.to(device) for part in layout), traits.window)
    there = [part.detach().to(device).requires_grad_() for part in given]
    found = gradients(there, lambda q, k, v, t: flex_attend(q, k, v, mask, t))
    expected = gradients(given, lambda q, k, v, t: products(q, k, v, layout, t))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-5, rtol=1e-4)
