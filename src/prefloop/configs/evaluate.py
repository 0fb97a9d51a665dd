"""Evaluation on held-out prompts."""

from pydantic import Field

from prefloop.configs.shared import Config, EngineConfig


class EvaluateConfig(Config):
    """Sample a policy and its baselines on the same held-out prompts and compare them by a judge."""

    out: str
    """Run folder."""
    policy: str = ""
    """Checkpoint under test."""
    baselines: tuple[str, ...] = ()
    """Checkpoints or models to compare with; the first is the main one (SFT)."""
    prompts: str = "builtin"
    """JSONL of prompts; 'builtin' takes the shipped ones."""
    split: str = "eval"
    """Split of the prompts to answer."""
    samples: int = Field(default=2, ge=1)
    """Answers per prompt and model."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest answer in tokens, stop token included."""
    judge: str = "rubric"
    """Whose scores decide: 'rubric', a reward run, or 'module:function'."""
    engine: EngineConfig = EngineConfig()
    """Precision, threads."""
    seed: int = 0
    """Seed from which each completion's own seed is derived."""
