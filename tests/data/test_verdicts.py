"""Good and bad answers: out of comparisons, out of files, as trees, with mismatched answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefloop.data.jsonl import read_verdicts, text_completion, write_jsonl
from prefloop.data.sources import holds_verdicts
from prefloop.data.trees import Encoder, mismatched_trees, verdict_trees
from prefloop.data.verdicts import from_preferences, shuffled_verdicts
from prefloop.models.tiny import tiny_tokenizer
from prefloop.types import Message, Preference, PrefloopError, Prompt, Verdict


def encoder(context: int = 100) -> Encoder:
    return Encoder(tiny_tokenizer(), 257, context)


def asked(index: int) -> Prompt:
    return Prompt(id=f"p{index}", messages=(Message(role="user", content="?" * (index + 1)),))


def judged(index: int, text: str, good: bool = True) -> Verdict:
    prompt = asked(index)
    return Verdict(prompt=prompt, completion=text_completion(prompt, text), good=good)


def compared(index: int, *texts: str, **rest: Any) -> Preference:
    prompt = asked(index)
    return Preference(prompt=prompt, items=tuple(text_completion(prompt, text) for text in texts), **rest)


def test_an_answer_is_good_where_it_wins_more_than_half() -> None:
    """a beats b with 0.9 and loses to c twice with weight 0.25: 0.4 - 0.25 = +0.15; b -0.4; c +0.25; d and e tie."""
    made = from_preferences(
        [
            compared(0, "a", "b", target=0.9),
            *[compared(0, "a", "c", target=0.0, weight=0.25)] * 2,
            compared(0, "d", "e", target=0.5),
            compared(1, "x", "y", "z", ranking=(1, 0, 2)),
        ]
    )
    assert {(v.prompt.id, v.completion.text): v.good for v in made} == {
        ("p0", "a"): True,
        ("p0", "b"): False,
        ("p0", "c"): True,
        ("p1", "y"): True,
        ("p1", "z"): False,
    }
    twice = compared(0, "a", "b")
    again = replace(compared(0, "b", "c"), items=(replace(twice.items[1], id="sampled-again"), twice.items[0]))
    assert {v.completion.text: v.good for v in from_preferences([twice, again, compared(0, "b", "c")])} == {
        "b": True,
        "c": False,
    }
    with pytest.raises(PrefloopError, match="No answer wins more or less than half"):
        from_preferences([compared(0, "a", "b", target=0.5)])


def test_files_of_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    rows = [
        {"prompt": "Hi?", "completion": "Yes.", "label": True},
        {"prompt": [{"role": "user", "content": "Hi?"}], "completion": "", "label": False},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = read_verdicts(path)
    assert [(v.completion.text, v.good) for v in made] == [("Yes.", True), ("", False)]
    assert made[0].prompt == made[1].prompt and holds_verdicts(path)
    write_jsonl(path, made)
    assert read_verdicts(path) == made and holds_verdicts(path)
    write_jsonl(path, [compared(0, "a", "b", target=1.0)])
    assert not holds_verdicts(path) and not holds_verdicts(tmp_path) and not holds_verdicts("builtin")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": "b"}, r":1: field 'label' is missing"),
        ({"prompt": "a", "completion": "b", "label": 1}, r":1: field 'label' is 1; give true for a good answer"),
        ({"prompt": "a", "completion": 3, "label": True}, r"field 'completion' must be a string"),
    ],
)
def test_bad_rows_of_verdicts(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(PrefloopError, match=message):
        read_verdicts(path)


def test_trees_of_verdicts_say_good_at_every_token() -> None:
    first, second = verdict_trees([judged(0, "abc"), judged(1, "x"), judged(0, "de", good=False)], encoder())
    assert [node.fields["good"] for node in first.nodes[1:]] == [(1.0,) * 4, (0.0,) * 3]
    assert first.nodes[1].tokens[-1] == 257 and "good" not in first.nodes[0].fields
    assert (first.id, second.id) == ("p0", "p1") and not first.pairs


def test_mismatched_answers_are_those_of_the_next_in_an_order_and_read() -> None:
    trees = verdict_trees([judged(i, chr(97 + i) * (i + 1)) for i in range(3)], encoder())
    made = mismatched_trees(trees, encoder(), [2, 0, 1])
    assert [tree.nodes[0] for tree in made] == [tree.nodes[0] for tree in trees]
    assert [tree.nodes[1].tokens for tree in made] == [trees[i].nodes[1].tokens for i in (1, 2, 0)]
    assert all(tree.nodes[1].fields.keys() == {"weight"} for tree in made)
    with pytest.raises(PrefloopError, match="needs two prompts"):
        mismatched_trees(trees[:1], encoder(), [0])


def test_mismatched_answers_end_where_the_context_does() -> None:
    small = encoder(80)
    trees = verdict_trees([judged(40, "a"), judged(0, "b" * 30)], small)
    first, second = mismatched_trees(trees, small, [0, 1])
    assert len(first.nodes[0].tokens) + len(first.nodes[1].tokens) == 80
    assert second.nodes[1].tokens == trees[0].nodes[1].tokens


def test_shuffled_labels_are_as_many_and_on_other_answers() -> None:
    made = [judged(i, "a", good=i % 4 == 0) for i in range(40)]
    mixed = shuffled_verdicts(made, seed=1)
    assert sum(v.good for v in mixed) == 10 and [v.completion for v in mixed] == [v.completion for v in made]
    assert sum(v.good and w.good for v, w in zip(made, mixed, strict=True)) < 8
    assert mixed == shuffled_verdicts(made, seed=1) != shuffled_verdicts(made, seed=2)
