"""What labelers answer: checked, decoded from the places they saw to the items that stood there, kept in versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, insert, select, update

from prefloop.configs.campaign import STRENGTHS, CampaignConfig
from prefloop.store import audit, db, queries
from prefloop.store.assignment import Task, read_task, review_task
from prefloop.store.campaigns import Campaign
from prefloop.store.clock import Clock
from prefloop.store.tables import judgments, tasks
from prefloop.types import CANT_JUDGE, Json, Judgment, PrefloopError, to_json

LONGEST_TEXT = 100_000
LONGEST_SECONDS = 4 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a labeler says of a task, by the places at which the answers stood.

    `axes`: strength by axis of two, below 0 for the left one, above 0 for the right one, 0 a tie. `ranks`: of more than
    two, the rank of each place, 0 best. `ratings` and each of `checks`: one a place. `edit`: a better answer."""

    axes: Mapping[str, int] = field(default_factory=dict)
    ranks: Sequence[int] = ()
    flags: Sequence[str] = ()
    ratings: Sequence[int] = ()
    checks: Mapping[str, Sequence[bool]] = field(default_factory=dict)
    edit: str = ""
    rationale: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """An answer that is on disk. The same for each repetition of a request."""

    judgment: int
    version: int
    status: str
    late: bool


class AnswerError(PrefloopError):
    """An answer that its campaign does not allow. `fields`: what to mend, by "axis NAME" or the field of Answer."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(" ".join(fields.values()))
        self.fields = fields


class Answers:
    """Takes answers and takes them back."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock

    def submit(self, task_id: str, annotator: str, answer: Answer, *, nonce: str) -> Receipt:
        """Keep an answer; it is on disk when this returns. A nonce that was seen gives the receipt of then.

        Work is never turned away for being late: where the item's place went to another, it is kept as `extra`. A
        second answer to a task is a new version, and so is one to an item of which a label was imported. Raises
        MissingError for another's task, and AnswerError for an answer that its campaign's version does not allow."""
        return db.retried(self._engine, lambda connection: self._submit(connection, task_id, annotator, answer, nonce))

    def withdraw(self, campaign: Campaign, annotator: str) -> Task | None:
        """Undo: the labeler's last answer that stands is withdrawn, and its task open again with that answer as its
        draft. None where there is nothing to undo."""

        def work(connection: Connection) -> Task | None:
            mine = (judgments.c.run == campaign.run) & (judgments.c.annotator == annotator)
            stands = judgments.c.latest & ~judgments.c.withdrawn & judgments.c.task.is_not(None)
            last = select(judgments.c.task).where(mine, stands).order_by(judgments.c.number.desc()).limit(1)
            id_ = connection.execute(last).scalar()
            return None if id_ is None else self._withdraw(connection, id_, annotator)

        return db.retried(self._engine, work)

    def review(self, campaign: Campaign, comparison_id: str, reviewer: str, answer: Answer, *, nonce: str) -> Receipt:
        """A reviewer's own label of an item that they chose, having seen those of others; `answer` is by item.

        It counts where the item wants labels still, and is `extra` where not; a second one is a new version. The log
        says that it is a review. Raises MissingError and PrefloopError as `submit` does."""

        def work(connection: Connection) -> Receipt:
            now = self._clock()
            task_id = review_task(connection, campaign, reviewer, comparison_id, now)
            if before := _kept(connection, task_id, nonce):
                return before
            placed = _placed(answer, read_task(connection, task_id, reviewer).shown)
            receipt = self._submit(connection, task_id, reviewer, placed, nonce)
            content = {"run": campaign.run, "comparison": comparison_id, "judgment": receipt.judgment}
            audit.append(connection, at=now, actor=reviewer, kind="review", content=content)
            return receipt

        return db.retried(self._engine, work)

    def given(self, task: Task) -> dict[str, Json] | None:
        """The answer to a task, as the fields of an Answer; None where none stands."""
        with db.transaction(self._engine, write=False) as connection:
            last = _latest(connection, task.id)
        return None if last is None or last["withdrawn"] else encode(task, last["content"])

    def receipt(self, task_id: str, nonce: str) -> Receipt | None:
        """What an answer with this nonce was kept as; None where there was none."""
        with db.transaction(self._engine, write=False) as connection:
            return _kept(connection, task_id, nonce)

    def _submit(self, connection: Connection, task_id: str, annotator: str, answer: Answer, nonce: str) -> Receipt:
        task, now = read_task(connection, task_id, annotator, lock=True), self._clock()
        if before := _kept(connection, task_id, nonce):
            return before
        judgment = decode(task, annotator, answer)
        last = _before(connection, task, annotator)
        late = task.state == "expired" or (task.state == "open" and task.lease_until < now)
        status = self._settle(connection, task, judgment, last)
        row = {
            "status": status,
            "late": late,
            "withdrawn": False,
            "nonce": nonce,
            "server_seconds": max(now - task.opened, 0.0),
            **told(judgment),
        }
        number, version = self._insert(connection, task, annotator, last, row, now)
        connection.execute(queries.FINISH, {"b_task": task_id})
        audit.append(connection, at=now, actor=annotator, kind="label", judged=[number])
        return Receipt(judgment=number, version=version, status=status, late=late)

    def _settle(self, connection: Connection, task: Task, judgment: Judgment, last: RowMapping | None) -> str:
        """What the answer counts as; the item's counts follow."""
        stood = last["status"] if last is not None and not last["withdrawn"] else None
        if task.kind in ("gold", "repeat"):
            return task.kind
        unjudged = judgment.ranking is None
        # Places among those wanted that are ours: two, where a label was imported while the task was open.
        places = (task.state == "open") + (stood == "counted")
        if not (places or unjudged):
            places = connection.execute(queries.PLACE, {"b_run": task.run, "b_item": task.comparison.id}).rowcount
        status = "unjudged" if unjudged else "counted" if places else "extra"
        if spare := places - (status == "counted"):
            _move(connection, task, taken=-spare)
        if (change := (status == "counted") - (stood == "counted")) != 0:
            _move(connection, task, counted=change)
        return status

    def _withdraw(self, connection: Connection, task_id: str, annotator: str) -> Task:
        task, now = read_task(connection, task_id, annotator, lock=True), self._clock()
        last = _latest(connection, task_id)
        assert last is not None
        if last["status"] == "counted":  # its place among those wanted stays ours while the task is open
            _move(connection, task, counted=-1)
            state = "open"
        elif task.kind in ("gold", "repeat"):
            state = "open"
        else:
            state = "expired"
        row = {name: last[name] for name in ("status", "late", "server_seconds", *TOLD)}
        number, _ = self._insert(connection, task, annotator, last, {**row, "withdrawn": True, "nonce": None}, now)
        until = now + task.config.lease_minutes * 60
        draft = encode(task, last["content"])
        values = {"state": state, "opened": now, "lease_until": until, "draft": draft}
        connection.execute(update(tasks).where(tasks.c.id == task_id).values(values))
        audit.append(connection, at=now, actor=annotator, kind="withdraw", judged=[number])
        return replace(task, state=state, opened=now, lease_until=until, draft=draft)

    def _insert(
        self,
        connection: Connection,
        task: Task,
        annotator: str,
        last: RowMapping | None,
        row: Mapping[str, Json],
        now: float,
    ) -> tuple[int, int]:
        version = 1 if last is None else last["version"] + 1
        if last is not None:
            connection.execute(update(judgments).where(judgments.c.number == last["number"]).values(latest=False))
        key = {"run": task.run, "comparison_id": task.comparison.id, "annotator": annotator, "version": version}
        facts = {"repeat": int(task.kind == "repeat"), "task": task.id, "campaign_version": task.version, "at": now}
        uniform = connection.execute(queries.WAS_UNIFORM, {"b_task": task.id}).scalar_one()
        made = connection.execute(insert(judgments), {**key, **facts, **row, "uniform": uniform})
        number: int = made.inserted_primary_key[0]  # type: ignore[index]  # an inserted row has one
        return number, version


def decode(task: Task, annotator: str, answer: Answer) -> Judgment:
    """An answer by places as a judgment by items. Raises AnswerError where the campaign does not ask it so."""
    if problems := dict(_problems(task, answer)):
        raise AnswerError(problems)
    count, shown, config = len(task.shown), task.shown, task.config
    at = [shown.index(item) for item in range(count)]  # the place of each item
    unjudged = CANT_JUDGE in answer.flags
    rated = bool(answer.ratings) and _rated(config, count, answer)  # of what cannot be judged some may be missing
    sign = -1 if shown[0] == 0 else 1
    axes = {} if unjudged else {name: sign * value for name, value in answer.axes.items()}
    choice = axes.get(config.axes[0], 0)
    ranking: tuple[int, ...] | None = None
    if not unjudged:
        ranking = (
            (int(choice < 0), int(choice > 0)) if count == 2 else _dense([answer.ranks[at[i]] for i in range(count)])
        )
    return Judgment(
        comparison_id=task.comparison.id,
        annotator=annotator,
        ranking=ranking,
        strength=abs(choice) or None,
        axes=axes,
        flags=tuple(answer.flags),
        ratings=tuple(answer.ratings[at[i]] for i in range(count)) if rated else (),
        checks={name: tuple(met[at[i]] for i in range(count)) for name, met in answer.checks.items()},
        edit=answer.edit,
        rationale=answer.rationale,
        shown_order=shown,
        seconds=None if answer.seconds is None else min(max(answer.seconds, 0.0), LONGEST_SECONDS),
    )


def encode(task: Task, content: Mapping[str, Json]) -> dict[str, Json]:
    """A judgment's content as the fields of an Answer, by the places that the task shows: the inverse of `decode`."""
    shown = task.shown
    sign = -1 if shown[0] == 0 else 1
    ranking = content["ranking"]
    return {
        "axes": {name: sign * value for name, value in content["axes"].items()},
        "ranks": [ranking[item] for item in shown] if ranking and len(shown) > 2 else [],
        "flags": list(content["flags"]),
        "ratings": [content["ratings"][item] for item in shown] if content["ratings"] else [],
        "checks": {name: [met[item] for item in shown] for name, met in content["checks"].items()},
        "edit": content["edit"],
        "rationale": content["rationale"],
    }


def told(judgment: Judgment) -> dict[str, Json]:
    """The columns of `judgments` that hold what was said."""
    two = judgment.ranking is not None and len(judgment.ranking) == 2
    return {
        "choice": judged_choice(judgment),
        "left": judgment.shown_order[0] if two and judgment.shown_order else None,
        "axes": dict(judgment.axes) if two and judgment.axes else None,
        "seconds": judgment.seconds,
        "content": to_json(judgment),
    }


TOLD = ("choice", "left", "axes", "seconds", "content")


def judged_choice(judgment: Judgment) -> int | None:
    """Of two items: strength in favour of item 0, below 0 of item 1, 0 a tie; 1 where no strength was given."""
    if judgment.ranking is None or len(judgment.ranking) != 2:
        return None
    a, b = judgment.ranking
    return ((a < b) - (a > b)) * (judgment.strength or 1)


def _problems(task: Task, answer: Answer) -> Iterator[tuple[str, str]]:
    """(where, what to mend), at most one for each place."""
    config, count = task.config, len(task.shown)
    unjudged = CANT_JUDGE in answer.flags
    if odd := [flag for flag in answer.flags if flag not in (*config.flags, CANT_JUDGE)]:
        yield "flags", f"This campaign has no flag {odd[0]!r}."
    elif len(set(answer.flags)) < len(answer.flags):
        yield "flags", "A flag was given twice."
    if (count == 2 and answer.ranks) or (count > 2 and answer.axes):
        yield "ranks", "Two answers are compared, more are ranked."
    elif not unjudged:
        yield from _unchosen(config, answer) if count == 2 else _unranked(config, count, answer)
    if answer.ratings and not config.ratings:
        yield "ratings", "Ratings are given only where the campaign asks for them."
    elif not (unjudged or _rated(config, count, answer)):
        yield "ratings", "Rate each answer from 1 to 7, please."
    if any(name not in config.rubric or len(met) != count for name, met in answer.checks.items()):
        yield "checks", "These boxes are not those of the campaign; reload the page."
    if answer.edit and not config.edits:
        yield "edit", "This campaign does not ask for better answers."
    elif len(answer.edit) > LONGEST_TEXT:
        yield "edit", f"A text has at most {LONGEST_TEXT:,} characters."
    if len(answer.rationale) > LONGEST_TEXT:
        yield "rationale", f"A text has at most {LONGEST_TEXT:,} characters."
    elif config.rationale == "required" and not answer.rationale.strip():
        yield "rationale", "Say why, please: this campaign asks for a reason."


def _rated(config: CampaignConfig, count: int, answer: Answer) -> bool:
    if not answer.ratings:
        return not config.ratings
    return len(answer.ratings) == count and all(1 <= rating <= 7 for rating in answer.ratings)


def _unchosen(config: CampaignConfig, answer: Answer) -> Iterator[tuple[str, str]]:
    if odd := [name for name in answer.axes if name not in config.axes]:
        yield f"axis {odd[0]}", f"This campaign does not ask about {odd[0]!r}; reload the page."
    for name in config.axes:
        value = answer.axes.get(name)
        if value is None:
            yield f"axis {name}", f"Choose an answer for {name!r}, please."
        elif abs(value) > len(STRENGTHS) or (value == 0 and not config.ties):
            yield f"axis {name}", f"{value} is no choice for {name!r} here."


def _unranked(config: CampaignConfig, count: int, answer: Answer) -> Iterator[tuple[str, str]]:
    if len(answer.ranks) != count or not all(0 <= rank < count for rank in answer.ranks):
        yield "ranks", f"Rank all {count} answers, please."
    elif not config.ties and len(set(answer.ranks)) < count:
        yield "ranks", "This campaign has no ties: give each answer a rank of its own."


def _placed(answer: Answer, shown: Sequence[int]) -> Answer:
    """An answer by item as one by the places where the items stood."""
    sign = 1 if shown[0] == 0 else -1

    def moved(values: Sequence[Any]) -> Sequence[Any]:
        return [values[item] for item in shown] if len(values) == len(shown) else values

    return replace(
        answer,
        axes={name: sign * value for name, value in answer.axes.items()},
        ranks=moved(answer.ranks),
        ratings=moved(answer.ratings),
        checks={name: moved(met) for name, met in answer.checks.items()},
    )


def _dense(ranks: Sequence[int]) -> tuple[int, ...]:
    """[0, 2, 2] -> (0, 1, 1)"""
    order = sorted(set(ranks))
    return tuple(order.index(rank) for rank in ranks)


def _move(connection: Connection, task: Task, *, taken: int = 0, counted: int = 0) -> None:
    item = {"b_run": task.run, "b_item": task.comparison.id}
    connection.execute(queries.MOVED, {**item, "b_taken": taken, "b_counted": counted})
    if counted and (where := connection.execute(queries.STRATUM, item).first()):  # none while it is held back
        group = {"b_run": task.run, "b_slice": where.slice, "b_mix": where.mix}
        connection.execute(queries.COUNTED, {**group, "b_counted": counted})


def _latest(connection: Connection, task_id: str) -> RowMapping | None:
    return connection.execute(queries.LATEST, {"b_task": task_id}).mappings().first()


def _before(connection: Connection, task: Task, annotator: str) -> RowMapping | None:
    item = {"b_run": task.run, "b_item": task.comparison.id, "b_who": annotator, "b_repeat": int(task.kind == "repeat")}
    return connection.execute(queries.BEFORE, item).mappings().first()


def _kept(connection: Connection, task_id: str, nonce: str) -> Receipt | None:
    row = connection.execute(queries.KEPT, {"b_nonce": nonce, "b_task": task_id}).mappings().first()
    return None if row is None else Receipt(**row)
