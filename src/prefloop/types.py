"""Frozen records that cross stages, processes and disk. Standard library only; no tensors.

Axes, the same letter everywhere: B branch, T token, P prompt, G group, V vocabulary, D width,
R tokens that a loss reads.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Author = Literal["prompt", "policy", "tool", "person"]
FinishReason = Literal["stop", "length"]
Json = Any


class PrefloopError(Exception):
    """An error that a user can mend: one sentence that says what, where and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation that waits for an answer. `checks`: what code can verify of one (see rewards/rubric.py)."""

    id: str
    messages: tuple[Message, ...]
    slice: str = ""
    split: str = "train"
    checks: Mapping[str, Json] = field(default_factory=dict)
    target: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """What a person would have answered to a prompt."""

    id: str
    prompt: Prompt
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tokens of one author; `logprobs` (nats, of the sampler) only where the policy wrote them."""

    author: Author
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. Only temperature shapes the distribution: importance ratios stay exact.

    An answer ends after `max_tokens`, with a stop token of the model or of `stop_tokens`, or with the token that
    completes one of the `stop` strings in its text.
    """

    temperature: float = 1.0
    max_tokens: int = 64
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer as tokens, never re-rendered. What ended it, a stop token or the tokens of a stop string, is among its
    tokens and not in its text."""

    id: str
    prompt_id: str
    segments: tuple[Segment, ...]
    text: str
    finish_reason: FinishReason
    sampling: Sampling
    seed: int
    checkpoint: str = ""
    version: int = 0

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for segment in self.segments for token in segment.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A recorded behaviour of a control task: a media file that people compare."""

    media: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two or more answers to one prompt that wait for a judgment."""

    id: str
    prompt: Prompt
    items: tuple[Completion, ...]


CANT_JUDGE = "can't judge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """One annotator's view of a comparison, in the order of its items (not in the order shown).

    `ranking[i]` is the rank of item i, 0 best, equal numbers tie; or `probability` that item 0 of two is better; or
    neither, where flags hold CANT_JUDGE. `strength` of the preference for one of two: 1 (barely) to 4 (much). `axes`:
    strength by name, above 0 for item 0, below for item 1. `ratings` (1 to 7) and each of `checks` (is it met?): one an
    item. `edit`: a better answer that the annotator wrote.
    """

    comparison_id: str
    annotator: str
    ranking: tuple[int, ...] | None = None
    probability: float | None = None
    strength: int | None = None
    axes: Mapping[str, Json] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    ratings: tuple[int, ...] = ()
    checks: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    edit: str = ""
    rationale: str = ""
    shown_order: tuple[int, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """What a reward model or DPO learns from: `target` = probability that items[0] is better than items[1],
    or a `ranking` of all items. `group` ties preferences over one prompt to one tree. `simulated`: no real
    person had a say; `judges`: but these models."""

    prompt: Prompt
    items: tuple[Completion, ...]
    ranking: tuple[int, ...] | None = None
    target: float | None = None
    weight: float = 1.0
    margin: float = 0.0
    group: str = ""
    simulated: bool = False
    judges: tuple[str, ...] = ()

    @property
    def by_rubric(self) -> bool:
        """Whether simulated people gave it, whose truth is the rubric."""
        return self.simulated and not self.judges and bool(self.prompt.checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLabels:
    """What a process reward model learns from: the probability that each step of an answer is right (0 an error, None
    not labeled), one for every step in order. `by`: who or what said so."""

    prompt: Prompt
    completion: Completion
    labels: tuple[float | None, ...]
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What KTO learns from: an answer by itself, good or bad. `by`: who or what said so."""

    prompt: Prompt
    completion: Completion
    good: bool
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    by: str = ""
    explanation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A run of tokens by one author. `fields`: per-token numbers that losses read, each as long as `tokens`.

    A token is read (scored, trained) where `weight` is not 0; without `weight` none is."""

    parent: int
    tokens: tuple[int, ...]
    author: Author
    fields: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Node `a` preferred over node `b` with probability `target` (both are leaves of one tree)."""

    a: int
    b: int
    target: float = 1.0
    weight: float = 1.0
    margin: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Leaves of one tree and the rank of each: 0 best, equal numbers tie."""

    nodes: tuple[int, ...]
    ranks: tuple[int, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Token segments that share prefixes; parents stand before children, node 0 is the root (parent -1)."""

    id: str
    nodes: tuple[Node, ...]
    pairs: tuple[Pair, ...] = ()
    rankings: tuple[Ranking, ...] = ()
    trajectory_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a training stage leaves behind. `parent`: the checkpoint it started from; `labels`: hash of its data."""

    path: str
    kind: Literal["policy", "reward"]
    step: int
    parent: str
    config_hash: str
    details: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    step: int
    values: Mapping[str, float]


Record = TypeVar("Record")


def to_json(record: object) -> Json:
    """A record as plain JSON values; empty optional fields stay, so that a reader sees the whole shape."""
    kind: Any = type(record)
    if kind in _PLAIN:
        return record
    if names := _names(kind):
        return {name: to_json(getattr(record, name)) for name in names}
    if isinstance(record, Mapping):
        return {str(key): to_json(value) for key, value in record.items()}
    if isinstance(record, Sequence) and not isinstance(record, str):
        return list(record) if set(map(type, record)) <= _PLAIN else [to_json(value) for value in record]
    return record


_PLAIN = frozenset((int, float, str, bool, type(None)))


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def from_json(kind: type[Record], value: Json, where: str = "record") -> Record:
    """The inverse of `to_json`. Raises PrefloopError naming `where` and the field that is missing, unknown or odd."""
    hint: Any = kind
    made: Record = _reader(hint)(value, where)
    return made


_Reader = Callable[[Json, str], Any]


@functools.cache
def _reader(kind: Any) -> _Reader:
    """What reads a value of this kind; made once, since type hints are slow to look at."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return lambda value, where: value
    if origin in (types.UnionType, typing.Union):
        given = _reader(next(a for a in arguments if a is not type(None)))
        return lambda value, where: None if value is None else given(value, where)
    if origin is Literal:
        return lambda value, where: _read_literal(arguments, value, where)
    if origin is tuple:
        return lambda value, where: _read_tuple(arguments[0], value, where)
    if origin is Mapping:
        return lambda value, where: _read_mapping(arguments[1], value, where)
    if dataclasses.is_dataclass(kind):
        return lambda value, where: _read_dataclass(kind, value, where)
    return lambda value, where: value if type(value) is kind else _read_plain(kind, value, where)


def _read_literal(arguments: Sequence[Any], value: Json, where: str) -> Any:
    if value not in arguments:
        raise PrefloopError(f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}.")
    return value


def _read_tuple(kind: Any, value: Json, where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise PrefloopError(f"{where}: a list is needed, not {type(value).__name__}.")
    if set(map(type, value)) == {kind}:  # tokens and log-probs: by far the most of what is read
        return tuple(value)
    read = _reader(kind)
    return tuple(read(item, f"{where}[{i}]") for i, item in enumerate(value))


def _read_mapping(kind: Any, value: Json, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise PrefloopError(f"{where}: an object is needed, not {type(value).__name__}.")
    read = _reader(kind)
    return {str(k): read(v, f"{where}.{k}") for k, v in value.items()}


def _read_plain(kind: Any, value: Json, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > 2**53:
            raise PrefloopError(f"{where}: the number is too large.")
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise PrefloopError(f"{where}: {kind.__name__} is needed, not {type(value).__name__}.")
    return value


def _read_dataclass(kind: Any, value: Json, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise PrefloopError(f"{where}: an object with the fields of {kind.__name__} is needed, not {value!r:.40}.")
    fields = _fields(kind)
    for name in value:
        if name not in fields:
            raise PrefloopError(f"{where}: unknown field {name!r}; {kind.__name__} has {', '.join(fields)}.")
    for name, (_, required) in fields.items():
        if required and name not in value:
            raise PrefloopError(f"{where}: field {name!r} of {kind.__name__} is missing.")
    return kind(**{n: read(value[n], f"{where}.{n}") for n, (read, _) in fields.items() if n in value})


@functools.cache
def _fields(kind: Any) -> dict[str, tuple[_Reader, bool]]:
    """What reads it and whether it is required, of each field of a record."""
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return {
        f.name: (_reader(hints[f.name]), f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(kind)
    }
