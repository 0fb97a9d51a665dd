"""How often one model's answers are preferred to another's on the same prompts, by scores of a judge."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prefloop.ops.statistics import cluster_bootstrap, length_controlled_win_rate, share_bootstrap, win_rate
from prefloop.types import PrefloopError

TIE = 1e-9


@dataclass(frozen=True, slots=True)
class Answer:
    """A judge's score of an answer, and its length in words."""

    score: float
    words: int


@dataclass(frozen=True, slots=True)
class SliceRate:
    """Win rate in 0..1 with its 95 % interval; n prompts."""

    win_rate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class WinRate:
    """(wins + ties / 2) / comparisons with its 95 % interval, at equal length, and by slice."""

    win_rate: float
    low: float
    high: float
    length_controlled: float
    n_prompts: int
    wins: int
    ties: int
    losses: int
    slices: Mapping[str, SliceRate]


def outcome(ours: float, theirs: float) -> float:
    """1 where the first score is higher, 0 where the second is, 0.5 where they differ by less than 1e-9."""
    return 0.5 if abs(ours - theirs) < TIE else float(ours > theirs)


def compare(
    ours: Mapping[str, Sequence[Answer]],
    theirs: Mapping[str, Sequence[Answer]],
    slices: Mapping[str, str],
    *,
    seed: int = 0,
) -> WinRate:
    """Every answer of ours against every one of theirs to the same prompt; all keys are prompt ids.

    Intervals resample prompts with all their comparisons; prompts are taken in order of their ids, so the order of the
    answers' arrival does not matter. Prompts whose slice is "" count in the whole alone. PrefloopError when the two did
    not answer the same prompts, or none.
    """
    if not ours or ours.keys() != theirs.keys() or not all(map(len, [*ours.values(), *theirs.values()])):
        differing = sorted(ours.keys() ^ theirs.keys())[:3]
        raise PrefloopError(
            "Win rate: both models must answer the same prompts, at least one; "
            f"only one of them answered {', '.join(differing) or 'some'}. Sample both on the same split."
        )
    prompts = sorted(ours)
    outcomes = {p: [outcome(a.score, b.score) for a in ours[p] for b in theirs[p]] for p in prompts}
    longer = [a.words - b.words for p in prompts for a in ours[p] for b in theirs[p]]
    pooled = [value for p in prompts for value in outcomes[p]]
    by_slice: defaultdict[str, list[list[float]]] = defaultdict(list)
    for p in prompts:
        by_slice[slices[p]].append(outcomes[p])
    whole = _rate(list(outcomes.values()), seed)
    return WinRate(
        win_rate=whole.win_rate,
        low=whole.low,
        high=whole.high,
        length_controlled=length_controlled_win_rate(pooled, longer),
        n_prompts=len(prompts),
        wins=pooled.count(1.0),
        ties=pooled.count(0.5),
        losses=pooled.count(0.0),
        slices={name: _rate(by_slice[name], seed) for name in sorted(by_slice) if name},
    )


def _rate(outcomes: Sequence[Sequence[float]], seed: int) -> SliceRate:
    return SliceRate(win_rate(outcomes), *share_bootstrap(outcomes, seed=seed), len(outcomes))


def score_gain(
    ours: Mapping[str, Sequence[Answer]], theirs: Mapping[str, Sequence[Answer]], *, seed: int = 0
) -> tuple[float, float, float]:
    """How much higher the mean score of ours is on the same prompts, and its 95 % interval (low, high), which resamples
    prompts with their pairs of means; of a verifier that is the gain of the pass rate."""
    gains = [[_mean([a.score for a in ours[p]]) - _mean([b.score for b in theirs[p]])] for p in sorted(ours)]
    return _mean([gain for (gain,) in gains]), *cluster_bootstrap(gains, seed=seed)


def summarize(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of an evaluation, from the lines of its samples.jsonl.

    Win rates of the model "policy" against "sft" (and "base" where it was sampled; null otherwise), their intervals and
    slices; the gain of the mean score over "sft", paired by prompt; the policy's KL to "sft" in nats per response; per
    model the mean score, its parts, words, tokens, and the share of answers that ended by themselves. PrefloopError
    when "policy" or "sft" is missing.
    """
    by_model: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for sample in samples:
        by_model[sample["model"]].append(sample)
    for needed in ("policy", "sft"):
        if needed not in by_model:
            raise PrefloopError(f"Evaluation: its samples hold none of {needed!r}; evaluate a policy and its baseline.")
    slices = {s["prompt"]["id"]: s["prompt"]["slice"] for s in by_model["policy"]}
    answers = {model: _answers(rows) for model, rows in by_model.items()}
    rate = compare(answers["policy"], answers["sft"], slices)
    base = compare(answers["policy"], answers["base"], slices) if "base" in answers else None
    gain, low, high = score_gain(answers["policy"], answers["sft"])
    models = {name: _describe(rows) for name, rows in by_model.items()}
    drifts = [row["kl"] for row in by_model["policy"] if "kl" in row]
    return {
        "win_rate": rate.win_rate,
        "win_rate_low": rate.low,
        "win_rate_high": rate.high,
        "win_rate_length_controlled": rate.length_controlled,
        "win_rate_vs_base": base and base.win_rate,
        "win_rate_vs_base_low": base and base.low,
        "win_rate_vs_base_high": base and base.high,
        "score_gain": gain,
        "score_gain_low": low,
        "score_gain_high": high,
        "n_prompts": rate.n_prompts,
        "wins": rate.wins,
        "ties": rate.ties,
        "losses": rate.losses,
        "slices": {name: asdict(part) for name, part in rate.slices.items()},
        "sft_stopped_share": models["sft"]["stopped_share"],
        "policy_stopped_share": models["policy"]["stopped_share"],
        "kl_to_sft": _mean(drifts) if drifts else None,
        "models": models,
    }


def _answers(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Answer]]:
    answers: defaultdict[str, list[Answer]] = defaultdict(list)
    for row in rows:
        answers[row["prompt"]["id"]].append(Answer(row["score"], len(row["completion"]["text"].split())))
    return answers


def _describe(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row["parts"].items():
            parts[name].append(value)
    completions = [row["completion"] for row in rows]
    return {
        "n": len(rows),
        "score": _mean([row["score"] for row in rows]),
        "words": _mean([len(c["text"].split()) for c in completions]),
        "tokens": _mean([sum(len(s["tokens"]) for s in c["segments"] if s["author"] == "policy") for c in completions]),
        "stopped_share": _mean([c["finish_reason"] == "stop" for c in completions]),
        "parts": {name: _mean(parts[name]) for name in sorted(parts)},
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
