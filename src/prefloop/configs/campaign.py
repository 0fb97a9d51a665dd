"""What a campaign asks of its labelers. A change is a new version; labels keep the one they were made under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prefloop.configs.shared import Config
from prefloop.types import CANT_JUDGE

STRENGTHS = ("barely", "slightly", "clearly", "much")
"""How much better the preferred answer is: strength 1 to 4 (Llama 2, Touvron et al. 2023)."""

_Share = Annotated[float, Field(ge=0, le=0.5)]
_Name = Annotated[str, Field(min_length=1, max_length=80)]
_Path = Annotated[str, Field(min_length=1, max_length=1000)]

BOTH_BAD = "both bad"
"""A flag that only two answers side by side can have."""

GUIDELINES = """\
Pick the answer that you would rather have got.

1. **Does it do what was asked?** All of it, in the form that was asked for.
2. **Is it true?** What you cannot check counts as neither for nor against.
3. **Is it safe and honest?** Saying "I don't know" beats making things up.
4. Length is no merit. Of two equally good answers the shorter one wins.

Say *tie* where you truly cannot tell, and *can't judge* where you lack the knowledge.
"""


class CampaignConfig(Config):
    """What labelers see and say, how many of them see each item, and in which order."""

    title: str = Field(default="Which answer is better?", min_length=1, max_length=200)
    """What labelers read as the name of the campaign."""
    guidelines: str = Field(default=GUIDELINES, max_length=100_000)
    """How to judge, in Markdown; shown beside every task."""
    axes: tuple[_Name, ...] = Field(default=("overall",), min_length=1, max_length=8)
    """What two answers are compared on; the first decides which one is preferred."""
    ties: bool = True
    """Whether an axis can end in a tie."""
    rationale: Literal["off", "optional", "required"] = "optional"
    """Whether labelers say why."""
    flags: tuple[_Name, ...] = Field(default=(BOTH_BAD, "unsafe"), max_length=8)
    """What can be marked of a task besides. "can't judge" is always there."""
    rubric: tuple[_Name, ...] = Field(default=(), max_length=12)
    """Hard constraints as boxes to check for each answer, such as "cites its sources"."""
    ratings: bool = False
    """Ask for a rating of each answer from 1 to 7 too."""
    edits: bool = True
    """Offer to write a better answer, which becomes a demonstration."""
    overlap: int = Field(default=1, ge=1, le=100)
    """Labels wanted per item."""
    shared_share: _Share = 0.15
    """Share of the items in the calibration pool, which several labelers see so that agreement can be measured."""
    shared_overlap: int = Field(default=3, ge=2, le=100)
    """Labels wanted per item of the calibration pool."""
    gold_share: _Share = 0.05
    """Share of a labeler's tasks whose answer is known, as far as there are such items."""
    repeat_share: _Share = 0.025
    """Share of a labeler's tasks that come back swapped, for self-consistency."""
    uniform_share: float = Field(default=0.2, ge=0.2, le=1)
    """Share of a labeler's tasks picked uniformly instead of by priority, and marked so."""
    calibration: int = Field(default=3, ge=0, le=100)
    """Tasks before the first real one: gold items where there are some, else of the calibration pool."""
    feedback: bool = True
    """Show the known answer after a gold item of the calibration round."""
    mix: Mapping[_Name, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    """Shares of kinds of prompts, such as {easy = 0.5, hard = 0.3, adversarial = 0.2}, by the items' `mix`."""
    red_team: tuple[_Path, ...] = Field(default=(), max_length=8)
    """Folders of this workspace, such as runs/quickstart/ppo, with checkpoints to converse with and find where they
    fail. Nobody is told which one it is."""
    lease_minutes: float = Field(default=5, gt=0, le=1440)
    """How long a task is kept for a labeler who is gone; an open page renews it."""
    hold_hours: float = Field(default=4, gt=0, le=168)
    """How long an open page can keep a task at most."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("axes", "flags", "rubric", "red_team"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"{name} names one thing twice")
        if CANT_JUDGE in self.flags:
            raise ValueError(f"flags names {CANT_JUDGE!r}, which is always there; leave it out")
        if self.mix and abs(sum(self.mix.values()) - 1) > 1e-6:
            raise ValueError(f"the shares of mix sum to {sum(self.mix.values()):g}; they must sum to 1")
        return self
