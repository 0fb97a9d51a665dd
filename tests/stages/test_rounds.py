"""Rounds of the loop: each begins where the last one ended, labels are replayed, and a kill changes nothing."""

from __future__ import annotations

import json
import os
import runpy
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.forking import Forks
from prefloop.configs.evaluate import EvaluateConfig
from prefloop.configs.load import load_recipe
from prefloop.configs.pipeline import RecipeConfig
from prefloop.configs.shared import EngineConfig
from prefloop.data.heldout import distinct_pairs, split
from prefloop.data.jsonl import read_preferences, text_completion, write_jsonl
from prefloop.evals.charts import rounds_chart
from prefloop.models.checkpoint import read_checkpoint
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.rewards.learned import LearnedReward
from prefloop.stages import evaluate, pipeline
from prefloop.stages.refresh import replay
from prefloop.store.campaigns import Campaigns
from prefloop.store.clock import Clock
from prefloop.store.labels import open_store
from prefloop.types import Judgment, Message, Preference, PrefloopError, Prompt

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=1500)
ROOT = Path(__file__).parents[2]
STAGES = ("collect", "label", "reward", "ppo", "evaluate")


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path / "home"))


def asked(index: int, split: str = "train") -> Prompt:
    checks = {"mentions": [["thing"]], "ideal_words": 20}
    message = Message(role="user", content=f"Name {index} {split} things.")
    return Prompt(id=f"{split}-{index}", messages=(message,), slice="everyday", split=split, checks=checks)


def write_labels(name: str, count: int) -> str:
    rows = [
        Preference(prompt=asked(i), items=(text_completion(asked(i), f"{name} a"), text_completion(asked(i), "b")))
        for i in range(count)
    ]
    write_jsonl(f"{name}.jsonl", rows)
    return f"{name}.jsonl"


@pytest.mark.parametrize(
    ("sizes", "new", "expected"),
    [
        ((10, 10), 0.5, {"new": 10, "old": 10}),
        ((6, 6, 9), 0.25, {"new": 4, "old": 12}),  # the buffer of 12 ends first
        ((30, 6, 9), 0.25, {"new": 9, "old": 27}),  # the new labels do
        ((5, 8), 1.0, {"new": 8, "old": 0}),
    ],
)
def test_shares_hold_whichever_ends_first(sizes: tuple[int, ...], new: float, expected: dict[str, int]) -> None:
    files = [write_labels(f"run{i}", size) for i, size in enumerate(sizes)]
    assert replay(files, "mixed.jsonl", heldout={"train-1"}, new=new, seed=3) == expected
    mixed = read_preferences("mixed.jsonl")
    sources = Counter(p.items[0].text.split()[0] for p in mixed)
    assert sources[f"run{len(sizes) - 1}"] == expected["new"] and sources.total() == sum(expected.values())
    assert len({(p.prompt.id, p.items[0].text) for p in mixed}) == len(mixed)
    assert {p.prompt.split for p in mixed if p.prompt.id == "train-1"} <= {"dev"}
    assert {p.prompt.split for p in mixed if p.prompt.id != "train-1"} == {"train"}
    before = Path("mixed.jsonl").read_bytes()
    replay(files, "mixed.jsonl", heldout={"train-1"}, new=new, seed=3)
    assert Path("mixed.jsonl").read_bytes() == before


def test_a_share_of_nothing_is_said() -> None:
    files = [write_labels("old", 1), write_labels("new", 1)]
    with pytest.raises(PrefloopError, match=r"1 new and 1 old comparisons cannot be mixed at a share of 0\.9"):
        replay(files, "mixed.jsonl", heldout=set(), new=0.9, seed=0)
    assert not Path("mixed.jsonl").exists()


def recipe(**rest: Any) -> RecipeConfig:
    write_jsonl("prompts.jsonl", [asked(i, split) for split in ("train", "dev", "eval") for i in range(4)])
    sampled = {"max_tokens": 6}
    optim = {"lr": 1e-3}
    settings: dict[str, Any] = {
        "name": "r",
        "model": "tiny",
        "stages": STAGES,
        "prompts": "prompts.jsonl",
        "engine": ENGINE,
        "rounds": 2,
        "collect": {**sampled, "temperatures": [1.0, 1.5], "samples": 2},
        "label": {"pairs": 4},
        "reward": {"optim": optim, "batch": 2},
        "rejection": {**sampled, "n": 2, "optim": optim},
        "ppo": {**sampled, "steps": 2, "prompts_per_step": 2, "group": 2, "save_every": 1},
        "online": {**sampled, "steps": 1, "prompts_per_step": 2},
        "evaluate": {**sampled, "samples": 1},
    }
    return RecipeConfig(**settings | rest)


def config_of(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("runs/r", folder, "config.json").read_text())
    return found


def read_lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_versions_follow_the_policy_and_are_kept() -> None:
    report = pipeline.run(recipe())
    roots = ["rounds/1", "rounds/2"]
    starts = ["tiny", "runs/r/rounds/1/ppo"]
    watches = ["", "runs/r/rounds/1/reward"]
    for root, start, watch in zip(roots, starts, watches, strict=True):
        config = config_of(f"{root}/ppo")
        assert (config["policy"], config["reward"], config["watch"]) == (start, f"runs/r/{root}/reward", watch)
        assert config_of(f"{root}/collect")["models"] == [start]
        assert read_checkpoint(f"runs/r/{root}/reward/checkpoint").parent == "tiny"
        assert config_of(f"{root}/evaluate")["baselines"] == ["tiny"]
    assert config_of("rounds/1/evaluate")["earlier"] == []
    assert config_of("rounds/2/evaluate")["earlier"] == ["runs/r/rounds/1/evaluate"]
    answers = [read_lines(f"runs/r/{root}/evaluate/samples.jsonl") for root in roots]
    of_tiny = [[row for row in rows if row["model"] == "sft"] for rows in answers]
    assert of_tiny[1] == [{"from": "runs/r/rounds/1/evaluate"} | row for row in of_tiny[0]] and len(of_tiny[0]) == 4
    assert len({config_of(f"{root}/ppo")["seed"] for root in roots}) == 2
    assert len({config_of(f"{root}/reward")["seed"] for root in roots}) == 1
    assert read_checkpoint("runs/r/rounds/2/ppo/checkpoint").parent == "runs/r/rounds/1/ppo/checkpoint"
    fresh = {item.id for p in read_preferences("runs/r/rounds/2/label/preferences.jsonl") for item in p.items}
    mixed = read_preferences("runs/r/rounds/2/preferences.jsonl")
    new = sum(all(item.id in fresh for item in p.items) for p in mixed)
    assert abs(new - len(mixed) / 2) <= 0.5 and {p.prompt.split for p in mixed} == {"train", "dev"}
    assert config_of("rounds/2/reward")["preferences"] == "runs/r/rounds/2/preferences.jsonl"
    assert json.loads(Path("runs/r/rounds/2/comparisons.json").read_text()) == {"new": new, "old": len(mixed) - new}

    versions = [f"runs/r/{root}/reward" for root in roots]
    _, panel = split(read_preferences("runs/r/rounds/1/label/preferences.jsonl"), 0.15, 0)
    pairs = distinct_pairs(panel)
    sides = []
    for version in versions:
        model = LearnedReward(version, ENGINE)
        scores = [[s.value for s in model([p.prompt] * 2, p.items)] for p in pairs]
        sides.append([a > b for a, b in scores])
    alike = sum(x == y for x, y in zip(*sides, strict=True)) / len(pairs)
    said = json.loads(Path("runs/r/rounds/2/reward/agreement.json").read_text())
    assert said == {"version": versions[1], "pairs": len(pairs), "agreement": {versions[0]: pytest.approx(alike)}}

    told = report["rounds"]
    assert [one["round"] for one in told] == [1, 2]
    for one, root in zip(told, roots, strict=True):
        assert one == json.loads(Path("runs/r", root, "round.json").read_text())
        counted = 0
        for stage in ("collect", "ppo", "evaluate"):
            for row in read_lines(f"runs/r/{root}/{stage}/samples.jsonl"):
                counted += 0 if "from" in row else len(row["completion"]["segments"][0]["tokens"])
        assert one["tokens"] == counted > 0
        assert one["labels"] == json.loads(Path("runs/r", root, "label/result.json").read_text())["judgments"] > 0
        assert one["win_rate"] is not None and one["kl"] is not None and one["proxy"] is not None
    assert told[0]["watch"] is None and told[1]["watch"] is not None
    assert [one["trained"][0]["from"] for one in told] == starts
    assert report["minutes"] == pytest.approx(sum(one["minutes"] for one in told))
    assert report["win_rate"] == told[1]["win_rate"]  # the last round's
    page = Path("runs/r/report.html").read_text()
    assert "<h2>Rounds</h2>" in page and "runs/r/rounds/1/ppo" in page

    recompute = runpy.run_path(str(ROOT / "benchmarks" / "recompute.py"))
    for name, value in recompute["recompute"](Path("runs/r")).items():
        assert recompute["differences"](report[name], value) == [], name

    written = {file: file.stat().st_mtime_ns for file in Path("runs/r").rglob("checkpoint/*")}
    assert pipeline.run(recipe(rounds=3))["rounds"][:2] == told
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert config_of("rounds/3/ppo")["policy"] == "runs/r/rounds/2/ppo"


def test_methods_in_sequence_each_begin_where_the_last_one_ended() -> None:
    stages = ("collect", "label", "reward", "rejection", "online", "direct", "evaluate")
    report = pipeline.run(recipe(stages=stages, rounds=2))
    first, second = (f"runs/r/rounds/{number}" for number in (1, 2))
    assert config_of("rounds/1/rejection")["policy"] == "tiny"
    assert config_of("rounds/1/online")["policy"] == f"{first}/rejection"
    assert config_of("rounds/1/direct")["policy"] == f"{first}/online"
    assert config_of("rounds/2/collect")["models"] == [f"{first}/direct"]
    assert config_of("rounds/2/rejection")["policy"] == f"{first}/direct"
    assert config_of("rounds/2/rejection")["earlier"] == [f"{first}/rejection"]
    assert config_of("rounds/2/direct")["preferences"] == f"{second}/preferences.jsonl"
    assert config_of("rounds/2/evaluate")["policy"] == f"{second}/direct"
    assert [step["stage"] for step in report["rounds"][1]["trained"]] == ["rejection", "online", "direct"]


def test_a_sequence_without_rounds_too() -> None:
    """Verifiers first, then comparisons of what came of them."""
    made = recipe(stages=("group", "collect", "label", "direct", "ppo"), rounds=0)
    found = {stage: pipeline.inputs(made, stage) for stage in made.stages}
    assert found["group"]["policy"] == "tiny" and found["group"]["baseline"] == ""
    assert found["collect"]["models"] == ("runs/r/group",) and found["direct"]["policy"] == "runs/r/group"
    assert found["direct"]["preferences"] == "runs/r/label" and found["ppo"]["policy"] == "runs/r/direct"
    assert found["ppo"]["baseline"] == ""  # collect asked another policy
    assert pipeline.control_stages(made) == ("direct", "ppo", "evaluate")
    usual = made.model_copy(update={"stages": ("sft", "collect", "label", "reward", "rejection", "ppo", "evaluate")})
    assert pipeline.inputs(usual, "rejection")["policy"] == "runs/r/sft"
    assert pipeline.control_stages(usual) == ("reward", "rejection", "ppo", "evaluate")
    plain = made.model_copy(update={"stages": ("sft", "collect", "label", "reward", "ppo")})
    assert pipeline.inputs(plain, "ppo")["baseline"] == "runs/r/collect"
    assert pipeline.control_stages(plain) == ("reward", "ppo", "evaluate")
    other = plain.model_copy(update={"ppo": {**plain.ppo, "policy": "runs/other/sft"}})
    assert pipeline.inputs(other, "ppo")["baseline"] == ""  # nor this one


def test_a_control_learns_from_no_part_of_the_rewards_own_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    mix = {"parts": {"help": "runs/r/reward", "short": "rubric"}, "weights": {"help": 1.0, "short": 1.0}}
    made = recipe(rounds=0, stages=("collect", "label", "reward", "ppo", "evaluate"), ppo={"mix": mix})
    seen: list[Any] = []
    monkeypatch.setitem(pipeline.RUNS, "ppo", seen.append)
    pipeline.run_control(made, "ppo")
    assert seen[0].mix.parts == {"help": "runs/r/control/reward", "short": "rubric"}


def test_a_control_without_an_evaluation_beside_it_samples_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ("collect", "label", "reward", "ppo")
    seen: list[Any] = []
    monkeypatch.setitem(pipeline.RUNS, "evaluate", seen.append)
    for others in ((), ("evaluate",)):
        pipeline.run_control(recipe(rounds=0, stages=stages + others), "evaluate")
    assert [config.earlier for config in seen] == [(), ("runs/r/evaluate",)]


def test_prompts_of_all_splits_are_looked_for() -> None:
    made = recipe(rounds=0)
    pipeline.check_prompts(made.model_copy(update={"collect": {**made.collect, "splits": []}}))


def test_prompts_that_a_last_stage_will_miss_are_missed_before_the_first() -> None:
    made = recipe(rounds=0)
    write_jsonl("prompts.jsonl", [asked(i, split) for split in ("train", "dev") for i in range(4)])
    with pytest.raises(PrefloopError, match=r"prompts\.jsonl: no prompt of split eval; this source has dev, train"):
        pipeline.run(made)
    assert not Path("runs").exists()


def test_people_are_asked_and_the_run_stops_until_they_answered() -> None:
    made = recipe(stages=("collect", "label", "direct"), rounds=1, label={"annotator": "people", "pairs": 1})
    with pytest.raises(
        PrefloopError, match=r"rounds/1/label: \d+ labels are wanted: run `prefloop serve`.*same command"
    ):
        pipeline.run(made)
    run = "runs/r/rounds/1/label"
    with open_store("") as store:
        comparisons = store.comparisons(run)
        said = [Judgment(comparison_id=c.id, annotator="ann", ranking=(0, 1)) for c in comparisons]
        store.add_judgments(run, said, simulated=False)
        Campaigns(store.engine, Clock()).set_state(run, "closed", by="ann")
    report = pipeline.run(made)
    assert report["rounds"][0]["labels"] == len(comparisons) and report["simulated"] is False


def test_the_kl_to_the_baseline_is_that_of_the_sampled_answers() -> None:
    recipe()
    common: dict[str, Any] = {"prompts": "prompts.jsonl", "max_tokens": 6, "samples": 2, "engine": ENGINE}
    same = evaluate.run(EvaluateConfig(out="same", policy="tiny", baselines=("tiny",), temperature=1.3, **common))
    assert same["kl_to_sft"] == pytest.approx(0, abs=1e-3)
    assert json.loads(Path("same/run.json").read_text())["parents"] == {
        "policy": "tiny",
        "sft": "tiny",
        "judge": "rubric",
    }
    tiny_model(1).save_pretrained("other")
    tiny_tokenizer().save_pretrained("other")
    apart = evaluate.run(EvaluateConfig(out="apart", policy="other", baselines=("tiny",), **common))
    rows = [json.loads(line) for line in Path("apart/samples.jsonl").read_text().splitlines()]
    kls = [row["kl"] for row in rows if row["model"] == "policy"]
    assert apart["kl_to_sft"] == pytest.approx(sum(kls) / len(kls)) and apart["kl_to_sft"] > 1
    assert all("kl" not in row for row in rows if row["model"] == "sft")


def test_rounds_of_which_nothing_is_known_have_no_plot() -> None:
    nothing = dict.fromkeys(("proxy", "watch", "kl", "win_rate", "win_rate_low", "win_rate_high"))
    assert rounds_chart([{"round": 1, **nothing}]) == ""
    drawn = rounds_chart([{"round": 1, **nothing, "proxy": 0.5}, {"round": 2, **nothing, "proxy": 0.7}])
    assert "Score by the reward trained on" in drawn and "Preferred" not in drawn


RECIPE = """
name = "r"
model = "tiny"
stages = ["collect", "label", "reward", "rejection", "ppo"]
rounds = 2
prompts = "prompts.jsonl"
engine = { dtype = "fp32", threads = 1 }
collect = { max_tokens = 6, samples = 3 }
label = { pairs = 3 }
reward = { batch = 2 }
rejection = { n = 2, max_tokens = 6 }
ppo = { steps = 12, prompts_per_step = 2, group = 2, max_tokens = 6, save_every = 2 }
"""


def test_a_killed_run_goes_on_at_its_stage_and_ends_bit_for_bit_alike(tmp_path: Path, forks: Forks) -> None:
    recipe()
    for place in ("whole", "cut"):
        Path(place).mkdir()
        Path(place, "recipe.toml").write_text(RECIPE)
        Path(place, "prompts.jsonl").write_bytes(Path("prompts.jsonl").read_bytes())
    process = forks.start("prefloop", "run", "recipe.toml", folder=tmp_path / "cut")
    metrics = Path("cut/runs/r/rounds/2/ppo/metrics.jsonl")
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    steps = len(metrics.read_text().splitlines())
    assert 1 <= steps <= 12 and not Path("cut/runs/r/rounds/2/round.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in Path("cut/runs/r/rounds").glob("*/re*/checkpoint/*")}
    for place in ("cut", "whole"):
        os.chdir(tmp_path / place)
        pipeline.run(load_recipe("recipe.toml"))
    os.chdir(tmp_path)
    assert kept and {file: file.stat().st_mtime_ns for file in kept} == kept  # stages that had finished stay
    compared = 0
    for file in sorted(Path("whole/runs/r/rounds").rglob("*")):
        if file.name in ("samples.jsonl", "preferences.jsonl", "comparisons.json") or file.suffix == ".safetensors":
            assert Path("cut", file.relative_to("whole")).read_bytes() == file.read_bytes(), file
            compared += 1
        if file.name == "metrics.jsonl":
            ours, theirs = (
                [
                    {name: value for name, value in json.loads(line).items() if not name.startswith("time/")}
                    for line in own.read_text().splitlines()
                ]
                for own in (file, Path("cut", file.relative_to("whole")))
            )
            assert ours == theirs, file
            compared += 1
    assert compared == 30
    told = [json.loads(Path(place, "runs/r/rounds/2/round.json").read_text()) for place in ("whole", "cut")]
    assert told[0] | {"minutes": 0} == told[1] | {"minutes": 0}


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('name = "r"\nrounds = 2\ncontrols = true', "the negative control knows no rounds"),
        ('name = "r"\nrounds = 2\nstages = ["sft", "collect"]', "a round trains a policy"),
        ('name = "r"\nrounds = -1', "rounds = -1 is refused"),
        ('name = "r"\nnew_labels = 0.0', "new_labels = 0.0 is refused"),
        ('name = "r"\nstages = ["sft", "ppo", "sft"]', "stages names 'sft' twice"),
    ],
)
def test_what_cannot_go_round_is_said(toml: str, said: str) -> None:
    Path("recipe.toml").write_text(toml, encoding="utf-8")
    with pytest.raises(PrefloopError, match=said):
        load_recipe("recipe.toml")


def test_one_stage_of_a_round_is_not_run_alone() -> None:
    with pytest.raises(PrefloopError, match="A recipe with rounds is run as a whole"):
        pipeline.run_stage(recipe(), "ppo")


@pytest.mark.parametrize("name", ["llama2", "hh-online"])
def test_recipes_of_systems_load_with_the_models_that_they_name(name: str) -> None:
    made = load_recipe(ROOT / "recipes" / f"{name}.toml")
    filled = {stage: pipeline.inputs(made, stage, 2) for stage in made.stages if stage != "sft"}
    assert made.rounds == 3 and filled["collect"]["models"] == (f"runs/{name}/rounds/1/ppo",)
    assert filled["evaluate"]["baselines"] == (f"runs/{name}/sft", made.model)
    before = {"llama2": "rounds/2/rejection", "hh-online": "rounds/1/ppo"}[name]
    assert filled["ppo"]["policy"] == f"runs/{name}/{before}"
