"""PPO on a KL leash (Schulman et al. 2017; Ziegler et al. 2019): sample, score, take the log-ratio to the reference
off the reward, estimate advantages, update, steer the KL coefficient."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefloop.configs.ppo import KLConfig, PPOConfig
from prefloop.data.jsonl import read_jsonl
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
from prefloop.engine.local import LocalLearner, LocalScorer
from prefloop.engine.schedule import rate, take
from prefloop.engine.verbs import Column, Readings
from prefloop.evals.winrate import outcome
from prefloop.models.heads import value_head
from prefloop.ops.advantages import gae, leave_one_out
from prefloop.ops.kl import AdaptiveKL, FixedKL, k3
from prefloop.ops.masking import whiten
from prefloop.rewards.resolve import RewardFn, resolve_reward
from prefloop.run import Run, progress
from prefloop.stages.sampling import sample_groups
from prefloop.stages.saving import resume, save_final, save_step
from prefloop.types import Completion, PrefloopError, Prompt, Sampling, Tree, from_json, to_json

GAP = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # sampler against learner: most nats a token, on average


@dataclasses.dataclass(frozen=True)
class Rollout:
    """A completion with what was measured of it; columns have a number per response token, `tree`/`node` its place."""

    prompt: Prompt
    completion: Completion
    tree: int
    node: int
    score: float
    logprobs: Column
    reference: Column
    values: Column
    entropy: Column
    exact_kl: Column

    @property
    def kl(self) -> float:
        """Nats of the response: sum over its tokens of log pi - log pi_ref."""
        return float((self.logprobs - self.reference).sum())


def run(config: PPOConfig) -> Mapping[str, Any]:
    """Train the policy; returns the result with its path. The same call continues an interrupted run exactly."""
    parent = resolve_checkpoint(config.policy)
    parents = {"policy": parent, "reward": resolve_checkpoint(config.reward)}
    with Run.open(config.out, config, stage="ppo", parents=parents) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        loaded = load(config.policy, config.engine)
        encoder = build_encoder(loaded)
        head = value_head(loaded.model.config.get_text_config().hidden_size)
        learner = build_learner(loaded, config.engine, config.optim, lora=config.lora, head=head, seed=config.seed)
        reference = None if config.lora else build_scorer(load(config.policy, config.engine), config.engine)
        sampler = build_sampler(loaded, run.path.name)
        reward = resolve_reward(config.reward, config.engine)
        watch = Watch(config)
        prompts = load_prompts(config.prompts, splits=(config.split,))
        samplings = [Sampling(temperature=config.temperature, max_tokens=config.max_tokens)] * config.group
        episodes = config.prompts_per_step * config.group
        start, state = resume(run, learner, parent)
        kl = controller(config.kl, episodes, state.get("kl_coef"))
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
                scores = shaped_scores(reward, flat_prompts, flat, config)
                trees = [answer_tree(prompt, group, encoder) for prompt, group in zip(chosen, groups, strict=True)]
                parts = [list(range(i, len(trees), config.minibatches)) for i in range(config.minibatches)]
                readings = read_policy(learner, reference, trees, parts, config)
                rollouts = gather(chosen, groups, scores, readings)
                check_rollouts(rollouts, step, config)
                trees, reward_total, explained = with_advantages(trees, rollouts, kl.coef, config)
                scored = time.perf_counter()

                metrics: dict[str, float] = {}
                for update in range(updates_per_step):
                    batch = [trees[i] for i in parts[update % config.minibatches]]
                    made = learner.forward_backward(
                        batch,
                        "ppo",
                        {
                            "clip": config.clip,
                            "value_clip": config.value_clip,
                            "value_coef": config.value_coef,
                            "temperature": config.temperature,
                        },
                    )
                    check_first_ratio(made, update, run)
                    factor = rate(config.optim, step * updates_per_step + update, config.steps * updates_per_step)
                    made |= learner.optim_step(config.optim.lr * factor, config.optim.head_lr * factor)
                    for name, value in made.items():
                        metrics[name] = metrics.get(name, 0.0) + value / updates_per_step

                measured = measure(rollouts, reward_total, explained)
                metrics |= measured | {"kl/coef": kl.coef, "kl/target": config.kl.target} | watch(flat_prompts, flat)
                done = time.perf_counter()
                metrics |= {"time/sample": sampled - began, "time/score": scored - sampled}
                metrics |= {"time/update": done - scored}
                for r in rollouts:
                    run.sample(
                        step,
                        {"prompt_id": r.prompt.id, "completion": to_json(r.completion), "score": r.score, "kl": r.kl},
                    )
                run.log(step, metrics)
                kl = kl.update(measured["kl/exact"], episodes)  # the mean of kl/response, with less noise
                if (step + 1) % config.save_every == 0 and step + 1 < config.steps:
                    save_step(run, learner, step, parent, {"kl_coef": kl.coef})
                bar.advance(1, f"score {metrics['reward/score']:+.2f}, KL {metrics['kl/response']:.1f}")

        checkpoint = save_final(run, learner, config.steps, parent, "policy", {"reward": parents["reward"]})
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


def controller(config: KLConfig, episodes: int, coef: float | None) -> AdaptiveKL | FixedKL:
    """The KL coefficient's controller, from the start or from a checkpoint's coefficient."""
    now = config.coef if coef is None else coef
    if config.controller == "fixed":
        return FixedKL(now)
    return AdaptiveKL(now, config.target, config.horizon * episodes, config.clip)


def shaped_scores(
    reward: RewardFn, prompts: Sequence[Prompt], completions: Sequence[Completion], config: PPOConfig
) -> list[float]:
    """Reward-model scores, of answers that are empty or did not end by themselves at most `missing_stop_score`: what
    an empty answer is worth no reward model was shown."""
    scores = [score.value for score in reward(prompts, completions)]
    missing = config.missing_stop_score
    if missing is None:
        return scores
    whole = [c.finish_reason == "stop" and bool(c.text.strip()) for c in completions]
    return [score if good else min(score, missing) for score, good in zip(scores, whole, strict=True)]


def read_policy(
    learner: LocalLearner,
    reference: LocalScorer | None,
    trees: Sequence[Tree],
    parts: Sequence[Sequence[int]],
    config: PPOConfig,
) -> list[Readings]:
    """Old log-probs, values, reference log-probs, by the learner and in the micro-batches that the update will use."""
    found: list[Readings] = [Readings() for _ in trees]
    for members in parts:
        made = learner.forward(
            [trees[i] for i in members],
            {"logprobs", "entropy", "values", "exact_kl"},
            temperature=config.temperature,
            reference=reference if reference is not None else "adapter-off",
        )
        for place, reading in zip(members, made, strict=True):
            found[place] = reading
    return found


def gather(
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Completion]],
    scores: Sequence[float],
    readings: Sequence[Readings],
) -> list[Rollout]:
    rollouts: list[Rollout] = []
    for tree, (prompt, group, reading) in enumerate(zip(prompts, groups, readings, strict=True)):
        for place, completion in enumerate(group):
            node = 1 + place
            rollouts.append(
                Rollout(
                    prompt=prompt,
                    completion=completion,
                    tree=tree,
                    node=node,
                    score=scores[len(rollouts)],
                    logprobs=reading.logprobs[node],
                    reference=reading.reference_logprobs[node],
                    values=reading.values[node],
                    entropy=reading.entropy[node],
                    exact_kl=reading.exact_kl[node],
                )
            )
    return rollouts


def check_rollouts(rollouts: Sequence[Rollout], step: int, config: PPOConfig) -> None:
    """What must hold whatever the data: the sampler wrote with the learner's weights; policy = reference at step 0."""
    gap = sampler_gap(rollouts)
    limit = GAP[compute_dtype(config.engine)]
    if gap > limit:
        raise PrefloopError(
            f"Sampler and learner differ by {gap:.4f} nats a token on average at step {step} (limit "
            f"{limit}): the sampler does not serve the trained weights, or the model is not supported."
        )
    if step == 0 and (apart := max(abs(r.kl) for r in rollouts)) > 1e-3:
        raise PrefloopError(f"KL to the reference is {apart:.4f} before the first update; policy and reference differ.")


def check_first_ratio(metrics: Mapping[str, float], update: int, run: Run) -> None:
    """The first inner update's probability ratios are 1, because old log-probs come from the same computation."""
    if update == 0 and abs(metrics["policy/ratio_max"] - 1) > 1e-4:
        raise PrefloopError(
            f"{run.path}: the first update's largest ratio is {metrics['policy/ratio_max']:.6f}, not 1: "
            "old log-probs were computed differently from new ones."
        )


def sampler_gap(rollouts: Sequence[Rollout]) -> float:
    """Mean |log-prob of the sampler - log-prob of the learner| over response tokens, nats."""
    gaps = [np.abs(np.asarray(r.completion.segments[0].logprobs) - r.logprobs) for r in rollouts]
    return float(np.concatenate(gaps).mean())


def with_advantages(
    trees: Sequence[Tree], rollouts: Sequence[Rollout], coef: float, config: PPOConfig
) -> tuple[list[Tree], float, float]:
    """Trees with old log-probs, values, returns and whitened advantages; the mean total reward of a response; the
    share of the returns' variance that the values explain."""
    rewards = []
    for r in rollouts:
        per_token = -coef * (r.logprobs - r.reference).astype(np.float64)
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
        gae(torch.from_numpy(row), torch.from_numpy(r.values).double(), gamma=config.gamma, lam=config.lam)
        for row, r in zip(rewards, rollouts, strict=True)
    ]
    advantages = torch.cat([a for a, _ in estimates])
    advantages = whiten(advantages, torch.ones_like(advantages))
    returns = torch.cat([g for _, g in estimates]).numpy()
    values = np.concatenate([r.values for r in rollouts])
    columns: dict[int, dict[int, Mapping[str, Sequence[float]]]] = {}
    start = 0
    for r in rollouts:
        stop = start + len(r.logprobs)
        columns.setdefault(r.tree, {})[r.node] = {
            "old_logprobs": r.logprobs.tolist(),
            "old_values": r.values.tolist(),
            "advantages": advantages[start:stop].tolist(),
            "returns": returns[start:stop].tolist(),
        }
        start = stop
    made = [with_fields(tree, columns[index]) for index, tree in enumerate(trees)]
    return made, total, _explained(values, returns)


def _explained(values: NDArray[Any], returns: NDArray[Any]) -> float:
    variance = float(returns.var())
    return 1 - float((returns - values).var()) / variance if variance > 0 else 0.0


def measure(rollouts: Sequence[Rollout], reward_total: float, explained: float) -> dict[str, float]:
    """What a step's rollouts say of the policy before its update. KL in nats per response."""
    lengths = [len(r.logprobs) for r in rollouts]
    k3s = [float(k3(torch.from_numpy(r.logprobs), torch.from_numpy(r.reference)).sum()) for r in rollouts]
    return {
        "reward/score": float(np.mean([r.score for r in rollouts])),
        "reward/score_std": float(np.std([r.score for r in rollouts])),
        "reward/total": reward_total,
        "kl/response": float(np.mean([r.kl for r in rollouts])),
        "kl/k3": float(np.mean(k3s)),
        "kl/exact": float(np.mean([r.exact_kl.sum() for r in rollouts])),
        "length/tokens": float(np.mean(lengths)),
        "length/stopped_share": float(np.mean([r.completion.finish_reason == "stop" for r in rollouts])),
        "policy/entropy": float(np.concatenate([r.entropy for r in rollouts]).mean()),
        "value/explained_variance": explained,
        "sampler/logprob_gap": sampler_gap(rollouts),
    }


class Watch:
    """A judge that only looks on: its score of the rollouts, and how often they beat the starting policy's answers."""

    def __init__(self, config: PPOConfig) -> None:
        self.judge = resolve_reward(config.watch, config.engine) if config.watch else None
        self.baseline: dict[str, list[float]] = {}
        if self.judge is None or not config.baseline:
            return
        rows = [row for _, row in read_jsonl(f"{config.baseline}/samples.jsonl")]
        start = resolve_checkpoint(config.policy)
        rows = [r for r in rows if r["completion"]["sampling"]["temperature"] == config.temperature]
        rows = [r for r in rows if r.get("model", start) == start]
        prompts = [from_json(Prompt, row["prompt"]) for row in rows]
        answers = [from_json(Completion, row["completion"]) for row in rows]
        for prompt, score in zip(prompts, self.judge(prompts, answers), strict=True):
            self.baseline.setdefault(prompt.id, []).append(score.value)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, float]:
        if self.judge is None:
            return {}
        scores = [score.value for score in self.judge(prompts, completions)]
        wins = [outcome(s, b) for p, s in zip(prompts, scores, strict=True) for b in self.baseline.get(p.id, ())]
        found = {"gold/score": float(np.mean(scores))}
        return found | ({"gold/win_rate": float(np.mean(wins))} if wins else {})
