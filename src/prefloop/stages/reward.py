"""A reward model from comparisons (Stiennon et al. 2020; Ouyang et al. 2022) or from labels of steps (Lightman et al.
2023), measured on prompts that it never saw."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from prefloop.configs.reward import RewardConfig
from prefloop.data.forest import Totals, build_forest, leaf_nodes
from prefloop.data.heldout import by_prompt, distinct_pairs, shuffled, split
from prefloop.data.sources import load_preferences
from prefloop.data.trees import Encoder, answer_tree, preference_trees
from prefloop.engine.build import build_encoder, build_learner, load, resolve_checkpoint, use_threads
from prefloop.engine.local import LocalLearner, Pooling
from prefloop.engine.objectives import resolve_loss
from prefloop.engine.outputs import Outputs
from prefloop.engine.schedule import derived_seed, rate, take
from prefloop.evals.reward_model import HeldoutPair, calibration, heldout_pairs
from prefloop.models.heads import reward_head
from prefloop.ops.statistics import pooled_std
from prefloop.run import Run, progress
from prefloop.stages.heads import further_heads, headed
from prefloop.stages.measuring import heldout_figures
from prefloop.stages.saving import resume, save_final, save_step
from prefloop.stages.stepwise import Steps
from prefloop.types import Checkpoint, Preference, PrefloopError, Tree

LEAST_SPREAD = 0.25  # confirmed logits of preference, among answers to one prompt
LEAST_SLOPE = 0.05


def run(config: RewardConfig) -> Mapping[str, Any]:
    """Fit, measure, of comparisons fix gain and bias on reference samples; returns the result with the checkpoint's
    path."""
    parent = resolve_checkpoint(config.model)
    parents = {"model": parent, "preferences": config.preferences}
    with Run.open(config.out, config, stage="reward", parents=parents) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        loaded = load(config.model, config.engine)
        encoder = build_encoder(loaded)
        known = Steps(config, encoder) if config.loss == "process" else Comparisons(config, encoder)
        trees = known.trees
        head_seed = config.seed if config.head_seed is None else config.head_seed
        head = reward_head(loaded.model.config.get_text_config().hidden_size, head_seed)
        pooling: Pooling = config.pooling_k if config.pooling == "last_k" else config.pooling
        learner = build_learner(
            loaded,
            config.engine,
            config.optim,
            lora=config.lora,
            head=head,
            pooling=pooling,
            seed=config.seed,
        )
        examples = len(trees) * config.epochs
        total = math.ceil(examples / config.batch)
        start, state = resume(run, learner, parent)
        if config.scaled_start and start == 0 and isinstance(known, Comparisons):
            known.scale_head(learner)
        stop, kept = config.early_stop, run.path / "best"
        best_step, best_loss = state.get("best", (-1, math.inf))

        with progress(total, "updates", done=start) as bar:
            for step in range(start, total):
                if stop and step - 1 - best_step >= stop.patience * stop.every:
                    break
                began = time.perf_counter()
                done = step * config.batch
                batch = take(trees, done, min(config.batch, examples - done), config.seed)
                metrics = learner.forward_backward(batch, config.loss, known.params)
                factor = rate(config.optim, step, total)
                metrics |= learner.optim_step(config.optim.lr * factor, config.optim.head_lr * factor)
                if stop and ((step + 1) % stop.every == 0 or step + 1 == total):
                    metrics["loss/heldout"] = heldout_loss(learner, known.unseen, config.loss, known.params)
                run.log(step, metrics | {"time/step": time.perf_counter() - began})
                if metrics.get("loss/heldout", math.inf) < best_loss:
                    best_step, best_loss = step, metrics["loss/heldout"]
                    record = Checkpoint(
                        path=str(kept), kind="policy", step=step, parent=parent, config_hash=run.config_hash
                    )
                    learner.save(kept, record, {}, resumable=True)
                if (step + 1) % config.save_every == 0 and step + 1 < total:
                    save_step(run, learner, step, parent, {"best": (best_step, best_loss)} if best_step >= 0 else {})
                bar.advance(1, f"loss {metrics['loss/train']:.3f}")
        if stop:
            learner.load(kept)

        figures, details = known.measured(run, learner)
        details |= {"pooling": pooling, "head_seed": head_seed}
        if config.lora:
            details |= {"lora": config.lora.model_dump() | {"last_layers": config.optim.last_layers}}
            details |= {"trunk": loaded.fingerprint}
        checkpoint = save_final(run, learner, best_step + 1 if stop else total, parent, "reward", details)
        history = [row.values["accuracy/train"] for row in run.metrics()][-(len(trees) // config.batch or 1) :]
        result = run.finish(
            {
                "checkpoint": checkpoint,
                **figures,
                "accuracy_train": sum(history) / len(history),
                "labels_shuffled": config.shuffle_labels,
                **({"updates": best_step + 1, "loss_heldout": best_loss} if stop else {}),
            }
        )
        shutil.rmtree(kept, ignore_errors=True)
        return result


class Comparisons:
    """What a reward model learns from: comparisons, as trees to train on and `unseen` ones."""

    def __init__(self, config: RewardConfig, encoder: Encoder) -> None:
        known = load_preferences(config.preferences, skip_bad=config.skip_bad)
        if not config.margins:
            known = [dataclasses.replace(preference, margin=0.0) for preference in known]
        self.params = objective(config, known)
        self.encoder, self.config = encoder, config
        self.training, self.heldout = split(known, config.heldout, derived_seed(config.seed, "heldout"))
        if config.shuffle_labels:
            self.training = shuffled(self.training, derived_seed(config.seed, "shuffle"))
        self.trees = preference_trees(self.training, encoder)
        self.unseen = preference_trees(self.heldout, encoder) if config.early_stop else []

    def measured(self, run: Run, learner: LocalLearner) -> tuple[dict[str, Any], dict[str, Any]]:
        """Figures over the held-out pairs, which go into samples.jsonl, and gain and bias for the checkpoint, those of
        further heads too, which are fitted here."""
        pairs = _score(learner, self.encoder, self.heldout)
        slope, least = calibration(pairs)
        gain, bias = self._centred(learner, least)
        scale = {"gain": gain, "bias": bias}
        learner.members = further_heads(learner, self.trees, self.config, self.params)
        members = []
        for member in learner.members:
            with headed(learner, member):
                _, confirmed = calibration(_score(learner, self.encoder, self.heldout))
                members.append(self._centred(learner, confirmed))
        trained = {"pairs_train": sum(len(tree.pairs) for tree in self.trees)}
        figures = heldout_figures(run, pairs, gain, bias) | {"slope": slope, "slope_low": least}
        return figures | trained | scale, scale | {"members": members}

    def scale_head(self, learner: LocalLearner) -> None:
        """Give the head's scores mean 0 and std 1 on the reference samples, as their gain and bias will after training
        (Ziegler et al. 2019, code)."""
        gain, bias = self._centred(learner, math.inf)
        assert learner.head is not None
        with torch.no_grad():
            learner.head.weight.mul_(gain)
            learner.head.bias.mul_(gain).add_(bias)

    def _centred(self, learner: LocalLearner, slope: float) -> tuple[float, float]:
        return centre(learner, self.encoder, self.training, self.config.reference_samples, slope)


def objective(config: RewardConfig, preferences: Sequence[Preference]) -> dict[str, float]:
    """The loss's parameters. Raises PrefloopError for margins that it has no use for."""
    if config.loss == "bradley_terry":
        return {"label_smoothing": config.label_smoothing, "floor": config.random_floor, "centre": config.centre}
    if any(p.margin for p in preferences):
        raise PrefloopError("Comparisons carry margins, which plackett_luce cannot use; set reward.margins = false.")
    return {"centre": config.centre}


def heldout_loss(learner: LocalLearner, trees: Sequence[Tree], loss: str, params: Mapping[str, float]) -> float:
    """The training loss on trees, without a gradient."""
    function, reads = resolve_loss(loss)
    totals = Totals.of(trees)
    share = 0.0
    for tree, reading in zip(trees, learner.forward(trees, reads), strict=True):
        forest = build_forest([tree])
        if "steps" in reads:
            read = [(reading.steps[s.node], tree.nodes[s.node].fields["weight"]) for s in forest.spans]
            steps = np.concatenate([column[np.flatnonzero(weight)] for column, weight in read])
            out = Outputs(steps=torch.from_numpy(steps))
        else:
            out = Outputs(scores=torch.tensor([reading.scores[node] for node in leaf_nodes(tree)]))
        share += float(function(out, forest, totals, **params).loss)
    return share


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


def _score(learner: LocalLearner, encoder: Encoder, heldout: Sequence[Preference]) -> list[HeldoutPair]:
    """Held-out pairs with raw scores."""
    answers = by_prompt([(p.prompt, item) for p in distinct_pairs(heldout) for item in p.items])
    trees = [answer_tree(prompt, items, encoder) for prompt, items in answers.values()]
    scores = {
        (prompt.id, item.id): reading.scores[1 + place]
        for (prompt, items), reading in zip(answers.values(), learner.forward(trees, {"scores"}), strict=True)
        for place, item in enumerate(items)
    }
    return heldout_pairs(heldout, scores)
