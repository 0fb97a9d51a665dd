"""Answers by themselves, good or bad: from comparisons, split by prompt, and as a negative control."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from prefloop.data.trees import ordered_pairs
from prefloop.types import Completion, Preference, PrefloopError, Prompt, Verdict


def from_preferences(preferences: Sequence[Preference]) -> list[Verdict]:
    """A verdict on each answer of each prompt, once: good where it wins more than half of its comparisons (by weight,
    soft targets in part), bad where it wins less; what wins half is left out. Raises PrefloopError where nothing is
    left."""
    won: dict[tuple[str, str, str], float] = {}
    answers: dict[tuple[str, str, str], tuple[Prompt, Completion]] = {}
    for preference in preferences:
        for i, j, target in ordered_pairs(preference):
            for item, lead in ((preference.items[i], target - 0.5), (preference.items[j], 0.5 - target)):
                key = (preference.prompt.id, item.text, item.finish_reason)  # sampled twice, it is one answer
                answers.setdefault(key, (preference.prompt, item))
                won[key] = won.get(key, 0.0) + preference.weight * lead
    made = [Verdict(prompt=prompt, completion=item, good=won[key] > 0) for key, (prompt, item) in answers.items()]
    kept = [verdict for verdict, lead in zip(made, won.values(), strict=True) if abs(lead) > 1e-9]
    if not kept:
        raise PrefloopError("No answer wins more or less than half of its comparisons; collect labels that prefer one.")
    return kept


def shuffled_verdicts(verdicts: Sequence[Verdict], seed: int) -> list[Verdict]:
    """The same labels, as many good and bad, dealt out to the answers by chance."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(verdicts)).tolist()
    return [dataclasses.replace(own, good=verdicts[i].good) for own, i in zip(verdicts, order, strict=True)]
