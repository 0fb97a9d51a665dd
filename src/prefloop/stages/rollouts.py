"""What stages that learn from their own samples share: rollouts with what was measured of them, and the checks that
must hold whatever the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import torch

from prefloop.configs.rejection import RejectionConfig
from prefloop.configs.rollout import KLConfig, RolloutConfig, SampledConfig
from prefloop.data.rows import read_jsonl
from prefloop.data.sources import samples_file
from prefloop.engine.build import compute_dtype, resolve_checkpoint
from prefloop.engine.local import LocalLearner, Reference
from prefloop.engine.verbs import Column, Read, Readings
from prefloop.evals.winrate import outcome
from prefloop.ops.kl import AdaptiveKL, AdaptiveRate, FixedKL, ScheduledKL, k3
from prefloop.rewards.resolve import resolve_reward, reward_parents
from prefloop.rewards.shaping import Shaping
from prefloop.run import Run
from prefloop.types import Completion, Json, PrefloopError, Prompt, Score, Tree, from_json, to_json

Controller = AdaptiveKL | AdaptiveRate | FixedKL | ScheduledKL
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
    learned: bool = True,
) -> list[Readings]:
    """Log-probs, entropy and `more`, with a reference its log-probs and the exact KL too, by the learner and in the
    micro-batches that the update will use. `learned`: that is of these trees as they are."""
    found: list[Readings] = [Readings() for _ in trees]
    for members in parts:
        read: set[Read] = {"logprobs", "entropy", *more}
        made = learner.forward(
            [trees[i] for i in members],
            read,
            temperature=temperature,
            reference=reference,
            learned=learned and len(parts) == 1,
        )
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


def shaping(config: RolloutConfig, judge: Callable[..., Sequence[Score]], state: Mapping[str, Json]) -> Shaping:
    """What becomes of the run's scores; `judge` scores the baseline's answers where these bound them."""
    if "answers" in state:  # a mix with a constraint would judge them otherwise by now
        return Shaping(config.shaping, config.missing_stop_score, state["answers"], state)
    scores: dict[str, list[float]] = {}
    if config.shaping.bound == "prompt" and config.baseline:
        prompts, answers = baseline_answers(config)
        for prompt, score in zip(prompts, judge(prompts, answers), strict=True):
            scores.setdefault(prompt.id, []).append(score.value)
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    return Shaping(config.shaping, config.missing_stop_score, means, state)


def controller(config: KLConfig, episodes: int, steps: int, start: int, state: Mapping[str, Json]) -> Controller:
    """What holds the KL in batches of `episodes`, before step `start` of `steps`; `state` is a checkpoint's."""
    coef, rate, horizon = state.get("kl_coef", config.coef), state.get("kl_rate", 1.0), config.horizon * episodes
    match config.controller:
        case "fixed":
            return FixedKL(coef)
        case "adaptive":
            return AdaptiveKL(coef, config.target, horizon, config.clip)
        case "rate":
            return AdaptiveRate(coef, config.target, horizon, config.clip, rate)
    assert config.last is not None
    return ScheduledKL(config.coef, config.last, steps, config.controller == "geometric", start)


def counted(measured: Mapping[str, float], config: KLConfig) -> float:
    """The exact KL as the target counts it: its mean is that of kl/response, with less noise."""
    return measured["kl/exact"] / (measured["length/tokens"] if config.per == "token" else 1.0)


def beyond(measured: Mapping[str, float], config: KLConfig, step: int) -> str | None:
    """Why a policy so far from its reference is the last; None while it may go on."""
    if config.stop is None or (found := counted(measured, config)) <= config.stop:
        return None
    return (
        f"KL to the reference is {found:.3g} nats a {config.per} after {step} steps, above kl.stop = {config.stop:g}: "
        "the run ends here. Raise kl.coef or lower optim.lr to go on for longer."
    )


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
        slices: dict[str, list[float]] = {}
        for r in rollouts:
            slices.setdefault(r.prompt.slice or "none", []).append(float(r.log_ratio.sum()))
        if len(slices) > 1:
            found |= {f"kl_slice/{name}": float(np.mean(sums)) for name, sums in sorted(slices.items())}
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


def baseline_answers(config: SampledConfig) -> tuple[list[Prompt], list[Completion]]:
    """The starting policy's answers among the baseline's, at the run's temperature, and their prompts."""
    rows = [row for _, row in read_jsonl(samples_file(config.baseline))]
    start = resolve_checkpoint(config.policy)
    rows = [r for r in rows if r["completion"]["sampling"]["temperature"] == config.temperature]
    rows = [r for r in rows if r.get("model", start) == start]
    prompts = [from_json(Prompt, row["prompt"]) for row in rows]
    return prompts, [from_json(Completion, row["completion"]) for row in rows]


class Watch:
    """A judge that only looks on: its score of the rollouts, and how often they beat the starting policy's answers."""

    def __init__(self, config: SampledConfig) -> None:
        self.judge = resolve_reward(config.watch, config.engine) if config.watch else None
        self.baseline: dict[str, list[float]] = {}
        if self.judge is None or not config.baseline:
            return
        prompts, answers = baseline_answers(config)
        for prompt, score in zip(prompts, self.judge(prompts, answers), strict=True):
            self.baseline.setdefault(prompt.id, []).append(score.value)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, float]:
        if self.judge is None:
            return {}
        scores = [score.value for score in self.judge(prompts, completions)]
        wins = [outcome(s, b) for p, s in zip(prompts, scores, strict=True) for b in self.baseline.get(p.id, ())]
        found = {"gold/score": float(np.mean(scores))}
        return found | ({"gold/win_rate": float(np.mean(wins))} if wins else {})
