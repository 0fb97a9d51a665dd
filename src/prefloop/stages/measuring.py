"""How stages that learn from comparisons measure themselves on held-out ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.evals.reward_model import heldout_pairs, measure
from prefloop.run import Run
from prefloop.types import Preference, to_json


def heldout_figures(
    run: Run, heldout: Sequence[Preference], scores: Mapping[tuple[str, str], float], gain: float
) -> dict[str, Any]:
    """Accuracy, controls and calibration of scores by (prompt id, answer id); the pairs become samples.jsonl."""
    pairs = heldout_pairs(heldout, scores)
    (run.path / "samples.jsonl").unlink(missing_ok=True)
    for pair in pairs:
        run.sample(0, dataclasses.asdict(pair))
    report = to_json(measure(pairs, gain=gain))
    figures = "accuracy accuracy_low accuracy_high ceiling longer_wins shorter_wins ece reliability margin"
    return {name: report[name] for name in figures.split()} | {"pairs_heldout": report["n"]}
