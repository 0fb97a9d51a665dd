"""The shipped prompts and demonstrations: enough of them, apart from one another, and good by their own rubric."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from prefloop.data.audit import duplicates, shared_ngrams
from prefloop.data.sources import load_demonstrations, load_prompts
from prefloop.rewards.rubric import rubric, score_text
from prefloop.types import Prompt

SLICES = {
    "everyday",
    "explanation",
    "writing",
    "factual",
    "format",
    "unsafe",
    "safe_lookalike",
    "false_premise",
    "unanswerable",
}
PROMPTS = load_prompts("builtin")
DEMONSTRATIONS = load_demonstrations("builtin")
SPLITS = ("train", "dev", "eval")


def asked(prompt: Prompt) -> str:
    return "\n".join(message.content for message in prompt.messages)


def test_there_are_enough() -> None:
    assert len(PROMPTS) >= 360 and len(DEMONSTRATIONS) >= 100
    assert {prompt.slice for prompt in PROMPTS} == SLICES == {d.prompt.slice for d in DEMONSTRATIONS}
    counts = Counter((prompt.split, prompt.slice) for prompt in PROMPTS)
    assert {split for split, _ in counts} == set(SPLITS)
    assert sum(n for (split, _), n in counts.items() if split == "eval") >= 120
    assert min(counts[split, name] for split in SPLITS for name in SLICES) >= 3


def test_names_and_texts_are_unique() -> None:
    names = [p.id for p in PROMPTS] + [d.prompt.id for d in DEMONSTRATIONS] + [d.id for d in DEMONSTRATIONS]
    assert len(set(names)) == len(names)
    assert duplicates([asked(prompt) for prompt in PROMPTS]) == []
    assert duplicates([d.completion for d in DEMONSTRATIONS]) == []


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_splits_share_no_five_words(one: str, other: str) -> None:
    texts = {split: [asked(prompt) for prompt in PROMPTS if prompt.split == split] for split in (one, other)}
    assert shared_ngrams(texts[one], texts[other]) == set()


@pytest.mark.parametrize("split", ["dev", "eval"])
def test_demonstrations_know_nothing_of_the_prompts_that_measure(split: str) -> None:
    held = [asked(prompt) for prompt in PROMPTS if prompt.split == split]
    assert {d.prompt.split for d in DEMONSTRATIONS} == {"train"}
    assert shared_ngrams([asked(d.prompt) for d in DEMONSTRATIONS], held) == set()


def test_every_check_is_known() -> None:
    """The rubric refuses unknown checks and values out of range."""
    for prompt in [*PROMPTS, *(d.prompt for d in DEMONSTRATIONS)]:
        assert prompt.checks, prompt.id
        score_text(prompt, "A plain answer.")


def test_demonstrations_are_good_by_the_rubric_but_for_the_pleasantries_of_a_writer() -> None:
    """Over a third greet and sign off, which the rubric's people dislike: that is left for the loop to find out."""
    found = {d.id: score_text(d.prompt, d.completion) for d in DEMONSTRATIONS}
    plain = {name: score.value for name, score in found.items() if score.parts["no_boilerplate"] == 1.0}
    chatty = {name: score.value for name, score in found.items() if name not in plain}
    assert {name: value for name, value in plain.items() if value <= 0.75} == {}
    assert {name: value for name, value in chatty.items() if not 0.25 < value < 0.6} == {}
    assert 1 / 3 < len(chatty) / len(found) < 1 / 2
    swapped = [
        score_text(d.prompt, DEMONSTRATIONS[(i + len(DEMONSTRATIONS) // 2) % len(DEMONSTRATIONS)].completion).value
        for i, d in enumerate(DEMONSTRATIONS)
    ]
    assert sum(swapped) / len(swapped) < sum(chatty.values()) / len(chatty) - 0.1
    assert rubric([], []) == []
