"""Clocks that are set back and forth: checklist (labeling.md, 3.3), line 29."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from prefloop.store.answers import Answers
from prefloop.store.assignment import Desk, seen_until
from prefloop.store.campaigns import Campaigns
from prefloop.store.clock import Clock
from tests.store.scene import RUN, Scene, answer, comparison, plain

HOUR, DAY = 3600.0, 86_400.0


@pytest.mark.parametrize("jump", [-DAY, -HOUR, -1.0, 1.0, HOUR, DAY])
def test_line_29_a_running_server_does_not_notice_that_its_clock_is_set(
    monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    clock = Clock()
    before, real = clock(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert 0 <= clock() - before < 1


def test_time_goes_on_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("this system has one clock that nobody sets")
    clock = Clock()
    before, real = clock(), time.clock_gettime
    slept = {time.CLOCK_REALTIME: HOUR, time.CLOCK_BOOTTIME: HOUR}
    monkeypatch.setattr(time, "clock_gettime", lambda which: real(which) + slept.get(which, 0))
    assert HOUR <= clock() - before < HOUR + 60


@pytest.mark.parametrize("jump", [-DAY, -HOUR, HOUR, DAY])
def test_line_29_a_server_that_starts_with_another_time_keeps_order_leases_and_work(
    stage: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """Set back, time goes on from the latest that the database saw; set forward, a lease ends early at worst, and what
    comes then is late but counts."""
    here = stage(plain(lease_minutes=5), [comparison(name) for name in "ab"])
    here.clock.now = time.time()
    here.label("ada", -2)
    mine = here.next("ada")
    assert mine is not None
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    clock = Clock(seen_until(here.engine))
    desk, answers = Desk(here.engine, clock), Answers(here.engine, clock)
    assert clock() >= mine.opened
    again = desk.next_task(Campaigns(here.engine, clock).by_run(RUN), "ada")
    assert again is not None and again.id == mine.id
    receipt = answers.submit(mine.id, "ada", answer(mine, 3), nonce="second")
    assert receipt.status == "counted"
    rows = here.rows()
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    assert [row["nonce"] for row in rows][-1] == "second" and rows[-1]["server_seconds"] >= 0
    times = [row["at"] for row in here.rows("events")]
    assert times == sorted(times) and here.store.verify().judgments == 2


def test_line_29_the_latest_answer_is_the_one_with_the_highest_number_whatever_its_time(
    stage: Callable[..., Scene],
) -> None:
    here = stage(plain(), [comparison("a")])
    mine, _ = here.label("ada", -2) or pytest.fail("nothing to label")
    here.clock.now -= DAY
    here.answers.submit(mine.id, "ada", answer(mine, 4), nonce="later")
    assert [judged.strength for judged in here.store.judgments(RUN)] == [4]
    assert [row["latest"] for row in here.rows()] == [False, True] and here.rows()[1]["at"] < here.rows()[0]["at"]
    back = here.answers.withdraw(here.campaign, "ada")
    assert back is not None and back.draft is not None and back.draft["axes"] == {"overall": 4}


def test_line_29_times_are_in_utc_so_that_no_hour_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefloop.web.templating import _moment

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        fall_back = 1761440400  # 2025-10-26 01:00 UTC, when 03:00 there became 02:00
        assert [_moment(fall_back + 3600 * n) for n in (-1, 0, 1)] == [f"2025-10-26 0{n}:00" for n in range(3)]
    finally:
        monkeypatch.undo()
        time.tzset()
