"""PPO on a KL leash (Schulman et al. 2017; Ziegler et al. 2019): sample, score, take the log-ratio to the reference
off the reward, estimate advantages, update, steer the KL coefficient."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefloop.configs.ppo import PPOConfig, PtxConfig
from prefloop.data.sources import load_demonstrations, load_prompts
from prefloop.data.trees import answer_tree, demonstration_trees, with_fields
from prefloop.engine.build import (
    build_critic,
    build_encoder,
    build_learner,
    build_sampler,
    build_scorer,
    load,
    resolve_checkpoint,
    use_threads,
)
from prefloop.engine.local import LocalLearner, Reference
from prefloop.engine.schedule import rate, take
from prefloop.engine.verbs import Read
from prefloop.models.checkpoint import MANIFEST
from prefloop.models.heads import value_head
from prefloop.ops.advantages import gae, leave_one_out
from prefloop.ops.masking import whiten
from prefloop.rewards.mix import MixedReward
from prefloop.rewards.resolve import resolve_reward
from prefloop.run import Run, progress
from prefloop.stages.early import early_stop
from prefloop.stages.rollouts import (
    IMPORTANCE_CAP,
    Controller,
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
from prefloop.types import PrefloopError, Sampling, Tree


def run(config: PPOConfig) -> Mapping[str, Any]:
    """Train the policy; returns the result with its path. The same call continues an interrupted run exactly."""
    parent = resolve_checkpoint(config.policy)
    sources = reward_sources(config) | other_sources(config)
    with Run.open(config.out, config, stage="ppo", parents={"policy": parent, **sources}) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        loaded = load(config.policy, config.engine)
        encoder = build_encoder(loaded)
        critic = build_critic(sources["critic"], encoder, config.engine, config.critic.optim) if config.critic else None
        head = None if critic else value_head(loaded.model.config.get_text_config().hidden_size)
        learner = build_learner(
            loaded, config.engine, config.optim, lora=config.lora, head=head, seed=config.seed, ema=config.ema
        )
        reference: Reference = "adapter-off"
        if not config.lora:
            reference = build_scorer(load(config.policy, config.engine), config.engine)
        sampler = build_sampler(loaded, run.path.name, config.engine, int8=config.rollout_dtype == "int8")
        watch = Watch(config)
        prompts = load_prompts(config.prompts, splits=(config.split,))
        examples = load_demonstrations(config.ptx.data) if config.ptx else []
        texts = [tree for example in examples for tree in demonstration_trees(example, encoder)]
        samplings = [Sampling(temperature=config.temperature, max_tokens=config.max_tokens)] * config.group
        episodes = config.prompts_per_step * config.group
        start, state = resume(run, learner, parent, critic)
        kl = controller(config.kl, episodes, config.steps, start, state)
        mix = config.mix and MixedReward(config.mix, config.reward, config.engine, state.get("mix", {}))
        reward = mix or resolve_reward(config.reward, config.engine)
        shape = shaping(config, reward, state.get("shaping", {}))
        early = early_stop(config, reward, watch.judge, state.get("early", {}))
        updates_per_step = config.epochs * config.minibatches
        taken, stopped = config.steps, None

        with progress(config.steps, "steps", done=start) as bar:
            for step in range(start, config.steps):
                metrics: dict[str, float] = {}
                began = time.perf_counter()
                chosen = take(prompts, step * config.prompts_per_step, config.prompts_per_step, config.seed)
                sampler.load(learner.publish())
                groups = sample_groups(sampler, encoder, chosen, samplings=samplings, seed=(config.seed, "ppo", step))
                sampled = time.perf_counter()

                flat_prompts = [prompt for prompt, group in zip(chosen, groups, strict=True) for _ in group]
                flat = [completion for group in groups for completion in group]
                judged = reward(flat_prompts, flat)
                scores = shape(judged, flat_prompts, flat)
                if early and early.due(step):  # after the batch's own scores, which fix a mix's scales
                    metrics["heldout/score"] = early.score(step, run, learner, sampler, encoder, parent)
                    if stopped := early.over(step):
                        taken = step
                        break
                trees = [answer_tree(prompt, group, encoder) for prompt, group in zip(chosen, groups, strict=True)]
                parts = [list(range(i, len(trees), config.minibatches)) for i in range(config.minibatches)]
                more: set[Read] = set() if critic else {"values"}
                readings = read_policy(learner, reference, trees, parts, more, config.temperature)
                if critic:
                    valued = critic.forward(trees, {"values"})
                    readings = [replace(r, values=v.values) for r, v in zip(readings, valued, strict=True)]
                rollouts = gather(chosen, groups, scores, readings)
                measured = measure(rollouts)
                gap = sampler_gap(rollouts)
                check_gap(gap, step, config)
                check_start(rollouts, step)
                stopped = beyond(measured, config.kl, step)
                trees, reward_total, explained = with_advantages(trees, rollouts, kl.coef, config)
                scored = time.perf_counter()

                updates: list[dict[str, float]] = []
                for update in range(0 if stopped else updates_per_step):
                    batch = [trees[i] for i in parts[update % config.minibatches]]
                    at = step * updates_per_step + update
                    updates.append(improve(learner, critic, reference, batch, texts, at, kl, config))
                    check_first_ratio(updates[-1], update, run)
                    if config.kl.epoch_stop and updates[-1]["policy/approx_kl"] > config.kl.epoch_stop:
                        break

                for name in updates[0] if updates else ():
                    metrics[name] = sum(made[name] for made in updates) / len(updates)
                metrics |= measured | watch(flat_prompts, flat)
                metrics |= {"reward/total": reward_total, "value/explained_variance": explained}
                metrics |= {"kl/coef": kl.coef, "kl/target": config.kl.target, "sampler/logprob_gap": gap}
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
                kl = kl.update(counted(measured, config.kl), episodes)
                if (step + 1) % config.save_every == 0 and step + 1 < config.steps:
                    saved = {"kl_coef": kl.coef, "kl_rate": kl.rate, "shaping": shape.state}
                    saved |= ({"mix": mix.state} if mix else {}) | ({"early": early.state} if early else {})
                    save_step(run, learner, step, parent, saved, critic)
                bar.advance(1, f"score {metrics['reward/score']:+.2f}, KL {metrics['kl/response']:.1f}")

        if early:
            if not (stopped and early.due(taken)):
                early.score(taken, run, learner, sampler, encoder, parent)
            taken = early.restore(run, learner)
        with learner.averaged():
            checkpoint = save_final(run, learner, taken, parent, "policy", sources)
        kls = [row.values["kl/response"] for row in run.metrics()]
        last_third = kls[-max(1, len(kls) // 3) :]
        result = {
            "checkpoint": checkpoint,
            "kl_target": config.kl.target,
            "kl_last_third": sum(last_third) / len(last_third),
            "kl_coef": kl.coef,
            "episodes": len(run.metrics()) * episodes,
            "steps": taken,
            **({"stopped": stopped} if stopped else {}),
        }
        return early.finish(run, result) if early else run.finish(result)


def other_sources(config: PPOConfig) -> dict[str, str]:
    """What a run stands on beside policy and reward: what its critic starts as, and what PPO-ptx reads."""
    found = {"ptx": config.ptx.data} if config.ptx else {}
    if config.critic is None:
        return found
    named = {"reward": config.reward, "policy": config.policy}.get(config.critic.checkpoint, config.critic.checkpoint)
    critic = resolve_checkpoint(named)
    if config.critic.checkpoint == "reward" and not (Path(critic) / MANIFEST).is_file():
        raise PrefloopError(
            f"critic.checkpoint is 'reward', but the reward {config.reward!r} is no single reward model to start from; "
            "name one, or take 'policy'."
        )
    return found | {"critic": critic}


def improve(
    learner: LocalLearner,
    critic: LocalLearner | None,
    reference: Reference,
    batch: Sequence[Tree],
    texts: Sequence[Tree],
    at: int,
    kl: Controller,
    config: PPOConfig,
) -> dict[str, float]:
    """One update of policy and critic on a minibatch, the `at`-th of the run; returns its metrics. Of PPO-ptx the
    gradient is added to the policy's before the step."""
    form, total = config.kl.form or "reward", config.steps * config.epochs * config.minibatches
    params: dict[str, Any] = {"clip": config.clip, "temperature": config.temperature}
    params |= {} if form == "reward" else {"kl_form": form, "kl_coef": kl.coef}
    params |= {"importance_cap": IMPORTANCE_CAP} if config.rollout_dtype == "int8" else {}
    values = {"value_clip": config.value_clip}
    params |= {} if critic else values | {"value_coef": config.value_coef}
    loss, seen = "ppo_policy" if critic else "ppo", reference if form == "exact" else None
    made = learner.forward_backward(batch, loss, params, seen)
    if config.ptx:
        begin, end = ptx_places(config, config.ptx, at)
        mixed = take(texts, begin, end - begin, config.seed)
        made["ptx/loss"] = learner.forward_backward(mixed, "sft", {"coef": config.ptx.coef})["loss/train"]
    factor = rate(config.optim, at, total) * kl.rate
    made |= learner.optim_step(config.optim.lr * factor, config.optim.head_lr * factor)
    if critic and config.critic:
        optim = config.critic.optim
        made |= critic.forward_backward(batch, "value", values)
        factor = rate(optim, at, total)
        made["critic/grad_norm"] = critic.optim_step(optim.lr * factor, optim.head_lr * factor)["optim/grad_norm"]
    return made


def ptx_places(config: PPOConfig, ptx: PtxConfig, at: int) -> tuple[int, int]:
    """Where in the endless order of texts those of update `at` begin and end: `ratio` for each episode, without a gap
    also where minibatches differ in size."""
    passes, part = divmod(at, config.minibatches)
    sizes = [len(range(i, config.prompts_per_step, config.minibatches)) for i in range(config.minibatches)]
    before = passes * config.prompts_per_step + sum(sizes[:part])
    begin, end = (math.floor(ptx.ratio * config.group * prompts) for prompts in (before, before + sizes[part]))
    return begin, end


def with_advantages(
    trees: Sequence[Tree], rollouts: Sequence[Rollout], coef: float, config: PPOConfig
) -> tuple[list[Tree], float, float]:
    """Trees with old log-probs, values, returns and whitened advantages; the mean total reward of a response; the
    share of the returns' variance that the values explain. The price of KL is in the rewards, or else in the loss."""
    price = coef if (config.kl.form or "reward") == "reward" else 0.0
    rewards = []
    for r in rollouts:
        per_token = -price * r.log_ratio.astype(np.float64)
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
    if config.whiten_advantages:
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
            "reference_logprobs": r.columns["reference"].tolist(),
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
