"""The seam between loops and compute: what a stage may ask of an engine. Records go in, numbers come out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from prefloop.types import Checkpoint, Completion, Sampling, Tree

Read = Literal["logprobs", "entropy", "values", "scores", "steps", "exact_kl"]
Column = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Readings:
    """What a forward read of one tree, by node: per token of the node (0 where a token is not read), and a score for
    each leaf. `values` is what the head says before each token, `steps` after it. `reference_logprobs` and `exact_kl`
    (nats) come with a reference."""

    logprobs: Mapping[int, Column] = field(default_factory=dict)
    entropy: Mapping[int, Column] = field(default_factory=dict)
    values: Mapping[int, Column] = field(default_factory=dict)
    scores: Mapping[int, float] = field(default_factory=dict)
    steps: Mapping[int, Column] = field(default_factory=dict)
    reference_logprobs: Mapping[int, Column] = field(default_factory=dict)
    exact_kl: Mapping[int, Column] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Weights:
    """Published weights: a version number, and what the engine needs to serve them (opaque to loops)."""

    version: int
    content: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One answer to sample. Requests with the same prompt tokens share one prefill."""

    id: str
    prompt_id: str
    tokens: tuple[int, ...]
    sampling: Sampling
    seed: int


class Scorer(Protocol):
    """A model that reads trees without gradient: reference, frozen reward model, ensemble member."""

    def forward(
        self,
        trees: Sequence[Tree],
        read: AbstractSet[Read],
        *,
        temperature: float = 1.0,
        reference: Any = None,
        learned: bool = False,
    ) -> list[Readings]:
        """Readings of each tree, in order. `reference`: a Scorer or "adapter-off"; with it come, in one pass,
        logprobs, entropy, reference_logprobs and exact_kl. `learned`: of a Learner, the next update is of these trees,
        whose pass it may go on from."""
        ...


class Learner(Scorer, Protocol):
    """A model that learns. Gradients add up until `optim_step`."""

    def forward_backward(
        self, trees: Sequence[Tree], loss: str, params: Mapping[str, Any], reference: Any = None
    ) -> dict[str, float]:
        """Add the gradient of `loss` (a name in engine/objectives.py or "module:function") over the whole batch,
        however it is split; returns the loss's metrics. With a reference the loss sees the exact KL to it too."""
        ...

    def optim_step(self, lr: float, head_lr: float) -> dict[str, float]:
        """One AdamW update from the gradients so far; returns grad_norm. Raises PrefloopError when it is not finite."""
        ...

    def publish(self) -> Weights: ...

    def save(self, folder: Path, record: Checkpoint, state: Mapping[str, Any], *, resumable: bool) -> None:
        """Write a checkpoint atomically; `resumable` adds master weights and optimizer state."""
        ...

    def load(self, folder: Path) -> Mapping[str, Any]:
        """Continue from a resumable checkpoint: exact weights and optimizer state; returns its `state`."""
        ...


class Sampler(Protocol):
    """A model that writes."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions in finishing order; the draw of each depends on its own seed alone."""
        ...

    def load(self, weights: Weights) -> None: ...
