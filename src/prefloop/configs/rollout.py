"""What every stage that samples from its own policy and learns from the scores shares."""

from typing import Literal, Self

from pydantic import Field, model_validator

from prefloop.configs.mix import MixConfig
from prefloop.configs.shared import Config, EngineConfig, LoraConfig, OptimConfig


class KLConfig(Config):
    """The leash to the reference."""

    form: Literal["reward", "k2", "k3", "exact", "k2_response"] | None = None
    """Where the price of KL is paid. reward: off the reward, what follows a token included (the KL of whole responses);
    in the loss, each token for itself: k2 (towards KL(pi||ref)), k3 (KL(ref||pi)) or exact (the whole vocabulary's
    KL(pi||ref)); k2_response: in the loss, of the response's summed log-ratio. None is the method's own: k3 of
    group methods but rloo and reinforce++, else reward."""
    controller: Literal["adaptive", "fixed", "linear", "geometric", "rate"] = "adaptive"
    """What holds the KL: adaptive steers the coefficient to the target (Ziegler et al. 2019); fixed keeps it; linear
    and geometric go from `coef` to `last` over the run; rate keeps it and steers the learning rate to the target, never
    above its peak."""
    coef: float = Field(default=0.1, ge=0)
    """Initial coefficient, in reward per nat."""
    last: float | None = Field(default=None, ge=0)
    """Coefficient of the last batch, of linear and geometric."""
    target: float = Field(default=6.0, gt=0)
    """Wanted KL to the reference, in nats."""
    per: Literal["response", "token"] = "response"
    """What the target and `stop` are counted per."""
    horizon: float = Field(default=2.0, gt=0)
    """Horizon of the controller, in rollout batches."""
    clip: float = Field(default=0.2, gt=0, le=1)
    """Largest relative error that the controller acts on: the coefficient changes by clip / horizon a batch at most."""
    epoch_stop: float | None = Field(default=None, gt=0)
    """No more updates on a batch after one whose approximate KL to the policy that sampled it was above this (nats a
    token; 0.01 to 0.02 is usual)."""
    stop: float | None = Field(default=None, gt=0)
    """The run ends, with a checkpoint of the policy as it is then, where its KL to the reference is above this."""

    @model_validator(mode="after")
    def _controllable(self) -> Self:
        steered = self.controller in ("adaptive", "rate")
        if self.controller == "adaptive" and self.coef == 0:
            raise ValueError(
                "coef is 0, which the adaptive controller can only multiply; start above 0 or take 'fixed'"
            )
        if steered and self.clip >= self.horizon:
            raise ValueError("horizon is not above clip, so that one batch could end the leash; make it longer")
        if (self.controller in ("linear", "geometric")) != (self.last is not None):
            raise ValueError("last goes with the controllers linear and geometric, which need it")
        if self.controller == "geometric" and not (self.coef and self.last):
            raise ValueError("a geometric schedule cannot start or end at 0; take linear")
        return self


class ShapingConfig(Config):
    """What becomes of a score before it is learned from, in this order: bound, normalise, clip, length_penalty, then
    `missing_stop_score`."""

    bound: Literal["none", "mean", "prompt"] = "none"
    """sigmoid(score - r_ref) instead of the score, which cannot be chased without end (PAR, Fu et al. 2025): with
    r_ref the mean score of the first rollout batch, which is the reference's, or of the prompt's own answers in
    `baseline`."""
    normalise: Literal["none", "batch", "running"] = "none"
    """Less the mean, over the std: of the rollout batch, or of all batches so far."""
    clip: float | None = Field(default=None, gt=0)
    """Largest size of a score."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Taken off for each token of the answer."""


class HeldoutStopConfig(Config):
    """Stop when answers to held-out prompts get no better, and keep the policy that wrote the best."""

    by: Literal["reward", "watch"] = "reward"
    """Who scores them: the reward, as it is before shaping, or the judge that only watches."""
    split: str = "dev"
    """Split of the prompts that are held out."""
    prompts: int = Field(default=32, ge=1)
    """The first so many of them, one answer each, with the same seeds every time."""
    every: int = Field(default=5, ge=1)
    """Steps between measurements; the first is of the starting policy."""
    patience: int = Field(default=3, ge=1)
    """Measurements in a row without a new best, before it stops."""


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
    """int8 samples on a CPU by quantised weights, not quite from the policy, and no faster where the CPU multiplies
    bf16; every token's (rloo, gspo: answer's; online: none) share of a policy gradient is then multiplied by its
    importance, at most 2 (Yao et al. 2025)."""
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

    shaping: ShapingConfig = ShapingConfig()
    """What becomes of a score before it is learned from."""
    epochs: int = Field(default=1, ge=1)
    """Passes over each rollout batch."""
    minibatches: int = Field(default=1, ge=1)
    """Updates per pass."""
    clip: float = Field(default=0.2, gt=0)
    """Clip range of the probability ratio."""
    kl: KLConfig = KLConfig()
    """Leash to the reference."""
    early_stop: HeldoutStopConfig | None = None
    """Stop by answers to held-out prompts; none makes all steps."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Keep a moving average of the weights, which moves by 1 - ema an update; it is what is measured on held-out
    prompts and saved in the end (InstructGPT: 0.992)."""

    @model_validator(mode="after")
    def _minibatches_fit(self) -> Self:
        if self.minibatches > self.prompts_per_step:
            raise ValueError(
                f"minibatches is over prompts_per_step ({self.prompts_per_step}); a minibatch needs a prompt"
            )
        return self

    @model_validator(mode="after")
    def _scorers_are_there(self) -> Self:
        if self.early_stop and self.early_stop.by == "reward" and self.mix and self.mix.constraint:
            raise ValueError("early_stop.by is 'reward', which moves with the constraint's multiplier; take 'watch'")
        if self.early_stop and self.early_stop.by == "watch" and not self.watch:
            raise ValueError("early_stop.by is 'watch', but there is no watch; name one or take 'reward'")
        return self
