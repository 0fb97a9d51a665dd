from __future__ import annotations

import json
import math
import os
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import BradleyTerry as Oracle
from crowdkit.aggregation import NoisyBradleyTerry
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import check_grad
from scipy.special import expit
from scipy.stats import kendalltau
from sklearn.linear_model import LogisticRegression

from prefloop.ops import ratings
from prefloop.ops.ratings import Raters, Strengths, bradley_terry, rater_effects

Array = NDArray[Any]


def compared(
    seed: int, reliability: Array, bias: Array, items: int = 12, pairs: int = 300, labels: int = 4
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Two items, rater, outcome and side of labels by the model; and the true strengths."""
    rng = np.random.default_rng(seed)
    strength = rng.normal(size=items)
    strength -= strength.mean()
    first = rng.integers(items, size=pairs).repeat(labels)
    second = (first + rng.integers(1, items, size=pairs).repeat(labels)) % items
    rater = rng.integers(reliability.size, size=first.size)
    left = rng.choice([-1.0, 1.0], size=first.size)
    chance = expit(reliability[rater] * (strength[first] - strength[second]) + bias[rater] * left)
    return first, second, rater, (rng.random(first.size) < chance).astype(float), left, strength


def order(strength: Array, truth: Array) -> float:
    return float(kendalltau(strength, truth).statistic)


@pytest.mark.parametrize("seed", range(3))
def test_strengths_equal_logistic_regression(seed: int) -> None:
    """Ties are half a win each: one row of either outcome with half the weight."""
    reliability = np.array([2.0, 1.0, 0.3])
    first, second, rater, outcome, _, _ = compared(seed, reliability, np.zeros(3))
    outcome[::7] = 0.5
    weight = np.random.default_rng(seed).integers(1, 4, size=outcome.size).astype(float)
    design = np.zeros((first.size, 12))
    np.put_along_axis(design, first[:, None], 1, axis=1)
    np.put_along_axis(design, second[:, None], -1, axis=1)
    design *= reliability[rater][:, None]
    oracle = LogisticRegression(C=2.0**2, fit_intercept=False, tol=1e-12, max_iter=10_000)
    both, times = np.tile(design, (2, 1)), np.concatenate([weight * outcome, weight * (1 - outcome)])
    oracle.fit(both, np.repeat([1, 0], first.size), sample_weight=times)
    found = bradley_terry(first, second, outcome, slope=reliability[rater], weight=weight, spread=2.0)
    assert found.strength == pytest.approx(oracle.coef_[0], abs=1e-5)
    assert found.strength.mean() == pytest.approx(0, abs=1e-12)


def test_strengths_equal_crowd_kits_without_a_prior() -> None:
    first, second, _, outcome, _, _ = compared(0, np.ones(2), np.zeros(2))
    frame = pd.DataFrame({"worker": 0, "left": first, "right": second, "label": np.where(outcome == 1, first, second)})
    # its test of convergence compares an array with itself, so that only a negative tolerance lets it go on
    oracle = np.log(Oracle(n_iter=5000, tol=-1.0).fit_predict(frame).loc[np.arange(12)].to_numpy())
    found = bradley_terry(first, second, outcome, spread=1e4)
    assert found.strength == pytest.approx(oracle - oracle.mean(), abs=1e-5)


def test_bias_of_the_side_is_an_offset() -> None:
    """No other strengths have a smaller loss, computed here label by label."""
    first, second, rater, outcome, left, _ = compared(1, np.array([1.5, 0.5]), np.array([1.0, -0.5]))
    slope, offset = np.array([1.5, 0.5])[rater], np.array([1.0, -0.5])[rater] * left
    found = bradley_terry(first, second, outcome, slope=slope, offset=offset, spread=3.0)

    def loss(strength: Array) -> float:
        x = slope * (strength[first] - strength[second]) + offset
        return float(-(outcome * np.log(expit(x)) + (1 - outcome) * np.log(expit(-x))).sum() + (strength**2).sum() / 18)

    assert found.loss == pytest.approx(loss(found.strength), rel=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert loss(found.strength + rng.normal(size=12) * 0.01) > found.loss


def test_an_item_that_always_wins_has_a_finite_strength() -> None:
    found = bradley_terry(["a", "a", "b"], ["b", "c", "c"], [1, 1, 1])
    assert found.items.tolist() == ["a", "b", "c"]
    assert math.inf > found.strength[0] > found.strength[1] > found.strength[2]
    assert np.isnan(found.error).all()
    with pytest.raises(ValueError, match="4000 items; at most 3000"):
        bradley_terry(np.arange(2000), np.arange(2000, 4000), np.ones(2000), cluster=np.arange(2000))


def test_standard_errors_cover_the_truth() -> None:
    """Copies of each label count once where they are of one cluster."""
    covered, errors, trials = 0, [], 150
    for seed in range(trials):
        first, second, _, outcome, _, truth = compared(seed, np.ones(1), np.zeros(1), items=8, pairs=250, labels=1)
        cluster = np.arange(first.size)
        once = bradley_terry(first, second, outcome, cluster=cluster)
        covered += int((np.abs(once.strength - truth) < 1.96 * once.error).sum())
        if seed < 3:
            copies = [np.repeat(x, 3) for x in (first, second, outcome)]
            thrice = bradley_terry(*copies, cluster=np.repeat(cluster, 3))
            naive = bradley_terry(*copies, cluster=np.arange(3 * first.size))
            errors.append((np.mean(thrice.error / once.error), np.mean(naive.error / once.error)))
    assert 0.93 <= covered / (8 * trials) <= 0.97
    assert np.array(errors) == pytest.approx(np.array([[1, 1 / math.sqrt(3)]] * 3), rel=0.05)


RELIABILITY = np.exp(np.array([0.8, 0.4, 0.2, 0.0, 0.0, -0.2, -0.4, -0.8]))
BIAS = np.array([0.0, 0.5, 0.0, -0.5, 0.0, 1.0, 0.0, -0.2])


def test_reliability_and_bias_are_found_with_errors_that_cover_them() -> None:
    within, trials = np.zeros(2), 25
    for seed in range(trials):
        first, second, rater, outcome, left, _ = compared(seed, RELIABILITY, BIAS, pairs=600)
        found = rater_effects(first, second, rater, outcome, left)
        off = np.log(found.reliability / RELIABILITY) - np.log(found.reliability / RELIABILITY).mean()
        within += (
            (np.abs(off) < 1.96 * found.log_reliability_error).mean(),
            (np.abs(found.bias - BIAS) < 1.96 * found.bias_error).mean(),
        )
        assert np.bincount(rater) @ np.log(found.reliability) == pytest.approx(0, abs=1e-9)
        assert np.abs(found.bias - BIAS).max() < 0.6 and np.abs(off).max() < 0.8
    assert (within / trials > 0.9).all()


@pytest.mark.parametrize("seed", range(3))
def test_nobody_becomes_a_dictator(seed: int) -> None:
    """Equal raters of many items with few labels each: where strengths are fitted along, some rater is always right."""
    rng = np.random.default_rng(seed)
    strength, rater = rng.normal(size=2000), rng.integers(10, size=6000)
    first = np.arange(6000) % 2000
    second = first ^ 1
    left = rng.choice([-1.0, 1.0], size=6000)
    outcome = (rng.random(6000) < expit(strength[first] - strength[second])).astype(float)
    found = rater_effects(first, second, rater, outcome, left)
    assert 0.7 < found.reliability.min() < found.reliability.max() < 1.4
    assert found.spread == pytest.approx(1, abs=0.4)


def test_the_bound_lies_below_the_likelihood() -> None:
    """One pair of items: the likelihood, integrated over a grid of both strengths."""
    outcome = np.array([1.0, 1, 1, 0, 1, 0.5])
    labels = ratings._Labels(
        a=np.zeros(6, int), b=np.ones(6, int), who=np.zeros(6, int), won=outcome, left=np.zeros(6), times=np.ones(6)
    )
    model = ratings._Model(labels, 2, 1)
    bound = -min(
        model.objective(np.array([m, -m, d, d, 0, 0, 0]) * model._scale)[0] * 6
        for m in np.linspace(0, 1, 21)
        for d in np.linspace(-1, 0.2, 25)
    )
    grid = np.linspace(-8, 8, 401)
    density = np.exp(-(grid**2) / 2)
    lead = np.subtract.outer(grid, grid)
    likelihood = np.exp(outcome.sum() * lead - 6 * np.logaddexp(0, lead))
    exact = math.log((density[:, None] * density * likelihood).sum() / density.sum() ** 2)
    # the objective leaves out a constant of the divergence: half a unit an item
    assert exact - 0.2 < bound + 1 <= exact


def test_gradient() -> None:
    first, second, rater, outcome, left, _ = compared(2, RELIABILITY, BIAS, pairs=50)
    outcome[::5] = 0.5
    labels = ratings._Labels(a=first, b=second, who=rater, won=outcome, left=left, times=np.ones(first.size))
    model = ratings._Model(labels, 12, 8)
    for seed in range(5):
        at = model.start + np.random.default_rng(seed).normal(size=model.start.size)
        value, slope = lambda x: model.objective(x)[0], lambda x: model.objective(x)[1]
        assert check_grad(value, slope, at, epsilon=1e-6) < 1e-6


def both(*labels: Any) -> tuple[Raters, Strengths]:
    first, second, rater, outcome, left = labels
    found = rater_effects(*labels)
    place = np.searchsorted(found.raters, rater)
    slope, offset = found.reliability[place], found.bias[place] * left
    return found, bradley_terry(first, second, outcome, slope=slope, offset=offset)


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_order_names_and_sides(seed: int) -> None:
    first, second, rater, outcome, left, _ = compared(seed, RELIABILITY[:4], BIAS[:4], items=5, pairs=30)
    rng = np.random.default_rng(seed)
    found, strengths = both(first, second, rater, outcome, left)
    turned, same = both(second, first, rater, 1 - outcome, -left)
    assert turned.bias == pytest.approx(found.bias, abs=1e-4)
    assert same.strength == pytest.approx(strengths.strength, abs=1e-3)
    shuffled = rng.permutation(first.size)
    items, raters = rng.permutation(5), rng.permutation(4)
    moved, places = both(*(x[shuffled] for x in (items[first], items[second], raters[rater], outcome, left)))
    assert places.strength[np.searchsorted(places.items, items[strengths.items])] == pytest.approx(
        strengths.strength, abs=1e-3
    )
    assert moved.reliability[np.searchsorted(moved.raters, raters[found.raters])] == pytest.approx(
        found.reliability, abs=1e-3
    )
    mirrored, _ = both(first, second, rater, outcome, -left)
    assert mirrored.bias == pytest.approx(-found.bias, abs=1e-4)


def test_weighting_by_reliability_orders_better_than_crowd_kit_and_equal_weights() -> None:
    reliability = np.array([3.0, 2.0, 1.0, 0.2, 0.1, 0.05])
    ours, equal, oracle = [], [], []
    for seed in range(6):
        first, second, rater, outcome, left, truth = compared(
            seed, reliability, np.array([0, 0, 0, 2.0, -2.0, 2.0]), items=10, pairs=60
        )
        _, strengths = both(first, second, rater, outcome, left)
        ours.append(order(strengths.strength, truth))
        equal.append(order(bradley_terry(first, second, outcome).strength, truth))
        a, b = np.where(left > 0, first, second), np.where(left > 0, second, first)
        frame = pd.DataFrame({"worker": rater, "left": a, "right": b, "label": np.where(outcome == 1, first, second)})
        oracle.append(order(NoisyBradleyTerry(n_iter=50).fit_predict(frame).loc[np.arange(10)].to_numpy(), truth))
    assert np.mean(ours) > np.mean(equal) + 0.03
    assert np.mean(ours) > np.mean(oracle)


def test_strengths_of_real_labels_equal_logistic_regression() -> None:
    """Fine-grained RLHF: 500 questions, four answers, six pairs of them: 1 or 2 the better one, 0 a tie."""
    folder = os.environ.get("PREFLOOP_TEST_DATA")
    if folder is None:
        pytest.skip("not run without PREFLOOP_TEST_DATA: figures of labels by real people")
    rows = json.loads((Path(folder) / "fine_grained_rlhf" / "dev_feedback.json").read_text(encoding="utf-8"))
    one, other = (np.tile(side, 500) for side in np.transpose(list(combinations(range(4), 2))))
    outcome = np.array([0.5, 1.0, 0.0])[np.array([row["preference"] for row in rows]).ravel()]
    found = bradley_terry(one, other, outcome, cluster=np.repeat(np.arange(500), 6))
    design = np.eye(4)[one] - np.eye(4)[other]
    oracle = LogisticRegression(C=5.0**2, fit_intercept=False, tol=1e-12, max_iter=10_000)
    weight = np.concatenate([outcome, 1 - outcome])
    oracle.fit(np.tile(design, (2, 1)), np.repeat([1, 0], 3000), sample_weight=weight)
    assert found.strength == pytest.approx(oracle.coef_[0], abs=1e-6)
    assert (found.error > 0.01).all()
