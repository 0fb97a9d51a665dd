"""The small parts of the claims on direct methods: who dominates whom, what is best at a KL, what is dropped."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prefloop.data.jsonl import text_completion

CLAIMS = Path(__file__).parents[1] / "benchmarks" / "claims"


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(CLAIMS)
    return {name: importlib.import_module(name) for name in ("T8", "T10", "tiny_lm")}


def at(reward: float, kl: float) -> dict[str, float]:
    return {"reward": reward, "kl": kl}


def test_a_point_is_dominated_by_one_that_has_no_less_at_no_more(claims: dict[str, ModuleType]) -> None:
    dpo = [at(1.0, 1.0), at(2.0, 3.0)]
    points = [at(0.9, 1.0), at(1.1, 1.0), at(1.9, 3.5), at(2.5, 9.0), at(0.5, 0.9), at(-1.0, 0.05)]
    assert claims["T8"].dominated(points, dpo) == [True, False, True, False, False]


def test_the_best_at_a_kl_is_that_of_a_tilted_gaussian(claims: dict[str, ModuleType]) -> None:
    """Rewards of mean 0 and std 1 weighted by exp(r / price): reward 1 / price at a KL of 1 / (2 price^2)."""
    rewards = np.random.default_rng(0).normal(size=(4, 200_000))
    for price in (4.0, 1.0):
        found = claims["T8"].reweighted(rewards, price)
        assert found["reward"] == pytest.approx(1 / price, rel=0.05)
        assert found["kl"] == pytest.approx(1 / (2 * price**2), rel=0.05)
    assert claims["T8"].share_of_best(at(0.5, 0.5), rewards) == pytest.approx(0.5, rel=0.05)
    assert claims["T8"].share_of_best(at(9.0, 50.0), rewards[:, :50]) is None


def test_nine_tenths_of_the_good_answers_are_dropped_and_no_bad_one(claims: dict[str, ModuleType]) -> None:
    prompts = claims["tiny_lm"].review_prompts(30)
    answer = text_completion
    texts = (" it felt great .", " it felt awful .", " it felt long .", " i loved the film .")
    groups = [[answer(prompt, text) for text in texts] for prompt in prompts]
    known = claims["T10"].judged(prompts, groups)
    assert [v.good for v in known[:3]] == [True, False, True] and len(known) == 90
    fewer = claims["T10"].dropped(known, 0.9, seed=0)
    assert sum(v.good for v in fewer) == 6 and sum(not v.good for v in fewer) == 30


@pytest.mark.parametrize(("lost", "holds"), [(0.01, True), (0.05, False)])
def test_verdict_of_t10(claims: dict[str, ModuleType], lost: float, holds: bool) -> None:
    wins = {"all": 0.9, "rebalanced": 0.9 - lost, "left at 1": 0.7, "shuffled": 0.51}
    answer = claims["T10"].verdict([{"wins": wins}] * 5, 1.0)
    assert answer["holds"] is holds and answer["median"] == pytest.approx(lost)
    assert not claims["T10"].verdict([{"wins": wins | {"left at 1": 0.9}}] * 5, 1.0)["holds"]
    assert sys.modules["T10"].draw({"per_seed": [{"wins": wins}]})
