"""The small parts of the claims on PPO: the controller's formula is worked out anew, verdicts follow their figures."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prefloop.ops.kl import AdaptiveKL

FOLDER = Path(__file__).parents[1] / "benchmarks" / "claims"


def script(name: str) -> ModuleType:
    sys.path.insert(0, str(FOLDER))  # as for a script that runs there
    spec = importlib.util.spec_from_file_location(f"claim_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_formula_is_found_in_a_controllers_rows_and_missed_in_others() -> None:
    t3 = script("T3")
    controller = AdaptiveKL(t3.LEASH.coef, t3.TARGET, t3.LEASH.horizon * t3.EPISODES, t3.LEASH.clip)
    rows = []
    for kl in (0.0, 2.0, 5.5, 6.5, 30.0):
        rows.append({"kl/coef": controller.coef, "kl/exact": kl})
        controller = controller.update(kl, t3.EPISODES)
    assert t3.formula(rows) < 1e-12
    rows[3]["kl/exact"] = 6.6
    assert t3.formula(rows) > 1e-3


@pytest.mark.parametrize(("lows", "holds"), [((0.6, 0.6, 0.6, 0.6, 0.4), True), ((0.6, 0.6, 0.6, 0.4, 0.4), False)])
def test_a_seed_that_fails_is_named(lows: tuple[float, ...], holds: bool) -> None:
    t7 = script("T7")
    rows: list[dict[str, Any]] = [
        {"seed": i, "ppo": {"win_rate": low + 0.05, "low": low}, "shuffled": {"win_rate": 0.5, "low": 0.45}}
        for i, low in enumerate(lows)
    ]
    answer = t7.verdict(rows, 1.0)
    assert answer["holds"] is holds and answer["failed"] == [i for i, low in enumerate(lows) if low < 0.5]
    for row in rows:
        row["shuffled"] = {"win_rate": 0.7, "low": 0.6}
    assert not t7.verdict(rows, 1.0)["holds"]


@pytest.mark.parametrize(
    ("ptx", "beta", "holds"),
    [
        ((0.9, 0.95), (0.3, 0.0), True),
        ((0.9, 0.8), (0.3, 0.0), False),
        ((0.4, 1.0), (0.3, 0.0), False),
        ((0.9, 1.0), (0.8, 0.95), False),
        ((0.9, 1.0), (0.8, 0.5), True),
    ],
)
def test_recovery_counts_at_an_equal_score_only(
    ptx: tuple[float, float], beta: tuple[float, float], holds: bool
) -> None:
    t6 = script("T6")
    arms = {
        name: dict(zip(("recovered", "gain_kept"), pair, strict=True)) for name, pair in (("ptx", ptx), ("beta", beta))
    }
    assert t6.verdict([{"seed": 0, "forgot": 1.0, **arms}] * 3, 1.0)["holds"] is holds
    assert not t6.verdict([{"seed": 0, "forgot": -0.1, **arms}] * 3, 1.0)["holds"]
