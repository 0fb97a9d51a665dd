"""A process reward model's checkpoint as a reward, and labels of steps by verifiers and roll-outs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from prefloop.configs.shared import EngineConfig
from prefloop.data.chat import encode_text
from prefloop.data.trees import answer_tree
from prefloop.engine.build import build_encoder, build_sampler
from prefloop.engine.verbs import Request, Weights
from prefloop.models.checkpoint import save_checkpoint
from prefloop.models.heads import reward_head
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.rewards.process import ProcessReward
from prefloop.rewards.resolve import resolve_reward
from prefloop.rewards.step_labels import rolled_out_steps, verified_steps
from prefloop.types import Checkpoint, Completion, Message, PrefloopError, Prompt, Sampling, Score, Segment

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=80)
ENCODER = build_encoder(LoadedModel(tiny_model(width=16), tiny_tokenizer(), "tiny", ""))
STOP = 257


def answer(text: str) -> Completion:
    return Completion(id=text, prompt_id="", segments=(), text=text, finish_reason="stop", sampling=Sampling(), seed=0)


def asked(name: str) -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=name),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("process"), {"pooling": "last", "steps": "lines"})


def saved(path: Path, details: dict[str, Any]) -> str:
    record = Checkpoint(path="", kind="reward", step=0, parent="tiny", config_hash="", details=details)
    parts: dict[str, Any] = {"model": tiny_model(width=16), "tokenizer": tiny_tokenizer(), "head": reward_head(16, 1)}
    save_checkpoint(path / "checkpoint", record=record, **parts)
    return str(path)


PROMPTS = [asked(name) for name in ("a", "long prompt", "a", "b")]
ANSWERS = [answer(text) for text in ("x\ny\nz", "yes", "a longer\nanswer", "\nno\n\nyes\n")]


def test_each_step_is_read_at_its_last_token_and_all_are_one_number(folder: str) -> None:
    """Against the model's states of the whole tree, read one answer at a time."""
    reward = ProcessReward(f"steps=product:{folder}", ENGINE)
    found = {
        how: resolve_reward(f"steps={how}:{folder}", ENGINE)(PROMPTS, ANSWERS) for how in ("minimum", "last", "mean")
    }
    ends = [(1, 3, 5), (3,), (8, 15), (3, 9)]
    for i, score in enumerate(reward(PROMPTS, ANSWERS)):
        tree = answer_tree(PROMPTS[i], [ANSWERS[i]], ENCODER)
        (reading,) = reward.scorer.forward([tree], {"steps"})
        steps = torch.sigmoid(torch.from_numpy(reading.steps[1])[list(ends[i])]).tolist()
        assert score.parts == pytest.approx({f"steps[{k}]": p for k, p in enumerate(steps)}, abs=1e-5)
        assert score.value == pytest.approx(float(torch.tensor(steps).prod()), abs=1e-5)
        others = {how: scores[i].value for how, scores in found.items()}
        wanted = {"minimum": min(steps), "last": steps[-1], "mean": sum(steps) / len(steps)}
        assert others == pytest.approx(wanted, abs=1e-5) and found["mean"][i].by == f"steps=mean:{folder}"
    assert reward([], []) == []


def test_later_steps_change_nothing_of_earlier_ones(folder: str) -> None:
    reward = ProcessReward(f"steps=product:{folder}", ENGINE)
    one, two = reward([asked("a")] * 2, [answer("1\n2\n3"), answer("1\n2\n9 or so\n4")])
    assert [one.parts[f"steps[{k}]"] for k in (0, 1)] == pytest.approx([two.parts[f"steps[{k}]"] for k in (0, 1)])
    assert one.parts["steps[2]"] != pytest.approx(two.parts["steps[2]"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("steps=product:", "write steps=HOW:FOLDER, HOW being product, minimum, last, mean"),
        ("steps=product", "write steps=HOW:FOLDER"),
        ("steps=median:{folder}", "write steps=HOW:FOLDER"),
        ("steps=mean:nowhere", "write steps=HOW:FOLDER"),
        ("steps=mean:{whole}", "scores whole answers, not steps"),
        ("{folder}", "scores steps; say how they are combined, as in 'steps=product:"),
        ("mean:{folder},{whole}", "scores steps; say how they are combined"),
    ],
)
def test_a_name_that_cannot_be_is_a_plain_error(folder: str, tmp_path: Path, name: str, said: str) -> None:
    whole = saved(tmp_path, {"pooling": "last", "gain": 1.0, "bias": 0.0})
    with pytest.raises(PrefloopError, match=said):
        resolve_reward(name.format(folder=folder, whole=whole), ENGINE)


def sound(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """1 where no line so far has an x, 0.5 where none has a y."""
    return [Score(value=0.0 if "x" in c.text else 0.5 if "y" in c.text else 1.0) for c in completions]


def test_a_verifier_is_shown_the_answer_up_to_each_step() -> None:
    shown: list[tuple[str, str]] = []

    def watched(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        shown.extend((c.text, c.finish_reason) for c in completions)
        return sound(prompts, completions)

    answers = [(asked("a"), answer("1\ny\nx\n2")), (asked("b"), answer("1"))]
    first, second = verified_steps(answers, ENCODER, "lines", watched)
    assert (first.labels, second.labels, first.by) == ((1.0, 0.5, 0.0, 0.0), (1.0,), "verifier")
    assert (first.prompt, first.completion) == answers[0]
    assert shown == [
        ("1\n", "length"),
        ("1\ny\n", "length"),
        ("1\ny\nx\n", "length"),
        ("1\ny\nx\n2", "stop"),
        ("1", "stop"),
    ]

    def wild(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        return [Score(value=2.0) for _ in completions]

    with pytest.raises(PrefloopError, match=r"labels must be in 0\.\.1"):
        verified_steps(answers, ENCODER, "lines", wild)


class Scripted:
    """A sampler that goes on as told: by the text so far and the number of the request for it."""

    def __init__(self, script: dict[str, list[str]]) -> None:
        self.script, self.asked, self.seeds = script, dict.fromkeys(script, 0), set[int]()

    def load(self, weights: Weights) -> None: ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        made = []
        for request in requests:
            so_far = ENCODER.tokenizer.decode(list(request.tokens)).rpartition("assistant\n")[2]
            text = self.script[so_far][self.asked[so_far]]
            self.asked[so_far] += 1
            self.seeds.add(request.seed)
            segment = Segment(author="policy", tokens=(*encode_text(ENCODER.tokenizer, text), STOP))
            known = dataclasses.replace(answer(text), id=request.id, prompt_id=request.prompt_id)
            made.append(dataclasses.replace(known, segments=(segment,), sampling=request.sampling))
        return iter(reversed(made))


def right(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    return [Score(value=float(c.text.endswith("=4"))) for c in completions]


SCRIPT = {"1+1\n": ["2+2=4", "=3", "=4", "=4"], "1+1\n2\n": ["=5", "=4", "=3", "=3"], "5\n": ["=3"] * 4}


@pytest.mark.parametrize(
    ("soft", "labels"), [(True, [(0.75, 0.25, 1.0), (0.0, 0.0)]), (False, [(1.0, 1.0, 1.0), (0.0, 0.0)])]
)
def test_rollouts_go_on_after_each_step(soft: bool, labels: list[tuple[float, ...]]) -> None:
    answers = [(asked("a"), answer("1+1\n2\n=4")), (asked("a"), answer("5\n=2"))]
    sampler = Scripted(SCRIPT)
    found = rolled_out_steps(
        answers, ENCODER, "lines", sampler, right, samples=4, sampling=Sampling(max_tokens=9), soft=soft, seed=0
    )
    assert [item.labels for item in found] == labels and len(sampler.seeds) == 12
    assert {item.by for item in found} == {"rollouts-soft" if soft else "rollouts-hard"}
    assert [(item.prompt, item.completion) for item in found] == answers


def test_rollouts_by_a_model_are_whole_answers_on_its_own_tokens() -> None:
    """Right is an even number of tokens: each continuation is judged with what it continues, and a seed decides."""
    loaded = LoadedModel(tiny_model(width=16), tiny_tokenizer(), "tiny", "")
    sampler = build_sampler(loaded, "tiny", ENGINE)
    seen: list[Completion] = []

    def even(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        seen.extend(completions)
        return [Score(value=float(len(c.tokens) % 2 == 0)) for c in completions]

    answers = [(asked("a"), answer("ab\ncd\ne"))]
    settings: dict[str, Any] = {"samples": 3, "sampling": Sampling(max_tokens=5), "soft": True}
    first, again, other = (
        rolled_out_steps(answers, ENCODER, "lines", sampler, even, seed=seed, **settings) for seed in (0, 0, 1)
    )
    assert first == again and len(first[0].labels) == 3
    starts = sorted(c.text[:3] for c in seen[:6])
    assert starts == ["ab\n"] * 6 and all(len(c.tokens) <= 11 for c in seen[:6])
    assert all(ENCODER.response(c) == c.tokens for c in seen[:6])
    assert {c.tokens for c in seen[:7]} == {c.tokens for c in seen[7:14]} != {c.tokens for c in seen[14:21]}
    assert other[0].completion == first[0].completion
