"""Rows out of Arrow: Parquet files, and data sets that `datasets` saved or that are published.

Nothing is decoded but Arrow's own types: `datasets` would fetch images and sounds from where a row says."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefloop.data import limits
from prefloop.data.limits import check_file, parse_json, utf8
from prefloop.types import Json, PrefloopError

PUBLISHED = "datasets:"
"""datasets:NAME, datasets:NAME:CONFIG, datasets:NAME@SPLIT: a data set of the Hugging Face hub."""
_BATCH = 64
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.-]+))?")
Rows = Iterator[tuple[int, dict[str, Json]]]


def needed(module: str) -> Any:
    """An optional module. Raises PrefloopError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PrefloopError(f'{module} is not installed: pip install "prefloop[datasets]".') from error


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved this folder."""
    return any((folder / name).is_file() for name in (_SAVED, _SAVED_SPLITS))


def parquet_rows(path: Path) -> Rows:
    """The rows of a Parquet file."""
    check_file(path)
    parquet = needed("pyarrow.parquet")
    with _arrow(path), parquet.ParquetFile(path) as file:
        groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > limits.LARGEST_UNPACKED:
            raise PrefloopError(f"{path}: unpacks to more than {limits.size(limits.LARGEST_UNPACKED)}; split it.")
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
            if part.nbytes > limits.LONGEST_ROW * _BATCH:
                raise limits.too_long(f"{path}:{number + 1}")
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


def saved_rows(folder: Path) -> Rows:
    """The rows of a folder that `datasets` saved, all splits in their order."""
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


def _names(folder: Path, file: str, read: Callable[[Json], Iterable[Json]]) -> list[str]:
    """Names of what lies in a folder, as a file in it lists them; none may lead out of it."""
    place = folder / file
    check_file(place)
    try:
        state = parse_json(utf8(place.read_bytes()[: limits.LONGEST_ROW], str(place)), str(place))
        names = [str(name) for name in read(state)]
    except (KeyError, TypeError) as error:
        raise PrefloopError(f"{place}: not written by `datasets` ({error!r}); save the data set again.") from error
    for name in names:
        if "\0" in name or Path(name).name != name or (folder / name).resolve().parent != folder.resolve():
            raise PrefloopError(f"{place}: {name!r} leads out of this folder; save the data set again.")
    return names


def published_rows(source: str) -> Rows:
    """The rows of a data set by its id, all splits in their order. `datasets` (4 up) runs no code of it."""
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
