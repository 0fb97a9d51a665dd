"""How stages that learn from comparisons measure themselves on held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from prefloop.evals.reward_model import HeldoutPair, measure
from prefloop.run import Run
from prefloop.types import to_json


def heldout_figures(run: Run, pairs: Sequence[HeldoutPair], gain: float = 1.0, bias: float = 0.0) -> dict[str, Any]:
    """Accuracy, controls and calibration of pairs with raw scores; with gain * raw + bias they become samples.jsonl."""
    (run.path / "samples.jsonl").unlink(missing_ok=True)
    scored = [replace(p, score_a=gain * p.score_a + bias, score_b=gain * p.score_b + bias) for p in pairs]
    for pair in scored:
        run.sample(0, asdict(pair))
    report = to_json(measure(scored, gain=gain))
    figures = "accuracy accuracy_low accuracy_high ceiling longer_wins shorter_wins ece reliability margin"
    return {name: report[name] for name in figures.split()} | {"pairs_heldout": report["n"]}
