"""Several reward models as one reward: their mean, worst case, or mean less variance; or the mean of their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prefloop.configs.shared import EngineConfig
from prefloop.ops.ensembles import Floats, disagreement, mean_score, uncertainty_weighted, worst_case
from prefloop.rewards.learned import LearnedReward, learned_rewards
from prefloop.types import Checkpoint, Completion, PrefloopError, Prompt, Score

COMBINATIONS: Mapping[str, Callable[..., Floats]] = {
    "mean": mean_score,
    "worst": worst_case,
    "uncertainty": uncertainty_weighted,
}

AVERAGE = "average"


class EnsembleReward:
    """By its name: "mean:A,B", "worst:A,B" or "uncertainty=0.5:A,B" of reward models' run or checkpoint folders A, B.

    The members are the heads of all of them: one model with several heads is an ensemble too. Adapters on one trunk
    share it. Each member is on its own
    gain and bias, and so in its own stds within prompts; 0.5 is what a unit of variance over members takes off their
    mean. Coste et al. 2023 (arXiv 2310.02743). PrefloopError on another form of name.
    """

    def __init__(self, name: str, engine: EngineConfig) -> None:
        self.name = name
        self.combine, folders = _parsed(name)
        self.models = learned_rewards(folders, engine)
        self.members = [member for model in self.models for member in model.members]
        if len(self.members) < 2:
            raise PrefloopError(f"{name}: an ensemble needs two members or more.")

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        """Combined scores; their parts are each member's by its folder (and #head, where that has several), and
        `disagreement`: their std over members."""
        scores = np.vstack([model.scaled(model.raw(prompts, completions)) for model in self.models])
        names = [*self.members, "disagreement"]
        rows = np.vstack([self.combine(scores), scores, disagreement(scores)]).T.tolist()
        return [Score(value=value, parts=dict(zip(names, parts, strict=True)), by=self.name) for value, *parts in rows]


class AveragedReward(LearnedReward):
    """By its name: "average:A,B" of reward models' run or checkpoint folders A, B: one model whose every weight is the
    mean of theirs (WARM, Rame et al. 2024, arXiv 2401.12187), at the cost of one.

    Heads count with their gain, the first of each, so that each member has an equal say; the mean of models is not on
    its own scale, and its std within prompts is below 1 where members disagree. PrefloopError unless all began from one
    checkpoint and one head (reward.head_seed) and pool alike, and on another form of name.
    """

    def __init__(self, name: str, engine: EngineConfig) -> None:
        how, _, listed = name.partition(":")
        if how != AVERAGE:
            raise PrefloopError(f"{name}: an average takes no number; write {AVERAGE}:{listed}.")
        first, *others = _folders(name, listed)
        if not others:
            raise PrefloopError(f"{name}: an average needs two members or more.")
        super().__init__(first, engine)
        weights = dict(self.scorer.model.named_parameters())
        sums = {key: weight.detach().double() for key, weight in weights.items()}
        heads = [_on_scale(self)]
        for folder in others:
            other = LearnedReward(folder, engine)
            for key in ("parent", "pooling", "head_seed"):
                mine, its = (_of(model.record, key) for model in (self, other))
                if mine != its:
                    raise PrefloopError(f"{name}: members of an average share their {key}; {mine!r} is not {its!r}.")
            for key, weight in other.scorer.model.named_parameters():
                sums[key] += weight.detach()
            heads.append(_on_scale(other))
        head = self.heads[0]
        with torch.no_grad():
            for key, weight in weights.items():
                weight.copy_(sums[key] / len(heads))
            for part, means in zip((head.weight, head.bias), zip(*heads, strict=True), strict=True):
                part.copy_(sum(means) / len(heads))
        self.heads, self.gain, self.bias, self.name = [head], np.ones(1), np.zeros(1), name
        self.members = [name]

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        """Scores in stds of the members' references; there is no raw score, in logits, of a mean."""
        return [replace(score, parts={}) for score in super().__call__(prompts, completions)]


def names_ensemble(name: str) -> bool:
    """Whether a reward's name is to be read as an ensemble's, or an average's."""
    return ":" in name and name.partition(":")[0].partition("=")[0] in (*COMBINATIONS, AVERAGE)


def resolve_ensemble(name: str, engine: EngineConfig) -> EnsembleReward | AveragedReward:
    """The ensemble or average of such a name."""
    return (AveragedReward if name.startswith(AVERAGE) else EnsembleReward)(name, engine)


def _on_scale(model: LearnedReward) -> tuple[Tensor, Tensor]:
    """Weight and bias of a model's first head with gain and bias folded in."""
    head, gain, bias = model.heads[0], float(model.gain[0]), float(model.bias[0])
    return gain * head.weight.detach(), gain * head.bias.detach() + bias


def _of(record: Checkpoint, key: str) -> object:
    return record.parent if key == "parent" else record.details.get(key)


def _parsed(name: str) -> tuple[Callable[[Floats], Floats], list[str]]:
    how, _, listed = name.partition(":")
    how, equals, given = how.partition("=")
    combine, folders = COMBINATIONS[how], _folders(name, listed)
    if how == "uncertainty":
        combine = partial(combine, penalty=_penalty(name, given))
    elif equals:
        raise PrefloopError(f"{name}: only uncertainty takes a number; write {how}:{listed}.")
    return combine, folders


def _folders(name: str, listed: str) -> list[str]:
    folders = [part.strip() for part in listed.split(",")]
    for folder in folders:
        if not folder or not Path(folder).is_dir():
            raise PrefloopError(f"{name}: {folder!r} is no folder; give reward runs' folders with commas between them.")
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise PrefloopError(f"{name}: an ensemble has its members each only once.")
    return folders


def _penalty(name: str, given: str) -> float:
    try:
        penalty = float(given)
    except ValueError:
        penalty = math.nan
    if not 0 <= penalty < math.inf:
        raise PrefloopError(f"{name}: say what a unit of variance costs, 0 or more, as in uncertainty=0.5:A,B.")
    return penalty
