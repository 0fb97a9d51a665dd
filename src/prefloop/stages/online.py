"""Online DPO (online AI feedback: Guo et al. 2024, arXiv 2402.04792): each step the current policy answers, a reward,
model judges or a panel say which of two answers is better, and the policy is fitted on those pairs against a fixed
reference."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefloop.annotators.judge import build_judge, by_judges, judge_parents
from prefloop.annotators.simulated import Annotator
from prefloop.annotators.simulated import judge as ask
from prefloop.configs.online import OnlineConfig
from prefloop.configs.rollout import ShapingConfig
from prefloop.data.pairing import comparison_id, first_wins
from prefloop.data.sources import load_prompts
from prefloop.data.trees import answer_tree, with_fields
from prefloop.engine.build import (
    build_encoder,
    build_learner,
    build_sampler,
    build_scorer,
    load,
    resolve_checkpoint,
    use_threads,
)
from prefloop.engine.local import Reference
from prefloop.engine.schedule import rate, take
from prefloop.rewards.mix import MixedReward
from prefloop.rewards.resolve import resolve_reward
from prefloop.rewards.shaping import Shaping
from prefloop.run import Run, progress
from prefloop.stages.rollouts import (
    Rollout,
    Watch,
    check_gap,
    check_start,
    gather,
    measure,
    read_policy,
    record,
    reward_sources,
    sampler_gap,
)
from prefloop.stages.sampling import sample_groups
from prefloop.stages.saving import resume, save_final, save_step
from prefloop.types import Comparison, Pair, Sampling, Score, Tree


def run(config: OnlineConfig) -> Mapping[str, Any]:
    """Train the policy; returns the result with its path. The same call continues an interrupted run exactly, as far as
    a judge's server says the same."""
    parent = resolve_checkpoint(config.policy)
    sources = judge_parents(config.judges)
    if not (config.panel or config.judges):
        sources = reward_sources(config)
    with Run.open(config.out, config, stage="online", parents={"policy": parent, **sources}) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        loaded = load(config.policy, config.engine)
        encoder = build_encoder(loaded)
        learner = build_learner(loaded, config.engine, config.optim, lora=config.lora, seed=config.seed)
        reference: Reference = "adapter-off"
        if not config.lora:
            reference = build_scorer(load(config.policy, config.engine), config.engine)
        sampler = build_sampler(loaded, run.path.name, config.engine, int8=config.rollout_dtype == "int8")
        watch = Watch(config)
        prompts = load_prompts(config.prompts, splits=(config.split,))
        samplings = [Sampling(temperature=config.temperature, max_tokens=config.max_tokens)] * config.group
        start, state = resume(run, learner, parent)
        mix = config.mix and MixedReward(config.mix, config.reward, config.engine, state.get("mix", {}))
        judges = [build_judge(judge, config.engine, config.seed) for judge in config.judges]
        named = "rubric" if config.panel else config.reward
        reward = mix or (by_judges(judges, config.group) if judges else resolve_reward(named, config.engine))
        shape = Shaping(ShapingConfig(), config.missing_stop_score, {}, {})
        params = {"beta": config.beta, "temperature": config.temperature}

        with progress(config.steps, "steps", done=start) as bar:
            for step in range(start, config.steps):
                began = time.perf_counter()
                chosen = take(prompts, step * config.prompts_per_step, config.prompts_per_step, config.seed)
                sampler.load(learner.publish())
                groups = sample_groups(
                    sampler, encoder, chosen, samplings=samplings, seed=(config.seed, "online", step)
                )
                sampled = time.perf_counter()

                flat_prompts = [prompt for prompt, group in zip(chosen, groups, strict=True) for _ in group]
                flat = [completion for group in groups for completion in group]
                judged = reward(flat_prompts, flat)
                scores = shape(judged, flat_prompts, flat)
                trees = [answer_tree(prompt, group, encoder) for prompt, group in zip(chosen, groups, strict=True)]
                parts = [range(len(trees))]  # which are learned in pairs
                readings = read_policy(learner, reference, trees, parts, set(), config.temperature, learned=False)
                rollouts = gather(chosen, groups, scores, readings)
                gap = sampler_gap(rollouts)
                check_gap(gap, step, config)
                check_start(rollouts, step)
                pairs = by_panel(config, rollouts, judged) if config.panel else best_and_worst(rollouts, config.group)
                batch = with_pairs(trees, rollouts, pairs)
                scored = time.perf_counter()

                metrics = measure(rollouts) | watch(flat_prompts, flat) | {"sampler/logprob_gap": gap}
                metrics |= {"pairs/compared": len(batch), "pairs/tied": len(trees) - len(batch)}
                if batch:
                    factor = rate(config.optim, step, config.steps)
                    metrics |= learner.forward_backward(batch, config.loss, params)
                    metrics |= learner.optim_step(config.optim.lr * factor, config.optim.head_lr * factor)
                metrics |= {"time/sample": sampled - began, "time/score": scored - sampled}
                metrics |= {"time/update": time.perf_counter() - scored}
                metrics |= mix.learn(judged) if mix else {}
                told = [score.parts for score in judged if score.parts] if judges else []
                for name in told[0] if told else ():
                    metrics[f"judge/{name}"] = float(np.mean([parts[name] for parts in told]))
                record(run, step, rollouts)
                run.log(step, metrics)
                if (step + 1) % config.save_every == 0 and step + 1 < config.steps:
                    save_step(run, learner, step, parent, {"mix": mix.state} if mix else {})
                bar.advance(1, f"score {metrics['reward/score']:+.2f}, KL {metrics['kl/response']:.1f}")

        checkpoint = save_final(run, learner, config.steps, parent, "policy", sources)
        rows = [row.values for row in run.metrics()]
        compared, tied = (int(sum(row[f"pairs/{name}"] for row in rows)) for name in ("compared", "tied"))
        last_third = [row["kl/response"] for row in rows][-max(1, config.steps // 3) :]
        return run.finish(
            {
                "checkpoint": checkpoint,
                "pairs": compared,
                "tied": tied,
                "kl_last_third": sum(last_third) / len(last_third),
                "episodes": config.steps * config.prompts_per_step * config.group,
            }
        )


def best_and_worst(rollouts: Sequence[Rollout], group: int) -> list[Pair | None]:
    """Of each prompt's answers the best, of equals the first, against the worst; None where all score alike."""
    pairs: list[Pair | None] = []
    for scores in np.array([r.score for r in rollouts]).reshape(-1, group):
        a, b = int(scores.argmax()), int(scores.argmin())
        pairs.append(Pair(a=1 + a, b=1 + b) if scores[a] > scores[b] else None)
    return pairs


def by_panel(config: OnlineConfig, rollouts: Sequence[Rollout], scores: Sequence[Score]) -> list[Pair | None]:
    """Of two answers to each prompt the one that most of the panel choose; None where as many choose either, or the
    texts are equal. scores: the rubric's, which the panel follow with noise."""
    people = [Annotator(**person.model_dump(), seed=config.seed) for person in config.panel]
    pairs: list[Pair | None] = []
    for place in range(0, len(rollouts), 2):
        first, second = rollouts[place : place + 2]
        items = (first.completion, second.completion)
        asked = Comparison(id=comparison_id(items), prompt=first.prompt, items=items)
        votes = [first_wins(ask(person, asked, scores[place : place + 2]).ranking, None) for person in people]
        even = 2 * sum(votes) == len(votes) or items[0].text == items[1].text
        wins = 2 * sum(votes) > len(votes)
        pairs.append(None if even else Pair(a=1, b=2) if wins else Pair(a=2, b=1))
    return pairs


def with_pairs(trees: Sequence[Tree], rollouts: Sequence[Rollout], pairs: Sequence[Pair | None]) -> list[Tree]:
    """The trees that hold a pair, of its two answers alone, with their reference log-probs."""
    columns = {(r.tree, r.node): {"reference_logprobs": r.columns["reference"].tolist()} for r in rollouts}
    made = []
    for index, (tree, pair) in enumerate(zip(trees, pairs, strict=True)):
        if pair is not None:
            nodes = (tree.nodes[0], tree.nodes[pair.a], tree.nodes[pair.b])
            small = dataclasses.replace(tree, nodes=nodes, pairs=(Pair(a=1, b=2),))
            made.append(with_fields(small, {1: columns[index, pair.a], 2: columns[index, pair.b]}))
    return made
