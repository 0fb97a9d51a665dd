"""A toy whose gold reward is known, for T13, T14 and distribution_shift: answers are points, reward models small
networks on gold labels.

An answer is a point x of N(0, I_16), of norm 3.9 on average. Gold is a random two-layer network less
cost * relu(|x| - near)^2, with mean 0 and std 1 over answers. A reward model is a network with 32 hidden units, fitted
by Bradley-Terry on pairs that gold labels, of which a share is flipped. The policy is the best of n answers.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefloop.ops.losses import bradley_terry

WIDTH, HIDDEN, GOLD_HIDDEN = 16, 32, 32
STEPS, LR = 200, 3e-3
Array = NDArray[np.float64]


class World:
    """A gold reward of its own by seed, and a pool of answers [N, 16] with their gold scores [N]."""

    def __init__(self, seed: int, answers: int, near: float, cost: float) -> None:
        self.seed, self.near, self.cost = seed, near, cost
        draw = torch.Generator().manual_seed(seed)
        self.inner = torch.randn(WIDTH, GOLD_HIDDEN, generator=draw) / math.sqrt(WIDTH)
        self.outer = torch.randn(GOLD_HIDDEN, generator=draw) / math.sqrt(GOLD_HIDDEN)
        self.answers = torch.randn(answers, WIDTH, generator=draw)
        raw = self._raw(self.answers)
        self.mean, self.std = raw.mean(), raw.std()
        self.gold: Array = self.score(self.answers).double().numpy()

    def _raw(self, points: Tensor) -> Tensor:
        far = torch.relu(points.norm(dim=-1) - self.near)
        return torch.tanh(points @ self.inner) @ self.outer - self.cost * far**2

    def score(self, points: Tensor) -> Tensor:
        """Gold scores [...] of points [..., 16]."""
        return (self._raw(points) - self.mean) / self.std

    def members(self, pairs: int, flips: float, data: int, count: int) -> Array:
        """[count, N] scores of the pool by `count` reward models that share their pairs and differ in their start.

        `data` draws pairs and flips. Each member has mean 0 and std 1 over the pool.
        """
        draw = torch.Generator().manual_seed(int(np.random.SeedSequence([self.seed, data, pairs]).generate_state(1)[0]))
        sides = torch.randn(2, pairs, WIDTH, generator=draw)
        gold = self.score(sides)
        flipped = torch.rand(pairs, generator=draw) < flips
        weights = fit(sides, ((gold[0] > gold[1]) ^ flipped).float(), count, draw)
        with torch.no_grad():
            raw = torch.cat([network(weights, part) for part in self.answers.split(8192)], dim=1).double().numpy()
        return np.asarray((raw - raw.mean(axis=1, keepdims=True)) / raw.std(axis=1, keepdims=True))


def fit(
    sides: Tensor, target: Tensor, count: int, draw: torch.Generator, *, steps: int = STEPS, lr: float = LR
) -> list[Tensor]:
    """Weights of `count` networks that `draw` starts, fitted to pairs: sides [2, N, 16], target [N], 1 where the first
    is better."""
    pairs = len(target)
    weights = [
        (torch.randn(count, WIDTH, HIDDEN, generator=draw) / math.sqrt(WIDTH)).requires_grad_(),
        torch.zeros(count, 1, HIDDEN).requires_grad_(),
        (torch.randn(count, HIDDEN, 1, generator=draw) / math.sqrt(HIDDEN)).requires_grad_(),
    ]
    wanted = target.expand(count, pairs).reshape(-1)
    optimizer = torch.optim.Adam(weights, lr=lr)
    ones, zeros = torch.ones_like(wanted), torch.zeros_like(wanted)
    for _ in range(steps):
        first, second = (network(weights, side).reshape(-1) for side in sides)
        loss = bradley_terry(first, second, target=wanted, margin=zeros, weight=ones) / pairs
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights


def network(weights: list[Tensor], points: Tensor) -> Tensor:
    """[M, N] outputs of M networks at points [N, 16]."""
    inner, bias, outer = weights
    return (torch.tanh(points @ inner + bias) @ outer).squeeze(-1)
