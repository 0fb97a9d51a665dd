"""Conversations with a blind checkpoint: kept turn by turn, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from prefloop.data.jsonl import content_id
from prefloop.store import audit, db, tables
from prefloop.store.campaigns import Campaign, MissingError
from prefloop.store.redteam import MOST_TURNS, SLICE, Alternative, Conversation, RedTeam, labels_of
from prefloop.types import Message, PrefloopError, to_json

from .scene import RUN, Scene, comparison, plain, scene

MODELS = ("runs/alpha/ppo", "runs/beta/ppo")
ONE = Alternative(text="It is flat.", finished=True)
TWO = Alternative(text="It is round.", finished=False)


@pytest.fixture
def here(url: str) -> Iterator[Scene]:
    made = scene(url, plain(red_team=MODELS, flags=("both bad", "unsafe", "untrue")), [comparison("c")])
    with made.store:
        yield made


@pytest.fixture
def team(here: Scene) -> RedTeam:
    return RedTeam(here.engine, here.clock)


def said(team: RedTeam, here: Scene, *made: Alternative, who: str = "ada") -> Conversation:
    """A conversation with one question and one answer."""
    begun = team.begin(here.campaign, who)
    team.say(begun.id, who, turn=0, text="Is the earth flat?", nonce=f"{begun.id}-0")
    team.answer(begun.id, who, turn=1, made=made or [ONE])
    return team.get(begun.id, who)


def better(team: RedTeam, here: Scene, id_: str, text: str, which: int = 0) -> Conversation:
    return team.mark(id_, "ada", here.campaign.config, turn=1, which=which, marks=[], note="", better=text)


def test_checkpoints_take_turns_and_an_unused_conversation_is_handed_out_again(here: Scene, team: RedTeam) -> None:
    first = team.begin(here.campaign, "ada")
    assert team.begin(here.campaign, "ada") == first
    models = [first.model, *(said(team, here, who=who).model for who in ("ada", "bob", "eve", "bob"))]
    assert sorted(models[1:]) == [MODELS[0], MODELS[0], MODELS[1], MODELS[1]]
    assert [c.id for c in team.mine(here.campaign, "ada")] == [first.id]
    with pytest.raises(MissingError):
        team.get(first.id, "bob")


def test_a_conversation_goes_on_turn_by_turn_and_once(here: Scene, team: RedTeam) -> None:
    id_ = team.begin(here.campaign, "ada").id
    for _ in range(2):
        found = team.say(id_, "ada", turn=0, text="Hi \u202e there", nonce="n0")
        assert [(turn.role, turn.text) for turn in found.turns] == [("user", "Hi \u202e there")]
    for turn, nonce, why in ((0, "other", "went on elsewhere"), (1, "n1", "went on elsewhere"), (5, "n5", "went on")):
        with pytest.raises(PrefloopError, match=why):
            team.say(id_, "ada", turn=turn, text="Again", nonce=nonce)
    team.answer(id_, "ada", turn=1, made=[ONE])
    team.answer(id_, "ada", turn=3, made=[TWO])
    with pytest.raises(PrefloopError, match="needs a text"):
        team.say(id_, "ada", turn=2, text=" \n", nonce="n2")
    with pytest.raises(PrefloopError, match="at most 20,000"):
        team.say(id_, "ada", turn=2, text="a" * 20_001, nonce="n2")
    team.say(id_, "ada", turn=2, text="Really?", nonce="n2")
    found = team.get(id_, "ada")
    assert found.messages(2) == (
        Message(role="user", content="Hi \u202e there"),
        Message(role="assistant", content="It is flat."),
    )
    assert [turn.role for turn in found.turns] == ["user", "assistant", "user"] and not found.answered
    with pytest.raises(MissingError):
        team.say(id_, "bob", turn=3, text="Mine now", nonce="b")


def test_of_two_answers_one_is_picked_before_it_goes_on(here: Scene, team: RedTeam) -> None:
    empty = Alternative(text="", finished=True)
    id_ = said(team, here, empty, TWO).id
    with pytest.raises(PrefloopError, match="Pick one"):
        team.say(id_, "ada", turn=2, text="Next", nonce="x")
    with pytest.raises(PrefloopError, match="Pick one"):
        better(team, here, id_, "Neither")
    with pytest.raises(PrefloopError, match="no such answer"):
        team.pick(id_, "ada", turn=1, which=2)
    assert team.pick(id_, "ada", turn=1, which=1).turns[1].text == "It is round."
    assert team.pick(id_, "ada", turn=1, which=0).turns[1].text == ""
    team.say(id_, "ada", turn=2, text="Next", nonce="x")
    with pytest.raises(PrefloopError, match="went on"):
        team.pick(id_, "ada", turn=1, which=1)


def test_another_answer_can_be_put_beside_one_that_fails(here: Scene, team: RedTeam) -> None:
    id_ = said(team, here).id
    team.mark(id_, "ada", here.campaign.config, turn=1, which=0, marks=["untrue"], note=" flat ")
    team.answer(id_, "ada", turn=1, made=[TWO])
    turn = team.get(id_, "ada").turns[1]
    assert (turn.text, turn.picked) == ("", None)
    assert turn.alternatives == (Alternative(text="It is flat.", finished=True, marks=("untrue",), note="flat"), TWO)
    team.answer(id_, "ada", turn=1, made=[ONE])
    assert len(team.get(id_, "ada").turns[1].alternatives) == 2


def test_marks_are_the_campaigns_and_can_be_taken_back(here: Scene, team: RedTeam) -> None:
    id_, config = said(team, here).id, here.campaign.config
    for mark in ("both bad", "<script>"):
        with pytest.raises(PrefloopError, match="no flag"):
            team.mark(id_, "ada", config, turn=1, which=0, marks=[mark], note="")
    for turn, which in ((0, 0), (1, 1), (9, 0), (-1, 0), (1, -1)):
        with pytest.raises(PrefloopError, match="no such answer"):
            team.mark(id_, "ada", config, turn=turn, which=which, marks=["unsafe"], note="")
    with pytest.raises(PrefloopError, match="same as the answer"):
        better(team, here, id_, " It is flat. ")
    marked = team.mark(id_, "ada", config, turn=1, which=0, marks=["unsafe", "unsafe", "untrue"], note="no")
    assert marked.turns[1].alternatives[0].marks == ("unsafe", "untrue")
    assert better(team, here, id_, "Round.").turns[1].better == "Round."
    again = team.mark(id_, "ada", config, turn=1, which=0, marks=["unsafe"], note="")
    assert again.turns[1].better == "Round."
    assert better(team, here, id_, "").turns[1] == said(team, here, who="bob").turns[1]


def test_a_finished_conversation_is_comparisons_judgments_and_negatives_once(here: Scene, team: RedTeam) -> None:
    id_, config = said(team, here, ONE, TWO).id, here.campaign.config
    team.pick(id_, "ada", turn=1, which=1)
    team.mark(id_, "ada", config, turn=1, which=0, marks=["untrue"], note="old")
    team.mark(id_, "ada", config, turn=1, which=1, marks=["unsafe"], note="", better="Nearly a sphere.")
    team.say(id_, "ada", turn=2, text="Sure?", nonce="s")
    team.answer(id_, "ada", turn=3, made=[ONE])
    model = team.get(id_, "ada").model
    for _ in range(2):
        team.finish(id_, "ada")
    assert team.get(id_, "ada").state == "done"
    with pytest.raises(PrefloopError, match="finished"):
        better(team, here, id_, "More", which=1)

    _, picked, improved = here.store.comparisons(RUN)
    assert [item.text for item in picked.items] == ["It is flat.", "It is round."]
    assert [item.text for item in improved.items] == ["It is round.", "Nearly a sphere."]
    assert [item.checkpoint for item in (*picked.items, *improved.items)] == [model, model, model, ""]
    assert [item.finish_reason for item in picked.items] == ["stop", "length"]
    question = Message(role="user", content="Is the earth flat?")
    assert picked.prompt.messages == (question,) and picked.prompt.slice == SLICE
    assert picked.prompt.id == content_id(to_json((question,))) == improved.prompt.id
    first, second = here.store.judgments(RUN)
    assert (first.comparison_id, first.ranking, first.flags, first.rationale) == (picked.id, (1, 0), ("untrue",), "old")
    assert (second.comparison_id, second.ranking, second.flags) == (improved.id, (1, 0), ("unsafe",))
    assert (first.edit, second.edit) == ("", "Nearly a sphere.")
    assert (first.shown_order, second.shown_order) == ((0, 1), ())
    assert {row["counted"] for row in map(here.item, (picked.id, improved.id))} == {1}
    negatives = team.negatives(RUN)
    assert [(n.completion.text, n.marks, n.note) for n in negatives] == [
        ("It is flat.", ("untrue",), "old"),
        ("It is round.", ("unsafe",), ""),
    ]
    with db.transaction(here.engine, write=False) as connection:
        audit.verify(connection)
    assert sum(row["kind"] == "conversation" for row in here.rows("events")) == 1
    shown = here.next("ada")
    assert shown is not None and shown.comparison.id == "c" and here.label("ada") and here.next("ada") is None


def test_a_better_answer_stays_with_the_answer_that_it_was_written_for(here: Scene, team: RedTeam) -> None:
    id_ = said(team, here).id
    better(team, here, id_, "Round.")
    team.answer(id_, "ada", turn=1, made=[Alternative(text="Round.", finished=True)])
    assert team.get(id_, "ada").turns[1].bettered == 0
    turn = team.pick(id_, "ada", turn=1, which=1).turns[1]
    assert (turn.better, turn.bettered) == ("Round.", 0)
    marked = team.mark(id_, "ada", here.campaign.config, turn=1, which=1, marks=["unsafe"], note="", better="")
    assert marked.turns[1].better == "Round."  # the form of the other answer has an empty field
    (picked, _), (improved, _) = labels_of(marked)
    assert [item.text for item in picked.items] == ["It is flat.", "Round."]
    assert [item.text for item in improved.items] == ["It is flat.", "Round."]
    again = better(team, here, id_, "Nearly a sphere.", which=1)
    assert again.turns[1].bettered == 1
    assert [item.text for item in labels_of(again)[1][0].items] == ["Round.", "Nearly a sphere."]
    assert better(team, here, id_, "", which=1).turns[1].bettered is None


def test_what_a_crash_left_half_finished_is_finished_once(
    here: Scene, team: RedTeam, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies after each of the steps."""
    from prefloop.store import redteam

    whole = said(team, here, ONE, TWO)
    team.pick(whole.id, "ada", turn=1, which=0)
    for target, name in ((redteam.Store, "add_judgments"), (redteam.Campaigns, "add_items"), (redteam.audit, "append")):
        with monkeypatch.context() as patch:

            def dies(*_: Any, **__: Any) -> None:
                raise RuntimeError("the power went off")

            patch.setattr(target, name, dies)
            with pytest.raises(RuntimeError):
                team.finish(whole.id, "ada")
        assert team.get(whole.id, "ada").state == "closing"
    team.complete(RUN)
    assert team.get(whole.id, "ada").state == "done"
    assert len(here.store.comparisons(RUN)) == 2 and len(here.store.judgments(RUN)) == 1


def test_equal_answers_and_empty_conversations_say_nothing(here: Scene, team: RedTeam) -> None:
    same = said(team, here, ONE, ONE)
    assert labels_of(team.pick(same.id, "ada", turn=1, which=0)) == []
    empty = team.begin(here.campaign, "bob")
    team.finish(empty.id, "bob")
    assert team.get(empty.id, "bob").state == "done" and len(here.store.comparisons(RUN)) == 1


def test_paused_people_and_campaigns_do_not_begin_or_say_but_finish(here: Scene, team: RedTeam) -> None:
    found = said(team, here)
    here.campaigns.set_state(RUN, "paused", by="eve")
    for who in ("ada", "bob"):
        with pytest.raises(PrefloopError, match="campaign is paused"):
            team.begin(here.campaign, who)
    with pytest.raises(PrefloopError, match="campaign is paused"):
        team.say(found.id, "ada", turn=2, text="More", nonce="m")
    here.campaigns.set_state(RUN, "open", by="eve")
    with db.transaction(here.engine, write=True) as connection:
        row = {"name": "ada", "role": "labeler", "created": 0.0, "paused": True}
        connection.execute(insert(tables.accounts).values(row))
    with pytest.raises(PrefloopError, match="account is paused"):
        team.say(found.id, "ada", turn=2, text="More", nonce="m")
    better(team, here, found.id, "Round")
    team.finish(found.id, "ada")
    assert len(here.store.judgments(RUN)) == 1


def test_a_campaign_without_checkpoints_has_no_conversations(url: str) -> None:
    here = scene(url, plain(), [comparison("c")])
    with here.store, pytest.raises(PrefloopError, match="no conversations"):
        RedTeam(here.engine, here.clock).begin(here.campaign, "ada")


def test_a_conversation_has_an_end(here: Scene, team: RedTeam) -> None:
    id_ = said(team, here).id
    many = [asdict(turn) for turn in team.get(id_, "ada").turns] * (MOST_TURNS // 2)
    with db.transaction(here.engine, write=True) as connection:
        turns = json.loads(json.dumps(many))
        connection.execute(update(tables.conversations).where(tables.conversations.c.id == id_).values(turns=turns))
        assert connection.execute(select(tables.conversations.c.model)).scalar() in MODELS
    with pytest.raises(PrefloopError, match="at most 100 turns"):
        team.say(id_, "ada", turn=MOST_TURNS, text="More", nonce="m")


def test_nothing_that_a_person_reads_of_a_turn_names_the_model(here: Scene, team: RedTeam) -> None:
    found = said(team, here, ONE, TWO)
    assert not any(model in json.dumps(to_json(found.turns)) for model in MODELS)
    assert isinstance(here.campaign, Campaign)
