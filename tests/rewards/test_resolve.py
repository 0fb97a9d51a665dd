"""Reward functions by name, and a reward model's checkpoint as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefloop.configs.shared import EngineConfig
from prefloop.data.trees import answer_tree
from prefloop.models.checkpoint import save_checkpoint
from prefloop.models.heads import reward_head
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.rewards import verifiers
from prefloop.rewards.learned import LearnedReward
from prefloop.rewards.resolve import resolve_reward
from prefloop.rewards.rubric import rubric
from prefloop.types import Checkpoint, Completion, Message, PrefloopError, Prompt, Sampling

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=80)


def asked(name: str) -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=name),))


def answer(text: str) -> Completion:
    return Completion(id=text, prompt_id="", segments=(), text=text, finish_reason="stop", sampling=Sampling(), seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("reward")
    details = {"pooling": "last", "gain": 2.0, "bias": -0.5}
    record = Checkpoint(path="", kind="reward", step=0, parent="tiny", config_hash="", details=details)
    save_checkpoint(
        path / "checkpoint",
        record=record,
        model=tiny_model(width=16),
        tokenizer=tiny_tokenizer(),
        head=reward_head(16, 1),
    )
    return str(path)


def test_names_folders_and_functions(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_reward("rubric", ENGINE) is rubric
    assert isinstance(resolve_reward(folder, ENGINE), LearnedReward)
    (tmp_path / "short_reward.py").write_text(
        "def brief(prompts, completions): return [-len(c.text) for c in completions]"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_reward("short_reward:brief", ENGINE)([asked("p")], [answer("abc")]) == [-3]


@pytest.mark.parametrize(
    "name",
    ["", "quality", "nowhere_at_all:score", "json:nothing", "./runs/missing", "../missing", "runs/missing/reward"],
)
def test_an_unknown_reward_is_a_plain_error(name: str) -> None:
    with pytest.raises(
        PrefloopError, match=r"Unknown reward .*: give rubric, .*, a reward run's folder or 'module:function'"
    ):
        resolve_reward(name, ENGINE)


def test_scores_are_gain_times_raw_plus_bias_whatever_the_order(folder: str) -> None:
    reward = LearnedReward(folder, ENGINE)
    prompts = [asked(name) for name in ("a", "long prompt", "a", "b", "long prompt")]
    completions = [answer(text) for text in ("x", "yes", "a longer answer", "x", "no")]
    found = reward(prompts, completions)
    for prompt, completion, score in zip(prompts, completions, found, strict=True):
        (reading,) = reward.scorer.forward([answer_tree(prompt, [completion], reward.encoder)], {"scores"})
        assert score.parts["raw"] == pytest.approx(reading.scores[1], abs=1e-5)
        assert score.value == pytest.approx(2 * score.parts["raw"] - 0.5)
        assert score.by == f"{folder}/checkpoint"
    assert len({score.value for score in found}) == 5
    assert reward([], []) == []


def test_every_verifier_has_its_name() -> None:
    for name in ("exact", "numeric", "math", "regex", "json_schema", "constraints", "unit_tests", "unit_tests_unsafe"):
        assert resolve_reward(name, ENGINE) is getattr(verifiers, name)
