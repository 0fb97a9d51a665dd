"""PPO on a KL leash."""

from typing import Self

from pydantic import Field, model_validator

from prefloop.configs.rollout import RolloutConfig


class PPOConfig(RolloutConfig):
    """Optimise a policy against a reward model with PPO (Schulman et al. 2017; Ziegler et al. 2019)."""

    epochs: int = Field(default=2, ge=1)
    """Passes over each rollout batch."""
    minibatches: int = Field(default=2, ge=1)
    """Updates per pass."""
    value_clip: float = Field(default=0.2, gt=0)
    """Clip range of value updates."""
    value_coef: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda."""
    leave_one_out: bool = False
    """Take the mean score of the prompt's other answers off each score before advantages are estimated: a baseline that
    few steps cannot teach the value head (Kool et al. 2019; Ahmadian et al. 2024). Needs a group of two or more."""
    whiten_rewards: bool = False
    """Scale per-token rewards to unit std, mean kept (2019 recipe)."""

    @model_validator(mode="after")
    def _others_are_there(self) -> Self:
        if self.leave_one_out and self.group < 2:
            raise ValueError("leave_one_out needs other answers to the prompt; set group to 2 or more")
        return self
