"""A reward model as a reward function, in standard deviations among answers to one prompt."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.configs.shared import EngineConfig
from prefloop.data.trees import answer_tree
from prefloop.engine.build import build_encoder, build_reward_scorer
from prefloop.types import Completion, PrefloopError, Prompt, Score


class LearnedReward:
    """gain * raw score + bias, fixed at training on reference samples: mean 0, and std 1 within prompts."""

    def __init__(self, name: str, engine: EngineConfig) -> None:
        self.scorer, record = build_reward_scorer(name, engine)
        if "steps" in record.details:
            raise PrefloopError(f"{name} scores steps; say how they are combined, as in 'steps=product:{name}'.")
        self.encoder = build_encoder(self.scorer.loaded)
        self.gain, self.bias = float(record.details["gain"]), float(record.details["bias"])
        self.name = record.path

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        """Scores of completions[i] as answers to prompts[i], on their own tokens; a shared prompt is read once."""
        groups: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault(prompt.id, []).append(index)
        trees = [answer_tree(prompts[g[0]], [completions[i] for i in g], self.encoder) for g in groups.values()]
        raw = [0.0] * len(prompts)
        for members, reading in zip(groups.values(), self.scorer.forward(trees, {"scores"}), strict=True):
            for place, index in enumerate(members):
                raw[index] = reading.scores[1 + place]
        return [Score(value=self.gain * value + self.bias, parts={"raw": value}, by=self.name) for value in raw]
