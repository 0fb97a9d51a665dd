"""Processes that answer in conversations: asked in turn, killed, late, crowded, and gone with the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from prefloop.types import Message
from prefloop.web.partners import BROKEN, BUSY, GONE, LATE, REFUSED, Partners, Patience, Reply
from tests.patience import until
from tests.web.standing_in import put_in


class Ear:
    """Asks, and hears what is delivered."""

    def __init__(self, made: Partners) -> None:
        self.partners, self.heard = made, dict[str, list[str]]()

    def ask(self, key: str, said: str = "Hello", n: int = 1, checkpoint: str = "model") -> None:
        def deliver(replies: Sequence[Reply]) -> None:
            self.heard.setdefault(key, []).extend(reply.text for reply in replies)

        message = Message(role="user", content=said)
        self.partners.ask(key, checkpoint, (message,), seed=1, n=n, deliver=deliver)

    def wait(self, key: str) -> str:
        """Until it is answered or failed; returns the problem."""
        until(lambda: not self.partners.waiting(key))
        return self.partners.problem(key)


def alive(number: int) -> bool:
    """Whether a process is there that is more than an entry in a table."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True).stdout.strip()
    return bool(found) and not found.startswith("Z")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the real interpreter."""
    return put_in(tmp_path, monkeypatch, "model", "other")


@pytest.fixture
def ear(tmp_path: Path, stand_in: str) -> Iterator[Ear]:
    made = Partners(tmp_path, Patience(load=240, answer=3, idle=60, queue=2))
    yield Ear(made)
    made.close()


def test_questions_are_answered_in_turn_by_one_process_for_each_checkpoint(ear: Ear) -> None:
    ear.ask("a", n=2)
    ear.ask("b", checkpoint="other")
    assert [ear.wait(key) for key in "ab"] == ["", ""]
    ear.ask("c")
    ear.wait("c")
    (first, second), (other,), (third,) = (ear.heard[key] for key in "abc")
    assert first == third == f"{first.split()[0]} heard Hello" != other and second == f"{first} (1)"


def test_a_question_that_waits_is_asked_once(ear: Ear) -> None:
    for _ in range(5):
        ear.ask("a")
    assert ear.wait("a") == "" and len(ear.heard["a"]) == 1


def test_a_process_that_dies_says_so_and_is_begun_anew(ear: Ear) -> None:
    ear.ask("a", "die")
    assert ear.wait("a") == GONE and ear.heard == {}
    ear.ask("a")
    assert ear.wait("a") == "" and ear.heard["a"][0].endswith("heard Hello")
    number = int(ear.heard["a"][0].split()[0])
    os.kill(number, signal.SIGKILL)
    until(lambda: not alive(number))
    ear.ask("b")
    assert ear.wait("b") == "" and ear.heard["b"][0].split()[0] != str(number)


def test_an_answer_that_takes_too_long_is_given_up(ear: Ear) -> None:
    ear.ask("a", "wait")
    assert ear.wait("a") == LATE
    ear.ask("a")
    assert ear.wait("a") == ""


def test_too_many_questions_are_turned_away_and_those_that_wait_are_answered(ear: Ear) -> None:
    ear.ask("first", "wait")
    until(lambda: ear.partners._partners["model"]._questions.empty())
    for key in "abcd":
        ear.ask(key)
    assert [ear.partners.problem(key) for key in "abcd"] == ["", "", BUSY, BUSY]
    assert ear.wait("first") == LATE and [ear.wait(key) for key in "ab"] == ["", ""]
    ear.ask("c")
    assert ear.wait("c") == ""


@pytest.mark.parametrize("checkpoint", ["missing", "..", "/etc", "smollm2-135m", "program"])
def test_only_folders_of_the_workspace_are_loaded(ear: Ear, checkpoint: str) -> None:
    ear.ask("a", checkpoint=checkpoint)
    assert ear.wait("a") == BROKEN and ear.heard == {}


def test_what_a_process_says_of_an_error_is_not_passed_on(ear: Ear) -> None:
    ear.ask("a", "refuse")
    assert ear.wait("a") == REFUSED and "secret" not in REFUSED


def test_a_process_that_nobody_asks_is_ended_and_comes_back(ear: Ear) -> None:
    ear.partners._patience = replace(ear.partners._patience, idle=0.5)
    ear.ask("a")
    ear.wait("a")
    number = int(ear.heard["a"][0].split()[0])
    until(lambda: not alive(number))
    ear.ask("b")
    assert ear.wait("b") == ""


def test_closing_ends_a_process_at_work(ear: Ear) -> None:
    ear.ask("a")
    ear.wait("a")
    ear.ask("b", "wait")
    number = int(ear.heard["a"][0].split()[0])
    ear.partners.close()
    assert not alive(number)
    assert not any(thread.name == "partner" and thread.is_alive() for thread in threading.enumerate())


def test_a_process_ends_with_a_server_that_was_killed(tmp_path: Path, stand_in: str) -> None:
    code = f"""if True:
        import sys, time
        from pathlib import Path
        from prefloop.types import Message
        from prefloop.web.partners import Partners
        sys.executable = {str(tmp_path / "program")!r}
        made = Partners(Path({str(tmp_path)!r}))
        hello = (Message(role="user", content="Hello"),)
        made.ask("a", "model", hello, seed=1, n=1, deliver=lambda replies: print(replies[0].text, flush=True))
        time.sleep(60)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    with subprocess.Popen([stand_in, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout
        number = int(server.stdout.readline().split()[0])
        assert alive(number)
        server.kill()
    until(lambda: not alive(number))
