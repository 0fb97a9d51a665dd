"""What a machine can do at best: products, packed products of a model's linear layers, copies."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.ops.products import Panels, suits

ROWS = (1, 8, 32, 64, 128)
JOINED = (r"\.([qkv])_proj$", r"\.(gate|up)_proj$")  # read the same input: one product each
LARGEST = {"cpu": 2048, "cuda": 8192}
COPIED = 2**28  # bytes


def seconds_of(call: Callable[[], object], device: str, budget: float) -> float:
    """Seconds of the fastest call, over repeats that fill about `budget` seconds; the first one does not count."""
    settle = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    best = float("inf")
    call()
    settle()
    until = time.perf_counter() + budget
    while time.perf_counter() < until or best == float("inf"):
        began = time.perf_counter()
        call()
        settle()
        best = min(best, time.perf_counter() - began)
    return best


def product_gflops(dtype: torch.dtype, device: str, budget: float) -> float:
    """Best GFLOP/s of a product of two square matrices, as large as this machine multiplies within `budget`
    seconds."""
    best, size, seconds = 0.0, 128, 0.0
    while size < LARGEST[device] and seconds * 8 < budget:
        size *= 2
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = seconds_of(partial(torch.matmul, a, b), device, budget / 4)
        best = max(best, 2e-9 * size**3 / seconds)
    return best


def copy_gb(device: str, budget: float) -> float:
    """GB/s of a copy in memory, read and written bytes both counted."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2e-9 * COPIED / seconds_of(lambda: target.copy_(source), device, budget)


@dataclass(frozen=True, slots=True)
class Linears:
    """Weights [out, in] of a model's linear layers, those that read one input joined, and of its head."""

    layers: tuple[Tensor, ...]
    head: Tensor

    @classmethod
    def of(cls, model: Any) -> "Linears":
        parts: dict[str, list[Tensor]] = {}
        for name, module in model.get_decoder().named_modules():
            if isinstance(module, nn.Linear):
                joined = next((re.sub(p, f".{i}", name) for i, p in enumerate(JOINED) if re.search(p, name)), name)
                parts.setdefault(joined, []).append(module.weight.detach())
        return cls(tuple(torch.cat(found) for found in parts.values()), model.get_output_embeddings().weight.detach())

    def gflop(self, tokens: int, read: int) -> float:
        """Of one forward pass over `tokens` tokens, `read` of them through the head."""
        return 2e-9 * (tokens * sum(w.numel() for w in self.layers) + read * self.head.numel())

    def seconds(self, rows: int, device: str, budget: float) -> float:
        """The fastest way through all of them with `rows` rows: as stored, or packed by oneDNN, MKL or us."""
        weights = [*self.layers, self.head]
        dtype = self.head.dtype
        inputs = {w.shape[1]: torch.randn(rows, w.shape[1], device=device).to(dtype) for w in weights}
        packs = [_stored]
        if device == "cpu":
            packs += [_onednn, _mkl] if dtype == torch.float32 else [_onednn] if _bf16_packs() else []
            packs += [_panels] if all(suits(w) for w in weights) else []
        ways = ([pack(w, inputs[w.shape[1]]) for w in weights] for pack in packs)
        return min(seconds_of(self._whole(way, device), device, budget) for way in ways)

    def decoding(self, gflops: float, step: float, tokens: int, prompts: int, new: int) -> float:
        """Seconds to read so many prompts of so many `tokens` in all at a rate of products, and to write `new` tokens
        after each at `step` seconds for one in every row; the first ones come from the prompts."""
        return self.gflop(tokens, prompts) / gflops + (new - 1) * step

    @staticmethod
    def _whole(products: Sequence[Callable[[], Tensor]], device: str) -> Callable[[], object]:
        def run() -> None:
            for product in products:
                product()

        if device != "cuda":
            return run
        run()  # one by one their launches cost more than they do: a graph launches them all
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay


def _stored(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
    return lambda: nn.functional.linear(x, weight)


def _onednn(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _panels(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
    return partial(Panels(weight), x)


def _bf16_packs() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _mkl(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, len(x))
    return lambda: torch.ops.mkl._mkl_linear(x, packed, weight, None, len(x))
