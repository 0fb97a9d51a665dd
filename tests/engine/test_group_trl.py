"""The group loss and its advantages against TRL's own: values, and gradients of every token."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefloop.data.forest import Totals, build_forest
from prefloop.engine.objectives import group
from prefloop.engine.outputs import Outputs
from prefloop.ops.advantages import group_advantages
from prefloop.types import Node, Tree

TRL = Path(sys.prefix).with_name(".venv-trl") / "bin" / "python"
LENGTHS = ((3, 1, 5), (2, 7, 4))
LONGEST = 7
THEIRS = """
import inspect, json, math, sys, textwrap
from collections import defaultdict
from types import SimpleNamespace
import torch
import trl.trainer.grpo_trainer as module
from trl.trainer.grpo_trainer import GRPOTrainer

SCORING = inspect.getsource(GRPOTrainer._generate_and_score_completions)

def lines(start, stop):
    "A stretch of TRL's own code, from one line to before another."
    begin = SCORING.index(start)
    begin = SCORING.rindex("\\n", 0, begin) + 1
    return textwrap.dedent(SCORING[begin : SCORING.rindex("\\n", 0, SCORING.index(stop, begin)) + 1])

class Accelerator:
    device, num_processes = torch.device("cpu"), 1
    gather = gather_for_metrics = staticmethod(lambda x: x)
    reduce = staticmethod(lambda x, reduction="sum": x)

def padded(values):
    rows = [torch.tensor(row, dtype=torch.float64) for row in values]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

def loss(case):
    mask = padded([[1.0] * len(row) for row in case["new"]])
    new = padded(case["new"]).requires_grad_()
    old, sampled, reference = (padded(case[name]) for name in ("old", "sampled", "reference"))
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), aux_loss_enabled=False, top_entropy_quantile=1.0,
        off_policy_mask_threshold=case["drop_above"], get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        importance_sampling_level=case["level"], beta=case["beta"], loss_type=case["loss_type"],
        epsilon_low=case["clip"], epsilon_high=case["clip_high"], use_vllm=case["mode"] is not None,
        vllm_importance_sampling_correction=True, vllm_importance_sampling_mode=case["mode"],
        vllm_importance_sampling_clip_min=case["low"], vllm_importance_sampling_clip_max=case["high"],
        current_gradient_accumulation_steps=1, max_completion_length=case["longest"], _entropy_bonus_enabled=False,
        accelerator=Accelerator(), _metrics=defaultdict(lambda: defaultdict(list)),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, torch.zeros_like(new), None),
    )
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = dict(
        prompt_ids=ids[:, :1], prompt_mask=ids[:, :1], completion_ids=ids, completion_mask=mask,
        advantages=torch.tensor(case["advantages"], dtype=torch.float64), old_per_token_logps=old,
        ref_per_token_logps=reference, num_items_in_batch=mask.sum(),
    )
    if case["drop_above"] is not None or case["mode"]:
        inputs["sampling_per_token_logps"] = sampled
    if case["mode"]:
        names = dict(
            self=trainer, torch=torch, math=math, mask=mask, old_per_token_logps=old, sampling_per_token_logps=sampled
        )
        exec(lines("per_token_logps_diff = (old", "# Compute the per-token log probabilities for the ref"), names)
        inputs["importance_sampling_ratio"] = names["vllm_importance_sampling_ratio"]
    found = GRPOTrainer._compute_loss(trainer, None, inputs)
    found.backward()
    return [found.item(), *new.grad[mask > 0].tolist()]

def advantages(case):
    scores = torch.tensor(case["scores"], dtype=torch.float64)
    count = scores.shape[1]
    names = dict(torch=torch, nanstd=module.nanstd, rewards=scores.flatten(), num_generations=count)
    names["mean_grouped_rewards"] = scores.mean(dim=1).repeat_interleave(count)
    names["self"] = SimpleNamespace(scale_rewards=case["scale"])
    exec(lines('if self.scale_rewards in ["group"', "is_std_zero ="), names)
    return names["advantages"].tolist()

print(json.dumps([advantages(case) if "scale" in case else loss(case) for case in json.load(sys.stdin)]))
"""


def numbers(seed: int) -> dict[str, list[list[float]]]:
    """Log-probs of the answers by four policies that differ by up to a nat a token, in double precision's float32."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [n for tree in LENGTHS for n in tree]
    base = [-3 * torch.rand(n, generator=generator) - 0.1 for n in lengths]
    policies = ("new", "old", "sampled", "reference")
    return {p: [(row - 0.5 * torch.rand(len(row), generator=generator)).tolist() for row in base] for p in policies}


def ours(case: dict[str, Any], **changed: Any) -> list[float]:
    """Loss and gradients of the same case by the group loss, with some of its keys changed."""
    made, place = [], 0
    for index, lengths in enumerate(LENGTHS):
        nodes = [Node(parent=-1, tokens=(1, 2), author="prompt")]
        for n in lengths:
            columns = {name: tuple(case[own][place]) for name, own in COLUMNS.items()}
            fields = {**columns, "advantages": (case["advantages"][place],) * n, "weight": (1.0,) * n}
            nodes.append(Node(parent=0, tokens=(3,) * n, author="policy", fields=fields))
            place += 1
        made.append(Tree(id=str(index), nodes=tuple(nodes)))
    logprobs = torch.tensor([x for row in case["new"] for x in row], requires_grad=True)
    params = {**case["ours"], **changed}
    loss = group(Outputs(logprobs=logprobs), build_forest(made), Totals.of(made), longest=LONGEST, **params).loss
    loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    return [float(loss.detach()), *logprobs.grad.tolist()]


COLUMNS = {"old_logprobs": "old", "sampled_logprobs": "sampled", "reference_logprobs": "reference"}
MEANS = {"grpo": "response", "bnpo": "token", "dr_grpo": "constant", "dapo": "token", "cispo": "token"}
MODES = [(level, beyond) for level in ("token", "sequence") for beyond in ("truncate", "mask")]


def cases() -> list[dict[str, Any]]:
    """Every loss with either ratio, with and without KL; then GRPO with every correction, and what is dropped."""
    made = []
    for loss_type, level, beta in itertools.product(MEANS, ("token", "sequence"), (0.0, 0.04)):
        cispo = loss_type == "cispo"
        clips = {"clip": 1.0 if cispo else 0.1, "clip_high": 0.15}
        own = {**clips, "kl_coef": beta, "mean": MEANS[loss_type]}
        own |= {"ratio": "token" if level == "token" else "geometric", "surrogate": "weighted" if cispo else "clipped"}
        case = {"loss_type": loss_type, "level": level, "beta": beta, "ours": own, **clips}
        made.append(case | {"clip_high": 1.15} if cispo else case)  # TRL's is the bound itself
    plain: dict[str, Any] = {"loss_type": "dapo", "level": "token", "beta": 0.04, "clip": 0.1, "clip_high": 0.15}
    for (level, beyond), low, drop in itertools.product(MODES, (None, 0.9), (None, 0.05)):
        correction = {"level": level, "beyond": beyond, "low": low, "high": 1.3, "drop_above": drop}
        own = {"clip": 0.1, "clip_high": 0.15, "kl_coef": 0.04, "mean": "token", "correction": correction}
        made.append({**plain, "mode": f"{level}_{beyond}", "low": low, "high": 1.3, "drop_above": drop, "ours": own})
    rest = {"mode": None, "low": None, "high": None, "drop_above": None, "longest": LONGEST}
    advantages = [1.5, -0.7, 0.3, -1.2, 0.8, -0.4]
    return [{**rest, "advantages": advantages, **numbers(seed), **case} for seed, case in enumerate(made)]


SCORES = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SCORES[2] = 0.5
SCALES: list[Any] = ["group", "batch", "none"]


@pytest.fixture(scope="module")
def theirs() -> list[list[float]]:
    """What TRL makes of `cases`, each its loss and gradients, then of SCORES by each of SCALES."""
    if not TRL.exists():
        pytest.skip(f"no TRL to compare with at {TRL}: `make bench` installs it")
    asked = [*cases(), *({"scores": SCORES.tolist(), "scale": scale} for scale in SCALES)]
    done = subprocess.run([TRL, "-c", THEIRS], input=json.dumps(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[list[float]] = json.loads(done.stdout)
    return found


def test_losses_and_gradients_are_those_of_trl(theirs: list[list[float]]) -> None:
    asked = cases()
    assert len(asked) == 36
    for case, found in zip(asked, theirs[: len(asked)], strict=True):
        np.testing.assert_allclose(ours(case), found, rtol=2e-5, atol=1e-7, err_msg=str(case["ours"]))
    changes: list[dict[str, Any]] = [{"clip_high": 0.05}, {"mean": "token"}, {"kl_coef": 0.05}, {"ratio": "geometric"}]
    for change in changes:  # negative controls: a key that does not fit is seen
        with pytest.raises(AssertionError, match="Not equal"):
            np.testing.assert_allclose(ours(asked[1], **change), theirs[1], rtol=2e-5, atol=1e-7)


def test_advantages_are_those_of_trl(theirs: list[list[float]]) -> None:
    mine = [group_advantages(SCORES, centre="group", scale=scale).flatten().tolist() for scale in SCALES]
    np.testing.assert_allclose(mine, theirs[-len(SCALES) :], rtol=1e-7, atol=1e-9)
