"""Records -> trees: every boundary is a token's, the stop token is read, and nothing is found by comparing with pad."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.data.chat import decode, encode_prompt, encode_text
from prefloop.data.forest import build_forest
from prefloop.data.heldout import as_pairs
from prefloop.data.trees import Encoder, answer_tree, demonstration_trees, preference_trees, with_fields
from prefloop.data.trees import given as context
from prefloop.models.tiny import SPECIAL_TOKENS, tiny_tokenizer
from prefloop.types import (
    Completion,
    Demonstration,
    FinishReason,
    Message,
    Node,
    Preference,
    PrefloopError,
    Prompt,
    Sampling,
    Segment,
    Tree,
)

TOKENIZER = tiny_tokenizer()
STOP = 257
ENCODER = Encoder(TOKENIZER, STOP, 2048)
FORGETS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endif %}"
    "{% endfor %}<|im_start|>"
)
TEXTS = st.lists(st.one_of(st.sampled_from(SPECIAL_TOKENS), st.text(max_size=8)), max_size=4).map("".join)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def prompt(*messages: Message, name: str = "p") -> Prompt:
    return Prompt(id=name, messages=messages or (user("Hi"),))


def answer(text: str, reason: FinishReason = "stop", tokens: tuple[int, ...] = (), name: str = "") -> Completion:
    return Completion(
        id=name or text,
        prompt_id="p",
        segments=(Segment(author="policy", tokens=tokens),) if tokens else (),
        text=text,
        finish_reason=reason,
        sampling=Sampling(),
        seed=0,
    )


def sampled_answer(tokens: tuple[int, ...], reason: FinishReason = "stop") -> Completion:
    return answer(decode(TOKENIZER, tokens[:-1] if reason == "stop" else tokens), reason, tokens)


def read_tokens(node: Node) -> list[int]:
    return [token for token, weight in zip(node.tokens, node.fields.get("weight", ()), strict=False) if weight]


def texts(tree: Tree) -> list[str]:
    return [decode(TOKENIZER, node.tokens) for node in tree.nodes]


@settings(max_examples=25)
@given(TEXTS, TEXTS)
def test_what_is_read_of_a_demonstration_is_its_answer_and_the_stop_token(asked: str, answered: str) -> None:
    demonstration = Demonstration(id="d", prompt=prompt(user(asked)), completion=answered)
    (tree,) = demonstration_trees(demonstration, ENCODER)
    root, response = tree.nodes
    assert read_tokens(root) == [] and root.tokens == encode_prompt(TOKENIZER, (user(asked),))
    assert read_tokens(response) == list(response.tokens) and response.author == "person"
    assert response.tokens[-1] == STOP and max(response.tokens[:-1], default=0) < 256
    assert decode(TOKENIZER, response.tokens[:-1]) == answered
    forest = build_forest([tree])
    assert forest.tokens[forest.targets].tolist() == list(response.tokens)
    assert forest.sources.tolist() == (forest.targets - 1).tolist()


def test_every_assistant_turn_is_trained() -> None:
    demonstration = Demonstration(
        id="d",
        prompt=prompt(Message(role="system", content="S"), user("one?"), assistant("One."), user("two?")),
        completion="Two.",
    )
    (tree,) = demonstration_trees(demonstration, ENCODER)
    assert [node.parent for node in tree.nodes] == [-1, 0, 1, 2]
    assert [node.author for node in tree.nodes] == ["prompt", "person", "prompt", "person"]
    assert [decode(TOKENIZER, read_tokens(node)) for node in tree.nodes] == ["", "One.", "", "Two."]
    assert [node.tokens[-1] for node in tree.nodes[1::2]] == [STOP, STOP]
    whole = [token for node in tree.nodes for token in node.tokens]
    again = [*demonstration.prompt.messages, assistant("Two.")]
    rendered = TOKENIZER.apply_chat_template([{"role": m.role, "content": m.content} for m in again], tokenize=False)
    assert decode(TOKENIZER, whole) + "\n" == decode(TOKENIZER, TOKENIZER(rendered)["input_ids"])
    assert tree.trajectory_id == "d"


def test_a_template_that_rewrites_earlier_turns_makes_a_tree_for_each_stretch() -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = FORGETS
    messages = (user("one?"), assistant("One."), user("two?"), assistant("Two."), user("three?"))
    demonstration = Demonstration(id="d", prompt=prompt(*messages), completion="Three.")
    trees = demonstration_trees(demonstration, Encoder(tokenizer, STOP, 2048))
    assert [texts(tree) for tree in trees] == [
        ["one?", "One."],
        ["one?two?", "Two."],
        ["one?two?three?", "Three."],
    ]
    assert {tree.trajectory_id for tree in trees} == {"d"} and len({tree.id for tree in trees}) == 3
    assert [sum(map(bool, map(read_tokens, tree.nodes))) for tree in trees] == [1, 1, 1]


def test_stop_tokens_inside_a_prompt_or_an_answer_are_no_boundaries() -> None:
    """pad = eos = the stop token here: whoever looks for ends by comparing finds too many."""
    sampled = (65, STOP, STOP, 66, STOP)
    tree = answer_tree(
        prompt(user("Hi"), assistant("Yes?"), user("Bye")),
        [sampled_answer(sampled), sampled_answer((STOP, 65, 66), "length")],
        ENCODER,
    )
    assert tree.nodes[0].tokens.count(STOP) == 3
    assert read_tokens(tree.nodes[1]) == list(sampled) and read_tokens(tree.nodes[2]) == [STOP, 65, 66]
    forest = build_forest([tree])
    assert forest.tokens[forest.leaves].tolist() == [STOP, 66]
    assert len(forest.targets) == 8


def test_sampled_tokens_are_never_encoded_again_and_truncated_answers_get_no_stop_token() -> None:
    assert ENCODER.response(sampled_answer((200, 201, STOP))) == (200, 201, STOP)
    assert ENCODER.response(sampled_answer((200, 201), "length")) == (200, 201)
    assert ENCODER.response(answer("Ab")) == (*encode_text(TOKENIZER, "Ab"), STOP)
    assert ENCODER.response(answer("Ab", "length")) == encode_text(TOKENIZER, "Ab")


def test_tokens_of_another_tokenizer_are_refused() -> None:
    tokens = encode_text(TOKENIZER, "Ab")
    for odd in (answer("Ac", tokens=(*tokens, STOP)), answer("A", "length", tokens=tokens)):
        with pytest.raises(PrefloopError, match="tokens of another tokenizer"):
            ENCODER.response(odd)


def test_too_long_for_the_context() -> None:
    asked, short = prompt(user("x" * 40)), Encoder(TOKENIZER, STOP, 60)
    length = len(encode_prompt(TOKENIZER, asked.messages))
    with pytest.raises(PrefloopError, match=f"'p' has {length} tokens, which leaves no room .* of 50"):
        Encoder(TOKENIZER, STOP, 50).prompt(asked)
    with pytest.raises(PrefloopError, match="leaves no room"):
        Encoder(TOKENIZER, STOP, length).prompt(asked)
    assert len(Encoder(TOKENIZER, STOP, length + 1).prompt(asked)) == length
    with pytest.raises(PrefloopError, match=f"longest answer has {length + 41} tokens"):
        answer_tree(asked, [answer("y"), answer("y" * 40)], Encoder(TOKENIZER, STOP, length + 40))
    assert answer_tree(asked, [answer("y" * 40)], Encoder(TOKENIZER, STOP, length + 41)).nodes[1].tokens[-1] == STOP
    with pytest.raises(PrefloopError, match="Demonstration 'd' has"):
        demonstration_trees(Demonstration(id="d", prompt=asked, completion="y" * 40), short)
    with pytest.raises(PrefloopError, match="comparison of prompt 'p' is longer"):
        preference_trees([Preference(prompt=asked, items=(answer("y"), answer("y" * 99)))], short)


def preference(*items: Completion, **rest: Any) -> Preference:
    return Preference(prompt=prompt(), items=items, **rest)


def labels(tree: Tree) -> list[tuple[str, str, float]]:
    name = [decode(TOKENIZER, node.tokens) for node in tree.nodes]
    return [(name[pair.a], name[pair.b], pair.target) for pair in tree.pairs]


def test_an_answer_stands_once_in_its_prompts_tree() -> None:
    a, b, c = answer("a"), answer("b"), answer("c")
    made = [preference(a, b, target=0.75, weight=2.0, margin=0.5), preference(c, a, target=0.0), preference(b, c)]
    (tree,) = preference_trees(made, ENCODER)
    assert texts(tree)[1:] == ["a", "b", "c"] and [node.parent for node in tree.nodes] == [-1, 0, 0, 0]
    assert labels(tree) == [("a", "b", 0.75), ("c", "a", 0.0), ("b", "c", 1.0)]
    assert (tree.pairs[0].weight, tree.pairs[0].margin) == (2.0, 0.5)


def test_groups_become_trees_of_their_own() -> None:
    made = [preference(answer("a"), answer("b"), group=group) for group in "xyx"]
    assert [(tree.id, len(tree.pairs)) for tree in preference_trees(made, ENCODER)] == [("x", 2), ("y", 1)]


def test_a_group_has_one_prompt() -> None:
    other = Preference(prompt=prompt(user("another"), name="q"), items=(answer("a"), answer("b")), group="x")
    with pytest.raises(PrefloopError, match="group 'x' answer different prompts"):
        preference_trees([preference(answer("a"), answer("b"), group="x"), other], ENCODER)


def test_rankings_and_ties_become_pairs() -> None:
    items = tuple(answer(text) for text in "abcd")
    (tree,) = preference_trees([preference(*items, ranking=(1, 0, 1, 2))], ENCODER)
    assert labels(tree) == [
        ("a", "b", 0.0),
        ("a", "c", 0.5),
        ("a", "d", 1.0),
        ("b", "c", 1.0),
        ("b", "d", 1.0),
        ("c", "d", 1.0),
    ]
    assert rankings(tree) == [({"b": 0, "a": 1, "c": 1, "d": 2}, 1.0)]


def rankings(tree: Tree) -> list[tuple[dict[str, int], float]]:
    name = [decode(TOKENIZER, node.tokens) for node in tree.nodes]
    return [(dict(zip((name[n] for n in r.nodes), r.ranks, strict=True)), r.weight) for r in tree.rankings]


def test_a_pair_is_a_ranking_and_a_soft_one_is_two() -> None:
    a, b = answer("a"), answer("b")
    made = [preference(a, b), preference(a, b, target=0.0, weight=3.0), preference(a, b, target=0.75, weight=2.0)]
    (tree,) = preference_trees(made, ENCODER)
    first, second = {"a": 0, "b": 1}, {"b": 0, "a": 1}
    assert rankings(tree) == [(first, 1.0), (second, 3.0), (first, 1.5), (second, 0.5)]


def test_an_answer_that_stands_in_a_ranking_twice_has_the_better_rank() -> None:
    items = (answer("a"), answer("b"), answer("a", name="again"), answer("c"))
    (tree,) = preference_trees([preference(*items, ranking=(3, 1, 0, 2)), preference(items[0], items[2])], ENCODER)
    assert rankings(tree) == [({"a": 0, "b": 1, "c": 2}, 1.0)]


@pytest.mark.parametrize("ways", [2, 4, 9])
def test_ranked_answers_are_encoded_once_each(ways: int) -> None:
    """K answers of L tokens to a prompt of P are P + K L tokens, however many people ranked them. Control: as pairs
    apart they are K (K - 1) / 2 (P + 2 L)."""
    asked = prompt(user("Rank these."))
    items = tuple(answer(f"answer {i}") for i in range(ways))
    made = [Preference(prompt=asked, items=items, ranking=tuple(range(ways)), weight=0.5) for _ in range(2)]
    trees = preference_trees(made, ENCODER)
    one, length = len(encode_prompt(TOKENIZER, asked.messages)), len("answer 0") + 1
    assert len(trees) == 1 and len(trees[0].pairs) == ways * (ways - 1) and len(trees[0].rankings) == 2
    assert len(build_forest(trees).tokens) == one + ways * length
    apart = [dataclasses.replace(pair, group=str(i)) for i, pair in enumerate(as_pairs(made[0]))]
    assert len(build_forest(preference_trees(apart, ENCODER)).tokens) == ways * (ways - 1) // 2 * (one + 2 * length)


def test_empty_and_identical_answers() -> None:
    empty, a, same = answer(""), answer("a"), answer("a", name="other")
    (tree,) = preference_trees([preference(empty, a), preference(a, same)], ENCODER)
    assert [node.tokens for node in tree.nodes[1:]] == [(STOP,), (*encode_text(TOKENIZER, "a"), STOP)]
    assert labels(tree) == [("", "a", 1.0)]
    (cut,) = preference_trees([preference(answer("", "length"), a)], ENCODER)
    assert cut.nodes[1].tokens == (STOP,)
    with pytest.raises(PrefloopError, match="No comparison is left to learn from"):
        preference_trees([preference(a, same)], ENCODER)
    with pytest.raises(PrefloopError, match="No comparison is left to learn from"):
        preference_trees([], ENCODER)
    with pytest.raises(PrefloopError, match="without a single token"):
        answer_tree(prompt(), [answer("", "length")], ENCODER)


def test_an_answer_that_was_cut_off_is_not_the_one_that_ended() -> None:
    (tree,) = preference_trees([preference(answer("a"), answer("a", "length"))], ENCODER)
    assert [node.tokens[-1] == STOP for node in tree.nodes[1:]] == [True, False]


def test_fields_are_added_to_nodes() -> None:
    tree = answer_tree(prompt(), [answer("ab"), answer("c")], ENCODER)
    made = with_fields(tree, {1: {"advantages": [1, 2, 3]}, 2: {"advantages": [4, 5]}})
    assert made.nodes[1].fields == {"weight": (1.0, 1.0, 1.0), "advantages": (1.0, 2.0, 3.0)}
    assert build_forest([made]).field("advantages").tolist() == [1, 2, 3, 4, 5]
    assert tree.nodes[1].fields == {"weight": (1.0, 1.0, 1.0)}
    with pytest.raises(ValueError, match="2 values for 3 tokens"):
        with_fields(tree, {1: {"advantages": [1, 2]}})
    assert context(-1, (1,)).fields == {}


def test_plain_text_is_read_from_its_second_token_on_and_cut_to_the_context() -> None:
    text = Demonstration(id="t", prompt=Prompt(id="", messages=()), completion="abcdefghij<|im_end|>")
    (tree,) = demonstration_trees(text, ENCODER)
    tokens = encode_text(TOKENIZER, text.completion)
    assert tree.nodes[0].tokens == tokens and STOP not in tokens and len(tree.nodes) == 1
    assert tree.nodes[0].fields["weight"] == (0.0, *(1.0,) * (len(tokens) - 1))
    forest = build_forest([tree])
    assert forest.targets.tolist() == list(range(1, len(tokens)))
    assert forest.sources.tolist() == list(range(len(tokens) - 1))
    short = Encoder(TOKENIZER, STOP, 4)
    parts = demonstration_trees(text, short)
    assert tuple(token for part in parts for token in part.nodes[0].tokens) == tokens
    assert {part.trajectory_id for part in parts} == {"t"} and len({part.id for part in parts}) == len(parts)
    with pytest.raises(PrefloopError, match="too short to learn from"):
        demonstration_trees(Demonstration(id="t", prompt=Prompt(id="", messages=()), completion="a"), ENCODER)
