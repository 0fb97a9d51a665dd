"""Rejection sampling: fine-tuning on the best of several answers of one's own, or of a larger model's."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prefloop.configs.mix import MixConfig
from prefloop.configs.shared import Config, EngineConfig, LoraConfig, OptimConfig


class RejectionConfig(Config):
    """Sample several answers to each prompt, keep the one that scores best, and fine-tune on those (Llama 2, Touvron et
    al. 2023, section 3.2.3)."""

    out: str
    """Run folder."""
    policy: str = ""
    """Checkpoint to fine-tune, which also samples."""
    sampler: str = ""
    """Checkpoint that samples instead: a larger model, of any tokenizer, is distilled."""
    reward: str = ""
    """What scores answers: a reward run, several ('mean:A,B'), 'rubric', a verifier, or 'module:function'."""
    mix: MixConfig | None = None
    """Several named rewards instead of one (docs/objectives.md), without a constraint."""
    prompts: str = "builtin"
    """JSONL of prompts; 'builtin' takes the shipped ones."""
    split: str = "train"
    """Split of the prompts to answer."""
    n: int = Field(default=8, ge=2)
    """Answers per prompt, of which one is kept."""
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(1.0,), min_length=1)
    """Sampling temperatures. Of several, the one whose best of n scores highest on the tuning prompts is taken: the
    best one rises with training (1.2 to 1.3 in Llama 2)."""
    tuning: int = Field(default=32, ge=1)
    """Prompts on which several temperatures are compared."""
    select: Literal["best", "random"] = "best"
    """Which of the n is kept. random is the control of equal size: what it gains too is not the reward's doing."""
    keep_above: float | None = None
    """Prompts whose best answer does not score above this are left out: with 0 and a verifier's 0 or 1, wrong answers
    are not learned from (STaR, Zelikman et al. 2022; RAFT); none keeps one of each prompt."""
    earlier: tuple[str, ...] = ()
    """Rejection runs whose kept answers are learned from too: without those of earlier rounds, what they had taught is
    forgotten."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest answer in tokens, stop token included."""
    missing_stop_score: float | None = -1.0
    """Most that an answer scores which is empty or did not end by itself, in stds within prompts; none keeps the
    model's score."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the kept answers."""
    batch: int = Field(default=16, ge=1)
    """Answers per update."""
    optim: OptimConfig = OptimConfig(lr=2e-5)
    """Optimizer."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights."""
    engine: EngineConfig = EngineConfig()
    """Precision, threads, micro-batches."""
    save_every: int = Field(default=50, ge=1)
    """Updates between checkpoints."""
    seed: int = 0
    """Seed of sampling, of the random control, and of the data order."""

    @model_validator(mode="after")
    def _rules_fit(self) -> Self:
        if self.mix and self.mix.constraint:
            raise ValueError("a constraint's multiplier is learned step by step; rejection sampling has no steps")
        return self
