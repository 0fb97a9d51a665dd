"""Talk to a checkpoint in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from prefloop.configs.shared import EngineConfig
from prefloop.engine.build import build_encoder, build_sampler, load, use_threads
from prefloop.engine.schedule import derived_seed
from prefloop.engine.verbs import Request
from prefloop.types import Message, Prompt, Sampling


def run(checkpoint: str, *, temperature: float, max_tokens: int, seed: int) -> Mapping[str, Any]:
    """Answer line after line from stdin, with the conversation so far; returns the number of answers.

    An empty line starts a new conversation. Raises PrefloopError when the conversation outgrows the model's context.
    """
    engine = EngineConfig()
    use_threads(engine)
    loaded = load(checkpoint, engine)
    encoder, sampler = build_encoder(loaded), build_sampler(loaded, checkpoint, engine)
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    messages: tuple[Message, ...] = ()
    answers = 0
    while line := _ask():
        if not line.strip():
            messages = ()
            continue
        messages += (Message(role="user", content=line.strip()),)
        tokens = encoder.prompt(Prompt(id="chat", messages=messages))
        request = Request(
            id="chat", prompt_id="chat", tokens=tokens, sampling=sampling, seed=derived_seed(seed, "chat", answers)
        )
        (completion,) = sampler.generate([request])
        print(_shown(completion.text) + (" [cut off]" if completion.finish_reason == "length" else ""), flush=True)
        messages += (Message(role="assistant", content=completion.text),)
        answers += 1
    return {"answers": answers}


def _ask() -> str:
    print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


def _shown(text: str) -> str:
    """What a model writes may hold terminal control codes; none of them reaches the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
