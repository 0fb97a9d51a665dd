"""What a forward pass found, by tree and node; and trees too large for a forest, as pieces of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefloop.data.forest import Forest, Piece, build_forest
from prefloop.engine.outputs import Outputs
from prefloop.engine.verbs import Column, Readings
from prefloop.types import Tree


def content_of(trees: Iterable[Tree]) -> object:
    """What tells trees apart by their tokens alone, as a key."""
    return tuple((node.parent, node.tokens) for tree in trees for node in tree.nodes)


def readings_of(
    forest: Forest, trees: Sequence[Tree], columns: Mapping[str, Tensor | None], scores: Tensor | None
) -> list[Readings]:
    """Columns [R] and scores [B] of a forest, handed to its trees."""
    made = [Readings() for _ in trees]
    arrays = {name: column.float().cpu().numpy() for name, column in columns.items() if column is not None}
    for span in forest.spans:
        node = trees[span.tree].nodes[span.node]
        kept = np.flatnonzero(np.asarray(node.fields["weight"]))
        for name, array in arrays.items():
            full: Column = np.zeros(len(node.tokens), dtype=np.float32)
            full[kept] = array[span.start : span.stop]
            _of(made[span.tree], name)[span.node] = full
    if scores is not None:
        for (tree, node_index), score in zip(forest.branches, scores.float().cpu().tolist(), strict=True):
            _of(made[tree], "scores")[node_index] = score
    return made


def merge(whole: Readings, part: Readings, nodes: Sequence[int]) -> None:
    """Add what was read of a piece, whose node i is the whole tree's nodes[i]."""
    for column in dataclasses.fields(Readings):
        for node, value in _of(part, column.name).items():
            _of(whole, column.name)[nodes[node]] = value


def _of(readings: Readings, name: str) -> dict[int, Any]:
    found: dict[int, Any] = getattr(readings, name)  # built here, as dicts
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """A piece of a tree as a forest, and where its read tokens and branches stand in the whole tree's."""

    forest: Forest
    tokens: Tensor
    branches: Tensor

    @classmethod
    def of(cls, piece: Piece, whole: Forest, device: torch.device) -> Cut:
        forest = build_forest([piece.tree], device)
        starts = {span.node: span.start for span in whole.spans}
        tokens = [starts[piece.nodes[s.node]] + offset for s in forest.spans for offset in range(s.stop - s.start)]
        leaves = {node: index for index, (_, node) in enumerate(whole.branches)}
        branches = [leaves[piece.nodes[node]] for _, node in forest.branches]
        places = (torch.tensor(found, dtype=torch.long, device=device) for found in (tokens, branches))
        return cls(forest, *places)

    def columns(self, out: Outputs) -> list[tuple[str, Tensor, Tensor]]:
        """What an output holds: its name, its values, and their places in the whole."""
        known = ((f.name, getattr(out, f.name)) for f in dataclasses.fields(Outputs))
        return [(n, v, self.branches if n == "scores" else self.tokens) for n, v in known if v is not None]
