"""Sampling answers and having them compared."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from prefloop.configs.campaign import CampaignConfig
from prefloop.configs.judge import JudgeConfig
from prefloop.configs.shared import Config, EngineConfig


class AnnotatorConfig(Config):
    """A simulated person."""

    name: str
    """Name under which the labels are stored; it begins with 'simulated'."""
    accuracy: float = Field(gt=0.5, le=1)
    """Probability of agreeing with the rubric where it prefers one answer."""
    side_bias: float = 0.0
    """Logit added for the answer shown first."""
    length_bias: float = 0.0
    """Logit per tanh(difference in words / 30) in favour of the longer answer."""

    @field_validator("name")
    @classmethod
    def _named_for_what_it_is(cls, name: str) -> str:
        if not name.startswith("simulated"):
            raise ValueError("the name must begin with 'simulated', so that its labels are never taken for a person's")
        return name


class CollectConfig(Config):
    """Sample answers to prompts from one or several checkpoints."""

    out: str
    """Run folder."""
    models: tuple[str, ...] = ()
    """Checkpoints or models to sample from."""
    prompts: str = "builtin"
    """JSONL of prompts; 'builtin' takes the shipped ones."""
    splits: tuple[str, ...] = ("train", "dev")
    """Splits of the prompts to answer."""
    per_slice: int | None = Field(default=None, ge=1)
    """At most so many prompts of each slice and split, the first of the file; none takes all."""
    samples: int = Field(default=4, ge=1)
    """Answers per prompt, model and temperature."""
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(1.0,), min_length=1)
    """Sampling temperatures; several make the answers differ more in quality, which gives a reward model contrast."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest answer in tokens, stop token included."""
    engine: EngineConfig = EngineConfig()
    """Precision, threads."""
    seed: int = 0
    """Seed from which each completion's own seed is derived."""


class LabelConfig(Config):
    """Have collected answers compared, through the workspace's label store."""

    out: str
    """Run folder."""
    completions: str = ""
    """A collect run folder, or JSONL of prompts with completions."""
    pairs: int = Field(default=6, ge=1)
    """Pairs drawn per prompt (at most all pairs)."""
    annotator: Literal["simulated", "people", "judge"] = "simulated"
    """Who compares: the simulated panel; people at the pages of `prefloop serve`, for whom the stage waits; or model
    judges."""
    panel: tuple[AnnotatorConfig, ...] = (
        AnnotatorConfig(name="simulated-85", accuracy=0.85),
        AnnotatorConfig(name="simulated-80", accuracy=0.80),
        AnnotatorConfig(name="simulated-75", accuracy=0.75),
    )
    """Simulated annotators; each judges every pair."""
    judges: tuple[JudgeConfig, ...] = ()
    """Models that judge (docs/judges.md); each judges every pair, in both orders."""
    campaign: CampaignConfig = CampaignConfig()
    """What people are asked, where the run has no campaign yet."""
    margins: bool = False
    """Let how much better people found an answer be a margin of the loss: 1 for much, 2/3, 1/3, 0 for barely."""
    database: str = ""
    """SQLAlchemy URL of the label store; empty takes prefloop.db in the workspace."""
    engine: EngineConfig = EngineConfig()
    """Precision and threads of judges that run here."""
    seed: int = 0
    """Seed of pair choice and of the annotators."""

    @model_validator(mode="after")
    def _annotators_differ(self) -> Self:
        for kind, names in (("panel", [a.name for a in self.panel]), ("judges", [j.name for j in self.judges])):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{kind} has two annotators named {twice[0]!r}; each needs a name of its own")
        return self

    @model_validator(mode="after")
    def _judges_are_asked(self) -> Self:
        if self.annotator == "judge" and not self.judges:
            raise ValueError("annotator 'judge' wants models that judge; give judges (docs/judges.md)")
        return self
