"""Language consistency: which share of an answer's words is of the wanted language (DeepSeek-R1, arXiv 2501.12948,
section 2.3.2), told by script and by stop words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from prefloop.rewards.refusals import WORD
from prefloop.types import Completion, PrefloopError, Prompt, Score

PREFIX = "language="
SCRIPTS = {
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "ar": ("ARABIC",),
    "fa": ("ARABIC",),
    "hi": ("DEVANAGARI",),
    "th": ("THAI",),
    "ko": ("HANGUL",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK", "IDEOGRAPHIC"),
    "zh": ("CJK", "IDEOGRAPHIC"),
}
"""Scripts of the languages that are told by script alone, as Unicode names the letters."""
STOP_WORDS = {
    "en": "the of and to in is that it was for on are with as his they be at this have from or had by but not what all",
    "de": "der die das und ist nicht ein eine zu den mit von auf für dem sich auch es im als wie wir ich sie aber oder",
    "fr": "le la les et est un une des du que qui dans pour pas sur avec ce il elle nous vous au par plus sont mais ou",
    "es": "el la los las y es un una de que en por con para no se del al lo como más pero su sus este está son o",
    "it": "il lo la gli le e è un una di che in per con non si del della sono come più ma anche questo nel alla o",
    "pt": "o a os as e é um uma de que em por com para não se do da no na como mais mas ao dos das são ou",
    "nl": "de het een en is niet van te dat op aan met voor er zijn maar om ook als dan nog wel bij uit naar of",
}
"""Frequent words of the languages in Latin script, by which each is told."""
ALSO = {
    "en": "a do no die come plus per son pour den met con van dan par um",
    "de": "in was des du um er da all per plus",
    "fr": "de en a on y as se son es si ma non te met or dos os",
    "es": "a e te si le les van come dos mas da dan den par os das di",
    "it": "a da se no al su te do all plus",
    "pt": "la lo te si este está par",
    "nl": "was in had die den der des na al per plus wie pas la les los das",
}
"""Words of each that are frequent in another of them."""
_STOPS = {language: frozenset(words.split()) for language, words in STOP_WORDS.items()}
_OWN = {language: _STOPS[language] | frozenset(words.split()) for language, words in ALSO.items()}
_DIGIT = re.compile(r"\d")


def language(wanted: str) -> Callable[[Sequence[Prompt], Sequence[Completion]], list[Score]]:
    """The reward "language=CODE": 1 less the share of foreign words. A word is foreign where a letter of it is of
    another script, or, in Latin script, where it is a frequent word of another of these and none of the wanted one.
    Digits count for nothing, nor do words in Latin script that have some; an answer without words scores 0.
    PrefloopError for an unknown code."""
    if wanted not in SCRIPTS and wanted not in _STOPS:
        raise PrefloopError(f"{PREFIX}{wanted}: unknown language; take one of {', '.join([*STOP_WORDS, *SCRIPTS])}.")

    def score(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        return [Score(value=share(c.text, wanted), by=f"{PREFIX}{wanted}") for c in completions]

    return score


def share(text: str, wanted: str) -> float:
    """The share of the text's words that are not foreign to a language."""
    text = unicodedata.normalize("NFC", text).lower()
    if wanted in SCRIPTS:  # of which some have no spaces, so that a digit would take its whole clause along
        text = _DIGIT.sub(" ", text)
    words = [word for word in WORD.findall(text) if not _DIGIT.search(word)]
    return sum(not _foreign(word, wanted) for word in words) / len(words) if words else 0.0


def _foreign(word: str, wanted: str) -> bool:
    scripts = SCRIPTS.get(wanted, ("LATIN",))
    if any(letter.isalpha() and not unicodedata.name(letter, "").startswith(scripts) for letter in word):
        return True
    return wanted in _OWN and word not in _OWN[wanted] and any(word in stops for stops in _STOPS.values())
