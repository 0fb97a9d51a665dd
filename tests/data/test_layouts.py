"""What a row of others says: every layout, every defined outcome of odd rows, and no model's name out of its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.found import Found
from prefloop.data.jsonl import text_completion
from prefloop.data.layouts import read_row
from prefloop.types import Comparison, Message, Preference, PrefloopError, Prompt, to_json

USER = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello!"}
AWAY = {"role": "assistant", "content": "Go away."}
ARENA = {
    "question_id": "58210e39b3fd4441a2bd4a518bb44c2d",
    "model_a": "chatglm-6b",
    "model_b": "koala-13b",
    "winner": "model_b",
    "judge": "arena_user_973",
    "conversation_a": [USER, HELLO],
    "conversation_b": [USER, AWAY],
    "turn": 1,
    "anony": True,
    "language": "English",
    "tstamp": 1682351591.1322,
}
STUDIO = {
    "id": 7,
    "data": {"prompt": "Hi", "answer1": "Hello!", "answer2": "Go away."},
    "annotations": [
        {
            "id": 1001,
            "completed_by": 10,
            "was_cancelled": False,
            "lead_time": 4.5,
            "result": [
                {
                    "id": "x",
                    "type": "pairwise",
                    "from_name": "pw",
                    "to_name": "answer1,answer2",
                    "value": {"selected": "left"},
                }
            ],
        }
    ],
    "predictions": [],
}
ARGILLA = {
    "id": "1",
    "fields": {"instruction": "Hi", "response-1": "Hello!", "response-2": "Go away."},
    "metadata": {"model": "koala"},
    "suggestions": {"preference": {"value": "response-1", "score": 0.5, "agent": "gpt-4"}},
    "responses": {"preference": [{"value": "response-1", "user_id": "u1"}, {"value": "response-2", "user_id": "u2"}]},
    "vectors": {},
    "status": "completed",
}


def read(row: dict[str, Any]) -> Found:
    return read_row(json.loads(json.dumps(row)), "file:1")


def by_text(found: Found) -> list[tuple[str, dict[str, int] | None, int | None]]:
    """Who ranked which text where, and how strongly."""
    texts = [item.text for item in found.items]
    return [
        (j.annotator, dict(zip(texts, j.ranking, strict=True)) if j.ranking is not None else None, j.strength)
        for j in found.judgments
    ]


HELLO_WINS, AWAY_WINS, TIE = ({"Hello!": a, "Go away.": b} for a, b in ((0, 1), (1, 0), (0, 0)))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}, [("imported", HELLO_WINS, None)]),
        (
            {"chosen": [USER, AWAY], "rejected": [USER, HELLO], "annotator": "ada", "strength": 3},
            [("ada", AWAY_WINS, 3)],
        ),
        (
            {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away.", "annotator": 7, "strength": "4"},
            [("7", HELLO_WINS, 4)],
        ),
        ({"prompt": "Hi", "answers": ["Hello!", "Go away."], "ranking": [1, 0]}, [("imported", AWAY_WINS, None)]),
        (
            {"prompt": "Hi", "answers": ["Hello!", "Go away."], "ranking": [0, 0], "strength": 2},
            [("imported", TIE, None)],
        ),
        (ARENA, [("arena_user_973", AWAY_WINS, None)]),
        (ARENA | {"winner": "model_a"}, [("arena_user_973", HELLO_WINS, None)]),
        (ARENA | {"winner": "tie", "judge": None}, [("imported", TIE, None)]),
        (ARENA | {"winner": None}, []),
        (
            {"prompt": "Hi", "response_a": "Hello!", "response_b": "Go away.", "winner": "b"},
            [("imported", AWAY_WINS, None)],
        ),
        ({"prompt": "Hi", "response_a": "Hello!", "response_b": "Go away."}, []),
        (STUDIO, [("label-studio 10", HELLO_WINS, None)]),
        (STUDIO | {"annotations": []}, []),
        (
            STUDIO
            | {
                "data": {"prompt": "Hi", "one": "Hello!", "two": "Go away."},
                "annotations": [STUDIO["annotations"][0] | {"completed_by": {"id": 3, "email": "eve@example.org"}}],
            },
            [("label-studio eve@example.org", HELLO_WINS, None)],
        ),
        (STUDIO | {"annotations": [STUDIO["annotations"][0] | {"was_cancelled": True}]}, []),
        (ARGILLA, [("argilla u1", HELLO_WINS, None), ("argilla u2", AWAY_WINS, None)]),
        (ARGILLA | {"responses": {}}, []),
        (
            ARGILLA | {"responses": {"preference": [{"value": ["response_2", "response_1"], "user_id": "u"}]}},
            [("argilla u", AWAY_WINS, None)],
        ),
        (
            ARGILLA
            | {
                "responses": [
                    {
                        "user_id": "u",
                        "status": "submitted",
                        "values": {
                            "quality": {"value": 3},
                            "rank": {"value": [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 1}]},
                        },
                    },
                    {"user_id": "v", "status": "draft", "values": {"rank": {"value": "response-1"}}},
                ]
            },
            [("argilla u", TIE, None)],
        ),
        (
            {
                "id": "1",
                "status": "completed",
                "_server_id": "5",
                "prompt": "Hi",
                "response_a": "Hello!",
                "response_b": "Go away.",
                "source": "web",
                "better.responses": ["response_b", "tie", "response_a"],
                "better.responses.users": ["u", "v", "w"],
                "better.responses.status": ["submitted", "submitted", "discarded"],
                "better.suggestion": None,
            },
            [("argilla u", AWAY_WINS, None), ("argilla v", TIE, None)],
        ),
    ],
)
def test_every_layout_says_who_preferred_what(row: dict[str, Any], said: list[Any]) -> None:
    found = read(row)
    assert found.whole
    assert [(m.role, m.content) for m in found.prompt.messages] == [("user", "Hi")]
    assert sorted(item.text for item in found.items) == ["Go away.", "Hello!"]
    assert by_text(found) == said


def test_a_models_name_is_kept_as_the_checkpoint_and_nowhere_else() -> None:
    found = read(ARENA)
    assert {item.text: item.checkpoint for item in found.items} == {"Hello!": "chatglm-6b", "Go away.": "koala-13b"}
    plain = to_json(found.items)
    for item in plain:
        item["checkpoint"] = ""
    told = json.dumps([plain, to_json(found.prompt), to_json(found.judgments), found.mix])
    assert "glm" not in told
    assert "koala" not in told
    lone = read({"prompt": "Hi", "completion": "Hello!", "model": "koala"})
    assert (lone.whole, [item.checkpoint for item in lone.items]) == (False, ["koala"])
    several = read({"prompt": "Hi", "answers": ["a", "b"], "models": ["x", None]})
    assert {item.text: item.checkpoint for item in several.items} == {"a": "x", "b": ""}
    assert len({read({"prompt": "Hi", "completion": "x", "model": name}).items[0].id for name in ("", "a", "b")}) == 3


def test_both_bad_is_a_tie_with_a_flag() -> None:
    for winner in ("tie (bothbad)", "both_bad"):
        (judgment,) = read(ARENA | {"winner": winner}).judgments
        assert (judgment.ranking, judgment.flags) == ((0, 0), ("both bad",))


def test_a_turn_ends_the_conversation_as_in_mt_bench() -> None:
    longer = {side: [USER, first, USER, AWAY] for side, first in (("conversation_a", HELLO), ("conversation_b", AWAY))}
    assert by_text(read(ARENA | longer | {"turn": 1})) == [("arena_user_973", AWAY_WINS, None)]
    with pytest.raises(PrefloopError, match="differ before the last turn"):
        read(ARENA | longer | {"turn": 2})
    parts = [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, HELLO]
    assert read(ARENA | {"conversation_a": parts}).prompt.messages[0].content == "Hi"
    assert read(ARENA | {"conversation_a": json.dumps(parts)}).prompt.messages[0].content == "Hi"


def test_seconds_of_label_studio_are_kept() -> None:
    assert read(STUDIO).judgments[0].seconds == 4.5


def test_rankings_of_many_keep_their_ties() -> None:
    fields = {"prompt": "Hi"} | {f"reply-{i}": f"text {i}" for i in range(4)}
    order = [{"value": "reply-2", "rank": 1}, {"value": "reply-0", "rank": 2}]
    order += [{"value": "reply-3", "rank": 2}, {"value": "reply-1", "rank": 5}]
    row = {"fields": fields, "responses": {"r": [{"user_id": "u", "value": order}]}}
    assert by_text(read(row)) == [("argilla u", {"text 0": 1, "text 1": 2, "text 2": 0, "text 3": 1}, None)]
    plain = {"prompt": "Hi", "answers": ["a", "b", "c"], "ranking": [2, 0, 0], "annotator": "eve"}
    assert by_text(read(plain)) == [("eve", {"a": 2, "b": 0, "c": 0}, None)]


def test_our_own_records() -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="Hi"),), slice="s")
    items = (text_completion(prompt, "Hello!"), text_completion(prompt, "Go away."))
    soft = read(to_json(Preference(prompt=prompt, items=items, target=0.75)) | {"mix": "hard"})
    first = items.index(soft.items[0])
    assert (soft.prompt, soft.mix, soft.judgments[0].probability) == (prompt, "hard", (0.75, 0.25)[first])
    assert by_text(read(to_json(Preference(prompt=prompt, items=items)))) == [("imported", HELLO_WINS, None)]
    ranked = Preference(prompt=prompt, items=items, ranking=(1, 0))
    assert by_text(read(to_json(ranked))) == [("imported", AWAY_WINS, None)]
    waiting = read(to_json(Comparison(id="c", prompt=prompt, items=items)))
    assert (waiting.whole, waiting.judgments, set(waiting.items)) == (True, (), set(items))
    answer = {"prompt": to_json(prompt), "completion": to_json(items[0])}
    assert (read(answer).whole, read(answer).items) == (False, items[:1])
    assert [item.text for item in read({"messages": [USER, HELLO]}).items] == ["Hello!"]


def test_extras_go_with_any_layout() -> None:
    gold = {"ranking": [0, 1], "note": "It greets."}
    extras = {"slice": "greetings", "mix": "easy", "priority": "0.5", "gold": json.dumps(gold)}
    for row in (ARENA, STUDIO, ARGILLA, {"prompt": "Hi", "answers": ["Hello!", "Go away."]}):
        found = read(row | extras)
        assert (found.prompt.slice, found.mix, found.priority, found.whole) == ("greetings", "easy", 0.5, True)
        assert found.gold
        ranks = dict(zip([item.text for item in found.items], found.gold["ranking"], strict=True))
        assert (ranks, found.gold["note"]) == (HELLO_WINS, "It greets.")
    assert read(ARENA | {"gold": None, "mix": "", "priority": "", "slice": None}) == read(ARENA)


@given(
    texts=st.lists(st.text(min_size=1, max_size=3), min_size=2, max_size=5, unique_by=str.strip),
    chance=st.randoms(use_true_random=False),
    data=st.data(),
)
def test_the_order_of_the_answers_changes_nothing(texts: list[str], chance: Any, data: st.DataObject) -> None:
    """The same pair (or more) in another order is the same comparison with the same judgment and gold."""
    ranks = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=len(texts), max_size=len(texts)))
    order = list(range(len(texts)))
    chance.shuffle(order)
    row = {"prompt": "Hi", "answers": texts, "ranking": ranks, "gold": {"ranking": ranks}}
    turned = [ranks[i] for i in order]
    other = {**row, "answers": [texts[i] for i in order], "ranking": turned, "gold": {"ranking": turned}}
    one, two = read(row), read(other)
    assert one == two
    assert one.judgments[0].ranking is not None
    assert {item.text: rank for item, rank in zip(one.items, one.judgments[0].ranking, strict=True)} == dict(
        zip(texts, ranks, strict=True)
    )


PAIR = {"prompt": "Hi", "chosen": "a", "rejected": "b"}


def test_odd_rows_that_are_fine() -> None:
    long = "word " * 200_000
    for row in (
        PAIR | {"rejected": ""},  # an answer can be empty
        PAIR | {"prompt": "?"},
        PAIR | {"prompt": long},
        {"prompt": "Grüße", "chosen": "مرحبا بالعالم", "rejected": "こんにちは 👋🏽 नमस्ते"},
    ):
        found = read(row)
        assert found.prompt.messages[0].content == row["prompt"]
        assert {item.text for item in found.items} == {row["chosen"], row["rejected"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "Hi", "n": 1}, r"file:1: unknown layout; fields found: text, n; layouts known: comparison, labels; "),
        ({}, "unknown layout; fields found: none"),
        ({"prompt": "Hi"}, "a prompt without an answer"),
        ({"messages": [USER]}, "no assistant turn"),
        (PAIR | {"rejected": "a"}, "are the same answer"),
        (PAIR | {"rejected": " a\n"}, "two of the answers are the same"),
        ({"prompt": "Hi", "answers": ["", " "], "ranking": [0, 1]}, "two of the answers are the same"),
        (ARENA | {"conversation_b": [USER, HELLO]}, "two of the answers are the same"),
        (PAIR | {"rejected": None}, "field 'rejected' must be a string or a list|must be a string"),
        ({"prompt": "Hi", "chosen": "a"}, "a prompt without an answer"),
        ({"prompt": "Hi", "response_a": "a", "response_b": None}, "field 'response_b' must be a string, not NoneType"),
        ({"prompt": "Hi", "answers": ["a"], "ranking": [0]}, "1 answer; a comparison needs two"),
        ({"prompt": "Hi", "answers": "ab"}, "'answers' must be a list of strings"),
        ({"prompt": "Hi", "answers": ["a", 1]}, "'answers' must be a list of strings"),
        ({"prompt": "Hi", "answers": ["a", "b"], "models": ["x"]}, "'models' must name one model"),
        ({"prompt": "Hi", "answers": ["a", "b"], "ranking": [0]}, "needs a rank for each of 2 answers"),
        ({"prompt": "Hi", "answers": ["a", "b"], "ranking": [0, 2]}, "needs a rank for each of 2 answers"),
        ({"prompt": "Hi", "answers": ["a", "b"], "ranking": [True, 0]}, "needs a rank for each of 2 answers"),
        (PAIR | {"strength": 5}, "'strength' goes from 1"),
        (PAIR | {"strength": "much"}, "'strength' must be a number"),
        (PAIR | {"annotator": "a\nb"}, "'annotator' must be a name of at most 200 printable"),
        (PAIR | {"annotator": "\ud800"}, "must be a name"),
        (PAIR | {"mix": "a\0"}, "'mix' must be a name"),
        (PAIR | {"slice": "x" * 201}, "'slice' must be a name"),
        (PAIR | {"priority": "high"}, "'priority' must be a number, not 'high'"),
        (PAIR | {"priority": 10**400}, "'priority' must be a number"),
        (PAIR | {"gold": [0, 1]}, "'gold' must be an object"),
        (PAIR | {"gold": {"ranking": [0, 1], "why": "x"}}, "'gold' must be an object"),
        (PAIR | {"gold": {"ranking": [0]}}, "'gold' needs a rank for each of 2"),
        (PAIR | {"gold": "{"}, "gold: broken JSON"),
        ({"prompt": "Hi", "completion": "a", "gold": {"ranking": [0]}}, "1 answer; a comparison needs two"),
        (ARENA | {"winner": "me"}, "'winner' must be model_a, model_b, tie or tie"),
        (ARENA | {"conversation_a": [USER]}, "must end with an assistant turn"),
        (ARENA | {"conversation_a": 3}, "'conversation_a' must be a list, not 3"),
        (ARENA | {"conversation_a": [{"role": "user", "content": [{"type": "image"}]}, HELLO]}, "more than text"),
        (STUDIO | {"data": 3}, "'data' must be an object"),
        (STUDIO | {"annotations": 3}, "'annotations' must be a list"),
        (STUDIO | {"data": {"text1": "a", "text2": "b"}}, "among the fields text1, text2 a prompt"),
        (STUDIO | {"data": {"prompt": "a", "text2": "b"}}, "the answers must be told apart"),
        (
            STUDIO | {"annotations": [{"result": [{"type": "pairwise", "value": {"selected": "up"}}]}]},
            "selected 'up'; it must be 'left' or 'right'",
        ),
        (ARGILLA | {"fields": {"text": "a"}}, "must be told apart"),
        (ARGILLA | {"responses": {"q": [{"value": "yes", "user_id": "u"}]}}, "no question names the fields"),
    ],
)
def test_odd_rows_that_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(PrefloopError, match=message) as caught:
        read_row(row, "file:1")
    assert str(caught.value).startswith("file:1")
    assert len(str(caught.value)) < 1000


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def changed(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], junk)
    return copy


FLAT = {"prompt": "Hi", "a_1": "x", "a_2": "y", "q.responses": ["a_1"], "q.responses.users": ["u"]}
RANKED = {"prompt": [USER], "answers": ["a", "b"], "models": ["x", "y"], "ranking": [0, 1], "gold": {"ranking": [0, 1]}}
WHOLE = [ARENA, STUDIO, ARGILLA, FLAT, RANKED, PAIR | {"strength": 1}, {"messages": [USER, HELLO]}]
WHOLE += [
    ARGILLA | {"responses": [{"user_id": "u", "status": "submitted", "values": {"q": {"value": ["response-1"]}}}]}
]
WHOLE += [{"prompt": {"id": "p", "messages": [USER]}, "items": [to_json(text_completion(read(PAIR).prompt, "a"))] * 2}]


@pytest.mark.parametrize("row", WHOLE, ids=lambda row: ",".join(row)[:30])
@pytest.mark.parametrize(
    "junk", [None, 1, -0.5, True, "x", "", "[1]", [], [1], ["x"], {}, {"value": 1}, [{}], [[]]], ids=repr
)
def test_whatever_stands_anywhere_in_a_row_it_is_read_or_named(row: dict[str, Any], junk: Any) -> None:
    for path in places(row):
        if not path:
            continue
        try:
            found = read_row(changed(row, path, junk), "file:1")
        except PrefloopError:
            continue
        assert not found.whole or len(found.items) > 1
