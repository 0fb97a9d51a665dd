"""What several judgments say of a pair, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefloop.ops.raters import SIDELESS, pair_posterior
from prefloop.store import db
from prefloop.store.labels import STANDING, Label, open_store
from prefloop.store.pairs import Posteriors, pair_views, pairs_of
from prefloop.types import CANT_JUDGE, Judgment, to_json
from tests.store.scene import comparison


def judged(*ranking: int, strength: int | None = None, probability: float | None = None) -> dict[str, Any]:
    given = ranking if probability is None else None
    made = Judgment(comparison_id="c", annotator="a", ranking=given, probability=probability, strength=strength)
    return dict(to_json(made))


def test_one_judgment_of_two() -> None:
    (view,) = pair_views(2, [judged(1, 0, strength=3)], [0.25])
    assert (view.a, view.b, view.labels, view.share, view.majority) == (0, 1, 1, 0.0, "b")
    assert (view.agreement, view.posterior, view.margin, view.weight) == (None, 0.25, pytest.approx(2 / 3), 1.0)


def test_three_for_a_one_for_b_one_tie() -> None:
    said = [judged(0, 1, strength=4), judged(0, 1, strength=2), judged(0, 1), judged(1, 0, strength=3), judged(0, 0)]
    (view,) = pair_views(2, said, [0.8])
    assert (view.labels, view.share, view.majority) == (5, pytest.approx(3.5 / 5), "a")
    assert view.agreement == pytest.approx(3 / 10)  # of ten pairs of judgments the three of those for a
    assert view.margin == pytest.approx((1 + 1 / 3 + 0 - 2 / 3 + 0) / 5)


@pytest.mark.parametrize(
    ("said", "majority", "margin"),
    [
        ([judged(0, 1, strength=4), judged(1, 0, strength=1)], "tie", 0.0),
        ([judged(0, 0), judged(0, 0), judged(0, 1, strength=4)], "tie", 0.0),
        ([judged(0, 0), judged(0, 1, strength=4)], "a", 0.5),
        ([judged(probability=0.9), judged(probability=0.4), judged(probability=0.2)], "b", 0.0),
        ([judged(1, 0, strength=1), judged(1, 0, strength=1), judged(0, 1, strength=4)], "b", 0.0),
    ],
)
def test_majority_and_margin(said: list[dict[str, Any]], majority: str, margin: float) -> None:
    (view,) = pair_views(2, said, [0.5])
    assert (view.majority, view.margin) == (majority, pytest.approx(margin))


def test_a_ranking_of_four_is_six_pairs_of_a_sixth() -> None:
    assert pairs_of(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    views = pair_views(4, [judged(2, 0, 1, 0)], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert [view.majority for view in views] == ["b", "b", "b", "a", "tie", "b"]
    assert [view.posterior for view in views] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert sum(view.weight for view in views) == pytest.approx(1)
    assert pair_views(4, [], [0.5] * 6) == []


def test_posteriors_come_from_all_standing_judgments_whatever_their_order(url: str) -> None:
    pair, four = comparison("pair"), comparison("four", 4)
    said = [
        Label(judgment=Judgment(comparison_id="pair", annotator="ada", ranking=(0, 1), strength=3)),
        Label(judgment=Judgment(comparison_id="pair", annotator="bob", probability=0.25)),
        Label(judgment=Judgment(comparison_id="pair", annotator="eve", ranking=(1, 0)), status="gold"),
        Label(judgment=Judgment(comparison_id="pair", annotator="joe", flags=(CANT_JUDGE,))),
        Label(judgment=Judgment(comparison_id="four", annotator="ada", ranking=(0, 1, 1, 2))),
        Label(
            judgment=Judgment(comparison_id="four", annotator="bob", ranking=(1, 0, 1, 1), shown_order=(1, 2, 3, 0)),
            status="extra",
        ),
    ]
    with open_store(url) as store:
        for run, order in (("one", [0, 1]), ("two", [1, 0])):
            store.add_comparisons(run, [[pair, four][i] for i in order])
            for label in said if run == "one" else reversed(said):
                store.add_labels(run, [label])
        with db.transaction(store.engine, write=False) as connection:
            one, two = (Posteriors(connection, run, STANDING) for run in ("one", "two"))
            assert one.of("pair") == two.of("pair")
            assert one.of("four") == two.of("four")
            assert Posteriors(connection, "none", STANDING)._values.size == 0
    pairs = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    wins = [1, -1, 1, -1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 0]
    turned = [SIDELESS] * 14  # only bob's order of four is known: item 0 stood last
    turned[3::2] = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    expected = pair_posterior(np.array(pairs), np.array([0, 1] * 7), np.array(wins), np.array(turned))
    assert [*one.of("pair"), *one.of("four")] == pytest.approx(expected.first.tolist())
