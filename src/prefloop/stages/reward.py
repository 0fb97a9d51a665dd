"""A Bradley-Terry reward model (Stiennon et al. 2020; Ouyang et al. 2022), measured on prompts that it never saw."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from prefloop.configs.reward import RewardConfig
from prefloop.data.sources import load_preferences
from prefloop.data.trees import Encoder, answer_tree, ordered_pairs, preference_trees
from prefloop.engine.build import build_encoder, build_learner, load, resolve_checkpoint, use_threads
from prefloop.engine.local import LocalLearner
from prefloop.engine.schedule import derived_seed, rate, take
from prefloop.evals.reward_model import HeldoutPair, measure
from prefloop.models.heads import reward_head
from prefloop.ops.statistics import calibration_slope, pooled_std
from prefloop.rewards.rubric import rubric
from prefloop.run import Run, progress
from prefloop.stages.saving import resume, save_final, save_step
from prefloop.types import Completion, Preference, PrefloopError, Prompt, to_json

LEAST_SPREAD = 0.25  # confirmed logits of preference, among answers to one prompt
LEAST_SLOPE = 0.05


def run(config: RewardConfig) -> Mapping[str, Any]:
    """Fit, fix gain and bias on reference samples, measure; returns the result with the checkpoint's path."""
    parent = resolve_checkpoint(config.model)
    parents = {"model": parent, "preferences": config.preferences}
    with Run.open(config.out, config, stage="reward", parents=parents) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        loaded = load(config.model, config.engine)
        encoder = build_encoder(loaded)
        training, heldout = split(load_preferences(config.preferences), config)
        trees = preference_trees(training, encoder)
        head = reward_head(loaded.model.config.get_text_config().hidden_size, config.seed)
        learner = build_learner(
            loaded,
            config.engine,
            config.optim,
            lora=config.lora,
            head=head,
            pooling=config.pooling,
            seed=config.seed,
        )
        examples = len(trees) * config.epochs
        total = math.ceil(examples / config.batch)
        start, _ = resume(run, learner, parent)

        with progress(total, "updates", done=start) as bar:
            for step in range(start, total):
                began = time.perf_counter()
                done = step * config.batch
                batch = take(trees, done, min(config.batch, examples - done), config.seed)
                metrics = learner.forward_backward(batch, "bradley_terry", {})
                factor = rate(config.optim, step, total)
                metrics |= learner.optim_step(config.optim.lr * factor, config.optim.head_lr * factor)
                run.log(step, metrics | {"time/step": time.perf_counter() - began})
                if (step + 1) % config.save_every == 0 and step + 1 < total:
                    save_step(run, learner, step, parent, {})
                bar.advance(1, f"loss {metrics['loss/train']:.3f}")

        pairs = _score(learner, encoder, heldout)
        slope, least = calibration(pairs)
        gain, bias = centre(learner, encoder, training, config.reference_samples, least)
        figures = _measure(run, pairs, gain, bias) | {"slope": slope, "slope_low": least}
        details = {"pooling": config.pooling, "gain": gain, "bias": bias}
        checkpoint = save_final(run, learner, total, parent, "reward", details)
        history = [row.values["accuracy/train"] for row in run.metrics()][-(len(trees) // config.batch or 1) :]
        return run.finish(
            {
                "checkpoint": checkpoint,
                **figures,
                "accuracy_train": sum(history) / len(history),
                "pairs_train": sum(len(tree.pairs) for tree in trees),
                "gain": gain,
                "bias": bias,
                "labels_shuffled": config.shuffle_labels,
            }
        )


def split(preferences: Sequence[Preference], config: RewardConfig) -> tuple[list[Preference], list[Preference]]:
    """Training and held-out preferences, split by prompt: the dev split where there is one, else a seeded share.

    With `shuffle_labels` half of each prompt's training targets are flipped, the held-out ones never.
    """
    ids = sorted({p.prompt.id for p in preferences})
    dev = {p.prompt.id for p in preferences if p.prompt.split == "dev"}
    rng = np.random.Generator(np.random.Philox(derived_seed(config.seed, "heldout")))
    out = dev or {ids[i] for i in rng.permutation(len(ids))[: max(1, round(config.heldout * len(ids)))]}
    training = [p for p in preferences if p.prompt.id not in out]
    heldout = [p for p in preferences if p.prompt.id in out]
    if not training or not heldout:
        raise PrefloopError(
            f"{len(ids)} prompt(s) with comparisons cannot be split into training and held-out ones; collect more."
        )
    if config.shuffle_labels:
        training = _shuffled(training, derived_seed(config.seed, "shuffle"))
    return training, heldout


def as_pairs(preference: Preference) -> list[Preference]:
    """A ranking as its K(K-1)/2 pairs, ties with target 0.5; a pair as it is."""
    return [
        replace(preference, items=(preference.items[i], preference.items[j]), ranking=None, target=target)
        for i, j, target in ordered_pairs(preference)
    ]


def _shuffled(preferences: Sequence[Preference], seed: int) -> list[Preference]:
    """Half of each prompt's targets flipped (of an odd number, the odd one by a coin), ties aside. Coins alone would
    leave more that by chance agrees with the annotators, or disagrees."""
    chance = np.random.Generator(np.random.Philox(seed))
    places: dict[str, list[int]] = {}
    for place, preference in enumerate(preferences):
        if preference.target != 0.5:
            places.setdefault(preference.prompt.id, []).append(place)
    made = list(preferences)
    for own in places.values():
        for place in chance.permutation(own)[: (len(own) + int(chance.integers(2))) // 2]:
            made[place] = _flipped(made[place])
    return made


def _flipped(preference: Preference) -> Preference:
    if preference.ranking is not None:
        worst = max(preference.ranking)
        return replace(preference, ranking=tuple(worst - rank for rank in preference.ranking))
    target = 1.0 if preference.target is None else preference.target
    return replace(preference, target=1.0 - target)


def centre(
    learner: LocalLearner, encoder: Encoder, preferences: Sequence[Preference], samples: int, slope: float
) -> tuple[float, float]:
    """Gain and bias of score = gain * raw + bias: reference samples get mean 0 (Ziegler et al. 2019), and std 1 within
    prompts: a policy gains by the differences there, so that a KL coefficient means one thing.

    `slope`: at least so much of a difference in logits the held-out labels confirm. Where they confirm less than
    LEAST_SPREAD of that std, scores are that much smaller: a policy shall not chase the noise of a model that learned
    next to nothing.

    The reference samples are answers of the training comparisons, up to four or an even share from each of prompts that
    are evenly spread; only those drawn at temperature 1, if half of the prompts have two of these.
    """
    items = [(p.prompt, item) for p in preferences for item in p.items]
    answers = by_prompt(items)
    plain = by_prompt([pair for pair in items if pair[1].sampling.temperature == 1.0])
    plain = {name: found for name, found in plain.items() if len(found[1]) > 1}
    if 2 * len(plain) >= len(answers):
        answers = plain
    each = max(4, samples // len(answers))
    groups = [(prompt, known[:each]) for prompt, known in answers.values()]
    stride = max(1, sum(len(known) for _, known in groups) // samples)
    trees = [answer_tree(prompt, known, encoder) for prompt, known in groups[::stride]]
    scores = [list(reading.scores.values()) for reading in learner.forward(trees, {"scores"})]
    mean, std = float(np.mean(np.concatenate(scores))), pooled_std(scores)
    if not std > 1e-6:
        raise PrefloopError(
            f"The reward model tells none of its {sum(map(len, scores))} reference answers apart; it learned nothing."
        )
    confirmed = max(slope, LEAST_SLOPE)
    gain = 1 / std if confirmed * std >= LEAST_SPREAD else confirmed / LEAST_SPREAD
    return gain, -gain * mean


def by_prompt(items: Sequence[tuple[Prompt, Completion]]) -> dict[str, tuple[Prompt, list[Completion]]]:
    """Each prompt with its answers, every answer once, in order."""
    answers: dict[str, tuple[Prompt, list[Completion]]] = {}
    for prompt, item in {(prompt.id, item.id): (prompt, item) for prompt, item in items}.values():
        answers.setdefault(prompt.id, (prompt, []))[1].append(item)
    return answers


def _score(learner: LocalLearner, encoder: Encoder, heldout: Sequence[Preference]) -> list[HeldoutPair]:
    """Held-out pairs with raw scores. Noise-free scores are the rubric's, for simulated annotators and prompts with
    checks; else null."""
    pairs = [pair for p in heldout for pair in as_pairs(p) if pair.items[0].text != pair.items[1].text]
    answers = by_prompt([(p.prompt, item) for p in pairs for item in p.items])
    trees = [answer_tree(prompt, items, encoder) for prompt, items in answers.values()]
    scores = {
        (prompt.id, item.id): reading.scores[1 + place]
        for (prompt, items), reading in zip(answers.values(), learner.forward(trees, {"scores"}), strict=True)
        for place, item in enumerate(items)
    }
    gold_known = all(p.simulated and p.prompt.checks for p in pairs)
    made = []
    for preference in pairs:
        a, b = preference.items
        gold = [s.value for s in rubric([preference.prompt] * 2, preference.items)] if gold_known else [None, None]
        pair = HeldoutPair(
            prompt_id=preference.prompt.id,
            target=1.0 if preference.target is None else preference.target,
            score_a=scores[preference.prompt.id, a.id],
            score_b=scores[preference.prompt.id, b.id],
            words_a=len(a.text.split()),
            words_b=len(b.text.split()),
            gold_a=gold[0],
            gold_b=gold[1],
        )
        made.append(pair)
    return made


def calibration(pairs: Sequence[HeldoutPair]) -> tuple[float, float]:
    """Slope of raw scores as logits on held-out labels, and its lower bound."""
    prompts: dict[str, list[HeldoutPair]] = {}
    for pair in pairs:
        prompts.setdefault(pair.prompt_id, []).append(pair)
    leads = [[pair.score_a - pair.score_b for pair in own] for own in prompts.values()]
    return calibration_slope(leads, [[pair.target for pair in own] for own in prompts.values()])


def _measure(run: Run, pairs: Sequence[HeldoutPair], gain: float, bias: float) -> dict[str, Any]:
    """Held-out figures; the scored pairs are the lines of samples.jsonl."""
    (run.path / "samples.jsonl").unlink(missing_ok=True)
    scored = [replace(p, score_a=gain * p.score_a + bias, score_b=gain * p.score_b + bias) for p in pairs]
    for pair in scored:
        run.sample(0, asdict(pair))
    report = to_json(measure(scored, gain=gain))
    figures = "accuracy accuracy_low accuracy_high ceiling longer_wins shorter_wins ece reliability margin"
    return {name: report[name] for name in figures.split()} | {"pairs_heldout": report["n"]}
