"""Judges behind an OpenAI-compatible server: the one door to the openai client."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prefloop.configs.judge import JudgeConfig
from prefloop.types import Message, PrefloopError

MOST_LIKELY = 20  # first tokens of which a server is asked the log-probs: no more are to be had anywhere
RETRIES, SECONDS = 5, 120.0
_LETTER = re.compile(r"\W*([AB])\W*")


def served(config: JudgeConfig) -> Callable[[Sequence[Sequence[Message]]], list[float | None]]:
    """Reads of a model that a server runs (see `judge.Reads`): from the log-probs of its first token, or of a server
    that gives none from the letter that it wrote. PrefloopError where the key is missing or the server fails."""
    try:
        import openai
    except ImportError:
        raise PrefloopError('A judge at an endpoint needs a client: pip install "prefloop[judges]".') from None
    key = os.environ.get(config.key_variable, "") if config.key_variable else "none"
    if not key:
        raise PrefloopError(f"Judge {config.name}: set the environment variable {config.key_variable} to its key.")
    client = openai.OpenAI(base_url=config.endpoint, api_key=key, max_retries=RETRIES, timeout=SECONDS)

    def read(messages: Sequence[Message]) -> float | None:
        said: Any = [{"role": message.role, "content": message.content} for message in messages]
        try:
            answer = client.chat.completions.create(
                model=config.model,
                messages=said,
                max_tokens=1,
                temperature=0,
                logprobs=True,
                top_logprobs=MOST_LIKELY,
            )
        except openai.OpenAIError as error:
            raise PrefloopError(
                f"Judge {config.name}: {config.endpoint} failed ({error}); mend it and give the same command again, "
                "which goes on."
            ) from error
        return first_letter(answer.choices[0]) if answer.choices else None

    def reads(questions: Sequence[Sequence[Message]]) -> list[float | None]:
        pool = ThreadPoolExecutor(config.parallel)
        try:
            return list(pool.map(read, questions))
        finally:
            pool.shutdown(cancel_futures=True)

    return reads


def first_letter(choice: Any) -> float | None:
    """The probability of "A" against "B" as a reply's first token; None where neither is among the likely ones."""
    content = choice.logprobs.content if choice.logprobs else None
    if not content:
        said = _LETTER.fullmatch(choice.message.content or "")
        return float(said[1] == "A") if said else None
    masses = {"A": 0.0, "B": 0.0}
    for likely in content[0].top_logprobs:
        if said := _LETTER.fullmatch(likely.token):
            masses[said[1]] += math.exp(likely.logprob)
    total = sum(masses.values())
    return masses["A"] / total if total else None
