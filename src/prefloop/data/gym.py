"""Problems without end from reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760), each split with seeds of its
own: the only door to that library, but for the sandbox that scores answers."""

from __future__ import annotations

import importlib
import json
import warnings
from typing import Any

from prefloop.types import Demonstration, Json, Message, PrefloopError, Prompt

PREFIX = "gym:"
SPLITS = {"train": 1000, "dev": 100, "eval": 400, "demonstrations": 500}
"""How many problems of each split there are where the source does not say."""
TRIES = 10  # problems that are looked at for each that is kept, since a question may come again
APART = 10**8  # problem i of seed s is that of seed s + i, so seeds have to be far apart


def gym_prompts(source: str) -> list[Prompt]:
    """Prompts of "gym:TASK" or "gym:TASK?key=value&...", their answers as targets. The keys `train`, `dev`, `eval` and
    `demonstrations` are counts, the others the task's own (values in JSON). No question stands in two splits, nor in
    one twice. Raises PrefloopError for an unknown task, key or value, or where the library is missing."""
    task, _, rest = source.removeprefix(PREFIX).partition("?")
    given = dict(_option(source, text) for text in rest.split("&") if text)
    counts = {split: given.pop(split, count) for split, count in SPLITS.items()}
    made: dict[str, Prompt] = {}
    for place, (split, count) in enumerate(counts.items()):
        if type(count) is not int or count < 0:
            raise PrefloopError(f"{source}: {split} is {count!r}; give a number of problems.")
        origin = {"task": task, "seed": place * APART, "size": max(1, TRIES * count), "config": given}
        problems, before = dataset(origin), len(made)
        for index in range(TRIES * count):
            if len(made) - before == count:
                break
            entry = problems[index]
            prompt = Prompt(
                id=f"{task}-{split}-{index}",
                messages=(Message(role="user", content=entry["question"]),),
                slice=task,
                split=split,
                checks={"gym": {**origin, "index": index}},
                target=str(entry["answer"]),
            )
            made.setdefault(entry["question"], prompt)
        if (found := len(made) - before) < count:
            raise PrefloopError(f"{source}: only {found} new problems for {split}; ask for fewer or a wider task.")
    return list(made.values())


def gym_demonstrations(source: str) -> list[Demonstration]:
    """Of the split `demonstrations`, each question with its answer in the tag that rewards/tags.py reads."""
    prompts = [prompt for prompt in gym_prompts(source) if prompt.split == "demonstrations"]
    return [Demonstration(id=p.id, prompt=p, completion=f"<answer>{p.target}</answer>") for p in prompts]


def dataset(origin: Json) -> Any:
    """The library's own data set of a prompt's `checks["gym"]`; its problem is that of `index`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library = importlib.import_module("reasoning_gym")
    except ImportError:
        raise PrefloopError('reasoning-gym is not installed: pip install "prefloop[reasoning]".') from None
    try:
        return library.create_dataset(origin["task"], seed=origin["seed"], size=origin["size"], **origin["config"])
    except (ValueError, TypeError, AssertionError) as error:
        raise PrefloopError(f"{PREFIX}{origin['task']}: {error}.") from None


def exact_alone(origin: Json) -> bool:
    """Whether the task's own check gives full marks to nothing but the answer itself."""
    kind = type(dataset(origin))
    return bool(kind.score_answer is importlib.import_module("reasoning_gym.dataset").ProceduralDataset.score_answer)


def _option(source: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    try:
        return key, json.loads(value if equals else "")
    except ValueError:
        raise PrefloopError(f"{source}: {text!r} is not key=value with a value in JSON.") from None
