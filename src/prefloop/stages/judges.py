"""Having answers compared by model judges, through the label store, and what their labels say of the judges."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

from prefloop.annotators.judge import Asks, agree, build_judge
from prefloop.annotators.served import Server
from prefloop.configs.collect import LabelConfig
from prefloop.configs.judge import JudgeConfig
from prefloop.data.pairing import first_wins
from prefloop.engine.build import use_threads
from prefloop.run import progress
from prefloop.store.labels import Store, open_store
from prefloop.types import Comparison, Judgment, PrefloopError

AT_ONCE = 16  # comparisons judged between two saves
LONGER = 30  # characters more than which make an answer the longer one (AlpacaFarm, Dubois et al. 2023)
DOUBTFUL = 0.6  # share of comparisons with the same answer in both orders, below which it is said; of a coin 0.5


def ask(config: LabelConfig, run: str, comparisons: Sequence[Comparison]) -> tuple[list[Judgment], Mapping[str, bool]]:
    """Every judge's judgment of every comparison that it could tell something of, and who is simulated. What the store
    has is not asked again; of what a judge could tell nothing it has nothing.

    Raises PrefloopError where it has judgments by others, or made with other settings, and where no judge could tell
    anything."""
    use_threads(config.engine)
    for each in config.judges:
        if each.endpoint:
            Server(each)  # what it lacks is missed before anybody is asked
    by_id = {comparison.id: comparison for comparison in comparisons}
    with open_store(config.database) as store, progress(len(comparisons) * len(config.judges), "judgments") as bar:
        store.add_comparisons(run, comparisons)
        _refuse_others(config, store, run, by_id)
        for each in config.judges:
            pending = [comparison for comparison in store.pending(run, each.name) if comparison.id in by_id]
            bar.advance(len(comparisons) - len(pending), each.name)
            if not pending:
                continue
            judge, many = build_judge(each, config.engine, config.seed), max(AT_ONCE, each.parallel)
            for start in range(0, len(pending), many):
                part = pending[start : start + many]
                told = [said for said in judge(part) if said.probability is not None]
                store.add_judgments(run, told, simulated=True)
                bar.advance(len(part), each.name)
            del judge  # before the next one's model comes
        judgments = [judgment for judgment in store.judgments(run) if judgment.comparison_id in by_id]
        if not judgments:
            raise PrefloopError(
                f"{run}: no judge said A or B of any of {len(comparisons)} comparisons, or none fits into its context; "
                "take another model."
            )
        return judgments, store.annotators(run)


def _refuse_others(config: LabelConfig, store: Store, run: str, by_id: Mapping[str, Comparison]) -> None:
    asks = {judge.name: Asks(judge, config.seed) for judge in config.judges}
    for judgment in store.judgments(run):
        if judgment.comparison_id not in by_id:
            continue
        if judgment.annotator not in asks:
            raise PrefloopError(
                f"The label store has judgments of {judgment.annotator!r} for {run}, who is none of its judges; choose "
                "another run name."
            )
        wanted = asks[judgment.annotator].of(by_id[judgment.comparison_id])
        if not judgment.rationale.startswith(json.dumps(wanted)[:-1]):  # of an import it may be any text
            raise PrefloopError(
                f"The label store has judgments of {judgment.annotator!r} for {run} that were made with other settings "
                "or by another model; give the run or the judge another name."
            )


def figures(
    judges: Sequence[JudgeConfig],
    comparisons: Sequence[Comparison],
    judgments: Sequence[Judgment],
    gold: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Of each judge: `n` judgments; of how many comparisons it could tell nothing (`cant_judge`); the shares that name
    the same answer in both orders (`consistent`), what was shown first (`first_wins`, both orders counted) and, where
    one is more than 30 characters longer, that one (`longer_wins`); and what the rubric prefers, where it is known
    (`accuracy_vs_rubric`). A judge that hardly looks beyond the order is warned of.

    gold: how much higher the rubric scores the first answer, by comparison."""
    by_id = {comparison.id: comparison for comparison in comparisons}
    hits: dict[str, dict[str, list[float]]] = {judge.name: {} for judge in judges}
    for judgment in judgments:
        own, said = hits[judgment.annotator], json.loads(judgment.rationale)
        own.setdefault("consistent", []).append(agree(judgment))
        own.setdefault("first_wins", []).extend((_chosen(said["shown_first"]), _chosen(1 - said["shown_second"])))
        chosen = _chosen(first_wins(judgment.ranking, judgment.probability))
        a, b = (len(item.text) for item in by_id[judgment.comparison_id].items)
        if abs(a - b) > LONGER:
            own.setdefault("longer_wins", []).append(chosen if a > b else 1 - chosen)
        if lead := gold.get(judgment.comparison_id):
            own.setdefault("accuracy_vs_rubric", []).append(chosen if lead > 0 else 1 - chosen)
    found: dict[str, dict[str, float]] = {}
    for name, own in hits.items():
        n = len(own.get("consistent", ()))
        found[name] = {"n": n, "cant_judge": len(comparisons) - n}
        found[name] |= {key: sum(values) / len(values) for key, values in own.items()}
        if n and found[name]["consistent"] < DOUBTFUL:
            logging.getLogger(__name__).warning(
                "%s names the same answer in both orders in %.0f %% of comparisons, and what stands first in %.0f %%: "
                "its labels say little of answers; take another model.",
                name,
                100 * found[name]["consistent"],
                100 * found[name]["first_wins"],
            )
    return found


def _chosen(probability: float) -> float:
    return 0.5 if probability == 0.5 else float(probability > 0.5)
