"""Conversations in which people look for where a checkpoint fails: what was said, what was marked, what is better.

An open conversation is work in progress; a finished one becomes comparisons and judgments, which are audited."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, Engine, RowMapping, insert, select, update

from prefloop.configs.campaign import BOTH_BAD, CampaignConfig
from prefloop.data.jsonl import content_id, text_completion
from prefloop.store import audit, db
from prefloop.store.answers import LONGEST_TEXT
from prefloop.store.campaigns import Campaign, Campaigns, Item, MissingError, why_held
from prefloop.store.clock import Clock
from prefloop.store.labels import Store
from prefloop.store.tables import accounts, campaigns, conversations
from prefloop.types import Comparison, Completion, Judgment, Message, PrefloopError, Prompt, from_json, to_json

SLICE = "red team"
LONGEST_MESSAGE = 20_000
MOST_TURNS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One answer of a checkpoint, whether it ended by itself, and where it fails: kinds of failure, a note."""

    text: str
    finished: bool
    marks: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What was said once, by the person (role "user", with the nonce of the request that brought it) or the checkpoint:
    one answer or two `alternatives`, the place of which was `picked` (none yet: None), and what would be `better` than
    the one at place `better_than` (None: the one picked)."""

    role: str
    text: str
    nonce: str = ""
    alternatives: tuple[Alternative, ...] = ()
    picked: int | None = None
    better: str = ""
    better_than: int | None = None

    @property
    def bettered(self) -> int | None:
        """The place of the answer that `better` was written for, whichever is picked since; None without one."""
        if not self.better:
            return None
        return self.picked if self.better_than is None else self.better_than


Turns = tuple[Turn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """state: open, closing (its labels are being written) or done. `model` is not for the labeler."""

    id: str
    run: str
    annotator: str
    model: str
    turns: Turns
    state: str
    opened: float

    @property
    def answered(self) -> bool:
        """Whether the person is next."""
        return not self.turns or self.turns[-1].role == "assistant"

    def messages(self, before: int) -> tuple[Message, ...]:
        """What was said before turn `before`."""
        return tuple(Message(role=turn.role, content=turn.text) for turn in self.turns[:before])


@dataclass(frozen=True, slots=True, kw_only=True)
class Negative:
    """An answer in which a person found a failure."""

    prompt: Prompt
    completion: Completion
    annotator: str
    marks: tuple[str, ...] = ()
    note: str = ""


def kinds_of_failure(config: CampaignConfig) -> tuple[str, ...]:
    """What can be marked of one answer: the campaign's flags."""
    return tuple(flag for flag in config.flags if flag != BOTH_BAD)


class RedTeam:
    """Conversations of a label store. A conversation of another person does not exist: MissingError."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock

    def begin(self, campaign: Campaign, annotator: str) -> Conversation:
        """A new conversation, with the checkpoint that has had fewest; the person's own where nothing was said yet.

        Raises PrefloopError where the campaign lists no checkpoint, or it or the person is paused."""
        table = conversations

        def work(connection: Connection) -> str:
            _check_open(connection, campaign.run, annotator)
            if not campaign.config.red_team:
                raise PrefloopError("This campaign has no conversations; ask whoever invited you.")
            query = select(table).where(table.c.run == campaign.run, table.c.annotator == annotator)
            query = query.where(table.c.state == "open").with_for_update()
            for row in connection.execute(query.order_by(table.c.number)).mappings():
                if not row["turns"]:
                    return str(row["id"])
            had = Counter(connection.execute(select(table.c.model).where(table.c.run == campaign.run)).scalars())
            fewest = min(had[model] for model in campaign.config.red_team)
            model = secrets.choice([model for model in campaign.config.red_team if had[model] == fewest])
            id_ = secrets.token_urlsafe(16)
            new = {"id": id_, "run": campaign.run, "annotator": annotator, "model": model, "turns": [], "state": "open"}
            connection.execute(insert(table).values(**new, opened=self._clock()))
            return id_

        return self.get(db.retried(self._engine, work), annotator)

    def check_open(self, found: Conversation) -> None:
        """Raises PrefloopError where nothing more can be said: the campaign is not open, or the person is paused."""
        with db.transaction(self._engine, write=False) as connection:
            _check_open(connection, found.run, found.annotator)

    def get(self, id_: str, annotator: str) -> Conversation:
        """A person's own conversation."""
        with db.transaction(self._engine, write=False) as connection:
            return _read(connection, id_, annotator)

    def mine(self, campaign: Campaign, annotator: str) -> list[Conversation]:
        """A person's conversations in a campaign, the newest first."""
        table = conversations
        mine = (table.c.run == campaign.run) & (table.c.annotator == annotator)
        with db.transaction(self._engine, write=False) as connection:
            rows = connection.execute(select(table).where(mine).order_by(table.c.number.desc())).mappings().all()
        return [_conversation(row) for row in rows]

    def say(self, id_: str, annotator: str, *, turn: int, text: str, nonce: str) -> Conversation:
        """The person's next message, as turn number `turn`; the same nonce again changes nothing."""

        def change(connection: Connection, found: Conversation) -> Turns:
            if turn < len(found.turns) and found.turns[turn].nonce == nonce:
                return found.turns
            _check_open(connection, found.run, annotator)
            if turn != len(found.turns) or not found.answered:
                raise PrefloopError(
                    "This conversation went on elsewhere; reload the page, what you wrote was not sent."
                )
            if found.turns and found.turns[-1].picked is None:
                raise PrefloopError("Pick one of the two answers first.")
            if not text.strip():
                raise PrefloopError("A message needs a text.")
            if len(text) > LONGEST_MESSAGE:
                raise PrefloopError(f"A message has at most {LONGEST_MESSAGE:,} characters.")
            if turn >= MOST_TURNS:
                raise PrefloopError(f"A conversation has at most {MOST_TURNS} turns; finish this one.")
            return (*found.turns, Turn(role="user", text=text, nonce=nonce))

        return self._change(id_, annotator, change)

    def answer(self, id_: str, annotator: str, *, turn: int, made: Sequence[Alternative]) -> None:
        """What the checkpoint said, as turn number `turn`: one answer, or two to pick from; or one more that is put
        beside the answer that stands there. Where the conversation went another way meanwhile, it is dropped."""

        def change(_: Connection, found: Conversation) -> Turns:
            last = found.turns[-1] if found.turns else None
            if turn == len(found.turns) and not found.answered:
                new = Turn(role="assistant", text="", alternatives=tuple(made))
                return (*found.turns, _pick(new, 0) if len(made) == 1 else new)
            if last and turn == len(found.turns) - 1 and len(last.alternatives) == 1:
                both = (*last.alternatives, *made)
                return (*found.turns[:-1], replace(last, text="", picked=None, alternatives=both))
            return found.turns

        self._change(id_, annotator, change)

    def pick(self, id_: str, annotator: str, *, turn: int, which: int) -> Conversation:
        """The better of two answers: the conversation goes on from it."""

        def change(_: Connection, found: Conversation) -> Turns:
            given = _answer_at(found, turn, which)
            if turn != len(found.turns) - 1:
                raise PrefloopError("This conversation went on from the other answer; reload the page.")
            return (*found.turns[:-1], _pick(given, which))

        return self._change(id_, annotator, change)

    def mark(
        self,
        id_: str,
        annotator: str,
        config: CampaignConfig,
        *,
        turn: int,
        which: int,
        marks: Sequence[str],
        note: str,
        better: str | None = None,
    ) -> Conversation:
        """Where an answer fails and, of the one that was given or picked, what would have been better: one text a turn.
        Nothing given takes it back where it was written for this answer; None leaves what is there."""

        def change(_: Connection, found: Conversation) -> Turns:
            given = _answer_at(found, turn, which)
            if odd := [mark for mark in marks if mark not in kinds_of_failure(config)]:
                raise PrefloopError(f"This campaign has no flag {odd[0]!r}.")
            if max(len(note), len(better or "")) > LONGEST_TEXT:
                raise PrefloopError(f"A text has at most {LONGEST_TEXT:,} characters.")
            if better and given.picked != which:
                raise PrefloopError("Pick one of the two answers first, then write what would be better than it.")
            if better and better.strip() == given.alternatives[which].text.strip():
                raise PrefloopError("The better answer is the same as the answer; change it, or leave it empty.")
            alternatives = list(given.alternatives)
            alternatives[which] = replace(alternatives[which], marks=tuple(dict.fromkeys(marks)), note=note.strip())
            new = replace(given, alternatives=tuple(alternatives))
            if better is not None and (better.strip() or which == given.bettered):
                new = replace(new, better=better.strip(), better_than=which if better.strip() else None)
            return (*found.turns[:turn], new, *found.turns[turn + 1 :])

        return self._change(id_, annotator, change)

    def finish(self, id_: str, annotator: str) -> None:
        """End a conversation: its comparisons and judgments are in the store when this returns, once."""
        with db.transaction(self._engine, write=True, turns=False) as connection:
            found = _read(connection, id_, annotator, lock=True)
            if found.state == "open":
                connection.execute(update(conversations).where(conversations.c.id == id_).values(state="closing"))
        self.complete(found.run)

    def complete(self, run: str) -> None:
        """Write the labels of conversations that were finished and are not done, as after a crash."""
        table = conversations
        with db.transaction(self._engine, write=False) as connection:
            query = select(table).where(table.c.run == run, table.c.state == "closing")
            waiting = [_conversation(row) for row in connection.execute(query).mappings()]
        for conversation in waiting:
            self._label(conversation)

    def negatives(self, run: str) -> list[Negative]:
        """The answers of finished conversations in which a failure was found."""
        table = conversations
        with db.transaction(self._engine, write=False) as connection:
            query = select(table).where(table.c.run == run, table.c.state == "done").order_by(table.c.number)
            found = [_conversation(row) for row in connection.execute(query).mappings()]
        return [
            Negative(
                prompt=_prompt(conversation, place),
                completion=_completion(conversation, place, alternative),
                annotator=conversation.annotator,
                marks=alternative.marks,
                note=alternative.note,
            )
            for conversation in found
            for place, turn in enumerate(conversation.turns)
            for alternative in turn.alternatives
            if alternative.marks or alternative.note
        ]

    def _label(self, conversation: Conversation) -> None:
        """Each step bears being done twice, so that one that was cut off is done again."""
        labeled = labels_of(conversation)
        store, found = Store(self._engine), Campaigns(self._engine, self._clock)
        if labeled:
            mix = "adversarial" if "adversarial" in found.by_run(conversation.run).config.mix else ""
            items = [Item(comparison_id=c.id, mix=mix, held=why_held(c)) for c, _ in labeled]
            store.add_comparisons(conversation.run, [comparison for comparison, _ in labeled])
            store.add_judgments(conversation.run, [judgment for _, judgment in labeled], simulated=False)
            found.add_items(conversation.run, items, by=conversation.annotator)
        with db.transaction(self._engine, write=True) as connection:
            mine = (conversations.c.id == conversation.id) & (conversations.c.state == "closing")
            if connection.execute(update(conversations).where(mine).values(state="done")).rowcount:
                content = {"run": conversation.run, "id": conversation.id, "comparisons": len(labeled)}
                by = conversation.annotator
                audit.append(connection, at=self._clock(), actor=by, kind="conversation", content=content)

    def _change(self, id_: str, annotator: str, change: Callable[[Connection, Conversation], Turns]) -> Conversation:
        def work(connection: Connection) -> Conversation:
            found = _read(connection, id_, annotator, lock=True)
            if found.state != "open":
                raise PrefloopError("This conversation is finished; begin another one.")
            turns = change(connection, found)
            if turns != found.turns:
                kept = [to_json(turn) for turn in turns]
                connection.execute(update(conversations).where(conversations.c.id == id_).values(turns=kept))
            return replace(found, turns=turns)

        return db.retried(self._engine, work)


def labels_of(conversation: Conversation) -> list[tuple[Comparison, Judgment]]:
    """What a conversation says of its answers: the one picked beats the other, which stood beside it, and a better one
    the answer that it was written for, which it did not stand beside."""
    made = []
    for place, turn in enumerate(conversation.turns):
        prompt = _prompt(conversation, place)
        given = [_completion(conversation, place, alternative) for alternative in turn.alternatives]
        if turn.picked is not None and len(given) > 1 and given[0].text.strip() != given[1].text.strip():
            loser = turn.alternatives[1 - turn.picked]
            made.append(_label(conversation, f"{place} picked", prompt, given, turn.picked, loser, "", (0, 1)))
        if turn.bettered is not None:
            items = [given[turn.bettered], text_completion(prompt, turn.better)]
            loser = turn.alternatives[turn.bettered]
            made.append(_label(conversation, f"{place} better", prompt, items, 1, loser, turn.better, ()))
    return made


def _label(
    conversation: Conversation,
    name: str,
    prompt: Prompt,
    items: Sequence[Completion],
    best: int,
    loser: Alternative,
    edit: str,
    shown_order: tuple[int, ...],
) -> tuple[Comparison, Judgment]:
    id_ = content_id(conversation.id, name)
    judgment = Judgment(
        comparison_id=id_,
        annotator=conversation.annotator,
        ranking=(int(best != 0), int(best != 1)),
        flags=loser.marks,
        edit=edit,
        rationale=loser.note,
        shown_order=shown_order,
    )
    return Comparison(id=id_, prompt=prompt, items=tuple(items)), judgment


def _prompt(conversation: Conversation, place: int) -> Prompt:
    messages = conversation.messages(place)
    return Prompt(id=content_id(to_json(messages)), messages=messages, slice=SLICE)


def _completion(conversation: Conversation, place: int, given: Alternative) -> Completion:
    made = text_completion(_prompt(conversation, place), given.text)
    return replace(made, finish_reason="stop" if given.finished else "length", checkpoint=conversation.model)


def _answer_at(conversation: Conversation, turn: int, which: int) -> Turn:
    given = conversation.turns[turn] if 0 <= turn < len(conversation.turns) else None
    if given is None or not 0 <= which < len(given.alternatives):
        raise PrefloopError("There is no such answer here; reload the page.")
    return given


def _pick(turn: Turn, which: int) -> Turn:
    return replace(turn, text=turn.alternatives[which].text, picked=which)


def _check_open(connection: Connection, run: str, annotator: str) -> None:
    state = connection.execute(select(campaigns.c.state).where(campaigns.c.run == run)).scalar()
    if state != "open":
        raise PrefloopError(f"This campaign is {state}; ask whoever invited you. What was said so far can be finished.")
    if connection.execute(select(accounts.c.paused).where(accounts.c.name == annotator)).scalar():
        raise PrefloopError("Your account is paused; ask whoever invited you.")


def _read(connection: Connection, id_: str, annotator: str, *, lock: bool = False) -> Conversation:
    query = select(conversations).where(conversations.c.id == id_, conversations.c.annotator == annotator)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    if row is None:
        raise MissingError("There is no such conversation of yours.")
    return _conversation(row)


def _conversation(row: RowMapping) -> Conversation:
    names = ("id", "run", "annotator", "model", "state", "opened")
    turns = tuple(from_json(Turn, turn, f"conversation {row['id']} in the store") for turn in row["turns"])
    return Conversation(**{name: row[name] for name in names}, turns=turns)
