"""Which answers are shown against which."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

from prefloop.data.jsonl import content_id
from prefloop.types import Comparison, Completion, PrefloopError, Prompt


def comparison_id(items: Sequence[Completion]) -> str:
    """SHA-256 of the completions' ids in their order."""
    return content_id(*(item.id for item in items))


def first_wins(ranking: Sequence[int] | None, probability: float | None, a: int = 0, b: int = 1) -> float:
    """How much a judgment prefers item a to item b: 1, 0.5 or 0 by its ranking, else its probability; 0.5 without."""
    if ranking is None:
        return 0.5 if probability is None else float(probability)
    return 0.5 if ranking[a] == ranking[b] else float(ranking[a] < ranking[b])


def pair_completions(
    completions_by_prompt: Mapping[str, Sequence[Completion]], prompts: Sequence[Prompt], *, pairs: int, seed: int
) -> list[Comparison]:
    """Up to `pairs` distinct random pairs of each prompt's answers, in random order within a pair; prompts in order.

    Answers with equal text (but for space around it) never meet, so two empty ones do not either. The choice for a
    prompt depends on the seed, its id and its answers alone. Raises PrefloopError when no pair is left."""
    made = []
    for prompt in prompts:
        answers = {answer.id: answer for answer in completions_by_prompt.get(prompt.id, ())}.values()
        possible = [(a, b) for a, b in itertools.combinations(answers, 2) if a.text.strip() != b.text.strip()]
        chance = random.Random(f"{seed}:{prompt.id}")
        for pair in chance.sample(possible, min(pairs, len(possible))):
            items = tuple(chance.sample(pair, 2))
            made.append(Comparison(id=comparison_id(items), prompt=prompt, items=items))
    if not made:
        raise PrefloopError(_nothing([completions_by_prompt.get(prompt.id, ()) for prompt in prompts]))
    return made


def rank_completions(
    completions_by_prompt: Mapping[str, Sequence[Completion]], prompts: Sequence[Prompt], *, ways: int, seed: int
) -> list[Comparison]:
    """One comparison of up to `ways` answers of each prompt, drawn where there are more, none with another's text (but
    for space around it); prompts in order. Raises PrefloopError when no prompt has two."""
    made = []
    for prompt in prompts:
        distinct = list({answer.text.strip(): answer for answer in completions_by_prompt.get(prompt.id, ())}.values())
        items = tuple(random.Random(f"{seed}:{prompt.id}").sample(distinct, min(ways, len(distinct))))
        if len(items) > 1:
            made.append(Comparison(id=comparison_id(items), prompt=prompt, items=items))
    if not made:
        raise PrefloopError(_nothing([completions_by_prompt.get(prompt.id, ()) for prompt in prompts]))
    return made


def _nothing(groups: Sequence[Sequence[Completion]]) -> str:
    count = sum(map(len, groups))
    if max(map(len, groups), default=0) < 2:
        return f"No prompt has two completions ({count} for {len(groups)} prompts): collect at least two samples each."
    if not any(answer.text.strip() for group in groups for answer in group):
        return f"All {count} completions are empty: look at the model and at max_tokens, then collect again."
    return f"The {count} completions are identical within each prompt: collect at a higher temperature."
