"""The examples run, and stay as short as they promise."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.jsonl import text_completion
from prefloop.data.trees import with_fields
from prefloop.engine.build import build_learner
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.rewards.resolve import resolve_reward
from prefloop.types import Message, Node, Prompt, Tree

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_under_ten_lines_and_listed(path: Path) -> None:
    code = path.read_text().splitlines()
    lines = {n for node in ast.parse("\n".join(code)).body[1:] for n in range(node.lineno, (node.end_lineno or 0) + 1)}
    assert 0 < sum(bool(code[n - 1].strip()) for n in lines) < 10
    assert f"`{path.name}`" in (EXAMPLES / "README.md").read_text()


def test_a_reward_of_ones_own() -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="Why?"),))
    answers = [text_completion(prompt, text) for text in ("So.", "Because it is so.")]
    scores = resolve_reward("own_reward:brief", EngineConfig())([prompt] * 2, answers)
    assert [score.value for score in scores] == [1 / 2, 1 / 5]


def test_a_loss_of_ones_own_trains() -> None:
    """Both answers begin alike; what is better than the other grows likelier, and its gradient at ratio 1 is PPO's."""
    source = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", "")
    learner = build_learner(source, EngineConfig(dtype="fp32"), OptimConfig(lr=1.0))
    plain = [Node(parent=0, tokens=(t, t), author="policy", fields={"weight": (1.0, 1.0)}) for t in (5, 6)]
    tree = Tree(id="t", nodes=(Node(parent=-1, tokens=(1, 2), author="prompt"), *plain))
    before = learner.forward([tree], {"logprobs"})[0].logprobs
    fields = {1: {"advantages": [1.0, 1.0]}, 2: {"advantages": [-1.0, -1.0]}}
    ready = with_fields(tree, {n: own | {"old_logprobs": before[n].tolist()} for n, own in fields.items()})
    gradients = []
    for loss, params in (("own_loss:soft_clip", {}), ("ppo_policy", {"clip": 0.2})):
        learner.forward_backward([ready], loss, params)
        gradients.append(torch.cat([p.grad.flatten() for p in learner.masters if p.grad is not None]))
        learner.optimizer.zero_grad()
    torch.testing.assert_close(*gradients)
    for _ in range(5):
        learner.forward_backward([ready], "own_loss:soft_clip", {"steepness": 2.0})
        learner.optim_step(1e-3, 0.0)
    after = learner.forward([tree], {"logprobs"})[0].logprobs
    assert after[1].sum() > before[1].sum() and after[2].sum() < before[2].sum()
