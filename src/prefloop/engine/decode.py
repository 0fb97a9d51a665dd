"""A faster step of decoding for Llama-shaped models: adapters merged, products that share an input joined, weights
packed once per version instead of once per product. Other families decode through transformers' own forward."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prefloop.engine.cache import Rotation
from prefloop.models.lora import merged_weight
from prefloop.ops.attention import Traits
from prefloop.ops.kernels import rms_norm
from prefloop.ops.products import Panels, Then, suits
from prefloop.ops.threads import put_off
from prefloop.ops.together import Together

SHAPES = ("LlamaForCausalLM",)
ROWS = 64  # rows of a typical step, for which oneDNN lays packed weights out


class Rows(Protocol):
    """Tokens whose keys and values are kept: one of each row being written, or all of some prompts."""

    last: Tensor | None
    """Which of the tokens are read, where not all are."""
    steady: bool
    """Whether `mix` is a kernel over memory that stays as long as this does."""

    def mix(self, layer: int, heads: Tensor, turn: Rotation | None, traits: Traits) -> Tensor:
        """Queries, keys and values [N, H + 2 Hk, D] of N tokens, yet to be turned: keep those of keys and values, and
        attend -> [N, H x D]."""
        ...


class Decoder:
    """Tokens of many rows at once, [N] ids -> [N, D] last states, by the merged weights of a model."""

    def __init__(self, model: Any, int8: bool = False) -> None:
        self.model = model
        self.product = Int8Product if int8 else Product
        self.trunk = model.get_decoder()
        self.frozen: dict[nn.Module, tuple[Product, ...]] = {}
        self.kept: dict[nn.Module, tuple[Product, ...]] = {}
        self.layers: list[tuple[Product, ...]] = [()] * len(self.trunk.layers)
        self.programs: WeakKeyDictionary[Rows, Callable[[Tensor, Tensor, Tensor], Tensor]] = WeakKeyDictionary()
        self.load()

    @staticmethod
    def suits(model: nn.Module) -> bool:
        """Whether this is the class for which `step` was written, gated by swish and with whole heads turned; a
        look-alike may differ inside."""
        made: Any = model
        if type(model).__name__ not in SHAPES or made.config.hidden_act not in ("silu", "swish"):
            return False
        trunk = made.get_decoder()
        return bool(2 * len(trunk.rotary_emb.inv_freq) == trunk.layers[0].self_attn.head_dim)

    @torch.no_grad()
    def load(self) -> None:
        """Take the model's weights as they are now; parts in which nothing trains are packed once."""
        self.programs.clear()
        for index, layer in enumerate(self.trunk.layers):
            self.layers[index] = ()  # the old ones go before the new ones come
            self.layers[index] = self._current(layer, self._products)
        norms = [
            self.trunk.norm,
            *(n for x in self.trunk.layers for n in (x.input_layernorm, x.post_attention_layernorm)),
        ]
        self.scales = {norm: norm.weight.detach().float() for norm in norms}
        self.panelled = all(getattr(p, "panels", None) is not None for layer in self.layers for p in layer)
        (self.head,) = self._current(self.model.get_output_embeddings(), lambda head: (self.product(head),))

    def _current(self, part: nn.Module, pack: Callable[[Any], tuple[Product, ...]]) -> tuple[Product, ...]:
        products = self.frozen.get(part) or pack(part)
        if not any(p.requires_grad for p in part.parameters()):
            self.frozen[part] = products
        elif not products[0].packed:
            kept = self.kept.setdefault(part, products)
            for old, new in zip(kept, products, strict=True):
                old.take(new)
            return kept
        return products

    def _products(self, layer: Any) -> tuple[Product, ...]:
        attention, mlp = layer.self_attn, layer.mlp
        return (
            self.product(attention.q_proj, attention.k_proj, attention.v_proj),
            self.product(attention.o_proj),
            self.product(mlp.gate_proj),
            self.product(mlp.up_proj),
            self.product(mlp.down_proj),
        )

    @torch.no_grad()
    def step(self, tokens: Tensor, positions: Tensor, rows: Rows) -> Tensor:
        """tokens and positions [N]; `rows` keeps keys and values and attends. Returns states [N, D] of rows.last."""
        states: Tensor = self.trunk.embed_tokens(tokens)
        cos, sin = (part[0] for part in self.trunk.rotary_emb(states[None], positions[None]))
        if not (rows.steady and self.panelled):
            return self._through(states, Rotation(cos, sin), rows)
        if rows not in self.programs:
            self.programs[rows] = self._program(states, Rotation(cos.float(), sin.float()), rows)
        return self.programs[rows](states, cos, sin)

    def _program(self, states: Tensor, turn: Rotation, rows: Rows) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """`_through` these rows, listed once: what it reads is copied to where it was."""
        with put_off() as calls:
            out = self._through(states, turn, rows)
        run = Together(calls)

        def step(*new: Tensor) -> Tensor:
            for into, tensor in zip((states, turn.cos, turn.sin), new, strict=True):
                into.copy_(tensor)
            run()
            return out

        return step

    def _through(self, states: Tensor, turn: Rotation, rows: Rows) -> Tensor:
        for index, (layer, (qkv, out, gate, up, down)) in enumerate(zip(self.trunk.layers, self.layers, strict=True)):
            attention = layer.self_attn
            heads = qkv(self._normed(states, layer.input_layernorm)).view(len(states), -1, attention.head_dim)
            mixed = rows.mix(index, heads, turn, Traits(attention.scaling))
            if rows.last is not None and index == len(self.layers) - 1:
                mixed, states = mixed[rows.last], states[rows.last]
            states = out(mixed, "add", states)
            normed = self._normed(states, layer.post_attention_layernorm)
            states = down(up(normed, "mul", gate(normed, "swish")), "add", states)
        return self._normed(states, self.trunk.norm)

    def _normed(self, states: Tensor, norm: Any) -> Tensor:
        if states.device.type == "cpu":
            return rms_norm(states, self.scales[norm], norm.variance_epsilon)
        return nn.functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


class Product:
    """x [N, in] -> [N, sum of out]: linear layers over one input, adapters merged, as one product. Swish can follow, or
    another tensor be multiplied or added, before the result is rounded."""

    @torch.no_grad()
    def __init__(self, *linears: Any) -> None:
        weights = [merged_weight(linear) for linear in linears]
        bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
        self._lay_out(weights[0] if len(weights) == 1 else torch.cat(weights), bias)

    def _lay_out(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias, self.packed = bias, weight.device.type == "cpu" and _onednn_packs(weight.dtype)
        self.panels = Panels(weight, bias) if self.packed and suits(weight) else None
        if self.panels is None:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS) if self.packed else weight

    def take(self, other: Product) -> None:
        """Another's values in this one's memory, which captured graphs read."""
        self.weight.copy_(other.weight)
        if self.bias is not None and other.bias is not None:
            self.bias.copy_(other.bias)

    def __call__(self, x: Tensor, then: Then = "none", other: Tensor | None = None) -> Tensor:
        made: Tensor
        if self.panels is not None:
            return self.panels(x, then, other)
        if not self.packed:
            return _followed(nn.functional.linear(x, self.weight, self.bias), then, other)
        if other is None:
            made = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, then, [], "")
        else:
            made = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, then)
        return made


class Int8Product(Product):
    """The product in whole numbers: each output's weights, and each call's inputs, rounded to 8 bits (7 for inputs
    where the CPU has no VNNI, whose pairwise sums would overflow)."""

    def _lay_out(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed, self.narrow = True, not torch.cpu._is_vnni_supported()
        scale = weight.float().abs().amax(dim=1).clamp(min=1e-30) / 127
        whole = (weight / scale[:, None]).round_().to(torch.int8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces the end of quantised tensors, which this packing needs
            zeros = torch.zeros(len(scale), dtype=torch.long)
            quantised = torch._make_per_channel_quantized_tensor(whole, scale.double(), zeros, 0)
        self.weight = torch.ops.quantized.linear_prepack(quantised, None if bias is None else bias.float())

    def __call__(self, x: Tensor, then: Then = "none", other: Tensor | None = None) -> Tensor:
        made: Tensor = torch.ops.quantized.linear_dynamic(x.float(), self.weight, self.narrow)
        return _followed(made.to(x.dtype), then, other)


def _followed(made: Tensor, then: Then, other: Tensor | None) -> Tensor:
    if other is not None:
        return made.mul_(other) if then == "mul" else made.add_(other)
    return nn.functional.silu(made, inplace=True) if then == "swish" else made


def _onednn_packs(dtype: torch.dtype) -> bool:
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
    bf16 = dtype == torch.bfloat16 and there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bf16 or (there and dtype == torch.float32)
