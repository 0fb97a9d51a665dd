"""Files into rows, one at a time and within fixed limits: JSONL, JSON, CSV, Parquet, saved and published data sets.

Nothing here knows what a row means; `jsonl` and `layouts` do. No code of a data set is run, no address in a row is
fetched, nothing is unpickled."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefloop.data import limits
from prefloop.data.arrow import PUBLISHED, Rows, parquet_rows, published_rows, saved_rows
from prefloop.data.limits import STRICT, check_file, is_true, parse_json, utf8
from prefloop.types import Json, PrefloopError

_STEP = 2**16
_VISIBLE = re.compile(r"[^ \t\r\n]")
_TURNS = frozenset(("role", "content"))
_NESTED = frozenset(("messages", "conversation_a", "conversation_b", "answers", "models", "ranking", "gold", "checks"))


def read_rows(source: str | Path) -> Rows:
    """Yield (place from 1, object) of each row: of .jsonl, .json (one array, or lines), .csv, each also .gz, .parquet,
    a folder that `datasets` saved, or `datasets:NAME`. Any other name is read as JSONL. A place is the line, where
    there are lines.

    Raises PrefloopError when the source is missing, unreadable, beyond the limits or has no rows, and with source:place
    where a row is broken."""
    if str(source).startswith(PUBLISHED):
        return _some(published_rows(str(source)), source)
    path = Path(source)
    if is_true(path.is_dir):
        return _some(saved_rows(path), path)
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if ending == ".json":
        return _some(_read(path, _json_rows), path)
    if ending == ".csv":
        return _some(_read(path, _csv_rows), path)
    if ending == ".parquet":
        return _some(parquet_rows(path), path)
    return read_jsonl(path)


def read_jsonl(path: str | Path) -> Rows:
    """`read_rows` of a file of lines, whatever its name; blank lines are passed over."""
    return _some(_read(Path(path), _jsonl_rows), path)


def _some(rows: Rows, source: str | Path) -> Rows:
    first = next(rows, None)
    if first is None:
        raise PrefloopError(f"{source}: the file is empty; it needs one object a row.")
    yield first
    yield from rows


class _Capped(io.RawIOBase):
    """What a packed file unpacks to, up to the limit."""

    def __init__(self, file: gzip.GzipFile, path: Path) -> None:
        self._file, self._path, self._left = file, path, limits.LARGEST_UNPACKED

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise PrefloopError(
                f"{self._path}: unpacks to more than {limits.size(limits.LARGEST_UNPACKED)}; unpack it yourself."
            )
        buffer[: len(data)] = data
        return len(data)


def _read(path: Path, rows: Callable[[io.BufferedReader, Path], Rows]) -> Rows:
    with _opened(path) as file:
        yield from rows(file, path)


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    check_file(path)
    try:
        with path.open("rb") as plain:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=plain) as packed:
                    yield io.BufferedReader(_Capped(packed, path), _STEP)
            else:
                yield plain
    except (OSError, EOFError, zlib.error) as error:
        raise PrefloopError(f"{path}: cannot be read ({error}); fetch or write it again.") from error


def _lines(file: io.BufferedReader, path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(limits.LONGEST_ROW + 1):
        number += 1
        if len(line) > limits.LONGEST_ROW:
            raise limits.too_long(f"{path}:{number}")
        yield number, line


def _object(value: Json, where: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise PrefloopError(f"{where}: a row must be an object, not {type(value).__name__}.")
    return value


def _jsonl_rows(file: io.BufferedReader, path: Path) -> Rows:
    for number, line in _lines(file, path):
        if line.strip():
            where = f"{path}:{number}"
            yield number, _object(parse_json(utf8(line, where), where), where)


def _json_rows(file: io.BufferedReader, path: Path) -> Rows:
    """The elements of one array; a file that begins with an object instead holds lines, as many do."""
    if file.peek().removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{":
        yield from _jsonl_rows(file, path)
        return
    for number, value in enumerate(_Elements(file, path), 1):
        yield number, _object(value, f"{path}:{number}")


class _Elements:
    """Iterates over the elements of the array in a file, holding about one of them."""

    def __init__(self, file: io.BufferedReader, path: Path) -> None:
        self._file, self._path = file, path
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text, self._at = "", 0

    def __iter__(self) -> Iterator[Json]:
        if (start := self._see()) != "[":
            if start:
                raise PrefloopError(f"{self._path}: a JSON file holds one array of objects; this one begins otherwise.")
            return
        self._at, number = self._at + 1, 0
        while self._see() != "]":
            number, where = number + 1, f"{self._path}:{number + 1}"
            if number > 1:
                if self._see() != ",":
                    raise PrefloopError(f"{where}: broken JSON (cut off, or no comma here); mend or remove it.")
                self._at += 1
            yield self._element(where)
        self._at += 1
        if self._see():
            raise PrefloopError(f"{self._path}: something follows the array; remove it.")

    def _more(self) -> bool:
        """Read on, at least as much as is there; whether there was more."""
        data = self._file.read(max(_STEP, len(self._text) - self._at))
        try:
            self._text, self._at = self._text[self._at :] + self._decode(data, not data), 0
        except UnicodeDecodeError as error:
            raise PrefloopError(f"{self._path}: not UTF-8 ({error.reason}); write it anew.") from error
        return bool(data)

    def _see(self) -> str:
        """The next character that is no space, empty at the end; it is not taken."""
        while not (found := _VISIBLE.search(self._text, self._at)):
            self._at = len(self._text)
            if not self._more():
                return ""
        self._at = found.start()
        return found[0]

    def _element(self, where: str) -> Json:
        self._see()
        while True:
            try:
                value, self._at = STRICT.raw_decode(self._text, self._at)
                return value
            except (ValueError, RecursionError) as error:
                cut = isinstance(error, json.JSONDecodeError)
                if cut and len(self._text) > limits.LONGEST_ROW:
                    raise limits.too_long(where) from error
                if not (cut and self._more()):
                    raise PrefloopError(f"{where}: broken JSON ({error}); mend or remove it.") from error


def _csv_rows(file: io.BufferedReader, path: Path) -> Rows:
    size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        for number, line in _lines(file, path):
            size += len(line)
            if size > limits.LONGEST_ROW:
                raise limits.too_long(f"{path}:{number}")
            yield utf8(line, f"{path}:{number}")

    csv.field_size_limit(limits.LONGEST_ROW)
    reader = csv.reader(lines(), strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise PrefloopError(f"{path}: two columns have one name; rename one.")
        for cells in reader:
            size, where = 0, f"{path}:{reader.line_num}"
            if cells and len(cells) != len(names):
                raise PrefloopError(f"{where}: {len(cells)} cells for {len(names)} columns; mend or remove this row.")
            if cells:
                yield reader.line_num, {name: _cell(name, text) for name, text in zip(names, cells, strict=True)}
    except csv.Error as error:
        raise PrefloopError(f"{path}:{reader.line_num}: broken CSV ({error}); mend or remove this row.") from error


def _cell(name: str, text: str) -> Json:
    """Text, but for conversations and what else has parts, which are written as JSON."""
    if text[:1] not in ("[", "{"):
        return text
    try:
        value = STRICT.decode(text)
    except (ValueError, RecursionError):
        return text
    return value if name in _NESTED or _is_conversation(value) else text


def _is_conversation(value: Json) -> bool:
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(turn, dict) and turn.keys() == _TURNS for turn in value)
    )
