"""A random model of a few ten thousand weights and a byte tokenizer, built in code: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from prefloop.models.attention import IMPLEMENTATION

SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CONTEXT = 2048
SLIDING_WINDOW = 8
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # model_type, and what its configuration has of its own
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma2": (
        "gemma2",
        {"sliding_window": SLIDING_WINDOW, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("gemma3_text", {"sliding_window": SLIDING_WINDOW}),
    "mistral": ("mistral", {"sliding_window": SLIDING_WINDOW}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {}),
    "gpt_oss": ("gpt_oss", {"sliding_window": SLIDING_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """One token a byte (ids 0-255) plus `SPECIAL_TOKENS` (256-258), with the plain ChatML template.

    pad = eos = `<|im_end|>` on purpose, as in the default model: code that finds ends by comparing with pad breaks.
    """
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevelDecoder()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerBase = make(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


def tiny_model(seed: int = 0, *, layers: int = 2, width: int = 64, family: str = "llama") -> PreTrainedModel:
    """A random fp32 decoder for `tiny_tokenizer`, in eval mode, with forest attention; equal seeds give equal weights.

    `family` is one of FAMILIES. Four query heads share two key heads of width/4, where the family lets them; families
    with windows alternate windows of 8 positions with full attention. Weights have std 1/sqrt(width), so logits have
    std of about 1 and no layer is too faint for a test to see; biases and sinks are random too.
    """
    shape = {
        "vocab_size": len(SPECIAL_TOKENS) + 256,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "max_position_embeddings": CONTEXT,
        "initializer_range": width**-0.5,
        "tie_word_embeddings": True,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 257,
        "use_cache": False,
    }
    kind, own = FAMILIES[family]
    if "sliding_window" in own:
        shape["layer_types"] = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    config = AutoConfig.for_model(kind, **shape, **own)
    make: Any = AutoModelForCausalLM.from_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = make(config, dtype=torch.float32, attn_implementation=IMPLEMENTATION).eval()
        for name, parameter in model.named_parameters():
            if name.endswith((".bias", ".sinks")):
                torch.nn.init.normal_(parameter, std=width**-0.5)
    return model
