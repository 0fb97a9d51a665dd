"""Steps of an answer: their probabilities of being right in one number, and labels from roll-outs. On numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from prefloop.ops.statistics import Floats

COMBINATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "product": np.prod,  # all steps are right, were they independent: Lightman et al. 2023 (arXiv 2305.20050)
    "minimum": np.min,  # the weakest step: Math-Shepherd (Wang et al. 2023, arXiv 2312.08935)
    "last": lambda steps: steps[-1],
    "mean": np.mean,
}


def combined(probabilities: ArrayLike, how: str) -> float:
    """One number in 0..1 of an answer whose S >= 1 steps are right with these probabilities [S]; see COMBINATIONS."""
    return float(COMBINATIONS[how](np.asarray(probabilities, dtype=float)))


def rollout_labels(right: ArrayLike, tried: int, *, soft: bool) -> Floats:
    """[S] labels of steps, from how many of `tried` completions that go on after each came to a right answer [S].

    Hard: 1 where any did. Soft: the share that did. Math-Shepherd (Wang et al. 2023, arXiv 2312.08935).
    ValueError where a count is no count of `tried`.
    """
    counts = np.asarray(right, dtype=float)
    if tried < 1 or not ((counts >= 0) & (counts <= tried)).all():
        raise ValueError(f"rollout_labels: {counts.tolist()} right of {tried} completions; give 0 to all of each")
    return counts / tried if soft else (counts > 0).astype(float)
