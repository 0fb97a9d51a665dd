"""What all judgments of a comparison say of each pair of its items."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sqlalchemy import Connection, case, select

from prefloop.data.pairing import first_wins
from prefloop.ops.raters import SIDELESS, pair_posterior
from prefloop.store.tables import comparisons, judgments
from prefloop.types import Json

MARGINS = {1: 0.0, 2: 1 / 3, 3: 2 / 3, 4: 1.0}
"""The small margins of Llama 2 (Touvron et al. 2023, table 27) by strength."""
_CHUNK = 2000
Winner = Literal["a", "b", "tie"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairView:
    """Items a and b (their places in the comparison), as `labels` judgments see them together.

    share: mean of how much each prefers a, a tie counting half. majority: what most say; "tie" also where a and b are
    even. agreement: share of pairs of judgments that say the same; none of a single one. posterior: probability that a
    is better (`ops.raters`). margin: mean of MARGINS in favour of the majority, a judgment for the other side counting
    against it, at least 0. weight: 1 / number of pairs, so that a ranking weighs as much as a pair (Ouyang et al.
    2022, eq. 1)."""

    a: int
    b: int
    labels: int
    share: float
    majority: Winner
    agreement: float | None
    posterior: float
    margin: float
    weight: float


def pairs_of(size: int) -> list[tuple[int, int]]:
    """(0, 1), (0, 2), ..."""
    return list(itertools.combinations(range(size), 2))


class Posteriors:
    """Of each pair of a run the probability that its first item is better, from all standing judgments together."""

    def __init__(
        self, connection: Connection, run: str, standing: Sequence[str], shown: Callable[[str], str] = str
    ) -> None:
        self._places, end = dict[str, tuple[int, int]](), 0
        for id_, size in _stream(connection, _sizes(run)):
            self._places[id_] = (end, end := end + len(pairs_of(size)))
        self._values = np.full(end, 0.5)
        unit, rater, wins, turned, names = self._votes(connection, _votes(run, standing))
        if names:
            # In an order that does not depend on when which judgment came: sums are rounded.
            rater = np.argsort(np.argsort([shown(name) for name in names], kind="stable"))[rater]
            order = np.lexsort((rater, unit))
            found = pair_posterior(unit[order], rater[order], wins[order] - 0.5, turned[order])
            self._values[found.units] = found.first

    def of(self, comparison_id: str) -> list[float]:
        """By pair, in the order of `pairs_of`; 0.5 where nothing was said."""
        start, end = self._places[comparison_id]
        return [float(value) for value in self._values[start:end]]

    def _votes(self, connection: Connection, query: Json) -> tuple[Json, Json, Json, Json, list[str]]:
        """Pair, rater, how much the rater prefers its first item, and whether the second stood before it (SIDELESS
        where nobody knows), a row a judgment and pair; and the raters."""
        unit, rater, wins, turned = array("q"), array("q"), array("d"), array("d")
        raters: dict[str, int] = {}
        for id_, annotator, choice, left, content in _stream(connection, query):
            start, who = self._places[id_][0], raters.setdefault(annotator, len(raters))
            if content is None:
                said = [((choice > 0) + 0.5 * (choice == 0), SIDELESS if left is None else left == 1)]
            else:
                shown = content["shown_order"]
                said = [
                    (_wins(content, a, b), shown.index(b) < shown.index(a) if shown else SIDELESS)
                    for a, b in pairs_of(len(content["ranking"] or "ab"))
                ]
            for place, (win, side) in enumerate(said, start):
                unit.append(place)
                rater.append(who)
                wins.append(win)
                turned.append(side)
        made = (np.array(unit, np.int64), np.array(rater, np.int64), np.array(wins, np.float64))
        return (*made, np.array(turned, np.float64), list(raters))


def _sizes(run: str) -> Json:
    return select(comparisons.c.id, comparisons.c.size).where(comparisons.c.run == run).order_by(comparisons.c.number)


def _votes(run: str, standing: Sequence[str]) -> Json:
    rest = case((judgments.c.choice.is_(None), judgments.c.content))  # a pair's choice says it all
    query = select(*(judgments.c[name] for name in ("comparison_id", "annotator", "choice", "left")), rest)
    stands = judgments.c.latest & ~judgments.c.withdrawn & judgments.c.status.in_(standing)
    return query.where(judgments.c.run == run, stands).order_by(judgments.c.number)


def _wins(judgment: Mapping[str, Json], a: int, b: int) -> float:
    return first_wins(judgment["ranking"], judgment["probability"], a, b)


def _stream(connection: Connection, query: Json) -> Iterator[Json]:
    for part in connection.execute(query.execution_options(yield_per=_CHUNK)).partitions():
        yield from part


def pair_views(size: int, judged: Sequence[Mapping[str, Json]], chances: Sequence[float]) -> list[PairView]:
    """Of each pair of a comparison's items, from its standing judgments as JSON; none where there are none."""
    pairs = pairs_of(size) if judged else []
    return [_view(a, b, judged, chance, 1 / len(pairs)) for (a, b), chance in zip(pairs, chances, strict=False)]


def _view(a: int, b: int, judged: Sequence[Mapping[str, Json]], chance: float, weight: float) -> PairView:
    for_a = for_b = lead = total = 0.0
    for judgment in judged:
        win = _wins(judgment, a, b)
        total += win
        if win > 0.5:
            for_a += 1
            lead += MARGINS[judgment["strength"] or 1]
        elif win < 0.5:
            for_b += 1
            lead -= MARGINS[judgment["strength"] or 1]
    count = len(judged)
    ties = count - for_a - for_b
    majority: Winner = "tie" if for_a == for_b or ties > max(for_a, for_b) else "a" if for_a > for_b else "b"
    same = sum(n * (n - 1) for n in (for_a, for_b, ties))
    sign = {"a": 1, "b": -1, "tie": 0}[majority]
    return PairView(
        a=a,
        b=b,
        labels=count,
        share=total / count,
        majority=majority,
        agreement=same / (count * (count - 1)) if count > 1 else None,
        posterior=chance,
        margin=max(sign * lead / count, 0.0),
        weight=weight,
    )
