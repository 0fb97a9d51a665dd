"""Where the steps of an answer end, on its own tokens, and which of their labels count."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

from prefloop.data.chat import Tokenizer, decode
from prefloop.types import PrefloopError

RULES = {
    "lines": r"\n",
    "paragraphs": r"\n[ \t\r]*\n",
    "numbered": r"^(?=[ \t]*Step \d+\b)",
}
"""A step ends with each match. Others: "regex:PATTERN" of the user's own (multi-line), and "token:ID"."""
_CONTEXT = 8


def step_ends(tokens: Sequence[int], rule: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Places of the last tokens of an answer's steps, in order. `tokens`: the answer's, at least one.

    A step ends with the token that completes a match of the rule, or that has its id; the last one with the answer's
    last token (a stop token, where there is one). What holds nothing but space is no step: it belongs to the one after
    it, or at the end to the last one. Raises PrefloopError for an unknown rule.
    """
    kind, _, given = rule.partition(":")
    if kind == "token" and given.isdecimal():
        found = [place for place, token in enumerate(tokens) if token == int(given)]
    else:
        pattern = _pattern(rule)
        cuts = [match.end() for match in pattern.finditer(decode(tokenizer, tokens))]
        found = _completed(tokens, cuts, tokenizer)
    ends: list[int] = []
    start = 0
    for end in found:
        if decode(tokenizer, tokens[start : end + 1]).strip():
            ends.append(end)
            start = end + 1
    if ends and not decode(tokenizer, tokens[start:]).strip():
        ends.pop()
    return (*ends, len(tokens) - 1)


def _completed(tokens: Sequence[int], cuts: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Places of the tokens that complete so many characters (rising). Only what follows the last one is decoded, behind
    a few tokens, since some tokenizers write the first of a text otherwise; a character begun decodes to U+FFFD."""
    places: list[int] = []
    start, known = 0, 0  # tokens, and the characters that they complete
    for cut in cuts:
        before = max(0, start - _CONTEXT)
        overlap = _length(tokens[before:start], tokenizer)

        def size(end: int, before: int = before, known: int = known - overlap) -> int:
            return known + _length(tokens[before:end], tokenizer)

        last = start + _CONTEXT
        while last < len(tokens) and size(last) < cut:
            last += last - start
        window = range(start, min(last, len(tokens)) + 1)
        start += bisect_left(window, cut, key=size)
        known = size(start)
        places.append(start - 1)
    return places


def _length(tokens: Sequence[int], tokenizer: Tokenizer) -> int:
    return len(decode(tokenizer, tokens).rstrip("\ufffd"))


def _pattern(rule: str) -> re.Pattern[str]:
    own = rule.removeprefix("regex:")
    if own == rule and rule not in RULES:
        raise PrefloopError(
            f"Unknown rule for steps {rule!r}: give {', '.join(RULES)}, 'regex:PATTERN', or 'token:ID' with a number."
        )
    try:
        return re.compile(RULES.get(rule, own), re.MULTILINE)
    except re.error as error:
        raise PrefloopError(f"The rule for steps {rule!r} is no regular expression: {error}.") from None


def to_first_error(labels: Sequence[float | None]) -> tuple[float | None, ...]:
    """Labels of steps in order, those after the first 0 taken away: what follows an error is neither right nor wrong
    (Lightman et al. 2023, arXiv 2305.20050, section 2.6)."""
    end = labels.index(0.0) + 1 if 0.0 in labels else len(labels)
    return (*labels[:end], *[None] * (len(labels) - end))
