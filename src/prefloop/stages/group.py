"""Group methods (GRPO: Shao et al. 2024, and its relatives; docs/methods/group.md): several answers to each prompt,
each judged by what others got; no value head."""

from __future__ import annotations

import time
from collections import deque
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
from prefloop.engine.schedule import rate
from prefloop.ops.advantages import discounted_returns, group_advantages
from prefloop.rewards.mix import MixedReward
from prefloop.rewards.resolve import resolve_reward
from prefloop.run import Run, progress
from prefloop.stages.batches import Batch, draw_batch
from prefloop.stages.rollouts import (
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
)
from prefloop.stages.saving import resume, save_final, save_step
from prefloop.types import PrefloopError, Tree, from_json, to_json


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
        learner = build_learner(loaded, config.engine, config.optim, lora=config.lora, seed=config.seed)
        updates_per_step = config.epochs * config.minibatches
        leashed = config.kl.controller == "adaptive" or config.kl.coef > 0
        reference: Reference = "adapter-off" if leashed and config.lora else None
        if leashed and not config.lora:
            reference = build_scorer(load(config.policy, config.engine), config.engine)
        sampler = build_sampler(loaded, run.path.name, config.engine, int8=config.rollout_dtype == "int8")
        watch = Watch(config)
        prompts = load_prompts(config.prompts, splits=(config.split,))
        episodes = config.prompts_per_step * config.group
        start, state = resume(run, learner, parent)
        kl = controller(config.kl, episodes, state.get("kl_coef"))
        mix = config.mix and MixedReward(config.mix, config.reward, config.engine, state.get("mix", {}))
        reward = mix or resolve_reward(config.reward, config.engine)
        position = int(state.get("position", 0))
        ahead = deque(from_json(Batch, batch) for batch in state.get("ahead", ()))

        with progress(config.steps, "steps", done=start) as bar:
            for step in range(start, config.steps):
                began = time.perf_counter()
                sampler.load(learner.publish())
                while len(ahead) <= min(config.staleness, config.steps - step - 1):
                    index = step + len(ahead)
                    ahead.append(draw_batch(config, sampler, encoder, reward, prompts, position, index))
                    position = ahead[-1].position
                batch = ahead.popleft()
                sampled = time.perf_counter()

                chosen, groups = [g.prompt for g in batch.groups], [g.answers for g in batch.groups]
                flat_prompts = [prompt for prompt, group in zip(chosen, groups, strict=True) for _ in group]
                flat = [completion for group in groups for completion in group]
                judged = [score for group in batch.groups for score in group.judged]
                scores = [score for group in batch.groups for score in group.scores]
                trees = [answer_tree(prompt, group, encoder) for prompt, group in zip(chosen, groups, strict=True)]
                parts = [list(range(i, len(trees), config.minibatches)) for i in range(config.minibatches)]
                readings = None
                if leashed or updates_per_step > 1 or config.correction:
                    readings = read_policy(learner, reference, trees, parts, set(), config.temperature)
                rollouts = gather(chosen, groups, scores, readings)
                age = check_age(rollouts, learner.version, config.staleness * updates_per_step)
                gap = sampler_gap(rollouts) if readings else None
                check_start(rollouts, step)
                trees = with_advantages(trees, rollouts, kl.coef, config)
                scored = time.perf_counter()

                metrics: dict[str, float] = {}
                for update in range(updates_per_step):
                    part = [trees[i] for i in parts[update % config.minibatches]]
                    made = learner.forward_backward(part, "group", loss_params(config, kl.coef))
                    seen = made.pop("sampler/logprob_gap")
                    gap = seen if gap is None else gap  # with a lone update, that saw all that was sampled
                    metrics["sampler/logprob_gap"] = gap
                    if not age:
                        check_gap(gap, step, config)
                    check_first_ratio(made, update, run)
                    factor = rate(config.optim, step * updates_per_step + update, config.steps * updates_per_step)
                    made |= learner.optim_step(config.optim.lr * factor, config.optim.head_lr * factor)
                    for name, value in made.items():
                        metrics[name] = metrics.get(name, 0.0) + value / updates_per_step

                metrics |= measure(rollouts) | watch(flat_prompts, flat) | {"kl/coef": kl.coef}
                metrics |= {"reward/flat_groups": sum(group.flat for group in batch.groups) / len(batch.groups)}
                metrics |= {"sampler/staleness": age}
                if config.draws > 1:
                    metrics |= {"reward/drawn": batch.score, "sampler/drawn": batch.drawn}
                    metrics |= {"sampler/drawn_flat": batch.flat / batch.drawn}
                metrics |= {"kl/target": config.kl.target} if config.kl.controller == "adaptive" else {}
                done = time.perf_counter()
                metrics |= {"time/sample": sampled - began, "time/score": scored - sampled}
                metrics |= {"time/update": done - scored}
                metrics |= mix.learn(judged) if mix else {}
                record(run, step, rollouts)
                run.log(step, metrics)
                kl = kl.update(metrics["kl/exact"], episodes) if leashed else kl
                if (step + 1) % config.save_every == 0 and step + 1 < config.steps:
                    saved = {"kl_coef": kl.coef, "position": position, "ahead": [to_json(b) for b in ahead]}
                    save_step(run, learner, step, parent, saved | ({"mix": mix.state} if mix else {}))
                bar.advance(1, f"score {metrics['reward/score']:+.2f}")

        checkpoint = save_final(run, learner, config.steps, parent, "policy", sources)
        return run.finish({"checkpoint": checkpoint, "kl_coef": kl.coef, "episodes": config.steps * episodes})


def loss_params(config: GroupConfig, coef: float) -> dict[str, Any]:
    """What engine.objectives.group is called with."""
    names = ("clip", "clip_high", "ratio", "surrogate", "mean", "temperature")
    params = {name: getattr(config, name) for name in names} | {"longest": config.max_tokens}
    params |= {"kl_coef": coef} if config.leash == "loss" else {}
    return params | ({"correction": config.correction.model_dump()} if config.correction else {})


def check_age(rollouts: Sequence[Rollout], version: int, limit: int) -> int:
    """The most updates that the policy made since it wrote one of these; PrefloopError where that is over the limit."""
    age = max(version - r.completion.version for r in rollouts)
    if age > limit:
        raise PrefloopError(f"A rollout is {age} updates old, over the limit of {limit}: it was kept back too long.")
    return age


def with_advantages(trees: Sequence[Tree], rollouts: Sequence[Rollout], coef: float, config: GroupConfig) -> list[Tree]:
    """Trees with the advantage of each response's tokens, and with the log-probs that the loss compares with."""
    leashed = "reference" in rollouts[0].columns
    scores = torch.tensor([r.score for r in rollouts], dtype=torch.float64)
    if leashed and config.leash == "answer":
        scores = scores - coef * torch.tensor([float(r.log_ratio.sum()) for r in rollouts], dtype=torch.float64)
    late = leashed and config.leash == "token"  # the batch's mean and std are then those of its tokens
    compared = group_advantages(
        scores.view(-1, config.group),
        centre="none" if late and config.centre == "batch" else config.centre,
        scale="none" if late and config.scale == "batch" else config.scale,
    ).flatten()
    advantages = [np.full(len(r.logprobs), value) for r, value in zip(rollouts, compared.tolist(), strict=True)]
    if late:
        advantages = [a - coef * to_go(r) for a, r in zip(advantages, rollouts, strict=True)]
        tokens = np.concatenate(advantages)
        shift = tokens.mean() if config.centre == "batch" else 0.0
        spread = tokens.std(ddof=1) + 1e-4 if config.scale == "batch" else 1.0
        advantages = [(a - shift) / spread for a in advantages]
    columns: dict[int, dict[int, dict[str, Sequence[float]]]] = {}
    for r, advantage in zip(rollouts, advantages, strict=True):
        fields: dict[str, Sequence[float]] = {
            "advantages": advantage.tolist(),
            "sampled_logprobs": sampled_logprobs(r.completion).tolist(),
        }
        if config.epochs * config.minibatches > 1:
            fields["old_logprobs"] = r.logprobs.tolist()
        if leashed:
            fields["reference_logprobs"] = r.columns["reference"].tolist()
        if config.skip_truncated and r.completion.finish_reason == "length":
            fields["weight"] = [0.0] * len(r.logprobs)
        columns.setdefault(r.tree, {})[r.node] = fields
    return [with_fields(tree, columns[index]) for index, tree in enumerate(trees)]


def to_go(rollout: Rollout) -> np.ndarray[Any, np.dtype[np.float64]]:
    """sum of log pi - log pi_ref from each token on: what k1 as a reward costs it and what follows (ops/kl.py)."""
    log_ratio = torch.from_numpy(rollout.log_ratio.astype(np.float64))
    return discounted_returns(log_ratio, gamma=1.0).numpy()
