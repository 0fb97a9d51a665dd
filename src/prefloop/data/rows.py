"""Files into rows, one at a time and within fixed limits: JSONL, JSON, CSV, Parquet, saved and published data sets.

Nothing here knows what a row means; `jsonl` and `layouts` do. No code of a data set is run, no address in a row is
fetched, nothing is unpickled."""

from __future__ import annotations

import codecs
import csv
import gzip
import importlib
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from prefloop.types import Json, PrefloopError

LONGEST_ROW = 32 * 2**20
"""Bytes of one row."""
LARGEST_UNPACKED = 8 * 2**30
"""Bytes that a packed file may unpack to."""
PUBLISHED = "datasets:"
"""datasets:NAME, datasets:NAME:CONFIG, datasets:NAME@SPLIT: a data set of the Hugging Face hub."""

_BATCH = 64
_STEP = 2**16
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.-]+))?")
_VISIBLE = re.compile(r"[^ \t\r\n]")
_TURNS = frozenset(("role", "content"))
_NESTED = frozenset(("messages", "conversation_a", "conversation_b", "answers", "models", "ranking", "gold"))
Rows = Iterator[tuple[int, dict[str, Json]]]


def read_rows(source: str | Path) -> Rows:
    """Yield (place from 1, object) of each row: of .jsonl, .json (one array, or lines), .csv, each also .gz, .parquet,
    a folder that `datasets` saved, or `datasets:NAME`. Any other name is read as JSONL. A place is the line, where
    there are lines.

    Raises PrefloopError when the source is missing, unreadable, beyond the limits or has no rows, and with source:place
    where a row is broken."""
    if str(source).startswith(PUBLISHED):
        return _some(_published(str(source)), source)
    path = Path(source)
    if _is(path.is_dir):
        return _some(_saved(path), path)
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if ending == ".json":
        return _some(_read(path, _json_rows), path)
    if ending == ".csv":
        return _some(_read(path, _csv_rows), path)
    if ending == ".parquet":
        return _some(_parquet_rows(path), path)
    return read_jsonl(path)


def read_jsonl(path: str | Path) -> Rows:
    """`read_rows` of a file of lines, whatever its name; blank lines are passed over."""
    return _some(_read(Path(path), _jsonl_rows), path)


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved this folder."""
    return any((folder / name).is_file() for name in (_SAVED, _SAVED_SPLITS))


def needed(module: str) -> Any:
    """An optional module. Raises PrefloopError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PrefloopError(f'{module} is not installed: pip install "prefloop[datasets]".') from error


def parse_json(text: str, where: str) -> Json:
    """Strict JSON. Raises PrefloopError for NaN, infinite numbers, a key given twice, and what is too deep or long."""
    try:
        return _STRICT.decode(text)
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


_STRICT = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_twins)


def _some(rows: Rows, source: str | Path) -> Rows:
    first = next(rows, None)
    if first is None:
        raise PrefloopError(f"{source}: the file is empty; it needs one object a row.")
    yield first
    yield from rows


class _Capped(io.RawIOBase):
    """What a packed file unpacks to, up to the limit."""

    def __init__(self, file: gzip.GzipFile, path: Path) -> None:
        self._file, self._path, self._left = file, path, LARGEST_UNPACKED

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise PrefloopError(f"{self._path}: unpacks to more than {_size(LARGEST_UNPACKED)}; unpack it yourself.")
        buffer[: len(data)] = data
        return len(data)


def _read(path: Path, rows: Callable[[io.BufferedReader, Path], Rows]) -> Rows:
    with _opened(path) as file:
        yield from rows(file, path)


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    _check_file(path)
    try:
        with path.open("rb") as plain:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=plain) as packed:
                    yield io.BufferedReader(_Capped(packed, path), _STEP)
            else:
                yield plain
    except (OSError, EOFError, zlib.error) as error:
        raise PrefloopError(f"{path}: cannot be read ({error}); fetch or write it again.") from error


def _is(asked: Callable[[], bool]) -> bool:
    try:
        return asked()
    except OSError:  # a name that is too long, a folder that may not be looked into
        return False


def _check_file(path: Path) -> None:
    if not _is(path.is_file):
        raise PrefloopError(f"{path}: no such file; check the path.")


def _size(count: int) -> str:
    return f"{count / 2**30:g} GiB" if count >= 2**30 else f"{count / 2**20:g} MiB"


def _too_long(where: str) -> PrefloopError:
    return PrefloopError(f"{where}: a row has at most {_size(LONGEST_ROW)}; split or remove it.")


def _lines(file: io.BufferedReader, path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(LONGEST_ROW + 1):
        number += 1
        if len(line) > LONGEST_ROW:
            raise _too_long(f"{path}:{number}")
        yield number, line


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PrefloopError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); mend or remove it.") from error


def _object(value: Json, where: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise PrefloopError(f"{where}: a row must be an object, not {type(value).__name__}.")
    return value


def _jsonl_rows(file: io.BufferedReader, path: Path) -> Rows:
    for number, line in _lines(file, path):
        if line.strip():
            where = f"{path}:{number}"
            yield number, _object(parse_json(_text(line, where), where), where)


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
                value, self._at = _STRICT.raw_decode(self._text, self._at)
                return value
            except (ValueError, RecursionError) as error:
                cut = isinstance(error, json.JSONDecodeError)
                if cut and len(self._text) > LONGEST_ROW:
                    raise _too_long(where) from error
                if not (cut and self._more()):
                    raise PrefloopError(f"{where}: broken JSON ({error}); mend or remove it.") from error


def _csv_rows(file: io.BufferedReader, path: Path) -> Rows:
    size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        for number, line in _lines(file, path):
            size += len(line)
            if size > LONGEST_ROW:
                raise _too_long(f"{path}:{number}")
            yield _text(line, f"{path}:{number}")

    csv.field_size_limit(LONGEST_ROW)
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
        value = _STRICT.decode(text)
    except (ValueError, RecursionError):
        return text
    return value if name in _NESTED or _is_conversation(value) else text


def _is_conversation(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(turn, dict) and turn.keys() == _TURNS for turn in value)


def _parquet_rows(path: Path) -> Rows:
    _check_file(path)
    parquet = needed("pyarrow.parquet")
    with _arrow(path), parquet.ParquetFile(path) as file:
        groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > LARGEST_UNPACKED:
            raise PrefloopError(f"{path}: unpacks to more than {_size(LARGEST_UNPACKED)}; split it.")
        yield from _batches(file.iter_batches(batch_size=_BATCH), path)


@contextmanager
def _arrow(path: Path | str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, needed("pyarrow").ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PrefloopError(f"{path}: cannot be read ({reason}); fetch or write it again.") from error


def _batches(batches: Iterable[Any], path: Path | str) -> Rows:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH):
            part = batch.slice(start, _BATCH)
            if part.nbytes > LONGEST_ROW * _BATCH:
                raise _too_long(f"{path}:{number + 1}")
            for row in part.to_pylist():
                number += 1
                yield number, _plain(row, f"{path}:{number}")


def _plain(value: Json, where: str) -> Json:
    """Arrow's values as JSON has them."""
    if isinstance(value, dict):
        return {name: _plain(inner, where) for name, inner in value.items()}
    if isinstance(value, list):
        return value if set(map(type, value)) <= {int, str} else [_plain(inner, where) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise PrefloopError(f"{where}: {value} is no number to work with; mend or remove this row.")
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _saved(folder: Path) -> Rows:
    """The rows of a folder that `datasets` saved, all splits in their order. Reads Arrow's own format only: no feature
    is decoded, since images and sounds would be fetched from where a row says."""
    if not is_saved(folder):
        raise PrefloopError(f"{folder}: this folder holds no data set; give a file, or what `datasets` saved.")
    pyarrow, number = needed("pyarrow"), 0
    for file in _arrow_files(folder):
        with _arrow(file), pyarrow.OSFile(str(file)) as raw, pyarrow.ipc.open_stream(raw) as stream:
            for _, row in _batches(stream, folder):
                number += 1
                yield number, row


def _arrow_files(folder: Path) -> Sequence[Path]:
    if (folder / _SAVED_SPLITS).is_file():
        splits = _names(folder, _SAVED_SPLITS, lambda state: state["splits"])
        return [file for split in splits for file in _arrow_files(folder / split)]
    names = _names(folder, _SAVED, lambda state: [entry["filename"] for entry in state["_data_files"]])
    return [folder / name for name in names]


def _names(folder: Path, file: str, read: Any) -> list[str]:
    """Names of what lies in a folder, as a file in it lists them; none may lead out of it."""
    place = folder / file
    _check_file(place)
    try:
        names = [
            str(name) for name in read(parse_json(_text(place.read_bytes()[:LONGEST_ROW], str(place)), str(place)))
        ]
    except (KeyError, TypeError) as error:
        raise PrefloopError(f"{place}: not written by `datasets` ({error!r}); save the data set again.") from error
    for name in names:
        if "\0" in name or Path(name).name != name or (folder / name).resolve().parent != folder.resolve():
            raise PrefloopError(f"{place}: {name!r} leads out of this folder; save the data set again.")
    return names


def _published(source: str) -> Rows:
    """A data set by its id. `datasets` (4 up) runs no code of it; features are not decoded, see `_saved`."""
    parts = _ID.fullmatch(source.removeprefix(PUBLISHED))
    if not parts or ".." in parts["name"]:
        raise PrefloopError(f"{source}: write datasets:OWNER/NAME, with :CONFIG and @SPLIT where there are several.")
    library, number = needed("datasets"), 0
    try:
        found = library.load_dataset(parts["name"], parts["config"], split=parts["split"])
    except Exception as error:  # what `datasets` raises for a missing id, split, network or file has no common base
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PrefloopError(f"{source}: cannot be loaded ({reason}); check the id, and the network.") from error
    for split in found.values() if isinstance(found, dict) else [found]:
        for table in split.with_format("arrow").iter(batch_size=_BATCH):
            for _, row in _batches([table], source):
                number += 1
                yield number, row
