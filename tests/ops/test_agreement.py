from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from prefloop.ops import agreement
from prefloop.ops.agreement import (
    NO_PAIR,
    ONE_VALUE,
    Tally,
    cohen_kappa,
    fleiss_kappa,
    gwet_ac1,
    krippendorff_alpha,
    percent_agreement,
    rater_pairs,
    tally,
)
from prefloop.ops.statistics import Figure

LEVELS = ("nominal", "ordinal", "interval", "ratio")
FIGURES: dict[str, Callable[..., Figure]] = {
    "percent": percent_agreement,
    "fleiss": fleiss_kappa,
    "gwet": gwet_ac1,
    "nominal": krippendorff_alpha,
    "ordinal": lambda table, **rest: krippendorff_alpha(table, "ordinal", **rest),
}
# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", example C: 4 raters, 12 units
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
# Fleiss 1971: 10 units, 14 raters, 5 categories
FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
ABSTRACTORS = [[13, 0, 0], [0, 20, 7], [0, 4, 56]]  # Gwet 2014: two raters, three diagnoses
Labels = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def triple(table: Any) -> Labels:
    """Unit, rater and value of every label of a [rater][unit] table with None where there is none."""
    rows = [(u, r, v) for r, row in enumerate(table) for u, v in enumerate(row) if v is not None]
    unit, rater, value = map(np.array, zip(*rows, strict=True))
    return unit, rater, value


def counted(table: Any) -> Tally:
    unit, _, value = triple(table)
    return tally(unit, value)


def scattered(seed: int, units: int = 60, raters: int = 6, values: int = 4, missing: float = 0.5) -> NDArray[Any]:
    """[rater, unit] Labels that lean to a unit's own value; NaN where missing."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(values, size=units)
    said = np.where(rng.random((raters, units)) < 0.6, truth, rng.integers(values, size=(raters, units))).astype(float)
    said[rng.random((raters, units)) < missing] = math.nan
    return said


def present(table: NDArray[Any]) -> list[list[float | None]]:
    return [[None if math.isnan(v) else v for v in row] for row in table]


@pytest.mark.parametrize(("level", "alpha"), [*zip(LEVELS, (0.743, 0.815, 0.849, 0.797), strict=True)])
def test_alpha_of_krippendorffs_example(level: Any, alpha: float) -> None:
    found = krippendorff_alpha(counted(KRIPPENDORFF), level)
    assert found.value == pytest.approx(alpha, abs=5e-4)
    assert (found.n, found.reason) == (11, "")
    assert found.low < found.value < found.high


def test_kappa_of_fleiss_example() -> None:
    unit, value = np.nonzero(np.array(FLEISS))
    times = np.array(FLEISS)[unit, value]
    table = tally(np.repeat(unit, times), np.repeat(value, times))
    assert fleiss_kappa(table).value == pytest.approx(0.210, abs=5e-4)


def test_published_figures_of_two_raters() -> None:
    """Gwet 2014, as the vignette of the R package irrCAC gives them."""
    rows, columns = np.nonzero(np.array(ABSTRACTORS))
    times = np.array(ABSTRACTORS)[rows, columns]
    a, b = np.repeat(rows, times), np.repeat(columns, times)
    table = tally(np.tile(np.arange(a.size), 2), np.concatenate([a, b]))
    assert percent_agreement(table).value == pytest.approx(0.89, abs=1e-12)
    assert cohen_kappa(a, b).value == pytest.approx(0.7964094, abs=5e-8)
    assert gwet_ac1(table).value == pytest.approx(0.8493305, abs=5e-8)
    assert krippendorff_alpha(table).value == pytest.approx(0.7972585, abs=5e-8)
    assert fleiss_kappa(table).value == pytest.approx(0.7962397, abs=5e-8)  # with two raters, Scott's pi


def test_by_hand() -> None:
    # units: aa, ab, bbt; pairs of labels: 1 of 1, 0 of 1, 1 of 3 equal
    table = tally([0, 0, 1, 1, 2, 2, 2, 3], list("aaabbbta"))
    assert percent_agreement(table).value == pytest.approx(2 / 5)
    assert percent_agreement(table, leave_out="t").value == pytest.approx(2 / 3)
    assert (percent_agreement(table).n, percent_agreement(table, leave_out="t").n) == (3, 3)
    # 20 both yes, 15 both no, 5 and 10 apart: observed 0.7, chance 0.5
    a, b = ["yes"] * 25 + ["no"] * 25, ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(a, b).value == pytest.approx(0.4)
    assert cohen_kappa([0, 1], [1, 0]).value == -1
    # P_1 = 1, P_2 = 0; p = (3/4, 1/4): kappa (1/2 - 10/16) / (1 - 10/16), AC1 (1/2 - 6/16) / (1 - 6/16)
    two = tally([0, 0, 1, 1], [0, 0, 0, 1])
    assert fleiss_kappa(two).value == pytest.approx(-1 / 3)
    assert gwet_ac1(two).value == pytest.approx(1 / 5)


def test_what_is_undefined_says_why() -> None:
    for figure in FIGURES.values():
        lone = figure(tally([0, 1], [3, 4]))
        assert math.isnan(lone.value) and math.isnan(lone.low) and (lone.n, lone.reason) == (0, NO_PAIR)
        assert figure(tally([], [])).reason == NO_PAIR
    for name in ("fleiss", "gwet", "nominal", "ordinal"):
        alike = FIGURES[name](tally([0, 0, 1, 1], [3, 3, 3, 3]))
        assert math.isnan(alike.value) and (alike.n, alike.reason) == (2, ONE_VALUE)
    assert percent_agreement(tally([0, 0], [3, 3])).value == 1
    assert percent_agreement(tally([0, 0], [3, 0]), leave_out=0).reason == NO_PAIR
    assert cohen_kappa([1, 1], [1, 1]).reason == ONE_VALUE
    assert cohen_kappa([], []).reason == NO_PAIR
    with pytest.raises(ValueError, match="shape"):
        cohen_kappa([1, 0], [1])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("level", LEVELS)
def test_alpha_equals_the_oracles(level: Any, seed: int) -> None:
    table = scattered(seed) + (level == "ratio")
    expected = krippendorff.alpha(reliability_data=table, level_of_measurement=level)
    assert krippendorff_alpha(counted(present(table)), level, resamples=0).value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_cohens_kappa_equals_the_oracles(weights: Any, seed: int) -> None:
    table = scattered(seed, missing=0.3)
    for one, other in combinations(table, 2):
        both = ~np.isnan(one) & ~np.isnan(other)
        expected = cohen_kappa_score(one[both], other[both], weights=weights)
        assert cohen_kappa(one[both], other[both], weights, resamples=0).value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_pairs_of_raters_equal_one_pair_at_a_time(seed: int) -> None:
    table = scattered(seed, units=200, raters=5)
    table[4] = math.nan
    table[4, 0] = 1
    found = rater_pairs(*triple(present(table)), resamples=1000)
    assert found.raters.tolist() == list(range(5))
    for one, other in combinations(range(5), 2):
        both = ~np.isnan(table[one]) & ~np.isnan(table[other])
        single = cohen_kappa(table[one][both], table[other][both])
        assert found.shared[one, other] == found.shared[other, one] == both.sum()
        if both.sum():
            equal = np.mean(table[one][both] == table[other][both])
            assert found.agreement[one, other] == pytest.approx(equal, abs=1e-12)
        if not math.isnan(single.value):
            assert found.kappa[one, other] == found.kappa[other, one] == pytest.approx(single.value, abs=1e-12)
            bounds = (found.low[one, other], found.high[one, other])
            assert bounds == pytest.approx((single.low, single.high), abs=0.04)
    assert np.isnan(np.diag(found.kappa)).all()
    assert rater_pairs([], [], []).kappa.shape == (0, 0)


@given(st.integers(0, 10**6), st.randoms())
def test_order_and_names_of_units_and_raters_change_nothing(seed: int, random: Any) -> None:
    unit, _, value = triple(present(scattered(seed, units=12, raters=4)))
    order = list(range(unit.size))
    random.shuffle(order)
    names = np.random.default_rng(seed).permutation(12)
    one, other = tally(unit, value), tally([f"unit {names[u]}" for u in unit[order]], value[order])
    for figure in FIGURES.values():
        assert figure(one, resamples=0).value == pytest.approx(figure(other, resamples=0).value, abs=1e-12, nan_ok=True)


@given(st.integers(0, 10**6))
def test_identities(seed: int) -> None:
    table = scattered(seed, units=20, raters=2, values=3, missing=0)
    a, b = table
    both = counted(present(table))
    nominal, fleiss = (FIGURES[name](both, resamples=0).value for name in ("nominal", "fleiss"))
    n = 2 * a.size
    assert 1 - nominal == pytest.approx((1 - fleiss) * (n - 1) / n)  # Krippendorff's correction for few labels
    cohen = cohen_kappa(a, b, resamples=0).value
    assert cohen == pytest.approx(cohen_kappa(b, a, resamples=0).value)
    assert fleiss <= cohen + 1e-12  # Scott's pi takes the raters' marginals as equal
    margins = np.array([[np.sum(rater == v) for v in range(3)] for rater in (a, b)])
    if (margins[0] == margins[1]).all():
        assert fleiss == pytest.approx(cohen)
    same = counted(present(np.stack([a, a, a])))
    if len(set(a)) > 1:
        assert [figure(same, resamples=0).value for figure in FIGURES.values()] == pytest.approx([1] * 5)
        assert cohen_kappa(a, a, "quadratic", resamples=0).value == 1
    two = (a > 0, b > 0)
    by_weight = [cohen_kappa(*two, weights=w, resamples=0).value for w in (None, "linear", "quadratic")]  # type: ignore[arg-type]
    assert by_weight == pytest.approx([by_weight[0]] * 3, nan_ok=True)  # of two values


@given(st.integers(0, 10**6))
def test_alpha_of_two_ranks_is_the_same_at_every_level(seed: int) -> None:
    table = counted(present(scattered(seed, units=15, raters=4, values=2)))
    alphas = [krippendorff_alpha(table, level, resamples=0).value for level in ("nominal", "ordinal", "interval")]  # type: ignore[arg-type]
    assert alphas == pytest.approx([alphas[0]] * 3, nan_ok=True)


def slow_bootstrap(table: NDArray[Any], figure: Callable[..., Figure], resamples: int) -> tuple[float, float]:
    """By drawing units one by one."""
    rng = np.random.default_rng(7)
    drawn = []
    for _ in range(resamples):
        picked = table[:, rng.integers(table.shape[1], size=table.shape[1])]
        drawn.append(figure(counted(present(picked)), resamples=0).value)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize("name", FIGURES)
def test_intervals_are_those_of_resampled_units(name: str) -> None:
    table = scattered(3, units=80)
    fast = FIGURES[name](counted(present(table)), resamples=4000)
    width = fast.high - fast.low
    assert slow_bootstrap(table, FIGURES[name], 400) == pytest.approx((fast.low, fast.high), abs=0.2 * width)


def test_intervals_are_repeatable_and_narrow_with_more_units() -> None:
    few, many = (counted(present(scattered(1, units=n))) for n in (100, 1600))
    widths = []
    for table in (few, many):
        found = krippendorff_alpha(table)
        assert krippendorff_alpha(table) == found != krippendorff_alpha(table, seed=1)
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)


def test_clusters_are_resampled_as_a_whole() -> None:
    """Units that are copies of one another hold no more than one of them."""
    table = scattered(5, units=60, missing=0.2)
    unit, _, value = triple(present(table))
    once = krippendorff_alpha(tally(unit, value))
    copies, clusters = np.concatenate([unit, unit + 60, unit + 120]), np.tile(unit, 3)
    for figure in FIGURES.values():
        alone, thrice = figure(tally(unit, value)), figure(tally(copies, np.tile(value, 3), clusters))
        naive = figure(tally(copies, np.tile(value, 3)))
        assert thrice.high - thrice.low == pytest.approx(alone.high - alone.low, rel=0.15)
        assert naive.high - naive.low == pytest.approx((alone.high - alone.low) / math.sqrt(3), rel=0.15)
    own = tally(unit, value, unit)
    assert krippendorff_alpha(own).value == once.value
    assert (krippendorff_alpha(own).low, krippendorff_alpha(own).high) == pytest.approx((once.low, once.high), abs=0.02)


def test_unequal_patterns_get_unequal_marks() -> None:
    counts = np.unique(np.random.default_rng(0).integers(5, size=(20_000, 7)), axis=0)
    patterns, which, times = agreement._distinct(counts)
    assert len(patterns) == len(counts) and (times == 1).all()
    assert (patterns[which] == counts).all()


def data(name: str) -> Path:
    folder = os.environ.get("PREFLOOP_TEST_DATA")
    if folder is None:
        pytest.skip("not run without PREFLOOP_TEST_DATA: figures of labels by real people")
    return Path(folder) / name


def test_figures_of_real_annotators_equal_the_oracles() -> None:
    """PandaLM: 999 pairs of answers, each judged by three people: 0 a tie, 1 or 2 the better one."""
    rows = json.loads((data("pandalm_human") / "testset-v1.json").read_text(encoding="utf-8"))
    table = np.array([[row[f"annotator{k}"] for row in rows] for k in (1, 2, 3)])
    assert table.shape == (3, 999) and set(table.flat) == {0, 1, 2}
    unit, rater, value = triple(table)
    ordered = np.array([1, 0, 2])[value]  # the first better, a tie, the second better
    for level, said in (("nominal", value), ("ordinal", ordered), ("interval", ordered)):
        expected = krippendorff.alpha(reliability_data=said.reshape(3, -1), level_of_measurement=level)
        assert krippendorff_alpha(tally(unit, said), level, resamples=0).value == pytest.approx(expected, abs=1e-9)  # type: ignore[arg-type]
    pairs = rater_pairs(unit, rater, value, resamples=0)
    for one, other in combinations(range(3), 2):
        expected = cohen_kappa_score(table[one], table[other])
        assert cohen_kappa(table[one], table[other]).value == pytest.approx(expected, abs=1e-9)
        assert pairs.kappa[one, other] == pytest.approx(expected, abs=1e-9)
    for weights in ("linear", "quadratic"):
        said = ordered.reshape(3, -1)
        expected = cohen_kappa_score(said[0], said[1], weights=weights)
        assert cohen_kappa(said[0], said[1], weights).value == pytest.approx(expected, abs=1e-9)  # type: ignore[arg-type]
    equal = np.mean([table[a] == table[b] for a, b in combinations(range(3), 2)])
    assert percent_agreement(tally(unit, value)).value == pytest.approx(float(equal), abs=1e-9)


def test_one_label_a_pair_leaves_agreement_undefined() -> None:
    """Fine-grained RLHF: six pairs of four answers to 500 questions, with one label each."""
    rows = json.loads((data("fine_grained_rlhf") / "dev_feedback.json").read_text(encoding="utf-8"))
    value = np.array([row["preference"] for row in rows])
    assert value.shape == (500, 6) and Counter(value.ravel().tolist()) == {1: 1577, 2: 1039, 0: 384}
    for figure in FIGURES.values():
        assert figure(tally(np.arange(3000), value.ravel())).reason == NO_PAIR
