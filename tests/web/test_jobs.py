from __future__ import annotations

import threading

import pytest

from prefloop.types import PrefloopError
from prefloop.web.jobs import Jobs


def test_a_job_says_what_came_of_it() -> None:
    jobs = Jobs()
    assert jobs.last("a") is None
    job = jobs.start("a", "Import", lambda: "3 items", wait=60)
    assert not job.running and not job.failed and job.said == "3 items" and jobs.last("a") is job


def test_a_job_that_fails_says_why_or_that_it_was_our_fault(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> str:
        raise PrefloopError("x.jsonl:3: broken JSON.")

    def crash() -> str:
        raise ZeroDivisionError("secret detail")

    job = Jobs().start("a", "Import", refuse, wait=60)
    assert job.failed and job.said == "x.jsonl:3: broken JSON."
    job = Jobs().start("a", "Import", crash, wait=60)
    assert job.failed and "secret" not in job.said and "secret detail" in caplog.text


def test_one_of_a_name_at_a_time() -> None:
    jobs, go = Jobs(), threading.Event()

    def wait() -> str:
        go.wait(60)
        return "done"

    first = jobs.start("a", "Import of x", wait)
    assert first.running
    with pytest.raises(PrefloopError, match="Import of x: this is under way still"):
        jobs.start("a", "Import of y", wait)
    jobs.start("b", "Export", lambda: "", wait=60)
    go.set()
    assert first.done.wait(60)
    assert jobs.start("a", "Import of y", wait, wait=60).said == "done"
