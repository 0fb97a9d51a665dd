"""The reference sampler: prompts are read once and shared, rows decode together, finished rows leave and waiting
requests take their place, within a budget of memory."""

from __future__ import annotations

import functools
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefloop.data.chat import decode
from prefloop.engine.cache import Cache, Reading, Step
from prefloop.engine.decode import Decoder
from prefloop.engine.graphs import StaticCache, StaticStep, Steps, capturable
from prefloop.engine.verbs import Request, Weights
from prefloop.models.attention import Layout, layer_index
from prefloop.models.load import LoadedModel, stop_token_ids
from prefloop.ops import kernels
from prefloop.ops.attention import Traits
from prefloop.types import Completion, FinishReason, PrefloopError, Segment

FREE = 0.25  # share of the rows that must be free before new ones join
_Item = TypeVar("_Item")
TOKENS = 4096  # tokens of prompts that are read in one forward, each counted as long as the longest


@dataclass(slots=True, eq=False)
class _Prompt:
    """A prompt, what of it is still to be answered, and once read the state [D] of its last token."""

    tokens: tuple[int, ...]
    unfinished: int
    state: Tensor | None = None


@dataclass(slots=True, eq=False)
class _Row:
    """One completion being written."""

    request: Request
    prompt: _Prompt
    uniforms: NDArray[np.float64]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class _Empty:
    """The layout of one token's forward, which finds out the shape of each layer's keys and values."""

    def __init__(self) -> None:
        self.layers: dict[int, Tensor] = {}

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, traits: Traits) -> Tensor:
        if key.shape[-1] != value.shape[-1]:
            raise PrefloopError(
                f"{type(module).__name__} has keys of {key.shape[-1]} numbers and values of {value.shape[-1]}, which "
                "the sampler cannot keep together; use another model."
            )
        self.layers[layer_index(module)] = key.new_empty(2, 0, key.shape[0], 0, key.shape[-1])
        return value.repeat_interleave(len(query) // len(value), dim=0)


class _Batch:
    """What is being written, and what waits for its turn."""

    def __init__(self, queue: Sequence[tuple[_Prompt, Request]], cache: Cache, max_rows: int) -> None:
        self.queue, self.cache = deque(queue), cache
        self.shared = len({id(prompt) for prompt, _ in queue}) < len(queue)
        self.whole = not self.shared or isinstance(cache, StaticCache)  # rows keep their prompts too
        self.max_rows = self.full = min(max_rows, len(queue))
        self.rows: list[_Row] = []
        self.prompts: list[_Prompt] = []  # those whose keys and values are shared, by slot
        self.current: Step | None = None  # of the same rows as before

    def own(self, prompt: _Prompt, request: Request) -> int:
        """Tokens that a row will have kept itself when it ends: the last one drawn is never read."""
        return request.sampling.max_tokens - 1 + (len(prompt.tokens) if self.whole else 0)

    def fits(self, rows: Sequence[tuple[_Prompt, Request]], prompts: Sequence[_Prompt]) -> bool:
        longest = max((self.own(*row) for row in rows), default=0)
        return self.cache.fits(
            len(rows), longest, len(prompts), max((len(prompt.tokens) for prompt in prompts), default=0)
        )

    def admit(self) -> list[_Prompt]:
        """Rows join in the queue's order, as many as there is room for; the prompts that have to be read first."""
        if len(self.rows) > self.full * (1 - FREE):  # prompts are read together: alone they keep no core busy
            return []
        fresh: list[_Prompt] = []
        rows = [(row.prompt, row.request) for row in self.rows]
        while self.queue and len(self.rows) < self.max_rows:
            prompt, request = self.queue[0]
            new = prompt.state is None and prompt not in fresh
            prompts = self.prompts + [prompt] * (self.shared and new)
            rows.append((prompt, request))
            if not self.fits(rows, prompts):
                break
            self.queue.popleft()
            self.prompts = prompts
            fresh += [prompt] * new
            self.rows.append(_Row(request, prompt, _uniforms(request)))
            self.current = None
        self.full = len(self.rows)
        return fresh

    def drop(self, index: int) -> None:
        """A row leaves, and its prompt after the last of its rows; the last ones move into their places."""
        self.current = None
        prompt = _pop(self.rows, index).prompt
        self.cache.rows.drop(index)
        prompt.unfinished -= 1
        if self.shared and not prompt.unfinished:
            slot = self.prompts.index(prompt)
            _pop(self.prompts, slot)
            self.cache.prompts.drop(slot)

    def step(self) -> Step:
        """The layout in which each row gets a token more."""
        rows, prompts = self.cache.rows.lengths, self.cache.prompts.lengths
        if self.current is not None and max(rows) < self.cache.rows.length:
            self.current.go_on()
            return self.current
        self.current = None  # what was listed of it would hold all that moves now
        self.cache.reserve(len(rows), max(rows) + 1, len(prompts), max(prompts, default=0))
        slots = {id(prompt): slot for slot, prompt in enumerate(self.prompts)}
        self.current = Step(self.cache, [slots[id(row.prompt)] for row in self.rows] if self.shared else None)
        return self.current


class LocalSampler:
    """Samples from a model in this process, at most `max_rows` answers at a time and within `cache_mb` MiB of keys and
    values. `int8`: by a quantised copy of its weights (see decode.Int8Product)."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        context: int,
        max_rows: int = 128,
        cache_mb: float = 2048,
        checkpoint: str = "",
        int8: bool = False,
    ) -> None:
        self.context, self.max_rows, self.cache_mb, self.checkpoint = context, max_rows, cache_mb, checkpoint
        self.int8 = int8
        self.decoder: Decoder | None = None
        self.steps: Steps | None = None
        self.load(Weights(0, loaded))

    def load(self, weights: Weights) -> None:
        """Serve these weights from now on."""
        if self.steps is not None and weights.content.model is not self.loaded.model:
            self.steps = None
        self.version = weights.version
        self.loaded: LoadedModel = weights.content
        model: Any = self.loaded.model
        self.device = next(model.parameters()).device
        if self.int8 and (self.device.type != "cpu" or not Decoder.suits(model)):
            raise PrefloopError(
                f"{self.loaded.name} cannot write in int8: that takes a model like Llama on a CPU; set rollout_dtype "
                "to 'same'."
            )
        if self.decoder is not None and self.decoder.model is model:
            self.decoder.load()
        else:
            self.decoder = Decoder(model, self.int8) if Decoder.suits(model) else None
            self.empty: dict[int, Tensor] | None = None
        self.trunk: nn.Module = model.get_decoder()
        self.unembedding: nn.Module = model.get_output_embeddings()
        self.softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self.static = self.device.type == "cuda"
        self.stops = stop_token_ids(self.loaded.tokenizer, self.loaded.model)

    @torch.no_grad()
    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """See verbs.Sampler. Raises PrefloopError for a request that leaves no room for an answer, in the model's
        context or in the cache."""
        if not requests:
            return
        queue = _queue(requests)
        self._check(queue)
        batch = _Batch(queue, self._cache(queue), self.max_rows)
        for prompt, request in queue:
            if not batch.fits([(prompt, request)], [prompt] * batch.shared):
                raise self._no_room(request)
        while batch.queue or batch.rows:
            first, fresh = len(batch.rows), batch.admit()
            if len(batch.rows) > first:
                self._read(batch, first, fresh)
                states = [row.prompt.state for row in batch.rows[first:] if row.prompt.state is not None]
                yield from self._draw(batch, self._logits(torch.stack(states)), first)
            if batch.rows and self.steps is not None:
                yield from self._take(batch, 0, *self._replayed(batch, self.steps))
            elif batch.rows:
                yield from self._draw(batch, self._logits(self._step(batch)), 0)

    def _check(self, queue: Sequence[tuple[_Prompt, Request]]) -> None:
        for _, request in queue:
            if len(request.tokens) + request.sampling.max_tokens > self.context:
                raise PrefloopError(
                    f"Prompt {request.prompt_id!r} has {_size(request)}, more than the model's context of "
                    f"{self.context}; shorten it or lower max_tokens."
                )
            if "" in request.sampling.stop:
                raise PrefloopError(f"Prompt {request.prompt_id!r} has an empty stop string; leave it out.")
            specials = self.loaded.tokenizer.all_special_tokens
            if special := [token for token in specials if any(token in stop for stop in request.sampling.stop)]:
                raise PrefloopError(
                    f"Prompt {request.prompt_id!r} has the special token {special[0]} among its stop strings, which no "
                    "text holds; give its number in stop_tokens."
                )

    def _no_room(self, request: Request) -> PrefloopError:
        return PrefloopError(
            f"Prompt {request.prompt_id!r} has {_size(request)}, whose keys and values do not fit into {self.cache_mb} "
            "MiB; raise engine.cache_mb, shorten it or lower max_tokens."
        )

    def _cache(self, queue: Sequence[tuple[_Prompt, Request]]) -> Cache:
        """Room for keys and values; where steps are static it is kept, with their graphs, until more is needed, and
        PrefloopError is raised before any is taken where one row has none."""
        empty, budget = self._empty(), int(self.cache_mb * 2**20)
        if not self.static:
            return Cache(empty, budget)
        cache = StaticCache(empty, budget)
        prompts = {id(prompt): len(prompt.tokens) for prompt, _ in queue}
        shared = len(prompts) < len(queue)  # else each is read straight into its row
        longest = max((request for _, request in queue), key=lambda r: len(r.tokens) + r.sampling.max_tokens)
        rows, length = min(self.max_rows, len(queue)), len(longest.tokens) + longest.sampling.max_tokens - 1

        def needs(rows: int) -> tuple[int, int, int, int]:
            return rows, length, shared * math.ceil(rows * len(prompts) / len(queue)), shared * max(prompts.values())

        while rows > 1 and not cache.fits(*needs(rows)):
            rows = -(-rows // 2)
        if not cache.fits(*needs(rows)):
            raise self._no_room(longest)
        if self.steps is None or not self.steps.cache.fits(*needs(rows)):
            self.steps = None  # its memory is free before the next is taken
            cache.rows.resize(rows, length)
            self.steps = Steps(self._static_step, cache, self.device, capturable(self.loaded.model))
        self.steps.cache.clear()
        return self.steps.cache

    def _empty(self) -> dict[int, Tensor]:
        """Nothing yet of each layer's keys and values, in their shapes."""
        if self.empty is None:
            layout, token = _Empty(), torch.zeros(1, dtype=torch.long, device=self.device)
            self._hidden(token, token, layout)
            self.empty = layout.layers
        return self.empty

    def _read(self, batch: _Batch, first: int, fresh: Sequence[_Prompt]) -> None:
        """Read the prompts of the rows from `first` on that are not read yet."""
        cache, store = batch.cache, batch.cache.prompts if batch.shared else batch.cache.rows
        sizes = [len(prompt.tokens) for prompt in fresh]
        if batch.shared:
            cache.rows.lengths += [0] * (len(batch.rows) - first)
            cache.reserve(len(batch.rows), max(cache.rows.lengths), len(batch.prompts), max(store.lengths + sizes))
        else:
            cache.reserve(len(batch.rows), max(store.lengths + sizes), 0, 0)
        while fresh:
            count = next((i for i in range(2, len(fresh) + 1) if i * max(sizes[:i]) > TOKENS), len(fresh) + 1) - 1
            slot = len(store.lengths)
            store.lengths += sizes[:count]
            layout = Reading(store, slot, self.device)
            tokens = torch.tensor([token for prompt in fresh[:count] for token in prompt.tokens], device=self.device)
            states = self._states(tokens, layout.positions, layout)
            for prompt, state in zip(fresh[:count], states, strict=True):
                prompt.state = state
            fresh, sizes = fresh[count:], sizes[count:]
        if batch.shared and isinstance(cache, StaticCache):
            for prompt, rows in itertools.groupby(batch.rows[first:], key=lambda row: row.prompt):
                last = first + len(list(rows))
                cache.copy(batch.prompts.index(prompt), first, last)
                first = last

    def _step(self, batch: _Batch) -> Tensor:
        layout = batch.step()
        tokens = torch.tensor([row.tokens[-1] for row in batch.rows], device=self.device)
        states = self._states(tokens, layout.positions, layout)
        batch.cache.rows.lengths = [length + 1 for length in batch.cache.rows.lengths]
        return states

    def _replayed(self, batch: _Batch, steps: Steps) -> tuple[list[int], list[float]]:
        lengths = batch.cache.rows.lengths
        made = steps.run(
            [
                (row.tokens[-1], length, row.request.sampling.temperature, row.uniforms[len(row.tokens)])
                for row, length in zip(batch.rows, lengths, strict=True)
            ]
        )
        batch.cache.rows.lengths = [length + 1 for length in lengths]
        return made

    def _static_step(self, given: Tensor, length: int) -> Tensor:
        """Token, position, temperature and uniform number [N, 4] -> the token drawn and its log-prob [N, 2]."""
        assert self.steps is not None
        tokens, at = given[:, :2].long().unbind(1)
        states = self._states(tokens, at, StaticStep(self.steps.cache.rows, at, length))
        drawn, logprobs = draw(self._logits(states), given[:, 2].float(), given[:, 3], softcap=self.softcap)
        return torch.stack([drawn.double(), logprobs.double()], dim=1)

    def _states(self, tokens: Tensor, positions: Tensor, layout: Step | Reading | StaticStep) -> Tensor:
        if self.decoder is not None:
            return self.decoder.step(tokens, positions, layout)
        states = self._hidden(tokens, positions, layout)
        return states if layout.last is None else states[layout.last]

    def _hidden(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        out = self.trunk(input_ids=tokens[None], position_ids=positions[None], layout=layout, use_cache=False)
        states: Tensor = out.last_hidden_state[0]
        return states

    def _logits(self, states: Tensor) -> Tensor:
        if self.decoder is not None:
            return self.decoder.head(states)
        return states @ cast(Tensor, self.unembedding.weight).T

    def _draw(self, batch: _Batch, logits: Tensor, first: int) -> Iterator[Completion]:
        """Draw one token for each row from `first` on."""
        rows = batch.rows[first:]
        found = [row.request.sampling.temperature for row in rows]
        temperatures = torch.tensor(found, dtype=torch.float32, device=logits.device)
        uniforms = torch.tensor([row.uniforms[len(row.tokens)] for row in rows], device=logits.device)
        tokens, logprobs = draw(logits, temperatures, uniforms, softcap=self.softcap)
        yield from self._take(batch, first, tokens.tolist(), logprobs.tolist())

    def _take(
        self, batch: _Batch, first: int, tokens: Sequence[int], logprobs: Sequence[float]
    ) -> Iterator[Completion]:
        """A token more for each row from `first` on; those that end are yielded and leave."""
        for row, token, logprob in zip(batch.rows[first:], tokens, logprobs, strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
        for index in range(len(batch.rows) - 1, first - 1, -1):
            row = batch.rows[index]
            ending = self._ending(row)
            if ending is not None:
                batch.drop(index)
                yield self._completion(row, *ending)

    def _ending(self, row: _Row) -> tuple[FinishReason, str] | None:
        """Why an answer ends with the token just drawn, and its text; None while it goes on."""
        sampling, tokenizer = row.request.sampling, self.loaded.tokenizer
        if row.tokens[-1] in self.stops or row.tokens[-1] in sampling.stop_tokens:
            return "stop", decode(tokenizer, row.tokens[:-1])
        last = len(row.tokens) == sampling.max_tokens
        reach = 4 * max(map(len, sampling.stop), default=0) + 4  # tokens, as a character has at most four bytes
        recent = decode(tokenizer, row.tokens[-reach:]) if sampling.stop else ""
        if not last and not any(string in recent for string in sampling.stop):
            return None
        text = decode(tokenizer, row.tokens)
        found = [place for place in map(text.find, sampling.stop) if place >= 0]
        if found:
            return "stop", text[: min(found)]
        return ("length", text) if last else None

    def _completion(self, row: _Row, reason: FinishReason, text: str) -> Completion:
        return Completion(
            id=row.request.id,
            prompt_id=row.request.prompt_id,
            segments=(Segment(author="policy", tokens=tuple(row.tokens), logprobs=tuple(row.logprobs)),),
            text=text,
            finish_reason=reason,
            sampling=row.request.sampling,
            seed=row.request.seed,
            checkpoint=self.checkpoint,
            version=self.version,
        )


def _pop(items: list[_Item], index: int) -> _Item:
    """Take an item out; the last one moves into its place."""
    taken, last = items[index], items.pop()
    if index < len(items):
        items[index] = last
    return taken


def draw(logits: Tensor, temperatures: Tensor, uniforms: Tensor, softcap: float | None = None) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution, and its log-prob in nats under softmax(logits / T).

    logits [N, V], temperatures [N], uniforms [N] in [0, 1) -> tokens [N], log-probs [N] fp32. `softcap` c makes them
    c tanh(logits / c) before. The distribution is summed by blocks and inverted twice: over blocks, then within one.
    Raises PrefloopError on a CPU for logits that are not numbers.
    """
    if logits.device.type == "cpu":
        drawn = kernels.draw(logits, temperatures, uniforms, softcap, _block(logits.shape[1]))
        if len(logits) and int(drawn[0].min()) < 0:
            raise PrefloopError("The model's logits are not numbers, so nothing can be drawn: its weights diverged.")
        return drawn
    return _drawn(logits, temperatures, uniforms, softcap)


def _drawn(
    logits: Tensor, temperatures: Tensor, uniforms: Tensor, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """`draw` by operations that a GPU has."""
    width = _block(logits.shape[1])
    scaled = logits if softcap is None else torch.tanh(logits.float() / softcap) * softcap
    probabilities = torch.softmax(scaled / temperatures[:, None], dim=-1)
    blocks = probabilities.view(len(scaled), -1, width)
    sums = blocks.sum(dim=-1).double().cumsum(dim=-1)
    wanted = uniforms[:, None] * sums[:, -1:]
    block = _invert(sums, wanted)
    before = sums.gather(1, (block - 1).clamp(min=0)) * (block > 0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, width))[:, 0].double().cumsum(dim=-1)
    drawn = block * width + _invert(inside, wanted - before)
    return drawn[:, 0], probabilities.gather(1, drawn).log()[:, 0]


def _invert(cumulative: Tensor, wanted: Tensor) -> Tensor:
    """Where each row's sum [N, K] first exceeds `wanted` [N, 1]; rounding never leads to a place that adds nothing."""
    total = cumulative[:, -1:]
    return torch.searchsorted(
        cumulative, torch.minimum(wanted, torch.nextafter(total, total.new_zeros(()))), right=True
    )


@functools.cache
def _block(size: int) -> int:
    """The largest divisor up to 512."""
    return next(width for width in range(512, 0, -1) if size % width == 0)


def _uniforms(request: Request) -> NDArray[np.float64]:
    return np.random.Generator(np.random.Philox(request.seed)).random(request.sampling.max_tokens)


def _size(request: Request) -> str:
    return f"{len(request.tokens)} tokens and {request.sampling.max_tokens} new ones"


def _queue(requests: Sequence[Request]) -> list[tuple[_Prompt, Request]]:
    """Requests with the same prompt side by side; long ones first, so that neighbours need as much room."""
    groups: dict[tuple[int, ...], list[Request]] = {}
    for request in sorted(requests, key=lambda r: -r.sampling.max_tokens):
        groups.setdefault(request.tokens, []).append(request)
    ordered = sorted(groups.values(), key=lambda group: -len(group[0].tokens) - group[0].sampling.max_tokens)
    prompts = [_Prompt(group[0].tokens, len(group)) for group in ordered]
    return [(prompt, request) for prompt, group in zip(prompts, ordered, strict=True) for request in group]
