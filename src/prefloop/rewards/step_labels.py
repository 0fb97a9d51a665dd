"""Labels of steps that no person has to give: by a verifier of what was written so far, or by going on from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from prefloop.data.chat import decode
from prefloop.data.steps import step_ends
from prefloop.data.trees import Encoder
from prefloop.engine.schedule import derived_seed
from prefloop.engine.verbs import Request, Sampler
from prefloop.ops.steps import rollout_labels
from prefloop.rewards.resolve import RewardFn
from prefloop.types import Completion, PrefloopError, Prompt, Sampling, Segment, StepLabels

Answer = tuple[Prompt, Completion]


def verified_steps(answers: Sequence[Answer], encoder: Encoder, rule: str, verifier: RewardFn) -> list[StepLabels]:
    """Each step's label is what `verifier` says, in 0..1, of the answer up to its end. Raises PrefloopError for another
    value."""
    split = _split(answers, encoder, rule)
    begun = [(p, [_cut(c, tokens, end, encoder) for end in ends]) for p, c, tokens, ends in split]
    values = iter(verifier([p for p, parts in begun for _ in parts], [part for _, parts in begun for part in parts]))
    made = []
    for (prompt, completion), (_, parts) in zip(answers, begun, strict=True):
        labels = tuple(next(values).value for _ in parts)
        if not all(0 <= label <= 1 for label in labels):
            raise PrefloopError(f"The verifier scores steps of {completion.id!r} {labels}; labels must be in 0..1.")
        made.append(StepLabels(prompt=prompt, completion=completion, labels=labels, by="verifier"))
    return made


def rolled_out_steps(
    answers: Sequence[Answer],
    encoder: Encoder,
    rule: str,
    sampler: Sampler,
    verifier: RewardFn,
    *,
    samples: int,
    sampling: Sampling,
    soft: bool,
    seed: int,
) -> list[StepLabels]:
    """Each step's label is whether (`soft`: how often) `samples` completions that go on after it come to a right answer
    (Math-Shepherd, see ops.steps): one that `verifier` scores above 0.5. After the last step there is nothing to go on:
    it is as right as the answer itself."""
    split = _split(answers, encoder, rule)
    requests = [
        Request(
            id=f"{place}/{step}/{index}",
            prompt_id=prompt.id,
            tokens=encoder.prompt(prompt) + tokens[: end + 1],
            sampling=sampling,
            seed=derived_seed(seed, prompt.id, place, step, index),
        )
        for place, (prompt, _, tokens, ends) in enumerate(split)
        for step, end in enumerate(ends[:-1])
        for index in range(samples)
    ]
    starts: list[tuple[int, int]] = []
    whole: list[Answer] = []
    for found in sampler.generate(requests):
        place, step, _ = map(int, found.id.split("/"))
        prompt, _, tokens, ends = split[place]
        starts.append((place, step))
        whole.append((prompt, _joined(tokens[: ends[step] + 1], found, encoder)))
    asked = [*whole, *answers]
    right = [score.value > 0.5 for score in verifier([p for p, _ in asked], [c for _, c in asked])]
    counts = [[0] * len(ends) for *_, ends in split]
    for (place, step), good in zip(starts, right, strict=False):
        counts[place][step] += good
    for own, good in zip(counts, right[len(whole) :], strict=True):
        own[-1] = samples * good
    by = "rollouts-soft" if soft else "rollouts-hard"
    labels = [tuple(rollout_labels(own, samples, soft=soft).tolist()) for own in counts]
    return [StepLabels(prompt=p, completion=c, labels=own, by=by) for (p, c), own in zip(answers, labels, strict=True)]


def _split(
    answers: Sequence[Answer], encoder: Encoder, rule: str
) -> list[tuple[Prompt, Completion, tuple[int, ...], tuple[int, ...]]]:
    """Each prompt and answer with the answer's tokens and the places of its steps' ends."""
    tokens = [encoder.response(completion) for _, completion in answers]
    return [(p, c, own, step_ends(own, rule, encoder.tokenizer)) for (p, c), own in zip(answers, tokens, strict=True)]


def _cut(completion: Completion, tokens: tuple[int, ...], end: int, encoder: Encoder) -> Completion:
    """An answer up to the token at `end`; all of it where that is its last."""
    if end == len(tokens) - 1:
        return completion
    cut = dataclasses.replace(completion, finish_reason="length")
    return _written(cut, tokens[: end + 1], decode(encoder.tokenizer, tokens[: end + 1]))


def _joined(written: tuple[int, ...], found: Completion, encoder: Encoder) -> Completion:
    """What was written so far and a completion that goes on from there, as one answer."""
    return _written(found, written + found.tokens, decode(encoder.tokenizer, written) + found.text)


def _written(like: Completion, tokens: tuple[int, ...], text: str) -> Completion:
    segments = (Segment(author="policy", tokens=tokens),)
    return dataclasses.replace(like, id=f"{like.id}[:{len(tokens)}]", segments=segments, text=text)
