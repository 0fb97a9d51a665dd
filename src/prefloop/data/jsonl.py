"""Rows into our records, also from the shapes in which others publish; and records into JSONL."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from prefloop.data.rows import read_rows
from prefloop.types import (
    Completion,
    Demonstration,
    Json,
    Message,
    Preference,
    PrefloopError,
    Prompt,
    Sampling,
    StepLabels,
    Verdict,
    from_json,
    to_json,
)

ROLES = ("system", "user", "assistant", "tool")
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_TRUTH: Mapping[str, Json] = {"true": True, "false": False}  # as text, in a CSV
_Made = TypeVar("_Made")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is whole and on disk; after an error `path` is as before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: str | Path, text: str | bytes) -> None:
    """Replace `path` by `text` (UTF-8) whole or not at all: temporary name, fsync, rename. Parent folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode() if isinstance(text, str) else text)


def encode_line(record: object) -> bytes:
    """One record as a line of JSON. Raises PrefloopError for a number that is not finite."""
    return encode_json(to_json(record))


def encode_json(value: Json) -> bytes:
    """`encode_line` of what is plain JSON already."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise PrefloopError(f"A record cannot be written as JSON ({error}): find where its number went bad.") from error
    # A lone surrogate is not UTF-8; backslashreplace spells it as the JSON escape that it came from.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def write_jsonl(path: str | Path, records: Iterable[object]) -> int:
    """Write records as lines, whole or not at all (gzip where the name ends in .gz); returns how many."""
    return write_lines(path, map(encode_line, records))


def write_lines(path: str | Path, lines: Iterable[bytes]) -> int:
    """`write_jsonl` of lines as they are."""
    path, count = Path(path), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as raw:
        zipped = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else None
        file = cast(BinaryIO, zipped or raw)
        for line in lines:
            file.write(line)
            count += 1
        if zipped:
            zipped.close()
    return count


def content_id(*parts: Json) -> str:
    """64 hexadecimal digits that depend on the content alone: SHA-256 of the parts as canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _field(row: Mapping[str, Json], name: str, where: str) -> Json:
    if name not in row:
        raise PrefloopError(f"{where}: field {name!r} is missing; this line has {', '.join(map(repr, row))}.")
    return row[name]


def text_field(row: Mapping[str, Json], name: str, where: str) -> str:
    """A field that must be there and be a string."""
    value = _field(row, name, where)
    if not isinstance(value, str):
        raise PrefloopError(f"{where}: field {name!r} must be a string, not {type(value).__name__}.")
    return value


def read_messages(value: Json, name: str, where: str) -> tuple[Message, ...]:
    """A string (one user turn) or a list of {"role", "content"}; other keys of a message are not read."""
    if isinstance(value, str):
        return (Message(role="user", content=value),)
    if not isinstance(value, list) or not value:
        raise PrefloopError(f"{where}: field {name!r} must be a string or a list of messages with at least one.")
    made = []
    for index, item in enumerate(value):
        place = f"{where}: {name}[{index}]"
        if not isinstance(item, Mapping):
            raise PrefloopError(f"{place} must be an object with 'role' and 'content'.")
        made.append(Message(role=text_field(item, "role", place), content=text_field(item, "content", place)))
    return _checked(tuple(made), where)


def _checked(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    if not messages:
        raise PrefloopError(f"{where}: a prompt needs at least one message.")
    for message in messages:
        if message.role not in ROLES:
            raise PrefloopError(f"{where}: role {message.role!r} is not one of {', '.join(ROLES)}.")
    return messages


def asked(messages: Sequence[Message], name: str, where: str) -> Prompt:
    """The prompt of an answer that field `name` holds, by content."""
    if not messages:
        raise PrefloopError(f"{where}: field {name!r} holds an answer but no turn before it.")
    return Prompt(id=content_id(to_json(messages)), messages=tuple(messages))


def _own_prompt(value: Json, where: str) -> Prompt:
    prompt = from_json(Prompt, value, where)
    _checked(prompt.messages, where)
    return prompt


def _last_answer(messages: Sequence[Message]) -> int:
    return max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)


def _make_prompt(row: dict[str, Json], where: str) -> Prompt:
    name = "prompt" if "prompt" in row and "messages" not in row else "messages"
    messages = read_messages(_field(row, name, where), name, where)
    turns = messages[:-1] if messages[-1].role == "assistant" else messages
    ours = "id" in row and (turns == messages or any(field in row for field in ("slice", "split", "checks")))
    if name == "messages" and ours:
        return _own_prompt({**row, "messages": row["messages"][: len(turns)]}, where)
    beside = {field: row[field] for field in ("slice", "split", "checks", "target") if row.get(field) not in (None, "")}
    return from_json(Prompt, {"id": asked(turns, name, where).id, "messages": to_json(turns), **beside}, where)


def make_demonstration(row: dict[str, Json], where: str) -> Demonstration:
    """See `read_demonstrations`."""
    if "text" in row and not {"messages", "prompt"} & row.keys():
        text = text_field(row, "text", where)
        return Demonstration(id=content_id(text), prompt=Prompt(id="", messages=()), completion=text)
    if "messages" in row:
        messages = read_messages(row["messages"], "messages", where)
        at = _last_answer(messages)
        if at < 0:
            raise PrefloopError(f"{where}: field 'messages' has no assistant turn to learn from.")
        prompt, answer = asked(messages[:at], "messages", where), messages[at].content
    elif isinstance(_field(row, "prompt", where), Mapping):
        demonstration = from_json(Demonstration, row, where)
        _checked(demonstration.prompt.messages, where)
        return demonstration
    else:
        prompt = asked(read_messages(row["prompt"], "prompt", where), "prompt", where)
        answer = text_field(row, "completion", where)
    return Demonstration(id=content_id(prompt.id, answer), prompt=prompt, completion=answer)


def _transcript(row: Mapping[str, Json], name: str, where: str) -> tuple[Message, ...]:
    """`\\n\\nHuman: ...\\n\\nAssistant: ...`, the format of Anthropic's hh-rlhf, as messages."""
    parts = _TURN.split(text_field(row, name, where))
    if len(parts) < 3 or parts[0].strip():
        raise PrefloopError(
            f"{where}: field 'prompt' is missing, and {name!r} is neither a list of messages nor a transcript that"
            " begins with 'Human:'."
        )
    return tuple(
        Message(role=_HH_ROLES[role], content=content.strip())
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    )


def _conversation(row: Mapping[str, Json], name: str, where: str) -> tuple[Message, ...]:
    """The whole conversation that ends with the answer in field `name`, whatever the shape of the row."""
    value = _field(row, name, where)
    if "prompt" not in row:
        return read_messages(value, name, where) if isinstance(value, list) else _transcript(row, name, where)
    before = read_messages(row["prompt"], "prompt", where)
    if isinstance(value, str):
        return (*before, Message(role="assistant", content=value))
    after = read_messages(value, name, where)
    if before in (after[: len(before)], after[-1 - len(before) : -1]):
        return after
    if after[0].role != "assistant":
        raise PrefloopError(f"{where}: {name!r} holds a conversation without 'prompt'; give it whole, or the answer.")
    return before + after


def make_preference(row: dict[str, Json], where: str) -> Preference:
    """See `read_preferences`."""
    if "items" in row:
        preference = from_json(Preference, row, where)
        _checked(preference.prompt.messages, where)
        return _checked_preference(preference, where)
    chosen, rejected = _conversation(row, "chosen", where), _conversation(row, "rejected", where)
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1].role != "assistant":
            raise PrefloopError(f"{where}: field {name!r} must end with an assistant turn, not {turns[-1].role!r}.")
    if chosen[:-1] != rejected[:-1]:
        raise PrefloopError(f"{where}: 'chosen' and 'rejected' differ before the last turn; they answer other prompts.")
    if chosen == rejected:
        raise PrefloopError(f"{where}: 'chosen' and 'rejected' are the same answer; remove this line.")
    prompt = asked(chosen[:-1], "chosen", where)
    items = (text_completion(prompt, chosen[-1].content), text_completion(prompt, rejected[-1].content))
    return Preference(prompt=prompt, items=items, target=1.0, group=prompt.id)


def _checked_preference(preference: Preference, where: str) -> Preference:
    count, ranking, target = len(preference.items), preference.ranking, preference.target
    if count < 2 or (ranking is None and count != 2) or (ranking is not None and len(ranking) != count):
        ranks = "no ranking" if ranking is None else f"{len(ranking)} ranks"
        raise PrefloopError(f"{where}: {count} items with {ranks}; give two items with a target, or a rank for each.")
    if target is not None and ranking is not None:
        raise PrefloopError(f"{where}: 'ranking' and 'target' both say what is better; leave one out.")
    if target is not None and not 0 <= target <= 1:
        raise PrefloopError(f"{where}: field 'target' is {target}; it is the probability of item 0, so give 0 to 1.")
    if not (0 < preference.weight < math.inf and 0 <= preference.margin < math.inf):
        raise PrefloopError(f"{where}: 'weight' must be above 0 and 'margin' at least 0, both finite.")
    return preference


def make_completion(row: dict[str, Json], where: str) -> tuple[Prompt, Completion]:
    """A prompt and one answer to it; what is no record of ours may name in "model" what wrote the answer."""
    if isinstance(row.get("completion"), Mapping):
        prompt = _own_prompt(_field(row, "prompt", where), f"{where} prompt")
        return prompt, from_json(Completion, row["completion"], f"{where} completion")
    written = make_demonstration(row, where)
    if not written.prompt.messages:
        raise PrefloopError(f"{where}: field 'text' answers no prompt; give 'prompt' and 'completion'.")
    return written.prompt, text_completion(written.prompt, written.completion, str(row.get("model") or ""))


def make_step_labels(row: dict[str, Json], where: str) -> StepLabels:
    """See `read_step_labels`."""
    if isinstance(row.get("completion"), Mapping):
        labeled = from_json(StepLabels, row, where)
        _checked(labeled.prompt.messages, where)
    else:
        prompt = asked(read_messages(_field(row, "prompt", where), "prompt", where), "prompt", where)
        steps, labels = _field(row, "completions", where), _field(row, "labels", where)
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise PrefloopError(f"{where}: field 'completions' must be a list of strings, the steps.")
        if isinstance(labels, list):
            labels = [float(label) if isinstance(label, bool) else label for label in labels]
        answer = text_completion(prompt, "\n".join(steps))
        made = {"prompt": to_json(prompt), "completion": to_json(answer), "labels": labels}
        labeled = from_json(StepLabels, made, where)
    if not all(label is None or 0 <= label <= 1 for label in labeled.labels):
        raise PrefloopError(f"{where}: field 'labels' holds probabilities that a step is right; give 0 to 1, or null.")
    return labeled


def make_verdict(row: dict[str, Json], where: str) -> Verdict:
    """See `read_verdicts`."""
    if isinstance(row.get("completion"), Mapping):
        verdict = from_json(Verdict, row, where)
        _checked(verdict.prompt.messages, where)
        return verdict
    prompt = asked(read_messages(_field(row, "prompt", where), "prompt", where), "prompt", where)
    good = _field(row, "label", where)
    good = _TRUTH.get(good.strip().lower(), good) if isinstance(good, str) else good
    if not isinstance(good, bool):
        raise PrefloopError(f"{where}: field 'label' is {good!r}; give true for a good answer, or false.")
    return Verdict(prompt=prompt, completion=text_completion(prompt, text_field(row, "completion", where)), good=good)


def text_completion(prompt: Prompt, text: str, checkpoint: str = "") -> Completion:
    """An answer known only as text: no segments (it is tokenized when it becomes a tree), ended by itself."""
    return Completion(
        id=content_id(prompt.id, text, *([checkpoint] if checkpoint else [])),
        prompt_id=prompt.id,
        segments=(),
        text=text,
        finish_reason="stop",
        sampling=Sampling(),
        seed=0,
        checkpoint=checkpoint,
    )


def _read_all(
    path: str | Path, make: Callable[[dict[str, Json], str], _Made], skip_bad: bool | None = None
) -> list[tuple[int, _Made]]:
    made: list[tuple[int, _Made]] = []
    bad: list[str] = []
    for number, row in read_rows(path):
        try:
            made.append((number, make(row, f"{path}:{number}")))
        except PrefloopError as error:
            if skip_bad is None:
                raise
            if not skip_bad:
                raise PrefloopError(f"{error} With skip_bad = true such rows are left out.") from error
            bad.append(str(error))
    if bad:
        logging.getLogger(__name__).warning("%s: %d bad lines skipped, the first: %s", path, len(bad), bad[0])
    if not made:
        raise PrefloopError(f"{path}: every line is bad; the first: {bad[0]}")
    return made


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts of a file that `rows` reads, in its order: our records; {"messages"} (a final assistant turn is cut off);
    {"prompt"}; either may have "slice", "split", "checks" and "target" beside it.

    Foreign rows get an id from their content, so that equal ones are one prompt. Raises PrefloopError with file:line
    and field where a row does not fit, and where two different prompts share an id; a warning counts those that are in
    two splits."""
    prompts: dict[str, tuple[int, Prompt]] = {}
    alike: dict[tuple[Message, ...], tuple[int, Prompt]] = {}
    leaks: list[str] = []
    for number, prompt in _read_all(path, _make_prompt):
        first, known = prompts.setdefault(prompt.id, (number, prompt))
        if known != prompt:
            raise PrefloopError(f"{path}:{number}: id {prompt.id!r} is another prompt on line {first}; rename it.")
        first, known = alike.setdefault(prompt.messages, (number, prompt))
        if known.split != prompt.split:
            leaks.append(f"line {number} ({prompt.split}) is line {first} ({known.split})")
    if leaks:
        logging.getLogger(__name__).warning(
            "%s: %d prompts are in two splits, the first: %s", path, len(leaks), leaks[0]
        )
    return [prompt for _, prompt in prompts.values()]


def read_demonstrations(path: str | Path) -> list[Demonstration]:
    """Demonstrations of a file that `rows` reads: our records; {"messages"} (its last assistant turn answers, what
    follows is not read); {"prompt": string or messages, "completion": string}; plain {"text"}, a demonstration that
    answers nothing. Raises PrefloopError with file:line and field."""
    return [demonstration for _, demonstration in _read_all(path, make_demonstration)]


def read_step_labels(path: str | Path) -> list[StepLabels]:
    """Step labels of a file that `rows` reads: our records; {"prompt": string or messages, "completions": the steps,
    each a line, "labels": true, false, a number in 0..1 or null for each}. Raises PrefloopError with file:line and
    field."""
    return [labeled for _, labeled in _read_all(path, make_step_labels)]


def read_verdicts(path: str | Path) -> list[Verdict]:
    """Verdicts of a file that `rows` reads: our records; {"prompt": string or messages, "completion": string, "label":
    true where it is good}. Raises PrefloopError with file:line and field."""
    return [verdict for _, verdict in _read_all(path, make_verdict)]


def read_preferences(path: str | Path, *, skip_bad: bool = False) -> list[Preference]:
    """Preferences of a file that `rows` reads: our records; {"prompt", "chosen", "rejected"} as strings or messages;
    "chosen" and "rejected" as message lists with a common prefix, or as Human/Assistant transcripts (Bai et al. 2022).

    A row that does not fit, answers two contexts or prefers an answer to itself raises PrefloopError with file:line;
    with `skip_bad` such rows are left out and one warning counts them."""
    return [preference for _, preference in _read_all(path, make_preference, skip_bad)]
