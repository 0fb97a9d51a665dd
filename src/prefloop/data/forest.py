"""Token trees -> tensors: the only place that shifts. A forest is trees packed into one row of T tokens, no padding.

A token is predicted by the token before it on its path, so the last token of a shared prompt predicts the first
token of every branch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from prefloop.ops.attention import Traits
from prefloop.ops.blocks import Block, Stack, attend_blocks, stacked
from prefloop.ops.flex import NARROWEST, flex_attend, forest_mask
from prefloop.types import PrefloopError, Tree

DENSE = 96  # a tree of up to so many tokens is one block of attention
ROWS = 128  # queries of a block, at most, in a larger tree: it is cut by nodes, and those by rows


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of queries, and the row ranges of the keys that some of them see (ancestors in order, then their own)."""

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ForestLayout:
    """Who sees whom in a forest: a token sees its ancestors and its own past, within the window in tree positions."""

    rows: tuple[Rows, ...]
    positions: Tensor  # [T]
    nodes: Tensor  # [T], index of the token's node in the forest
    visible: Tensor  # [nodes, nodes] bool: is the second an ancestor of the first, or itself

    @cached_property
    def _stacks(self) -> dict[object, list[Stack]]:
        return {}

    def stacks(self, window: int | None, dtype: torch.dtype, heads: int, key_heads: int) -> list[Stack]:
        """The blocks, stacked for a layer's heads and made once."""
        key = window, dtype, heads, key_heads
        if key not in self._stacks:
            self._stacks[key] = stacked(self.blocks(window, dtype), heads, key_heads, len(self.positions))
        return self._stacks[key]

    def blocks(self, window: int | None, dtype: torch.dtype) -> list[Block]:
        """Blocks of attention with biases in a dtype; keys that the window hides from all of a block are left out."""
        places = self.positions.tolist()
        return [self._block(rows, window, dtype, places) for rows in self.rows]

    def _block(self, rows: Rows, window: int | None, dtype: torch.dtype, places: Sequence[int]) -> Block:
        ranges = rows.keys
        if window is not None:
            first = places[rows.start] - window + 1  # rows of one node rise, as keys of one range do
            cut = ((start + max(0, first - places[start]), stop) for start, stop in ranges)
            ranges = tuple((start, stop) for start, stop in cut if start < stop)
        device = self.positions.device
        queries = torch.arange(rows.start, rows.stop, device=device)
        keys = torch.cat([torch.arange(start, stop, device=device) for start, stop in ranges])
        gap = self.positions[queries][:, None] - self.positions[keys][None, :]
        seen = self.visible[self.nodes[queries]][:, self.nodes[keys]] & (gap >= 0)
        if window is not None:
            seen &= gap < window
        bias = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))
        return Block(rows.start, rows.stop, ranges, bias)

    @cached_property
    def _masks(self) -> dict[int | None, BlockMask]:
        return {}

    def mask(self, window: int | None) -> BlockMask:
        """The same as one mask of the whole row, for `flex_attend`."""
        if window not in self._masks:
            self._masks[window] = forest_mask(self.positions, self.nodes, self.visible, window)
        return self._masks[window]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, traits: Traits) -> Tensor:
        """Attention of the whole row: [H, T, D] x [Hk, T, D] -> [H, T, D]. On a GPU by one kernel."""
        if query.is_cuda and query.shape[-1] >= NARROWEST:
            return flex_attend(query, key, value, self.mask(traits.window), traits)
        stacks = self.stacks(traits.window, query.dtype, len(query), len(key))
        return attend_blocks(query, key, value, stacks, traits)


@dataclass(frozen=True, slots=True)
class PairIndex:
    """Pairs of branches: indices into the forest's branches and what the labels say. All [N]."""

    a: Tensor
    b: Tensor
    target: Tensor
    weight: Tensor
    margin: Tensor


@dataclass(frozen=True, slots=True)
class RankIndex:
    """Places of branches in rankings: index into the forest's branches, rank (0 best), number of the ranking and its
    weight. All [M]."""

    branch: Tensor
    rank: Tensor
    ranking: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Where a node's read tokens stand among the R tokens that the forest reads."""

    tree: int
    node: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Some branches of a tree; its node i is the tree's node nodes[i]. Pairs and rankings stay with the tree."""

    tree: Tree
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees in one row. R = tokens read (weight not 0), B = branches (leaves)."""

    tokens: Tensor  # [T]
    positions: Tensor  # [T]
    layout: ForestLayout
    targets: Tensor  # [R] rows of the tokens read
    sources: Tensor  # [R] rows that predict them
    branch_of: Tensor  # [R] branch that a read token belongs to (its own node's, when that is a leaf; else -1)
    leaves: Tensor  # [B] row of each branch's last token
    fields: Mapping[str, Tensor]  # each [R] fp32
    pairs: PairIndex
    rankings: RankIndex
    spans: tuple[Span, ...]
    branches: tuple[tuple[int, int], ...]  # (tree, node) of each branch

    def field(self, name: str) -> Tensor:
        """A per-token number [R] that a loss needs, empty where no token is read. Raises PrefloopError when the trees
        do not carry it."""
        if not len(self.targets):
            return self.targets.new_zeros(0, dtype=torch.float32)
        if name not in self.fields:
            raise PrefloopError(f"The loss reads the field {name!r}, which these trees do not carry.")
        return self.fields[name]

    def per_branch(self, values: Tensor) -> Tensor:
        """Sums [B] over the read tokens of each leaf of numbers [R]; what is read above the leaves counts for none."""
        leaf = self.branch_of >= 0
        sums = values.new_zeros(len(self.leaves))
        return sums.index_add(0, self.branch_of[leaf], values[leaf])


@dataclass(frozen=True, slots=True)
class Totals:
    """Denominators over a whole batch, taken before it is split into forests."""

    tokens: float
    branches: int
    pairs: float
    rankings: float
    trees: int

    @staticmethod
    def of(trees: Sequence[Tree]) -> Totals:
        weights = sum(abs(w) for tree in trees for node in tree.nodes for w in node.fields.get("weight", ()))
        return Totals(
            tokens=weights,
            branches=sum(len(leaf_nodes(tree)) for tree in trees),
            pairs=sum(pair.weight for tree in trees for pair in tree.pairs),
            rankings=sum(ranking.weight for tree in trees for ranking in tree.rankings),
            trees=len(trees),
        )


def leaf_nodes(tree: Tree) -> list[int]:
    """Indices of the nodes that no other node continues."""
    parents = {node.parent for node in tree.nodes}
    return [index for index in range(len(tree.nodes)) if index not in parents]


def tree_tokens(tree: Tree) -> int:
    return sum(len(node.tokens) for node in tree.nodes)


def pack(trees: Sequence[Tree], token_budget: int, ranks: int = 1) -> list[list[int]]:
    """Indices of trees in micro-batches of at most `token_budget` tokens, as few as first fit by falling size finds and
    as many for every rank, of even size where they can be. Deterministic. Raises PrefloopError for a tree over the
    budget."""
    sizes = [tree_tokens(tree) for tree in trees]
    for tree, size in zip(trees, sizes, strict=True):
        if size > token_budget:
            raise PrefloopError(f"Tree {tree.id!r} has {size} tokens, over the budget of {token_budget}; raise it.")
    falling = sorted(range(len(trees)), key=lambda i: (-sizes[i], i))
    bins: list[list[int]] = []
    used: list[int] = []
    for index in falling:
        place = next((k for k, full in enumerate(used) if full + sizes[index] <= token_budget), len(bins))
        if place == len(bins):
            bins.append([])
            used.append(0)
        bins[place].append(index)
        used[place] += sizes[index]
    while len(bins) % ranks:
        largest = max(bins, key=len)
        if len(largest) < 2:
            raise PrefloopError(f"{len(trees)} trees cannot be spread over {ranks} workers; give each step more trees.")
        bins.append([largest.pop()])
    even: list[list[int]] = [[] for _ in bins]
    used = [0] * len(bins)
    for index in falling:
        place = used.index(min(used))
        even[place].append(index)
        used[place] += sizes[index]
    return [sorted(members) for members in (even if max(used, default=0) <= token_budget else bins)]


def pieces(tree: Tree, token_budget: int) -> list[Piece]:
    """The tree cut into groups of branches within the budget, each with all its ancestors; every token is read in one
    piece only. Raises PrefloopError for a single branch over the budget."""
    sizes = [len(node.tokens) for node in tree.nodes]
    made: list[set[int]] = []
    for leaf in leaf_nodes(tree):
        path, at = {leaf}, leaf
        while (at := tree.nodes[at].parent) >= 0:
            path.add(at)
        if (length := sum(sizes[i] for i in path)) > token_budget:
            raise PrefloopError(
                f"A branch of tree {tree.id!r} has {length} tokens, over the token budget of {token_budget}; "
                "raise engine.token_budget or shorten it."
            )
        if made and sum(sizes[i] for i in made[-1] | path) <= token_budget:
            made[-1] |= path
        else:
            made.append(path)
    read: set[int] = set()
    found = []
    for members in map(sorted, made):
        place = {node: index for index, node in enumerate(members)}
        nodes = []
        for index in members:
            node = tree.nodes[index]
            fields = {} if index in read else node.fields
            nodes.append(replace(node, parent=place.get(node.parent, -1), fields=fields))
        read |= set(members)
        found.append(Piece(replace(tree, nodes=tuple(nodes), pairs=(), rankings=()), tuple(members)))
    return found


def build_forest(trees: Sequence[Tree], device: torch.device | str = "cpu") -> Forest:
    """Lay trees out in one row. Positions count from the root of each tree."""
    rows = _Rows()
    for index, tree in enumerate(trees):
        rows.add(index, tree)
    return rows.forest(device)


class _Rows:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.nodes: list[int] = []
        self.ancestors: list[list[int]] = []
        self.ranges: list[tuple[int, int]] = []
        self.blocks: list[Rows] = []
        self.targets: list[int] = []
        self.sources: list[int] = []
        self.branch_of: list[int] = []
        self.leaves: list[int] = []
        self.columns: list[tuple[int, Mapping[str, tuple[float, ...]], list[int]]] = []
        self.pairs: list[tuple[int, int, float, float, float]] = []
        self.ranked: list[tuple[int, int, int, float]] = []
        self.rankings = 0
        self.spans: list[Span] = []
        self.branches: list[tuple[int, int]] = []

    def add(self, tree_index: int, tree: Tree) -> None:
        first_node, first_row = len(self.ranges), len(self.tokens)
        leaves = set(leaf_nodes(tree))
        branch: dict[int, int] = {}
        for index, node in enumerate(tree.nodes):
            if not node.tokens:
                raise PrefloopError(f"Tree {tree.id!r} has an empty node {index}; every node needs a token.")
            if node.parent >= index:
                raise ValueError(f"tree {tree.id}: parent {node.parent} stands after node {index}")
            parent = first_node + node.parent if node.parent >= 0 else None
            start, stop = len(self.tokens), len(self.tokens) + len(node.tokens)
            depth = self.positions[self.ranges[parent][1] - 1] + 1 if parent is not None else 0
            self.tokens += node.tokens
            self.positions += range(depth, depth + len(node.tokens))
            self.nodes += [len(self.ranges)] * len(node.tokens)
            self.ancestors.append(([*self.ancestors[parent]] if parent is not None else []) + [len(self.ranges)])
            self.ranges.append((start, stop))
            if index in leaves:
                branch[index] = len(self.leaves)
                self.leaves.append(stop - 1)
                self.branches.append((tree_index, index))
            before = self.ranges[parent][1] - 1 if parent is not None else None
            self._read(tree_index, index, tree, start, before, branch.get(index, -1))
        if len(self.tokens) - first_row <= DENSE:
            self.blocks.append(Rows(first_row, len(self.tokens), ((first_row, len(self.tokens)),)))
        else:
            for node_row in range(first_node, len(self.ranges)):
                self.blocks += self._cut(node_row)
        for pair in tree.pairs:
            if pair.a not in branch or pair.b not in branch:
                raise ValueError(f"tree {tree.id}: a pair names a node that is not a leaf")
            self.pairs.append((branch[pair.a], branch[pair.b], pair.target, pair.weight, pair.margin))
        for ranking in tree.rankings:
            if not branch.keys() >= set(ranking.nodes):
                raise ValueError(f"tree {tree.id}: a ranking names a node that is not a leaf")
            for node_index, rank in zip(ranking.nodes, ranking.ranks, strict=True):
                self.ranked.append((branch[node_index], rank, self.rankings, ranking.weight))
            self.rankings += 1

    def _cut(self, node: int) -> Iterator[Rows]:
        """A node's rows in equal parts, each with all that it sees; ranges that touch are one."""
        start, stop = self.ranges[node]
        seen: list[tuple[int, int]] = []
        for first, last in (self.ranges[ancestor] for ancestor in self.ancestors[node]):
            if seen and seen[-1][1] == first:
                first = seen.pop()[0]
            seen.append((first, last))
        parts = -(-(stop - start) // ROWS)
        for part in range(parts):
            first, last = (start + (stop - start) * edge // parts for edge in (part, part + 1))
            yield Rows(first, last, (*seen[:-1], (seen[-1][0], last)))

    def _read(self, tree_index: int, node_index: int, tree: Tree, start: int, before: int | None, branch: int) -> None:
        node = tree.nodes[node_index]
        for name, column in node.fields.items():
            if len(column) != len(node.tokens):
                sizes = f"{len(column)} values for {len(node.tokens)} tokens"
                raise ValueError(f"tree {tree.id}: field {name} of node {node_index} has {sizes}")
        weights = node.fields.get("weight", ())
        kept = [offset for offset, weight in enumerate(weights) if weight != 0]
        if not kept:
            return
        previous = -1 if before is None else before
        if kept[0] == 0 and previous < 0:
            raise PrefloopError(f"Tree {tree.id!r} reads the first token of its root, which nothing predicts; weigh 0.")
        first = len(self.targets)
        self.targets += [start + offset for offset in kept]
        self.sources += [start + offset - 1 if offset else previous for offset in kept]
        self.branch_of += [branch] * len(kept)
        self.columns.append((len(kept), node.fields, kept))
        self.spans.append(Span(tree_index, node_index, first, len(self.targets)))

    def forest(self, device: torch.device | str) -> Forest:
        def ints(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        visible = torch.zeros(len(self.ranges), len(self.ranges), dtype=torch.bool)
        for index, ancestors in enumerate(self.ancestors):
            visible[index, ancestors] = True
        positions = ints(self.positions)
        layout = ForestLayout(tuple(self.blocks), positions, ints(self.nodes), visible.to(device))
        columns = list(zip(*self.pairs, strict=True)) or [(), (), (), (), ()]
        numbers = [torch.tensor(c, dtype=torch.float32, device=device) for c in columns[2:]]
        leaf, rank, ranking, weight = list(zip(*self.ranked, strict=True)) or [(), (), (), ()]
        weights = torch.tensor(weight, dtype=torch.float32, device=device)
        return Forest(
            tokens=ints(self.tokens),
            positions=positions,
            layout=layout,
            targets=ints(self.targets),
            sources=ints(self.sources),
            branch_of=ints(self.branch_of),
            leaves=ints(self.leaves),
            fields=self._fields(device),
            pairs=PairIndex(ints(columns[0]), ints(columns[1]), *numbers),
            rankings=RankIndex(ints(leaf), ints(rank), ints(ranking), weights),
            spans=tuple(self.spans),
            branches=tuple(self.branches),
        )

    def _fields(self, device: torch.device | str) -> dict[str, Tensor]:
        names = sorted({name for _, fields, _ in self.columns for name in fields})
        made = {}
        for name in names:
            if all(name in fields for _, fields, _ in self.columns):
                values = [fields[name][offset] for _, fields, kept in self.columns for offset in kept]
                made[name] = torch.tensor(values, dtype=torch.float32, device=device)
        return made
