"""Talking to a checkpoint: turns are remembered, a new conversation is a new one, nothing reaches the terminal raw."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.stages import chat
from prefloop.types import Completion, PrefloopError, Prompt, Score

SEEN: list[list[str]] = []


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


def third(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """The third answer is the best; all are remembered."""
    SEEN.append([completion.text for completion in completions])
    return [Score(value=float(place == 2)) for place in range(len(completions))]


def test_the_best_of_several_answers_is_said_and_remembered(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "own_rewards", sys.modules[__name__])
    SEEN.clear()
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    chat.run(checkpoint, temperature=1.0, max_tokens=8, seed=3, best_of=4, reward="own_rewards:third")
    out, told = capsys.readouterr()
    (texts,) = SEEN
    assert len(set(texts)) == 4
    assert out.strip() == (chat._shown(texts[2]) + " [cut off]").strip()
    assert "best of 4: +1.00, mean +0.25" in told


@pytest.mark.parametrize(("best_of", "reward"), [(2, ""), (1, "rubric")])
def test_best_of_and_reward_come_together(checkpoint: str, best_of: int, reward: str) -> None:
    with pytest.raises(PrefloopError, match="needs both --best-of N, above 1, and --reward"):
        chat.run(checkpoint, temperature=1.0, max_tokens=8, seed=3, best_of=best_of, reward=reward)
