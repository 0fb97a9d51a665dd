"""Figures of a reward on comparisons: controls, ceilings, parts, calibration, separability, labels' taste in style."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit, stdtrit

from prefloop.data.heldout import distinct_pairs
from prefloop.evals.ngrams import TfIdf, fit_pairs
from prefloop.evals.probes import PRAISE
from prefloop.evals.reward_figures import LEVEL_EACH, Calibration, Separability, Vote
from prefloop.evals.reward_model import HeldoutPair, heldout_pairs
from prefloop.evals.reward_plan import Scored
from prefloop.evals.winrate import outcome
from prefloop.ops.agreement import percent_agreement, tally
from prefloop.ops.statistics import (
    LEVEL,
    Figure,
    Floats,
    area_under_curve,
    calibration_slope,
    cluster_mean,
    expected_calibration_error,
    logistic_effects,
    share_bootstrap,
)
from prefloop.types import Preference

STYLES: Mapping[str, Callable[[str], float]] = {
    "length": lambda text: len(text.split()),
    "bold": lambda text: text.count("**") / 2,
    "list": lambda text: sum(line.lstrip().startswith(("- ", "* ")) for line in text.split("\n")),
    "exclamation marks": lambda text: text.count("!"),
    "praise and service": lambda text: len(PRAISE.findall(text)),
}
"""Counts of a feature of style in an answer."""


@dataclass(frozen=True, slots=True)
class Known:
    """A comparison of two answers with its scores, in reference stds and, where the reward knows them, in logits."""

    pair: HeldoutPair
    preference: Preference
    lead: float
    logit: float | None
    votes: tuple[Vote, ...]

    @property
    def right(self) -> float:
        """1 where the higher score is the one that most annotators chose, 0.5 where scores are equal."""
        return agrees(self.lead, self.pair.target)

    @property
    def prompt(self) -> str:
        return self.pair.prompt_id

    @property
    def longer(self) -> float:
        return math.log((1 + self.pair.words_a) / (1 + self.pair.words_b))


def known_pairs(
    preferences: Sequence[Preference], scored: Sequence[Scored], votes: Sequence[Vote], spread: float
) -> list[Known]:
    made = {(one.ask.prompt.id, one.ask.completion.id): one for one in scored}
    cast: defaultdict[tuple[str, str], list[Vote]] = defaultdict(list)
    for vote in votes:
        cast[vote.items].append(vote)
        turned = vote.items[::-1]
        cast[turned].append(replace(vote, items=turned, first=1 - vote.first))
    abouts = heldout_pairs(preferences, {key: one.score for key, one in made.items()})
    known = []
    for pair, about in zip(distinct_pairs(preferences), abouts, strict=True):
        a, b = (made[pair.prompt.id, item.id] for item in pair.items)
        logit = a.raw - b.raw if a.raw is not None and b.raw is not None else None
        own = tuple(cast.pop((pair.items[0].id, pair.items[1].id), ()))  # of rankings, the first of equal pairs has all
        known.append(Known(about, pair, (a.score - b.score) / spread, logit, own))
    return known


def control_hits(training: Sequence[Preference], decided: Sequence[Known], vectors: TfIdf) -> dict[str, list[float]]:
    """For each control and pair: 1 where it is right, 0.5 where it cannot say."""
    pairs = distinct_pairs(training)
    a, b = (vectors([pair.items[side].text for pair in pairs]) for side in (0, 1))
    weights = fit_pairs(a - b, np.array([1.0 if pair.target is None else pair.target for pair in pairs]))
    a, b = (vectors([known.preference.items[side].text for known in decided]) for side in (0, 1))
    words = [float(known.pair.words_a - known.pair.words_b) for known in decided]
    leads = {"longer wins": words, "shorter wins": [-w for w in words], "TF-IDF pairs": ((a - b) @ weights).tolist()}
    return {
        name: [agrees(lead, known.pair.target) for lead, known in zip(own, decided, strict=True)]
        for name, own in leads.items()
    }


def vote_agreement(voted: Sequence[tuple[Known, Vote]]) -> Figure:
    units = [f"{known.preference.items[0].id} {known.preference.items[1].id}" for known, _ in voted]
    return percent_agreement(tally(units, [vote.first > 0.5 for _, vote in voted]))


def vote_ceiling(agreement: Figure) -> Figure:
    """What a reward without fault reaches against single votes, if each errs with probability e: agreement is
    (1 - e)^2 + e^2, so 1 - e = (1 + sqrt(2 agreement - 1)) / 2."""
    if not agreement.value >= 0.5:
        return Figure(value=math.nan, reason=agreement.reason or "annotators agree no more than by chance")
    value, low, high = (
        (1 + math.sqrt(max(0.0, 2 * x - 1))) / 2 for x in (agreement.value, agreement.low, agreement.high)
    )
    return Figure(value=value, low=low, high=high, n=agreement.n)


def accuracies(decided: Sequence[Known], voted: Sequence[tuple[Known, Vote]]) -> dict[str, dict[str, Figure]]:
    """Accuracy by what is known of pairs, and against single votes by what is known of annotators."""
    longer = {True: "the longer one is preferred", False: "the shorter one is preferred"}
    sided = [known for known in decided if known.longer]
    ways: dict[str, list[tuple[str, str, float]]] = {
        "strength": [(_strength(known), known.prompt, known.right) for known in decided],
        "slice": [(known.preference.prompt.slice, known.prompt, known.right) for known in decided],
        "longer answer": [(longer[agrees(k.longer, k.pair.target) == 1], k.prompt, k.right) for k in sided],
        "annotator": [(vote.annotator, known.prompt, agrees(known.lead, vote.first)) for known, vote in voted],
        "group": [(vote.group, known.prompt, agrees(known.lead, vote.first)) for known, vote in voted],
    }
    found: dict[str, dict[str, Figure]] = {}
    for way, rows in ways.items():
        names = sorted({name for name, _, _ in rows if name})
        if names:
            found[way] = {name: pooled([(prompt, hit) for own, prompt, hit in rows if own == name]) for name in names}
    return found


def _strength(known: Known) -> str:
    given = [vote.strength for vote in known.votes if vote.strength is not None]
    if given:
        return f"strength {round(sum(given) / len(given))} of 4"
    return "all annotators agree" if known.pair.target in (0.0, 1.0) else "annotators differ"


def easy_and_hard(decided: Sequence[Known]) -> tuple[list[Known], list[Known]]:
    """Pairs whose annotators felt strongly (3 or 4 of 4) or, without strengths, all agreed; and the others."""
    strong = ("strength 3 of 4", "strength 4 of 4", "all annotators agree")
    easy = [known for known in decided if _strength(known) in strong]
    hard = [known for known in decided if _strength(known) not in strong]
    return (easy, hard) if hard else ([], [])


def separability(pairs: Sequence[Known]) -> Separability:
    margins = np.array([known.lead if known.pair.target > 0.5 else -known.lead for known in pairs])
    sides = [sorted((k.pair.score_a, k.pair.score_b), reverse=k.right == 1) for k in pairs]
    std = float(margins.std())
    auc = area_under_curve([better for better, _ in sides], [worse for _, worse in sides])
    return Separability(float(margins.mean()) / std if std > 0 else math.nan, auc, len(pairs))


def fitted_calibration(pairs: Sequence[Known]) -> Calibration:
    """Of probabilities sigmoid(difference): of logits where the reward knows them, else of scores in reference stds."""
    logits = all(known.logit is not None for known in pairs)
    leads = [known.logit if known.logit is not None and logits else known.lead for known in pairs]
    prompts = list(by_key((known.prompt, i) for i, known in enumerate(pairs)).values())
    targets = [known.pair.target for known in pairs]

    def slope(groups: Sequence[Sequence[int]]) -> tuple[float, float]:
        of = ([[values[i] for i in own] for own in groups] for values in (leads, targets))
        return calibration_slope(next(of), next(of), LEVEL_EACH)

    whole, low = slope(prompts)
    halves = (prompts[::2], prompts[1::2] or prompts)
    fitted_on = [slope(half)[0] for half in halves]
    cross = {i: fitted_on[1 - half] for half in (0, 1) for own in halves[half] for i in own}
    plain = _fit(expit(np.array(leads)), targets)
    fitted = _fit(expit(np.array([cross[i] * lead for i, lead in enumerate(leads)])), targets)
    return Calibration(
        logits=logits,
        slope=Figure(value=whole, low=low, high=2 * whole - low, n=len(pairs)),
        temperature=1 / whole if whole > 0 else math.nan,
        ece=plain[0],
        brier=plain[1],
        log_loss=plain[2],
        ece_fitted=fitted[0],
        brier_fitted=fitted[1],
        log_loss_fitted=fitted[2],
    )


def _fit(predicted: Floats, targets: Sequence[float]) -> tuple[float, float, float]:
    """ECE of the favourite's probability, Brier score and log-loss."""
    observed = np.array(targets)
    favourite = np.where(predicted >= 0.5, predicted, 1 - predicted)
    chosen = np.where(predicted >= 0.5, observed, 1 - observed)
    safe = np.clip(predicted, 1e-12, 1 - 1e-12)
    loss = -np.mean(observed * np.log(safe) + (1 - observed) * np.log(1 - safe))
    return expected_calibration_error(favourite, chosen), float(np.mean((predicted - observed) ** 2)), float(loss)


def vote_shares(pairs: Sequence[Known]) -> list[tuple[float, float, int]]:
    """(share of votes for an answer, mean probability that the scores give it at the fitted temperature, pairs)."""
    groups = list(by_key((known.prompt, known) for known in pairs).values())
    slope, _ = calibration_slope(
        [[k.lead for k in own] for own in groups], [[k.pair.target for k in own] for own in groups]
    )
    found: defaultdict[float, list[float]] = defaultdict(list)
    for known in pairs:
        p = float(expit(slope * known.lead))
        found[round(known.pair.target, 3)].append(p)
        found[round(1 - known.pair.target, 3)].append(1 - p)
    return [(share, sum(own) / len(own), len(own)) for share, own in sorted(found.items())]


def length_excess(pairs: Sequence[Known]) -> Figure:
    """-b_length / b_score of the labels' regression on both, by the delta method: what scores pay for a std of
    difference in (log) words that labels take back."""
    spread = float(np.std([known.longer for known in pairs]))
    groups = list(by_key((known.prompt, known) for known in pairs).values())
    if not spread or len(groups) < 2:
        return Figure(value=math.nan, reason="all answers are equally long")
    features = [[(known.lead, known.longer / spread) for known in own] for own in groups]
    (b, c), covariance = logistic_effects(features, [[known.pair.target for known in own] for own in groups])
    t = float(stdtrit(len(groups) - 1, (1 + LEVEL_EACH) / 2))
    if not b > t * math.sqrt(covariance[0, 0]):
        return Figure(value=math.nan, reason="scores do not surely predict these labels")
    gradient = np.array([c / b**2, -1 / b])
    half = t * math.sqrt(gradient @ covariance @ gradient)
    return Figure(value=-c / b, low=-c / b - half, high=-c / b + half, n=len(groups))


def label_tastes(pairs: Sequence[Known]) -> dict[str, Figure]:
    """Logits of preference that the labels give a std of difference in each feature of style, the others being equal;
    features in which no two answers differ are left out."""
    leads = {name: [_counted(known, count) for known in pairs] for name, count in STYLES.items()}
    spreads = {name: spread for name, own in leads.items() if (spread := float(np.std(own))) > 0}
    rows = zip(*([lead / spreads[name] for lead in leads[name]] for name in spreads), strict=True)
    features = list(by_key(zip((known.prompt for known in pairs), rows, strict=True)).values()) if spreads else []
    if len(features) < 2:
        return {}
    effects, covariance = logistic_effects(features, over_prompts(pairs, lambda known: known.pair.target))
    halves = float(stdtrit(len(features) - 1, (1 + LEVEL) / 2)) * np.sqrt(np.diag(covariance))
    return {
        name: Figure(value=float(value), low=float(value - half), high=float(value + half), n=len(features))
        for name, value, half in zip(spreads, effects, halves, strict=True)
    }


def _counted(known: Known, count: Callable[[str], float]) -> float:
    a, b = (math.log1p(count(item.text)) for item in known.preference.items)
    return a - b


def group_leads(voted: Sequence[tuple[Known, Vote]]) -> dict[str, Figure]:
    """Accuracy against the votes of each declared group less that against all other groups' votes."""
    names = sorted({vote.group for _, vote in voted if vote.group})
    rows = [(vote.group, known.prompt, agrees(known.lead, vote.first)) for known, vote in voted if vote.group]
    level = 1 - (1 - LEVEL_EACH) / max(1, len(names))
    found = {}
    for name in names if len(names) > 1 else ():
        own, rest = (
            list(by_key((prompt, hit) for group, prompt, hit in rows if (group == name) == inside).values())
            for inside in (True, False)
        )
        found[name] = difference(own, rest, level)
    return found


def agrees(lead: float, target: float) -> float:
    prefers_a = outcome(lead, 0.0)
    return prefers_a if target > 0.5 else 1 - prefers_a


def by_key(rows: Iterable[tuple[str, Any]]) -> dict[str, list[Any]]:
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for key, value in rows:
        found[key].append(value)
    return found


def over_prompts(pairs: Sequence[Known], of: Callable[[Known], float]) -> list[list[float]]:
    return list(by_key((known.prompt, of(known)) for known in pairs).values())


def pooled(rows: Sequence[tuple[str, float]], reason: str = "") -> Figure:
    """Mean of (prompt, value), with an interval that resamples prompts."""
    if not rows:
        return Figure(value=math.nan, reason=reason)
    groups = by_key(rows)
    low, high = share_bootstrap([groups[prompt] for prompt in sorted(groups)])
    return Figure(value=sum(value for _, value in rows) / len(rows), low=low, high=high, n=len(rows))


def difference(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]], level: float = LEVEL_EACH) -> Figure:
    """Mean over prompts of one less that of the other, the two taken as independent."""
    a, b = cluster_mean(one, level), cluster_mean(other, level)
    if a.reason or b.reason:
        return Figure(value=math.nan, n=min(a.n, b.n), reason=a.reason or b.reason)
    half = math.hypot(a.high - a.value, b.high - b.value)
    value = a.value - b.value
    return Figure(value=value, low=value - half, high=value + half, n=min(a.n, b.n))
