"""What stages that learn from their own samples share: rollouts with what was measured of them, and the checks that
must hold whatever the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from prefloop.configs.rejection import RejectionConfig
from prefloop.configs.rollout import KLConfig, SampledConfig
from prefloop.data.rows import read_jsonl
from prefloop.engine.build import compute_dtype, resolve_checkpoint
from prefloop.engine.local import LocalLearner, LocalScorer
from prefloop.engine.verbs import Column, Read, Readings
from prefloop.evals.winrate import outcome
from prefloop.ops.kl import AdaptiveKL, FixedKL, k3
from prefloop.rewards.resolve import resolve_reward, reward_parents
from prefloop.run import Run
from prefloop.types import Completion, PrefloopError, Prompt, Score, Tree, from_json, to_json

Reference = LocalScorer | Literal["adapter-off"] | None
IMPORTANCE_CAP = 2.0  # where rollouts come from weights of another precision (Yao et al. 2025)
GAP = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # sampler against learner: most nats a token, on average


@dataclass(frozen=True)
class Rollout:
    """A completion, its score, its place among the trees, and what was read of it: a number per response token.

    `columns` holds "logprobs" (the learner's; the sampler's where the learner did not read), and may hold "reference",
    "values", "entropy" and "exact_kl".
    """

    prompt: Prompt
    completion: Completion
    tree: int
    node: int
    score: float
    columns: Mapping[str, Column]

    @property
    def logprobs(self) -> Column:
        return self.columns["logprobs"]

    @property
    def log_ratio(self) -> Column:
        """log pi - log pi_ref of each token; its sum is the response's KL in nats (k1)."""
        return self.logprobs - self.columns["reference"]


def read_policy(
    learner: LocalLearner,
    reference: Reference,
    trees: Sequence[Tree],
    parts: Sequence[Sequence[int]],
    more: AbstractSet[Read],
    temperature: float,
) -> list[Readings]:
    """Log-probs, entropy and `more`, with a reference its log-probs and the exact KL too, by the learner and in the
    micro-batches that the update will use."""
    found: list[Readings] = [Readings() for _ in trees]
    for members in parts:
        read: set[Read] = {"logprobs", "entropy", *more}
        made = learner.forward([trees[i] for i in members], read, temperature=temperature, reference=reference)
        for place, reading in zip(members, made, strict=True):
            found[place] = reading
    return found


def gather(
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Completion]],
    scores: Sequence[float],
    readings: Sequence[Readings] | None,
) -> list[Rollout]:
    """Rollouts in the order of `scores`, those of prompts[i] in tree i (see data.trees.answer_tree)."""
    rollouts: list[Rollout] = []
    for tree, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        for node, completion in enumerate(group, 1):
            if readings is None:
                columns = {"logprobs": sampled_logprobs(completion)}
            else:
                read = readings[tree]
                found = {
                    "logprobs": read.logprobs,
                    "reference": read.reference_logprobs,
                    "values": read.values,
                    "entropy": read.entropy,
                    "exact_kl": read.exact_kl,
                }
                columns = {name: column[node] for name, column in found.items() if node in column}
            rollouts.append(Rollout(prompt, completion, tree, node, scores[len(rollouts)], columns))
    return rollouts


def sampled_logprobs(completion: Completion) -> Column:
    """The sampler's log-probs of a completion's tokens."""
    return np.asarray(completion.segments[0].logprobs, dtype=np.float32)


def reward_sources(config: SampledConfig | RejectionConfig) -> dict[str, str]:
    """What a run's reward comes from, by role: `reward`, or `reward-NAME` of each part of a mix, each as
    `reward_parents` has it."""
    names = {"reward": config.reward}
    if config.mix is not None:
        names = {f"reward-{name}": own or config.reward for name, own in config.mix.parts.items()}
    return {role: own for name, reward in names.items() for role, own in reward_parents(reward, name).items()}


def shaped_scores(
    scores: Sequence[Score], completions: Sequence[Completion], missing_stop_score: float | None
) -> list[float]:
    """Scores, of answers that are empty or did not end by themselves at most `missing_stop_score`: what an empty answer
    is worth no reward model was shown."""
    values = [score.value for score in scores]
    if missing_stop_score is None:
        return values
    whole = [c.finish_reason == "stop" and bool(c.text.strip()) for c in completions]
    return [value if good else min(value, missing_stop_score) for value, good in zip(values, whole, strict=True)]


def controller(config: KLConfig, episodes: int, coef: float | None) -> AdaptiveKL | FixedKL:
    """The KL coefficient's controller, from the start or from a checkpoint's coefficient."""
    now = config.coef if coef is None else coef
    if config.controller == "fixed":
        return FixedKL(now)
    return AdaptiveKL(now, config.target, config.horizon * episodes, config.clip)


def check_gap(gap: float, step: int, config: SampledConfig) -> None:
    """The sampler wrote with the learner's weights. gap: mean |log-prob there - here| over response tokens, nats.
    With weights of another precision it is only logged, and the loss corrects for it."""
    limit = GAP[compute_dtype(config.engine)]
    if gap > limit and config.rollout_dtype == "same":
        raise PrefloopError(
            f"Sampler and learner differ by {gap:.4f} nats a token on average at step {step} (limit "
            f"{limit}): the sampler does not serve the trained weights, or the model is not supported."
        )


def check_start(rollouts: Sequence[Rollout], step: int) -> None:
    """Policy = reference before the first update, where a reference was read."""
    known = "reference" in rollouts[0].columns
    if step == 0 and known and (apart := max(abs(float(r.log_ratio.sum())) for r in rollouts)) > 1e-3:
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
    return float(np.concatenate([np.abs(sampled_logprobs(r.completion) - r.logprobs) for r in rollouts]).mean())


def measure(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What a step's rollouts say of the policy before its update, as far as it was read. KL in nats per response."""
    scores = [r.score for r in rollouts]
    found = {
        "reward/score": float(np.mean(scores)),
        "reward/score_std": float(np.std(scores)),
        "length/tokens": float(np.mean([len(r.logprobs) for r in rollouts])),
        "length/stopped_share": float(np.mean([r.completion.finish_reason == "stop" for r in rollouts])),
    }
    if "reference" in rollouts[0].columns:
        found["kl/response"] = float(np.mean([r.log_ratio.sum() for r in rollouts]))
        k3s = [k3(torch.from_numpy(r.logprobs), torch.from_numpy(r.columns["reference"])).sum() for r in rollouts]
        found["kl/k3"] = float(np.mean([float(value) for value in k3s]))
    if "exact_kl" in rollouts[0].columns:
        found["kl/exact"] = float(np.mean([r.columns["exact_kl"].sum() for r in rollouts]))
    if "entropy" in rollouts[0].columns:
        found["policy/entropy"] = float(np.concatenate([r.columns["entropy"] for r in rollouts]).mean())
    return found


def record(run: Run, step: int, rollouts: Sequence[Rollout]) -> None:
    """A step's rollouts, as lines of samples.jsonl."""
    for r in rollouts:
        row = {"prompt_id": r.prompt.id, "completion": to_json(r.completion), "score": r.score}
        run.sample(step, row | ({"kl": float(r.log_ratio.sum())} if "reference" in r.columns else {}))


class Watch:
    """A judge that only looks on: its score of the rollouts, and how often they beat the starting policy's answers."""

    def __init__(self, config: SampledConfig) -> None:
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
