"""Source code in colours, as CSS classes for one light and one dark theme."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from itertools import groupby

from markupsafe import Markup
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES, Error, Whitespace, _TokenType

from prefloop.web.visible import visible

_PREFIX = "hl-"
_MOST_CHARACTERS = 20_000
_LIGHT, _DARK = "default", "github-dark"  # both with a contrast of 4.5 or more throughout
_LEXERS = {  # those whose every single step is quick on hostile code of 20,000 characters
    **dict.fromkeys(("python", "py", "python3"), "python"),
    **dict.fromkeys(("javascript", "js", "jsx"), "javascript"),
    **dict.fromkeys(("typescript", "ts", "tsx"), "typescript"),
    **dict.fromkeys(("bash", "sh", "shell", "zsh", "console"), "bash"),
    **dict.fromkeys(("cpp", "c++"), "cpp"),
    **dict.fromkeys(("csharp", "c#", "cs"), "csharp"),
    **dict.fromkeys(("rust", "rs"), "rust"),
    **dict.fromkeys(("ruby", "rb"), "ruby"),
    **dict.fromkeys(("go", "golang"), "go"),
    **dict.fromkeys(("yaml", "yml"), "yaml"),
    **dict.fromkeys(("xml", "html", "svg"), "xml"),  # that for HTML takes long over styles
    **{name: name for name in ("c", "java", "css", "sql", "json", "toml", "diff")},
}
CLASSES = frozenset(_PREFIX + short for short in STANDARD_TYPES.values() if short)
"""Every class that coloured code can have."""


def highlighted(code: str, language: str, seconds: float) -> Markup:
    """The code with its words in `<span class="hl-...">`; plain where the language is unknown, the code is longer than
    20,000 characters or takes more than `seconds` of processor time: lexers are not linear, and nothing tells which
    code is slow but trying."""
    name = _LEXERS.get(language.lower())
    if name is None or len(code) > _MOST_CHARACTERS:
        return visible(code)
    lexer = _lexer(name)
    until = time.thread_time() + seconds
    words: list[tuple[str, str]] = []
    for _, kind, word in lexer.get_tokens_unprocessed(code):
        if time.thread_time() > until:
            return visible(code)
        words.append((_class(kind), word))
    if "".join(word for _, word in words) != code:
        return visible(code)
    return Markup("").join(_spans(words))


def highlight_css() -> str:
    """Rules for the classes inside elements of class `code`, by the reader's colour scheme."""
    return "\n".join(
        f"@media (prefers-color-scheme: {scheme}) {{\n{_rules(style)}\n}}"
        for scheme, style in (("light", _LIGHT), ("dark", _DARK))
    )


def _rules(style: str) -> str:
    formatter = HtmlFormatter(style=style, classprefix=_PREFIX)
    return "\n".join([*formatter.get_background_style_defs(".code"), *formatter.get_token_style_defs(".code")])


def _spans(words: list[tuple[str, str]]) -> Iterator[Markup]:
    for name, run in groupby(words, key=lambda word: word[0]):
        text = visible("".join(word for _, word in run))
        yield Markup('<span class="{}">{}</span>').format(_PREFIX + name, text) if name else text


def _class(kind: _TokenType) -> str:
    if kind in Error or kind in Whitespace:
        return ""
    return str(next(STANDARD_TYPES[part] for part in reversed(kind.split()) if part in STANDARD_TYPES))


@cache
def _lexer(name: str) -> Lexer:
    return get_lexer_by_name(name)
