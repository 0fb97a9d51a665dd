"""The packed decoder against transformers' own forward: same tokens and log-probs, always with the current weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from prefloop.engine.cache import Cache, Step
from prefloop.engine.decode import Decoder, Int8Product, Product
from prefloop.engine.generate import LocalSampler
from prefloop.engine.verbs import Request, Weights
from prefloop.models.load import LoadedModel
from prefloop.models.lora import adapter_parameters, attach
from prefloop.models.tiny import FAMILIES, tiny_model, tiny_tokenizer
from prefloop.types import Completion, PrefloopError, Sampling

TOKENIZER = tiny_tokenizer()
REQUESTS = [
    Request(
        id=f"{p}/{g}", prompt_id=str(p), tokens=tuple(range(60, 62 + 9 * p)), sampling=Sampling(max_tokens=40), seed=g
    )
    for p in range(3)
    for g in range(5)
]


def sampler(model: nn.Module, *, fast: bool) -> LocalSampler:
    made = LocalSampler(LoadedModel(model, TOKENIZER, "tiny", ""), context=2048)  # type: ignore[arg-type]
    assert made.decoder is not None
    if not fast:
        made.decoder = None
    return made


def written(made: LocalSampler) -> dict[str, Completion]:
    return {c.id: c for c in made.generate(REQUESTS)}


def assert_same(model: nn.Module, fast: LocalSampler, atol: float = 1e-5) -> None:
    plain, quick = written(sampler(model, fast=False)), written(fast)
    for name, completion in plain.items():
        assert quick[name].tokens == completion.tokens
        ours, theirs = (np.asarray(c.segments[0].logprobs) for c in (quick[name], completion))
        np.testing.assert_allclose(ours, theirs, atol=atol)


def shake(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def test_it_is_transformers_forward() -> None:
    model = tiny_model(3)
    assert_same(model, sampler(model, fast=True))


def test_adapters_count_and_every_update_is_served() -> None:
    model = tiny_model(3, layers=3)
    attach(model, rank=4, alpha=8, last_layers=2, seed=0)
    fast = sampler(model, fast=True)
    before = written(fast)
    for version in (1, 2):
        shake(model, version)
        fast.load(Weights(version, fast.loaded))
        assert_same(model, fast)
        assert {c.version for c in written(fast).values()} == {version}
    assert any(before[name].tokens != c.tokens for name, c in written(fast).items())


def test_every_weight_of_a_fully_trained_model_is_served() -> None:
    model = tiny_model(3)
    fast = sampler(model, fast=True)
    shake(model)
    fast.load(Weights(1, fast.loaded))
    assert_same(model, fast)


def test_frozen_layers_are_packed_once() -> None:
    model = tiny_model(3, layers=3)
    attach(model, rank=4, alpha=8, last_layers=1, seed=0)
    decoder = Decoder(model)
    first, head = list(decoder.layers), decoder.head
    decoder.load()
    same = [new is old for new, old in zip(decoder.layers, first, strict=True)]
    assert same == [True, True, False] and decoder.head is head
    assert all(name.startswith("model.layers.2.") for name in adapter_parameters(model))


def test_biases_are_added() -> None:
    model = tiny_model(3)
    config = copy.deepcopy(model.config)
    config.attention_bias = config.mlp_bias = True
    with_biases = type(model)(config).eval()
    shake(with_biases)
    assert sum(name.endswith(".bias") for name, _ in with_biases.named_parameters()) == 14
    assert_same(with_biases, sampler(with_biases, fast=True))


def test_in_bf16_it_stays_within_rounding() -> None:
    model = tiny_model(3).bfloat16()
    prompts = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    linear = model.model.layers[0].mlp.gate_proj
    torch.testing.assert_close(Product(linear)(prompts), linear(prompts), rtol=0.02, atol=0.02)
    plain, quick = written(sampler(model, fast=False)), written(sampler(model, fast=True))
    firsts = [(quick[n].segments[0].logprobs[0], c.segments[0].logprobs[0]) for n, c in plain.items()]
    assert np.mean([abs(a - b) for a, b in firsts]) < 0.05


def read_in_steps(made: LocalSampler) -> torch.Tensor:
    """Logits [12, 5, V] of twelve given tokens in each of five rows, a step each that goes on from the last."""
    tokens = torch.randint(60, 200, (12, 5), generator=torch.Generator().manual_seed(0))
    cache, found = Cache(made._empty(), 2**24), []
    cache.rows.lengths = [0] * tokens.shape[1]
    cache.reserve(tokens.shape[1], len(tokens), 0, 0)
    layout = Step(cache, None)
    for length, given in enumerate(tokens):
        if length:
            layout.go_on()
        with torch.no_grad():
            found.append(made._logits(made._states(given, layout.positions, layout)).float())
    return torch.stack(found)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_kernels_of_a_step_make_the_same_together_as_one_by_one(threads: int) -> None:
    made, before = sampler(tiny_model(3).bfloat16(), fast=True), torch.get_num_threads()
    assert made.decoder is not None
    if not made.decoder.panelled:
        pytest.skip("this CPU multiplies no pairs of bf16, or has AMX")
    try:
        torch.set_num_threads(threads)
        together = read_in_steps(made)
        made.decoder.panelled = False
        assert torch.equal(read_in_steps(made), together)
    finally:
        torch.set_num_threads(before)


def test_steps_in_bf16_err_no_more_than_transformers_own() -> None:
    """Errors against fp32 of the same weights."""
    rounded = tiny_model(3).bfloat16()
    exact = read_in_steps(sampler(copy.deepcopy(rounded).float(), fast=False))
    plain, quick = (read_in_steps(sampler(rounded, fast=fast)) for fast in (False, True))
    for step in range(len(exact)):
        allowed = 1.5 * (plain[step] - exact[step]).norm()
        assert 0 < (quick[step] - exact[step]).norm() <= allowed < 0.1 * exact[step].norm()


def test_in_int8_it_is_near_and_serves_every_update() -> None:
    model = tiny_model(3)
    linear = model.model.layers[0].mlp.gate_proj
    inputs = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    exact = torch.nn.functional.silu(linear(inputs).detach())
    assert 0 < float((Int8Product(linear)(inputs, "swish") - exact).norm() / exact.norm()) < 0.03
    made = LocalSampler(LoadedModel(model, TOKENIZER, "tiny", ""), context=2048, int8=True)
    for version in range(2):
        quick, plain = written(made), written(sampler(model, fast=True))
        firsts = [(quick[n].segments[0], plain[n].segments[0]) for n in plain]
        gaps = [abs(a.logprobs[0] - b.logprobs[0]) for a, b in firsts if a.tokens[0] == b.tokens[0]]
        assert len(gaps) > 5 and 0 < np.mean(gaps) < 0.1
        shake(model, version)
        made.load(Weights(version + 1, made.loaded))


def test_int8_takes_a_model_like_llama() -> None:
    source = LoadedModel(tiny_model(3, family="gemma2"), TOKENIZER, "tiny-gemma", "")
    with pytest.raises(PrefloopError, match=r"tiny-gemma cannot write in int8.*set rollout_dtype to 'same'"):
        LocalSampler(source, context=2048, int8=True)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"llama"}))
def test_other_families_take_the_generic_path(family: str) -> None:
    assert not Decoder.suits(tiny_model(0, family=family))


def test_a_llama_with_another_activation_takes_the_plain_path() -> None:
    config = copy.deepcopy(tiny_model(0).config)
    assert Decoder.suits(type(tiny_model(0))(config))
    config.hidden_act = "gelu"
    model = type(tiny_model(0))(config).eval()
    assert not Decoder.suits(model)
