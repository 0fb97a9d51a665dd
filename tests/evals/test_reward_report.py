import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.evals.reward_model import HeldoutPair, measure
from prefloop.types import PrefloopError


def pair(prompt: str, target: float, scores: tuple[float, float], words: tuple[int, int], gold: tuple[float, float]):  # type: ignore[no-untyped-def]
    return HeldoutPair(
        prompt_id=prompt,
        target=target,
        score_a=scores[0],
        score_b=scores[1],
        words_a=words[0],
        words_b=words[1],
        gold_a=gold[0],
        gold_b=gold[1],
    )


def test_by_hand() -> None:
    report = measure(
        [
            pair("p", 1.0, (2.0, 0.0), (5, 9), (0.9, 0.1)),  # right; shorter is right; gold right
            pair("p", 1 / 3, (1.0, 0.0), (5, 9), (0.9, 0.1)),  # wrong; longer is right; gold wrong
            pair("q", 0.0, (0.0, 0.5), (4, 4), (0.5, 0.5)),  # right; equal words and gold count a half
            pair("q", 0.5, (9.0, 0.0), (1, 9), (0.9, 0.1)),  # tie: left out of accuracies
        ]
    )
    assert (report.n, report.n_decided) == (4, 3)
    assert report.accuracy == pytest.approx(2 / 3)
    assert (report.longer_wins, report.shorter_wins) == (pytest.approx(0.5), pytest.approx(0.5))
    assert report.ceiling == pytest.approx(0.5)
    assert report.margin == pytest.approx((2 + 1 + 0.5 + 9) / 4)
    # resampling two prompts: twice p (1/2), twice q (1), or both (2/3)
    assert (report.accuracy_low, report.accuracy_high) == (0.5, 1.0)
    sigmoid = [1 / (1 + math.exp(-m)) for m in (2, 1, 0.5, 9)]
    observed = [1.0, 1 / 3, 1.0, 0.5]
    gaps = sum(abs(p - o) for p, o in zip(sigmoid, observed, strict=True)) / 4
    assert report.ece == pytest.approx(gaps)  # four pairs in ten bins: each alone
    assert [(b.predicted, b.observed, b.n) for b in report.reliability] == [
        (pytest.approx(p), pytest.approx(o), 1) for p, o in sorted(zip(sigmoid, observed, strict=True))
    ]


def test_gain_turns_reference_stds_back_into_logits() -> None:
    raw = measure([pair("p", 1.0, (0.4, 0.0), (1, 2), (1, 0))])
    scaled = measure([pair("p", 1.0, (2.0, 0.0), (1, 2), (1, 0))], gain=5.0)
    assert scaled.ece == pytest.approx(raw.ece) == pytest.approx(1 - 1 / (1 + math.exp(-0.4)))


def test_no_ceiling_with_real_people() -> None:
    row = HeldoutPair(prompt_id="p", target=1.0, score_a=1.0, score_b=0.0, words_a=1, words_b=2)
    assert measure([row]).ceiling is None


def test_without_a_majority() -> None:
    with pytest.raises(PrefloopError, match="none of 1 held-out pairs"):
        measure([pair("p", 0.5, (1.0, 0.0), (1, 2), (1, 0))])


PAIRS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1 / 3, 0.5, 2 / 3, 1.0]),
        st.tuples(st.integers(-3, 3).map(float), st.integers(-3, 3).map(float)),
        st.tuples(st.integers(0, 5), st.integers(0, 5)),
    ),
    min_size=1,
    max_size=12,
).filter(lambda rows: any(target != 0.5 for target, _, _ in rows))


@settings(deadline=None, max_examples=30)  # each example bootstraps twice
@given(PAIRS)
def test_swapping_the_answers_changes_nothing(rows: list[tuple[float, tuple[float, float], tuple[int, int]]]) -> None:
    here = measure([pair(str(i % 3), t, s, w, s) for i, (t, s, w) in enumerate(rows)])
    swapped = measure([pair(str(i % 3), 1 - t, s[::-1], w[::-1], s[::-1]) for i, (t, s, w) in enumerate(rows)])
    assert here.accuracy == pytest.approx(swapped.accuracy)
    assert here.longer_wins == pytest.approx(swapped.longer_wins)
    assert here.ceiling == pytest.approx(here.accuracy)
    assert here.longer_wins + here.shorter_wins == pytest.approx(1)
    assert sum(b.n for b in here.reliability) == len(rows)
