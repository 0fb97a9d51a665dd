"""Models that compare answers."""

import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from prefloop.configs.shared import Config

JUDGE_PREFIX = "judge-"


class JudgeConfig(Config):
    """A language model that says which of two answers is better (RLAIF, Lee et al. 2023; Bai et al. 2022b)."""

    name: str
    """Name under which its labels are stored; it begins with 'judge-'."""
    model: str = Field(min_length=1)
    """Model, checkpoint or run folder that judges; with an endpoint, the name that it has there."""
    endpoint: str = ""
    """Base URL of an OpenAI-compatible server that runs it ('http://localhost:8000/v1'); empty runs it here."""
    key_variable: str = Field(default="", exclude=True)
    """Environment variable that holds the endpoint's key; empty sends none."""
    parallel: int = Field(default=8, ge=1, exclude=True)
    """Questions that an endpoint is asked at a time."""
    principles: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("Which answer is more helpful, honest and harmless?",), min_length=1
    )
    """What it is asked; of several each comparison is asked one, drawn by its id."""

    @field_validator("name")
    @classmethod
    def _named_for_what_it_is(cls, name: str) -> str:
        if not re.fullmatch(rf"{JUDGE_PREFIX}[\w.-]+", name):
            raise ValueError(
                f"the name is {JUDGE_PREFIX!r} and letters, digits, dots, dashes or underscores, so that its labels "
                "are never taken for a person's"
            )
        return name

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, endpoint: str) -> str:
        try:
            parts = urlsplit(endpoint)
            fine = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and parts.port != 0
        except ValueError:
            fine = False
        if endpoint and not fine:
            raise ValueError("give a URL like 'http://localhost:8000/v1', its key by key_variable")
        return endpoint

    @model_validator(mode="after")
    def _a_key_has_a_door(self) -> Self:
        if self.key_variable and not self.endpoint:
            raise ValueError("key_variable goes with an endpoint; leave it out, or give one")
        return self
