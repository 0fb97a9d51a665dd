"""Several named rewards as one: what each says in stds of the reference, who overrules whom, what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prefloop.configs.load import load_recipe, stage_config
from prefloop.configs.mix import MixConfig
from prefloop.configs.shared import EngineConfig
from prefloop.models.checkpoint import save_checkpoint
from prefloop.models.heads import reward_head
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.rewards.learned import LearnedReward
from prefloop.rewards.mix import MixedReward
from prefloop.types import Checkpoint, Completion, Message, PrefloopError, Prompt, Sampling

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=80)
RAW = {"helpful": "own_parts:helpful", "harmless": "own_parts:harmless", "concise": "own_parts:concise"}
OWN = """
from prefloop.types import Score

def said(place):
    return lambda prompts, completions: [Score(value=float(c.text.split()[place])) for c in completions]

helpful, harmless, concise = said(0), said(1), said(2)
"""


@pytest.fixture(autouse=True)
def _own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def answer(text: str) -> Completion:
    return Completion(id=text, prompt_id="", segments=(), text=text, finish_reason="stop", sampling=Sampling(), seed=0)


def asked(name: str = "p", **rest: Any) -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=name),), **rest)


def mixed(state: dict[str, Any] | None = None, **config: Any) -> MixedReward:
    settings = {"parts": RAW, "scales": dict.fromkeys(RAW, (0.0, 1.0)), **config}
    return MixedReward(MixConfig(**settings), "", ENGINE, state or {})


EVERY = {"helpful": 1.0, "harmless": 0.5, "concise": -2.0}
GATED: dict[str, Any] = {"weights": {"helpful": 1.0, "concise": 0.25}, "gate": {"part": "harmless", "below": -1.0}}
HELD: dict[str, Any] = {
    "weights": {"helpful": 1.0, "concise": 0.25},
    "constraint": {"part": "harmless", "at_least": 1.0, "rate": 0.5, "multiplier": 1.0},
}


def test_a_weighted_sum_by_hand_and_each_part_apart() -> None:
    first, second = mixed(weights=EVERY)([asked(), asked()], [answer("1 4 0"), answer("2 -1 3")])
    assert (first.value, second.value) == (3.0, -4.5)
    assert first.parts == {"helpful": 1.0, "harmless": 4.0, "concise": 0.0} and first.by == "mix"


@pytest.mark.parametrize(
    ("safety", "prompt", "shut"),
    [
        (-1.1, {}, True),
        (-1.0, {}, False),
        (2.0, {}, False),
        (2.0, {"slice": "unsafe"}, True),
        (2.0, {"checks": {"behavior": "refuse"}}, True),
        (-3.0, {"slice": "unsafe", "checks": {"behavior": "refuse"}}, True),
        (2.0, {"slice": "everyday", "checks": {"behavior": "comply"}}, False),
    ],
)
def test_the_gate_is_shut_where_safety_is_low_or_the_prompt_tagged(
    safety: float, prompt: dict[str, Any], shut: bool
) -> None:
    (score,) = mixed(**GATED)([asked(**prompt)], [answer(f"1 {safety} 8")])
    assert score.value == (safety if shut else 3.0) and score.parts["gated"] == shut
    assert score.parts["harmless"] == safety and score.parts["helpful"] == 1.0


def test_a_constraint_by_hand_and_its_multiplier_moves_after_the_batch() -> None:
    reward = mixed(**HELD)
    scores = reward([asked()] * 2, [answer("1 5 8"), answer("0 -5 0")])
    assert [score.value for score in scores] == [4.0, -2.5]
    metrics = reward.learn(scores)
    assert metrics == {
        "reward/helpful": 0.5,
        "reward/harmless": 0.0,
        "reward/concise": 4.0,
        "reward/multiplier": 1.0,
    }
    assert reward.state["multiplier"] == 1.5
    assert [score.value for score in reward([asked()], [answer("1 5 8")])] == [pytest.approx((3 + 1.5 * 5) / 2.5)]


def test_a_gate_overrules_a_constraint() -> None:
    reward = mixed(weights={"helpful": 1.0}, gate={"part": "harmless", "below": 0.0}, constraint={"part": "concise"})
    first, second = reward([asked()] * 2, [answer("1 -5 8"), answer("1 5 8")])
    assert (first.value, second.value) == (-5.0, 1.0)
    assert reward.learn([first, second])["reward/gated"] == 0.5


def test_scales_are_those_of_the_first_answers_and_stay() -> None:
    reward = mixed(weights=EVERY, scales={"concise": (1.0, 0.5)})
    prompts = [asked("a"), asked("a"), asked("b"), asked("b")]
    first = reward(prompts, [answer("1 0 2"), answer("3 4 2"), answer("11 0 2"), answer("13 4 2")])
    assert [score.parts["helpful"] for score in first] == pytest.approx([v / 2**0.5 for v in (-6, -4, 4, 6)])
    assert [score.parts["harmless"] for score in first] == pytest.approx([-(2**-0.5), 2**-0.5] * 2)
    assert {score.parts["concise"] for score in first} == {2.0}
    (later,) = reward([asked("a")], [answer("9 2 2")])
    assert later.parts == pytest.approx({"helpful": 2 / 2**0.5, "harmless": 0.0, "concise": 2.0})


def test_what_is_saved_goes_on_the_same() -> None:
    settings = HELD | {"scales": {}}
    whole = mixed(**settings)
    prompts, batches = [asked()] * 3, [["1 2 3", "4 9 7", "2 2 0"], ["5 1 2", "8 0 1", "3 3 3"], ["0 0 0", "1 1 2"]]
    found = []
    for batch in batches:
        scores = whole(prompts[: len(batch)], [answer(text) for text in batch])
        found.append((scores, whole.learn(scores)))
    half = mixed(**settings)
    half.learn(half(prompts, [answer(text) for text in batches[0]]))
    again = mixed(json.loads(json.dumps(half.state)), **settings)
    for batch, (scores, metrics) in zip(batches[1:], found[1:], strict=True):
        repeated = again(prompts[: len(batch)], [answer(text) for text in batch])
        assert repeated == scores and again.learn(repeated) == metrics
    assert again.state == whole.state != half.state
    fresh = mixed(**settings)([asked()] * 3, [answer(text) for text in batches[1]])
    assert fresh != found[1][0]


def test_a_part_without_a_spread_is_a_plain_error() -> None:
    with pytest.raises(PrefloopError, match=r"score alike by 'harmless' \(mean 2\).*give its mean and std in mix\.sc"):
        mixed(weights=EVERY, scales={})([asked()] * 2, [answer("1 2 3"), answer("2 2 4")])


def test_reward_models_keep_their_own_scale_and_an_empty_part_is_the_stages_reward(tmp_path: Path) -> None:
    details = {"pooling": "last", "gain": 2.0, "bias": -0.5}
    record = Checkpoint(path="", kind="reward", step=0, parent="tiny", config_hash="", details=details)
    parts: dict[str, Any] = {"model": tiny_model(width=16), "tokenizer": tiny_tokenizer(), "head": reward_head(16, 0)}
    save_checkpoint(tmp_path / "checkpoint", record=record, **parts)
    config = MixConfig(parts={"helpful": "", "harmless": "own_parts:helpful"}, weights={"helpful": 1, "harmless": 1})
    reward = MixedReward(config, str(tmp_path), ENGINE, {})
    prompts, answers = [asked()] * 2, [answer("1"), answer("3")]
    alone = LearnedReward(str(tmp_path), ENGINE)(prompts, answers)
    found = reward(prompts, answers)
    assert [score.parts["helpful"] for score in found] == [score.value for score in alone]
    assert reward.state["scales"] == {"helpful": [0.0, 1.0], "harmless": [2.0, pytest.approx(2**0.5)]}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"weights": {"helpfull": 1.0}}, "weights: unknown part 'helpfull'; the nearest known one is 'helpful'"),
        ({"weights": EVERY, "gate": {"part": "harmles", "below": 0}}, "gate: .* nearest known one is 'harmless'"),
        ({"weights": EVERY, "constraint": {"part": "xyz"}}, "constraint: unknown part 'xyz'; known: helpful, harmless"),
        ({"weights": EVERY, "scales": {"concis": (0, 1)}}, "scales: .* nearest known one is 'concise'"),
        ({"weights": {"helpful": 1.0}}, "part 'harmless' has no weight and is neither gate nor constraint"),
        ({"weights": dict.fromkeys(RAW, 0.0)}, "no part has a weight"),
        ({}, "no part has a weight"),
        ({"weights": EVERY, "scales": {"concise": (0, 0)}}, "the std of 'concise' is not above 0"),
        ({"parts": {"total": ""}, "weights": {"total": 1.0}}, "a part cannot be named 'total'"),
    ],
)
def test_a_mix_that_cannot_be_is_a_plain_error(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MixConfig(**{"parts": RAW, **config})


def test_a_recipe_names_a_mix_in_its_section(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    text = (
        "name = 'r'\n[ppo.mix]\nparts = { helpful = '', harmless = 'runs/h', concise = 'own:concise' }\n"
        "weights = { helpful = 1.0, concise = 0.3 }\n[ppo.mix.gate]\npart = '{part}'\nbelow = -1.0\n"
    )
    recipe.write_text(text.replace("{part}", "harmless"))
    config: Any = stage_config(load_recipe(recipe, ["ppo.mix.weights.concise=0.5"]), "ppo", reward="runs/r/reward")
    assert config.reward == "runs/r/reward" and config.mix.weights == {"helpful": 1.0, "concise": 0.5}
    assert config.mix.gate.unsafe == ("unsafe", "refuse") and config.mix.constraint is None
    recipe.write_text(text.replace("{part}", "harmful"))
    with pytest.raises(PrefloopError, match=r"\[ppo\.mix\] gate: unknown part 'harmful'; .* 'harmless'\.$"):
        load_recipe(recipe)
    recipe.write_text(text.replace("{part}", "harmless").replace("below", "bellow"))
    with pytest.raises(PrefloopError, match=r"unknown key 'bellow' in \[ppo\.mix\.gate\]; the nearest known one is"):
        load_recipe(recipe)


def test_answers_keep_their_order_whatever_their_prompts() -> None:
    reward = mixed(weights=EVERY)
    answers = [answer(f"{i} {i % 3} 1") for i in range(7)]
    prompts = [asked(name) for name in "abacbba"]
    found = reward(prompts, answers)
    order = [3, 0, 6, 2, 5, 1, 4]
    again = reward([prompts[i] for i in order], [answers[i] for i in order])
    assert again == [found[i] for i in order]
    assert reward([], []) == []
