from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from starlette.datastructures import UploadFile

from prefloop.types import PrefloopError
from prefloop.web import sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workspace with data, and things around and in it that are none of anybody's business."""
    here = tmp_path / "workspace"
    (here / "data").mkdir(parents=True)
    (tmp_path / "secret.jsonl").write_text("{}")
    for name in ("pairs.jsonl", "data/more.csv.gz", "data/.hidden.jsonl", "prefloop.db", "key", ".key.json"):
        (here / name).write_text("x")
    (here / "data" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (here / "out").symlink_to(tmp_path)
    (here / "inside.jsonl").symlink_to(here / "pairs.jsonl")
    return here


def test_files_of_the_workspace_are_found(folder: Path) -> None:
    for name in (
        "pairs.jsonl",
        " data/more.csv.gz ",
        "data/../pairs.jsonl",
        str(folder / "pairs.jsonl"),
        "inside.jsonl",
    ):
        assert sources.find_file(folder, name).is_relative_to(folder)
    assert sources.files(folder) == ["data/more.csv.gz", "inside.jsonl", "pairs.jsonl"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../secret.jsonl",
        "data/../../secret.jsonl",
        "data/link.jsonl",
        "out/secret.jsonl",
        "/etc/passwd",
        "/proc/self/environ",
        "pairs.jsonl\0.csv",
        "%2e%2e/secret.jsonl",
        "..\\secret.jsonl",
        "\\\\host\\share\\x.jsonl",
        "file:///etc/passwd",
        "https://example.com/x.jsonl",
        "data",
        "prefloop.db",
        "key",
        ".key.json",
        "data/.hidden.jsonl",
        "x" * 5000 + ".jsonl",
        "nothing.jsonl",
        "\ud800.jsonl",
    ],
)
def test_line_19_nothing_outside_the_workspace_is_read(folder: Path, name: str) -> None:
    with pytest.raises(PrefloopError, match="There is no such file here"):
        sources.find_file(folder, name)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("../../etc/cron.d/x.jsonl", "-x.jsonl"),
        ("C:\\data\\labels.csv", "-labels.csv"),
        ("..%2f..\r\nset-cookie.json", "-..-2f..-set-cookie.json"),
        (".hidden.parquet", "-.hidden.parquet"),
        ("ä" * 300 + ".jsonl.gz", "--.jsonl.gz"),
        ("a\0b.json", "-a-b.json"),
        ("x" * 300 + ".csv", "-" + "x" * 76 + ".csv"),
    ],
)
def test_line_19_uploads_get_names_of_our_own(folder: Path, name: str, ending: str) -> None:
    kept = sources.keep_upload(folder, UploadFile(io.BytesIO(b"content"), filename=name))
    path = (folder / kept).resolve()
    assert path.parent == folder / "uploads" and path.read_bytes() == b"content"
    assert path.name[8:] == ending
    assert len(path.name) < 100 and list((folder / "uploads").iterdir()) == [path]


@pytest.mark.parametrize("name", ["", "run.py", "a.jsonl.exe", "a.pickle", "a.tar.gz"])
def test_uploads_of_other_kinds_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(PrefloopError, match="name ends in"):
        sources.keep_upload(folder, UploadFile(io.BytesIO(b"x"), filename=name))


def test_runs_with_answers_are_offered_the_newest_first(tmp_path: Path) -> None:
    def run(name: str, stage: object, samples: str | None, age: int) -> None:
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        (path / "run.json").write_text(json.dumps({"stage": stage}))
        if samples is not None:
            (path / "samples.jsonl").write_text(samples)
            os.utime(path / "samples.jsonl", (1000 - age, 1000 - age))

    run("old/collect", "collect", "{}\n", 100)
    run("new/collect", "collect", "{}\n", 1)
    run("single", "collect", "{}\n", 50)
    run("empty/collect", "collect", "", 0)
    run("none/collect", "collect", None, 0)
    run("new/ppo", "ppo", "{}\n", 0)
    run("odd", None, "{}\n", 0)
    (tmp_path / "runs" / "odd" / "run.json").write_text("[broken")
    assert sources.collected(tmp_path) == ["runs/new/collect", "runs/single", "runs/old/collect"]


def test_a_free_name() -> None:
    assert sources.free_name("a", []) == "a"
    assert sources.free_name("a", ["a", "a-2", "b"]) == "a-3"
