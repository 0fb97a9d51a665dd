"""Several reward models' checkpoints as one reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefloop.configs.shared import EngineConfig
from prefloop.data.heldout import by_prompt
from prefloop.models.checkpoint import save_checkpoint
from prefloop.models.heads import reward_head
from prefloop.models.load import load_model
from prefloop.models.lora import adapter_parameters, attach
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.rewards.ensemble import EnsembleReward
from prefloop.rewards.learned import LearnedReward, SharedTrunk
from prefloop.rewards.resolve import resolve_reward
from prefloop.rewards.tags import tagged
from prefloop.types import Checkpoint, Completion, Message, PrefloopError, Prompt, Sampling, Segment

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=80)
SCALES = ((2.0, -0.5), (0.5, 1.0), (3.0, 0.0))  # gain, bias


def answer(text: str) -> Completion:
    return Completion(id=text, prompt_id="", segments=(), text=text, finish_reason="stop", sampling=Sampling(), seed=0)


PROMPTS = [Prompt(id=name, messages=(Message(role="user", content=name),)) for name in ("a", "long one", "a", "b")]
ANSWERS = [answer(text) for text in ("x", "yes", "a longer answer", "no")]


def save(
    path: Path, head: int, scale: tuple[float, float], *, model: Any = None, others: Sequence[int] = (), **details: Any
) -> None:
    """A reward run with a head, and further ones, by their seeds."""
    known = {"pooling": "last", "gain": scale[0], "bias": scale[1], "members": [SCALES[i] for i in others]}
    parent = details.pop("parent", "tiny")
    record = Checkpoint(path="", kind="reward", step=0, parent=parent, config_hash="", details=known | details)
    model = tiny_model(width=16) if model is None else model
    save_checkpoint(
        path / "checkpoint",
        record=record,
        model=model,
        tokenizer=tiny_tokenizer(),
        head=reward_head(model.config.hidden_size, head),
        members=[reward_head(model.config.hidden_size, other) for other in others],
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three members with heads and scales of their own."""
    paths = [tmp_path_factory.mktemp("reward") for _ in SCALES]
    for seed, (path, scale) in enumerate(zip(paths, SCALES, strict=True)):
        save(path, seed, scale)
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def alone(folders: list[str]) -> list[list[float]]:
    """[member][answer] what each says when it is asked alone."""
    return [[score.value for score in LearnedReward(folder, ENGINE)(PROMPTS, ANSWERS)] for folder in folders]


def test_members_are_on_their_own_scales_and_all_is_said(folders: list[str], alone: list[list[float]]) -> None:
    name = f"mean:{','.join(folders)}"
    for i, score in enumerate(resolve_reward(name, ENGINE)(PROMPTS, ANSWERS)):
        a, b, c = (values[i] for values in alone)
        spread = (((a - b) ** 2 + (b - c) ** 2 + (c - a) ** 2) / 9) ** 0.5
        parts = {f"{folder}/checkpoint": value for folder, value in zip(folders, (a, b, c), strict=True)}
        assert score.parts == pytest.approx(parts | {"disagreement": spread}, abs=1e-6)
        assert score.value == pytest.approx((a + b + c) / 3)
        assert score.by == name
    assert len({round(value, 6) for values in alone for value in values}) == 12


def test_an_average_has_no_raw_score(tmp_path: Path) -> None:
    for seed in (0, 1):
        save(tmp_path / str(seed), 0, SCALES[seed], head_seed=0)
    found = resolve_reward(f"average:{tmp_path}/0,{tmp_path}/1", ENGINE)(PROMPTS, ANSWERS)
    assert all(score.parts == {} for score in found) and len({score.value for score in found}) == len(ANSWERS)


def test_the_worst_member_decides(folders: list[str], alone: list[list[float]]) -> None:
    found = resolve_reward(f"worst: {folders[1]} , {folders[0]}", ENGINE)(PROMPTS, ANSWERS)
    assert [score.value for score in found] == pytest.approx([min(a, b) for a, b in zip(*alone[:2], strict=True)])


def test_doubt_costs_what_the_name_says(folders: list[str], alone: list[list[float]]) -> None:
    pair = ",".join(folders[:2])
    for penalty in ("0.5", "2", "0"):
        found = resolve_reward(f"uncertainty={penalty}:{pair}", ENGINE)(PROMPTS, ANSWERS)
        expected = [(a + b) / 2 - float(penalty) * (a - b) ** 2 / 4 for a, b in zip(*alone[:2], strict=True)]
        assert [score.value for score in found] == pytest.approx(expected, abs=1e-6)
    assert resolve_reward(f"mean:{pair}", ENGINE)([], []) == []


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The heads of all three members on one trunk."""
    path = tmp_path_factory.mktemp("several")
    save(path, 0, SCALES[0], others=(1, 2))
    return str(path)


@pytest.mark.parametrize("how", ["mean", "worst", "uncertainty=0.5"])
def test_heads_on_one_trunk_are_as_good_as_models(folders: list[str], several: str, how: str) -> None:
    apart = resolve_reward(f"{how}:{','.join(folders)}", ENGINE)(PROMPTS, ANSWERS)
    together = resolve_reward(f"{how}:{several}", ENGINE)
    for one, other in zip(together(PROMPTS, ANSWERS), apart, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-6)
        assert list(one.parts.values()) == pytest.approx(list(other.parts.values()), abs=1e-6)
        assert list(one.parts) == [*(f"{several}/checkpoint#{i}" for i in range(3)), "disagreement"]
    mixed = resolve_reward(f"mean:{several},{folders[0]}", ENGINE)
    assert isinstance(mixed, EnsembleReward) and len(mixed.members) == 4


def test_by_itself_the_first_head_is_the_reward_and_doubt_is_said(several: str, alone: list[list[float]]) -> None:
    found = LearnedReward(several, ENGINE)(PROMPTS, ANSWERS)
    assert [score.value for score in found] == pytest.approx(alone[0], abs=1e-6)
    assert [score.parts["disagreement"] for score in found] == pytest.approx(np.std(alone, axis=0), abs=1e-6)
    assert [2.0 * score.parts["raw"] - 0.5 for score in found] == pytest.approx(alone[0], abs=1e-6)


def test_two_prompts_of_one_id_are_two_prompts(folders: list[str]) -> None:
    reward = LearnedReward(folders[0], ENGINE)
    other = replace(PROMPTS[0], messages=(Message(role="user", content="Something else?"),))
    given = [answer("Yes.")]
    apart = [reward([prompt], given)[0].value for prompt in (PROMPTS[0], other)]
    together = [score.value for score in reward([PROMPTS[0], other], given * 2)]
    assert together == pytest.approx(apart, abs=1e-6) and abs(apart[0] - apart[1]) > 1e-3


def test_two_answers_of_one_id_are_refused() -> None:
    one, other = answer("Yes."), replace(answer("No."), id="Yes.")
    assert len(by_prompt([(PROMPTS[0], one)] * 2)[PROMPTS[0].id][1]) == 1
    with pytest.raises(PrefloopError, match=r"have the id 'Yes.' and differ"):
        by_prompt([(PROMPTS[0], one), (PROMPTS[0], other)])


def test_a_tag_may_hold_an_answer_for_a_reward_model(folders: list[str]) -> None:
    whole = replace(answer("<answer>Yes.</answer>"), segments=(Segment(author="policy", tokens=(5,)),))
    inside, empty = answer("Yes."), answer("")
    reward = LearnedReward(folders[0], ENGINE)
    expected = [reward([PROMPTS[0]], [c])[0].value for c in (inside, empty)]
    found = tagged(reward)([PROMPTS[0]] * 2, [whole, replace(whole, text="Yes.")])
    assert [score.value for score in found] == pytest.approx(expected, abs=1e-6)


def test_the_trunk_is_loaded_and_passed_once(folders: list[str], several: str) -> None:
    passes = []
    for folder in (folders[0], several):
        model = LearnedReward(folder, ENGINE)
        counted: list[int] = []
        model.scorer.trunk.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        model(PROMPTS, ANSWERS)
        passes.append(len(counted))
    assert passes[0] == passes[1] > 0


def test_an_average_of_heads_on_one_trunk_is_the_mean_of_scores(folders: list[str], alone: list[list[float]]) -> None:
    found = resolve_reward(f"average:{','.join(folders)}", ENGINE)(PROMPTS, ANSWERS)
    assert [score.value for score in found] == pytest.approx(np.mean(alone, axis=0), abs=1e-6)
    assert found[0].by == f"average:{','.join(folders)}"


def test_an_average_has_the_mean_of_all_weights(folders: list[str], tmp_path: Path) -> None:
    """Two trunks: one model with their mean weights, which is not the mean of their scores."""
    first, second, mean = tiny_model(0, width=16), tiny_model(1, width=16), tiny_model(0, width=16)
    with torch.no_grad():
        for part, other in zip(mean.parameters(), second.parameters(), strict=True):
            part.copy_((part + other) / 2)
    save(tmp_path / "second", 0, (1.0, 0.0), model=second)
    save(tmp_path / "first", 0, (1.0, 0.0), model=first)
    save(tmp_path / "mean", 0, (1.0, 0.0), model=mean)
    scores = {
        name: [score.value for score in resolve_reward(name.format(f=tmp_path), ENGINE)(PROMPTS, ANSWERS)]
        for name in ("{f}/mean", "average:{f}/first,{f}/second", "mean:{f}/first,{f}/second")
    }
    expected, averaged, combined = scores.values()
    assert averaged == pytest.approx(expected, abs=1e-6)
    assert averaged != pytest.approx(combined, abs=1e-2)


def test_an_average_needs_one_beginning(folders: list[str], tmp_path: Path) -> None:
    save(tmp_path / "other", 0, (1.0, 0.0), parent="elsewhere")
    save(tmp_path / "pooled", 0, (1.0, 0.0), pooling="mean")
    save(tmp_path / "headed", 0, (1.0, 0.0), head_seed=7)
    for folder, said in {
        "other": "share their parent; 'tiny' is not 'elsewhere'",
        "pooled": "share their pooling",
        "headed": "share their head_seed; None is not 7",
    }.items():
        with pytest.raises(PrefloopError, match=said):
            resolve_reward(f"average:{folders[0]},{tmp_path / folder}", ENGINE)


def test_a_single_run_is_still_itself_and_own_functions_are_found(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(resolve_reward(folders[0], ENGINE), LearnedReward)
    assert isinstance(resolve_reward(f"mean:{folders[0]},{folders[1]}", ENGINE), EnsembleReward)
    (tmp_path / "meaning.py").write_text("def mean(prompts, completions): return [0.0 for c in completions]")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_reward("meaning:mean", ENGINE)(PROMPTS, ANSWERS) == [0.0] * 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mean:{a}", "two members or more"),
        ("worst:{a},{a}", "each only once"),
        ("worst:{a},{a}/../{tail}", "each only once"),
        ("mean:{a},", "'' is no folder"),
        ("mean:{a},nowhere", "'nowhere' is no folder"),
        ("average:{a}", "two members or more"),
        ("average:{a},{a}", "each only once"),
        ("average:{a},nowhere", "'nowhere' is no folder"),
        ("average=2:{a},{b}", "an average takes no number"),
        ("mean=2:{a},{b}", "only uncertainty takes a number"),
        ("uncertainty:{a},{b}", "what a unit of variance costs"),
        ("uncertainty=-1:{a},{b}", "what a unit of variance costs"),
        ("uncertainty=nan:{a},{b}", "what a unit of variance costs"),
        ("uncertainty=a:{a},{b}", "what a unit of variance costs"),
        ("mean", "Unknown reward 'mean'"),
        ("median:{a},{b}", "or several folders as 'mean:A,B'"),
    ],
)
def test_a_name_that_cannot_be_is_a_plain_error(folders: list[str], name: str, said: str) -> None:
    a, b = folders[:2]
    with pytest.raises(PrefloopError, match=said):
        resolve_reward(name.format(a=a, b=b, tail=Path(a).name), ENGINE)


def save_adapted(path: Path, seed: int, *, rank: int = 4, **rest: Any) -> str:
    """A reward run of adapters on "tiny" that do something."""
    model = tiny_model()
    attach(model, rank=rank, alpha=8.0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapter_parameters(model).values():
            weight.normal_(0.0, 0.2, generator=generator)
    lora = {"rank": rank, "alpha": 8.0, "last_layers": None}
    trunk = load_model("tiny", dtype=torch.float32).fingerprint
    save(path / str(seed), seed, SCALES[seed], **{"model": model, "lora": lora, "trunk": trunk} | rest)
    return str(path / str(seed))


@pytest.mark.parametrize("how", ["mean", "worst", "uncertainty=0.5"])
def test_adapters_on_one_trunk_are_as_good_as_models(tmp_path: Path, how: str) -> None:
    names = [save_adapted(tmp_path, 0), save_adapted(tmp_path, 1, others=(2,)), save_adapted(tmp_path, 2)]
    alone = [LearnedReward(name, ENGINE) for name in names]
    together = resolve_reward(f"{how}:{','.join(names)}", ENGINE)
    assert isinstance(together, EnsembleReward) and isinstance(together.models[0], SharedTrunk)
    assert len(together.models) == 1 and together.members == [member for one in alone for member in one.members]
    scores = np.vstack([one.scaled(one.raw(PROMPTS, ANSWERS)) for one in alone])
    for _ in range(2):  # adapters are put back in their turn
        for i, found in enumerate(together(PROMPTS, ANSWERS)):
            assert list(found.parts.values())[:4] == pytest.approx(scores[:, i].tolist(), abs=1e-4)
    assert np.ptp(scores, axis=0).min() > 0.01


def test_adapters_of_another_shape_or_trunk_are_models_of_their_own(tmp_path: Path) -> None:
    first, narrow = save_adapted(tmp_path, 0), save_adapted(tmp_path, 1, rank=2)
    moved = save_adapted(tmp_path, 2, parent="runs/away/checkpoint")
    for names in ((first, narrow), (first, moved)):
        found = resolve_reward(f"mean:{','.join(names)}", ENGINE)
        assert isinstance(found, EnsembleReward) and len(found.models) == 2
    old = [save_adapted(tmp_path / "old", seed, trunk="as it was") for seed in (0, 1)]
    found = resolve_reward(f"mean:{','.join(old)}", ENGINE)  # "tiny" is another model by now
    assert isinstance(found, EnsembleReward) and len(found.models) == 2
    gone = tmp_path / "gone"
    pair = [save_adapted(gone, seed, parent="runs/away/checkpoint") for seed in (0, 1)]
    found = resolve_reward(f"mean:{','.join(pair)}", ENGINE)
    assert isinstance(found, EnsembleReward) and len(found.models) == 2
