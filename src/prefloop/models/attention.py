"""The one attention every model runs with here: the layout that comes with the forward says who sees whom."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from prefloop.ops.attention import Traits
from prefloop.types import PrefloopError

IMPLEMENTATION = "prefloop_forest"


class Layout(Protocol):
    """A forest in training, or the sampler's cache: what the keyword `layout` of a forward carries."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, traits: Traits) -> Tensor:
        """query [H, T, D], key and value [Hk, T, D] of the row of T tokens, in a layer's attention -> [H, T, D]."""
        ...


def layer_index(module: nn.Module) -> int:
    """The layer that an attention belongs to. Who keeps nothing by layers does not ask: compiled code then serves them
    all."""
    return int(getattr(module, "layer_idx", 0))


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: query [1, H, T, D] -> [1, T, H, D].

    Raises PrefloopError without a layout, because no mask would silently mean that every token sees every other, and
    with a mask, because the layout takes its place.
    """
    if layout is None:
        raise PrefloopError(
            f"{type(module).__name__} was called without a layout: this model family does not hand keyword arguments "
            "to its attention; use another model."
        )
    if query.shape[0] != 1:
        raise PrefloopError(f"Attention over a forest takes one row of tokens, not a batch of {query.shape[0]}.")
    if attention_mask is not None:
        raise PrefloopError(
            f"{type(module).__name__} was given a mask of its model's own making, which no tree can keep; use another "
            "model."
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    traits = Traits(scaling=scale, window=sliding_window, softcap=softcap, sinks=s_aux)
    out = layout.attend(module, query[0], key[0], value[0], traits)
    return out.transpose(0, 1).unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, forest_attention)
