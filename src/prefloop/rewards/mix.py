"""Several named rewards as one, each in stds of the reference: their weighted sum, a gate, a constraint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from prefloop.configs.mix import MixConfig
from prefloop.configs.shared import EngineConfig
from prefloop.ops.mixing import Multiplier, gate_shut, reference_scale, weighted_sum
from prefloop.ops.statistics import Floats
from prefloop.rewards.ensemble import EnsembleReward
from prefloop.rewards.learned import LearnedReward
from prefloop.rewards.resolve import resolve_reward
from prefloop.types import Completion, Json, PrefloopError, Prompt, Score


class MixedReward:
    """What a run trains on where its section has a `mix`. `state` is what a checkpoint kept of it, {} at the start:
    then the answers that it scores first must be the reference's, for they fix the scales that are not known."""

    def __init__(self, config: MixConfig, reward: str, engine: EngineConfig, state: Mapping[str, Json]) -> None:
        self.config = config
        self.rewards = {name: resolve_reward(own or reward, engine) for name, own in config.parts.items()}
        scaled = [name for name, own in self.rewards.items() if isinstance(own, LearnedReward | EnsembleReward)]
        self.scales = dict.fromkeys(scaled, (0.0, 1.0)) | config.scales | dict(state.get("scales", {}))
        held = config.constraint
        self.multiplier = held and Multiplier(state.get("multiplier", held.multiplier), held.rate, held.at_least)

    @property
    def state(self) -> dict[str, Json]:
        """What a checkpoint has to keep, as plain JSON."""
        learned = {"multiplier": self.multiplier.value} if self.multiplier else {}
        return {"scales": {name: list(scale) for name, scale in self.scales.items()}, **learned}

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        """Scores in stds of the reference; parts are the single rewards' by name, in theirs, and with a gate `gated`: 1
        where its part took over."""
        raw = {name: [score.value for score in own(prompts, completions)] for name, own in self.rewards.items()}
        for name in raw.keys() - self.scales.keys():
            self.scales[name] = _measured(name, raw[name], prompts)
        parts = {name: _standard(values, *self.scales[name]) for name, values in raw.items()}
        weights = self.config.weights
        total = weighted_sum([parts[name] for name in weights], list(weights.values()))
        if self.multiplier and self.config.constraint:
            total = self.multiplier.mixed(total, parts[self.config.constraint.part])
        if gate := self.config.gate:
            tagged = [p.slice in gate.unsafe or p.checks.get("behavior") in gate.unsafe for p in prompts]
            shut = gate_shut(parts[gate.part], gate.below, tagged)
            total, parts = np.where(shut, parts[gate.part], total), parts | {"gated": shut.astype(float)}
        rows = zip(*(column.tolist() for column in parts.values()), strict=True)
        return [
            Score(value=value, parts=dict(zip(parts, row, strict=True)), by="mix")
            for value, row in zip(total.tolist(), rows, strict=True)
        ]

    def learn(self, scores: Sequence[Score]) -> dict[str, float]:
        """Metrics of a rollout batch that this scored: means of all parts, and the multiplier; it is moved after."""
        means = {name: float(np.mean([score.parts[name] for score in scores])) for name in scores[0].parts}
        found = {f"reward/{name}": mean for name, mean in means.items()}
        if self.multiplier and self.config.constraint:
            found["reward/multiplier"] = self.multiplier.value
            self.multiplier = self.multiplier.update(means[self.config.constraint.part])
        return found


def _measured(name: str, raw: Sequence[float], prompts: Sequence[Prompt]) -> tuple[float, float]:
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, raw, strict=True):
        groups.setdefault(prompt.id, []).append(value)
    mean, std = reference_scale(list(groups.values()))
    if not std > 0:
        raise PrefloopError(
            f"mix: the reference's answers to a prompt all score alike by {name!r} (mean {mean:g}), so no std is there "
            f"to measure it in; give its mean and std in mix.scales.{name}."
        )
    return mean, std


def _standard(raw: Sequence[float], mean: float, std: float) -> Floats:
    return (np.asarray(raw, dtype=float) - mean) / std
