"""What people are asked next: a campaign's priorities from what reward models make of its unlabeled comparisons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prefloop.configs.shared import EngineConfig
from prefloop.engine.build import use_threads
from prefloop.ops.acquisition import Floats, near_miss, preference_variance
from prefloop.rewards.ensemble import EnsembleReward
from prefloop.rewards.learned import LearnedReward
from prefloop.rewards.resolve import resolve_reward
from prefloop.run import progress
from prefloop.store.assignment import seen_until
from prefloop.store.campaigns import Campaigns
from prefloop.store.clock import Clock
from prefloop.store.labels import open_store
from prefloop.store.overview import Filter, Overview
from prefloop.types import Comparison, PrefloopError

CHUNK = 64  # comparisons scored together

ACQUISITIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "disagreement": preference_variance,
    "near-miss": near_miss,
}


def prioritise(database: str, run: str, reward: str, by: str, engine: EngineConfig) -> Mapping[str, Any]:
    """Set the priority of every comparison of a campaign that still waits for labels: the mean over its pairs of what
    `by` gives (a name of ACQUISITIONS). All or none are set; those of other items stay.

    `reward`: a reward run's folder, or several as "mean:A,B", whose members' raw scores are read, however they are
    combined. The campaign's uniform picks go on regardless. Raises PrefloopError for another reward, for a lone one
    with "disagreement", and for a run without a campaign.
    """
    if by not in ACQUISITIONS:
        raise PrefloopError(f"{by!r} is no way to choose what to label; take one of {', '.join(ACQUISITIONS)}.")
    with open_store(database) as store:
        clock = Clock(seen_until(store.engine))
        campaigns, overview = Campaigns(store.engine, clock), Overview(store.engine, clock)
        campaign = campaigns.by_run(run)
        use_threads(engine)
        models = _models(reward, by, engine)
        waiting = list(_waiting(overview, run))
        priorities: dict[str, float] = {}
        with progress(len(waiting), "comparisons") as bar:
            for start in range(0, len(waiting), CHUNK):
                chunk = waiting[start : start + CHUNK]
                priorities |= dict(zip((c.id for c in chunk), _values(models, chunk, by), strict=True))
                bar.advance(len(chunk))
        campaigns.set_priorities(run, priorities, by="prefloop")
    values = list(priorities.values())
    return {
        "campaign": run,
        "reward": reward,
        "by": by,
        "prioritised": len(values),
        "mean": float(np.mean(values)) if values else None,
        "highest": max(values, default=None),
        "uniform_share": campaign.config.uniform_share,
    }


def _models(reward: str, by: str, engine: EngineConfig) -> list[LearnedReward]:
    found = resolve_reward(reward, engine)
    if isinstance(found, EnsembleReward):
        return found.models
    if not isinstance(found, LearnedReward):
        raise PrefloopError(f"{reward} is no reward model; give a reward run's folder, or several as mean:A,B.")
    if by == "disagreement" and len(found.heads) == 1:
        raise PrefloopError(f"{reward} has one head, which has nobody to disagree with; give several as mean:A,B.")
    return [found]


def _waiting(overview: Overview, run: str) -> Iterator[Comparison]:
    after = 0
    while rows := overview.items(run, Filter(state="waiting"), after=after):
        yield from (row.comparison for row in rows)
        after = rows[-1].number


def _values(models: Sequence[LearnedReward], chunk: Sequence[Comparison], by: str) -> list[float]:
    items = [(comparison.prompt, item) for comparison in chunk for item in comparison.items]
    prompts, answers = [prompt for prompt, _ in items], [item for _, item in items]
    scores = np.vstack([model.raw(prompts, answers) for model in models])
    made, first = [], 0
    for comparison in chunk:
        own = scores[:, first : first + len(comparison.items)]
        first += len(comparison.items)
        leads = np.stack([own[:, i] - own[:, j] for i, j in itertools.combinations(range(own.shape[1]), 2)], axis=1)
        made.append(float(ACQUISITIONS[by](leads).mean()))
    return made
