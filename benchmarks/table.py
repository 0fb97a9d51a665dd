"""The page of all benchmarks: README.md, ratios and growth plots beside it, from what stands in results/.

    table.py [--json]

Reads results/cpu.json, growth.json, exactness.json, gpu.json and what was kept of other GPUs, gpu-NAME.json (each where
it is there). Exits 0 when no bar that was measured is missed.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from cpu import APART, DECODE, TRAINING, Plan
from matplotlib.figure import Figure

from prefloop.data.jsonl import write_atomic

HERE = Path(__file__).parent
NAMES = {
    "trl_default": "TRL, defaults",
    "trl_best": "TRL, best setting",
    "trl_bf16": "TRL, pure bf16",
    "generate": "transformers generate",
    "vllm_cpu": "vLLM",
    "llama_cpp": "llama.cpp",
    "llama_cpp_q4": "llama.cpp, 4 bits",
}
COLOURS = ("#3b6ea5", "#c8743c", "#6a9a5b", "#8d6ba8", "#8a8a8a")
Results = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure beside what was asked of it; `found` is null where it was not measured."""

    claim: str
    found: float | None
    bar: float
    at_least: bool = True
    judged: bool = True

    @property
    def holds(self) -> bool | None:
        if self.found is None or not self.judged:
            return None
        return self.found >= self.bar if self.at_least else self.found <= self.bar


def bars(results: Results) -> list[Bar]:
    """Every bar, in the order of the page; a quick run, a first look, is held against none."""

    def get(*path: str) -> Any:
        found: Any = results
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def over(job: str, peer: str) -> float | None:
        found: float | None = get("cpu", job, "ratios", peer)
        return found

    peaks = (get("cpu", "dpo", "peak_mb"), get("cpu", "dpo", "peers_peak_mb", "trl_best"))
    memory = get("growth", "curves", "vocabulary", "other_mb")
    errors, curves = get("exactness", "gradient_errors_fp32"), get("exactness", "curves")
    wanted = {"dpo": 5.5, "reward": 3.0, "sft": 3.0, "grpo": 5.0, "rloo": 5.0}
    whole = get("cpu", "plan", "counted") in (None, Plan().counted)
    found = [
        *(Bar(f"{job}: ours / best of TRL", get("cpu", job, "ratio_vs_best_peer"), bar) for job, bar in wanted.items()),
        Bar("forest of 4,096 tokens: share of the product ceiling", get("cpu", "forest", "share_of_ceiling"), 0.65),
        Bar("decode_distinct: ours / vLLM", over("decode_distinct", "vllm_cpu"), 1.05),
        Bar("decode_distinct: ours / generate", over("decode_distinct", "generate"), 2.8),
        Bar("decode_distinct: share of its ceiling", get("cpu", "decode_distinct", "share_of_ceiling"), 0.70),
        Bar("decode_grouped: ours / vLLM", over("decode_grouped", "vllm_cpu"), 1.7),
        Bar("decode_grouped: share of its ceiling", get("cpu", "decode_grouped", "share_of_ceiling"), 0.65),
        Bar("decode_one: ours / generate", over("decode_one", "generate"), 2.0),
        Bar("peak memory of a DPO step: ours / TRL's best setting", _ratio(*peaks), 0.5, at_least=False),
        Bar(
            "sharing: least share of the saving that token counts promise",
            min((case["reached"] for case in get("growth", "sharing") or ()), default=None),
            0.85,
        ),
        Bar(
            "SFT memory beyond parameters and their state: largest vocabulary / smallest",
            _ratio(memory[-1], memory[0]) if memory else None,
            1.1,
            at_least=False,
        ),
        Bar(
            "fp32 gradients: largest relative error of any tensor of any family",
            max(errors.values()) if errors else None,
            1e-5,
            at_least=False,
        ),
        Bar("bf16 log-probs: our error / plain path's", get("exactness", "bf16", "ratio"), 1.2, at_least=False),
        Bar(
            "50-step loss curves: largest difference from the plain path",
            max(curve["largest_difference"] for curve in curves.values()) if curves else None,
            1e-4,
            at_least=False,
        ),
    ]
    return [replace(bar, judged=whole) for bar in found]


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def number(value: float | None) -> str:
    if value is None:
        return "not measured"
    if value != 0 and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines) + "\n"


def rates(found: Results) -> str:
    """A row a job: rates of ours and of each peer."""
    jobs = [job for job in (*TRAINING, "forest", *DECODE) if job in found]
    peers = [name for name in NAMES if any(found[job].get(name) for job in jobs)]
    rows = []
    for job in jobs:
        entry = found[job]
        cells = [number(entry[name]) if name in entry else "" for name in peers]
        shares = [
            number(entry["ratio_vs_best_peer"]) if any(entry.get(p) for p in peers) else "",
            number(entry["share_of_ceiling"]),
        ]
        rows.append([job, entry["unit"], number(entry["ours"]), *cells, *shares])
    return table(["job", "unit", "ours", *(NAMES[p] for p in peers), "ours / best peer", "share of ceiling"], rows)


def memory(found: Results) -> str:
    rows = []
    for job in (*TRAINING, "forest", *DECODE):
        if job in found:
            each = found[job]["peers_peak_mb"]
            others = ", ".join(f"{NAMES[name]} {number(peak)}" for name, peak in each.items())
            rows.append([job, number(found[job]["peak_mb"]), others])
    return table(["job", "ours, MB", "peers, MB"], rows)


def decode_only(found: Results) -> str:
    jobs = [job for job in DECODE if job in found]
    names = ["ours", *(n for n in NAMES if any(n in found[job]["decode_only"] for job in jobs))]
    rows = [[job, *(number(found[job]["decode_only"].get(name)) for name in names)] for job in jobs]
    return table(["job, tokens/s", *(NAMES.get(name, name) for name in names)], rows)


def ceilings(found: Results) -> str:
    ceiling = found["ceiling"]
    rows = [
        [f"square product, {name[:4]}", f"{number(ceiling[name])} GFLOP/s"] for name in ("fp32_gflops", "bf16_gflops")
    ]
    rows += [["copy, bytes read and written", f"{number(ceiling['copy_gb'])} GB/s"]]
    for count, milliseconds in ceiling["packed_ms"].items():
        what = f"all linear layers and the head, packed, {found['dtype']}, {count} rows"
        rows.append([what, f"{number(milliseconds)} ms ({number(ceiling['packed_gflops'][count])} GFLOP/s)"])
    rows += [[f"decoding ceiling, {j}", f"{number(found[j]['ceiling'])} tokens/s"] for j in DECODE if j in found]
    return table(["what", "rate"], rows)


def missing(found: Results) -> str:
    reasons: dict[tuple[str, str], list[str]] = {}
    for job in (*TRAINING, "forest", *DECODE):
        for peer, reason in found.get(job, {"not_measured": {}})["not_measured"].items():
            reasons.setdefault((NAMES[peer], reason), []).append(job)
    lines = [f"- {peer} ({', '.join(jobs)}): {reason}\n" for (peer, reason), jobs in reasons.items()]
    return f"Not measured:\n\n{''.join(lines)}\n" if lines else ""


def growth(found: Results) -> str:
    curves = table(
        ["against", "sizes", "time exponent", "memory exponent"],
        (
            [
                name,
                ", ".join(f"{n:,}" for n in curve["sizes"]),
                f"{curve['time_exponent']:.2f}",
                f"{curve['memory_exponent']:.2f}",
            ]
            for name, curve in found["curves"].items()
        ),
    )
    vocabulary = found["curves"]["vocabulary"]
    columns = zip(*(vocabulary[k] for k in ("sizes", "peak_mb", "state_mb", "other_mb")), strict=True)
    sharing = (
        [
            *(f"{case[k]:.0f}" for k in ("P", "R", "G")),
            f"{case['ideal']:.2f}",
            f"{case['ratio']:.2f}",
            f"{case['reached']:.2f}",
        ]
        for case in found["sharing"]
    )
    return (
        f"{curves}\nMemory of an SFT step, MB:\n\n"
        + table(
            ["vocabulary", "peak of the process", "parameters, gradients, optimizer state", "all else"],
            ([f"{row[0]:,}", *map(number, row[1:])] for row in columns),
        )
        + "\nTime of unshared packing over that of shared trees, beside the ratio of their tokens:\n\n"
        + table(["P", "R", "G", "tokens", "time", "reached"], sharing)
    )


def described(found: Results) -> str:
    machine = found["machine"]
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB",
        *([machine["gpu"]] if "gpu" in machine else []),
    ]
    parts += [f"torch {machine['torch']}, Python {machine['python']}, {machine['system']}"]
    parts += (
        [
            f"{found['threads']} threads, {found['dtype']}, {found['plan']['counted']} counted steps, "
            f"{found['plan']['completions']} completions a step of grpo and rloo"
        ]
        if "plan" in found
        else []
    )
    return "; ".join(parts)


def gpus(results: Results) -> list[str]:
    """Names of the results of GPUs: gpu, which `make bench-gpu` writes, and what was kept of others as gpu-NAME."""
    return sorted(name for name in results if name.startswith("gpu"))


def page(results: Results) -> str:
    checked = [
        [
            bar.claim,
            number(bar.found),
            f"{'>=' if bar.at_least else '<='} {bar.bar:g}",
            {True: "yes", False: "no", None: ""}[bar.holds],
        ]
        for bar in bars(results)
    ]
    parts = [INTRODUCTION, table(["what", "measured", "bar", "holds"], checked)]
    for name in ("cpu", *(gpus(results) or ["gpu"])):
        parts.append(f"\n## {'CPU' if name == 'cpu' else 'One GPU'}\n")
        found = results.get(name)
        if found is None:
            parts.append("Not measured.\n")
            continue
        parts += [
            f"{described(found)}.\n",
            f"![Ours over each peer](ratios-{name}.svg)\n" if compared(found) else "",
            rates(found),
            missing(found),
        ]
        if any(job in found for job in DECODE):
            parts += ["Decoding without the prefill:\n", decode_only(found)]
        parts += ["\nPeak memory of a process:\n" if name == "cpu" else "\nPeak memory on the GPU:\n", memory(found)]
        parts += ["\nWhat this machine can do, in the same run:\n", ceilings(found)]
    parts.append("\n## Growth\n")
    if "growth" in results:
        parts += [
            f"{described(results['growth'])}.\n",
            "![Growth of time and memory](growth.svg)\n",
            growth(results["growth"]),
        ]
    else:
        parts.append("Not measured.\n")
    return "\n".join(part for part in parts if part)


INTRODUCTION = """# Benchmarks

    make bench DATA=comparisons.jsonl [QUICK=1]    # on the CPU; quick: a first look, 14 minutes on 2 cores
    make bench-gpu DATA=comparisons.jsonl          # on an NVIDIA GPU

Ours and each peer take their steps in turn (A B A B) on the same rows of real comparisons, with the same model
(SmolLM2-135M), precision and threads, each in a process of its own; figures are medians of the counted steps. Peers run
in environments of their own, which `make bench` makes. Useful operations only: recomputation does not count towards a
share. Files: `results/*.json`; this page and its plots: `python benchmarks/table.py`. Jobs of one file may have run at
different times: each job's share is of the ceiling that was measured with it.

- **sft, reward, dpo**: a step of 8 examples of up to 512 tokens, forward, backward and update; dpo with the reference
  pass. **grpo, rloo**: 8 completions of up to 64 new tokens to each prompt, sampled, scored and trained on. Quick runs
  take less (see `plan` in the file).
- **forest**: forward and backward of one forest of comparisons, 4,096 tokens at most.
- **decode_distinct, decode_grouped, decode_one**: 48 new tokens for 32 prompts, for 8 answers to each of 4 prompts, and
  for one, of 64 tokens each; prefill included.
- TRL: defaults, and without gradient checkpointing ("best"); both keep fp32 weights. Pure bf16 weights and llama.cpp's
  4-bit file are shown for what they are, and not compared.
- The ceiling of training is the best square product; that of decoding, the prefill at that rate and every further token
  at the rate of packed products of all linear layers, whoever packs them best: oneDNN, MKL or we.
"""


def compared(found: Results) -> list[str]:
    """Peers of equal precision that some job was measured beside."""
    jobs = [job for job in (*TRAINING, *DECODE) if job in found]
    return [name for name in NAMES if name not in APART and any(found[job].get(name) for job in jobs)]


def ratios(found: Results) -> Figure:
    """Ours over each peer of equal precision, a group of bars a job."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    peers = compared(found)
    jobs = [job for job in (*TRAINING, *DECODE) if job in found and any(found[job].get(peer) for peer in peers)]
    for index, peer in enumerate(peers):
        places = [(i, found[job]["ratios"][peer]) for i, job in enumerate(jobs) if found[job].get(peer)]
        at = [i + _offset(peer, [p for p in peers if found[jobs[i]].get(p)]) for i, _ in places]
        drawn = axes.bar(
            at, [ratio for _, ratio in places], 0.22, label=NAMES[peer], color=COLOURS[index % len(COLOURS)]
        )
        axes.bar_label(drawn, fmt="%.1f", fontsize=7)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(jobs)), [job.replace("_", "\n") for job in jobs])
    axes.set_title("Ours / peer (more than 1: ours is faster)", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    return figure


def _offset(peer: str, present: Sequence[str]) -> float:
    return 0.24 * (present.index(peer) - (len(present) - 1) / 2)


def growth_plot(found: Results) -> Figure:
    """Time and memory against each size, both axes in logarithms, with the fitted exponents."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    grid = figure.subplots(2, len(found["curves"]), sharex="col")
    for column, (name, curve) in enumerate(found["curves"].items()):
        rows = (("seconds", "time_exponent", "seconds a step"), ("other_mb", "memory_exponent", "memory, MB"))
        for axes, (key, slope, label), colour in zip(grid[:, column], rows, COLOURS, strict=False):
            axes.loglog(curve["sizes"], curve[key], marker="o", markersize=3, color=colour)
            axes.set_title(f"{name}: exponent {curve[slope]:.2f}", loc="left", fontsize=8)
            axes.set_ylim(min(curve[key]) / 2, max(curve[key]) * 2)
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize=7, which="both")
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axes.set_ylabel(label, fontsize=8)
        axes.set_xticks(curve["sizes"], [f"{n // 1024}k" if n >= 10_000 else str(n) for n in curve["sizes"]])
    return figure


def save(figure: Figure, path: Path) -> None:
    """As SVG, the same bytes every time, and as PNG."""
    for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 90})):
        made = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "benchmarks"}):
            figure.savefig(made, format=kind, **options)
        write_atomic(path.with_suffix(f".{kind}"), made.getvalue())


def main(arguments: list[str] | None = None) -> int:
    """0 when no bar that was measured is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE, help="holds results/, takes the page")
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    paths = sorted((folder / "results").glob("*.json"))
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    drawings: list[tuple[str, Callable[[Results], Figure], str]] = [
        *((f"ratios-{name}", ratios, name) for name in ("cpu", *gpus(results))),
        ("growth", growth_plot, "growth"),
    ]
    for file, draw, name in drawings:
        if name in results and (draw is not ratios or compared(results[name])):
            save(draw(results[name]), folder / file)
    write_atomic(folder / "README.md", page(results))
    checked = bars(results)
    answer = {"bars": [asdict(bar) | {"holds": bar.holds} for bar in checked]}
    print(json.dumps(answer, indent=None if options.json else 2))
    return int(any(bar.holds is False for bar in checked))


if __name__ == "__main__":
    sys.exit(main())
