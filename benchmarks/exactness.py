"""Whether packed trees compute what plain sequences do: gradients, bf16 errors and loss curves, against transformers.

    exactness.py --data PAIRS.jsonl [--json]

The plain path runs each branch with its prompt as one sequence through transformers' own attention. Three claims decide
the exit code:

- in fp32, for every family, each parameter's gradient of a forest is within 1e-5 (norm of the difference over norm);
- log-probs of the default model on real pairs in bf16 are at most 1.2 times as far from fp32 as the plain path's are;
- 50 steps of SFT and of DPO on real pairs, forest against plain path in fp32 with the same AdamW, have losses within
  1e-4 of each other at every step: a random Llama, and without QUICK=1 in the environment the default model too.

Writes benchmarks/results/exactness.json.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from growth import random_llama
from running import machine
from side_by_side import quick
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.jsonl import read_preferences, write_atomic
from prefloop.data.trees import Encoder, preference_trees, with_fields
from prefloop.engine.build import build_encoder, build_learner, build_scorer, compute_dtype, use_threads
from prefloop.engine.reference import FIELD
from prefloop.models.load import LoadedModel, load_model
from prefloop.models.tiny import FAMILIES, tiny_model, tiny_tokenizer
from prefloop.types import Node, Tree

OUT = Path(__file__).parent / "results" / "exactness.json"
MODEL = "smollm2-135m"
GRADIENT_BAR, BF16_BAR, CURVE_BAR = 1e-5, 1.2, 1e-4
STEPS, PAIRS, BETA, PROMPT, ANSWER = 50, 2, 0.1, 40, 24
ENGINE = EngineConfig(dtype="fp32", token_budget=1 << 16)


def plain_logprobs(model: Any, tree: Tree) -> list[Tensor]:
    """Log-probs of each answer's tokens, in fp32 from the model's own logits, each answer run alone with its prompt."""
    prompt, *answers = tree.nodes
    found = []
    for answer in answers:
        tokens = torch.tensor(prompt.tokens + answer.tokens)
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, len(prompt.tokens) - 1 : -1].float()
        found.append(torch.log_softmax(logits, -1).gather(-1, tokens[len(prompt.tokens) :, None])[:, 0])
    return found


def plain(model: Any) -> Any:
    model.set_attn_implementation("eager")
    return model


def apart(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


def family_error(family: str, trees: Sequence[Tree]) -> float:
    """The largest relative error of a parameter's gradient, of the mean negative log-likelihood."""
    ours, theirs = tiny_model(3, family=family), plain(tiny_model(3, family=family))
    learner = build_learner(LoadedModel(ours, tiny_tokenizer(), "tiny", ""), ENGINE, OptimConfig(lr=1e-3))
    learner.forward_backward(trees, "sft", {})
    logprobs = torch.cat([found for tree in trees for found in plain_logprobs(theirs, tree)])
    (-logprobs.mean()).backward()
    wanted = dict(theirs.named_parameters())
    return max(apart(p.grad, wanted[name].grad) for name, p in ours.named_parameters())


def random_trees(count: int) -> list[Tree]:
    chance = random.Random(0)

    def node(parent: int, longest: int) -> Node:
        tokens = tuple(chance.randrange(259) for _ in range(chance.randint(4, longest)))
        fields = {"weight": (1.0,) * len(tokens)} if parent == 0 else {}
        return Node(parent=parent, tokens=tokens, author="policy", fields=fields)

    return [Tree(id=str(i), nodes=(node(-1, 24), *(node(0, 16) for _ in range(4)))) for i in range(count)]


def pair_trees(data: str, encoder: Encoder, count: int) -> list[Tree]:
    """The first real comparisons, cut to 40 tokens of the prompt's end and 24 of each answer, so that a step is short;
    those whose answers are then equal are left out."""
    made: list[Tree] = []
    for tree in preference_trees(read_preferences(data, skip_bad=True)[: 2 * count], encoder):
        prompt, *answers = tree.nodes
        cut = [replace(a, tokens=a.tokens[:ANSWER], fields={"weight": a.fields["weight"][:ANSWER]}) for a in answers]
        if len({answer.tokens for answer in cut}) == len(cut):
            made.append(replace(tree, nodes=(replace(prompt, tokens=prompt.tokens[-PROMPT:]), *cut)))
        if len(made) == count:
            return made
    raise SystemExit(f"exactness.py: only {len(made)} of {count} comparisons are left; give more data.")


@torch.no_grad()
def bf16_errors(trees: Sequence[Tree]) -> dict[str, float]:
    """Distances of log-probs in bf16 from those of the plain path in fp32, relative to these."""
    in_turn = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = plain(load_model(MODEL, dtype=dtype).model)
        in_turn[dtype] = torch.cat([found for tree in trees for found in plain_logprobs(model, tree)])
    exact, theirs = in_turn.values()
    readings = build_scorer(load_model(MODEL, dtype=torch.bfloat16), ENGINE).forward(trees, {"logprobs"})
    ours = torch.cat([torch.from_numpy(reading.logprobs[node]) for reading in readings for node in (1, 2)])
    found = {"ours": apart(ours, exact), "plain": apart(theirs, exact)}
    return {**found, "ratio": found["ours"] / found["plain"], "tokens": len(exact)}


def our_curve(loaded: LoadedModel, batches: Sequence[Sequence[Tree]], method: str, optim: OptimConfig) -> list[float]:
    learner = build_learner(loaded, ENGINE, optim)
    losses = []
    if method == "dpo":
        read = [learner.forward(batch, {"logprobs"}) for batch in batches]
        batches = [
            [
                with_fields(tree, {node: {FIELD: list(column)} for node, column in reading.logprobs.items()})
                for tree, reading in zip(batch, readings, strict=True)
            ]
            for batch, readings in zip(batches, read, strict=True)
        ]
    for step in range(STEPS):
        found = learner.forward_backward(
            batches[step % len(batches)], method, {"beta": BETA} if method == "dpo" else {}
        )
        losses.append(found["loss/train"])
        learner.optim_step(optim.lr, optim.lr)
    return losses


def plain_curve(model: Any, batches: Sequence[Sequence[Tree]], method: str, optim: OptimConfig) -> list[float]:
    adam = torch.optim.AdamW(model.parameters(), optim.lr, optim.betas, optim.eps, optim.weight_decay)
    with torch.no_grad():
        reference = [[plain_logprobs(model, tree) for tree in batch] if method == "dpo" else [] for batch in batches]
    losses = []
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        logprobs = [plain_logprobs(model, tree) for tree in batch]
        if method == "sft":
            loss = -torch.cat([answer for answers in logprobs for answer in answers]).mean()
        else:
            margins = []
            for tree, now, before in zip(batch, logprobs, reference[step % len(batches)], strict=True):
                ratios = [(a - b).sum() for a, b in zip(now, before, strict=True)]
                (pair,) = tree.pairs
                better, worse = (pair.a, pair.b) if pair.target > 0.5 else (pair.b, pair.a)
                margins.append(BETA * (ratios[better - 1] - ratios[worse - 1]))
            loss = -logsigmoid(torch.stack(margins)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
        adam.step()
        adam.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def curves(make: Callable[[], LoadedModel], trees: Sequence[Tree], method: str, lr: float) -> dict[str, Any]:
    """Losses of both paths from equal weights on the same batches, and the largest difference at any step."""
    batches = [trees[i : i + PAIRS] for i in range(0, len(trees), PAIRS)]
    optim = OptimConfig(lr=lr, weight_decay=0.01)
    ours = our_curve(make(), batches, method, optim)
    theirs = plain_curve(plain(make().model), batches, method, optim)
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return {"ours": ours, "plain": theirs, "largest_difference": worst}


def main(arguments: list[str] | None = None) -> int:
    """0 when all three claims hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("DATA", ""), help="comparisons, in a layout the loop reads")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    if not options.data:
        parser.error("name comparisons to measure on: --data PAIRS.jsonl, or DATA=PAIRS.jsonl")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    began = time.monotonic()
    use_threads(ENGINE)
    families = {family: family_error(family, random_trees(4)) for family in FAMILIES}
    loaded = load_model(MODEL, dtype=torch.float32)
    trees = pair_trees(options.data, build_encoder(loaded), 8 * PAIRS)
    few = 2 if compute_dtype(EngineConfig()) == torch.float32 else len(trees)  # where bf16 is emulated, it is slow
    bf16 = bf16_errors(trees[:few])
    makers = {"random": (lambda: random_llama(len(loaded.tokenizer), torch.float32), 3e-4)}
    if not quick():
        makers[MODEL] = (lambda: load_model(MODEL, dtype=torch.float32), 1e-5)
    found = {
        f"{name}/{method}": curves(make, trees, method, lr)
        for name, (make, lr) in makers.items()
        for method in ("sft", "dpo")
    }
    answer = {
        "machine": machine(),
        "gradient_errors_fp32": families,
        "bf16": bf16,
        "curves": found,
        "holds": {
            "gradients": max(families.values()) <= GRADIENT_BAR,
            "bf16": bf16["ratio"] <= BF16_BAR,
            "curves": all(each["largest_difference"] <= CURVE_BAR for each in found.values()),
        },
        "minutes": (time.monotonic() - began) / 60,
    }
    write_atomic(options.out, json.dumps(answer, indent=2) + "\n")
    print(json.dumps(answer, indent=None if options.json else 2))
    return int(not all(answer["holds"].values()))


if __name__ == "__main__":
    sys.exit(main())
