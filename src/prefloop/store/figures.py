"""How far the labels of a campaign can be trusted: agreement, labelers, groups, what is disputed.

Labels are read once, in narrow columns, and kept in memory; new ones are added to them. The figures are those of
`ops.agreement` and `ops.raters` over each labeler's latest answers that stand."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Engine, select

from prefloop.ops.agreement import (
    RaterPairs,
    fleiss_kappa,
    gwet_ac1,
    krippendorff_alpha,
    percent_agreement,
    rater_pairs,
    tally,
)
from prefloop.ops.raters import pair_posterior, side_bias
from prefloop.ops.statistics import Figure, share
from prefloop.store import db
from prefloop.store.label_rows import (
    ABSENT,
    KINDS,
    Floats,
    Ints,
    Reader,
    Rows,
    first_versions,
    latest_versions,
    picked,
)
from prefloop.store.labels import STANDING
from prefloop.store.tables import accounts

DISPUTED = 200
"""Items in the review queue at most."""
_BUCKETS = 24
_RESAMPLES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """On which of two answers is better. `ordinal`: alpha over strengths, from much better to much worse."""

    percent: Figure
    without_ties: Figure
    alpha: Figure
    ordinal: Figure
    fleiss: Figure
    gwet: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Labeler:
    """`agreement`: share of pairs with another's label of the same item that are equal. `left`: share of preferences
    that are for the left answer. `gold`: share of known answers met, by the first answer. `repeats`: share of items
    that were said the same of when they came back swapped. `accuracy`: probability of preferring the better answer
    (`pair_posterior`), None where there is nothing to tell it by. `seconds`: the median; `per_hour`: labels, from the
    first to the last."""

    name: str
    group: str
    labels: int
    seconds: float | None
    per_hour: float
    agreement: Figure
    left: Figure
    gold: Figure
    repeats: Figure
    ties: Figure
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disputed:
    """An item whose labels differ: share of pairs of them that are equal, and how many there are."""

    comparison_id: str
    agreement: float
    labels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Labels, and agreement of the items whose last label fell, between two times (seconds since 1970)."""

    start: float
    end: float
    labels: int
    agreement: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignFigures:
    """As of the judgment with `number`. groups: agreement between labelers of two groups, or of one."""

    number: int
    labels: int
    axes: Mapping[str, Agreement]
    slices: Mapping[str, Agreement]
    labelers: Sequence[Labeler]
    pairs: RaterPairs
    groups: Mapping[tuple[str, str], Figure]
    disputed: Sequence[Disputed]
    over_time: Sequence[Span]


class Figures:
    """The figures of one run. Threads may share it."""

    def __init__(self, engine: Engine, run: str) -> None:
        self._engine, self._reader = engine, Reader(run)
        self._lock = threading.Lock()
        self._counted = -1
        self._latest: CampaignFigures | None = None

    def latest(self) -> CampaignFigures | None:
        """The figures as last computed; None before the first time."""
        return self._latest

    def refresh(self) -> CampaignFigures:
        """Read what is new, and compute the figures anew where there is something."""
        with self._lock:
            with db.transaction(self._engine, write=False) as connection:
                self._reader.load(connection)
                people = connection.execute(select(accounts.c.name, accounts.c.group))
                groups = {row.name: row.group for row in people}
            if self._latest is None or self._counted != self._reader.count:
                self._latest, self._counted = _compute(self._reader, groups), self._reader.count
            return self._latest


def _compute(reader: Reader, groups: Mapping[str, str]) -> CampaignFigures:
    rows, names, where = reader.rows, reader.raters, reader.items
    last = latest_versions(rows)
    standing = picked(last, last.kind < len(STANDING))
    sign = np.sign(standing.choice)
    pairs = rater_pairs(standing.unit, standing.rater, sign, resamples=_RESAMPLES)
    return CampaignFigures(
        number=reader.number,
        labels=int(np.unique(standing.number).size),
        axes={name: _agreement(standing, k) for k, name in enumerate(reader.axes)},
        slices=_by_slice(standing, where),
        labelers=_labelers(rows, last, standing, pairs, names, groups),
        pairs=pairs,
        groups=_by_group(pairs, names, groups),
        disputed=_disputed(standing, sign, where),
        over_time=_over_time(standing, sign),
    )


def _agreement(rows: Rows, axis: int = 0) -> Agreement:
    value = rows.axes[:, axis]
    told = value != ABSENT
    unit, value = rows.unit[told], value[told]
    side, strength = tally(unit, np.sign(value)), tally(unit, value)
    return Agreement(
        percent=percent_agreement(side, resamples=_RESAMPLES),
        without_ties=percent_agreement(side, leave_out=0, resamples=_RESAMPLES),
        alpha=krippendorff_alpha(side, resamples=_RESAMPLES),
        ordinal=krippendorff_alpha(strength, "ordinal", resamples=_RESAMPLES),
        fleiss=fleiss_kappa(side, resamples=_RESAMPLES),
        gwet=gwet_ac1(side, resamples=_RESAMPLES),
    )


def _by_slice(rows: Rows, where: Mapping[int, tuple[str, str]]) -> dict[str, Agreement]:
    items, place = np.unique(rows.item, return_inverse=True)
    slices = np.array([where[int(item)][1] for item in items], dtype=str)
    names = sorted(set(slices.tolist()))
    return {name: _agreement(picked(rows, slices[place] == name)) for name in names} if len(names) > 1 else {}


def _labelers(
    rows: Rows, last: Rows, standing: Rows, pairs: RaterPairs, names: Sequence[str], groups: Mapping[str, str]
) -> list[Labeler]:
    gold, repeated = first_versions(rows), _consistent(last)
    gold = picked(gold, (gold.gold != ABSENT) & (gold.kind == KINDS.index("gold")))
    met = np.sign(gold.choice) == gold.gold
    accuracy = _accuracy(standing)
    made = []
    for rater, name in enumerate(names):
        mine = picked(standing, standing.rater == rater)
        sided = mine.choice != 0
        own = gold.rater == rater
        again = repeated.get(rater, (0, 0))
        hours = max(float(np.ptp(mine.at)) / 3600, 1 / 60) if mine.at.size else 1.0
        made.append(
            Labeler(
                name=name,
                group=groups.get(name, ""),
                labels=int(np.unique(mine.number).size),
                seconds=float(np.nanmedian(mine.seconds)) if np.isfinite(mine.seconds).any() else None,
                per_hour=mine.number.size / hours,
                agreement=_with_others(pairs, rater),
                left=side_bias(((mine.choice > 0) != mine.turned)[sided]),
                gold=share(int(met[own].sum()), int(own.sum()), "no item with a known answer was labeled"),
                repeats=share(*again, "no item came back"),
                ties=share(int((~sided).sum()), sided.size),
                accuracy=accuracy.get(rater),
            )
        )
    return made


def _with_others(pairs: RaterPairs, rater: int) -> Figure:
    place = np.flatnonzero(pairs.raters == rater)
    shared = pairs.shared[place[0]] * (pairs.raters != rater) if place.size else np.zeros(0)
    equal = np.nansum(pairs.agreement[place[0]] * shared) if place.size else 0.0
    return share(float(equal), int(shared.sum()), "nobody else labeled the same items")


def _consistent(last: Rows) -> dict[int, tuple[int, int]]:
    """By rater: of how many items the same was said again, and how many came back."""
    back = picked(last, last.repeat > 0)
    once = picked(last, (last.repeat == 0) & np.isin(last.unit, back.unit))
    keys = zip(once.rater.tolist(), once.unit.tolist(), strict=True)
    said = dict(zip(keys, np.sign(once.choice).tolist(), strict=True))
    found: dict[int, tuple[int, int]] = {}
    for rater, unit, choice in zip(back.rater.tolist(), back.unit.tolist(), np.sign(back.choice).tolist(), strict=True):
        if (rater, unit) in said:
            same, total = found.get(rater, (0, 0))
            found[rater] = (same + (said[rater, unit] == choice), total + 1)
    return found


def _accuracy(rows: Rows) -> dict[int, float]:
    """Of raters who share an item with another one."""
    counts = np.bincount(np.unique(rows.unit, return_inverse=True)[1]) if rows.unit.size else np.zeros(0)
    several = np.flatnonzero(counts > 1)
    if not several.size:
        return {}
    shared = np.isin(np.unique(rows.unit, return_inverse=True)[1], several)
    some = picked(rows, shared)
    found = pair_posterior(some.unit, some.rater, some.choice, some.turned)
    return dict(zip(found.raters.tolist(), found.accuracy.tolist(), strict=True))


def _by_group(pairs: RaterPairs, names: Sequence[str], groups: Mapping[str, str]) -> dict[tuple[str, str], Figure]:
    own = [groups.get(names[rater], "") for rater in pairs.raters.tolist()]
    sums: dict[tuple[str, str], tuple[float, int]] = {}
    for a in range(len(own)):
        for b in range(a + 1, len(own)):
            if count := int(pairs.shared[a, b]):
                first, second = sorted((own[a], own[b]))
                equal, total = sums.get((first, second), (0.0, 0))
                sums[first, second] = (equal + float(pairs.agreement[a, b]) * count, total + count)
    return {key: share(equal, total) for key, (equal, total) in sorted(sums.items())} if len(set(own)) > 1 else {}


def _unit_agreement(rows: Rows, sign: Ints) -> tuple[Ints, Ints, Floats, Floats]:
    """Units with two labels or more: item, labels, share of equal pairs of labels, time of the last label."""
    units, first, place = np.unique(rows.unit, return_index=True, return_inverse=True)
    votes = np.zeros((units.size, 3))
    np.add.at(votes, (place, sign + 1), 1)
    total = votes.sum(axis=1)
    latest = np.zeros(units.size)
    np.maximum.at(latest, place, rows.at)
    several = total > 1
    equal = (votes * (votes - 1)).sum(axis=1)[several] / (total * (total - 1))[several]
    return rows.item[first][several], total[several].astype(np.int64), equal, latest[several]


def _disputed(rows: Rows, sign: Ints, where: Mapping[int, tuple[str, str]]) -> list[Disputed]:
    items, labels, equal, _ = _unit_agreement(rows, sign)
    order = np.lexsort((items, -labels, equal))
    found: dict[int, Disputed] = {}
    for place in order.tolist():
        item = int(items[place])
        if equal[place] >= 1 or len(found) == DISPUTED:
            break
        made = Disputed(comparison_id=where[item][0], agreement=float(equal[place]), labels=int(labels[place]))
        found.setdefault(item, made)
    return list(found.values())


def _over_time(rows: Rows, sign: Ints) -> list[Span]:
    if not rows.at.size:
        return []
    edges = np.linspace(rows.at.min(), rows.at.max() + 1e-3, _BUCKETS + 1)
    _, _, equal, latest = _unit_agreement(rows, sign)
    labels = np.histogram(rows.at, edges)[0]
    units, agreed = np.histogram(latest, edges)[0], np.histogram(latest, edges, weights=equal)[0]
    return [
        Span(
            start=float(edges[k]),
            end=float(edges[k + 1]),
            labels=int(labels[k]),
            agreement=float(agreed[k] / units[k]) if units[k] else None,
        )
        for k in range(_BUCKETS)
    ]
