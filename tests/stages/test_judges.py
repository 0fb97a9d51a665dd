"""Model judges in the loop: labels of the label stage, pairs of online DPO, rounds; kills, and judges of no use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prefloop.configs.collect import LabelConfig
from prefloop.configs.online import OnlineConfig
from prefloop.configs.pipeline import RecipeConfig
from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.jsonl import read_preferences, text_completion, write_jsonl
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.stages import judges, label, online, pipeline
from prefloop.store.exchange import export
from prefloop.store.labels import open_store
from prefloop.types import Json, Message, PrefloopError, Prompt
from tests.judge_server import by_rule, reply, serving

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=1500)
TINY = {"name": "judge-tiny", "model": "tiny"}
CHECKS: Mapping[str, Json] = {"mentions": [["thing"]], "ideal_words": 4}


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path / "home"))


def prompt(index: int, split: str = "train", checks: Mapping[str, Json] = CHECKS) -> Prompt:
    message = Message(role="user", content=f"Name {index} {split} things.")
    return Prompt(id=f"{split}-{index}", messages=(message,), slice="all", split=split, checks=checks)


def far(url: str, **rest: Any) -> dict[str, Any]:
    return {"name": "judge-far", "model": "m", "endpoint": url, **rest}


def labeled(*models: Mapping[str, Any], checks: Mapping[str, Json] = CHECKS, **rest: Any) -> Mapping[str, Any]:
    """The label stage over a short and a long answer to each of eight prompts, the long one the worse by the rubric."""
    texts = ("One thing is here.", "A " + "very " * 40 + "long answer, without what was asked for.")
    rows = [
        {"prompt": p, "completion": text_completion(p, t)}
        for p in (prompt(i, checks=checks) for i in range(8))
        for t in texts
    ]
    write_jsonl("answers.jsonl", rows)
    settings: dict[str, Any] = {"out": "r/label", "completions": "answers.jsonl", "engine": ENGINE}
    return label.run(LabelConfig(**{"annotator": "judge", "judges": models} | settings | rest))


def longer(a: str, b: str) -> float:
    return 0.9 if len(a) > len(b) else 0.1


def shorter(a: str, b: str) -> float:
    return 1 - longer(a, b)


def first(a: str, b: str) -> float:
    return 0.99


def test_labels_are_soft_stored_and_named_for_what_they_are() -> None:
    result = labeled(TINY)
    assert (result["comparisons"], result["judgments"], result["simulated"], result["judges"]) == (
        8,
        8,
        True,
        ["judge-tiny"],
    )
    found = read_preferences("r/label/preferences.jsonl")
    with open_store() as store:
        said = {judgment.comparison_id: judgment for judgment in store.judgments("r/label")}
        assert dict(store.annotators("r/label")) == {"judge-tiny": True}
    assert [p.target for p in found] == [said[label.comparison_id(p.items)].probability for p in found]
    assert all(p.simulated and p.judges == ("judge-tiny",) and not p.by_rubric for p in found)
    assert labeled(TINY) == result


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (longer, {"consistent": 1.0, "first_wins": 0.5, "longer_wins": 1.0, "accuracy_vs_rubric": 0.0}),
        (shorter, {"consistent": 1.0, "first_wins": 0.5, "longer_wins": 0.0, "accuracy_vs_rubric": 1.0}),
        (first, {"consistent": 0.0, "first_wins": 1.0, "longer_wins": 0.5, "accuracy_vs_rubric": 0.5}),
    ],
)
def test_what_a_judge_is_worth_is_told(rule: Any, expected: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    with serving(by_rule(rule)) as url:
        result = labeled(far(url))
    assert result["annotators"] == {"judge-far": {"n": 8, "cant_judge": 0} | expected}
    assert result["agreement"] is None  # of one judge alone
    warned = "judge-far names the same answer in both orders in 0 % of comparisons" in caplog.text
    assert warned == (rule is first)


def test_judges_are_averaged_and_their_agreement_is_measured() -> None:
    with serving(by_rule(longer)) as one, serving(by_rule(lambda a, b: 0.7 if len(a) > len(b) else 0.3)) as other:
        result = labeled(far(one), far(other) | {"name": "judge-milder"}, checks={})
    assert result["agreement"] == 1.0 and "accuracy_vs_rubric" not in result["annotators"]["judge-far"]
    for preference in read_preferences("r/label/preferences.jsonl"):
        long = len(preference.items[0].text) > len(preference.items[1].text)
        assert preference.target == pytest.approx(0.8 if long else 0.2)
        assert preference.judges == ("judge-far", "judge-milder")


def test_what_was_judged_before_a_failure_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "AT_ONCE", 2)
    asked: list[str] = []
    broken: list[bool] = []

    def answer(body: Mapping[str, Any], request: Request) -> Response | Mapping[str, Any]:
        if broken:
            return JSONResponse({"error": {"message": "out of credit"}}, 402)
        asked.append(body["messages"][0]["content"])
        broken.extend([True] * (len(asked) == 11))
        return by_rule(longer)(body, request)

    with serving(answer) as url:
        with pytest.raises(PrefloopError, match="out of credit"):
            labeled(far(url, parallel=1))
        assert not Path("r/label/preferences.jsonl").exists()
        with open_store() as store:
            assert len(store.judgments("r/label")) == 4  # of the third part three questions were answered, and are lost
        broken.clear()
        cut = labeled(far(url, parallel=2))  # how many are asked at a time binds nobody
        assert len(asked) == 11 + 8 and not set(asked[11:]) & set(asked[:8])
        whole = labeled(far(url), out="whole/label")
    files = [Path(out, "preferences.jsonl").read_bytes() for out in ("r/label", "whole/label")]
    assert files[0] == files[1] and {**cut, "seconds": 0} == {**whole, "seconds": 0}


def test_judgments_made_with_other_settings_are_refused() -> None:
    labeled(TINY)
    shutil.rmtree("r/label")
    with pytest.raises(PrefloopError, match="judgments of 'judge-tiny' for r/label that were made with other settings"):
        labeled(TINY | {"principles": ["Which is shorter?"]})
    shutil.rmtree("r/label")
    assert labeled(TINY)["judgments"] == 8


def test_judgments_of_another_model_in_the_same_place_are_refused() -> None:
    for seed in (1, 2):
        tiny_model(seed).save_pretrained("m")
        tiny_tokenizer().save_pretrained("m")
        shutil.rmtree("r", ignore_errors=True)
        if seed == 1:
            labeled({"name": "judge-m", "model": "m"})
    with pytest.raises(PrefloopError, match=r"judgments of 'judge-m' for r/label that were .* by another model"):
        labeled({"name": "judge-m", "model": "m"})


def test_judgments_of_others_are_refused() -> None:
    labeled(annotator="simulated")
    shutil.rmtree("r/label")
    with pytest.raises(PrefloopError, match=r"judgments of 'simulated-\d+' for r/label, who is none of its judges"):
        labeled(TINY)


def test_a_judge_is_named_beside_simulated_people() -> None:
    labeled(TINY)
    shutil.rmtree("r/label")
    result = labeled(annotator="simulated")
    assert (result["judges"], result["judgments"]) == (["judge-tiny"], 32)
    assert not any(preference.by_rubric for preference in read_preferences("r/label/preferences.jsonl"))


def test_an_export_keeps_soft_labels_and_says_that_models_gave_them() -> None:
    with serving(by_rule(lambda a, b: 0.6 if len(a) > len(b) else 0.4)) as url:
        labeled(far(url))
    with open_store() as store:
        export(store, "r/label", "named.jsonl", "preferences")
        export(store, "r/label", "blind.jsonl", "preferences", key=b"key")
    ours = read_preferences("r/label/preferences.jsonl")
    named, blind = read_preferences("named.jsonl"), read_preferences("blind.jsonl")
    assert [p.target for p in named] == pytest.approx([p.target for p in ours])
    assert all(p.judges == ("judge-far",) for p in named)
    assert all(len(p.judges) == 1 and p.judges != ("judge-far",) and not p.by_rubric for p in blind)


def test_what_a_judge_could_not_tell_is_asked_again() -> None:
    with serving(neither) as url, pytest.raises(PrefloopError, match="no judge said A or B of any of 8"):
        labeled(far(url))
    with serving(by_rule(longer)) as url:
        assert labeled(far(url))["annotators"]["judge-far"]["cant_judge"] == 0


def test_a_wrong_address_can_be_mended() -> None:
    with serving(by_rule(longer)) as url:
        with pytest.raises(PrefloopError, match="404: Not Found"):
            labeled(far(url.removesuffix("/v1")))
        assert labeled(far(url))["judgments"] == 8


def test_a_silent_judge_is_told_apart() -> None:
    with serving(by_rule(longer)) as url, serving(neither) as dumb:
        result = labeled(far(url), far(dumb) | {"name": "judge-dumb"})
    assert result["annotators"]["judge-dumb"] == {"n": 0, "cant_judge": 8}
    assert (result["judges"], result["judgments"]) == (["judge-far"], 8)


def test_a_judge_without_its_key_is_missed_before_anybody_is_asked() -> None:
    with pytest.raises(PrefloopError, match="judge-far: set the environment variable NO_SUCH"):
        labeled(TINY, far("http://localhost:9/v1", key_variable="NO_SUCH"))
    with open_store() as store:
        assert store.judgments("r/label") == []


def neither(body: Mapping[str, Any], request: Request) -> Mapping[str, Any]:
    return reply("Both")


def test_a_judge_that_says_nothing_ends_the_stage() -> None:
    with serving(neither) as url, pytest.raises(PrefloopError, match="no judge said A or B of any of 8 comparisons"):
        labeled(far(url))
    assert not Path("r/label/preferences.jsonl").exists()


def ascii_share(text: str) -> float:
    return sum(character < "\x80" for character in text) / max(1, len(text))


def plainer(a: str, b: str) -> float:
    return 0.5 + 0.4 * float(np.sign(ascii_share(a) - ascii_share(b)))


def practised(out: str, url: str, steps: int, **rest: Any) -> list[dict[str, Any]]:
    write_jsonl("prompts.jsonl", [prompt(i) for i in range(8)])
    config = OnlineConfig(
        out=out,
        policy="tiny",
        judges=(far(url),),
        prompts="prompts.jsonl",
        steps=steps,
        prompts_per_step=8,
        max_tokens=8,
        missing_stop_score=None,
        engine=ENGINE,
        optim=OptimConfig(lr=6e-3, warmup=0.0, decay=False),
        **rest,
    )
    online.run(config)
    return [json.loads(line) for line in Path(out, "samples.jsonl").read_bytes().splitlines()]


def shares(samples: list[dict[str, Any]], steps: range) -> float:
    return float(np.mean([ascii_share(row["completion"]["text"]) for row in samples if row["step"] in steps]))


def test_online_dpo_learns_what_its_judge_prefers() -> None:
    with serving(by_rule(plainer)) as url:
        up = practised("up", url, 14)
    with serving(by_rule(lambda a, b: 1 - plainer(a, b))) as url:
        down = practised("down", url, 14)
    assert shares(up, range(11, 14)) > shares(up, range(3)) + 0.08
    assert shares(down, range(11, 14)) < shares(down, range(3)) - 0.08


def test_a_judge_that_takes_what_stands_first_teaches_nothing() -> None:
    with serving(by_rule(first)) as url:
        practised("flat", url, 2, group=3)
    rows = [json.loads(line) for line in Path("flat/metrics.jsonl").read_bytes().splitlines()]
    assert [row["pairs/compared"] for row in rows] == [0, 0] and rows[1]["kl/response"] == pytest.approx(0, abs=1e-5)
    assert [(row["judge/consistent"], row["judge/unjudged"]) for row in rows] == [(0, 0)] * 2


def test_rounds_are_labeled_and_practised_by_a_judge() -> None:
    write_jsonl("prompts.jsonl", [prompt(i, split) for split in ("train", "dev", "eval") for i in range(4)])
    sampled = {"max_tokens": 6}
    recipe = RecipeConfig(
        name="r",
        model="tiny",
        stages=("collect", "label", "direct", "online", "evaluate"),
        prompts="prompts.jsonl",
        engine=ENGINE,
        rounds=2,
        collect={**sampled, "samples": 2},
        label={"annotator": "judge", "judges": [TINY], "pairs": 1},
        direct={"optim": {"lr": 1e-3}, "batch": 2},
        online={**sampled, "steps": 1, "prompts_per_step": 2, "judges": [TINY]},
        evaluate={**sampled, "samples": 1},
    )
    report = pipeline.run(recipe)
    assert [one["labels"] for one in report["rounds"]] == [8, 8] and report["judges"] == ["judge-tiny"]
    assert [step["stage"] for step in report["rounds"][1]["trained"]] == ["direct", "online"]
    assert report["online_judges"] == ["judge-tiny"]
    assert "Labels are given by models</strong> (<bdi>judge-tiny</bdi>)" in Path("runs/r/report.html").read_text()
    runs = json.loads(Path("runs/r/rounds/2/online/run.json").read_text())
    assert runs["parents"]["judge-tiny"] == "tiny"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"annotator": "judge"}, "annotator 'judge' wants models that judge"),
        ({"annotator": "judge", "judges": [TINY, TINY]}, "judges has two annotators named 'judge-tiny'"),
    ],
)
def test_labels_that_cannot_be_had_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LabelConfig(out="x", **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reward": "rubric"}, "judges decide in a reward's place"),
        ({"panel": [{"name": "simulated-a", "accuracy": 0.9}]}, "judges decide in a reward's place"),
        ({"judges": [TINY, TINY]}, "two judges have one name"),
    ],
)
def test_pairs_are_decided_by_one_kind(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        OnlineConfig(out="x", **{"judges": [TINY]} | settings)
