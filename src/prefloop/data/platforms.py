"""Rows that Chatbot Arena, Label Studio and Argilla export."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

from prefloop.data.found import IMPORTED, Found, Row, chosen, listed, mapping, name, number
from prefloop.data.jsonl import asked, read_messages, text_completion, text_field
from prefloop.data.limits import parse_json
from prefloop.types import Json, Judgment, Message, PrefloopError

BOTH_BAD = "both bad"
_ASKING = ("prompt", "instruction", "question", "input", "context", "conversation", "messages", "chat")
_TIES = ("tie", "ties", "equal", "same", "both", "draw", "none")
_OUTCOMES = {"modela": (0, 1), "a": (0, 1), "modelb": (1, 0), "b": (1, 0), "tie": (0, 0)}
_STEM = re.compile(r"[\W_]*([0-9]+|[a-zA-Z])$")
Response = tuple[Json, Json]


def arena(row: Row, where: str) -> Found:
    """A battle of Chatbot Arena (Chiang et al. 2024), also of MT-bench's people, where `turn` ends the conversation."""
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
        text_completion(prompt, turns[-1].content, str(row.get(f"model_{side}") or ""))
        for side, turns in zip("ab", sides, strict=True)
    )
    return Found(prompt=prompt, items=items, judgments=_winner(row, where))


def _winner(row: Row, where: str) -> tuple[Judgment, ...]:
    winner = _bare(row.get("winner") or "")
    if not winner:
        return ()
    if winner in ("tiebothbad", "bothbad"):
        return (chosen((0, 0), row, where, flags=(BOTH_BAD,)),)
    if winner not in _OUTCOMES:
        known = "model_a, model_b, tie or tie (bothbad)"
        raise PrefloopError(f"{where}: field 'winner' must be {known}, not {row['winner']!r:.40}.")
    return (chosen(_OUTCOMES[winner], row, where),)


def _conversation(row: Row, field: str, where: str) -> tuple[Message, ...]:
    value = row[field]
    value = parse_json(value, f"{where}: {field}") if isinstance(value, str) else value
    return read_messages([_joined(message, field, where) for message in listed(value, field, where)], field, where)


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


def label_studio(row: Row, where: str) -> Found:
    """A task of Label Studio's JSON export with its `Pairwise` results."""
    data, made, names = mapping(row["data"], "data", where), [], ""
    for each in listed(row["annotations"], "annotations", where):
        annotation = mapping(each, "annotations", where)
        for each_result in [] if annotation.get("was_cancelled") else listed(annotation.get("result"), "result", where):
            result = mapping(each_result, "result", where)
            if result.get("type") == "pairwise":
                names = str(result.get("to_name") or "")
                made.append(_pairwise(annotation, result, where))
    fields = [field.strip() for field in names.split(",")]
    if not (len(fields) == 2 and all(field in data for field in fields)):
        fields = [field for field, value in data.items() if isinstance(value, str) and field not in _ASKING]
    found = _of_fields(data, fields if len(fields) == 2 else (), where)
    return dataclasses.replace(found, judgments=tuple(made))


def _pairwise(annotation: Row, result: Row, where: str) -> Judgment:
    selected = mapping(result.get("value"), "value", where).get("selected")
    if selected not in ("left", "right"):
        raise PrefloopError(f"{where}: a pairwise result has selected {selected!r:.40}; it must be 'left' or 'right'.")
    who, seconds = annotation.get("completed_by"), annotation.get("lead_time")
    who = who.get("email") or who.get("id") if isinstance(who, Mapping) else who
    return Judgment(
        comparison_id="",
        annotator=_of("label-studio", who, where),
        ranking=(0, 1) if selected == "left" else (1, 0),
        seconds=None if seconds is None else number(seconds, "lead_time", where),
    )


def _of(platform: str, who: Json, where: str) -> str:
    """The annotator's name here: numbers of two platforms are two people."""
    return name({"annotator": f"{platform} {who}"}, "annotator", where) if who else IMPORTED


def _of_fields(data: Row, names: Sequence[str], where: str) -> Found:
    """A comparison of named fields; the prompt is the field that is named like one."""
    prompts = [field for field in _ASKING if data.get(field)]
    if not prompts or len(names) < 2:
        raise PrefloopError(
            f"{where}: among the fields {', '.join(data):.300} a prompt ({', '.join(_ASKING)}) and the answers must be"
            " told apart; rename them."
        )
    prompt = asked(read_messages(data[prompts[0]], prompts[0], where), prompts[0], where)
    return Found(prompt=prompt, items=tuple(text_completion(prompt, text_field(data, field, where)) for field in names))


def argilla(row: Row, where: str) -> Found:
    """A record of Argilla 2, with responses by question, or of Argilla 1, by user."""
    fields, responses, given = mapping(row["fields"], "fields", where), row["responses"], list[Response]()
    for question in responses.values() if isinstance(responses, Mapping) else ():
        for each in listed(question, "responses", where):
            answer = mapping(each, "responses", where)
            if answer.get("status") in (None, "submitted"):
                given.append((answer.get("user_id"), answer.get("value")))
    for each in () if isinstance(responses, Mapping) else listed(responses, "responses", where):
        by_user = mapping(each, "responses", where)
        if by_user.get("status") in (None, "submitted"):
            answers = mapping(by_user.get("values"), "values", where).values()
            given += [(by_user.get("user_id"), mapping(a, "values", where).get("value")) for a in answers]
    return _of_responses(fields, given, where)


def argilla_flat(row: Row, where: str) -> Found:
    """A record of Argilla 2 as `to_datasets` flattens it: QUESTION.responses, .responses.users, .responses.status."""
    given: list[Response] = []
    for field in row:
        if field.endswith(".responses"):
            values = listed(row[field], field, where)
            parts = [listed(row.get(f"{field}.{part}"), f"{field}.{part}", where) for part in ("users", "status")]
            users, states = (part or [None] * len(values) for part in parts)
            if not len(values) == len(users) == len(states):
                raise PrefloopError(f"{where}: {field!r} needs as many users and states as responses.")
            given += [
                (user, value)
                for value, user, state in zip(values, users, states, strict=True)
                if state in (None, "submitted")
            ]
    own = ("id", "status", "_server_id")
    fields = {field: value for field, value in row.items() if "." not in field and field not in own}
    return _of_responses(fields, given, where)


def _of_responses(fields: Row, given: Sequence[Response], where: str) -> Found:
    """Questions whose responses rank the fields, or name the best; other questions are not read."""
    plain = {_bare(field): field for field, value in fields.items() if isinstance(value, str) and field not in _ASKING}
    named = {_bare(value) for _, values in given for value in _values(values)}
    names = _alike(list(plain.values()), [field for bare, field in plain.items() if bare in named])
    found, judgments = _of_fields(fields, names, where), []
    for user, value in given:
        ranking = _ranks(value, [_bare(field) for field in names])
        if ranking is not None:
            judgments.append(Judgment(comparison_id="", annotator=_of("argilla", user, where), ranking=ranking))
    if given and not judgments:
        raise PrefloopError(f"{where}: no question names the fields that are compared ({', '.join(names):.300}).")
    return dataclasses.replace(found, judgments=tuple(judgments))


def _alike(names: Sequence[str], named: Sequence[str]) -> Sequence[str]:
    """Of the fields those that are called as the ones named are, but for a last letter or number: response_a, _b."""
    if len(names) == 2:
        return names
    stems = [_STEM.sub("", field) for field in names]
    wanted = {_STEM.sub("", field) for field in named} or {stem for stem in stems if stems.count(stem) > 1}
    return [field for field, stem in zip(names, stems, strict=True) if stem in wanted]


def _bare(text: Json) -> str:
    return re.sub(r"\W|_", "", str(text)).casefold()


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
        return tuple(best.index(places[order.index(field)]) for field in names)
    if order[0] in _TIES:
        return (0,) * len(names)
    return tuple(int(field != order[0]) for field in names) if order[0] in names else None
