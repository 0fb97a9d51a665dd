from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene as Oracle
from crowdkit.aggregation import OneCoinDawidSkene
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from prefloop.ops.raters import RIGHT, SIDELESS, WRONG, PairPosterior, dawid_skene, pair_posterior

Array = NDArray[Any]
PANDAS = pytest.mark.filterwarnings("ignore:The (inplace|copy) keyword")  # crowd-kit's, with pandas 3


def planted(seed: int, units: int = 400, raters: int = 8, values: int = 3, missing: float = 0.3) -> tuple[Array, ...]:
    """Unit, rater and value of labels by raters of unequal confusion, and the true values."""
    rng = np.random.default_rng(seed)
    confusion = np.stack(
        [rng.dirichlet(np.full(values, 2.0), size=values) + 1.5 * np.eye(values) for _ in range(raters)]
    )
    confusion /= confusion.sum(axis=2, keepdims=True)
    truth = rng.choice(values, size=units, p=[0.5, 0.3, 0.2])
    unit, rater = (x.ravel() for x in np.meshgrid(np.arange(units), np.arange(raters), indexing="ij"))
    kept = rng.random(unit.size) > missing
    unit, rater = unit[kept], rater[kept]
    chances = confusion[rater, truth[unit]]
    value = (rng.random((unit.size, 1)) > np.cumsum(chances, axis=1)).sum(axis=1)
    return unit, rater, np.minimum(value, values - 1), truth, confusion


@PANDAS
@pytest.mark.parametrize("seed", range(2))
def test_dawid_skene_equals_the_oracle(seed: int) -> None:
    unit, rater, value, _, _ = planted(seed, units=300, raters=5)
    frame = pd.DataFrame({"task": unit, "worker": rater, "label": value})
    oracle = Oracle(n_iter=12, tol=-math.inf).fit(frame)
    found = dawid_skene(unit, rater, value, smoothing=0, iterations=12, tolerance=-math.inf)
    assert len(found.objective) == 12 and found.confusion.min() > 1e-9
    expected = oracle.probas_.loc[found.units, found.values].to_numpy()
    assert np.abs(found.posterior - expected).max() < 1e-9


def test_dawid_skene_of_its_own_figures() -> None:
    """Each posterior is Bayes' rule, label by label, from the prior and the confusions."""
    unit, rater, value, truth, _ = planted(1, units=40)
    found = dawid_skene(unit, rater, value)
    for u in range(40):
        chances = found.prior.copy()
        for r, v in zip(rater[unit == u], value[unit == u], strict=True):
            chances *= found.confusion[r, :, v]
        assert found.posterior[u] == pytest.approx(chances / chances.sum(), abs=1e-9)
    assert np.mean(found.posterior.argmax(axis=1) == truth) > 0.9


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_dawid_skene_climbs_and_finds_what_was_planted(seed: int, smoothing: float) -> None:
    unit, rater, value, truth, confusion = planted(seed, units=3000)
    found = dawid_skene(unit, rater, value, smoothing=smoothing)
    assert (np.diff(found.objective) > -1e-6).all()
    assert np.abs(found.confusion - confusion).max() < 0.08
    assert found.prior == pytest.approx([0.5, 0.3, 0.2], abs=0.04)
    right = np.bincount(rater, value == truth[unit]) / np.bincount(rater)
    assert found.accuracy == pytest.approx(right, abs=0.03)


@given(st.integers(0, 10**6))
def test_dawid_skene_does_not_depend_on_order_and_names(seed: int) -> None:
    unit, rater, value, _, _ = planted(seed, units=25, raters=5)
    rng = np.random.default_rng(seed)
    order, units, raters = rng.permutation(unit.size), rng.permutation(25), rng.permutation(5)
    one = dawid_skene(unit, rater, value, iterations=5)
    other = dawid_skene(units[unit][order], raters[rater][order], value[order], iterations=5)
    present = np.isin(np.arange(25), unit)
    place = np.searchsorted(other.units, units[present])
    assert np.abs(other.posterior[place] - one.posterior).max() < 1e-9
    assert np.abs(other.confusion[np.searchsorted(other.raters, raters[one.raters])] - one.confusion).max() < 1e-9


def test_raters_who_always_agree_are_right_and_smoothing_keeps_chances_above_0() -> None:
    unit, rater, value = np.repeat(np.arange(6), 2), np.tile([0, 1], 6), np.repeat([0, 1, 0, 1, 0, 1], 2)
    found = dawid_skene(unit, rater, value, smoothing=0)
    assert np.allclose(found.confusion, np.eye(2)) and np.allclose(found.posterior, np.eye(2)[value[::2]])
    assert found.objective[-1] == pytest.approx(6 * math.log(0.5))
    assert 0.1 < dawid_skene(unit, rater, value).confusion.min() < 0.5


def pairs(
    seed: int, left: Array, right: Array, units: int = 2000, labels: int = 5, ties: float = 0.1
) -> tuple[Array, Array, Array, Array, Array]:
    """Unit, rater, choice, turned; and whether item 0 is the better one. left, right: as in PairPosterior."""
    rng = np.random.default_rng(seed)
    first = rng.random(units) < 0.5
    rater = np.argsort(rng.random((units, left.size)), axis=1)[:, :labels].ravel()
    unit = np.repeat(np.arange(units), labels)
    turned = rng.random(unit.size) < 0.5
    stands_left = first[unit] != turned
    right_answer = rng.random(unit.size) < np.where(stands_left, left[rater], right[rater])
    choice = np.where(right_answer == first[unit], 1, -1) * rng.integers(1, 5, size=unit.size)
    choice[rng.random(unit.size) < ties] = 0
    return unit, rater, choice, turned, first


SKILLS = np.array([0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.5, 0.3])
LEANS = np.array([0.0, 0.0, 0.1, -0.1, 0.2, 0.0, 0.3, -0.2, 0.0])


@pytest.mark.parametrize("seed", range(3))
def test_pair_posterior_finds_reliability_and_side_bias_and_beats_the_majority(seed: int) -> None:
    unit, rater, choice, turned, first = pairs(seed, SKILLS + LEANS, SKILLS - LEANS)
    found = pair_posterior(unit, rater, choice, turned)
    assert (np.diff(found.objective) > -1e-6).all()
    assert found.accuracy == pytest.approx(SKILLS, abs=0.05)
    assert (found.left - found.right) / 2 == pytest.approx(LEANS, abs=0.05)
    votes = np.bincount(unit, np.sign(choice))
    majority = np.mean(np.where(votes == 0, 0.5, (votes > 0) == first))
    assert np.mean((found.first > 0.5) == first) > majority + 0.05
    sure = found.first > 0.9
    assert np.mean(first[sure]) == pytest.approx(found.first[sure].mean(), abs=0.03)  # it means what it says


@pytest.mark.parametrize("seed", range(3))
def test_among_equal_raters_the_posterior_follows_the_majority(seed: int) -> None:
    alike = np.full(9, 0.75)
    unit, rater, choice, turned, first = pairs(seed, alike, alike, ties=0.0)
    found = pair_posterior(unit, rater, choice, turned)
    majority = np.bincount(unit, np.sign(choice)) > 0
    assert np.mean((found.first > 0.5) == majority) > 0.97
    assert abs(np.mean((found.first > 0.5) == first) - np.mean(majority == first)) < 0.01


def test_pair_posterior_is_bayes_rule() -> None:
    unit, rater, choice, turned, _ = pairs(4, SKILLS, SKILLS, units=50)
    found = pair_posterior(unit, rater, choice, turned, tolerance=1e-15)
    for u in range(50):
        odds = 1.0
        for r, c, t in zip(rater[unit == u], choice[unit == u], turned[unit == u], strict=True):
            if c == 0:
                continue
            first, second = (found.right, found.left) if t else (found.left, found.right)
            odds *= (first[r] / (1 - second[r])) if c > 0 else ((1 - first[r]) / second[r])
        assert found.first[u] == pytest.approx(odds / (1 + odds), abs=1e-9)


def test_one_label_an_item_says_what_is_believed_of_raters_before() -> None:
    """Nobody can be told apart from anybody: accuracy stays at its prior mean."""
    choice, turned = np.array([1, -2, 0, 3, -1, 0]), np.array([False, False, False, True, True, False])
    found = pair_posterior(np.arange(6), np.array(["a", "a", "a", "b", "b", "b"]), choice, turned)
    expected = RIGHT / (RIGHT + WRONG)
    assert found.accuracy == pytest.approx([expected] * 2, abs=1e-6)
    assert found.first == pytest.approx([expected, 1 - expected, 0.5, expected, 1 - expected, 0.5], abs=1e-6)


def test_known_answers_show_a_majority_that_errs() -> None:
    """Of three raters two always err; some known answers tell which."""
    first = np.random.default_rng(0).random(60) < 0.5
    unit, rater = np.repeat(np.arange(60), 3), np.tile(["good", "bad", "worse"], 60)
    choice = np.where((rater == "good") == first[unit], 1, -1)
    turned = np.random.default_rng(1).random(180) < 0.5
    wrong = pair_posterior(unit, rater, choice, turned)
    assert np.mean((wrong.first > 0.5) == first) == 0
    told = pair_posterior(unit, rater, choice, turned, known={u: bool(first[u]) for u in range(20)})
    assert np.mean((told.first > 0.5) == first) == 1
    assert (told.first[:20] == first[:20]).all()
    assert dict(zip(told.raters, told.accuracy > 0.5, strict=True)) == {"good": True, "bad": False, "worse": False}


@given(st.integers(0, 10**6))
def test_which_item_comes_first_and_the_strength_of_choices_do_not_matter(seed: int) -> None:
    unit, rater, choice, turned, _ = pairs(seed, SKILLS, SKILLS, units=30)
    one = pair_posterior(unit, rater, choice, turned)
    other = pair_posterior(unit, rater, -np.sign(choice), ~turned)

    def parts(found: PairPosterior) -> Array:
        return np.concatenate([found.left, found.right])

    assert other.first == pytest.approx(1 - one.first, abs=1e-9)
    assert parts(other) == pytest.approx(parts(one), abs=1e-9)


@PANDAS
def test_pair_posterior_is_no_worse_than_the_one_coin_oracle() -> None:
    unit, rater, choice, turned, first = pairs(0, SKILLS + LEANS, SKILLS - LEANS, ties=0.0)
    frame = pd.DataFrame({"task": unit, "worker": rater, "label": choice > 0})
    oracle = OneCoinDawidSkene(n_iter=100).fit_predict(frame).loc[np.arange(first.size)].to_numpy()
    found = pair_posterior(unit, rater, choice, turned).first > 0.5
    assert np.mean(found == first) >= np.mean(oracle == first)


def test_labels_without_a_side_tell_of_accuracy_and_of_no_side() -> None:
    unit, rater, choice, turned, _ = pairs(5, SKILLS, SKILLS)
    sideless = pair_posterior(unit, rater, choice, np.full(unit.size, SIDELESS))
    assert (np.diff(sideless.objective) > -1e-6).all()
    assert sideless.accuracy == pytest.approx(SKILLS, abs=0.05)
    assert sideless.left == pytest.approx(sideless.right, abs=1e-9)
    told = pair_posterior(unit, rater, choice, turned)
    assert np.mean((sideless.first > 0.5) == (told.first > 0.5)) > 0.97
    # One label by somebody who leans: where it stood left or right it counts differently, without a side in between.
    left, right, neither = (
        pair_posterior([*unit, 9999], [*rater, 0], [*choice, 1], [*turned.astype(float), side]).first[-1]
        for side in (0.0, 1.0, SIDELESS)
    )
    assert min(left, right) <= neither <= max(left, right)


@PANDAS
def test_dawid_skene_of_real_annotators_equals_the_oracle() -> None:
    """PandaLM: 999 pairs of answers, each judged by three people: 0 a tie, 1 or 2 the better one."""
    folder = os.environ.get("PREFLOOP_TEST_DATA")
    if folder is None:
        pytest.skip("not run without PREFLOOP_TEST_DATA: figures of labels by real people")
    rows = json.loads((Path(folder) / "pandalm_human" / "testset-v1.json").read_text(encoding="utf-8"))
    value = np.array([[row[f"annotator{k}"] for k in (1, 2, 3)] for row in rows]).ravel()
    unit, rater = np.repeat(np.arange(999), 3), np.tile([1, 2, 3], 999)
    frame = pd.DataFrame({"task": unit, "worker": rater, "label": value})
    oracle = Oracle(n_iter=4, tol=-math.inf).fit(frame)  # further on it cuts chances off at 1e-10
    found = dawid_skene(unit, rater, value, smoothing=0, iterations=4, tolerance=-math.inf)
    assert found.confusion.min() > 1e-9
    assert np.abs(found.posterior - oracle.probas_.loc[found.units, found.values].to_numpy()).max() < 1e-9
