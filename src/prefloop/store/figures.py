"""What a run's labels say of labelers, items and models: agreement, bias, pace, reliability. For the campaign page."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from prefloop.ops.agreement import (
    RaterPairs,
    cohen_kappa,
    fleiss_kappa,
    group_agreement,
    gwet_ac1,
    krippendorff_alpha,
    percent_agreement,
    rater_pairs,
    tally,
)
from prefloop.ops.raters import pair_posterior, side_bias
from prefloop.ops.ratings import bradley_terry, rater_effects
from prefloop.ops.statistics import Figure, share
from prefloop.store.label_table import NONE, STATUSES, Labels, LabelTable

PACE_HOURS = 8.0
"""A labeler's labels per hour are those of so many hours up to the last one."""
REVIEWED = 200
"""Items in the review queue."""
MATRIX = 200
"""Labelers, those with the most labels, of whom pairs are compared."""
_Z = 1.959963984540054
_ONE_MODEL = "no labels compare two models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement on one question; n of a figure: items (or pairs of an item's answers) with two labels or more. Percent:
    share of pairs of labels that prefer the same answer, or both tie; `apart_from_ties`: labels that are ties left out.
    Cohen, Fleiss, Gwet and nominal alpha on the preferred answer, ordinal alpha on strength too."""

    labels: int
    percent: Figure
    apart_from_ties: Figure
    cohen: Figure
    fleiss: Figure
    gwet: Figure
    alpha: Figure
    alpha_ordinal: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerFigures:
    """One labeler. labels: that stand; seconds: median from hand-out to answer; per_hour: over PACE_HOURS. majority:
    agreement with what most others said of an item; left: share of preferences for the left answer; gold: share of
    known answers that the first try met; repeats: share of items shown again that were answered alike; ties: share of
    labels; accuracy: P(prefers the better answer) by pair_posterior; reliability and bias: by rater_effects."""

    name: str
    group: str
    labels: int
    unjudged: int
    seconds: float
    per_hour: float
    majority: Figure
    left: Figure
    gold: Figure
    repeats: Figure
    ties: Figure
    accuracy: float
    reliability: Figure
    bias: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFigures:
    """A declared group of labelers; agreement: of its labels with those of each group, itself included."""

    name: str
    labelers: int
    labels: int
    agreement: Mapping[str, Figure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """An item whose labels differ: mean distance of two of them, 0 (equal), 0.5 (one is a tie) to 1 (opposite)."""

    comparison_id: str
    labels: int
    disagreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignFigures:
    """A run's figures, from the labels that stand: latest versions, not withdrawn, neither gold nor repeats.

    axes, in their order, and slices (on the first axis) by name; ratings (1 to 7) where asked for; pairs of labelers;
    models: Bradley-Terry strength of each checkpoint, logits, mean 0; review: items whose labels differ, the most
    disputed first, and `disputed`, how many there are."""

    run: str
    labels: int
    items: int
    axes: Mapping[str, Agreement]
    slices: Mapping[str, Agreement]
    ratings: Agreement | None
    pairs: RaterPairs
    labelers: Sequence[LabelerFigures]
    groups: Sequence[GroupFigures]
    models: Mapping[str, Figure]
    review: Sequence[Review]
    disputed: int


class Figures:
    """The figures of one run, kept up to date. All methods may be called from any thread."""

    def __init__(self, engine: Engine, run: str) -> None:
        self._table, self._run = LabelTable(engine, run), run
        self._latest: CampaignFigures | None = None
        self._lock = threading.Lock()

    def refresh(self) -> CampaignFigures:
        """Read what is new and, where anything is, compute anew: seconds for a million labels."""
        with self._lock:
            if self._table.read() or self._latest is None:
                self._latest = compute(self._run, self._table.labels())
            return self._latest

    def latest(self) -> CampaignFigures | None:
        """The figures of the last refresh, at once; None before the first."""
        return self._latest


def compute(run: str, labels: Labels) -> CampaignFigures:
    """All figures from scratch. Deterministic."""
    now = _current(labels)
    stands = now & (labels.repeat == 0) & (labels.status <= STATUSES["extra"])
    choices = _choices(labels, stands)
    axes = {name: _axis(labels, choices, stands, place) for place, name in enumerate(labels.config.axes)}
    by_model, effects = _models(labels, choices)
    review, disputed = _review(labels, choices, stands)
    return CampaignFigures(
        run=run,
        labels=int(stands.sum()),
        items=np.unique(labels.item[stands]).size,
        axes=axes,
        slices=_slices(labels, choices),
        ratings=_ratings(labels, stands) if labels.config.ratings else None,
        pairs=_pairs(labels, choices),
        labelers=_labelers(labels, choices, now, stands, effects),
        groups=_groups(labels, choices, stands),
        models=by_model,
        review=review,
        disputed=disputed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choices:
    """Labels of two answers each, one entry a pair: of a ranking, every pair in it. row: place in Labels; unit: the
    pair of answers; strength: above 0 for `one`, below for `other` (places in the comparison); left: 1 where `one`
    stood left, -1 right, 0 in rankings."""

    row: NDArray[np.int64]
    unit: NDArray[np.int64]
    item: NDArray[np.int64]
    rater: NDArray[np.int64]
    strength: NDArray[np.int64]
    one: NDArray[np.int64]
    other: NDArray[np.int64]
    left: NDArray[np.int64]

    def of(self, kept: NDArray[np.bool_]) -> _Choices:
        return _Choices(**{name: getattr(self, name)[kept] for name in self.__slots__})

    @property
    def sign(self) -> NDArray[np.int64]:
        return np.sign(self.strength)


def _current(labels: Labels) -> NDArray[np.bool_]:
    """The latest version of each answer, where it was not withdrawn."""
    key = (labels.item * (len(labels.names) + 1) + labels.labeler) * 2 + labels.repeat
    order = np.lexsort((labels.version, key))
    last = np.ones(order.size, dtype=bool)
    last[:-1] = key[order][1:] != key[order][:-1]
    kept = np.zeros(order.size, dtype=bool)
    kept[order[last]] = True
    return np.asarray(kept & ~labels.withdrawn)


def _choices(labels: Labels, kept: NDArray[np.bool_]) -> _Choices:
    """The preferences on the first axis, and those of rankings, in the rows that are kept."""
    width = labels.ranking.shape[1]
    span = 1 + width * (width - 1) // 2
    parts = []
    rows = np.flatnonzero(kept & (labels.values[:, 0] != NONE))
    left = np.where(labels.first[rows] == NONE, 0, 1 - 2 * labels.first[rows].astype(np.int64))
    parts.append((rows, labels.values[rows, 0].astype(np.int64), 0, 1, 0, left))
    for number, (a, b) in enumerate(combinations(range(width), 2)):
        ranks = labels.ranking[:, [a, b]].astype(np.int64)
        rows = np.flatnonzero(kept & (ranks != NONE).all(axis=1))
        parts.append((rows, np.sign(ranks[rows, 1] - ranks[rows, 0]), a, b, 1 + number, np.zeros_like(rows)))
    row = np.concatenate([part[0] for part in parts])
    sizes = [part[0].size for part in parts]
    one, other, place = (np.repeat([part[k] for part in parts], sizes) for k in (2, 3, 4))
    return _Choices(
        row=row,
        unit=labels.item[row] * span + place,
        item=labels.item[row],
        rater=labels.labeler[row],
        strength=np.concatenate([part[1] for part in parts]),
        one=one,
        other=other,
        left=np.concatenate([part[5] for part in parts]),
    )


def _agreement(
    unit: NDArray[np.int64],
    cluster: NDArray[np.int64],
    rater: NDArray[np.int64],
    said: NDArray[np.int64],
    strength: NDArray[np.int64],
    tie: int | None,
) -> Agreement:
    table = tally(unit, said, cluster)
    return Agreement(
        labels=unit.size,
        percent=percent_agreement(table),
        apart_from_ties=percent_agreement(table, leave_out=tie),
        cohen=_cohen(unit, rater, said),
        fleiss=fleiss_kappa(table),
        gwet=gwet_ac1(table),
        alpha=krippendorff_alpha(table),
        alpha_ordinal=krippendorff_alpha(tally(unit, strength, cluster), "ordinal"),
    )


def _cohen(unit: NDArray[np.int64], rater: NDArray[np.int64], said: NDArray[np.int64]) -> Figure:
    raters = np.unique(rater)
    if raters.size != 2:
        return Figure(value=np.nan, reason=f"{raters.size} labelers, not two")
    one, other = rater == raters[0], rater == raters[1]
    _, a, b = np.intersect1d(unit[one], unit[other], return_indices=True)
    return cohen_kappa(said[one][a], said[other][b])


def _of_choices(choices: _Choices) -> Agreement:
    return _agreement(choices.unit, choices.item, choices.rater, choices.sign, choices.strength, 0)


def _axis(labels: Labels, choices: _Choices, stands: NDArray[np.bool_], axis: int) -> Agreement:
    if axis == 0:
        return _of_choices(choices)
    rows = np.flatnonzero(stands & (labels.values[:, axis] != NONE))
    item, value = labels.item[rows], labels.values[rows, axis].astype(np.int64)
    return _agreement(item, item, labels.labeler[rows], np.sign(value), value, 0)


def _slices(labels: Labels, choices: _Choices) -> dict[str, Agreement]:
    names, code = np.unique(np.array(labels.items.slices, dtype=object).astype(str), return_inverse=True)
    return {str(name): _of_choices(choices.of(code[choices.item] == place)) for place, name in enumerate(names)}


def _ratings(labels: Labels, stands: NDArray[np.bool_]) -> Agreement:
    rows, place = np.nonzero((labels.ratings != NONE) & stands[:, None])
    item, value = labels.item[rows], labels.ratings[rows, place].astype(np.int64)
    unit = item * max(labels.ratings.shape[1], 1) + place
    return _agreement(unit, item, labels.labeler[rows], value, value, None)


def _pairs(labels: Labels, choices: _Choices) -> RaterPairs:
    most = np.argsort(-np.bincount(choices.rater, minlength=len(labels.names)), kind="stable")[:MATRIX]
    shown = choices.of(np.isin(choices.rater, most))
    found = rater_pairs(shown.unit, shown.rater, shown.sign)
    return replace(found, raters=np.array(labels.names, dtype=object)[found.raters])


def _models(labels: Labels, choices: _Choices) -> tuple[dict[str, Figure], dict[int, tuple[Figure, Figure]]]:
    """Strength of each model; reliability and bias of each labeler (by place) who compared two of them."""
    first = labels.items.checkpoints[choices.item, choices.one].astype(np.int64)
    second = labels.items.checkpoints[choices.item, choices.other].astype(np.int64)
    kept = (first != NONE) & (second != NONE) & (first != second)
    if not kept.any():
        return {}, {}
    first, second, choices = first[kept], second[kept], choices.of(kept)
    outcome, rater, left = (choices.sign + 1) / 2, choices.rater, choices.left
    effects = rater_effects(first, second, rater, outcome, left)
    place = np.searchsorted(effects.raters, rater)
    slope, offset = effects.reliability[place], effects.bias[place] * left
    prompts = np.unique(np.array(labels.items.prompts, dtype=str), return_inverse=True)[1]
    cluster = prompts[choices.item]
    found = bradley_terry(first, second, outcome, slope=slope, offset=offset, cluster=cluster)
    times = np.bincount(first, minlength=len(labels.items.models)) + np.bincount(
        second, minlength=len(labels.items.models)
    )
    names = {
        labels.items.models[model]: _within(strength, error, int(times[model]))
        for model, strength, error in zip(found.items, found.strength, found.error, strict=True)
    }
    given = np.bincount(place)
    by_rater = {}
    for k, name in enumerate(effects.raters):
        log = _within(float(np.log(effects.reliability[k])), effects.log_reliability_error[k], int(given[k]))
        reliability = Figure(value=math.exp(log.value), low=math.exp(log.low), high=math.exp(log.high), n=log.n)
        by_rater[int(name)] = reliability, _within(effects.bias[k], effects.bias_error[k], int(given[k]))
    return names, by_rater


def _within(value: float, error: float, n: int) -> Figure:
    return Figure(value=float(value), low=float(value - _Z * error), high=float(value + _Z * error), n=n)


def _labelers(
    labels: Labels,
    choices: _Choices,
    now: NDArray[np.bool_],
    stands: NDArray[np.bool_],
    effects: Mapping[int, tuple[Figure, Figure]],
) -> list[LabelerFigures]:
    size = len(labels.names)
    judged = _choices(labels, now)
    sided = judged.of((judged.left != 0) & (judged.strength != 0))
    counted = np.bincount(labels.labeler[stands], minlength=size)
    unjudged = np.bincount(labels.labeler[now & (labels.status == STATUSES["unjudged"])], minlength=size)
    majority = _by_labeler(choices.rater, *_with_majority(choices), size, "nobody else labeled the same")
    gold, repeats = _gold(labels, size), _repeats(labels, judged, now, size)
    tied = _by_labeler(
        choices.rater, choices.strength == 0, np.ones(choices.unit.size, dtype=bool), size, "there are no labels"
    )
    accuracy = _accuracy(labels, now, stands, size)
    pace = _pace(labels, now, size)
    missing = Figure(value=np.nan, reason=_ONE_MODEL)
    return [
        LabelerFigures(
            name=name,
            group=labels.groups[k],
            labels=int(counted[k]),
            unjudged=int(unjudged[k]),
            seconds=pace[k][0],
            per_hour=pace[k][1],
            majority=majority[k],
            left=side_bias((sided.sign == sided.left)[sided.rater == k]),
            gold=gold[k],
            repeats=repeats[k],
            ties=tied[k],
            accuracy=float(accuracy[k]),
            reliability=effects.get(k, (missing, missing))[0],
            bias=effects.get(k, (missing, missing))[1],
        )
        for k, name in enumerate(labels.names)
    ]


def _by_labeler(
    rater: NDArray[np.int64], good: NDArray[np.bool_], counts: NDArray[np.bool_], size: int, reason: str
) -> list[Figure]:
    n = np.bincount(rater[counts], minlength=size)
    met = np.bincount(rater[counts & good], minlength=size)
    return [share(int(m), int(of), reason) for m, of in zip(met, n, strict=True)]


def _with_majority(choices: _Choices) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each choice is that of most others, and whether most others agree."""
    units = np.unique(choices.unit, return_inverse=True)[1]
    said = choices.sign + 1
    counts = np.bincount(units * 3 + said, minlength=3 * (units.max(initial=-1) + 1)).reshape(-1, 3)[units]
    counts[np.arange(said.size), said] -= 1
    most = counts.max(axis=1, initial=0)
    alone = (counts == most[:, None]).sum(axis=1) == 1
    return counts[np.arange(said.size), said] == most, alone & (most > 0)


def _gold(labels: Labels, size: int) -> list[Figure]:
    """First tries at known answers: right where every pair that the known ranking orders is ordered alike."""
    tries = _choices(labels, (labels.version == 1) & (labels.status == STATUSES["gold"]))
    known = _truth(labels, tries)
    of_two = labels.values[tries.row, 0] != NONE
    missed = (tries.sign != known) & ((known != 0) | of_two)
    return _all_met(labels, tries.of(known != NONE), missed[known != NONE], size, "no known answers were asked for")


def _truth(labels: Labels, choices: _Choices) -> NDArray[np.int64]:
    """What is known of each pair: 1 where `one` is the better, -1 `other`, 0 neither; NONE where nothing is."""
    width = max(map(len, labels.items.gold.values()), default=0)
    ranks = np.full((len(labels.items.ids), max(labels.items.checkpoints.shape[1], width)), NONE, dtype=np.int64)
    for place, ranking in labels.items.gold.items():
        ranks[place, : len(ranking)] = ranking
    one, other = ranks[choices.item, choices.one], ranks[choices.item, choices.other]
    return np.asarray(np.where((one == NONE) | (other == NONE), NONE, np.sign(other - one)))


def _all_met(labels: Labels, choices: _Choices, missed: NDArray[np.bool_], size: int, reason: str) -> list[Figure]:
    """By labeler, the share of rows none of whose pairs are missed."""
    rows, place = np.unique(choices.row, return_inverse=True)
    met = np.bincount(place, missed, minlength=rows.size) == 0
    return _by_labeler(labels.labeler[rows], met, np.ones(rows.size, dtype=bool), size, reason)


def _repeats(labels: Labels, judged: _Choices, now: NDArray[np.bool_], size: int) -> list[Figure]:
    """Items shown again whose every pair was answered as the first time."""
    again = labels.repeat[judged.row] == 1
    first, second = judged.of(~again), judged.of(again)
    keys = [choices.unit * (size + 1) + choices.rater for choices in (first, second)]
    _, a, b = np.intersect1d(keys[0], keys[1], return_indices=True)
    both = np.zeros(second.unit.size, dtype=bool)
    both[b] = True
    differs = np.zeros(second.unit.size, dtype=bool)
    differs[b] = first.sign[a] != second.sign[b]
    return _all_met(labels, second.of(both), differs[both], size, "nothing was shown again")


def _accuracy(labels: Labels, now: NDArray[np.bool_], stands: NDArray[np.bool_], size: int) -> NDArray[np.float64]:
    choices = _choices(labels, stands | (now & (labels.status == STATUSES["gold"])))
    truth = _truth(labels, choices)
    sure = (truth != NONE) & (truth != 0)
    known = dict(zip(choices.unit[sure].tolist(), (truth[sure] > 0).tolist(), strict=True))
    found = pair_posterior(choices.unit, choices.rater, choices.strength, choices.left < 0, known=known)
    accuracy = np.full(size, np.nan)
    accuracy[found.raters] = found.accuracy
    return accuracy


def _pace(labels: Labels, now: NDArray[np.bool_], size: int) -> list[tuple[float, float]]:
    """Median seconds, and labels per hour, of each labeler."""
    rows = np.flatnonzero(now)
    rows = rows[np.argsort(labels.labeler[rows], kind="stable")]
    ends = np.searchsorted(labels.labeler[rows], np.arange(size + 1))
    return [_one_pace(labels.at[rows[a:b]], labels.seconds[rows[a:b]]) for a, b in pairwise(ends)]


def _one_pace(at: NDArray[np.float64], seconds: NDArray[np.float64]) -> tuple[float, float]:
    timed, at = seconds[np.isfinite(seconds)], at[np.isfinite(at)]
    late = at[at >= at.max(initial=0) - PACE_HOURS * 3600]
    hours = float(np.ptp(late)) / 3600 if late.size else 0.0
    return float(np.median(timed)) if timed.size else np.nan, (late.size - 1) / hours if hours > 0 else np.nan


def _groups(labels: Labels, choices: _Choices, stands: NDArray[np.bool_]) -> list[GroupFigures]:
    groups = np.array(labels.groups, dtype=object)
    declared = choices.of(groups[choices.rater].astype(str) != "")
    names, agreement = group_agreement(declared.unit, groups[declared.rater].astype(str), declared.sign, declared.item)
    whose = groups[labels.labeler[stands]]
    return [
        GroupFigures(
            name=str(name),
            labelers=int((groups == name).sum()),
            labels=int((whose == name).sum()),
            agreement={str(other): agreement[a][b] for b, other in enumerate(names)},
        )
        for a, name in enumerate(names)
    ]


def _review(labels: Labels, choices: _Choices, stands: NDArray[np.bool_]) -> tuple[list[Review], int]:
    """The most disputed items, and how many are disputed at all."""
    units, first, place = np.unique(choices.unit, return_index=True, return_inverse=True)
    counts = np.bincount(place * 3 + choices.sign + 1, minlength=3 * units.size).reshape(-1, 3)
    total, (against, tied, forth) = counts.sum(axis=1), counts.T
    apart = against * forth + (against + forth) * tied / 2
    pairs = total * (total - 1) / 2
    item, size = choices.item[first], len(labels.items.ids)
    labeled = np.bincount(labels.item[stands], minlength=size)
    disagreement = np.bincount(item, apart, size) / np.maximum(np.bincount(item, pairs, size), 1)
    order, disputed = np.lexsort((np.arange(size), -labeled, -disagreement)), np.count_nonzero(disagreement)
    return [
        Review(comparison_id=labels.items.ids[k], labels=int(labeled[k]), disagreement=float(disagreement[k]))
        for k in order[: min(disputed, REVIEWED)]
    ], int(disputed)
