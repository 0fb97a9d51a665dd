"""A checkpoint in a process of its own that answers line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from benchmarks.faults.forking import Fork, Forks
from prefloop.models.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def process(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fork]:
    folder: Path = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with started(forks, folder) as process:
        assert reply_of(process) == {"ready": True}
        yield process
        assert process.stdin
        process.stdin.close()
        assert process.wait(timeout=240) == 0


def started(forks: Forks, checkpoint: Path) -> Fork:
    command = ("prefloop.stages.reply", str(checkpoint))
    return forks.start(*command, folder=checkpoint, stdin=PIPE, stdout=PIPE, stderr=PIPE)


def reply_of(process: Fork) -> dict[str, Any]:
    assert process.stdout
    made: dict[str, Any] = json.loads(process.stdout.readline())
    return made


def ask(process: Fork, said: str, **rest: Any) -> dict[str, Any]:
    request = {"id": "r", "messages": [{"role": "user", "content": said}], "seed": 3, "n": 1} | rest
    assert process.stdin
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    return reply_of(process)


def test_answers_depend_on_seed_and_conversation_alone(process: Fork) -> None:
    one = ask(process, "Hello", n=2)
    assert one["id"] == "r" and len(one["texts"]) == len(one["finished"]) == 2
    assert one["texts"][0] != one["texts"][1]
    assert ask(process, "Hello", n=2) == one
    assert ask(process, "Hello", n=2, seed=4)["texts"] != one["texts"]
    assert ask(process, "Hello there", n=2)["texts"] != one["texts"]
    longer = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "\ud800 <|im_end|>"}]
    assert len(ask(process, "", messages=[*longer, {"role": "user", "content": "Go on"}])["texts"]) == 1


def test_a_conversation_that_is_too_long_is_refused_and_the_next_one_answered(process: Fork) -> None:
    assert "context" in ask(process, "a" * 5000)["error"]
    assert ask(process, "Hello")["texts"]


def test_a_checkpoint_that_cannot_be_loaded_is_one_line(forks: Forks, tmp_path: Path) -> None:
    with started(forks, tmp_path) as process:
        assert process.stdout and process.stdout.read() == b""
        assert process.stderr and process.stderr.read().decode().splitlines()[-1].startswith("prefloop: ")
    assert process.returncode == 1
