"""Attention against its formula, written out for one query at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prefloop.ops.attention import Traits, attend


def naive(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, traits: Traits) -> Tensor:
    """[H, L, D] x [Hk, S, D]: softmax over the keys (and one sink a head, which has no value) in float64."""
    out = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=torch.float64)
    group = query.shape[0] // key.shape[0]
    for head in range(query.shape[0]):
        for row in range(query.shape[1]):
            scores = []
            for column in range(key.shape[1]):
                score = float(query[head, row].double() @ key[head // group, column].double()) * traits.scaling
                if traits.softcap is not None:
                    score = traits.softcap * math.tanh(score / traits.softcap)
                scores.append(score + (0.0 if bias is None else float(bias[row, column])))
            extra = [] if traits.sinks is None else [float(traits.sinks[head])]
            total = sum(math.exp(s) for s in scores + extra)
            for column, score in enumerate(scores):
                out[head, row] += math.exp(score) / total * value[head // group, column].double()
    return out


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(h, n, 8, generator=generator) for h, n in ((6, 4), (2, 7), (2, 7)))
    bias = torch.zeros(4, 7).masked_fill_(torch.ones(4, 7, dtype=torch.bool).triu(4), float("-inf"))
    return query, key, value, bias


@pytest.mark.parametrize(
    "traits",
    [
        Traits(scaling=0.35),
        Traits(scaling=0.35, softcap=0.7),
        Traits(scaling=0.35, sinks=torch.linspace(-2, 3, 6)),
        Traits(scaling=0.35, softcap=0.7, sinks=torch.linspace(-2, 3, 6)),
    ],
    ids=["plain", "softcap", "sinks", "both"],
)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_its_formula(traits: Traits, masked: bool) -> None:
    query, key, value, bias = inputs(0)
    given = bias if masked else None
    torch.testing.assert_close(
        attend(query, key, value, given, traits).double(), naive(query, key, value, given, traits), atol=1e-6, rtol=1e-5
    )


def test_leading_axes_are_a_batch() -> None:
    one, other = inputs(1), inputs(2)
    query, key, value = (torch.stack([a, b]) for a, b in zip(one[:3], other[:3], strict=True))
    bias = torch.stack([one[3], torch.zeros_like(one[3])])
    both = attend(query, key, value, bias, Traits(scaling=0.5))
    torch.testing.assert_close(both[0], attend(*one[:3], one[3], Traits(scaling=0.5)))
    torch.testing.assert_close(both[1], attend(*other[:3], None, Traits(scaling=0.5)))


def test_a_key_that_is_not_seen_has_no_influence_and_no_gradient() -> None:
    query, key, value, bias = inputs(3)
    key.requires_grad_()
    value.requires_grad_()
    attend(query, key, value, bias, Traits(scaling=0.5))[:, 0].sum().backward()
    assert key.grad is not None and value.grad is not None
    assert not key.grad[:, 4:].any() and not value.grad[:, 4:].any()
    assert key.grad[:, :4].any() and value.grad[:, :4].any()


def test_a_large_sink_takes_all_the_weight() -> None:
    query, key, value, _ = inputs(4)
    assert not attend(query, key, value, None, Traits(scaling=0.5, sinks=torch.full((6,), 200.0))).any()


def test_softmax_is_fp32_and_the_result_has_the_values_dtype() -> None:
    query, key, value, bias = inputs(5)
    low = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), bias, Traits(scaling=0.35))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), attend(query, key, value, bias, Traits(scaling=0.35)), atol=0.05, rtol=0.05)
