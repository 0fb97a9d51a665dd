from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.web.maths import mathml
from prefloop.web.render import markdown

from .hostile import FORMULAS
from .page import MATHML, Page, hidden


def shape(html: str) -> str:
    """A formula as names and words in parentheses."""

    def of(element) -> str:
        inside = (element.text or "") + " ".join(of(child) for child in element)
        return f"{element.tag.removeprefix(MATHML)}({inside})"

    return of(Page(html).elements("math")[0])


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        ("x_1", "math(mrow(msub(mi(x) mn(1))))"),
        (r"\frac{a}{2}", "math(mrow(mfrac(mrow(mi(a)) mrow(mn(2)))))"),
        (r"\sqrt{\pi}", "math(mrow(msqrt(mrow(mi(π)))))"),
        (r"a \le b", "math(mrow(mi(a) mo(≤) mi(b)))"),
        (r"\mathbb{R}", "math(mrow(mi(\u211d)))"),
        (r"\text{if } a<b", "math(mrow(mtext(if\xa0) mi(a) mo(<) mi(b)))"),
        (
            r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
            "math(mrow(mtable(mtr(mtd(mi(a)) mtd(mi() mo(=) mi(b))) mtr(mtd(mi(c)) mtd(mi() mo(=) mi(d))))))",
        ),
        (r"\begin{align} a \end{align}", "math(mrow(mtable(mtr(mtd(mi(a))))))"),
    ],
)
def test_mathml(latex: str, expected: str) -> None:
    made = mathml(latex, display=False)
    assert made is not None and shape(made) == expected


@pytest.mark.parametrize(
    "latex",
    [
        *(
            r"\href{https://a.test}{x}",
            r"\color{white}{x}",
            r"\textcolor{red}{x}",
            r"\phantom{x}",
            r"\def\a{b}\a",
            "x % y",
        ),
        *(r"\newcommand{\a}{b}", r"\style{position:fixed}{x}", r"\class{a}{x}", r"\unicode{x202e}", r"\rule{9em}{9em}"),
        *(
            r"\llap{x}",
            r"\raise 1em {x}",
            r"\hspace{-9em}",
            r"\verb|x|",
            r"\sideset{}{}{x}",
            r"\genfrac{}{}{9em}{}{a}{b}",
        ),
        *("x" * 2_001, "{" * 41 + "}" * 41, "x^{" * 6 + "x" + "}" * 6, r"\frac{", r"\left(", "a^b^c", "_"),
    ],
)
def test_what_cannot_be_shown_safely_is_left_to_its_source(latex: str) -> None:
    assert mathml(latex, display=True) is None
    assert Page(markdown(f"$${latex}$$")).text("code") == f"$${latex}$$"


@pytest.mark.parametrize(
    ("text", "display"),
    [
        *(
            ("$x$", "inline"),
            (r"\(x\)", "inline"),
            ("see $$x$$ there", "block"),
            ("$$x$$", "block"),
            ("$$\nx\n$$", "block"),
        ),
        *((r"\[x\]", "block"), ("\\[\nx\n\\]", "block"), (r"see \[x\] there", "block"), ("> \\[\n> x\n> \\]", "block")),
        *(("- a\n  \\[\n  x\n  \\]", "block"), ("text\n\\[\nx\n\\]", "block"), ("| \\(x\\) |\n|---|", "inline")),
    ],
)
def test_delimiters(text: str, display: str) -> None:
    formulas = Page(markdown(text)).elements("math")
    assert [(f.attrib["display"], "".join(f.itertext())) for f in formulas] == [(display, "x")]


@pytest.mark.parametrize(
    "text",
    [
        r"`\(x\)`",
        "```\n\\[\nx\n\\]\n```",
        "    \\[x\\]",
        r"\\(x\\)",
        "$ x $",
        r"\$x\$",
        "$5 and 6$7",
        r"\(\)",
        "\\[\n\nx\n\\]",
    ],
)
def test_what_is_no_formula(text: str) -> None:
    assert not Page(markdown(text)).elements("math")


def test_money_is_no_formula() -> None:
    text = "She bought 5 at $7 each, so 5*7=$ in all"
    assert Page(markdown(text)).text() == text + "\n"
    for latex in (r"x \text{ if and only if } y", r"\sin \alpha \beta", "a and b", r"\operatorname{arg max} f"):
        assert Page(markdown(f"${latex}$")).elements("math")


def test_many_formulas_end_as_source() -> None:
    page = Page(markdown("$x_1+y^2$ " * 400))
    assert len(page.elements("math")) == 3_000 // (len("x_1+y^2") + 10)
    assert len(page.elements("math")) + len(page.elements("code")) == 400


PARTS = (
    *"abx12+-=^_{}&'\"<>|#~",
    *("\\\\", "\\frac", "\\sqrt", "\\left(", "\\right)", "\\text{a<b}", "\\begin{matrix}", "\\end{matrix}", "\\sum"),
    *("\\limits", "\\hat", "\\mathbf{x}", "\\over", "\\not", "\\Huge", "\\tiny", "\\big(", "\\xrightarrow[a]{b}"),
    *("\\operatorname{f}", "\\bra{x}", "\\tag{1}", "\\boxed{x}", "&#x202e;", "\u202e", "\u00e9", " "),
    *FORMULAS.values(),
)


@given(st.lists(st.sampled_from(PARTS), max_size=25).map("".join))
def test_any_formula_gives_allowed_mathml(latex: str) -> None:
    made = mathml(latex, display=True)
    if made is not None:
        page = Page(made)
        assert page.faults() == []
        assert hidden(made) == []
        assert all(e.tag.startswith(MATHML) for e in page.elements())
