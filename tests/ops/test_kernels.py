"""Compiled kernels of decoding against the same by torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prefloop.engine.generate import draw
from prefloop.ops import kernels
from prefloop.ops.attention import Traits, attend
from prefloop.ops.kernels import Attention, rms_norm
from prefloop.types import PrefloopError

H, HK, D, PROMPTS, LENGTH, SLOTS, PLACES = 6, 2, 16, 3, 24, 7, 40
ERROR = {torch.float32: 1e-6, torch.bfloat16: 4e-3}  # bf16 is rounded once, at the end


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N, H, D] turned in halves."""
    half = D // 2
    return x * cos[:, None] + torch.cat([-x[..., half:], x[..., :half]], -1) * sin[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize(
    "traits",
    [
        Traits(0.25),
        Traits(0.25, window=5),
        Traits(0.25, window=20, softcap=2.0),
        Traits(0.3, sinks=random(H, seed=9)),
    ],
    ids=["plain", "window", "softcap", "sinks"],
)
def test_attention_of_rows_over_their_prompts_and_themselves(traits: Traits, turns: bool, dtype: torch.dtype) -> None:
    """Every row's token sees its prompt (two share one, one has none) and what the row has kept, itself included."""
    at = torch.tensor([0, 1, 5, 39, 12])
    prompt, prefix = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([24, 7, 7, 1, 0])
    heads = random(5, H + 2 * HK, D, seed=1).to(dtype)
    own, given = random(2, SLOTS, HK, PLACES, D, seed=2).to(dtype), random(2, PROMPTS, HK, LENGTH, D, seed=3).to(dtype)
    angles = random(5, D // 2, seed=4).repeat(1, 2)
    kept = own.clone()
    attention = Attention(at, prompt, prefix)
    if turns:
        attention.turn(angles.cos(), angles.sin())
    found = attention(heads, kept, given, traits)

    wide = heads.float()
    query, key, value = wide[:, :H], wide[:, H : H + HK], wide[:, H + HK :]
    if turns:
        query, key = turned(query, angles.cos(), angles.sin()), turned(key, angles.cos(), angles.sin())
    for row, (place, number, size) in enumerate(zip(at.tolist(), prompt.tolist(), prefix.tolist(), strict=True)):
        own[0, row, :, place], own[1, row, :, place] = key[row].to(dtype), value[row].to(dtype)
        seen = torch.cat([given[:, number, :, :size], own[:, row, :, : place + 1]], dim=2).float()
        gap = torch.arange(seen.shape[2] - 1, -1, -1)
        bias = torch.zeros(len(gap)).masked_fill(gap >= (traits.window or 10**9), -float("inf"))[None]
        wanted = attend(query[row, :, None], seen[0], seen[1], bias, traits)
        torch.testing.assert_close(found[row].float(), wanted.flatten(), atol=ERROR[dtype], rtol=ERROR[dtype])
    torch.testing.assert_close(kept, own, atol=ERROR[dtype], rtol=ERROR[dtype])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_rows_out(threads: int) -> None:
    rows = 50
    at, none = torch.arange(rows) % PLACES, torch.zeros(rows, dtype=torch.long)
    heads, own, given = random(rows, H + 2 * HK, D), random(2, rows, HK, PLACES, D), random(2, 1, HK, 0, D)
    logits, uniforms = random(rows, 100), torch.linspace(0, 0.99, rows, dtype=torch.double)
    before, kept = torch.get_num_threads(), own.clone()
    try:
        torch.set_num_threads(threads)
        found = Attention(at, none, none)(heads, kept, given, Traits(0.25))
        drawn = kernels.draw(logits, torch.ones(rows), uniforms, None, 50)
    finally:
        torch.set_num_threads(before)
    expected = [own[:, i : i + 1].clone() for i in range(rows)]
    alone = [
        Attention(at[i : i + 1], none[:1], none[:1])(heads[i : i + 1], expected[i], given, Traits(0.25))
        for i in range(rows)
    ]
    assert torch.equal(found, torch.cat(alone)) and torch.equal(kept.transpose(0, 1), torch.stack(expected)[:, :, 0])
    wanted = (logits.double().softmax(-1).cumsum(-1) <= uniforms[:, None]).sum(-1)
    assert torch.equal(drawn[0], wanted)
    picked = logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]
    torch.testing.assert_close(drawn[1], picked, atol=1e-5, rtol=0)


def test_logits_that_are_not_numbers_are_refused() -> None:
    logits = random(3, 100)
    logits[1, 7] = torch.nan
    with pytest.raises(PrefloopError, match="logits are not numbers"):
        draw(logits, torch.ones(3), torch.full((3,), 0.5, dtype=torch.double))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(dtype: torch.dtype) -> None:
    x, weight = 3 * random(9, 50).to(dtype), random(50, seed=1)
    wanted = torch.nn.functional.rms_norm(x.float(), (50,), weight, 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5).float(), wanted, atol=ERROR[dtype], rtol=ERROR[dtype])
    assert rms_norm(x[:0], weight, 1e-5).shape == (0, 50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_at_the_ends_of_what_floats_hold(dtype: torch.dtype) -> None:
    """Numbers so far apart that all but one have no probability in fp32, and numbers that are all the same."""
    logits = torch.tensor([[-1e4, 0.0, -200.0, -90.0], [7.0] * 4, [-3e38, -3e38, -3e38, 3e38]]).to(dtype)
    uniforms = torch.tensor([1 - 2.0**-53, 0.99, 0.0], dtype=torch.float64)
    tokens, logprobs = kernels.draw(logits, torch.ones(3), uniforms, None, 2)
    assert tokens.tolist() == [1, 3, 3]
    torch.testing.assert_close(logprobs, torch.tensor([1.0, 0.25, 1.0]).log())
