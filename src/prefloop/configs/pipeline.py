"""A recipe: one TOML file that holds the configuration of every stage."""

from typing import Any, Self

from pydantic import Field, model_validator

from prefloop.configs.collect import CollectConfig, LabelConfig
from prefloop.configs.direct import DirectConfig
from prefloop.configs.evaluate import EvaluateConfig, EvaluateRewardConfig
from prefloop.configs.group import GroupConfig
from prefloop.configs.ppo import PPOConfig
from prefloop.configs.reward import RewardConfig
from prefloop.configs.sft import SFTConfig
from prefloop.configs.shared import Config, EngineConfig

STAGES: dict[str, type[Config]] = {
    "sft": SFTConfig,
    "collect": CollectConfig,
    "label": LabelConfig,
    "reward": RewardConfig,
    "ppo": PPOConfig,
    "group": GroupConfig,
    "direct": DirectConfig,
    "evaluate": EvaluateConfig,
    "evaluate_reward": EvaluateRewardConfig,
}


class RefreshConfig(Config):
    """Train the reward model anew while the policy learns, on comparisons of the policy's fresh answers too (iterated
    online RLHF, Bai et al. 2022). Between refreshes it is frozen; old versions stay in their folders."""

    every: int = Field(ge=1)
    """Steps of ppo or group after which the policy is sampled, its answers are labeled, and the next version is trained
    from the model that the first one began from. The policy goes on, its leash now to where it then stands."""
    new: float = Field(default=0.5, gt=0, le=1)
    """Share of a version's comparisons that are of the newest labels; the rest is drawn from all before, the replay
    buffer."""


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
    refresh: RefreshConfig | None = None
    """Refreshes of the reward model; "none" keeps the first one."""
    controls: bool = False
    """Also run the negative control: reward model on shuffled labels, PPO against it, evaluation."""
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
    ppo: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage ppo."""
    group: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage group."""
    direct: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage direct."""
    evaluate: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage evaluate."""
    evaluate_reward: dict[str, Any] = Field(default_factory=dict)
    """Keys of the stage evaluate_reward."""

    @model_validator(mode="after")
    def _can_refresh(self) -> Self:
        if self.refresh is None:
            return self
        if self.controls:
            raise ValueError("the negative control knows no refreshes; leave out controls or refresh")
        if not {"collect", "label", "reward"} <= set(self.stages) or not {"ppo", "group"} & set(self.stages):
            raise ValueError("a refresh needs the stages collect, label and reward, and ppo or group")
        return self
