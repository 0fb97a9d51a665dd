"""Where steps end, which labels count, and the trees and records that carry them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.chat import decode, encode_text
from prefloop.data.heldout import shuffled_steps, split_steps
from prefloop.data.jsonl import read_step_labels, text_completion, write_jsonl
from prefloop.data.sources import load_step_labels
from prefloop.data.steps import step_ends, to_first_error
from prefloop.data.trees import Encoder, by_prompt, step_trees, steps_tree
from prefloop.models.tiny import tiny_tokenizer
from prefloop.types import Completion, Message, PrefloopError, Prompt, Sampling, Segment, StepLabels, from_json, to_json

TOKENIZER = tiny_tokenizer()  # one token a byte
STOP = 257
ENCODER = Encoder(TOKENIZER, STOP, 500)


def asked(name: str = "p", split: str = "train") -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=f"{name}?"),), split=split)


def steps_of(text: str, rule: str, *, stop: bool = True) -> list[str]:
    """The steps of a text, each as the text of its tokens."""
    tokens = encode_text(TOKENIZER, text) + ((STOP,) if stop else ())
    ends = step_ends(tokens, rule, TOKENIZER)
    assert ends[-1] == len(tokens) - 1 and sorted(set(ends)) == list(ends)
    starts = (0, *(end + 1 for end in ends[:-1]))
    return [decode(TOKENIZER, tokens[start : end + 1]) for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize(
    ("rule", "text", "steps"),
    [
        ("lines", "a\nb\nc", ["a\n", "b\n", "c"]),
        ("lines", "a\n\n  \nb\n", ["a\n", "\n  \nb\n"]),
        ("lines", "\n a", ["\n a"]),
        ("lines", "one", ["one"]),
        ("lines", "", [""]),
        ("lines", "π≈3\né€\U0001f600\nend", ["π≈3\n", "é€\U0001f600\n", "end"]),
        ("paragraphs", "a\nb\n\nc\n \t\nd", ["a\nb\n\n", "c\n \t\n", "d"]),
        ("numbered", "Let us see.\nStep 1: a\nStep 2: b\n", ["Let us see.\n", "Step 1: a\n", "Step 2: b\n"]),
        ("numbered", "Step 1. a\nas in Step 9\n  Step 10: b", ["Step 1. a\nas in Step 9\n", "  Step 10: b"]),
        ("regex:;", "a; b;c;", ["a;", " b;", "c;"]),
        ("regex:。", "一。二。", ["一。", "二。"]),
        ("regex:(?=^- )", "- a\n- b", ["- a\n", "- b"]),
        (f"token:{TOKENIZER('z')['input_ids'][0]}", "azbzc", ["az", "bz", "c"]),
        (f"token:{TOKENIZER('z')['input_ids'][0]}", "azbz", ["az", "bz"]),
    ],
)
@pytest.mark.parametrize("stop", [True, False])
def test_where_steps_end(rule: str, text: str, steps: list[str], stop: bool) -> None:
    if text or stop:
        assert steps_of(text, rule, stop=stop) == steps


@given(st.text(alphabet="ab \nπ\U0001f600"), st.sampled_from(["lines", "paragraphs", "regex:b", "regex:π"]))
def test_steps_are_all_of_an_answer_and_each_says_something(text: str, rule: str) -> None:
    steps = steps_of(text, rule)
    assert "".join(steps) == text
    assert len(steps) == 1 or all(step.strip() for step in steps)


@given(
    st.text(alphabet="ab;\n\u00e9\U0001f600", max_size=60),
    st.sampled_from([r"\n", "a", "\u00e9", r"(?=b)", ";|\U0001f600"]),
)
def test_cuts_are_found_as_in_whole_prefixes(text: str, pattern: str) -> None:
    """Against the plain way: the shortest prefix of the tokens whose text is long enough."""
    tokens = encode_text(TOKENIZER, text + ".")
    lengths = [len(decode(TOKENIZER, tokens[:n]).rstrip("\ufffd")) for n in range(len(tokens) + 1)]
    ends, start = [], 0
    for cut in (match.end() for match in re.finditer(pattern, text)):
        end = next(n for n, length in enumerate(lengths) if length >= cut) - 1
        if decode(TOKENIZER, tokens[start : end + 1]).strip():
            ends.append(end)
            start = end + 1
    assert step_ends(tokens, f"regex:{pattern}", TOKENIZER) == (*ends, len(tokens) - 1)


@pytest.mark.parametrize("rule", ["line", "token:x", "token:", "regex:(", ""])
def test_a_rule_that_cannot_be_is_a_plain_error(rule: str) -> None:
    with pytest.raises(PrefloopError, match="ule for steps"):
        step_ends((1, 2), rule, TOKENIZER)


def test_what_follows_the_first_error_has_no_label() -> None:
    assert to_first_error([1.0, 0.0, 1.0, 0.0]) == (1.0, 0.0, None, None)
    assert to_first_error([1.0, 0.25, None, 1.0]) == (1.0, 0.25, None, 1.0)
    assert to_first_error([0.0]) == (0.0,) and to_first_error([]) == ()


LABELS = st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), max_size=6)


@given(LABELS)
def test_labels_to_the_first_error_are_taken_once(labels: list[float | None]) -> None:
    once = to_first_error(labels)
    assert to_first_error(once) == once and len(once) == len(labels) and once.count(0.0) == min(1, labels.count(0.0))


def labeled(text: str, *labels: float | None, prompt: str = "p", split: str = "train") -> StepLabels:
    own = asked(prompt, split)
    return StepLabels(prompt=own, completion=text_completion(own, text), labels=labels, by="test")


def columns(items: Sequence[StepLabels], rule: str = "lines") -> list[dict[str, Any]]:
    (tree,) = step_trees(items, ENCODER, rule)
    return [dict(node.fields) for node in tree.nodes[1:]]


def test_a_tree_carries_labels_at_the_step_ends_alone() -> None:
    first, second = columns([labeled("ab\nc\nd", 1.0, 0.0, 1.0), labeled("a\nb", None, 0.25)])
    assert first["weight"] == (0, 0, 1, 0, 1, 0, 0) and first["label"] == (0, 0, 1, 0, 0, 0, 0)
    assert second["weight"] == (0, 0, 0, 1) and second["label"] == (0, 0, 0, 0.25)


def test_of_sampled_answers_it_is_their_own_tokens_that_are_marked() -> None:
    tokens = (*encode_text(TOKENIZER, "a\nb"),)
    sampling, segments = Sampling(), (Segment(author="policy", tokens=tokens, logprobs=(0.0,) * len(tokens)),)
    cut = Completion(
        id="c", prompt_id="p", segments=segments, text="a\nb", finish_reason="length", sampling=sampling, seed=0
    )
    tree, ends = steps_tree(asked(), [cut], ENCODER, "lines")
    assert tree.nodes[1].tokens == tokens and ends == [(1, 2)] and tree.nodes[1].fields["weight"] == (0, 1, 1)


def test_labels_that_do_not_fit_are_plain_errors() -> None:
    with pytest.raises(PrefloopError, match=r"has 2 steps by the rule 'lines' and 1 labels"):
        step_trees([labeled("a\nb", 1.0)], ENCODER, "lines")
    with pytest.raises(PrefloopError, match="No step has a label"):
        step_trees([labeled("a\nb", None, None)], ENCODER, "lines")
    known = [labeled("a\nb", None, None, prompt="q"), labeled("a\nb", 1.0, None)]
    assert [tree.id for tree in step_trees(known, ENCODER, "lines")] == ["p"]


def test_two_prompts_of_one_id_are_two_trees() -> None:
    other = Prompt(id="p", messages=(Message(role="user", content="Else?"),))
    second = dataclasses.replace(labeled("b", 0.0), prompt=other)
    trees = step_trees([labeled("a", 1.0), second, labeled("c", 0.0)], ENCODER, "lines")
    assert by_prompt([asked(), other, asked()]) == [[0, 2], [1]]
    assert [len(tree.nodes) for tree in trees] == [3, 2]
    assert "Else?" in decode(TOKENIZER, trees[1].nodes[0].tokens)


@given(LABELS, st.sampled_from(["", "person", "rollouts-soft"]))
def test_records_survive_json(labels: list[float | None], by: str) -> None:
    record = StepLabels(prompt=asked(), completion=text_completion(asked(), "a\nb"), labels=tuple(labels), by=by)
    assert from_json(StepLabels, json.loads(json.dumps(to_json(record)))) == record


def test_files_of_ours_and_of_others(tmp_path: Path) -> None:
    ours = [labeled("a\nb", 1.0, None), labeled("c", 0.5, prompt="q")]
    assert write_jsonl(tmp_path / "ours.jsonl", ours) == 2
    assert load_step_labels(tmp_path / "ours.jsonl") == ours
    rows = [
        {"prompt": "1+1?", "completions": ["It is", "3."], "labels": [True, False]},
        {"prompt": [{"role": "user", "content": "1+1?"}], "completions": ["2"], "labels": [0.75]},
        {"prompt": "1+1?", "completions": ["2", "or so"], "labels": [1, None]},
    ]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_step_labels(tmp_path / "theirs.jsonl")
    assert [item.labels for item in found] == [(1.0, 0.0), (0.75,), (1.0, None)]
    assert [item.completion.text for item in found] == ["It is\n3.", "2", "2\nor so"]
    assert len({item.prompt.id for item in found}) == 1
    with pytest.raises(PrefloopError, match="this is a folder"):
        load_step_labels(tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"completions": ["a"], "labels": [2]}, "field 'labels' holds probabilities"),
        ({"completions": ["a"], "labels": [-0.1]}, "field 'labels' holds probabilities"),
        ({"completions": "a", "labels": [1]}, "field 'completions' must be a list of strings"),
        ({"completions": [1], "labels": [1]}, "field 'completions' must be a list of strings"),
        ({"completions": ["a"], "labels": "+"}, "a list is needed"),
        ({"completions": ["a"], "labels": ["+"]}, "float is needed"),
        ({"completions": ["a"]}, "field 'labels' is missing"),
        ({"labels": [1]}, "field 'completions' is missing"),
    ],
)
def test_rows_that_do_not_fit_say_where(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"prompt": "?", **row}) + "\n")
    with pytest.raises(PrefloopError, match=rf"bad\.jsonl:1.*{said}"):
        read_step_labels(path)


def test_answers_are_held_out_by_prompt() -> None:
    items = [labeled("a", 1.0, prompt=f"p{i % 5}") for i in range(20)]
    training, heldout = split_steps(items, 0.4, 0)
    assert len({i.prompt.id for i in heldout}) == 2 and len(training) + len(heldout) == 20
    assert {i.prompt.id for i in training}.isdisjoint(i.prompt.id for i in heldout)
    dev = [labeled("a", 1.0, prompt="d", split="dev"), *items]
    assert split_steps(dev, 0.4, 0) == (items, dev[:1])
    with pytest.raises(PrefloopError, match="with labeled steps cannot be split"):
        split_steps(items[:1], 0.5, 0)


def test_shuffled_labels_are_those_of_other_answers_with_as_many_steps() -> None:
    items = [labeled("a\nb", float(i % 2), i / 40) for i in range(40)] + [labeled("a", i / 10) for i in range(10)]
    made = shuffled_steps(items, 0)
    for own in (slice(40), slice(40, 50)):  # one of each length takes a stretched one
        assert (Counter(i.labels for i in made[own]) - Counter(i.labels for i in items[own])).total() == 1
    assert [i.completion for i in made] == [i.completion for i in items]
    assert sum(a.labels == b.labels for a, b in zip(items, made, strict=True)) < 10
    assert made == shuffled_steps(items, 0) != shuffled_steps(items, 1)
