"""What any file is held to that comes from outside: sizes, strict JSON, UTF-8; and what says so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from prefloop.types import Json, PrefloopError

LONGEST_ROW = 32 * 2**20
"""Bytes of one row."""
LARGEST_UNPACKED = 8 * 2**30
"""Bytes that a packed file may unpack to."""


def too_long(where: str) -> PrefloopError:
    """The error of a row beyond the limit."""
    return PrefloopError(f"{where}: a row has at most {size(LONGEST_ROW)}; split or remove it.")


def parse_json(text: str, where: str) -> Json:
    """Strict JSON. Raises PrefloopError for NaN, infinite numbers, a key given twice, and what is too deep or long."""
    try:
        return STRICT.decode(text)
    except (ValueError, RecursionError) as error:
        raise PrefloopError(f"{where}: broken JSON ({error}); mend or remove it.") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text:.20} is too large a number")
    return number


def _no_twins(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return made


STRICT = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_twins)


def utf8(data: bytes, where: str) -> str:
    """Bytes as text, without a byte order mark. Raises PrefloopError for what is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PrefloopError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); mend or remove it.") from error


def is_true(asked: Callable[[], bool]) -> bool:
    """What a path says of itself; False where its name is too long, or it may not be looked at."""
    try:
        return asked()
    except OSError:
        return False


def check_file(path: Path) -> None:
    """Raises PrefloopError where there is no such file."""
    if not is_true(path.is_file):
        raise PrefloopError(f"{path}: no such file; check the path.")


def size(count: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / 2**30:g} GiB" if count >= 2**30 else f"{count / 2**20:g} MiB"
