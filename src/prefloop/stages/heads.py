"""Further heads on a reward model's trunk: members of an ensemble that a single pass of the trunk scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from prefloop.configs.reward import RewardConfig
from prefloop.data.forest import Totals, build_forest
from prefloop.engine.local import LocalLearner
from prefloop.engine.objectives import resolve_loss
from prefloop.engine.outputs import Outputs
from prefloop.engine.schedule import derived_seed, rate, take
from prefloop.models.heads import ScalarHead, reward_head
from prefloop.types import Tree


def further_heads(
    learner: LocalLearner, trees: Sequence[Tree], config: RewardConfig, params: Mapping[str, float]
) -> list[ScalarHead]:
    """config.heads - 1 heads, fitted on the states that the trunk, as it is, has for the training trees: the same loss,
    batches and schedule as the first head's, but with a start and an order of the data of each one's own (linear-layer
    ensembles: Zhang et al. 2024, arXiv 2401.16635, who let all heads move the trunk)."""
    if config.heads == 1:
        return []
    states = learner.pooled(trees)
    return [_fitted(states, trees, config, params, member) for member in range(1, config.heads)]


def _fitted(
    states: Sequence[torch.Tensor],
    trees: Sequence[Tree],
    config: RewardConfig,
    params: Mapping[str, float],
    member: int,
) -> ScalarHead:
    optim, seed = config.optim, derived_seed(config.seed, "head", member)
    head = reward_head(states[0].shape[1], seed).to(states[0].device)
    optimizer = torch.optim.AdamW(
        head.parameters(), betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
    )
    function, _ = resolve_loss(config.loss)
    examples = len(trees) * config.epochs
    total = math.ceil(examples / config.batch)
    for step in range(total):
        done = step * config.batch
        places = take(range(len(trees)), done, min(config.batch, examples - done), seed)
        batch = [trees[place] for place in places]
        scores = head(torch.cat([states[place] for place in places]))
        result = function(Outputs(scores=scores), build_forest(batch, scores.device), Totals.of(batch), **params)
        optimizer.zero_grad()
        result.loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        torch.nn.utils.clip_grad_norm_(head.parameters(), optim.max_grad_norm)
        optimizer.param_groups[0]["lr"] = optim.head_lr * rate(optim, step, total)
        optimizer.step()
    return head


@contextmanager
def headed(learner: LocalLearner, head: ScalarHead) -> Iterator[None]:
    """Inside, the learner scores by another head."""
    own, learner.head = learner.head, head
    try:
        yield
    finally:
        learner.head = own
