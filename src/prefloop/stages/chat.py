"""Talk to a checkpoint in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from prefloop.configs.shared import EngineConfig
from prefloop.engine.build import build_encoder, build_sampler, load, use_threads
from prefloop.rewards.resolve import resolve_reward
from prefloop.stages.sampling import sample_groups
from prefloop.types import Message, PrefloopError, Prompt, Sampling


def run(
    checkpoint: str, *, temperature: float, max_tokens: int, seed: int, best_of: int = 1, reward: str = ""
) -> Mapping[str, Any]:
    """Answer line after line from stdin, with the conversation so far; returns the number of answers.

    With `best_of` above 1 each answer is the one of so many that `reward` scores best, of equals the first drawn.
    An empty line starts a new conversation. An answer that was cut off at `max_tokens` stands in the conversation as if
    it had ended there. Raises PrefloopError when the conversation outgrows the model's context.
    """
    if (best_of > 1) != bool(reward):
        raise PrefloopError(
            "The best of several answers needs both --best-of N, above 1, and --reward; give the other."
        )
    engine = EngineConfig()
    use_threads(engine)
    loaded = load(checkpoint, engine)
    encoder, sampler = build_encoder(loaded), build_sampler(loaded, checkpoint, engine)
    judge = resolve_reward(reward, engine) if reward else None
    messages: tuple[Message, ...] = ()
    answers = 0
    while line := _ask():
        if not line.strip():
            messages = ()
            continue
        messages += (Message(role="user", content=line.strip()),)
        prompt = Prompt(id="chat", messages=messages)
        samplings = [Sampling(temperature=temperature, max_tokens=max_tokens)] * best_of
        (made,) = sample_groups(sampler, encoder, [prompt], samplings=samplings, seed=(seed, "chat", answers))
        completion = made[0]
        if judge:
            scores = [score.value for score in judge([prompt] * best_of, made)]
            completion = made[scores.index(max(scores))]
            print(f"best of {best_of}: {max(scores):+.2f}, mean {sum(scores) / best_of:+.2f}", file=sys.stderr)
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
