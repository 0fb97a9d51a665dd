"""Figures of campaigns, computed behind the pages that show them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from prefloop.store.figures import CampaignFigures, Figures
from prefloop.store.labels import Store
from prefloop.store.overview import Overview
from prefloop.web.jobs import Jobs

_AT_ONCE = 0.3  # seconds in which the figures of a small campaign are there
_SOONEST = 5.0
_SHARE = 0.05  # of the time goes into figures, at most
_AFTER_FAILURE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Figures as they were `age` seconds ago, with how many labels stand by status, and late ones."""

    figures: CampaignFigures
    statuses: Mapping[str, int]
    age: float


class Live:
    """The figures of every campaign that somebody looked at. They are computed anew, one at a time, where labels came
    or the campaign or a group changed since; the pages never wait for that."""

    def __init__(self, store: Store, overview: Overview, jobs: Jobs) -> None:
        self._store, self._overview, self._jobs = store, overview, jobs
        self._lock, self._computing = threading.Lock(), threading.Lock()
        self._runs: dict[str, Figures] = {}
        self._began: dict[str, float] = {}
        self._made: dict[str, tuple[CampaignFigures, Mapping[str, int], float, float]] = {}

    def of(self, run: str) -> tuple[Shown | None, bool]:
        """What is there, if anything, and whether newer figures are under way."""
        with self._lock:
            made, job = self._made.get(run), self._jobs.last(f"figures {run}")
            running = job is not None and job.running
            failed = job is not None and job.failed and time.monotonic() - self._began[run] < _AFTER_FAILURE
            if not running and not failed and self._due(run):
                self._began[run] = time.monotonic()
                job = self._jobs.start(f"figures {run}", "Figures", lambda: self._compute(run))
                running = True
        if made is None and job is not None:
            job.done.wait(_AT_ONCE)
            made, running = self._made.get(run), job.running
        if made is None:
            return None, running
        figures, statuses, at, _ = made
        return Shown(figures=figures, statuses=statuses, age=time.monotonic() - at), running

    def _due(self, run: str) -> bool:
        if run not in self._made:
            return True
        _, _, at, took = self._made[run]
        rested = time.monotonic() - at > max(_SOONEST, took / _SHARE)
        return rested and self._runs[run].stale()

    def _compute(self, run: str) -> str:
        figures = self._runs.setdefault(run, Figures(self._store.engine, run))
        with self._computing:
            began = time.monotonic()
            found = figures.refresh()
            statuses = self._overview.statuses(run)
            now = time.monotonic()
            self._made[run] = (found, statuses, now, now - began)
        return ""
