"""Comparisons split by prompt into those to learn from and those to measure on, and their pairs and answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from prefloop.data.trees import ordered_pairs
from prefloop.types import Completion, Message, Preference, PrefloopError, Prompt, StepLabels, Verdict

_Labeled = TypeVar("_Labeled", Preference, StepLabels, Verdict)


def split(preferences: Sequence[Preference], share: float, seed: int) -> tuple[list[Preference], list[Preference]]:
    """Training and held-out preferences, no prompt in both, whatever its ids: held out is the dev split where there is
    one, else a seeded share of the prompts. PrefloopError when either would be empty, or nothing held out prefers an
    answer."""
    training, heldout = _by_prompts(preferences, share, seed, "comparisons")
    if distinct_pairs(training) and not any(pair.target != 0.5 for pair in distinct_pairs(heldout)):
        raise PrefloopError(f"None of {len(heldout)} held-out comparisons prefers an answer; collect more labels.")
    return training, heldout


def split_steps(labeled: Sequence[StepLabels], share: float, seed: int) -> tuple[list[StepLabels], list[StepLabels]]:
    """As `split`, of labeled steps."""
    return _by_prompts(labeled, share, seed, "labeled steps")


def split_verdicts(verdicts: Sequence[Verdict], share: float, seed: int) -> tuple[list[Verdict], list[Verdict]]:
    """As `split`, of verdicts."""
    return _by_prompts(verdicts, share, seed, "answers that are good or bad")


def _by_prompts(items: Sequence[_Labeled], share: float, seed: int, what: str) -> tuple[list[_Labeled], list[_Labeled]]:
    first: dict[tuple[Message, ...], str] = {}  # the least id of each prompt
    for item in items:
        first[item.prompt.messages] = min(item.prompt.id, first.get(item.prompt.messages, item.prompt.id))
    ids = sorted(set(first.values()))
    dev = {first[item.prompt.messages] for item in items if item.prompt.split == "dev"}
    rng = np.random.Generator(np.random.Philox(seed))
    out = dev or {ids[i] for i in rng.permutation(len(ids))[: max(1, round(share * len(ids)))]}
    training = [item for item in items if first[item.prompt.messages] not in out]
    heldout = [item for item in items if first[item.prompt.messages] in out]
    if not training or not heldout:
        raise PrefloopError(
            f"{len(ids)} prompt(s) with {what} cannot be split into training and held-out ones; collect more."
        )
    return training, heldout


def as_pairs(preference: Preference) -> list[Preference]:
    """A ranking as its K(K-1)/2 pairs, ties with target 0.5; a pair as it is."""
    return [
        dataclasses.replace(preference, items=(preference.items[i], preference.items[j]), ranking=None, target=target)
        for i, j, target in ordered_pairs(preference)
    ]


def distinct_pairs(preferences: Sequence[Preference]) -> list[Preference]:
    """All pairs of answers whose texts differ."""
    return [pair for p in preferences for pair in as_pairs(p) if pair.items[0].text != pair.items[1].text]


def by_prompt(items: Sequence[tuple[Prompt, Completion]]) -> dict[str, tuple[Prompt, list[Completion]]]:
    """Each prompt with its answers, every answer once, in order. PrefloopError where two answers share an id."""
    texts: dict[tuple[str, str], str] = {}
    for prompt, item in items:
        if texts.setdefault((prompt.id, item.id), item.text) != item.text:
            raise PrefloopError(
                f"Two answers to prompt {prompt.id!r} have the id {item.id!r} and differ; give each its own (runs that "
                "are put together need other seeds)."
            )
    answers: dict[str, tuple[Prompt, list[Completion]]] = {}
    for prompt, item in {(prompt.id, item.id): (prompt, item) for prompt, item in items}.values():
        answers.setdefault(prompt.id, (prompt, []))[1].append(item)
    return answers


def shuffled(preferences: Sequence[Preference], seed: int) -> list[Preference]:
    """Half of each prompt's targets flipped (of an odd number, the odd one by a coin), ties aside. Coins alone would
    leave more that by chance agrees with the annotators, or disagrees."""
    chance = np.random.Generator(np.random.Philox(seed))
    places: dict[str, list[int]] = {}
    for place, preference in enumerate(preferences):
        if preference.target != 0.5:
            places.setdefault(preference.prompt.id, []).append(place)
    made = list(preferences)
    for own in places.values():
        for place in chance.permutation(own)[: (len(own) + int(chance.integers(2))) // 2]:
            made[place] = _flipped(made[place])
    return made


def shuffled_steps(labeled: Sequence[StepLabels], seed: int) -> list[StepLabels]:
    """Each answer with the labels of another one that has as many steps, or almost (they are stretched then): as many
    errors at the same places, of no answer."""
    chance = np.random.Generator(np.random.Philox(seed))
    order = sorted(chance.permutation(len(labeled)).tolist(), key=lambda place: len(labeled[place].labels))
    made = list(labeled)
    for place, other in zip(order, order[-1:] + order[:-1], strict=True):
        steps, labels = len(labeled[place].labels), labeled[other].labels
        stretched = tuple(labels[step * len(labels) // steps] for step in range(steps))
        made[place] = dataclasses.replace(labeled[place], labels=stretched)
    return made


def _flipped(preference: Preference) -> Preference:
    if preference.ranking is not None:
        worst = max(preference.ranking)
        return dataclasses.replace(preference, ranking=tuple(worst - rank for rank in preference.ranking))
    target = 1.0 if preference.target is None else preference.target
    return dataclasses.replace(preference, target=1.0 - target)
