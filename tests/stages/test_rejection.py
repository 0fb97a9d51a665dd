"""Rejection sampling: what is kept is the best, the control keeps any, and the policy learns what was kept."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefloop.configs.mix import MixConfig
from prefloop.configs.rejection import RejectionConfig
from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.jsonl import text_completion, write_jsonl
from prefloop.data.sources import load_prompts
from prefloop.engine.build import build_encoder, build_sampler, load
from prefloop.models.checkpoint import read_checkpoint
from prefloop.stages import rejection
from prefloop.stages.sampling import sample_groups
from prefloop.types import Completion, Message, PrefloopError, Prompt, Sampling, Score, Segment

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=1500)
HERE = __name__


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "own_rewards", sys.modules[HERE])
    prompts = [
        Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Say {i}."),)) for i in range(rejection.CHUNK + 4)
    ]
    write_jsonl("prompts.jsonl", prompts)


def bright(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """The share of an answer's tokens in the lower half of the vocabulary: half of them at the start."""
    return [Score(value=sum(token < 128 for token in c.tokens) / len(c.tokens)) for c in completions]


def config(out: str, **rest: Any) -> RejectionConfig:
    settings: dict[str, Any] = {
        "policy": "tiny",
        "reward": "own_rewards:bright",
        "prompts": "prompts.jsonl",
        "n": 4,
        "max_tokens": 8,
        "missing_stop_score": None,
        "batch": 4,
        "engine": ENGINE,
        "optim": OptimConfig(lr=1e-2),
    }
    return RejectionConfig(out=out, **settings | rest)


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "samples.jsonl").read_bytes().splitlines()]


def scores_by_prompt(out: str) -> dict[str, tuple[list[float], list[bool]]]:
    found: dict[str, tuple[list[float], list[bool]]] = {}
    for row in rows(out):
        scores, kept = found.setdefault(row["prompt"]["id"], ([], []))
        scores.append(row["score"])
        kept.append(row["kept"])
    return found


def mean_score(policy: str) -> float:
    loaded = load(policy, ENGINE)
    prompts = load_prompts("prompts.jsonl")
    samplings = [Sampling(max_tokens=8)] * 4
    sampler = build_sampler(loaded, policy, ENGINE)
    groups = sample_groups(sampler, build_encoder(loaded), prompts, samplings=samplings, seed=("t",))
    flat = [completion for group in groups for completion in group]
    return float(np.mean([score.value for score in bright([], flat)]))


def test_the_best_is_kept_and_learned_from_and_the_control_keeps_any() -> None:
    results = {select: rejection.run(config(select, select=select, epochs=5)) for select in ("best", "random")}
    best, any_one = scores_by_prompt("best"), scores_by_prompt("random")
    assert best.keys() == any_one.keys() and len(best) == rejection.CHUNK + 4
    for name, (scores, kept) in best.items():
        assert any_one[name][0] == scores and sum(any_one[name][1]) == 1  # the same answers, one kept
        assert kept == [place == scores.index(max(scores)) for place in range(4)]
    assert 0 < sum(best[name][1] == any_one[name][1] for name in best) < 20

    columns = np.array([scores for scores, _ in best.values()])
    for select, result in results.items():
        assert result["prompts"] == result["kept"] == 20 and result["kept_earlier"] == 0
        assert result["score"] == pytest.approx(columns.mean())
        assert result["median"] == pytest.approx(np.median(columns, axis=1).mean())
        assert result["best_of"]["4"] == pytest.approx(columns.max(axis=1).mean())
        # of four samples two are best of two in six ways: the highest in 3, the second in 2, the third in 1
        ordered = np.sort(columns, axis=1)
        assert result["best_of"]["2"] == pytest.approx((ordered @ [0, 1, 2, 3]).mean() / 6)
        assert result["kl_nominal"] == pytest.approx(math.log(4) - 3 / 4 if select == "best" else 0)
        assert result["max_minus_median"] == pytest.approx(result["best_of"]["4"] - result["median"])
    assert results["best"]["score_kept"] == pytest.approx(columns.max(axis=1).mean())
    start, after, control = mean_score("tiny"), mean_score("best"), mean_score("random")
    assert after > start + 0.1 and after > control + 0.1 and abs(control - start) < 0.1
    assert read_checkpoint("best/checkpoint").parent == "tiny"


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=4))
def test_what_selection_can_gain_grows_with_n(groups: list[list[int]]) -> None:
    made = [
        {"prompt": {"id": str(i)}, "score": float(score), "kept": place == group.index(max(group))}
        for i, group in enumerate(groups)
        for place, score in enumerate(group)
    ]
    found = rejection.summarize(made, 4)
    curve = list(found["best_of"].values())
    assert list(found["best_of"]) == ["1", "2", "4"] and curve == sorted(curve)
    assert found["score_kept"] == pytest.approx(curve[-1])


def test_a_round_that_keeps_nothing_may_learn_from_earlier_ones() -> None:
    rejection.run(config("first", keep_above=0.0))
    kept = sum(row["kept"] for row in rows("first"))
    result = rejection.run(config("second", keep_above=1e9, earlier=("first",)))
    assert (result["kept"], result["kept_earlier"], result["score_kept"]) == (kept, kept, None)


def test_the_temperature_whose_best_of_n_scores_highest_is_taken() -> None:
    """What a model was taught it does less at a high temperature."""
    rejection.run(config("taught", epochs=5))
    result = rejection.run(config("tuned", policy="taught", temperatures=(3.0, 0.5, 1.0), tuning=5))
    metrics = [json.loads(line) for line in Path("tuned/metrics.jsonl").read_text().splitlines()]
    tries = {row["tune/temperature"]: row["tune/best"] for row in metrics if "tune/best" in row}
    assert list(tries) == [3.0, 0.5, 1.0]
    assert result["temperature"] == max(tries, key=lambda t: tries[t]) != 3.0
    assert {row["completion"]["sampling"]["temperature"] for row in rows("tuned")} == {result["temperature"]}


def test_what_earlier_rounds_kept_is_learned_from_too() -> None:
    rejection.run(config("one"))
    result = rejection.run(config("two", policy="one", earlier=("one",), seed=1))
    assert result["kept"] == 40 and result["kept_earlier"] == 20
    again = rejection.run(config("three", earlier=("one",)))  # the same draws as in "one": nothing new
    assert again["kept"] == 20 and again["kept_earlier"] == 0
    write_jsonl("other/samples.jsonl", [{"prompt": {}, "completion": {}}])
    with pytest.raises(PrefloopError, match="no answer of a rejection run"):
        rejection.run(config("four", earlier=("other",)))


def test_a_model_of_another_tokenizer_is_distilled() -> None:
    encoder = build_encoder(load("tiny", ENGINE))
    prompt = load_prompts("prompts.jsonl")[0]
    own = text_completion(prompt, "Hello")
    foreign, ours = (
        dataclasses.replace(own, segments=(Segment(author="policy", tokens=tokens, logprobs=(0.0,) * len(tokens)),))
        for tokens in ((70000, 3), encoder.response(own))
    )
    assert encoder.response(rejection.readable(foreign, encoder)) == encoder.response(own)
    assert rejection.readable(ours, encoder) is ours
    result = rejection.run(config("taught", epochs=5))
    student = rejection.run(config("student", sampler="taught", epochs=5, seed=2))
    assert student["score"] > result["score"] + 0.1
    assert mean_score("student") > mean_score("tiny") + 0.1


class Stop(BaseException):
    """A kill that Python sees."""


@pytest.mark.parametrize("at", [1, 3, 5, 6])
def test_an_interrupted_run_goes_on_with_equal_numbers(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its at-th row: while temperatures are tried, while it samples, before and after a checkpoint."""
    mix = MixConfig(parts={"bright": ""}, weights={"bright": 1.0})  # whose scale is measured on the first answers
    options: dict[str, Any] = {"temperatures": (1.0, 1.5), "tuning": 3, "save_every": 2, "mix": mix}
    whole = rejection.run(config("whole", **options))
    log, calls = rejection.Run.log, 0

    def dying(self: Any, step: int, values: Any) -> None:
        nonlocal calls
        if calls == at:
            raise Stop
        calls += 1
        log(self, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(rejection.Run, "log", dying)
        with pytest.raises(Stop):
            rejection.run(config("cut", **options))
    cut = rejection.run(config("cut", **options))
    weights = [Path(out, "checkpoint/model.safetensors").read_bytes() for out in ("whole", "cut")]
    assert weights[0] == weights[1] and rows("whole") == rows("cut")
    assert {k: v for k, v in whole.items() if k not in ("seconds", "checkpoint")} == {
        k: v for k, v in cut.items() if k not in ("seconds", "checkpoint")
    }


def test_a_constraint_is_refused() -> None:
    mix: Any = {"parts": {"a": ""}, "weights": {"a": 1.0}, "constraint": {"part": "a"}}
    with pytest.raises(ValidationError, match="learned step by step"):
        config("x", mix=mix)


@pytest.mark.parametrize("select", ["best", "random"])
def test_prompts_without_a_good_answer_can_be_left_out(select: str) -> None:
    limit = float(np.median([max(scores) for scores, _ in all_scores().values()]))
    result = rejection.run(config("above", select=select, keep_above=limit))
    found = scores_by_prompt("above")
    assert all(any(kept) == (max(scores) > limit) for scores, kept in found.values())
    assert 0 < result["kept"] == sum(max(scores) > limit for scores, _ in found.values()) < len(found)
    with pytest.raises(PrefloopError, match="No answer scored above keep_above = 9; lower it or raise n"):
        rejection.run(config("none", keep_above=9.0))


def all_scores() -> dict[str, tuple[list[float], list[bool]]]:
    rejection.run(config("all"))
    return scores_by_prompt("all")
