"""Comparisons split by prompt into those to learn from and those to measure on, and their pairs and answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from prefloop.data.trees import ordered_pairs
from prefloop.types import Completion, Preference, PrefloopError, Prompt


def split(preferences: Sequence[Preference], share: float, seed: int) -> tuple[list[Preference], list[Preference]]:
    """Training and held-out preferences, no prompt in both: held out is the dev split where there is one, else a seeded
    share of the prompts. Raises PrefloopError when either would be empty, or nothing held out prefers an answer."""
    ids = sorted({p.prompt.id for p in preferences})
    dev = {p.prompt.id for p in preferences if p.prompt.split == "dev"}
    rng = np.random.Generator(np.random.Philox(seed))
    out = dev or {ids[i] for i in rng.permutation(len(ids))[: max(1, round(share * len(ids)))]}
    training = [p for p in preferences if p.prompt.id not in out]
    heldout = [p for p in preferences if p.prompt.id in out]
    if not training or not heldout:
        raise PrefloopError(
            f"{len(ids)} prompt(s) with comparisons cannot be split into training and held-out ones; collect more."
        )
    if distinct_pairs(training) and not any(pair.target != 0.5 for pair in distinct_pairs(heldout)):
        raise PrefloopError(f"None of {len(heldout)} held-out comparisons prefers an answer; collect more labels.")
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
    """Each prompt with its answers, every answer once, in order."""
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


def _flipped(preference: Preference) -> Preference:
    if preference.ranking is not None:
        worst = max(preference.ranking)
        return dataclasses.replace(preference, ranking=tuple(worst - rank for rank in preference.ranking))
    target = 1.0 if preference.target is None else preference.target
    return dataclasses.replace(preference, target=1.0 - target)
