"""Reward functions by name: (prompts, completions) -> scores, one for each completion."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from prefloop.configs.shared import EngineConfig
from prefloop.engine.build import resolve_checkpoint
from prefloop.rewards.ensemble import names_ensemble, resolve_ensemble
from prefloop.rewards.language import PREFIX as LANGUAGE
from prefloop.rewards.language import language
from prefloop.rewards.learned import LearnedReward
from prefloop.rewards.process import ProcessReward, names_process
from prefloop.rewards.rubric import rubric
from prefloop.rewards.tags import PREFIX as TAGGED
from prefloop.rewards.tags import format, tagged
from prefloop.rewards.verifiers import (
    constraints,
    exact,
    gym,
    json_schema,
    math,
    numeric,
    regex,
    unit_tests,
    unit_tests_unsafe,
)
from prefloop.types import Completion, PrefloopError, Prompt, Score

RewardFn = Callable[[Sequence[Prompt], Sequence[Completion]], list[Score]]

REWARDS: dict[str, RewardFn] = {
    "rubric": rubric,
    "exact": exact,
    "numeric": numeric,
    "math": math,
    "regex": regex,
    "json_schema": json_schema,
    "constraints": constraints,
    "gym": gym,
    "format": format,
    "unit_tests": unit_tests,
    "unit_tests_unsafe": unit_tests_unsafe,
}


def reward_folders(name: str) -> list[str]:
    """The folders of reward models that a reward's name holds, in its order; the name itself, without "tagged=", where
    it is none of ours with a colon."""
    name = name.removeprefix(TAGGED)
    return name.partition(":")[2].split(",") if names_ensemble(name) or names_process(name) else [name]


def reward_parents(name: str, role: str = "reward") -> dict[str, str]:
    """What a run depends on through a reward, by role: the reward itself, or an ensemble's members as role[0] and so
    on."""
    folders = [resolve_checkpoint(folder.strip()) for folder in reward_folders(name)]
    return {f"{role}[{i}]": own for i, own in enumerate(folders)} if len(folders) > 1 else {role: folders[0]}


def resolve_reward(name: str, engine: EngineConfig) -> RewardFn:
    """A name of the table, a reward model's run or checkpoint folder, several ("mean:A,B", see rewards/ensemble.py), a
    process reward model's ("steps=product:A", see rewards/process.py), any of these on what an answer tag holds
    ("tagged=math"), "language=CODE", or the user's own "module:function"."""
    if name in REWARDS:
        return REWARDS[name]
    if name.startswith(TAGGED):
        return tagged(resolve_reward(name.removeprefix(TAGGED), engine))
    if name.startswith(LANGUAGE):
        return language(name.removeprefix(LANGUAGE))
    if name and Path(name).is_dir():
        return LearnedReward(name, engine)
    if names_ensemble(name):
        return resolve_ensemble(name, engine)
    if names_process(name):
        return ProcessReward(name, engine)
    module, _, function = name.partition(":")
    try:
        found: RewardFn = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise PrefloopError(
            f"Unknown reward {name!r} ({error}): give {', '.join(REWARDS)}, a reward run's folder or 'module:function',"
            " or several folders as 'mean:A,B'."
        ) from None
    return found
