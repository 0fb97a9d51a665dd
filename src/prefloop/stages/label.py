"""Have answers compared, through the store that people's labels live in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.annotators.simulated import Annotator, judge
from prefloop.configs.collect import LabelConfig
from prefloop.data.jsonl import make_completion, read_preferences, write_jsonl
from prefloop.data.pairing import comparison_id, first_wins, pair_completions
from prefloop.data.rows import read_rows
from prefloop.ops.statistics import krippendorff_alpha
from prefloop.rewards.rubric import rubric
from prefloop.run import Run, progress
from prefloop.store.labels import open_store
from prefloop.types import Comparison, Completion, Judgment, Preference, PrefloopError, Prompt, Score


def run(config: LabelConfig) -> Mapping[str, Any]:
    """Pair, judge by every annotator of the panel, and write preferences.jsonl. Simulated people, and named so."""
    with Run.open(config.out, config, stage="label", parents={"completions": config.completions}) as run:
        name = str(run.path)
        if run.finished:
            _refuse_newer_labels(config, run)
            return run.result
        prompts, answers = read_completions(config.completions)
        comparisons = pair_completions(answers, list(prompts.values()), pairs=config.pairs, seed=config.seed)
        gold = {
            (prompt, answer.id): score
            for prompt, made in answers.items()
            for answer, score in zip(made, rubric([prompts[prompt]] * len(made), made), strict=True)
        }
        scores = {c.id: [gold[c.prompt.id, item.id] for item in c.items] for c in comparisons}
        with open_store(config.database) as store, progress(len(comparisons) * len(config.panel), "judgments") as bar:
            store.add_comparisons(name, comparisons)
            for person in config.panel:
                annotator = Annotator(**person.model_dump(), seed=config.seed)
                pending = [c for c in store.pending(name, person.name) if c.id in scores]
                made = [judge(annotator, comparison, scores[comparison.id]) for comparison in pending]
                store.add_judgments(name, made, simulated=True)
                bar.advance(len(comparisons), person.name)
            judgments = [j for j in store.judgments(name) if j.comparison_id in scores]
            simulated = store.annotators(name)
        preferences = to_preferences(comparisons, judgments, simulated)
        write_jsonl(run.path / "preferences.jsonl", preferences)
        return run.finish(
            {
                "comparisons": len(comparisons),
                "judgments": len(judgments),
                **agreement(comparisons, judgments),
                "annotators": _accuracies(comparisons, judgments, scores),
                "simulated": all(preference.simulated for preference in preferences),
            }
        )


def _refuse_newer_labels(config: LabelConfig, run: Run) -> None:
    """Labels that came after this stage had finished must not be left out in silence."""
    used = {comparison_id(p.items) for p in read_preferences(run.path / "preferences.jsonl")}
    with open_store(config.database) as store:
        count = sum(j.comparison_id in used for j in store.judgments(str(run.path)))
    if count > run.result["judgments"]:
        raise PrefloopError(
            f"{run.path}: the label store holds {count - run.result['judgments']} judgments more than this stage used; "
            "remove this folder, and those of the stages after it, to use them."
        )


def read_completions(source: str) -> tuple[dict[str, Prompt], dict[str, list[Completion]]]:
    """Prompts by id and their answers, from a collect run folder or a file of {"prompt", "completion"} rows."""
    path = Path(source)
    prompts: dict[str, Prompt] = {}
    answers: dict[str, list[Completion]] = {}
    file = path / "samples.jsonl" if path.is_dir() else path
    for line, row in read_rows(file):
        if "prompt" not in row or "completion" not in row:
            raise PrefloopError(f"{file}:{line}: a line needs the fields 'prompt' and 'completion'.")
        prompt, completion = make_completion(row, f"{file}:{line}")
        prompts[prompt.id] = prompt
        answers.setdefault(prompt.id, []).append(completion)
    return prompts, answers


def to_preferences(
    comparisons: Sequence[Comparison], judgments: Sequence[Judgment], simulated: Mapping[str, bool]
) -> list[Preference]:
    """One preference a comparison: target = share of its annotators that put item 0 first, a tie counting half.
    simulated: of each annotator."""
    votes: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        votes.setdefault(judgment.comparison_id, []).append(judgment)
    return [
        Preference(
            prompt=c.prompt,
            items=c.items,
            target=sum(first_wins(j.ranking, j.probability) for j in votes[c.id]) / len(votes[c.id]),
            group=c.prompt.id,
            simulated=all(simulated[judgment.annotator] for judgment in votes[c.id]),
        )
        for c in comparisons
        if c.id in votes
    ]


def agreement(comparisons: Sequence[Comparison], judgments: Sequence[Judgment]) -> dict[str, float | None]:
    """Mean share of annotator pairs that agree, and Krippendorff's nominal alpha; null with a single annotator, and
    alpha also where all chose the same, which leaves it undefined."""
    names = sorted({j.annotator for j in judgments})
    votes = {(j.annotator, j.comparison_id): first_wins(j.ranking, j.probability) for j in judgments}
    same = [
        votes[a, c.id] == votes[b, c.id]
        for a, b in itertools.combinations(names, 2)
        for c in comparisons
        if (a, c.id) in votes and (b, c.id) in votes
    ]
    if not same:
        return {"agreement": None, "krippendorff_alpha": None}
    ratings = [[votes.get((name, c.id)) for c in comparisons] for name in names]
    alpha = krippendorff_alpha(ratings, level="nominal")
    return {"agreement": sum(same) / len(same), "krippendorff_alpha": None if math.isnan(alpha) else alpha}


def _accuracies(
    comparisons: Sequence[Comparison], judgments: Sequence[Judgment], scores: Mapping[str, Sequence[Score]]
) -> dict[str, dict[str, float]]:
    gold = {c.id: scores[c.id][0].value - scores[c.id][1].value for c in comparisons}
    found: dict[str, list[bool]] = {}
    for judgment in judgments:
        if abs(gold[judgment.comparison_id]) > 1e-9:
            right = (first_wins(judgment.ranking, judgment.probability) > 0.5) == (gold[judgment.comparison_id] > 0)
            found.setdefault(judgment.annotator, []).append(right)
    return {name: {"accuracy_vs_rubric": sum(hits) / len(hits), "n": len(hits)} for name, hits in found.items()}
