"""PPO on a KL leash (Schulman et al. 2017; Ziegler et al. 2019): sample, score, take the log-ratio to the reference
off the reward, estimate advantages, update, steer the KL coefficient."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefloop.configs.ppo import PPOConfig
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
from prefloop.engine.schedule import rate, take
from prefloop.models.heads import value_head
from prefloop.ops.advantages import gae, leave_one_out
from prefloop.ops.masking import whiten
from prefloop.rewards.mix import MixedReward
from prefloop.rewards.resolve import resolve_reward
from prefloop.run import Run, progress
from prefloop.stages.rollouts import (
    IMPORTANCE_CAP,
    Reference,
    Rollout,
    Watch,
    check_first_ratio,
    check_gap,
    check_start,
    controller,
    gather,
    measure,
    read_policy,
    record,
    reward_sources,
    sampled_logprobs,
    sampler_gap,
    shaped_scores,
)
from prefloop.stages.sampling import sample_groups
from prefloop.stages.saving import resume, save_final, save_step
from prefloop.types import Sampling, Tree


def run(config: PPOConfig) -> Mapping[str, Any]:
    """Train the policy; returns the result with its path. The same call continues an interrupted run exactly."""
    parent = resolve_checkpoint(config.policy)
    sources = reward_sources(config)
    with Run.open(config.out, config, stage="ppo", parents={"policy": parent, **sources}) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        loaded = load(config.policy, config.engine)
        encoder = build_encoder(loaded)
        head = value_head(loaded.model.config.get_text_config().hidden_size)
        learner = build_learner(loaded, config.engine, config.optim, lora=config.lora, head=head, seed=config.seed)
        reference: Reference = "adapter-off"
        if not config.lora:
            reference = build_scorer(load(config.policy, config.engine), config.engine)
        int8 = config.rollout_dtype == "int8"
        sampler = build_sampler(loaded, run.path.name, config.engine, int8=int8)
        watch = Watch(config)
        prompts = load_prompts(config.prompts, splits=(config.split,))
        samplings = [Sampling(temperature=config.temperature, max_tokens=config.max_tokens)] * config.group
        episodes = config.prompts_per_step * config.group
        start, state = resume(run, learner, parent)
        kl = controller(config.kl, episodes, state.get("kl_coef"))
        mix = config.mix and MixedReward(config.mix, config.reward, config.engine, state.get("mix", {}))
        reward = mix or resolve_reward(config.reward, config.engine)
        updates_per_step = config.epochs * config.minibatches

        with progress(config.steps, "steps", done=start) as bar:
            for step in range(start, config.steps):
                began = time.perf_counter()
                chosen = take(prompts, step * config.prompts_per_step, config.prompts_per_step, config.seed)
                sampler.load(learner.publish())
                groups = sample_groups(sampler, encoder, chosen, samplings=samplings, seed=(config.seed, "ppo", step))
                sampled = time.perf_counter()

                flat_prompts = [prompt for prompt, group in zip(chosen, groups, strict=True) for _ in group]
                flat = [completion for group in groups for completion in group]
                judged = reward(flat_prompts, flat)
                scores = shaped_scores(judged, flat, config.missing_stop_score)
                trees = [answer_tree(prompt, group, encoder) for prompt, group in zip(chosen, groups, strict=True)]
                parts = [list(range(i, len(trees), config.minibatches)) for i in range(config.minibatches)]
                readings = read_policy(learner, reference, trees, parts, {"values"}, config.temperature)
                rollouts = gather(chosen, groups, scores, readings)
                gap = sampler_gap(rollouts)
                check_gap(gap, step, config)
                check_start(rollouts, step)
                trees, reward_total, explained = with_advantages(trees, rollouts, kl.coef, config)
                scored = time.perf_counter()

                metrics: dict[str, float] = {}
                for update in range(updates_per_step):
                    batch = [trees[i] for i in parts[update % config.minibatches]]
                    params = {
                        "clip": config.clip,
                        "value_clip": config.value_clip,
                        "value_coef": config.value_coef,
                        "temperature": config.temperature,
                    }
                    params |= {"importance_cap": IMPORTANCE_CAP} if int8 else {}
                    made = learner.forward_backward(batch, "ppo", params)
                    check_first_ratio(made, update, run)
                    factor = rate(config.optim, step * updates_per_step + update, config.steps * updates_per_step)
                    made |= learner.optim_step(config.optim.lr * factor, config.optim.head_lr * factor)
                    for name, value in made.items():
                        metrics[name] = metrics.get(name, 0.0) + value / updates_per_step

                measured = measure(rollouts)
                metrics |= measured | watch(flat_prompts, flat)
                metrics |= {"reward/total": reward_total, "value/explained_variance": explained}
                metrics |= {"kl/coef": kl.coef, "kl/target": config.kl.target, "sampler/logprob_gap": gap}
                done = time.perf_counter()
                metrics |= {"time/sample": sampled - began, "time/score": scored - sampled}
                metrics |= {"time/update": done - scored}
                metrics |= mix.learn(judged) if mix else {}
                record(run, step, rollouts)
                run.log(step, metrics)
                kl = kl.update(measured["kl/exact"], episodes)  # the mean of kl/response, with less noise
                if (step + 1) % config.save_every == 0 and step + 1 < config.steps:
                    saved = {"kl_coef": kl.coef} | ({"mix": mix.state} if mix else {})
                    save_step(run, learner, step, parent, saved)
                bar.advance(1, f"score {metrics['reward/score']:+.2f}, KL {metrics['kl/response']:.1f}")

        checkpoint = save_final(run, learner, config.steps, parent, "policy", sources)
        last_third = [row.values["kl/response"] for row in run.metrics()][-max(1, config.steps // 3) :]
        return run.finish(
            {
                "checkpoint": checkpoint,
                "kl_target": config.kl.target,
                "kl_last_third": sum(last_third) / len(last_third),
                "kl_coef": kl.coef,
                "episodes": config.steps * episodes,
            }
        )


def with_advantages(
    trees: Sequence[Tree], rollouts: Sequence[Rollout], coef: float, config: PPOConfig
) -> tuple[list[Tree], float, float]:
    """Trees with old log-probs, values, returns and whitened advantages; the mean total reward of a response; the
    share of the returns' variance that the values explain."""
    rewards = []
    for r in rollouts:
        per_token = -coef * r.log_ratio.astype(np.float64)
        per_token[-1] += r.score
        rewards.append(per_token)
    total = float(np.mean([row.sum() for row in rewards]))
    if config.leave_one_out:
        others = leave_one_out(torch.tensor([r.score for r in rollouts], dtype=torch.float64).view(-1, config.group))
        for row, mean in zip(rewards, others.flatten().tolist(), strict=True):
            row[-1] -= mean
    if config.whiten_rewards:
        flat = torch.from_numpy(np.concatenate(rewards))
        whitened = whiten(flat, torch.ones_like(flat), shift_mean=False).numpy()
        rewards = np.split(whitened, np.cumsum([len(row) for row in rewards])[:-1])
    estimates = [
        gae(torch.from_numpy(row), torch.from_numpy(r.columns["values"]).double(), gamma=config.gamma, lam=config.lam)
        for row, r in zip(rewards, rollouts, strict=True)
    ]
    advantages = torch.cat([a for a, _ in estimates])
    advantages = whiten(advantages, torch.ones_like(advantages))
    returns = torch.cat([g for _, g in estimates]).numpy()
    values = np.concatenate([r.columns["values"] for r in rollouts])
    columns: dict[int, dict[int, Mapping[str, Sequence[float]]]] = {}
    start = 0
    for r in rollouts:
        stop = start + len(r.logprobs)
        columns.setdefault(r.tree, {})[r.node] = {
            "old_logprobs": r.logprobs.tolist(),
            "sampled_logprobs": sampled_logprobs(r.completion).tolist(),
            "old_values": r.columns["values"].tolist(),
            "advantages": advantages[start:stop].tolist(),
            "returns": returns[start:stop].tolist(),
        }
        start = stop
    made = [with_fields(tree, columns[index]) for index, tree in enumerate(trees)]
    return made, total, _explained(values, returns)


def _explained(values: NDArray[Any], returns: NDArray[Any]) -> float:
    variance = float(returns.var())
    return 1 - float((returns - values).var()) / variance if variance > 0 else 0.0
