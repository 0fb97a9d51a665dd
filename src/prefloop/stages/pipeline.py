"""Stages chained through their run folders: each takes from its predecessors' folders what its section leaves empty."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from prefloop.configs.load import stage_config
from prefloop.configs.pipeline import RecipeConfig, RefreshConfig
from prefloop.data.heldout import split
from prefloop.data.sources import load_preferences
from prefloop.engine.schedule import derived_seed
from prefloop.evals.report import build_report
from prefloop.run import write_atomic
from prefloop.stages import collect, direct, evaluate, evaluate_reward, group, label, ppo, reward, sft
from prefloop.stages.refresh import agreement, replay
from prefloop.types import PrefloopError

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
    if recipe.refresh and stage == trained(recipe):
        return run_refreshed(recipe, recipe.refresh)
    return RUNS[stage](stage_config(recipe, stage, **inputs(recipe, stage)))


def run_refreshed(recipe: RecipeConfig, refresh: RefreshConfig) -> Mapping[str, Any]:
    """The stage that trains the policy, in parts of refresh.every steps with a new version of the reward model between
    them: refresh/N holds the policy's N-th part, what was sampled from it and labeled, and version N. The version
    before the newest watches. The last part is the stage's own folder."""
    method = trained(recipe)
    policy, sample, ask, fit = (
        cast(Any, stage_config(recipe, name, **inputs(recipe, name))) for name in (method, "collect", "label", "reward")
    )
    watch = policy.watch
    if policy.reward != fit.out:
        raise PrefloopError(f"[{method}] reward is set to {policy.reward}; a refresh needs the recipe's own, leave it.")
    parts = -(-policy.steps // refresh.every)
    versions, labels = [fit.out], [ask.out]
    _, panel = split(load_preferences(ask.out), fit.heldout, derived_seed(fit.seed, "heldout"))
    for number in range(1, parts):
        root = f"runs/{recipe.name}/refresh/{number}"
        _announce(recipe, f"refresh/{number}")
        seed = {"seed": derived_seed(recipe.seed, "refresh", number)}
        part = policy.model_copy(update={"out": f"{root}/{method}", "steps": refresh.every})
        RUNS[method](part)
        collect.run(sample.model_copy(update={"out": f"{root}/collect", "models": (part.out,), **seed}))
        label.run(ask.model_copy(update={"out": f"{root}/label", "completions": f"{root}/collect", **seed}))
        labels.append(f"{root}/label")
        mixed = f"{root}/preferences.jsonl"
        replay(labels, mixed, heldout={p.prompt.id for p in panel}, new=refresh.new, **seed)
        versions.append(f"{root}/reward")
        reward.run(fit.model_copy(update={"out": versions[-1], "preferences": mixed}))
        told = Path(root) / "agreement.json"
        if not told.exists():
            agreement(versions, panel, fit.engine, told)
        policy = policy.model_copy(
            update={"policy": part.out, "reward": versions[-1], "watch": watch or versions[-2], **seed}
        )
    return RUNS[method](policy.model_copy(update={"steps": policy.steps - (parts - 1) * refresh.every}))


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
