"""Online DPO: pairs of the policy's own answers, ties counted and not learned from, the same numbers after a kill."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from prefloop.configs.collect import AnnotatorConfig
from prefloop.configs.online import OnlineConfig
from prefloop.configs.shared import EngineConfig, LoraConfig, OptimConfig
from prefloop.data.jsonl import write_jsonl
from prefloop.models.checkpoint import read_checkpoint
from prefloop.stages import online
from prefloop.types import Completion, Message, Prompt, Score

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=1500)
HERE = __name__


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "own_rewards", sys.modules[HERE])
    checks = {"mentions": [["a"]], "ideal_words": 2}
    prompts = [
        Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Say {i}."),), checks=checks) for i in range(8)
    ]
    write_jsonl("prompts.jsonl", prompts)


def low(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """The share of an answer's tokens in the lower half of the vocabulary: half of them at the start."""
    return [Score(value=sum(token < 128 for token in c.tokens) / len(c.tokens)) for c in completions]


def alike(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    return [Score(value=1.0) for _ in completions]


def config(out: str, **rest: Any) -> OnlineConfig:
    settings: dict[str, Any] = {
        "policy": "tiny",
        "reward": "own_rewards:low",
        "prompts": "prompts.jsonl",
        "steps": 4,
        "prompts_per_step": 8,
        "max_tokens": 8,
        "missing_stop_score": None,
        "engine": ENGINE,
        "optim": OptimConfig(lr=6e-3, warmup=0.0, decay=False),
    }
    return OnlineConfig(out=out, **settings | rest)


def rows(out: str, name: str = "metrics") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, f"{name}.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize(
    "options",
    [{}, {"lora": LoraConfig(rank=8)}, {"group": 4}, {"loss": "ipo"}, {"loss": "hinge"}],
    ids=["dpo", "lora", "of four", "ipo", "hinge"],
)
def test_the_score_rises(options: dict[str, Any]) -> None:
    steps = 14
    result = online.run(config("up", steps=steps, **options))
    found = rows("up")
    first, last = (np.mean([row["reward/score"] for row in part]) for part in (found[:3], found[-3:]))
    assert "lora" in options or last > first + 0.08  # so few updates of so small adapters only begin to move it
    assert found[0]["kl/response"] == pytest.approx(0, abs=1e-4) and found[-1]["kl/exact"] > 0.02
    assert found[0]["logratio/token"] == pytest.approx(0, abs=1e-4)
    assert all(row["sampler/logprob_gap"] < 1e-4 for row in found)
    assert result["pairs"] + result["tied"] == 8 * steps and result["tied"] == sum(row["pairs/tied"] for row in found)
    samples = rows("up", "samples")
    group = options.get("group", 2)
    assert len(samples) == 8 * steps * group and {"prompt_id", "completion", "score", "kl"} <= samples[0].keys()
    for step in range(steps):
        scores = np.array([row["score"] for row in samples if row["step"] == step]).reshape(-1, group)
        assert found[step]["pairs/tied"] == (scores.max(axis=1) == scores.min(axis=1)).sum()
    assert read_checkpoint("up/checkpoint").parent == "tiny"


def contrary(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    return [Score(value=-score.value) for score in low(prompts, completions)]


def test_the_direction_is_the_rewards() -> None:
    online.run(config("down", steps=14, reward="own_rewards:contrary", watch="own_rewards:low"))
    found = [row["gold/score"] for row in rows("down")]
    assert np.mean(found[-3:]) < np.mean(found[:3]) - 0.08


def test_ties_alone_change_nothing() -> None:
    result = online.run(config("flat", reward="own_rewards:alike", steps=2))
    assert (result["pairs"], result["tied"]) == (0, 16)
    assert [row["kl/response"] for row in rows("flat")] == pytest.approx([0, 0], abs=1e-5)


def test_a_panel_decides_where_there_is_one() -> None:
    """A panel that never errs chooses as the rubric does; of two that contradict one another none decides."""
    sure = AnnotatorConfig(name="simulated-sure", accuracy=1.0)
    panel = online.run(config("panel", reward="", panel=(sure,), steps=2))
    plain = online.run(config("plain", reward="rubric", steps=2))
    assert panel["pairs"] + panel["tied"] == plain["pairs"] + plain["tied"] == 16
    scores = np.array([row["score"] for row in rows("panel", "samples")]).reshape(-1, 2)
    assert panel["pairs"] >= (scores[:, 0] != scores[:, 1]).sum() > 0
    with pytest.raises(ValidationError, match="a panel judges pairs"):
        config("x", panel=(sure,))
    with pytest.raises(ValidationError, match="a panel judges pairs"):
        config("x", reward="", panel=(sure,), group=3)


class Stop(BaseException):
    """A kill that Python sees."""


def test_an_interrupted_run_goes_on_with_equal_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = online.run(config("whole/r", save_every=2))
    log = online.Run.log

    def dying(self: Any, step: int, values: Any) -> None:
        if step == 3:
            raise Stop
        log(self, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(online.Run, "log", dying)
        with pytest.raises(Stop):
            online.run(config("cut/r", save_every=2))
    assert len(rows("cut/r", "samples")) == 4 * 16  # a step that its row does not confirm
    cut = online.run(config("cut/r", save_every=2))
    weights = [Path(out, "r/checkpoint/model.safetensors").read_bytes() for out in ("whole", "cut")]
    assert weights[0] == weights[1] and rows("whole/r", "samples") == rows("cut/r", "samples")
    assert whole["kl_last_third"] == cut["kl_last_third"]
