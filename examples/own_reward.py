"""A reward of one's own: short answers are good ones."""

from prefloop.types import Score


def brief(prompts, completions):
    return [Score(value=1 / (1 + len(c.text.split()))) for c in completions]
