"""Attention block by block against one attention over all, by autograd: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prefloop.ops.attention import Traits, attend
from prefloop.ops.blocks import Block, attend_blocks, stacked

# A prompt of 5 tokens in two blocks, and answers of 3 and 4 that do not see each other.
ROWS = ((0, 2, ((0, 2),)), (2, 5, ((0, 5),)), (5, 8, ((0, 8),)), (8, 12, ((0, 5), (8, 12))))


def sees(query: int, key: int) -> bool:
    return key <= query and not (query >= 8 and 5 <= key < 8)


def bias(queries: range, keys: list[int], dtype: torch.dtype) -> Tensor:
    rows = [[0.0 if sees(q, k) else -float("inf") for k in keys] for q in queries]
    return torch.tensor(rows, dtype=dtype)


def blocks(dtype: torch.dtype) -> list[Block]:
    return [
        Block(start, stop, keys, bias(range(start, stop), [k for a, b in keys for k in range(a, b)], dtype))
        for start, stop, keys in ROWS
    ]


def inputs(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 12, 8), (2, 12, 8), (2, 12, 8), (6,))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_blocks_are_one_attention(softcap: float | None, sinks: bool) -> None:
    def learn(whole: bool) -> list[Tensor]:
        query, key, value, sink = inputs(torch.float64)
        traits = Traits(scaling=0.35, softcap=softcap, sinks=sink if sinks else None)
        if whole:
            out = attend(query, key, value, bias(range(12), list(range(12)), torch.float64), traits)
        else:
            out = attend_blocks(query, key, value, stacked(blocks(torch.float64), 6, 2, 12), traits)
        weights = torch.arange(out.numel(), dtype=torch.float64).view(out.shape).cos()
        (out * weights).sum().backward()  # type: ignore[no-untyped-call]
        return [out.detach(), *(x.grad for x in (query, key, value, sink) if x.grad is not None)]

    found, wanted = learn(False), learn(True)
    assert len(found) == (5 if sinks else 4)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-6)


def test_gradients_of_many_blocks_add_up_in_fp32() -> None:
    """A prompt that 600 answers see: bf16 sums of equal numbers stop growing at 256 of them."""
    key = torch.ones(1, 1 + 600, 4, dtype=torch.bfloat16)
    value, query = key.clone().requires_grad_(), key.clone()
    answers = [
        Block(i, i + 1, ((0, 1), (i, i + 1)) if i else ((0, 1),), torch.zeros(1, 2 if i else 1).bfloat16())
        for i in range(601)
    ]
    attend_blocks(query, key, value, stacked(answers, 1, 1, 601), Traits(scaling=0.5)).sum().backward()
    assert value.grad is not None
    assert value.grad[0, 0].tolist() == pytest.approx([301.0] * 4, rel=0.01)
