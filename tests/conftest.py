"""Fixtures for every test: one thread, repeatable properties, and a real PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings

from benchmarks.faults.forking import Forks

os.environ.setdefault("OMP_NUM_THREADS", "1")
_HOME = Path(os.environ.get("PREFLOOP_HOME") or "~/.cache/prefloop").expanduser()
os.environ.setdefault("NUMBA_CACHE_DIR", str(_HOME / "kernels"))  # for tests with a home of their own too
settings.register_profile("prefloop", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("prefloop")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """A process that has imported the program and forks one that runs it for each command: start-up is paid once."""
    with closing(Forks()) as made:
        yield made


def _postgres_binaries() -> Path | None:
    on_path = shutil.which("initdb")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = installed[-1] if installed else Path(on_path).resolve() if on_path else None
    return found.parent if found else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Socket folder of a PostgreSQL server of our own, in a temporary folder, without TCP."""
    binaries = _postgres_binaries()
    if binaries is None:
        advice = "PostgreSQL is not installed: apt-get install postgresql (or brew install postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(advice)
        pytest.skip(advice)
    # A socket's path may have 107 characters: pytest's own temporary folders can be too deep.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    as_owner = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres")
        as_owner = ["runuser", "-u", "postgres", "--"]

    def call(program: str, *arguments: str) -> None:
        command = [*as_owner, str(binaries / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    try:
        call("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        call("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", options)
        yield str(folder)
        call("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """URL of a fresh, empty PostgreSQL database."""
    import psycopg

    name = f"labels_{uuid.uuid4().hex}"
    with psycopg.connect(f"host={postgres_server} user=postgres dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql://postgres@/{name}?host={postgres_server}"
