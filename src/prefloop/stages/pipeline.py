"""Stages chained through their run folders: each takes from its predecessors' folders what its section leaves empty."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefloop.configs.load import stage_config
from prefloop.configs.pipeline import RecipeConfig
from prefloop.evals.report import build_report
from prefloop.run import write_atomic
from prefloop.stages import collect, direct, evaluate, evaluate_reward, group, label, ppo, reward, sft

RUNS: dict[str, Callable[[Any], Mapping[str, Any]]] = {
    "sft": sft.run,
    "collect": collect.run,
    "label": label.run,
    "reward": reward.run,
    "ppo": ppo.run,
    "group": group.run,
    "direct": direct.run,
    "evaluate": evaluate.run,
    "evaluate_reward": evaluate_reward.run,
}


def run(recipe: RecipeConfig) -> Mapping[str, Any]:
    """All stages of a recipe, then the negative control if wanted, then the report. Finished stages are kept."""
    root = Path("runs") / recipe.name
    plan = root / "recipe.json"
    if not plan.exists():
        write_atomic(plan, recipe.model_dump_json(indent=2))
    for stage in recipe.stages:
        _announce(recipe, stage)
        run_stage(recipe, stage)
    if recipe.controls:
        for stage in control_stages(recipe):
            _announce(recipe, f"control/{stage}")
            run_control(recipe, stage)
    write_atomic(plan, recipe.model_dump_json(indent=2))
    return build_report(root)


def run_stage(recipe: RecipeConfig, stage: str) -> Mapping[str, Any]:
    """One stage, its empty inputs filled from the run folders of this recipe's other stages."""
    return RUNS[stage](stage_config(recipe, stage, **inputs(recipe, stage)))


def inputs(recipe: RecipeConfig, stage: str) -> dict[str, Any]:
    """Where a stage finds its predecessors' results: folders under runs/NAME."""

    def of(name: str) -> str:
        return f"runs/{recipe.name}/{name}"

    start = of("sft") if "sft" in recipe.stages else recipe.model
    answers = of("collect") if "collect" in recipe.stages else ""
    found: dict[str, dict[str, Any]] = {
        "sft": {},
        "collect": {"models": (start,)},
        "label": {"completions": of("collect")},
        "reward": {"model": start, "preferences": of("label")},
        "ppo": {"policy": start, "reward": of("reward"), "baseline": answers},
        "group": {"policy": start, "reward": of("reward"), "baseline": answers},
        "direct": {"policy": start, "preferences": of("label")},
        "evaluate": {
            "policy": of(trained(recipe)),
            "baselines": (start, recipe.model) if start != recipe.model else (start,),
        },
        "evaluate_reward": {"reward": of("reward"), "preferences": of("label")},
    }
    return found[stage]


def trained(recipe: RecipeConfig) -> str:
    """The last stage of the recipe that trains a policy on preferences."""
    return next((name for name in reversed(recipe.stages) if name in ("ppo", "group", "direct")), "ppo")


def control_stages(recipe: RecipeConfig) -> tuple[str, ...]:
    """The stages that the negative control repeats: from the one that learns the labels on."""
    method = trained(recipe)
    return (method, "evaluate") if method == "direct" else ("reward", method, "evaluate")


def run_control(recipe: RecipeConfig, stage: str) -> Mapping[str, Any]:
    """The negative control: the same recipe, its labels shuffled where they are learned."""
    config: Any = stage_config(recipe, stage, **inputs(recipe, stage))
    control = f"runs/{recipe.name}/control"
    changed: dict[str, Any] = {"out": f"{control}/{stage}"}
    if stage == control_stages(recipe)[0]:
        changed["shuffle_labels"] = True
    elif stage == "evaluate":
        changed |= {"policy": f"{control}/{trained(recipe)}", "baselines": config.baselines[:1]}
    else:
        changed["reward"] = f"{control}/reward"
    return RUNS[stage](config.model_copy(update=changed))


def _announce(recipe: RecipeConfig, stage: str) -> None:
    print(f"== {recipe.name}: {stage}", file=sys.stderr, flush=True)
