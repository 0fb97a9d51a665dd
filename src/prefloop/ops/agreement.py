"""Agreement between raters, with bootstrap intervals over units, for millions of labels.

Labels come as arrays of equal length with one entry a label: its unit (what was labeled), its rater, its value. Of one
rater and unit there is one label at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from prefloop.ops.statistics import LEVEL, Figure

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Formula = Callable[[Floats], Floats]

NO_PAIR = "no item has two labels"
ONE_VALUE = "all labels that can be compared are the same"
_NUMBERS = 2**22  # in memory at a time, of what a bootstrap draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How often each of `values` was given to a unit, like units taken together.

    patterns [P, C]: the different rows of counts. contents [Q, P]: how many units of each pattern the different
    clusters hold; times [Q]: how often such a cluster occurs."""

    values: NDArray[Any]
    patterns: Floats
    contents: Any
    times: Ints

    def units(self) -> Floats:
        """[P] How many units have each pattern."""
        return np.asarray(self.times @ self.contents, dtype=float)

    def resampled(self, resamples: int, seed: int) -> Iterator[Floats]:
        """`units` of resamples of whole clusters, some [.., P] at a time."""
        rng, total = np.random.default_rng(seed), int(self.times.sum())
        step = max(1, _NUMBERS // max(self.times.size, self.patterns.shape[0], 1))
        for start in range(0, resamples if total else 0, step):
            drawn = rng.multinomial(total, self.times / total, size=min(step, resamples - start))
            yield np.asarray(drawn @ self.contents, dtype=float)


def tally(unit: ArrayLike, value: ArrayLike, cluster: ArrayLike | None = None) -> Tally:
    """Count labels by unit and value. cluster: what the bootstrap resamples as a whole, by label; the unit if not
    given. A cluster holds whole units."""
    values, column = np.unique(value, return_inverse=True)
    units, first, row = np.unique(unit, return_index=True, return_inverse=True)
    counts = np.bincount(row * values.size + column, minlength=units.size * values.size)
    patterns, which, times = _distinct(counts.reshape(units.size, values.size))
    contents = sparse.eye_array(times.size, dtype=np.int64, format="csr")
    if cluster is not None:
        owner = np.unique(np.asarray(cluster)[first], return_inverse=True)[1]
        held = sparse.coo_array((np.ones(owner.size, dtype=np.int64), (owner, which))).tocsr()
        _, kept, times = np.unique(held @ _marks(times.size), return_index=True, return_counts=True)
        contents = held[kept]
    return Tally(values=values, patterns=patterns.astype(float), contents=contents, times=times)


def percent_agreement(table: Tally, *, leave_out: Any = None, resamples: int = 1000, seed: int = 0) -> Figure:
    """Share of the pairs of labels of one unit that are equal. leave_out: a value, such as a tie, whose labels do not
    count."""
    counts = table.patterns[:, table.values != leave_out] if leave_out is not None else table.patterns
    sizes = counts.sum(axis=1)
    features = np.stack([(counts * (counts - 1)).sum(axis=1), sizes * (sizes - 1)], axis=1)

    def formula(sums: Floats) -> Floats:
        return _divide(sums[:, 0], sums[:, 1])

    return _figure(table, features, formula, sizes > 1, resamples, seed)


def fleiss_kappa(table: Tally, *, resamples: int = 1000, seed: int = 0) -> Figure:
    """(P - P_e) / (1 - P_e) with P the mean over units of P_i = (sum_j n_ij^2 - n_i) / (n_i (n_i - 1)), P_e =
    sum_j p_j^2: Fleiss 1971; where units have unequally many labels as in Gwet 2014, p_j the mean over units of
    n_ij / n_i. Units with one label count towards p_j alone."""

    def formula(sums: Floats) -> Floats:
        observed, shares = _observed_and_shares(sums)
        chance = (shares**2).sum(axis=1)
        return _divide(observed - chance, 1 - chance)

    return _figure(table, _unit_shares(table), formula, table.patterns.sum(axis=1) > 1, resamples, seed)


def gwet_ac1(table: Tally, *, resamples: int = 1000, seed: int = 0) -> Figure:
    """(P - P_e) / (1 - P_e) with P and p_j as for Fleiss's kappa and P_e = sum_j p_j (1 - p_j) / (C - 1) of the C
    values that occur: Gwet 2008. Unlike kappa it stays near P where nearly all labels are the same."""

    def formula(sums: Floats) -> Floats:
        observed, shares = _observed_and_shares(sums)
        chance = (shares * (1 - shares)).sum(axis=1) / max(table.values.size - 1, 1)
        return _divide(observed - chance, 1 - chance) if table.values.size > 1 else np.full(len(sums), np.nan)

    return _figure(table, _unit_shares(table), formula, table.patterns.sum(axis=1) > 1, resamples, seed)


def krippendorff_alpha(
    table: Tally,
    level: Literal["nominal", "ordinal", "interval", "ratio"] = "nominal",
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Figure:
    """1 - D_o / D_e for any number of raters and missing labels: Krippendorff 2011, "Computing Krippendorff's alpha".

    Values are numbers (0 or more for the ratio level), for the nominal and ordinal levels anything that can be sorted.
    Units with one label do not count."""
    counts, size = table.patterns, table.values.size
    sizes = counts.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(size)
    coincidences = pairs / np.maximum(sizes - 1, 1)[:, None, None]
    fixed = None if level == "ordinal" else _squared_distance(table.values, level)

    def formula(sums: Floats) -> Floats:
        found = sums.reshape(len(sums), size, size)
        totals = found.sum(axis=2)
        distance = fixed
        if distance is None:
            ranks = np.cumsum(totals, axis=1) - totals / 2
            distance = (ranks[:, :, None] - ranks[:, None, :]) ** 2
        expected = (totals[:, :, None] * totals[:, None, :] * distance).sum(axis=(1, 2))
        return 1 - _divide((found * distance).sum(axis=(1, 2)) * (totals.sum(axis=1) - 1), expected)

    return _figure(table, coincidences.reshape(len(counts), size**2), formula, sizes > 1, resamples, seed)


def cohen_kappa(
    a: ArrayLike,
    b: ArrayLike,
    weights: Literal["linear", "quadratic"] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Figure:
    """1 - sum w o / sum w e of two raters' labels of the same items: Cohen 1960, weighted Cohen 1968.

    o and e: observed and expected shares of the pairs of values; w: 1 for unequal values or, weighted, their distance,
    in places in the order of all that occur, or its square. ValueError on unequal numbers of labels."""
    both = np.stack([np.asarray(a), np.asarray(b)])
    values, codes = np.unique(both, return_inverse=True)
    size, cell = values.size, codes.reshape(both.shape)
    steps = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    weight = {None: steps > 0, "linear": steps, "quadratic": steps**2}[weights].astype(float)
    cells, times = np.unique(cell[0] * size + cell[1], return_counts=True)

    def formula(sums: Floats) -> Floats:
        return _kappa(sums.reshape(-1, size, size), weight)

    table = Tally(
        values=values,
        patterns=np.eye(size**2)[cells],
        contents=sparse.eye_array(cells.size, dtype=np.int64, format="csr"),
        times=times,
    )
    return _figure(table, table.patterns, formula, np.ones(cells.size, dtype=bool), resamples, seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class RaterPairs:
    """Agreement of each rater with each other on what both labeled; all [L, L] in the order of `raters` [L], NaN where
    undefined. shared: how many units; agreement: share of equal labels; kappa: Cohen's, with its interval."""

    raters: NDArray[Any]
    shared: Ints
    agreement: Floats
    kappa: Floats
    low: Floats
    high: Floats


def rater_pairs(
    unit: ArrayLike, rater: ArrayLike, value: ArrayLike, *, resamples: int = 200, seed: int = 0
) -> RaterPairs:
    """All pairs of raters in one pass, in memory that grows with (raters x values)^2."""
    raters, who = np.unique(rater, return_inverse=True)
    values, said = np.unique(value, return_inverse=True)
    given = one_hot(np.unique(unit, return_inverse=True)[1], who * values.size + said, raters.size * values.size)
    tables = (given.T @ given).toarray().reshape(raters.size, values.size, raters.size, values.size)
    tables = tables.transpose(0, 2, 1, 3)
    shared = tables.sum(axis=(2, 3))
    unequal = 1 - np.eye(values.size)
    kappa = _kappa(tables.reshape(raters.size**2, values.size, values.size), unequal).reshape(shared.shape)
    agreement = _divide(np.trace(tables, axis1=2, axis2=3), shared)
    low, high = np.full(shared.shape, np.nan), np.full(shared.shape, np.nan)
    rng = np.random.default_rng(seed)
    for one in range(raters.size if resamples else 0):
        others = np.flatnonzero((shared[one] > 0) & (np.arange(raters.size) > one))
        if others.size:
            cells = tables[one, others].reshape(others.size, -1)
            count = shared[one, others]
            drawn = rng.multinomial(count.astype(int), cells / count[:, None], size=(resamples, others.size))
            found = _kappa(drawn.reshape(-1, values.size, values.size), unequal).reshape(resamples, -1)
            for k, other in enumerate(others):
                low[one, other], high[one, other] = low[other, one], high[other, one] = _interval(found[:, k])
    for matrix in (agreement, kappa):
        np.fill_diagonal(matrix, np.nan)
    return RaterPairs(
        raters=raters, shared=shared.astype(np.int64), agreement=agreement, kappa=kappa, low=low, high=high
    )


def one_hot(row: Ints, column: Ints, width: int) -> Any:
    """Sparse [rows, width] with a 1 for each label, in floats."""
    shape = (int(row.max(initial=-1)) + 1, width)
    return sparse.coo_array((np.ones(row.size), (row, column)), shape=shape).tocsr()


def _figure(
    table: Tally, features: Floats, formula: Formula, counts: NDArray[np.bool_], resamples: int, seed: int
) -> Figure:
    """formula of the sums of features [P, K] over all units, and over resamples of them. counts [P]: what n counts."""
    units = table.units()
    n = int(units @ counts)
    value = float(formula((units @ features)[None])[0]) if n else np.nan
    if not np.isfinite(value):
        return Figure(value=np.nan, n=n, reason=ONE_VALUE if n else NO_PAIR)
    drawn = [formula(weights @ features) for weights in table.resampled(resamples, seed)]
    low, high = _interval(np.concatenate(drawn)) if drawn else (np.nan, np.nan)
    return Figure(value=value, low=low, high=high, n=n)


def _interval(drawn: Floats) -> tuple[float, float]:
    """Percentiles of the resamples in which the figure is defined."""
    defined = drawn[np.isfinite(drawn)]
    if not defined.size:
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _distinct(counts: Ints) -> tuple[Ints, Ints, Ints]:
    """The different rows, which of them each row is, and how often each occurs."""
    _, first, which, times = np.unique(
        counts @ _marks(counts.shape[1]), return_index=True, return_inverse=True, return_counts=True
    )
    return counts[first], which, times


def _marks(size: int) -> Ints:
    """Random integers: unequal rows of counts have unequal sums of counts times these, modulo 2^64."""
    return np.random.default_rng(0).integers(2**62, size=size)


def _unit_shares(table: Tally) -> Floats:
    """[P, 3 + C] P_i and 1 for units with two labels or more, 1, and n_ij / n_i."""
    counts = table.patterns
    sizes = counts.sum(axis=1, keepdims=True)
    several = sizes[:, 0] > 1
    agreeing = (counts * (counts - 1)).sum(axis=1) / np.maximum(sizes * (sizes - 1), 1)[:, 0]
    return np.column_stack([np.where(several, agreeing, 0), several, np.ones(len(counts)), counts / sizes])


def _observed_and_shares(sums: Floats) -> tuple[Floats, Floats]:
    return _divide(sums[:, 0], sums[:, 1]), sums[:, 3:] / sums[:, 2:3]


def _kappa(tables: NDArray[Any], weight: Floats) -> Floats:
    """Of contingency tables [..., C, C]."""
    rows, columns = tables.sum(axis=2), tables.sum(axis=1)
    chance = ((rows @ weight) * columns).sum(axis=1)
    return 1 - _divide((tables * weight).sum(axis=(1, 2)) * rows.sum(axis=1), chance)


def _divide(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    """NaN where the denominator is 0, or was meant to be."""
    close = np.abs(denominator) < 1e-12
    return np.asarray(np.where(close, np.nan, numerator / np.where(close, 1, denominator)))


def _squared_distance(values: NDArray[Any], level: str) -> Floats:
    if level == "nominal":
        return np.asarray(1 - np.eye(values.size))
    numbers = values.astype(float)
    squared = np.asarray(np.subtract.outer(numbers, numbers) ** 2)
    if level == "interval":
        return squared
    sums = np.add.outer(numbers, numbers)
    return np.asarray(np.divide(squared, sums**2, out=np.zeros_like(squared), where=sums != 0))
