"""A reward model as a reward function, in standard deviations among answers to one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from prefloop.configs.shared import EngineConfig
from prefloop.data.trees import answer_tree
from prefloop.engine.build import build_encoder, build_reward_scorer
from prefloop.ops.ensembles import Floats, disagreement
from prefloop.types import Completion, PrefloopError, Prompt, Score


class LearnedReward:
    """gain * raw score + bias, fixed at training on reference samples: mean 0, and std 1 within prompts. M heads on one
    trunk (reward.heads), each with a gain and bias of its own; the first is the reward, all are an ensemble's members.
    """

    def __init__(self, name: str, engine: EngineConfig) -> None:
        self.scorer, self.record = build_reward_scorer(name, engine)
        if "steps" in self.record.details:
            raise PrefloopError(f"{name} scores steps; say how they are combined, as in 'steps=product:{name}'.")
        self.encoder = build_encoder(self.scorer.loaded)
        assert self.scorer.head is not None
        self.heads = [self.scorer.head, *self.scorer.members]
        details = self.record.details
        scales = [(details["gain"], details["bias"]), *details.get("members", ())]
        self.gain, self.bias = np.array(scales, dtype=float).T
        self.name = self.record.path

    def raw(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Floats:
        """[M, N] of completions[i] as answers to prompts[i], on their own tokens; a shared prompt is read once."""
        groups: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault(prompt.id, []).append(index)
        trees = [answer_tree(prompts[g[0]], [completions[i] for i in g], self.encoder) for g in groups.values()]
        made = np.zeros((len(self.heads), len(prompts)))
        with torch.no_grad():
            for members, states in zip(groups.values(), self.scorer.pooled(trees), strict=True):
                made[:, members] = [head(states).tolist() for head in self.heads]
        return made

    def scaled(self, raw: Floats) -> Floats:
        """[M, N] raw scores on each head's scale."""
        return np.asarray(self.gain[:, None] * raw + self.bias[:, None])

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        """Scores by the first head; `disagreement` among their parts is the std over heads, where there are several."""
        raw = self.raw(prompts, completions)
        scores = self.scaled(raw)
        parts = {"raw": raw[0]} | ({"disagreement": disagreement(scores)} if len(scores) > 1 else {})
        return [
            Score(value=float(value), parts={name: float(of[i]) for name, of in parts.items()}, by=self.name)
            for i, value in enumerate(scores[0])
        ]
