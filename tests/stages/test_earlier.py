"""A baseline's answers of an earlier evaluation stand for new ones, and only where new ones would be the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefloop.configs.evaluate import EvaluateConfig
from prefloop.configs.shared import EngineConfig
from prefloop.data.jsonl import write_jsonl
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.stages import evaluate
from prefloop.types import Message, PrefloopError, Prompt

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=1500)


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path / "home"))
    asked = [Message(role="user", content=f"Name {i} things.") for i in range(4)]
    write_jsonl("prompts.jsonl", [Prompt(id=f"p{i}", messages=(m,), split="eval") for i, m in enumerate(asked)])
    save("sft", 1)


def save(name: str, seed: int) -> None:
    tiny_model(seed).save_pretrained(name)
    tiny_tokenizer().save_pretrained(name)


def config(out: str, **rest: Any) -> EvaluateConfig:
    common = {"policy": "tiny", "baselines": ("sft",), "prompts": "prompts.jsonl", "max_tokens": 6, "engine": ENGINE}
    return EvaluateConfig(**{"out": out} | common | rest)


def rows(out: str, model: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in Path(out, "samples.jsonl").read_text().splitlines()]
    return [row for row in found if row["model"] == model]


def test_answers_are_taken_and_change_nothing() -> None:
    evaluate.run(config("first", policy="sft", baselines=("sft", "tiny")))
    anew = evaluate.run(config("anew", baselines=("sft", "tiny")))
    taken = evaluate.run(config("taken", baselines=("sft", "tiny"), earlier=("first",)))
    assert taken | {"seconds": 0} == anew | {"seconds": 0}
    for model in ("sft", "base"):
        assert rows("taken", model) == [{"from": "first"} | row for row in rows("anew", model)]
    assert rows("taken", "policy") == rows("anew", "policy")  # never taken


def test_a_model_that_changed_is_sampled_anew() -> None:
    evaluate.run(config("first"))
    save("sft", 2)
    evaluate.run(config("second", earlier=("first",)))
    assert not any("from" in row for row in rows("second", "sft"))
    evaluate.run(config("third", baselines=("tiny",), earlier=("first", "second")))  # another in the same place
    assert not any("from" in row for row in rows("third", "sft"))
    evaluate.run(config("fourth", earlier=("first", "second")))
    assert [row["from"] for row in rows("fourth", "sft")] == ["second"] * 8


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"samples": 1, "temperature": 0.5}, "samples, temperature"),
        ({"judge": "numeric"}, "judge"),
    ],
)
def test_other_settings_are_refused(other: dict[str, Any], named: str) -> None:
    evaluate.run(config("first"))
    with pytest.raises(PrefloopError, match=f"first was made with other {named};"):
        evaluate.run(config("second", earlier=("first",), **other))


def test_other_prompts_under_the_same_name_are_refused() -> None:
    evaluate.run(config("first"))
    with Path("prompts.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(PrefloopError, match="first was made with other prompts;"):
        evaluate.run(config("second", earlier=("first",)))


def test_only_a_finished_evaluation_will_do() -> None:
    with pytest.raises(PrefloopError, match=r"evaluate\.earlier: nowhere is no finished evaluation"):
        evaluate.run(config("second", earlier=("nowhere",)))
