import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from prefloop.evals.charts import slice_chart
from prefloop.evals.report import build_report, last_third_kl, shown, terminal_summary, verdicts
from prefloop.evals.winrate import SliceRate
from prefloop.types import PrefloopError

KEYS = {
    *("minutes", "win_rate", "win_rate_low", "win_rate_high", "win_rate_vs_base", "win_rate_length_controlled"),
    *("control_shuffled_labels", "kl_target", "kl_last_third", "rm_accuracy", "rm_ceiling", "rm_longer_wins"),
    *("rm_shorter_wins", "slices", "sft_stopped_share", "simulated", "judges", "online_judges"),
}
FakeRun = Callable[..., Path]


class Elements(HTMLParser):
    """Every element and attribute name of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_whole_run(fake_run: FakeRun, tmp_path: Path) -> None:
    root = fake_run(tmp_path / "quickstart")
    report = build_report(root)
    assert report == json.loads((root / "report.json").read_text())
    assert report.keys() >= KEYS
    assert all(report[key] is not None for key in KEYS)
    assert report["simulated"] is True
    assert report["kl_target"] == 6.0
    assert report["minutes"] == pytest.approx((301 + 222 + 4.2 + 402 + 1211 + 181.5) / 60)  # without the control
    assert report["control_shuffled_labels"].keys() == {"win_rate", "low", "high"}
    for rate in report["slices"].values():
        assert rate["low"] <= rate["win_rate"] <= rate["high"]
        assert rate["n"] == 2
    page = (root / "report.html").read_text("utf-8")
    assert "Labels are simulated." in page
    for heading in ("The loop at work", "Win rates by slice", "The reward model", "Before and after", "Cost by stage"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<article") == 10
    assert not list(root.glob("*.tmp"))


def test_hostile_text_stays_inert(fake_run: FakeRun, tmp_path: Path) -> None:
    root = fake_run(tmp_path / "<b>run")
    samples = root / "evaluate" / "samples.jsonl"
    samples.write_text(
        samples.read_text().replace('"slice": "writing"', '"slice": "<i onload=x>$\\\\frac{ \\u202e\\ud800"')
    )
    build_report(root)
    page = (root / "report.html").read_text("utf-8")
    elements = Elements(page)
    assert not {"script", "img", "b", "i", "iframe", "link", "a", "form"} & set(elements.tags)
    assert not [name for name, _ in elements.attributes if name.startswith("on") or name in ("src", "href", "action")]
    assert all(value and value.startswith("#") for name, value in elements.attributes if name == "xlink:href")
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert '<span class="hidden">U+202E</span>' in page
    assert '<span class="hidden">U+D800</span>' in page
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", page)
    assert "{{ 7 * 7 }}" in page  # not rendered as a template
    ids = [value for name, value in elements.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_shown_isolates_and_spells_out() -> None:
    assert shown("a<b\u200b\n\t") == '<bdi>a&lt;b<span class="hidden">U+200B</span>\n\t</bdi>'


def test_without_control(fake_run: FakeRun, tmp_path: Path) -> None:
    report = build_report(fake_run(tmp_path / "r", control=False))
    assert report["control_shuffled_labels"] is None
    assert len(verdicts(report)) == 3


@pytest.mark.parametrize("missing", ["sft", "label", "reward", "ppo", "evaluate"])
def test_without_a_stage(fake_run: FakeRun, tmp_path: Path, missing: str) -> None:
    root = fake_run(tmp_path / "r", control=False)
    shutil.rmtree(root / missing)
    report = build_report(root)
    assert report.keys() >= KEYS
    figures = {"label": "simulated", "reward": "rm_accuracy", "ppo": "kl_last_third", "evaluate": "win_rate"}
    if missing in figures:
        assert report[figures[missing]] is None
    Console(file=io.StringIO()).print(terminal_summary(report))


def test_unfinished_run(fake_run: FakeRun, tmp_path: Path) -> None:
    root = fake_run(tmp_path / "r", control=False)
    for stage in ("reward", "evaluate", "ppo"):
        (root / stage / "result.json").unlink()
    report = build_report(root)
    assert report["win_rate"] is None and report["rm_accuracy"] is None and report["kl_last_third"] is None
    page = (root / "report.html").read_text("utf-8")
    assert "The loop at work" in page  # what was logged so far is drawn
    assert "unfinished" in page
    for stage in ("sft", "collect", "label", "reward", "evaluate"):
        shutil.rmtree(root / stage)
    assert build_report(root)["minutes"] == 0


def test_no_run_and_damaged_run(fake_run: FakeRun, tmp_path: Path) -> None:
    with pytest.raises(PrefloopError, match="holds no stage"):
        build_report(tmp_path)
    root = fake_run(tmp_path / "r")
    (root / "sft" / "config.json").write_text("{")
    with pytest.raises(PrefloopError, match=r"config\.json is damaged"):
        build_report(root)


def test_last_third_of_the_steps() -> None:
    rows = [{"step": step, "kl": float(kl)} for step, kl in [(0, 9), (1, 9), (2, 9), (3, 9), (4, 1), (4, 3), (5, 8)]]
    assert last_third_kl(rows) == 5.0  # 6 steps: the last 2, (2 + 8) / 2
    assert last_third_kl(rows[:2]) == 9.0
    assert last_third_kl([]) is None


VERDICTS = {
    "win_rate": 0.6,
    "win_rate_low": 0.55,
    "win_rate_high": 0.65,
    "win_rate_length_controlled": 0.58,
    "n_prompts": 90,
    "control_shuffled_labels": {"win_rate": 0.5, "low": 0.45, "high": 0.54},
    "baseline": "SFT",
    "kl_target": 6.0,
    "kl_leash": "target",
    "kl_last_third": 7.1,
    "rm_accuracy": 0.7,
    "rm_accuracy_low": 0.64,
    "rm_accuracy_high": 0.76,
    "rm_ceiling": 0.8,
    "rm_longer_wins": 0.4,
    "rm_shorter_wins": 0.6,
}


@pytest.mark.parametrize(
    ("change", "states"),
    [
        ({}, ["good", "good", "good", "good"]),
        ({"win_rate_low": 0.49}, ["open", "open", "good", "good"]),
        ({"win_rate_low": 0.4, "win_rate_high": 0.49}, ["bad", "open", "good", "good"]),
        ({"kl_last_third": 7.3}, ["good", "good", "bad", "good"]),
        ({"kl_target": None}, ["good", "good", "open", "good"]),
        ({"rm_accuracy_low": 0.6}, ["good", "good", "good", "open"]),
        ({"rm_accuracy": 0.6, "rm_accuracy_low": 0.5}, ["good", "good", "good", "bad"]),
    ],
)
def test_verdicts(change: dict[str, float], states: list[str]) -> None:
    assert [verdict.state for verdict in verdicts(VERDICTS | change)] == states


@pytest.mark.parametrize(
    ("kl", "target", "said"),
    [
        ({"controller": "adaptive", "target": 5.0}, 5.0, "(target 5 ±"),
        ({"controller": "rate", "per": "response", "target": 5.0}, 5.0, "(target 5 ±"),
        ({"controller": "adaptive", "per": "token", "target": 0.05}, None, "(target per token)"),
        ({"controller": "linear", "target": 6.0}, None, "(scheduled coefficient)"),
        ({"controller": "fixed", "target": 6.0}, None, "(fixed coefficient)"),
    ],
)
def test_kl_is_held_against_a_target_of_its_own_unit(
    fake_run: FakeRun, tmp_path: Path, kl: dict[str, object], target: float | None, said: str
) -> None:
    root = fake_run(tmp_path / "r")
    file = root / "ppo" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"kl": kl}))
    report = build_report(root)
    assert report["kl_target"] == target
    assert any(said in verdict.text for verdict in verdicts(report) if "KL" in verdict.text)


def test_a_baseline_that_is_not_sft_is_not_called_so(fake_run: FakeRun, tmp_path: Path) -> None:
    root = fake_run(tmp_path / "r")
    assert build_report(root)["baseline"] == "SFT"
    file = root / "evaluate" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"baselines": ["smollm2-135m"]}))
    assert build_report(root)["baseline"] == "the start"
    page = (root / "report.html").read_text("utf-8")
    assert "Win rate against the start" in page and "Win rate against SFT" not in page


def test_terminal_text_is_plain(fake_run: FakeRun, tmp_path: Path) -> None:
    report = build_report(fake_run(tmp_path / "r"))
    report["slices"]["[red]\x1b[2J"] = {"win_rate": 0.5, "low": 0.4, "high": 0.6, "n": 1}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal_summary(report))
    text = console.export_text()
    assert "simulated" in text and "held-out prompts" in text
    assert "[red]U+001B[2J" in text and "\x1b" not in text


def test_chart_is_theme_bound_and_repeats() -> None:
    rates = {"a$_b$": SliceRate(0.4, 0.3, 0.45, 5), "\u4e2d\u6587": SliceRate(0.7, 0.6, 0.8, 5)}
    chart = slice_chart(SliceRate(0.6, 0.5, 0.7, 10), rates, "SFT")
    assert chart == slice_chart(SliceRate(0.6, 0.5, 0.7, 10), rates, "SFT")
    assert "a$_b$ (5)" in chart and "\u4e2d\u6587 (5)" in chart
    assert "var(--blue)" in chart and not re.search('#[0-9a-f]{6}[;"]', chart)
