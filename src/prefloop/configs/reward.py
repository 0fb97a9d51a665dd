"""Reward-model training."""

from typing import Literal

from pydantic import Field

from prefloop.configs.shared import Config, EngineConfig, LoraConfig, OptimConfig


class RewardConfig(Config):
    """Fit a Bradley-Terry reward model on comparisons."""

    out: str
    """Run folder."""
    model: str = ""
    """Checkpoint to start from, usually the SFT run."""
    preferences: str = ""
    """A label run folder, or JSONL of preferences, prompt/chosen/rejected rows or HH transcripts."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the comparisons; more than one overfits (Ouyang et al. 2022)."""
    batch: int = Field(default=8, ge=1)
    """Prompt groups per update; all pairs of a prompt are one element."""
    pooling: Literal["last", "mean"] = "last"
    """What of the response the head reads: the last token's state, or the mean of all."""
    optim: OptimConfig = OptimConfig(lr=2e-5)
    """Optimizer."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights."""
    heldout: float = Field(default=0.15, gt=0, lt=1)
    """Share of prompts held out when the preferences carry no dev split."""
    reference_samples: int = Field(default=256, ge=2)
    """Answers on which gain and bias are fixed: mean 0 over all, std 1 among answers to one prompt.
    Where held-out labels confirm little of that std, scores are smaller."""
    shuffle_labels: bool = False
    """Negative control: flip half of each prompt's training targets, so that on the whole they say nothing."""
    engine: EngineConfig = EngineConfig()
    """Precision, threads, micro-batches."""
    save_every: int = Field(default=100, ge=1)
    """Updates between checkpoints."""
    seed: int = 0
    """Seed of head and data order."""
