from __future__ import annotations

import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefloop.store.private import keep_private, workspace_key
from prefloop.types import PrefloopError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: workspace_key(tmp_path), range(16)))
    assert len(keys) == 1 and len(keys.pop()) == 32
    assert [path.name for path in tmp_path.iterdir()] == ["prefloop.key"] and mode(tmp_path / "prefloop.key") == 0o600
    (tmp_path / "other").mkdir()
    assert workspace_key(tmp_path / "other") != workspace_key(tmp_path)


@pytest.mark.parametrize("rights", [0o644, 0o640, 0o604, 0o622])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, rights: int) -> None:
    workspace_key(tmp_path)
    (tmp_path / "prefloop.key").chmod(rights)
    with pytest.raises(PrefloopError, match="chmod 600"):
        workspace_key(tmp_path)


@pytest.mark.parametrize("text", ["", "secret", "0" * 63, "g" * 64, "0" * 65, "\xff"])
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prefloop.key"
    path.write_text(text, "latin-1")
    path.chmod(0o600)
    with pytest.raises(PrefloopError, match="64 hexadecimal digits"):
        workspace_key(tmp_path)


def test_a_folder_that_cannot_hold_a_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrefloopError, match=r"missing/prefloop\.key"):
        workspace_key(tmp_path / "missing")


def test_a_database_is_taken_from_others(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE a (b)")
        files = sorted(tmp_path.iterdir())
        for file in files:
            file.chmod(0o644)
        keep_private(f"sqlite:///{path}")
        assert len(files) == 3 and {mode(file) for file in files} == {0o600}
    connection.close()
    for url in ("sqlite://", "postgresql://nobody@/nothing", f"sqlite:///{tmp_path}/none.db"):
        keep_private(url)
