"""Losses by name: what each reads of a forest, by hand-computed numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.forest import Totals, build_forest
from prefloop.data.trees import with_fields
from prefloop.engine.build import build_learner
from prefloop.engine.cache import Reading, Store
from prefloop.engine.decode import Decoder
from prefloop.engine.objectives import (
    LOSSES,
    bradley_terry,
    group,
    leash,
    plackett_luce,
    ppo,
    ppo_policy,
    process,
    resolve_loss,
    sft,
    value,
)
from prefloop.engine.outputs import LossOut, Outputs
from prefloop.models.heads import value_head
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.types import Node, Pair, PrefloopError, Ranking, Tree


def answer(*tokens: int, **fields: tuple[float, ...]) -> Node:
    return Node(parent=0, tokens=tokens, author="policy", fields={"weight": (1.0,) * len(tokens), **fields})


def tree(*answers: Node, pairs: tuple[Pair, ...] = (), rankings: tuple[Ranking, ...] = ()) -> Tree:
    nodes = (Node(parent=-1, tokens=(1, 2, 3), author="prompt"), *answers)
    return Tree(id="t", nodes=nodes, pairs=pairs, rankings=rankings)


def test_losses_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "bradley_terry": {"scores"},
        "plackett_luce": {"scores"},
        "process": {"steps"},
        "ppo": {"logprobs", "values"},
        "value": {"values"},
    }
    plain = ("sft", "dpo", "group", "ppo_policy")
    for name, reads in (known | {key: {"logprobs"} for key in plain}).items():
        assert resolve_loss(name)[1] == reads
    (tmp_path / "own_losses.py").write_text(
        "from prefloop.engine.outputs import LossOut\n"
        "def entropy(out, forest, totals, *, coef):\n"
        "    loss = -coef * out.need('entropy').sum() / totals.tokens\n"
        "    return LossOut(loss, {'entropy': -loss.detach() / coef})\n"
        "entropy.reads = {'entropy'}\n"
        "def plain(out, forest, totals): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_loss("own_losses:plain")[1] == {"logprobs"}
    assert resolve_loss("own_losses:entropy")[1] == {"entropy"}
    source = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", "")
    learner = build_learner(source, EngineConfig(dtype="fp32"), OptimConfig(lr=1.0))
    history = []
    for _ in range(5):
        history.append(learner.forward_backward([tree(answer(4, 5))], "own_losses:entropy", {"coef": 1.0})["entropy"])
        learner.optim_step(1e-3, 0.0)
    assert 0 < history[0] < history[-1] <= math.log(259)


@pytest.mark.parametrize("name", ["odpo", "", "nowhere_at_all:loss", "prefloop.ops.losses:nothing", "./x:y"])
def test_an_unknown_loss_is_a_plain_error(name: str) -> None:
    known = ", ".join(LOSSES)
    with pytest.raises(PrefloopError, match=f"Unknown loss .*take one of {known} or 'module:function'"):
        resolve_loss(name)


def test_a_loss_that_was_not_given_what_it_needs() -> None:
    made = tree(answer(4, 5))
    with pytest.raises(PrefloopError, match="needs logprobs"):
        sft(Outputs(), build_forest([made]), Totals.of([made]))


def test_sft_is_the_weighted_mean() -> None:
    trees = [tree(answer(4, 5, weight=(1.0, 0.5))), tree(answer(6))]
    forest, totals = build_forest(trees[:1]), Totals.of(trees)
    assert float(sft(Outputs(logprobs=torch.tensor([-1.0, -3.0])), forest, totals).loss) == pytest.approx(2.5 / 2.5)


def test_bradley_terry_and_its_accuracy() -> None:
    pairs = (Pair(a=1, b=2), Pair(a=2, b=3, target=0.25), Pair(a=3, b=1, target=0.5), Pair(a=1, b=3, weight=2.0))
    made = tree(answer(4), answer(5), answer(6), pairs=pairs)
    out = bradley_terry(Outputs(scores=torch.tensor([2.0, 1.0, -1.0])), build_forest([made]), Totals.of([made]))
    leads, targets, weights = (1.0, 2.0, -3.0, 3.0), (1.0, 0.25, 0.5, 1.0), (1, 1, 1, 2)
    expected = sum(
        w * (t * math.log1p(math.exp(-d)) + (1 - t) * math.log1p(math.exp(d)))
        for d, t, w in zip(leads, targets, weights, strict=True)
    )
    assert float(out.loss) == pytest.approx(expected / 5, rel=1e-6)
    assert float(out.metrics["accuracy/train"]) == pytest.approx((1 + 0 + 0.5 + 2) / 5)
    equal = bradley_terry(Outputs(scores=torch.zeros(3)), build_forest([made]), Totals.of([made]))
    assert float(equal.loss) == pytest.approx(math.log(2), rel=1e-6)


def test_smoothing_floor_and_centring_by_hand() -> None:
    """Leads log 3 and log 7, so that P is 3/4 and 1/8 of what was preferred."""
    pairs = (Pair(a=1, b=2, weight=3.0), Pair(a=3, b=1))
    made, a = tree(answer(4), answer(5), answer(6), pairs=pairs), math.log(3)
    scores = torch.tensor([a, 0.0, a - math.log(7)])
    about = Outputs(scores=scores), build_forest([made]), Totals.of([made])
    smooth = (3 * (0.8 * math.log(0.75) + 0.2 * math.log(0.25)) + 0.8 * math.log(1 / 8) + 0.2 * math.log(7 / 8)) / -4
    assert float(bradley_terry(*about, label_smoothing=0.2).loss) == pytest.approx(smooth, rel=1e-6)
    floored = -(3 * math.log(0.9 * 0.75 + 0.05) + math.log(0.9 / 8 + 0.05)) / 4
    out = bradley_terry(*about, floor=0.1, centre=0.01)
    penalty = (3 * a**2 + (2 * a - math.log(7)) ** 2) / 4
    assert float(out.metrics["centre/train"]) == pytest.approx(penalty, rel=1e-6)
    assert float(out.loss) == float(out.metrics["loss/train"]) == pytest.approx(floored + 0.01 * penalty, rel=1e-6)
    assert float(out.metrics["accuracy/train"]) == 0.75
    scores.requires_grad_()
    for coef, mean_grad in ((0.0, 0.0), (0.01, 0.01 * (3 * 4 * a + 4 * (2 * a - math.log(7))) / 4)):
        (grad,) = torch.autograd.grad(bradley_terry(*about, centre=coef).loss, scores)
        assert float(grad.sum()) == pytest.approx(mean_grad, abs=1e-6)


def test_process_by_hand() -> None:
    """Logits log 3 and -log 7, so that the steps are right with 3/4 and 1/8; a step without a label is not read."""
    marked = (answer(4, 5, 6, weight=(0.0, 1.0, 1.0), label=(0.0, 1.0, 0.0)), answer(7, weight=(1.0,), label=(0.25,)))
    trees = [tree(marked[0]), tree(marked[1])]
    found = process(Outputs(steps=torch.tensor([math.log(3), -math.log(7)])), build_forest(trees[:1]), Totals.of(trees))
    assert float(found.loss) == float(found.metrics["loss/train"])
    assert float(found.loss) == pytest.approx(-(math.log(3 / 4) + math.log(7 / 8)) / 3, rel=1e-6)
    assert float(found.metrics["accuracy/train"]) == pytest.approx(2 / 3)
    logit = torch.tensor([math.log(0.25 / 0.75)], requires_grad=True)
    soft = process(Outputs(steps=logit), build_forest(trees[1:]), Totals.of(trees[1:])).loss
    assert float(soft.detach()) == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    soft.backward()  # type: ignore[no-untyped-call]
    assert logit.grad is not None and float(logit.grad) == pytest.approx(0, abs=1e-6)


def test_plackett_luce_by_hand_and_of_pairs() -> None:
    scores = torch.tensor([1.0, 2.0, 4.0]).log()
    pairs = (Pair(a=1, b=2), Pair(a=1, b=3, target=0.0), Pair(a=2, b=3, target=0.0))
    rankings = (Ranking(nodes=(3, 1, 2), ranks=(0, 1, 2)), Ranking(nodes=(2, 3), ranks=(0, 1), weight=3.0))
    made = tree(answer(4), answer(5), answer(6), pairs=pairs, rankings=rankings)
    out = plackett_luce(Outputs(scores=scores), build_forest([made]), Totals.of([made]), centre=0.5)
    likelihood = -(math.log(4 / 7 * 1 / 3) + 3 * math.log(2 / 6)) / 4
    penalty = (math.log(2) ** 2 + math.log(4) ** 2 + math.log(8) ** 2) / 3
    assert float(out.loss) == pytest.approx(likelihood + 0.5 * penalty, rel=1e-6)
    assert float(out.metrics["accuracy/train"]) == pytest.approx(2 / 3)
    soft = tree(
        answer(4),
        answer(5),
        pairs=(Pair(a=1, b=2, target=0.75),),
        rankings=(Ranking(nodes=(1, 2), ranks=(0, 1), weight=0.75), Ranking(nodes=(2, 1), ranks=(0, 1), weight=0.25)),
    )
    about = Outputs(scores=scores[:2]), build_forest([soft]), Totals.of([soft])
    assert float(plackett_luce(*about).loss) == pytest.approx(float(bradley_terry(*about).loss), rel=1e-6)


def two_answers(**columns: tuple[tuple[float, ...], tuple[float, ...]]) -> Tree:
    """Answers of two tokens and of one, advantages 1 and -2, and more columns for each."""
    known = {"advantages": ((1.0, 1.0), (-2.0,)), "sampled_logprobs": ((-1.0, -2.0), (-3.0,))} | columns
    return tree(*(answer(*ids, **{n: c[i] for n, c in known.items()}) for i, ids in enumerate(((4, 5), (6,)))))


def test_grpo_by_hand() -> None:
    made = two_answers(old_logprobs=((-1.0, -2.0), (-3.0,)), reference_logprobs=((-1.0, -1.0), (-3.0,)))
    out = Outputs(logprobs=torch.tensor([-0.5, -2.0, -3.0]))
    found = group(out, build_forest([made]), Totals.of([made]), clip=0.2, kl_coef=0.1)
    policy = ((-1.2 - 1.0) / 2 + 2.0) / 2
    penalty = ((math.expm1(-0.5) + 0.5 + math.expm1(1.0) - 1.0) / 2 + 0.0) / 2
    assert float(found.loss) == pytest.approx(policy + 0.1 * penalty, rel=1e-6)
    assert float(found.metrics["policy/clip_fraction"]) == pytest.approx(0.5 / 2)
    assert float(found.metrics["policy/ratio_max"]) == pytest.approx(math.exp(0.5))
    assert float(found.metrics["sampler/logprob_gap"]) == pytest.approx(0.5 / 3)


def test_rloo_by_hand() -> None:
    made = two_answers(old_logprobs=((-1.0, -2.0), (-3.0,)))
    out = Outputs(logprobs=torch.tensor([-0.9, -2.0, -3.1]))
    found = group(out, build_forest([made]), Totals.of([made]), clip=0.2, ratio="sequence")
    assert float(found.loss) == pytest.approx((-math.exp(0.1) + 2 * math.exp(-0.1)) / 2, rel=1e-6)
    assert float(found.metrics["policy/clip_fraction"]) == 0


@pytest.mark.parametrize(
    ("params", "shares"),
    [
        ({}, (1 / 4, 1 / 2)),
        ({"mean": "token"}, (1 / 3, 1 / 3)),
        ({"mean": "constant", "longest": 10}, (1 / 20, 1 / 20)),
        ({"ratio": "sequence"}, (1 / 2, 1 / 2)),
        ({"ratio": "geometric"}, (1 / 4, 1 / 2)),
        ({"ratio": "geometric", "mean": "token"}, (1 / 3, 1 / 3)),
    ],
)
@pytest.mark.parametrize("surrogate", ["clipped", "weighted"])
def test_one_update_a_rollout_is_the_policy_gradient(
    params: dict[str, Any], shares: tuple[float, float], surrogate: str
) -> None:
    """Without old log-probs: the gradient of -A log pi, whatever is clipped, by each mean's share of a token of the
    answer of two tokens and of that of one. One ratio an answer has the gradient of all its tokens' ratios at once."""
    made = two_answers()
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    about = Outputs(logprobs=logprobs), build_forest([made]), Totals.of([made])
    found = group(*about, clip=0.2, surrogate=surrogate, **params)
    found.loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    if surrogate == "weighted" and params.get("ratio") == "sequence":
        shares = (1 / 4, 1 / 2)  # the weight of an answer is no gradient: its tokens share one mean
    assert logprobs.grad.tolist() == pytest.approx([-shares[0], -shares[0], 2 * shares[1]])
    assert float(found.metrics["policy/ratio_max"]) == 1


def test_ppo_by_hand() -> None:
    made = tree(
        answer(
            4,
            5,
            old_logprobs=(-1.0, -2.0),
            advantages=(1.0, -2.0),
            old_values=(0.0, 0.5),
            returns=(1.0, 0.0),
        )
    )
    out = Outputs(logprobs=torch.tensor([-0.5, -2.0]), values=torch.tensor([0.5, 0.5]))
    found = ppo(out, build_forest([made]), Totals.of([made]), clip=0.2, value_clip=0.2, value_coef=0.1)
    policy = (-1.2 + 2.0) / 2
    value = (0.5 * 0.8**2 + 0.5 * 0.5**2) / 2
    assert float(found.loss) == pytest.approx(policy + 0.1 * value, rel=1e-6)
    expected = {
        "policy/loss": policy,
        "policy/clip_fraction": 0.5,
        "policy/approx_kl": 0.5 * 0.25 / 2,
        "policy/ratio_max": math.exp(0.5),
        "value/loss": value,
        "value/clip_fraction": 0.5,
    }
    assert {name: float(x) for name, x in found.metrics.items()} == pytest.approx(expected, rel=1e-6)


def test_the_first_ppo_update_has_ratio_one_however_it_is_split() -> None:
    trees = [tree(answer(*range(4, 5 + n)), answer(9, 8, 7)) for n in range(1, 7)]
    source = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", "")
    learner = build_learner(
        source, EngineConfig(dtype="fp32", token_budget=30), OptimConfig(lr=1.0), head=value_head(64)
    )
    readings = learner.forward(trees, {"logprobs", "values"}, temperature=0.7)
    ready = []
    for made, reading in zip(trees, readings, strict=True):
        zeros = {node: [0.0] * len(reading.logprobs[node]) for node in (1, 2)}
        fields = {
            node: {
                "old_logprobs": reading.logprobs[node].tolist(),
                "old_values": reading.values[node].tolist(),
                "advantages": [float(node)] * len(zeros[node]),
                "returns": zeros[node],
            }
            for node in (1, 2)
        }
        ready.append(with_fields(made, fields))
    params = {"clip": 0.2, "value_clip": 0.2, "value_coef": 0.1, "temperature": 0.7}
    metrics = learner.forward_backward(ready, "ppo", params)
    tokens = [sum(len(t.nodes[n].tokens) for t in trees) for n in (1, 2)]
    assert metrics["policy/ratio_max"] == pytest.approx(1, abs=1e-6)
    assert metrics["policy/clip_fraction"] == metrics["value/loss"] == 0
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-9)
    assert metrics["policy/loss"] == pytest.approx(-(tokens[0] + 2 * tokens[1]) / sum(tokens), rel=1e-5)
    learner.optim_step(1e-3, 1e-3)
    assert abs(learner.forward_backward(ready, "ppo", params)["policy/ratio_max"] - 1) > 1e-3


PPO = {"value_clip": 0.2, "value_coef": 0.0}


CAP = {"beyond": "truncate", "low": None, "high": 2.0, "drop_above": None}


def correction(loss: str, cap: float | None) -> dict[str, Any]:
    """What turns the correction on, by the token or, with one ratio an answer, by the answer."""
    if loss == "ppo":
        return {**PPO, "importance_cap": cap}
    rule = {"correction": cap and {**CAP, "level": loss, "high": cap}}
    return {**rule, "ratio": loss}


@pytest.mark.parametrize("loss", ["token", "sequence", "ppo"])
def test_importance_is_exactly_1_where_the_sampler_was_the_learner(loss: str) -> None:
    """And else the ratio of their probabilities, of a token or of an answer, at most the cap."""
    old = ((-1.0, -2.0), (-3.0,))
    out = Outputs(logprobs=torch.tensor([-0.9, -2.0, -3.1]), values=torch.zeros(3))
    columns: dict[str, Any] = {"old_logprobs": old, "old_values": ((0.0, 0.0), (0.0,)), "returns": ((0.0, 0.0), (0.0,))}

    def found(sampled: Any, cap: float | None, advantages: Any = ((1.0, 1.0), (-2.0,))) -> LossOut:
        made = two_answers(**columns | {"sampled_logprobs": sampled, "advantages": advantages})
        function = ppo if loss == "ppo" else group
        return function(out, build_forest([made]), Totals.of([made]), clip=0.2, **correction(loss, cap))

    same = found(old, 2.0)
    assert float(same.loss) == float(found(old, None).loss) and float(same.metrics["sampler/importance"]) == 1.0
    sampled = ((-1.5, -2.0), (-0.5,))
    tokens = (math.exp(0.5), 1.0), (math.exp(-2.5),)
    if loss == "sequence":
        tokens = (math.exp(0.5),) * 2, (math.exp(-2.5),)
    by_hand = tuple(tuple(w * a for w in row) for row, a in zip(tokens, (1.0, -2.0), strict=True))
    assert float(found(sampled, 2.0).loss) == pytest.approx(float(found(sampled, None, by_hand).loss), rel=1e-6)
    assert float(found(((-9.0, -9.0), (-9.0,)), 2.0).metrics["sampler/importance"]) == 2.0


@pytest.mark.parametrize("loss", ["token", "sequence"])
def test_importance_takes_an_int8_samplers_gradient_to_the_policys(loss: str) -> None:
    """Answers of one token, all of them, each as often as the sampler writes it: an expectation without chance."""
    source = LoadedModel(tiny_model(4), tiny_tokenizer(), "tiny", "")
    prompt, count = torch.tensor([1, 2, 3]), 259
    learner = build_learner(source, EngineConfig(dtype="fp32"), OptimConfig(lr=1.0))
    policy = learner.forward([tree(*(answer(t) for t in range(count)))], {"logprobs"})[0].logprobs
    store = Store({i: torch.empty(2, 0, 2, 0, 16) for i in range(2)}, 8)
    store.lengths = [3]
    store.resize(1, 3)
    layout, decoder = Reading(store, 0, torch.device("cpu")), Decoder(source.model, int8=True)
    logits = decoder.head(decoder.step(prompt, layout.positions, layout))
    theirs = torch.log_softmax(logits[0], dim=-1).tolist()
    ours = [float(policy[node][0]) for node in range(1, count + 1)]
    assert 0 < max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 0.3

    def gradient(written: list[float], cap: float | None) -> torch.Tensor:
        rewards = [math.sin(token) * count * math.exp(logprob) for token, logprob in enumerate(written)]
        answers = [
            answer(token, advantages=(reward,), sampled_logprobs=(logprob,))
            for token, (reward, logprob) in enumerate(zip(rewards, written, strict=True))
        ]
        learner.forward_backward([tree(*answers)], "group", {"clip": 0.2, **correction(loss, cap)})
        found = torch.cat([p.grad.flatten() for p in learner.weights if p.grad is not None])
        learner.optimizer.zero_grad()
        return found

    exact = gradient(ours, None)
    corrected, uncorrected = gradient(theirs, 2.0), gradient(theirs, None)
    assert float((uncorrected - exact).norm() / exact.norm()) > 1e-3
    assert float((corrected - exact).norm()) < 1e-2 * float((uncorrected - exact).norm())


def leashed() -> tuple[Tree, torch.Tensor]:
    """Answers of two tokens and of one; log-ratios to the reference 0.5, -0.2 and 0.3."""
    made = two_answers(reference_logprobs=((-1.5, -1.8), (-3.3,)), old_logprobs=((-1.0, -2.0), (-3.0,)))
    return made, torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)


def test_each_form_of_the_leash_by_hand_and_its_gradient() -> None:
    made, logprobs = leashed()
    forest, share = build_forest([made]), torch.full((3,), 1 / 3)
    wanted = {
        "k2": ((0.25 + 0.04 + 0.09) / 6, [0.5 / 3, -0.2 / 3, 0.3 / 3]),
        "k3": (
            sum(math.exp(-d) - 1 + d for d in (0.5, -0.2, 0.3)) / 3,
            [(1 - math.exp(-d)) / 3 for d in (0.5, -0.2, 0.3)],
        ),
        "k2_response": ((0.3**2 + 0.3**2) / 6, [0.3 / 3] * 3),
    }
    for form, (worth, slopes) in wanted.items():
        found = leash(Outputs(logprobs=logprobs), forest, share, form)
        assert float(found.detach()) == pytest.approx(worth, rel=1e-5), form
        (grad,) = torch.autograd.grad(found, logprobs)
        assert grad.tolist() == pytest.approx(slopes, rel=1e-4), form
    exact = leash(Outputs(exact_kl=torch.tensor([0.3, 0.6, 0.9])), forest, share, "exact")
    assert float(exact) == pytest.approx(0.6)


def test_ppo_is_its_policy_loss_and_its_value_loss() -> None:
    made = two_answers(
        old_logprobs=((-1.2, -2.0), (-3.1,)),
        reference_logprobs=((-1.0, -1.0), (-2.0,)),
        old_values=((0.0, 0.0), (0.5,)),
        returns=((1.0, 0.1), (0.2,)),
    )
    out = Outputs(logprobs=torch.tensor([-1.0, -2.0, -3.0]), values=torch.tensor([0.5, 0.1, 0.4]))
    about: tuple[Any, ...] = (out, build_forest([made]), Totals.of([made]))
    values = value(*about, value_clip=0.2)
    # 1/2 max((0.5 - 1)^2, (0.2 - 1)^2), 0, and 1/2 (0.4 - 0.2)^2
    assert float(values.loss) == pytest.approx((0.5 * 0.64 + 0 + 0.5 * 0.04) / 3)
    assert float(values.metrics["value/clip_fraction"]) == pytest.approx(1 / 3)
    policy = ppo_policy(*about, clip=0.2)
    both = ppo(*about, clip=0.2, value_clip=0.2, value_coef=0.1)
    assert float(both.loss) == pytest.approx(float(policy.loss) + 0.1 * float(values.loss))
    assert both.metrics.keys() == policy.metrics.keys() | values.metrics.keys()
    dearer = ppo_policy(*about, clip=0.2, kl_form="k2", kl_coef=0.5)
    assert float(dearer.loss - policy.loss) == pytest.approx(0.5 * (0 + 1 + 1) / 6)


def test_a_weighted_sft_loss_is_logged_without_its_weight() -> None:
    made = tree(answer(4, 5))
    out = sft(Outputs(logprobs=torch.tensor([-1.0, -3.0])), build_forest([made]), Totals.of([made]), coef=27.8)
    assert float(out.loss) == pytest.approx(27.8 * 2) and float(out.metrics["loss/train"]) == 2
