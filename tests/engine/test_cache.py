"""Keys and values: what a store keeps, which rows share a prompt, and a budget that holds whatever is asked."""

from __future__ import annotations

import random
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.engine.cache import Cache, Places, Reading, Store
from prefloop.engine.generate import LocalSampler
from prefloop.engine.verbs import Request
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.types import PrefloopError, Sampling

SOURCE = LoadedModel(tiny_model(5), tiny_tokenizer(), "tiny", "")
EACH = 2 * 2 * 2 * 16 * 4  # bytes of a token: two layers, keys and values, two heads of 16 numbers in fp32


def test_a_store_keeps_its_tokens_when_it_grows_shrinks_and_moves_them() -> None:
    store = Store({0: torch.empty(2, 0, 3, 0, 4)}, step=8)
    store.resize(3, 5)
    assert store.layers[0].shape == (2, 3, 3, 8, 4) and store.bytes(3, 5) == store.layers[0].nbytes
    store.lengths = [2, 5, 1]
    slots = [slot for slot, length in enumerate(store.lengths) for _ in range(length)]
    at = [place for length in store.lengths for place in range(length)]
    vectors = torch.randn(8, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    Places(store, torch.tensor(slots), torch.tensor(at)).keep(0, vectors)

    def token(slot: int, place: int) -> torch.Tensor:
        return store.layers[0][:, slot, :, place]

    for index, (slot, place) in enumerate(zip(slots, at, strict=True)):
        assert torch.equal(token(slot, place), vectors[index])
    store.drop(0)
    assert store.lengths == [1, 5] and torch.equal(token(0, 0), vectors[7])
    store.resize(2, 9)
    assert store.layers[0].shape[3] == 16 and torch.equal(token(1, 4), vectors[6])
    assert float(store.layers[0][:, :, :, 8:].abs().sum()) == 0
    store.drop(1)
    store.resize(1, 1)
    assert torch.equal(token(0, 0), vectors[7]) and store.length == 8


def make(groups: list[tuple[int, int, int]]) -> list[Request]:
    """For each prompt its length, how many answers, and their longest."""
    chance = random.Random(0)
    return [
        Request(
            id=f"{p}/{g}",
            prompt_id=str(p),
            tokens=tokens,
            sampling=Sampling(max_tokens=max(1, longest - g)),
            seed=10 * p + g,
        )
        for p, (size, count, longest) in enumerate(groups)
        for tokens in [(p, *(chance.randrange(256) for _ in range(size - 1)))]
        for g in range(count)
    ]


GROUPS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 36)), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None)
@given(GROUPS, st.integers(0, 200), st.integers(1, 8))
def test_the_budget_holds_and_everything_is_answered(
    groups: list[tuple[int, int, int]], spare: int, max_rows: int
) -> None:
    requests = make(groups)
    need = 112 + spare  # tokens: the longest prompt and its longest answer in steps of 8 and 32, and a little more
    held: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        reserve = Cache.reserve

        def watched(cache: Cache, *sizes: Any) -> None:
            reserve(cache, *sizes)
            held.append(cache.held)

        patch.setattr(Cache, "reserve", watched)
        sampler = LocalSampler(SOURCE, context=2048, max_rows=max_rows, cache_mb=need * EACH / 2**20)
        found = {c.id: c for c in sampler.generate(requests)}
    assert len(found) == len(requests) and max(held) <= need * EACH
    free = {c.id: c.tokens for c in LocalSampler(SOURCE, context=2048).generate(requests)}
    assert {name: c.tokens for name, c in found.items()} == free


def test_what_moved_is_held_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a step of decoding in bf16 either, which is listed once with all that it reads."""
    resize, moved = Store.resize, 0

    def watched(store: Store, *sizes: int) -> None:
        nonlocal moved
        before = [weakref.ref(layer) for layer in store.layers.values() if layer.numel()]
        resize(store, *sizes)
        moved += len(before)
        assert not any(layer() is not None for layer in before)

    monkeypatch.setattr(Store, "resize", watched)
    source = LoadedModel(tiny_model(5).bfloat16(), tiny_tokenizer(), "tiny", "")
    assert list(LocalSampler(source, context=2048).generate(make([(8, 3, 100)])))
    assert moved >= 4


def test_a_row_that_does_not_fit_is_refused() -> None:
    sampler = LocalSampler(SOURCE, context=2048, cache_mb=64 * EACH / 2**20)
    assert list(sampler.generate(make([(33, 1, 32)])))
    message = (
        "'0' has 33 tokens and 33 new ones, whose keys and values do not fit into 0.03125 MiB; raise engine.cache_mb"
    )
    with pytest.raises(PrefloopError, match=message):
        list(sampler.generate(make([(33, 1, 33)])))


@pytest.mark.parametrize("max_rows", [2, 5, 64])
def test_a_prompt_is_read_once(max_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Counted(Reading):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            read.append(len(self.positions))
            assert self.count == 1 or self.count * self.longest <= 30

    monkeypatch.setattr("prefloop.engine.generate.Reading", Counted)
    monkeypatch.setattr("prefloop.engine.generate.TOKENS", 30)
    requests = make([(20, 9, 6), (11, 1, 6), (15, 3, 6)])  # 20 and then 15 with 11, each as long as 15
    assert len(list(LocalSampler(SOURCE, context=2048, max_rows=max_rows).generate(requests))) == 13
    assert sum(read) == 20 + 11 + 15 and max(read) <= 30


def test_long_prompts_attend_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = make([(40, 2, 4), (23, 1, 4), (7, 1, 4)])
    whole = {c.id: c for c in LocalSampler(SOURCE, context=2048).generate(requests)}
    monkeypatch.setattr("prefloop.engine.cache.QUERIES", 6)
    for made in LocalSampler(SOURCE, context=2048).generate(requests):
        assert made.tokens == whole[made.id].tokens
        assert made.segments[0].logprobs == pytest.approx(whole[made.id].segments[0].logprobs, abs=1e-5)
