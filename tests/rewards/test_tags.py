"""Answers in tags: only the inside of one well-formed answer tag is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.configs.shared import EngineConfig
from prefloop.data.jsonl import text_completion
from prefloop.rewards.resolve import resolve_reward
from prefloop.rewards.tags import answer_in_tag
from prefloop.types import Message, Prompt

PROMPT = Prompt(id="p", messages=(Message(role="user", content="6 times 7?"),), target="42")


def score(name: str, text: str, ended: bool = True) -> float:
    completion = replace(text_completion(PROMPT, text), finish_reason="stop" if ended else "length")
    return resolve_reward(name, EngineConfig())([PROMPT], [completion])[0].value


@pytest.mark.parametrize(
    ("text", "formed", "right"),
    [
        ("<answer>42</answer>", 1, 1),
        ("<think>6 x 7</think>\n<answer> 42 </answer>\n", 1, 1),
        ("<think></think><answer>41</answer>", 1, 0),
        ("<think>The answer is 42.</think><answer>41</answer>", 1, 0),
        ("42", 0, 0),
        ("<answer>42", 0, 0),
        ("so <answer>42</answer>", 0, 0),
        ("<answer>42</answer> I think", 0, 0),
        ("<think>a</think> well <answer>42</answer>", 0, 0),
        ("<answer>41</answer><answer>42</answer>", 0, 0),
        ("<answer>42</answer><think>a</think>", 0, 0),
        ("<answer><think>42</think></answer>", 0, 0),
        ("<think><answer>42</answer></think>", 0, 0),
        ("<think>a</think><think>b</think><answer>42</answer>", 0, 0),
        ("<answer></answer>", 0, 0),
        ("<answer> \n </answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_form_and_answer(text: str, formed: float, right: float) -> None:
    assert (score("format", text), score("tagged=numeric", text)) == (formed, right)
    assert score("tagged=exact", text) == right


def test_an_answer_that_was_cut_off_has_no_form_and_is_not_right() -> None:
    text = "<answer>42</answer>"
    assert (score("format", text, ended=False), score("tagged=numeric", text, ended=False)) == (0, 0)


@given(st.text(alphabet="42 \n<>/", max_size=20).filter(lambda text: text.strip()))
def test_what_stands_in_the_tag_is_the_answer_and_what_stands_in_think_is_not_read(text: str) -> None:
    for thought in ("", "<think>42</think>", f"<think>{text}</think>"):
        assert answer_in_tag(f"{thought}<answer>{text}</answer>") == text.strip()
    assert answer_in_tag(text) is None
