from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import func, select

from prefloop.store import db, tables
from prefloop.store.answers import Answer
from prefloop.store.campaigns import Item, recount
from prefloop.store.progress import Progress, agreement
from prefloop.types import CANT_JUDGE
from tests.store.scene import RUN, Scene, answer, comparison, plain

Stage = Callable[..., Scene]


def progress(here: Scene) -> Progress:
    return Progress(here.engine, here.clock)


def test_pace_and_time_left_follow_from_when_labels_came(stage: Stage) -> None:
    here = stage(plain(overlap=2), [comparison(f"c{i}") for i in range(10)])
    assert progress(here).campaign(RUN).pace is None
    for _ in range(5):
        here.clock.now += 60
        here.label("ada")
    whole = progress(here).campaign(RUN)
    assert (whole.items, whole.wanted, whole.had) == (10, 20, 5)
    # Five labels a minute apart: four intervals, and the clock moved by a few milliseconds.
    assert whole.pace == pytest.approx(60, rel=1e-3)
    assert whole.seconds_left == pytest.approx(15 * 60, rel=1e-3)
    here.clock.now += 86_400
    assert progress(here).campaign(RUN).pace is None  # nothing within the last day


def test_a_labeler_has_done_what_stands_and_has_left_what_others_have_not_done(stage: Stage) -> None:
    here = stage(plain(overlap=2), [comparison(f"c{i}") for i in range(5)])
    for seconds in (10, 20, 60):
        task = here.next("ada")
        assert task is not None
        here.clock.now += seconds
        here.answers.submit(task.id, "ada", Answer(axes={"overall": 1}), nonce=task.id)
    here.next("ada")  # open, so neither done nor out of reach
    mine = progress(here).labeler(RUN, "ada", 0)
    assert (mine.done, mine.left) == (3, 2)
    assert mine.seconds_each == pytest.approx(20, rel=0.01)
    assert mine.seconds_left == pytest.approx(40, rel=0.01)
    here.answers.withdraw(here.campaign, "ada")
    assert progress(here).labeler(RUN, "ada", 0).done == 2
    for name in ("bob", "eve"):
        while here.label(name):
            pass
    assert progress(here).labeler(RUN, "new", 0).left == 2  # the places that ada still holds
    assert progress(here).campaign(RUN).had == 8


def test_every_task_takes_one_off_what_is_left_whatever_its_kind(stage: Stage) -> None:
    gold = {"ranking": [0, 1], "note": ""}
    made = [comparison(f"c{i}") for i in range(30)]
    items = [Item(comparison_id=c.id, gold=gold if i < 3 else None) for i, c in enumerate(made)]
    here = stage(plain(gold_share=0.1, repeat_share=0.1), made, items)
    sums = []
    while here.label("ada"):
        mine = progress(here).labeler(RUN, "ada", 0)
        sums.append((mine.done + mine.left, mine.left))
    kinds = [row["kind"] for row in here.rows("tasks")]
    assert {"gold", "repeat", "item"} == set(kinds)
    assert sums[:27] == [(27, 27 - n) for n in range(1, 27)] + [(28, 1)]
    assert all(left == 1 for _, left in sums[27:-1]) and sums[-1][1] == 0


def test_what_is_held_back_is_wanted_of_nobody(stage: Stage) -> None:
    made = [comparison(f"c{i}") for i in range(5)]
    items = [Item(comparison_id=c.id, held="names a model" if c.id == "c4" else "") for c in made]
    here = stage(plain(), made, items)
    tasks = [here.next(name) for name in ("ada", "bob")]
    assert all(tasks)
    first, second = (task.comparison.id for task in tasks if task)
    here.label("ada")
    for id_ in (first, second):
        here.campaigns.hold(RUN, id_, "a duplicate", by="eve")
        here.campaigns.hold(RUN, id_, "a duplicate of another", by="eve")
    here.label("bob")  # was handed out before: kept, and counted once the item is released
    mine, whole = progress(here).labeler(RUN, "ada", 0), progress(here).campaign(RUN)
    assert (whole.items, whole.wanted, whole.had, mine.left) == (2, 2, 0, 2)
    while here.label("ada"):
        pass
    mine, whole = progress(here).labeler(RUN, "ada", 0), progress(here).campaign(RUN)
    assert (whole.items, whole.wanted, whole.had, mine.left) == (2, 2, 2, 0)
    for id_ in (first, second):
        here.campaigns.hold(RUN, id_, "", by="eve")
    whole = progress(here).campaign(RUN)
    assert (whole.items, whole.wanted, whole.had) == (4, 4, 4)
    here.store.add_comparisons(RUN, [comparison("outside")])
    here.campaigns.hold(RUN, "outside", "", by="eve")
    assert progress(here).campaign(RUN).items == 5


def _counted(here: Scene) -> tuple[int, int]:
    """Labels that items have, and that the strata say they have."""
    with db.transaction(here.engine, write=False) as connection:
        items = connection.execute(select(func.sum(tables.comparisons.c.counted))).scalar_one()
        return items, connection.execute(select(func.sum(tables.strata.c.counted))).scalar_one()


@pytest.mark.parametrize("first", ["submit", "recount"])
def test_no_label_is_lost_to_the_count_by_an_import_that_runs_meanwhile(stage: Stage, first: str) -> None:
    here = stage(plain(overlap=2), [comparison(f"c{i}") for i in range(3)])
    here.label("bob")
    task = here.next("ada")
    assert task is not None

    def import_() -> None:
        with db.transaction(here.engine, write=True) as connection:
            recount(connection, RUN)

    def submit() -> None:
        here.answers.submit(task.id, "ada", answer(task), nonce="n")

    other = threading.Thread(target=import_ if first == "submit" else submit)
    with db.transaction(here.engine, write=True, turns=first == "recount") as connection:
        if first == "submit":
            here.answers._submit(connection, task.id, "ada", answer(task), "n")
        else:
            recount(connection, RUN)
        other.start()
        other.join(0.5)  # it waits for what this transaction has changed
    other.join()
    assert _counted(here) == (2, 2)


def test_the_practice_round_tells_how_often_the_labeler_agrees(stage: Stage) -> None:
    made = [comparison("a"), comparison("b", 3), comparison("c"), comparison("d")]
    gold = {"a": [0, 1], "b": [0, 1, 2]}
    known = {id_: {"ranking": ranking, "note": f"because {id_}"} for id_, ranking in gold.items()}
    items = [Item(comparison_id=c.id, gold=known.get(c.id)) for c in made]
    here = stage(plain(calibration=2, gold_share=0.5), made, items)
    for _ in range(2):
        task = here.next("ada")
        assert task is not None and task.kind == "gold"
        assert progress(here).known(task, "ada") is None  # not answered yet
        if task.comparison.id == "a":  # item 0 is better, and is said to be
            given = Answer(axes={"overall": -2 if task.shown[0] == 0 else 2})
        else:  # 0 before 1 before 2; said: 1 before 0 before 2
            said = [1, 0, 2]
            given = Answer(ranks=[said[item] for item in task.shown])
        here.answers.submit(task.id, "ada", given, nonce=task.id)
        told = progress(here).known(task, "ada")
        assert told is not None
        assert [told.ranks[task.shown.index(item)] for item in range(len(task.shown))] == gold[task.comparison.id]
        assert told.note == f"because {task.comparison.id}"
        assert (told.agreed, told.pairs) == ((1, 1) if task.comparison.id == "a" else (2, 3))
    mine = progress(here).labeler(RUN, "ada", 2)
    assert (mine.agreed, mine.known) == (3, 4)
    assert progress(here).labeler(RUN, "ada", 0).known == 0


def test_who_could_not_judge_agrees_with_nothing(stage: Stage) -> None:
    gold = {"ranking": [0, 0], "note": ""}
    here = stage(plain(calibration=1), [comparison("a")], [Item(comparison_id="a", gold=gold)])
    task = here.next("ada")
    assert task is not None
    here.answers.submit(task.id, "ada", Answer(flags=[CANT_JUDGE]), nonce="n")
    told = progress(here).known(task, "ada")
    assert told is not None and (told.agreed, told.pairs) == (0, 0)


@pytest.mark.parametrize(("changes", "gold_share"), [({"feedback": False}, 0.0), ({"calibration": 0}, 0.5)])
def test_no_known_answer_is_told_without_feedback_or_after_the_practice_round(
    stage: Stage, changes: dict[str, object], gold_share: float
) -> None:
    gold = {"ranking": [0, 1], "note": ""}
    made = [comparison("a"), *(comparison(f"c{i}") for i in range(4))]
    items = [Item(comparison_id=c.id, gold=gold if c.id == "a" else None) for c in made]
    here = stage(plain(**{"calibration": 1, "gold_share": gold_share, **changes}), made, items)
    while label := here.label("ada"):
        assert progress(here).known(label[0], "ada") is None
    assert any(row["kind"] == "gold" for row in here.rows("tasks"))


def test_a_task_given_back_and_let_go_comes_to_the_labeler_again(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    task, _ = here.label("ada") or pytest.fail("nothing to label")
    here.answers.withdraw(here.campaign, "ada")
    here.clock.now += 1000
    here.next("bob")  # the lease has ended, and bob takes it
    here.clock.now += 1000
    again = here.next("ada")
    assert again is not None and again.id == task.id


def test_agreement_counts_pairs_in_the_same_order() -> None:
    assert agreement([0, 1, 2, 3], [0, 1, 2, 3]) == 6
    assert agreement([0, 1, 2, 3], [3, 2, 1, 0]) == 0
    assert agreement([0, 0, 1], [0, 0, 1]) == 3
    assert agreement([0, 0, 1], [0, 1, 2]) == 2  # a known tie that was called otherwise


def test_progress_reads_through_indices_alone(stage: Stage) -> None:
    """No statement of it walks through the items or the labels."""
    here = stage(plain(), [comparison("a")])
    if here.engine.dialect.name != "sqlite":
        pytest.skip("one planner is enough")
    here.label("ada")
    said: list[str] = []
    trace = here.engine.raw_connection()
    trace.driver_connection.set_trace_callback(said.append)  # type: ignore[union-attr]
    trace.close()
    progress(here).campaign(RUN)
    progress(here).labeler(RUN, "ada", 3)
    asked = [statement for statement in said if "FROM" in statement]
    assert len(asked) == 9
    with db.transaction(here.engine, write=False) as connection:
        for statement in asked:
            plan = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement).all()
            assert not any("SCAN" in row.detail or "TEMP B-TREE FOR ORDER" in row.detail for row in plan), statement
