"""The group stage on a tiny model: its presets, dynamic sampling, old rollouts, what a resumed run finds again."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefloop.configs.group import GroupConfig
from prefloop.configs.rollout import KLConfig
from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.jsonl import text_completion, write_jsonl
from prefloop.stages import group
from prefloop.stages.group import check_age, with_advantages
from prefloop.stages.rollouts import Rollout
from prefloop.types import Completion, Message, Node, PrefloopError, Prompt, Segment, Tree, from_json

REWARDS = """
from prefloop.types import Score

def even(prompts, completions):
    return [Score(value=sum(t % 2 == 0 for t in c.tokens) / len(c.tokens)) for c in completions]

def some(prompts, completions):
    "A number for odd prompts, one and the same for even ones."
    return [Score(value=s.value * (int(p.id[1:]) % 2)) for p, s in zip(prompts, even(prompts, completions))]

def flat(prompts, completions):
    return [Score(value=0.5) for c in completions]

calls = 0

def fails_once(prompts, completions):
    global calls
    calls += 1
    if calls == 8:
        raise RuntimeError("the power went off")
    return some(prompts, completions)
"""


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_group", raising=False)
    Path("toy_group.py").write_text(REWARDS)
    messages = [(Message(role="user", content=f"Name {i}."),) for i in range(12)]
    write_jsonl("prompts.jsonl", [Prompt(id=f"p{i}", messages=m) for i, m in enumerate(messages)])


def config(out: str, reward: str, **rest: Any) -> GroupConfig:
    return GroupConfig(
        **{
            "out": out,
            "policy": "tiny",
            "prompts": "prompts.jsonl",
            "reward": f"toy_group:{reward}",
            "steps": 4,
            "prompts_per_step": 3,
            "group": 3,
            "max_tokens": 4,
            "missing_stop_score": None,
            "kl": KLConfig(controller="fixed", coef=0.0),
            "optim": OptimConfig(lr=3e-3, decay=False, warmup=0.0),
            "engine": EngineConfig(dtype="fp32", threads=1, token_budget=1500),
            **rest,
        }
    )


def metrics(out: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "time/" not in key} for row in rows]


def sampled(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "samples.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize("method", ["dr-grpo", "dapo", "gspo", "cispo", "reinforce++"])
def test_a_method_raises_a_reward(method: str) -> None:
    """(test_stages.py has GRPO, RLOO and the control without a reward.)"""
    leash = KLConfig(controller="fixed", coef=0.01)
    group.run(config("run", "even", method=method, steps=12, group=8, prompts_per_step=4, kl=leash, overlong=0.0))
    rows = metrics("run")
    assert np.mean([row["reward/score"] for row in rows[-3:]]) > 0.15 + np.mean([r["reward/score"] for r in rows[:3]])
    resolved = json.loads(Path("run", "config.json").read_text())
    assert resolved["method"] == method and resolved["kl"]["form"] == ("reward" if "+" in method else "k3")


def test_dynamic_sampling_drops_flat_groups_and_fills_the_batch_within_its_draws() -> None:
    group.run(config("once", "some"))
    group.run(config("more", "some", draws=12))
    once, more = metrics("once"), metrics("more")
    assert np.mean([row["reward/flat_groups"] for row in once]) > 0.3
    assert [row["reward/flat_groups"] for row in more] == [0] * 4
    for row in more:
        assert row["sampler/drawn"] * (1 - row["sampler/drawn_flat"]) == pytest.approx(3)
    assert max(row["sampler/drawn"] for row in more) > 3
    assert {int(row["prompt_id"][1:]) % 2 for row in sampled("more")} == {1} and len(sampled("more")) == 4 * 9
    group.run(config("never", "flat", draws=3, steps=2))
    rows = metrics("never")
    assert [(row["reward/flat_groups"], row["sampler/drawn"], row["optim/grad_norm"]) for row in rows] == [
        (1, 9, 0)
    ] * 2
    drawn = [row["prompt_id"] for row in sampled("never")][::3]
    assert len(drawn) == 6 and len(set(drawn[:3])) == 3


def test_rollouts_may_be_so_old_and_no_older_and_are_weighed() -> None:
    group.run(config("stale", "even", staleness=2, minibatches=3, optim=OptimConfig(lr=1e-2, decay=False, warmup=0.0)))
    rows = metrics("stale")
    assert [row["sampler/staleness"] for row in rows] == [0, 3, 6, 6]
    versions = [from_json(Completion, row["completion"]).version for row in sampled("stale")][::9]
    assert versions == [0, 0, 0, 3]
    assert rows[0]["sampler/importance"] == pytest.approx(1, abs=1e-3) and rows[0]["sampler/logprob_gap"] < 1e-4
    assert all(row["sampler/logprob_gap"] > 1e-3 and row["sampler/importance"] != 1 for row in rows[2:])
    group.run(config("lone", "even", staleness=1, optim=OptimConfig(lr=1e-2, decay=False, warmup=0.0)))
    assert metrics("lone")[-1]["sampler/staleness"] == 1 and metrics("lone")[-1]["sampler/importance"] != 1
    prompt = Prompt(id="p", messages=())
    old = [Rollout(prompt, replace(text_completion(prompt, "a"), version=v), 0, 1, 0.0, {}) for v in (7, 5)]
    assert check_age(old, 9, 4) == 4
    with pytest.raises(PrefloopError, match="A rollout is 4 updates old, over the limit of 3"):
        check_age(old, 9, 3)


def test_an_interrupted_run_goes_on_with_the_same_prompts_and_the_same_old_rollouts() -> None:
    rest: dict[str, Any] = {"steps": 6, "draws": 2, "staleness": 1, "save_every": 2, "minibatches": 2}
    group.run(config("whole", "some", **rest))
    with pytest.raises(RuntimeError, match="power"):
        group.run(config("broken", "fails_once", **rest))
    assert 2 <= len(metrics("broken")) < 6
    group.run(config("broken", "fails_once", **rest))
    assert metrics("whole") == metrics("broken") and len(metrics("whole")) == 6
    assert [row["completion"] for row in sampled("whole")] == [
        {**row["completion"], "checkpoint": "whole"} for row in sampled("broken")
    ]


def rollouts(reason: Any = "stop") -> tuple[list[Tree], list[Rollout]]:
    """Two groups of two answers, of two tokens and of one; log pi - log pi_ref is 0.5 and 0.25, or 0.1."""
    trees, made = [], []
    for tree, scores in enumerate(((1.0, 0.0), (2.0, 2.0))):
        prompt, nodes = Prompt(id=f"p{tree}", messages=()), [Node(parent=-1, tokens=(1,), author="prompt")]
        for node, (score, ratios) in enumerate(zip(scores, ((0.5, 0.25), (0.1,)), strict=True), 1):
            own = np.full(len(ratios), -1.0, dtype=np.float32)
            tokens = (3,) * len(ratios)
            columns = {"logprobs": own, "reference": own - np.array(ratios, dtype=np.float32)}
            segment = Segment(author="policy", tokens=tokens, logprobs=tuple(own.tolist()))
            ended = reason if node == 1 else "stop"
            answer = replace(text_completion(prompt, "a"), segments=(segment,), finish_reason=ended)
            nodes.append(Node(parent=0, tokens=tokens, author="policy", fields={"weight": (1.0,) * len(tokens)}))
            made.append(Rollout(prompt, answer, tree, node, score, columns))
        trees.append(Tree(id=prompt.id, nodes=tuple(nodes)))
    return trees, made


def advantages(method: str, coef: float, **rest: Any) -> list[float]:
    trees, made = rollouts()
    trees = with_advantages(trees, made, coef, config("run", "even", method=method, group=2, **rest))
    return [a for tree in trees for node in tree.nodes[1:] for a in node.fields["advantages"]]


def test_the_leash_in_the_reward_is_an_answers_price_of_rloo_and_each_tokens_of_reinforce() -> None:
    """beta 1: RLOO's scores are 1 - 0.75, 0 - 0.1 and 2 - 0.75, 2 - 0.1; of REINFORCE++ a token pays for what follows
    it, its own included, and mean and std are those of all tokens."""
    leash = KLConfig(controller="fixed", coef=1.0)
    found = advantages("rloo", 1.0, kl=leash)
    assert found == pytest.approx([0.35, 0.35, -0.35, -0.65, -0.65, 0.65], rel=1e-5)
    tokens = np.array([1 - 0.75, 1 - 0.25, 0 - 0.1, 2 - 0.75, 2 - 0.25, 2 - 0.1])
    expected = (tokens - tokens.mean()) / (tokens.std(ddof=1) + 1e-4)
    assert advantages("reinforce++", 1.0, kl=leash) == pytest.approx(expected.tolist(), rel=1e-5)
    free = np.array([1.0, 0.0, 2.0, 2.0])
    normal = ((free - free.mean()) / (free.std(ddof=1) + 1e-4))[[0, 0, 1, 2, 2, 3]]
    assert advantages("reinforce++", 1.0, kl=KLConfig(form="k2", controller="fixed")) == pytest.approx(normal.tolist())
    assert advantages("grpo", 1.0, kl=leash)[3:] == [0, 0, 0]


def test_cut_off_answers_are_compared_and_not_learned_from() -> None:
    for skip, weights in ((True, (0.0, 0.0)), (False, (1.0, 1.0))):
        trees, made = rollouts("length")
        trees = with_advantages(trees, made, 0.0, config("run", "even", group=2, skip_truncated=skip))
        assert trees[0].nodes[1].fields["weight"] == weights and trees[0].nodes[2].fields["weight"] == (1.0,)
        assert trees[0].nodes[2].fields["advantages"][0] < 0


def test_a_batch_of_answers_that_were_all_cut_off_teaches_nothing() -> None:
    """A random model's answers of two tokens hardly ever end."""
    group.run(config("run", "even", skip_truncated=True, max_tokens=2, steps=2, minibatches=2))
    for row in metrics("run"):
        assert (row["length/stopped_share"], row["optim/grad_norm"], row["policy/ratio_max"]) == (0, 0, 0)
