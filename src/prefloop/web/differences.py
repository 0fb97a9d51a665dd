"""Two similar answers with the words marked that only one of them has."""

from __future__ import annotations

import re
from collections import Counter
from difflib import SequenceMatcher
from itertools import accumulate, islice

from markupsafe import Markup

from prefloop.web.visible import visible

_MOST_WORDS = 4_000  # of each text
_MOST_STEPS = 1_000_000  # words, and pairs of equal words, that the comparison looks at
_SIMILAR = 0.5  # share of words in common from which marks help more than they confuse
_WORD = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")


def differences(a: str, b: str) -> tuple[Markup, Markup]:
    """Both texts, escaped and not as Markdown: words that only `a` has in <del>, those of `b` in <ins>. Spaces between
    words do not count. Without marks where the comparison would take too long."""
    words = _words(a), _words(b)
    common = _in_common(_bare(words[0]), _bare(words[1])) if _comparable(*words) else None
    if common is None:
        return visible(a), visible(b)
    left, right = Markup(""), Markup("")
    i = j = 0
    for start_a, start_b, length in [*common, (len(words[0]), len(words[1]), 0)]:
        left += _marked("del", words[0][i:start_a]) + visible("".join(words[0][start_a : start_a + length]))
        right += _marked("ins", words[1][j:start_b]) + visible("".join(words[1][start_b : start_b + length]))
        i, j = start_a + length, start_b + length
    return left, right


def similar(a: str, b: str) -> bool:
    """Whether marks would help: the texts differ, are not too long and have half of their words in common."""
    words = _words(a), _words(b)
    common = (Counter(_bare(words[0])) & Counter(_bare(words[1]))).total()
    return a != b and _comparable(*words) and common >= _SIMILAR * sum(map(len, words)) / 2


def _words(text: str) -> list[str]:
    return [match[0] for match in islice(_WORD.finditer(text), _MOST_WORDS + 1)]


def _comparable(a: list[str], b: list[str]) -> bool:
    return max(len(a), len(b)) <= _MOST_WORDS


def _bare(words: list[str]) -> list[str]:
    return [word.rstrip() for word in words]


def _in_common(a: list[str], b: list[str]) -> list[tuple[int, int, int]] | None:
    """Stretches of equal words in order: where in a, where in b, how long; None after too many steps. As difflib finds
    them, whose own loop, cubic at worst, cannot be stopped."""
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    counts = Counter(b)
    cost = [0, *accumulate(4 + counts[word] for word in a)]
    found, waiting, steps = [], [(0, len(a), 0, len(b))], 0
    while waiting:
        low_a, high_a, low_b, high_b = waiting.pop()
        steps += cost[high_a] - cost[low_a]
        if steps > _MOST_STEPS:
            return None
        i, j, length = matcher.find_longest_match(low_a, high_a, low_b, high_b)
        if length:
            found.append((i, j, length))
            waiting += [(low_a, i, low_b, j), (i + length, high_a, j + length, high_b)]
    return sorted(found)


def _marked(tag: str, words: list[str]) -> Markup:
    return Markup("<{0}>{1}</{0}>").format(tag, visible("".join(words))) if words else Markup("")
