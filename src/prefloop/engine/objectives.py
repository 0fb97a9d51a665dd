"""Losses by name: each reads a forest's outputs and hands plain tensors to ops. Sums over a forest divided by totals
of the whole batch, so that gradients do not depend on how the batch was split.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prefloop.data.forest import Forest, Totals
from prefloop.engine.direct_losses import DIRECT
from prefloop.engine.outputs import LossFn, LossOut, Outputs
from prefloop.engine.paired import accuracy, preferred
from prefloop.engine.verbs import Read
from prefloop.ops import losses
from prefloop.ops.kl import k2, k3
from prefloop.ops.masking import masked_sum
from prefloop.ops.off_policy import importance_weights, not_too_far
from prefloop.types import PrefloopError


def sft(out: Outputs, forest: Forest, totals: Totals, *, coef: float = 1.0) -> LossOut:
    """coef times the mean negative log-likelihood of the demonstrated tokens, which is logged."""
    loss = losses.sft(out.need("logprobs"), forest.field("weight")) / totals.tokens
    return LossOut(coef * loss, {"loss/train": loss.detach()})


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
    value_clip: float | None,
    value_coef: float,
    kl_form: str | None = None,
    kl_coef: float = 0.0,
    importance_cap: float | None = None,
) -> LossOut:
    """`ppo_policy` and value_coef times `value` of one model, which both read (Ziegler et al. 2019)."""
    policy = ppo_policy(out, forest, totals, clip=clip, kl_form=kl_form, kl_coef=kl_coef, importance_cap=importance_cap)
    values = value(out, forest, totals, value_clip=value_clip)
    return LossOut(policy.loss + value_coef * values.loss, {**policy.metrics, **values.metrics})


def ppo_policy(
    out: Outputs,
    forest: Forest,
    totals: Totals,
    *,
    clip: float,
    kl_form: str | None = None,
    kl_coef: float = 0.0,
    importance_cap: float | None = None,
) -> LossOut:
    """Clipped policy loss, the mean over all response tokens (Schulman et al. 2017), and where a form is given kl_coef
    times the leash (see leash). `importance_cap`: see _importance."""
    mask, logprobs = forest.field("weight"), out.need("logprobs")
    importance = _importance(logprobs, forest, importance_cap)
    policy = losses.ppo_policy(
        logprobs, forest.field("old_logprobs"), forest.field("advantages") * importance, mask, clip=clip
    )
    loss = policy.loss / totals.tokens
    if kl_form is not None:
        loss = loss + kl_coef * leash(out, forest, mask / totals.tokens, kl_form)
    metrics = _policy_metrics(policy, totals.tokens)
    if importance_cap is not None:
        metrics["sampler/importance"] = masked_sum(importance, mask) / totals.tokens
    return LossOut(loss, metrics)


def value(out: Outputs, forest: Forest, totals: Totals, *, value_clip: float | None) -> LossOut:
    """Clipped value loss, the mean over all response tokens: a critic's own (Stiennon et al. 2020)."""
    found = losses.ppo_value(
        out.need("values"),
        forest.field("old_values"),
        forest.field("returns"),
        forest.field("weight"),
        clip=value_clip,
    )
    metrics = {"value/loss": found.loss.detach(), "value/clip_fraction": found.clip_fraction.detach()}
    return LossOut(found.loss / totals.tokens, {name: sums / totals.tokens for name, sums in metrics.items()})


def leash(out: Outputs, forest: Forest, share: Tensor, form: str) -> Tensor:
    """KL to the reference as a loss, weighted by `share` [R] as the policy loss is; `form` is that of KLConfig.

    k2 pulls towards the KL(pi || ref) of each token, k3 towards KL(ref || pi), exact is the whole vocabulary's
    KL(pi || ref) at each place; none of these sees what a token does to later ones. k2_response, k2 of the response's
    summed log-ratio, has the gradient of KL(pi || ref) of whole responses, on-policy (ops/kl.py)."""
    if form == "exact":
        return masked_sum(out.need("exact_kl"), share)
    logprobs, reference = out.need("logprobs"), forest.field("reference_logprobs")
    if form == "k2_response":
        read = forest.field("weight") != 0
        sums = (forest.per_branch(torch.where(read, column, 0.0)) for column in (logprobs, reference))
        return masked_sum(k2(*sums), forest.per_branch(share) / _lengths(forest).clamp(min=1e-9))
    return masked_sum({"k2": k2, "k3": k3}[form](logprobs, reference), share)


def group(
    out: Outputs,
    forest: Forest,
    totals: Totals,
    *,
    clip: float,
    clip_high: float | None = None,
    ratio: str = "token",
    surrogate: str = "clipped",
    mean: str = "response",
    longest: int = 0,
    kl_form: str = "k3",
    kl_coef: float = 0.0,
    correction: Mapping[str, Any] | None = None,
) -> LossOut:
    """Policy loss of the group methods (docs/methods/group.md says which takes what), by default GRPO's (Shao et al.
    2024, arXiv 2402.03300, eq. 3), and kl_coef times the leash: the mean that the loss is, of its tokens' sums where
    the ratio is that of a sequence, whose gradient is such a sum too.

    `ratio` pi / pi_old: of each "token"; one a "sequence", the product (RLOO: Ahmadian et al. 2024, arXiv 2402.14740);
    or "geometric", its |y|-th root (GSPO: Zheng et al. 2025, arXiv 2507.18071, eq. 7). `surrogate`: "clipped" or
    "weighted", see ops.losses. `mean` over tokens of each "response", then over responses; over all "token"s (DAPO);
    "constant", the sum over responses times `longest` (Dr. GRPO). `correction`: see _corrected. Without the field
    old_logprobs the ratio is 1: one update a rollout.
    """
    logprobs, mask = out.need("logprobs"), forest.field("weight")
    lengths = _lengths(forest)[forest.branch_of]
    tokens, constant = max(totals.tokens, 1e-9), float(totals.branches * longest)
    share = mask / {"response": lengths * totals.branches, "token": mask.new_tensor(tokens)}.get(mean, constant)
    by_token = log_ratio = logprobs - _old(logprobs, forest)
    if ratio != "token":
        log_ratio = forest.per_branch(log_ratio)[forest.branch_of] / (lengths if ratio == "geometric" else 1)
    advantages, weights = _corrected(forest.field("advantages"), logprobs, forest, correction)
    if surrogate == "weighted":
        high = clip if clip_high is None else clip_high
        policy = losses.weighted_policy(logprobs, log_ratio, advantages, share, clip=clip, clip_high=high)
    else:
        zeros = torch.zeros_like(log_ratio)
        policy = losses.ppo_policy(log_ratio, zeros, advantages, share, clip=clip, clip_high=clip_high)
    loss = policy.loss
    if kl_coef:
        loss = loss + kl_coef * leash(out, forest, share * lengths if ratio == "sequence" else share, kl_form)
    whole = tokens / constant if mean == "constant" else 1.0  # what the shares add up to
    apart = 0.5 * by_token.detach() ** 2  # whatever the ratio, so that it is nats a token
    metrics = _policy_metrics(policy._replace(approx_kl=masked_sum(apart, share)), whole)
    metrics |= {"policy/loss": policy.loss.detach()}
    if weights is not None:
        metrics["sampler/importance"] = masked_sum(weights, share) / whole
    return LossOut(loss, metrics | _gap(logprobs, forest, totals))


def _corrected(
    advantages: Tensor, logprobs: Tensor, forest: Forest, correction: Mapping[str, Any] | None
) -> tuple[Tensor, Tensor | None]:
    """Advantages times the weights of what another policy sampled (ops.off_policy), by the keys of CorrectionConfig;
    and these weights [R].

    A weight is pi_old / mu of a token, or of a whole answer; whether an answer is too far is asked of pi itself."""
    if correction is None:
        return advantages, None
    sampled = forest.field("sampled_logprobs")
    apart = _old(logprobs, forest) - sampled
    if correction["level"] == "sequence":
        apart = forest.per_branch(apart)[forest.branch_of]
    weights = importance_weights(apart, beyond=correction["beyond"], low=correction["low"], high=correction["high"])
    if correction["drop_above"] is not None:
        lengths = _lengths(forest).clamp(min=1e-9)
        far, signs = forest.per_branch(logprobs - sampled) / lengths, forest.per_branch(advantages)
        weights = weights * not_too_far(far, signs, limit=correction["drop_above"])[forest.branch_of]
    return advantages * weights, weights


def _lengths(forest: Forest) -> Tensor:
    """Read tokens [B] of each response; a method that judges whole responses has none that responses share."""
    if bool((forest.branch_of < 0).any()):
        raise PrefloopError("Group methods read answers only, not turns that several answers share; weigh those 0.")
    return forest.per_branch(forest.field("weight"))


def _old(logprobs: Tensor, forest: Forest) -> Tensor:
    return forest.fields.get("old_logprobs", logprobs.detach())


def _importance(logprobs: Tensor, forest: Forest, cap: float | None) -> Tensor:
    """min(pi_old(y) / pi_sampler(y), cap) of each token [R]: what a gradient is multiplied by when the sampler's
    probabilities are not the learner's (Yao et al. 2025, truncated importance sampling). 1 without a cap."""
    if cap is None:
        return logprobs.new_ones(())
    apart = _old(logprobs, forest) - forest.field("sampled_logprobs")
    return importance_weights(apart, beyond="truncate", high=cap)


def _policy_metrics(policy: losses.PolicyLoss, count: float) -> dict[str, Tensor]:
    return {
        "policy/loss": policy.loss.detach() / count,
        "policy/clip_fraction": policy.clip_fraction.detach() / count,
        "policy/approx_kl": policy.approx_kl.detach() / count,
        "policy/ratio_max": policy.ratio_max.detach(),
    }


def _gap(logprobs: Tensor, forest: Forest, totals: Totals) -> dict[str, Tensor]:
    apart = (logprobs.detach() - forest.field("sampled_logprobs")).abs()
    return {"sampler/logprob_gap": masked_sum(apart, forest.field("weight")) / max(totals.tokens, 1e-9)}


LOSSES: dict[str, tuple[LossFn, frozenset[Read]]] = {
    "sft": (sft, frozenset({"logprobs"})),
    "bradley_terry": (bradley_terry, frozenset({"scores"})),
    "plackett_luce": (plackett_luce, frozenset({"scores"})),
    "process": (process, frozenset({"steps"})),
    **{name: (loss, frozenset[Read]({"logprobs"})) for name, loss in DIRECT.items()},
    "group": (group, frozenset({"logprobs"})),
    "ppo": (ppo, frozenset({"logprobs", "values"})),
    "ppo_policy": (ppo_policy, frozenset({"logprobs"})),
    "value": (value, frozenset({"values"})),
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
