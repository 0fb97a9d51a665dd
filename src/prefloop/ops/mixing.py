"""Several rewards as one: a weighted sum, a gate, a constraint with a learned multiplier. On numpy arrays.

M rewards, N answers. Scores are in stds of the reference: 0 is the mean of its answers, 1 their standard deviation
among answers to one prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefloop.ops.statistics import Floats, pooled_std


def reference_scale(groups: Sequence[ArrayLike]) -> tuple[float, float]:
    """(mean, std) of raw scores of the reference's answers, a group for each prompt; a score in its stds is
    (raw - mean) / std. The std is that within prompts, or over all where each prompt has one answer."""
    arrays = [np.asarray(group, dtype=float) for group in groups]
    values = np.concatenate(arrays)
    return float(values.mean()), pooled_std(arrays if len(values) > len(arrays) else [values])


def weighted_sum(scores: ArrayLike, weights: ArrayLike) -> Floats:
    """[N] sum_m w_m s_m of scores [M, N] and weights [M]."""
    return np.asarray(np.asarray(weights, dtype=float) @ np.asarray(scores, dtype=float))


def gate_shut(guard: ArrayLike, below: float, unsafe: ArrayLike) -> NDArray[np.bool_]:
    """[N] where the guard's score takes the place of all others: it is below a threshold, or its prompt is tagged
    unsafe [N]. Llama 2 (Touvron et al. 2023, arXiv 2307.09288, section 3.2.3), with a safety model as guard."""
    return np.asarray(np.asarray(unsafe, dtype=bool) | (np.asarray(guard, dtype=float) < below))


@dataclass(frozen=True)
class Multiplier:
    """Lagrange's multiplier lambda of the constraint that a mean score be `at_least` so much, learned by dual ascent as
    in Safe RLHF (Dai et al. 2023, arXiv 2310.12773): `value` is lambda, `rate` its step per unit of violation."""

    value: float
    rate: float
    at_least: float

    def mixed(self, total: ArrayLike, score: ArrayLike) -> Floats:
        """[N] (total + lambda score) / (1 + lambda): the Lagrangian but for a constant, over 1 + lambda as in the code
        of Safe RLHF, so that it keeps its units however large lambda is, and a KL coefficient its meaning."""
        scores = np.asarray(total, dtype=float) + self.value * np.asarray(score, dtype=float)
        return np.asarray(scores / (1 + self.value))

    def update(self, mean: float) -> Multiplier:
        """lambda + rate (at_least - mean), never below 0; mean is the batch's. ValueError when it is not finite."""
        if not math.isfinite(mean):
            raise ValueError(f"constraint: the mean score is {mean}; look at the reward that it holds")
        return replace(self, value=max(0.0, self.value + self.rate * (self.at_least - mean)))
