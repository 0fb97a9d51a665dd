"""Keys and values that a sampler keeps: of the rows being written, and of the prompts that several rows share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from prefloop.models.attention import layer_index
from prefloop.ops.attention import Traits

GROWTH = 32  # tokens by which rows grow: attention reads all S places, because products over a slice would copy it
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


class Places:
    """Where keys and values of N tokens are kept: one slot and one place in it for each."""

    def __init__(self, store: Store, slots: Tensor, at: Tensor) -> None:
        self.store, self.slots, self.at = store, slots, at
        self.flat: dict[int, Tensor] = {}

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


class Sharing:
    """Which rows read which prompt: rows [N] side by side, by prompt [P, G], and back."""

    def __init__(self, prompts: Sequence[int], count: int, device: torch.device) -> None:
        """prompts[i]: the prompt of row i; `count`: how many there are."""
        members: list[list[int]] = [[] for _ in range(count)]
        places = []
        for row, prompt in enumerate(prompts):
            places.append((prompt, len(members[prompt])))
            members[prompt].append(row)
        self.of, self.prompts, self.most = prompts, count, max(map(len, members))
        order = [row for rows in members for row in rows + [0] * (self.most - len(rows))]
        plain = order == list(range(len(prompts)))
        self.order = None if plain else torch.tensor(order, device=device)
        self.back = None if plain else torch.tensor([p * self.most + place for p, place in places], device=device)

    def by_prompt(self, rows: Tensor) -> Tensor:
        """[N, Hk, q, X] -> [P x Hk, G x q, X]; places without a row repeat row 0."""
        rows = rows if self.order is None else rows[self.order]
        _, heads, each, width = rows.shape
        grouped = rows.view(self.prompts, self.most, heads, each, width).transpose(1, 2)
        return grouped.reshape(self.prompts * heads, self.most * each, width)

    def by_row(self, grouped: Tensor, heads: int) -> Tensor:
        """The inverse: [P x Hk, G x q, X] -> [N, Hk, q, X]."""
        width = grouped.shape[-1]
        rows = grouped.view(self.prompts, heads, self.most, -1, width).transpose(1, 2)
        rows = rows.reshape(self.prompts * self.most, heads, -1, width)
        return rows if self.back is None else rows[self.back]


class Step:
    """One new token in each of N rows: the layout of a forward (see models.attention), and the rows of a decoder.

    The products with a prompt's keys and values are made once for all rows that share it; one softmax runs over those
    and the row's own.
    """

    last: Tensor | None = None

    def __init__(self, cache: Cache, sharing: Sharing | None, device: torch.device) -> None:
        self.cache, self.sharing = cache, sharing
        rows = cache.rows
        self.count = len(rows.lengths)
        self.at = torch.tensor(rows.lengths, device=device)
        self.places = Places(rows, torch.arange(self.count, device=device), self.at)
        self.positions = self.at
        if sharing is not None:
            self.prefix = torch.tensor([cache.prompts.lengths[p] for p in sharing.of], device=device)
            self.positions = self.at + self.prefix
        self.own: dict[tuple[int | None, int], Tensor] = {}
        self.given: dict[tuple[int | None, int], Tensor] = {}

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, traits: Traits) -> Tensor:
        mixed = self.mix(
            layer_index(module), query.transpose(0, 1), torch.stack([key, value]).permute(2, 0, 1, 3), traits
        )
        return mixed.view(query.shape[1], query.shape[0], -1).transpose(0, 1)

    def mix(self, layer: int, query: Tensor, keys_values: Tensor, traits: Traits) -> Tensor:
        """See decode.Rows."""
        kept = self.places.keep(layer, keys_values)
        heads = kept.shape[2]
        keys, values = kept[0, : self.count].flatten(0, 1), kept[1, : self.count].flatten(0, 1)
        grouped = query.reshape(self.count, heads, -1, query.shape[-1])
        scores = _scores(grouped.flatten(0, 1), keys, self._own_bias(traits.window, heads, keys.dtype), traits)
        if self.sharing is None:
            return torch.bmm(_weights(scores, heads, traits, keys.dtype), values).view(self.count, -1)
        sharing, prompts = self.sharing, self.cache.prompts.layers[layer]
        given_keys, given_values = prompts[:, : sharing.prompts].flatten(1, 2)
        bias = self._given_bias(traits.window, grouped, keys.dtype)
        given = sharing.by_row(_scores(sharing.by_prompt(grouped), given_keys, bias, traits), heads)
        split = given.shape[-1]
        weights = _weights(torch.cat([given.flatten(0, 1), scores], dim=-1), heads, traits, keys.dtype)
        own = torch.bmm(weights[..., split:], values)
        asked = sharing.by_prompt(weights[..., :split].reshape(given.shape))
        read = sharing.by_row(torch.bmm(asked, given_values), heads)
        return own.add_(read.reshape(own.shape)).view(self.count, -1)

    def _own_bias(self, window: int | None, heads: int, dtype: torch.dtype) -> Tensor:
        """[N x Hk, 1, S]: 0 where a row sees its own place, -inf elsewhere."""
        if (window, heads) not in self.own:
            places, at = torch.arange(self.cache.rows.length, device=self.at.device), self.at[:, None]
            seen = places <= at if window is None else (places <= at) & (places > at - window)
            self.own[window, heads] = _bias(seen, dtype)[:, None].repeat_interleave(heads, dim=0)
        return self.own[window, heads]

    def _given_bias(self, window: int | None, grouped: Tensor, dtype: torch.dtype) -> Tensor:
        """[P x Hk, G x q, S]: 0 where a row sees a place of its prompt, -inf elsewhere."""
        assert self.sharing is not None
        _, heads, each, _ = grouped.shape
        if (window, heads) not in self.given:
            places = torch.arange(self.cache.prompts.length, device=self.at.device)
            seen = places < self.prefix[:, None]
            if window is not None:
                seen = seen & (places > self.positions[:, None] - window)
            bias = _bias(seen, dtype)[:, None, None].expand(-1, heads, each, -1)
            self.given[window, heads] = self.sharing.by_prompt(bias)
        return self.given[window, heads]


class Reading:
    """Prompts side by side in one forward of T tokens, kept in neighbouring slots of a store."""

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
        mixed = self.mix(
            layer_index(module), query.transpose(0, 1), torch.stack([key, value]).permute(2, 0, 1, 3), traits
        )
        return mixed.view(query.shape[1], query.shape[0], -1).transpose(0, 1)

    def mix(self, layer: int, query: Tensor, keys_values: Tensor, traits: Traits) -> Tensor:
        """See decode.Rows."""
        kept = self.places.keep(layer, keys_values)[:, self.first : self.first + self.count, :, : self.longest]
        heads, width = kept.shape[2], query.shape[-1]
        keys, values = kept.flatten(1, 2)
        query = query if self.full else query[self.source]
        grouped = query.reshape(self.count, self.longest, heads, -1, width).permute(0, 2, 3, 1, 4)
        made = []
        for start in range(0, self.longest, QUERIES):
            asking = grouped[:, :, :, start : start + QUERIES]
            stop = start + asking.shape[3]
            bias = self._bias(start, stop, traits.window, keys.dtype).repeat(asking.shape[2], 1)
            scores = _scores(asking.reshape(len(keys), -1, width), keys[:, :stop], bias, traits)
            read = torch.bmm(_weights(scores, heads, traits, keys.dtype), values[:, :stop])
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
