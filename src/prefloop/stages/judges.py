"""Having answers compared by model judges, through the label store, and what their labels say of the judges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from prefloop.annotators.judge import about, build_judge
from prefloop.configs.collect import LabelConfig
from prefloop.data.pairing import first_wins
from prefloop.engine.build import use_threads
from prefloop.rewards.rubric import rubric
from prefloop.run import progress
from prefloop.store.labels import open_store
from prefloop.types import Comparison, Judgment, PrefloopError

AT_ONCE = 32  # comparisons judged between two saves
LONGER = 30  # characters from which on one answer counts as longer (Dubois et al. 2023, AlpacaFarm)


def ask(config: LabelConfig, run: str, comparisons: Sequence[Comparison]) -> tuple[list[Judgment], Mapping[str, bool]]:
    """Every judge's judgment of every comparison that it could tell something of, and who is simulated; what the store
    has is not asked again.

    Raises PrefloopError where it has judgments that were made with other settings, or no judge could tell anything."""
    use_threads(config.engine)
    by_id = {comparison.id: comparison for comparison in comparisons}
    with open_store(config.database) as store, progress(len(comparisons) * len(config.judges), "judgments") as bar:
        store.add_comparisons(run, comparisons)
        _refuse_other_settings(config, store.judgments(run), by_id)
        for each in config.judges:
            pending = [comparison for comparison in store.pending(run, each.name) if comparison.id in by_id]
            bar.advance(len(comparisons) - len(pending), each.name)
            judge = build_judge(each, config.engine, config.seed) if pending else None
            for start in range(0, len(pending), AT_ONCE):
                assert judge is not None
                part = pending[start : start + AT_ONCE]
                store.add_judgments(run, judge(part), simulated=True)
                bar.advance(len(part), each.name)
        judgments = [judgment for judgment in store.judgments(run) if judgment.comparison_id in by_id]
        if not judgments:
            raise PrefloopError(
                f"{run}: no judge said A or B of any of {len(comparisons)} comparisons, or none fits into its context; "
                "take another model and another run name."
            )
        return judgments, store.annotators(run)


def _refuse_other_settings(config: LabelConfig, known: Sequence[Judgment], by_id: Mapping[str, Comparison]) -> None:
    configs = {judge.name: judge for judge in config.judges}
    for judgment in known:
        if judgment.annotator in configs and judgment.comparison_id in by_id:
            wanted = about(configs[judgment.annotator], by_id[judgment.comparison_id], config.seed)
            if not wanted.items() <= json.loads(judgment.rationale).items():
                raise PrefloopError(
                    f"The label store has judgments of {judgment.annotator!r} for this run that were made with other "
                    "settings; give the run or the judge another name."
                )


def figures(comparisons: Sequence[Comparison], judgments: Sequence[Judgment]) -> dict[str, dict[str, float]]:
    """Of each judge: `n` judgments; of how many comparisons it could tell nothing (`cant_judge`); the shares that name
    the same answer in both orders (`consistent`), what was shown first (`first_wins`, both orders counted) and, where
    lengths are 30 characters apart, the longer (`longer_wins`); and where all prompts have checks
    `accuracy_vs_rubric`."""
    by_id = {comparison.id: comparison for comparison in comparisons}
    gold = _leads(comparisons) if all(comparison.prompt.checks for comparison in comparisons) else {}
    found: dict[str, dict[str, list[float]]] = {}
    for judgment in judgments:
        own = found.setdefault(judgment.annotator, {})
        said = json.loads(judgment.rationale)
        first, second = said["shown_first"], said["shown_second"]
        own.setdefault("consistent", []).append((first > 0.5) == (second > 0.5))
        own.setdefault("first_wins", []).extend((_chosen(first), _chosen(1 - second)))
        lead = first_wins(judgment.ranking, judgment.probability)
        a, b = (len(item.text) for item in by_id[judgment.comparison_id].items)
        if abs(a - b) > LONGER:
            own.setdefault("longer_wins", []).append(_chosen(lead if a > b else 1 - lead))
        if better := gold.get(judgment.comparison_id, 0.0):
            own.setdefault("accuracy_vs_rubric", []).append(_chosen(lead if better > 0 else 1 - lead))
    return {
        name: {"n": len(own["consistent"]), "cant_judge": len(comparisons) - len(own["consistent"])}
        | {key: sum(values) / len(values) for key, values in own.items()}
        for name, own in sorted(found.items())
    }


def _chosen(probability: float) -> float:
    return 0.5 if probability == 0.5 else float(probability > 0.5)


def _leads(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """How much higher the rubric scores the first of two answers."""
    scores = rubric([c.prompt for c in comparisons for _ in c.items], [item for c in comparisons for item in c.items])
    return {c.id: a.value - b.value for c, a, b in zip(comparisons, scores[::2], scores[1::2], strict=True)}
