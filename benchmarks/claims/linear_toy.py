"""A toy for active_sampling and data_quality: a linear head on a frozen trunk, whose features differ in spread.

A comparison is the difference of two answers' features, each N(0, spread^2). A planted head gives their worth; people
prefer the first answer with the probability sigmoid(head . difference), a logit of std SHARPNESS over comparisons.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

WIDTH, SHARPNESS, PRIOR = 32, 4.0, 1.0
SPREAD = np.arange(1, WIDTH + 1) ** -0.5
Array = NDArray[np.float64]


def comparisons(count: int, rng: np.random.Generator) -> Array:
    """[count, WIDTH] differences of two answers' features."""
    return np.asarray(rng.normal(size=(count, WIDTH)) * SPREAD * 2**0.5)


def planted(rng: np.random.Generator) -> Array:
    """[WIDTH] head of the answers' worth."""
    head = rng.normal(size=WIDTH)
    return np.asarray(head * SHARPNESS / np.sqrt(2 * ((head * SPREAD) ** 2).sum()))


def fitted(features: Array, label: Array, times: Array | None = None) -> Array:
    """[WIDTH] head of the highest posterior, by Newton's method. `times` [N]: how often each label counts."""
    weight = np.ones(label.size) if times is None else times
    head = np.zeros(WIDTH)
    for _ in range(8):
        chance = expit(features @ head)
        curvature = (features * (weight * chance * (1 - chance))[:, None]).T @ features + PRIOR * np.eye(WIDTH)
        head = head + np.linalg.solve(curvature, features.T @ (weight * (label - chance)) - PRIOR * head)
    return head


def accuracy(head: Array, truth: Array, fresh: Array) -> float:
    """Share of comparisons on which a head prefers what the planted one does."""
    return float(np.mean((fresh @ head > 0) == (fresh @ truth > 0)))
