"""A report on a reward as a stage: what it writes, that it goes on where it stopped, that it keeps splits apart."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefloop import cli
from prefloop.configs.evaluate import EvaluateRewardConfig
from prefloop.configs.reward import RewardConfig
from prefloop.configs.shared import EngineConfig
from prefloop.data.jsonl import text_completion, write_jsonl
from prefloop.data.pairing import comparison_id
from prefloop.stages import evaluate_reward, reward
from prefloop.store.accounts import Accounts
from prefloop.store.clock import Clock
from prefloop.store.labels import open_store
from prefloop.types import Comparison, Judgment, Message, Preference, PrefloopError, Prompt

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=1500)
HOSTILE = "<script>alert(1)</script> \u202egnp {{ 7 * 7 }}. It is 5."
TOY = """
from prefloop.types import Score

calls = 0

def longer(prompts, completions):
    return [Score(value=float(len(c.text.split()))) for c in completions]

def fails_once(prompts, completions):
    global calls
    calls += 1
    if calls == 2:
        raise RuntimeError("the power went off")
    return longer(prompts, completions)

def constant(prompts, completions):
    return [Score(value=0.5) for c in completions]
"""


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_lengths", raising=False)
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path / "home"))
    Path("toy_lengths.py").write_text(TOY)


def preferences(prompts: int = 12, split: str = "") -> list[Preference]:
    """Four answers a prompt, of which the longer one is preferred in four of five comparisons."""
    rng, made = random.Random(0), []
    for i in range(prompts):
        message = Message(role="user", content=f"Name {i} things.")
        at = split or ("dev" if i % 3 == 0 else "train")
        prompt = Prompt(id=f"p{i:02d}", messages=(message,), slice="<b>things" if i % 2 else "", split=at)
        texts = [" ".join(["You can count it."] * k) for k in (1, 2, 3)] + [f"{HOSTILE} {i}"]
        items = [text_completion(prompt, text) for text in texts]
        for a, b in ((0, 1), (2, 1), (3, 0)):
            longer = len(texts[a].split()) > len(texts[b].split())
            target = float(longer == (rng.random() < 0.8))
            made.append(Preference(prompt=prompt, items=(items[a], items[b]), target=target, group=prompt.id))
    return made


def config(**changed: Any) -> EvaluateRewardConfig:
    base = EvaluateRewardConfig(
        out="r/report", reward="toy_lengths:longer", preferences="pairs.jsonl", engine=ENGINE, probes=3
    )
    return base.model_copy(update=changed)


def test_a_learned_reward_is_reported_on() -> None:
    write_jsonl("pairs.jsonl", preferences())
    reward.run(RewardConfig(out="r/reward", model="tiny", preferences="pairs.jsonl", batch=4, engine=ENGINE))
    result = evaluate_reward.run(config(reward="r/reward"))
    assert result == json.loads(Path("r/report/result.json").read_text())
    assert result["calibration"]["logits"] and result["spread"] > 0
    assert result["held_out"]["n"] == 12 and result["prompts"] == 4
    again = next(probe for probe in result["probes"] if probe["name"] == "in other company")
    assert again["shift"]["n"] == 3 and abs(again["shift"]["value"]) < 1e-4
    assert {verdict["state"] for verdict in result["verdicts"]} == {"open"}  # four prompts show nothing
    page = Path("r/report/report.html").read_text("utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert "{{ 7 * 7 }}" in page and '<span class="hidden">U+202E</span>' in page
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", page)
    assert "default-src 'none'" in page and "<b>things" not in page
    written = Path("r/report/report.html").stat().st_mtime_ns
    assert evaluate_reward.run(config(reward="r/reward")) == result
    assert Path("r/report/report.html").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"simulated": True}, "Labels are simulated."),
        (
            {"simulated": True, "judges": ("judge-<a>",)},
            "Labels are given by models</strong> (<bdi>judge-&lt;a&gt;</bdi>)",
        ),
    ],
)
def test_the_page_says_who_labeled(changed: dict[str, Any], said: str) -> None:
    write_jsonl("pairs.jsonl", [replace(pair, **changed) for pair in preferences()])
    result = evaluate_reward.run(config())
    page = Path("r/report/report.html").read_text("utf-8")
    notices = [text for text in ("Labels are simulated.", "Labels are given by models") if text in page]
    assert said in page and len(notices) == bool(said)
    assert tuple(result["judges"]) == changed.get("judges", ())


def test_an_interrupted_report_goes_on_to_the_same_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_reward, "CHUNK", 20)
    write_jsonl("pairs.jsonl", preferences())
    whole = dict(evaluate_reward.run(config(out="r/whole")))
    broken = config(out="r/broken", reward="toy_lengths:fails_once")
    with pytest.raises(RuntimeError):
        evaluate_reward.run(broken)
    assert len(Path("r/broken/samples.jsonl").read_bytes().splitlines()) == 20
    assert not Path("r/broken/report.html").exists()
    gone_on = dict(evaluate_reward.run(broken))
    for result in (whole, gone_on):
        del result["reward"], result["seconds"]
    assert gone_on == whole


def test_single_votes_come_from_the_store_with_groups_and_strengths() -> None:
    known = preferences()
    Path("r/label").mkdir(parents=True)
    write_jsonl("r/label/preferences.jsonl", known)
    Path("r/label/result.json").write_text("{}")
    assert evaluate_reward.single_votes(config(preferences="r/label"), known) == []
    assert not Path("prefloop.db").exists()
    with open_store() as store:
        comparisons = [Comparison(id=comparison_id(p.items), prompt=p.prompt, items=p.items) for p in known]
        store.add_comparisons("r/label", comparisons)
        for name, group in (("Ada", "staff"), ("Bo", "students")):
            Accounts(store.engine, Clock()).create(name, "labeler", group, by="test")
            rankings = [(int(p.target == 0), int(p.target == 1)) for p in known]
            rankings = rankings if name == "Ada" else [ranking[::-1] for ranking in rankings]
            judgments = [
                Judgment(comparison_id=c.id, annotator=name, ranking=ranking, strength=4)
                for c, ranking in zip(comparisons, rankings, strict=True)
            ]
            store.add_judgments("r/label", judgments, simulated=False)
    result = evaluate_reward.run(config(preferences="r/label"))
    right = result["held_out"]["accuracy"]
    assert result["by"]["annotator"]["Ada"]["value"] == pytest.approx(right)
    assert result["by"]["group"]["students"]["value"] == pytest.approx(1 - right)
    assert result["by"]["strength"].keys() == {"strength 4 of 4"}
    assert result["agreement"]["value"] == 0 and result["ceiling"]["value"] is None
    assert result["groups"]["staff"]["value"] == pytest.approx(2 * right - 1)
    assert result["probes"][0]["groups"].keys() == {"staff", "students"}


def test_new_samples_and_a_gold_reward() -> None:
    known = preferences()
    write_jsonl("pairs.jsonl", known)
    strange = text_completion(known[0].prompt, "Quite other words altogether, none of them seen before. " * 3)
    rows = [
        {"model": model, "prompt": known[0].prompt, "completion": dataclasses.replace(strange, id=f"{model}{k}")}
        for model in ("policy", "sft")
        for k in range(2)
    ]
    write_jsonl("new.jsonl", rows)
    result = evaluate_reward.run(config(samples="new.jsonl", gold="toy_lengths:longer"))
    assert result["novelty"]["distance_new"] > 0.5 > result["novelty"]["distance_heldout"]
    assert [one["n"] for one in result["best_of"]] == [2, 4]
    assert all(one["gain"]["value"] == pytest.approx(one["most"]) for one in result["best_of"])
    assert len(evaluate_reward.new_samples("new.jsonl")) == 2


def test_prompts_that_a_reward_learned_from_are_not_held_out() -> None:
    write_jsonl("pairs.jsonl", preferences(split="train"))
    fitted = RewardConfig(out="r/reward", model="tiny", preferences="pairs.jsonl", seed=3, heldout=0.3, engine=ENGINE)
    reward.run(fitted)
    with pytest.raises(PrefloopError, match=r"held out 0.3 of the prompts by seed 3, this report would hold out 0.15"):
        evaluate_reward.run(config(reward="r/reward"))
    for name in ("tagged=r/reward", "r/reward/checkpoint"):
        with pytest.raises(PrefloopError, match=r"held out 0.3 of the prompts by seed 3"):
            evaluate_reward.run(config(reward=name))
    Path("r/reward/checkpoint").rename("moved")
    with pytest.raises(PrefloopError, match="which prompts it held out is not known"):
        evaluate_reward.run(config(reward="moved"))
    Path("moved").rename("r/reward/checkpoint")
    assert evaluate_reward.run(config(reward="r/reward", seed=3, heldout=0.3))["prompts"] == 4


def test_what_cannot_be_reported_on() -> None:
    write_jsonl("pairs.jsonl", preferences())
    with pytest.raises(PrefloopError, match="same score"):
        evaluate_reward.run(config(out="r/flat", reward="toy_lengths:constant"))
    with pytest.raises(PrefloopError, match="needs a reward"):
        evaluate_reward.run(config(reward=""))


def test_on_the_command_line() -> None:
    write_jsonl("pairs.jsonl", preferences())
    Path("recipe.toml").write_text('name = "try"\n[evaluate_reward]\npreferences = "pairs.jsonl"\nprobes = 2\n')
    words = ["evaluate", "reward", "recipe.toml", "--set", "evaluate_reward.reward=toy_lengths:longer"]
    plain = CliRunner().invoke(cli.app, words)
    assert plain.exit_code == 0, plain.stderr
    assert "? accuracy: " in plain.stdout and "held-out comparisons" in plain.stdout
    as_json = CliRunner().invoke(cli.app, [*words, "--json"])
    assert json.loads(as_json.stdout) == json.loads(Path("runs/try/evaluate_reward/result.json").read_text())
