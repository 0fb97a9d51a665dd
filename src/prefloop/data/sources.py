"""Where records come from: the shipped files, whatever `rows` reads, a run folder, or problems that are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from prefloop.data.arrow import is_saved
from prefloop.data.gym import PREFIX, gym_demonstrations, gym_prompts
from prefloop.data.jsonl import read_demonstrations, read_preferences, read_prompts, read_step_labels
from prefloop.data.rows import read_rows
from prefloop.types import Demonstration, Preference, PrefloopError, Prompt, StepLabels

BUILTIN = "builtin"


@contextmanager
def _opened(source: str | Path, name: str) -> Iterator[Path]:
    if str(source) == BUILTIN:
        with as_file(files("prefloop.data") / BUILTIN / name) as path:
            yield path
        return
    path = Path(source)
    if path.is_dir() and not is_saved(path):
        raise PrefloopError(f"{path}: this is a folder; give {BUILTIN!r} or a JSONL file such as {name}.")
    yield path


def load_prompts(source: str | Path, *, splits: Sequence[str] = ()) -> list[Prompt]:
    """Prompts of 'builtin', a file or "gym:TASK" (data/gym.py), in its order, of the given splits (none given: all).

    Raises PrefloopError when nothing is left, naming the splits that the source has."""
    if str(source).startswith(PREFIX):
        prompts = gym_prompts(str(source))
    else:
        with _opened(source, "prompts.jsonl") as path:
            prompts = read_prompts(path)
    kept = [prompt for prompt in prompts if not splits or prompt.split in splits]
    if not kept:
        there = ", ".join(sorted({prompt.split for prompt in prompts}))
        raise PrefloopError(f"{source}: no prompt of split {', '.join(splits)}; this source has {there}.")
    return kept


def load_demonstrations(source: str | Path) -> list[Demonstration]:
    """Demonstrations of 'builtin', a file or "gym:TASK", in its order. Raises PrefloopError when there are none."""
    if str(source).startswith(PREFIX):
        return gym_demonstrations(str(source))
    with _opened(source, "demonstrations.jsonl") as path:
        return read_demonstrations(path)


def load_preferences(source: str | Path, *, skip_bad: bool = False) -> list[Preference]:
    """Preferences of a file or of a finished label run's folder; `skip_bad` as in `read_preferences`.

    Raises PrefloopError when there are none, or the label run has not finished."""
    if str(source) == BUILTIN:
        raise PrefloopError("No preferences are shipped; give a label run's folder or a JSONL file.")
    path = Path(source)
    if path.is_dir() and not is_saved(path):
        if not (path / "result.json").is_file():
            raise PrefloopError(f"{path}: this is no finished label run; run the label stage to its end first.")
        path = path / "preferences.jsonl"
    return read_preferences(path, skip_bad=skip_bad)


def samples_file(source: str | Path) -> Path:
    """The answers of a finished run's folder, or the file itself. PrefloopError for a run that is still to be finished:
    others must not take a part of it for the whole."""
    path = Path(source)
    if not path.is_dir() or is_saved(path):
        return path
    if (path / "run.json").is_file() and not (path / "result.json").is_file():
        raise PrefloopError(f"{path}: this run has not finished; run its stage again, to its end, first.")
    return path / "samples.jsonl"


def holds_verdicts(source: str | Path) -> bool:
    """Whether the first row is an answer by itself with a label, and no comparison."""
    path = Path(source)
    if str(source) == BUILTIN or (path.is_dir() and not is_saved(path)):
        return False
    _, row = next(read_rows(source))
    return "completion" in row


def load_step_labels(source: str | Path) -> list[StepLabels]:
    """Step labels of a file. Raises PrefloopError for a folder, or when there are none."""
    with _opened(source, "steps.jsonl") as path:
        return read_step_labels(path)
