"""Rejection sampling (Touvron et al. 2023, Llama 2, section 3.2.3): several answers to each prompt, the best is kept,
and the policy is fine-tuned on what was kept."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefloop.configs.rejection import RejectionConfig
from prefloop.configs.rollout import ShapingConfig
from prefloop.data.forest import tree_tokens
from prefloop.data.rows import read_jsonl
from prefloop.data.sources import load_prompts, samples_file
from prefloop.data.trees import Encoder, answer_tree
from prefloop.engine.build import build_encoder, build_learner, build_sampler, load, resolve_checkpoint, use_threads
from prefloop.engine.schedule import derived_seed, rate, take
from prefloop.models.checkpoint import latest_checkpoint
from prefloop.ops.ensembles import best_of_n, best_of_n_kl
from prefloop.rewards.mix import MixedReward
from prefloop.rewards.resolve import RewardFn, resolve_reward
from prefloop.rewards.shaping import Shaping
from prefloop.run import Run, progress
from prefloop.stages.rollouts import reward_sources
from prefloop.stages.sampling import sample_groups
from prefloop.stages.saving import resume, save_final, save_step
from prefloop.types import Completion, PrefloopError, Prompt, Sampling, from_json

CHUNK = 16  # prompts answered together; an interrupted run continues after the last whole chunk


@dataclass(frozen=True)
class Judged:
    """The n answers to a prompt, their scores, and the place of the one that is kept, where one is."""

    prompt: Prompt
    answers: Sequence[Completion]
    scores: Sequence[float]
    kept: int | None


def run(config: RejectionConfig) -> Mapping[str, Any]:
    """Sample, select, fine-tune; returns the result with the policy's path. samples.jsonl holds every answer with its
    score and whether it was kept. The same call continues an interrupted run exactly."""
    parent = resolve_checkpoint(config.policy)
    sampled_by = resolve_checkpoint(config.sampler or config.policy)
    sources = reward_sources(config)
    parents = {"policy": parent, "sampler": sampled_by, **sources}
    parents |= {f"earlier-{place}": name for place, name in enumerate(config.earlier)}
    with Run.open(config.out, config, stage="rejection", parents=parents) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        prompts = load_prompts(config.prompts, splits=(config.split,))
        sampling_steps = sample(config, run, sampled_by, prompts)

        loaded = load(config.policy, config.engine)
        encoder = build_encoder(loaded)
        kept = kept_answers([*map(samples_file, config.earlier), run.path / "samples.jsonl"])
        if not kept:
            raise PrefloopError(f"No answer scored above keep_above = {config.keep_above:g}; lower it or raise n.")
        trees = [answer_tree(prompt, [readable(answer, encoder)], encoder) for prompt, answer in kept]
        learner = build_learner(loaded, config.engine, config.optim, lora=config.lora, seed=config.seed)
        examples = len(trees) * config.epochs
        total = math.ceil(examples / config.batch)
        start = sampling_steps
        if latest_checkpoint(run.path / "checkpoints"):
            start, _ = resume(run, learner, parent)
        run.rewind(start - 1)

        with progress(total, "updates", done=start - sampling_steps) as bar:
            for step in range(start, sampling_steps + total):
                began = time.perf_counter()
                update = step - sampling_steps
                done = update * config.batch
                batch = take(trees, done, min(config.batch, examples - done), config.seed)
                metrics = learner.forward_backward(batch, "sft", {})
                factor = rate(config.optim, update, total)
                metrics |= learner.optim_step(config.optim.lr * factor, config.optim.head_lr * factor)
                run.log(step, metrics | {"time/step": time.perf_counter() - began})
                if (update + 1) % config.save_every == 0 and update + 1 < total:
                    save_step(run, learner, step, parent, {})
                bar.advance(1, f"loss {metrics['loss/train']:.3f}")

        checkpoint = save_final(run, learner, sampling_steps + total, parent, "policy", sources)
        figures = summarize(run.samples(), config.n)
        return run.finish(
            {
                "checkpoint": checkpoint,
                **figures,
                "kl_nominal": float(best_of_n_kl(config.n)) if config.select == "best" else 0.0,
                "temperature": tuned(run, config),
                "kept": len(kept),
                "kept_earlier": len(kept) - len(kept_answers([run.path / "samples.jsonl"])),
                "tokens": sum(map(tree_tokens, trees)) * config.epochs,
            }
        )


def sample(config: RejectionConfig, run: Run, sampler_name: str, prompts: Sequence[Prompt]) -> int:
    """Choose the temperature, then answer and judge all prompts, chunk by chunk; returns the steps that both take."""
    tries = config.temperatures if len(config.temperatures) > 1 else ()
    chunks = [prompts[i : i + CHUNK] for i in range(0, len(prompts), CHUNK)]
    steps = len(tries) + len(chunks)
    done = min(run.last_step + 1, steps)
    if done == steps:
        return steps
    run.rewind(done - 1)
    loaded = load(sampler_name, config.engine)
    sampler, encoder = build_sampler(loaded, sampler_name, config.engine), build_encoder(loaded)
    known = {name: value for row in run.metrics()[:1] for name, value in row.values.items()}
    mix = config.mix and MixedReward(config.mix, config.reward, config.engine, {"scales": _scales(known)})
    reward: RewardFn = mix or resolve_reward(config.reward, config.engine)
    probe = prompts[:: max(1, len(prompts) // config.tuning)][: config.tuning]
    parts = [probe for _ in tries] + chunks
    with progress(sum(map(len, parts)), "prompts", done=sum(map(len, parts[:done]))) as bar:

        def judged(asked: Sequence[Prompt], temperature: float, purpose: str) -> list[Judged]:
            groups = sample_groups(
                sampler,
                encoder,
                asked,
                samplings=[Sampling(temperature=temperature, max_tokens=config.max_tokens)] * config.n,
                seed=(config.seed, purpose),
            )
            made = judge(asked, groups, reward, config)
            bar.advance(len(asked))
            return made

        for step in range(done, steps):
            if step < len(tries):
                found = judged(probe, tries[step], "tune")
                metrics = {"tune/temperature": tries[step], "tune/best": _mean(max(j.scores) for j in found)}
            else:
                found = judged(chunks[step - len(tries)], tuned(run, config), "rejection")
                metrics = {
                    "reward/best": _mean(max(j.scores) for j in found),
                    "reward/median": _mean(np.median(j.scores) for j in found),
                }
                if kept := [j.scores[j.kept] for j in found if j.kept is not None]:
                    metrics["reward/kept"] = _mean(kept)
                for j in found:
                    for place, (answer, score) in enumerate(zip(j.answers, j.scores, strict=True)):
                        row = {"prompt": j.prompt, "completion": answer, "score": score, "kept": place == j.kept}
                        run.sample(step, row)
            if mix and step == 0:
                metrics |= {f"scale/{name}/{i}": v for name, pair in mix.scales.items() for i, v in enumerate(pair)}
            run.log(step, metrics)
    return steps


def judge(
    prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]], reward: RewardFn, config: RejectionConfig
) -> list[Judged]:
    """Score each prompt's answers and choose the one that is kept: the best, of equals the first, or any; none
    where even the best is not above config.keep_above."""
    flat = [answer for group in groups for answer in group]
    asked = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
    shape = Shaping(ShapingConfig(), config.missing_stop_score, {}, {})
    scores = iter(shape(reward(asked, flat), asked, flat))
    made = []
    for prompt, group in zip(prompts, groups, strict=True):
        own = [next(scores) for _ in group]
        any_one = derived_seed(config.seed, "any", prompt.id) % len(own)
        kept = int(np.argmax(own)) if config.select == "best" else any_one
        good = config.keep_above is None or max(own) > config.keep_above
        made.append(Judged(prompt, group, own, kept if good else None))
    return made


def readable(answer: Completion, encoder: Encoder) -> Completion:
    """The answer; as text alone where its tokens are those of another tokenizer."""
    try:
        encoder.response(answer)
    except PrefloopError:
        return dataclasses.replace(answer, segments=())
    return answer


def tuned(run: Run, config: RejectionConfig) -> float:
    """The temperature whose best of n scored highest; of equals the first."""
    tries = [row.values for row in run.metrics() if "tune/best" in row.values]
    return max(tries, key=lambda row: row["tune/best"])["tune/temperature"] if tries else config.temperatures[0]


def kept_answers(files: Sequence[Path]) -> list[tuple[Prompt, Completion]]:
    """What rejection runs kept, from their samples, each answer to a prompt once, in order. Answers count by their text
    and end: a model of another tokenizer may have written them. PrefloopError for samples of another stage."""
    found: dict[tuple[str, str, str], tuple[Prompt, Completion]] = {}
    for file in files:
        for line, row in read_jsonl(file):
            if "kept" not in row:
                raise PrefloopError(f"{file}:{line}: no answer of a rejection run; give one's folder.")
            if row["kept"]:
                prompt, answer = from_json(Prompt, row["prompt"]), from_json(Completion, row["completion"])
                found.setdefault((prompt.id, answer.text, answer.finish_reason), (prompt, answer))
    return list(found.values())


def summarize(rows: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    """Figures over prompts, from the lines of samples.jsonl: mean score, that of the kept answers, the median, what
    selection can gain (max - median), and the unbiased estimate of the best of 1, 2, 4, ... n."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["prompt"]["id"], []).append(row["score"])
    ks = sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})
    curve = np.mean([best_of_n(own, own, ks) for own in scores.values()], axis=0)
    median = _mean(np.median(own) for own in scores.values())
    return {
        "prompts": len(scores),
        "score": float(curve[0]),
        "score_kept": _mean(own) if (own := [row["score"] for row in rows if row["kept"]]) else None,
        "median": median,
        "max_minus_median": float(curve[-1]) - median,
        "best_of": {str(k): float(value) for k, value in zip(ks, curve, strict=True)},
    }


def _scales(row: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """A mix's measured scales, from the first row that was logged."""
    names = [name.split("/")[1] for name in row if name.startswith("scale/") and name.endswith("/0")]
    return {name: (row[f"scale/{name}/0"], row[f"scale/{name}/1"]) for name in names}


def _mean(values: Iterable[Any]) -> float:
    return float(np.mean(list(values)))
