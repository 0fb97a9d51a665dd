"""Bradley-Terry ratings from comparisons by raters of unequal reliability, with a bias to one side.

P(a beats b | rater k) = sigmoid(reliability_k (s_a - s_b) + bias_k side), side 1 where a stands left, -1 right. Labels
come as arrays of equal length with one entry [n] a label: two items, the rater, the outcome (1: the first won, 0: the
second, 0.5: a tie, half a win each), left (1: the first stood left, -1: right, 0: not known)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.linalg import null_space
from scipy.optimize import minimize
from scipy.special import expit

from prefloop.ops.agreement import one_hot

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SPREAD, RATER_SPREAD = 5.0, 0.5
"""Standard deviations of the priors: of a strength, in logits; of log reliability, and of a bias, in logits."""
_LARGEST = 3000  # items of which a dense covariance is made
_OPTIONS = {"maxiter": 5000, "maxfun": 10_000, "maxcor": 20, "ftol": 1e-13, "gtol": 1e-9}
_NODES, _SHARES = np.polynomial.hermite_e.hermegauss(8)
_SHARES = _SHARES / _SHARES.sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class Strengths:
    """items [I] are sorted; strength [I] in logits, with mean 0; error [I]: standard errors, NaN where not asked for;
    loss: what was minimized."""

    items: NDArray[Any]
    strength: Floats
    error: Floats
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Raters:
    """raters [L] are sorted; reliability [L], of mean logarithm 0 over all labels; bias [L] in logits in favour of the
    left side; standard errors of the logarithm of reliability, and of bias; spread: standard deviation of strengths."""

    raters: NDArray[Any]
    reliability: Floats
    bias: Floats
    log_reliability_error: Floats
    bias_error: Floats
    spread: float


def bradley_terry(
    first: ArrayLike,
    second: ArrayLike,
    outcome: ArrayLike,
    *,
    slope: ArrayLike = 1.0,
    offset: ArrayLike = 0.0,
    weight: ArrayLike = 1.0,
    cluster: ArrayLike | None = None,
    spread: float = SPREAD,
) -> Strengths:
    """Strengths of items: the maximum a posteriori of P(a beats b) = sigmoid(slope (s_a - s_b) + offset) with
    s ~ N(0, spread^2). Bradley and Terry 1952.

    slope and offset by label: a rater's reliability, and bias times side, as `rater_effects` finds them. weight: how
    often a label counts. cluster [n]: what is independent of one another, such as the prompt; then there are standard
    errors, which hold whatever goes on within clusters (Liang and Zeger 1986). ValueError where they are asked of too
    many items."""
    items, a, b = _coded(first, second)
    y, pull, push, times = (np.broadcast_to(np.asarray(x, float), a.shape) for x in (outcome, slope, offset, weight))
    strength, loss = _fit(a, b, y, pull, push, times, items.size, spread**-2)
    error = np.full(items.size, np.nan)
    if cluster is not None:
        p = expit(pull * (strength[a] - strength[b]) + push)
        error = _errors(a, b, pull, times * p * (1 - p), times * (p - y), np.asarray(cluster), items.size, spread**-2)
    return Strengths(items=items, strength=strength, error=error, loss=loss)


def rater_effects(first: ArrayLike, second: ArrayLike, rater: ArrayLike, outcome: ArrayLike, left: ArrayLike) -> Raters:
    """Reliability and bias of raters, whatever the strengths of items.

    Strengths that are fitted together with reliabilities follow some rater with whom they can agree in all, who then
    seems never to err. So strengths are integrated out: the expected log-likelihood under independent normals less
    their divergence from N(0, spread^2) is maximized over these normals, the spread and the raters (variational
    inference; Jordan et al. 1999), by L-BFGS, expectations by Gauss-Hermite quadrature."""
    items, a, b = _coded(first, second)
    raters, who = np.unique(rater, return_inverse=True)
    side = np.asarray(left, dtype=float)
    kept, won, times = _pooled((a, b, who, side), np.asarray(outcome, dtype=float), np.ones(a.size))
    labels = _Labels(a=a[kept], b=b[kept], who=who[kept], won=won, left=side[kept], times=times)
    model = _Model(labels, items.size, raters.size)
    fit = minimize(model.objective, model.start, jac=True, method="L-BFGS-B", options=_OPTIONS)
    _, _, log_reliability, bias, log_spread = model.unpack(fit.x)
    log_reliability_error, bias_error = model.errors(fit.x)
    return Raters(
        raters=raters,
        reliability=np.exp(log_reliability),
        bias=bias,
        log_reliability_error=log_reliability_error,
        bias_error=bias_error,
        spread=float(np.exp(log_spread[0])),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labels:
    a: Ints
    b: Ints
    who: Ints
    won: Floats
    left: Floats
    times: Floats


class _Model:
    """Mean and log deviation of each item's normal, log reliability and bias of each rater, log spread: one vector,
    scaled by the root of the curvature that each is expected to have."""

    def __init__(self, labels: _Labels, items: int, raters: int) -> None:
        self._labels, self._items, self._raters = labels, items, raters
        by_item = _by_item(labels.a, labels.b, labels.times, items, sign=1)
        by_rater = np.bincount(labels.who, labels.times, minlength=raters)
        self._shares, self._total = by_rater / by_rater.sum(), float(labels.times.sum())
        self._cuts = np.cumsum([items, items, raters, raters])
        own = RATER_SPREAD**-2 + by_rater / 4
        self._scale = np.sqrt(np.concatenate([1 + by_item / 4, np.ones(items), own, own, [2.0 * items]]))
        self.start = (
            np.concatenate([np.zeros(items), -np.log1p(by_item / 4) / 2, np.zeros(2 * raters + 1)]) * self._scale
        )

    def unpack(self, scaled: Floats) -> list[Floats]:
        parts = np.split(scaled / self._scale, self._cuts)
        parts[2] = parts[2] - self._shares @ parts[2]
        return parts

    def objective(self, scaled: Floats) -> tuple[float, Floats]:
        """Negative bound on the log-likelihood, and log-priors, by label; and its gradient."""
        mean, log_deviation, log_reliability, bias, log_spread = self.unpack(scaled)
        labels, variance, precision = self._labels, np.exp(2 * log_deviation), float(np.exp(-2 * log_spread[0]))
        x, noise, pull = self._logits(mean, variance, log_reliability, bias)
        loss, by_x, by_noise = -labels.won * x, -labels.won, np.zeros(x.size)
        for node, share in zip(_NODES, _SHARES, strict=True):
            at = x + node * noise
            p = expit(at)
            loss = loss + share * np.logaddexp(0, at)
            by_x = by_x + share * p
            by_noise = by_noise + share * node * p
        by_x, by_noise = labels.times * by_x, labels.times * by_noise
        by_variance = _by_item(labels.a, labels.b, by_noise * pull**2 / noise / 2, mean.size, sign=1)
        by_log_pull = by_x * (x - bias[labels.who] * labels.left) + by_noise * noise
        by_reliability = np.bincount(labels.who, by_log_pull, minlength=bias.size) + log_reliability / RATER_SPREAD**2
        squares = mean**2 + variance
        gradient = np.concatenate(
            [
                _by_item(labels.a, labels.b, by_x * pull, mean.size) + precision * mean,
                2 * variance * by_variance + precision * variance - 1,
                by_reliability - self._shares * by_reliability.sum(),
                np.bincount(labels.who, by_x * labels.left, minlength=bias.size) + bias / RATER_SPREAD**2,
                mean.size - precision * squares.sum() + log_spread,
            ]
        )
        divergence = precision * squares.sum() / 2 - log_deviation.sum() + mean.size * log_spread[0]
        prior = (log_reliability @ log_reliability + bias @ bias) / RATER_SPREAD**2 / 2 + log_spread[0] ** 2 / 2
        value = float(labels.times @ loss + divergence + prior)
        return value / self._total, gradient / self._scale / self._total

    def errors(self, scaled: Floats) -> tuple[Floats, Floats]:
        """Of log reliability and bias, from each rater's own information."""
        mean, log_deviation, log_reliability, bias, _ = self.unpack(scaled)
        labels = self._labels
        x, noise, _ = self._logits(mean, np.exp(2 * log_deviation), log_reliability, bias)
        own = np.zeros((3, bias.size))
        for node, share in zip(_NODES, _SHARES, strict=True):
            at = x + node * noise
            curvature = labels.times * share * expit(at) * expit(-at)
            lead = at - bias[labels.who] * labels.left
            for row, product in enumerate((lead**2, labels.left**2, lead * labels.left)):
                own[row] += np.bincount(labels.who, curvature * product, minlength=bias.size)
        reliability, side = own[:2] + RATER_SPREAD**-2
        determinant = reliability * side - own[2] ** 2
        return np.sqrt(side / determinant), np.sqrt(reliability / determinant)

    def _logits(
        self, mean: Floats, variance: Floats, log_reliability: Floats, bias: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Mean and deviation of each label's logit, and its rater's reliability."""
        labels = self._labels
        pull = np.exp(log_reliability)[labels.who]
        x = pull * (mean[labels.a] - mean[labels.b]) + bias[labels.who] * labels.left
        return x, pull * np.sqrt(variance[labels.a] + variance[labels.b]), pull


def _coded(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[Any], Ints, Ints]:
    items, codes = np.unique(np.stack([np.asarray(first), np.asarray(second)]), return_inverse=True)
    a, b = codes.reshape(2, -1)
    return items, a, b


def _by_item(a: Ints, b: Ints, values: Floats, items: int, sign: int = -1) -> Floats:
    """Sums of values over the labels in which an item stands first, and of sign times them where second."""
    return np.asarray(np.bincount(a, values, items) + sign * np.bincount(b, values, items), dtype=float)


def _pooled(alike: tuple[NDArray[Any], ...], outcome: Floats, weight: Floats) -> tuple[Ints, Floats, Floats]:
    """Labels with all of `alike` the same, as one: where the first of them stands, mean outcome, whole weight."""
    key = np.zeros(outcome.size, dtype=np.int64)
    for part in alike:
        values, code = np.unique(part, return_inverse=True)
        key = key * values.size + code
    _, kept, group = np.unique(key, return_index=True, return_inverse=True)
    total = np.bincount(group, weight).astype(float)
    mean = np.bincount(group, weight * outcome) / np.where(total > 0, total, 1)
    return kept.astype(np.int64), mean, total


def _fit(
    a: Ints, b: Ints, outcome: Floats, slope: Floats, offset: Floats, weight: Floats, items: int, precision: float
) -> tuple[Floats, float]:
    """Strengths, with mean 0, and the loss."""
    kept, won, times = _pooled((a, b, slope, offset), outcome, weight)
    a, b, slope, offset = a[kept], b[kept], slope[kept], offset[kept]
    total = max(float(times.sum()), 1.0)

    def objective(s: Floats) -> tuple[float, Floats]:
        x = slope * (s[a] - s[b]) + offset
        gradient = _by_item(a, b, times * slope * (expit(x) - won), items) + precision * s
        loss = float((times * (np.logaddexp(0, x) - won * x)).sum() + precision * (s @ s) / 2)
        return loss / total, gradient / total

    fit = minimize(objective, np.zeros(items), jac=True, method="L-BFGS-B", options=_OPTIONS)
    return fit.x - fit.x.mean(), float(fit.fun) * total


def _errors(
    a: Ints,
    b: Ints,
    slope: Floats,
    curvature: Floats,
    score: Floats,
    cluster: NDArray[Any],
    items: int,
    precision: float,
) -> Floats:
    """Roots of the diagonal of H^-1 S H^-1 among strengths of mean 0, the prior in both H and S."""
    if items > _LARGEST:
        raise ValueError(f"bradley_terry: standard errors of {items} items; at most {_LARGEST} are possible")
    row = np.tile(np.arange(a.size), 2)
    value, column = np.concatenate([slope, -slope]), np.concatenate([a, b])
    jacobian = sparse.coo_array((value, (row, column)), shape=(a.size, items)).tocsr()
    information = (jacobian.T @ (sparse.diags_array(curvature) @ jacobian)).toarray() + precision * np.eye(items)
    clusters = one_hot(np.unique(cluster, return_inverse=True)[1], np.arange(a.size), a.size)
    scores = clusters @ (sparse.diags_array(score) @ jacobian)
    basis = null_space(np.ones((1, items)))
    bread = basis @ np.linalg.inv(basis.T @ information @ basis) @ basis.T
    return np.sqrt(np.diag(bread @ ((scores.T @ scores).toarray() + precision * np.eye(items)) @ bread))
