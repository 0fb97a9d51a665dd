"""Rows of others into what is to be compared: which layout a row has, and what it says of answers and who chose.

A model's name goes into `Completion.checkpoint` and nowhere else: labelers never see that."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.data.jsonl import asked, make_completion, make_preference, read_messages, text_completion, text_field
from prefloop.data.pairing import comparison_id
from prefloop.data.rows import parse_json
from prefloop.types import Comparison, Completion, Json, Judgment, Message, PrefloopError, Prompt, from_json

IMPORTED = "imported"
"""The annotator of judgments that name none."""
BOTH_BAD = "both bad"
_LONGEST_NAME = 200
_EXTRAS = ("slice", "mix", "priority", "gold")
_ASKING = ("prompt", "instruction", "question", "input", "context", "conversation", "messages", "chat")
_STEM = re.compile(r"[\W_]*([0-9]+|[a-zA-Z])$")
_TIES = ("tie", "ties", "equal", "same", "both", "draw", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a row holds: a comparison of its answers, with the judgments that others made of it. Without `whole` the
    answers are on their own, to be compared with other answers to the prompt."""

    prompt: Prompt
    items: tuple[Completion, ...]
    judgments: tuple[Judgment, ...] = ()
    whole: bool = True
    mix: str = ""
    priority: float = 0.0
    gold: Mapping[str, Json] | None = None


def read_row(row: Mapping[str, Json], where: str) -> Found:
    """A row of any layout that is known, its answers in the order of their ids (see `in_order`).

    Also read: "annotator" and "strength" (1 to 4) of a choice, "slice", "mix", "priority", and "gold"
    ({"ranking", "note"}, a known answer). Raises PrefloopError naming `where` for an unknown layout, with the fields
    found and those known, and for a row that does not fit its own."""
    plain = {name: value for name, value in row.items() if name not in _EXTRAS}
    make = next((make for fields, make in _LAYOUTS.items() if plain.keys() >= set(fields.split())), None)
    if any(name.endswith(".responses") for name in row):
        make = _argilla_flat
    if make is not None:
        return in_order(_with_extras(make(plain, where), row, where), where)
    if "prompt" in row:
        raise PrefloopError(f"{where}: a prompt without an answer; have answers sampled first (prefloop collect).")
    layouts = "; ".join(", ".join(fields.split()) for fields in ("comparison labels", *_LAYOUTS))
    found = ", ".join(row)[:500] or "none"
    raise PrefloopError(f"{where}: unknown layout; fields found: {found}; layouts known: {layouts}.")


def in_order(found: Found, where: str) -> Found:
    """The same with its answers by id, so that a pair is one comparison whichever way round it comes.

    Raises PrefloopError where answers are too few or the same but for space around them."""
    if found.whole and len(found.items) < 2:
        raise PrefloopError(f"{where}: {len(found.items)} answer; a comparison needs two or more.")
    texts = [item.text.strip() for item in found.items]
    if found.whole and len(set(texts)) < len(texts):
        raise PrefloopError(f"{where}: two of the answers are the same; nothing can be preferred, remove this row.")
    order = sorted(range(len(texts)), key=lambda i: found.items[i].id)
    items = tuple(found.items[i] for i in order)
    judgments = tuple(_turned(judgment, order, comparison_id(items)) for judgment in found.judgments)
    gold = found.gold and {**found.gold, "ranking": [found.gold["ranking"][i] for i in order]}
    return dataclasses.replace(found, items=items, judgments=judgments, gold=gold)


def _turned(judgment: Judgment, order: Sequence[int], id_: str) -> Judgment:
    ranking, probability = judgment.ranking, judgment.probability
    if ranking is not None:
        ranking = tuple(ranking[i] for i in order)
    if probability is not None and order[0] != 0:
        probability = 1 - probability
    return dataclasses.replace(judgment, comparison_id=id_, ranking=ranking, probability=probability)


def _with_extras(found: Found, row: Mapping[str, Json], where: str) -> Found:
    extras: dict[str, Any] = {}
    if mix := _name(row, "mix", where):
        extras["mix"] = mix
    if row.get("priority") not in (None, ""):
        extras["priority"] = _number(row["priority"], "priority", where)
    if slice_ := _name(row, "slice", where):
        extras["prompt"] = dataclasses.replace(found.prompt, slice=slice_)
    if row.get("gold") not in (None, ""):
        extras |= {"gold": _gold(row["gold"], len(found.items), where), "whole": True}
    return dataclasses.replace(found, **extras)


def _gold(value: Json, count: int, where: str) -> Mapping[str, Json]:
    value = parse_json(value, f"{where}: gold") if isinstance(value, str) else value
    if not isinstance(value, Mapping) or not value.keys() <= {"ranking", "note"}:
        raise PrefloopError(f"{where}: field 'gold' must be an object with 'ranking' and, if you like, 'note'.")
    note = text_field(value, "note", f"{where}: gold") if value.get("note") is not None else ""
    return {"ranking": list(_ranking(value.get("ranking"), count, "gold", where)), "note": note}


def _ranking(value: Json, count: int, name: str, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != count or not all(type(v) is int and 0 <= v < count for v in value):
        raise PrefloopError(
            f"{where}: {name!r} needs a rank for each of {count} answers, 0 for the best, equal for ties."
        )
    return tuple(value)


def _number(value: Json, name: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise PrefloopError(f"{where}: field {name!r} must be a number, not {value!r:.40}.")
    return number


def _name(row: Mapping[str, Json], field: str, where: str) -> str:
    """A short name on one line; empty where there is none."""
    value = row.get(field)
    name = "" if value is None else str(value)
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise PrefloopError(f"{where}: field {field!r} must be a name of at most {_LONGEST_NAME} printable characters.")
    return name


def _model(row: Mapping[str, Json], field: str) -> str:
    return str(row.get(field) or "")


def _choice(ranking: Sequence[int], row: Mapping[str, Json], where: str, **facts: Any) -> Judgment:
    """A judgment by whoever the row names, or by IMPORTED; of two answers with the strength that it gives."""
    who = _name(row, "annotator", where) or _name(row, "judge", where) or IMPORTED
    strength = None
    if row.get("strength") not in (None, "") and len(set(ranking)) == len(ranking) == 2:
        given = _number(row["strength"], "strength", where)
        if given not in (1, 2, 3, 4):
            raise PrefloopError(f"{where}: field 'strength' goes from 1 (barely) to 4 (much), not {row['strength']!r}.")
        strength = int(given)
    return Judgment(comparison_id="", annotator=who, ranking=tuple(ranking), strength=strength, **facts)


def _answers(row: Mapping[str, Json], where: str) -> Found:
    prompt = asked(read_messages(row["prompt"], "prompt", where), "prompt", where)
    texts, models = row["answers"], row.get("models") or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise PrefloopError(f"{where}: field 'answers' must be a list of strings, one for each answer.")
    if not isinstance(models, list) or len(models) not in (0, len(texts)):
        raise PrefloopError(f"{where}: field 'models' must name one model for each of {len(texts)} answers.")
    names = [str(name or "") for name in models] or [""] * len(texts)
    items = tuple(text_completion(prompt, text, name) for text, name in zip(texts, names, strict=True))
    ranked = row.get("ranking") not in (None, "")
    ranking = _ranking(row["ranking"], len(texts), "ranking", where) if ranked else ()
    return Found(prompt=prompt, items=items, whole=ranked, judgments=(_choice(ranking, row, where),) if ranked else ())


def _completion(row: Mapping[str, Json], where: str) -> Found:
    prompt, completion = make_completion(dict(row), where)
    return Found(prompt=prompt, items=(completion,), whole=False)


def _preference(row: Mapping[str, Json], where: str) -> Found:
    made = make_preference(dict(row), where)
    if "chosen" in row:
        return Found(prompt=made.prompt, items=made.items, judgments=(_choice((0, 1), row, where),))
    judgment = Judgment(
        comparison_id="", annotator=IMPORTED, ranking=made.ranking, probability=None if made.ranking else made.target
    )
    if made.ranking is None and made.target is None:
        judgment = dataclasses.replace(judgment, ranking=(0, 1))
    return Found(prompt=made.prompt, items=made.items, judgments=(judgment,))


def _comparison(row: Mapping[str, Json], where: str) -> Found:
    fields = ("id", "prompt", "items")
    made = from_json(Comparison, {name: row[name] for name in fields}, where)
    return Found(prompt=made.prompt, items=made.items)


def _items(row: Mapping[str, Json], where: str) -> Found:
    return _comparison(row, where) if "id" in row else _preference(row, where)


def _arena(row: Mapping[str, Json], where: str) -> Found:
    """A battle of Chatbot Arena (Chiang et al. 2024) or of MT-bench's people, where `turn` ends the conversation."""
    if "conversation_a" in row:
        sides = [_up_to(_conversation(row, f"conversation_{side}", where), row.get("turn")) for side in "ab"]
    else:
        before = read_messages(row["prompt"], "prompt", where)
        texts = [text_field(row, f"response_{side}", where) for side in "ab"]
        sides = [(*before, Message(role="assistant", content=text)) for text in texts]
    for side, turns in zip("ab", sides, strict=True):
        if turns[-1].role != "assistant":
            raise PrefloopError(f"{where}: field 'conversation_{side}' must end with an assistant turn.")
    if sides[0][:-1] != sides[1][:-1]:
        raise PrefloopError(f"{where}: the conversations differ before the last turn; they answer other prompts.")
    prompt = asked(sides[0][:-1], "conversation_a", where)
    items = tuple(
        text_completion(prompt, turns[-1].content, _model(row, f"model_{side}"))
        for side, turns in zip("ab", sides, strict=True)
    )
    return Found(prompt=prompt, items=items, judgments=_winner(row, where))


def _winner(row: Mapping[str, Json], where: str) -> tuple[Judgment, ...]:
    winner = re.sub(r"\W|_", "", str(row.get("winner") or "")).casefold()
    outcomes = {"modela": (0, 1), "a": (0, 1), "modelb": (1, 0), "b": (1, 0), "tie": (0, 0)}
    if not winner:
        return ()
    if winner in ("tiebothbad", "bothbad"):
        return (_choice((0, 0), row, where, flags=(BOTH_BAD,)),)
    if winner not in outcomes:
        raise PrefloopError(
            f"{where}: 'winner' is {row['winner']!r}; it must be model_a, model_b, tie or tie (bothbad)."
        )
    return (_choice(outcomes[winner], row, where),)


def _conversation(row: Mapping[str, Json], field: str, where: str) -> tuple[Message, ...]:
    value = row[field]
    value = parse_json(value, f"{where}: {field}") if isinstance(value, str) else value
    if not isinstance(value, list):
        raise PrefloopError(f"{where}: field {field!r} must be a list of messages.")
    return read_messages([_joined(message, field, where) for message in value], field, where)


def _joined(message: Json, field: str, where: str) -> Json:
    """A message whose content comes in parts, with their text as one."""
    if not isinstance(message, Mapping) or not isinstance(parts := message.get("content"), list):
        return message
    if not all(isinstance(part, Mapping) and part.get("type", "text") == "text" for part in parts):
        raise PrefloopError(f"{where}: a message of {field!r} holds more than text; remove this row.")
    return {**message, "content": "".join(text_field(part, "text", where) for part in parts)}


def _up_to(turns: tuple[Message, ...], turn: Json) -> tuple[Message, ...]:
    """The conversation up to its answer number `turn`, if that is given."""
    answers = [i for i, message in enumerate(turns) if message.role == "assistant"]
    return turns[: answers[turn - 1] + 1] if type(turn) is int and 0 < turn <= len(answers) else turns


def _label_studio(row: Mapping[str, Json], where: str) -> Found:
    """A task of Label Studio's JSON export with its `Pairwise` results."""
    data, annotations = _mapping(row, "data", where), row.get("annotations") or []
    if not isinstance(annotations, list) or not all(isinstance(a, Mapping) for a in annotations):
        raise PrefloopError(f"{where}: field 'annotations' must be a list of objects.")
    made, names = [], ""
    for annotation in annotations:
        if annotation.get("was_cancelled"):
            continue
        for result in annotation.get("result") or []:
            if isinstance(result, Mapping) and result.get("type") == "pairwise":
                names = str(result.get("to_name") or "")
                made.append(_pairwise(annotation, result, where))
    fields = [name.strip() for name in names.split(",")]
    if not (len(fields) == 2 and all(name in data for name in fields)):
        fields = [name for name, value in data.items() if isinstance(value, str) and name not in _ASKING]
    return dataclasses.replace(_of_fields(data, fields[:2] if len(fields) == 2 else (), where), judgments=tuple(made))


def _pairwise(annotation: Mapping[str, Json], result: Mapping[str, Json], where: str) -> Judgment:
    selected = _mapping(result, "value", where).get("selected")
    if selected not in ("left", "right"):
        raise PrefloopError(f"{where}: a pairwise result has selected {selected!r}; it must be 'left' or 'right'.")
    who, seconds = annotation.get("completed_by"), annotation.get("lead_time")
    who = who.get("email") or who.get("id") if isinstance(who, Mapping) else who
    return Judgment(
        comparison_id="",
        annotator=_name({"completed_by": f"label-studio {who}"}, "completed_by", where) if who else IMPORTED,
        ranking=(0, 1) if selected == "left" else (1, 0),
        seconds=None if seconds is None else _number(seconds, "lead_time", where),
    )


def _mapping(row: Mapping[str, Json], field: str, where: str) -> Mapping[str, Json]:
    if not isinstance(value := row.get(field), Mapping):
        raise PrefloopError(f"{where}: field {field!r} must be an object.")
    return value


def _of_fields(data: Mapping[str, Json], names: Sequence[str], where: str) -> Found:
    """A comparison of named fields; the prompt is the field that is named like one."""
    prompts = [name for name in _ASKING if data.get(name)]
    if not prompts or len(names) < 2:
        raise PrefloopError(
            f"{where}: among the fields {', '.join(data)} a prompt ({', '.join(_ASKING)}) and the answers must be told"
            " apart; rename them."
        )
    prompt = asked(read_messages(data[prompts[0]], prompts[0], where), prompts[0], where)
    return Found(prompt=prompt, items=tuple(text_completion(prompt, text_field(data, name, where)) for name in names))


def _argilla(row: Mapping[str, Json], where: str) -> Found:
    """A record of Argilla 2 (responses by question) or 1 (responses by user)."""
    fields, responses = _mapping(row, "fields", where), row["responses"]
    given: list[tuple[str, Json, Json]] = []  # question, user, value
    if isinstance(responses, Mapping):
        given = [
            (question, answer.get("user_id"), answer.get("value"))
            for question, answers in responses.items()
            for answer in answers or []
            if answer.get("status") in (None, "submitted")
        ]
    elif isinstance(responses, list):
        given = [
            (question, response.get("user_id"), answer.get("value"))
            for response in responses
            if response.get("status") in (None, "submitted")
            for question, answer in (response.get("values") or {}).items()
        ]
    return _of_responses(fields, given, where)


def _argilla_flat(row: Mapping[str, Json], where: str) -> Found:
    """A record of Argilla 2 as `to_datasets` flattens it: QUESTION.responses, .responses.users, .responses.status."""
    given: list[tuple[str, Json, Json]] = []
    for name in row:
        if name.endswith(".responses") and row[name]:
            values = row[name]
            users, states = (row.get(f"{name}.{part}") or [None] * len(values) for part in ("users", "status"))
            given += [
                (name.removesuffix(".responses"), user, value)
                for value, user, state in zip(values, users, states, strict=True)
                if state in (None, "submitted")
            ]
    own = ("id", "status", "_server_id")
    fields = {name: value for name, value in row.items() if "." not in name and name not in own}
    return _of_responses(fields, given, where)


def _of_responses(fields: Mapping[str, Json], given: Sequence[tuple[str, Json, Json]], where: str) -> Found:
    """Questions whose responses rank the fields, or name the best; other questions are not read."""
    plain = {_bare(name): name for name, value in fields.items() if isinstance(value, str) and name not in _ASKING}
    named = {_bare(value) for _, _, values in given for value in _values(values)}
    names = _alike(list(plain.values()), [name for bare, name in plain.items() if bare in named])
    found, judgments = _of_fields(fields, names, where), []
    for _, user, value in given:
        ranking = _ranks(value, [_bare(name) for name in names])
        if ranking is not None:
            who = _name({"user_id": f"argilla {user}"}, "user_id", where) if user else IMPORTED
            judgments.append(Judgment(comparison_id="", annotator=who, ranking=ranking))
    if given and not judgments:
        raise PrefloopError(f"{where}: no question names the fields that are compared ({', '.join(names)}).")
    return dataclasses.replace(found, judgments=tuple(judgments))


def _alike(names: Sequence[str], named: Sequence[str]) -> Sequence[str]:
    """Of the fields those that are called as the ones named are, but for a last letter or number: response_a, _b."""
    if len(names) == 2:
        return names
    stems = [_STEM.sub("", name) for name in names]
    wanted = {_STEM.sub("", name) for name in named} or {stem for stem in stems if stems.count(stem) > 1}
    return [name for name, stem in zip(names, stems, strict=True) if stem in wanted]


def _bare(name: Json) -> str:
    return re.sub(r"\W|_", "", str(name)).casefold()


def _values(value: Json) -> Iterator[Json]:
    for part in value if isinstance(value, list) else [value]:
        yield part.get("value") if isinstance(part, Mapping) else part


def _ranks(value: Json, names: Sequence[str]) -> tuple[int, ...] | None:
    """Ranks of the names: by a list of them, best first (or with a rank each), or by the best one alone."""
    order = [_bare(part) for part in _values(value)]
    if isinstance(value, list):
        if sorted(order) != sorted(names):
            return None
        given = [part.get("rank") if isinstance(part, Mapping) else None for part in value]
        places = [rank if isinstance(rank, int) else place for place, rank in enumerate(given)]
        best = sorted(set(places))
        return tuple(best.index(places[order.index(name)]) for name in names)
    if order[0] in _TIES:
        return (0,) * len(names)
    return tuple(int(name != order[0]) for name in names) if order[0] in names else None


_LAYOUTS: Mapping[str, Callable[[Mapping[str, Json], str], Found]] = {
    "prompt items": _items,
    "conversation_a conversation_b": _arena,
    "prompt response_a response_b": _arena,
    "data annotations": _label_studio,
    "fields responses": _argilla,
    "prompt answers": _answers,
    "chosen rejected": _preference,
    "prompt completion": _completion,
    "messages": _completion,
}
