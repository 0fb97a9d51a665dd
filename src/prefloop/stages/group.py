"""Group methods (GRPO: Shao et al. 2024; RLOO: Ahmadian et al. 2024): several answers to each prompt, each judged by
what the others got; no value head."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from prefloop.configs.group import GroupConfig
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
from prefloop.ops.advantages import group_normalised, leave_one_out
from prefloop.rewards.mix import MixedReward
from prefloop.rewards.resolve import resolve_reward
from prefloop.run import Run, progress
from prefloop.stages.early import early_stop
from prefloop.stages.rollouts import (
    IMPORTANCE_CAP,
    Rollout,
    Watch,
    beyond,
    check_first_ratio,
    check_gap,
    check_start,
    controller,
    counted,
    gather,
    measure,
    read_policy,
    record,
    reward_sources,
    sampled_logprobs,
    sampler_gap,
    shaping,
)
from prefloop.stages.sampling import sample_groups
from prefloop.stages.saving import resume, save_final, save_step
from prefloop.types import Sampling, Tree


def run(config: GroupConfig) -> Mapping[str, Any]:
    """Train the policy; returns the result with its path. The same call continues an interrupted run exactly."""
    parent = resolve_checkpoint(config.policy)
    sources = reward_sources(config)
    with Run.open(config.out, config, stage="group", parents={"policy": parent, **sources}) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        loaded = load(config.policy, config.engine)
        encoder = build_encoder(loaded)
        learner = build_learner(loaded, config.engine, config.optim, lora=config.lora, seed=config.seed, ema=config.ema)
        updates_per_step = config.epochs * config.minibatches
        form = config.kl.form or ("k3" if config.method == "grpo" else "reward")
        leashed = config.kl.controller != "fixed" or config.kl.coef > 0 or config.kl.stop is not None
        reference: Reference = "adapter-off" if leashed and config.lora else None
        if leashed and not config.lora:
            reference = build_scorer(load(config.policy, config.engine), config.engine)
        int8 = config.rollout_dtype == "int8"
        sampler = build_sampler(loaded, run.path.name, config.engine, int8=int8)
        watch = Watch(config)
        prompts = load_prompts(config.prompts, splits=(config.split,))
        samplings = [Sampling(temperature=config.temperature, max_tokens=config.max_tokens)] * config.group
        episodes = config.prompts_per_step * config.group
        start, state = resume(run, learner, parent)
        kl = controller(config.kl, episodes, config.steps, start, state)
        mix = config.mix and MixedReward(config.mix, config.reward, config.engine, state.get("mix", {}))
        reward = mix or resolve_reward(config.reward, config.engine)
        shape = shaping(config, reward, state.get("shaping", {}))
        early = early_stop(config, reward, watch.judge, state.get("early", {}))
        taken, stopped = config.steps, None

        with progress(config.steps, "steps", done=start) as bar:
            for step in range(start, config.steps):
                metrics: dict[str, float] = {}
                if early and early.due(step):
                    metrics["heldout/score"] = early.score(step, run, learner, sampler, encoder, parent)
                    if stopped := early.over(step):
                        taken = step
                        break
                began = time.perf_counter()
                chosen = take(prompts, step * config.prompts_per_step, config.prompts_per_step, config.seed)
                sampler.load(learner.publish())
                groups = sample_groups(sampler, encoder, chosen, samplings=samplings, seed=(config.seed, "group", step))
                sampled = time.perf_counter()

                flat_prompts = [prompt for prompt, group in zip(chosen, groups, strict=True) for _ in group]
                flat = [completion for group in groups for completion in group]
                judged = reward(flat_prompts, flat)
                scores = shape(judged, flat_prompts, flat)
                trees = [answer_tree(prompt, group, encoder) for prompt, group in zip(chosen, groups, strict=True)]
                parts = [list(range(i, len(trees), config.minibatches)) for i in range(config.minibatches)]
                readings = None
                if leashed or updates_per_step > 1:
                    readings = read_policy(learner, reference, trees, parts, set(), config.temperature)
                rollouts = gather(chosen, groups, scores, readings)
                gap = sampler_gap(rollouts) if readings else None
                check_start(rollouts, step)
                trees = with_advantages(trees, rollouts, kl.coef, config)
                scored = time.perf_counter()

                measured = measure(rollouts)
                stopped = beyond(measured, config.kl, step) if leashed else None
                updates: list[dict[str, float]] = []
                for update in range(0 if stopped else updates_per_step):
                    batch = [trees[i] for i in parts[update % config.minibatches]]
                    params: dict[str, Any] = {"clip": config.clip, "temperature": config.temperature}
                    params |= {} if form == "reward" else {"kl_form": form, "kl_coef": kl.coef}
                    params |= {"importance_cap": IMPORTANCE_CAP} if int8 else {}
                    against = reference if form == "exact" else None
                    made = learner.forward_backward(batch, config.method, params, against)
                    seen = made.pop("sampler/logprob_gap")
                    gap = seen if gap is None else gap  # with a lone update, that saw all that was sampled
                    metrics["sampler/logprob_gap"] = gap
                    check_gap(gap, step, config)
                    check_first_ratio(made, update, run)
                    at = step * updates_per_step + update
                    factor = rate(config.optim, at, config.steps * updates_per_step) * kl.rate
                    made |= learner.optim_step(config.optim.lr * factor, config.optim.head_lr * factor)
                    updates.append(made)
                    if config.kl.epoch_stop and made["policy/approx_kl"] > config.kl.epoch_stop:
                        break

                for name in updates[0] if updates else ():
                    metrics[name] = sum(made[name] for made in updates) / len(updates)
                metrics |= measured | watch(flat_prompts, flat) | {"kl/coef": kl.coef}
                metrics["reward/flat_groups"] = flat_groups(rollouts, config.group)
                metrics |= {"kl/target": config.kl.target} if config.kl.controller in ("adaptive", "rate") else {}
                metrics |= {"reward/raw": float(np.mean([s.value for s in judged])), "policy/updates": len(updates)}
                metrics |= {"kl/rate": kl.rate} if config.kl.controller == "rate" else {}
                done = time.perf_counter()
                metrics |= {"time/sample": sampled - began, "time/score": scored - sampled}
                metrics |= {"time/update": done - scored}
                metrics |= mix.learn(judged) if mix else {}
                record(run, step, rollouts)
                run.log(step, metrics)
                if stopped:
                    taken = step
                    break
                kl = kl.update(counted(measured, config.kl), episodes) if leashed else kl
                if (step + 1) % config.save_every == 0 and step + 1 < config.steps:
                    saved = {"kl_coef": kl.coef, "kl_rate": kl.rate, "shaping": shape.state}
                    saved |= ({"mix": mix.state} if mix else {}) | ({"early": early.state} if early else {})
                    save_step(run, learner, step, parent, saved)
                bar.advance(1, f"score {metrics['reward/score']:+.2f}")

        if early:
            if not (stopped and early.due(taken)):
                early.score(taken, run, learner, sampler, encoder, parent)
            taken = early.restore(run, learner)
        with learner.averaged():
            checkpoint = save_final(run, learner, taken, parent, "policy", sources)
        result = {"checkpoint": checkpoint, "kl_coef": kl.coef, "episodes": len(run.metrics()) * episodes}
        result |= {"steps": taken} | ({"stopped": stopped} if stopped else {})
        return early.finish(run, result) if early else run.finish(result)


def with_advantages(trees: Sequence[Tree], rollouts: Sequence[Rollout], coef: float, config: GroupConfig) -> list[Tree]:
    """Trees with each response's advantage at all its tokens, and with the log-probs that the loss compares with."""
    scores = torch.tensor([r.score for r in rollouts], dtype=torch.float64)
    form = config.kl.form or ("k3" if config.method == "grpo" else "reward")
    if form == "reward" and "reference" in rollouts[0].columns:
        scores = scores - coef * torch.tensor([float(r.log_ratio.sum()) for r in rollouts], dtype=torch.float64)
    scores = scores.view(-1, config.group)
    judged = group_normalised(scores) if config.method == "grpo" else scores - leave_one_out(scores)
    advantages = judged.flatten().tolist()
    columns: dict[int, dict[int, dict[str, Sequence[float]]]] = {}
    for r, advantage in zip(rollouts, advantages, strict=True):
        fields: dict[str, Sequence[float]] = {
            "advantages": [advantage] * len(r.logprobs),
            "sampled_logprobs": sampled_logprobs(r.completion).tolist(),
        }
        if config.epochs * config.minibatches > 1:
            fields["old_logprobs"] = r.logprobs.tolist()
        if "reference" in r.columns:
            fields["reference_logprobs"] = r.columns["reference"].tolist()
        columns.setdefault(r.tree, {})[r.node] = fields
    return [with_fields(tree, columns[index]) for index, tree in enumerate(trees)]


def flat_groups(rollouts: Sequence[Rollout], group: int) -> float:
    """Share of the prompts whose answers all scored alike: they teach nothing."""
    scores = torch.tensor([r.score for r in rollouts]).view(-1, group)
    return float((scores.amax(dim=1) == scores.amin(dim=1)).float().mean())
