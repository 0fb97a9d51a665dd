"""The small pure parts of the benchmarks: what they pool, what they promise, and how they quote."""

import importlib.util
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prefloop.evals.winrate import SliceRate
from prefloop.models.tiny import tiny_model

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{Path(name).stem}", FOLDER / name)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(FOLDER))  # as for a script that runs there
quickstart, kl_control, cpu = script("quickstart.py"), script("claims/kl_control.py"), script("cpu.py")
ceiling, side_by_side = script("ceiling.py"), script("side_by_side.py")


def row(model: str, prompt: str, score: float, text: str = "yes", part: str = "format") -> dict[str, Any]:
    asked = {"id": prompt, "slice": part, "messages": [{"role": "user", "content": f"Ask {prompt}"}]}
    completion = {"id": f"{model}-{prompt}-{score}", "text": text, "finish_reason": "stop"}
    return {"model": model, "prompt": asked, "score": score, "completion": completion}


def test_slices_pool_the_comparisons_of_all_seeds_by_prompt() -> None:
    first = [row("policy", "a", 2), row("sft", "a", 1), row("policy", "b", 1), row("sft", "b", 1), row("base", "a", 9)]
    second = [row("policy", "a", 0), row("policy", "a", 3), row("sft", "a", 1), row("sft", "a", 2)]
    lone = [row("policy", "c", 1, part="other"), row("sft", "c", 2, part="other")]
    pooled = quickstart.pooled_slices([first, second, lone])
    # prompt a: 1 win, then 0 against 1 and 2 loses twice, 3 wins twice; prompt b: a tie
    assert pooled["format"].win_rate == pytest.approx((3 + 0.5) / 6)
    assert (pooled["format"].low, pooled["format"].high) == pytest.approx((0.5, 0.6))
    assert pooled["format"].n == 2
    assert pooled["other"] == SliceRate(0.0, 0.0, 0.0, 1)


GOOD = {
    "win_rate": 0.6,
    "win_rate_low": 0.51,
    "win_rate_vs_base": 0.55,
    "win_rate_length_controlled": 0.51,
    "sft_stopped_share": 0.9,
    "control_shuffled_labels": {"win_rate": 0.49, "low": 0.44, "high": 0.54},
    "kl_target": 6.0,
    "kl_last_third": 7.79,
    "rm_accuracy": 0.65,
    "rm_ceiling": 0.8,
    "rm_longer_wins": 0.6,
    "rm_shorter_wins": 0.4,
}
BAD = {
    "win_rate": (0.599, 0),
    "win_rate_low": (0.5, 1),
    "win_rate_vs_base": (0.549, 2),
    "win_rate_length_controlled": (0.5, 3),
    "sft_stopped_share": (0.89, 5),
    "control_shuffled_labels": ({"win_rate": 0.6, "low": 0.51, "high": 0.7}, 6),
    "kl_last_third": (7.81, 7),
    "kl_target": (12.0, 7),
    "rm_accuracy": (0.649, 8),
    "rm_longer_wins": (0.65, 9),
    "rm_shorter_wins": (0.65, 9),
}
SLICES = {"format": SliceRate(0.45, 0.4, 0.5, 9)}


def verdicts(report: dict[str, Any], slices: dict[str, SliceRate] | None = None) -> list[bool | None]:
    return [claim.holds for claim in quickstart.claims({"0": GOOD, "1": report}, slices or SLICES)]


def test_every_promise_holds_at_its_threshold() -> None:
    assert verdicts(GOOD) == [True] * 10


@pytest.mark.parametrize("key", BAD)
def test_a_broken_promise_is_named_with_its_seed(key: str) -> None:
    value, place = BAD[key]
    checked = quickstart.claims({"0": GOOD, "1": GOOD | {key: value}}, SLICES)
    assert [(i, c.failing) for i, c in enumerate(checked) if not c.holds] == [(place, ("1",))]


def test_a_bad_slice_and_what_was_not_measured() -> None:
    assert verdicts(GOOD, SLICES | {"safe": SliceRate(0.449, 0.4, 0.5, 9)})[4] is False
    without = GOOD | {"control_shuffled_labels": None}
    assert quickstart.claims({"0": without}, SLICES)[6].holds is None


@given(
    st.lists(st.sampled_from(["`", "```", "````", "~~~", "\n", "    ", "# h", "\r", "\u202e", "\u2028", "<b>", "a"]))
)
def test_hostile_text_cannot_leave_its_block(parts: list[str]) -> None:
    text = "".join(parts)
    page = quickstart.samples_page([row("sft", "a", 1, text), row("policy", "a", 0, text)], seed=0)
    tokens = [token for token in MarkdownIt("commonmark").parse(page) if token.level == 0]
    blocks = [token for token in tokens if token.type == "fence"]
    spelled = text.replace("\r", "U+000D").replace("\u202e", "U+202E").replace("\u2028", "U+2028")
    assert [block.content for block in blocks] == ["[format]\nuser: Ask a\n", f"{spelled}\n", f"{spelled}\n"]
    assert not [token for token in tokens if token.type in ("html_block", "code_block")]
    assert "1: loss" in page


def test_choices_depend_on_the_seed_alone() -> None:
    rows = [row(m, f"p{i}", i + j, f"{m}{i}{j}") for m in ("sft", "policy") for i in range(20) for j in range(3)]
    pages = [quickstart.samples_page(r, seed) for r, seed in ((rows, 1), (rows[::-1], 1), (rows, 2))]
    assert pages[0] == pages[1]
    assert pages[0] != pages[2].replace("seed 2", "seed 1")
    assert pages[0].count("\n## ") == 10


@pytest.mark.parametrize("report", [GOOD, GOOD | {"control_shuffled_labels": None, "kl_target": None}])
def test_the_page_and_its_curves(report: dict[str, Any], tmp_path: Path) -> None:
    complete = report | {"win_rate_high": 0.7, "minutes": 31.25}
    results = {
        "machine": quickstart.machine(),
        "command": "python benchmarks/quickstart.py",
        "seeds": {"0": complete},
        "pooled_slices": {"format": {"win_rate": 0.5, "low": 0.4, "high": 0.6, "n": 9}},
        "claims": [{"claim": "a | b", "threshold": "> 0", "holds": None, "failing": ()}],
    }
    page = quickstart.readme(results)
    assert "| 0 | 0.600 (0.510 to 0.700) | 0.550 |" in page
    assert "| a / b | > 0 | not measured |  |" in page
    metrics = [{"step": i, "reward/score": i / 3, "kl/response": 1.0} for i in range(3)]
    quickstart.draw({"0": metrics}, report["kl_target"]).savefig(tmp_path / "curves.svg")
    assert ET.parse(tmp_path / "curves.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize(("ratios", "median", "holds"), [((0.9, 1.29, 1.2), 0.2, True), ((0.9, 1.31, 1.0), 0.1, False)])
def test_the_controllers_claim(ratios: tuple[float, ...], median: float, holds: bool) -> None:
    found = kl_control.verdict({str(i): {"ratio": r, "minutes": 2.0} for i, r in enumerate(ratios)})
    assert (found["median"], found["holds"], found["minutes"]) == (pytest.approx(median), holds, 6.0)


def test_a_jobs_summary() -> None:
    made = side_by_side.Measured
    found = {
        "ours": made(rate=2.0, gflops=300.0, peak_mb=900.0),
        "trl_default": made(rate=0.3, gflops=None, peak_mb=3000.0),
        "trl_best": made(rate=0.4, gflops=None, peak_mb=4000.0),
        "trl_bf16": made(rate=0.5, gflops=None, peak_mb=2000.0),
    }
    answer = cpu.summary("dpo", found, {}, 400.0)
    assert (answer["ours"], answer["trl_best"], answer["trl_bf16"], answer["unit"]) == (2.0, 0.4, 0.5, "pairs/s")
    assert (answer["ratio_vs_best_peer"], answer["share_of_ceiling"]) == (5.0, 0.75)
    assert answer["not_measured"] == {} and answer["peers_peak_mb"]["trl_best"] == 4000.0
    alone = {"ours": made(rate=9.0, gflops=None, peak_mb=9.0, decode_rate=12.0)}
    answer = cpu.summary("decode_one", alone, {"vllm_cpu": "Illegal instruction"}, 12.0)
    assert (answer["vllm_cpu"], answer["ratio_vs_best_peer"], answer["unit"]) == (None, None, "tokens/s")
    assert (answer["share_of_ceiling"], answer["decode_only"]) == (0.75, {"ours": 12.0})
    assert answer["not_measured"]["vllm_cpu"] == "Illegal instruction"
    assert answer["not_measured"].keys() == {"generate", "vllm_cpu", "llama_cpp"}


def test_medians_of_steps() -> None:
    steps = [
        {"units": 96.0, "seconds": seconds, "first_units": 2.0, "first_seconds": 1.0, "gflop": 12.0}
        for seconds in (3.0, 2.0, 5.0)
    ]
    found = side_by_side.measured(steps, 7.0)
    assert (found.rate, found.gflops, found.decode_rate, found.peak_mb) == (32.0, 4.0, 47.0, 7.0)
    assert side_by_side.measured([{"units": 1.0, "seconds": 2.0}], 7.0) == side_by_side.Measured(0.5, None, 7.0, None)


def test_the_ceiling_of_decoding() -> None:
    """Ten layers of 2 x 3 weights and a head of 3 x 2: 120 and 12 flop a token."""
    linears = ceiling.Linears((torch.zeros(2, 3),) * 10, torch.zeros(3, 2))
    assert linears.gflop(5, 1) == pytest.approx((5 * 120 + 12) / 1e9)
    prefill = (4 * 64 * 120 + 4 * 12) / 1e9 / 0.5
    assert cpu.decode_ceiling(linears, 0.5, 0.01, 4, 8) == pytest.approx(32 * 48 / (prefill + 47 * 0.01))


def test_ceilings_are_measured() -> None:
    linears = ceiling.Linears.of(tiny_model())
    assert len(linears.layers) == 2 * 4 and linears.layers[0].shape == (4 * 16 + 2 * 2 * 16, 64)
    assert linears.gflop(1, 0) == pytest.approx(2e-9 * 2 * 64 * (128 + 64 + 3 * 128))
    assert linears.seconds(2, "cpu", 0.01) > 0
    assert ceiling.product_gflops(torch.float32, "cpu", 0.01) > 0 and ceiling.copy_gb("cpu", 0.01) > 0


def test_scripts_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    mains: list[Callable[[list[str]], int]] = [quickstart.main, kl_control.main, cpu.main]
    for main in mains:
        with pytest.raises(SystemExit) as caught:
            main(["--help"])
        assert caught.value.code == 0
    assert "--collect-only" in capsys.readouterr().out


@pytest.mark.parametrize("job", ["sft", "reward", "dpo", "grpo", "rloo", "forest", "decode"])
def test_a_job_takes_a_step_when_it_is_asked_to(job: str, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    sides = {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "Yes."), ("rejected", "No."))}
    row = {"prompt": [{"role": "user", "content": "Is water wet, in one word of your own?"}], **sides}
    rows = json.dumps(row) + "\n" + json.dumps(row) + "\n"
    data.write_text("[[1, 2, 3], [4, 5, 6]]" if job == "decode" else rows)
    options = {"dtype": "fp32", "threads": 1, "batch": 2, "group": 2, "new_tokens": 4}
    words = (job, "tiny", str(data), json.dumps(options))
    missing = (str(tmp_path / "python"), "trl_job.py", *words)
    all_found, failed = side_by_side.side_by_side(
        {"ours": (sys.executable, "our_job.py", *words), "trl_best": missing}, warm=1, counted=1
    )
    found = all_found["ours"]
    assert found.rate > 0 and 100 < found.peak_mb < 5000
    assert (found.gflops is None) == (job in ("grpo", "rloo", "decode"))
    assert (found.decode_rate is None) == (job != "decode")
    assert failed == {"trl_best": f"{missing[0]} does not start (No such file or directory)"}


def test_a_peer_that_ends_early_says_why(tmp_path: Path) -> None:
    silent, loud = (sys.executable, "protocol.py"), (sys.executable, str(tmp_path / "none.py"))
    found, failed = side_by_side.side_by_side({"silent": silent, "loud": loud}, warm=1, counted=1)
    assert found == {} and failed["silent"] == "it ended with 0 and said nothing"
    assert "No such file" in failed["loud"]


def test_generate_takes_a_step(tmp_path: Path) -> None:
    model, data = tmp_path / "model", tmp_path / "prompts.json"
    tiny_model().save_pretrained(model)
    data.write_text("[[1, 2, 3], [4, 5, 6]]")
    options = {"dtype": "fp32", "threads": 1, "group": 2, "new_tokens": 4}
    program = (sys.executable, "generate_job.py", "decode", str(model), str(data), json.dumps(options))
    found, failed = side_by_side.side_by_side({"generate": program}, warm=1, counted=1)
    assert failed == {} and found["generate"].rate > 0
