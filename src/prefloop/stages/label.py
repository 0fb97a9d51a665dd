"""Have answers compared, through the store that people's labels live in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefloop.annotators.simulated import Annotator, judge
from prefloop.configs.collect import LabelConfig
from prefloop.data.jsonl import read_jsonl, read_preferences, write_jsonl
from prefloop.data.pairing import comparison_id, pair_completions
from prefloop.ops.agreement import krippendorff_alpha, percent_agreement, tally
from prefloop.rewards.rubric import rubric
from prefloop.run import Run, progress
from prefloop.store.labels import open_store
from prefloop.types import Comparison, Completion, Judgment, Preference, PrefloopError, Prompt, Score, from_json


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
                **agreement(judgments),
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
    """Prompts by id and their answers, from a collect run folder or a JSONL of {"prompt", "completion"} lines."""
    path = Path(source)
    prompts: dict[str, Prompt] = {}
    answers: dict[str, list[Completion]] = {}
    file = path / "samples.jsonl" if path.is_dir() else path
    for line, row in read_jsonl(file):
        if "prompt" not in row or "completion" not in row:
            raise PrefloopError(f"{file}:{line}: a line needs the fields 'prompt' and 'completion'.")
        prompt = from_json(Prompt, row["prompt"], f"{file}:{line} prompt")
        completion = from_json(Completion, row["completion"], f"{file}:{line} completion")
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
            target=sum(map(first_wins, votes[c.id])) / len(votes[c.id]),
            group=c.prompt.id,
            simulated=all(simulated[judgment.annotator] for judgment in votes[c.id]),
        )
        for c in comparisons
        if c.id in votes
    ]


def first_wins(judgment: Judgment) -> float:
    """How much a judgment of two items prefers item 0: 1, 0.5 or 0, or its probability."""
    if judgment.ranking is None:
        return 0.5 if judgment.probability is None else judgment.probability
    a, b = judgment.ranking[:2]
    return 0.5 if a == b else float(a < b)


def agreement(judgments: Sequence[Judgment]) -> dict[str, float | None]:
    """Share of pairs of labels of one comparison that agree on the better item, or on a tie, and Krippendorff's nominal
    alpha; null where no comparison has two labels, and alpha also where all chose the same: it is undefined then."""
    table = tally([j.comparison_id for j in judgments], np.sign([first_wins(j) - 0.5 for j in judgments]))
    found = {"agreement": percent_agreement(table, resamples=0)}
    found["krippendorff_alpha"] = krippendorff_alpha(table, resamples=0)
    return {name: None if figure.reason else figure.value for name, figure in found.items()}


def _accuracies(
    comparisons: Sequence[Comparison], judgments: Sequence[Judgment], scores: Mapping[str, Sequence[Score]]
) -> dict[str, dict[str, float]]:
    gold = {c.id: scores[c.id][0].value - scores[c.id][1].value for c in comparisons}
    found: dict[str, list[bool]] = {}
    for judgment in judgments:
        if abs(gold[judgment.comparison_id]) > 1e-9:
            right = (first_wins(judgment) > 0.5) == (gold[judgment.comparison_id] > 0)
            found.setdefault(judgment.annotator, []).append(right)
    return {name: {"accuracy_vs_rubric": sum(hits) / len(hits), "n": len(hits)} for name, hits in found.items()}
