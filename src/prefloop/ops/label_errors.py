"""Labels that are probably wrong, by what a model makes of comparisons that it was not fitted on.

On numpy arrays, N comparisons of two answers: chance is a model's probability that the first is better, label what
somebody said of it, 1, 0 or a soft label between (0.5 a tie).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


def folds(group: ArrayLike, count: int, seed: int) -> Ints:
    """[N] a fold of 0 to count - 1 for each comparison, drawn by group (its prompt): one group is never in two folds,
    and folds differ by one group at most. ValueError where there are fewer groups than folds, or folds than 2."""
    groups, which = np.unique(np.asarray(group), return_inverse=True)
    if not 2 <= count <= groups.size:
        raise ValueError(f"folds: {count} folds of {groups.size} groups; give from 2 to as many as there are groups")
    drawn = np.random.default_rng(seed).permutation(groups.size) % count
    return np.asarray(drawn[which], dtype=np.int64)


def given_chance(chance: ArrayLike, label: ArrayLike) -> Floats:
    """[N] probability that the model gives to the label, label p + (1 - label)(1 - p): self-confidence, low where the
    label is probably wrong (Northcutt et al. 2021, arXiv 1911.00068, section 3.2). ValueError on shapes that differ and
    numbers outside 0..1."""
    p, t = np.asarray(chance, dtype=float), np.asarray(label, dtype=float)
    if p.ndim != 1 or p.shape != t.shape or not all(((x >= 0) & (x <= 1)).all() for x in (p, t)):
        raise ValueError(f"given_chance: {p.shape} chances and {t.shape} labels; give one of each, all in 0..1")
    return np.asarray(t * p + (1 - t) * (1 - p))


def confident_errors(chance: ArrayLike, label: ArrayLike) -> Flags:
    """[N] whether the other answer reaches the confidence that labels get on average: 1 - g >= mean(g) and g < 1/2,
    with g of `given_chance`. Confident learning, the off-diagonal of its joint (Northcutt et al. 2021, arXiv
    1911.00068, equations 1 and 2); one threshold, where classes would have one each, since which answer comes first
    says nothing. Ties are never flagged, and have no part in the threshold.

    `chance` must be out of fold: a model that saw a label agrees with it. One no better than a coin flags at random.
    """
    given, tied = given_chance(chance, label), np.asarray(label, dtype=float) == 0.5
    if tied.all():
        return np.zeros(given.size, dtype=bool)
    return np.asarray(~tied & (given < 0.5) & (1 - given >= given[~tied].mean()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """precision: share of what is flagged that is wrong, NaN where nothing is; recall: share of what is wrong that is
    flagged, NaN where nothing is."""

    flagged: int
    precision: float
    recall: float


def detection(flagged: ArrayLike, wrong: ArrayLike) -> Detection:
    """How flags [N] fit what is known to be wrong [N]. ValueError on shapes that differ."""
    marked, false = np.asarray(flagged, dtype=bool), np.asarray(wrong, dtype=bool)
    if marked.shape != false.shape:
        raise ValueError(f"detection: {marked.shape} flags for {false.shape} labels; give one each")
    both, of_flagged, of_wrong = (int(x.sum()) for x in (marked & false, marked, false))
    return Detection(
        flagged=of_flagged,
        precision=both / of_flagged if of_flagged else np.nan,
        recall=both / of_wrong if of_wrong else np.nan,
    )
