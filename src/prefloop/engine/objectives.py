"""Losses by name: each reads a forest's outputs and hands plain tensors to ops. Sums over a forest divided by totals
of the whole batch, so that gradients do not depend on how the batch was split.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prefloop.data.forest import Forest, Totals
from prefloop.engine.verbs import Read
from prefloop.ops import losses
from prefloop.types import PrefloopError


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the model said of a forest: log-probs, entropy and values [R], scores [B]; only what was asked for."""

    logprobs: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
    scores: Tensor | None = None

    def need(self, name: Read) -> Tensor:
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise PrefloopError(f"The loss needs {name}, which this model was not asked for or has no head for.")
        return value


@dataclass(frozen=True, slots=True)
class LossOut:
    """A forest's share of the loss, and of metrics: shares add up, those named *_max take the maximum."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


LossFn = Callable[..., LossOut]


def sft(out: Outputs, forest: Forest, totals: Totals) -> LossOut:
    """Mean negative log-likelihood of the demonstrated tokens."""
    loss = losses.sft(out.need("logprobs"), forest.field("weight")) / totals.tokens
    return LossOut(loss, {"loss/train": loss.detach()})


def bradley_terry(out: Outputs, forest: Forest, totals: Totals) -> LossOut:
    """Bradley-Terry over pairs of branches, their weighted mean; each branch is encoded once (Ouyang et al. 2022)."""
    scores, pairs = out.need("scores"), forest.pairs
    a, b = scores[pairs.a], scores[pairs.b]
    loss = losses.bradley_terry(a, b, target=pairs.target, margin=pairs.margin, weight=pairs.weight) / totals.pairs
    right = ((a > b) == (pairs.target > 0.5)).float() * pairs.weight
    right = torch.where((pairs.target == 0.5) | (a == b), 0.5 * pairs.weight, right)
    return LossOut(loss, {"loss/train": loss.detach(), "accuracy/train": right.sum() / totals.pairs})


def ppo(out: Outputs, forest: Forest, totals: Totals, *, clip: float, value_clip: float, value_coef: float) -> LossOut:
    """Clipped policy and value losses, means over all response tokens (Schulman et al. 2017; Ziegler et al. 2019)."""
    mask = forest.field("weight")
    policy = losses.ppo_policy(
        out.need("logprobs"), forest.field("old_logprobs"), forest.field("advantages"), mask, clip=clip
    )
    value = losses.ppo_value(
        out.need("values"), forest.field("old_values"), forest.field("returns"), mask, clip=value_clip
    )
    count = totals.tokens
    metrics = {
        "policy/loss": policy.loss.detach() / count,
        "policy/clip_fraction": policy.clip_fraction.detach() / count,
        "policy/approx_kl": policy.approx_kl.detach() / count,
        "policy/ratio_max": policy.ratio_max.detach(),
        "value/loss": value.loss.detach() / count,
        "value/clip_fraction": value.clip_fraction.detach() / count,
    }
    return LossOut((policy.loss + value_coef * value.loss) / count, metrics)


LOSSES: dict[str, tuple[LossFn, frozenset[Read]]] = {
    "sft": (sft, frozenset({"logprobs"})),
    "bradley_terry": (bradley_terry, frozenset({"scores"})),
    "ppo": (ppo, frozenset({"logprobs", "values"})),
}


def resolve_loss(name: str) -> tuple[LossFn, frozenset[Read]]:
    """A loss of the table, or "module:function" of the user's own, whose `reads` attribute names what it needs."""
    if name in LOSSES:
        return LOSSES[name]
    module, _, function = name.partition(":")
    try:
        loss: LossFn = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise PrefloopError(
            f"Unknown loss {name!r} ({error}): take one of {', '.join(LOSSES)} or 'module:function'."
        ) from None
    return loss, frozenset(getattr(loss, "reads", {"logprobs"}))
