"""Work that takes longer than an answer may: one thread for each name at a time, and what came of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from prefloop.types import PrefloopError

_PATIENCE = 5.0
_log = logging.getLogger("prefloop.web")


@dataclass(slots=True, kw_only=True)
class Job:
    """`said`: what the work returned, or why it failed; empty while it runs."""

    title: str
    said: str = ""
    failed: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def running(self) -> bool:
        return not self.done.is_set()


class Jobs:
    """The last job of each name. They live as long as the server; what they do must bear being cut off anywhere."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, name: str, title: str, work: Callable[[], str], *, wait: float = 0.0) -> Job:
        """Begin, and give it `wait` seconds to end. Raises PrefloopError where one of that name runs still."""
        with self._lock:
            if (before := self._jobs.get(name)) and before.running:
                raise PrefloopError(f"{before.title}: this is under way still; wait for it to end.")
            job = self._jobs[name] = Job(title=title)
        threading.Thread(target=_run, args=(job, work), name=name, daemon=True).start()
        job.done.wait(wait)
        return job

    def last(self, name: str) -> Job | None:
        """The job of that name that began last."""
        return self._jobs.get(name)

    def wait(self, seconds: float) -> bool:
        """Give each job that runs still so many seconds; whether all have ended."""
        ended = [job.done.wait(seconds) for job in list(self._jobs.values())]
        return all(ended)

    def close(self) -> None:
        """Give what runs still some seconds to end."""
        self.wait(_PATIENCE)


def _run(job: Job, work: Callable[[], str]) -> None:
    try:
        job.said = work()
    except PrefloopError as error:
        job.said, job.failed = str(error), True
    except BaseException:
        _log.exception("%s", job.title)
        job.said, job.failed = "Something broke that should not; the server's output says more.", True
    finally:
        job.done.set()
