import math
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefloop.ops.statistics import (
    Figure,
    area_under_curve,
    calibration_slope,
    cluster_bootstrap,
    cluster_mean,
    cluster_share,
    expected_calibration_error,
    length_controlled_win_rate,
    logistic_effects,
    pooled_std,
    share,
    share_bootstrap,
    wilson,
    win_rate,
)

outcome = st.sampled_from([0.0, 0.5, 1.0])


def test_win_rate_counts_ties_as_half() -> None:
    assert win_rate([[1, 0.5], [0], [1, 1]]) == pytest.approx(3.5 / 5)
    with pytest.raises(ValueError, match="no outcomes"):
        win_rate([[], []])
    with pytest.raises(ValueError, match=r"1 \(win\)"):
        win_rate([[0.7]])


def test_pooled_std_looks_within_groups_only() -> None:
    # 1, 3 and 10, 10, 13: squared distances 2 and 6, degrees of freedom 1 and 2
    assert pooled_std([[1, 3], [10, 10, 13], [-99], []]) == pytest.approx((8 / 3) ** 0.5)
    with pytest.raises(ValueError, match="no group has two values"):
        pooled_std([[1], []])


@given(st.lists(st.lists(outcome, max_size=4), min_size=1))
def test_win_rates_of_the_two_sides_add_up_to_1(outcomes: list[list[float]]) -> None:
    assume(any(outcomes))
    assert win_rate(outcomes) + win_rate([[1 - o for o in prompt] for prompt in outcomes]) == pytest.approx(1)


def test_bootstrap_resamples_clusters_not_values() -> None:
    rng = np.random.default_rng(0)
    per_prompt = rng.integers(0, 2, size=100)
    low, high = cluster_bootstrap([[value] * 10 for value in per_prompt])
    one_low, one_high = cluster_bootstrap([[value] for value in per_prompt])
    assert (low, high) == (one_low, one_high)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.1)


def test_bootstrap_of_unequal_clusters_pools_their_values() -> None:
    assert cluster_bootstrap([[0.25] * 3, [0.25]]) == (0.25, 0.25)
    drawn = {0.0, 3 / 4, 1.0}  # both the small one, one of each, both the large one
    low, high = cluster_bootstrap([np.ones(3), [0.0]], level=0.4)
    assert {low, high} <= drawn
    with pytest.raises(ValueError, match="without values"):
        cluster_bootstrap([[1.0], []])


def test_a_share_without_spread_has_an_interval_all_the_same() -> None:
    """0.025 = p^4: four prompts of which all succeeded."""
    assert share_bootstrap([[1.0], [1.0, 1.0], [1], [1]]) == (pytest.approx(0.025**0.25), 1.0)
    assert share_bootstrap([[0.0]] * 4) == (0.0, pytest.approx(1 - 0.025**0.25))
    assert share_bootstrap([[0.5, 1.0]]) == (0.0, 1.0)
    mixed = [[1.0, 0.0], [1.0], [0.0], [0.5]]
    assert share_bootstrap(mixed, seed=3) == cluster_bootstrap(mixed, seed=3)


def test_bootstrap_is_repeatable_and_wider_at_a_higher_level() -> None:
    clusters = np.random.default_rng(1).normal(size=(30, 2))
    narrow, wide = cluster_bootstrap(list(clusters), level=0.8), cluster_bootstrap(list(clusters), level=0.99)
    assert cluster_bootstrap(list(clusters), level=0.8) == narrow
    assert wide[0] < narrow[0] < clusters.mean() < narrow[1] < wide[1]


def test_bootstrap_covers_the_truth_in_95_of_100_samples() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(400):
        skill = rng.beta(2, 2, size=120)  # prompts differ, so the two samples of one are correlated
        wins = rng.random((120, 2)) < skill[:, None]
        low, high = cluster_bootstrap(list(wins), resamples=300, seed=trial)
        covered += low <= 0.5 <= high
    assert 0.93 <= covered / 400 <= 0.97


def test_wilson_published_values() -> None:
    assert wilson(0, 60)[0] == 0.0
    assert wilson(0, 60)[1] == pytest.approx(0.060, abs=5e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(7, 7)[1] == 1.0
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilson_bounds_solve_the_score_equation(n: int, fraction: float, level: float) -> None:
    successes = round(fraction * n)
    low, high = wilson(successes, n, level)
    assert 0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1
    mirrored = wilson(n - successes, n, level)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)
    distances = [(successes / n - p) ** 2 * n - (_z2(level) * p * (1 - p)) for p in (low, high)]
    assert distances == pytest.approx([0, 0], abs=1e-6)


def _z2(level: float) -> float:
    """The squared normal quantile, by bisection on the error function."""
    low, high = 0.0, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle / math.sqrt(2)) < level else (low, middle)
    return low**2


def test_identical_outputs_win_half_at_equal_length() -> None:
    assert length_controlled_win_rate([0.5] * 8, [0] * 8) == 0.5


def test_without_length_differences_it_is_the_win_rate() -> None:
    assert length_controlled_win_rate([1, 1, 0, 1], [0, 0, 0, 0]) == pytest.approx(0.75, abs=1e-3)
    assert length_controlled_win_rate([1, 1, 0, 1], [50] * 4) == pytest.approx(0.75, abs=1e-3)


@given(st.lists(st.tuples(outcome, st.integers(-300, 300)), min_size=1, max_size=40))
def test_length_control_is_antisymmetric(rows: list[tuple[float, int]]) -> None:
    won, difference = np.array(rows, dtype=float).T
    one = length_controlled_win_rate(won, difference)
    assert 0 < one < 1
    assert length_controlled_win_rate(1 - won, -difference) == pytest.approx(1 - one, abs=1e-6)


def test_wins_by_length_alone_vanish_and_true_wins_stay() -> None:
    rng = np.random.default_rng(3)
    difference = rng.normal(150, 100, size=4000)
    feature = np.tanh(difference / difference.std())
    by_length = rng.random(4000) < 1 / (1 + np.exp(-2 * feature))
    assert by_length.mean() > 0.7
    assert length_controlled_win_rate(by_length, difference) == pytest.approx(0.5, abs=0.05)
    truly = rng.random(4000) < 1 / (1 + np.exp(-(1.0 + 0.5 * feature)))
    assert length_controlled_win_rate(truly, difference) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)


def test_separable_outcomes_stay_finite() -> None:
    assert 0.9 < length_controlled_win_rate([1] * 20, range(20)) < 1
    assert length_controlled_win_rate([1, 1, 0, 0], [10, 20, -10, -20]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="one of each"):
        length_controlled_win_rate([1, 0], [3])


def test_a_share_has_wilsons_interval_or_a_reason() -> None:
    assert share(5, 10) == Figure(value=0.5, low=wilson(5, 10)[0], high=wilson(5, 10)[1], n=10)
    none = share(0, 0, "nobody came")
    assert math.isnan(none.value) and math.isnan(none.low) and (none.n, none.reason) == (0, "nobody came")


def test_calibration_error_by_hand() -> None:
    prob, outcome = [0.2, 0.4, 0.6, 0.8], [0, 1, 1, 1]
    # bins {0.2, 0.4} and {0.6, 0.8}: |0.3 - 0.5| and |0.7 - 1|
    assert expected_calibration_error(prob, outcome, bins=2) == pytest.approx(0.25)
    assert expected_calibration_error(prob, outcome, bins=1) == pytest.approx(0.25)
    assert expected_calibration_error(prob, outcome) == pytest.approx((0.2 + 0.6 + 0.4 + 0.2) / 4)
    with pytest.raises(ValueError, match="one outcome per probability"):
        expected_calibration_error([0.5], [])


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), outcome), min_size=1, max_size=60), st.randoms())
def test_calibration_error_does_not_depend_on_order_even_with_ties(
    rows: list[tuple[float, float]], random: Random
) -> None:
    error = expected_calibration_error(*np.array(rows).T)
    random.shuffle(rows)
    assert expected_calibration_error(*np.array(rows).T) == pytest.approx(error)
    assert 0 <= error <= 1


def test_calibrated_probabilities_have_a_small_error_and_overconfident_ones_a_large() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=20_000)
    outcome = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    assert expected_calibration_error(1 / (1 + np.exp(-logits)), outcome) < 0.02
    assert expected_calibration_error(1 / (1 + np.exp(-3 * logits)), outcome) > 0.1


def test_calibration_slope_of_known_probabilities() -> None:
    """Targets that are sigmoid(0.7 d) have slope 0.7, but for a prior that weighs one unit of information."""
    rng = np.random.default_rng(0)
    leads = [rng.normal(size=20) * 2 for _ in range(200)]
    slope, low = calibration_slope(leads, [1 / (1 + np.exp(-0.7 * d)) for d in leads])
    assert slope == pytest.approx(0.7, abs=2e-3) and 0.6 < low < slope


@pytest.mark.parametrize("seed", range(3))
def test_calibration_slope_covers_the_truth_and_noise_is_not_confirmed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    covered, confirmed = [], []
    for _ in range(200):
        leads = [rng.normal(size=10) for _ in range(45)]
        targets = [(rng.random(10) < 1 / (1 + np.exp(-d))).astype(float) for d in leads]
        covered.append(calibration_slope(leads, targets)[1] <= 1)
        confirmed.append(calibration_slope(leads, [(rng.random(10) < 0.5).astype(float) for _ in leads])[1] > 0)
    assert 0.94 <= np.mean(covered) <= 1
    assert np.mean(confirmed) < 0.07


def test_calibration_slope_needs_labels_and_stays_finite() -> None:
    assert calibration_slope([[3.0]], [[1.0]])[1] < 0  # one label confirms nothing
    slope, low = calibration_slope([[2.0, 3.0]] * 40, [[1.0, 1.0]] * 40)  # never wrong: no largest slope fits
    assert 1 < low < slope < 10
    assert calibration_slope([[-2.0, 3.0]] * 40, [[1.0, 0.0]] * 40)[0] < 0


def test_cluster_mean_is_students_over_prompts() -> None:
    # means 1, 2, 6: mean 3, std sqrt(7), t(0.975, 2) = 4.3027
    found = cluster_mean([[1.0], [1.0, 3.0], [6.0, 6.0, 6.0], []])
    assert found.value == pytest.approx(3)
    assert found.high - found.value == pytest.approx(4.3027 * math.sqrt(7 / 3), rel=1e-4)
    assert found.n == 3
    assert cluster_mean([[1.0, 2.0]]).reason


def test_shares_that_are_all_alike_are_not_certain() -> None:
    found = cluster_share([[0.0, 0.0]] * 20)
    assert (found.value, found.low, found.high) == (0, 0, pytest.approx(1 - 0.025 ** (1 / 20)))
    found = cluster_share([[1.0]] * 20, 0.9)
    assert (found.low, found.high) == (pytest.approx(0.05 ** (1 / 20)), 1)
    assert cluster_share([[0.0], [1.0]]) == cluster_mean([[0.0], [1.0]]) and cluster_share([[0.0]]).reason


def test_cluster_mean_covers() -> None:
    rng = np.random.default_rng(0)
    draws = [cluster_mean([[x] for x in rng.normal(size=12)]) for _ in range(400)]
    assert sum(one.low < 0 < one.high for one in draws) / 400 == pytest.approx(0.95, abs=0.03)


def test_logistic_effects_by_hand_and_with_noise() -> None:
    # 3 of 4 for the first at x = 1: log 3
    (effect,), covariance = logistic_effects([[[1.0]]] * 4, [[1.0], [1.0], [1.0], [0.0]], ridge=1e-9)
    assert effect == pytest.approx(math.log(3), abs=1e-5)
    # bread 1 / (4 * 3/16) twice around the sum of (t - p)^2 = 3/16 + 9/16, times 4/3
    assert covariance[0, 0] == pytest.approx((4 / 3) ** 2 * 0.75 * 4 / 3, rel=1e-4)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 2))
    t = (rng.random(3000) < 1 / (1 + np.exp(-x @ [1.0, -0.5]))).astype(float)
    found, covariance = logistic_effects(
        [x[i : i + 3] for i in range(0, 3000, 3)], [t[i : i + 3] for i in range(0, 3000, 3)]
    )
    assert found == pytest.approx([1.0, -0.5], abs=0.15)
    assert np.sqrt(np.diag(covariance)) == pytest.approx([0.05, 0.045], abs=0.01)
    doubled, wider = logistic_effects(
        [np.repeat(x[i : i + 1], 4, axis=0) for i in range(500)], [[t[i]] * 4 for i in range(500)]
    )
    single, narrow = logistic_effects([x[i : i + 1] for i in range(500)], [[t[i]] for i in range(500)], ridge=2.5e-3)
    assert doubled == pytest.approx(single, abs=1e-4)  # what is repeated within a prompt says nothing more
    assert wider == pytest.approx(narrow, rel=1e-3)
    with pytest.raises(ValueError, match="no pair"):
        logistic_effects([], [])


def test_area_under_curve_counts_pairs() -> None:
    assert area_under_curve([3.0, 1.0], [2.0, 1.0]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert area_under_curve([2.0], [1.0]) == 1
    with pytest.raises(ValueError, match="each side"):
        area_under_curve([], [1.0])
