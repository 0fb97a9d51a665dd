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
    earlier: tuple[str, ...] = ()
    """Evaluations with the same settings whose answers of the same baselines are taken instead of sampled anew; rounds
    after the first and negative controls fill it."""
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


class EvaluateRewardConfig(Config):
    """Report on a reward: held-out comparisons, controls, calibration, answers changed on purpose, and verdicts."""

    out: str
    """Run folder."""
    reward: str = ""
    """What is reported on: a reward run, several ('mean:A,B'), 'rubric' or another by name, or 'module:function'."""
    preferences: str = ""
    """The comparisons that the reward learned from: a label run folder, or a file as in [reward]."""
    skip_bad: bool = False
    """Leave out comparisons that do not fit, as in [reward]."""
    heldout: float = Field(default=0.15, gt=0, lt=1)
    """Share of prompts held out when the preferences carry no dev split; as in [reward], with the same seed."""
    train: int = Field(default=200, ge=0)
    """Training prompts whose answers are scored too, for the gap to held-out ones."""
    probes: int = Field(default=200, ge=0)
    """Held-out prompts of which one answer is changed in every way."""
    samples: str = ""
    """New answers, such as the policy's: a collect or evaluate run folder, or JSONL of prompts with completions."""
    gold: str = ""
    """A reward that counts as the truth, for best of n; empty takes the rubric where annotators were simulated."""
    database: str = ""
    """SQLAlchemy URL of the label store, for single votes; empty takes prefloop.db in the workspace."""
    engine: EngineConfig = EngineConfig()
    """Precision, threads."""
    seed: int = 0
    """Seed of the draw of prompts and changes, and of the split, as in [reward]."""
