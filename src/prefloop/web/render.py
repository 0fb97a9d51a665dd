"""Markdown of people and models as safe HTML: prompts, answers, guidelines.

What the text says stays visible: HTML, the addresses and titles of images and links, and the words beside a code
block's language show as text; odd characters are spelled out. Definitions of link targets ([a]: address), which
Markdown would hide, show too and are not followed. A text of which Markdown would drop something shows as it was
written.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate

from markdown_it import MarkdownIt
from markdown_it.common.utils import unescapeAll
from markdown_it.renderer import RendererProtocol
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup

from prefloop.web.allowed import cleaned
from prefloop.web.code import highlighted
from prefloop.web.maths import formulas, is_prose, mathml
from prefloop.web.visible import oddities, spelled, visible

# Rendering takes at most 200 ms of processor time, whatever the text: each of these takes a share of it.
_MOST_CHARACTERS = 40_000
_MOST_LINES = 1_500
_MOST_CELLS = 1_500  # of all tables
_MOST_ROWS_READ = 5_000
_MOST_WORK = 7_000  # pieces of Markdown, and twice the characters that may mean something in it
_MOST_STEPS = 200_000  # of one search for what closes a bracket or formula after the other
_MOST_DEPTH = 20
_MOST_ODD = 1_000
_MOST_LATEX = 3_000  # characters, and 10 for each formula
_COLOUR_SECONDS = 0.04

_CHUNK = 10_000
_HEAD = 3_000  # characters of a long answer that show before it is unfolded
_LINE = 60  # characters that a block counts as at least
_SIGNS = re.compile(r"[!#$%&*+\-:<=>@\[\\\]^_`{}~]")
_ADDRESS = re.compile(r"https?://.|mailto:.", re.IGNORECASE)
_CLOSING = {"\\(": "\\)", "\\[": "\\]"}
_NOTE = Markup('<p class="note">Shown as plain text: too long or too tangled for Markdown.</p>\n')


def markdown(text: str) -> Markup:
    """The text as HTML. What is too long or too tangled for Markdown shows as plain text in chunks, and says so."""
    blocks, safe = _blocks(text)
    return safe("".join(html for _, html in blocks))


def folded(text: str) -> tuple[Markup, Markup]:
    """The same in two parts, cut between blocks: about the first 3,000 characters, and the rest to unfold. The rest is
    empty where it would be short."""
    blocks, safe = _blocks(text)
    sizes = [size for size, _ in blocks]
    cut = max(1, sum(total <= _HEAD for total in accumulate(sizes)))
    if sum(sizes[cut:]) < _HEAD // 2:
        cut = len(blocks)
    head, rest = ("".join(html for _, html in part) for part in (blocks[:cut], blocks[cut:]))
    return safe(head), safe(rest)


class _TangledError(Exception):
    """Markdown would take too long, or drop part of the text."""


def _blocks(text: str) -> tuple[list[tuple[int, str]], Callable[[str], Markup]]:
    """The top-level blocks, each about how many characters it shows and its HTML, and what makes that safe to show."""
    try:
        return list(_rendered(text)), cleaned
    except _TangledError:
        return list(_chunks(text)), Markup


def _rendered(text: str) -> Iterator[tuple[int, str]]:
    lines = text.count("\n")
    if len(text) > _MOST_CHARACTERS or lines > _MOST_LINES or lines * text.count("$$") > _MOST_STEPS:
        raise _TangledError
    if oddities(text) > _MOST_ODD:
        raise _TangledError
    md = _parser()
    env: EnvType = {"rows_read": 0, "cells": 0, "latex": 0, "seconds": _COLOUR_SECONDS}
    block: list[Token] = []
    for token in md.parse(text, env):
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            size = sum(max(len(part.content), _LINE) for part in block if part.content)
            yield size, md.renderer.render(block, md.options, env)
            block = []


def _chunks(text: str) -> Iterator[tuple[int, str]]:
    """Escaped; cleaning so much would take too long."""
    text = spelled(text)
    note, start = _NOTE, 0
    while start < len(text):
        end = start + _CHUNK
        if end < len(text):
            end = max(text.rfind("\n", start, end), text.rfind(" ", start, end), start) + 1
            end = end if end > start + 1 else start + _CHUNK
        yield end - start, note + Markup('<p class="chunk" dir="auto">{}</p>\n').format(text[start:end])
        note, start = Markup(""), end


class _Markdown(MarkdownIt):
    def validateLink(self, url: str) -> bool:  # noqa: N802 (markdown-it's own name)
        return bool(_ADDRESS.match(url))


@cache
def _parser() -> MarkdownIt:
    md = _Markdown("commonmark", {"html": False, "breaks": True, "maxNesting": _MOST_DEPTH})
    md.enable(["table", "strikethrough"]).disable(["reference", "html_block", "html_inline"])
    md.use(formulas)
    md.core.ruler.at("normalize", _normalize)
    md.core.ruler.after("block", "blocks", _check_blocks)
    md.block.ruler.at("table", _table, {"alt": ["paragraph"]})
    for name in ("math_inline", "math_inline_double", "math_block"):
        md.add_render_rule(name, _formula)
    for name, rule in {"text": _text, "code_inline": _code_inline, "code_block": _fence, "fence": _fence}.items():
        md.add_render_rule(name, rule)
    for name, rule in {"link_open": _link_open, "link_close": _link_close, "image": _image}.items():
        md.add_render_rule(name, rule)
    return md


def _normalize(state: StateCore) -> None:
    """Ends of lines only: markdown-it's own rule also hides NUL."""
    state.src = state.src.replace("\r\n", "\n").replace("\r", "\n")


def _check_blocks(state: StateCore) -> None:
    """Between blocks and their words: refuse what would take too long, and take what the page sets itself."""
    work, steps = len(state.tokens), 0
    for token in state.tokens:
        if token.level >= _MOST_DEPTH - 1:  # markdown-it drops what is nested deeper
            raise _TangledError
        if token.type == "inline":
            work += 2 * len(_SIGNS.findall(token.content))
            steps += _bracket_steps(token.content)
        token.attrs.pop("style", None)
        if token.type.startswith("heading"):  # the page's own are h1 to h3
            token.tag = f"h{min(6, int(token.tag[1]) + 3)}"
        if token.type == "list_item_open" and token.info.isdecimal():  # the number that the text says
            token.attrSet("value", token.info)
        if token.level == 0 and token.nesting == 1:
            token.attrSet("dir", "auto")
    if work > _MOST_WORK or steps > _MOST_STEPS:
        raise _TangledError


def _bracket_steps(text: str) -> int:
    """Characters that markdown-it reads to find the closing bracket of every opening one."""
    steps = 0
    opened: list[int] = []
    for match in re.finditer(r"[\[\]]", text):
        if match[0] == "[":
            opened.append(match.start())
        elif opened:
            steps += match.start() - opened.pop()
    return steps + sum(len(text) - start for start in opened)


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A table, but not one with a row longer than its header, whose last cells would be dropped."""
    if not table(state, start, end, True):
        return False
    columns = _cells(state, start)
    for row in range(start, end):
        if state.isEmpty(row):
            break
        state.env["rows_read"] += 1
        if state.env["rows_read"] > _MOST_ROWS_READ:
            raise _TangledError
        if _cells(state, row) > columns:
            return False
    if not silent:
        state.env["cells"] += columns * (row - start + 1)
        if state.env["cells"] > _MOST_CELLS:
            raise _TangledError
    return silent or table(state, start, end, False)


def _cells(state: StateBlock, line: int) -> int:
    text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].strip()
    bars = [match.start() for match in re.finditer(r"(?<!\\)\|", text)]
    return len(bars) + 1 - (0 in bars[:1]) - (len(text) - 1 in bars[-1:] and len(text) > 1)


_Rule = tuple[RendererProtocol, Sequence[Token], int, OptionsDict, EnvType]


def _text(_: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    return visible(tokens[index].content)


def _code_inline(_: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    return Markup("<code>{}</code>").format(visible(tokens[index].content))


def _fence(_: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    info = unescapeAll(tokens[index].info).strip()
    started = time.thread_time()
    code = highlighted(tokens[index].content, info.partition(" ")[0], env["seconds"])
    env["seconds"] -= time.thread_time() - started
    block = Markup('<pre class="code" dir="ltr"><code>{}</code></pre>\n').format(code)
    return Markup("<figure><figcaption>{}</figcaption>{}</figure>\n").format(visible(info), block) if info else block


def _formula(_: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    token = tokens[index]
    if token.markup == "$" and is_prose(token.content):
        return visible(f"${token.content}$")
    env["latex"] += len(token.content) + 10
    made = mathml(token.content, display=token.type != "math_inline") if env["latex"] <= _MOST_LATEX else None
    if made is None:
        source = token.markup + token.content + _CLOSING.get(token.markup, token.markup)
        made = Markup('<code class="latex">{}</code>').format(visible(source))
    return Markup("<p>{}</p>\n").format(made) if token.block else made


def _link_open(_: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    return Markup('<a href="{}">').format(tokens[index].attrs["href"])


def _link_close(_: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    opening = next(i for i in range(index, -1, -1) if tokens[i].type == "link_open")
    attributes = tokens[opening].attrs
    label = "".join(token.content for token in tokens[opening + 1 : index])
    if not label.strip():  # a link without a name cannot be read aloud
        return Markup("{}</a>").format(_address(attributes, "href"))
    if label in (attributes["href"], str(attributes["href"]).removeprefix("mailto:")) and "title" not in attributes:
        return "</a>"
    return Markup('</a> <span class="address">({})</span>').format(_address(attributes, "href"))


def _image(_: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    token = tokens[index]
    return Markup('<span class="image">[image: {}, {}]</span>').format(
        visible(token.content), _address(token.attrs, "src")
    )


def _address(attributes: dict[str, str | int | float], name: str) -> Markup:
    title = f' "{attributes["title"]}"' if "title" in attributes else ""
    return visible(f"{attributes[name]}{title}")
