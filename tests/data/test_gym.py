"""reasoning-gym as prompts and verifier: splits that share no question, answers that are checked behind walls."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from prefloop.configs.shared import EngineConfig
from prefloop.data.gym import dataset, gym_prompts
from prefloop.data.jsonl import text_completion
from prefloop.data.sources import load_demonstrations, load_prompts
from prefloop.rewards import jailed
from prefloop.rewards.resolve import resolve_reward
from prefloop.types import PrefloopError

if os.environ.get("CI") != "true":
    pytest.importorskip("reasoning_gym", reason='reasoning-gym is not installed: pip install "prefloop[reasoning]"')
FORGERIES = (  # a check that runs the answer would be told by it what to say
    "__import__('builtins').__dict__.update(float=lambda x: 1.0)",
    "(x for x in ()).gi_frame.f_builtins.update(float=lambda x: 1.0)",
    "[sin('1') for sin in [exec]]",
)
SMALL = "gym:chain_sum?max_terms=2&max_digits=1&train=60&dev=10&eval=40&demonstrations=20"


def test_no_question_stands_in_two_splits_and_all_are_made_again_alike() -> None:
    prompts = gym_prompts(SMALL)
    assert Counter(p.split for p in prompts) == {"train": 60, "dev": 10, "eval": 40, "demonstrations": 20}
    assert len({p.messages for p in prompts}) == len({p.id for p in prompts}) == 130
    assert gym_prompts(SMALL) == prompts
    for prompt in prompts[::17]:
        origin = prompt.checks["gym"]
        entry = dataset(origin)[origin["index"]]
        assert (entry["question"], entry["answer"]) == (prompt.messages[0].content, prompt.target)
    held_out = load_prompts(SMALL, splits=("eval",))
    assert len(held_out) == 40 and not {p.messages for p in held_out} & {
        p.messages for p in prompts if p.split == "train"
    }
    assert {d.prompt.split for d in load_demonstrations(SMALL)} == {"demonstrations"}
    first = load_demonstrations(SMALL)[0]
    assert first.completion == f"<answer>{first.prompt.target}</answer>"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gym:nowhere", "gym:nowhere: .*nowhere"),
        ("gym:chain_sum?colour=1", "gym:chain_sum: .*colour"),
        ("gym:chain_sum?min_terms=9", "gym:chain_sum: max_terms must be"),
        ("gym:chain_sum?min_terms", "'min_terms' is not key=value"),
        ("gym:chain_sum?train=many", "'train=many' is not key=value with a value in JSON"),
        ("gym:chain_sum?train=-1", "train is -1; give a number of problems"),
        ("gym:chain_sum?max_terms=2&max_digits=1&train=900", r"only \d+ new problems for train; ask for fewer"),
    ],
)
def test_what_cannot_be_made_says_why(source: str, message: str) -> None:
    with pytest.raises(PrefloopError, match=message):
        gym_prompts(source)


def test_answers_are_checked_by_the_task_and_cannot_do_harm(tmp_path: Path) -> None:
    """Countdown takes any expression that comes to the number; its check would run what stands in an answer."""
    prompts = gym_prompts("gym:countdown?train=1&dev=0&eval=0&demonstrations=0")
    target, harm = prompts[0].target, tmp_path / "harm"
    answers = [target, f"0 + {target}", f"\\[\n({target})\n\\]", "1 + 1", f"open('{harm}', 'w')", ""]
    reward = resolve_reward("gym", EngineConfig())
    found = reward(prompts * len(answers), [text_completion(prompts[0], str(text)) for text in answers])
    whole = [f"[{forged}, {target}]" for forged in FORGERIES]
    assert [score.value for score in reward(prompts * 3, [text_completion(prompts[0], text) for text in whole])] == [
        0
    ] * 3
    assert [score.value for score in found][:1] + [score.value for score in found][2:] == [1, 1, 0, 0, 0]
    assert found[5].explanation == "There is no answer." and not harm.exists()


TELL = """import os
for i in range(3, 64):
    try: os.write(i, b'{"%s": true}')
    except OSError: pass
os._exit(0)
"""


def hidden(code: str) -> list[str]:
    """Ways to run it that no pattern for a name before a bracket sees."""
    text = '"' + "".join(f"\\x{ord(sign):02x}" for sign in code) + '"'
    return [f"exec\\\n({text})", f"exec #\n({text})", f"(eval #.\n({text}))", f"\uff45\uff58\uff45\uff43 #\n({text})"]


def test_no_answer_can_tell_the_check_what_to_say() -> None:
    prompts = gym_prompts("gym:countdown?train=1&dev=0&eval=0&demonstrations=0")
    answers = [f"\\boxed{{{text}}}" for word in ("ok", "wrong") for text in hidden(TELL % word)]
    reward = resolve_reward("gym", EngineConfig())
    found = reward(prompts * len(answers), [text_completion(prompts[0], text) for text in answers])
    assert [score.value for score in found] == [0.0] * len(answers)


@pytest.mark.parametrize("task", ["sentence_reordering", "emoji_mystery", "n_queens", "simple_integration"])
def test_the_target_itself_is_right_with_all_that_stands_around_it(task: str) -> None:
    prompts = gym_prompts(f"gym:{task}?train=8&dev=0&eval=0&demonstrations=0")
    reward = resolve_reward("gym", EngineConfig())
    assert [s.value for s in reward(prompts, [text_completion(p, str(p.target)) for p in prompts])] == [1.0] * 8


@pytest.mark.parametrize(
    "text",
    [
        *FORGERIES,
        *hidden("1"),
        "exec ('1')",
        "(lambda: 1)()",
        "(sin := exec), sin('1')",
        "[str][0]('a')",
        "(1).real",
        "a b",
    ],
)
def test_code_that_does_more_than_compute(text: str) -> None:
    assert not jailed._computes(text)


@pytest.mark.parametrize(
    "text", ["(1 + 2) * 3", "sin(x) + 2*log(x)", "[[1, 2], [3, 4]]", "x**2", " 3.5", "Integer (1 )*Symbol ('x' )"]
)
def test_arithmetic(text: str) -> None:
    assert jailed._computes(text)
