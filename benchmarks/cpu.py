"""What this machine can multiply, and how much of it the compute core turns into trained and written tokens: cpu.py

Each job runs in a process of its own with every core: SFT (forward, backward, update), and sampling with prompts that
are all different, that are shared by groups, and one prompt alone. `ceiling` is the best rate of plain matrix products.
Precisions that this machine only emulates are left out. Other programs are not measured yet: their figures are null.
Writes benchmarks/results/cpu.json; with QUICK=1 in the environment each job is measured about once.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.forest import tree_tokens
from prefloop.data.jsonl import write_atomic
from prefloop.data.sources import load_demonstrations, load_prompts
from prefloop.data.trees import demonstration_trees
from prefloop.engine.build import build_encoder, build_learner, build_sampler, load, use_threads
from prefloop.stages.sampling import sample_groups
from prefloop.types import Sampling

OUT = Path(__file__).parent / "results" / "cpu.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
JOBS = ("sft", "decode_distinct", "decode_grouped", "decode_one")
PEERS = ("trl_default", "trl_best", "generate", "vllm_cpu", "llama_cpp")
EMULATED = 0.5  # a precision below this share of the other's rate is not one to compute in
NEW_TOKENS = 64


def product_ceiling(dtype: torch.dtype, seconds: float) -> float:
    """Best GFLOP/s of C = A B for square matrices, over repeats that fill about `seconds`."""
    size = 1536
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best, until = 0.0, time.perf_counter() + seconds
    while best == 0 or time.perf_counter() < until:
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e9)
    return best


def measure(job: str, model: str, dtype: str, seconds: float) -> dict[str, float]:
    """Tokens per second of a job, GFLOP/s of its matrix products, and the process's peak memory in MB."""
    engine = EngineConfig.model_validate({"dtype": dtype})
    use_threads(engine)
    loaded = load(model, engine)
    encoder = build_encoder(loaded)
    network: Any = loaded.model
    unembedding = network.get_output_embeddings().weight.numel()
    trunk = sum(p.numel() for p in network.get_decoder().parameters()) - unembedding
    if job == "sft":
        learner = build_learner(loaded, engine, OptimConfig(lr=1e-5))
        trees = [t for d in load_demonstrations("builtin")[:8] for t in demonstration_trees(d, encoder)]
        tokens = sum(map(tree_tokens, trees))
        read = sum(len(node.tokens) for tree in trees for node in tree.nodes if "weight" in node.fields)

        def update() -> int:
            learner.forward_backward(trees, "sft", {})
            learner.optim_step(1e-5, 0.0)
            return tokens

        rate = _rate(update, seconds)
        flops = rate * 6 * (trunk + unembedding * read / tokens)
    else:
        sampler = build_sampler(loaded, model)
        prompts = load_prompts("builtin")[: {"decode_distinct": 32, "decode_grouped": 8, "decode_one": 1}[job]]
        group = 4 if job == "decode_grouped" else 1
        drawn = Sampling(max_tokens=NEW_TOKENS)

        def write() -> int:
            groups = sample_groups(sampler, encoder, prompts, samplings=[drawn] * group, seed=(0,))
            return sum(len(completion.tokens) for group in groups for completion in group)

        rate = _rate(write, seconds)
        flops = rate * 2 * (trunk + unembedding)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
    return {"rate": rate, "gflops": flops / 1e9, "peak_mb": peak}


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Tokens per second over whole calls that fill about `seconds`, after one that warms up."""
    work()
    done, began = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - began < seconds:
        done += work()
    return done / (time.perf_counter() - began)


def in_process(*words: str) -> dict[str, float]:
    """What a process of its own measured."""
    path = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | {"PYTHONPATH": path})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(rates: dict[str, float], found: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """The object of cpu.json. rates: GFLOP/s by precision; found: by job, then precision, what `measure` gave.

    `ours` is the better precision's rate, `our_share` its products' part of that precision's ceiling."""
    jobs, share = {}, {}
    for job, by_dtype in found.items():
        best = max(by_dtype, key=lambda dtype: by_dtype[dtype]["rate"])
        jobs[job] = {
            "ours": by_dtype[best]["rate"],
            **dict.fromkeys(PEERS),
            "unit": "tokens/s",
            "ratio_vs_best_peer": None,
            "peak_mb": by_dtype[best]["peak_mb"],
            "dtype": best,
            "by_dtype": {dtype: values["rate"] for dtype, values in by_dtype.items()},
        }
        share[job] = by_dtype[best]["gflops"] / rates[best]
    return {**jobs, "ceiling": {f"{dtype}_gflops": rate for dtype, rate in rates.items()} | {"our_share": share}}


def main(arguments: list[str] | None = None) -> int:
    """0 when everything was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--json", action="store_true", help="print on one line")
    parser.add_argument("--one", nargs=2, metavar=("JOB", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    seconds = 2.0 if os.environ.get("QUICK", "0") not in ("", "0") else 15.0
    if options.one:
        job, dtype = options.one
        print(json.dumps(measure(job, options.model, dtype, seconds)))
        return 0
    use_threads(EngineConfig())
    rates = {name: product_ceiling(dtype, min(seconds, 3.0)) for name, dtype in DTYPES.items()}
    worth = [dtype for dtype, rate in rates.items() if rate >= EMULATED * max(rates.values())]
    found = {job: {d: in_process("--one", job, d, "--model", options.model) for d in worth} for job in JOBS}
    about = {"model": options.model, "threads": torch.get_num_threads(), "machine": platform.machine()}
    answer = about | {"torch": torch.__version__} | summary(rates, found)
    write_atomic(options.out, json.dumps(answer, indent=2) + "\n")
    print(json.dumps(answer, indent=None if options.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
