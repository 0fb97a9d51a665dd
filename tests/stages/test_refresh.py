"""The life of a reward model: refreshed from a replay buffer while the policy learns, old versions kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prefloop.configs.load import load_recipe
from prefloop.configs.pipeline import RecipeConfig, RefreshConfig
from prefloop.configs.shared import EngineConfig
from prefloop.data.heldout import distinct_pairs, split
from prefloop.data.jsonl import read_preferences, text_completion, write_jsonl
from prefloop.models.checkpoint import read_checkpoint
from prefloop.rewards.learned import LearnedReward
from prefloop.stages import pipeline
from prefloop.stages.refresh import replay
from prefloop.types import Message, Preference, PrefloopError, Prompt

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=1500)
STAGES = ("collect", "label", "reward", "ppo")


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path / "home"))


def asked(index: int, split: str = "train") -> Prompt:
    checks = {"mentions": [["thing"]], "ideal_words": 20}
    message = Message(role="user", content=f"Name {index} things.")
    return Prompt(id=f"{split}-{index}", messages=(message,), slice="everyday", split=split, checks=checks)


def write_labels(name: str, count: int) -> str:
    rows = [
        Preference(prompt=asked(i), items=(text_completion(asked(i), f"{name} a"), text_completion(asked(i), "b")))
        for i in range(count)
    ]
    write_jsonl(f"{name}.jsonl", rows)
    return f"{name}.jsonl"


@pytest.mark.parametrize(
    ("sizes", "new", "expected"),
    [
        ((10, 10), 0.5, {"new": 10, "old": 10}),
        ((6, 6, 9), 0.25, {"new": 4, "old": 12}),  # the buffer of 12 ends first
        ((30, 6, 9), 0.25, {"new": 9, "old": 27}),  # the new labels do
        ((5, 8), 1.0, {"new": 8, "old": 0}),
    ],
)
def test_shares_hold_whichever_ends_first(sizes: tuple[int, ...], new: float, expected: dict[str, int]) -> None:
    files = [write_labels(f"run{i}", size) for i, size in enumerate(sizes)]
    assert replay(files, "mixed.jsonl", heldout={"train-1"}, new=new, seed=3) == expected
    mixed = read_preferences("mixed.jsonl")
    sources = Counter(p.items[0].text.split()[0] for p in mixed)
    assert sources[f"run{len(sizes) - 1}"] == expected["new"] and sources.total() == sum(expected.values())
    assert len({(p.prompt.id, p.items[0].text) for p in mixed}) == len(mixed)
    assert {p.prompt.split for p in mixed if p.prompt.id == "train-1"} <= {"dev"}
    assert {p.prompt.split for p in mixed if p.prompt.id != "train-1"} == {"train"}
    before = Path("mixed.jsonl").read_bytes()
    replay(files, "mixed.jsonl", heldout={"train-1"}, new=new, seed=3)
    assert Path("mixed.jsonl").read_bytes() == before


def test_a_share_of_nothing_is_said() -> None:
    files = [write_labels("old", 1), write_labels("new", 1)]
    with pytest.raises(PrefloopError, match=r"1 new and 1 old comparisons cannot be mixed at a share of 0\.9"):
        replay(files, "mixed.jsonl", heldout=set(), new=0.9, seed=0)
    assert not Path("mixed.jsonl").exists()


def recipe(**rest: Any) -> RecipeConfig:
    write_jsonl("prompts.jsonl", [asked(i, split) for split in ("train", "dev") for i in range(4)])
    common = {"prompts": "prompts.jsonl", "max_tokens": 6}
    optim = {"lr": 1e-3}
    settings: dict[str, Any] = {
        "name": "r",
        "model": "tiny",
        "stages": STAGES,
        "engine": ENGINE,
        "refresh": RefreshConfig(every=1),
        "collect": {**common, "temperatures": [1.0, 1.5], "samples": 2},
        "label": {"pairs": 4},
        "reward": {"optim": optim, "batch": 2},
        "ppo": {**common, "steps": 3, "prompts_per_step": 2, "group": 2},
    }
    return RecipeConfig(**settings | rest)


def config_of(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("runs/r", folder, "config.json").read_text())
    return found


def test_versions_follow_the_policy_and_are_kept() -> None:
    pipeline.run(recipe())
    parts = ["refresh/1/ppo", "refresh/2/ppo", "ppo"]
    versions = ["reward", "refresh/1/reward", "refresh/2/reward"]
    watches = ["", "runs/r/reward", "runs/r/refresh/1/reward"]
    starts = ["tiny", "runs/r/refresh/1/ppo", "runs/r/refresh/2/ppo"]
    for part, version, watch, start in zip(parts, versions, watches, starts, strict=True):
        config = config_of(part)
        assert (config["policy"], config["reward"], config["watch"]) == (start, f"runs/r/{version}", watch)
        assert config["steps"] == 1 and len(Path("runs/r", part, "metrics.jsonl").read_text().splitlines()) == 1
    assert len({config_of(part)["seed"] for part in parts}) == 3
    assert read_checkpoint("runs/r/ppo/checkpoint").parent == "runs/r/refresh/2/ppo/checkpoint"
    for number in (1, 2):
        root = f"runs/r/refresh/{number}"
        assert config_of(f"refresh/{number}/collect")["models"] == [f"{root}/ppo"]
        assert read_checkpoint(f"{root}/reward/checkpoint").parent == "tiny"
        fresh = {item.id for p in read_preferences(f"{root}/label/preferences.jsonl") for item in p.items}
        mixed = read_preferences(f"{root}/preferences.jsonl")
        new = sum(all(item.id in fresh for item in p.items) for p in mixed)
        assert abs(new - len(mixed) / 2) <= 0.5 and {p.prompt.split for p in mixed} == {"train", "dev"}

    _, panel = split(read_preferences("runs/r/label/preferences.jsonl"), 0.15, 0)
    pairs = distinct_pairs(panel)
    sides = []
    for version in versions:
        model = LearnedReward(f"runs/r/{version}", ENGINE)
        scores = [[s.value for s in model([p.prompt] * 2, p.items)] for p in pairs]
        sides.append([a > b for a, b in scores])
    expected = {
        f"runs/r/{name}": sum(x == y for x, y in zip(own, sides[2], strict=True)) / len(pairs)
        for name, own in zip(versions[:2], sides[:2], strict=True)
    }
    said = json.loads(Path("runs/r/refresh/2/agreement.json").read_text())
    assert said == {"version": "runs/r/refresh/2/reward", "pairs": len(pairs), "agreement": pytest.approx(expected)}
    assert list(json.loads(Path("runs/r/refresh/1/agreement.json").read_text())["agreement"]) == ["runs/r/reward"]

    written = {file: file.stat().st_mtime_ns for file in Path("runs/r").rglob("checkpoint/*")}
    pipeline.run(recipe())
    assert {file: file.stat().st_mtime_ns for file in Path("runs/r").rglob("checkpoint/*")} == written


def test_a_refresh_no_sooner_than_the_end_is_none() -> None:
    pipeline.run(recipe(refresh=RefreshConfig(every=3)))
    assert not Path("runs/r/refresh").exists() and config_of("ppo")["steps"] == 3


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('name = "r"\nrefresh.every = 1\ncontrols = true', "the negative control knows no refreshes"),
        ('name = "r"\nrefresh.every = 1\nstages = ["label", "reward", "ppo"]', "a refresh needs the stages"),
        ('name = "r"\nrefresh.every = 0', "refresh"),
        ('name = "r"\nrefresh.often = 2', "unknown key 'often' in \\[refresh\\]"),
    ],
)
def test_what_cannot_be_refreshed_is_said(toml: str, said: str) -> None:
    Path("recipe.toml").write_text(toml, encoding="utf-8")
    with pytest.raises(PrefloopError, match=said):
        load_recipe("recipe.toml")


def test_a_reward_of_somebody_elses_is_not_refreshed() -> None:
    with pytest.raises(PrefloopError, match="a refresh needs the recipe's own"):
        pipeline.run_stage(recipe(ppo={"reward": "rubric"}), "ppo")
