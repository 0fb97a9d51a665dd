"""Which models cannot run on token trees: they are refused where they would run and be wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefloop.models.attention import layer_index
from prefloop.ops.attention import Traits
from prefloop.types import PrefloopError

_FOREST_LAYERS = {"full_attention", "sliding_attention"}
_BATCH_WIDE_ROPE = {"dynamic", "longrope"}


def check_forest(model: PreTrainedModel, name: str) -> None:
    """Refuse what would run but be wrong: tokens mixed outside attention, positions that depend on the whole batch."""
    config = model.config.get_text_config()
    odd = set(getattr(config, "layer_types", None) or ()) - _FOREST_LAYERS
    if model._is_stateful or not model._supports_attention_backend or odd:
        what = f"layers of type {', '.join(sorted(odd))}" if odd else "no replaceable attention"
        raise PrefloopError(f"Model {name!r} has {what}; only plain attention decoders run on token trees, so use one.")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if kinds & _BATCH_WIDE_ROPE:
        raise PrefloopError(
            f"Model {name!r} scales positions by the longest sequence of a batch ({(kinds & _BATCH_WIDE_ROPE).pop()} "
            "RoPE), which packed trees do not have; use a model with fixed positions."
        )


class _Alone:
    """The layout of a single token, which sees itself: attention gives its value back. Keeps each layer's window."""

    def __init__(self) -> None:
        self.windows: dict[int, int | None] = {}

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, traits: Traits) -> Tensor:
        layer = layer_index(module)
        if layer in self.windows and hasattr(module, "layer_idx"):
            raise PrefloopError(
                f"{type(module).__name__} attends more than once in layer {layer}, which the sampler's cache cannot "
                "tell apart; use another model."
            )
        self.windows[layer] = traits.window
        return value.repeat_interleave(query.shape[0] // value.shape[0], dim=0)


@torch.no_grad()
def check_logits(model: Any, name: str) -> None:
    """Refuse models that do more to their logits than a product with the head and a soft cap (a bias, a scale), or keep
    a sliding window to a mask of their own."""
    config, alone = model.config.get_text_config(), _Alone()
    inputs = {"input_ids": torch.ones(1, 1, dtype=torch.long), "position_ids": torch.zeros(1, 1, dtype=torch.long)}
    expected = model(**inputs, layout=alone, use_cache=False).logits.float()
    states = model.get_decoder()(**inputs, layout=_Alone(), use_cache=False).last_hidden_state
    found = (states @ model.get_output_embeddings().weight.T).float()
    if cap := getattr(config, "final_logit_softcapping", None):
        found = cap * torch.tanh(found / cap)
    if not torch.allclose(found, expected, rtol=0.05, atol=0.05 * float(expected.std())):
        raise PrefloopError(
            f"Model {name!r} scales or shifts its logits after the output layer, which is not supported; use another."
        )
    everywhere = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if everywhere else ""] * len(alone.windows)
    if any(kind == "sliding_attention" and alone.windows.get(i, 0) is None for i, kind in enumerate(kinds)):
        raise PrefloopError(
            f"Model {name!r} has sliding windows that its attention is not told of; on token trees every token would "
            "see all before it, so use another."
        )
