"""Win rates, intervals, agreement between raters and calibration, on numpy arrays. Fractions are in 0..1."""

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, ndtri

Floats = NDArray[np.float64]


def win_rate(outcomes: Sequence[Sequence[float]]) -> float:
    """(wins + ties / 2) / n over all samples of all prompts.

    outcomes: per prompt, a list of 1 (win), 0.5 (tie) or 0 (loss). ValueError on another number, or on none.
    """
    pooled = [outcome for prompt in outcomes for outcome in prompt]
    if not pooled:
        raise ValueError("win_rate: there are no outcomes; give at least one comparison")
    return float(np.mean(_checked_outcomes(pooled)))


def cluster_bootstrap(
    values_by_cluster: Sequence[ArrayLike], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval (low, high) of the mean over all values, by resampling whole clusters (prompts).

    Each resample draws as many clusters as there are, with replacement, each with all its values; the mean pools them.
    Field and Welsh 2007. ValueError when there is no cluster, or one without values.
    """
    clusters = [np.asarray(values, dtype=float) for values in values_by_cluster]
    if not clusters or any(cluster.size == 0 for cluster in clusters):
        raise ValueError("cluster_bootstrap: no clusters, or one without values; leave out prompts without values")
    sums = np.array([cluster.sum() for cluster in clusters])
    sizes = np.array([cluster.size for cluster in clusters])
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(clusters), size=len(clusters)) for _ in range(resamples))
    means = [sums[drawn].sum() / sizes[drawn].sum() for drawn in draws]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def pooled_std(groups: Sequence[ArrayLike]) -> float:
    """Standard deviation within groups: root of all squared distances from the own group's mean over sum(n - 1).

    ValueError when no group has two values.
    """
    arrays = [array for group in groups if (array := np.asarray(group, dtype=float)).size]
    freedom = sum(array.size - 1 for array in arrays)
    if not freedom:
        raise ValueError("pooled_std: no group has two values; give more")
    return math.sqrt(sum(float(((array - array.mean()) ** 2).sum()) for array in arrays) / freedom)


def calibration_slope(
    leads_by_cluster: Sequence[ArrayLike], targets_by_cluster: Sequence[ArrayLike], level: float = 0.95
) -> tuple[float, float]:
    """(s, lower bound): sigmoid(s d) fits best the probability (0..1) that the first of two answers is preferred, given
    leads d in logits; clusters are prompts.

    Platt 1999 without intercept, with a prior N(1, 1) that keeps s finite; the bound is s less z standard errors that
    hold within clusters too (Liang and Zeger 1986). s is 1 for calibrated leads, 0 for such as say nothing.
    """
    leads = [np.asarray(values, dtype=float) for values in leads_by_cluster]
    targets = [np.asarray(values, dtype=float) for values in targets_by_cluster]
    slope = 1.0
    for _ in range(100):
        p = [expit(slope * d) for d in leads]
        gradients = [float(((t - q) * d).sum()) for t, q, d in zip(targets, p, leads, strict=True)]
        information = 1 + sum(float((q * (1 - q) * d**2).sum()) for q, d in zip(p, leads, strict=True))
        step = (sum(gradients) - (slope - 1)) / information
        slope += min(max(step, -1.0), 1.0)
        if abs(step) < 1e-12:
            break
    error = math.sqrt(1 + sum(gradient**2 for gradient in gradients)) / information
    return slope, slope - float(ndtri((1 + level) / 2)) * error


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval (low, high) of a binomial fraction: Wilson 1927. ValueError unless 0 <= successes <= n, n > 0."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n} is no fraction; give 0 <= successes <= n and n > 0")
    z2 = float(ndtri((1 + level) / 2)) ** 2
    centre = (successes + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * (successes * (n - successes) / n + z2 / 4)) / (n + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def length_controlled_win_rate(outcomes: ArrayLike, length_difference: ArrayLike) -> float:
    """Win rate at equal length: sigmoid(theta) of P(win) = sigmoid(theta + phi tanh(d / std(d))).

    outcomes [n] of 1, 0.5 or 0; length_difference d [n] = own length minus the other's. Maximum likelihood with a ridge
    of 1e-3 on both coefficients, which keeps them finite when the outcomes are separable. After AlpacaEval 2 (Dubois et
    al. 2024, arXiv 2404.04475) without its term for the difficulty of a prompt. Where d does not vary its effect cannot
    be told from theta's and is left out. ValueError on no outcomes, other numbers, or shapes that differ.
    """
    won = _checked_outcomes(outcomes)
    difference = np.asarray(length_difference, dtype=float)
    if won.size == 0 or won.shape != difference.shape:
        raise ValueError(
            f"length_controlled_win_rate: {won.shape} outcomes and {difference.shape} length differences; "
            "give one of each per comparison, and at least one"
        )
    spread = difference.std()
    features = np.stack([np.ones(won.size), np.tanh(difference / spread) if spread > 0 else np.zeros(won.size)], axis=1)
    ridge = 1e-3 / won.size

    def loss(theta: Floats) -> float:
        logits = features @ theta
        return float(np.mean(np.logaddexp(0, logits) - won * logits) + ridge / 2 * theta @ theta)

    def gradient(theta: Floats) -> Floats:
        return np.asarray(features.T @ (expit(features @ theta) - won) / won.size + ridge * theta)

    def hessian(theta: Floats) -> Floats:
        prob = expit(features @ theta)
        return np.asarray((features.T * (prob * (1 - prob))) @ features / won.size + ridge * np.eye(2))

    fit = minimize(loss, np.zeros(2), jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-10})
    return float(expit(fit.x[0]))


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """(p_o - p_e) / (1 - p_e) of two raters' labels of the same items: Cohen 1960.

    NaN when both always give the same one label (chance agreement is 1). ValueError on no items or unequal numbers.
    """
    if not a or len(a) != len(b):
        raise ValueError(f"cohen_kappa: {len(a)} and {len(b)} labels; give both raters' labels of the same items")
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    chance = sum(list(a).count(label) * list(b).count(label) for label in set(a)) / len(a) ** 2
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def fleiss_kappa(counts: ArrayLike) -> float:
    """(mean P_i - P_e) / (1 - P_e), P_i = (sum_j n_ij^2 - n) / (n (n - 1)), P_e = sum_j p_j^2: Fleiss 1971.

    counts [items, categories]: how many of an item's n >= 2 raters chose each category, n the same for all. NaN when
    only one category occurs. ValueError on other counts.
    """
    table = np.asarray(counts, dtype=float)
    if table.ndim != 2 or table.size == 0 or np.ptp(table.sum(axis=1)) > 0 or table[0].sum() < 2:
        raise ValueError("fleiss_kappa: every item needs equally many ratings, 2 or more; see krippendorff_alpha")
    n = table[0].sum()
    agreement = float(np.mean(((table**2).sum(axis=1) - n) / (n * (n - 1))))
    chance = float(np.sum((table.sum(axis=0) / table.sum()) ** 2))
    return (agreement - chance) / (1 - chance) if chance < 1 else math.nan


def krippendorff_alpha(
    ratings: Sequence[Sequence[Any]], level: Literal["nominal", "ordinal", "interval", "ratio"] = "nominal"
) -> float:
    """1 - D_o / D_e for any number of raters and missing ratings: Krippendorff 2011, "Computing Krippendorff's alpha".

    ratings [rater][unit], None where missing: numbers (0 or more for the ratio level), or for the nominal level labels
    of any one sortable type. Units with fewer than two ratings do not count. NaN when fewer than two values occur (no
    disagreement is possible). ValueError when raters' lists differ in length.
    """
    if len({len(rater) for rater in ratings}) > 1:
        raise ValueError("krippendorff_alpha: give every rater one entry per unit, None where missing")
    rated = [[rating for rating in unit if rating is not None] for unit in zip(*ratings, strict=True)]
    units = [unit for unit in rated if len(unit) > 1]
    values = sorted({rating for unit in units for rating in unit})
    if len(values) < 2:
        return math.nan
    counts = np.array([[unit.count(value) for value in values] for unit in units], dtype=float)
    shares = counts / (counts.sum(axis=1, keepdims=True) - 1)
    coincidences = counts.T @ shares - np.diag(shares.sum(axis=0))
    totals = coincidences.sum(axis=1)
    distance = _squared_distance(values, totals, level)
    expected = float((np.outer(totals, totals) * distance).sum() / (totals.sum() - 1))
    return 1 - float((coincidences * distance).sum()) / expected


def expected_calibration_error(prob: ArrayLike, outcome: ArrayLike, bins: int = 10) -> float:
    """sum_b n_b / n |mean prob - mean outcome| over bins of equal mass; equal probabilities share a bin.

    prob [n] in 0..1, outcome [n] 0..1. Naeini et al. 2015, with the equal-mass bins of Nguyen and O'Connor 2015.
    ValueError when empty or of unequal length.
    """
    predicted, observed = np.asarray(prob, dtype=float), np.asarray(outcome, dtype=float)
    if predicted.size == 0 or predicted.shape != observed.shape:
        raise ValueError("expected_calibration_error: give one outcome per probability, and at least one")
    rank = np.searchsorted(np.sort(predicted), predicted)
    gaps = np.bincount(rank * bins // predicted.size, weights=predicted - observed)
    return float(np.abs(gaps).sum() / predicted.size)


def _checked_outcomes(outcomes: ArrayLike) -> Floats:
    checked = np.asarray(outcomes, dtype=float)
    if not np.isin(checked, (0.0, 0.5, 1.0)).all():
        raise ValueError("outcomes must be 1 (win), 0.5 (tie) or 0 (loss); count other judgments as one of these first")
    return checked


def _squared_distance(values: list[Any], totals: Floats, level: str) -> Floats:
    if level == "nominal":
        return np.asarray(1 - np.eye(len(values)))
    if level == "ordinal":
        ranks = np.cumsum(totals) - totals / 2
        return np.asarray(np.subtract.outer(ranks, ranks) ** 2)
    numbers = np.array(values, dtype=float)
    squared = np.asarray(np.subtract.outer(numbers, numbers) ** 2)
    if level == "interval":
        return squared
    sums = np.add.outer(numbers, numbers)
    return np.asarray(np.divide(squared, sums**2, out=np.zeros_like(squared), where=sums != 0))
