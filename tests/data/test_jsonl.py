from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.jsonl import (
    make_completion,
    read_demonstrations,
    read_preferences,
    read_prompts,
    read_verdicts,
    text_completion,
    write_jsonl,
)
from prefloop.data.rows import read_jsonl
from prefloop.types import (
    Completion,
    Demonstration,
    Message,
    Preference,
    PrefloopError,
    Prompt,
    Sampling,
    Segment,
    to_json,
)

Write = Callable[..., Path]

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
HELLO = {"role": "assistant", "content": "Hello!"}
AWAY = {"role": "assistant", "content": "Go away."}
PROMPT = {
    "id": "p",
    "messages": [USER],
    "slice": "everyday",
    "split": "dev",
    "checks": {"max_words": 9},
    "target": None,
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*rows: dict[str, Any]) -> Path:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / "rows.jsonl"

    return write


def turns(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    rows=st.lists(st.dictionaries(st.text(), json_values, max_size=3), min_size=1), ending=st.sampled_from(["", ".gz"])
)
def test_any_object_survives(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], ending: str) -> None:
    path = tmp_path_factory.mktemp("jsonl") / f"rows.jsonl{ending}"
    assert write_jsonl(path, rows) == len(rows)
    assert list(read_jsonl(path)) == list(enumerate(rows, 1))
    written = path.read_bytes()
    write_jsonl(path, rows)
    assert path.read_bytes() == written
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_lone_surrogates_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"text": "\ud800 \u2028 日本"}])
    assert list(read_jsonl(path)) == [(1, {"text": "\ud800 \u2028 日本"})]
    assert "日本" in path.read_text()
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": 2}')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (4, {"a": 2})]


def test_an_unfinished_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"a": 1}])
    with pytest.raises(PrefloopError, match="cannot be written as JSON"):
        write_jsonl(path, [{"a": 2}, {"a": float("nan")}])
    assert list(read_jsonl(path)) == [(1, {"a": 1})]
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_our_own_records_come_back(write: Write, tmp_path: Path) -> None:
    prompt = Prompt(
        id="p",
        messages=(Message(role="user", content="Hi"),),
        slice="everyday",
        split="dev",
        checks={"max_words": 9},
    )
    demonstration = Demonstration(id="d", prompt=prompt, completion="Hello!")
    items = tuple(
        Completion(
            id=f"c{i}",
            prompt_id="p",
            segments=(Segment(author="policy", tokens=(1, 2), logprobs=(-0.5, -1.5)),),
            text="x" * i,
            finish_reason="length",
            sampling=Sampling(),
            seed=3,
        )
        for i in range(2)
    )
    preference = Preference(prompt=prompt, items=items, target=2 / 3, group="p")
    assert read_prompts(write(PROMPT)) == [prompt]
    for record, read in ((demonstration, read_demonstrations), (preference, read_preferences)):
        write_jsonl(tmp_path / "own.jsonl", [record])
        assert read(tmp_path / "own.jsonl") == [record]


def test_prompts_of_others(write: Write) -> None:
    found = read_prompts(
        write(
            {"prompt": "Hi", "source": "web"},
            {"messages": [SYSTEM, USER, HELLO], "id": "chat-1"},
            {"prompt": [USER]},
            {"messages": [SYSTEM, USER]},
        )
    )
    assert [turns(prompt.messages) for prompt in found] == [
        [("user", "Hi")],
        [("system", "Be kind."), ("user", "Hi")],
    ]
    assert len({prompt.id for prompt in found}) == 2
    assert [prompt.split for prompt in found] == ["train", "train"]


def test_what_stands_beside_a_prompt_of_others_counts(write: Write) -> None:
    checks = {"max_words": 9}
    found = read_prompts(
        write(
            {"prompt": "2 + 2?", "split": "eval", "target": "4", "slice": "sums", "checks": checks},
            {"messages": [USER, HELLO], "split": "dev", "slice": None},
        )
    )
    assert [(p.split, p.target, p.slice, p.checks) for p in found] == [
        ("eval", "4", "sums", checks),
        ("dev", None, "", {}),
    ]
    with pytest.raises(PrefloopError, match=r":1.target: str is needed"):
        read_prompts(write({"prompt": "2 + 2?", "target": 4}))


def test_our_own_prompts_keep_what_they_are_when_an_answer_follows(write: Write) -> None:
    (found,) = read_prompts(write({"id": "a", "messages": [USER, HELLO], "slice": "factual", "split": "dev"}))
    assert (found.id, found.slice, found.split, turns(found.messages)) == ("a", "factual", "dev", [("user", "Hi")])


def test_demonstrations_of_others(write: Write) -> None:
    found = read_demonstrations(
        write(
            {"messages": [USER, AWAY, USER, HELLO, USER]},
            {"prompt": "Hi", "completion": "Hello!"},
            {"prompt": [SYSTEM, USER], "completion": "Hello!"},
            {"text": "Hello!"},
        )
    )
    assert [d.completion for d in found] == ["Hello!"] * 4
    assert [turns(d.prompt.messages) for d in found] == [
        [("user", "Hi"), ("assistant", "Go away."), ("user", "Hi")],
        [("user", "Hi")],
        [("system", "Be kind."), ("user", "Hi")],
        [],
    ]
    assert len({d.id for d in found}) == 4


HH = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Is it 3:00?\n\nNo Human: here\n\nAssistant: "


@pytest.mark.parametrize(
    ("row", "context"),
    [
        ({"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}, [("user", "Hi")]),
        ({"prompt": [USER], "chosen": [HELLO], "rejected": [AWAY]}, [("user", "Hi")]),
        ({"prompt": "Hi", "chosen": [USER, HELLO], "rejected": [USER, AWAY]}, [("user", "Hi")]),
        (
            {"prompt": "Hi", "chosen": [SYSTEM, USER, HELLO], "rejected": [SYSTEM, USER, AWAY]},
            [("system", "Be kind."), ("user", "Hi")],
        ),
        ({"chosen": [USER, HELLO], "rejected": [USER, AWAY], "score": 9}, [("user", "Hi")]),
        ({"chosen": [SYSTEM, USER, HELLO], "rejected": [SYSTEM, USER, AWAY]}, [("system", "Be kind."), ("user", "Hi")]),
        (
            {"chosen": HH + "Hello!", "rejected": HH + "Go away."},
            [("user", "Hi"), ("assistant", "Yes?"), ("user", "Is it 3:00?\n\nNo Human: here")],
        ),
    ],
)
def test_preferences_of_others(write: Write, row: dict[str, Any], context: list[tuple[str, str]]) -> None:
    (preference,) = read_preferences(write(row))
    chosen, rejected = preference.items
    assert turns(preference.prompt.messages) == context
    assert (chosen.text, rejected.text) == ("Hello!", "Go away.")
    assert chosen.segments == rejected.segments == ()
    assert chosen.prompt_id == rejected.prompt_id == preference.prompt.id == preference.group
    assert chosen.id != rejected.id
    assert preference.target == 1.0


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (read_prompts, {"text": "Hi"}, "field 'messages' is missing; this line has 'text'"),
        (read_prompts, {"prompt": 3}, "field 'prompt' must be a string or a list of messages"),
        (read_prompts, {"messages": []}, "field 'messages' must be a string or a list of messages with at least one"),
        (read_prompts, {"messages": ["Hi"]}, r"messages\[0\] must be an object"),
        (read_prompts, {"messages": [{"role": "user"}]}, r"messages\[0\]: field 'content' is missing"),
        (
            read_prompts,
            {"messages": [USER | {"role": "narrator"}]},
            "role 'narrator' is not one of system, user, assist",
        ),
        (read_prompts, {"messages": [HELLO]}, "field 'messages' holds an answer but no turn before it"),
        (read_prompts, PROMPT | {"slise": "x"}, "unknown field 'slise'"),
        (read_demonstrations, {"id": "x"}, "field 'prompt' is missing"),
        (read_demonstrations, {"prompt": "Hi"}, "field 'completion' is missing"),
        (
            read_demonstrations,
            {"prompt": "Hi", "completion": None},
            "field 'completion' must be a string, not NoneType",
        ),
        (read_demonstrations, {"messages": [USER]}, "has no assistant turn"),
        (read_demonstrations, {"id": "d", "prompt": PROMPT}, "field 'completion' of Demonstration is missing"),
        (read_preferences, {"prompt": "Hi", "chosen": "a"}, "field 'rejected' is missing"),
        (read_preferences, {"chosen": "a", "rejected": "b"}, "field 'prompt' is missing, and 'chosen' is neither"),
        (read_preferences, {"chosen": HH, "rejected": [USER, AWAY]}, "differ before the last turn"),
        (read_preferences, {"chosen": [USER, HELLO], "rejected": [SYSTEM, USER, AWAY]}, "differ before the last turn"),
        (read_preferences, {"chosen": [USER, HELLO], "rejected": [USER, HELLO]}, "are the same answer"),
        (
            read_preferences,
            {"prompt": "Hello", "chosen": [SYSTEM, USER, HELLO], "rejected": [SYSTEM, USER, AWAY]},
            "'chosen' holds a conversation without 'prompt'; give it whole",
        ),
        (read_preferences, {"chosen": [USER], "rejected": [USER, HELLO]}, "'chosen' must end with an assistant turn"),
        (read_preferences, {"chosen": [HELLO], "rejected": [AWAY]}, "'chosen' holds an answer but no turn before"),
        (read_preferences, {"prompt": PROMPT, "items": [{}]}, r"items\[0\]: field 'id' of Completion is missing"),
    ],
)
def test_rows_that_do_not_fit_are_named(
    write: Write, read: Callable[[Path], Any], row: dict[str, Any], message: str
) -> None:
    with pytest.raises(PrefloopError, match=rf"rows\.jsonl:1.*{message}"):
        read(write(row))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": 7.0}, "field 'target' is 7.0; it is the probability"),
        ({"weight": -1}, "'weight' must be above 0"),
        ({"weight": 10**400}, "weight: the number is too large"),
        ({"margin": -0.5}, "'margin' at least 0"),
        ({"ranking": [0, 1, 2]}, "2 items with 3 ranks"),
        ({"ranking": [0, 1], "target": 0.6}, "'ranking' and 'target' both say what is better"),
        ({"items": 1}, "1 items with no ranking"),
        ({"items": 3}, "3 items with no ranking"),
        ({"items": 3, "ranking": [0, 1]}, "3 items with 2 ranks"),
    ],
)
def test_a_preference_of_our_own_that_cannot_be_learned_is_refused(
    write: Write, fields: dict[str, Any], message: str
) -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="Hi"),))
    items = [to_json(text_completion(prompt, "abc"[i])) for i in range(fields.get("items", 2))]
    with pytest.raises(PrefloopError, match=message):
        read_preferences(write({"prompt": PROMPT} | fields | {"items": items}))


def test_an_id_stands_for_one_prompt(write: Write) -> None:
    assert len(read_prompts(write(PROMPT, PROMPT))) == 1
    with pytest.raises(PrefloopError, match=r"rows\.jsonl:2: id 'p' is another prompt on line 1"):
        read_prompts(write(PROMPT, PROMPT | {"messages": [USER | {"content": "Bye"}]}))


def test_a_prompt_that_is_held_out_and_not_is_told(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    assert len(read_prompts(write(PROMPT, PROMPT | {"id": "q"}))) == 2 and not caplog.records
    assert len(read_prompts(write({"prompt": "Hi"}, {"id": "q", "messages": [USER], "split": "eval"}))) == 2
    assert "1 prompts are in two splits, the first: line 2 (eval) is line 1 (train)" in caplog.text


def test_a_text_beside_a_prompt_is_not_read(write: Write) -> None:
    row = {"prompt": "Hi", "completion": "Hello!", "text": "### Hi ### Hello!"}
    (read,) = read_demonstrations(write(row))
    assert (turns(read.prompt.messages), read.completion) == ([("user", "Hi")], "Hello!")
    (read,) = read_demonstrations(write({"messages": [USER, HELLO], "text": "Hi Hello!"}))
    assert (turns(read.prompt.messages), read.completion) == ([("user", "Hi")], "Hello!")
    with pytest.raises(PrefloopError, match="field 'text' answers no prompt"):
        make_completion({"text": "Hello!"}, "rows.jsonl:1")


def test_empty_cells_of_a_table_say_nothing_and_words_say_what_is_good(tmp_path: Path) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text('prompt,split,checks\nHi,,\nBye,dev,"{""ideal_words"": 9}"\n')
    hi, bye = read_prompts(table)
    assert (hi.split, hi.checks, bye.split, bye.checks) == ("train", {}, "dev", {"ideal_words": 9})
    table.write_text("prompt,completion,label\nHi,Hello!,True\nHi,Go away.,false\n")
    assert [verdict.good for verdict in read_verdicts(table)] == [True, False]
    table.write_text("prompt,completion,label\nHi,Hello!,good\n")
    with pytest.raises(PrefloopError, match=r"prompts\.csv:2: field 'label' is 'good'; give true"):
        read_verdicts(table)


def test_bad_preferences_can_be_skipped(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    good = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    other = {"chosen": HH + "a", "rejected": "\n\nHuman: Bye\n\nAssistant: b"}
    with caplog.at_level(logging.WARNING):
        assert len(read_preferences(write(good, other, {"chosen": "x"}, good), skip_bad=True)) == 2
    (record,) = caplog.records
    assert "2 bad lines skipped, the first:" in record.getMessage()
    assert "rows.jsonl:2" in record.getMessage()
    with pytest.raises(PrefloopError, match=r"rows\.jsonl:2: .* With skip_bad = true such rows are left out\."):
        read_preferences(write(good, other))
    with pytest.raises(PrefloopError, match="every line is bad"):
        read_preferences(write(other), skip_bad=True)
