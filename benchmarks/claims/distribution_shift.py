"""Do fresh labels mend what a frozen reward model spoils? distribution_shift.py --seeds 5

A policy N(mu, I) over the points of gold_toy.py climbs a reward model for four rounds, each on a leash to where it then
stands. Frozen: one reward model, of 4,000 pairs of the first policy's answers. Refreshed: in each round 1,000 pairs of
the answers of that round's policy, as many of all rounds before, and a new reward model: equally many labels. Asked:
does gold turn over along the rounds, that is, end well below its best? Control: refreshed, but from the second round on
each label is a coin; what the fresh answers alone, without their labels, would do.
Tuned on seeds from 100 up. Writes distribution_shift.json, .svg and .png beside this file; exits 0 only where the claim
holds.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from gold_toy import WIDTH, World, fit, network
from matplotlib.figure import Figure
from result import claim
from torch import Tensor

matplotlib.use("Agg")
CLAIM = "Over four rounds gold turns over with a frozen reward model and not with refreshed ones of as many labels."
SOURCE = "Bai et al. 2022 (arXiv 2204.05862), section 4.5; Gao et al. 2022 (arXiv 2210.10760)"
TURN = 0.3  # stds of gold below the best round that are a turn-over
OF_SEEDS = 0.8
ROUNDS, PAIRS = 4, 1000
NEAR, COST, LEASH = 4.7, 1.0, 0.6
CLIMB_STEPS, CLIMB_LR, DRAWS = 60, 0.1, 512
ARMS = ("frozen", "refreshed", "shuffled")
Pairs = tuple[Tensor, Tensor]


def labeled(world: World, mu: Tensor, count: int, draw: torch.Generator) -> Pairs:
    """Pairs [2, count, 16] of the policy's answers, and 1 where gold prefers the first [count]."""
    sides = mu + torch.randn(2, count, WIDTH, generator=draw)
    gold = world.score(sides)
    return sides, (gold[0] > gold[1]).float()


def mixed(new: Pairs, before: Sequence[Pairs], draw: torch.Generator) -> Pairs:
    """As many pairs of all rounds before as of the new one, at most."""
    if not before:
        return new
    sides, target = torch.cat([pairs[0] for pairs in before], dim=1), torch.cat([pairs[1] for pairs in before])
    chosen = torch.randperm(len(target), generator=draw)[: len(new[1])]
    return torch.cat([new[0], sides[:, chosen]], dim=1), torch.cat([new[1], target[chosen]])


def climbed(weights: list[Tensor], mu: Tensor, noise: Tensor) -> Tensor:
    """Where the policy ends that maximises its mean score, in stds of the answers at mu, less LEASH times the KL to
    there."""
    with torch.no_grad():
        std = network(weights, mu + noise).std()
    now = mu
    for _ in range(CLIMB_STEPS):
        here = now.clone().requires_grad_()
        objective = network(weights, here + noise).mean() / std - LEASH * ((here - mu) ** 2).sum() / 2
        (slope,) = torch.autograd.grad(objective, here)
        now = now + CLIMB_LR * slope
    return now


def along(world: World, arm: str, draw: torch.Generator) -> dict[str, list[float]]:
    """Gold, the reward model's score (stds of the first policy's answers) and KL to the first policy after each round,
    which begin at 0."""
    mu = torch.zeros(WIDTH)
    found: dict[str, list[float]] = {"gold": [0.0], "proxy": [0.0], "kl": [0.0]}
    known: list[Pairs] = []
    weights = fit(*labeled(world, mu, ROUNDS * PAIRS, draw), 1, draw, steps=400, lr=1e-2) if arm == "frozen" else []
    for number in range(ROUNDS):
        if arm != "frozen":
            new = labeled(world, mu, PAIRS, draw)
            sides, target = mixed(new, known, draw)
            known.append(new)
            if arm == "shuffled" and number:
                target = torch.randint(2, target.shape, generator=draw).float()
            weights = fit(sides, target, 1, draw, steps=400, lr=1e-2)
        noise = torch.randn(DRAWS, WIDTH, generator=draw)
        mu = climbed(weights, mu, noise)
        fresh, first = torch.randn(2, 8192, WIDTH, generator=draw)
        with torch.no_grad():
            scores, start = network(weights, mu + fresh), network(weights, first)
        found["gold"].append(float(world.score(mu + fresh).mean()))
        found["proxy"].append(float((scores.mean() - start.mean()) / start.std()))
        found["kl"].append(float(mu @ mu) / 2)
    return found


def run_seed(seed: int) -> dict[str, Any]:
    """One gold reward; each arm's course, and how far gold ends below its best."""
    world = World(seed, 2**14, near=NEAR, cost=COST)
    found = {arm: along(world, arm, torch.Generator().manual_seed(1000 + seed)) for arm in ARMS}
    fall = {arm: max(found[arm]["gold"]) - found[arm]["gold"][-1] for arm in ARMS}
    return {"seed": seed, **found, "fall": fall}


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is how much higher gold ends when refreshed."""

    def share(arm: str, turns: bool) -> float:
        return statistics.mean((row["fall"][arm] > TURN) == turns for row in per_seed)

    def ends(arm: str) -> list[float]:
        return [row["refreshed"]["gold"][-1] - row[arm]["gold"][-1] for row in per_seed]

    parts = {
        "frozen turns over": share("frozen", True) >= OF_SEEDS,
        "while its score rises": all(np.all(np.diff(row["frozen"]["proxy"]) > 0) for row in per_seed),
        "refreshed does not": share("refreshed", False) >= OF_SEEDS,
        "refreshed ends higher": all(gain > 0 for gain in ends("frozen")),
        "shuffled labels do not": statistics.median(ends("shuffled")) > TURN,
    }
    return {
        "id": "distribution_shift",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"gold ends more than {TURN} stds below its best round in >= {OF_SEEDS:.0%} of seeds when frozen "
        f"while the score rises, and in at most {1 - OF_SEEDS:.0%} when refreshed, which ends higher in every seed; by "
        f"shuffled labels it ends more than {TURN} lower (median)",
        "per_seed": per_seed,
        "turned_over": {arm: share(arm, True) for arm in ARMS},
        "refreshed_over": {arm: statistics.median(ends(arm)) for arm in ("frozen", "shuffled")},
        "parts": parts,
        "median": statistics.median(ends("frozen")),
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """Gold, the reward model's score and KL along the rounds, a line a seed, their median bold."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    titles = {"gold": "Gold reward, stds", "proxy": "Score by the reward model, stds", "kl": "KL to the start, nats"}
    for axes, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for place, arm in enumerate(ARMS):
            lines = np.array([row[arm][key] for row in answer["per_seed"]])
            axes.plot(lines.T, color=f"C{place}", alpha=0.25)
            axes.plot(np.median(lines, axis=0), color=f"C{place}", marker="o", label=arm)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xticks(range(ROUNDS + 1))
        axes.set_xlabel("rounds done")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=8)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    torch.set_num_threads(1)
    return claim("distribution_shift", __doc__, run_seed, verdict, draw, arguments, seeds=5)


if __name__ == "__main__":
    sys.exit(main())
