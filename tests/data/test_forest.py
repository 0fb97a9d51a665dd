"""A forest computes what every root-to-leaf path computes alone, through transformers' own eager attention."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.configs.shared import OptimConfig
from prefloop.data import forest as forests
from prefloop.data.forest import ForestLayout, Totals, build_forest, leaf_nodes, pack, tree_tokens
from prefloop.engine.local import LocalLearner, LocalScorer
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import FAMILIES, SLIDING_WINDOW, tiny_model, tiny_tokenizer
from prefloop.types import Node, Pair, PrefloopError, Ranking, Tree

TOKENIZER = tiny_tokenizer()


def loaded(family: str = "llama") -> LoadedModel:
    return LoadedModel(tiny_model(3, family=family), TOKENIZER, "tiny", "")


def node(parent: int, length: int, chance: random.Random, weights: tuple[float, ...] | None) -> Node:
    tokens = tuple(chance.randrange(259) for _ in range(length))
    return Node(parent=parent, tokens=tokens, author="policy", fields={} if weights is None else {"weight": weights})


def flat_tree(seed: int, branches: int = 4) -> Tree:
    """A prompt and its answers: depth 1."""
    chance = random.Random(seed)
    lengths = [chance.randint(1, 14) for _ in range(branches)]
    answers = [node(0, n, chance, (1.0,) * n) for n in lengths]
    return Tree(id=f"flat-{seed}", nodes=(node(-1, chance.randint(1, 20), chance, None), *answers))


def deep_tree(seed: int) -> Tree:
    """A random tree of random depth, some tokens of it read, with different weights."""
    chance = random.Random(seed)
    nodes = [node(-1, chance.randint(1, 9), chance, None)]
    for index in range(1, chance.randint(4, 9)):
        length = chance.randint(1, 9)
        weights = tuple(chance.choice((0.0, 0.5, 1.0)) for _ in range(length))
        nodes.append(node(max(0, index - chance.randint(1, 3)), length, chance, weights))
    return Tree(id=f"deep-{seed}", nodes=tuple(nodes))


def apart(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


def path_to(tree: Tree, index: int) -> list[int]:
    path = [index]
    while tree.nodes[path[-1]].parent >= 0:
        path.append(tree.nodes[path[-1]].parent)
    return path[::-1]


Tokens = dict[tuple[int, int, int], Tensor]  # by tree, node and offset


def one_at_a_time(model: torch.nn.Module, trees: list[Tree]) -> tuple[Tokens, Tokens, Tensor]:
    """Hidden states and log-probs of every token, each path run alone, and the weighted sum of -log p."""
    states: Tokens = {}
    logprobs: Tokens = {}
    loss = torch.zeros(())
    for number, tree in enumerate(trees):
        for leaf in leaf_nodes(tree):
            path = path_to(tree, leaf)
            tokens = torch.tensor([token for index in path for token in tree.nodes[index].tokens])
            out = model(input_ids=tokens[None], output_hidden_states=True, use_cache=False)
            logp = torch.log_softmax(out.logits[0], -1)
            places = [(number, index, offset) for index in path for offset in range(len(tree.nodes[index].tokens))]
            for row, place in enumerate(places):
                if place in states:
                    continue
                states[place] = out.hidden_states[-1][0, row]
                weight = tree.nodes[place[1]].fields.get("weight", (0.0,) * 99)[place[2]]
                if weight:
                    logprobs[place] = logp[row - 1, tokens[row]]
                    loss = loss - weight * logprobs[place]
    return states, logprobs, loss


@pytest.mark.parametrize("dense", [512, 0], ids=["dense", "by-node"])
@pytest.mark.parametrize("shape", ["flat", "deep"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_forest_equals_its_paths_run_alone(
    family: str, shape: str, dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forests, "DENSE", dense)
    monkeypatch.setattr(forests, "ROWS", 5)
    trees = [(flat_tree if shape == "flat" else deep_tree)(seed) for seed in range(4)]
    scorer = LocalScorer(loaded(family), token_budget=4096)
    eager = tiny_model(3, family=family)
    eager.set_attn_implementation("eager")
    expected_states, expected_logprobs, expected_loss = one_at_a_time(eager, trees)
    expected_loss.backward()

    forest = build_forest(trees)
    assert len(forest.layout.rows) == (sum(-(-len(n.tokens) // 5) for t in trees for n in t.nodes) if dense == 0 else 4)
    states = scorer.hidden(forest, [])
    logprobs = scorer.outputs(forest, states, {"logprobs"}, 1.0).logprobs
    assert logprobs is not None
    (-(logprobs * forest.field("weight")).sum()).backward()

    order = [(i, k, o) for i, t in enumerate(trees) for k, n in enumerate(t.nodes) for o in range(len(n.tokens))]
    assert apart(states, torch.stack([expected_states[place] for place in order])) < 1e-5
    read = [place for place in order if place in expected_logprobs]
    assert apart(logprobs, torch.stack([expected_logprobs[place] for place in read])) < 1e-5
    expected = dict(eager.named_parameters())
    for name, parameter in scorer.model.named_parameters():
        wanted = expected[name].grad
        assert parameter.grad is not None and wanted is not None and wanted.norm() > 0
        assert apart(parameter.grad, wanted) < 1e-5, name


def test_the_window_binds_in_these_trees() -> None:
    """The comparison above would not see a window that is never reached."""
    assert max(int(build_forest([deep_tree(s)]).positions.max()) for s in range(4)) > 2 * SLIDING_WINDOW


def test_windows_count_tree_positions_not_rows() -> None:
    chance = random.Random(0)
    tree = Tree(id="t", nodes=(node(-1, 4, chance, None), node(0, 30, chance, None), node(0, 3, chance, None)))
    layout = build_forest([tree]).layout
    assert layout.positions[34:].tolist() == [4, 5, 6]
    assert keys_of(layout, 8)[34] == {0, 1, 2, 3, 34}
    assert keys_of(layout, 8)[33] == set(range(26, 34))
    assert keys_of(layout, 8)[36] == {0, 1, 2, 3, 34, 35, 36}
    assert keys_of(layout, 4)[36] == {3, 34, 35, 36}


def keys_of(layout: ForestLayout, window: int | None) -> list[set[int]]:
    """The keys that each row sees, as the blocks' ranges and biases say."""
    found: list[set[int]] = []
    for block in layout.blocks(window, torch.float32):
        keys = [k for a, b in block.keys for k in range(a, b)]
        assert block.bias.shape == (block.stop - block.start, len(keys))
        assert len(found) == block.start
        found += [{k for k, hidden in zip(keys, row, strict=True) if hidden == 0} for row in block.bias.tolist()]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_who_sees_whom(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block's bias against the definition: ancestors and the own past, within the window."""
    trees = [deep_tree(seed), flat_tree(seed)]
    monkeypatch.setattr(forests, "ROWS", 4)
    for dense in (512, 0):
        monkeypatch.setattr(forests, "DENSE", dense)
        layout = build_forest(trees).layout
        where = [(t, n) for t, tree in enumerate(trees) for n, made in enumerate(tree.nodes) for _ in made.tokens]
        for window in (None, 3):
            for query, keys in enumerate(keys_of(layout, window)):
                tree, at = where[query]
                above = {(tree, n) for n in path_to(trees[tree], at)}
                gap = [int(layout.positions[query] - layout.positions[k]) for k in range(len(where))]
                assert keys == {k for k in range(len(where)) if where[k] in above and 0 <= gap[k] < (window or 999)}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_do_not_depend_on_the_split(family: str) -> None:
    trees = [deep_tree(seed) for seed in range(6)]
    found = []
    for budget in (max(map(tree_tokens, trees)), 10_000):
        assert (len(pack(trees, budget)) == 1) == (budget == 10_000)
        learner = LocalLearner(loaded(family), optim=OptimConfig(lr=1e-3), token_budget=budget)
        metrics = learner.forward_backward(trees, "sft", {})
        found.append((metrics["loss/train"], [w.grad for w in learner.weights]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for few, many in zip(found[0][1], found[1][1], strict=True):
        assert few is not None and many is not None and apart(few, many) < 1e-5


def test_attention_without_a_layout_raises() -> None:
    model = tiny_model()
    with pytest.raises(PrefloopError, match="called without a layout"):
        model(input_ids=torch.arange(5)[None])
    layout = build_forest([flat_tree(0)]).layout
    with pytest.raises(PrefloopError, match="one row of tokens, not a batch of 2"):
        model(input_ids=torch.zeros(2, 5, dtype=torch.long), layout=layout)


def test_targets_sources_and_fields_by_hand() -> None:
    tree = Tree(
        id="t",
        nodes=(
            Node(parent=-1, tokens=(1, 2), author="prompt"),
            Node(parent=0, tokens=(3, 4, 5), author="policy", fields={"weight": (1, 0, 0.5), "advantages": (7, 8, 9)}),
            Node(parent=0, tokens=(6,), author="policy", fields={"weight": (1,), "advantages": (-1,)}),
            Node(parent=1, tokens=(7,), author="policy", fields={"weight": (2,), "advantages": (3,)}),
        ),
        pairs=(Pair(a=3, b=2, target=0.75, weight=2.0, margin=0.5),),
        rankings=(Ranking(nodes=(3, 2), ranks=(0, 4)), Ranking(nodes=(2, 3), ranks=(1, 1), weight=0.5)),
    )
    forest = build_forest([tree])
    assert forest.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert forest.positions.tolist() == [0, 1, 2, 3, 4, 2, 5]
    assert forest.targets.tolist() == [2, 4, 5, 6]
    assert forest.sources.tolist() == [1, 3, 1, 4]
    assert forest.field("weight").tolist() == [1, 0.5, 1, 2]
    assert forest.field("advantages").tolist() == [7, 9, -1, 3]
    assert forest.branches == ((0, 2), (0, 3)) and forest.leaves.tolist() == [5, 6]
    assert forest.branch_of.tolist() == [-1, -1, 0, 1]
    pairs = forest.pairs
    assert [x.tolist() for x in (pairs.a, pairs.b, pairs.target, pairs.weight, pairs.margin)] == [
        [1],
        [0],
        [0.75],
        [2.0],
        [0.5],
    ]
    found = build_forest([tree, tree]).rankings
    assert found.branch.tolist() == [1, 0, 0, 1, 3, 2, 2, 3]
    assert found.rank.tolist() == [0, 4, 1, 1] * 2
    assert found.ranking.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert found.weight.tolist() == [1, 1, 0.5, 0.5] * 2
    assert Totals.of([tree, tree]) == Totals(tokens=9.0, branches=4, pairs=4.0, rankings=3.0, trees=2)
    with pytest.raises(PrefloopError, match="'returns', which these trees do not carry"):
        forest.field("returns")


def test_broken_trees_are_refused() -> None:
    def tree(*nodes: Node, **rest: Any) -> Tree:
        return Tree(id="odd", nodes=nodes, **rest)

    root = Node(parent=-1, tokens=(1,), author="prompt")
    with pytest.raises(PrefloopError, match="'odd' has an empty node 1"):
        build_forest([tree(root, Node(parent=0, tokens=(), author="policy"))])
    with pytest.raises(PrefloopError, match="reads the first token of its root"):
        build_forest([tree(Node(parent=-1, tokens=(1,), author="policy", fields={"weight": (1.0,)}))])
    with pytest.raises(ValueError, match="stands after"):
        build_forest([tree(Node(parent=0, tokens=(1,), author="prompt"))])
    with pytest.raises(ValueError, match="not a leaf"):
        build_forest([tree(root, Node(parent=0, tokens=(2,), author="policy"), pairs=(Pair(a=0, b=1),))])
    ranked = (Ranking(nodes=(0, 1), ranks=(0, 1)),)
    with pytest.raises(ValueError, match="a ranking names a node that is not a leaf"):
        build_forest([tree(root, Node(parent=0, tokens=(2,), author="policy"), rankings=ranked)])
    with pytest.raises(ValueError, match="field weight of node 1 has 2 values for 1 tokens"):
        build_forest([tree(root, Node(parent=0, tokens=(2,), author="policy", fields={"weight": (1.0, 1.0)}))])


def sized(length: int, name: str = "t") -> Tree:
    return Tree(id=name, nodes=(Node(parent=-1, tokens=(0,) * length, author="prompt"),))


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 5))
def test_packs_hold_every_tree_once_within_the_budget(sizes: list[int], ranks: int) -> None:
    trees = [sized(size) for size in sizes]
    needed = len(pack(trees, 50))
    if -(-needed // ranks) * ranks > len(trees):
        with pytest.raises(PrefloopError, match="cannot be spread"):
            pack(trees, 50, ranks)
        return
    packs = pack(trees, 50, ranks)
    assert packs == pack(trees, 50, ranks)
    assert sorted(index for members in packs for index in members) == list(range(len(trees)))
    assert all(0 < sum(sizes[i] for i in members) <= 50 for members in packs)
    assert len(packs) % ranks == 0


def test_packs_are_of_even_size_where_they_can_be() -> None:
    assert pack([sized(n) for n in (30, 30, 20, 20, 10, 10)], 70) == [[0, 2, 4], [1, 3, 5]]
    assert pack([sized(n) for n in (40, 30, 30, 20, 20)], 70) == [[0, 1], [2, 3, 4]]  # evenly, the last would not fit


def test_packs_that_cannot_be() -> None:
    with pytest.raises(PrefloopError, match="Tree 'long' has 51 tokens, over the budget of 50"):
        pack([sized(3), sized(51, "long")], 50)
    with pytest.raises(PrefloopError, match="2 trees cannot be spread over 3 workers"):
        pack([sized(3), sized(4)], 50, ranks=3)
