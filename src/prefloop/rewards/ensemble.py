"""Several reward models as one reward: their mean, their worst case, or their mean less their variance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from prefloop.configs.shared import EngineConfig
from prefloop.ops.ensembles import Floats, disagreement, mean_score, uncertainty_weighted, worst_case
from prefloop.rewards.learned import LearnedReward
from prefloop.types import Completion, PrefloopError, Prompt, Score

COMBINATIONS: Mapping[str, Callable[..., Floats]] = {
    "mean": mean_score,
    "worst": worst_case,
    "uncertainty": uncertainty_weighted,
}


class EnsembleReward:
    """By its name: "mean:A,B", "worst:A,B" or "uncertainty=0.5:A,B" of reward models' run or checkpoint folders A, B.

    Each member is on its own gain and bias, and so in its own stds within prompts; 0.5 is what a unit of variance over
    members takes off their mean. Coste et al. 2023 (arXiv 2310.02743). PrefloopError on another form of name.
    """

    def __init__(self, name: str, engine: EngineConfig) -> None:
        self.name = name
        self.combine, folders = _parsed(name)
        self.members = [LearnedReward(folder, engine) for folder in folders]

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        """Combined scores; their parts are each member's by its folder, and `disagreement`: their std over members."""
        scores = np.array([[score.value for score in member(prompts, completions)] for member in self.members])
        names = [*(member.name for member in self.members), "disagreement"]
        rows = np.vstack([self.combine(scores), scores, disagreement(scores)]).T.tolist()
        return [Score(value=value, parts=dict(zip(names, parts, strict=True)), by=self.name) for value, *parts in rows]


def names_ensemble(name: str) -> bool:
    """Whether a reward's name is to be read as an ensemble's."""
    return ":" in name and name.partition(":")[0].partition("=")[0] in COMBINATIONS


def _parsed(name: str) -> tuple[Callable[[Floats], Floats], list[str]]:
    how, _, listed = name.partition(":")
    how, equals, given = how.partition("=")
    combine, folders = COMBINATIONS[how], [part.strip() for part in listed.split(",")]
    if how == "uncertainty":
        combine = partial(combine, penalty=_penalty(name, given))
    elif equals:
        raise PrefloopError(f"{name}: only uncertainty takes a number; write {how}:{listed}.")
    for folder in folders:
        if not folder or not Path(folder).is_dir():
            raise PrefloopError(f"{name}: {folder!r} is no folder; give reward runs' folders with commas between them.")
    if len({Path(folder).resolve() for folder in folders}) < max(2, len(folders)):
        raise PrefloopError(f"{name}: an ensemble needs two members or more, and each only once.")
    return combine, folders


def _penalty(name: str, given: str) -> float:
    try:
        penalty = float(given)
    except ValueError:
        penalty = math.nan
    if not 0 <= penalty < math.inf:
        raise PrefloopError(f"{name}: say what a unit of variance costs, 0 or more, as in uncertainty=0.5:A,B.")
    return penalty
