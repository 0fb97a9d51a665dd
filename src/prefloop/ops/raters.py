"""How reliable each rater is, and what then is likely to be true: Dawid-Skene, and its kin for pairs.

Labels come as arrays of equal length with one entry a label. All is deterministic: no random starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logsumexp, xlogy

from prefloop.ops.agreement import one_hot

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RIGHT, WRONG = 4.0, 1.0
"""What is believed of a rater before any label: as if of five answers four had been right, on either side."""
SIDELESS = 0.5
"""Of a label for which nothing stood left or right, or nobody knows what did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DawidSkene:
    """units [U], raters [L] and values [C] are sorted; posterior [U, C] of the true value; prior [C] of it;
    confusion [L, C, C] = P(rater says the last | the middle is true); objective: what grew, by iteration."""

    units: NDArray[Any]
    raters: NDArray[Any]
    values: NDArray[Any]
    posterior: Floats
    prior: Floats
    confusion: Floats
    objective: Floats

    @property
    def accuracy(self) -> Floats:
        """[L] P(rater says what is true)."""
        return np.asarray(np.einsum("c,lcc->l", self.prior, self.confusion))


def dawid_skene(
    unit: ArrayLike,
    rater: ArrayLike,
    value: ArrayLike,
    *,
    smoothing: float = 1.0,
    iterations: int = 500,
    tolerance: float = 1e-9,
) -> DawidSkene:
    """Maximum likelihood of Dawid and Skene 1979 by EM from the shares of each unit's labels; with `smoothing` the
    maximum a posteriori, as if each rater had given each label that often more to each true value.

    Ends when the objective (log-likelihood, and log-prior) grows by less than tolerance times itself."""
    units, row = np.unique(unit, return_inverse=True)
    raters, who = np.unique(rater, return_inverse=True)
    values, said = np.unique(value, return_inverse=True)
    size = values.size
    given = one_hot(row, who * size + said, raters.size * size)
    votes = np.bincount(row * size + said, minlength=units.size * size).reshape(units.size, size).astype(float)
    posterior = votes / votes.sum(axis=1, keepdims=True)
    objective: list[float] = []
    while True:
        counts = np.asarray(given.T @ posterior).reshape(raters.size, size, size).transpose(0, 2, 1) + smoothing
        totals = counts.sum(axis=2, keepdims=True)
        confusion = np.divide(counts, totals, out=np.full_like(counts, 1 / size), where=totals > 0)
        prior = posterior.mean(axis=0)
        with np.errstate(divide="ignore"):  # log 0 of what never happens
            logits = np.log(prior) + given @ np.log(confusion.transpose(0, 2, 1).reshape(-1, size))
        evidence = logsumexp(logits, axis=1)
        posterior = np.exp(logits - evidence[:, None])
        objective.append(float(evidence.sum() + xlogy(smoothing, confusion).sum()))
        if len(objective) == iterations or _settled(objective, tolerance):
            break
    return DawidSkene(
        units=units,
        raters=raters,
        values=values,
        posterior=posterior,
        prior=prior,
        confusion=confusion,
        objective=np.array(objective),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPosterior:
    """units [U] and raters [L] are sorted. first [U] = P(item 0 is the better one); left [L] and right [L] =
    P(rater prefers the better one | it stands left, or right); objective: what grew, by iteration."""

    units: NDArray[Any]
    raters: NDArray[Any]
    first: Floats
    left: Floats
    right: Floats
    objective: Floats

    @property
    def accuracy(self) -> Floats:
        """[L] P(rater prefers the better one), which stands on either side equally often."""
        return (self.left + self.right) / 2


def pair_posterior(
    unit: ArrayLike,
    rater: ArrayLike,
    choice: ArrayLike,
    turned: ArrayLike,
    *,
    known: Mapping[Any, bool] | None = None,
    iterations: int = 500,
    tolerance: float = 1e-9,
) -> PairPosterior:
    """Which of two items is the better one, from labels of raters whose reliability and side bias are learned along.

    choice [n]: above 0 for item 0, below for item 1, 0 a tie, which says nothing of either. turned [n]: 1 where item 1
    stood left, 0 where not, SIDELESS where it is not known: half a label on either side. known: by unit, whether item 0
    is known to be the better one. Dawid and Skene 1979 for two classes that are as likely as one another, in the places
    that raters saw: EM to the maximum a posteriori, with RIGHT and WRONG as pseudo-counts on each side. A unit's
    posterior needs no other unit with the same items."""
    units, row = np.unique(unit, return_inverse=True)
    raters, who = np.unique(rater, return_inverse=True)
    sign, side = np.sign(np.asarray(choice, dtype=float)), np.asarray(turned, dtype=float)
    once = np.flatnonzero(sign)
    twice = once[side[once] == SIDELESS]
    label = np.concatenate([once, twice])
    row, who, for_first, part = row[label], who[label], sign[label] > 0, np.where(side == SIDELESS, 0.5, 1.0)[label]
    # cells [L, 2]: a rater's labels of pairs whose better one stands left (0) or right (1), if item 0, or 1, is better
    if_first = who * 2 + np.concatenate([side[once] == 1, np.ones(twice.size, dtype=bool)])
    if_second = if_first ^ 1
    fixed = np.full(units.size, np.nan)
    if known:
        names, answers = np.array(list(known)), np.array(list(known.values()), dtype=float)
        _, place, which = np.intersect1d(units, names, return_indices=True)
        fixed[place] = answers[which]
    first = (np.bincount(row, part * for_first, units.size) + 1) / (np.bincount(row, part, units.size) + 2)
    objective: list[float] = []
    while True:
        chance = np.where(np.isnan(fixed), first, fixed)[row]
        is_first, is_second = part * chance, part * (1 - chance)
        right = _by_side(if_first, if_second, is_first * for_first, is_second * ~for_first, raters.size)
        seen = _by_side(if_first, if_second, is_first, is_second, raters.size)
        skill = (right + RIGHT) / (seen + RIGHT + WRONG)
        hit, miss = np.log(skill), np.log1p(-skill)
        given_first = np.bincount(row, part * np.where(for_first, hit[if_first], miss[if_first]), units.size)
        given_second = np.bincount(row, part * np.where(for_first, miss[if_second], hit[if_second]), units.size)
        unknown = np.logaddexp(given_first, given_second)
        evidence = np.where(np.isnan(fixed), unknown, np.where(fixed == 1, given_first, given_second)) + np.log(0.5)
        first = np.where(np.isnan(fixed), expit(given_first - given_second), fixed)
        objective.append(float(evidence.sum() + (RIGHT * hit + WRONG * miss).sum()))
        if len(objective) == iterations or _settled(objective, tolerance):
            break
    sides = skill.reshape(-1, 2)
    return PairPosterior(
        units=units, raters=raters, first=first, left=sides[:, 0], right=sides[:, 1], objective=np.array(objective)
    )


def _by_side(if_first: Ints, if_second: Ints, first: Floats, second: Floats, raters: int) -> Floats:
    """[2 L] Sums of weights by rater and the side on which the better one stands."""
    sums = np.bincount(if_first, first, 2 * raters) + np.bincount(if_second, second, 2 * raters)
    return np.asarray(sums, dtype=float)


def _settled(objective: list[float], tolerance: float) -> bool:
    return len(objective) > 1 and objective[-1] - objective[-2] < tolerance * abs(objective[-1])
