"""Derive the figures of a run's report again from its samples and labels alone, and compare: recompute.py RUN.

Rubric scores are computed anew from the texts, labels are taken from label/preferences.jsonl, KL from the rollouts; no
stage's result is read. Prints one JSON object and exits 1 when a figure differs by more than 1e-9.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefloop.configs.pipeline import STAGES
from prefloop.data.rows import read_jsonl
from prefloop.evals.report import EVALUATED, heldout_pair, last_third_kl, online_stage
from prefloop.evals.reward_model import HeldoutPair, measure
from prefloop.evals.winrate import summarize
from prefloop.rewards.rubric import rubric
from prefloop.run import newest
from prefloop.types import Completion, Preference, PrefloopError, Prompt, from_json

TOLERANCE = 1e-9


def recompute(root: Path) -> dict[str, Any]:
    """The figures of report.json that come from samples and labels, as far as their files exist."""
    figures: dict[str, Any] = {}
    evaluated_in, rewarded_in = newest(root, "evaluate"), newest(root, "reward")
    if (evaluated_in / "samples.jsonl").exists():
        evaluation = _evaluation(evaluated_in)
        figures |= {key: evaluation[key] for key in EVALUATED}
    if (root / "control" / "evaluate" / "samples.jsonl").exists():
        control = _evaluation(root / "control" / "evaluate")
        rate = {"win_rate": control["win_rate"], "low": control["win_rate_low"], "high": control["win_rate_high"]}
        figures["control_shuffled_labels"] = rate
    config = evaluated_in / "config.json"
    evaluated = json.loads(config.read_text(encoding="utf-8")) if config.exists() else None
    present = {name for name in STAGES if (newest(root, name) / "samples.jsonl").exists()}
    if online := online_stage(evaluated, present):
        figures["kl_last_third"] = last_third_kl(_rows(newest(root, online) / "samples.jsonl"))
    if (rewarded_in / "samples.jsonl").exists():
        reward = measure(_labeled_pairs(rewarded_in))
        figures |= {
            "rm_accuracy": reward.accuracy,
            "rm_accuracy_low": reward.accuracy_low,
            "rm_accuracy_high": reward.accuracy_high,
            "rm_ceiling": reward.ceiling,
            "rm_longer_wins": reward.longer_wins,
            "rm_shorter_wins": reward.shorter_wins,
        }
    return figures


def differences(reported: Any, derived: Any, where: str = "") -> list[str]:
    """Where two figures differ by more than 1e-9 or in shape; a figure missing on either side differs."""
    if isinstance(reported, Mapping) and isinstance(derived, Mapping):
        names = sorted(reported.keys() | derived.keys())
        return [d for n in names for d in differences(reported.get(n), derived.get(n), f"{where}.{n}".lstrip("."))]
    if isinstance(reported, int | float) and isinstance(derived, int | float):
        same = abs(reported - derived) <= TOLERANCE
    else:
        same = reported == derived
    return [] if same else [f"{where}: reported {reported}, derived {derived}"]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


def _evaluation(folder: Path) -> dict[str, Any]:
    """Judged anew where the rubric was the judge; another judge's scores are taken as they stand."""
    rows = _rows(folder / "samples.jsonl")
    if json.loads((folder / "config.json").read_text())["judge"] == "rubric":
        prompts = [from_json(Prompt, row["prompt"]) for row in rows]
        scores = rubric(prompts, [from_json(Completion, row["completion"]) for row in rows])
        rows = [row | {"score": score.value} for row, score in zip(rows, scores, strict=True)]
    return summarize(rows)


def _labeled_pairs(folder: Path) -> list[HeldoutPair]:
    """The held-out pairs with target, words and noise-free scores from the labels; only the model's scores are kept. In
    later rounds the labels are those that were mixed."""
    pairs = [heldout_pair(row) for row in _rows(folder / "samples.jsonl")]
    places = (folder.parent / "preferences.jsonl", folder.parent / "label" / "preferences.jsonl")
    labels = next((place for place in places if place.exists()), None)
    if labels is None:
        return pairs
    wanted = {pair.prompt_id for pair in pairs}
    known: defaultdict[tuple[object, ...], list[Preference]] = defaultdict(list)
    for row in _rows(labels):
        if row["prompt"]["id"] in wanted:
            preference = from_json(Preference, row)
            known[preference.prompt.id, preference.target, *map(_words, preference.items)].append(preference)
    return [_labeled(pair, known[pair.prompt_id, pair.target, pair.words_a, pair.words_b]) for pair in pairs]


def _labeled(pair: HeldoutPair, found: list[Preference]) -> HeldoutPair:
    if not found:
        raise PrefloopError(f"Held-out pair of {pair.prompt_id}: no label has its target and its lengths.")
    preference = found.pop(0)
    if pair.gold_a is None:
        return pair
    a, b = rubric([preference.prompt] * 2, preference.items)
    return replace(pair, gold_a=a.value, gold_b=b.value)


def _words(completion: Completion) -> int:
    return len(completion.text.split())


def main(arguments: list[str] | None = None) -> int:
    """0 when every figure holds, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run, with report.json")
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    try:
        report = json.loads((options.run / "report.json").read_text())
        figures = recompute(options.run)
        found = [d for name, value in figures.items() for d in differences(report.get(name), value, name)]
    except (OSError, ValueError, KeyError, PrefloopError) as error:
        figures, found = {}, [f"{options.run}: {error}"]
    answer = {"run": str(options.run), "holds": bool(figures) and not found, "differences": found, "figures": figures}
    print(json.dumps(answer, indent=None if options.json else 2))
    return 0 if answer["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
