"""Does a text say which model wrote it? Asked before answers are handed out: labelers judge blind.

Matched in whole words whatever the case, through Markdown's emphasis, zero-width characters, compatibility forms of
letters (full width, mathematical) and odd hyphens:

- names that mean a model and nothing else: ChatGPT, GPT-4, Qwen2.5-7B, SmolLM, DeepSeek, Mixtral, Vicuna, ...;
- names that mean other things too (Claude, Llama, Gemini, Mistral, Gemma, Phi, ...) only with a version or size ("Llama
  3", "Gemini 1.5 Pro"), after their maker ("Meta's Llama"), as a model ("the Claude model") or where the text speaks of
  itself ("I am Claude", "as Gemini, I"). A text on zoos may mention a llama, one on the sky Gemini;
- the maker of a text that speaks of itself: "I am a language model trained by OpenAI", "my creators at Anthropic";
- the names given, as of a run's checkpoints: paths whole, and names and last parts of paths that are telling, which
  takes five characters or more with a digit, hyphen or underscore among them ("ppo-step-40", not "model").

Sentences are known in English only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from functools import lru_cache

_MAKERS = (
    *("openai", "open ai", "anthropic", "meta", "google", "deepmind", "microsoft", "mistral ai", "alibaba", "deepseek"),
    *("hugging face", "huggingface", "xai", "cohere", "amazon", "nvidia", "ibm", "apple", "stability ai", "ai21"),
    *("ai2", "databricks", "zhipu", "moonshot", "baidu", "tencent", "eleutherai", "nous research", "allen ai"),
)
_AMBIGUOUS = (
    *("gpt", "claude", "llama", "gemini", "mistral", "gemma", "phi", "grok", "bard", "alpaca", "dolly", "command r"),
    *("kimi", "ernie", "copilot", "falcon"),
)
_MAKER = rf"(?:{'|'.join(_MAKERS)})(?: (?:ai|platforms|cloud|labs|deepmind))?"
_NAME = rf"(?:{'|'.join(_AMBIGUOUS)})"
_EDITION = (
    r"(?:opus|sonnet|haiku|instant|pro|ultra|nano|nemo|flash|advanced|instruct|chat|large|medium|small|mini|turbo|base)"
)
_VERSION = r"v?\d+(?:\.\d+)*(?:x\d+)?[bmko]?"
_REST = rf"(?:[- ]?{_VERSION}\b|[- ]{_EDITION}\b)*"
_KIND = r"(?:ai|language model|models?|assistant|chat ?bot|llm)"
_MADE = r"(?:trained|created|developed|made|built|designed|fine-?tuned|released) by (?:the )?(?:\w+ at )?"
_ALONE = {  # a model's, whatever stands around it; by a part that is always in it
    "gpt": r"(?:chat|instruct|dialo|distil)-?gpt|gpt[- ]?\d+(?:\.\d+)?o?|gpt-(?:j|neo|oss)",
    "qw": r"qwen|qwq",
    "lm": r"smol-?v?lm|wizard-?lm|chat-?glm|intern-?lm|stable-?lm|open-?elm",
    "deep": r"deep-?seek",
    "stral": rf"mixtral|codestral|ministral|mistral[- ](?:\d+b|v\d|{_EDITION}\b)",
    "llama": rf"(?:tiny|code)-?llama|llama[- ]?(?:{_VERSION}|{_EDITION}\b)",
    "vicuna": "vicuna",
    "baichuan": "baichuan",
    "coder": "star-?coder",
    "nemotron": "nemotron",
    "minicpm": "minicpm",
    "command": r"command[- ]r(?:-?plus|\+)",
    "claude": rf"claude[- ]?(?:{_VERSION}|{_EDITION}\b)",
    "gem": rf"gemma[- ]?(?:{_VERSION}|{_EDITION}\b)|gemini[- ](?:\d\.\d|(?:\d )?{_EDITION}\b)",  # Gemini 8 flew in 1966
    "grok": rf"grok[- ]?(?:{_VERSION}|{_EDITION}\b)",
    "phi": r"phi-\d(?:\.\d)?-(?:mini|small|medium|moe|vision)\b",
}
_SIZED = ("falcon", "alpaca", "dolly", "orca", "pythia", "opt-", "bloom", "yi-", "zephyr", "olmo", "koala", "phi")
_OTHERS = (  # what must be in the text, of which one, and the pattern
    (_SIZED, rf"(?:{'|'.join(name.rstrip('-') for name in _SIZED)})-?\d+(?:\.\d+)?[bm]"),
    (_AMBIGUOUS, rf"{_NAME} {_KIND}|as {_NAME},? i"),
    (_AMBIGUOUS, rf"(?:i am|i'm|my name is|i go by|call me|i am called|{_KIND},? (?:called|named)) {_NAME}"),
    (_MAKERS, rf"{_MAKER}(?:'s)? (?:{_NAME}|palm|lamda|nova|titan|orca|granite|olmo|command|pi){_REST}|mistral ai"),
    (
        _MAKERS,
        rf"(?:i am|i'm|i was|i've been|i have been) (?:[^.!?\n]{{0,80}}\b{_KIND}\b[^.!?\n]{{0,60}} )?{_MADE}{_MAKER}",
    ),
    (_MAKERS, rf"as an? (?:[^.!?\n]{{0,40}} )?{_KIND}\b[^.!?\n]{{0,40}} {_MADE}{_MAKER}"),
    (_MAKERS, rf"my (?:creators?|makers?|developers?)\b[^.!?\n]{{0,20}} {_MAKER}"),
    (_MAKERS, rf"{_MAKER} (?:has |have )?(?:trained|created|made|built) me"),
    (_MAKERS, rf"i(?: am|'m) an? (?:[^.!?\n]{{0,40}} )?{_KIND},? (?:from|of|by) {_MAKER}"),
)
_PATTERNS = tuple(
    (needed, re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE))
    for needed, pattern in (*(((part,), f"(?:{name}){_REST}") for part, name in _ALONE.items()), *_OTHERS)
)
_TELLING = re.compile(r"(?=.*[^\W\d_])(?=.*[\d_-]).{5,}")
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-") | {ord("\u2019"): "'"}
_MARKUP = re.compile(r"[*`~\"\u201c\u201d]|(?<!\w)_+|_+(?!\w)")


def names_a_model(text: str, names: Collection[str]) -> str | None:
    """The first phrase of the text that tells which model wrote it, as described above, else None. `names`: names and
    paths of the models and checkpoints at hand."""
    flat = flattened(text)
    low = flat.lower()
    patterns = [pattern for needed, pattern in (*_given(frozenset(names)), *_PATTERNS) if any(n in low for n in needed)]
    found = [match for pattern in patterns if (match := pattern.search(flat))]
    return min(found, key=lambda match: match.start())[0] if found else None


def flattened(text: str) -> str:
    """The text as its words read: without emphasis, quotation marks and what is invisible; spaces and hyphens plain."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_DASHES)
        text = "".join(c for c in text if c.isascii() or unicodedata.category(c) not in ("Cf", "Mn", "Me"))
    return re.sub(r"[ \t\xa0]+", " ", _MARKUP.sub("", text))


@lru_cache(maxsize=64)
def _given(names: frozenset[str]) -> list[tuple[tuple[str, ...], re.Pattern[str]]]:
    forms = {form for name in names for form in _forms(flattened(name).replace("\\", "/").strip(" /").lower())}
    return [((form,), re.compile(rf"(?<!\w){re.escape(form)}(?!\w)", re.IGNORECASE)) for form in sorted(forms)]


def _forms(name: str) -> Iterator[str]:
    if "/" in name:
        yield name
    last = name.rpartition("/")[2]
    if _TELLING.fullmatch(last):
        yield last
