"""Learning-rate schedule and seeds: pure functions of a step, so that a resumed run needs no state for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from prefloop.configs.shared import OptimConfig

Item = TypeVar("Item")


def rate(optim: OptimConfig, step: int, total: int) -> float:
    """Multiplier of the peak rates at update `step` of `total` (from 0): linear warm-up, then linear decay or 1."""
    warmup = round(optim.warmup * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (total - step) / max(total - warmup, 1) if optim.decay else 1.0


def derived_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def take(items: Sequence[Item], start: int, count: int, seed: int) -> list[Item]:
    """Items start .. start+count of an endless sequence of passes, each in an order of its own."""
    epochs = range(start // len(items), (start + count - 1) // len(items) + 1)
    orders = {
        epoch: np.random.Generator(np.random.Philox(derived_seed(seed, "order", epoch))).permutation(len(items))
        for epoch in epochs
    }
    places = (divmod(index, len(items)) for index in range(start, start + count))
    return [items[int(orders[epoch][place])] for epoch, place in places]
