"""What every stage's configuration shares: strict frozen models whose field docstrings become help and docs."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, lt=1)]


class Config(BaseModel):
    """Frozen; unknown keys are errors; a docstring under each field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def nested_defaults(cls, given: Mapping[str, Any]) -> "Mapping[str, Config]":
        """What a nested table of which only some keys are given is completed from, where that follows from other keys
        and is not the field's default."""
        return {}


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021) on every linear layer of the trunk, or of its top `optim.last_layers`;
    reference = adapter off."""

    rank: int = Field(default=16, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the update is alpha / rank times the product of the two factors."""


class OptimConfig(Config):
    """What trains, and how: AdamW with linear warm-up, then linear or no decay, and gradient clipping."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of all updates over which the learning rate rises linearly from 0."""
    decay: bool = True
    """Decay linearly to 0 after the warm-up; false keeps the peak rate."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """Adam's averaging coefficients."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon (1e-5 in the 2019 PPO recipe)."""
    eps_hat: bool = False
    """Take eps as TensorFlow and the 2019 recipe do, beside the square root of the uncorrected second moment (epsilon
    hat, Kingma & Ba 2015, section 2): where gradients are small, the first updates are too."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    head_lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of a scalar head (reward or value), which starts from nothing."""
    last_layers: int | None = Field(default=None, ge=1)
    """Train so many layers at the top only (whole, or their adapters): the backward pass ends below them and the
    embeddings stay. None means everything."""


class EngineConfig(Config):
    """Where and in which precision compute happens."""

    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute precision; auto takes bf16 where the hardware multiplies it faster than fp32, else fp32. Master weights,
    sums of gradients and optimizer state are fp32 in all."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 takes every core this process may use."""
    token_budget: int = Field(default=4096, ge=1)
    """Tokens in one forest (micro-batch)."""
    recompute: bool = False
    """Keep only what enters each layer and run the layer again in the backward pass (activation checkpointing): less
    memory, about a third more time for an update."""
    compile: bool = False
    """On a GPU, compile the layers for training and scoring: some seconds at the start, then faster updates."""
    cache_mb: int = Field(default=2048, ge=1)
    """MiB of keys and values that a sampler keeps; answers that do not fit wait for others to end."""
    trust_remote_code: bool = False
    """Let a hub model run its own Python code. Only for repositories you have read."""


def nearest(word: str, known: Iterable[str]) -> str:
    """What an error says of a name that nobody knows: the nearest known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"the nearest known one is {close[0]!r}" if close else f"known: {', '.join(names)}"
