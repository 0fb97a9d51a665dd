"""What every stage that samples from its own policy and learns from the scores shares."""

from typing import Literal, Self

from pydantic import Field, model_validator

from prefloop.configs.mix import MixConfig
from prefloop.configs.shared import Config, EngineConfig, LoraConfig, OptimConfig


class KLConfig(Config):
    """The leash to the reference."""

    controller: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive steers the measured KL to the target (Ziegler et al. 2019); fixed keeps the coefficient."""
    coef: float = Field(default=0.1, ge=0)
    """Initial coefficient, in reward per nat."""
    target: float = Field(default=6.0, gt=0)
    """Wanted KL to the reference, in nats per response."""
    horizon: float = Field(default=2.0, gt=0)
    """Horizon of the controller, in rollout batches."""
    clip: float = Field(default=0.2, gt=0, le=1)
    """Largest relative error that the controller acts on: the coefficient changes by clip / horizon a batch at most."""

    @model_validator(mode="after")
    def _controllable(self) -> Self:
        if self.controller == "adaptive" and self.coef == 0:
            raise ValueError(
                "coef is 0, which the adaptive controller can only multiply; start above 0 or take 'fixed'"
            )
        if self.controller == "adaptive" and self.clip >= self.horizon:
            raise ValueError("horizon is not above clip, so that one batch could end the leash; make it longer")
        return self


class SampledConfig(Config):
    """Rollouts of a policy and their reward."""

    out: str
    """Run folder."""
    policy: str = ""
    """Checkpoint to start from; it is also the reference."""
    reward: str = ""
    """Reward-model checkpoint or run folder; several ('mean:A,B', 'worst:A,B', 'uncertainty=0.5:A,B'); of steps
    ('steps=product:A', docs/objectives.md); 'rubric' or a verifier (docs/verifiers.md); or 'module:function'."""
    mix: MixConfig | None = None
    """Several named rewards instead of one (docs/objectives.md)."""
    prompts: str = "builtin"
    """JSONL of prompts; 'builtin' takes the shipped ones."""
    split: str = "train"
    """Split of the prompts to practise on."""
    baseline: str = ""
    """Collect run folder of the starting policy: rollouts are compared with its answers while training."""
    watch: str = ""
    """Judge that only watches ('rubric', a reward run, 'module:function'): logged as gold/*, never trained on."""
    steps: int = Field(default=30, ge=1)
    """Rollout batches."""
    prompts_per_step: int = Field(default=12, ge=1)
    """Prompts in a rollout batch."""
    group: int = Field(default=4, ge=1)
    """Completions per prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; divides the logits in every log-prob too."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest answer in tokens, stop token included."""
    rollout_dtype: Literal["same", "int8"] = "same"
    """int8 samples on a CPU by quantised weights, faster and not quite from the policy; every token's (rloo: answer's)
    share of a policy gradient is then multiplied by its importance, at most 2 (Yao et al. 2025)."""
    missing_stop_score: float | None = -1.0
    """Most that an answer scores which is empty or did not end by itself, in stds within prompts; none keeps the
    model's score."""
    optim: OptimConfig = OptimConfig(lr=1e-5, decay=False, eps=1e-5)
    """Optimizer."""
    lora: LoraConfig | None = None
    """Train adapters; the reference is then the same model with the adapter off."""
    engine: EngineConfig = EngineConfig()
    """Precision, threads, micro-batches."""
    save_every: int = Field(default=10, ge=1)
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of prompt order and sampling."""


class RolloutConfig(SampledConfig):
    """Rollouts of a policy, and policy gradients on a leash."""

    epochs: int = Field(default=1, ge=1)
    """Passes over each rollout batch."""
    minibatches: int = Field(default=1, ge=1)
    """Updates per pass."""
    clip: float = Field(default=0.2, gt=0)
    """Clip range of the probability ratio."""
    kl: KLConfig = KLConfig()
    """Leash to the reference."""

    @model_validator(mode="after")
    def _minibatches_fit(self) -> Self:
        if self.minibatches > self.prompts_per_step:
            raise ValueError(
                f"minibatches is over prompts_per_step ({self.prompts_per_step}); a minibatch needs a prompt"
            )
        return self
