"""Have answers compared, through the store that people's labels live in."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prefloop.annotators.judge import judge_parents
from prefloop.annotators.simulated import Annotator, judge
from prefloop.configs.collect import LabelConfig
from prefloop.data.jsonl import content_id, make_completion, read_preferences, write_jsonl
from prefloop.data.pairing import comparison_id, first_wins, pair_completions
from prefloop.data.rows import read_rows
from prefloop.data.sources import samples_file
from prefloop.ops.agreement import krippendorff_alpha, percent_agreement, tally
from prefloop.rewards.rubric import rubric
from prefloop.run import Run, progress
from prefloop.stages import judges, people
from prefloop.store.labels import open_store
from prefloop.types import Comparison, Completion, Demonstration, Judgment, Preference, PrefloopError, Prompt, Score


def run(config: LabelConfig, *, wait: bool = True) -> Mapping[str, Any]:
    """Pair, have every pair judged by the panel, by models or by people, and write preferences.jsonl. Of people also
    what they wrote themselves, as demonstrations.jsonl, and what failed in conversations, as negatives.jsonl. Simulated
    people and models are named so. Where people have labels to give it waits for them, or with `wait` false raises
    PrefloopError, which says so; the same call goes on."""
    parents = {"completions": config.completions}
    if config.annotator == "judge":
        parents |= judge_parents(config.judges)
    with Run.open(config.out, config, stage="label", parents=parents) as run:
        if run.finished:
            _refuse_newer_labels(config, run)
            return run.result
        prompts, answers = read_completions(config.completions)
        comparisons = pair_completions(answers, list(prompts.values()), pairs=config.pairs, seed=config.seed)
        if config.annotator == "people":
            return _by_people(config, run, comparisons, wait)
        if config.annotator == "judge":
            return _by_judges(config, run, comparisons)
        return _by_panel(config, run, comparisons)


def _by_panel(config: LabelConfig, run: Run, comparisons: Sequence[Comparison]) -> Mapping[str, Any]:
    name = str(run.path)
    scores = _rubric_scores(comparisons)
    with open_store(config.database) as store, progress(len(comparisons) * len(config.panel), "judgments") as bar:
        store.add_comparisons(name, comparisons)
        known = store.judgments(name)
        for person in config.panel:
            annotator = Annotator(**person.model_dump(), seed=config.seed)
            _refuse_other_settings(known, annotator, comparisons, scores)
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
            "annotators": _accuracies(judgments, _leads(scores)),
            "simulated": all(preference.simulated for preference in preferences),
            "judges": sorted({name for preference in preferences for name in preference.judges}),
        }
    )


def _by_judges(config: LabelConfig, run: Run, comparisons: Sequence[Comparison]) -> Mapping[str, Any]:
    judgments, simulated = judges.ask(config, str(run.path), comparisons)
    preferences = to_preferences(comparisons, judgments, simulated)
    gold = _leads(_rubric_scores(comparisons)) if all(c.prompt.checks for c in comparisons) else {}
    write_jsonl(run.path / "preferences.jsonl", preferences)
    return run.finish(
        {
            "comparisons": len(comparisons),
            "judgments": len(judgments),
            **agreement(judgments),
            "annotators": judges.figures(config.judges, comparisons, judgments, gold),
            "simulated": all(preference.simulated for preference in preferences),
            "judges": sorted({name for preference in preferences for name in preference.judges}),
        }
    )


def _refuse_other_settings(
    known: Sequence[Judgment],
    annotator: Annotator,
    comparisons: Sequence[Comparison],
    scores: Mapping[str, Sequence[Score]],
) -> None:
    """What the store has of a simulated annotator must be what this one would say, or its settings were others."""
    asked = {comparison.id: comparison for comparison in comparisons}
    for judgment in known:
        if judgment.annotator == annotator.name and judgment.comparison_id in scores:
            again = judge(annotator, asked[judgment.comparison_id], scores[judgment.comparison_id])
            if (again.ranking, again.shown_order) != (judgment.ranking, judgment.shown_order):
                raise PrefloopError(
                    f"The label store has judgments of {annotator.name!r} for this run that were made with other "
                    "settings; give the run or the annotator another name."
                )


def _by_people(config: LabelConfig, run: Run, comparisons: Sequence[Comparison], wait: bool) -> Mapping[str, Any]:
    if run.last_step < 0:
        run.log(0, {"comparisons": len(comparisons)})  # binds the settings: people answer what these ask
    labels = people.ask(config.database, str(run.path), comparisons, config.campaign, wait=wait)
    preferences = to_preferences(labels.comparisons, labels.judgments, labels.simulated, margins=config.margins)
    written = demonstrations(labels.comparisons, labels.judgments)
    write_jsonl(run.path / "demonstrations.jsonl", written)
    write_jsonl(run.path / "negatives.jsonl", labels.negatives)
    write_jsonl(run.path / "preferences.jsonl", preferences)
    counts = Counter(judgment.annotator for judgment in labels.judgments)
    return run.finish(
        {
            "comparisons": len(labels.comparisons),
            "judgments": len(labels.judgments),
            **agreement(labels.judgments),
            "annotators": {name: {"n": n} for name, n in sorted(counts.items())},
            "demonstrations": len(written),
            "negatives": len(labels.negatives),
            "simulated": all(preference.simulated for preference in preferences),
        }
    )


def _rubric_scores(comparisons: Sequence[Comparison]) -> dict[str, list[Score]]:
    """The rubric's scores of the answers of each comparison; each answer is scored once."""
    asked = {(c.prompt.id, item.id): (c.prompt, item) for c in comparisons for item in c.items}
    made = rubric([prompt for prompt, _ in asked.values()], [item for _, item in asked.values()])
    scores = dict(zip(asked, made, strict=True))
    return {c.id: [scores[c.prompt.id, item.id] for item in c.items] for c in comparisons}


def _leads(scores: Mapping[str, Sequence[Score]]) -> dict[str, float]:
    """How much higher the rubric scores the first of two answers, where it tells them apart."""
    found = {name: first.value - second.value for name, (first, second) in scores.items()}
    return {name: lead for name, lead in found.items() if abs(lead) > 1e-9}


def _refuse_newer_labels(config: LabelConfig, run: Run) -> None:
    """Labels that came after this stage had finished must not be left out in silence."""
    used = {comparison_id(p.items) for p in read_preferences(run.path / "preferences.jsonl")}
    everything = config.annotator == "people"
    with open_store(config.database) as store:
        count = sum(everything or j.comparison_id in used for j in store.judgments(str(run.path)))
    if count > run.result["judgments"]:
        raise PrefloopError(
            f"{run.path}: the label store holds {count - run.result['judgments']} judgments more than this stage used; "
            "remove this folder, and those of the stages after it, to use them."
        )


def read_completions(source: str) -> tuple[dict[str, Prompt], dict[str, list[Completion]]]:
    """Prompts by id and their answers, from a collect run folder or a file of {"prompt", "completion"} rows."""
    prompts: dict[str, Prompt] = {}
    answers: dict[str, list[Completion]] = {}
    file = samples_file(source)
    for line, row in read_rows(file):
        if "prompt" not in row or "completion" not in row:
            raise PrefloopError(f"{file}:{line}: a line needs the fields 'prompt' and 'completion'.")
        prompt, completion = make_completion(row, f"{file}:{line}")
        if prompts.setdefault(prompt.id, prompt).messages != prompt.messages:
            raise PrefloopError(f"{file}:{line}: id {prompt.id!r} was another prompt further up; rename one of them.")
        answers.setdefault(prompt.id, []).append(completion)
    return prompts, answers


def to_preferences(
    comparisons: Sequence[Comparison],
    judgments: Sequence[Judgment],
    simulated: Mapping[str, bool],
    *,
    margins: bool = False,
) -> list[Preference]:
    """Of two answers one preference: target = share of its annotators that put item 0 first, a tie counting half. Of
    more answers one ranking an annotator, whose pairs share a weight of 1. simulated: of each annotator."""
    made = []
    for comparison, mine in _votes(comparisons, judgments):
        about: dict[str, Any] = {"prompt": comparison.prompt, "items": comparison.items, "group": comparison.prompt.id}
        about["simulated"] = all(simulated[judgment.annotator] for judgment in mine)
        models = tuple(vote.annotator for vote in mine if vote.probability is not None)  # simulated people rank
        about["judges"] = models if about["simulated"] else ()
        if len(comparison.items) > 2:
            weight = 1 / len(mine) / math.comb(len(comparison.items), 2)
            made += [Preference(**about, ranking=judgment.ranking, weight=weight) for judgment in mine]
        else:
            target = sum(first_wins(vote.ranking, vote.probability) for vote in mine) / len(mine)
            made.append(Preference(**about, target=target, margin=margin(mine) if margins else 0.0))
    return made


def margin(votes: Sequence[Judgment]) -> float:
    """How much better than the other one of two answers is: 1 for strength 4, 2/3, 1/3 and 0 for strength 1 (Llama 2,
    arXiv 2307.09288, table 27), the mean over votes, those for the other answer below 0; 0 where these outweigh it, or
    no answer has more votes."""
    sides = np.sign([first_wins(vote.ranking, vote.probability) - 0.5 for vote in votes])
    signed = np.sign(sides.sum()) * sides @ [(vote.strength or 1) - 1 for vote in votes]
    return max(0.0, float(signed)) / (3 * len(votes))


def demonstrations(comparisons: Sequence[Comparison], judgments: Sequence[Judgment]) -> list[Demonstration]:
    """The better answers that annotators wrote, each once."""
    made = {}
    for comparison, votes in _votes(comparisons, judgments):
        for edit in (vote.edit for vote in votes if vote.edit.strip()):
            id_ = content_id(comparison.prompt.id, edit)
            made[id_] = Demonstration(id=id_, prompt=comparison.prompt, completion=edit)
    return list(made.values())


def _votes(
    comparisons: Sequence[Comparison], judgments: Sequence[Judgment]
) -> Iterator[tuple[Comparison, list[Judgment]]]:
    """The comparisons that were judged, in order, each with its judgments by annotator: when they came is of no
    account."""
    votes: dict[str, list[Judgment]] = {}
    for judgment in sorted(judgments, key=lambda judgment: judgment.annotator):
        votes.setdefault(judgment.comparison_id, []).append(judgment)
    return ((comparison, votes[comparison.id]) for comparison in comparisons if comparison.id in votes)


def agreement(judgments: Sequence[Judgment]) -> dict[str, float | None]:
    """Share of pairs of labels of the same two answers that agree on the better one, or on a tie, and Krippendorff's
    nominal alpha; null where no two have two labels, and alpha also where all chose the same: it is undefined then."""
    votes = [
        (f"{judgment.comparison_id}/{a}/{b}", first_wins(judgment.ranking, judgment.probability, a, b) - 0.5)
        for judgment in judgments
        for a, b in itertools.combinations(range(len(judgment.ranking or (0, 1))), 2)
    ]
    table = tally([name for name, _ in votes], np.sign([lead for _, lead in votes]))
    found = {"agreement": percent_agreement(table, resamples=0)}
    found["krippendorff_alpha"] = krippendorff_alpha(table, resamples=0)
    return {name: None if figure.reason else figure.value for name, figure in found.items()}


def _accuracies(judgments: Sequence[Judgment], leads: Mapping[str, float]) -> dict[str, dict[str, float]]:
    found: dict[str, list[bool]] = {}
    for judgment in judgments:
        if lead := leads.get(judgment.comparison_id):
            right = (first_wins(judgment.ranking, judgment.probability) > 0.5) == (lead > 0)
            found.setdefault(judgment.annotator, []).append(right)
    return {name: {"accuracy_vs_rubric": sum(hits) / len(hits), "n": len(hits)} for name, hits in found.items()}
