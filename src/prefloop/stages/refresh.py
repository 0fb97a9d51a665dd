"""New versions of a reward model: what they learn from, and how far they agree with those before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

import numpy as np

from prefloop.configs.shared import EngineConfig
from prefloop.data.heldout import distinct_pairs
from prefloop.data.jsonl import write_jsonl
from prefloop.data.sources import load_preferences
from prefloop.rewards.learned import LearnedReward
from prefloop.run import write_atomic
from prefloop.types import Preference, PrefloopError


def replay(labels: Sequence[str], file: str, *, heldout: Set[str], new: float, seed: int) -> dict[str, int]:
    """Write the comparisons that the next version learns from: of the last label run a share `new`, the rest drawn from
    all runs before it, the replay buffer; as many as there are at these shares. Returns the counts of both.

    `heldout`: ids of prompts of which no version learns: they become the dev split, and all others train.

    Raises PrefloopError where a share would be none."""
    *past, latest = (load_preferences(name) for name in labels)
    buffer = [preference for run in past for preference in run]
    total = min(len(latest) / new, len(buffer) / (1 - new) if new < 1 else np.inf)
    counts = {"new": round(total * new), "old": round(total * (1 - new))}
    if not counts["new"] or (new < 1 and not counts["old"]):
        raise PrefloopError(
            f"{labels[-1]}: {len(latest)} new and {len(buffer)} old comparisons cannot be mixed at a share of {new}; "
            "label more."
        )
    chance = np.random.Generator(np.random.Philox(seed))

    def drawn(known: Sequence[Preference], count: int) -> list[Preference]:
        kept = [known[place] for place in sorted(chance.permutation(len(known))[:count])]
        splits = ("dev" if p.prompt.id in heldout else "train" for p in kept)
        return [replace(p, prompt=replace(p.prompt, split=part)) for p, part in zip(kept, splits, strict=True)]

    write_jsonl(file, drawn(latest, counts["new"]) + drawn(buffer, counts["old"]))
    return counts


def agreement(versions: Sequence[str], panel: Sequence[Preference], engine: EngineConfig, file: Path) -> None:
    """Write how far the last version agrees with each before it: by folder, the share of the panel's pairs of which
    both prefer the same answer."""
    pairs = distinct_pairs(panel)
    prompts, items = [p.prompt for p in pairs for _ in p.items], [item for p in pairs for item in p.items]
    sides = {}
    for version in versions:
        scores = LearnedReward(version, engine).raw(prompts, items)[0].reshape(-1, 2)
        sides[version] = np.sign(scores[:, 0] - scores[:, 1])
    *before, newest = versions
    found: Mapping[str, float] = {name: float(np.mean(sides[name] == sides[newest])) for name in before}
    write_atomic(file, json.dumps({"version": newest, "pairs": len(pairs), "agreement": found}, indent=2) + "\n")
