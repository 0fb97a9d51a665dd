"""Every stage on a tiny model: what it leaves behind, that it learns what it should and nothing where it should not."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from prefloop.configs.collect import CollectConfig, LabelConfig
from prefloop.configs.direct import DirectConfig
from prefloop.configs.evaluate import EvaluateConfig
from prefloop.configs.group import GroupConfig
from prefloop.configs.pipeline import RecipeConfig
from prefloop.configs.ppo import PPOConfig
from prefloop.configs.reward import EarlyStopConfig, RewardConfig
from prefloop.configs.rollout import KLConfig
from prefloop.configs.sft import SFTConfig
from prefloop.configs.shared import EngineConfig, LoraConfig, OptimConfig
from prefloop.data.heldout import shuffled, split
from prefloop.data.jsonl import read_preferences, text_completion, write_jsonl
from prefloop.data.trees import preference_trees
from prefloop.engine.build import build_encoder, build_learner, build_scorer, load
from prefloop.engine.reference import with_reference
from prefloop.engine.schedule import derived_seed
from prefloop.evals.report import build_report
from prefloop.models.checkpoint import load_head, load_members, read_checkpoint
from prefloop.models.heads import reward_head
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.rewards.ensemble import EnsembleReward
from prefloop.rewards.learned import LearnedReward, SharedTrunk
from prefloop.rewards.resolve import resolve_reward
from prefloop.run import Run
from prefloop.stages import collect, direct, evaluate, group, label, pipeline, ppo, reward, sft
from prefloop.types import (
    Completion,
    Demonstration,
    Judgment,
    Message,
    Preference,
    PrefloopError,
    Prompt,
    Sampling,
)

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=1500)
PPO_METRICS = {
    "reward/score",
    "reward/total",
    "kl/response",
    "kl/coef",
    "kl/target",
    "kl/k3",
    "kl/exact",
    "length/tokens",
    "length/stopped_share",
    "policy/clip_fraction",
    "policy/approx_kl",
    "policy/entropy",
    "policy/ratio_max",
    "value/loss",
    "value/explained_variance",
    "optim/grad_norm",
    "optim/lr",
    "sampler/logprob_gap",
    "time/sample",
}
TOY = """
from prefloop.types import Score

def even(prompts, completions):
    "Share of even tokens: half of a random model's."
    return [Score(value=sum(t % 2 == 0 for t in c.tokens) / len(c.tokens)) for c in completions]

def unfair(prompts, completions):
    "The same plus 8 or nothing, by prompt: what the answers say drowns in it."
    return [Score(value=s.value + 8 * (int(p.id[-1]) % 2)) for s, p in zip(even(prompts, completions), prompts)]

def constant(prompts, completions):
    return [Score(value=0.5) for c in completions]

calls = 0

def fails_once(prompts, completions):
    global calls
    calls += 1
    if calls == 5:
        raise RuntimeError("the power went off")
    return even(prompts, completions)
"""


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current directory with the user's own module of rewards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_rewards", raising=False)
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path / "home"))
    Path("toy_rewards.py").write_text(TOY)


def asked(index: int, split: str) -> Prompt:
    content = f"Name {index} things." + ("" if split == "train" else f" ({split})")
    checks = {"mentions": [["thing"]], "ideal_words": 20}
    message = Message(role="user", content=content)
    return Prompt(id=f"{split}-{index}", messages=(message,), slice="everyday", split=split, checks=checks)


def write_prompts(count: int = 3) -> None:
    write_jsonl("prompts.jsonl", [asked(i, split) for split in ("train", "dev", "eval") for i in range(count)])


def metrics(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def samples(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "samples.jsonl").read_bytes().splitlines()]


def test_the_whole_loop() -> None:
    write_prompts()
    demonstrations = [Demonstration(id=f"d{i}", prompt=asked(i, "train"), completion="A thing.") for i in range(5)]
    write_jsonl("demonstrations.jsonl", demonstrations)
    common: dict[str, Any] = {"engine": ENGINE, "seed": 1}
    sampled: dict[str, Any] = common | {"prompts": "prompts.jsonl", "max_tokens": 10}
    optim = OptimConfig(lr=1e-3)
    stages: list[tuple[Any, Any, set[str]]] = [
        (
            sft,
            SFTConfig(out="r/sft", model="tiny", demonstrations="demonstrations.jsonl", batch=2, optim=optim, **common),
            {"checkpoint", "examples", "tokens"},
        ),
        (
            collect,
            CollectConfig(out="r/collect", models=("r/sft",), samples=3, **sampled),
            {"completions", "stopped_share", "mean_tokens", "models"},
        ),
        (
            label,
            LabelConfig(out="r/label", completions="r/collect", pairs=3, seed=1),
            {"comparisons", "judgments", "agreement", "annotators", "simulated", "judges"},
        ),
        (
            reward,
            RewardConfig(out="r/reward", model="r/sft", preferences="r/label", batch=2, optim=optim, **common),
            {
                "checkpoint",
                "accuracy",
                "accuracy_low",
                "accuracy_high",
                "ceiling",
                "longer_wins",
                "shorter_wins",
                "pairs_heldout",
                "pairs_train",
                "accuracy_train",
                "ece",
                "reliability",
                "gain",
                "bias",
            },
        ),
        (
            ppo,
            PPOConfig(
                out="r/ppo",
                policy="r/sft",
                reward="r/reward",
                baseline="r/collect",
                watch="rubric",
                steps=2,
                prompts_per_step=3,
                group=2,
                **sampled,
            ),
            {"checkpoint", "kl_target", "kl_last_third"},
        ),
        (
            evaluate,
            EvaluateConfig(out="r/evaluate", policy="r/ppo", baselines=("r/sft", "tiny"), **sampled),
            {"win_rate", "win_rate_low", "win_rate_high", "win_rate_vs_base", "slices"},
        ),
    ]
    for stage, config, keys in stages:
        result: Mapping[str, Any] = stage.run(config)
        assert keys | {"seconds"} <= result.keys(), config.out
        assert json.loads(Path(config.out, "result.json").read_text()) == result
        written = {file: file.stat().st_mtime_ns for file in Path(config.out).rglob("*.json*")}
        assert stage.run(config) == result
        assert {file: file.stat().st_mtime_ns for file in Path(config.out).rglob("*.json*")} == written

    steps = metrics("r/sft")
    assert [row["step"] for row in steps] == list(range(5))
    assert {"loss/train", "optim/lr", "optim/grad_norm", "time/step"} <= steps[0].keys()
    assert steps[-1]["loss/train"] < steps[0]["loss/train"]
    assert len(samples("r/collect")) == 18 and samples("r/collect")[0]["model"] == "r/sft/checkpoint"
    assert json.loads(Path("r/label/result.json").read_text())["comparisons"] == 18
    assert {"loss/train", "accuracy/train"} <= metrics("r/reward")[0].keys()
    held = samples("r/reward")
    assert len(held) == 9 and {row["prompt_id"] for row in held} == {"dev-0", "dev-1", "dev-2"}
    assert {"target", "score_a", "score_b", "words_a", "words_b", "gold_a", "gold_b"} <= held[0].keys()
    row = metrics("r/ppo")[0]
    assert PPO_METRICS | {"gold/score", "gold/win_rate"} <= row.keys()
    assert row["kl/response"] == pytest.approx(0, abs=1e-5) and row["kl/exact"] == pytest.approx(0, abs=1e-5)
    assert row["sampler/logprob_gap"] < 1e-4
    assert len(samples("r/ppo")) == 12 and {"prompt_id", "completion", "score", "kl"} <= samples("r/ppo")[0].keys()
    judged = samples("r/evaluate")
    assert [sum(row["model"] == name for row in judged) for name in ("policy", "sft", "base")] == [6, 6, 6]
    final = read_checkpoint("r/ppo/checkpoint", verify=True)
    assert (final.kind, final.parent, final.step) == ("policy", "r/sft/checkpoint", 2)
    assert read_checkpoint("r/reward/checkpoint").kind == "reward"
    assert not list(Path("r").rglob("step-*"))


def test_stages_that_lack_an_input_say_so() -> None:
    write_prompts()
    with pytest.raises(PrefloopError, match="models is empty"):
        collect.run(CollectConfig(out="a"))
    with pytest.raises(PrefloopError, match="needs a policy and one or two baselines"):
        evaluate.run(EvaluateConfig(out="b", policy="tiny"))
    config = CollectConfig(out="c", models=("tiny",), prompts="prompts.jsonl", max_tokens=2, engine=ENGINE)
    collect.run(config)
    with pytest.raises(PrefloopError, match="other settings: seed is 0 there and 1 here"):
        collect.run(config.model_copy(update={"seed": 1}))


def answer(text: str) -> Completion:
    return Completion(id=text, prompt_id="", segments=(), text=text, finish_reason="stop", sampling=Sampling(), seed=0)


def write_marked_preferences(count: int) -> None:
    """Two random words a prompt; people prefer the one that has a Q, wherever it stands and whichever comes first."""
    chance = random.Random(0)
    made = []
    for index in range(count):
        words = ["".join(chance.choices("abcdefgh", k=chance.randint(3, 6))) for _ in range(2)]
        place = chance.randrange(len(words[0]) + 1)
        marked = answer(words[0][:place] + "Q" + words[0][place:])
        first = chance.random() < 0.5
        items = (marked, answer(words[1])) if first else (answer(words[1]), marked)
        made.append(Preference(prompt=asked(index, "train"), items=items, target=float(first)))
    write_jsonl("marked.jsonl", made)


def marked_config(out: str, **rest: Any) -> RewardConfig:
    optim = OptimConfig(lr=2e-3, head_lr=2e-3)
    settings: dict[str, Any] = {"epochs": 3, "batch": 8, "heldout": 0.4, "engine": ENGINE, "optim": optim, **rest}
    return RewardConfig(out=out, model="tiny", preferences="marked.jsonl", **settings)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "mean"},
        {"pooling": "last_k", "pooling_k": 3},
        {"loss": "plackett_luce"},
        {"label_smoothing": 0.1, "centre": 0.01},
        {"random_floor": 0.1},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_a_reward_model_learns_a_preference(options: dict[str, Any]) -> None:
    write_marked_preferences(160)
    result = reward.run(marked_config("rm", **options))
    pooling = read_checkpoint("rm/checkpoint").details["pooling"]
    assert pooling == options.get("pooling_k", options.get("pooling", "last"))
    assert result["pairs_heldout"] == 64 and result["pairs_train"] == 96
    assert result["accuracy"] > 0.7
    rows = metrics("rm")
    assert rows[-1]["accuracy/train"] > rows[0]["accuracy/train"] and rows[-1]["loss/train"] < rows[0]["loss/train"]
    held = samples("rm")
    right = [(row["score_a"] > row["score_b"]) == (row["target"] > 0.5) for row in held]
    assert sum(right) / len(right) == result["accuracy"]


def test_reference_answers_have_mean_0_and_std_1_within_prompts() -> None:
    write_marked_preferences(40)
    config = marked_config("rm", epochs=1)
    reward.run(config)
    training, _ = split(read_preferences("marked.jsonl"), config.heldout, derived_seed(config.seed, "heldout"))
    scored = LearnedReward("rm", ENGINE)(
        [p.prompt for p in training for _ in range(2)], [i for p in training for i in p.items]
    )
    values = np.array([score.value for score in scored]).reshape(-1, 2)
    assert values.mean() == pytest.approx(0, abs=1e-4) and values.std() != pytest.approx(1, rel=0.02)
    assert np.sqrt((np.diff(values) ** 2 / 2).mean()) == pytest.approx(1, rel=1e-4)


def test_a_scaled_start_gives_the_reference_answers_mean_0_and_std_1_before_the_first_update() -> None:
    write_marked_preferences(40)
    source = load("tiny", ENGINE)
    head = reward_head(source.model.config.get_text_config().hidden_size, 0)
    learner = build_learner(source, ENGINE, OptimConfig(lr=1e-3), lora=None, head=head, pooling="last", seed=0)
    known = reward.Comparisons(marked_config("rm"), build_encoder(source))
    before = reward.centre(learner, known.encoder, known.training, 256, math.inf)
    known.scale_head(learner)
    after = reward.centre(learner, known.encoder, known.training, 256, math.inf)
    assert after == pytest.approx((1, 0), abs=1e-4) and abs(before[0] - 1) > 0.05
    plain, scaled = (reward.run(marked_config(f"rm{on}", scaled_start=on, epochs=1)) for on in (False, True))
    assert plain["gain"] != pytest.approx(scaled["gain"], rel=1e-3)


def test_adapters_of_two_seeds_are_an_ensemble_on_one_trunk() -> None:
    write_marked_preferences(60)
    for seed in (0, 1):
        reward.run(marked_config(f"rm{seed}", seed=seed, lora=LoraConfig(rank=4), epochs=1))
    found = resolve_reward("mean:rm0,rm1", ENGINE)
    assert isinstance(found, EnsembleReward) and isinstance(found.models[0], SharedTrunk)
    _, held = split(read_preferences("marked.jsonl"), 0.4, derived_seed(0, "heldout"))
    prompts, items = [p.prompt for p in held for _ in range(2)], [item for p in held for item in p.items]
    alone = [[score.value for score in LearnedReward(name, ENGINE)(prompts, items)] for name in ("rm0", "rm1")]
    together = [list(score.parts.values())[:2] for score in found(prompts, items)]
    assert pytest.approx(np.array(alone), abs=1e-3) == np.array(together).T
    assert np.corrcoef(alone)[0, 1] < 0.9999


def test_the_noise_of_a_model_that_learned_nothing_is_not_blown_up() -> None:
    """Gains by what held-out labels confirm: all of the std, too little of it, nothing."""
    write_marked_preferences(40)
    source = load("tiny", ENGINE)
    head = reward_head(source.model.config.get_text_config().hidden_size, 0)
    learner = build_learner(source, ENGINE, OptimConfig(lr=1e-3), lora=None, head=head, pooling="last", seed=0)
    preferences = read_preferences("marked.jsonl")
    std, weak, none = (
        1 / reward.centre(learner, build_encoder(source), preferences, 256, slope)[0] for slope in (1e3, 0.0, -1.0)
    )
    assert weak == none == reward.LEAST_SPREAD / reward.LEAST_SLOPE > std
    half = 1 / reward.centre(learner, build_encoder(source), preferences, 256, reward.LEAST_SPREAD / std / 2)[0]
    assert half == pytest.approx(2 * std)


def test_further_heads_learn_too_and_leave_the_first_alone() -> None:
    write_marked_preferences(160)
    plain, several = reward.run(marked_config("plain")), reward.run(marked_config("several", heads=3))
    assert {key: plain[key] for key in ("accuracy", "gain", "bias")} == {
        key: several[key] for key in ("accuracy", "gain", "bias")
    }
    assert load_head("plain/checkpoint").weight.tolist() == load_head("several/checkpoint").weight.tolist()
    training, held = split(read_preferences("marked.jsonl"), 0.4, derived_seed(0, "heldout"))

    def scores(of: Sequence[Preference]) -> Any:
        prompts, items = [p.prompt for p in of for _ in range(2)], [item for p in of for item in p.items]
        model = LearnedReward("several", ENGINE)
        return model.scaled(model.raw(prompts, items)).reshape(3, -1, 2)

    known, fresh = scores(training), scores(held)
    assert known.mean(axis=(1, 2)) == pytest.approx([0] * 3, abs=1e-4)
    assert np.sqrt((np.diff(known) ** 2 / 2).mean(axis=(1, 2))) == pytest.approx([1] * 3, rel=1e-4)
    leads, first = fresh[..., 0] - fresh[..., 1], np.array([p.target for p in held]) == 1
    assert (((leads > 0) == first).mean(axis=1) > 0.7).all()
    alike = np.corrcoef(leads)[np.triu_indices(3, 1)]
    assert alike.min() > 0.5 and alike.max() < 0.9999
    assert reward.run(marked_config("again", heads=3))["accuracy"] == several["accuracy"]
    assert [m.weight.tolist() for m in load_members("again/checkpoint")] == [
        m.weight.tolist() for m in load_members("several/checkpoint")
    ]


def test_averaged_models_start_from_one_head_and_learn_in_orders_of_their_own() -> None:
    write_marked_preferences(60)
    for seed in (0, 1):
        reward.run(marked_config(f"rm{seed}", seed=seed, head_seed=5, epochs=1))
    reward.run(marked_config("alone", seed=0, epochs=1))
    first, second = (row["loss/train"] for row in (metrics("rm0")[0], metrics("rm1")[0]))
    assert first != second and read_checkpoint("rm1/checkpoint").details["head_seed"] == 5
    assert resolve_reward("average:rm0,rm1", ENGINE)([asked(0, "train")], [answer("Qa")])[0].by == "average:rm0,rm1"
    with pytest.raises(PrefloopError, match="share their head_seed; 5 is not 0"):
        resolve_reward("average:rm0,alone", ENGINE)


def test_a_reward_model_learns_nothing_from_shuffled_labels() -> None:
    """Chance may tie the mark to the coins, one way or the other; over seeds it cancels."""
    write_marked_preferences(160)
    found = [reward.run(marked_config(f"s{i}", shuffle_labels=True, seed=i, epochs=1))["accuracy"] for i in range(5)]
    assert 0.3 < sum(found) / len(found) < 0.7


def test_of_pairs_plackett_luce_is_bradley_terry_and_what_is_off_changes_nothing() -> None:
    write_marked_preferences(20)
    off = {"label_smoothing": 0.0, "random_floor": 0.0, "centre": 0.0, "margins": False}
    runs = {"plain": {}, "ranked": {"loss": "plackett_luce"}, "off": off, "on": off | {"label_smoothing": 0.2}}
    for out, options in runs.items():
        reward.run(marked_config(out, epochs=1, **options))
    plain, ranked, without, smoothed = ([row["loss/train"] for row in metrics(out)] for out in runs)
    assert ranked == pytest.approx(plain, rel=1e-4) and without == plain != smoothed


def write_ranked(count: int) -> None:
    """Four words a prompt, ranked by how many Qs they have, by two people."""
    chance, made = random.Random(1), []
    for index in range(count):
        marks = chance.sample(range(4), 4)
        words = ["".join(chance.sample("Q" * 2 * m + "abcdefgh"[: 8 - 2 * m], 8)) for m in marks]
        items = tuple(answer(f"{word}{i}") for i, word in enumerate(words))
        ranking = tuple(3 - m for m in marks)
        made += [Preference(prompt=asked(index, "train"), items=items, ranking=ranking, weight=0.5)] * 2
    write_jsonl("marked.jsonl", made)


def test_a_reward_model_learns_from_rankings_and_not_from_reversed_halves() -> None:
    write_ranked(40)
    result = reward.run(marked_config("rm", loss="plackett_luce", epochs=2))
    assert result["accuracy"] > 0.8 and result["pairs_train"] == 2 * 6 * 24
    options: dict[str, Any] = {"loss": "plackett_luce", "shuffle_labels": True}
    wrong = [reward.run(marked_config(f"s{i}", seed=i, epochs=2, **options))["accuracy"] for i in range(3)]
    assert 0.25 < sum(wrong) / len(wrong) < 0.75


def test_centring_draws_the_mean_of_raw_scores_to_0() -> None:
    write_marked_preferences(80)
    means = []
    for out, coef in (("free", 0.0), ("centred", 0.1)):
        result = reward.run(marked_config(out, centre=coef))
        means.append(abs(result["bias"] / result["gain"]))
    assert means[1] < 0.5 * means[0]


def test_margins_are_used_or_ignored_and_never_lost() -> None:
    write_marked_preferences(20)
    plain = read_preferences("marked.jsonl")
    config = {"epochs": 1, "optim": OptimConfig(lr=1e-9, head_lr=1e-9)}
    reward.run(marked_config("plain", **config))
    write_jsonl("marked.jsonl", [dataclasses.replace(p, margin=1.0) for p in plain])
    for out, options in (("used", {}), ("ignored", {"margins": False})):
        reward.run(marked_config(out, **config, **options))
    losses = {out: [row["loss/train"] for row in metrics(out)] for out in ("plain", "used", "ignored")}
    assert losses["ignored"] == losses["plain"]
    assert all(0.2 < used - bare < 1 for used, bare in zip(losses["used"], losses["plain"], strict=True))
    with pytest.raises(PrefloopError, match=r"carry margins, which plackett_luce cannot use; set reward\.margins"):
        reward.run(marked_config("ranked", loss="plackett_luce"))
    reward.run(marked_config("bare", loss="plackett_luce", margins=False, **config))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "plackett_luce", "label_smoothing": 0.1}, "are of pairs; leave both at 0"),
        ({"loss": "plackett_luce", "random_floor": 0.1}, "are of pairs; leave both at 0"),
        ({"loss": "process"}, "needs a rule in steps"),
        ({"steps": "lines"}, "needs a rule in steps"),
        ({"loss": "process", "steps": "lines", "centre": 0.1}, "are of comparisons; leave them out"),
        ({"loss": "process", "steps": "lines", "pooling": "mean"}, "are of comparisons; leave them out"),
        ({"random_floor": 0.1, "label_smoothing": 0.1}, "leave one of them at 0"),
        ({"pooling": "last_k"}, "needs a pooling_k above 0"),
        ({"pooling": "mean", "pooling_k": 2}, "the others need 0"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"loss": "listwise"}, "'bradley_terry', 'plackett_luce' or 'process'"),
    ],
)
def test_a_reward_models_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        marked_config("rm", **options)


def stopping(out: str, every: int = 2, patience: int = 2, **rest: Any) -> RewardConfig:
    """At a high rate, so that on wrong labels the held-out loss turns."""
    optim = OptimConfig(lr=1e-2, head_lr=1e-2, decay=False)
    early = EarlyStopConfig(every=every, patience=patience)
    return marked_config(out, **{"epochs": 12, "batch": 12, "optim": optim, "early_stop": early, **rest})


def heldout_losses(out: str) -> dict[int, float]:
    return {row["step"]: row["loss/heldout"] for row in metrics(out) if "loss/heldout" in row}


def test_training_stops_on_the_held_out_loss_and_keeps_the_best() -> None:
    write_marked_preferences(60)
    result = reward.run(stopping("rm", shuffle_labels=True))
    losses = heldout_losses("rm")
    best = min(losses, key=lambda step: losses[step])
    assert list(losses) == list(range(1, best + 5, 2)) and len(metrics("rm")) < 36
    assert (result["updates"], result["loss_heldout"]) == (best + 1, losses[best])
    assert read_checkpoint("rm/checkpoint").step == best + 1 and not Path("rm/best").exists()
    leads = [(row["score_a"] - row["score_b"]) / result["gain"] * (2 * row["target"] - 1) for row in samples("rm")]
    assert np.mean(np.log1p(np.exp(-np.array(leads)))) == pytest.approx(losses[best], rel=1e-3)
    assert losses[best] < list(losses.values())[-1] - 1e-3


def test_without_a_turn_all_passes_are_made() -> None:
    write_marked_preferences(60)
    result = reward.run(stopping("rm", every=5, patience=9, epochs=2))
    assert list(heldout_losses("rm")) == [4, 5] and len(metrics("rm")) == 6
    assert "updates" not in reward.run(stopping("plain", epochs=2, early_stop=None)) and result["updates"] in (5, 6)


def test_an_interrupted_reward_run_continues_the_same_numbers_and_keeps_the_same_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_marked_preferences(60)
    whole = reward.run(stopping("whole", shuffle_labels=True, save_every=3))
    log = Run.log

    def stopped_at(step: int) -> Any:
        def logged(run: Run, at: int, values: Mapping[str, float]) -> None:
            log(run, at, values)
            if at == step:
                raise KeyboardInterrupt

        return logged

    for step in (2, len(metrics("whole")) - 1):
        monkeypatch.setattr(Run, "log", stopped_at(step))
        with pytest.raises(KeyboardInterrupt):
            reward.run(stopping("broken", shuffle_labels=True, save_every=1))
    monkeypatch.setattr(Run, "log", log)
    measured = reward.Comparisons.measured

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(reward.Comparisons, "measured", stopped)
    with pytest.raises(KeyboardInterrupt):  # after the update with which patience ran out, and its checkpoint
        reward.run(stopping("broken", shuffle_labels=True, save_every=1))
    monkeypatch.setattr(reward.Comparisons, "measured", measured)
    again = reward.run(stopping("broken", shuffle_labels=True, save_every=1))
    rows = [[{k: v for k, v in row.items() if "time/" not in k} for row in metrics(o)] for o in ("whole", "broken")]
    assert rows[0] == rows[1]
    names = whole.keys() - {"checkpoint", "seconds"}
    assert {n: whole[n] for n in names} == {n: again[n] for n in names}
    assert load_head("whole/checkpoint").weight.tolist() == load_head("broken/checkpoint").weight.tolist()


def test_labels_are_shuffled_in_training_only() -> None:
    write_marked_preferences(160)
    results = [reward.run(marked_config(str(wrong), shuffle_labels=wrong, epochs=1)) for wrong in (False, True)]
    assert [result["labels_shuffled"] for result in results] == [False, True]
    names = "prompt_id", "target", "words_a", "words_b"
    held = [[tuple(row[n] for n in names) for row in samples(str(wrong))] for wrong in (False, True)]
    assert held[0] == held[1] and len(held[0]) == results[0]["pairs_heldout"]


def test_shuffling_leaves_nothing_of_a_prompts_labels() -> None:
    sizes = {0: 10, 1: 5, 2: 2, 3: 6}
    made = [
        dataclasses.replace(pair(asked(i, "train"), f"good {k}", f"bad {k}"), target=1.0)
        for i, size in sizes.items()
        for k in range(size)
    ]
    ties = [dataclasses.replace(pair(asked(0, "train"), f"as good {k}", f"{k} as good"), target=0.5) for k in range(9)]
    made += ties
    training = shuffled(made, seed=0)
    left = {i: sum(p.target or 0 for p in training if p.prompt.id == asked(i, "train").id) for i in sizes}
    assert left[0] == 5 + 9 / 2 and left[1] in (2, 3) and left[2] == 1 and left[3] == 3
    assert [p.items for p in training] == [p.items for p in made]
    assert training == shuffled(made, seed=0) != shuffled(made, seed=1) != made


def test_rankings_are_measured_by_their_pairs() -> None:
    write_jsonl("ranked.jsonl", [ranked(asked(i, "dev" if i < 4 else "train"), (2, 0, 1, 1)) for i in range(12)])
    result = reward.run(small_config("rm", "ranked.jsonl"))
    assert (result["pairs_heldout"], result["pairs_train"], result["ceiling"]) == (4 * 6, 8 * 6, None)
    assert [row["target"] for row in samples("rm")[:6]] == [0.0, 0.0, 0.0, 1.0, 1.0, 0.5]


def test_answers_of_two_prompts_may_share_their_ids() -> None:
    prompts = [asked(i, "dev" if i < 2 else "train") for i in range(6)]
    write_jsonl("shared.jsonl", [pair(prompt, f"{prompt.id} good", f"{prompt.id} bad") for prompt in prompts])
    reward.run(small_config("rm", "shared.jsonl"))
    rows = samples("rm")
    assert rows[0]["score_a"] != rows[1]["score_a"] and rows[0]["score_b"] != rows[1]["score_b"]


def small_config(out: str, preferences: str) -> RewardConfig:
    return RewardConfig(out=out, model="tiny", preferences=preferences, batch=4, epochs=1, engine=ENGINE)


def ranked(prompt: Prompt, ranking: tuple[int, ...]) -> Preference:
    items = tuple(dataclasses.replace(text_completion(prompt, f"thing {i}"), id=f"{i}") for i in range(len(ranking)))
    return Preference(prompt=prompt, items=items, ranking=ranking, group=prompt.id)


def pair(prompt: Prompt, good: str, bad: str) -> Preference:
    items = tuple(
        dataclasses.replace(text_completion(prompt, text), id=name) for name, text in (("a", good), ("b", bad))
    )
    return Preference(prompt=prompt, items=items, target=1.0, group=prompt.id)


def toy(out: str, score: str, seed: int = 0, **rest: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "steps": 12,
        "prompts_per_step": 6,
        "group": 8,
        "max_tokens": 4,
        "missing_stop_score": None,
        "kl": KLConfig(controller="fixed", coef=0.0),
        "optim": OptimConfig(lr=3e-3, decay=False, warmup=0.0, head_lr=1e-2),
        "engine": ENGINE,
        "seed": seed,
        **rest,
    }
    return PPOConfig(out=out, policy="tiny", reward=f"toy_rewards:{score}", prompts="prompts.jsonl", **settings)


def even_share(out: str, steps: Sequence[int]) -> float:
    """Share of even tokens in the rollouts of some steps."""
    tokens = [
        t
        for r in samples(out)
        if r["step"] in steps
        for segment in r["completion"]["segments"]
        for t in segment["tokens"]
    ]
    return sum(t % 2 == 0 for t in tokens) / len(tokens)


def rise(out: str) -> float:
    """How much the share of even tokens grew from the first three steps to the last three."""
    steps = len(metrics(out))
    return even_share(out, range(steps - 3, steps)) - even_share(out, range(3))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_raises_a_reward_and_nothing_without_one(seed: int) -> None:
    write_prompts(6)
    for score in ("even", "constant"):
        ppo.run(toy(score, score, seed))
        assert metrics(score)[0]["kl/response"] == pytest.approx(0, abs=1e-5)
    assert rise("even") > 0.2
    assert rise("constant") < 0.12
    last = metrics("even")[-1]
    assert last["kl/response"] > 0.5 and last["kl/exact"] > 0.5
    assert last["reward/score"] == last["reward/total"] == pytest.approx(even_share("even", [11]), abs=0.02)


def toy_group(out: str, score: str, seed: int = 0, **rest: Any) -> GroupConfig:
    known = {k: v for k, v in toy(out, score, seed).model_dump().items() if k in GroupConfig.model_fields}
    return GroupConfig.model_validate(known | {"epochs": 1, "minibatches": 1} | rest)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_group_method_raises_a_reward_and_nothing_without_one(method: str, seed: int) -> None:
    write_prompts(6)
    for score in ("even", "constant"):
        group.run(toy_group(score, score, seed, method=method, steps=16))
    assert rise("even") > 0.2
    assert rise("constant") < 0.12
    assert metrics("constant")[-1]["reward/flat_groups"] == 1 and "kl/response" not in metrics("even")[0]
    assert 0 < metrics("even")[0]["sampler/logprob_gap"] < 1e-4


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
def test_int8_rollouts_teach_and_their_mismatch_is_logged(method: str) -> None:
    write_prompts(6)
    if method == "ppo":
        ppo.run(toy("even", "even", rollout_dtype="int8"))
    else:
        group.run(toy_group("even", "even", method=method, steps=16, rollout_dtype="int8"))
    assert rise("even") > 0.2
    for row in metrics("even"):
        assert row["sampler/logprob_gap"] > 1e-4 and 0.8 < row["sampler/importance"] < 1.2


@pytest.mark.parametrize("method", ["grpo", "rloo"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=8, alpha=16)], ids=["whole", "lora"])
def test_a_group_methods_leash_holds(method: str, lora: LoraConfig | None) -> None:
    write_prompts(6)
    optim = OptimConfig(lr=2e-2 if lora else 3e-3, decay=False, warmup=0.0)
    for out, coef in (("loose", 1e-6), ("held", 2.0)):
        leash = KLConfig(controller="fixed", coef=coef)
        group.run(toy_group(out, "even", method=method, steps=8, kl=leash, lora=lora, optim=optim, minibatches=2))
    rows = {out: metrics(out) for out in ("loose", "held")}
    assert rows["held"][-1]["kl/exact"] < 0.7 * rows["loose"][-1]["kl/exact"]
    assert rows["held"][0]["kl/response"] == pytest.approx(0, abs=1e-5) and "policy/entropy" in rows["held"][0]


def test_an_interrupted_group_run_continues_the_same_numbers() -> None:
    write_prompts(6)
    settings: dict[str, Any] = {"steps": 6, "save_every": 3, "group": 3, "minibatches": 2}
    settings |= {"kl": KLConfig(target=0.5), "optim": OptimConfig(lr=1e-3)}
    whole = group.run(toy_group("whole", "even", **settings))
    config = toy_group("broken", "fails_once", **settings)
    with pytest.raises(RuntimeError, match="power"):
        group.run(config)
    again = group.run(config)
    plain = [[{k: v for k, v in row.items() if "time/" not in k} for row in metrics(o)] for o in ("whole", "broken")]
    assert plain[0] == plain[1] and len(plain[0]) == 6
    assert whole["kl_coef"] == again["kl_coef"] != KLConfig().coef


def marked_direct(out: str, **rest: Any) -> DirectConfig:
    optim = OptimConfig(lr=1e-3)
    settings: dict[str, Any] = {"epochs": 3, "batch": 8, "heldout": 0.4, "engine": ENGINE, "optim": optim, **rest}
    return DirectConfig(out=out, policy="tiny", preferences="marked.jsonl", **settings)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=8)], ids=["whole", "lora"])
def test_dpo_learns_a_preference(lora: LoraConfig | None, tmp_path: Path) -> None:
    write_marked_preferences(160)
    optim = OptimConfig(lr=1e-2 if lora else 1e-3)
    result = direct.run(marked_direct("dpo", lora=lora, optim=optim))
    rows = metrics("dpo")
    assert rows[0]["loss/train"] == pytest.approx(np.log(2), abs=1e-4)
    assert result["accuracy"] > 0.7 and rows[-1]["loss/train"] < 0.6
    assert rows[-1]["logratio/chosen"] > rows[-1]["logratio/rejected"]
    assert read_checkpoint("dpo/checkpoint").kind == "policy"
    kept = list((tmp_path / "home" / "reference").iterdir())
    again = direct.run(marked_direct("again", lora=lora, optim=optim))
    assert kept == list((tmp_path / "home" / "reference").iterdir()) and len(kept) == 2
    assert [r["loss/train"] for r in metrics("again")] == [r["loss/train"] for r in rows]
    assert again["accuracy"] == result["accuracy"]


def test_dpo_learns_nothing_from_shuffled_labels() -> None:
    write_marked_preferences(160)
    found = [direct.run(marked_direct(f"s{i}", shuffle_labels=True, seed=i, epochs=1))["accuracy"] for i in range(5)]
    assert 0.3 < sum(found) / len(found) < 0.7


def test_reference_log_probs_are_kept_for_one_model_and_one_set_of_trees() -> None:
    write_marked_preferences(6)
    found = {}
    for name in ("first", "second"):
        model = tiny_model(1 if name == "second" else 0)
        source = LoadedModel(model, tiny_tokenizer(), "tiny", "")
        trees = preference_trees(read_preferences("marked.jsonl"), build_encoder(source))
        scorer = build_scorer(source, ENGINE)
        for again in (False, True):
            made = with_reference(scorer, trees)
            found[name, again] = [tree.nodes[1].fields["reference_logprobs"] for tree in made]
        read = scorer.forward(trees, {"logprobs"})
        assert found[name, False] == found[name, True] == [tuple(r.logprobs[1].tolist()) for r in read]
        with_reference(scorer, trees[:-1])
    assert found["first", True] != found["second", True]
    assert len(list(Path("home", "reference").iterdir())) == 4


def test_dpo_takes_margins() -> None:
    write_marked_preferences(12)
    made = [dataclasses.replace(p, margin=1.0) for p in read_preferences("marked.jsonl")]
    write_jsonl("marked.jsonl", made)
    direct.run(marked_direct("margins", epochs=1))
    assert metrics("margins")[0]["loss/train"] == pytest.approx(np.log1p(np.e), rel=1e-4)


@pytest.mark.parametrize("stage", [direct, reward])
def test_held_out_labels_that_prefer_nothing_are_told_before_training(stage: Any) -> None:
    made = [pair(asked(i, "train"), "good", "bad") for i in range(6)]
    tie = dataclasses.replace(pair(asked(9, "dev"), "good", "bad"), target=0.5)
    write_jsonl("marked.jsonl", [*made, tie])
    config = marked_direct("tied") if stage is direct else marked_config("tied")
    with pytest.raises(PrefloopError, match="None of 1 held-out comparisons prefers an answer"):
        stage.run(config)
    assert not Path("tied", "metrics.jsonl").exists()


@pytest.mark.parametrize("method", ["group", "direct"])
def test_a_recipe_may_train_by_another_method_and_its_control_follows(method: str) -> None:
    write_prompts(3)
    write_jsonl(
        "demonstrations.jsonl",
        [Demonstration(id=f"d{i}", prompt=asked(i, "train"), completion="A thing.") for i in range(3)],
    )
    common = {"prompts": "prompts.jsonl", "max_tokens": 6}
    stages = ("sft", "collect", "label", *(("reward",) if method == "group" else ()), method, "evaluate")
    recipe = RecipeConfig(
        name="r",
        model="tiny",
        stages=stages,
        controls=True,
        engine=ENGINE,
        sft={"demonstrations": "demonstrations.jsonl", "epochs": 1},
        collect={**common, "temperatures": [1.0, 1.5], "samples": 2},
        label={"pairs": 4},
        group={**common, "steps": 2, "prompts_per_step": 3, "group": 2},
        evaluate={**common, "samples": 1},
    )
    report = pipeline.run(recipe)
    control = Path("runs/r/control")
    assert {p.name for p in control.iterdir()} == set(stages) - {"sft", "collect", "label"}
    config = json.loads((control / (method if method == "direct" else "reward") / "config.json").read_text())
    assert config["shuffle_labels"] is True
    assert json.loads((control / "evaluate" / "config.json").read_text())["policy"] == f"runs/r/control/{method}"
    assert json.loads(Path("runs/r/evaluate/config.json").read_text())["policy"] == f"runs/r/{method}"
    assert (report["kl_last_third"] is not None) == (method == "group") and report["control_shuffled_labels"]
    leftover = Path("runs/r/ppo")
    leftover.mkdir()
    (leftover / "config.json").write_text('{"kl": {"controller": "adaptive", "target": 9.0}}')
    (leftover / "metrics.jsonl").touch()
    assert build_report(Path("runs/r"))["kl_target"] is None


def test_an_interrupted_dpo_run_continues_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    write_marked_preferences(60)
    whole = direct.run(marked_direct("whole", save_every=3))
    saved = direct.save_step

    def power_fails(*arguments: Any) -> None:
        saved(*arguments)
        raise RuntimeError("power")

    monkeypatch.setattr(direct, "save_step", power_fails)
    with pytest.raises(RuntimeError, match="power"):
        direct.run(marked_direct("broken", save_every=3))
    monkeypatch.setattr(direct, "save_step", saved)
    again = direct.run(marked_direct("broken", save_every=3))
    losses = [[row["loss/train"] for row in metrics(out)] for out in ("whole", "broken")]
    assert losses[0] == losses[1] and whole["margin"] == again["margin"]


def test_what_all_answers_to_a_prompt_share_is_left_out_on_request() -> None:
    write_prompts(6)
    for out, score, wanted in (("fair", "even", True), ("unfair", "unfair", True), ("drowned", "unfair", False)):
        ppo.run(toy(out, score, group=5, leave_one_out=wanted))
    texts = [[r["completion"]["segments"] for r in samples(out)] for out in ("fair", "unfair", "drowned")]
    assert texts[0] == texts[1] != texts[2]
    assert rise("fair") > 0.2 > rise("drowned")
    assert metrics("unfair")[0]["reward/score"] > metrics("fair")[0]["reward/score"] + 1


def test_ppo_with_adapters() -> None:
    write_prompts(6)
    optim = OptimConfig(lr=2e-2, decay=False, warmup=0.0, head_lr=1e-2)
    ppo.run(toy("lora", "even", lora=LoraConfig(rank=8, alpha=16), optim=optim))
    rows = metrics("lora")
    assert rows[0]["kl/response"] == rows[0]["kl/exact"] == 0 and rows[-1]["kl/response"] > 0.5
    assert rise("lora") > 0.2


def test_a_leash_holds() -> None:
    """The same reward with a strong penalty moves the policy less."""
    write_prompts(6)
    ppo.run(toy("free", "even", steps=8))
    ppo.run(toy("held", "even", steps=8, kl=KLConfig(controller="fixed", coef=1.0)))
    free, held = (metrics(out)[-1]["kl/response"] for out in ("free", "held"))
    assert held < 0.5 * free


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["whole", "lora"])
def test_an_interrupted_ppo_run_continues_the_same_numbers(lora: LoraConfig | None) -> None:
    write_prompts(6)
    settings: dict[str, Any] = {"steps": 6, "save_every": 3, "group": 2, "lora": lora, "leave_one_out": True}
    settings |= {"kl": KLConfig(target=0.5), "optim": OptimConfig(lr=1e-3, last_layers=1)}
    whole = ppo.run(toy("whole", "even", **settings))
    config = toy("broken", "fails_once", **settings)
    with pytest.raises(RuntimeError, match="power"):
        ppo.run(config)
    assert len(metrics("broken")) == 4 and [p.name for p in Path("broken/checkpoints").iterdir()] == ["step-000002"]
    again = ppo.run(config)
    assert [row["step"] for row in metrics("broken")] == list(range(6))
    for one, other in zip(metrics("whole"), metrics("broken"), strict=True):
        assert {k: v for k, v in one.items() if "time/" not in k} == {
            k: v for k, v in other.items() if "time/" not in k
        }
    answers = [[row["completion"]["segments"] for row in samples(out)] for out in ("whole", "broken")]
    assert answers[0] == answers[1]
    assert whole["kl_coef"] == again["kl_coef"] != KLConfig().coef


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["whole", "lora"])
def test_ppo_in_bf16_keeps_its_checks(lora: LoraConfig | None) -> None:
    """First ratio 1, no KL before the first update, sampler and learner close: the stage raises where one fails."""
    write_prompts(6)
    engine = ENGINE.model_copy(update={"dtype": "bf16", "token_budget": 200})
    ppo.run(toy("bf16", "even", steps=3, max_tokens=12, engine=engine, lora=lora))
    rows = metrics("bf16")
    assert rows[0]["kl/response"] == 0 and 0 < rows[-1]["sampler/logprob_gap"] < 0.05
    assert rows[-1]["kl/response"] > 0.05


def test_agreement_of_people_who_always_choose_the_same_has_no_alpha() -> None:
    judgments = [Judgment(comparison_id="c", annotator=name, ranking=(0, 1), shown_order=(0, 1)) for name in "xy"]
    assert label.agreement(judgments) == {"agreement": 1.0, "krippendorff_alpha": None}
