"""Where compiled functions run, and where they are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefloop.ops import threads
from prefloop.ops.kernels import norm_fp32, rms_norm


@pytest.mark.skipif(
    not [*(Path(torch.__file__).parent / "lib").glob("libgomp*")],
    reason="torch brings no libgomp",
)
def test_threads_are_torchs_own() -> None:
    assert threads.omp("GOMP_parallel") is not None and threads.omp("GOMP_barrier") is not None
    assert threads.omp("no such function") is None


def test_what_was_compiled_is_kept_for_these_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.config, "CACHE_DIR", "")
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path))
    threads._compiled.__wrapped__(norm_fp32)
    folder = tmp_path / "kernels" / threads._SOURCES.hexdigest()[:16]
    assert [file.suffix for file in sorted(folder.rglob("*norm_fp32*"))] == [".nbc", ".nbi"]
    assert threads.config.CACHE_DIR == ""


def test_what_was_cut_off_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.config, "CACHE_DIR", str(tmp_path))
    threads._compiled.__wrapped__(norm_fp32)
    for kept in tmp_path.rglob("*.nb?"):
        kept.write_bytes(b"")
    assert threads._compiled.__wrapped__(norm_fp32).address
    assert not [*tmp_path.rglob("*.nb?")]
    threads._compiled.__wrapped__(norm_fp32)
    assert len([*tmp_path.rglob("*norm_fp32*")]) == 2


def test_without_a_folder_it_compiles_and_looks_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.config, "CACHE_DIR", "")
    (tmp_path / "kernels").write_text("in the way")
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path))
    places = [Path(threads.__file__).parent, Path.home() / ".cache" / "numba"]
    before = {file: file.stat().st_mtime_ns for place in places for file in place.rglob("*.nb?")}
    compiled = threads._compiled.__wrapped__(norm_fp32)
    assert compiled.address and compiled.cache_hits == 0
    assert before == {file: file.stat().st_mtime_ns for place in places for file in place.rglob("*.nb?")}


def test_no_home_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.config, "CACHE_DIR", "")
    monkeypatch.delenv("PREFLOOP_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    assert threads._folder() == ""


def test_what_is_put_off_is_not_run() -> None:
    x, weight = torch.ones(2, 4), torch.ones(4)
    with threads.put_off() as waiting:
        out = rms_norm(x, weight, 0.0).fill_(7.0)
    assert len(waiting) == 1 and out.tolist() == [[7.0] * 4] * 2
    assert rms_norm(x, weight, 0.0).tolist() == [[1.0] * 4] * 2
