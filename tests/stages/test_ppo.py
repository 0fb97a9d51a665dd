"""PPO to the letter: the switches of its papers and codes, each seen to do what it says, and across a resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefloop.configs.group import GroupConfig
from prefloop.configs.ppo import CriticConfig, PPOConfig, PtxConfig
from prefloop.configs.rollout import HeldoutStopConfig, KLConfig, ShapingConfig
from prefloop.configs.sft import SFTConfig
from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.jsonl import write_jsonl
from prefloop.engine.build import build_critic, build_encoder, build_learner, load
from prefloop.models.checkpoint import load_state, load_training, read_checkpoint, save_checkpoint
from prefloop.models.heads import reward_head
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.stages import group, ppo, sft
from prefloop.stages.rollouts import Rollout
from prefloop.types import Checkpoint, Completion, Message, Node, PrefloopError, Prompt, Sampling, Segment, Tree

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=1500)
OPTIM = OptimConfig(lr=3e-3, decay=False, warmup=0.0, head_lr=1e-2)
OWN = """
from prefloop.types import Score

def even(prompts, completions):
    return [Score(value=sum(t % 2 == 0 for t in c.tokens) / len(c.tokens)) for c in completions]

def falling(prompts, completions):
    "What only gets worse with training on `even`."
    return [Score(value=-s.value) for s in even(prompts, completions)]

calls = 0

def fails_once(prompts, completions):
    global calls
    calls += 1
    if calls == 5:
        raise RuntimeError("the power went off")
    return even(prompts, completions)
"""


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    Path("own.py").write_text(OWN)
    rows = []
    for split, count in (("train", 6), ("dev", 24)):
        for index in range(count):
            message = Message(role="user", content=f"Name {index} things.")
            name, part = f"{split}-{index}", ("red", "blue")[index % 2]
            rows.append(Prompt(id=name, messages=(message,), slice=part, split=split))
    write_jsonl("prompts.jsonl", rows)
    write_jsonl("texts.jsonl", [{"text": f"{i} bottles on the wall, {i} bottles."} for i in range(20)])


def settings(out: str, **rest: Any) -> dict[str, Any]:
    return {
        "out": out,
        "policy": "tiny",
        "reward": "own:even",
        "prompts": "prompts.jsonl",
        "steps": 6,
        "prompts_per_step": 6,
        "group": 4,
        "max_tokens": 4,
        "epochs": 1,
        "minibatches": 2,
        "missing_stop_score": None,
        "kl": KLConfig(controller="fixed", coef=0.0),
        "optim": OPTIM,
        "engine": ENGINE,
        **rest,
    }


def toy(out: str, **rest: Any) -> PPOConfig:
    return PPOConfig(**settings(out, **rest))


def metrics(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def untimed(out: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if "time/" not in key} for row in metrics(out)]


def weights(out: str) -> dict[str, torch.Tensor]:
    return dict(load(out, ENGINE).model.state_dict())


def far(one: str, other: str) -> float:
    """Root mean square between the weights of two runs."""
    a, b = weights(one), weights(other)
    return float(torch.cat([(a[name] - b[name]).flatten() for name in a]).square().mean().sqrt())


def write_reward_model(gain: float = 2.0, bias: float = 0.5) -> None:
    record = Checkpoint(
        path="",
        kind="reward",
        step=1,
        parent="tiny",
        config_hash="",
        details={"gain": gain, "bias": bias, "pooling": "last", "members": []},
    )
    model = tiny_model(3)
    save_checkpoint("rm", record=record, model=model, tokenizer=tiny_tokenizer(), head=reward_head(64, 1))


def test_a_critic_begins_as_the_reward_model_on_its_scale() -> None:
    write_reward_model()
    encoder = build_encoder(load("tiny", ENGINE))
    critic = build_critic("rm", encoder, ENGINE, OPTIM)
    raw = reward_head(64, 1)
    assert critic.head is not None
    torch.testing.assert_close(critic.head.weight, 2.0 * raw.weight)
    torch.testing.assert_close(critic.head.bias, 2.0 * raw.bias + 0.5)
    zero = build_critic("tiny", encoder, ENGINE, OPTIM).head
    assert zero is not None and not zero.weight.any() and not zero.bias.any()


def test_a_critic_of_its_own_learns_values_and_leaves_the_policys_trunk_alone() -> None:
    critic = CriticConfig(checkpoint="policy", optim=OPTIM)
    ppo.run(toy("apart", critic=critic, steps=10))
    rows = metrics("apart")
    assert rows[-1]["value/loss"] < 0.5 * rows[0]["value/loss"]
    assert rows[-1]["reward/score"] > rows[0]["reward/score"] + 0.1
    assert {"critic/grad_norm", "value/clip_fraction"} <= rows[0].keys()
    frozen = OptimConfig(lr=1e-12, decay=False, warmup=0.0)
    ppo.run(toy("still", critic=critic, steps=3, optim=frozen))
    assert far("still", "tiny") < 1e-6
    ppo.run(toy("shared", steps=3, optim=frozen.model_copy(update={"head_lr": 1e-2})))
    assert metrics("still")[-1]["value/loss"] != metrics("shared")[-1]["value/loss"]


def test_a_critic_with_other_tokens_or_of_no_model_is_refused() -> None:
    with pytest.raises(PrefloopError, match="the reward 'own:even' is no single reward model"):
        ppo.run(toy("none", critic=CriticConfig()))
    encoder = build_encoder(load("tiny", ENGINE))
    strange = tiny_tokenizer()
    strange.add_tokens(["strange"])
    record = Checkpoint(path="", kind="policy", step=1, parent="", config_hash="")
    save_checkpoint("strange", record=record, model=tiny_model(0), tokenizer=strange)
    with pytest.raises(PrefloopError, match="has other tokens than the policy"):
        build_critic("strange", encoder, ENGINE, OPTIM)


EVERYTHING: dict[str, Any] = {
    "critic": CriticConfig(checkpoint="policy", optim=OPTIM),
    "shaping": ShapingConfig(bound="mean", normalise="running", clip=3.0, length_penalty=0.01),
    "kl": KLConfig(controller="rate", coef=0.05, target=0.05, form="k2_response"),
    "ema": 0.9,
    "early_stop": HeldoutStopConfig(every=2, prompts=4, patience=9),
    "ptx": PtxConfig(data="texts.jsonl", coef=0.5, ratio=0.1),
    "optim": OptimConfig(lr=1e-3, eps_hat=True, eps=1e-5),
    "steps": 6,
    "save_every": 3,
}
RATHER_OTHERS: dict[str, Any] = {
    "kl": KLConfig(controller="geometric", coef=0.5, last=0.01, form="exact"),
    "shaping": ShapingConfig(normalise="running"),
    "steps": 6,
    "save_every": 3,
}


@pytest.mark.parametrize("rest", [EVERYTHING, RATHER_OTHERS], ids=["everything", "others"])
def test_an_interrupted_run_with_all_that_has_state_continues_the_same_numbers(rest: dict[str, Any]) -> None:
    if "early_stop" in rest:  # its calls of the reward are counted too
        rest = {**rest, "early_stop": rest["early_stop"].model_copy(update={"by": "watch"}), "watch": "own:even"}
    whole = ppo.run(toy("whole", **rest))
    config = toy("broken", **rest | {"reward": "own:fails_once"})
    with pytest.raises(RuntimeError, match="power"):
        ppo.run(config)
    state = load_state("broken/checkpoints/step-000002")
    assert state["shaping"]["moments"][0] == 3 * 24
    if "critic" in rest:
        assert {"critic.weight.0", "critic.moment1.0", "average.0"} <= load_training(
            "broken/checkpoints/step-000002"
        ).keys()
        assert state["kl_rate"] < 1 and state["early"]["best"]
    again = ppo.run(config)
    assert untimed("whole") == untimed("broken") and len(untimed("whole")) == 6
    assert far("whole", "broken") == 0
    same = {"kl_coef", "kl_last_third", "steps", "heldout_score"} & whole.keys()
    assert {name: whole[name] for name in same} == {name: again[name] for name in same}
    assert not Path("broken/best").exists()


def test_every_form_of_the_leash_holds() -> None:
    rest: dict[str, Any] = {"optim": OPTIM.model_copy(update={"lr": 1e-3})}
    ppo.run(toy("loose", **rest))
    for form in ("reward", "k2", "k3", "exact", "k2_response"):
        ppo.run(toy(form, kl=KLConfig(controller="fixed", coef=1.0, form=form), **rest))
        assert metrics(form)[-1]["kl/exact"] < 0.7 * metrics("loose")[-1]["kl/exact"]
        assert metrics(form)[0]["kl/exact"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("method", "form"), [("grpo", "exact"), ("grpo", "reward"), ("rloo", "k2_response")])
def test_a_group_method_may_pay_for_kl_elsewhere(method: Any, form: Any) -> None:
    rest: dict[str, Any] = {"method": method, "steps": 5, "optim": OPTIM.model_copy(update={"lr": 1e-3})}
    for out, coef in (("loose", 1e-9), ("held", 2.0)):
        leash = KLConfig(controller="fixed", coef=coef, form=form)
        group.run(GroupConfig(**settings(out, kl=leash, **rest)))
    assert metrics("held")[-1]["kl/exact"] < 0.7 * metrics("loose")[-1]["kl/exact"]


def test_the_learning_rate_as_the_knob_holds_the_kl() -> None:
    free = KLConfig(controller="fixed", coef=0.0)
    held = KLConfig(controller="rate", coef=0.0, target=0.02, horizon=1.1, clip=1.0)
    for out, kl in (("free", free), ("held", held)):
        ppo.run(toy(out, kl=kl, steps=8, optim=OPTIM.model_copy(update={"lr": 1e-3})))
    rows = metrics("held")
    assert rows[-1]["kl/rate"] < 0.5 and rows[0]["kl/rate"] == 1
    assert rows[-1]["optim/lr"] == pytest.approx(1e-3 * rows[-1]["kl/rate"])
    assert rows[-1]["kl/exact"] < 0.8 * metrics("free")[-1]["kl/exact"]


def test_a_scheduled_coefficient_is_logged_and_a_target_may_be_per_token() -> None:
    ppo.run(toy("line", kl=KLConfig(controller="linear", coef=0.5, last=0.1), steps=5))
    assert [row["kl/coef"] for row in metrics("line")] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    for per, target in (("response", 0.04), ("token", 0.01)):
        ppo.run(toy(per, kl=KLConfig(coef=0.5, target=target, per=per, horizon=1.5), steps=5))
    rows = metrics("token")
    assert all(row["length/tokens"] == 4 for row in rows)  # so that both are the same
    assert [row["kl/coef"] for row in rows] == pytest.approx([row["kl/coef"] for row in metrics("response")])
    assert rows[-1]["kl/coef"] != 0.5


def test_kl_is_logged_for_each_slice() -> None:
    ppo.run(toy("slices", steps=3))
    row = metrics("slices")[-1]
    assert np.mean([row["kl_slice/red"], row["kl_slice/blue"]]) == pytest.approx(row["kl/response"])
    assert row["kl_slice/red"] != row["kl_slice/blue"]


def test_a_run_ends_where_the_kl_is_beyond_its_stop_with_the_policy_that_was_measured() -> None:
    ppo.run(toy("free", steps=5))
    bound = metrics("free")[4]["kl/exact"] * 0.99
    result = ppo.run(toy("ended", steps=8, kl=KLConfig(controller="fixed", coef=0.0, stop=bound)))
    steps = len(metrics("ended")) - 1
    assert 0 < steps <= 4 and result["steps"] == steps and metrics("ended")[-1]["policy/updates"] == 0
    assert f"nats a response after {steps} steps, above kl.stop" in result["stopped"]
    assert read_checkpoint("ended/checkpoint").step == steps
    assert [row["kl/exact"] for row in metrics("ended")] == [row["kl/exact"] for row in metrics("free")][: steps + 1]
    assert "stopped" not in ppo.run(toy("wide", steps=2, kl=KLConfig(controller="fixed", coef=0.0, stop=99.0)))
    ended = group.run(GroupConfig(**settings("grouped", steps=3, kl=KLConfig(controller="fixed", coef=0, stop=1e-6))))
    assert ended["steps"] == 1 and "above kl.stop" in ended["stopped"]


def test_no_more_updates_on_a_batch_that_the_policy_has_left() -> None:
    rest: dict[str, Any] = {"epochs": 4, "minibatches": 1, "steps": 3}
    ppo.run(toy("all", **rest))
    ppo.run(toy("few", kl=KLConfig(controller="fixed", coef=0.0, epoch_stop=1e-6), **rest))
    assert [row["policy/updates"] for row in metrics("all")] == [4, 4, 4]
    assert [row["policy/updates"] for row in metrics("few")] == [2, 2, 2]  # the first moves it, the second sees that


def test_the_first_updates_ratio_is_one_and_its_loss_and_approx_kl_are_nothing() -> None:
    """Of whitened advantages the mean is 0, so is the loss at ratio 1; what follows has moved."""
    ppo.run(toy("once", epochs=1, minibatches=1, steps=2, kl=KLConfig(controller="fixed", coef=0.1)))
    ppo.run(toy("more", epochs=4, minibatches=1, steps=2, kl=KLConfig(controller="fixed", coef=0.1)))
    for row in metrics("once"):
        assert row["policy/ratio_max"] == pytest.approx(1, abs=1e-4)
        assert row["policy/approx_kl"] == pytest.approx(0, abs=1e-9)
        assert row["policy/clip_fraction"] == 0 and row["policy/loss"] == pytest.approx(0, abs=1e-4)
    assert metrics("more")[0]["policy/approx_kl"] > 1e-5 and metrics("more")[0]["policy/ratio_max"] > 1.001


def test_the_average_of_the_weights_is_what_is_saved() -> None:
    """Of decay near 1 the start, near 0 the end; between, between."""
    ppo.run(toy("end", steps=3, group=2))
    for out, ema in (("last", 1e-9), ("first", 1 - 1e-9), ("middle", 0.8)):
        ppo.run(toy(out, steps=3, group=2, ema=ema))
        assert untimed(out) == untimed("end")
    assert far("last", "end") < 1e-6 and far("first", "tiny") < 1e-6
    assert 0 < far("middle", "tiny") < far("end", "tiny")
    group.run(GroupConfig(**settings("grouped", steps=2, ema=1 - 1e-9)))
    assert far("grouped", "tiny") < 1e-6


def test_training_stops_when_held_out_answers_get_no_better_and_keeps_the_best() -> None:
    stop = HeldoutStopConfig(by="watch", every=2, patience=2)
    result = ppo.run(toy("worse", steps=12, watch="own:falling", early_stop=stop))
    found = [row["heldout/score"] for row in metrics("worse") if "heldout/score" in row]
    assert result["steps"] == 2 * int(np.argmax(found)) and result["heldout_score"] == max(found)
    assert "no better answers than after step" in result["stopped"] and len(metrics("worse")) < 12
    result = ppo.run(toy("better", steps=6, early_stop=HeldoutStopConfig(every=2)))
    assert result["steps"] >= 4 and "stopped" not in result
    assert read_checkpoint("better/checkpoint").step == result["steps"]
    with pytest.raises(ValidationError, match="there is no watch"):
        toy("none", early_stop=stop)
    ended = group.run(GroupConfig(**settings("group", steps=12, watch="own:falling", early_stop=stop)))
    assert ended["steps"] < 12 and "no better answers" in ended["stopped"]


def test_ptx_keeps_what_ppo_forgets() -> None:
    """Pre-trained on texts, the policy forgets them for the reward; with their gradient in each update it does not."""
    optim = OptimConfig(lr=1e-2, decay=False, warmup=0.0)
    sft.run(SFTConfig(out="sft", model="tiny", demonstrations="texts.jsonl", epochs=12, optim=optim, engine=ENGINE))
    losses = [row["loss/train"] for row in metrics("sft")]
    assert losses[-1] < 0.5 * losses[0]
    rest: dict[str, Any] = {"policy": "sft", "steps": 8}
    texts = {"data": "texts.jsonl", "ratio": 0.5}
    ppo.run(toy("forgets", ptx=PtxConfig(coef=1e-9, **texts), **rest))
    ppo.run(toy("keeps", ptx=PtxConfig(coef=1.0, **texts), **rest))
    forgets, keeps = (metrics(out)[-1] for out in ("forgets", "keeps"))
    assert keeps["ptx/loss"] < losses[-1] + 0.5 * (forgets["ptx/loss"] - losses[-1])
    assert keeps["reward/score"] > metrics("keeps")[0]["reward/score"] + 0.05


def test_ptx_adds_its_gradient_before_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One update with both is neither alone; its examples are ratio times the episodes of the update."""
    counted: list[int] = []
    forward_backward = ppo.LocalLearner.forward_backward

    def seen(self: Any, trees: list[Tree], loss: str, *rest: Any) -> dict[str, float]:
        counted.extend([len(trees)] if loss == "sft" else [])
        return forward_backward(self, trees, loss, *rest)

    monkeypatch.setattr(ppo.LocalLearner, "forward_backward", seen)
    ppo.run(toy("both", steps=1, minibatches=2, epochs=1, ptx=PtxConfig(data="texts.jsonl", ratio=0.5)))
    ppo.run(toy("alone", steps=1, minibatches=2, epochs=1))
    assert counted == [6, 6]
    assert metrics("both")[0]["policy/ratio_max"] != metrics("alone")[0]["policy/ratio_max"]


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4), st.floats(0.1, 8))
def test_ptx_reads_its_texts_without_a_gap(prompts: int, minibatches: int, answers: int, ratio: float) -> None:
    minibatches = min(minibatches, prompts)
    ratio = max(ratio, 1.001 / (prompts // minibatches * answers))
    ptx = PtxConfig(data="texts.jsonl", ratio=ratio)
    config = toy("run", ptx=ptx, prompts_per_step=prompts, minibatches=minibatches, group=answers)
    places = [ppo.ptx_places(config, ptx, at) for at in range(3 * minibatches)]
    assert all(begin < end for begin, end in places) and places[0][0] == 0
    assert [end for _, end in places[:-1]] == [begin for begin, _ in places[1:]]
    assert places[-1][1] == pytest.approx(3 * prompts * answers * ratio, abs=1)


@pytest.mark.parametrize(
    ("kl", "said"),
    [
        ({"controller": "linear"}, "last goes with"),
        ({"last": 0.1}, "last goes with"),
        ({"controller": "geometric", "coef": 0.1, "last": 0.0}, "cannot start or end at 0"),
        ({"controller": "rate", "horizon": 0.2, "clip": 0.5}, "horizon is not above clip"),
    ],
)
def test_leashes_that_cannot_be(kl: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        KLConfig(**kl)


def rollout(log_ratio: list[float], score: float, values: list[float], node: int) -> Rollout:
    tokens = tuple(range(5, 5 + len(log_ratio)))
    completion = Completion(
        id=str(node),
        prompt_id="p",
        segments=(Segment(author="policy", tokens=tokens, logprobs=(-1.0,) * len(tokens)),),
        text="x",
        finish_reason="stop",
        sampling=Sampling(temperature=1.0, max_tokens=4),
        seed=0,
        checkpoint="",
        version=0,
    )
    reference = np.full(len(tokens), -1.0, np.float32)
    columns = {"logprobs": reference + np.float32(log_ratio), "reference": reference, "values": np.float32(values)}
    prompt = Prompt(id="p", messages=(Message(role="user", content="Hi"),))
    return Rollout(prompt, completion, 0, node, score, columns)


def test_rewards_are_kl_at_each_token_and_the_score_at_the_last_one() -> None:
    """gamma = lambda = 1 and values 0: the returns are the rewards to go, before whitening by hand."""
    answers = [rollout([0.5, -0.25], 1.0, [0.0, 0.0], 1), rollout([0.1], -2.0, [0.0], 2)]
    nodes = [Node(parent=-1, tokens=(1,), author="prompt")]
    nodes += [Node(parent=0, tokens=r.completion.tokens, author="policy") for r in answers]
    tree = Tree(id="p", nodes=tuple(nodes))
    config = toy("unused", lam=1.0, kl=KLConfig(controller="fixed", coef=0.2))
    (made,), total, explained = ppo.with_advantages([tree], answers, 0.2, config)
    returns = [1 + 0.2 * 0.25 - 0.2 * 0.5, 1 + 0.2 * 0.25, -2 - 0.2 * 0.1]
    found = [*made.nodes[1].fields["returns"], *made.nodes[2].fields["returns"]]
    assert found == pytest.approx(returns, abs=1e-6)
    whitened = (np.array(returns) - np.mean(returns)) / np.std(returns)
    advantages = [*made.nodes[1].fields["advantages"], *made.nodes[2].fields["advantages"]]
    assert advantages == pytest.approx(whitened.tolist(), abs=1e-6)
    assert total == pytest.approx((returns[0] + returns[2]) / 2) and explained == pytest.approx(0)
    (plain,), _, _ = ppo.with_advantages([tree], answers, 0.2, config.model_copy(update={"whiten_advantages": False}))
    assert plain.nodes[1].fields["advantages"] == plain.nodes[1].fields["returns"]  # of values that are 0
    in_loss = config.model_copy(update={"kl": KLConfig(controller="fixed", coef=0.2, form="k3")})
    (free,), total, _ = ppo.with_advantages([tree], answers, 0.2, in_loss)
    assert list(free.nodes[1].fields["returns"]) == pytest.approx([1, 1]) and total == pytest.approx(-0.5)
    assert list(free.nodes[1].fields["reference_logprobs"]) == [-1, -1]


def test_dropout_is_off_though_the_model_was_made_with_it() -> None:
    model = tiny_model(0, family="gpt2")
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for module in layers:
        module.p = 0.5
    learner = build_learner(LoadedModel(model, tiny_tokenizer(), "tiny", ""), ENGINE, OPTIM)
    node = Node(parent=0, tokens=(4, 5, 6), author="policy", fields={"weight": (1.0, 1.0, 1.0)})
    tree = Tree(id="t", nodes=(Node(parent=-1, tokens=(1, 2), author="prompt"), node))
    first, again = (learner.forward_backward([tree], "sft", {})["loss/train"] for _ in range(2))
    assert layers and first == again and not model.training
    model.train()
    noisy = [learner.forward_backward([tree], "sft", {})["loss/train"] for _ in range(2)]
    assert noisy[0] != noisy[1]  # the control: dropout would have shown
