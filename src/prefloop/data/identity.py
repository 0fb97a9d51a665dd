"""Whether a text gives away which model wrote it."""

from __future__ import annotations

from collections.abc import Sequence


def names_a_model(text: str, names: Sequence[str]) -> str | None:
    """The first of the names that the text holds, in any case; None where it holds none."""
    low = text.casefold()
    return next((name for name in names if name and name.casefold() in low), None)
