"""Models that compare answers."""

from typing import Annotated

from pydantic import Field, field_validator

from prefloop.configs.shared import Config

PREFIX = "judge-"


class JudgeConfig(Config):
    """A language model that says which of two answers is better (RLAIF, Lee et al. 2023; Bai et al. 2022b)."""

    name: str
    """Name under which its labels are stored; it begins with 'judge-'."""
    model: str
    """Model, checkpoint or run folder that judges; with an endpoint, the name that it has there."""
    endpoint: str = ""
    """Base URL of an OpenAI-compatible server that runs it ('http://localhost:8000/v1'); empty runs it here."""
    key_variable: str = ""
    """Environment variable that holds the endpoint's key; empty sends none."""
    parallel: int = Field(default=8, ge=1)
    """Questions that an endpoint is asked at a time."""
    principles: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("Which answer is more helpful, honest and harmless?",), min_length=1
    )
    """What it is asked; of several each comparison is asked one, drawn by its id."""

    @field_validator("name")
    @classmethod
    def _named_for_what_it_is(cls, name: str) -> str:
        if not name.startswith(PREFIX):
            raise ValueError(f"the name must begin with {PREFIX!r}, so that its labels are never taken for a person's")
        return name
