"""Talking to a checkpoint: turns are remembered, a new conversation is a new one, nothing reaches the terminal raw."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.stages import chat


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def talk(checkpoint: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    result = chat.run(checkpoint, temperature=1.0, max_tokens=8, seed=3)
    lines = capsys.readouterr().out.splitlines()
    assert result == {"answers": len(said.split())}
    return lines


def test_an_answer_depends_on_seed_and_conversation_alone(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    once = talk(checkpoint, "Hello\nAgain\n", monkeypatch, capsys)
    twice = talk(checkpoint, "Hello\nAgain\n", monkeypatch, capsys)
    other = talk(checkpoint, "Hello\n\nAgain\n", monkeypatch, capsys)
    assert once == twice
    assert other[0] == once[0]
    assert other != once


def test_control_codes_of_a_model_are_not_sent_to_the_terminal() -> None:
    assert chat._shown("a\x1b[2Jb\n\u202ec\u00e9") == "a\ufffd[2Jb\n\ufffdc\u00e9"
