"""Losses of policies on comparisons and verdicts: implicit rewards of branches, handed to ops.direct and ops.losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prefloop.data.forest import Forest, Totals
from prefloop.engine.outputs import LossFn, LossOut, Outputs
from prefloop.engine.paired import accuracy, preferred
from prefloop.ops import direct, losses
from prefloop.ops.masking import masked_sum
from prefloop.types import PrefloopError

REFERENCE = "reference_logprobs"


@dataclass(frozen=True, slots=True)
class Answers:
    """Log-probs of answers by policy and, where it is read, reference, summed over their tokens, in nats; and their
    tokens. All [B]."""

    logprob: Tensor
    reference: Tensor | None
    length: Tensor

    @property
    def ratio(self) -> Tensor:
        if self.reference is None:
            raise PrefloopError(f"The loss reads the field {REFERENCE!r}, which these trees do not carry.")
        return self.logprob - self.reference

    @staticmethod
    def of(out: Outputs, forest: Forest) -> Answers:
        logprobs = out.need("logprobs")
        kept = forest.fields.get(REFERENCE)
        length = forest.per_branch(torch.ones_like(logprobs)).clamp(min=1)
        return Answers(forest.per_branch(logprobs), None if kept is None else forest.per_branch(kept), length)


def implicit_rewards(loss: str, answers: Answers, params: Mapping[str, Any]) -> Tensor:
    """What a loss takes for the reward of each answer [B]: its lead is what the labels are fitted with. Of a loss that
    is not in DIRECT the log-ratio, or where there is no reference the log-prob."""
    beta = float(params.get("beta", 1.0))
    match loss:
        case "dpo" | "robust" | "hinge" | "exo":
            kind, alpha = params.get("divergence", "reverse_kl"), params.get("divergence_alpha", 0.5)
            return beta * direct.divergence_score(answers.ratio, kind, alpha)
        case "dpo_norm" | "ipo_norm":
            return beta * answers.ratio / answers.length
        case "simpo":
            return beta * answers.logprob / answers.length
        case "cpo" | "slic":
            return beta * answers.logprob
        case "orpo":
            return direct.log_odds(answers.logprob / answers.length)
        case _ if loss in DIRECT or answers.reference is not None:
            return beta * answers.ratio
        case _:
            return answers.logprob


def likelihood(name: str, out: Outputs, forest: Forest, totals: Totals, **params: Any) -> LossOut:
    """Bradley-Terry over implicit rewards, with margins and gamma taken from the lead.

    dpo: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; with label_smoothing conservative DPO (Mitchell 2023); with
    length_penalty labels may favour length by so much a token, which the policy does not learn (Park et al. 2024, arXiv
    2403.19159). dpo_norm: log-ratios a token (Lambert et al. 2024, arXiv 2411.15124, eq. 6). simpo: Meng et al. 2024
    (arXiv 2405.14734), eq. 6. cpo: Xu et al. 2024 (arXiv 2401.08417), eq. 5. orpo: Hong et al. 2024 (arXiv 2403.07691),
    eq. 6 and 7, beta their lambda.
    """
    answers = Answers.of(out, forest)
    rewards = implicit_rewards(name, answers, params)
    labelled = rewards + params.get("length_penalty", 0.0) * answers.length
    smoothing, gap = params.get("label_smoothing", 0.0), params.get("gamma", 0.0)
    loss = preferred(labelled, forest, totals, label_smoothing=smoothing, gap=gap).loss
    return _watched(params["beta"] * loss if name == "orpo" else loss, rewards, answers, out, forest, totals, params)


def dpo_ranked(out: Outputs, forest: Forest, totals: Totals, **params: Any) -> LossOut:
    """Plackett-Luce of whole rankings over DPO's implicit rewards (Rafailov et al. 2023, appendix A.3)."""
    answers, ranked = Answers.of(out, forest), forest.rankings
    rewards = implicit_rewards("dpo_ranked", answers, params)
    loss = losses.plackett_luce(rewards[ranked.branch], rank=ranked.rank, ranking=ranked.ranking, weight=ranked.weight)
    return _watched(loss / totals.rankings, rewards, answers, out, forest, totals, params)


PairLoss = Callable[[Tensor, Tensor, Tensor, Mapping[str, Any]], Tensor]
CERTAIN: dict[str, PairLoss] = {
    "robust": lambda a, b, margin, keys: direct.robust(a - b - margin, keys["label_smoothing"]),
    "hinge": lambda a, b, margin, keys: direct.hinge(a - b - margin),
    "slic": lambda a, b, margin, keys: direct.hinge(a - b - margin),
    "ipo": lambda a, b, margin, keys: direct.ipo((a - b) / keys["beta"], keys["beta"]),
    "ipo_norm": lambda a, b, margin, keys: direct.ipo((a - b) / keys["beta"], keys["beta"]),
    "nca": lambda a, b, margin, keys: direct.nca(a, b),
    "apo_zero": lambda a, b, margin, keys: direct.apo_zero(a, b),
    "apo_down": lambda a, b, margin, keys: direct.apo_down(a, b),
}
"""Of the implicit rewards of the preferred and the other answer, and the margin, all [N]: the loss of each pair."""
SOFT: dict[str, PairLoss] = {
    "exo": lambda a, b, target, keys: direct.exo(a - b, target + keys["label_smoothing"] * (1 - 2 * target)),
    "sppo": lambda a, b, target, keys: direct.sppo(a / keys["beta"], b / keys["beta"], target, keys["beta"]),
}
"""Of both rewards and the probability that the first is preferred."""


def paired(name: str, out: Outputs, forest: Forest, totals: Totals, **params: Any) -> LossOut:
    """A loss of CERTAIN or SOFT, its weighted mean over pairs of branches; ops.direct has the equations."""
    answers, pairs = Answers.of(out, forest), forest.pairs
    rewards = implicit_rewards(name, answers, params)
    a, b = rewards[pairs.a], rewards[pairs.b]
    if name in SOFT:
        loss = masked_sum(SOFT[name](a, b, pairs.target, params), pairs.weight)
    else:
        loss_of = CERTAIN[name]
        loss = direct.over_labels(
            lambda won, lost: loss_of(won, lost, pairs.margin, params), a, b, pairs.target, pairs.weight
        )
    return _watched(loss / totals.pairs, rewards, answers, out, forest, totals, params)


def _watched(
    loss: Tensor,
    rewards: Tensor,
    answers: Answers,
    out: Outputs,
    forest: Forest,
    totals: Totals,
    params: Mapping[str, Any],
) -> LossOut:
    """The loss with params' nll times the chosen answers' mean negative log-likelihood a token (Pang et al. 2024, arXiv
    2404.19733, eq. 1), and what is logged of every loss on pairs: means over the pairs' weight, by soft labels."""
    pairs = forest.pairs
    share = pairs.weight / totals.pairs

    def chosen(values: Tensor, *, rejected: bool = False) -> Tensor:
        first, other = values[pairs.a], values[pairs.b]
        target = 1 - pairs.target if rejected else pairs.target
        return (share * (target * first + (1 - target) * other)).sum()

    found = {"accuracy/train": accuracy(rewards, forest, totals)}
    if nll := params.get("nll", 0.0):
        likelihood = chosen(-answers.logprob / answers.length)
        loss = loss + nll * likelihood
        found["nll/chosen"] = likelihood
    found["margin/train"] = chosen(rewards) - chosen(rewards, rejected=True)
    known = {"logp": answers.logprob}
    if answers.reference is not None:
        known["logratio"] = answers.ratio
        found |= _apart(out, forest, totals)
    for name, values in known.items():
        found |= {f"{name}/chosen": chosen(values), f"{name}/rejected": chosen(values, rejected=True)}
    return LossOut(loss, {"loss/train": loss.detach(), **{name: value.detach() for name, value in found.items()}})


def _apart(out: Outputs, forest: Forest, totals: Totals) -> dict[str, Tensor]:
    apart = (out.need("logprobs").detach() - forest.field(REFERENCE)).abs()
    return {"logratio/token": masked_sum(apart, forest.field("weight")) / totals.tokens}


def kto(
    out: Outputs,
    forest: Forest,
    totals: Totals,
    *,
    beta: float,
    desirable: float,
    undesirable: float,
    baseline: float,
    counts: tuple[int, int],
) -> LossOut:
    """Kahneman-Tversky optimisation of answers whose field `good` is 1 or 0, the mean over answers (ops.direct).
    baseline: z0 of the whole batch; counts: its good and bad answers, for what is logged."""
    answers = Answers.of(out, forest)
    ratio = answers.ratio
    good = forest.per_branch(forest.field("good")) / answers.length
    values = direct.kto(ratio, good, baseline, beta=beta, desirable=desirable, undesirable=undesirable)
    loss = values.sum() / totals.branches
    right = ((ratio.detach() > baseline) == (good > 0.5)).float().sum() / totals.branches
    metrics = {"loss/train": loss.detach(), "accuracy/train": right, **_apart(out, forest, totals)}
    for name, share in (("chosen", good / max(counts[0], 1)), ("rejected", (1 - good) / max(counts[1], 1))):
        metrics[f"logp/{name}"] = (share * answers.logprob.detach()).sum()
        metrics[f"logratio/{name}"] = (share * ratio.detach()).sum()
    metrics["margin/train"] = beta * (metrics["logratio/chosen"] - metrics["logratio/rejected"])
    return LossOut(loss, metrics)


def weighted(
    out: Outputs, forest: Forest, totals: Totals, *, parts: Mapping[str, tuple[float, Mapping[str, Any]]]
) -> LossOut:
    """A weighted sum of losses on pairs: of each its weight and its parameters. Logged is what the first one says, and
    every part's own loss."""
    made = {name: DIRECT[name](out, forest, totals, **params) for name, (_, params) in parts.items()}
    loss = sum((weight * made[name].loss for name, (weight, _) in parts.items()), start=torch.zeros(()))
    own = {f"loss/{name}": part.loss.detach() for name, part in made.items()}
    first = next(iter(made.values()))
    return LossOut(loss, {**first.metrics, **own, "loss/train": loss.detach()})


DIRECT: dict[str, LossFn] = {
    **{name: partial(likelihood, name) for name in ("dpo", "dpo_norm", "simpo", "cpo", "orpo")},
    **{name: partial(paired, name) for name in (*CERTAIN, *SOFT)},
    "dpo_ranked": dpo_ranked,
    "kto": kto,
    "weighted": weighted,
}
