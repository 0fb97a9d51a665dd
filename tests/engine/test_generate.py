"""The sampler against the learner and against transformers' own attention, its rows shared, refilled and moved."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from prefloop.data.chat import decode
from prefloop.engine.generate import LocalSampler, _drawn, _Empty, draw
from prefloop.engine.local import LocalScorer
from prefloop.engine.verbs import Request, Weights
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import FAMILIES, tiny_model, tiny_tokenizer
from prefloop.ops.attention import Traits
from prefloop.types import Completion, Node, PrefloopError, Sampling, Tree

TOKENIZER = tiny_tokenizer()
STOPS = frozenset(range(0, 259, 8))  # one token in eight ends an answer, so that rows leave at different times


def loaded(family: str = "llama", seed: int = 5) -> LoadedModel:
    return LoadedModel(tiny_model(seed, family=family), TOKENIZER, "tiny", "")


def make_sampler(source: LoadedModel, max_rows: int, stops: frozenset[int] = STOPS) -> LocalSampler:
    sampler = LocalSampler(source, context=2048, max_rows=max_rows, checkpoint="here")
    sampler.stops = stops
    return sampler


def make_requests(prompts: int = 5, group: int = 3, temperature: float = 0.8, max_tokens: int = 14) -> list[Request]:
    chance = random.Random(0)
    return [
        Request(
            id=f"{p}/{g}",
            prompt_id=str(p),
            tokens=tokens,
            sampling=Sampling(temperature=temperature, max_tokens=max_tokens + p),
            seed=100 * p + g,
        )
        for p in range(prompts)
        for tokens in [tuple(chance.randrange(256) for _ in range(1 + 5 * p))]
        for g in range(group)
    ]


def answers(sampler: LocalSampler, requests: list[Request]) -> dict[str, Completion]:
    made = list(sampler.generate(requests))
    found = {completion.id: completion for completion in made}
    assert len(made) == len(found) == len(requests)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_the_learners(family: str) -> None:
    source, requests = loaded(family), make_requests()
    found = answers(make_sampler(source, max_rows=4), requests)
    assert len({len(c.tokens) for c in found.values()}) > 5
    trees = []
    for request in requests:
        tokens = found[request.id].tokens
        answer = Node(parent=0, tokens=tokens, author="policy", fields={"weight": (1.0,) * len(tokens)})
        trees.append(Tree(id=request.id, nodes=(Node(parent=-1, tokens=request.tokens, author="prompt"), answer)))
    readings = LocalScorer(source, token_budget=200).forward(trees, {"logprobs"}, temperature=0.8)
    for request, reading in zip(requests, readings, strict=True):
        np.testing.assert_allclose(found[request.id].segments[0].logprobs, reading.logprobs[1], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_completion_depends_on_its_prompt_and_seed_alone(family: str) -> None:
    source, requests = loaded(family), make_requests()
    together = answers(make_sampler(source, max_rows=64), requests)
    refilled = answers(make_sampler(source, max_rows=3), random.Random(1).sample(requests, len(requests)))
    alone = {r.id: next(make_sampler(source, max_rows=1).generate([r])) for r in requests}
    for request in requests:
        wanted = together[request.id]
        for other in (refilled[request.id], alone[request.id]):
            assert (other.tokens, other.text, other.finish_reason) == (wanted.tokens, wanted.text, wanted.finish_reason)
            np.testing.assert_allclose(other.segments[0].logprobs, wanted.segments[0].logprobs, atol=1e-4)
    assert len({c.tokens for c in together.values()}) > 10


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_temperature_is_argmax_decoding_by_full_forwards(family: str) -> None:
    requests = make_requests(group=1, temperature=1e-4, max_tokens=8)
    found = answers(make_sampler(loaded(family), max_rows=2, stops=frozenset({-1})), requests)
    eager = tiny_model(5, family=family)
    eager.set_attn_implementation("eager")
    for request in requests:
        tokens = list(request.tokens)
        for _ in range(request.sampling.max_tokens):
            with torch.no_grad():
                tokens.append(int(eager(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        assert found[request.id].tokens == tuple(tokens[len(request.tokens) :])
        assert np.mean(np.abs(found[request.id].segments[0].logprobs)) < 1e-2


def test_stop_and_length() -> None:
    requests = make_requests()
    found = answers(make_sampler(loaded(), max_rows=4), requests)
    assert {c.finish_reason for c in found.values()} == {"stop", "length"}
    for request in requests:
        completion = found[request.id]
        stopped = completion.finish_reason == "stop"
        assert not STOPS & set(completion.tokens[:-1])
        assert (completion.tokens[-1] in STOPS) == stopped
        assert stopped or len(completion.tokens) == request.sampling.max_tokens
        assert len(completion.tokens) <= request.sampling.max_tokens
        assert completion.text == decode(TOKENIZER, completion.tokens[: -1 if stopped else None])
        assert (completion.prompt_id, completion.seed, completion.sampling) == (
            request.prompt_id,
            request.seed,
            request.sampling,
        )
        assert completion.checkpoint == "here" and completion.segments[0].author == "policy"


def test_the_first_token_may_be_the_last() -> None:
    requests = make_requests(max_tokens=1, prompts=1, group=5)
    assert all(len(c.tokens) == 1 for c in make_sampler(loaded(), 2).generate(requests))
    everything = make_sampler(loaded(), 2, stops=frozenset(range(259)))
    assert all((c.text, c.finish_reason) == ("", "stop") for c in everything.generate(make_requests()))
    assert list(everything.generate([])) == []


def test_new_weights_are_served_at_once() -> None:
    sampler, requests = make_sampler(loaded(seed=5), 64), make_requests()
    before = answers(sampler, requests)
    sampler.load(Weights(7, loaded(seed=6)))
    sampler.stops = STOPS
    after, fresh = answers(sampler, requests), answers(make_sampler(loaded(seed=6), 64), requests)
    assert {c.version for c in before.values()} == {0} and {c.version for c in after.values()} == {7}
    assert all(after[r.id].tokens == fresh[r.id].tokens for r in requests)
    assert any(after[r.id].tokens != before[r.id].tokens for r in requests)


def test_the_models_own_stop_token_ends_an_answer() -> None:
    sampler = LocalSampler(loaded(), context=2048)
    assert sampler.stops == {257}
    (completion,) = sampler.generate(make_requests(1, 1))
    assert 257 not in completion.tokens[:-1]


def test_no_room_for_an_answer() -> None:
    request = make_requests(5, 1)[4]
    sampler = LocalSampler(loaded(), context=38)
    assert list(sampler.generate([make_requests(5, 1)[3]]))
    with pytest.raises(PrefloopError, match="'4' has 21 tokens and 18 new ones, more than the model's context of 38"):
        list(sampler.generate([request]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_probabilities_they_state(temperature: float) -> None:
    count, vocabulary = 20_000, 12
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(0)).expand(count, -1)
    uniforms = torch.from_numpy(np.random.Generator(np.random.Philox(3)).random(count))
    tokens, logprobs = draw(logits, torch.full((count,), temperature), uniforms)
    expected = torch.softmax(logits[0] / temperature, -1)
    torch.testing.assert_close(logprobs, expected.log()[tokens])
    frequencies = torch.bincount(tokens, minlength=vocabulary).double().numpy()
    wanted = expected.double().numpy()
    assert chisquare(frequencies, count * wanted / wanted.sum()).pvalue > 1e-3
    flat = np.full(vocabulary, count / vocabulary)
    assert chisquare(frequencies, flat).pvalue < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 512, 1021, 1500])
@pytest.mark.parametrize("draw", [draw, _drawn])
def test_draws_invert_the_whole_cumulative_distribution(size: int, dtype: torch.dtype, draw: Any) -> None:
    """However the vocabulary falls into blocks; on a CPU and by what a GPU runs."""
    generator = torch.Generator().manual_seed(size)
    logits = (3 * torch.randn(40, size, generator=generator)).to(dtype)
    temperatures = 0.5 + torch.rand(40, generator=generator)
    uniforms = torch.rand(40, generator=generator, dtype=torch.float64)
    before = logits.clone()
    for softcap in (None, 2.0):
        tokens, logprobs = draw(logits, temperatures, uniforms, softcap)
        capped = logits.double() if softcap is None else softcap * torch.tanh(logits.double() / softcap)
        wanted = torch.log_softmax(capped / temperatures[:, None], dim=-1)
        assert tokens.tolist() == torch.searchsorted(wanted.exp().cumsum(-1), uniforms[:, None])[:, 0].tolist()
        torch.testing.assert_close(logprobs.double(), wanted[torch.arange(40), tokens], atol=1e-5, rtol=1e-5)
    assert torch.equal(logits, before) and logprobs.dtype == torch.float32


@pytest.mark.parametrize("draw", [draw, _drawn])
def test_an_impossible_token_is_never_drawn(draw: Any) -> None:
    """Not even by the largest and smallest uniform numbers, which round to the ends of the distribution."""
    logits = torch.tensor([[-float("inf"), 0.3, -float("inf"), 1.1, -float("inf")]]).expand(4, -1)
    uniforms = torch.tensor([0.0, 2.0**-60, 1 - 2.0**-53, 1 - 2.0**-26], dtype=torch.float64)
    tokens, logprobs = draw(logits, torch.ones(4), uniforms)
    assert tokens.tolist() == [1, 1, 3, 3]
    assert torch.isfinite(logprobs).all()


def test_values_narrower_than_keys_are_refused() -> None:
    """The sampler keeps both in one tensor; models like DeepSeek-V2 would end in an error of torch."""
    query, key, value = torch.zeros(2, 1, 6), torch.zeros(1, 1, 6), torch.zeros(1, 1, 4)
    with pytest.raises(PrefloopError, match="keys of 6 numbers and values of 4"):
        _Empty().attend(torch.nn.Identity(), query, key, value, Traits(scaling=1.0))
