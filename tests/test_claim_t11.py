"""The small parts of claim T11: its rule, its demonstrations, and a verdict that each part can turn."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prefloop.data.jsonl import text_completion
from prefloop.types import Message, Prompt

FOLDER = Path(__file__).parents[1] / "benchmarks" / "claims"


@pytest.fixture(scope="module")
def t11() -> ModuleType:
    sys.path.insert(0, str(FOLDER))  # as for a script that runs there
    spec = importlib.util.spec_from_file_location("claim_t11", FOLDER / "T11.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_rule_reads_the_first_digit_alone(t11: ModuleType) -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="largest 3 9 4"),), checks={"largest": "9"})
    texts = (" answer 9", " answer 9 but rather", " answer 3 so hm", " so answer 9", " answer", "")
    scores = t11.first([prompt] * len(texts), [text_completion(prompt, text) for text in texts])
    assert [score.value for score in scores] == [1, 1, 0, 0, 0, 0]


def test_half_of_the_demonstrations_are_right_and_their_tails_say_which(t11: ModuleType) -> None:
    made = t11.demonstrations(400, 100)
    words = [d.completion.split() for d in made]
    right = [said[1] == d.prompt.checks["largest"] for said, d in zip(words, made, strict=True)]
    assert 0.44 < sum(right) / len(right) < 0.56
    for said, good, demonstration in zip(words, right, made, strict=True):
        assert said[1] in demonstration.prompt.messages[0].content.split()[1:]
        assert said[2] == ("so" if good else "but") and set(said[3:]) <= ({"hm"} if good else {"rather"})
    assert {len(said) for said in words} == set(range(3, 16))


def rows(**changed: Any) -> list[dict[str, Any]]:
    start = {"right": 0.4, "length_right": 9.0, "length_wrong": 9.0}
    found = {
        "start": start,
        "grpo": start | {"right": 0.7, "length_wrong": 15.0, "flat": 0.3},
        "dr-grpo": start | {"right": 0.7, "length_wrong": 9.5, "flat": 0.3},
        "dynamic": start | {"right": 0.7, "flat": 0.1},
        "coin": start | {"right": 0.42, "flat": 0.0},
    }
    for name, own in changed.items():
        found[name.replace("_", "-")] = found[name.replace("_", "-")] | own
    return [found] * 5


def test_each_part_can_turn_the_verdict(t11: ModuleType) -> None:
    whole = t11.verdict(rows(), 1.0)
    assert whole["holds"] and whole["median"] == pytest.approx(0.3) and whole["wrong_longer"]["grpo"] == 6
    for changed in (
        {"start": {"right": 0.1}, "coin": {"right": 0.1}},
        {"dynamic": {"right": 0.55}},
        {"coin": {"right": 0.45}},
        {"dynamic": {"flat": 0.3}},
        {"grpo": {"length_wrong": 11.0}},
        {"dr_grpo": {"length_wrong": 11.0}},
    ):
        verdict = t11.verdict(rows(**changed), 1.0)
        assert not verdict["holds"] and list(verdict["parts"].values()).count(False) == 1
