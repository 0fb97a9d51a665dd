"""What the scripts of claims on labels call a claim that holds, and what their toys do."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks" / "claims"
sys.path[:0] = [str(FOLDER)]  # as for a script that runs there


def script(name: str) -> Any:
    return SimpleNamespace(**runpy.run_path(str(FOLDER / name)))


t5, active = script("T5.py"), script("active_sampling.py")
quality, cheap = script("data_quality.py"), script("cheap_ensembles.py")


def grouped(gains: list[float], control: float = 0.0, seconds: float = 3.0) -> dict[str, Any]:
    rows = [
        {
            "rankings": {"grouped": 0.5, "shuffled": 0.5 + gain},
            "pairs": {"grouped": 0.5, "shuffled": 0.5 + control + (-1) ** place * 0.001},
            "rankings, sgd": {"grouped": 0.5, "shuffled": 0.5},
        }
        for place, gain in enumerate(gains)
    ]
    costs = {arm: {"tokens": [1.0, 3.0], "seconds": [1.0, seconds]} for arm in ("grouped", "shuffled")}
    found: dict[str, Any] = t5.verdict(rows, costs, {}, 1.0)
    return found


def test_the_claim_on_ranking_batches() -> None:
    good = [0.004, 0.006, 0.008, 0.002]
    assert grouped(good)["holds"] and grouped(good)["median"] == pytest.approx(0.005)
    assert not grouped([0.004, -0.006, 0.008, -0.005])["holds"]
    assert not grouped(good, control=0.004)["holds"]
    assert not grouped(good, seconds=5.0)["holds"]


def test_arms_differ_in_the_order_of_pairs_alone() -> None:
    torch = t5.torch
    bags, groups = t5.rankings(
        torch.ones(t5.WORDS),
        t5.prompts((4, 9), 4000, torch.Generator().manual_seed(0)),
        torch.Generator().manual_seed(1),
    )
    arms = {arm: t5.batches(groups, arm, torch.Generator().manual_seed(2)) for arm in t5.ARMS}
    flat = {arm: sorted(pair for batch in made for pair in batch) for arm, made in arms.items()}
    assert flat["grouped"] == flat["shuffled"] == sorted(pair for group in groups for pair in group)
    assert [len(b) for b in arms["grouped"]] == [len(b) for b in arms["shuffled"]]
    assert arms["grouped"] != arms["shuffled"] and len(bags) == max(map(max, flat["grouped"])) + 1


def test_the_claim_on_active_sampling() -> None:
    def holds(way: float, random: float) -> bool:
        rows = [{"ratio": {"disagreement": way + e, "near-miss": 0.7, "random": random + e}} for e in (-0.1, 0, 0.1)]
        return bool(active.verdict(rows, 1.0)["holds"])

    assert holds(0.7, 1.05) and not holds(0.85, 1.05) and not holds(0.7, 0.8)


def test_labels_needed_by_hand() -> None:
    curve = np.linspace(0.5, 0.75, active.ROUNDS)  # 0.01 a batch of 32
    assert active.needed(curve, 0.5) == 32 and active.needed(curve, 0.515) == 32 + 48
    assert active.needed(curve, 0.9) == active.COUNTS[-1]


def test_the_claim_on_data_quality() -> None:
    def row(free: float, dear: float, precision: float, flagged: float, shift: float) -> dict[str, Any]:
        cost = {"0": {"1": [0.9] * 5, "5": [0.85, 0.9, 0.9 - free - shift, 0.9, 0.9]}}
        cost["8"] = {"1": [0.9] * 5, "5": [0.85, 0.9, 0.9 - dear - shift, 0.9, 0.9]}
        cures = {"drop": 0.02 + shift, "correct": 0.04, "drop at random": -0.01, "correct at random": 0.01}
        flipped = {"flagged": 0.16, "precision": precision, "recall": 0.7} | cures
        right = {"flagged": flagged, "precision": None, "recall": None} | dict.fromkeys(cures, 0.0)
        return {"cost": cost, "errors": {"flipped": flipped, "right": right, "doubt": right}}

    def holds(free: float = 0.02, dear: float = -0.05, precision: float = 0.85, flagged: float = 0.0) -> bool:
        rows = [row(free, dear, precision, flagged, shift) for shift in (-0.001, 0.0, 0.001)]
        return bool(quality.verdict(rows, 1.0)["holds"])

    assert holds()
    assert not holds(free=-0.01) and not holds(dear=0.01) and not holds(precision=0.7) and not holds(flagged=0.05)


def test_majorities_are_right_as_often_as_they_should_be() -> None:
    truth = np.tile([0.0, 1.0], 20_000)
    for repeats, expected in ((1, 0.2), (3, 3 * 0.04 * 0.8 + 0.008), (5, 0.05792)):
        wrong = quality.majority(truth, 0.2, repeats, np.random.default_rng(0)) != truth
        assert wrong.mean() == pytest.approx(expected, abs=0.005)


def test_the_claim_on_cheap_ensembles() -> None:
    def holds(**changes: float) -> bool:
        usual = {"full, worst": 1.3, "heads, worst": 1.2, "same start, average": 1.0, "full, average": 0.3} | changes
        clean = usual | {"heads, worst": 1.1}
        return bool(cheap.verdict([{"flips": usual, "clean": clean}] * 3, 1.0)["holds"])

    assert holds()
    wrong = {"full, worst": 1.1, "heads, worst": 1.04, "same start, average": 0.9, "full, average": 0.9}
    assert not any(holds(**{way: value}) for way, value in wrong.items())
