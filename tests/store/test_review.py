from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from prefloop.store import audit, db
from prefloop.store.answers import Answer, AnswerError
from prefloop.store.campaigns import Item, MissingError
from prefloop.types import CANT_JUDGE, Judgment, PrefloopError
from tests.store.scene import RUN, Scene, answer, comparison, plain

Stage = Callable[..., Scene]


def review(here: Scene, what: Answer, *, who: str = "eve", nonce: str = "n1", item: str = "a") -> str:
    return here.answers.review(here.campaign, item, who, what, nonce=nonce).status


def test_a_review_beyond_those_wanted_is_extra_and_says_so_in_the_log(stage: Stage) -> None:
    here = stage(plain(overlap=2), [comparison("a")])
    here.label("ada", -2)
    here.label("bob", 2)
    assert review(here, Answer(axes={"overall": -3}, rationale="the first cites its source")) == "extra"
    last = here.rows()[-1]
    assert (last["annotator"], last["choice"], last["late"]) == ("eve", 3, False)  # below 0: item 0
    assert last["content"]["rationale"] == "the first cites its source"
    assert here.item("a")["counted"] == here.item("a")["taken"] == 2
    event = here.rows("events")[-1]
    assert (event["kind"], event["actor"]) == ("review", "eve")
    assert json.loads(event["content"]) == {"run": RUN, "comparison": "a", "judgment": last["number"]}
    with db.transaction(here.engine, write=False) as connection:
        audit.verify(connection)


def test_a_review_counts_where_a_label_is_wanted_and_no_lease_is_taken(stage: Stage) -> None:
    here = stage(plain(), [comparison("a"), comparison("b")])
    assert review(here, Answer(axes={"overall": 1})) == "counted"
    assert here.item("a")["counted"] == here.item("a")["taken"] == 1
    mine = here.next("eve")
    assert mine is not None and mine.comparison.id == "b"  # the desk knows what they reviewed, and that it is done


def test_a_second_review_is_a_new_version_and_a_repeated_request_is_not(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    review(here, Answer(axes={"overall": 1}))
    review(here, Answer(axes={"overall": 1}))
    assert len(here.rows()) == 1 and [row["kind"] for row in here.rows("events")].count("review") == 1
    review(here, Answer(axes={"overall": -1}), nonce="n2")
    assert [(row["version"], row["latest"], row["choice"]) for row in here.rows()] == [(1, False, -1), (2, True, 1)]
    assert here.item("a")["counted"] == 1


def test_a_reviewer_who_labeled_the_item_turned_means_the_same_items(stage: Stage) -> None:
    here = stage(plain(), [comparison(f"c{i}") for i in range(6)])
    turned = None
    while turned is None:
        made = here.label("eve", -2)
        assert made is not None
        turned = made[0].comparison.id if made[0].shown == (1, 0) else None
    assert here.rows()[-1]["choice"] == -2  # the left one was item 1
    review(here, Answer(axes={"overall": -2}), item=turned)
    assert here.rows()[-1]["choice"] == 2 and here.rows()[-1]["status"] == "counted"


def test_a_ranking_is_reviewed_by_item(stage: Stage) -> None:
    here = stage(plain(), [comparison("a", 4)])
    made = here.label("eve")
    assert made is not None
    review(here, Answer(ranks=[3, 1, 0, 2]))
    assert here.rows()[-1]["content"]["ranking"] == [3, 1, 0, 2]
    with pytest.raises(AnswerError, match="Rank all 4"):
        review(here, Answer(ranks=[0, 1]), nonce="n2")


def test_a_review_may_say_that_it_cannot_judge(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    assert review(here, Answer(flags=[CANT_JUDGE])) == "unjudged"
    assert here.item("a")["taken"] == 0


def test_a_review_is_under_the_version_of_now(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    here.label("eve")
    here.campaigns.change(RUN, plain(axes=("honesty",)), by="ada")
    with pytest.raises(AnswerError, match="honesty"):
        review(here, Answer(axes={"overall": 1}))
    review(here, Answer(axes={"honesty": 1}))
    assert here.rows()[-1]["campaign_version"] == 2 and here.rows()[0]["campaign_version"] == 1


def test_what_cannot_be_reviewed(stage: Stage) -> None:
    items = [Item(comparison_id="a", gold={"ranking": [0, 1], "note": ""}), Item(comparison_id="b")]
    here = stage(plain(), [comparison("a"), comparison("b")], items)
    with pytest.raises(PrefloopError, match="answer of this item is known"):
        review(here, Answer(axes={"overall": 1}))
    with pytest.raises(MissingError):
        review(here, Answer(axes={"overall": 1}), item="nothing")
    here.store.add_judgments(RUN, [Judgment(comparison_id="b", annotator="eve", ranking=(0, 1))], simulated=False)
    with pytest.raises(PrefloopError, match="imported"):
        review(here, Answer(axes={"overall": 1}), item="b")
    assert here.rows("tasks") == []


def test_a_withdrawn_review_leaves_the_place_that_it_had(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    review(here, Answer(axes={"overall": 1}))
    task = here.answers.withdraw(here.campaign, "eve")
    assert task is not None and here.item("a")["counted"] == 0
    assert here.answers.submit(task.id, "eve", answer(task), nonce="again").status == "counted"
    assert here.item("a")["counted"] == here.item("a")["taken"] == 1


def test_a_place_that_a_withdrawn_review_had_is_free_once_its_lease_has_ended(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    review(here, Answer(axes={"overall": 1}))
    task = here.answers.withdraw(here.campaign, "eve")
    assert task is not None and here.next("bob") is None
    here.clock.now += 301
    theirs = here.next("bob")
    assert theirs is not None and here.item("a")["taken"] == 1
    here.clock.now += 301
    assert here.desk.renew(task.id, "eve") == 0.0 and here.next("ada") is not None  # bob is gone as well
    here.clock.now += 301
    assert here.desk.renew(task.id, "eve") == 0.0  # nobody has let ada's lease go yet
    again = here.next("eve")
    assert again is not None and again.id == task.id and here.item("a")["taken"] == 1
    here.clock.now += 301
    here.label("bob")
    assert here.item("a")["taken"] == here.item("a")["counted"] == 1
