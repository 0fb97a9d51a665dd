from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefloop.models.lora import adapter_off, adapter_parameters, attach, merged_state
from prefloop.models.tiny import FAMILIES, tiny_model
from prefloop.types import PrefloopError

TOKENS = torch.tensor([[256, 10, 200, 3, 77, 257]])


def _model(dtype: torch.dtype = torch.float32, family: str = "llama") -> PreTrainedModel:
    model = tiny_model(family=family)
    model.set_attn_implementation("eager")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@torch.no_grad()
def _logits(model: PreTrainedModel) -> Tensor:
    logits: Tensor = model(TOKENS).logits
    return logits


def _attach_trained(model: PreTrainedModel) -> None:
    attach(model, rank=4, alpha=8.0, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_parameters(model).values():
        parameter.data.normal_(0.0, 0.1, generator=generator)


def test_fresh_adapters_change_nothing_and_depend_on_the_seed_alone() -> None:
    base = _logits(_model())
    models = [_model() for _ in range(3)]
    before = torch.get_rng_state()
    for model, seed in zip(models, (5, 5, 6), strict=True):
        attach(model, rank=4, alpha=8.0, seed=seed)
        assert torch.equal(_logits(model), base)
    assert torch.equal(torch.get_rng_state(), before)
    one, same, other = (adapter_parameters(model) for model in models)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_switched_off_is_the_base_bit_for_bit_and_on_again_afterwards(dtype: torch.dtype) -> None:
    base = _logits(_model(dtype))
    model = _model(dtype)
    _attach_trained(model)
    on = _logits(model)
    assert not torch.equal(on, base)
    with adapter_off(model):
        assert torch.equal(_logits(model), base)
    assert torch.equal(_logits(model), on)
    assert all(parameter.requires_grad for parameter in adapter_parameters(model).values())


def test_an_error_inside_switches_adapters_on_again() -> None:
    model = _model()
    _attach_trained(model)
    on = _logits(model)
    with pytest.raises(KeyError), adapter_off(model):
        raise KeyError
    assert torch.equal(_logits(model), on)


def test_merged_equals_attached_and_the_weight_is_the_formula() -> None:
    model = _model()
    _attach_trained(model)
    names = set(_model().state_dict())
    attached, state = _logits(model), merged_state(model)
    name = "model.layers.0.self_attn.q_proj"
    a, b = (adapter_parameters(model)[f"{name}.lora_{side}.default.weight"] for side in "AB")
    base = _model().state_dict()[f"{name}.weight"]
    torch.testing.assert_close(state[f"{name}.weight"], base + 8.0 / 4 * b.detach() @ a.detach())
    plain = _model()
    plain.load_state_dict(state)
    torch.testing.assert_close(_logits(plain), attached, rtol=1e-5, atol=1e-5)
    assert set(state) == names


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_attached_in_every_family(family: str) -> None:
    model = _model(family=family)
    before = _logits(model)
    _attach_trained(model)
    attached, state = _logits(model), merged_state(model)
    assert (attached - before).norm() > 0.05 * before.norm()
    plain = _model(family=family)
    plain.load_state_dict(state)
    torch.testing.assert_close(_logits(plain), attached, rtol=1e-4, atol=1e-4)


def test_only_adapters_train_in_the_base_s_dtype_and_the_head_has_none() -> None:
    model = _model(torch.bfloat16)
    attach(model, rank=4, alpha=8.0, seed=0)
    adapters = adapter_parameters(model)
    assert {parameter.dtype for parameter in adapters.values()} == {torch.bfloat16}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(adapters)
    assert len(adapters) == 2 * 7 * model.config.num_hidden_layers
    assert not any("lm_head" in name for name in adapters)
    model(TOKENS).logits.float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in adapters.values())


def test_named_targets_and_their_errors() -> None:
    model = _model()
    attach(model, rank=2, alpha=2.0, targets=["q_proj", "v_proj"], seed=0)
    assert len(adapter_parameters(model)) == 2 * 2 * model.config.num_hidden_layers
    with pytest.raises(PrefloopError, match="adapters already"):
        attach(model, rank=2, alpha=2.0, seed=0)
    with pytest.raises(PrefloopError, match="no_such_layer"):
        attach(_model(), rank=2, alpha=2.0, targets=["no_such_layer"], seed=0)
