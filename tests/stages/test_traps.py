"""Traps that peers fell into and that end with a wrong model and no error (TRL issues 4159, 6789; verl 6280, 7495;
open-instruct 1473): each is set here, and seen to be found or to have no effect."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from prefloop.configs.group import GroupConfig
from prefloop.configs.ppo import PPOConfig
from prefloop.configs.rollout import KLConfig
from prefloop.configs.shared import EngineConfig, LoraConfig, OptimConfig
from prefloop.data.jsonl import write_jsonl
from prefloop.data.trees import with_fields
from prefloop.engine.build import build_learner, load
from prefloop.engine.decode import Decoder
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.stages import group
from prefloop.types import Message, Node, PrefloopError, Prompt, Sampling, Tree

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=1500)
REWARD = """
from prefloop.types import Score

def even(prompts, completions):
    return [Score(value=sum(t % 2 == 0 for t in c.tokens) / len(c.tokens)) for c in completions]
"""


def config(out: str, **rest: Any) -> GroupConfig:
    settings: dict[str, Any] = {
        "policy": "tiny",
        "prompts": "prompts.jsonl",
        "reward": "toy_traps:even",
        "steps": 3,
        "prompts_per_step": 3,
        "group": 3,
        "max_tokens": 4,
        "kl": KLConfig(controller="fixed", coef=0.0),
        "optim": OptimConfig(lr=2e-2, decay=False, warmup=0.0),
        "engine": ENGINE,
        **rest,
    }
    return GroupConfig(out=out, **settings)


@pytest.fixture
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_traps", raising=False)
    Path("toy_traps.py").write_text(REWARD)
    write_jsonl(
        "prompts.jsonl", [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"{i}?"),)) for i in range(3)]
    )


@pytest.mark.usefixtures("_workspace")
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=64)], ids=["whole", "lora"])
def test_a_sampler_that_does_not_get_the_new_weights_is_found(
    lora: LoraConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    group.run(config("served", lora=lora))
    packed = Decoder.load
    monkeypatch.setattr(Decoder, "load", lambda self: None if self.layers[0] else packed(self))
    with pytest.raises(PrefloopError, match="the sampler does not serve the trained weights"):
        group.run(config("stale", lora=lora))


@pytest.mark.usefixtures("_workspace")
def test_a_temperature_is_in_every_log_prob() -> None:
    """Were it missing in one, the sampler's gap, the first ratio and the reference's distance would be far from 0."""
    leash = KLConfig(controller="fixed", coef=0.1)
    group.run(config("cool", temperature=0.6, minibatches=3, kl=leash, steps=2))
    first = json.loads(Path("cool", "metrics.jsonl").read_text().splitlines()[0])
    assert first["sampler/logprob_gap"] < 1e-4 and abs(first["kl/response"]) < 1e-4


@pytest.mark.parametrize("key", ["top_p", "top_k", "min_p", "repetition_penalty", "min_tokens"])
def test_what_bends_the_sampling_distribution_is_refused(key: str) -> None:
    for kind in (GroupConfig, PPOConfig):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            kind(out="run", **{key: 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=key):
        Sampling(**{key: 1})


def test_dropout_is_off_when_reading_and_when_learning(tmp_path: Path) -> None:
    """Of a family whose checkpoints ask for it; with it the first ratio is not 1."""
    tiny_model(width=16, family="gpt2").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    learner = build_learner(load(str(tmp_path), ENGINE), ENGINE, OptimConfig(lr=1.0))
    assert learner.loaded.model.config.resid_pdrop == 0.1
    answer = Node(parent=0, tokens=(5, 6, 7), author="policy", fields={"weight": (1.0,) * 3})
    tree = Tree(id="t", nodes=(Node(parent=-1, tokens=(1, 2), author="prompt"), answer))
    old = learner.forward([tree], {"logprobs"})[0].logprobs[1].tolist()
    columns = {"old_logprobs": old, "sampled_logprobs": old, "advantages": [1.0] * 3}
    ready = with_fields(tree, {1: columns})
    for training, apart in ((False, False), (True, True)):
        learner.model.train(training)
        torch.manual_seed(0)
        ratio = learner.forward_backward([ready], "group", {"clip": 0.2})["policy/ratio_max"]
        assert (abs(ratio - 1) > 1e-3) == apart
