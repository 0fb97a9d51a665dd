"""A process reward model as a reward function: the probabilities that an answer's steps are right, in one number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit

from prefloop.configs.shared import EngineConfig
from prefloop.data.trees import by_prompt, steps_tree
from prefloop.engine.build import build_encoder, build_reward_scorer
from prefloop.ops.steps import COMBINATIONS, combined
from prefloop.types import Completion, PrefloopError, Prompt, Score

_PREFIX = "steps="


class ProcessReward:
    """By its name: "steps=product:RUN", or minimum, last or mean, of a process reward model's run or checkpoint folder.
    Scores are in 0..1. PrefloopError on another form of name, or another model's folder."""

    def __init__(self, name: str, engine: EngineConfig) -> None:
        self.name = name
        self.how, _, folder = name.removeprefix(_PREFIX).partition(":")
        if self.how not in COMBINATIONS or not folder or not Path(folder).is_dir():
            known = ", ".join(COMBINATIONS)
            raise PrefloopError(f"{name}: write steps=HOW:FOLDER, HOW being {known}, of a process reward run's folder.")
        self.scorer, record = build_reward_scorer(folder, engine)
        if "steps" not in record.details:
            raise PrefloopError(f"{name}: {folder} scores whole answers, not steps; name it without steps={self.how}.")
        self.rule = str(record.details["steps"])
        self.encoder = build_encoder(self.scorer.loaded)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        """Scores of completions[i] as answers to prompts[i], on their own tokens; parts are those of their steps."""
        groups = by_prompt(prompts)
        made = [
            steps_tree(prompts[group[0]], [completions[i] for i in group], self.encoder, self.rule) for group in groups
        ]
        steps: dict[int, list[float]] = {}
        readings = self.scorer.forward([tree for tree, _ in made], {"steps"})
        for group, (_, ends), reading in zip(groups, made, readings, strict=True):
            for place, index in enumerate(group):
                steps[index] = expit(reading.steps[1 + place][list(ends[place])].astype(np.float64)).tolist()
        return [self._score(steps[index]) for index in range(len(prompts))]

    def _score(self, steps: Sequence[float]) -> Score:
        parts = {f"steps[{place}]": probability for place, probability in enumerate(steps)}
        return Score(value=combined(steps, self.how), parts=parts, by=self.name)


def names_process(name: str) -> bool:
    """Whether a reward's name is to be read as a process reward model's."""
    return name.startswith(_PREFIX)
