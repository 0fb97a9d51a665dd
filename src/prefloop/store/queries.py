"""Statements that every task goes through, made once: making one takes longer than running it. Their parameters are
named b_..., which no column is."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BindParameter, and_, bindparam, func, or_, select, update

from prefloop.store.tables import accounts, campaign_versions, campaigns, comparisons, desks, judgments, strata, tasks
from prefloop.types import Json

REPEAT_AFTER = 10
"""Tasks between an item and its return."""
_RELEASED_AT_ONCE = 200
_RECENT_ANSWERS = 50  # that a labeler's pace goes by

_RUN: BindParameter[str] = bindparam("b_run")
_WHO: BindParameter[str] = bindparam("b_who")
_ITEM = (comparisons.c.run == _RUN) & (comparisons.c.id == bindparam("b_item"))
_STRATUM = (strata.c.run == _RUN) & (strata.c.slice == bindparam("b_slice")) & (strata.c.mix == bindparam("b_mix"))
_MINE = (tasks.c.run == _RUN) & (tasks.c.annotator == _WHO)
_PAUSED = select(accounts.c.paused).where(accounts.c.name == _WHO).scalar_subquery().label("paused")
OPENING = select(campaigns.c.state, campaigns.c.salt, _PAUSED).where(campaigns.c.run == _RUN)
OPEN_TASK = select(tasks.c.id).where(_MINE, tasks.c.state == "open").order_by(tasks.c.number).limit(1)
HOLD = update(tasks).where(tasks.c.id == bindparam("b_id")).values(lease_until=bindparam("b_until"))
AGAIN = select(tasks.c.id).where(
    _MINE, tasks.c.comparison_id == bindparam("b_item"), tasks.c.repeat == bindparam("b_repeat")
)
STRATA = select(strata).where(strata.c.run == _RUN)

TASK = (
    select(tasks, comparisons.c.prompt, comparisons.c["items"], campaign_versions.c.config)
    .join(comparisons, (comparisons.c.run == tasks.c.run) & (comparisons.c.id == tasks.c.comparison_id))
    .join(
        campaign_versions,
        (campaign_versions.c.run == tasks.c.run) & (campaign_versions.c.version == tasks.c.campaign_version),
    )
    .where(tasks.c.id == bindparam("b_id"), tasks.c.annotator == _WHO)
)
TASK_LOCKED = TASK.with_for_update(of=tasks)

_SEAT = (desks.c.run == _RUN) & (desks.c.annotator == _WHO)
DESK = select(desks).where(_SEAT).with_for_update()
SEATED = (
    update(desks)
    .where(_SEAT)
    .values(
        handed=desks.c.handed + 1,
        pairs=desks.c.pairs + bindparam("b_pairs"),
        turned=desks.c.turned + bindparam("b_turned"),
    )
)

OVER = (
    select(tasks.c.number, tasks.c.comparison_id, tasks.c.kind)
    .where(tasks.c.run == _RUN, tasks.c.state == "open", tasks.c.lease_until < bindparam("b_now"))
    .order_by(tasks.c.number)
    .limit(_RELEASED_AT_ONCE)
    .with_for_update(skip_locked=True)
)

ITEM = select(comparisons).where(_ITEM)
HANDED = (
    update(comparisons)
    .where(_ITEM)
    .values(
        taken=comparisons.c.taken + bindparam("b_taken"),
        shown=comparisons.c.shown + bindparam("b_shown"),
        turned=comparisons.c.turned + bindparam("b_turned"),
    )
)
GIVEN = update(strata).where(_STRATUM).values(handed=strata.c.handed + 1)

# No task of this labeler's on the item, but for those whose lease ran out; and no judgment that stands.
_UNSEEN = and_(
    ~select(tasks.c.number)
    .where(_MINE, tasks.c.comparison_id == comparisons.c.id, or_(tasks.c.state != "expired", tasks.c.repeat > 0))
    .exists(),
    ~select(judgments.c.number)
    .where(
        judgments.c.run == _RUN,
        judgments.c.annotator == _WHO,
        judgments.c.comparison_id == comparisons.c.id,
        judgments.c.latest,
        ~judgments.c.withdrawn,
    )
    .exists(),
)
_FREE = comparisons.c.taken < comparisons.c.needed
_WAITING = and_(comparisons.c.run == _RUN, _FREE, comparisons.c.held == "", _UNSEEN)


def _offer(*where: Json, order: Sequence[Json] = (comparisons.c.shuffle,)) -> Json:
    query = select(comparisons.c.id, comparisons.c.priority, comparisons.c.shuffle).where(*where).order_by(*order)
    return query.limit(1).with_for_update(skip_locked=True)


GOLD = _offer(comparisons.c.run == _RUN, comparisons.c.gold.is_not(None), comparisons.c.held == "", _UNSEEN)
SHARED = _offer(_WAITING, comparisons.c.shared)
# The first of a random order: uniform among all that wait, without replacement.
UNIFORM = _offer(_WAITING, comparisons.c.gold.is_(None))
TARGETED = _offer(
    _WAITING,
    comparisons.c.slice == bindparam("b_slice"),
    comparisons.c.mix == bindparam("b_mix"),
    comparisons.c.gold.is_(None),
    order=(comparisons.c.priority.desc(), comparisons.c.shuffle),
)

_TWICE = tasks.alias()
# What this labeler answered and has not seen twice, the latest first.
ANSWERED = (
    select(tasks.c.comparison_id)
    .where(
        _MINE,
        tasks.c.state == "done",
        tasks.c.kind.in_(("item", "shared")),
        select(comparisons.c.held)
        .where(comparisons.c.run == _RUN, comparisons.c.id == tasks.c.comparison_id)
        .scalar_subquery()
        == "",
        ~select(_TWICE.c.number)
        .where(
            _TWICE.c.run == _RUN,
            _TWICE.c.annotator == _WHO,
            _TWICE.c.comparison_id == tasks.c.comparison_id,
            _TWICE.c.repeat > 0,
        )
        .exists(),
    )
    .order_by(tasks.c.number.desc())
    .limit(10 * REPEAT_AFTER)
)

# Keeping an answer.
PLACE = update(comparisons).where(_ITEM, _FREE).values(taken=comparisons.c.taken + 1)
MOVED = (
    update(comparisons)
    .where(_ITEM)
    .values(
        taken=comparisons.c.taken + bindparam("b_taken"),
        counted=comparisons.c.counted + bindparam("b_counted"),
    )
)
STRATUM = select(comparisons.c.slice, comparisons.c.mix).where(_ITEM, comparisons.c.held == "")
COUNTED = update(strata).where(_STRATUM).values(counted=strata.c.counted + bindparam("b_counted"))
WAS_UNIFORM = select(tasks.c.uniform).where(tasks.c.id == bindparam("b_task"))
FINISH = update(tasks).where(tasks.c.id == bindparam("b_task")).values(state="done", draft=None)
LATEST = select(judgments).where(judgments.c.task == bindparam("b_task"), judgments.c.latest)
BEFORE = select(judgments).where(  # the answer that a new one replaces: of this task, or imported
    judgments.c.run == _RUN,
    judgments.c.comparison_id == bindparam("b_item"),
    judgments.c.annotator == _WHO,
    judgments.c.repeat == bindparam("b_repeat"),
    judgments.c.latest,
)
KEPT = select(judgments.c.number.label("judgment"), judgments.c.version, judgments.c.status, judgments.c.late).where(
    judgments.c.nonce == bindparam("b_nonce"), judgments.c.task == bindparam("b_task")
)

# How far a labeler is.
DONE = (
    select(tasks.c.kind, func.count())
    .where(tasks.c.run == _RUN, tasks.c.annotator == _WHO, tasks.c.state == "done")
    .group_by(tasks.c.kind)
)
DONE_THEN_HELD = (  # of these, items that were held back since
    select(func.count())
    .select_from(comparisons)
    .join(tasks, (tasks.c.run == comparisons.c.run) & (tasks.c.comparison_id == comparisons.c.id))
    .where(comparisons.c.run == _RUN, comparisons.c.held != "", tasks.c.annotator == _WHO, tasks.c.state == "done")
    .where(tasks.c.kind.in_(("item", "shared")))
)
SECONDS = (
    select(judgments.c.server_seconds)
    .where(judgments.c.run == _RUN, judgments.c.annotator == _WHO)
    .order_by(judgments.c.number.desc())
    .limit(_RECENT_ANSWERS)
)
