"""Answers in tags: whether an answer has the form <think>...</think> <answer>...</answer>, and rewards that read the
inside of the answer tag alone (DeepSeek-R1, arXiv 2501.12948, section 2.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from prefloop.types import Completion, Prompt, Score

PREFIX = "tagged="
_TAG = re.compile(r"</?(?:think|answer)>")
_FORMS = (["<answer>", "</answer>"], ["<think>", "</think>", "<answer>", "</answer>"])


def answer_in_tag(text: str) -> str | None:
    """What the answer tag holds; None unless the text is one answer tag, with at most one think tag before it, nothing
    beside the two, and no other of these tags anywhere."""
    marks = list(_TAG.finditer(text))
    if [mark[0] for mark in marks] not in _FORMS:
        return None
    edges = [text[: marks[0].start()], text[marks[-1].end() :]]
    between = [text[marks[i].end() : marks[i + 1].start()] for i in range(1, len(marks) - 1, 2)]
    return None if any(part.strip() for part in edges + between) else text[marks[-2].end() : marks[-1].start()].strip()


def format(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """1 where the answer ended by itself and has the form, whatever it says in it."""
    return [
        Score(value=float(c.finish_reason == "stop" and bool(answer_in_tag(c.text))), by="format") for c in completions
    ]


def tagged(
    reward: Callable[[Sequence[Prompt], Sequence[Completion]], list[Score]],
) -> Callable[[Sequence[Prompt], Sequence[Completion]], list[Score]]:
    """`reward` of what the answer tag holds: an answer without the form is empty to it, and so is one that was cut off.
    What stands in think is not read, so that listing answers there wins nothing."""

    def score(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        whole = [(c.finish_reason == "stop" and answer_in_tag(c.text)) or "" for c in completions]
        pairs = zip(completions, whole, strict=True)  # what stands there was not sampled as an answer: it has no tokens
        return reward(prompts, [replace(c, text=text, segments=(), finish_reason="stop") for c, text in pairs])

    return score
