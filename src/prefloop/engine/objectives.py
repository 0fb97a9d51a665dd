"""Losses by name: each reads a forest's outputs and hands plain tensors to ops. Sums over a forest divided by totals
of the whole batch, so that gradients do not depend on how the batch was split.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from prefloop.data.forest import Forest, Totals
from prefloop.engine.direct_losses import DIRECT
from prefloop.engine.outputs import LossFn, LossOut, Outputs
from prefloop.engine.paired import accuracy, preferred
from prefloop.engine.verbs import Read
from prefloop.ops import losses
from prefloop.ops.kl import k3
from prefloop.ops.masking import masked_sum
from prefloop.types import PrefloopError


def sft(out: Outputs, forest: Forest, totals: Totals) -> LossOut:
    """Mean negative log-likelihood of the demonstrated tokens."""
    loss = losses.sft(out.need("logprobs"), forest.field("weight")) / totals.tokens
    return LossOut(loss, {"loss/train": loss.detach()})


def bradley_terry(
    out: Outputs,
    forest: Forest,
    totals: Totals,
    *,
    label_smoothing: float = 0.0,
    floor: float = 0.0,
    centre: float = 0.0,
) -> LossOut:
    """Bradley-Terry over pairs of branches, their weighted mean; each branch is encoded once (Ouyang et al. 2022).
    `label_smoothing`, `floor`: see ops.losses. `centre`: see _centred."""
    scores = out.need("scores")
    made = preferred(scores, forest, totals, label_smoothing=label_smoothing, floor=floor)
    return _centred(made, scores, forest, totals, centre)


def plackett_luce(out: Outputs, forest: Forest, totals: Totals, *, centre: float = 0.0) -> LossOut:
    """Plackett-Luce over rankings of branches, their weighted mean (ops.losses). `centre`: see _centred."""
    scores, ranked = out.need("scores"), forest.rankings
    loss = (
        losses.plackett_luce(scores[ranked.branch], rank=ranked.rank, ranking=ranked.ranking, weight=ranked.weight)
        / totals.rankings
    )
    made = LossOut(loss, {"loss/train": loss.detach(), "accuracy/train": accuracy(scores, forest, totals)})
    return _centred(made, scores, forest, totals, centre)


def process(out: Outputs, forest: Forest, totals: Totals) -> LossOut:
    """Binary cross-entropy at the step ends, their weighted mean; labels may be soft (Lightman et al. 2023; Wang et al.
    2023, see ops.losses). Steps without a label are not read."""
    scores, label, weight = out.need("steps"), forest.field("label"), forest.field("weight")
    loss = losses.binary(scores, label, weight) / totals.tokens
    right = ((scores.detach() > 0) == (label > 0.5)).float()
    return LossOut(loss, {"loss/train": loss.detach(), "accuracy/train": masked_sum(right, weight) / totals.tokens})


def _centred(made: LossOut, scores: Tensor, forest: Forest, totals: Totals, coef: float) -> LossOut:
    """The loss with coef times the pairs' mean squared sum of scores, which is logged as centre/train."""
    if not coef:
        return made
    pairs = forest.pairs
    penalty = losses.centring(scores[pairs.a], scores[pairs.b], pairs.weight) / totals.pairs
    loss = made.loss + coef * penalty
    return LossOut(loss, {**made.metrics, "loss/train": loss.detach(), "centre/train": penalty.detach()})


def ppo(
    out: Outputs,
    forest: Forest,
    totals: Totals,
    *,
    clip: float,
    value_clip: float,
    value_coef: float,
    importance_cap: float | None = None,
) -> LossOut:
    """Clipped policy and value losses, means over all response tokens (Schulman et al. 2017; Ziegler et al. 2019).
    `importance_cap`: see _importance."""
    mask, logprobs = forest.field("weight"), out.need("logprobs")
    importance = _importance(logprobs, forest, importance_cap)
    policy = losses.ppo_policy(
        logprobs, forest.field("old_logprobs"), forest.field("advantages") * importance, mask, clip=clip
    )
    value = losses.ppo_value(
        out.need("values"), forest.field("old_values"), forest.field("returns"), mask, clip=value_clip
    )
    count = totals.tokens
    metrics = _policy_metrics(policy, count) | {
        "value/loss": value.loss.detach() / count,
        "value/clip_fraction": value.clip_fraction.detach() / count,
    }
    if importance_cap is not None:
        metrics["sampler/importance"] = masked_sum(importance, mask) / count
    return LossOut((policy.loss + value_coef * value.loss) / count, metrics)


def grpo(
    out: Outputs, forest: Forest, totals: Totals, *, clip: float, kl_coef: float, importance_cap: float | None = None
) -> LossOut:
    """Clipped policy loss and kl_coef times k3 to the reference, means over each response's tokens, then over responses
    (Shao et al. 2024, arXiv 2402.03300, eq. 3). Without the field old_logprobs the ratio is 1: one update a rollout."""
    logprobs, mask = out.need("logprobs"), forest.field("weight")
    share = mask / _lengths(forest)[forest.branch_of] / totals.branches
    importance = _importance(logprobs, forest, importance_cap)
    advantages = forest.field("advantages") * importance
    policy = losses.ppo_policy(logprobs, _old(logprobs, forest), advantages, share, clip=clip)
    loss = policy.loss
    if kl_coef:
        loss = loss + kl_coef * masked_sum(k3(logprobs, forest.field("reference_logprobs")), share)
    metrics = _policy_metrics(policy, 1.0) | _gap(logprobs, forest, totals)
    if importance_cap is not None:
        metrics["sampler/importance"] = masked_sum(importance, share)
    return LossOut(loss, metrics)


def rloo(out: Outputs, forest: Forest, totals: Totals, *, clip: float, importance_cap: float | None = None) -> LossOut:
    """Clipped policy loss with one ratio a response, the mean over responses (Ahmadian et al. 2024, arXiv 2402.14740,
    eq. 7, whose one update a rollout has no ratio). The leash is in the advantages."""
    logprobs, mask = out.need("logprobs"), forest.field("weight")
    lengths = _lengths(forest)
    advantages = forest.per_branch(forest.field("advantages") * mask) / lengths.clamp(min=1e-9)
    log_ratio = forest.per_branch(logprobs - _old(logprobs, forest))
    live = lengths > 0
    importance = _importance(logprobs, forest, importance_cap, whole=True)
    policy = losses.ppo_policy(log_ratio, torch.zeros_like(log_ratio), advantages * importance, live, clip=clip)
    metrics = _policy_metrics(policy, totals.branches) | _gap(logprobs, forest, totals)
    if importance_cap is not None:
        metrics["sampler/importance"] = masked_sum(importance, live) / totals.branches
    return LossOut(policy.loss / totals.branches, metrics)


def _lengths(forest: Forest) -> Tensor:
    """Read tokens [B] of each response; a method that judges whole responses has none that responses share."""
    if bool((forest.branch_of < 0).any()):
        raise PrefloopError("Group methods read answers only, not turns that several answers share; weigh those 0.")
    return forest.per_branch(forest.field("weight"))


def _old(logprobs: Tensor, forest: Forest) -> Tensor:
    return forest.fields.get("old_logprobs", logprobs.detach())


def _importance(logprobs: Tensor, forest: Forest, cap: float | None, *, whole: bool = False) -> Tensor:
    """min(pi_old(y) / pi_sampler(y), cap) of each token [R], or of each `whole` answer [B]: what a gradient is
    multiplied by when the sampler's probabilities are not the learner's (Yao et al. 2025, truncated importance
    sampling). 1 without a cap."""
    if cap is None:
        return logprobs.new_ones(())
    apart = (_old(logprobs, forest) - forest.field("sampled_logprobs")).detach()
    return (forest.per_branch(apart) if whole else apart).exp().clamp(max=cap)


def _policy_metrics(policy: losses.PolicyLoss, count: float) -> dict[str, Tensor]:
    return {
        "policy/loss": policy.loss.detach() / count,
        "policy/clip_fraction": policy.clip_fraction.detach() / count,
        "policy/approx_kl": policy.approx_kl.detach() / count,
        "policy/ratio_max": policy.ratio_max.detach(),
    }


def _gap(logprobs: Tensor, forest: Forest, totals: Totals) -> dict[str, Tensor]:
    apart = (logprobs.detach() - forest.field("sampled_logprobs")).abs()
    return {"sampler/logprob_gap": masked_sum(apart, forest.field("weight")) / totals.tokens}


LOSSES: dict[str, tuple[LossFn, frozenset[Read]]] = {
    "sft": (sft, frozenset({"logprobs"})),
    "bradley_terry": (bradley_terry, frozenset({"scores"})),
    "plackett_luce": (plackett_luce, frozenset({"scores"})),
    "process": (process, frozenset({"steps"})),
    **{name: (loss, frozenset[Read]({"logprobs"})) for name, loss in DIRECT.items()},
    "grpo": (grpo, frozenset({"logprobs"})),
    "rloo": (rloo, frozenset({"logprobs"})),
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
