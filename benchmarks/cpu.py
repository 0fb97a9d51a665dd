"""What this machine can multiply, how much of it the compute core turns into work, and how other programs compare.

    cpu.py --data PAIRS.jsonl [--trl PYTHON] [--vllm PYTHON] [--jobs sft dpo ...]

Each job runs in processes of its own, ours and each peer's, which take their steps in turn (A B A B): two to warm up,
eight that count, on the same rows of real comparisons, in bf16 where this machine multiplies it faster than it
emulates it. `ceiling` is the best rate of plain matrix products. Peers live in environments of their own, named by
their Python; without one their figures are null. Writes benchmarks/results/cpu.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prefloop.data.chat import encode_prompt
from prefloop.data.jsonl import read_preferences, write_atomic
from prefloop.data.trees import Encoder
from prefloop.engine.build import available_cores
from prefloop.models.load import load_tokenizer, locate
from prefloop.types import Preference

HERE = Path(__file__).parent
OUT = HERE / "results" / "cpu.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EMULATED = 0.5  # a precision below this share of the other's rate is not one to compute in
WARM, COUNTED, BATCH, LONGEST = 2, 8, 8, 512
UNITS = {"sft": "examples/s", "reward": "pairs/s", "dpo": "pairs/s", "grpo": "completions/s", "rloo": "completions/s"}
DECODE: dict[str, dict[str, int]] = {
    "decode_distinct": {"rows": 32, "group": 1},
    "decode_grouped": {"rows": 4, "group": 8},
    "decode_one": {"rows": 1, "group": 1},
}
PEERS = dict.fromkeys(UNITS, ("trl_default", "trl_best")) | dict.fromkeys(DECODE, ("generate", "vllm_cpu", "llama_cpp"))


@dataclass(frozen=True, slots=True)
class Measured:
    """Units and GFLOP of products a second at the median step (None where not counted), and peak memory in MB."""

    rate: float
    gflops: float | None
    peak_mb: float


class Job:
    """A process that takes a step when it is asked to (jobs/protocol.py)."""

    def __init__(self, process: "subprocess.Popen[str]", name: str) -> None:
        self.process, self.name = process, name
        self.rates: list[float] = []
        self.gflops: list[float] = []

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"cpu.py: {self.name} ended early; see above.")
        found: dict[str, float] = json.loads(line)
        return found

    def step(self, counted: bool) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        found = self.answer()
        if counted:
            self.rates.append(found["units"] / found["seconds"])
            self.gflops += [found["gflop"] / found["seconds"]] if "gflop" in found else []

    def finish(self) -> Measured:
        assert self.process.stdin is not None
        self.process.stdin.close()
        peak = self.answer()["peak_mb"]
        self.process.wait()
        return Measured(statistics.median(self.rates), statistics.median(self.gflops) if self.gflops else None, peak)


@contextmanager
def started(python: str, script: str, *words: str) -> Iterator[Job]:
    environment = dict(os.environ) | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    if python == sys.executable:
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [python, str(HERE / "jobs" / script), *words]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Job(process, " ".join(command[:3]))
        finally:
            process.kill()


def side_by_side(commands: Mapping[str, Sequence[str]], counted: int) -> dict[str, Measured]:
    """Every job's figures, their steps in turn."""
    with ExitStack() as stack:
        jobs = {name: stack.enter_context(started(*command)) for name, command in commands.items()}
        for job in jobs.values():
            job.answer()
        for turn in range(WARM + counted):
            for job in jobs.values():
                job.step(turn >= WARM)
        return {name: job.finish() for name, job in jobs.items()}


def product_ceiling(dtype: torch.dtype, seconds: float) -> float:
    """Best GFLOP/s of C = A B for square matrices, over repeats that fill about `seconds`."""
    size = 2048
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best, until = 0.0, time.perf_counter() + seconds
    while best == 0 or time.perf_counter() < until:
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e9)
    return best


def rows_of(preferences: Sequence[Preference], model: str, count: int) -> list[dict[str, Any]]:
    """The first comparisons of which no answer with its prompt is longer than 512 tokens, as chat messages."""
    tokenizer = load_tokenizer(model)
    encoder = Encoder(tokenizer, tokenizer.eos_token_id, LONGEST)
    rows: list[dict[str, Any]] = []
    for pair in preferences:
        prompt = [{"role": m.role, "content": m.content} for m in pair.prompt.messages]
        texts = [item.text for item in (pair.items if pair.target != 0.0 else pair.items[::-1])]
        asked = len(encode_prompt(tokenizer, pair.prompt.messages))
        longest = asked + max(len(encoder.response(item)) for item in pair.items)
        if longest <= LONGEST and texts[0] != texts[1]:
            sides = zip(("chosen", "rejected"), texts, strict=True)
            rows.append({"prompt": prompt} | {s: [{"role": "assistant", "content": text}] for s, text in sides})
        if len(rows) == count:
            return rows
    raise SystemExit(f"cpu.py: only {len(rows)} of {count} comparisons fit; give more data.")


def commands(job: str, options: argparse.Namespace, model: str, data: str, dtype: str) -> dict[str, Sequence[str]]:
    """What to start for a job, by name: ours, and each peer whose environment is there."""
    known: dict[str, Any] = {"dtype": dtype, "threads": options.threads, "new_tokens": 48, "max_length": LONGEST}
    if job in DECODE:
        known |= DECODE[job] | {"prompt_tokens": 64}
        words = ("decode", model, data, json.dumps(known))
        programs = {"ours": (sys.executable, "our_job.py"), "generate": (sys.executable, "generate_job.py")}
        programs |= {"vllm_cpu": (options.vllm, "vllm_job.py")} if options.vllm else {}
        return {name: (*program, *words) for name, program in programs.items()}
    grouped = job in ("grpo", "rloo")
    known |= {"batch": 32 if grouped else BATCH, "group": 8, "new_tokens": 64}
    found: dict[str, Sequence[str]] = {"ours": (sys.executable, "our_job.py", job, model, data, json.dumps(known))}
    for setting in ("default", "best") if options.trl else ():
        text = json.dumps(known | {"setting": setting})
        found[f"trl_{setting}"] = (options.trl, "trl_job.py", job, model, data, text)
    return found


def summary(job: str, found: Mapping[str, Measured], ceiling: float) -> dict[str, Any]:
    """A job's entry: our rate, the peers' (null where not measured), the ratio to the best, peak memory of each, and
    what share of the `ceiling` (GFLOP/s) our matrix products reach."""
    peers = {name: found[name].rate if name in found else None for name in PEERS[job]}
    best = max((rate for rate in peers.values() if rate is not None), default=None)
    return {
        "ours": found["ours"].rate,
        **peers,
        "unit": UNITS.get(job, "tokens/s"),
        "ratio_vs_best_peer": None if best is None else found["ours"].rate / best,
        "peak_mb": found["ours"].peak_mb,
        "share_of_ceiling": None if found["ours"].gflops is None else found["ours"].gflops / ceiling,
        "peers_peak_mb": {name: measured.peak_mb for name, measured in found.items() if name != "ours"},
    }


def main(arguments: list[str] | None = None) -> int:
    """0 when everything was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("DATA", ""), help="comparisons, in a layout the loop reads")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--jobs", nargs="+", choices=sorted(PEERS), default=list(PEERS))
    parser.add_argument("--trl", default="", metavar="PYTHON", help="Python of an environment that holds TRL")
    parser.add_argument("--vllm", default="", metavar="PYTHON", help="the same for vLLM, built for CPUs")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    if not options.data:
        parser.error("name comparisons to measure on: --data PAIRS.jsonl, or DATA=PAIRS.jsonl")
    counted = 2 if os.environ.get("QUICK", "0") not in ("", "0") else COUNTED
    torch.set_num_threads(options.threads)
    rates = {name: product_ceiling(dtype, 3.0) for name, dtype in DTYPES.items()}
    dtype = "bf16" if rates["bf16"] >= EMULATED * rates["fp32"] else "fp32"
    folder = locate(options.model)
    answer: dict[str, Any] = {
        "model": options.model,
        "threads": options.threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "dtype": dtype,
    }
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "pairs.jsonl"
        rows = rows_of(read_preferences(options.data), options.model, BATCH * (WARM + COUNTED))
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for job in options.jobs:
            found = side_by_side(commands(job, options, str(folder), str(data), dtype), counted)
            answer[job] = summary(job, found, rates[dtype])
            print(job, json.dumps(answer[job]), file=sys.stderr, flush=True)
    shares = {job: answer[job]["share_of_ceiling"] for job in options.jobs}
    answer["ceiling"] = {f"{name}_gflops": rate for name, rate in rates.items()} | {"our_share": shares}
    write_atomic(options.out, json.dumps(answer, indent=2) + "\n")
    print(json.dumps(answer, indent=None if options.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
