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
    compute_dtype,
    load,
    resolve_checkpoint,
    use_threads,
)
from prefloop.engine.local import Reference
from prefloop.engine.schedule import rate
from prefloop.ops.advantages import discounted_returns, group_advantages
from prefloop.rewards.mix import MixedReward
from prefloop.rewards.resolve import resolve_reward
from prefloop.run import Run, progress
from prefloop.stages.batches import Batch, draw_batch
from prefloop.stages.early import early_stop
from prefloop.stages.rollouts import (
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
        learner = build_learner(loaded, config.engine, config.optim, lora=config.lora, seed=config.seed, ema=config.ema)
        updates_per_step = config.epochs * config.minibatches
        # Else updates skip rows that old log-probs were read with, and bf16 products of another shape round otherwise.
        same_rows = not config.skip_truncated or compute_dtype(config.engine) is torch.float32
        leashed = config.kl.controller != "fixed" or config.kl.coef > 0 or config.kl.stop is not None
        reference: Reference = "adapter-off" if leashed and config.lora else None
        if leashed and not config.lora:
            reference = build_scorer(load(config.policy, config.engine), config.engine)
        sampler = build_sampler(loaded, run.path.name, config.engine, int8=config.rollout_dtype == "int8")
        watch = Watch(config)
        prompts = load_prompts(config.prompts, splits=(config.split,))
        episodes = config.prompts_per_step * config.group
        start, state = resume(run, learner, parent)
        kl = controller(config.kl, episodes, config.steps, start, state)
        mix = config.mix and MixedReward(config.mix, config.reward, config.engine, state.get("mix", {}))
        reward = mix or resolve_reward(config.reward, config.engine)
        shape = shaping(config, reward, state.get("shaping", {}))
        early = early_stop(config, reward, watch.judge, state.get("early", {}))
        taken, stopped = config.steps, None
        position = int(state.get("position", 0))
        ahead = deque(from_json(Batch, batch) for batch in state.get("ahead", ()))

        with progress(config.steps, "steps", done=start) as bar:
            for step in range(start, config.steps):
                metrics: dict[str, float] = {}
                began = time.perf_counter()
                sampler.load(learner.publish())
                while len(ahead) <= min(config.staleness, config.steps - step - 1):
                    index = step + len(ahead)
                    ahead.append(draw_batch(config, sampler, encoder, reward, shape, prompts, position, index))
                    position = ahead[-1].position
                batch = ahead.popleft()
                sampled = time.perf_counter()

                if early and early.due(step):  # after the batch's own scores, which fix a mix's scales
                    metrics["heldout/score"] = early.score(step, run, learner, sampler, encoder, parent)
                    if stopped := early.over(step):
                        taken = step
                        break
                chosen, groups = [g.prompt for g in batch.groups], [g.answers for g in batch.groups]
                flat_prompts = [prompt for prompt, group in zip(chosen, groups, strict=True) for _ in group]
                flat = [completion for group in groups for completion in group]
                judged = [score for group in batch.groups for score in group.judged]
                scores = [score for group in batch.groups for score in group.scores]
                trees = [answer_tree(prompt, group, encoder) for prompt, group in zip(chosen, groups, strict=True)]
                parts = [list(range(i, len(trees), config.minibatches)) for i in range(config.minibatches)]
                readings = None
                if leashed or updates_per_step > 1:
                    readings = read_policy(learner, reference, trees, parts, set(), config.temperature)
                rollouts = gather(chosen, groups, scores, readings)
                age = check_age(rollouts, learner.version, config.staleness * updates_per_step)
                gap = sampler_gap(rollouts) if readings else None
                check_start(rollouts, step)
                trees = with_advantages(trees, rollouts, kl.coef, config)
                scored = time.perf_counter()

                measured = measure(rollouts)
                stopped = beyond(measured, config.kl, step) if leashed else None
                updates: list[dict[str, float]] = []
                for update in range(0 if stopped else updates_per_step):
                    part = [trees[i] for i in parts[update % config.minibatches]]
                    against = reference if config.kl.form == "exact" else None
                    made = learner.forward_backward(part, "group", loss_params(config, kl.coef), against)
                    seen = made.pop("sampler/logprob_gap")
                    gap = seen if gap is None else gap  # with a lone update, that saw all that was sampled
                    metrics["sampler/logprob_gap"] = gap
                    if not age:
                        check_gap(gap, step, config)
                    if made["policy/ratio_max"] and same_rows:  # 0 where no answer is learned from
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
                metrics |= {"reward/flat_groups": sum(group.flat for group in batch.groups) / len(batch.groups)}
                metrics |= {"reward/raw": float(np.mean([score.value for score in judged]))}
                metrics |= {"sampler/staleness": age, "policy/updates": len(updates)}
                if config.draws > 1:
                    metrics |= {"reward/drawn": batch.score, "sampler/drawn": batch.drawn}
                    metrics |= {"sampler/drawn_flat": batch.flat / batch.drawn}
                metrics |= {"kl/target": config.kl.target} if config.kl.controller in ("adaptive", "rate") else {}
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
                    saved: dict[str, Any] = {"kl_coef": kl.coef, "kl_rate": kl.rate, "shaping": shape.state}
                    saved |= {"position": position, "ahead": [to_json(batch) for batch in ahead]}
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


def loss_params(config: GroupConfig, coef: float) -> dict[str, Any]:
    """What engine.objectives.group is called with."""
    names = ("clip", "clip_high", "ratio", "surrogate", "mean", "temperature")
    params = {name: getattr(config, name) for name in names} | {"longest": config.max_tokens}
    params |= {} if config.kl.form == "reward" else {"kl_form": config.kl.form, "kl_coef": coef}
    return params | ({"correction": config.correction.model_dump()} if config.correction else {})


def check_age(rollouts: Sequence[Rollout], version: int, limit: int) -> int:
    """The most updates that the policy made since it wrote one of these; PrefloopError where that is over the limit."""
    age = max(version - r.completion.version for r in rollouts)
    if age > limit:
        raise PrefloopError(f"A rollout is {age} updates old, over the limit of {limit}: it was kept back too long.")
    return age


def with_advantages(trees: Sequence[Tree], rollouts: Sequence[Rollout], coef: float, config: GroupConfig) -> list[Tree]:
    """Trees with the advantage of each response's tokens, and with the log-probs that the loss compares with. Where the
    price of KL is in the reward and each token has its ratio, each pays for what follows it; else each response."""
    leashed = "reference" in rollouts[0].columns
    priced = leashed and config.kl.form == "reward"
    scores = torch.tensor([r.score for r in rollouts], dtype=torch.float64)
    if priced and config.ratio != "token":
        scores = scores - coef * torch.tensor([float(r.log_ratio.sum()) for r in rollouts], dtype=torch.float64)
    late = priced and config.ratio == "token"  # the batch's mean and std are then those of its tokens
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
