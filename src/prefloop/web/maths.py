"""LaTeX formulas in Markdown as MathML: $a$, $$a$$, \\(a\\) and \\[a\\]."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markupsafe import Markup, escape
from mdit_py_plugins.dollarmath import dollarmath_plugin

from prefloop.web.visible import spelled

ELEMENTS = frozenset(
    {
        *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "mstyle", "menclose"),
        *("msub", "msup", "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd"),
    }
)
"""What a formula is made of. Neither links nor anything that hides, moves or colours its content."""
ATTRIBUTES = frozenset(
    {
        *("display", "displaystyle", "scriptlevel", "mathvariant", "stretchy", "fence", "form", "separator", "accent"),
        *("movablelimits", "largeop", "lspace", "rspace", "minsize", "maxsize", "width", "linethickness", "notation"),
        *("columnalign", "columnlines", "columnspacing", "rowlines", "rowspacing"),
    }
)
_MOST_CHARACTERS = 2000
_MOST_BRACES = 40  # open at once
_MOST_SCRIPTS = 5  # inside one another; each is smaller
# Commands that define, link, hide, move, colour or resize, whose argument is not shown, or that browsers do not draw.
_UNSHOWABLE = re.compile(
    r"""\\(?:newcommand|newenvironment|def|DeclareMathOperator|href|class|style|[hv]?phantom|(?:math)?strut|smash|unicode|verb
    |sideset|skew|rule|(?:text)?color|f?colorbox|raise|lower|move(?:left|right)|shove(?:left|right)|(?:math)?[lrc]lap|genfrac
    |[hm]?skip|[hm]space|m?kern|mskip|above|abovewithdelims|leftroot|uproot|mathchoice
    |[bx]?cancel|sout)(?![A-Za-z])|(?<!\\)(?:\\\\)*%""",
    re.VERBOSE,
)
_ENVIRONMENTS = {  # as what latex2mathml knows; none counts its equations, which the text does not
    **dict.fromkeys(("aligned", "align", "eqnarray", "eqnarray*"), "align*"),
    **dict.fromkeys(("gather", "gather*", "gathered"), "matrix"),
    "dcases": "cases",
}
_ENVIRONMENT = re.compile(rf"\\(begin|end)\{{({'|'.join(map(re.escape, _ENVIRONMENTS))})\}}")
_SCRIPTS = ("msub", "msup", "msubsup", "munder", "mover", "munderover")
_TWO_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,},?\s+[A-Za-z]{2,}")
_WORDING = re.compile(r"\\(?:text[a-z]*|mbox|hbox|mathrm|operatorname)\s*\{[^{}]*\}")
_CODE_POINT = re.compile("&#x([0-9A-Fa-f]{1,6});")  # how latex2mathml writes symbols


def formulas(md: MarkdownIt) -> None:
    """Plugin: tokens math_inline, math_inline_double and math_block, with the LaTeX as content and markup around it."""
    dollarmath_plugin(
        md, allow_labels=False, allow_space=False, allow_digits=False, allow_blank_lines=False, double_inline=True
    )
    md.inline.ruler.before("escape", "math_brackets", _inline_brackets)
    md.block.ruler.before("fence", "math_brackets", _block_brackets, {"alt": ["paragraph", "blockquote", "list"]})


def is_prose(latex: str) -> bool:
    """Whether what stands between two dollar signs reads as words: "$7 each, so that 5*7=$" is about money."""
    return bool(_TWO_WORDS.search(_WORDING.sub("", latex)))


def mathml(latex: str, *, display: bool) -> Markup | None:
    """The formula as a `<math>` element; None where it must be shown as source instead: malformed, longer than 2,000
    characters, nested too deep, or with a command that would not show all of it."""
    if len(latex) > _MOST_CHARACTERS or _UNSHOWABLE.search(latex) or _depth(latex) > _MOST_BRACES:
        return None
    try:
        latex = _ENVIRONMENT.sub(lambda match: f"\\{match[1]}{{{_ENVIRONMENTS[match[2]]}}}", latex)
        element = convert_to_element(latex, display="block" if display else "inline")
        return Markup("".join(_serialized(element, _MOST_SCRIPTS)))
    except Exception:  # of many kinds, for hostile or merely wrong LaTeX
        return None


def _serialized(element: Element, scripts: int) -> Iterator[str]:
    """The tree as text, which the library's own way does not escape. ValueError: too small to read."""
    scripts -= element.tag in _SCRIPTS
    if scripts < 0:
        raise ValueError
    shown = element.tag in ELEMENTS
    if shown:
        yield f"<{element.tag}"
        yield from (f' {name}="{escape(value)}"' for name, value in element.attrib.items() if name in ATTRIBUTES)
        yield ">"
    if element.text:
        yield escape(spelled(_CODE_POINT.sub(lambda match: chr(int(match[1], 16)), element.text)))
    for child in element:
        yield from _serialized(child, scripts)
    if shown:
        yield f"</{element.tag}>"


def _depth(latex: str) -> int:
    depth = deepest = 0
    for brace in re.findall(r"[{}]|\\left|\\right|\\begin|\\end", latex):
        depth += 1 if brace in ("{", "\\left", "\\begin") else -1
        deepest = max(deepest, depth)
    return deepest


def _inline_brackets(state: StateInline, silent: bool) -> bool:
    start = state.pos
    kind = state.src[start : start + 2]
    if kind not in ("\\(", "\\["):
        return False
    closing = "\\)" if kind == "\\(" else "\\]"
    end = state.src.find(closing, start + 2, start + 2 + _MOST_CHARACTERS)
    if end < 0 or end + 2 > state.posMax or not state.src[start + 2 : end].strip():
        return False
    if not silent:
        token = state.push("math_inline" if kind == "\\(" else "math_inline_double", "math", 0)
        token.content, token.markup = state.src[start + 2 : end], kind
    state.pos = end + 2
    return True


def _block_brackets(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    if state.is_code_block(start) or not _line(state, start).startswith("\\["):
        return False
    lines = [_line(state, start)]
    for number in range(start + 1, end):
        if "\\]" in lines[-1]:
            break
        lines.append(_line(state, number))
        if not lines[-1] or lines[-1].startswith("\\["):  # so that each line is read by one start only
            return False
    content = "\n".join(lines)
    if not content.endswith("\\]") or content.count("\\]") > 1 or not content[2:-2].strip():
        return False
    if not silent:
        token = state.push("math_block", "math", 0)
        token.block, token.map = True, [start, start + len(lines)]
        token.content, token.markup = content[2:-2], "\\["
        state.line = start + len(lines)
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]].strip()
