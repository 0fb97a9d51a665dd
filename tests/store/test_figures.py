from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from prefloop.store.accounts import Accounts
from prefloop.store.answers import Answer
from prefloop.store.campaigns import Item
from prefloop.store.figures import CampaignFigures, Figures, Labeler
from prefloop.store.labels import Label
from prefloop.types import CANT_JUDGE, Judgment
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


def labeler(here: Scene, name: str = "ada") -> Labeler:
    return next(one for one in Figures(here.engine, RUN).refresh().labelers if one.name == name)


def test_who_could_not_judge_missed_no_known_answer_and_changed_no_mind(stage: Stage) -> None:
    gold = {"ranking": [0, 1], "note": ""}
    made = [comparison(f"c{i}") for i in range(30)]
    items = [Item(comparison_id=c.id, gold=gold if i == 0 else None) for i, c in enumerate(made)]
    here = stage(plain(calibration=1, repeat_share=0.1), made, items)
    while (task := here.next("ada")) is not None:
        odd = Answer(flags=[CANT_JUDGE]) if task.kind in ("gold", "repeat") else Answer(axes={"overall": 1})
        here.answers.submit(task.id, "ada", odd, nonce=task.id)
    assert {row["status"] for row in here.rows()} == {"gold", "repeat", "counted"}
    found = labeler(here)
    assert (found.gold.n, found.repeats.n, found.labels) == (0, 0, 29)


def judged(id_: str, annotator: str = "ada", **said: Any) -> Judgment:
    return Judgment(comparison_id=id_, annotator=annotator, **said)


def test_labels_without_a_time_are_not_of_1970(stage: Stage) -> None:
    here = stage(plain(), [comparison(f"c{i}") for i in range(5)])
    here.store.add_labels(RUN, [Label(judgment=judged(f"c{i}", ranking=(0, 1))) for i in range(3)])
    assert labeler(here).per_hour is None and Figures(here.engine, RUN).refresh().over_time == []
    here.label("ada")
    found = Figures(here.engine, RUN).refresh()
    assert [span.labels for span in found.over_time] == [1, *[0] * 23]
    assert found.over_time[0].start == here.rows()[-1]["at"]
    assert found.over_time[0].end - found.over_time[0].start == pytest.approx(60)
    here.clock.now += 3 * 3600
    here.label("ada")
    found = Figures(here.engine, RUN).refresh()
    assert [span.labels for span in found.over_time] == [1, *[0] * 22, 1]
    assert labeler(here).per_hour == pytest.approx(2 / 3, rel=1e-3)


def test_labels_that_show_no_side_lean_to_none(stage: Stage) -> None:
    here = stage(plain(), [comparison(f"c{i}") for i in range(5)])
    said = [judged(f"c{i}", ranking=(1, 0), shown_order=(1, 0) if i == 0 else ()) for i in range(4)]
    here.store.add_judgments(RUN, [*said, judged("c4", probability=0.9)], simulated=False)
    assert (labeler(here).left.value, labeler(here).left.n) == (1.0, 1)


def test_a_probability_is_a_preference_unless_it_is_a_half(stage: Stage) -> None:
    here = stage(plain(), [comparison(f"c{i}") for i in range(3)])
    said = [judged(f"c{i}", probability=p, shown_order=(0, 1)) for i, p in enumerate((0.6, 0.4, 0.5))]
    here.store.add_judgments(RUN, said, simulated=False)
    found = labeler(here)
    assert (found.left.value, found.left.n) == (0.5, 2)
    assert (found.ties.value, found.ties.n) == (pytest.approx(1 / 3), 3)


def test_a_ranking_is_one_label(stage: Stage) -> None:
    gold = {"ranking": [0, 1, 2, 3], "note": ""}
    made = [comparison(name, size=4) for name in "kabc"]
    items = [Item(comparison_id=c.id, gold=gold if c.id == "k" else None) for c in made]
    here = stage(plain(calibration=1, overlap=2), made, items, labelers=("ada", "bob"))
    for name in ("ada", "bob"):
        while (task := here.next(name)) is not None:
            ranks = [[0, 0, 1, 2][item] for item in task.shown]  # of six pairs one is tied
            here.answers.submit(task.id, name, Answer(ranks=ranks), nonce=f"{name}{task.id}")
            here.clock.now += 60
    found = labeler(here)
    assert (found.labels, found.gold.n, found.ties.n, found.left.n, found.agreement.n) == (3, 1, 3, 3, 3)
    assert found.gold.value == pytest.approx(5 / 6) and found.ties.value == pytest.approx(1 / 6)
    assert found.per_hour == pytest.approx(90, rel=1e-3)  # three within two minutes
    assert sum(span.labels for span in Figures(here.engine, RUN).refresh().over_time) == 6


def test_the_pairs_of_a_ranking_are_drawn_together(stage: Stage) -> None:
    """The interval of forty rankings is as wide as that of forty pairs, however many pairs each has."""
    here, wide = stage(plain(), [comparison("a")]), []
    for size in (2, 5):
        run, order = f"of {size}", tuple(range(size))
        here.store.add_comparisons(run, [comparison(f"c{i}", size=size) for i in range(40)])
        for name in ("ada", "bob"):
            said = [judged(f"c{i}", name, ranking=order if i % 3 or name == "ada" else order[::-1]) for i in range(40)]
            here.store.add_judgments(run, said, simulated=False)
        found = Figures(here.engine, run).refresh().axes["overall"].percent
        assert found.value == pytest.approx(26 / 40)
        wide.append(found.high - found.low)
    assert wide[1] == pytest.approx(wide[0], rel=0.2)


def test_comparisons_of_many_answers_do_not_run_into_the_next(stage: Stage) -> None:
    """Of twelve answers there are 66 pairs; what ada says of one comparison is not what bob says of the next."""
    here, order = stage(plain(), [comparison("a")]), tuple(range(12))
    here.store.add_comparisons("wide", [comparison("k", size=12), comparison("l", size=12)])
    said = [judged("k", "ada", ranking=order), judged("l", "bob", ranking=order)]
    here.store.add_judgments("wide", said, simulated=False)
    assert Figures(here.engine, "wide").refresh().axes["overall"].percent.n == 0


def test_an_axis_that_was_called_otherwise_is_another_question(stage: Stage) -> None:
    here = stage(plain(overlap=3, axes=("helpful",)), [comparison(f"c{i}") for i in range(4)])
    for name in ("ada", "bob"):
        for _ in range(4):
            here.label(name, -2 if name == "ada" else 3)
    kept = Figures(here.engine, RUN)
    assert kept.refresh().axes["helpful"].percent.n == 4 and not kept.stale()
    here.campaigns.change(RUN, plain(overlap=3, axes=("honest",)), by="ada")
    assert kept.stale()
    found = kept.refresh()
    assert list(found.axes) == ["honest"] and found.axes["honest"].percent.n == 0 and not kept.stale()
    assert found.pairs.shared.sum() == 2 * 2 * 4  # which answer each preferred is what it was
    for _ in range(4):
        here.label("eve")
    assert kept.stale() and kept.refresh().axes["honest"].percent.n == 0  # of each item only eve was asked
    same(kept.refresh(), Figures(here.engine, RUN).refresh())


def test_axes_in_another_order_keep_their_labels(stage: Stage) -> None:
    here = stage(plain(overlap=2, axes=("helpful", "honest")), [comparison(f"c{i}") for i in range(4)])
    for name in ("ada", "bob"):
        while (task := here.next(name)) is not None:
            side = -1 if task.shown[0] == 0 else 1
            axes = {"helpful": side * 2, "honest": side * (3 if name == "ada" else -3)}
            here.answers.submit(task.id, name, Answer(axes=axes), nonce=f"{name}{task.id}")
    here.campaigns.change(RUN, plain(overlap=2, axes=("honest", "helpful")), by="ada")
    found = Figures(here.engine, RUN).refresh().axes
    assert (found["helpful"].percent.value, found["honest"].percent.value) == (1.0, 0.0)


def test_another_group_gives_figures_anew(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    kept = Figures(here.engine, RUN)
    kept.refresh()
    accounts = Accounts(here.engine, here.clock)
    accounts.create("joe", "labeler", by="ada")
    assert kept.stale() and kept.refresh() and not kept.stale()
    accounts.set_group("joe", "nurses", by="ada")
    assert kept.stale()


def test_a_review_is_no_blind_vote(stage: Stage) -> None:
    here = stage(plain(overlap=2), [comparison("c0"), comparison("c1")])
    for name in ("ada", "bob"):
        for _ in range(2):
            here.label(name, -2 if name == "ada" else 2)
    before = Figures(here.engine, RUN).refresh()
    kept = Figures(here.engine, RUN)
    kept.refresh()
    for id_ in ("c0", "c1"):
        here.answers.review(here.campaign, id_, "eve", Answer(axes={"overall": -2}), nonce=id_)
    found = kept.refresh()
    assert repr(found.axes) == repr(before.axes) and found.disputed == before.disputed
    assert found.labels == before.labels + 2 == 6 and labeler(here, "eve").labels == 2
    assert (labeler(here, "eve").agreement.n, labeler(here, "eve").accuracy) == (0, None)
    same(found, Figures(here.engine, RUN).refresh())
