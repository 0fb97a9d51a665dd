"""How far the labels of a campaign can be trusted: agreement, labelers, groups, what is disputed.

Labels are read once, in narrow columns, and kept in memory; new ones are added to them. The figures are those of
`ops.agreement` and `ops.raters` over each labeler's latest answers that stand. What a reviewer said of an item after
having seen the labels of others is a label of theirs, and has no part in agreement, sides, accuracy and disputes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sqlalchemy import Connection, Engine, select

from prefloop.ops.agreement import (
    RaterPairs,
    fleiss_kappa,
    gwet_ac1,
    krippendorff_alpha,
    one_hot,
    percent_agreement,
    rater_pairs,
    tally,
)
from prefloop.ops.raters import SIDELESS, pair_posterior
from prefloop.ops.statistics import Figure, share
from prefloop.store import db
from prefloop.store.label_rows import (
    ABSENT,
    KINDS,
    PAIRS,
    Floats,
    Ints,
    Reader,
    Rows,
    first_versions,
    latest_versions,
    picked,
)
from prefloop.store.labels import STANDING
from prefloop.store.tables import accounts, campaigns, judgments

DISPUTED = 200
"""Items in the review queue at most."""
_BUCKETS = 24
_SHORTEST = 60.0  # seconds of a bucket, and of the time that a labeler's pace is measured over
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
    that are for the left answer, where it is known which stood there. `gold`: share of known answers met, by the first
    answer. `repeats`: share of items that were said the same of when they came back swapped. A ranking counts once in
    each, by the share of its pairs. `accuracy`: probability of preferring the better answer (`pair_posterior`), None
    where there is nothing to tell it by. `seconds`: the median; `per_hour`: labels whose time is known, from the first
    to the last, None where there are none."""

    name: str
    group: str
    labels: int
    seconds: float | None
    per_hour: float | None
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
        self._engine, self._run, self._reader = engine, run, Reader(run)
        self._lock = threading.Lock()
        self._counted = -1
        self._asked: tuple[int | None, Mapping[str, str]] = (None, {})
        self._latest: CampaignFigures | None = None

    def latest(self) -> CampaignFigures | None:
        """The figures as last computed; None before the first time."""
        return self._latest

    def stale(self) -> bool:
        """Whether a label came, or the campaign or somebody's group changed, since the figures were computed."""
        table = judgments
        newest = select(table.c.number).where(table.c.run == self._run).order_by(table.c.number.desc()).limit(1)
        version = select(campaigns.c.version).where(campaigns.c.run == self._run)
        with db.transaction(self._engine, write=False) as connection:
            number = connection.execute(newest).scalar() or 0
            asked = connection.execute(version).scalar(), _groups(connection)
        return self._latest is None or number > self._latest.number or asked != self._asked

    def refresh(self) -> CampaignFigures:
        """Read what is new, and compute the figures anew where there is something."""
        with self._lock:
            with db.transaction(self._engine, write=False) as connection:
                self._reader.load(connection)
                asked = self._reader.version, _groups(connection)
            if self._latest is None or (self._counted, self._asked) != (self._reader.count, asked):
                self._latest, self._counted = _compute(self._reader, asked[1]), self._reader.count
                self._asked = asked
            return self._latest


def _groups(connection: Connection) -> dict[str, str]:
    rows = connection.execute(select(accounts.c.name, accounts.c.group))
    return {row.name: row.group for row in rows}


def _compute(reader: Reader, groups: Mapping[str, str]) -> CampaignFigures:
    rows, names, where = reader.rows, reader.raters, reader.items
    last = latest_versions(rows)
    standing = picked(last, last.kind < len(STANDING))
    blind = picked(standing, ~standing.reviewed)
    sign = np.sign(blind.choice)
    pairs = rater_pairs(blind.unit, blind.rater, sign, resamples=_RESAMPLES)
    shared = _shared_items(blind, pairs)
    return CampaignFigures(
        number=reader.number,
        labels=int(np.unique(standing.number).size),
        axes={name: _agreement(blind, k) for k, name in enumerate(reader.axes)},
        slices=_by_slice(blind, where),
        labelers=_labelers(rows, last, standing, blind, pairs, shared, names, groups),
        pairs=pairs,
        groups=_by_group(pairs, shared, names, groups),
        disputed=_disputed(blind, sign, where),
        over_time=_over_time(standing, blind, sign),
    )


def _agreement(rows: Rows, axis: int = 0) -> Agreement:
    value = rows.axes[:, axis]
    told = value != ABSENT
    unit, value = rows.unit[told], value[told]
    whole = unit // PAIRS if (unit % PAIRS).any() else None  # the pairs of a ranking are drawn together
    side, strength = tally(unit, np.sign(value), whole), tally(unit, value, whole)
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
    rows: Rows,
    last: Rows,
    standing: Rows,
    blind: Rows,
    pairs: RaterPairs,
    shared: Ints,
    names: Sequence[str],
    groups: Mapping[str, str],
) -> list[Labeler]:
    gold, back = first_versions(rows), _said_again(last)
    gold = picked(gold, (gold.gold != ABSENT) & (gold.kind == KINDS.index("gold")))
    accuracy = _accuracy(blind)
    made = []
    for rater, name in enumerate(names):
        mine = picked(standing, standing.rater == rater)
        said = picked(blind, blind.rater == rater)
        sided = picked(said, (said.choice != 0) & (said.turned != SIDELESS))
        known = picked(gold, gold.rater == rater)
        again, same = back.get(rater, ([], []))
        made.append(
            Labeler(
                name=name,
                group=groups.get(name, ""),
                labels=int(np.unique(mine.number).size),
                seconds=float(np.nanmedian(mine.seconds)) if np.isfinite(mine.seconds).any() else None,
                per_hour=_per_hour(mine),
                agreement=_with_others(pairs, shared, rater),
                left=_share(sided.number, (sided.choice > 0) != (sided.turned > 0), "there are no preferences"),
                gold=_share(
                    known.number, np.sign(known.choice) == known.gold, "no item with a known answer was labeled"
                ),
                repeats=_share(again, same, "no item came back"),
                ties=_share(said.number, said.choice == 0, "there are no labels"),
                accuracy=accuracy.get(rater),
            )
        )
    return made


def _share(label: ArrayLike, holds: ArrayLike, reason: str) -> Figure:
    """Of how many labels something holds; of one with several pairs it holds by the share of them."""
    labels, place = np.unique(np.asarray(label, dtype=np.int64), return_inverse=True)
    shares = np.bincount(place, np.asarray(holds, dtype=float), labels.size) / np.bincount(place, minlength=labels.size)
    return share(float(shares.sum()), labels.size, reason)


def _per_hour(mine: Rows) -> float | None:
    timed = picked(mine, mine.at > 0)
    if not timed.at.size:
        return None
    return np.unique(timed.number).size / max(float(np.ptp(timed.at)), _SHORTEST) * 3600


def _shared_items(rows: Rows, pairs: RaterPairs) -> Ints:
    """[L, L] Of how many items two raters labeled the same pairs of answers, in the order of `pairs.raters`."""
    both = np.unique(np.stack([rows.item, rows.rater]), axis=1)
    item, rater = (np.unique(one, return_inverse=True)[1] for one in both)
    given = one_hot(item, rater, pairs.raters.size)
    return np.asarray((given.T @ given).toarray()).astype(np.int64)


def _with_others(pairs: RaterPairs, shared: Ints, rater: int) -> Figure:
    place = np.flatnonzero(pairs.raters == rater)
    if not place.size:
        return share(0, 0, "nobody else labeled the same items")
    others = pairs.raters != rater
    equal = np.nansum(pairs.agreement[place[0]] * shared[place[0]] * others)
    return share(float(equal), int((shared[place[0]] * others).sum()), "nobody else labeled the same items")


def _said_again(last: Rows) -> dict[int, tuple[list[int], list[bool]]]:
    """By rater, of each pair that came back: its label, and whether the same was said again."""
    back = picked(last, last.repeat > 0)
    once = picked(last, (last.repeat == 0) & ~last.reviewed & np.isin(last.unit, back.unit))
    keys = zip(once.rater.tolist(), once.unit.tolist(), strict=True)
    said = dict(zip(keys, np.sign(once.choice).tolist(), strict=True))
    found: dict[int, tuple[list[int], list[bool]]] = {}
    columns = (back.rater, back.unit, back.number, np.sign(back.choice))
    for rater, unit, number, choice in zip(*(column.tolist() for column in columns), strict=True):
        if (rater, unit) in said:
            labels, same = found.setdefault(rater, ([], []))
            labels.append(number)
            same.append(said[rater, unit] == choice)
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


def _by_group(
    pairs: RaterPairs, shared: Ints, names: Sequence[str], groups: Mapping[str, str]
) -> dict[tuple[str, str], Figure]:
    own = [groups.get(names[rater], "") for rater in pairs.raters.tolist()]
    sums: dict[tuple[str, str], tuple[float, int]] = {}
    for a in range(len(own)):
        for b in range(a + 1, len(own)):
            if count := int(shared[a, b]):
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


def _over_time(standing: Rows, blind: Rows, sign: Ints) -> list[Span]:
    """Labels whose time is known."""
    at = standing.at[np.unique(standing.number, return_index=True)[1]]
    at = at[at > 0]
    if not at.size:
        return []
    edges = np.linspace(at.min(), max(at.max() + 1e-3, at.min() + _SHORTEST * _BUCKETS), _BUCKETS + 1)
    _, _, equal, latest = _unit_agreement(blind, sign)
    labels = np.histogram(at, edges)[0]
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
