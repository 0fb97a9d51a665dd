"""A job by this program, a step at a time: our_job.py JOB MODEL DATA OPTIONS (see cpu.py, which calls it).

DATA holds comparisons as JSON lines; of the job "decode", shapes (see protocol.Inputs). OPTIONS is JSON: dtype,
threads, batch, group, new_tokens, compiles (layers, on a GPU).
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from protocol import Decode, Inputs, Meter, serve, serve_decoding, timed

from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.forest import tree_tokens
from prefloop.data.jsonl import text_completion
from prefloop.data.trees import Encoder, answer_tree, preference_trees, with_fields
from prefloop.engine.build import build_encoder, build_learner, build_sampler, build_scorer, load, use_threads
from prefloop.engine.reference import FIELD
from prefloop.engine.verbs import Request
from prefloop.models.heads import reward_head
from prefloop.stages.sampling import sample_groups
from prefloop.types import Message, Preference, Prompt, Sampling, Tree

OPTIONS: dict[str, Any] = {}
BUDGET = 4096  # tokens of a forest
Step = Callable[[], dict[str, float]]


def main() -> None:
    job, model, data = sys.argv[1:4]
    OPTIONS.update(json.loads(sys.argv[4]))
    meter = Meter()
    engine = EngineConfig(
        dtype=OPTIONS["dtype"], threads=OPTIONS["threads"], token_budget=BUDGET, compile=OPTIONS["compiles"]
    )
    use_threads(engine)
    loaded = load(model, engine)
    if job == "decode":
        serve_decoding(decoding(loaded, engine), Inputs.read(), meter)
    else:
        step = training(job, loaded, engine, data)
        serve(lambda _: timed(step), meter)


def training(job: str, loaded: Any, engine: EngineConfig, data: str) -> Step:
    encoder = build_encoder(loaded)
    rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").split("\n") if line]
    head = reward_head(loaded.model.config.hidden_size, 0) if job == "reward" else None
    learner = build_learner(loaded, engine, OptimConfig(lr=1e-6), head=head)
    prompts = [Prompt(id=str(i), messages=tuple(Message(**m) for m in row["prompt"])) for i, row in enumerate(rows)]
    if job in ("grpo", "rloo"):
        return _grouped(job, learner, loaded, engine, encoder, prompts)
    pairs = [
        Preference(
            prompt=prompt,
            items=tuple(text_completion(prompt, row[side][0]["content"]) for side in ("chosen", "rejected")),
            target=1.0,
            group=prompt.id,
        )
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    if job == "sft":
        trees = [answer_tree(pair.prompt, pair.items[:1], encoder) for pair in pairs]
    else:
        trees = preference_trees(pairs, encoder)
    if job == "forest":
        return _forest(learner, loaded, trees)
    batches = itertools.cycle([trees[i : i + OPTIONS["batch"]] for i in range(0, len(trees), OPTIONS["batch"])])
    loss = {"sft": "sft", "reward": "bradley_terry", "dpo": "dpo"}[job]

    def step() -> dict[str, float]:
        batch = next(batches)
        passes = [3]
        if job == "dpo":
            batch = _with_reference(learner, batch)
            passes.append(1)
        learner.forward_backward(batch, loss, {"beta": 0.1} if job == "dpo" else {})
        learner.optim_step(1e-6, 1e-6)
        return {"units": len(batch), "gflop": sum(passes) * gflop(loaded, batch, head=job != "reward")}

    return step


def _forest(learner: Any, loaded: Any, trees: list[Tree]) -> Step:
    """Forward and backward of one forest, as full as comparisons make it, over every token of their answers."""
    chosen: list[Tree] = []
    for tree in trees:
        if sum(map(tree_tokens, [*chosen, tree])) <= BUDGET:
            chosen.append(tree)

    def step() -> dict[str, float]:
        learner.forward_backward(chosen, "sft", {})
        return {"units": sum(map(tree_tokens, chosen)), "gflop": 3 * gflop(loaded, chosen, head=True)}

    return step


def gflop(loaded: Any, trees: list[Tree], head: bool) -> float:
    """Of the matrix products of one forward pass, attention's over what is seen; a backward pass is two more."""
    config = loaded.model.config
    width = config.num_attention_heads * config.head_dim
    attention = 2 * width * config.num_hidden_layers * sum(map(seen, trees))
    decoder, unembedding = loaded.model.get_decoder(), loaded.model.get_output_embeddings().weight.numel()
    trunk = sum(p.numel() for p in decoder.parameters()) - unembedding
    read = sum(len(node.tokens) for tree in trees for node in tree.nodes if "weight" in node.fields)
    return 2e-9 * (trunk * sum(map(tree_tokens, trees)) + attention + head * unembedding * read)


def seen(tree: Tree) -> int:
    """Pairs of a token and one that it sees, itself included."""
    depths, pairs = [], 0
    for node in tree.nodes:
        before, own = depths[node.parent] if node.parent >= 0 else 0, len(node.tokens)
        depths.append(before + own)
        pairs += own * before + own * (own + 1) // 2
    return pairs


def _with_reference(learner: Any, trees: list[Tree]) -> list[Tree]:
    """The reference pass belongs to the step: here the policy itself, as nothing it read before is kept."""
    found = learner.forward(trees, {"logprobs"})
    return [
        with_fields(tree, {node: {FIELD: column.tolist()} for node, column in reading.logprobs.items()})
        for tree, reading in zip(trees, found, strict=True)
    ]


def _grouped(
    job: str, learner: Any, loaded: Any, engine: EngineConfig, encoder: Encoder, prompts: list[Prompt]
) -> Step:
    sampler = build_sampler(loaded, "bench", engine)
    group = OPTIONS["group"]
    samplings = [Sampling(max_tokens=OPTIONS["new_tokens"])] * group
    each = OPTIONS["batch"] // group
    turns = itertools.count()
    batches = itertools.cycle([prompts[i : i + each] for i in range(0, len(prompts), each)])

    reference = build_scorer(load(sys.argv[2], engine), engine) if job == "rloo" else None

    def step() -> dict[str, float]:
        chosen = next(batches)
        sampler.load(learner.publish())
        groups = sample_groups(sampler, encoder, chosen, samplings=samplings, seed=(next(turns),))
        trees = []
        for prompt, answers in zip(chosen, groups, strict=True):
            lengths = torch.tensor([float(len(a.text)) for a in answers])
            advantages = ((lengths - lengths.mean()) / (lengths.std() + 1e-4)).tolist()
            columns = {
                node: {
                    "advantages": [advantage] * len(answer.tokens),
                    "sampled_logprobs": answer.segments[0].logprobs,
                }
                for node, (answer, advantage) in enumerate(zip(answers, advantages, strict=True), 1)
            }
            trees.append(with_fields(answer_tree(prompt, answers, encoder), columns))
        if reference is not None:  # what the stage's leash reads, though the advantages here are without it
            learner.forward(trees, {"logprobs", "entropy"}, reference=reference, learned=True)
        learner.forward_backward(trees, "group", {"clip": 0.2, "ratio": "token" if job == "grpo" else "sequence"})
        learner.optim_step(1e-6, 1e-6)
        return {"units": OPTIONS["batch"]}

    return step


def decoding(loaded: Any, engine: EngineConfig) -> Decode:
    """Writes `group` answers to each prompt, all of `new` tokens."""
    sampler = build_sampler(loaded, "bench", engine)
    sampler.stops = frozenset()
    seeds = itertools.count()

    def decode(prompts: list[list[int]], group: int, new: int) -> float:
        requests = [
            Request(
                id=f"{i}/{k}",
                prompt_id=str(i),
                tokens=tuple(prompt),
                sampling=Sampling(max_tokens=new),
                seed=next(seeds),
            )
            for i, prompt in enumerate(prompts)
            for k in range(group)
        ]
        return sum(len(completion.tokens) for completion in sampler.generate(requests))

    return decode


if __name__ == "__main__":
    main()
