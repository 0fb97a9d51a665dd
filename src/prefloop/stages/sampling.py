"""What stages that sample share: requests with seeds of their own, and answers in the order of the prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prefloop.data.trees import Encoder
from prefloop.engine.generate import LocalSampler
from prefloop.engine.schedule import derived_seed
from prefloop.engine.verbs import Request
from prefloop.types import Completion, Prompt, Sampling


def sample_groups(
    sampler: LocalSampler,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    *,
    samplings: Sequence[Sampling],
    seed: tuple[object, ...],
    done: Callable[[], None] | None = None,
) -> list[list[Completion]]:
    """One completion of each prompt for each of `samplings`, in order of the prompts.

    Each seed depends on `seed`, the prompt's id and its place alone. `done` is called for each finished completion.
    """
    requests = []
    for place, prompt in enumerate(prompts):
        tokens = encoder.prompt(prompt)
        for index, sampling in enumerate(samplings):
            own = derived_seed(*seed, prompt.id, place, index)
            name = f"{prompt.id}/{own:016x}"
            requests.append(Request(id=name, prompt_id=prompt.id, tokens=tokens, sampling=sampling, seed=own))
    finished: dict[str, Completion] = {}
    for completion in sampler.generate(requests):
        finished[completion.id] = completion
        if done is not None:
            done()
    ordered = [finished[request.id] for request in requests]
    group = len(samplings)
    return [ordered[i : i + group] for i in range(0, len(ordered), group)]
