"""Steps of static shape: the same tokens and log-probs as the plain sampler's, and nothing in them from the host."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prefloop.engine.cache import Store
from prefloop.engine.decode import Decoder
from prefloop.engine.generate import LocalSampler
from prefloop.engine.graphs import ALIGNED, SHORTEST, StaticCache, Steps, bucket, capturable
from prefloop.engine.verbs import Request, Weights
from prefloop.models.load import LoadedModel
from prefloop.models.lora import attach
from prefloop.models.tiny import FAMILIES, tiny_model, tiny_tokenizer
from prefloop.types import Completion, PrefloopError, Sampling

TOKENIZER = tiny_tokenizer()
STOPS = frozenset(range(0, 259, 8))
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def make(model: Any, device: str = "cpu", *, static: bool, max_rows: int = 64, cache_mb: int = 512) -> LocalSampler:
    loaded = LoadedModel(model.to(device), TOKENIZER, "tiny", "")
    sampler = LocalSampler(loaded, context=2048, max_rows=max_rows, cache_mb=cache_mb)
    sampler.stops, sampler.static = STOPS, static
    return sampler


def make_requests(prompts: int = 5, group: int = 3, max_tokens: int = 14, size: int = 5) -> list[Request]:
    chance = random.Random(0)
    return [
        Request(
            id=f"{p}/{g}",
            prompt_id=str(p),
            tokens=tokens,
            sampling=Sampling(temperature=(0.8, 1.0)[g % 2], max_tokens=max_tokens + p),
            seed=100 * p + g,
        )
        for p in range(prompts)
        for tokens in [tuple(chance.randrange(256) for _ in range(1 + size * p))]
        for g in range(group)
    ]


def written(sampler: LocalSampler, requests: list[Request]) -> dict[str, Completion]:
    return {completion.id: completion for completion in sampler.generate(requests)}


def assert_same(found: dict[str, Completion], expected: dict[str, Completion]) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert (found[name].tokens, found[name].finish_reason) == (wanted.tokens, wanted.finish_reason)
        np.testing.assert_allclose(found[name].segments[0].logprobs, wanted.segments[0].logprobs, atol=1e-4)


@pytest.mark.parametrize(("prompts", "group", "max_rows"), [(5, 3, 64), (4, 4, 5), (9, 1, 4)])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_static_steps_write_the_same(family: str, device: str, prompts: int, group: int, max_rows: int) -> None:
    """Prompts shared or not, rows that leave, are moved and refilled, and prompts whose rows come in several turns."""
    requests = make_requests(prompts, group)
    plain = written(make(tiny_model(5, family=family), static=False), requests)
    static = make(tiny_model(5, family=family), device, static=True, max_rows=max_rows)
    assert_same(written(static, requests), plain)
    assert_same(written(static, requests[::-1]), plain)
    assert len({len(c.tokens) for c in plain.values()}) > 4


def test_rows_pass_from_a_length_to_the_next() -> None:
    requests = make_requests(3, 2, max_tokens=SHORTEST + 20, size=30)
    plain, static = make(tiny_model(5), static=False), make(tiny_model(5), static=True)
    plain.stops = static.stops = frozenset({-1})
    shapes: set[tuple[int, int]] = set()
    made = written(static, requests[:1])
    assert static.steps is not None
    step = static.steps.step

    def seen(given: Tensor, length: int) -> Tensor:
        shapes.add((len(given), length))
        return step(given, length)

    static.steps.step = seen
    assert_same(made | written(static, requests[:1]), written(plain, requests[:1]))
    assert shapes == {(1, SHORTEST), (1, 2 * SHORTEST)}
    assert_same(written(static, requests), written(plain, requests))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_an_update_is_served_by_the_steps_that_are_there(device: str, fast: bool) -> None:
    model = tiny_model(3, layers=3)
    attach(model, rank=4, alpha=8, last_layers=2, seed=0)
    static = make(model, device, static=True)
    if not fast:
        static.decoder = None
    requests = make_requests()
    before = written(static, requests)
    steps = static.steps
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.requires_grad
    if fast:
        static.load(Weights(1, static.loaded))
        static.stops, static.static = STOPS, True
    after = written(static, requests)
    assert static.steps is steps
    assert_same(after, written(make(model, device, static=False), requests))
    assert any(after[name].tokens != c.tokens for name, c in before.items())


def test_weights_keep_their_memory_where_they_are_not_packed() -> None:
    """Graphs go on reading it. Nothing packs doubles, as nothing packs on a GPU."""
    model = tiny_model(3, layers=3).double()
    attach(model, rank=4, alpha=8, last_layers=2, seed=0)
    decoder = Decoder(model)
    products = [product for layer in decoder.layers for product in layer]
    before = [(p.weight.data_ptr(), p.weight.clone()) for p in products]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.requires_grad
    decoder.load()
    now = [product for layer in decoder.layers for product in layer]
    assert [p.weight.data_ptr() for p in now] == [pointer for pointer, _ in before]
    fresh = [product for layer in Decoder(model).layers for product in layer]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(now, fresh, strict=True))
    assert [torch.equal(p.weight, old) for p, (_, old) in zip(now, before, strict=True)] == [True] * 5 + [False] * 10


def test_another_model_takes_other_steps() -> None:
    static, requests = make(tiny_model(5), static=True), make_requests()
    written(static, requests)
    static.load(Weights(1, make(tiny_model(6), static=True).loaded))
    assert static.steps is None
    static.stops, static.static = STOPS, True
    assert_same(written(static, requests), written(make(tiny_model(6), static=False), requests))


def test_room_is_kept_while_it_does() -> None:
    static = make(tiny_model(5), static=True)
    written(static, make_requests())
    steps = static.steps
    written(static, make_requests(3, 2))
    assert static.steps is steps and steps is not None
    assert (steps.cache.rows.slots, steps.cache.rows.length) == (15, ALIGNED)
    written(static, make_requests(2, 2, max_tokens=ALIGNED))
    assert static.steps is not steps


def test_rows_are_as_many_as_memory_holds() -> None:
    requests = make_requests(2, 20)
    static = make(tiny_model(5), static=True, cache_mb=1)
    assert_same(written(static, requests), written(make(tiny_model(5), static=False), requests))
    assert static.steps is not None and 1 < static.steps.cache.rows.slots < 40
    assert static.steps.cache.held <= 2**20


def test_nothing_is_taken_for_rows_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    static = make(tiny_model(5), static=True, cache_mb=0)
    monkeypatch.setattr(Store, "resize", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(PrefloopError, match="do not fit into 0 MiB"):
        written(static, make_requests(2, 20))


@pytest.mark.parametrize(
    ("size", "least", "most", "expected"),
    [(1, 1, 7, 1), (2, 1, 7, 2), (3, 1, 7, 4), (5, 1, 7, 7), (64, 64, 512, 64), (65, 64, 512, 128), (3, 64, 48, 48)],
)
def test_buckets(size: int, least: int, most: int, expected: int) -> None:
    assert bucket(size, least, most) == expected


def test_few_buckets_hold_every_size() -> None:
    for most in (1, 7, 128, 100):
        found = [bucket(size, 1, most) for size in range(1, most + 1)]
        assert all(size <= b <= min(2 * size, most) for size, b in enumerate(found, 1)) and found == sorted(found)
        assert len(set(found)) <= most.bit_length() + 1


class _OffTheDevice(TorchDispatchMode):
    """Refuses tensors that start on the host, as those of lists do, but for single numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.device.type == "cpu" and made.dim() > 0:
            raise AssertionError(f"{func} made a tensor on the host")
        return made


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gpt_oss"}))
def test_a_step_asks_nothing_of_the_host(family: str) -> None:
    """Else no CUDA graph could capture it. On the meta device, which has shapes but no values, reading one raises."""
    sampler = make(tiny_model(5, family=family), static=True)
    assert capturable(sampler.loaded.model)
    empty = {layer: tensor.to("meta") for layer, tensor in sampler._empty().items()}
    sampler.loaded.model.to("meta").config.pad_token_id = None  # transformers looks for padding, but not in a capture
    sampler.load(Weights(1, sampler.loaded))
    meta = torch.device("meta")
    cache = StaticCache(empty, 2**30)
    cache.rows.resize(4, 300)
    sampler.steps = Steps(sampler._static_step, cache, meta, capture=True)
    with torch.no_grad(), _OffTheDevice():
        made = sampler.steps.step(torch.zeros(4, 4, dtype=torch.double, device=meta), 128)
    assert made.shape == (4, 2) and made.device == meta


def test_experts_are_not_captured() -> None:
    assert not capturable(tiny_model(5, family="gpt_oss"))
