from __future__ import annotations

import random
from collections.abc import Callable

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from prefloop.store.answers import Answer
from prefloop.store.campaigns import Item
from prefloop.store.figures import CampaignFigures, Figures
from prefloop.types import CANT_JUDGE
from tests.store.scene import RUN, Scene, comparison, plain

Stage = Callable[..., Scene]
NAMES = ("ada", "bob", "eve")


def label_all(here: Scene, seed: int = 0) -> None:
    """Everybody labels everything, with a chance of error of their own; eve likes the left side."""
    rng = random.Random(seed)
    for k, name in enumerate(NAMES):
        while (task := here.next(name)) is not None:
            better = int(task.comparison.id[1:]) % 2  # the item that all would prefer
            side = 1 if task.shown[1] == better else -1
            if rng.random() < 0.1 + 0.1 * k:
                side = -side
            if name == "eve" and rng.random() < 0.6:
                side = -1
            value = 0 if rng.random() < 0.1 else side * rng.randint(1, 4)
            answer = Answer(axes=dict.fromkeys(task.config.axes, value), rationale="\0")
            here.answers.submit(task.id, name, answer, nonce=f"{name}{task.id}")


def matrix(here: Scene) -> np.ndarray:
    """Choices [labeler, item] from the raw rows, NaN where there is none."""
    rows = [r for r in here.rows() if r["latest"] and not r["withdrawn"] and r["status"] in ("counted", "extra")]
    items = sorted({row["comparison_id"] for row in rows})
    found = np.full((len(NAMES), len(items)), np.nan)
    for row in rows:
        found[NAMES.index(row["annotator"]), items.index(row["comparison_id"])] = row["choice"]
    return found


def test_what_is_shown_equals_what_the_oracles_say_of_the_raw_labels(stage: Stage) -> None:
    here = stage(plain(overlap=3), [comparison(f"c{i}") for i in range(20)])
    label_all(here)
    here.answers.withdraw(here.campaign, "ada")
    found = Figures(here.engine, RUN).refresh()
    raw = matrix(here)
    side = np.sign(raw)
    axis = found.axes["overall"]
    assert found.labels == int(np.isfinite(raw).sum()) == 59
    assert axis.alpha.value == pytest.approx(krippendorff.alpha(side, level_of_measurement="nominal"), abs=1e-9)
    assert axis.ordinal.value == pytest.approx(krippendorff.alpha(raw, level_of_measurement="ordinal"), abs=1e-9)
    pairs = [(a, b) for b in range(3) for a in range(b)]
    both = {pair: np.isfinite(side[list(pair)]).all(axis=0) for pair in pairs}
    equal = sum((side[a] == side[b])[both[a, b]].sum() for a, b in pairs)
    assert axis.percent.value == pytest.approx(equal / sum(m.sum() for m in both.values()), abs=1e-12)
    for a, b in pairs:
        one, other = (int(np.flatnonzero(found.pairs.raters == k)[0]) for k in (a, b))
        expected = cohen_kappa_score(side[a][both[a, b]], side[b][both[a, b]])
        assert found.pairs.kappa[one, other] == pytest.approx(expected, abs=1e-9)


def test_new_labels_give_what_a_fresh_reader_sees(stage: Stage) -> None:
    here = stage(
        plain(overlap=3, axes=("overall", "honest")), [comparison(f"c{i}", slice="ab"[i % 2]) for i in range(8)]
    )
    kept = Figures(here.engine, RUN)
    for step in range(3):
        for name in NAMES:
            here.label(name, (-3, 2, 0)[step])
        task, _ = here.label("ada", 1, nonce=f"more{step}") or pytest.fail("nothing to label")
        here.answers.submit(task.id, "ada", Answer(flags=[CANT_JUDGE]), nonce=f"changed{step}")
        same(kept.refresh(), Figures(here.engine, RUN).refresh())
        assert kept.latest() is kept.refresh()


def same(a: CampaignFigures, b: CampaignFigures) -> None:
    assert (a.number, a.labels, a.disputed, a.over_time) == (b.number, b.labels, b.disputed, b.over_time)
    for one, other in ((a.axes, b.axes), (a.slices, b.slices)):
        assert repr(one) == repr(other)  # NaN differs from itself
    assert repr(list(a.labelers)) == repr(list(b.labelers))


def test_labelers_are_told_apart(stage: Stage) -> None:
    gold = {"ranking": [0, 1], "note": "item 0"}
    made = [comparison(f"c{i}") for i in range(40)]
    items = [Item(comparison_id=c.id, gold=gold if i == 0 else None) for i, c in enumerate(made)]
    here = stage(plain(overlap=3, calibration=1, repeat_share=0.1), made, items)
    label_all(here)
    found = {labeler.name: labeler for labeler in Figures(here.engine, RUN).refresh().labelers}
    assert found["ada"].agreement.value > found["eve"].agreement.value
    assert found["eve"].left.low > 0.5 > found["ada"].left.low
    assert found["ada"].accuracy is not None and found["eve"].accuracy is not None
    assert found["ada"].accuracy > found["eve"].accuracy
    assert found["ada"].gold.n == 1 and found["ada"].repeats.n >= 2
    gold_row = next(row for row in here.rows() if row["status"] == "gold" and row["annotator"] == "ada")
    assert found["ada"].gold.value == float(gold_row["choice"] > 0)


def test_disputed_items_come_first(stage: Stage) -> None:
    here = stage(plain(overlap=2), [comparison("c0"), comparison("c1")], labelers=("ada", "bob"))
    for name in ("ada", "bob"):
        while (task := here.next(name)) is not None:
            item = 0 if task.comparison.id == "c0" or name == "ada" else 1
            side = -2 if task.shown[0] == item else 2
            here.answers.submit(task.id, name, Answer(axes={"overall": side}), nonce=f"{name}{task.id}")
    found = Figures(here.engine, RUN).refresh()
    assert [(d.comparison_id, d.agreement, d.labels) for d in found.disputed] == [("c1", 0.0, 2)]


def test_rankings_agree_pair_by_pair(stage: Stage) -> None:
    here = stage(plain(overlap=2), [comparison("k", size=4)], labelers=("ada", "bob"))
    for name in ("ada", "bob"):
        task = here.next(name)
        assert task is not None
        order = [0, 1, 2, 3] if name == "ada" else [0, 1, 3, 2]  # one of six pairs differs
        ranks = [order.index(item) for item in task.shown]
        here.answers.submit(task.id, name, Answer(ranks=ranks), nonce=name)
    assert Figures(here.engine, RUN).refresh().axes["overall"].percent.value == pytest.approx(5 / 6)


def test_an_empty_campaign_says_why_there_are_no_figures(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    found = Figures(here.engine, RUN).refresh()
    assert (found.labels, list(found.labelers), found.disputed, found.over_time) == (0, [], [], [])
    assert found.axes["overall"].percent.reason
