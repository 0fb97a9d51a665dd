"""A policy against its baselines: the same held-out prompts, the same judge, intervals that resample prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prefloop.configs.evaluate import EvaluateConfig
from prefloop.data.sources import load_prompts
from prefloop.data.trees import answer_tree
from prefloop.engine.build import (
    build_encoder,
    build_sampler,
    build_scorer,
    load,
    resolve_checkpoint,
    use_threads,
)
from prefloop.evals.winrate import summarize
from prefloop.rewards.resolve import RewardFn, resolve_reward, reward_parents
from prefloop.run import Run, progress
from prefloop.stages.earlier import known_rows
from prefloop.stages.rollouts import sampled_logprobs
from prefloop.stages.sampling import sample_groups
from prefloop.types import Completion, PrefloopError, Prompt, Sampling, to_json

NAMES = ("policy", "sft", "base")


def run(config: EvaluateConfig) -> Mapping[str, Any]:
    """Sample and judge each model; win rates of the policy against the others. An interrupted run goes on with the
    models that are still to do; a baseline's answers of an earlier evaluation are taken as they are."""
    if not config.policy or not config.baselines or len(config.baselines) >= len(NAMES):
        raise PrefloopError("[evaluate] needs a policy and one or two baselines: the starting policy, the base model.")
    models = dict(zip(NAMES, map(resolve_checkpoint, (config.policy, *config.baselines)), strict=False))
    judged_by = reward_parents(config.judge, "judge")
    parents = models | judged_by | {f"earlier[{place}]": name for place, name in enumerate(config.earlier)}
    with Run.open(config.out, config, stage="evaluate", parents=parents) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        prompts = load_prompts(config.prompts, splits=(config.split,))
        known = known_rows(config, {name: path for name, path in models.items() if name != "policy"}, judged_by)
        judge = resolve_reward(config.judge, config.engine)
        done = run.last_step + 1
        run.rewind(done - 1)
        each = len(prompts) * config.samples
        sampled = [name not in known for name in models]
        with progress(each * sum(sampled), "answers", done=each * sum(sampled[:done])) as bar:
            for step, (name, path) in list(enumerate(models.items()))[done:]:
                rows = known.get(name) or answered(config, name, path, prompts, judge, lambda: bar.advance(1))
                for row in rows:
                    run.sample(step, row)
                run.log(step, {"score": sum(row["score"] for row in rows) / len(rows)})
        return run.finish(summarize(run.samples()))


def answered(
    config: EvaluateConfig, name: str, path: str, prompts: Sequence[Prompt], judge: RewardFn, one: Callable[[], None]
) -> list[dict[str, Any]]:
    """A model's judged answers, as lines of samples.jsonl; `one` is called for each that is finished."""
    loaded = load(path, config.engine)
    groups = sample_groups(
        build_sampler(loaded, path, config.engine),
        build_encoder(loaded),
        prompts,
        samplings=[Sampling(temperature=config.temperature, max_tokens=config.max_tokens)] * config.samples,
        seed=(config.seed, "evaluate", name),
        done=one,
    )
    asked = [prompt for prompt in prompts for _ in range(config.samples)]
    answers = [completion for group in groups for completion in group]
    scores = judge(asked, answers)
    apart = drift(config, prompts, groups) if name == "policy" else []
    rows = []
    for place, (prompt, completion, score) in enumerate(zip(asked, answers, scores, strict=True)):
        row = {"model": name, "prompt": to_json(prompt), "completion": to_json(completion)}
        row |= {"kl": apart[place]} if apart else {}
        rows.append(row | {"score": score.value, "parts": dict(score.parts)})
    return rows


def drift(config: EvaluateConfig, prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]]) -> list[float]:
    """log pi(y) - log pi_base(y) of each of the policy's answers, in nats, against the first baseline; their mean is
    the policy's KL to it. Empty where the two have different tokenizers."""
    loaded = load(config.baselines[0], config.engine)
    encoder = build_encoder(loaded)
    try:
        trees = [answer_tree(prompt, group, encoder) for prompt, group in zip(prompts, groups, strict=True)]
    except PrefloopError:
        return []
    readings = build_scorer(loaded, config.engine).forward(trees, {"logprobs"}, temperature=config.temperature)
    return [
        float(np.sum(sampled_logprobs(completion)) - np.sum(reading.logprobs[node]))
        for reading, group in zip(readings, groups, strict=True)
        for node, completion in enumerate(group, 1)
    ]
