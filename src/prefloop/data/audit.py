"""What can be wrong with a set of texts: overlap between splits, copies, odd lengths."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

_WORD = re.compile(r"\w+(?:'\w+)*")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("\u2019", "'"))


def _ngrams(texts: Iterable[str], n: int) -> set[str]:
    return {" ".join(words[i : i + n]) for words in map(_words, texts) for i in range(len(words) - n + 1)}


def shared_ngrams(a_texts: Iterable[str], b_texts: Iterable[str], n: int = 5) -> set[str]:
    """Runs of `n` words, lower-case and without punctuation, that occur on both sides: how contamination is looked for
    (Brown et al. 2020, appendix C, with 13 words)."""
    return _ngrams(a_texts, n) & _ngrams(b_texts, n)


def duplicates(texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Groups of two or more indices whose texts have the same words, but for case and punctuation, in order."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, text in enumerate(texts):
        groups.setdefault(tuple(_words(text)) or (text.strip(),), []).append(index)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def length_summary(texts: Sequence[str]) -> Mapping[str, float]:
    """Number of texts, and mean, median, least and most words (split at white space); all 0 without texts."""
    counts = [len(text.split()) for text in texts] or [0]
    return {
        "n": len(texts),
        "mean": statistics.fmean(counts),
        "median": statistics.median(counts),
        "min": min(counts),
        "max": max(counts),
    }
