"""Reference log-probs of a data set: read once, and kept while reference and data are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from itertools import accumulate, pairwise

import numpy as np
import torch

from prefloop.data.jsonl import write_atomic
from prefloop.data.trees import with_fields
from prefloop.engine.local import LocalScorer
from prefloop.models.load import cache_folder
from prefloop.types import Tree

FIELD = "reference_logprobs"


def with_reference(scorer: LocalScorer, trees: Sequence[Tree]) -> list[Tree]:
    """The trees with the field reference_logprobs (nats, 0 where a token is not read), by the scorer as it is now.

    Kept under $PREFLOOP_HOME by a hash of the model, of the libraries' versions and of the trees.
    """
    file = cache_folder() / "reference" / f"{_identity(scorer, trees)}.f32"
    sizes = [len(node.tokens) for tree in trees for node in tree.nodes]
    if file.is_file() and file.stat().st_size == 4 * sum(sizes):
        flat = np.frombuffer(file.read_bytes(), dtype="<f4")
    else:
        found = scorer.forward(trees, {"logprobs"})
        columns = [
            reading.logprobs.get(index, np.zeros(len(node.tokens)))
            for tree, reading in zip(trees, found, strict=True)
            for index, node in enumerate(tree.nodes)
        ]
        flat = np.concatenate(columns).astype("<f4")
        write_atomic(file, flat.tobytes())
    parts = iter([flat[start:stop] for start, stop in pairwise([0, *accumulate(sizes)])])
    return [with_fields(tree, {i: {FIELD: next(parts).tolist()} for i in range(len(tree.nodes))}) for tree in trees]


def _identity(scorer: LocalScorer, trees: Sequence[Tree]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    versions = [version(name) for name in ("prefloop", "torch", "transformers")]
    digest.update(repr((scorer.loaded.model.config.to_json_string(), str(scorer.device), versions)).encode())
    for name, weight in sorted(scorer.model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    for tree in trees:
        read = [(node.parent, node.tokens, node.fields.get("weight")) for node in tree.nodes]
        digest.update(repr(read).encode())
    return digest.hexdigest()
