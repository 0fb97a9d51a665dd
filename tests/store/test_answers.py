from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from prefloop.configs.campaign import CampaignConfig
from prefloop.store import audit, db
from prefloop.store.answers import Answer, decode, encode, judged_choice
from prefloop.store.assignment import Task
from prefloop.store.campaigns import Item
from prefloop.types import CANT_JUDGE, Judgment, PrefloopError, to_json
from tests.store.scene import RUN, Scene, answer, comparison, plain

Stage = Callable[..., Scene]


def task(config: CampaignConfig, shown: tuple[int, ...]) -> Task:
    return Task(
        id="t",
        run=RUN,
        kind="item",
        comparison=comparison("c", len(shown)),
        shown=shown,
        version=1,
        config=config,
        state="open",
        opened=0.0,
        lease_until=1.0,
        draft=None,
    )


@pytest.mark.parametrize(
    ("shown", "side", "ranking", "strength", "choice"),
    [
        ((0, 1), -3, (0, 1), 3, 3),  # left is item 0, and left is better
        ((1, 0), -3, (1, 0), 3, -3),  # left is item 1
        ((0, 1), 1, (1, 0), 1, -1),
        ((1, 0), 4, (0, 1), 4, 4),
        ((1, 0), 0, (0, 0), None, 0),
    ],
)
def test_sides_become_items(
    shown: tuple[int, ...], side: int, ranking: tuple[int, ...], strength: int | None, choice: int
) -> None:
    made = decode(task(plain(), shown), "ada", Answer(axes={"overall": side}))
    assert (made.ranking, made.strength, judged_choice(made)) == (ranking, strength, choice)
    assert made.axes == {"overall": choice} and made.shown_order == shown


@pytest.mark.parametrize("shown", list(itertools.permutations(range(4)))[::5])
def test_ranks_by_place_become_ranks_by_item(shown: tuple[int, ...]) -> None:
    made = decode(task(plain(), shown), "ada", Answer(ranks=(0, 3, 3, 1)))
    best, tied, also, second = shown
    assert made.ranking is not None
    assert made.ranking[best] == 0 and made.ranking[second] == 1
    assert made.ranking[tied] == made.ranking[also] == 2  # dense: no rank is left out


@given(st.permutations(range(5)), st.data())
def test_encode_undoes_decode(shown: list[int], data: st.DataObject) -> None:
    config = plain(ratings=True, rubric=("cites", "short"), flags=("unsafe",))
    ranks = data.draw(st.lists(st.integers(0, 4), min_size=5, max_size=5))
    dense = [sorted(set(ranks)).index(rank) for rank in ranks]
    given_ = Answer(
        ranks=dense,
        flags=["unsafe"],
        ratings=data.draw(st.lists(st.integers(1, 7), min_size=5, max_size=5)),
        checks={"cites": data.draw(st.lists(st.booleans(), min_size=5, max_size=5))},
        edit="better",
        rationale="because",
    )
    here = task(config, tuple(shown))
    back = encode(here, to_json(decode(here, "ada", given_)))
    assert replace(given_, **back) == given_


@pytest.mark.parametrize(
    ("changes", "given_", "says"),
    [
        ({}, Answer(), "Choose an answer for 'overall'"),
        ({}, Answer(axes={"overall": 5}), "5 is no choice"),
        ({"ties": False}, Answer(axes={"overall": 0}), "0 is no choice"),
        ({}, Answer(axes={"overall": 1, "model": 1}), "does not ask about 'model'"),
        ({}, Answer(axes={"overall": 1}, flags=["x"]), "no flag 'x'"),
        ({}, Answer(axes={"overall": 1}, flags=["unsafe", "unsafe"]), "given twice"),
        ({}, Answer(axes={"overall": 1}, ratings=[3, 3]), "where the campaign asks"),
        ({"ratings": True}, Answer(axes={"overall": 1}), "Rate each answer"),
        ({"ratings": True}, Answer(axes={"overall": 1}, ratings=[0, 8]), "from 1 to 7"),
        ({}, Answer(axes={"overall": 1}, checks={"cites": [True, False]}), "boxes"),
        ({"edits": False}, Answer(axes={"overall": 1}, edit="x"), "better answers"),
        ({"rationale": "required"}, Answer(axes={"overall": 1}, rationale=" "), "Say why"),
        ({}, Answer(axes={"overall": 1}, rationale="x" * 100_001), "100,000"),
        ({}, Answer(axes={"overall": 1}, ranks=[0, 1]), "Two answers are compared"),
    ],
)
def test_what_a_campaign_does_not_ask_is_refused(changes: dict[str, Any], given_: Answer, says: str) -> None:
    with pytest.raises(PrefloopError, match=says):
        decode(task(plain(**changes), (0, 1)), "ada", given_)


@pytest.mark.parametrize("ranks", [(), (0, 1), (0, 1, 3), (0, -1, 1)])
def test_a_ranking_needs_a_rank_for_each(ranks: tuple[int, ...]) -> None:
    with pytest.raises(PrefloopError, match="Rank all 3"):
        decode(task(plain(), (2, 0, 1)), "ada", Answer(ranks=ranks))


def test_what_cannot_be_judged_can_be_half_rated() -> None:
    here = task(plain(ratings=True), (1, 0))
    for ratings, kept in (([0, 5], ()), ([2, 5], (5, 2)), ([], ())):
        assert decode(here, "ada", Answer(flags=[CANT_JUDGE], ratings=ratings)).ratings == kept


def test_cant_judge_needs_no_choice_and_gives_the_place_back(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    mine = here.next("ada")
    assert mine is not None
    receipt = here.answers.submit(mine.id, "ada", Answer(flags=[CANT_JUDGE]), nonce="n")
    assert receipt.status == "unjudged" and here.item("a")["taken"] == 0 == here.item("a")["counted"]
    assert here.store.judgments(RUN) == []
    assert here.next("ada") is None
    assert here.next("bob") is not None


def test_seconds_of_the_labelers_own_clock_are_only_advice() -> None:
    for told, kept in ((-5.0, 0.0), (3.5, 3.5), (1e12, 4 * 3600.0), (None, None)):
        assert decode(task(plain(), (0, 1)), "ada", Answer(axes={"overall": 1}, seconds=told)).seconds == kept


def test_line_23_a_request_that_is_repeated_gives_one_label_and_one_receipt(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    mine = here.next("ada")
    assert mine is not None
    first = here.answers.submit(mine.id, "ada", answer(mine), nonce="n")
    here.clock.now += 86_400
    assert here.answers.submit(mine.id, "ada", answer(mine, 4), nonce="n") == first
    made: list[Any] = []
    threads = [
        threading.Thread(target=lambda: made.append(here.answers.submit(mine.id, "ada", answer(mine), nonce="n")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [first] * 6
    assert len(here.rows()) == 1 and here.item("a")["counted"] == 1


def test_an_answer_changed_is_a_new_version_and_the_latest_counts(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    mine, _ = here.label("ada", -2) or pytest.fail("nothing to label")
    receipt = here.answers.submit(mine.id, "ada", answer(mine, 3), nonce="second")
    assert (receipt.version, receipt.status) == (2, "counted")
    assert [row["latest"] for row in here.rows()] == [False, True]
    (judgment,) = here.store.judgments(RUN)
    assert judgment.strength == 3
    assert here.item("a")["counted"] == here.item("a")["taken"] == 1


@pytest.mark.parametrize("unjudged", [False, True])
def test_an_answer_replaces_a_label_that_was_imported_while_its_task_was_open(stage: Stage, unjudged: bool) -> None:
    here = stage(plain(overlap=2), [comparison("a")])
    mine = here.next("ada")
    assert mine is not None
    here.store.add_judgments(RUN, [Judgment(comparison_id="a", annotator="ada", ranking=(0, 1))], simulated=False)
    assert here.item("a")["taken"] == 2
    given_ = Answer(flags=[CANT_JUDGE]) if unjudged else answer(mine, 3)
    receipt = here.answers.submit(mine.id, "ada", given_, nonce="n")
    assert (receipt.version, receipt.status) == (2, "unjudged" if unjudged else "counted")
    assert [row["latest"] for row in here.rows()] == [False, True]
    assert here.item("a")["taken"] == here.item("a")["counted"] == (0 if unjudged else 1)
    here.answers.withdraw(here.campaign, "ada")
    assert here.store.judgments(RUN) == [] and here.store.verify().judgments == 3


def test_line_24_who_loses_the_race_for_a_place_is_kept_as_extra(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    mine = here.next("ada")
    assert mine is not None
    here.clock.now += 1000
    here.label("bob")
    receipt = here.answers.submit(mine.id, "ada", answer(mine), nonce="n")
    assert (receipt.status, receipt.late) == ("extra", True)
    assert here.item("a")["counted"] == here.item("a")["taken"] == 1
    assert len(here.store.judgments(RUN)) == 2


def test_line_25_late_work_counts_where_its_place_is_still_free(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    mine = here.next("ada")
    assert mine is not None
    here.clock.now += 100_000
    assert here.answers.submit(mine.id, "ada", answer(mine), nonce="n").status == "counted"
    assert here.item("a")["taken"] == here.item("a")["counted"] == 1
    assert here.next("bob") is None


def test_line_31_a_label_keeps_the_version_it_was_made_under(stage: Stage) -> None:
    here = stage(plain(axes=("overall",)), [comparison("a"), comparison("b")])
    mine = here.next("ada")
    assert mine is not None
    here.campaigns.change(RUN, plain(axes=("helpful", "harmless")), by="ada")
    here.answers.submit(mine.id, "ada", Answer(axes={"overall": 1}), nonce="n")
    other, _ = here.label("ada") or pytest.fail("nothing to label")
    assert other.config.axes == ("helpful", "harmless")
    assert [row["campaign_version"] for row in here.rows()] == [1, 2]
    assert here.campaigns.version(RUN, 1).axes == ("overall",)


def test_line_32_undo_takes_answers_back_one_by_one_with_what_was_said(stage: Stage) -> None:
    here = stage(plain(), [comparison("a"), comparison("b")])
    first, _ = here.label("ada", -2) or pytest.fail("nothing to label")
    second, _ = here.label("ada", 3) or pytest.fail("nothing to label")
    back = here.answers.withdraw(here.campaign, "ada")
    assert back is not None and back.id == second.id and back.draft is not None
    assert back.draft["axes"] == {"overall": 3}
    again = here.answers.withdraw(here.campaign, "ada")
    assert again is not None and again.id == first.id
    assert here.answers.withdraw(here.campaign, "ada") is None
    assert here.store.judgments(RUN) == []
    assert {here.item(c)["counted"] for c in "ab"} == {0} and {here.item(c)["taken"] for c in "ab"} == {1}
    here.answers.submit(first.id, "ada", answer(first, 1), nonce="new")
    assert [j.strength for j in here.store.judgments(RUN)] == [1]
    assert [row["version"] for row in here.rows()] == [1, 1, 2, 2, 3]
    assert sum(row["latest"] for row in here.rows()) == 2


def test_undo_of_gold_leaves_the_first_answer_on_record(stage: Stage) -> None:
    here = stage(plain(calibration=1), [comparison("a")], [Item(comparison_id="a", gold={"ranking": [0, 1]})])
    here.label("ada")
    assert here.answers.withdraw(here.campaign, "ada") is not None
    here.label("ada", 4, nonce="again")
    assert [(row["status"], row["withdrawn"], row["version"]) for row in here.rows()] == [
        ("gold", False, 1),
        ("gold", True, 2),
        ("gold", False, 3),
    ]


def tamper(here: Scene, statement: str) -> None:
    """Verify in the same transaction, so that an error undoes the tampering."""
    with db.transaction(here.engine, write=True) as connection:
        connection.execute(text(statement))
        audit.verify(connection)


def test_the_log_covers_every_label_and_sees_any_that_was_touched(stage: Stage) -> None:
    here = stage(plain(overlap=2), [comparison(f"c{i}") for i in range(4)])
    for name in ("ada", "bob", "ada", "bob"):
        here.label(name)
    here.answers.withdraw(here.campaign, "ada")

    assert here.store.verify().judgments == 5
    tampering = [
        "UPDATE judgments SET choice = -choice WHERE number = 2",
        "DELETE FROM judgments WHERE number = 3",
        "INSERT INTO judgments (run, comparison_id, annotator, content, version)"
        " SELECT run, comparison_id, annotator, content, 9 FROM judgments WHERE number = 1",
        "UPDATE judgments SET latest = NOT latest WHERE number = 2",
        "UPDATE events SET actor = 'eve' WHERE number = 4",
        "DELETE FROM events WHERE number = 4",
        "UPDATE events SET content = '{}' WHERE number = (SELECT max(number) FROM events)",
    ]
    for statement in tampering:
        with pytest.raises(PrefloopError):
            tamper(here, statement)
        assert here.store.verify().judgments == 5
