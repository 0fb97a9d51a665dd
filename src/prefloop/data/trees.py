"""Records -> token trees. What is read (weight 1) are the tokens that the policy or a demonstrator wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from prefloop.data.chat import Tokenizer, decode, encode_prompt, encode_text
from prefloop.data.steps import step_ends, to_first_error
from prefloop.types import (
    Author,
    Completion,
    Demonstration,
    Message,
    Node,
    Pair,
    Preference,
    PrefloopError,
    Prompt,
    Ranking,
    StepLabels,
    Tree,
    Verdict,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Encoder:
    """A tokenizer with what a tree needs beside it: the token that ends a response and the longest context."""

    tokenizer: Tokenizer
    stop: int
    context: int

    def prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Tokens of a prompt. Raises PrefloopError when nothing could be answered within the context."""
        tokens = encode_prompt(self.tokenizer, prompt.messages)
        if len(tokens) >= self.context:
            raise PrefloopError(
                f"Prompt {prompt.id!r} has {len(tokens)} tokens, which leaves no room in the model's context of "
                f"{self.context}; shorten it or take a model with a longer context."
            )
        return tokens

    def response(self, completion: Completion) -> tuple[int, ...]:
        """Tokens of an answer: as sampled, or its text and the stop token; truncated answers get no stop token.

        Raises PrefloopError when the answer was sampled with another tokenizer: its tokens would mean other words here.
        """
        if completion.segments:
            tokens, text, stopped = completion.tokens, completion.text, completion.finish_reason == "stop"
            known = all(0 <= token < len(self.tokenizer) for token in tokens)
            same = known and decode(self.tokenizer, tokens[:-1] if stopped else tokens) == text
            if known and stopped and not same:
                whole = decode(self.tokenizer, tokens)
                same = any(whole.startswith(text + string) for string in completion.sampling.stop)
            if not same:
                raise PrefloopError(
                    f"Completion {completion.id!r} has tokens of another tokenizer than this model's; take a model of "
                    "the family that sampled it, or sample anew with this one."
                )
            return tokens
        stop = (self.stop,) if completion.finish_reason == "stop" else ()
        return encode_text(self.tokenizer, completion.text) + stop


def written(parent: int, tokens: tuple[int, ...], author: Author = "policy") -> Node:
    """A node whose tokens are all read."""
    if not tokens:
        raise PrefloopError("An answer without a single token cannot be trained on; drop it or let it end with a stop.")
    return Node(parent=parent, tokens=tokens, author=author, fields={"weight": (1.0,) * len(tokens)})


def given(parent: int, tokens: tuple[int, ...]) -> Node:
    """A node that is only context."""
    return Node(parent=parent, tokens=tokens, author="prompt")


def demonstration_trees(demonstration: Demonstration, encoder: Encoder) -> list[Tree]:
    """One tree that trains every assistant turn; where the template rewrites earlier turns, a tree for each stretch
    that it leaves alone, all with the demonstration's id as trajectory. Plain text, which answers nothing, is cut to
    the context.

    Raises PrefloopError for a demonstration longer than the model's context.
    """
    messages = demonstration.prompt.messages
    if not messages:
        return text_trees(demonstration, encoder)
    answers = [(i, m.content) for i, m in enumerate(messages) if m.role == "assistant"]
    answers.append((len(messages), demonstration.completion))
    stretches: list[list[Node]] = []
    seen: tuple[int, ...] = ()
    for end, text in answers:
        asked = encode_prompt(encoder.tokenizer, messages[:end])
        answer = (*encode_text(encoder.tokenizer, text), encoder.stop)
        if not stretches or asked[: len(seen)] != seen:
            stretches.append([])
            seen = ()
        nodes = stretches[-1]
        nodes.append(given(len(nodes) - 1, asked[len(seen) :]))
        nodes.append(written(len(nodes) - 1, answer, "person"))
        seen = asked + answer
        if len(seen) > encoder.context:
            raise PrefloopError(
                f"Demonstration {demonstration.id!r} has {len(seen)} tokens, more than the model's context of "
                f"{encoder.context}; shorten it."
            )
    name = demonstration.id
    return [Tree(id=f"{name}/{i}", nodes=tuple(nodes), trajectory_id=name) for i, nodes in enumerate(stretches)]


def text_trees(demonstration: Demonstration, encoder: Encoder) -> list[Tree]:
    """Plain text alone, every token but the first predicted from those before it; one tree for each stretch that fills
    the context. No token is added. Raises PrefloopError for a text of fewer than two tokens."""
    tokens, name = encode_text(encoder.tokenizer, demonstration.completion), demonstration.id
    parts = [tokens[start : start + encoder.context] for start in range(0, len(tokens), encoder.context)]
    nodes = [
        Node(parent=-1, tokens=part, author="person", fields={"weight": (0.0, *(1.0,) * (len(part) - 1))})
        for part in parts
        if len(part) > 1
    ]
    if not nodes:
        raise PrefloopError(f"A text is too short to learn from ({demonstration.completion!r}); remove it.")
    return [Tree(id=f"{name}/{i}", nodes=(node,), trajectory_id=name) for i, node in enumerate(nodes)]


def answer_tree(prompt: Prompt, completions: Sequence[Completion], encoder: Encoder) -> Tree:
    """A prompt and its answers as branches: node 0 is the prompt, node 1 + i is completions[i]."""
    root = given(-1, encoder.prompt(prompt))
    branches = [written(0, encoder.response(completion)) for completion in completions]
    longest = len(root.tokens) + max(len(branch.tokens) for branch in branches)
    if longest > encoder.context:
        raise PrefloopError(
            f"Prompt {prompt.id!r} with its longest answer has {longest} tokens, more than the model's context of "
            f"{encoder.context}; shorten it or lower max_tokens."
        )
    return Tree(id=prompt.id, nodes=(root, *branches), trajectory_id=prompt.id)


def by_prompt(prompts: Iterable[Prompt]) -> list[list[int]]:
    """The places of each prompt, prompts in order of their first; an id may stand for two of them."""
    groups: dict[tuple[str, tuple[Message, ...]], list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault((prompt.id, prompt.messages), []).append(place)
    return list(groups.values())


def steps_tree(
    prompt: Prompt, completions: Sequence[Completion], encoder: Encoder, rule: str
) -> tuple[Tree, list[tuple[int, ...]]]:
    """A prompt and its answers as in `answer_tree`, of which only the last token of each step is read; and the places
    of these in each answer (data/steps.py says what a rule can be)."""
    tree = answer_tree(prompt, completions, encoder)
    ends = [step_ends(node.tokens, rule, encoder.tokenizer) for node in tree.nodes[1:]]
    read = {1 + i: {"weight": _at(own, tree.nodes[1 + i])} for i, own in enumerate(ends)}
    return with_fields(tree, read), ends


def step_trees(labeled: Sequence[StepLabels], encoder: Encoder, rule: str) -> list[Tree]:
    """One tree for each prompt, with labels at the step ends that carry one, up to each answer's first error; nothing
    else is read. Raises PrefloopError where an answer has more or fewer steps than labels, or nothing is labeled."""
    trees = []
    for places in by_prompt(item.prompt for item in labeled):
        group = [labeled[place] for place in places]
        tree, ends = steps_tree(group[0].prompt, [item.completion for item in group], encoder, rule)
        fields: dict[int, dict[str, list[float]]] = {}
        for place, (item, own) in enumerate(zip(group, ends, strict=True), 1):
            if len(own) != len(item.labels):
                raise PrefloopError(
                    f"Completion {item.completion.id!r} has {len(own)} steps by the rule {rule!r} and "
                    f"{len(item.labels)} labels; give each step one, or take the rule that its labels were made by."
                )
            labels = to_first_error(item.labels)
            known = {end: label for end, label in zip(own, labels, strict=True) if label is not None}
            fields[place] = {"weight": _at(known, tree.nodes[place]), "label": _at(known, tree.nodes[place], known)}
        if any(any(columns["weight"]) for columns in fields.values()):
            trees.append(with_fields(tree, fields))
    if not trees:
        raise PrefloopError("No step has a label; give labels of at least one step.")
    return trees


def _at(places: Iterable[int], node: Node, values: Mapping[int, float] | None = None) -> list[float]:
    """A column of a node: at places 1 or their values, else 0."""
    column = [0.0] * len(node.tokens)
    for place in places:
        column[place] = values[place] if values else 1.0
    return column


def preference_trees(preferences: Sequence[Preference], encoder: Encoder) -> list[Tree]:
    """One tree for each group of preferences over one prompt, each answer standing in it once. Each preference becomes
    pairs (of a ranking all, ties with target 0.5) and rankings (of a soft target both, weighted by it).

    Empty answers are kept as a lone stop token; identical answers share a branch, at the better of their ranks in a
    ranking, and a pair of them is dropped.
    """
    groups: dict[str, list[Preference]] = {}
    for preference in preferences:
        groups.setdefault(preference.group or preference.prompt.id, []).append(preference)
    trees = [_preference_tree(name, group, encoder) for name, group in groups.items()]
    kept = [tree for tree in trees if tree.pairs]
    if not kept:
        raise PrefloopError("No comparison is left to learn from: there are none, or all compare identical answers.")
    return kept


def _preference_tree(name: str, group: Sequence[Preference], encoder: Encoder) -> Tree:
    branches: dict[tuple[int, ...], Completion] = {}
    pairs: list[tuple[tuple[int, ...], tuple[int, ...], float, float, float]] = []
    rankings: list[tuple[dict[tuple[int, ...], int], float]] = []
    for preference in group:
        tokens = [encoder.response(item) or (encoder.stop,) for item in preference.items]
        branches.update(zip(tokens, preference.items, strict=True))
        for a, b, target in ordered_pairs(preference):
            if tokens[a] != tokens[b]:
                pairs.append((tokens[a], tokens[b], target, preference.weight, preference.margin))
        for ranks, share in whole_rankings(preference):
            ranked = {answer: rank for rank, answer in sorted(zip(ranks, tokens, strict=True), reverse=True)}
            if len(ranked) > 1:
                rankings.append((ranked, share * preference.weight))
    if any(preference.prompt.messages != group[0].prompt.messages for preference in group):
        raise PrefloopError(
            f"Preferences of group {name!r} answer different prompts; give each prompt an id and a group of its own."
        )
    order = list(branches)
    root = given(-1, encoder.prompt(group[0].prompt))
    if len(root.tokens) + max(map(len, order)) > encoder.context:
        raise PrefloopError(
            f"A comparison of prompt {group[0].prompt.id!r} is longer than the model's context of {encoder.context}; "
            "drop or shorten it."
        )
    nodes = (root, *(written(0, tokens) for tokens in order))
    made = tuple(
        Pair(a=1 + order.index(a), b=1 + order.index(b), target=target, weight=weight, margin=margin)
        for a, b, target, weight, margin in pairs
    )
    full = tuple(
        Ranking(nodes=tuple(1 + order.index(a) for a in ranked), ranks=tuple(ranked.values()), weight=weight)
        for ranked, weight in rankings
    )
    return Tree(id=name, nodes=nodes, pairs=made, rankings=full, trajectory_id=name)


def verdict_trees(verdicts: Sequence[Verdict], encoder: Encoder) -> list[Tree]:
    """One tree for each prompt with its answers, each token of which says in the field `good` whether it is: 1 or 0."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.prompt.id, []).append(verdict)
    trees = []
    for name, group in groups.items():
        if any(verdict.prompt.messages != group[0].prompt.messages for verdict in group):
            raise PrefloopError(f"Answers of prompt {name!r} answer different prompts; give each an id of its own.")
        tree = answer_tree(group[0].prompt, [verdict.completion for verdict in group], encoder)
        labels = {i: [float(verdict.good)] * len(tree.nodes[i].tokens) for i, verdict in enumerate(group, 1)}
        trees.append(with_fields(tree, {i: {"good": column} for i, column in labels.items()}))
    return trees


def mismatched_trees(trees: Sequence[Tree], encoder: Encoder, order: Sequence[int]) -> list[Tree]:
    """Each tree's prompt with the answers of another one, the next in `order`, a permutation; cut where they would not
    fit into the context. Raises PrefloopError for a single tree."""
    if len(trees) < 2:
        raise PrefloopError("Answers to one prompt alone have no mismatched ones; KTO needs two prompts or more.")
    other = {place: trees[after] for place, after in zip(order, [*order[1:], order[0]], strict=True)}
    made = []
    for place, tree in enumerate(trees):
        room = encoder.context - len(tree.nodes[0].tokens)
        branches = (written(0, node.tokens[:room]) for node in other[place].nodes[1:])
        made.append(Tree(id=f"{tree.id}/{other[place].id}", nodes=(tree.nodes[0], *branches)))
    return made


def ordered_pairs(preference: Preference) -> list[tuple[int, int, float]]:
    """(i, j, probability that item i is better than item j) of each pair that was compared; 0.5 for tied ranks."""
    if preference.ranking is None:
        return [(0, 1, 1.0 if preference.target is None else preference.target)]
    ranks = preference.ranking
    pairs = [(i, j) for i in range(len(ranks)) for j in range(i + 1, len(ranks))]
    return [(i, j, 0.5 if ranks[i] == ranks[j] else float(ranks[i] < ranks[j])) for i, j in pairs]


def whole_rankings(preference: Preference) -> list[tuple[tuple[int, ...], float]]:
    """(rank of each item, share of the weight) of each ranking that a preference holds: a soft target holds two."""
    if preference.ranking is not None:
        return [(preference.ranking, 1.0)]
    ((_, _, target),) = ordered_pairs(preference)
    return [(ranks, share) for ranks, share in (((0, 1), target), ((1, 0), 1 - target)) if share > 0]


def with_fields(tree: Tree, fields: Mapping[int, Mapping[str, Sequence[float]]]) -> Tree:
    """The tree with per-token numbers added to some nodes: {node: {name: values}}, each as long as its tokens."""
    nodes = list(tree.nodes)
    for index, added in fields.items():
        values = {name: tuple(float(v) for v in column) for name, column in added.items()}
        for name, column in values.items():
            if len(column) != len(nodes[index].tokens):
                raise ValueError(f"{name}: {len(column)} values for {len(nodes[index].tokens)} tokens of {tree.id}")
        nodes[index] = dataclasses.replace(nodes[index], fields={**nodes[index].fields, **values})
    return dataclasses.replace(tree, nodes=tuple(nodes))
