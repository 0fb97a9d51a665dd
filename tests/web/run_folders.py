"""Run folders as stages leave them, without having trained anything."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HOSTILE = "<img src=x onerror=\"document.title='broken'\"> **bold** \u202egnp.exe $\\href{javascript:alert(1)}{x}$"
STAGES = ("sft", "collect", "label", "reward", "ppo", "evaluate")


def write_stage(folder: Path, config: Mapping[str, Any], result: Mapping[str, Any] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"stage": folder.name, "started": "2026-01-01T10:00:00+00:00"}))
    (folder / "config.json").write_text(json.dumps(config))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ppo_row(step: int, steps: int, rng: random.Random, *, bent: bool) -> dict[str, float]:
    """Reward rises all the way; preference rises too or, where it is bent, falls again from the middle on."""
    share = step / steps
    liked = 0.5 + 0.5 * min(share, 0.45) - (0.55 * max(0.0, share - 0.45) if bent else 0)
    return {
        "step": step,
        "reward/score": 2.2 * (1 - math.exp(-3 * share)) + rng.gauss(0, 0.08),
        "kl/response": 6 * (1 - math.exp(-5 * share)) + rng.gauss(0, 0.25),
        "kl/target": 6.0,
        "kl/coef": 0.1 + 0.05 * share,
        "gold/win_rate": liked + rng.gauss(0, 0.02),
        "policy/entropy": 2.1 - 0.9 * share + rng.gauss(0, 0.03),
        "length/tokens": 42 + 15 * share + rng.gauss(0, 2),
        "length/stopped_share": min(1.0, 0.8 + 0.15 * share + rng.gauss(0, 0.01)),
    }


def write_run(
    root: Path, *, steps: int = 60, done: int | None = None, bent: bool = True, finished: bool = True
) -> Path:
    """Every stage; `done` of the `steps` of ppo. Not `finished`: ppo has not ended and nothing was evaluated."""
    rng = random.Random(0)
    root.mkdir(parents=True, exist_ok=True)
    (root / "recipe.json").write_text(json.dumps({"name": root.name, "stages": STAGES}))
    write_stage(root / "sft", {"epochs": 2}, {"seconds": 301.0})
    write_lines(
        root / "sft" / "metrics.jsonl", [{"step": i, "loss/train": 2 * 0.97**i + rng.gauss(0, 0.03)} for i in range(60)]
    )
    write_stage(root / "collect", {"samples": 4}, {"seconds": 222.0, "completions": 24})
    write_lines(root / "collect" / "samples.jsonl", [row | {"model": "m"} for row in answers("before", 6)])
    write_stage(root / "label", {}, {"seconds": 9.0, "judgments": 120, "simulated": True})
    measured = {"accuracy": 0.714, "accuracy_low": 0.66, "accuracy_high": 0.76, "longer_wins": 0.58, "ceiling": 0.81}
    write_stage(root / "reward", {"epochs": 1}, {"seconds": 402.0, **measured})
    learned = [min(1.0, 0.5 + 0.25 * (1 - math.exp(-i / 15)) + rng.gauss(0, 0.04)) for i in range(50)]
    rows = [{"step": i, "accuracy/train": value, "loss/train": 0.69 - (value - 0.5)} for i, value in enumerate(learned)]
    write_lines(root / "reward" / "metrics.jsonl", rows)
    write_stage(root / "ppo", {"steps": steps}, {"seconds": 1211.0, "kl_last_third": 5.8} if finished else None)
    rows = [ppo_row(step, steps, rng, bent=bent) for step in range(steps if done is None else done)]
    write_lines(root / "ppo" / "metrics.jsonl", rows)
    rollouts = [{**row, "prompt_id": row["prompt"]["id"]} for row in answers("rollout", 6)]
    write_lines(root / "ppo" / "samples.jsonl", [{k: v for k, v in row.items() if k != "prompt"} for row in rollouts])
    if finished:
        judged = {"win_rate": 0.62, "win_rate_low": 0.55, "win_rate_high": 0.69, "n_prompts": 6}
        write_stage(root / "evaluate", {}, {"seconds": 181.0, **judged, "win_rate_length_controlled": 0.6})
        rows = [row | {"model": model} for model in ("policy", "sft", "base") for row in answers(model, 6)]
        write_lines(root / "evaluate" / "samples.jsonl", rows)
    return root


def answers(who: str, count: int) -> list[dict[str, Any]]:
    """Two answers to each prompt; the first one's is hostile."""
    texts = ["{who} says: water it *less*, and give it more light.\n\n1. Look at it.\n2. Wait.", "{who}: it depends."]
    return [
        {
            "step": 0,
            "prompt": {
                "id": f"p{i}",
                "slice": "everyday",
                "messages": [{"role": "user", "content": f"My plant's leaves turn yellow ({i}). What should I do?"}],
            },
            "completion": {
                "text": f"{who} {HOSTILE}" if i == 0 else text.replace("{who}", who),
                "finish_reason": "stop" if k else "length",
            },
            "score": 0.4 + 0.1 * k,
        }
        for i in range(count)
        for k, text in enumerate(texts)
    ]
