"""Several named rewards as one."""

from collections.abc import Collection
from typing import Self

from pydantic import Field, model_validator

from prefloop.configs.shared import Config, nearest

LOGGED = ("score", "score_std", "total", "raw", "drawn", "flat_groups", "gated", "multiplier")
"""Names of reward/* that no part may take."""


class GateConfig(Config):
    """The part that takes the place of all others where it must (Llama 2: safety over helpfulness)."""

    part: str
    """Name of the part."""
    below: float
    """It takes over where its own score is below this, in stds of the reference."""
    unsafe: tuple[str, ...] = ("unsafe", "refuse")
    """It takes over whatever the score where a prompt's slice, or its check `behavior`, is one of these."""


class ConstraintConfig(Config):
    """A part whose mean score shall not fall below a limit, held by a multiplier that is learned (Safe RLHF)."""

    part: str
    """Name of the part."""
    at_least: float = 0.0
    """The limit, in stds of the reference."""
    rate: float = Field(default=0.1, gt=0)
    """How much the multiplier rises with a rollout batch for each std that the part's mean is below the limit."""
    multiplier: float = Field(default=0.0, ge=0)
    """What it starts from: the part's weight beside the sum of the others, whose weight is 1."""


class MixConfig(Config):
    """Named rewards, their weighted sum, and what overrules it. Every part is logged apart, as reward/NAME."""

    parts: dict[str, str]
    """Reward by name, each written as `reward` is; empty takes what `reward` says."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each part in the sum, in stds of the reference; a part without one is not in it."""
    scales: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Mean and std of a part among the reference's answers, by which it is brought to stds. Where not given, reward
    models keep their own, and others are measured on the first rollouts, which are the reference's."""
    gate: GateConfig | None = None
    """Part that takes over where it must."""
    constraint: ConstraintConfig | None = None
    """Part that must not fall below a limit."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        gate, constraint = ([rule.part] if rule else [] for rule in (self.gate, self.constraint))
        named: dict[str, Collection[str]] = {"weights": self.weights, "scales": self.scales}
        named |= {"gate": gate, "constraint": constraint}
        for where, names in named.items():
            if unknown := [name for name in names if name not in self.parts]:
                raise ValueError(f"{where}: unknown part {unknown[0]!r}; {nearest(unknown[0], self.parts)}")
        if taken := sorted({*self.parts} & {*LOGGED}):
            raise ValueError(f"a part cannot be named {taken[0]!r}, which is logged already; choose another name")
        if not any(self.weights.values()):
            raise ValueError("no part has a weight, so there is nothing to learn from; give one in weights")
        if idle := [name for name in self.parts if name not in {*self.weights, *gate, *constraint}]:
            raise ValueError(f"part {idle[0]!r} has no weight and is neither gate nor constraint; use it or remove it")
        if flat := [name for name, (_, std) in self.scales.items() if not std > 0]:
            raise ValueError(f"scales: the std of {flat[0]!r} is not above 0; give [mean, std]")
        return self
