"""PPO on a KL leash."""

from typing import Self

from pydantic import Field, model_validator

from prefloop.configs.rollout import RolloutConfig
from prefloop.configs.shared import Config, OptimConfig


class CriticConfig(Config):
    """A value model of its own (Stiennon et al. 2020): value updates cannot damage the policy, at twice the memory."""

    checkpoint: str = "reward"
    """What it starts as: 'reward' (the run's reward model), 'policy' (the policy, with a head at 0), or the checkpoint
    or run folder of either kind."""
    optim: OptimConfig = OptimConfig(lr=1e-5, decay=False, eps=1e-5)
    """Its optimizer."""


class PtxConfig(Config):
    """Next-token training beside PPO, against what the reward makes a policy forget (PPO-ptx, Ouyang et al. 2022): each
    update adds the gradient of both."""

    data: str
    """JSONL of plain text ({"text"}) or demonstrations, as SFT reads them; 'builtin' takes the shipped ones."""
    coef: float = Field(default=27.8, gt=0)
    """Weight of its loss, nats a token, beside the policy's."""
    ratio: float = Field(default=8.0, gt=0)
    """Its examples for each episode of an update."""


class PPOConfig(RolloutConfig):
    """Optimise a policy against a reward model with PPO (Schulman et al. 2017; Ziegler et al. 2019)."""

    epochs: int = Field(default=2, ge=1)
    """Passes over each rollout batch."""
    minibatches: int = Field(default=2, ge=1)
    """Updates per pass."""
    value_clip: float | None = Field(default=0.2, gt=0)
    """Clip range of value updates; none does not clip them."""
    value_coef: float = Field(default=0.1, ge=0)
    """Weight of the value loss, where the trunk is shared."""
    critic: CriticConfig | None = None
    """A value model of its own; none puts a value head, which starts at 0, on the policy's trunk."""
    ptx: PtxConfig | None = None
    """Next-token training in the same updates."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda."""
    leave_one_out: bool = False
    """Take the mean score of the prompt's other answers off each score before advantages are estimated: a baseline that
    few steps cannot teach the value head (Kool et al. 2019; Ahmadian et al. 2024). Needs a group of two or more."""
    whiten_rewards: bool = False
    """Scale per-token rewards to unit std, mean kept (2019 recipe)."""
    whiten_advantages: bool = True
    """Shift and scale advantages to mean 0 and unit std over the rollout batch's tokens."""

    @model_validator(mode="after")
    def _others_are_there(self) -> Self:
        if self.leave_one_out and self.group < 2:
            raise ValueError("leave_one_out needs other answers to the prompt; set group to 2 or more")
        least = self.prompts_per_step // self.minibatches * self.group
        if self.ptx and self.ptx.ratio * least < 1:
            raise ValueError(f"ptx.ratio gives an update of {least} episodes no text; set it to {1 / least:g} or more")
        return self
