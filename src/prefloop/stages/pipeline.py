"""Stages chained through their run folders: each takes from its predecessors' folders what its section leaves empty;
and rounds of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefloop.configs.load import stage_config
from prefloop.configs.pipeline import TRAINED, RecipeConfig
from prefloop.data.heldout import split
from prefloop.data.sources import load_preferences, load_prompts
from prefloop.engine.schedule import derived_seed
from prefloop.evals.report import build_report
from prefloop.evals.rounds import round_figures
from prefloop.run import write_atomic
from prefloop.stages import (
    collect,
    direct,
    evaluate,
    evaluate_reward,
    group,
    label,
    online,
    ppo,
    rejection,
    reward,
    sft,
)
from prefloop.stages.refresh import agreement, replay
from prefloop.types import Preference, PrefloopError

RUNS: dict[str, Callable[[Any], Mapping[str, Any]]] = {
    "sft": sft.run,
    "collect": collect.run,
    "label": label.run,
    "reward": reward.run,
    "rejection": rejection.run,
    "ppo": ppo.run,
    "group": group.run,
    "direct": direct.run,
    "online": online.run,
    "evaluate": evaluate.run,
    "evaluate_reward": evaluate_reward.run,
}
ONCE = "sft"  # before all rounds


def run(recipe: RecipeConfig) -> Mapping[str, Any]:
    """All stages of a recipe, or its rounds; then the negative control if wanted, then the report. Finished stages are
    kept."""
    check_prompts(recipe)
    root = Path("runs") / recipe.name
    plan = root / "recipe.json"
    if not plan.exists():
        write_atomic(plan, recipe.model_dump_json(indent=2))
    for stage in recipe.stages:
        if not recipe.rounds or stage == ONCE:
            _announce(recipe, stage)
            RUNS[stage](stage_config(recipe, stage, **inputs(recipe, stage)))
    for number in range(1, recipe.rounds + 1):
        run_round(recipe, number)
    if recipe.controls:
        for stage in control_stages(recipe):
            _announce(recipe, f"control/{stage}")
            run_control(recipe, stage)
    write_atomic(plan, recipe.model_dump_json(indent=2))
    return build_report(root)


def check_prompts(recipe: RecipeConfig) -> None:
    """PrefloopError where a stage that is still to do would find no prompts of its splits, hours from now."""
    wanted = set()
    for stage in recipe.stages:
        config: Any = stage_config(recipe, stage, **inputs(recipe, stage, min(recipe.rounds, 1)))
        if hasattr(config, "prompts") and not Path(config.out, "result.json").exists():
            wanted.add((config.prompts, config.splits if hasattr(config, "splits") else (config.split,)))
            early = getattr(config, "early_stop", None)
            wanted |= {(config.prompts, (early.split,))} if early else set()
    for prompts, splits in sorted(wanted):
        load_prompts(prompts, splits=splits)


def run_stage(recipe: RecipeConfig, stage: str) -> Mapping[str, Any]:
    """One stage, its empty inputs filled from the run folders of this recipe's other stages."""
    if recipe.rounds and stage != ONCE:
        raise PrefloopError("A recipe with rounds is run as a whole: give `prefloop run` the same recipe.")
    return RUNS[stage](stage_config(recipe, stage, **inputs(recipe, stage)))


def run_round(recipe: RecipeConfig, number: int) -> None:
    """Round `number`, from 1: the stages in order, in rounds/NUMBER. From the second on seeds are others, those of the
    reward model and of the evaluation aside, and comparisons are mixed with those of all rounds before. Then round.json
    says what it came from, what it cost and what came of it."""
    root = folder(recipe, number)
    for stage in recipe.stages:
        if stage == ONCE:
            continue
        _announce(recipe, f"rounds/{number}/{stage}")
        config: Any = stage_config(recipe, stage, **inputs(recipe, stage, number))
        if number > 1 and stage not in ("reward", "evaluate", "evaluate_reward"):
            config = config.model_copy(update={"seed": derived_seed(config.seed, "round", number)})
        if stage == "label":
            label.run(config, wait=False)
        else:
            RUNS[stage](config)
        if number > 1 and stage == "label":
            _replay(recipe, number)
        said = Path(root, "reward", "agreement.json")  # in the folder of the reward that it is about, to go with it
        if number > 1 and stage == "reward" and "label" in recipe.stages and not said.exists():
            versions = [f"{folder(recipe, earlier)}/reward" for earlier in range(1, number + 1)]
            agreement(versions, _panel(recipe), config.engine, said)
    write_atomic(Path(root, "round.json"), json.dumps(round_figures(Path(root)), indent=2, allow_nan=False) + "\n")


def folder(recipe: RecipeConfig, number: int = 0) -> str:
    """A run's folder, or that of one of its rounds."""
    return f"runs/{recipe.name}" + (f"/rounds/{number}" if number else "")


def inputs(recipe: RecipeConfig, stage: str, number: int = 0) -> dict[str, Any]:
    """Where a stage finds its predecessors' results, and its own folder: with `number` those of a round. A policy comes
    from the stage before that trained one, in the first of a round from the round before; it is the reference too."""
    before = recipe.stages[: recipe.stages.index(stage)] if stage in recipe.stages else ()

    def of(name: str, place: int = number) -> str:
        return f"{folder(recipe, 0 if name == ONCE else place)}/{name}"

    start = of(ONCE) if ONCE in recipe.stages else recipe.model
    entry = of(trained(recipe), number - 1) if number > 1 else start
    policy = next((of(name) for name in reversed(before) if name in TRAINED), entry)
    since = before[before.index("collect") :] if "collect" in before else TRAINED
    answered = not set(since) & set(TRAINED)  # the policy that collect asked is still this one
    preferences = f"{folder(recipe, number)}/preferences.jsonl" if number > 1 else of("label")
    rollouts = {
        "policy": policy,
        "reward": of("reward"),
        "baseline": of("collect") if answered and not getattr(recipe, stage).get("policy") else "",  # its own answers
        "watch": of("reward", number - 1) if number > 1 and "reward" in recipe.stages else "",
    }
    found: dict[str, dict[str, Any]] = {
        "sft": {},
        "collect": {"models": (policy,)},
        "label": {"completions": of("collect")},
        "reward": {"model": start, "preferences": preferences},
        "rejection": {
            "policy": policy,
            "reward": of("reward"),
            "earlier": tuple(of("rejection", earlier) for earlier in range(1, number)),
        },
        "ppo": rollouts,
        "group": rollouts,
        "direct": {"policy": policy, "preferences": preferences},
        "online": rollouts
        | {"reward": "" if recipe.online.get("panel") or recipe.online.get("judges") else of("reward")},
        "evaluate": {
            "policy": of(trained(recipe)),
            "baselines": (start, recipe.model) if start != recipe.model else (start,),
            "earlier": (of("evaluate", 1),) if number > 1 else (),
        },
        "evaluate_reward": {"reward": of("reward"), "preferences": preferences},
    }
    return {"out": of(stage)} | found[stage]


def trained(recipe: RecipeConfig) -> str:
    """The last stage of the recipe that trains a policy on preferences."""
    return next((name for name in reversed(recipe.stages) if name in TRAINED), "ppo")


def _replay(recipe: RecipeConfig, number: int) -> None:
    labels = [f"{folder(recipe, earlier)}/label" for earlier in range(1, number + 1)]
    mixed = f"{folder(recipe, number)}/preferences.jsonl"
    seed = derived_seed(recipe.seed, "replay", number)
    counts = replay(labels, mixed, heldout={p.prompt.id for p in _panel(recipe)}, new=recipe.new_labels, seed=seed)
    write_atomic(Path(folder(recipe, number), "comparisons.json"), json.dumps(counts) + "\n")


def _panel(recipe: RecipeConfig) -> list[Preference]:
    """The comparisons of the first round of which no round learns."""
    fit: Any = stage_config(recipe, "reward" if "reward" in recipe.stages else "direct")
    return split(load_preferences(f"{folder(recipe, 1)}/label"), fit.heldout, derived_seed(fit.seed, "heldout"))[1]


def control_stages(recipe: RecipeConfig) -> tuple[str, ...]:
    """The stages that the negative control repeats: those that train from the first that learns the labels on."""
    first = min(recipe.stages.index(name) for name in ("reward", "direct") if name in recipe.stages)
    repeated = tuple(name for name in recipe.stages[first:] if name in ("reward", *TRAINED))
    methods = repeated if set(repeated) & set(TRAINED) else (*repeated, trained(recipe))
    return (*methods, "evaluate")


def run_control(recipe: RecipeConfig, stage: str) -> Mapping[str, Any]:
    """The negative control: the same recipe, its labels shuffled where they are learned."""
    config: Any = stage_config(recipe, stage, **inputs(recipe, stage))
    control = f"runs/{recipe.name}/control"
    changed: dict[str, Any] = {"out": f"{control}/{stage}"}
    repeated = control_stages(recipe)
    before = [name for name in repeated[: repeated.index(stage)] if name in TRAINED]
    if before:
        changed["policy"] = f"{control}/{before[-1]}"
    if stage in ("reward", "direct"):
        changed["shuffle_labels"] = True
    elif stage == "evaluate":
        evaluated = (config.out,) if stage in recipe.stages else ()
        changed |= {"baselines": config.baselines[:1], "earlier": evaluated}
    else:
        learned = inputs(recipe, stage)["reward"]
        if config.reward == learned:
            changed["reward"] = f"{control}/reward"
        mix = getattr(config, "mix", None)
        if mix and learned in mix.parts.values():
            parts = {name: f"{control}/reward" if own == learned else own for name, own in mix.parts.items()}
            changed["mix"] = mix.model_copy(update={"parts": parts})
    return RUNS[stage](config.model_copy(update=changed))


def _announce(recipe: RecipeConfig, stage: str) -> None:
    print(f"== {recipe.name}: {stage}", file=sys.stderr, flush=True)
