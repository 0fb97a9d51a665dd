"""Sample answers to prompts from one or several checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.configs.collect import CollectConfig
from prefloop.data.sources import load_prompts
from prefloop.engine.build import build_encoder, build_sampler, load, resolve_checkpoint, use_threads
from prefloop.run import Run, progress
from prefloop.stages.sampling import sample_groups
from prefloop.types import PrefloopError, Prompt, Sampling

CHUNK = 96  # prompts answered together; an interrupted run continues after the last whole chunk


def run(config: CollectConfig) -> Mapping[str, Any]:
    """Sample; the answers are the lines of samples.jsonl. The same call continues an interrupted run."""
    if not config.models:
        raise PrefloopError("[collect] models is empty; name a checkpoint or a model to sample from.")
    models = [resolve_checkpoint(name) for name in config.models]
    parents = {f"model-{i}": name for i, name in enumerate(models)}
    with Run.open(config.out, config, stage="collect", parents=parents) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        prompts = first_of_slices(load_prompts(config.prompts, splits=config.splits), config.per_slice)
        samplings = [
            Sampling(temperature=temperature, max_tokens=config.max_tokens)
            for temperature in config.temperatures
            for _ in range(config.samples)
        ]
        chunks = [prompts[i : i + CHUNK] for i in range(0, len(prompts), CHUNK)]
        done = run.last_step + 1
        run.rewind(done - 1)
        each = len(samplings)
        with progress(len(models) * len(prompts) * each, "answers", done=_answered(done, chunks, each)) as bar:
            for place, name in enumerate(models):
                if done >= (place + 1) * len(chunks):
                    continue
                loaded = load(name, config.engine)
                encoder, sampler = build_encoder(loaded), build_sampler(loaded, name, config.engine)
                for number, chunk in enumerate(chunks, start=place * len(chunks)):
                    if number < done:
                        continue
                    groups = sample_groups(
                        sampler,
                        encoder,
                        chunk,
                        samplings=samplings,
                        seed=(config.seed, "collect", place),
                        done=lambda: bar.advance(1),
                    )
                    for prompt, group in zip(chunk, groups, strict=True):
                        for completion in group:
                            run.sample(number, {"model": name, "prompt": prompt, "completion": completion})
                    run.log(number, {"answers": len(chunk) * each})

        written = [row["completion"] for row in run.samples()]
        tokens = [sum(len(segment["tokens"]) for segment in c["segments"]) for c in written]
        return run.finish(
            {
                "completions": len(written),
                "stopped_share": sum(c["finish_reason"] == "stop" for c in written) / len(written),
                "mean_tokens": sum(tokens) / len(tokens),
                "models": models,
            }
        )


def first_of_slices(prompts: Sequence[Prompt], count: int | None) -> list[Prompt]:
    """At most `count` prompts of each slice and split, in order."""
    taken: Counter[tuple[str, str]] = Counter()
    kept = []
    for prompt in prompts:
        taken[prompt.slice, prompt.split] += 1
        if count is None or taken[prompt.slice, prompt.split] <= count:
            kept.append(prompt)
    return kept


def _answered(done: int, chunks: list[list[Any]], each: int) -> int:
    return sum(len(chunks[i % len(chunks)]) * each for i in range(done))
