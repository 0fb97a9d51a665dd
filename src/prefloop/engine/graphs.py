"""Decoding on a GPU: keys and values that stay where they are, so that a step of so many rows and tokens is captured
once as a CUDA graph and replayed. Without a GPU the same steps run uncaptured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from prefloop.engine.cache import Cache, Places, Rotation, Store
from prefloop.models.attention import layer_index
from prefloop.ops.attention import Traits, attend

SHORTEST = 64  # tokens of the shortest step
ALIGNED = 256  # rows get their room in steps of so many tokens
IDLE = (0.0, 0.0, 1.0, 0.0)  # token, position, temperature and uniform number of a row that nobody reads


def bucket(size: int, least: int, most: int) -> int:
    """The power of two, not below `least`, that holds `size`; at most `most`, which need not be one."""
    return min(max(least, 1 << (size - 1).bit_length()), most)


def capturable(model: nn.Module) -> bool:
    """Whether a step reads nothing on the host: experts are chosen there."""
    return not any(name.endswith(".experts") for name, _ in model.named_modules())


class StaticCache(Cache):
    """Rows that get room once, for all that they will hold, prompts included; the prompts that rows share are copied
    into them, because products that are shared change their shapes as rows leave."""

    def __init__(self, empty: Mapping[int, Tensor], budget: int) -> None:
        super().__init__(empty, budget)
        self.rows = Store(empty, ALIGNED)

    def fits(self, rows: int, length: int, prompts: int, prompt_length: int) -> bool:
        """Beside the room that rows have; before they have any, beside as much as these need."""
        slots, places = (self.rows.slots, self.rows.length) if self.rows.slots else (rows, length)
        return rows <= slots and length <= places and super().fits(slots, places, prompts, prompt_length)

    def reserve(self, rows: int, length: int, prompts: int, prompt_length: int) -> None:
        super().reserve(self.rows.slots, self.rows.length, prompts, prompt_length)

    def copy(self, prompt: int, first: int, last: int) -> None:
        """Rows first .. last - 1 begin with a prompt's keys and values."""
        length = self.prompts.lengths[prompt]
        for index, layer in self.rows.layers.items():
            layer[:, first:last, :, :length] = self.prompts.layers[index][:, prompt, None, :, :length]
        self.rows.lengths[first:last] = [length] * (last - first)

    def clear(self) -> None:
        self.rows.lengths, self.prompts.lengths = [], []


class StaticStep:
    """One new token in each of the first N rows, at places [N], over the first `length` places: a layout and the rows
    of a decoder, like cache.Step, made of nothing from the host."""

    last: Tensor | None = None
    steady = False

    def __init__(self, store: Store, at: Tensor, length: int) -> None:
        self.at, self.length = at, length
        self.places = Places(store, torch.arange(len(at), device=at.device), at)
        self.biases: dict[int | None, Tensor] = {}

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, traits: Traits) -> Tensor:
        mixed = self.mix(layer_index(module), torch.cat([query, key, value]).transpose(0, 1), None, traits)
        return mixed.view(query.shape[1], query.shape[0], -1).transpose(0, 1)

    def mix(self, layer: int, heads: Tensor, turn: Rotation | None, traits: Traits) -> Tensor:
        """See decode.Rows. The heads that share keys are the queries of one call, so one mask serves them."""
        query, keys_values = self.places.split(layer, heads, turn)
        keys, values = self.places.keep(layer, keys_values)[:, : len(query), :, : self.length]
        bias = self._bias(traits.window, keys.dtype)
        if traits.softcap is None and traits.sinks is None:
            grouped = query.reshape(*keys.shape[:2], -1, query.shape[-1])
            mixed = nn.functional.scaled_dot_product_attention(
                grouped, keys, values, attn_mask=bias[:, None], scale=traits.scaling
            )
        else:
            mixed = attend(query[:, :, None], keys, values, bias, traits)
        return mixed.reshape(len(query), -1)

    def _bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[N, 1, S]: 0 where a row sees a place, -inf elsewhere."""
        if window not in self.biases:
            places, at = torch.arange(self.length, device=self.at.device), self.at[:, None]
            seen = places <= at if window is None else (places <= at) & (places > at - window)
            bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, float("-inf"))
            self.biases[window] = bias[:, None]
        return self.biases[window]


class Steps:
    """Runs `step`: numbers [N, 4] of rows and a length -> [N, 2], for N and lengths in buckets; on a GPU by graphs."""

    def __init__(self, step: Callable[[Tensor, int], Tensor], cache: StaticCache, device: torch.device, capture: bool):
        self.step, self.cache, self.capture = step, cache, capture and device.type == "cuda"
        self.given = torch.empty(cache.rows.slots, len(IDLE), dtype=torch.double, device=device)
        self.pool = torch.cuda.graph_pool_handle() if self.capture else None
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def run(self, rows: Sequence[tuple[float, float, float, float]]) -> tuple[list[int], list[float]]:
        """Token, position, temperature and uniform number of each row -> the tokens drawn and their log-probs."""
        size = bucket(len(rows), 1, self.cache.rows.slots)
        length = bucket(1 + max(int(row[1]) for row in rows), SHORTEST, self.cache.rows.length)
        idle = [IDLE] * (size - len(rows))
        self.given[:size] = torch.tensor([*rows, *idle], dtype=torch.double)  # a double holds every id
        drawn, logprobs = self._made(size, length)[: len(rows)].T.tolist()
        return [int(token) for token in drawn], logprobs

    def _made(self, size: int, length: int) -> Tensor:
        if not self.capture:
            return self.step(self.given[:size], length)
        if (size, length) not in self.graphs:
            self.graphs[size, length] = self._captured(size, length)
        graph, made = self.graphs[size, length]
        graph.replay()
        return made

    def _captured(self, size: int, length: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A step can be repeated: keys and values go to the same places again."""
        self.step(self.given[:size], length)  # what libraries set up at their first call cannot be captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            made = self.step(self.given[:size], length)
        return graph, made
