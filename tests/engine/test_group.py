"""Group methods: what their papers say of each other, on gradients of every token; and answers that teach nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefloop.configs.group import METHODS, GroupConfig
from prefloop.configs.rollout import KLConfig
from prefloop.data.forest import Totals, build_forest
from prefloop.engine.objectives import group
from prefloop.engine.outputs import LossOut, Outputs
from prefloop.ops.advantages import group_advantages
from prefloop.types import Node, Tree

LENGTHS = ((3, 1, 5), (2, 7, 4))
EQUAL = ((4, 4, 4), (4, 4, 4))
SCORES = torch.tensor([[1.0, 0.0, 0.0], [0.6, 2.0, -1.0]])


def batch(
    advantages: torch.Tensor,
    lengths: Sequence[Sequence[int]] = LENGTHS,
    spread: float = 0.0,
    seed: int = 0,
    weight: Sequence[float] = (1.0,) * 3,
) -> tuple[torch.Tensor, list[Tree]]:
    """Log-probs, and trees whose old ones differ by up to `spread` nats; the reference's are a nat below."""
    generator = torch.Generator().manual_seed(seed)
    trees, new = [], []
    for index, row in enumerate(lengths):
        nodes = [Node(parent=-1, tokens=(1, 2), author="prompt")]
        for n, advantage, own in zip(row, advantages[index].tolist(), weight, strict=True):
            logprobs = -3 * torch.rand(n, generator=generator)
            old = logprobs + spread * (2 * torch.rand(n, generator=generator) - 1)
            fields = {"old_logprobs": tuple(old.tolist()), "sampled_logprobs": tuple(old.tolist())}
            fields |= {"advantages": (advantage,) * n, "weight": (own,) * n}
            fields |= {"reference_logprobs": tuple((logprobs - 1).tolist())}
            nodes.append(Node(parent=0, tokens=(3,) * n, author="policy", fields=fields))
            new += [logprobs] * bool(own)
        trees.append(Tree(id=str(index), nodes=tuple(nodes)))
    return torch.cat(new).requires_grad_(), trees


def gradient(logprobs: torch.Tensor, trees: list[Tree], **params: Any) -> torch.Tensor:
    loss = made(logprobs, trees, **params).loss
    return torch.autograd.grad(loss, logprobs)[0]


def made(logprobs: torch.Tensor, trees: list[Tree], **params: Any) -> LossOut:
    return group(Outputs(logprobs=logprobs), build_forest(trees), Totals.of(trees), **{"clip": 0.2, **params})


def by(method: str, **rest: Any) -> dict[str, Any]:
    """What the loss of a method is called with."""
    config = GroupConfig(out="run", method=method, max_tokens=10)  # type: ignore[arg-type]
    names = ("clip", "clip_high", "ratio", "surrogate", "mean")
    return {name: getattr(config, name) for name in names} | {"longest": 10} | rest


def compared(method: str) -> torch.Tensor:
    config = GroupConfig(out="run", method=method)  # type: ignore[arg-type]
    return group_advantages(SCORES, centre=config.centre, scale=config.scale)


@pytest.mark.parametrize("lengths", [LENGTHS, EQUAL])
def test_dr_grpo_times_g_over_g_less_1_is_rloo(lengths: Sequence[Sequence[int]]) -> None:
    """Of whole gradients: times G / (G - 1), and the constant that Dr. GRPO divides an answer's sum by."""
    dr_grpo = gradient(*batch(compared("dr-grpo"), lengths), **by("dr-grpo"))
    rloo = gradient(*batch(compared("rloo"), lengths), **by("rloo"))
    torch.testing.assert_close(dr_grpo * (3 / 2) * 10, rloo)
    grpo = gradient(*batch(compared("grpo"), lengths), **by("grpo"))
    assert not torch.allclose(grpo / grpo.norm(), rloo / rloo.norm(), atol=1e-2)


def test_of_equal_lengths_dapo_and_gspo_are_grpo_and_dr_grpo_is_it_up_to_a_constant() -> None:
    """With one update a rollout and the same advantages: what tells the methods apart is lengths and clips."""
    advantages = compared("grpo")
    grpo = gradient(*batch(advantages, EQUAL), **by("grpo"))
    for method, scale in (("dapo", 1.0), ("gspo", 1.0), ("cispo", 1.0), ("reinforce++", 1.0), ("dr-grpo", 4 / 10)):
        torch.testing.assert_close(gradient(*batch(advantages, EQUAL), **by(method)), grpo * scale)
    differing = gradient(*batch(advantages), **by("grpo"))
    assert not torch.allclose(gradient(*batch(advantages), **by("dapo")), differing, atol=1e-3)
    torch.testing.assert_close(gradient(*batch(advantages), **by("gspo")), differing)


@given(st.integers(0, 99))
def test_within_the_clip_range_cispo_has_the_gradient_of_ppo_and_beyond_it_still_one(seed: int) -> None:
    logprobs, trees = batch(compared("grpo"), spread=0.15, seed=seed)
    weighted = gradient(logprobs, trees, **by("cispo"))
    torch.testing.assert_close(weighted, gradient(logprobs, trees, **by("dapo", clip=0.3, clip_high=0.3)))
    logprobs, trees = batch(compared("grpo"), spread=4.0, seed=seed)
    clipped = gradient(logprobs, trees, **by("dapo"))
    assert (clipped == 0).any() and (gradient(logprobs, trees, **by("cispo")) != 0).all()


def test_gspos_ratio_is_the_root_of_rloos_by_length() -> None:
    """Of one answer of n tokens that each moved by d: exp(d), and exp(n d)."""
    for ratio, n in (("geometric", 1), ("sequence", 5)):
        nodes = [Node(parent=-1, tokens=(1,), author="prompt")]
        fields = {"weight": (1.0,) * 5, "advantages": (1.0,) * 5, "old_logprobs": (-1.0,) * 5}
        nodes.append(
            Node(parent=0, tokens=(3,) * 5, author="policy", fields=fields | {"sampled_logprobs": (-1.0,) * 5})
        )
        tree = Tree(id="t", nodes=tuple(nodes))
        found = made(torch.full((5,), -0.99), [tree], ratio=ratio).metrics["policy/ratio_max"]
        assert float(found) == pytest.approx(torch.tensor(0.01 * n).exp().item(), rel=1e-4)


def test_dapo_lets_rare_tokens_rise_further_and_nothing_fall_further() -> None:
    for change, advantage, stopped in ((0.25, 1.0, False), (0.3, 1.0, True), (-0.25, -1.0, True), (0.3, -1.0, False)):
        fields = {"weight": (1.0,), "advantages": (advantage,), "old_logprobs": (-5.0,), "sampled_logprobs": (-5.0,)}
        nodes = (
            Node(parent=-1, tokens=(1,), author="prompt"),
            Node(parent=0, tokens=(3,), author="policy", fields=fields),
        )
        logprobs = (torch.tensor([-5.0]) + torch.tensor(1 + change).log()).requires_grad_()
        assert bool(gradient(logprobs, [Tree(id="t", nodes=nodes)], **by("dapo")) == 0) == stopped
        assert bool(gradient(logprobs, [Tree(id="t", nodes=nodes)], **by("grpo")) == 0) == (stopped or change == 0.25)


@pytest.mark.parametrize("method", METHODS)
def test_a_group_that_scored_alike_has_a_gradient_from_the_leash_alone_and_counts_in_the_means(method: str) -> None:
    """Its first answer is the only one that teaches, and half as much as if the flat group were not there."""
    scores = torch.tensor([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0]])
    config = GroupConfig(out="run", method=method)  # type: ignore[arg-type]
    advantages = group_advantages(scores, centre="group", scale=config.scale)
    logprobs, trees = batch(advantages, EQUAL)
    free, leashed = (gradient(logprobs, trees, **by(method, kl_coef=coef)) for coef in (0.0, 0.1))
    assert (free[:12] == 0).all() and (free[12:] != 0).all() and (leashed != 0).all()
    alone = gradient(logprobs[12:].detach().requires_grad_(), trees[1:], **by(method))
    torch.testing.assert_close(free[12:], alone / 2)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_add_up_however_a_batch_is_split(method: str) -> None:
    """Not so with each part's own denominators, the trap of gradient accumulation."""
    logprobs, trees = batch(compared(method), spread=0.5)
    params = by(method, kl_coef=0.1)
    whole, first = gradient(logprobs, trees, **params), sum(LENGTHS[0])
    for totals, same in ((Totals.of(trees), True), (None, False)):
        parts = []
        for tree, place in ((trees[0], slice(first)), (trees[1], slice(first, None))):
            own = logprobs[place].detach().requires_grad_()
            loss = group(Outputs(logprobs=own), build_forest([tree]), totals or Totals.of([tree]), **params).loss
            parts.append(torch.autograd.grad(loss, own)[0])
        assert torch.allclose(torch.cat(parts), whole, atol=1e-7) == same


def test_answers_without_weight_are_not_learned_from() -> None:
    """DAPO's overlong filtering: their tokens count in no mean of tokens, and they themselves still among responses."""
    logprobs, trees = batch(compared("dapo"), weight=(1.0, 1.0, 0.0))
    assert len(logprobs) == 3 + 1 + 2 + 7
    found = gradient(logprobs, trees, **by("dapo"))
    torch.testing.assert_close(found[:3], -compared("dapo")[0, 0].expand(3) / 13)
    response = gradient(logprobs, trees, **by("grpo"))
    torch.testing.assert_close(response[:3], -compared("grpo")[0, 0].expand(3) / 3 / 6)


def test_a_method_sets_only_what_is_not_given() -> None:
    dapo = GroupConfig(out="run", method="dapo", clip_high=0.5, draws=1)
    assert (dapo.clip_high, dapo.draws, dapo.mean, dapo.overlong, dapo.kl.coef) == (0.5, 1, "token", 0.2, 0.0)
    assert GroupConfig.model_validate(dapo.model_dump()) == dapo
    assert GroupConfig.model_validate_json(dapo.model_dump_json(), strict=True) == dapo
    assert GroupConfig(out="run").correction is None
    assert GroupConfig(out="run", method="rloo", kl=KLConfig(coef=0.2)).kl.form == "reward" != dapo.kl.form == "k3"
    assert GroupConfig(out="run", method="rloo", kl=KLConfig(form="k2")).kl.form == "k2"
    for method, level in (("grpo", "token"), ("rloo", "sequence"), ("gspo", "sequence")):
        stale = GroupConfig(out="run", method=method, staleness=1)  # type: ignore[arg-type]
        assert stale.correction and stale.correction.level == level
        assert GroupConfig(out="run", staleness=1, correction=None).correction is None
    assert GroupConfig(out="run", method="reinforce++", group=1).group == 1
    for method in ("grpo", "dr-grpo", "rloo"):
        with pytest.raises(ValueError, match="a group of 1 has no others"):
            GroupConfig(out="run", method=method, group=1)  # type: ignore[arg-type]


def test_approx_kl_is_nats_a_token_whatever_the_ratio() -> None:
    logprobs, trees = batch(compared("grpo"), spread=0.1)
    found = [
        made(logprobs, trees, ratio=ratio).metrics["policy/approx_kl"] for ratio in ("token", "sequence", "geometric")
    ]
    assert found[0] > 0
    torch.testing.assert_close(found, [found[0]] * 3)


def test_with_one_ratio_an_answer_the_leash_weighs_answers_by_their_sums() -> None:
    """As KL in the reward does: of k2_response a token's gradient is the log-ratio of its answer, over all answers."""
    logprobs, trees = batch(torch.zeros(2, 3))
    lengths = torch.tensor([n for row in LENGTHS for n in row], dtype=torch.float32)
    of_answers = gradient(logprobs, trees, ratio="sequence", kl_form="k2_response", kl_coef=0.5)
    torch.testing.assert_close(of_answers, 0.5 * lengths.repeat_interleave(lengths.int()) / 6)
    of_tokens = gradient(logprobs, trees, ratio="sequence", kl_form="k2", kl_coef=0.5)
    torch.testing.assert_close(of_tokens, torch.full_like(of_tokens, 0.5 / 6))
