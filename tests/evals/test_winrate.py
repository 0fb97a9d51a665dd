import numpy as np
import pytest

from prefloop.evals.winrate import Answer, SliceRate, compare, outcome, score_gain, summarize
from prefloop.types import PrefloopError


def answers(*scores: float, words: int = 10) -> list[Answer]:
    return [Answer(score, words) for score in scores]


def test_every_sample_meets_every_sample() -> None:
    ours = {"p": answers(0.9, 0.5), "q": answers(0.2, 0.5)}
    theirs = {"p": answers(0.5, 0.1), "q": answers(0.5, 0.5)}
    rate = compare(ours, theirs, {"p": "a", "q": "b"})
    # p: 0.9 wins twice, 0.5 ties and wins; q: 0.2 loses twice, 0.5 ties twice
    assert (rate.wins, rate.ties, rate.losses) == (3, 3, 2)
    assert rate.win_rate == pytest.approx((3 + 3 / 2) / 8)
    assert rate.n_prompts == 2
    # one prompt says nothing of others
    assert rate.slices == {"a": SliceRate(0.875, 0.0, 1.0, 1), "b": SliceRate(0.25, 0.0, 1.0, 1)}
    # over two, it draws p twice, q twice (a quarter of the time each) or both
    assert (rate.low, rate.high) == (0.25, 0.875)


def test_interval_of_a_known_binomial() -> None:
    prompts = [f"p{i:03d}" for i in range(400)]
    ours = {p: answers(1.0 if i % 4 else 0.0) for i, p in enumerate(prompts)}
    rate = compare(ours, {p: answers(0.5) for p in prompts}, dict.fromkeys(prompts, ""))
    # standard error of 0.75 at n = 400: sqrt(0.75 * 0.25 / 400) = 0.02165
    assert rate.win_rate == 0.75
    assert rate.low == pytest.approx(0.75 - 1.96 * 0.02165, abs=0.004)
    assert rate.high == pytest.approx(0.75 + 1.96 * 0.02165, abs=0.004)
    assert rate.slices == {}


def test_interval_counts_prompts_not_samples() -> None:
    prompts = [f"p{i}" for i in range(20)]
    one = {p: answers(float(i % 2)) for i, p in enumerate(prompts)}
    many = {p: answers(*[float(i % 2)] * 8) for i, p in enumerate(prompts)}
    theirs = {p: answers(0.5) for p in prompts}
    slices = dict.fromkeys(prompts, "s")
    a, b = compare(one, theirs, slices), compare(many, theirs, slices)
    assert (a.low, a.high) == (b.low, b.high)


def test_ties_within_tolerance() -> None:
    assert [outcome(0.1 + 0.2, 0.3), outcome(0.3, 0.3 + 1e-8), outcome(1, 0)] == [0.5, 0.0, 1.0]


def test_swapped_sides_mirror() -> None:
    ours = {f"p{i}": answers(i * 7 % 5, words=10 + i) for i in range(10)}
    theirs = {f"p{i}": answers(i * 3 % 5, words=12) for i in range(10)}
    slices = dict.fromkeys(ours, "s")
    forth, back = compare(ours, theirs, slices), compare(theirs, ours, slices)
    assert forth.win_rate + back.win_rate == pytest.approx(1)
    assert forth.length_controlled + back.length_controlled == pytest.approx(1, abs=1e-6)
    assert (forth.wins, forth.losses) == (back.losses, back.wins)


def test_order_of_arrival_does_not_matter() -> None:
    ours = {f"p{i}": answers(i % 3) for i in range(9)}
    theirs = {f"p{i}": answers(1) for i in range(9)}
    slices = {p: p[-1] for p in ours}
    assert compare(ours, theirs, slices) == compare(dict(reversed(ours.items())), theirs, slices)


def test_other_prompts_are_refused() -> None:
    with pytest.raises(PrefloopError, match="only one of them answered q"):
        compare({"p": answers(1)}, {"p": answers(0), "q": answers(0)}, {"p": ""})
    with pytest.raises(PrefloopError):
        compare({"p": []}, {"p": answers(0)}, {"p": ""})
    with pytest.raises(PrefloopError):
        compare({}, {}, {})


def sample(model: str, prompt: str, score: float, text: str, finish: str = "stop") -> dict[str, object]:
    segments = [{"author": "prompt", "tokens": [1, 2]}, {"author": "policy", "tokens": [3, 4, 5]}]
    completion = {"text": text, "finish_reason": finish, "segments": segments}
    parts = {"constraints": score} if prompt == "p" else {}
    asked = {"id": prompt, "slice": "s" if prompt == "p" else ""}
    return {"model": model, "prompt": asked, "completion": completion, "score": score, "parts": parts}


def test_summary_by_hand() -> None:
    rows = [
        sample("policy", "p", 0.8, "two words"),
        sample("policy", "q", 0.4, "four words it has"),
        sample("sft", "p", 0.6, "one", "length"),
        sample("sft", "q", 0.4, "one"),
    ]
    summary = summarize(rows)
    assert summary["win_rate"] == 0.75
    assert (summary["wins"], summary["ties"], summary["losses"], summary["n_prompts"]) == (1, 1, 0, 2)
    assert summary["slices"] == {"s": {"win_rate": 1.0, "low": pytest.approx(0.025), "high": 1.0, "n": 1}}
    assert summary["win_rate_vs_base"] is None
    assert (summary["sft_stopped_share"], summary["policy_stopped_share"]) == (0.5, 1.0)
    policy = summary["models"]["policy"]
    assert policy["score"] == pytest.approx(0.6)
    assert policy["parts"] == {"constraints": 0.8}
    assert (policy["words"], policy["tokens"], policy["n"]) == (3, 3, 2)
    assert summary["score_gain"] == pytest.approx(0.1)
    assert (summary["score_gain_low"], summary["score_gain_high"]) == pytest.approx((0.0, 0.2))
    base = summarize([*rows, sample("base", "p", 0.9, "x"), sample("base", "q", 0.1, "x")])
    assert base["win_rate_vs_base"] == 0.5
    assert base["win_rate"] == 0.75


def test_a_gain_in_the_pass_rate_is_paired_by_prompt() -> None:
    """Of 400 prompts half are easy: unpaired the spread between prompts would drown a gain of 0.1 on every hard one."""
    theirs = {f"p{i}": answers(*([1] * 10 if i % 2 else [0] * 10)) for i in range(400)}
    ours = {p: rows if rows[0].score else answers(*([1] * 1 + [0] * 9)) for p, rows in theirs.items()}
    gain, low, high = score_gain(ours, theirs)
    assert gain == pytest.approx(0.05) and 0.044 < low < gain < high < 0.056
    assert score_gain(theirs, theirs) == (0, 0, 0)
    noise = np.random.default_rng(0).permutation(400)
    shuffled = {f"p{i}": theirs[f"p{j}"] for i, j in enumerate(noise)}
    same, low, high = score_gain(shuffled, theirs)
    assert same == pytest.approx(0) and low < -0.05 and high > 0.05


def test_summary_needs_both_models() -> None:
    with pytest.raises(PrefloopError, match="'sft'"):
        summarize([sample("policy", "p", 1, "x")])


def test_a_prompt_or_two_that_were_won_prove_nothing() -> None:
    won, lost = {"a": [Answer(1.0, 5)] * 3}, {"a": [Answer(0.0, 5)] * 3}
    found = compare(won, lost, {"a": "s"})
    assert (found.win_rate, found.low, found.high) == (1, pytest.approx(0.025), 1)
    assert found.slices["s"].low == pytest.approx(0.025)
    assert compare(lost, won, {"a": ""}).high == 0.975
