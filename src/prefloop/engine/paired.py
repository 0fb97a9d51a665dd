"""What losses on pairs of branches share, of reward models and policies: Bradley-Terry of scores, and its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor

from prefloop.data.forest import Forest, Totals
from prefloop.engine.outputs import LossOut
from prefloop.ops import losses


def preferred(
    scores: Tensor,
    forest: Forest,
    totals: Totals,
    *,
    label_smoothing: float = 0.0,
    floor: float = 0.0,
    gap: float = 0.0,
) -> LossOut:
    """Bradley-Terry over pairs of branches with scores [B], their weighted mean; `gap` is added to every margin."""
    pairs = forest.pairs
    loss = (
        losses.bradley_terry(
            scores[pairs.a],
            scores[pairs.b],
            target=pairs.target,
            margin=pairs.margin + gap,
            weight=pairs.weight,
            label_smoothing=label_smoothing,
            floor=floor,
        )
        / totals.pairs
    )
    return LossOut(loss, {"loss/train": loss.detach(), "accuracy/train": accuracy(scores, forest, totals)})


def accuracy(scores: Tensor, forest: Forest, totals: Totals) -> Tensor:
    """Share of the pairs' weight whose preferred branch scores higher; ties of labels or scores count a half."""
    pairs = forest.pairs
    a, b = scores[pairs.a], scores[pairs.b]
    right = ((a > b) == (pairs.target > 0.5)).float() * pairs.weight
    return torch.where((pairs.target == 0.5) | (a == b), 0.5 * pairs.weight, right).sum() / totals.pairs
