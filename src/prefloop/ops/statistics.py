"""Win rates, intervals and calibration, on numpy arrays. Fractions are in 0..1."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, ndtri, stdtrit
from scipy.stats import rankdata

Floats = NDArray[np.float64]
LEVEL = 0.95
"""Of the intervals of every Figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number with its interval at LEVEL, from n observations. NaN where undefined, and `reason` says why."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    reason: str = ""


def share(successes: float, n: int, reason: str = "there are no labels") -> Figure:
    """successes / n with Wilson's interval; reason: why there is none where n is 0."""
    if n == 0:
        return Figure(value=math.nan, reason=reason)
    low, high = wilson(successes, n, LEVEL)
    return Figure(value=successes / n, low=low, high=high, n=n)


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


def share_bootstrap(values_by_cluster: Sequence[ArrayLike], *, seed: int = 0) -> tuple[float, float]:
    """`cluster_bootstrap` of values in 0..1, but where resamples could not differ: where all are 0, or all 1, the exact
    interval over clusters, and of a single cluster, which says nothing of others, 0 to 1."""
    values = np.concatenate([np.asarray(values, dtype=float) for values in values_by_cluster])
    if values.min() == values.max() and values[0] in (0.0, 1.0):
        return of_one_kind(bool(values[0]), len(values_by_cluster))
    return cluster_bootstrap(values_by_cluster, seed=seed) if len(values_by_cluster) > 1 else (0.0, 1.0)


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


def cluster_mean(values_by_cluster: Sequence[ArrayLike], level: float = LEVEL) -> Figure:
    """Mean over clusters (prompts) of the mean of each, with Student's interval over clusters; n counts clusters.

    NaN with a reason where fewer than two clusters have values."""
    clusters = [array for values in values_by_cluster if (array := np.asarray(values, dtype=float)).size]
    means = np.array([float(array.mean()) for array in clusters])
    if means.size < 2:
        return Figure(value=math.nan, n=means.size, reason="fewer than two prompts")
    half = float(stdtrit(means.size - 1, (1 + level) / 2)) * float(means.std(ddof=1)) / math.sqrt(means.size)
    value = float(means.mean())
    return Figure(value=value, low=value - half, high=value + half, n=means.size)


def cluster_share(values_by_cluster: Sequence[ArrayLike], level: float = LEVEL) -> Figure:
    """`cluster_mean` of values that are 0 or 1; where all of them are alike, with the exact interval over clusters."""
    found = cluster_mean(values_by_cluster, level)
    if found.reason or found.value not in (0.0, 1.0):
        return found
    low, high = of_one_kind(bool(found.value), found.n, level)
    return replace(found, low=low, high=high)


def of_one_kind(successes: bool, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval (low, high) of a share of which n trials are known that were all successes, or all none (Clopper and
    Pearson 1934)."""
    bound = ((1 - level) / 2) ** (1 / n)
    return (bound, 1.0) if successes else (0.0, 1 - bound)


def logistic_effects(
    features_by_cluster: Sequence[ArrayLike], targets_by_cluster: Sequence[ArrayLike], *, ridge: float = 1e-2
) -> tuple[Floats, Floats]:
    """(b [K], covariance [K, K]): sigmoid(x b) fits best the probability (0..1) that the first of two answers is
    preferred, given differences x [n, K] of their features; clusters are prompts.

    Logistic regression without intercept, with a prior N(0, 1/ridge) on each coefficient; the covariance is the
    sandwich that holds within clusters too (Liang and Zeger 1986), times G / (G - 1) for G clusters. ValueError without
    a pair.
    """
    features = [np.asarray(x, dtype=float) for x in features_by_cluster]
    targets = [np.asarray(t, dtype=float) for t in targets_by_cluster]
    if not features:
        raise ValueError("logistic_effects: there is no pair; give at least one")
    x, t = np.concatenate(features), np.concatenate(targets)
    prior = ridge * np.eye(x.shape[1])

    def loss(b: Floats) -> tuple[float, Floats]:
        logits = x @ b
        value = float(np.sum(np.logaddexp(0, logits) - t * logits)) + float(b @ prior @ b) / 2
        return value, np.asarray(x.T @ (expit(logits) - t) + prior @ b)

    found = minimize(loss, np.zeros(x.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    p = expit(x @ found)
    bread = np.linalg.inv((x.T * (p * (1 - p))) @ x + prior)
    scores = [own.T @ (target - expit(own @ found)) for own, target in zip(features, targets, strict=True)]
    meat = np.sum([np.outer(score, score) for score in scores], axis=0) * len(scores) / max(1, len(scores) - 1)
    return np.asarray(found), np.asarray(bread @ meat @ bread)


def area_under_curve(better: ArrayLike, worse: ArrayLike) -> float:
    """P(a score of `better` [N] is above one of `worse` [M]) + P(equal) / 2: Mann and Whitney 1947. ValueError when
    either is empty."""
    above, below = np.asarray(better, dtype=float), np.asarray(worse, dtype=float)
    if not above.size or not below.size:
        raise ValueError("area_under_curve: give at least one score on each side")
    ranks = rankdata(np.concatenate([above, below]))[: above.size]
    return float((ranks.sum() - above.size * (above.size + 1) / 2) / (above.size * below.size))


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
