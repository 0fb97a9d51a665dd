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
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prefloop.evals.winrate import SliceRate

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{Path(name).stem}", FOLDER / name)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


quickstart, kl_control, cpu = script("quickstart.py"), script("claims/kl_control.py"), script("cpu.py")


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
    found = {
        "ours": cpu.Measured(rate=2.0, gflops=300.0, peak_mb=900.0),
        "trl_default": cpu.Measured(rate=0.3, gflops=None, peak_mb=3000.0),
        "trl_best": cpu.Measured(rate=0.4, gflops=None, peak_mb=4000.0),
    }
    answer = cpu.summary("dpo", found, 400.0)
    assert (answer["ours"], answer["trl_best"], answer["unit"]) == (2.0, 0.4, "pairs/s")
    assert (answer["ratio_vs_best_peer"], answer["share_of_ceiling"]) == (5.0, 0.75)
    alone = cpu.summary("decode_one", {"ours": cpu.Measured(rate=9.0, gflops=None, peak_mb=9.0)}, 400.0)
    assert (alone["vllm_cpu"], alone["ratio_vs_best_peer"], alone["unit"]) == (None, None, "tokens/s")


def test_scripts_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    mains: list[Callable[[list[str]], int]] = [quickstart.main, kl_control.main, cpu.main]
    for main in mains:
        with pytest.raises(SystemExit) as caught:
            main(["--help"])
        assert caught.value.code == 0
    assert "--collect-only" in capsys.readouterr().out


@pytest.mark.parametrize("job", ["sft", "reward", "dpo", "grpo", "rloo", "decode"])
def test_a_job_takes_a_step_when_it_is_asked_to(job: str, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    sides = {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "Yes."), ("rejected", "No."))}
    row = {"prompt": [{"role": "user", "content": "Is water wet, in one word of your own?"}], **sides}
    data.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    options = {"dtype": "fp32", "threads": 1, "batch": 2, "group": 2, "new_tokens": 4, "rows": 2, "prompt_tokens": 8}
    words = (job, "tiny", str(data), json.dumps(options))
    found = cpu.side_by_side({"ours": (sys.executable, "our_job.py", *words)}, 1)["ours"]
    assert found.rate > 0 and 100 < found.peak_mb < 5000
    assert (found.gflops is None) == (job not in ("sft", "reward", "dpo"))
