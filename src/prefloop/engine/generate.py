"""The reference sampler: prompts are prefilled once and shared, rows decode together, finished rows leave and waiting
requests take their place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefloop.data.chat import decode
from prefloop.data.forest import ForestLayout, build_forest
from prefloop.engine.decode import Decoder
from prefloop.engine.verbs import Request, Weights
from prefloop.models.attention import Layout
from prefloop.models.load import LoadedModel, stop_token_ids
from prefloop.ops.attention import Traits, attend
from prefloop.types import Completion, FinishReason, Node, PrefloopError, Segment, Tree

FREE = 0.25  # share of the rows that must be free before new prompts are read


@dataclass(slots=True)
class _Row:
    """One completion being written."""

    request: Request
    uniforms: NDArray[np.float64]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class _Cache:
    """Keys and values of the rows being written, [2, rows, Hk, S, D] a layer; rows 0..n-1 are alive.

    Attention reads all S slots, because products over a slice of them would copy it first; so S grows by blocks.
    """

    BLOCK = 32

    def __init__(self, rows: int) -> None:
        self.rows, self.length = rows, 0
        self.lengths = torch.zeros(rows, dtype=torch.long)
        self.layers: dict[int, Tensor] = {}

    def reserve(self, length: int) -> None:
        """Make room for rows of `length` tokens."""
        if length <= self.length:
            return
        self.length = -(-length // self.BLOCK) * self.BLOCK
        for layer, old in self.layers.items():
            self.layers[layer] = old.new_zeros(*old.shape[:3], self.length, old.shape[4])
            self.layers[layer][:, :, :, : old.shape[3]] = old

    def slot(self, layer: int, like: Tensor) -> Tensor:
        """The layer's store; `like` has the shape [Hk, ..., D] of its keys."""
        if layer not in self.layers:
            self.layers[layer] = like.new_zeros(2, self.rows, like.shape[0], self.length, like.shape[-1])
        return self.layers[layer]

    def move(self, source: int, target: int) -> None:
        used = int(self.lengths[source])
        for store in self.layers.values():
            store[:, target, :, :used] = store[:, source, :, :used]
        self.lengths[target] = used


@dataclass(frozen=True)
class _Prefill:
    """A forest of prompts whose keys and values are copied into the rows that continue them."""

    layout: ForestLayout
    cache: _Cache
    spans: tuple[tuple[int, int, int, int], ...]  # (first token, last token + 1, first row, last row + 1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, traits: Traits) -> Tensor:
        keys, values = self.cache.slot(layer, key)
        for start, stop, first, last in self.spans:
            keys[first:last, :, : stop - start] = key[:, start:stop]
            values[first:last, :, : stop - start] = value[:, start:stop]
        return self.layout.attend(layer, query, key, value, traits)


class _Step:
    """One new token in each of n rows, row i at position at[i]."""

    def __init__(self, cache: _Cache, at: Tensor) -> None:
        self.cache, self.at = cache, at
        self.index = torch.arange(len(at), device=at.device)
        self.biases: dict[int | None, Tensor] = {}
        self.seen: Tensor | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, traits: Traits) -> Tensor:
        keys, values = self._kept(layer, torch.stack([key, value]).permute(2, 0, 1, 3))
        out = attend(query.transpose(0, 1)[:, :, None], keys, values, self._bias(traits.window), traits)
        return out[:, :, 0].transpose(0, 1)

    def mix(self, layer: int, query: Tensor, keys_values: Tensor, scaling: float) -> Tensor:
        """See decode.Rows: the same attention, without traits, in fewer passes."""
        kept = self._kept(layer, keys_values)
        keys, values = (part.flatten(0, 1) for part in kept)
        grouped = query.reshape(len(keys), -1, query.shape[-1])
        if self.seen is None:
            self.seen = self._bias(None).to(keys.dtype).repeat_interleave(len(keys) // len(query), dim=0)
        scores = torch.baddbmm(self.seen, grouped, keys.transpose(1, 2), alpha=scaling)
        return torch.bmm(torch.softmax(scores, dim=-1), values).view(len(query), -1)

    def _kept(self, layer: int, keys_values: Tensor) -> Tensor:
        """Keys and values [N, 2, Hk, D] join the cache; all of the living rows' [2, N, Hk, S, D]."""
        store = self.cache.slot(layer, keys_values[0, 0])
        store[:, self.index, :, self.at] = keys_values
        return store[:, : len(self.at)]

    def _bias(self, window: int | None) -> Tensor:
        if window not in self.biases:
            slots, at = torch.arange(self.cache.length, device=self.at.device)[None], self.at[:, None]
            seen = slots <= at if window is None else (slots <= at) & (slots > at - window)
            bias = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, float("-inf"))
            self.biases[window] = bias[:, None]
        return self.biases[window]


class LocalSampler:
    """Samples from a model in this process."""

    def __init__(self, loaded: LoadedModel, *, context: int, max_rows: int = 128, checkpoint: str = "") -> None:
        self.context, self.max_rows, self.checkpoint = context, max_rows, checkpoint
        self.decoder: Decoder | None = None
        self.load(Weights(0, loaded))

    def load(self, weights: Weights) -> None:
        """Serve these weights from now on."""
        self.version = weights.version
        self.loaded: LoadedModel = weights.content
        model: Any = self.loaded.model
        if self.decoder is not None and self.decoder.model is model:
            self.decoder.load()
        else:
            self.decoder = Decoder(model) if Decoder.suits(model) else None
        self.trunk: nn.Module = model.get_decoder()
        self.unembedding: nn.Module = model.get_output_embeddings()
        self.device = next(self.trunk.parameters()).device
        self.stops = stop_token_ids(self.loaded.tokenizer, self.loaded.model)

    @torch.no_grad()
    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """See verbs.Sampler. Raises PrefloopError for a prompt that leaves no room for an answer."""
        waiting = _grouped(requests)
        for request in requests:
            if len(request.tokens) + request.sampling.max_tokens > self.context:
                size = f"{len(request.tokens)} tokens and {request.sampling.max_tokens} new ones"
                raise PrefloopError(
                    f"Prompt {request.prompt_id!r} has {size}, more than the model's context of {self.context}; "
                    "shorten it or lower max_tokens."
                )
        capacity = min(max(self.max_rows, max(map(len, waiting), default=1)), max(len(requests), 1))
        cache = _Cache(capacity)
        alive: list[_Row] = []
        while waiting or alive:
            fresh: list[list[Request]] = []
            room = capacity - len(alive)
            if not alive or room >= capacity * FREE:  # prompts are read together: alone they keep no core busy
                while waiting and len(waiting[0]) <= room:
                    room -= len(waiting[0])
                    fresh.append(waiting.pop(0))
            if fresh:
                logits = self._prefill(cache, alive, fresh)
                yield from self._draw(cache, alive, logits, len(alive) - sum(map(len, fresh)))
            if alive:
                logits = self._decode(cache, alive)
                yield from self._draw(cache, alive, logits, 0)

    def _prefill(self, cache: _Cache, alive: list[_Row], groups: Sequence[Sequence[Request]]) -> Tensor:
        trees = [Tree(id=g[0].prompt_id, nodes=(Node(parent=-1, tokens=g[0].tokens, author="prompt"),)) for g in groups]
        forest = build_forest(trees, self.device)
        spans, start, repeats = [], 0, []
        for group in groups:
            first, length = len(alive), len(group[0].tokens)
            alive += [_Row(request, _uniforms(request)) for request in group]
            spans.append((start, start + length, first, len(alive)))
            cache.lengths[first : len(alive)] = length
            start += length
            repeats.append(len(group))
        cache.reserve(int(cache.lengths[: len(alive)].max()))
        states = self._hidden(forest.tokens, forest.positions, _Prefill(forest.layout, cache, tuple(spans)))
        last = states[forest.leaves].repeat_interleave(torch.tensor(repeats, device=self.device), dim=0)
        return self._logits(last)

    def _decode(self, cache: _Cache, alive: Sequence[_Row]) -> Tensor:
        tokens = torch.tensor([row.tokens[-1] for row in alive], device=self.device)
        positions = cache.lengths[: len(alive)].to(self.device)
        cache.reserve(int(positions.max()) + 1)
        layout = _Step(cache, positions)
        step = self.decoder.step if self.decoder else self._hidden
        states = step(tokens, positions, layout)
        cache.lengths[: len(alive)] += 1
        return self._logits(states)

    def _hidden(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        out = self.trunk(input_ids=tokens[None], position_ids=positions[None], layout=layout, use_cache=False)
        states: Tensor = out.last_hidden_state[0]
        return states

    def _logits(self, states: Tensor) -> Tensor:
        if self.decoder is not None:
            return self.decoder.head(states)
        logits = states @ cast(Tensor, self.unembedding.weight).T
        softcap: float | None = getattr(self.loaded.model.config.get_text_config(), "final_logit_softcapping", None)
        return softcap * torch.tanh(logits.float() / softcap) if softcap else logits

    def _draw(self, cache: _Cache, alive: list[_Row], logits: Tensor, first: int) -> Iterator[Completion]:
        """Draw one token for each row from `first` on; rows that end are yielded and leave the cache."""
        rows = alive[first:]
        temperatures = torch.tensor([row.request.sampling.temperature for row in rows], device=logits.device)
        uniforms = torch.tensor([row.uniforms[len(row.tokens)] for row in rows], device=logits.device)
        tokens, logprobs = draw(logits, temperatures, uniforms)
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
        for index in range(len(alive) - 1, first - 1, -1):
            row = alive[index]
            stopped = row.tokens[-1] in self.stops
            if stopped or len(row.tokens) == row.request.sampling.max_tokens:
                yield self._completion(row, "stop" if stopped else "length")
                last = alive.pop()
                if last is not row:
                    alive[index] = last
                    cache.move(len(alive), index)

    def _completion(self, row: _Row, reason: FinishReason) -> Completion:
        written = row.tokens[:-1] if reason == "stop" else row.tokens
        return Completion(
            id=row.request.id,
            prompt_id=row.request.prompt_id,
            segments=(Segment(author="policy", tokens=tuple(row.tokens), logprobs=tuple(row.logprobs)),),
            text=decode(self.loaded.tokenizer, written),
            finish_reason=reason,
            sampling=row.request.sampling,
            seed=row.request.seed,
            checkpoint=self.checkpoint,
            version=self.version,
        )


def draw(logits: Tensor, temperatures: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution, and its log-prob in nats under softmax(logits / T).

    logits [N, V], temperatures [N], uniforms [N] in [0, 1) -> tokens [N], log-probs [N] fp32.
    """
    probabilities = torch.softmax(logits.float() / temperatures[:, None].float(), dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1]
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding up to the total would draw an impossible token
    wanted = torch.minimum((uniforms * total.double()).float(), below)
    tokens = torch.searchsorted(cumulative, wanted[:, None], right=True)[:, 0]
    return tokens, probabilities.gather(1, tokens[:, None])[:, 0].log()


def _uniforms(request: Request) -> NDArray[np.float64]:
    return np.random.Generator(np.random.Philox(request.seed)).random(request.sampling.max_tokens)


def _grouped(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests with the same prompt side by side, in order of their first."""
    groups: dict[tuple[int, ...], list[Request]] = {}
    for request in requests:
        groups.setdefault(request.tokens, []).append(request)
    return list(groups.values())
