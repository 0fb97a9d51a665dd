"""Keys and values that a sampler keeps: of the rows being written, and of the prompts that several rows share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from prefloop.models.attention import layer_index
from prefloop.ops.attention import Traits
from prefloop.ops.kernels import Attention

GROWTH = 32  # tokens by which rows grow: each time all that they keep is copied
ALIGNED = 8  # prompts do not grow, but products like even sizes
QUERIES = 256  # places of a prompt that attend at a time


class Store:
    """Keys and values of slots, [2, slots, Hk, S, D] a layer; places that hold no token are finite."""

    def __init__(self, empty: Mapping[int, Tensor], step: int) -> None:
        """`empty`: for each layer a tensor [2, 0, Hk, 0, D]; S is a multiple of `step`."""
        self.layers, self.step = dict(empty), step
        self.slots = self.length = 0
        self.lengths: list[int] = []  # tokens of each slot in use

    def bytes(self, slots: int, length: int) -> int:
        """What a store of this size holds."""
        each = sum(2 * layer.shape[2] * layer.shape[4] * layer.element_size() for layer in self.layers.values())
        return each * slots * -(-length // self.step) * self.step

    def resize(self, slots: int, length: int) -> None:
        """Make S at least `length`, keeping what is there; a layer at a time is held twice."""
        length = -(-length // self.step) * self.step
        used, kept = min(len(self.lengths), self.slots, slots), min(self.length, length)
        for index, old in self.layers.items():
            new = old.new_empty(2, slots, old.shape[2], length, old.shape[4])
            new[:, :used, :, :kept] = old[:, :used, :, :kept]
            new[:, :used, :, kept:] = 0
            new[:, used:] = 0
            self.layers[index] = new
        self.slots, self.length = slots, length

    def drop(self, slot: int) -> None:
        """Free a slot; the last one moves into its place."""
        used = self.lengths.pop()
        if slot < len(self.lengths):
            self.lengths[slot] = used
            for layer in self.layers.values():
                layer[:, slot, :, :used] = layer[:, len(self.lengths), :, :used]


class Rotation:
    """Rotary positions (Su et al. 2021), cos and sin [N, D] in halves as Llama has them."""

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        self.cos, self.sin = cos, sin

    def __call__(self, heads: Tensor, still: int) -> Tensor:
        """Heads [N, H, D], turned in place but for those at the end that stay as they are (the values)."""
        turned = heads[:, :-still]
        rolled = turned.roll(self.cos.shape[-1] // 2, dims=-1)
        turned.mul_(self.cos[:, None]).addcmul_(rolled, self.signed)
        return heads

    @cached_property
    def signed(self) -> Tensor:
        half = self.sin.shape[-1] // 2
        return torch.cat([-self.sin[:, :half], self.sin[:, half:]], dim=-1)[:, None]


class Places:
    """Where keys and values of N tokens are kept: one slot and one place in it for each."""

    def __init__(self, store: Store, slots: Tensor, at: Tensor) -> None:
        self.store, self.slots, self.at = store, slots, at
        self.flat: dict[int, Tensor] = {}

    def split(self, layer: int, heads: Tensor, turn: Rotation | None) -> tuple[Tensor, Tensor]:
        """Heads [N, H + 2 Hk, D], turned -> queries [N, H, D], keys and values [N, 2, Hk, D]."""
        key_heads = self.store.layers[layer].shape[2]
        if turn is not None:
            heads = turn(heads, key_heads)
        return heads[:, : -2 * key_heads], heads[:, -2 * key_heads :].reshape(len(heads), 2, key_heads, -1)

    def keep(self, layer: int, keys_values: Tensor) -> Tensor:
        """Keys and values [N, 2, Hk, D] join the store; the layer's [2, slots, Hk, S, D]."""
        kept, heads = self.store.layers[layer], keys_values.shape[2]
        if heads not in self.flat:
            two, each = (torch.arange(count, device=self.at.device) for count in (2, heads))
            head = (two[:, None] * self.store.slots + self.slots[:, None, None]) * heads + each
            self.flat[heads] = (head * self.store.length + self.at[:, None, None]).flatten()
        vectors = kept.view(-1, kept.shape[-1])
        vectors.index_copy_(0, self.flat[heads], keys_values.reshape(-1, kept.shape[-1]))
        return kept


class Cache:
    """Rows being written, and the prompts that rows share, within a budget of bytes."""

    def __init__(self, empty: Mapping[int, Tensor], budget: int) -> None:
        self.rows, self.prompts, self.budget = Store(empty, GROWTH), Store(empty, ALIGNED), budget

    def fits(self, rows: int, length: int, prompts: int, prompt_length: int) -> bool:
        return self.rows.bytes(rows, length) + self.prompts.bytes(prompts, prompt_length) <= self.budget

    def reserve(self, rows: int, length: int, prompts: int, prompt_length: int) -> None:
        """Make room; what `fits` has to be asked before. Stores shrink where both are too large otherwise."""
        wanted = [(self.rows, rows, length), (self.prompts, prompts, prompt_length)]
        kept = [
            (s, s.slots, s.length) if slots <= s.slots and need <= s.length else (s, slots, need)
            for s, slots, need in wanted
        ]
        targets = kept if sum(store.bytes(slots, need) for store, slots, need in kept) <= self.budget else wanted
        for store, slots, need in sorted(
            targets, key=lambda t: t[0].bytes(*t[1:]) - t[0].bytes(t[0].slots, t[0].length)
        ):
            if (slots, -(-need // store.step) * store.step) != (store.slots, store.length):
                store.resize(slots, need)

    @property
    def held(self) -> int:
        """Bytes of all keys and values."""
        return sum(layer.nbytes for store in (self.rows, self.prompts) for layer in store.layers.values())


class Step:
    """One new token in each of N rows: the layout of a forward (see models.attention), and the rows of a decoder. What
    rows share of a prompt is kept once."""

    last: Tensor | None = None
    steady = True

    def __init__(self, cache: Cache, prompts: Sequence[int] | None) -> None:
        """prompts[n]: the shared prompt that row n goes on; None where rows keep all themselves."""
        at = torch.tensor(cache.rows.lengths)
        number = torch.tensor(prompts) if prompts is not None else torch.zeros_like(at)
        prefix = torch.tensor(cache.prompts.lengths)[number] if prompts is not None else torch.zeros_like(at)
        self.cache, self.positions = cache, at + prefix
        self.attention = Attention(at, number, prefix)
        self.turned: Rotation | None = None

    def go_on(self) -> None:
        """To the next token of the same rows."""
        self.positions += 1
        self.attention.at += 1

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, traits: Traits) -> Tensor:
        mixed = self.mix(layer_index(module), torch.cat([query, key, value]).transpose(0, 1), None, traits)
        return mixed.view(query.shape[1], query.shape[0], -1).transpose(0, 1)

    def mix(self, layer: int, heads: Tensor, turn: Rotation | None, traits: Traits) -> Tensor:
        """See decode.Rows."""
        if turn is not None and turn is not self.turned:
            self.attention.turn(turn.cos.float(), turn.sin.float())
            self.turned = turn
        return self.attention(heads, self.cache.rows.layers[layer], self.cache.prompts.layers[layer], traits)


class Reading:
    """Prompts side by side in one forward of T tokens, kept in neighbouring slots of a store."""

    steady = False

    def __init__(self, store: Store, first: int, device: torch.device) -> None:
        """The store's slots from `first` on are the prompts, their lengths already set."""
        lengths = store.lengths[first:]
        self.store, self.first, self.count, self.longest = store, first, len(lengths), max(lengths)
        sizes = torch.tensor(lengths, device=device)
        slots = torch.repeat_interleave(torch.arange(self.count, device=device), sizes)
        ends = sizes.cumsum(0)
        self.positions = torch.arange(len(slots), device=device) - (ends - sizes)[slots]
        self.places = Places(store, first + slots, self.positions)
        self.last: Tensor | None = ends - 1
        self.padded = slots * self.longest + self.positions  # [T] among count x longest
        self.full = len(slots) == self.count * self.longest

    @cached_property
    def source(self) -> Tensor:
        """[count x longest]: the token at each place, token 0 where there is none."""
        source = self.padded.new_zeros(self.count * self.longest)
        source[self.padded] = torch.arange(len(self.padded), device=source.device)
        return source

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, traits: Traits) -> Tensor:
        mixed = self.mix(layer_index(module), torch.cat([query, key, value]).transpose(0, 1), None, traits)
        return mixed.view(query.shape[1], query.shape[0], -1).transpose(0, 1)

    def mix(self, layer: int, heads: Tensor, turn: Rotation | None, traits: Traits) -> Tensor:
        """See decode.Rows."""
        query, keys_values = self.places.split(layer, heads, turn)
        kept = self.places.keep(layer, keys_values)[:, self.first : self.first + self.count, :, : self.longest]
        count, width = kept.shape[2], query.shape[-1]
        keys, values = kept.flatten(1, 2)
        query = query if self.full else query[self.source]
        grouped = query.reshape(self.count, self.longest, count, -1, width).permute(0, 2, 3, 1, 4)
        made = []
        for start in range(0, self.longest, QUERIES):
            asking = grouped[:, :, :, start : start + QUERIES]
            stop = start + asking.shape[3]
            bias = self._bias(start, stop, traits.window, keys.dtype).repeat(asking.shape[2], 1)
            scores = _scores(asking.reshape(len(keys), -1, width), keys[:, :stop], bias, traits)
            read = torch.bmm(_weights(scores, count, traits, keys.dtype), values[:, :stop])
            made.append(read.view(*asking.shape[:4], -1).permute(0, 3, 1, 2, 4).flatten(2))
        mixed = torch.cat(made, dim=1).flatten(0, 1)
        return mixed if self.full else mixed[self.padded]

    def _bias(self, start: int, stop: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """[L, S]: places start..stop - 1 see themselves and those before them, within the window."""
        gap = torch.arange(start, stop, device=self.positions.device)[:, None]
        gap = gap - torch.arange(stop, device=self.positions.device)
        return _bias(gap >= 0 if window is None else (gap >= 0) & (gap < window), dtype)


def _bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def _scores(query: Tensor, keys: Tensor, bias: Tensor, traits: Traits) -> Tensor:
    """query [B, L, D], keys [B, S, D], bias broadcastable to [B, L, S] -> scores with the bias added."""
    if traits.softcap is None:
        return torch.baddbmm(bias, query, keys.transpose(1, 2), alpha=traits.scaling)
    scores = torch.bmm(query, keys.transpose(1, 2)).float() * traits.scaling
    return traits.softcap * torch.tanh(scores / traits.softcap) + bias


def _weights(scores: Tensor, heads: int, traits: Traits, dtype: torch.dtype) -> Tensor:
    """Softmax over S of [N x Hk, q x L, S]; where the layer has sinks, one for each head takes its share."""
    if traits.sinks is None:
        return torch.softmax(scores, dim=-1).to(dtype)
    sinks = traits.sinks.float().view(1, heads, -1, 1)
    sinks = sinks.expand(len(scores) // heads, -1, -1, scores.shape[1] // sinks.shape[2])
    joined = torch.cat([scores.float(), sinks.reshape(*scores.shape[:2], 1)], dim=-1)
    return torch.softmax(joined, dim=-1)[..., :-1].to(dtype)
