"""A recipe: one TOML file that holds the configuration of every stage."""

from pathlib import PurePath
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from prefloop.configs.collect import CollectConfig, LabelConfig
from prefloop.configs.direct import DirectConfig
from prefloop.configs.evaluate import EvaluateConfig, EvaluateRewardConfig
from prefloop.configs.group import GroupConfig
from prefloop.configs.online import OnlineConfig
from prefloop.configs.ppo import PPOConfig
from prefloop.configs.rejection import RejectionConfig
from prefloop.configs.reward import RewardConfig
from prefloop.configs.sft import SFTConfig
from prefloop.configs.shared import Config, EngineConfig

STAGES: dict[str, type[Config]] = {
    "sft": SFTConfig,
    "collect": CollectConfig,
    "label": LabelConfig,
    "reward": RewardConfig,
    "rejection": RejectionConfig,
    "ppo": PPOConfig,
    "group": GroupConfig,
    "direct": DirectConfig,
    "online": OnlineConfig,
    "evaluate": EvaluateConfig,
    "evaluate_reward": EvaluateRewardConfig,
}

TRAINED = ("rejection", "ppo", "group", "direct", "online")
"""Stages that train a policy on preferences."""


class RecipeConfig(Config):
    """Sections named after stages; a stage's empty inputs are filled from its predecessors' run folders."""

    name: str
    """Name of the run: results go to runs/NAME."""
    model: str = "smollm2-135m"
    """Model that the loop starts from."""
    seed: int = 0
    """Seed of all stages that do not set their own."""
    stages: tuple[str, ...] = ("sft", "collect", "label", "reward", "ppo", "evaluate")
    """Stages that `prefloop run` chains, in order."""
    rounds: int = Field(default=0, ge=0)
    """Go so many times through all stages but sft, each time from the policy that the last one ended with, its answers
    labeled and the reward model trained anew (iterated online RLHF: Bai et al. 2022). Each round is a folder under
    rounds/; 0 goes once, without them. A larger number later goes on."""
    new_labels: float = Field(default=0.5, gt=0, le=1)
    """With rounds: share of the comparisons that a reward model (or direct) learns from that are of the newest labels;
    the rest is drawn from all rounds before, the replay buffer."""
    controls: bool = False
    """Also run the negative control: reward model on shuffled labels, the policy against it, evaluation."""
    prompts: str = "builtin"
    """Prompts of all stages that do not set their own."""
    engine: EngineConfig = EngineConfig()
    """Precision and threads of all stages that do not set their own."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage sft."""
    collect: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage collect."""
    label: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage label."""
    reward: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage reward."""
    rejection: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage rejection."""
    ppo: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage ppo."""
    group: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage group."""
    direct: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage direct."""
    online: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage online."""
    evaluate: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage evaluate."""
    evaluate_reward: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage evaluate_reward."""

    @field_validator("name")
    @classmethod
    def _is_below_runs(cls, name: str) -> str:
        if not name or PurePath(name).is_absolute() or {"..", "."} & set(name.split("/")):
            raise ValueError("results go to runs/NAME, so give a name without '..' that does not begin with '/'")
        return name

    @model_validator(mode="after")
    def _can_go_round(self) -> Self:
        if self.rounds and self.controls:
            raise ValueError("the negative control knows no rounds; leave out controls or rounds")
        if self.controls and not {"reward", "direct"} & set(self.stages):
            raise ValueError(
                "the negative control shuffles labels, and no stage learns from any; leave out controls, or add the "
                "stage reward or direct"
            )
        own = next((key for key in ("panel", "judges") if self.online.get(key)), "")
        if self.controls and "online" in self.stages and own:
            raise ValueError(
                f"the negative control shuffles labels, and online.{own} gives its own; leave out controls"
            )
        if self.rounds and not set(TRAINED) & set(self.stages):
            raise ValueError(
                f"a round trains a policy; add a stage of {', '.join(TRAINED)} to stages, or leave out rounds"
            )
        if twice := [name for place, name in enumerate(self.stages) if name in self.stages[:place]]:
            raise ValueError(f"stages names {twice[0]!r} twice, and a stage has one folder; go through all with rounds")
        return self
