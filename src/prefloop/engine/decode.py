"""A faster step of decoding for Llama-shaped models: adapters merged, products that share an input joined, weights
packed once per version instead of once per product. Other families decode through transformers' own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.models.attention import Layout
from prefloop.models.lora import merged_weight
from prefloop.ops.attention import Traits

SHAPES = ("LlamaForCausalLM",)
ROWS = 64  # rows of a typical step, for which oneDNN lays packed weights out

Product = Callable[[Tensor], Tensor]


class Decoder:
    """One new token in each of many rows, [N] ids -> [N, D] last states, by the merged weights of a model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.trunk = model.get_decoder()
        self.frozen: dict[nn.Module, tuple[Product, ...]] = {}
        self.load()

    @staticmethod
    def suits(model: nn.Module) -> bool:
        """Whether this is the class for which `step` was written; a look-alike may differ inside."""
        return type(model).__name__ in SHAPES

    @torch.no_grad()
    def load(self) -> None:
        """Take the model's weights as they are now; parts in which nothing trains are packed once."""
        self.layers = [self._current(layer, _products) for layer in self.trunk.layers]
        (self.head,) = self._current(self.model.get_output_embeddings(), lambda head: (packed(head),))

    def _current(self, part: nn.Module, pack: Callable[[Any], tuple[Product, ...]]) -> tuple[Product, ...]:
        products = self.frozen.get(part) or pack(part)
        if not any(p.requires_grad for p in part.parameters()):
            self.frozen[part] = products
        return products

    @torch.no_grad()
    def step(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """tokens and positions [N], a row each; `layout` attends and keeps keys and values. Returns states [N, D]."""
        states: Tensor = self.trunk.embed_tokens(tokens)
        cos, sin = (part[0] for part in self.trunk.rotary_emb(states[None], positions[None]))
        for index, (layer, (qkv, out, gate_up, down)) in enumerate(zip(self.trunk.layers, self.layers, strict=True)):
            attention = layer.self_attn
            width: int = attention.head_dim
            heads = qkv(layer.input_layernorm(states)).view(len(tokens), -1, width).transpose(0, 1)
            key_heads = heads.shape[0] // (attention.num_key_value_groups + 2)
            query, key, value = heads[: -2 * key_heads], heads[-2 * key_heads : -key_heads], heads[-key_heads:]
            mixed = layout.attend(
                index, _rotated(query, cos, sin), _rotated(key, cos, sin), value, Traits(scaling=attention.scaling)
            )
            states = states + out(mixed.transpose(0, 1).reshape(len(tokens), -1))
            gate, up = gate_up(layer.post_attention_layernorm(states)).chunk(2, dim=-1)
            states = states + down(layer.mlp.act_fn(gate) * up)
        last: Tensor = self.trunk.norm(states)
        return last


def _products(layer: Any) -> tuple[Product, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    return (
        packed(attention.q_proj, attention.k_proj, attention.v_proj),
        packed(attention.o_proj),
        packed(mlp.gate_proj, mlp.up_proj),
        packed(mlp.down_proj),
    )


@torch.no_grad()
def packed(*linears: Any) -> Product:
    """x [N, in] -> [N, sum of out]: linear layers over one input, adapters merged, as one product."""
    weight = torch.cat([merged_weight(linear) for linear in linears])
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and _onednn_has_bf16():
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, laid_out, bias, "none", [], "")
    return lambda x: nn.functional.linear(x, weight, bias)


def _onednn_has_bf16() -> bool:
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
    return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) on [H, N, D], with cos and sin [N, D] in halves, as Llama has them."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin
