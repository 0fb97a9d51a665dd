"""A reward under scrutiny: held-out comparisons, answers changed on purpose, new samples; figures, verdicts, a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from prefloop.configs.evaluate import EvaluateRewardConfig
from prefloop.data.heldout import split
from prefloop.data.jsonl import make_completion
from prefloop.data.pairing import first_wins
from prefloop.data.rows import read_rows
from prefloop.data.sources import load_preferences, samples_file
from prefloop.engine.build import use_threads
from prefloop.engine.schedule import derived_seed
from prefloop.evals.reward_figures import Vote
from prefloop.evals.reward_page import page, summary
from prefloop.evals.reward_plan import from_row, plan, row, score
from prefloop.evals.reward_report import reward_figures
from prefloop.evals.reward_verdicts import findings
from prefloop.models.checkpoint import MANIFEST
from prefloop.rewards.resolve import RewardFn, resolve_reward, reward_folders, reward_parents
from prefloop.rewards.rubric import rubric
from prefloop.run import Run, progress, write_atomic
from prefloop.store.accounts import Accounts
from prefloop.store.clock import Clock
from prefloop.store.db import file_of
from prefloop.store.labels import open_store
from prefloop.types import Completion, Preference, PrefloopError, Prompt

CHUNK = 256  # answers between two points to resume from


def run(config: EvaluateRewardConfig) -> Mapping[str, Any]:
    """Score, measure, judge; writes report.html. An interrupted run goes on with the answers that are still to do."""
    if not config.reward or not config.preferences:
        raise PrefloopError("[evaluate_reward] needs a reward and the preferences that it learned from.")
    parents = reward_parents(config.reward) | {"preferences": config.preferences}
    parents |= {"samples": config.samples} if config.samples else {}
    with Run.open(config.out, config, stage="evaluate_reward", parents=parents) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        known = load_preferences(config.preferences, skip_bad=config.skip_bad)
        require_split(config, known)
        training, heldout = split(known, config.heldout, derived_seed(config.seed, "heldout"))
        new = new_samples(config.samples) if config.samples else []
        asks = plan(training, heldout, new, train=config.train, probes=config.probes, seed=config.seed)
        reward, gold = resolve_reward(config.reward, config.engine), gold_reward(config, heldout)
        done = run.last_step + 1
        run.rewind(done - 1)
        chunks = [asks[i : i + CHUNK] for i in range(0, len(asks), CHUNK)]
        with progress(len(asks), "answers", done=min(len(asks), done * CHUNK)) as bar:
            for step, chunk in enumerate(chunks):
                if step < done:
                    continue
                scores = score(chunk, reward, gold)
                for one in scores:
                    run.sample(step, row(one))
                run.log(step, {"score": sum(one.score for one in scores) / len(scores)})
                bar.advance(len(chunk))
        scored = [from_row(ask, line) for ask, line in zip(asks, run.samples(), strict=True)]
        figures = reward_figures(training, heldout, scored, single_votes(config, heldout))
        result = {"reward": config.reward, "preferences": config.preferences, **summary(figures, findings(figures))}
        write_atomic(run.path / "report.html", page(result, heldout, scored))
        return run.finish(result)


def require_split(config: EvaluateRewardConfig, known: Sequence[Preference]) -> None:
    """Refuse a reward run that learned from prompts that this report would hold out."""
    if any(preference.prompt.split == "dev" for preference in known):
        return
    for folder in reward_folders(config.reward):
        place = Path(folder.strip())
        file = (place.parent if (place / MANIFEST).is_file() else place) / "config.json"
        if place.is_dir() and not file.is_file():
            raise PrefloopError(
                f"{place}: which prompts it held out is not known without its run folder; give that, or preferences "
                "with a dev split."
            )
        other = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        drawn = (other.get("heldout", config.heldout), other.get("seed", config.seed))
        if drawn != (config.heldout, config.seed):
            raise PrefloopError(
                f"{folder.strip()}: it held out {drawn[0]} of the prompts by seed {drawn[1]}, this report would "
                f"hold out {config.heldout} by seed {config.seed}, some of which it learned from. Set the same here."
            )


def gold_reward(config: EvaluateRewardConfig, heldout: Sequence[Preference]) -> RewardFn | None:
    """What counts as the truth; None where nothing does."""
    if config.gold:
        return resolve_reward(config.gold, config.engine)
    return rubric if all(p.by_rubric for p in heldout) else None


def new_samples(source: str) -> list[tuple[Prompt, Completion]]:
    """Prompts and answers; of an evaluation the policy's."""
    file = samples_file(source)
    rows = [(f"{file}:{line}", found) for line, found in read_rows(file)]
    if any("prompt" not in found or "completion" not in found for _, found in rows):
        raise PrefloopError(f"{file}: a line without a prompt and a completion; give a collect or an evaluate run.")
    evaluated = any(found.get("model") == "policy" for _, found in rows)
    return [make_completion(found, at) for at, found in rows if not evaluated or found["model"] == "policy"]


def single_votes(config: EvaluateRewardConfig, heldout: Sequence[Preference]) -> list[Vote]:
    """What each annotator said of the held-out answers, from the label store; none where it does not know the run."""
    file = file_of(config.database)
    if file is not None and not file.exists():
        return []
    name, wanted = str(Path(config.preferences)), {item.id for p in heldout for item in p.items}
    with open_store(config.database) as store:
        groups = {account.name: account.group for account in Accounts(store.engine, Clock()).all()}
        items = {comparison.id: comparison.items for comparison in store.comparisons(name)}
        judgments = store.judgments(name)
    return [
        Vote(
            items=(items[j.comparison_id][a].id, items[j.comparison_id][b].id),
            annotator=j.annotator,
            first=first_wins(j.ranking, j.probability, a, b),
            group=groups.get(j.annotator, ""),
            strength=j.strength,
        )
        for j in judgments
        if all(item.id in wanted for item in items[j.comparison_id])
        for a, b in combinations(range(len(items[j.comparison_id])), 2)
    ]
