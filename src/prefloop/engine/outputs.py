"""What passes between a model and a loss: the model's outputs on a forest, and the loss's share of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from prefloop.engine.verbs import Read
from prefloop.types import PrefloopError


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the model said of a forest: log-probs, entropy, values, steps, exact KL to a reference [R], scores [B];
    only what was asked for."""

    logprobs: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
    scores: Tensor | None = None
    steps: Tensor | None = None
    exact_kl: Tensor | None = None

    def need(self, name: Read) -> Tensor:
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise PrefloopError(f"The loss needs {name}, which this model was not asked for or has no head for.")
        return value


@dataclass(frozen=True, slots=True)
class LossOut:
    """A forest's share of the loss, and of metrics: shares add up, those named *_max take the maximum."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


LossFn = Callable[..., LossOut]
