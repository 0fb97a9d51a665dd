"""How time and memory grow: with tokens, branches, vocabulary, context and batch; and what sharing a prompt saves.

    growth.py [--json]

Ours only. Growth is measured on a random Llama of five million weights, each point in three processes of its own, of
which that of median memory counts: seconds of forward and backward (median), and memory, the peak of a whole SFT step
above what the process held before and above weights, gradients and optimizer state. Exponents are slopes of lines
through logarithms. Sharing is measured on the default model, in turn. Two claims decide the exit code:

- unshared packing takes at least 0.85 x G(P+R)/(P+GR) as long as shared trees, for prompts P and responses R of 64 and
  256 tokens and groups G of 2 and 8;
- that memory is, at a vocabulary of 128k and 256k, no larger than 1.1 times that at 32k.

QUICK=1 in the environment: fewer points. Writes benchmarks/results/growth.json.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from running import machine
from side_by_side import quick
from transformers import AutoModelForCausalLM, LlamaConfig

from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.forest import tree_tokens
from prefloop.data.jsonl import write_atomic
from prefloop.engine.build import build_learner, compute_dtype, load, use_threads
from prefloop.models.attention import IMPLEMENTATION
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import tiny_tokenizer
from prefloop.types import Node, Tree

OUT = Path(__file__).parent / "results" / "growth.json"
SHARING_BAR, MEMORY_BAR = 0.85, 1.1
MODEL, WIDTH, LAYERS = "smollm2-135m", 256, 4


@dataclass(frozen=True, slots=True)
class Point:
    """A training step of a random Llama: `trees` trees of a prompt and `branches` responses."""

    trees: int = 4
    prompt: int = 64
    branches: int = 1
    response: int = 192
    vocabulary: int = 8192
    token_budget: int = 1 << 20


CURVES: dict[str, dict[int, Point]] = {
    "tokens": {n: Point(response=n // 4 - 64) for n in (512, 1024, 2048, 4096)},
    "branches": {g: Point(trees=1, prompt=512, branches=g, response=64) for g in (1, 2, 4, 8, 16)},
    # Of logits a fixed amount is kept for the backward pass: here more than that is read at each vocabulary.
    "vocabulary": {v: Point(trees=16, vocabulary=v) for v in (32_768, 131_072, 262_144)},
    "context": {n: Point(trees=1, response=n - 64) for n in (512, 1024, 2048, 4096)},
    "batch": {n: Point(trees=n, token_budget=1024) for n in (4, 8, 16, 32)},
}
SHARED = [(p, r, g) for p in (64, 256) for r in (64, 256) for g in (2, 8)]


def random_llama(vocabulary: int, dtype: torch.dtype) -> LoadedModel:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    make: Any = AutoModelForCausalLM.from_config
    torch.manual_seed(0)
    return LoadedModel(make(config, dtype=dtype, attn_implementation=IMPLEMENTATION).eval(), tiny_tokenizer(), "", "")


def trees_of(point: Point, *, shared: bool = True) -> list[Tree]:
    """The point's trees, of random tokens below 8,192; not `shared`: a prompt stands once for each response."""
    chance = random.Random(0)

    def node(parent: int, length: int, read: bool) -> Node:
        tokens = tuple(chance.randrange(8192) for _ in range(length))
        names = ("weight", "advantages", "sampled_logprobs") if read else ()
        return Node(parent=parent, tokens=tokens, author="policy", fields=dict.fromkeys(names, (1.0,) * length))

    made = []
    for index in range(point.trees):
        prompt = node(-1, point.prompt, False)
        answers = [node(0, point.response, True) for _ in range(point.branches)]
        groups = [answers] if shared else [[answer] for answer in answers]
        made += [Tree(id=f"{index}/{i}", nodes=(prompt, *group)) for i, group in enumerate(groups)]
    return made


def measure(point: Point, counted: int) -> dict[str, float]:
    """Tokens, seconds and MB of a point; `other_mb` is what parameters, gradients and optimizer state do not explain.
    Reads the peak memory of its process, so that each point needs a new one."""
    engine = EngineConfig(token_budget=point.token_budget)
    use_threads(engine)
    before = memory_mb("VmRSS")
    learner = build_learner(random_llama(point.vocabulary, compute_dtype(engine)), engine, OptimConfig(lr=1e-6))
    trees, seconds = trees_of(point), []
    for _ in range(1 + counted):
        began = time.perf_counter()
        learner.forward_backward(trees, "sft", {})
        seconds.append(time.perf_counter() - began)
        learner.optim_step(1e-6, 1e-6)
    peak, copies = memory_mb("VmHWM"), learner.weights if learner.weights[0] is not learner.masters[0] else []
    state = (4 * sum(w.nbytes for w in learner.masters) + sum(w.nbytes for w in copies)) / 2**20
    return {
        "tokens": sum(map(tree_tokens, trees)),
        "seconds": statistics.median(seconds[1:]),
        "peak_mb": peak,
        "state_mb": state,
        "other_mb": peak - before - state,
    }


def middle(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of several processes, the one of median memory: where tensors happen to lie differs from one to the next."""
    return sorted(rows, key=lambda row: row["other_mb"])[len(rows) // 2]


def memory_mb(kind: str) -> float:
    found = re.search(rf"{kind}:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def sharing(cases: Sequence[tuple[int, int, int]], counted: int) -> list[dict[str, float]]:
    """Seconds of forward and backward of a policy loss on the default model, trees that share their prompt and the same
    sequences apart, in turn, as many trees as a forest of the default budget holds; `reached` is their ratio over that
    of the tokens."""
    engine = EngineConfig()
    use_threads(engine)
    learner = build_learner(load(MODEL, engine), engine, OptimConfig(lr=1e-6))
    made = []
    for prompt, response, group in cases:
        count = engine.token_budget // (prompt + group * response)
        point = Point(trees=count, prompt=prompt, branches=group, response=response)
        batches = {way: trees_of(point, shared=way == "shared") for way in ("unshared", "shared")}
        seconds: dict[str, list[float]] = {way: [] for way in batches}
        for _ in range(1 + counted):
            for way, trees in batches.items():
                learner.optimizer.zero_grad()  # as a step begins
                began = time.perf_counter()
                learner.forward_backward(trees, "group", {"clip": 0.2})
                seconds[way].append(time.perf_counter() - began)
        ratio = statistics.median(a / b for a, b in zip(*(s[1:] for s in seconds.values()), strict=True))
        ideal = group * (prompt + response) / (prompt + group * response)
        made.append({"P": prompt, "R": response, "G": group, "ratio": ratio, "ideal": ideal, "reached": ratio / ideal})
        print("sharing", json.dumps(made[-1]), file=sys.stderr, flush=True)
    return made


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a line through logarithms, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def curve(sizes: Sequence[int], rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        "sizes": list(sizes),
        **columns,
        "time_exponent": exponent(sizes, columns["seconds"]),
        "memory_exponent": exponent(sizes, columns["other_mb"]),
    }


def holds(curves: Mapping[str, Mapping[str, Any]], shared: Sequence[Mapping[str, float]]) -> dict[str, bool]:
    first, *larger = curves["vocabulary"]["other_mb"]
    return {
        "sharing": all(case["reached"] >= SHARING_BAR for case in shared),
        "memory_independent_of_vocabulary": all(other <= MEMORY_BAR * first for other in larger),
    }


def main(arguments: list[str] | None = None) -> int:
    """0 when both claims hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    began = time.monotonic()
    times, counted, pairs, cases = (1, 1, 1, SHARED[1:2]) if quick() else (3, 3, 8, SHARED)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prefloop.engine.build"])
    curves = {}
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as processes:
        for name, whole in CURVES.items():
            points = dict(list(whole.items())[:: 2 if quick() else 1])
            rows = [
                middle([processes.submit(measure, point, counted).result() for _ in range(times)])
                for point in points.values()
            ]
            curves[name] = curve(list(points), rows)
            print(name, json.dumps(curves[name]), file=sys.stderr, flush=True)
        shared = processes.submit(sharing, cases, pairs).result()
    answer = {
        "machine": machine(),
        "model": {"growth": f"random Llama, {LAYERS} layers, width {WIDTH}", "sharing": MODEL},
        "curves": curves,
        "sharing": shared,
        "holds": holds(curves, shared),
        "minutes": (time.monotonic() - began) / 60,
    }
    write_atomic(options.out, json.dumps(answer, indent=2) + "\n")
    print(json.dumps(answer, indent=None if options.json else 2))
    return int(not all(answer["holds"].values()))


if __name__ == "__main__":
    sys.exit(main())
