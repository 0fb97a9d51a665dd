"""Files into rows: every format says the same, and no file, however hostile, costs more than the limits allow."""

from __future__ import annotations

import csv
import gzip
import json
import os
import pickle
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data import limits, rows
from prefloop.data.jsonl import read_demonstrations, read_preferences, read_prompts
from prefloop.data.rows import read_jsonl, read_rows
from prefloop.types import PrefloopError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")

PAIR = {"prompt": "Hi, \u2028 日本", "chosen": "a\r\n\"b\", 'c'", "rejected": ""}


def as_csv(table: Sequence[dict[str, Any]]) -> str:
    lines: list[str] = []

    class Sink:
        def write(self, line: str) -> None:
            lines.append(line)

    writer = csv.DictWriter(Sink(), table[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in table)
    return "".join(lines)


def write(folder: Path, name: str, table: Sequence[dict[str, Any]]) -> Path:
    """The rows in the format that the name asks for."""
    path = folder / name
    plain = name.removesuffix(".gz")
    if plain.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(list(table)), path, row_group_size=2)
    elif plain.endswith(".saved"):
        datasets.Dataset.from_list(list(table)).save_to_disk(path)
    elif plain.endswith(".splits"):
        half = datasets.Dataset.from_list(list(table[:1])), datasets.Dataset.from_list(list(table[1:]))
        datasets.DatasetDict({"train": half[0], "test": half[1]}).save_to_disk(path)
    else:
        ending = plain.rsplit(".")[-1]
        text = {
            "jsonl": lambda: "".join(json.dumps(row) + "\n" for row in table),
            "json": lambda: json.dumps(table, indent=1),
            "csv": lambda: as_csv(table),
        }[ending]()
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


FORMATS = [f"a.{f}{gz}" for f in ("jsonl", "json", "csv") for gz in ("", ".gz")] + ["a.parquet", "a.saved", "a.splits"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows_and_records(tmp_path: Path, name: str) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    nested = {"prompt": turns, "chosen": [{"role": "assistant", "content": "x"}]}
    nested |= {"rejected": [{"role": "assistant", "content": "y"}]}
    assert [row for _, row in read_rows(write(tmp_path, name, [PAIR, PAIR | {"prompt": "2"}, PAIR]))] == [
        PAIR,
        PAIR | {"prompt": "2"},
        PAIR,
    ]
    other = write(tmp_path, f"b{name}", [nested, nested])
    assert [row for _, row in read_rows(other)] == [nested, nested]
    assert [item.text for item in read_preferences(other)[0].items] == ["x", "y"]
    assert [p.messages[0].content for p in read_prompts(write(tmp_path, f"c{name}", [{"prompt": "q"}] * 2))] == ["q"]
    demonstrations = read_demonstrations(write(tmp_path, f"d{name}", [{"prompt": "q", "completion": "[1]"}] * 2))
    assert demonstrations[0].completion == "[1]"


def test_a_published_data_set_is_read_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "mine").mkdir(parents=True)
    write(tmp_path / "me" / "mine", "train.parquet", [PAIR])
    write(tmp_path / "me" / "mine", "test.parquet", [PAIR | {"prompt": "2"}])
    assert [row["prompt"] for _, row in read_rows("datasets:me/mine@test")] == ["2"]
    assert sorted(row["prompt"] for _, row in read_rows("datasets:me/mine")) == ["2", PAIR["prompt"]]
    with pytest.raises(PrefloopError, match="cannot be loaded"):
        list(read_rows("datasets:me/mine@nothing"))
    for odd in ("datasets:", "datasets:../x", "datasets:a/b/c", "datasets:/etc", "datasets:a b", "datasets:a\0"):
        with pytest.raises(PrefloopError, match="write datasets:OWNER/NAME"):
            list(read_rows(odd))


def test_no_code_of_a_data_set_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "evil").mkdir(parents=True)
    (tmp_path / "me" / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(PrefloopError, match="cannot be loaded"):
        list(read_rows("datasets:me/evil"))
    assert not (tmp_path / "ran").exists()


def test_nothing_that_a_row_points_to_is_fetched_or_decoded(tmp_path: Path) -> None:
    """An image feature with an address would be fetched by `datasets` itself; here it is a row of text."""
    row = {"prompt": "q", "image": {"bytes": None, "path": "http://127.0.0.1:9/secret"}}
    folder = write(tmp_path, "images.saved", [{"prompt": "q"}])
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.Table.from_pylist([row], pyarrow.schema({"prompt": pyarrow.string(), "image": image}))
    with pyarrow.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    features = {"prompt": {"dtype": "string", "_type": "Value"}, "image": {"_type": "Image"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    with pytest.raises(Exception, match=r"HTTP|Pillow"):
        datasets.load_from_disk(folder)[0]
    assert [found for _, found in read_rows(folder)] == [row]


def test_what_is_optional_says_how_to_get_it(tmp_path: Path) -> None:
    code = """if True:
        import sys
        sys.modules["pyarrow"] = sys.modules["datasets"] = None
        from prefloop.data.rows import read_rows
        from prefloop.types import PrefloopError
        for source in sys.argv[1:]:
            try:
                list(read_rows(source))
            except PrefloopError as error:
                print(error)
    """
    write(tmp_path, "a.parquet", [PAIR])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "a.parquet"), "datasets:a/b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count('not installed: pip install "prefloop[datasets]".\n') == 2


json_rows = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)


@given(table=st.lists(json_rows, min_size=1, max_size=4), indent=st.sampled_from([None, 0, 3]), step=st.integers(1, 9))
def test_an_array_is_read_whatever_its_spacing(
    tmp_path_factory: pytest.TempPathFactory, table: list[dict[str, Any]], indent: int | None, step: int
) -> None:
    path = tmp_path_factory.mktemp("json") / "rows.json"
    path.write_text(json.dumps(table, indent=indent))
    before = rows._STEP
    rows._STEP = step  # bytes read at a time: every cut through an element occurs
    try:
        assert list(read_rows(path)) == list(enumerate(table, 1))
    finally:
        rows._STEP = before


BROKEN: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b"", "the file is empty"),
    ("a.jsonl", b"\n \n", "the file is empty"),
    ("a.json", b" ", "the file is empty"),
    ("a.json", b"[]", "the file is empty"),
    ("a.csv", b"", "the file is empty"),
    ("a.csv", b"prompt,chosen\n", "the file is empty"),
    ("a.jsonl", b'{"a": 1}\n{"a"\n', r"a\.jsonl:2: broken JSON"),
    ("a.jsonl", b'{"a": 1}\n\n[1]\n', r"a\.jsonl:3: a row must be an object, not list"),
    ("a.json", b'[{"a": 1}, 7]', r"a\.json:2: a row must be an object, not int"),
    ("a.json", b'"text"', r"a\.json: a JSON file holds one array of objects"),
    ("a.json", b'[{"a": 1}', r"a\.json:2: broken JSON \(cut off"),
    ("a.json", b'[{"a": 1} {"a": 2}]', r"a\.json:2: broken JSON"),
    ("a.json", b'[{"a": 1},]', r"a\.json:2: broken JSON"),
    ("a.json", b'[{"a": 1}]x', "something follows the array"),
    ("a.jsonl", b'{"a": NaN}', r"a\.jsonl:1: broken JSON \(NaN is not JSON\)"),
    ("a.json", b'[{"a": -Infinity}]', r"a\.json:1: broken JSON \(-Infinity is not JSON\)"),
    ("a.jsonl", b'{"a": 1e999}', "1e999 is too large a number"),
    ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", r"a\.jsonl:1: broken JSON"),
    ("a.jsonl", b'{"a": {"b": 1, "b": 2}}', "key 'b' is given twice"),
    ("a.json", b'[{"b": 1, "b": 2}]', "key 'b' is given twice"),
    ("a.csv", b"a,a\n1,2\n", "two columns have one name"),
    ("a.jsonl", b'{"a": "\xff"}', r"a\.jsonl:1: not UTF-8"),
    ("a.json", b'[{"a": "\xff"}]', r"a\.json: not UTF-8"),
    ("a.csv", b"a\n\xff\n", r"a\.csv:2: not UTF-8"),
    ("a.jsonl", b'{"a":' * 100_000, r"a\.jsonl:1: broken JSON"),
    ("a.json", b"[" * 100_000, r"a\.json:1: broken JSON"),
    ("a.csv", b"a,b\n1\n", r"a\.csv:2: 1 cells for 2 columns"),
    ("a.csv", b'a,b\n"1,2\n', r"a\.csv:2: broken CSV"),
    ("a.parquet", b"PAR1 but not really PAR1", r"a\.parquet: cannot be read"),
    ("a.jsonl.gz", b"not gzip", r"a\.jsonl\.gz: cannot be read"),
    ("a.json.gz", gzip.compress(b'[{"a": 1}]' * 1000, mtime=0)[:-20], r"a\.json\.gz"),
    ("a.csv.gz", gzip.compress(b"a\n1\n" * 1000, mtime=0)[:-20], r"a\.csv\.gz: cannot be read"),
    ("a.pkl", pickle.dumps({"a": 1}), r"a\.pkl:1: not UTF-8"),
    ("a.yaml", b"a: !!python/object/apply:os.system [true]\n", r"a\.yaml:1: broken JSON"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PrefloopError, match=message):
        list(read_rows(tmp_path / name))


def test_missing_files_and_odd_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(PrefloopError, match=r"none\.jsonl: no such file"):
        list(read_rows(tmp_path / "none.jsonl"))
    with pytest.raises(PrefloopError, match="no such file"):
        list(read_rows(tmp_path / ("x" * 5000)))
    with pytest.raises(PrefloopError, match="no such file"):
        list(read_rows("a\0b.jsonl"))
    with pytest.raises(PrefloopError, match="this folder holds no data set"):
        list(read_rows(tmp_path))
    with pytest.raises(PrefloopError, match=r"none\.parquet: no such file"):
        list(read_rows(tmp_path / "none.parquet"))


@pytest.mark.parametrize("name", ["../../secret.arrow", "/etc/passwd", "..", "link.arrow", "a\0"])
def test_a_saved_data_set_cannot_point_out_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, "a.saved", [PAIR])
    (tmp_path / "secret.arrow").write_bytes((folder / "data-00000-of-00001.arrow").read_bytes())
    (folder / "link.arrow").symlink_to(tmp_path / "secret.arrow")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
    with pytest.raises(PrefloopError, match="leads out of this folder"):
        list(read_rows(folder))
    (folder / "state.json").write_text(json.dumps({"_data_files": 3}))
    with pytest.raises(PrefloopError, match="not written by `datasets`"):
        list(read_rows(folder))


def bomb(path: Path, start: bytes, filler: bytes, megabytes: int) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(megabytes):
            file.write(filler * (2**20 // len(filler)))
    return path


@pytest.mark.parametrize(
    ("name", "start", "filler", "message"),
    [
        ("a.jsonl.gz", b'{"a": "', b"0", r"a\.jsonl\.gz:1: a row has at most 1 MiB"),
        ("a.jsonl.gz", b"", b" ", r"a\.jsonl\.gz:1: a row has at most 1 MiB"),
        ("a.json.gz", b'[{"a": "', b"0", r"a\.json\.gz:1: a row has at most 1 MiB"),
        ("a.json.gz", b'[{"a": [', b"123456789012345,", r"a\.json\.gz:1: a row has at most 1 MiB"),
        ("a.csv.gz", b'a,b\n"', b"0" * 1023 + b"\n", "a row has at most 1 MiB"),
        ("a.csv.gz", b"a\n", b"0", r"a\.csv\.gz:2: a row has at most 1 MiB"),
    ],
)
def test_a_row_cannot_be_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, start: bytes, filler: bytes, message: str
) -> None:
    monkeypatch.setattr(limits, "LONGEST_ROW", 2**20)
    path = bomb(tmp_path / name, start, filler, 64)
    tracemalloc.start()
    with pytest.raises(PrefloopError, match=message):
        list(read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * 2**20  # of 64 MiB


def test_the_limit_is_wide_enough_for_long_prompts(tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.jsonl.gz", b"", b" ", 33)
    with pytest.raises(PrefloopError, match=r"a\.jsonl\.gz:1: a row has at most 32 MiB"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "start", "line"),
    [
        ("a.jsonl.gz", b"", b'{"a":"' + b"0" * 1000 + b'"}\n'),
        ("a.json.gz", b'[{"a":1}', b',{"a":"' + b"0" * 1000 + b'"}'),
        ("a.csv.gz", b"a\n", b"0" * 1023 + b"\n"),
    ],
)
def test_a_packed_file_cannot_be_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, start: bytes, line: bytes
) -> None:
    monkeypatch.setattr(limits, "LARGEST_UNPACKED", 2**20)
    path = bomb(tmp_path / name, start, line, 2)
    with pytest.raises(PrefloopError, match=r"unpacks to more than 1 MiB"):
        for _ in read_rows(path):
            pass


def test_a_table_cannot_be_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long text said once and repeated by reference: 2 KB on disk, 2 GB of rows."""
    path = tmp_path / "a.parquet"
    long = pyarrow.array(["x" * 2**21])
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), long)
    parquet.write_table(pyarrow.table({"prompt": column}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(limits, "LONGEST_ROW", 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PrefloopError, match="a row has at most 1 MiB"):
        list(read_rows(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024  # of 2 GB
    monkeypatch.setattr(limits, "LARGEST_UNPACKED", 2**20)
    with pytest.raises(PrefloopError, match="unpacks to more than 1 MiB"):
        list(read_rows(path))


def test_a_table_with_numbers_that_are_none_is_named(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"a": [1.0, float("nan")]}), tmp_path / "a.parquet")
    with pytest.raises(PrefloopError, match=r"a\.parquet:2: nan is no number"):
        list(read_rows(tmp_path / "a.parquet"))


@pytest.mark.parametrize("make", [lambda i: f"{i}", lambda i: "x" * 50_000], ids=["small", "large"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_rows_come_one_at_a_time(tmp_path: Path, name: str, make: Callable[[int], str]) -> None:
    """The first row is there before the last was read, and reading all keeps few of them."""
    path = write(tmp_path, name, [{"prompt": make(i), "chosen": "a", "rejected": "b"} for i in range(200)])
    reader = read_rows(path)
    assert next(reader)[1]["chosen"] == "a"
    tracemalloc.start()
    assert sum(1 for _ in reader) == 199
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20  # of 10 MB
    tracemalloc.stop()


def test_a_byte_order_mark_and_lines_in_a_json_file(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.csv"):
        path = write(tmp_path, name, [PAIR])
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert [row for _, row in read_rows(path)] == [PAIR]
    lines = tmp_path / "lines.json"
    lines.write_text('{"a": 1}\n{"a": 2}\n')
    assert [row for _, row in read_rows(lines)] == [{"a": 1}, {"a": 2}]
    assert [row for _, row in read_jsonl(lines)] == [{"a": 1}, {"a": 2}]
