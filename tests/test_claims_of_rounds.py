"""The claims T17 and distribution_shift: their small parts, and that their verdicts can fail."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

CLAIMS = Path(__file__).parents[1] / "benchmarks" / "claims"


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CLAIMS)
    for name in ("T17", "distribution_shift", "gold_toy", "tiny_lm", "result"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def rows(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((CLAIMS / f"{name}.json").read_text())["per_seed"]
    assert [row["seed"] for row in found] == [0, 1, 2, 3, 4]
    return found


def shrunk(row: dict[str, Any]) -> None:
    row["gain_over"]["random"] = 0.1


def lost(row: dict[str, Any]) -> None:
    row["dice_over_random"] = 0.3


def fewer(row: dict[str, Any]) -> None:
    row["random"]["kept"] -= 1


def bent(row: dict[str, Any]) -> None:
    row["max_minus_median"][-1] = 0.0


@pytest.mark.parametrize("harm", [shrunk, lost, fewer, bent])
def test_t17_holds_as_committed_and_fails_where_a_part_does(harm: Callable[[dict[str, Any]], None]) -> None:
    import T17

    found = rows("T17")
    assert T17.verdict(found, 1.0)["holds"]
    worse = copy.deepcopy(found)
    for row in worse:
        harm(row)
    assert not T17.verdict(worse, 1.0)["holds"]


def test_distribution_shift_holds_as_committed_and_fails_where_two_seeds_do() -> None:
    import distribution_shift as claim

    found = rows("distribution_shift")
    assert claim.verdict(found, 1.0)["holds"]
    for arm, fall in (("frozen", 0.0), ("refreshed", 1.0)):
        worse = copy.deepcopy(found)
        worse[0]["fall"][arm] = fall
        assert claim.verdict(worse, 1.0)["holds"]  # four of five
        worse[1]["fall"][arm] = fall
        assert not claim.verdict(worse, 1.0)["holds"]


def test_arms_have_equally_many_labels_and_replay_half() -> None:
    import distribution_shift as claim

    draw = torch.Generator().manual_seed(0)
    world = claim.World(0, 64, near=claim.NEAR, cost=claim.COST)
    first = claim.labeled(world, torch.zeros(claim.WIDTH), 30, draw)
    assert first[0].shape == (2, 30, claim.WIDTH)
    assert torch.equal(first[1] == 1, world.score(first[0][0]) > world.score(first[0][1]))
    assert claim.mixed(first, [], draw) is first
    second = claim.labeled(world, torch.ones(claim.WIDTH), 20, draw)
    sides, target = claim.mixed(second, [first], draw)
    assert sides.shape == (2, 40, claim.WIDTH) and len(target) == 40
    assert torch.equal(sides[:, :20], second[0])
    old = {tuple(point.tolist()) for point in first[0][0]}
    assert all(tuple(point.tolist()) in old for point in sides[0, 20:])


def test_the_policy_stops_where_the_leash_balances_the_slope() -> None:
    """For a nearly linear model the mean score rises by the slope w; standardised it is 1 / std, so mu = w / LEASH."""
    import distribution_shift as claim

    direction = torch.zeros(claim.WIDTH)
    direction[0] = 1e-3
    weights = [direction.view(1, -1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)]
    noise = torch.randn(4096, claim.WIDTH, generator=torch.Generator().manual_seed(1))
    mu = claim.climbed(weights, torch.zeros(claim.WIDTH), noise)
    assert float(mu[0]) == pytest.approx(1 / claim.LEASH, rel=0.05)
    assert float(mu[1:].abs().max()) < 1e-3
