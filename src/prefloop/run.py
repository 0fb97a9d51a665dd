"""A run folder: the resolved configuration, metrics, samples, checkpoints and result of one stage; and its progress."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from types import TracebackType
from typing import BinaryIO, Self

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prefloop.data.fingerprints import fingerprint
from prefloop.data.jsonl import content_id, encode_line, write_atomic
from prefloop.data.rows import read_jsonl
from prefloop.types import Json, MetricRow, PrefloopError

__all__ = ["Run", "Ticker", "config_hash", "newest", "occupied", "progress", "write_atomic"]

_METRICS, _SAMPLES, _LOCK = "metrics.jsonl", "samples.jsonl", "run.lock"
_BEGUN = (_METRICS, _SAMPLES, "checkpoints", "checkpoint", "preferences.jsonl", "result.json")
_NAMING = ("prompts", "demonstrations", "watch", "baseline", "gold", "loss")  # settings that may name files or code
_OWN = (_LOCK, "run.json", "config.json", "seconds.json")
_LOCK_TRIES, _LOCK_PAUSE = 5, 0.05
_LINE_EVERY = 10.0
_RATE_OVER = 600.0  # seconds whose rate foretells the time left
_SECONDS_EVERY = 1.0
_DIFFERENCES_SHOWN = 3


def _settings(config: BaseModel) -> dict[str, Json]:
    """All but the folder itself: a run that was moved is the same run."""
    return {key: value for key, value in config.model_dump(mode="json").items() if key != "out"}


def config_hash(config: BaseModel) -> str:
    """SHA-256 (64 hexadecimal digits) of every setting but `out`."""
    return content_id(_settings(config))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _versions() -> dict[str, str | None]:
    return {"python": python_version()} | {name: _version(name) for name in ("torch", "transformers", "prefloop")}


def _differences(before: Json, now: Json, name: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"{name} is {json.dumps(before)} there and {json.dumps(now)} here"


def _read_object(path: Path) -> dict[str, Json]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise PrefloopError(f"{path}: broken JSON ({error}); start over in another folder.") from error
    if not isinstance(value, dict):
        raise PrefloopError(f"{path}: a JSON object is needed; start over in another folder.")
    return value


def _dump(value: Json) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def newest(root: Path, stage: str) -> Path:
    """A stage's folder in a run's; of a run in rounds, that of the newest round which has begun it."""
    rounds = sorted((int(path.name) for path in (root / "rounds").glob("*") if path.name.isdigit()), reverse=True)
    places = (*(root / "rounds" / str(number) / stage for number in rounds), root / stage)
    return next((path for path in places if (path / "config.json").is_file()), root / stage)


def occupied(path: Path) -> bool:
    """Whether a process works in a run folder; no crash leaves it so. Asking takes the folder's lock, together with
    others who ask, for an instant that `Run.open` waits out."""
    try:
        with (path / _LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _locked(path: Path) -> BinaryIO:
    file = (path / _LOCK).open("a+b")
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE)
        else:
            break
    else:
        file.seek(0)
        owner = file.read().decode() or "unknown"
        file.close()
        raise PrefloopError(f"{path}: process {owner} works in this run folder; wait for it or stop it.")
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    file.flush()
    return file


def _mend(path: Path) -> None:
    """Cut off a last line that a killed process did not finish."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


class Run:
    """One stage's folder, held by one process at a time. Use it in a `with`: leaving it lets the folder go."""

    def __init__(self, path: Path, lock: BinaryIO) -> None:
        self._path, self._lock = path, lock
        self._began = time.monotonic()
        self._noted = 0.0
        seconds = path / "seconds.json"
        self._before = float(_read_object(seconds)["seconds"]) if seconds.exists() else 0.0

    @classmethod
    def open(cls, out: str | Path, config: BaseModel, *, stage: str, parents: Mapping[str, str]) -> Run:
        """Make the folder `out`, or take up the run that stands there.

        Writes config.json, run.json (stage, versions, seed, parents {role: path}, started). A line that an interrupted
        process left torn is cut off, and what it had half saved is removed. Raises PrefloopError when another process
        holds the folder, when it was started with other settings, when its parents or the files and code that its
        settings name have changed since, or when it holds files that are no run. Settings bind only once there is
        something to go on from."""
        path = Path(out)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _locked(path)
        except OSError as error:
            raise PrefloopError(f"{path}: cannot be used as a run folder ({error.strerror}).") from error
        try:
            begun = any((path / name).exists() for name in _BEGUN)
            if begun and (path / "config.json").exists():
                _same(path, config, parents)
            else:
                if (path / "run.json").exists():  # a run that ended before its first step was whole
                    shutil.rmtree(path / "best", ignore_errors=True)
                    _sweep(path)
                _begin(path, config, stage, parents)
            _sweep(path)
            for name in (_METRICS, _SAMPLES):
                _mend(path / name)
            return cls(path, lock)
        except BaseException:
            lock.close()
            raise

    @property
    def path(self) -> Path:
        return self._path

    @property
    def finished(self) -> bool:
        return (self._path / "result.json").exists()

    @property
    def result(self) -> Mapping[str, Json]:
        """What `finish` wrote. Raises PrefloopError before that."""
        if not self.finished:
            raise PrefloopError(f"{self._path}: this run has not finished; run its stage again to go on.")
        return _read_object(self._path / "result.json")

    @property
    def config_hash(self) -> str:
        return str(_read_object(self._path / "run.json")["config_hash"])

    @property
    def last_step(self) -> int:
        """The last step that metrics.jsonl knows; -1 before the first."""
        return max((row.step for row in self.metrics()), default=-1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row to metrics.jsonl, on disk when this returns, and so are the samples before it. Raises
        PrefloopError for a value not finite."""
        for name, value in values.items():
            if not math.isfinite(value):
                advice = "try a lower learning rate, or look at the data"
                raise PrefloopError(f"{self._path}: metric {name} is {value} at step {step}; {advice}.")
        self._sync(_SAMPLES)
        self._append(_METRICS, {"step": step, **values}, durable=True)

    def sample(self, step: int, record: Mapping[str, object]) -> None:
        """Append {"step", **record} to samples.jsonl; records inside may be dataclasses. It outlives this process."""
        self._append(_SAMPLES, {"step": step} | dict(record), durable=False)

    def metrics(self) -> list[MetricRow]:
        """All rows of metrics.jsonl so far, in order."""
        return [
            MetricRow(step=row["step"], values={name: value for name, value in row.items() if name != "step"})
            for row in self._rows(_METRICS)
        ]

    def samples(self) -> list[dict[str, Json]]:
        """All rows of samples.jsonl so far, in order, as plain JSON."""
        return self._rows(_SAMPLES)

    def rewind(self, step: int) -> None:
        """Drop metrics and samples of later steps than `step`, and a torn last line; each file whole or not at all."""
        for name in (_METRICS, _SAMPLES):
            _mend(self._path / name)
            rows = self._rows(name)
            kept = [row for row in rows if row["step"] <= step]
            if len(kept) < len(rows):
                write_atomic(self._path / name, b"".join(map(encode_line, kept)))

    def checkpoint_folder(self, step: int) -> Path:
        """Where the checkpoint after `step` belongs; its parent exists, the folder itself is made by who saves."""
        folder = self._path / "checkpoints"
        folder.mkdir(exist_ok=True)
        return folder / f"step-{step:06d}"

    def finish(self, result: Mapping[str, Json]) -> Mapping[str, Json]:
        """Write result.json, whole, and return it with "seconds": wall-clock of all sessions together. Only then do the
        checkpoints to resume from go."""
        for name in (_METRICS, _SAMPLES):
            self._sync(name)
        complete = json.loads(encode_line(dict(result) | {"seconds": round(self._seconds(), 3)}))
        write_atomic(self._path / "result.json", _dump(complete))
        shutil.rmtree(self._path / "checkpoints", ignore_errors=True)
        return dict(complete)

    def close(self) -> None:
        """Note the time spent and let the folder go; twice is as good as once."""
        if not self._lock.closed:
            self._note_seconds()
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rows(self, name: str) -> list[dict[str, Json]]:
        path = self._path / name
        return [row for _, row in read_jsonl(path)] if path.exists() and path.stat().st_size else []

    def _append(self, name: str, row: Mapping[str, object], *, durable: bool) -> None:
        with (self._path / name).open("ab") as file:  # buffered: writes all, or raises
            file.write(encode_line(row))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if time.monotonic() - self._noted > _SECONDS_EVERY:
            self._note_seconds()

    def _sync(self, name: str) -> None:
        if (self._path / name).exists():
            with (self._path / name).open("rb") as file:
                os.fsync(file.fileno())

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def _note_seconds(self) -> None:
        self._noted = time.monotonic()
        if not self.finished:
            write_atomic(self._path / "seconds.json", _dump({"seconds": self._seconds()}))


def _sweep(path: Path) -> None:
    """Remove what a killed process had not finished writing; whoever holds the folder's lock is alone in it."""
    for folder in (*path.glob("*.tmp-*"), *path.glob("checkpoints/*.tmp-*")):
        shutil.rmtree(folder, ignore_errors=True)
    for file in path.glob(".*.tmp"):
        file.unlink()
    if (path / "result.json").exists():
        for name in ("checkpoints", "best"):
            shutil.rmtree(path / name, ignore_errors=True)


def _inputs(config: BaseModel, parents: Mapping[str, str]) -> dict[str, str]:
    """What a run depends on, by role: its parents, and what its settings name."""
    named = ((key, getattr(config, key, None)) for key in _NAMING)
    return {key: name for key, name in named if isinstance(name, str) and name} | dict(parents)


def _same(path: Path, config: BaseModel, parents: Mapping[str, str]) -> None:
    before = _read_object(path / "config.json")
    with contextlib.suppress(ValidationError):
        before = (
            type(config).model_validate_json(json.dumps(before)).model_dump(mode="json")
        )  # with later keys' defaults
    before.pop("out", None)
    found = list(_differences(before, _settings(config)))
    if found:
        more = f"; and {len(found) - _DIFFERENCES_SHOWN} more" if len(found) > _DIFFERENCES_SHOWN else ""
        raise PrefloopError(
            f"{path}: this run was started with other settings: {'; '.join(found[:_DIFFERENCES_SHOWN])}{more}. Use the"
            " same settings to go on, choose another folder, or remove this one."
        )
    known = _read_object(path / "run.json").get("fingerprints", {})
    for role, parent in _inputs(config, parents).items():
        if role in known and known[role] != fingerprint(parent):
            raise PrefloopError(
                f"{path}: its {role}, {parent}, has changed since this run began; remove this folder to run it again."
            )


def _begin(path: Path, config: BaseModel, stage: str, parents: Mapping[str, str]) -> None:
    foreign = [p.name for p in path.iterdir() if p.name not in _OWN and not p.name.startswith(".")]
    if foreign:
        raise PrefloopError(f"{path}: this folder holds {sorted(foreign)[0]} but is no run; choose another folder.")
    about = {
        "stage": stage,
        "versions": _versions(),
        "seed": getattr(config, "seed", None),
        "parents": dict(parents),
        "fingerprints": {role: fingerprint(name) for role, name in _inputs(config, parents).items()},
        "config_hash": config_hash(config),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomic(path / "run.json", _dump(about))
    write_atomic(path / "config.json", _dump(config.model_dump(mode="json")))


def progress(total: int, unit: str, done: int = 0) -> Ticker:
    """A context manager that shows on stderr how far `total` units are, their rate and the time left.

    `done` were done in earlier sessions and do not count in the rate. On a terminal a bar, else a line every 10 s."""
    return Ticker(total, unit, done)


class Ticker:
    """What `progress` hands out."""

    def __init__(self, total: int, unit: str, done: int) -> None:
        self._total, self._unit, self._done, self._first = total, unit, done, done
        self._began = self._shown = time.monotonic()
        self._note = ""
        self._bar = _bar() if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._bar:
            self._task = self._bar.add_task(self._unit, total=self._total, completed=self._done, rate="", note="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, n: int, note: str = "") -> None:
        """`n` more are done; `note` stands behind the rate until the next one."""
        self.show(self._done + n, self._total, note)

    def show(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` are done by now; either may have shrunk."""
        self._done, self._total, self._note = done, total, note
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, rate=self._rate_text(), note=note)
        elif time.monotonic() - self._shown >= _LINE_EVERY:
            self._shown = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _rate(self) -> float:
        return (self._done - self._first) / max(time.monotonic() - self._began, 1e-9)

    def _rate_text(self) -> str:
        return f"{self._rate():.3g} {self._unit}/s"

    def _line(self) -> str:
        left = (self._total - self._done) / self._rate() if self._rate() else math.inf
        eta = f"{_time(left)} left" if 0 <= left < math.inf else "time left unknown"
        parts = [f"{self._done}/{self._total} {self._unit}", self._rate_text(), eta]
        return ", ".join([*parts, self._note] if self._note else parts)


def _time(seconds: float) -> str:
    """6600 -> 1 h 50 min; up to 100 minutes in minutes"""
    minutes = round(seconds / 60)
    if minutes < 10:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        speed_estimate_period=_RATE_OVER,
    )
