"""Rounds of the loop: what each came from, what it cost, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefloop.configs.pipeline import TRAINED
from prefloop.data.rows import read_jsonl
from prefloop.evals.winrate import summarize

SAMPLED = ("collect", *TRAINED, "evaluate")


def all_rounds(root: Path) -> list[dict[str, Any]]:
    """Figures of the rounds of a run that have begun, in order; none where it has no rounds."""
    folders = [path for path in (root / "rounds").glob("*") if path.name.isdigit()]
    return [round_figures(path) for path in sorted(folders, key=lambda path: int(path.name))]


def round_figures(folder: Path) -> dict[str, Any]:
    """Of one round's folder, from its finished stages:

    `trained`: each stage that trained the policy in order, with the checkpoint that it began from, which is its KL
    reference, its reward, and where it ended. `comparisons`: what was learned from, of this round (new) and of those
    before (old). `minutes`: wall clock. `labels`: judgments. `tokens`: sampled by the policy and its baselines.
    `proxy`, `watch`: mean score of the last third of the rollouts by the reward that was trained on and by the judge
    that only watched. `win_rate` and `kl` (nats per response, to the first baseline): of the evaluation. A figure
    whose stage is not there, or not finished, is null.
    """
    done = {path.parent.name: path.parent for path in sorted(folder.glob("*/result.json"))}
    results = {name: _object(path / "result.json") for name, path in done.items()}
    configs = {name: _object(path / "config.json") for name, path in done.items()}
    planned = _object(folder.parents[1] / "recipe.json").get("stages", ())
    order = [name for name in planned if name in TRAINED and name in done]
    rollouts = next((done[name] for name in reversed(order) if name not in ("direct", "rejection")), None)
    evaluation = summarize(_rows(done["evaluate"], "samples")) if "evaluate" in done else None
    return {
        "round": int(folder.name),
        "trained": [
            {
                "stage": name,
                "from": configs[name]["policy"],
                "reward": configs[name].get("reward"),
                "to": results[name]["checkpoint"],
            }
            for name in order
        ],
        "comparisons": _object(folder / "comparisons.json") or None,
        "minutes": sum(result["seconds"] for result in results.values()) / 60,
        "labels": results["label"]["judgments"] if "label" in done else 0,
        "tokens": sum(_tokens(done[name]) for name in SAMPLED if name in done),
        "proxy": _last_third(rollouts, "reward/score") if rollouts else None,
        "watch": _last_third(rollouts, "gold/score") if rollouts else None,
        "kl": evaluation and evaluation["kl_to_sft"],
        "win_rate": evaluation and evaluation["win_rate"],
        "win_rate_low": evaluation and evaluation["win_rate_low"],
        "win_rate_high": evaluation and evaluation["win_rate_high"],
    }


def _last_third(stage: Path, name: str) -> float | None:
    values = [row[name] for row in _rows(stage, "metrics") if name in row]
    last = values[-max(1, len(values) // 3) :]
    return sum(last) / len(last) if last else None


def _tokens(stage: Path) -> int:
    rows = (row for row in _rows(stage, "samples") if "completion" in row and "from" not in row)
    found = (row["completion"]["segments"] for row in rows)
    return sum(len(segment["tokens"]) for segments in found for segment in segments if segment["author"] == "policy")


def _rows(stage: Path, name: str) -> list[dict[str, Any]]:
    path = stage / f"{name}.jsonl"
    return [row for _, row in read_jsonl(path)] if path.exists() and path.stat().st_size else []


def _object(path: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found
