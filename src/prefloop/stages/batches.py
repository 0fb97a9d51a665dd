"""Batches of judged answers: sampled by the policy as it is now, in rounds where prompts that teach nothing make room
for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefloop.configs.group import GroupConfig
from prefloop.data.trees import Encoder
from prefloop.engine.generate import LocalSampler
from prefloop.engine.schedule import take
from prefloop.ops.advantages import overlong_penalty
from prefloop.rewards.resolve import RewardFn
from prefloop.rewards.shaping import Shaping
from prefloop.stages.sampling import sample_groups
from prefloop.types import Completion, Prompt, Sampling, Score


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A prompt, its answers, and what they scored: as judged, and with what their ends and lengths make of it."""

    prompt: Prompt
    answers: tuple[Completion, ...]
    judged: tuple[Score, ...]
    scores: tuple[float, ...]

    @property
    def flat(self) -> bool:
        """All answers scored alike, so that none teaches anything."""
        return max(self.scores) == min(self.scores)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Prompts to learn from. Of the `drawn` ones `flat` had answers that all scored alike; `score` is the mean of all,
    and `position` where the next batch goes on in the endless order of prompts."""

    groups: tuple[Judged, ...]
    drawn: int
    flat: int
    score: float
    position: int


def draw_batch(
    config: GroupConfig,
    sampler: LocalSampler,
    encoder: Encoder,
    reward: RewardFn,
    shape: Shaping,
    prompts: Sequence[Prompt],
    position: int,
    index: int,
) -> Batch:
    """The batch of step `index`, its prompts from `position` on. With more than one draw, groups that are flat make
    room for new ones, and the first of them fill what is empty after the last (DAPO, Yu et al. 2025, section 3.2)."""
    kept: list[Judged] = []
    flat: list[Judged] = []
    for draw in range(config.draws):
        missing = config.prompts_per_step - len(kept)
        chosen = take(prompts, position, missing, config.seed)
        position += missing
        for group in _judged(config, sampler, encoder, reward, shape, chosen, (config.seed, "group", index, draw)):
            (flat if group.flat else kept).append(group)
        if len(kept) == config.prompts_per_step:
            break
    drawn = [*kept, *flat]
    scores = [score for group in drawn for score in group.scores]
    return Batch(
        groups=tuple(drawn[: config.prompts_per_step]),
        drawn=len(drawn),
        flat=len(flat),
        score=sum(scores) / len(scores),
        position=position,
    )


def _judged(
    config: GroupConfig,
    sampler: LocalSampler,
    encoder: Encoder,
    reward: RewardFn,
    shape: Shaping,
    chosen: Sequence[Prompt],
    seed: tuple[object, ...],
) -> list[Judged]:
    samplings = [Sampling(temperature=config.temperature, max_tokens=config.max_tokens)] * config.group
    groups = sample_groups(sampler, encoder, chosen, samplings=samplings, seed=seed)
    answers = [answer for group in groups for answer in group]
    asked = [prompt for prompt in chosen for _ in range(config.group)]
    judged = reward(asked, answers)
    buffer = config.overlong * config.max_tokens
    scores = [
        score + overlong_penalty(len(answer.tokens), config.max_tokens, buffer)
        for score, answer in zip(shape(judged, asked, answers), answers, strict=True)
    ]
    places = [slice(i * config.group, (i + 1) * config.group) for i in range(len(chosen))]
    return [
        Judged(prompt=prompt, answers=tuple(answers[own]), judged=tuple(judged[own]), scores=tuple(scores[own]))
        for prompt, own in zip(chosen, places, strict=True)
    ]
