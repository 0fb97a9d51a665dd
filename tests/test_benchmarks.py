"""The small pure parts of the benchmarks: what they pool, what they promise, and how they quote."""

import importlib.util
import json
import runpy
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prefloop.configs.shared import EngineConfig
from prefloop.data import jsonl
from prefloop.evals.winrate import SliceRate
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.types import Message, Pair, Preference, Prompt
from tests.judge_server import by_rule, serving

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{Path(name).stem}", FOLDER / name)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


sys.path[:0] = [str(FOLDER), str(FOLDER / "claims")]  # as for a script that runs there
quickstart, kl_control, cpu = script("quickstart.py"), script("claims/kl_control.py"), script("cpu.py")
ceiling, side_by_side, table = script("ceiling.py"), script("side_by_side.py"), script("table.py")
running, growth, exactness = script("running.py"), script("growth.py"), script("exactness.py")
judge = script("judge.py")
reliability, t19 = script("claims/labeler_reliability.py"), script("claims/T19.py")


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
        "machine": running.machine(),
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


@pytest.mark.parametrize(
    ("gains", "control", "holds"),
    [([0.05, 0.06, 0.07], 0.001, True), ([0.05, 0.06, -0.2], 0.001, False), ([0.05, 0.06, 0.07], -0.02, False)],
)
def test_the_claim_on_reliability(gains: list[float], control: float, holds: bool) -> None:
    found = reliability.verdict([{"gain": gain, "control_gain": control} for gain in gains], 1.0)
    assert found["holds"] is holds and found["median"] == sorted(gains)[1]


def test_pairs_in_order() -> None:
    assert reliability.pairs_in_order(np.array([0, 1, 2]), np.array([5, 4, 6])) == pytest.approx(2 / 3)


def test_the_claim_on_statistics() -> None:
    row = {"coverage": {"wilson": 0.95, "alpha": 0.935}, "correlation": 0.98}
    found = t19.published()
    assert t19.verdict([row, row], found, 1.0)["holds"] is True
    low = row | {"coverage": {"wilson": 0.95, "alpha": 0.92}}
    for rows, published in (
        ([row, low], found),
        ([row | {"correlation": 0.9}], found),
        ([row], found | {"odd": (0.751, 0.75)}),
    ):
        assert t19.verdict(rows, published, 1.0)["holds"] is False
    assert set(t19.interval_covers(np.random.default_rng(0))) == {
        *("wilson", "win rate", "percent", "alpha", "fleiss", "gwet", "cohen", "strength", "correlation")
    }


def test_a_jobs_summary() -> None:
    made = side_by_side.Measured
    found = {
        "ceiling": made(rate=0.0, gflops=400.0, peak_mb=50.0),
        "ours": made(rate=2.0, gflops=300.0, peak_mb=900.0),
        "trl_default": made(rate=0.3, gflops=None, peak_mb=3000.0),
        "trl_best": made(rate=0.4, gflops=None, peak_mb=4000.0),
        "trl_bf16": made(rate=0.5, gflops=None, peak_mb=2000.0),
    }
    answer = cpu.summary("dpo", [side_by_side.Outcome(found, {})])
    assert (answer["ours"], answer["trl_best"], answer["trl_bf16"], answer["unit"]) == (2.0, 0.4, 0.5, "pairs/s")
    assert (answer["ratio_vs_best_peer"], answer["share_of_ceiling"]) == (5.0, 0.75)
    assert answer["not_measured"] == {} and answer["peers_peak_mb"]["trl_best"] == 4000.0
    alone = {"ours": made(rate=9.0, gflops=None, peak_mb=9.0, decode_rate=12.0), "ceiling": made(12.0, None, 50.0)}
    answer = cpu.summary("decode_one", [side_by_side.Outcome(alone, {"vllm_cpu": "Illegal instruction"})])
    assert (answer["vllm_cpu"], answer["ratio_vs_best_peer"], answer["unit"]) == (None, None, "tokens/s")
    assert (answer["share_of_ceiling"], answer["decode_only"]) == (0.75, {"ours": 12.0})
    assert answer["not_measured"]["vllm_cpu"] == "Illegal instruction"
    assert answer["not_measured"].keys() == {"generate", "vllm_cpu", "llama_cpp"}


def test_a_summary_of_peers_that_took_turns_with_ours_one_by_one() -> None:
    """Each peer is compared with what ours did beside it; ours itself is the median."""
    made, top = side_by_side.Measured, side_by_side.Measured(0.0, 400.0, 50.0)
    turns = {"trl_default": (2.0, 0.4), "trl_best": (3.0, 0.5), "trl_bf16": (2.5, 0.7)}
    groups = [
        side_by_side.Outcome(
            {"ceiling": top, "ours": made(ours, 100 * ours, 900 + ours), name: made(peer, None, 3000.0)}, {}
        )
        for name, (ours, peer) in turns.items()
    ]
    answer = cpu.summary("dpo", groups)
    assert (answer["ours"], answer["share_of_ceiling"], answer["peak_mb"]) == (2.5, 0.625, 903.0)
    assert (answer["trl_default"], answer["trl_best"], answer["trl_bf16"]) == (0.4, 0.5, 0.7)
    assert answer["ratios"] == {"trl_default": 5.0, "trl_best": 6.0}
    assert answer["ratio_vs_best_peer"] == 5.0 and answer["not_measured"] == {}
    first = cpu.summary("dpo", groups[:1])
    assert first["ratios"] == {"trl_default": 5.0} and first["ratio_vs_best_peer"] is None
    assert first["trl_best"] is None and "trl_best" in first["not_measured"]


def test_medians_of_steps() -> None:
    steps = [
        {"units": 96.0, "seconds": seconds, "first_units": 2.0, "first_seconds": 1.0, "gflop": 12.0, "peak_mb": 7.0}
        for seconds in (3.0, 2.0, 5.0)
    ]
    found = side_by_side.measured(steps)
    assert (found.rate, found.gflops, found.decode_rate, found.peak_mb) == (32.0, 4.0, 47.0, 7.0)
    one = {"units": 1.0, "seconds": 2.0, "peak_mb": 7.0}
    assert side_by_side.measured([one]) == side_by_side.Measured(0.5, None, 7.0, None)


def test_the_ceiling_of_decoding() -> None:
    """Ten layers of 2 x 3 weights and a head of 3 x 2: 120 and 12 flop a token."""
    linears = ceiling.Linears((torch.zeros(2, 3),) * 10, torch.zeros(3, 2))
    assert linears.gflop(5, 1) == pytest.approx((5 * 120 + 12) / 1e9)
    prefill = (4 * 64 * 120 + 4 * 12) / 1e9 / 0.5
    assert linears.decoding(0.5, 0.01, 4 * 64, 4, 48) == pytest.approx(prefill + 47 * 0.01)


def test_entries_of_the_same_plan_on_the_same_machine_stay(tmp_path: Path) -> None:
    file, heading = tmp_path / "cpu.json", {"threads": 2, "plan": {"counted": 8}}
    assert cpu.measured_before(file, heading) == {}
    file.write_text(json.dumps(heading | {"dpo": {"ours": 1.0}, "minutes": 3.0}))
    assert cpu.measured_before(file, heading) == {"dpo": {"ours": 1.0}}
    assert cpu.measured_before(file, heading | {"threads": 4}) == {}


def test_ceilings_are_measured() -> None:
    linears = ceiling.Linears.of(tiny_model())
    assert len(linears.layers) == 2 * 4 and linears.layers[0].shape == (4 * 16 + 2 * 2 * 16, 64)
    assert linears.gflop(1, 0) == pytest.approx(2e-9 * 2 * 64 * (128 + 64 + 3 * 128))
    assert linears.seconds(2, "cpu", 0.01) > 0
    assert ceiling.product_gflops(torch.float32, "cpu", 0.01) > 0 and ceiling.copy_gb("cpu", 0.01) > 0


def test_growth_of_a_small_point() -> None:
    point = growth.Point(trees=2, prompt=8, branches=3, response=4, vocabulary=8192)
    shared, apart = growth.trees_of(point), growth.trees_of(point, shared=False)
    assert [len(t.nodes) for t in shared] == [4] * 2 and [len(t.nodes) for t in apart] == [2] * 6
    assert apart[4].nodes == (shared[1].nodes[0], shared[1].nodes[2])
    assert growth.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)
    rows = [{"seconds": 2.0, "other_mb": 8.0}, {"seconds": 4.0, "other_mb": 8.0}]
    assert growth.curve([1, 2], rows)["time_exponent"] == pytest.approx(1.0)
    curves = {"vocabulary": growth.curve([1, 2], rows)}
    assert growth.holds(curves, [{"reached": 0.85}]) == {"sharing": True, "memory_independent_of_vocabulary": True}
    rows[1]["other_mb"] = 8.9
    curves = {"vocabulary": growth.curve([1, 2], rows)}
    assert growth.holds(curves, [{"reached": 0.84}]) == {"sharing": False, "memory_independent_of_vocabulary": False}


def test_a_random_llama_is_the_same_each_time() -> None:
    a, b = (growth.random_llama(300, torch.float32).model for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_plain_path_of_loss_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both paths on a tiny model; a wrong pair would show at once."""
    monkeypatch.setattr(exactness, "STEPS", 3)
    trees = [replace(t, nodes=t.nodes[:3], pairs=(Pair(a=1, b=2),)) for t in exactness.random_trees(3)]
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", "")
    for method in ("sft", "dpo"):
        found = exactness.curves(lambda: deepcopy(loaded), trees, method, 1e-3)
        assert found["largest_difference"] < 1e-5
        assert found["ours"][0] != found["ours"][2]


def test_a_familys_gradient_error() -> None:
    assert 0 < exactness.family_error("llama", exactness.random_trees(2)) < 1e-5


def whole_results() -> dict[str, Any]:
    made = side_by_side.Measured
    ours = made(rate=6.0, gflops=300.0, peak_mb=900.0, decode_rate=7.0)
    top = made(rate=400.0, gflops=400.0, peak_mb=50.0)
    peers = {name: made(rate=1.0, gflops=None, peak_mb=3000.0, decode_rate=1.5) for name in table.NAMES}
    jobs = {
        job: cpu.summary(job, [side_by_side.Outcome({"ours": ours, "ceiling": top} | {n: peers[n] for n in names}, {})])
        for job, names in cpu.PEERS.items()
    }
    alone = {"ours": ours, "ceiling": replace(top, rate=8.0)}
    jobs["decode_one"] = cpu.summary("decode_one", [side_by_side.Outcome(alone, {"vllm_cpu": "Illegal | instruction"})])
    rates = {"fp32_gflops": 170.0, "bf16_gflops": 700.0, "copy_gb": 20.0}
    packed = {"packed_ms": {"1": 30.0}, "packed_gflops": {"1": 9.0}}
    point = {"tokens": 1.0, "seconds": 2.0, "peak_mb": 9.0, "state_mb": 3.0, "other_mb": 4.0}
    curves = {name: growth.curve([1, 2], [point, point]) for name in growth.CURVES}
    sharing = [{"P": 64, "R": 256, "G": 2, "ratio": 1.1, "ideal": 1.3, "reached": 0.9}]
    exact = {
        "gradient_errors_fp32": {"llama": 2e-5},
        "bf16": {"ratio": 1.1},
        "curves": {"random/sft": {"largest_difference": 1e-6}},
    }
    machine = {"machine": running.machine()}
    run = {"threads": 2, "dtype": "fp32", "plan": {"counted": 8, "completions": 16}, "ceiling": rates | packed}
    return {
        "cpu": machine | run | jobs,
        "growth": machine | {"curves": curves, "sharing": sharing},
        "exactness": machine | exact,
    }


def test_the_page_of_all_benchmarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = whole_results()
    for name, found in results.items():
        jsonl.write_atomic(tmp_path / "results" / f"{name}.json", json.dumps(found))
    assert table.main(["--folder", str(tmp_path), "--json"]) == 1  # two bars are missed
    printed = json.loads(capsys.readouterr().out)["bars"]
    assert [bar["claim"].split(":")[0] for bar in printed if bar["holds"] is False] == [
        "decode_distinct",
        "decode_grouped",
        "fp32 gradients",
    ]
    page = (tmp_path / "README.md").read_text()
    assert "| dpo: ours / best of TRL | 6 | >= 5.5 | yes |" in page
    assert "| decode_one: ours / generate | not measured | >= 2 |  |" in page
    assert "- vLLM (decode_one): Illegal | instruction" in page
    assert "| decode_distinct | tokens/s | 6 |" in page and "| 64 | 256 | 2 | 1.30 | 1.10 | 0.90 |" in page
    for name in ("ratios-cpu.svg", "growth.svg"):
        assert name in page and ET.parse(tmp_path / name).getroot().tag.endswith("svg")
    assert "## One GPU\n\nNot measured." in page


def test_what_was_not_measured_is_no_missed_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["--folder", str(tmp_path)]) == 0
    assert all(bar["holds"] is None for bar in json.loads(capsys.readouterr().out)["bars"])


def test_without_a_gpu_one_sentence_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / "gpu.py"), run_name="__main__")
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "no NVIDIA GPU" in said.err


def test_scripts_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    modules = (quickstart, kl_control, reliability, t19, cpu, growth, exactness, table)
    mains: list[Callable[[list[str]], int]] = [module.main for module in modules]
    for main in mains:
        with pytest.raises(SystemExit) as caught:
            main(["--help"])
        assert caught.value.code == 0
    assert "--collect-only" in capsys.readouterr().out


SHAPES = {"decode_one": ([[1, 2, 3]], 1), "decode_grouped": ([[1, 2, 3], [4, 5, 6]], 2)}


OPTIONS = {"dtype": "fp32", "threads": 1, "compiles": False, "batch": 2, "group": 2, "new_tokens": 4}


@pytest.fixture
def comparisons(tmp_path: Path) -> Path:
    sides = {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "Yes."), ("rejected", "No."))}
    row = {"prompt": [{"role": "user", "content": "Is water wet, in one word of your own?"}], **sides}
    (tmp_path / "rows.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize("job", ["sft", "reward", "rloo", "forest"])
def test_each_job_steps_and_counts_its_products(job: str, comparisons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER / "jobs")
    ours = script("jobs/our_job.py")
    ours.OPTIONS.update(OPTIONS)
    monkeypatch.setattr(sys, "argv", ["our_job.py", job, "tiny"])
    engine = EngineConfig(dtype="fp32", threads=1)
    step = ours.training(job, ours.load("tiny", engine), engine, str(comparisons))
    for done in (ours.timed(step), ours.timed(step)):
        assert done["units"] > 0 and done["seconds"] > 0
        assert ("gflop" in done) == (job != "rloo")


@pytest.mark.parametrize("job", ["dpo", "grpo", "decode"])
def test_a_job_takes_a_step_when_it_is_asked_to(job: str, comparisons: Path, tmp_path: Path) -> None:
    data = comparisons
    if job == "decode":
        data.write_text(json.dumps(SHAPES))
    words = (job, "tiny", str(data), json.dumps(OPTIONS))
    missing = (str(tmp_path / "python"), "trl_job.py", *words)
    programs = {"ours": (sys.executable, "our_job.py", *words), "trl_best": missing}
    asked = list(SHAPES) if job == "decode" else [job]
    outcomes = dict(side_by_side.side_by_side(programs, asked, warm=1, counted=1))
    assert list(outcomes) == asked
    outcome = outcomes[asked[-1]]
    found, failed = outcome.found["ours"], outcome.failed
    assert found.rate > 0 and 100 < found.peak_mb < 5000
    assert (found.gflops is None) == (job != "dpo") and (found.decode_rate is None) == (job != "decode")
    assert failed == {"trl_best": f"{missing[0]} does not start (No such file or directory)"}


def test_a_peer_that_ends_early_says_why(tmp_path: Path) -> None:
    silent, loud = (sys.executable, "protocol.py"), (sys.executable, str(tmp_path / "none.py"))
    ((_, outcome),) = side_by_side.side_by_side({"silent": silent, "loud": loud}, ["sft"], warm=1, counted=1)
    found, failed = outcome.found, outcome.failed
    assert found == {} and failed["silent"] == "it ended with 0 and said nothing"
    assert "No such file" in failed["loud"]


def test_generate_takes_a_step(tmp_path: Path) -> None:
    model, data = tmp_path / "model", tmp_path / "shapes.json"
    tiny_model().save_pretrained(model)
    data.write_text(json.dumps(SHAPES))
    options = {"dtype": "fp32", "threads": 1, "new_tokens": 4}
    program = (sys.executable, "generate_job.py", "decode", str(model), str(data), json.dumps(options))
    outcomes = dict(side_by_side.side_by_side({"generate": program}, list(SHAPES), warm=1, counted=1))
    assert all(outcome.failed == {} and outcome.found["generate"].rate > 0 for outcome in outcomes.values())


def test_a_quick_run_is_held_against_no_bar() -> None:
    def holds(counted: int) -> list[bool | None]:
        cpu = {"plan": {"counted": counted}, "dpo": {"ratio_vs_best_peer": 2.0}, "forest": {"share_of_ceiling": 0.9}}
        return [bar.holds for bar in table.bars({"cpu": cpu}) if bar.found is not None]

    assert holds(8) == [False, True] and holds(1) == [None, None]


@pytest.mark.parametrize(
    ("rule", "agreement", "consistent", "code"),
    [(lambda a, b: float(len(a) > len(b)), 0.75, 1.0, 0), (lambda a, b: 0.9, 0.5, 0.0, 1)],
    ids=["the longer", "the first"],
)
def test_a_judge_is_held_against_people_whatever_the_order_of_the_file(
    rule: Callable[[str, str], float],
    agreement: float,
    consistent: float,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """People chose the longer in three of four pairs, and the file has what they chose first."""
    pairs = []
    for i in range(80):
        prompt = Prompt(id=str(i), messages=(Message(role="user", content=f"Say {i}."),))
        texts = ("Yes.", f"Yes, {'very ' * 10}much so.")
        items = tuple(jsonl.text_completion(prompt, text) for text in (texts[::-1] if i % 4 else texts))
        pairs.append(Preference(prompt=prompt, items=items, target=1.0))
    jsonl.write_jsonl(tmp_path / "pairs.jsonl", pairs)
    with serving(by_rule(rule)) as url:
        assert (
            judge.main(["--data", str(tmp_path / "pairs.jsonl"), "--model", "m", "--endpoint", url, "--json"]) == code
        )
    found = json.loads(capsys.readouterr().out)
    assert found["agreement"]["share"] == pytest.approx(agreement) and found["consistent"] == consistent
    assert found["longer"]["share"] == pytest.approx(0.75) and (found["pairs"], found["cant_judge"]) == (80, 0)
    assert abs(found["shuffled"]["share"] - 0.5) < 0.15
    assert abs(found["first_order_alone"]["share"] - agreement) < 0.15
