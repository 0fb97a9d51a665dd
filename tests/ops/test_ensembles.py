import math
from itertools import combinations
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.ops.ensembles import (
    Form,
    GoldLaw,
    Peak,
    best_of_n,
    best_of_n_kl,
    disagreement,
    fit_gold_law,
    mean_score,
    r_squared,
    uncertainty_weighted,
    worst_case,
)

number = st.floats(-10, 10).map(lambda x: round(x, 3))
members = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(number, min_size=n, max_size=n), min_size=1, max_size=5)
)
forms = st.sampled_from(["best_of_n", "rl"])


def test_three_members_by_hand() -> None:
    # sample 0: mean 2, squared distances 1, 0, 1; sample 1: mean 5, squared distances 0; sample 2: mean 0, 4, 4, 0
    scores = [[1, 5, -2], [2, 5, 2], [3, 5, 0]]
    assert mean_score(scores) == pytest.approx([2, 5, 0])
    assert worst_case(scores) == pytest.approx([1, 5, -2])
    assert uncertainty_weighted(scores, 0.5) == pytest.approx([2 - 1 / 3, 5, -4 / 3])
    assert disagreement(scores) == pytest.approx([(2 / 3) ** 0.5, 0, (8 / 3) ** 0.5])


@given(members, st.floats(0, 3), number, st.randoms(use_true_random=False))
def test_combinations_order_shift_and_ignore_who_is_who(
    scores: list[list[float]], penalty: float, by: float, random: Random
) -> None:
    mean, worst, weighted = mean_score(scores), worst_case(scores), uncertainty_weighted(scores, penalty)
    assert (worst <= mean + 1e-9).all() and (weighted <= mean + 1e-9).all()
    assert uncertainty_weighted(scores, 0) == pytest.approx(mean)
    assert (mean - weighted) == pytest.approx(penalty * disagreement(scores) ** 2, abs=1e-9)
    # the mean of members lies above the least by a std over sqrt(M - 1) at least, and by sqrt(M - 1) of them at most
    gap, spread, others = mean - worst, disagreement(scores), len(scores) - 1
    assert (gap <= spread * math.sqrt(others) + 1e-9).all()
    assert (gap * math.sqrt(others) >= spread - 1e-9).all()
    moved = np.asarray(scores) + by
    for combine in (mean_score, worst_case, lambda s: uncertainty_weighted(s, penalty)):
        assert combine(moved) == pytest.approx(combine(scores) + by, abs=1e-8)
        shuffled = random.sample(scores, len(scores))
        assert combine(shuffled) == pytest.approx(combine(scores))
    assert disagreement(moved) == pytest.approx(disagreement(scores), abs=1e-6)


@given(st.lists(number, min_size=1, max_size=6), st.integers(1, 4))
def test_members_that_agree_are_one(scores: list[float], copies: int) -> None:
    same = [scores] * copies
    for found in (mean_score(same), worst_case(same), uncertainty_weighted(same, 2.0)):
        assert found == pytest.approx(scores)
    assert disagreement(same) == pytest.approx(np.zeros(len(scores)), abs=1e-7)


def test_members_have_rows_and_doubt_is_not_rewarded() -> None:
    for odd in ([], [1.0, 2.0], [[[1.0]]]):
        with pytest.raises(ValueError, match=r"give \[members, samples\]"):
            worst_case(odd)
    for penalty in (-0.1, math.nan):
        with pytest.raises(ValueError, match="rewards doubt"):
            uncertainty_weighted([[1.0]], penalty)


def test_kl_of_best_of_n_is_published() -> None:
    published = {1: 0, 2: 0.19, 4: 0.64, 16: 1.84, 64: 3.18, 128: 3.86, 1000: 5.91, 60000: 10.0}
    assert best_of_n_kl(list(published)) == pytest.approx(list(published.values()), abs=0.01)
    with pytest.raises(ValueError, match="n of 1 or more"):
        best_of_n_kl([1, 0])


@given(st.integers(1, 200))
def test_kl_of_best_of_n_is_that_of_the_maximums_density(n: int) -> None:
    # the best of n uniform scores has density n u^(n-1) against 1: KL = E log density, by midpoints in u^n
    u = ((np.arange(20000) + 0.5) / 20000) ** (1 / n)
    assert best_of_n_kl(n) == pytest.approx(np.mean(math.log(n) + (n - 1) * np.log(u)), abs=2e-2)


def test_ties_keep_kl_below_the_formula() -> None:
    # scores 0 and 1, equally likely: the best of two is 1 with 3/4
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl < float(best_of_n_kl(2)) - 0.05


samples = st.lists(st.tuples(st.integers(-2, 2), number), min_size=1, max_size=7)


def by_brute_force(scored: list[tuple[int, float]], n: int) -> float:
    """Mean over all subsets of n of the gold score of the highest proxy, of those that tie by their mean."""
    chosen = []
    for subset in combinations(scored, n):
        top = max(proxy for proxy, _ in subset)
        chosen.append(np.mean([gold for proxy, gold in subset if proxy == top]))
    return float(np.mean(chosen))


@given(samples, st.data())
def test_best_of_n_is_the_mean_over_all_subsets(scored: list[tuple[int, float]], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(scored)))
    proxy, gold = zip(*scored, strict=True)
    (found,) = best_of_n(proxy, gold, [n])
    assert found == pytest.approx(by_brute_force(scored, n), abs=1e-9)


def test_best_of_n_by_hand() -> None:
    # gold by rising proxy: 4, 1, 7. Pairs: {4, 1} -> 1, {4, 7} -> 7, {1, 7} -> 7
    assert best_of_n([0.1, 0.9, 0.5], [4, 7, 1], [1, 2, 3]) == pytest.approx([4, 5, 7])
    # two tie at the top with gold 1 and 7: pairs {4, 1} -> 1, {4, 7} -> 7, {1, 7} -> 4
    assert best_of_n([0, 1, 1], [4, 1, 7], [1, 2, 3]) == pytest.approx([4, 4, 4])
    assert best_of_n([3, 3, 3], [4, 1, 7], [1, 2, 3]) == pytest.approx([4, 4, 4])
    for n in (0, 4):
        with pytest.raises(ValueError, match="n from 1 to their number"):
            best_of_n([1, 2, 3], [1, 2, 3], [n])
    for proxy in ([1, 2], [1, math.nan, 2]):
        with pytest.raises(ValueError, match="one of each per sample, none NaN"):
            best_of_n(proxy, [1, 2, 3], [1])


@given(st.integers(1, 3000), st.data())
def test_the_best_of_n_ranks_is_known(size: int, data: st.DataObject) -> None:
    # of ranks 1..N the highest of n is n (N + 1) / (n + 1) in the mean
    n = data.draw(st.integers(1, size))
    ranks = np.random.default_rng(size).permutation(size) + 1
    up, down = best_of_n(ranks, ranks, [n]), best_of_n(-ranks, ranks, [n])
    assert up == pytest.approx(n * (size + 1) / (n + 1), rel=1e-6)
    assert up + down == pytest.approx(size + 1, rel=1e-6)


def test_best_of_n_is_unbiased_and_a_blind_proxy_gains_nothing() -> None:
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(4000, 12))
    noisy, blind = gold + rng.normal(size=gold.shape), rng.normal(size=gold.shape)
    # the highest of 4 normals is 1.0294 on average; a proxy that correlates by r = sqrt(1/2) gains r of it
    found = np.mean([best_of_n(p, g, [4]) for p, g in zip(noisy, gold, strict=True)])
    assert found == pytest.approx(1.0294 * 0.5**0.5, abs=0.03)
    assert np.mean([best_of_n(p, g, [4]) for p, g in zip(blind, gold, strict=True)]) == pytest.approx(0, abs=0.03)
    # where the best is sought among all 12 samples only, nobody has looked at four
    assert np.mean([best_of_n(p, g, [12]) for p, g in zip(noisy, gold, strict=True)]) > found + 0.2


def test_the_best_leaves_the_median_further_behind_the_more_there_are() -> None:
    """Touvron et al. 2023 (Llama 2), figure 7: what rejection sampling can gain."""
    rng = np.random.default_rng(0)
    scores, ns = rng.normal(size=2000), [1, 2, 4, 8, 16, 32]
    medians = [np.median(rng.choice(scores, size=(4000, n)), axis=1).mean() for n in ns]
    assert (np.diff(best_of_n(scores, scores, ns) - medians) > 0.2).all()
    assert best_of_n(np.ones(40), np.ones(40), ns) == pytest.approx(np.ones(6))


def test_laws_and_peaks_by_hand() -> None:
    parabola = GoldLaw(form="best_of_n", alpha=2.0, beta=0.5)
    assert parabola.at([0, 1, 2, 4]) == pytest.approx([0, 1.5, 2, 0])
    assert parabola.peak() == Peak(d=2.0, gold=2.0)
    slow = GoldLaw(form="rl", alpha=2.0, beta=1.0)
    assert slow.at([0, 1, math.e, math.e**2]) == pytest.approx([0, 2, math.e, 0])
    assert (slow.peak().d, slow.peak().gold) == pytest.approx((math.e, math.e))


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_a_law_without_a_turn_says_so(form: Form) -> None:
    assert GoldLaw(form=form, alpha=1.0, beta=-0.1).peak() == Peak(d=math.inf, gold=math.inf)
    assert GoldLaw(form=form, alpha=1.0, beta=0.0).peak() == Peak(d=math.inf, gold=math.inf)
    assert GoldLaw(form=form, alpha=-1.0, beta=0.0).peak() == Peak(d=0.0, gold=0.0)
    assert GoldLaw(form="best_of_n", alpha=-1.0, beta=1.0).peak() == Peak(d=0.0, gold=0.0)
    assert GoldLaw(form="rl", alpha=1.0, beta=1e-5).peak() == Peak(d=math.inf, gold=math.inf)


@given(forms, st.floats(0.2, 3), st.floats(0.2, 2))
def test_a_fit_recovers_what_was_planted_and_its_peak_is_the_highest(form: Form, alpha: float, beta: float) -> None:
    law = GoldLaw(form=form, alpha=alpha, beta=beta)
    d = np.linspace(0, 2.5, 9)
    found = fit_gold_law(form, d, law.at(d))
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta))
    assert r_squared(law.at(d), found.at(d)) == pytest.approx(1)
    peak = law.peak()
    assert law.at(peak.d) == pytest.approx(peak.gold)
    assert (law.at(peak.d * np.array([0, 0.9, 1.1, 2])) <= peak.gold).all()


@given(forms, st.integers(0, 100))
def test_no_other_law_of_the_form_is_closer(form: Form, seed: int) -> None:
    rng = np.random.default_rng(seed)
    d, gold = rng.uniform(0, 3, size=8), rng.normal(size=8)
    law = fit_gold_law(form, d, gold)
    least = float(((law.at(d) - gold) ** 2).sum())
    for a, b in rng.normal(0, 0.1, size=(5, 2)):
        other = GoldLaw(form=form, alpha=law.alpha + a, beta=law.beta + b)
        assert float(((other.at(d) - gold) ** 2).sum()) >= least


def test_noise_leaves_the_planted_law_in_reach_and_the_other_form_is_further_off() -> None:
    rng = np.random.default_rng(0)
    law, d = GoldLaw(form="best_of_n", alpha=1.4, beta=0.26), np.linspace(0.2, 3.5, 30)
    fits = [fit_gold_law("best_of_n", d, law.at(d) + rng.normal(0, 0.05, size=30)) for _ in range(300)]
    assert np.mean([fit.alpha for fit in fits]) == pytest.approx(1.4, abs=5e-3)
    assert np.mean([fit.beta for fit in fits]) == pytest.approx(0.26, abs=2e-3)
    other = fit_gold_law("rl", d, law.at(d))
    assert r_squared(law.at(d), other.at(d)) < 0.99


def test_fits_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="two different distances"):
        fit_gold_law("rl", [0, 1, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="no distance below 0"):
        fit_gold_law("rl", [-1, 1], [0, 1])
    with pytest.raises(ValueError, match="nothing to explain"):
        r_squared([1, 1], [1, 2])
    assert r_squared([1, 2, 3], [2, 2, 2]) == 0
