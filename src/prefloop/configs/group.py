"""Group methods: policy gradients whose baseline is the prompt's other answers, without a value head."""

from typing import Literal

from pydantic import Field

from prefloop.configs.rollout import KLConfig, RolloutConfig


class GroupConfig(RolloutConfig):
    """Optimise a policy against a reward by comparing answers to one prompt: GRPO (Shao et al. 2024) or RLOO
    (Ahmadian et al. 2024)."""

    method: Literal["grpo", "rloo"] = "grpo"
    """grpo: scores less the group's mean, over its std; every answer counts alike; the leash is k3 in the loss.
    rloo: scores, less the leash's price, less the mean of the others'; every token counts alike."""
    group: int = Field(default=8, ge=2)
    """Completions per prompt."""
    kl: KLConfig = KLConfig(controller="fixed", coef=0.04)
    """Leash to the reference; with a fixed coefficient of 0 no reference is read."""
