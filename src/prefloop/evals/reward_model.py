"""How well a reward model predicts held-out labels, beside its ceiling and its length controls."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prefloop.data.heldout import distinct_pairs
from prefloop.evals.winrate import outcome
from prefloop.ops.statistics import calibration_slope, expected_calibration_error, share_bootstrap
from prefloop.rewards.rubric import rubric
from prefloop.types import Preference, PrefloopError

BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldoutPair:
    """Two answers to a prompt: share of annotators for a; of each its score, words and, if known, noise-free score."""

    prompt_id: str
    target: float
    score_a: float
    score_b: float
    words_a: int
    words_b: int
    gold_a: float | None = None
    gold_b: float | None = None


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Mean predicted probability, mean observed share and number of the pairs in a bin."""

    predicted: float
    observed: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardReport:
    """Accuracies in 0..1 over the `n_decided` pairs whose annotators did not tie; the rest over all `n` pairs.

    `margin`: mean |score_a - score_b|. `ceiling`: what the noise-free labeler reaches on these labels, None if unknown.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    ceiling: float | None
    longer_wins: float
    shorter_wins: float
    ece: float
    reliability: tuple[ReliabilityBin, ...]
    margin: float
    n: int
    n_decided: int


def heldout_pairs(preferences: Sequence[Preference], scores: Mapping[tuple[str, str], float]) -> list[HeldoutPair]:
    """All pairs of different answers, with the scores of (prompt id, answer id). Noise-free scores are the rubric's for
    simulated annotators and prompts with checks, else None."""
    pairs = distinct_pairs(preferences)
    known = all(p.by_rubric for p in pairs)
    made = []
    for pair in pairs:
        a, b = pair.items
        gold = [s.value for s in rubric([pair.prompt] * 2, pair.items)] if known else [None, None]
        made.append(
            HeldoutPair(
                prompt_id=pair.prompt.id,
                target=1.0 if pair.target is None else pair.target,
                score_a=scores[pair.prompt.id, a.id],
                score_b=scores[pair.prompt.id, b.id],
                words_a=len(a.text.split()),
                words_b=len(b.text.split()),
                gold_a=gold[0],
                gold_b=gold[1],
            )
        )
    return made


def calibration(pairs: Sequence[HeldoutPair]) -> tuple[float, float]:
    """Slope of scores as logits on held-out labels, and its lower bound (ops.statistics.calibration_slope)."""
    prompts: defaultdict[str, list[HeldoutPair]] = defaultdict(list)
    for pair in pairs:
        prompts[pair.prompt_id].append(pair)
    leads = [[pair.score_a - pair.score_b for pair in own] for own in prompts.values()]
    return calibration_slope(leads, [[pair.target for pair in own] for own in prompts.values()])


def measure(pairs: Sequence[HeldoutPair], *, gain: float = 1.0) -> RewardReport:
    """Accuracy, controls and calibration of a reward model's scores on held-out pairs.

    A pair is predicted right when the higher score (or the longer, or the shorter answer) is the one that most
    annotators chose; equal ones count a half. The interval resamples prompts. Calibration is symmetrised: each pair
    counts once, for the answer with the higher score, with sigmoid(|score_a - score_b| / gain) against the share of
    annotators that chose it, in 10 bins of equal mass. `gain`: what raw scores were multiplied by to bring them to
    stds within prompts; 1 when differences of scores are logits. PrefloopError when no pair has a majority.
    """
    decided = [pair for pair in pairs if pair.target != 0.5]
    if not decided:
        raise PrefloopError(f"Reward model: none of {len(pairs)} held-out pairs has a majority; collect more labels.")
    by_prompt: defaultdict[str, list[float]] = defaultdict(list)
    for pair in decided:
        by_prompt[pair.prompt_id].append(_right(pair, pair.score_a, pair.score_b))
    low, high = share_bootstrap([by_prompt[prompt] for prompt in sorted(by_prompt)])
    longer = _share(decided, lambda pair: _right(pair, pair.words_a, pair.words_b))
    predicted = [1 / (1 + math.exp(-abs(pair.score_a - pair.score_b) / gain)) for pair in pairs]
    observed = [pair.target if pair.score_a >= pair.score_b else 1 - pair.target for pair in pairs]
    return RewardReport(
        accuracy=_share(decided, lambda pair: _right(pair, pair.score_a, pair.score_b)),
        accuracy_low=low,
        accuracy_high=high,
        ceiling=_ceiling(decided),
        longer_wins=longer,
        shorter_wins=1 - longer,
        ece=expected_calibration_error(predicted, observed, BINS),
        reliability=_reliability(predicted, observed),
        margin=sum(abs(pair.score_a - pair.score_b) for pair in pairs) / len(pairs),
        n=len(pairs),
        n_decided=len(decided),
    )


def _right(pair: HeldoutPair, a: float, b: float) -> float:
    prefers_a = outcome(a, b)
    return prefers_a if pair.target > 0.5 else 1 - prefers_a


def _share(pairs: Sequence[HeldoutPair], right: Callable[[HeldoutPair], float]) -> float:
    return sum(map(right, pairs)) / len(pairs)


def _ceiling(decided: Sequence[HeldoutPair]) -> float | None:
    gold = [(p, p.gold_a, p.gold_b) for p in decided]
    right = [_right(p, a, b) for p, a, b in gold if a is not None and b is not None]
    return sum(right) / len(right) if len(right) == len(decided) else None


def _reliability(predicted: Sequence[float], observed: Sequence[float]) -> tuple[ReliabilityBin, ...]:
    rank = np.searchsorted(np.sort(predicted), predicted)
    bins: defaultdict[int, list[int]] = defaultdict(list)
    for i, b in enumerate(rank * BINS // len(predicted)):
        bins[int(b)].append(i)
    return tuple(
        ReliabilityBin(
            sum(predicted[i] for i in part) / len(part), sum(observed[i] for i in part) / len(part), len(part)
        )
        for _, part in sorted(bins.items())
    )
