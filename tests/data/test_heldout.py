"""What is held out is unseen, whatever ids its prompts have; and what a control's labels are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.heldout import shuffled_steps, split
from prefloop.data.jsonl import text_completion
from prefloop.types import Message, Preference, PrefloopError, Prompt, StepLabels


def compared(name: str, text: str, where: str = "train") -> Preference:
    prompt = Prompt(id=name, messages=(Message(role="user", content=text),), split=where)
    return Preference(prompt=prompt, items=(text_completion(prompt, "a"), text_completion(prompt, "b")), target=1.0)


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=30), st.integers(0, 9))
def test_no_text_is_on_both_sides(texts: list[str], seed: int) -> None:
    known = [compared(f"id{place}", text) for place, text in enumerate(texts)]
    if len(set(texts)) == 1:
        with pytest.raises(PrefloopError, match=r"1 prompt\(s\) with comparisons cannot be split"):
            split(known, 0.3, seed)
        return
    training, heldout = split(known, 0.3, seed)
    assert len(training) + len(heldout) == len(known)
    assert not {p.prompt.messages for p in training} & {p.prompt.messages for p in heldout}


def test_what_stands_in_the_dev_split_too_is_not_learned() -> None:
    training, heldout = split([compared("x", "a"), compared("y", "a", "dev"), compared("z", "b")], 0.3, 0)
    assert [p.prompt.id for p in training] == ["z"] and [p.prompt.id for p in heldout] == ["x", "y"]


@pytest.mark.parametrize("sizes", [(3,) * 8, range(1, 9), (1, 1, 5, 5, 5, 9)])
def test_no_answer_keeps_its_own_step_labels(sizes: Sequence[int]) -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="?"),))
    items = [
        StepLabels(prompt=prompt, completion=text_completion(prompt, str(i)), labels=tuple([i / 10] * size))
        for i, size in enumerate(sizes)
    ]
    made = shuffled_steps(items, 0)
    assert [len(item.labels) for item in made] == list(sizes)
    assert [item.completion for item in made] == [item.completion for item in items]
    assert not any(a.labels[0] == b.labels[0] for a, b in zip(items, made, strict=True))
    assert sorted(item.labels[0] for item in made) == sorted(item.labels[0] for item in items)
