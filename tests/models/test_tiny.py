from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefloop.models.tiny import SPECIAL_TOKENS, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@given(st.text())
def test_any_text_survives_the_byte_tokenizer_and_forms_no_special_token(text: str) -> None:
    tokens = TOKENIZER(text, split_special_tokens=True)["input_ids"]
    assert len(tokens) == len(text.encode()) and all(token < 256 for token in tokens)
    assert TOKENIZER.decode(tokens) == text


def test_special_tokens_follow_the_bytes_and_pad_is_eos() -> None:
    assert [TOKENIZER.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [256, 257, 258]
    assert len(TOKENIZER) == 259
    assert TOKENIZER.pad_token_id == TOKENIZER.eos_token_id == 257
    assert TOKENIZER("<|im_end|>")["input_ids"] == [257]


def test_chat_template_is_chatml() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    assert TOKENIZER.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    )
    assert TOKENIZER.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_equal_seeds_give_equal_models_and_leave_the_global_generator_alone(
    family: Literal["llama", "qwen3", "gemma3"],
) -> None:
    before = torch.get_rng_state()
    one, same, other = (tiny_model(seed, family=family).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_shape_and_mode_are_as_asked() -> None:
    model = tiny_model(layers=3, width=32, family="gemma3")
    assert model.config.num_hidden_layers == 3 and model.config.hidden_size == 32
    assert model.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert model.config.sliding_window == 8
    assert model.config.use_cache is False and not model.training
    assert model.config._attn_implementation == "prefloop_forest"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == len(TOKENIZER)


def test_logits_have_the_scale_of_a_trained_model() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = model(torch.arange(200)[None]).logits
    assert 0.5 < logits.std().item() < 2.0
