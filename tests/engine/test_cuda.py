"""One learner and one sampler on every device of this machine: gradients, updates, checkpoints and answers are those of
the plainest path on the CPU."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from prefloop.configs.shared import OptimConfig
from prefloop.engine.generate import LocalSampler
from prefloop.engine.local import LocalLearner
from prefloop.engine.verbs import Request
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import FAMILIES, tiny_model, tiny_tokenizer
from prefloop.types import Checkpoint, Node, Sampling, Tree

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
TOKENIZER = tiny_tokenizer()


def trees(count: int = 4) -> list[Tree]:
    """A prompt and four answers each, longer than the window and than a block of the fused kernel."""
    chance = random.Random(0)

    def node(parent: int, length: int) -> Node:
        fields = {} if parent < 0 else {"weight": (1.0,) * length}
        return Node(
            parent=parent, tokens=tuple(chance.randrange(259) for _ in range(length)), author="policy", fields=fields
        )

    sizes = [[chance.randint(20, 60), *(chance.randint(1, 30) for _ in range(4))] for _ in range(count)]
    return [Tree(id=str(i), nodes=tuple(node(0 if k else -1, n) for k, n in enumerate(s))) for i, s in enumerate(sizes)]


def learner(family: str, device: str, budget: int = 4096, *, compiles: bool = False) -> LocalLearner:
    loaded = LoadedModel(tiny_model(3, family=family).to(device), TOKENIZER, "tiny", "")
    return LocalLearner(loaded, optim=OptimConfig(lr=1e-3), token_budget=budget, compiles=compiles)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients(family: str, device: str) -> None:
    """All trees in one forest, against a branch at a time on the CPU."""
    whole, single = learner(family, device), learner(family, "cpu", budget=90)
    found, expected = (each.forward_backward(trees(), "sft", {}) for each in (whole, single))
    assert found["loss/train"] == pytest.approx(expected["loss/train"], rel=1e-5)
    for one, other in zip(whole.weights, single.weights, strict=True):
        assert one.grad is not None and other.grad is not None
        assert float((one.grad.cpu() - other.grad).norm() / other.grad.norm()) < 1e-4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_compiled_layers(family: str, device: str) -> None:
    """On a GPU; elsewhere nothing is compiled, and that is the same too."""
    ours, plain = learner(family, device, compiles=True), learner(family, "cpu")
    for count in (4, 2, 3):  # other lengths and numbers of nodes
        found, expected = (each.forward_backward(trees(count), "sft", {}) for each in (ours, plain))
        assert found["loss/train"] == pytest.approx(expected["loss/train"], rel=1e-5)
    for one, other in zip(ours.weights, plain.weights, strict=True):
        assert one.grad is not None and other.grad is not None
        assert float((one.grad.cpu() - other.grad).norm() / other.grad.norm()) < 1e-4


@pytest.mark.parametrize("device", DEVICES)
def test_updates_and_checkpoints(device: str, tmp_path: Path) -> None:
    """Two updates, the second from a checkpoint, are those of a learner on the CPU that never stopped."""
    ours, plain = learner("llama", device), learner("llama", "cpu")
    before = [weight.detach().clone() for weight in plain.weights]
    for each in (ours, plain):
        each.forward_backward(trees(), "sft", {})
        each.optim_step(1e-3, 0.0)
    record = Checkpoint(path="", kind="policy", step=1, parent="tiny", config_hash="")
    ours.save(tmp_path / "saved", record, {}, resumable=True)
    resumed = learner("llama", device)
    resumed.load(tmp_path / "saved")
    for each in (resumed, plain):
        each.forward_backward(trees(), "sft", {})
        each.optim_step(1e-3, 0.0)
    for one, other, old in zip(resumed.weights, plain.weights, before, strict=True):
        assert float(((one.cpu() - other).norm() / (other - old).norm()).detach()) < 0.01


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers(family: str, device: str) -> None:
    requests = [
        Request(
            id=f"{p}/{g}",
            prompt_id=str(p),
            tokens=tuple(range(60, 61 + 9 * p)),
            sampling=Sampling(max_tokens=16),
            seed=g,
        )
        for p in range(3)
        for g in range(3)
    ]

    def written(device: str, rows: int) -> dict[str, tuple[tuple[int, ...], np.ndarray]]:
        loaded = LoadedModel(tiny_model(3, family=family).to(device), TOKENIZER, "tiny", "")
        sampler = LocalSampler(loaded, context=2048, max_rows=rows)
        assert sampler.static == (device == "cuda")
        return {c.id: (c.tokens, np.asarray(c.segments[0].logprobs)) for c in sampler.generate(requests)}

    found, expected = written(device, 5), written("cpu", 2)
    for name, (tokens, logprobs) in expected.items():
        assert found[name][0] == tokens
        np.testing.assert_allclose(found[name][1], logprobs, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_in_bf16_a_learner_learns(device: str) -> None:
    loaded = LoadedModel(tiny_model(3).bfloat16().to(device), TOKENIZER, "tiny", "")
    ours = LocalLearner(loaded, optim=OptimConfig(lr=1e-2), token_budget=4096)
    losses = []
    for _ in range(5):
        losses.append(ours.forward_backward(trees(), "sft", {})["loss/train"])
        ours.optim_step(1e-2, 0.0)
    assert losses[-1] < losses[0] - 0.5
