"""Simulated people: noisy comparisons of answers whose gold scores are known, with biases that an audit can find.

A simulated annotator is a Bradley-Terry chooser (Bradley & Terry 1952) whose log-odds are the sign of the gold
difference times the logit of an accuracy, plus two biases that people have: for what is shown first, for the longer.
"""

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from prefloop.types import Comparison, Judgment, PrefloopError, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotator:
    """A simulated person. `accuracy` in (0.5, 1]: share of choices that follow the gold scores, without biases.

    `side_bias`: logit added for the item shown first. `length_bias`: logit for the longer one, times
    tanh(difference in words / 30). Raises PrefloopError where accuracy is out of range or a bias is not finite.
    """

    name: str
    accuracy: float
    side_bias: float = 0.0
    length_bias: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.5 < self.accuracy <= 1.0:
            raise PrefloopError(f"Annotator {self.name}: accuracy {self.accuracy} must lie above 0.5 and at most at 1.")
        if not (math.isfinite(self.side_bias) and math.isfinite(self.length_bias)):
            raise PrefloopError(f"Annotator {self.name}: side_bias and length_bias must be finite logits.")


def preference_probability(annotator: Annotator, gold_difference: float, word_difference: int, a_first: bool) -> float:
    """Probability that `annotator` prefers a to b; both differences are a - b, a gold one below 1e-9 is a tie."""
    sign = 0.0 if abs(gold_difference) < 1e-9 else math.copysign(1.0, gold_difference)
    if sign and annotator.accuracy == 1.0:
        return 0.5 + 0.5 * sign
    logit = sign * math.log(annotator.accuracy / (1.0 - annotator.accuracy)) if sign else 0.0
    logit += annotator.side_bias * (1.0 if a_first else -1.0) + annotator.length_bias * math.tanh(
        word_difference / 30.0
    )
    return 0.5 + 0.5 * math.tanh(logit / 2.0)


def judge(annotator: Annotator, comparison: Comparison, scores: Sequence[Score]) -> Judgment:
    """The annotator's ranking of a comparison's items, given their gold `scores` in the same order.

    The items are shown in a random order. Each of the K(K-1)/2 pairs is chosen once by `preference_probability`; items
    are ranked by pairs won (Copeland), equal counts in a random order, so that the ranking has no ties and K = 2 is one
    choice. All draws come from sha256 of (seed, name, comparison.id), never from what was judged before.
    Raises PrefloopError unless there is one score for each item.
    """
    k = len(comparison.items)
    if len(scores) != k:
        raise PrefloopError(f"Comparison {comparison.id}: {len(scores)} scores for {k} items; pass one for each.")
    key = repr((annotator.seed, annotator.name, comparison.id)).encode()
    rng = random.Random(int.from_bytes(hashlib.sha256(key).digest()))
    shown = rng.sample(range(k), k)
    words = [len(item.text.split()) for item in comparison.items]
    wins = [0] * k
    for a, b in combinations(shown, 2):
        p = preference_probability(annotator, scores[a].value - scores[b].value, words[a] - words[b], True)
        wins[a if rng.random() < p else b] += 1
    best_first = sorted(range(k), key=lambda item: (-wins[item], rng.random()))
    return Judgment(
        comparison_id=comparison.id,
        annotator=annotator.name,
        ranking=tuple(best_first.index(item) for item in range(k)),
        shown_order=tuple(shown),
    )
