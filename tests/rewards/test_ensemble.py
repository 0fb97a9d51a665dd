"""Several reward models' checkpoints as one reward."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefloop.configs.shared import EngineConfig
from prefloop.models.checkpoint import save_checkpoint
from prefloop.models.heads import reward_head
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.rewards.ensemble import EnsembleReward
from prefloop.rewards.learned import LearnedReward
from prefloop.rewards.resolve import resolve_reward
from prefloop.types import Checkpoint, Completion, Message, PrefloopError, Prompt, Sampling

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=80)
SCALES = ((2.0, -0.5), (0.5, 1.0), (3.0, 0.0))  # gain, bias


def answer(text: str) -> Completion:
    return Completion(id=text, prompt_id="", segments=(), text=text, finish_reason="stop", sampling=Sampling(), seed=0)


PROMPTS = [Prompt(id=name, messages=(Message(role="user", content=name),)) for name in ("a", "long one", "a", "b")]
ANSWERS = [answer(text) for text in ("x", "yes", "a longer answer", "no")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three members with heads and scales of their own."""
    paths = [tmp_path_factory.mktemp("reward") for _ in SCALES]
    for seed, (path, (gain, bias)) in enumerate(zip(paths, SCALES, strict=True)):
        details = {"pooling": "last", "gain": gain, "bias": bias}
        record = Checkpoint(path="", kind="reward", step=0, parent="tiny", config_hash="", details=details)
        parts = {"model": tiny_model(width=16), "tokenizer": tiny_tokenizer(), "head": reward_head(16, seed)}
        save_checkpoint(path / "checkpoint", record=record, **parts)
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def alone(folders: list[str]) -> list[list[float]]:
    """[member][answer] what each says when it is asked alone."""
    return [[score.value for score in LearnedReward(folder, ENGINE)(PROMPTS, ANSWERS)] for folder in folders]


def test_members_are_on_their_own_scales_and_all_is_said(folders: list[str], alone: list[list[float]]) -> None:
    name = f"mean:{','.join(folders)}"
    for i, score in enumerate(resolve_reward(name, ENGINE)(PROMPTS, ANSWERS)):
        a, b, c = (values[i] for values in alone)
        spread = (((a - b) ** 2 + (b - c) ** 2 + (c - a) ** 2) / 9) ** 0.5
        parts = {f"{folder}/checkpoint": value for folder, value in zip(folders, (a, b, c), strict=True)}
        assert score.parts == pytest.approx(parts | {"disagreement": spread}, abs=1e-6)
        assert score.value == pytest.approx((a + b + c) / 3)
        assert score.by == name
    assert len({round(value, 6) for values in alone for value in values}) == 12


def test_the_worst_member_decides(folders: list[str], alone: list[list[float]]) -> None:
    found = resolve_reward(f"worst: {folders[1]} , {folders[0]}", ENGINE)(PROMPTS, ANSWERS)
    assert [score.value for score in found] == pytest.approx([min(a, b) for a, b in zip(*alone[:2], strict=True)])


def test_doubt_costs_what_the_name_says(folders: list[str], alone: list[list[float]]) -> None:
    pair = ",".join(folders[:2])
    for penalty in ("0.5", "2", "0"):
        found = resolve_reward(f"uncertainty={penalty}:{pair}", ENGINE)(PROMPTS, ANSWERS)
        expected = [(a + b) / 2 - float(penalty) * (a - b) ** 2 / 4 for a, b in zip(*alone[:2], strict=True)]
        assert [score.value for score in found] == pytest.approx(expected, abs=1e-6)
    assert resolve_reward(f"mean:{pair}", ENGINE)([], []) == []


def test_a_single_run_is_still_itself_and_own_functions_are_found(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(resolve_reward(folders[0], ENGINE), LearnedReward)
    assert isinstance(resolve_reward(f"mean:{folders[0]},{folders[1]}", ENGINE), EnsembleReward)
    (tmp_path / "meaning.py").write_text("def mean(prompts, completions): return [0.0 for c in completions]")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_reward("meaning:mean", ENGINE)(PROMPTS, ANSWERS) == [0.0] * 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mean:{a}", "two members or more"),
        ("worst:{a},{a}", "each only once"),
        ("worst:{a},{a}/../{tail}", "each only once"),
        ("mean:{a},", "'' is no folder"),
        ("mean:{a},nowhere", "'nowhere' is no folder"),
        ("mean=2:{a},{b}", "only uncertainty takes a number"),
        ("uncertainty:{a},{b}", "what a unit of variance costs"),
        ("uncertainty=-1:{a},{b}", "what a unit of variance costs"),
        ("uncertainty=nan:{a},{b}", "what a unit of variance costs"),
        ("uncertainty=a:{a},{b}", "what a unit of variance costs"),
        ("mean", "Unknown reward 'mean'"),
        ("median:{a},{b}", "or several folders as 'mean:A,B'"),
    ],
)
def test_a_name_that_cannot_be_is_a_plain_error(folders: list[str], name: str, said: str) -> None:
    a, b = folders[:2]
    with pytest.raises(PrefloopError, match=said):
        resolve_reward(name.format(a=a, b=b, tail=Path(a).name), ENGINE)
