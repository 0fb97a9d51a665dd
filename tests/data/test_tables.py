"""Rows as Parquet, as a saved data set and as CSV: lossless where that is promised, harmless where it is not."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.rows import read_rows
from prefloop.data.tables import describe, unpacked, write_csv, write_parquet, write_saved
from prefloop.types import Json, PrefloopError, from_json, to_json

pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    name: str
    tokens: tuple[int, ...] = ()
    facts: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    id: str
    kind: Literal["a", "b"] = "a"
    score: float | None = None
    count: int | None = None
    done: bool = False
    parts: tuple[Part, ...] = ()
    any: Mapping[str, Json] | None = None
    free: Json = None


PAIRED = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # which JSON would read as one character
text = st.text(st.characters(codec=None, exclude_categories=()), max_size=6).filter(lambda s: not PAIRED.search(s))
floats = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=4,
)
parts = st.builds(
    Part,
    name=text,
    tokens=st.lists(st.integers(-(2**70), 2**70), max_size=3).map(tuple),
    facts=st.dictionaries(text, st.lists(st.booleans(), max_size=2).map(tuple), max_size=2),
)
wholes = st.builds(
    Whole,
    id=text,
    kind=st.sampled_from(["a", "b"]),
    score=st.none() | floats,
    count=st.none() | st.integers(),
    done=st.booleans(),
    parts=st.lists(parts, max_size=2).map(tuple),
    any=st.none() | st.dictionaries(text, json_values, max_size=2),
    free=json_values,
)


@given(made=st.lists(wholes, min_size=1, max_size=4), saved=st.booleans())
def test_any_record_survives_and_equal_ones_give_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, made: list[Whole], saved: bool
) -> None:
    folder, rows = tmp_path_factory.mktemp("tables"), [to_json(whole) for whole in made]
    one, two = folder / "one", folder / "two"
    for path in (one, two):
        written = write_saved(path, Whole, iter(rows)) if saved else write_parquet(path, Whole, iter(rows))
        assert written == len(rows)
    source = one if saved else one.rename(folder / "one.parquet")
    back = [from_json(Whole, unpacked(Whole, row, "here")) for _, row in read_rows(source)]
    assert [dataclasses.asdict(b) for b in back] == [dataclasses.asdict(m) for m in made]
    if saved:
        names = sorted(p.name for p in one.iterdir())
        assert names == ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"]
        assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
        loaded = datasets.load_from_disk(one)
        assert len(loaded) == len(rows)
        assert [row["done"] for row in loaded] == [whole.done for whole in made]
    else:
        assert source.read_bytes() == two.read_bytes()


def test_only_what_arrow_cannot_hold_is_there_twice(tmp_path: Path) -> None:
    rows = [to_json(Whole(id=id_, count=count)) for id_, count in (("plain", 1), ("\ud800", 2), ("big", 2**63))]
    write_parquet(tmp_path / "a.parquet", Whole, rows)
    found = [row for _, row in read_rows(tmp_path / "a.parquet")]
    assert [(row["id"], row["count"], row["exact"] is None) for row in found] == [
        ("plain", 1, True),
        ("?", 2, False),
        ("big", None, False),
    ]


def test_a_folder_is_whole_or_not_there_and_never_replaces_another(tmp_path: Path) -> None:
    def broken() -> Any:
        yield to_json(Whole(id="a"))
        raise PrefloopError("no more")

    with pytest.raises(PrefloopError, match="no more"):
        write_saved(tmp_path / "a", Whole, broken())
    with pytest.raises(PrefloopError, match="no more"):
        write_parquet(tmp_path / "a.parquet", Whole, broken())
    assert list(tmp_path.iterdir()) == []
    write_saved(tmp_path / "a", Whole, [to_json(Whole(id="a"))])
    with pytest.raises(PrefloopError, match="is there already"):
        write_saved(tmp_path / "a", Whole, [to_json(Whole(id="b"))])
    assert [row["id"] for _, row in read_rows(tmp_path / "a")] == ["a"]


CELLS = {
    "=cmd|'/c calc'!A0": "'=cmd|'/c calc'!A0",
    "+1": "'+1",
    "-1+2": "'-1+2",
    "@SUM(A1)": "'@SUM(A1)",
    " =1": "' =1",
    "\t=1": "'\t=1",
    "\r=1": "\\r=1",
    "\n=1": "'\n=1",
    "\uff1d1+1": "'\uff1d1+1",
    "a\x1b[31mred\x1b[0m": "a\\x1b[31mred\\x1b[0m",
    "\x9b31m": "\\x9b31m",
    "\0\x07": "\\x00\\x07",
    "\ud800": "\\ud800",
    'say "hi", \u2028 日本': 'say "hi", \u2028 日本',
    "x = 1": "x = 1",
    "2 - 1": "2 - 1",
}


def test_a_spreadsheet_takes_nothing_for_a_formula_and_a_terminal_nothing_for_a_command(tmp_path: Path) -> None:
    columns = [*CELLS, "=header"]
    groups = [([*CELLS], [[-1.5]]), ([True, None, ["=a"], {"=": "\x1b"}], [[7] * 13, [8] * 13])]
    assert write_csv(tmp_path / "a.csv", columns, groups) == 3
    content = (tmp_path / "a.csv").read_bytes()
    assert not any(byte < 32 and byte not in b"\r\n\t" for byte in content)
    header, row, other, last = csv.reader(io.StringIO(content.decode(), newline=""))
    assert header[:-1] == row[:-1] == list(CELLS.values())
    assert (header[-1], row[-1]) == ("'=header", "-1.5")
    assert other[:5] == ["true", "", '["=a"]', '{"=": "\\u001b"}', "7"]
    assert (last[:4], last[4]) == (other[:4], "8")


@given(cell=text)
def test_no_cell_starts_as_a_formula(tmp_path_factory: pytest.TempPathFactory, cell: str) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    write_csv(path, ["a"], [([cell], [[]])])
    (_, found) = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""))
    assert not (found and found[0].strip() and found[0].strip()[0] in "=+-@\t\r\n")


def test_the_schema_is_described() -> None:
    assert describe(Whole) == {
        "id": "str",
        "kind": "str",
        "score": "float or null",
        "count": "int or null",
        "done": "bool",
        "parts[].name": "str",
        "parts[].tokens[]": "int",
        "parts[].facts": "JSON",
        "any": "JSON or null",
        "free": "JSON",
    }


_WRITER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from tests_tables import Whole
from prefloop.data.tables import write_parquet, write_saved
from prefloop.types import to_json
def rows():
    for i in range(100_000):
        if i == 3_000:
            print("busy", flush=True)
        yield to_json(Whole(id=str(i)))
write, name = (write_saved, "a") if sys.argv[3] == "saved" else (write_parquet, "a.parquet")
write(Path(sys.argv[2]) / name, Whole, rows())
"""


@pytest.mark.parametrize("what", ["saved", "parquet"])
def test_a_killed_write_leaves_nothing_under_the_name(tmp_path: Path, what: str) -> None:
    code, out = tmp_path / "code", tmp_path / "out"
    code.mkdir()
    out.mkdir()
    (code / "tests_tables.py").write_text(Path(__file__).read_text())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _WRITER, str(code), str(out), what]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == "busy\n"
        writer.send_signal(signal.SIGKILL)
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == []
