"""Rows of one kind as Parquet, as a folder of `datasets`, and as CSV that a spreadsheet may open.

A kind is a record (a frozen dataclass); a row is one as JSON. Columns follow the record's fields, nested as they are;
mappings are JSON text. What Arrow cannot hold exactly is in the column `exact` besides, as JSON, so nothing is lost."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from prefloop.data.arrow import needed
from prefloop.data.jsonl import replacing, sync_folder, write_lines
from prefloop.data.limits import parse_json
from prefloop.types import Json, PrefloopError

EXACT = "exact"
_BATCH = 1000
_WIDEST = 2**63
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
_UNSEEN = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
Convert = Callable[[Json], Json]
Group = tuple[Sequence[Json], Iterable[Sequence[Json]]]


def write_parquet(path: Path, kind: type, rows: Iterable[Json]) -> int:
    """Write rows whole or not at all; returns how many. Equal rows give equal bytes (of one version of pyarrow)."""
    parquet, count = needed("pyarrow.parquet"), 0
    schema = _schema(kind)
    with replacing(path) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in _arrow(kind, rows, schema):
            writer.write_table(table)
            count += table.num_rows
    return count


def write_saved(folder: Path, kind: type, rows: Iterable[Json]) -> int:
    """Write rows as `datasets` saves them, whole or not at all; returns how many. Equal rows give equal bytes.

    Raises PrefloopError where the folder holds something."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise PrefloopError(f"{folder}: is there already; remove it, or choose another name.")
    pyarrow, count = needed("pyarrow"), 0
    schema, name = _schema(kind), "data-00000-of-00001.arrow"
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with replacing(temporary / name) as file, pyarrow.ipc.new_stream(file, schema) as stream:
            for table in _arrow(kind, rows, schema):
                stream.write_table(table)
                count += table.num_rows
        state: dict[str, Json] = {"_data_files": [{"filename": name}], "_fingerprint": sha256(temporary / name)[:16]}
        state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None}
        state |= {"_output_all_columns": False, "_split": None}
        for file_name, content in (("state.json", state), ("dataset_info.json", {})):
            with replacing(temporary / file_name) as file:
                file.write(json.dumps(content, indent=2).encode())
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder.parent)
    return count


def write_csv(path: Path, columns: Sequence[str], groups: Iterable[Group]) -> int:
    """Write rows of cells under named columns, whole or not at all; returns how many. A group is the first cells of its
    rows, which they share, and the other cells of each.

    Lossy on purpose: a text that a spreadsheet would take for a formula gets a ' before it, and control characters are
    spelled out as \\x1b is."""
    to_line = csv.writer(_Echo()).writerow  # returns what is written
    lines = (
        to_line((*common, *map(_cell, own))).encode()
        for shared, rows in itertools.chain([(columns, [()])], groups)
        for common in [[_cell(cell) for cell in shared]]
        for own in rows
    )
    return write_lines(path, lines) - 1


class _Echo:
    def write(self, text: str) -> str:
        return text


def _cell(value: Json) -> Json:
    if value is None or type(value) in (int, float) or (type(value) is str and value.isalnum()):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)
    return f"'{text}" if _FORMULA.match(text) else text


def unpacked(kind: type, row: Mapping[str, Json], where: str) -> Mapping[str, Json]:
    """A row of this kind as JSON again, however it was written."""
    row = dict(row)
    if (exact := row.pop(EXACT, None)) is not None:
        made: Mapping[str, Json] = parse_json(str(exact), where)
        return made
    convert = _converter(kind, lambda value: parse_json(value, where) if isinstance(value, str) else value)
    return dict(convert(row)) if convert else row


def describe(kind: Any, name: str = "") -> dict[str, str]:
    """The plain fields within a kind and their types: {"labels[].judgment.annotator": "str"}."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return {key: f"{value} or null" for key, value in describe(_given(arguments), name).items()}
    if origin is tuple:
        return describe(arguments[0], f"{name}[]")
    if dataclasses.is_dataclass(kind):
        prefix = f"{name}." if name else ""
        fields = _hints(kind).items()
        return {key: value for field, hint in fields for key, value in describe(hint, prefix + field).items()}
    if origin is Literal:
        return {name: "str"}
    return {name: "JSON" if origin is not None or kind is Any else kind.__name__}


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _given(arguments: Sequence[Any]) -> Any:
    return next(argument for argument in arguments if argument is not type(None))


def _schema(kind: type) -> Any:
    pyarrow = needed("pyarrow")
    fields = [(name, _arrow_type(hint, pyarrow)) for name, hint in _hints(kind).items()]
    return pyarrow.schema([*fields, (EXACT, pyarrow.string())])


def _arrow_type(kind: Any, pyarrow: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _arrow_type(_given(arguments), pyarrow)
    if origin is tuple:
        return pyarrow.list_(_arrow_type(arguments[0], pyarrow))
    if dataclasses.is_dataclass(kind):
        return pyarrow.struct([(name, _arrow_type(hint, pyarrow)) for name, hint in _hints(kind).items()])
    plain = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64()}
    return plain.get(kind, pyarrow.string())


def _converter(kind: Any, mapping: Convert) -> Convert | None:
    """What turns the mappings within a value of this kind into something else; None where there are none."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        inner = _converter(_given(arguments), mapping)
        return inner and (lambda value: None if value is None else inner(value))
    if origin is tuple:
        each = _converter(arguments[0], mapping)
        return each and (lambda value: [each(item) for item in value] if isinstance(value, list) else value)
    if dataclasses.is_dataclass(kind):
        found = {name: _converter(hint, mapping) for name, hint in _hints(kind).items()}
        parts = {name: convert for name, convert in found.items() if convert}
        return (lambda value: _with_parts(value, parts)) if parts else None
    return mapping if origin is Mapping or kind is Any else None


def _with_parts(value: Json, parts: Mapping[str, Convert]) -> Json:
    if not isinstance(value, Mapping):
        return value
    return {**value, **{name: convert(value[name]) for name, convert in parts.items() if name in value}}


def _arrow(kind: type, rows: Iterable[Json], schema: Any) -> Iterator[Any]:
    pyarrow = needed("pyarrow")
    pack = _converter(kind, json.dumps) or (lambda value: value)
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, _BATCH)):
        packed = [pack(row) for row in chunk]
        try:
            yield pyarrow.Table.from_pylist(packed, schema)
        except (ValueError, OverflowError):  # a lone surrogate, or a number of more than 64 bits
            held = [_held(row) for row in packed]
            pairs = zip(chunk, packed, held, strict=True)
            exact = [own if own == row else {**own, EXACT: json.dumps(full)} for full, row, own in pairs]
            yield pyarrow.Table.from_pylist(exact, schema)


def _held(value: Json) -> Json:
    """What of a value Arrow can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() if _UNSEEN.search(value) else value
    if isinstance(value, Mapping):
        return {name: _held(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_held(inner) for inner in value]
    return None if isinstance(value, int) and abs(value) >= _WIDEST else value
