"""Reward ensembles and over-optimisation: scores of several members in one, best-of-n, and the laws of gold reward.

On numpy arrays. M members, N samples; KL in nats; d = sqrt(KL from the reference).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, xlogy

Floats = NDArray[np.float64]
Form = Literal["best_of_n", "rl"]


def mean_score(scores: ArrayLike) -> Floats:
    """[N] mean of scores [M, N] over members: Coste et al. 2023 (arXiv 2310.02743), section 3.1."""
    return np.asarray(_members(scores).mean(axis=0))


def worst_case(scores: ArrayLike) -> Floats:
    """[N] least of scores [M, N] over members, WCO of Coste et al. 2023 (arXiv 2310.02743)."""
    return np.asarray(_members(scores).min(axis=0))


def uncertainty_weighted(scores: ArrayLike, penalty: float) -> Floats:
    """[N] mean - penalty * variance of scores [M, N] over members, UWO of Coste et al. 2023 (arXiv 2310.02743).

    The variance is the mean squared distance from the mean. penalty >= 0 is per unit of score: 0.5 for best-of-n and
    0.1 for PPO there. ValueError on another penalty.
    """
    if not penalty >= 0:
        raise ValueError(f"uncertainty_weighted: a penalty of {penalty} rewards doubt; give 0 or more")
    members = _members(scores)
    return np.asarray(members.mean(axis=0) - penalty * members.var(axis=0))


def disagreement(scores: ArrayLike) -> Floats:
    """[N] standard deviation of scores [M, N] over members (root of the mean squared distance); 0 with one member."""
    return np.asarray(_members(scores).std(axis=0))


def best_of_n_kl(n: ArrayLike) -> Floats:
    """log n - (n - 1)/n nats: KL(best of n samples || one sample), where no two samples score alike.

    With ties it is an upper bound (Beirami et al. 2024, arXiv 2401.01879). ValueError where n < 1.
    """
    drawn = np.asarray(n, dtype=float)
    if not (drawn >= 1).all():
        raise ValueError("best_of_n_kl: the best of no sample is none; give n of 1 or more")
    return np.asarray(np.log(drawn) - (drawn - 1) / drawn)


def best_of_n(proxy: ArrayLike, gold: ArrayLike, ns: Sequence[int]) -> Floats:
    """[len(ns)] expected gold score of the one with the highest proxy score among n of the N samples, for each n.

    sum_{i=n..N} C(i-1, n-1) / C(N, n) gold_(i), with gold_(i) that of the sample whose proxy score is the i-th lowest:
    the mean over all subsets of n samples, and so unbiased for n fresh ones (Nakano et al. 2021, arXiv 2112.09332). Of
    samples that tie each is as likely to be taken. proxy, gold [N]; gold = proxy gives the proxy's own expected score.
    ValueError unless 1 <= n <= N, shapes agree and proxy scores are numbers.
    """
    by, of = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    if by.ndim != 1 or by.shape != of.shape or np.isnan(by).any() or not all(1 <= n <= by.size for n in ns):
        raise ValueError(
            f"best_of_n: n of {list(ns)} from {by.shape} proxy and {of.shape} gold scores; "
            "give one of each per sample, none NaN, and n from 1 to their number"
        )
    _, place, counts = np.unique(by, return_inverse=True, return_counts=True)
    tied = np.repeat(np.bincount(place, of) / counts, counts)
    size, log_factorial = by.size, gammaln(np.arange(by.size + 1) + 1.0)

    def expected(n: int) -> float:
        log_subsets = log_factorial[size] - log_factorial[n] - log_factorial[size - n]
        lower = log_factorial[n - 1 : size] - log_factorial[n - 1] - log_factorial[: size - n + 1]
        return float(np.exp(lower - log_subsets) @ tied[n - 1 :])

    return np.array([expected(n) for n in ns])


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Where gold reward is highest. Both are inf where the law only rises."""

    d: float
    gold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldLaw:
    """Gold reward at distance d = sqrt(KL), 0 at d = 0: best_of_n d(alpha - beta d), rl d(alpha - beta log d).

    Gao et al. 2022 (arXiv 2210.10760), equations 1 and 2.
    """

    form: Form
    alpha: float
    beta: float

    def at(self, d: ArrayLike) -> Floats:
        """Gold reward at distances d >= 0, of d's shape."""
        return np.asarray(_terms(self.form, np.asarray(d, dtype=float)) @ np.array([self.alpha, self.beta]))

    def peak(self) -> Peak:
        """best_of_n: d = alpha / 2 beta, gold alpha^2 / 4 beta. rl: d = exp(alpha / beta - 1), gold beta d."""
        alpha, beta = self.alpha, self.beta
        if beta < 0 or (beta == 0 and alpha > 0):
            return Peak(d=np.inf, gold=np.inf)
        if beta == 0 or (self.form == "best_of_n" and alpha <= 0):
            return Peak(d=0.0, gold=0.0)
        if self.form == "best_of_n":
            return Peak(d=alpha / (2 * beta), gold=alpha**2 / (4 * beta))
        with np.errstate(over="ignore"):
            d = float(np.exp(alpha / beta - 1))
        return Peak(d=d, gold=beta * d)


def fit_gold_law(form: Form, d: ArrayLike, gold: ArrayLike) -> GoldLaw:
    """The least-squares law of this form through distances d and gold rewards, both [N].

    Rewards count from the reference's: its mean must be 0. ValueError when shapes differ, a d is below 0, or there are
    not two different ones above 0.
    """
    distance, reward = np.asarray(d, dtype=float), np.asarray(gold, dtype=float)
    if distance.ndim != 1 or distance.shape != reward.shape or not (distance >= 0).all():
        raise ValueError(
            f"fit_gold_law: {distance.shape} distances and {reward.shape} rewards; "
            "give one of each per point, and no distance below 0"
        )
    if np.unique(distance[distance > 0]).size < 2:
        raise ValueError("fit_gold_law: two unknowns need two different distances above 0; give more points")
    (alpha, beta), *_ = np.linalg.lstsq(_terms(form, distance), reward, rcond=None)
    return GoldLaw(form=form, alpha=float(alpha), beta=float(beta))


def r_squared(observed: ArrayLike, predicted: ArrayLike) -> float:
    """1 - sum of squared errors / sum of squared distances from the mean observed; ValueError where that is 0."""
    seen, said = np.asarray(observed, dtype=float), np.asarray(predicted, dtype=float)
    total = float(((seen - seen.mean()) ** 2).sum()) if seen.size else 0.0
    if total == 0 or seen.shape != said.shape:
        raise ValueError("r_squared: observations that do not differ have nothing to explain; give one prediction each")
    return 1 - float(((seen - said) ** 2).sum()) / total


def _terms(form: Form, d: Floats) -> Floats:
    """[..., 2] what alpha and beta multiply at d."""
    second = {"best_of_n": d * d, "rl": xlogy(d, d)}[form]
    return np.stack([d, -second], axis=-1)


def _members(scores: ArrayLike) -> Floats:
    members = np.asarray(scores, dtype=float)
    if members.ndim != 2 or members.shape[0] == 0:
        raise ValueError(f"scores of members are {members.shape}; give [members, samples], with a member at least")
    return members
