"""A process reward model: what it learns, what it does not look at, and how it is measured and used."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefloop.configs.reward import EarlyStopConfig, RewardConfig
from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.jsonl import text_completion, write_jsonl
from prefloop.data.trees import step_trees
from prefloop.engine.build import build_encoder, build_learner
from prefloop.models.checkpoint import read_checkpoint
from prefloop.models.heads import reward_head
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.rewards.resolve import resolve_reward
from prefloop.stages import reward
from prefloop.types import Message, PrefloopError, Prompt, StepLabels

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=1500)


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def asked(index: int) -> Prompt:
    return Prompt(id=f"p{index}", messages=(Message(role="user", content=f"Name {index} things."),))


def write_marked(prompts: int, each: int = 4) -> None:
    """Answers of three lines of random letters; a line with a Q is wrong."""
    chance, made = random.Random(0), []
    for index in range(prompts):
        for _ in range(each):
            wrong = [chance.random() < 0.3 for _ in range(3)]
            lines = [chance.choices("abcdefgh", k=4) for _ in wrong]
            for line, bad in zip(lines, wrong, strict=True):
                if bad:
                    line[chance.randrange(4)] = "Q"
            text = "\n".join("".join(line) for line in lines)
            labels = tuple(float(not bad) for bad in wrong)
            made.append(StepLabels(prompt=asked(index), completion=text_completion(asked(index), text), labels=labels))
    write_jsonl("steps.jsonl", made)


def config(out: str, **rest: Any) -> RewardConfig:
    settings: dict[str, Any] = {"epochs": 3, "batch": 2, "heldout": 0.3, "engine": ENGINE}
    settings |= {"loss": "process", "steps": "lines", "optim": OptimConfig(lr=2e-3, head_lr=2e-3), **rest}
    return RewardConfig(out=out, model="tiny", preferences="steps.jsonl", **settings)


def said(out: str) -> tuple[list[float], list[float]]:
    """Probabilities and labels of the held-out steps that have one."""
    rows = [json.loads(line) for line in Path(out, "steps.jsonl").read_text().splitlines()]
    return [p for row in rows for p in row["probabilities"]], [label for row in rows for label in row["labels"]]


def apart(out: str) -> float:
    """How much higher right steps are rated than wrong ones."""
    probabilities, labels = said(out)
    means = [np.mean([p for p, label in zip(probabilities, labels, strict=True) if label == side]) for side in (1, 0)]
    return float(means[0] - means[1])


def test_it_learns_planted_errors_of_steps_and_scores_answers_by_them() -> None:
    write_marked(36)
    result = reward.run(config("rm"))
    assert result["accuracy"] > 0.9 > result["right"] + 0.1 and apart("rm") > 0.6
    probabilities, labels = said("rm")
    assert len(labels) == result["steps_heldout"] and np.mean(labels) == pytest.approx(result["right"])
    assert np.mean((np.array(probabilities) > 0.5) == np.array(labels)) == pytest.approx(result["accuracy"])
    assert result["accuracy_low"] <= result["accuracy"] <= result["accuracy_high"] and result["ece"] < 0.2
    record = read_checkpoint("rm/checkpoint")
    assert record.kind == "reward" and record.details == {"steps": "lines", "pooling": "last", "head_seed": 0}
    rows = [json.loads(line) for line in Path("rm/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss/train"] < 0.5 * rows[0]["loss/train"]
    texts = ["abcd\nefgh\nabab", "abcd\neQgh\nabab", "aQcd\neQgh\nabab"]
    judge = resolve_reward("steps=product:rm", ENGINE)
    whole, one, two = judge([asked(0)] * 3, [text_completion(asked(0), text) for text in texts])
    assert whole.value > 0.6 > 0.4 > one.value > two.value and list(whole.parts) == [f"steps[{i}]" for i in range(3)]
    assert one.parts["steps[1]"] < 0.4 < 0.6 < one.parts["steps[0]"]


def test_from_other_answers_labels_it_learns_nothing() -> None:
    write_marked(36)
    result = reward.run(config("shuffled", shuffle_labels=True))
    assert result["labels_shuffled"] and abs(apart("shuffled")) < 0.1
    assert result["accuracy"] < result["right"] + 0.02


def test_early_stop_reads_the_held_out_steps() -> None:
    write_marked(12)
    result = reward.run(config("rm", early_stop=EarlyStopConfig(every=2, patience=2), epochs=2))
    probabilities, labels = (np.array(column) for column in said("rm"))
    loss = -np.mean(labels * np.log(probabilities) + (1 - labels) * np.log(1 - probabilities))
    assert result["loss_heldout"] == pytest.approx(loss, rel=1e-4) and result["steps_heldout"] == labels.size


def test_labels_by_another_rule_are_told() -> None:
    write_marked(4)
    with pytest.raises(PrefloopError, match=r"has 1 steps by the rule 'paragraphs' and 3 labels"):
        reward.run(config("rm", steps="paragraphs"))


def gradients(labeled: Sequence[tuple[str, tuple[float | None, ...]]], token_budget: int = 1500) -> torch.Tensor:
    """Of the embeddings [V, D], for answers with these labels."""
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", "")
    engine, optim = ENGINE.model_copy(update={"token_budget": token_budget}), OptimConfig(lr=1.0)
    learner = build_learner(loaded, engine, optim, head=reward_head(64, 0))
    items = [StepLabels(prompt=asked(0), completion=text_completion(asked(0), t), labels=own) for t, own in labeled]
    learner.forward_backward(step_trees(items, build_encoder(loaded), "lines"), "process", {})
    found = learner.model.get_input_embeddings().weight.grad  # type: ignore[operator,union-attr]
    assert isinstance(found, torch.Tensor)
    return found


def test_after_the_first_error_the_gradient_is_exactly_zero() -> None:
    text = "abc\nxyz\nKLM"  # tokens of the last step stand nowhere else
    late = tiny_tokenizer()("KLM")["input_ids"]
    early = tiny_tokenizer()("abcxyz")["input_ids"]
    found = gradients([(text, (1.0, 0.0, 1.0))])
    assert (found[late] == 0).all() and (found[early].abs().sum(-1) > 0).all()
    for rest in (0.0, None, 0.5):
        assert torch.equal(found, gradients([(text, (1.0, 0.0, rest))]))
    assert (gradients([(text, (1.0, 0.5, 1.0))])[late].abs().sum(-1) > 0).all()
    assert (gradients([(text, (1.0, None, None))])[early].abs().sum(-1) > 0).tolist() == [True] * 3 + [False] * 3


def test_the_gradient_does_not_depend_on_how_a_prompts_answers_are_cut() -> None:
    labeled = [("ab\ncd", (1.0, 0.25)), ("ef\ngh\nij", (1.0, 0.0, None)), ("kl", (0.5,))]
    whole = gradients(labeled)
    assert torch.allclose(whole, gradients(labeled, token_budget=60), atol=1e-6) and whole.abs().max() > 1e-4
